"""Claims about reading somebody else's model folder: honoured exactly, or refused by name.

Folders are tiny ones written by save_tiny and then damaged. A refusal is an InputError whose
message names the file and the offending thing; any other exception is a traceback in the
user's face and fails the test. Tests on real folders want the folder of real inputs.
"""
import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from checkpoint import weights
from checkpoint.config import FAMILIES as CONFIG_FAMILIES
from checkpoint.config import Config, Family, Llama3Rope, read_config
from checkpoint.weights import list_tensors, read_weights, tensor_files
from checkpoint.tokenizer import load_tokenizer
from model_llama import generate, load_model
from checkpoint import chat_template
from checkpoint.chat_template import FIXED_DATE
from storage.files import InputError
from tiny import ABSENT, FAMILIES, edit_json, edit_tensors, save_tiny, shard, tiny_model

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
HI = [{"role": "user", "content": "3 4"}]
ROOT = Path(weights.__file__).parents[1]


@pytest.fixture
def folder(tmp_path):
    return save_tiny(tmp_path / "model", tiny_model(dtype=torch.float32))


def config_with(folder, **changes):
    edit_json(folder / "config.json", **changes)
    return read_config(folder)


def refused(call, *words):
    with pytest.raises(InputError) as error:
        call()
    for word in words:
        assert str(word) in str(error.value)


def render(template, **values):
    text, problem = chat_template.render(template, values)
    if problem:
        raise InputError(problem)
    return text


# ---- weights that must be read ----

@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_safetensors_round_trip(family, tmp_path):
    """Catches a parameter filled from the wrong tensor, a lost bias and an untied head."""
    model = tiny_model(1, family, torch.float32)
    loaded = load_model(save_tiny(tmp_path, model))
    assert loaded.config == model.config
    assert torch.equal(loaded(TOKENS), model(TOKENS))
    tied = loaded.lm_head.weight is loaded.embed_tokens.weight
    assert tied == model.config.tie_embeddings
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


SHARDS = ["a.safetensors", "./a.safetensors", "sub/b.safetensors", "sub/../c.safetensors",
          "sub/deep/d.safetensors"]


@given(st.sampled_from(sorted(FAMILIES)), st.integers(1, len(SHARDS)),
       st.randoms(use_true_random=False))
@settings(max_examples=15)
def test_a_sharded_folder_is_the_same_model(family, count, rng):
    """Catches a shard left out, whichever tensors it holds, a shard refused because it lies in a
    folder of the folder, and one that is read twice under two spellings."""
    model = tiny_model(1, family, torch.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = save_tiny(Path(name), model)
        (folder / "sub" / "deep").mkdir(parents=True)
        spelt = {tensor: rng.choice(SHARDS[:count]) for tensor in list_tensors(folder)}
        shards = {}
        for tensor, file in spelt.items():
            shards.setdefault(os.path.normpath(file), []).append(tensor)
        shard(folder, shards)
        edit_json(folder / "model.safetensors.index.json", weight_map=spelt)
        assert tensor_files(folder) == [folder / file for file in sorted(shards)]
        assert torch.equal(load_model(folder)(TOKENS), model(TOKENS))


OUTSIDE = ["../a.safetensors", "/tmp/a.safetensors", "sub/../../a", "..", "", 7, None, ["a"]]


@pytest.mark.parametrize("weight_map, word", [
    ({}, "no weight_map"), (["a.safetensors"], "no weight_map"),
    *(({"model.norm.weight": name}, repr(name)) for name in OUTSIDE)])
def test_an_index_of_no_files_of_the_folder_is_refused(weight_map, word, folder):
    """Catches a folder that reads another one's files, and an index that names nothing."""
    edit_json(folder / "model.safetensors.index.json", weight_map=weight_map)
    (folder / "model.safetensors").unlink()
    refused(lambda: list_tensors(folder), "model.safetensors.index.json", word)


def test_a_tensor_in_two_shards_is_refused(folder):
    """Catches one of two tensors of one name that is taken without a word."""
    shard(folder, {"a.safetensors": [*list_tensors(folder)],
                   "b.safetensors": ["model.norm.weight"]})
    refused(lambda: list_tensors(folder), "b.safetensors: model.norm.weight", "a.safetensors")


def test_a_shard_may_be_a_link_as_in_the_cache_of_a_hub(folder, tmp_path):
    """Catches a refusal of what the hub's own cache looks like."""
    wanted = load_model(folder)(TOKENS)
    shard(folder, {"a.safetensors": list(list_tensors(folder))})
    (folder / "a.safetensors").rename(tmp_path / "blob")
    (folder / "a.safetensors").symlink_to(tmp_path / "blob")
    assert torch.equal(load_model(folder)(TOKENS), wanted)


def test_loading_holds_one_tensor_of_a_file_at_a_time(folder, monkeypatch):
    """Catches a file that stays mapped while all its tensors are read: every page of it then
    counts as memory, a second copy of the weights (tests/peak_memory.py measures it)."""
    opened, plain, number = [], weights.open_tensors, len(list_tensors(folder))
    monkeypatch.setattr(weights, "open_tensors", lambda file: opened.append(file) or plain(file))
    weights_of(folder)
    assert len(opened) == 2 + number  # twice for the list of tensors, then for each of them


def weights_of(folder):
    shapes = {name.removeprefix("model."): shape
              for name, (_, shape) in list_tensors(folder).items()}
    return read_weights(folder, read_config(folder), shapes, "cpu", torch.float32)


def test_a_file_that_changes_later_does_not_change_the_model(folder):
    """Catches weights left mapped onto the file, in which somebody else may write."""
    before = {name: weight.clone() for name, weight in weights_of(folder).items()}
    weights, data = weights_of(folder), (folder / "model.safetensors").read_bytes()
    size, = struct.unpack("<Q", data[:8])
    with open(folder / "model.safetensors", "r+b") as file:
        file.seek(8 + size)
        file.write(bytes(len(data) - 8 - size))
    assert not any(weight.any() for weight in weights_of(folder).values())
    assert all(torch.equal(weights[name], before[name]) for name in before)


@pytest.mark.parametrize("changes, word", [
    ({"model__norm__weight": ABSENT}, "1 tensors missing ['model.norm.weight']"),
    ({"more": torch.ones(2)}, "1 unexpected ['more']"),
    ({"norm__weight": torch.ones(16)}, "1 unexpected ['norm.weight']"),
    ({"model__norm__weight": torch.ones(17)}, "norm.weight has shape (17,); config.json says (16"),
    ({"model__norm__weight": torch.ones(16).int()}, "model.norm.weight has dtype I32")])
def test_names_shapes_and_dtypes_are_checked_before_a_tensor_is_read(changes, word, folder):
    """Catches gigabytes that are read before a wrong header is noticed. The first tensor of the
    file would be refused, too, once it is read."""
    config = read_config(folder)
    tensors = load_file(folder / "model.safetensors")
    shapes = {name.removeprefix("model."): tuple(tensors[name].shape) for name in tensors}
    edit_tensors(folder, lm_head__weight=tensors["lm_head.weight"] * torch.nan, **changes)
    refused(lambda: read_weights(folder, config, shapes, "cpu", torch.float32), folder, word)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_asked_for_is_the_dtype_of_every_weight(dtype, folder):
    """Catches weights that keep the checkpoint's dtype, or one parameter that does."""
    model = load_model(folder, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model(TOKENS).dtype == dtype


def test_a_bfloat16_checkpoint_is_float32_on_a_cpu(folder):
    """Catches bfloat16 arithmetic on a CPU, and values rounded on the way."""
    tensors = load_file(folder / "model.safetensors")
    edit_tensors(folder, **{k: v.to(torch.bfloat16) for k, v in tensors.items()})
    assert config_with(folder, torch_dtype="bfloat16").dtype == torch.bfloat16
    model = load_model(folder)
    assert model.norm.weight.dtype == torch.float32
    assert torch.equal(model.norm.weight, tensors["model.norm.weight"].bfloat16().float())


def tied(tmp_path, **tensors):
    folder = save_tiny(tmp_path / "model", tiny_model(1, "llama3", torch.float32))
    edit_tensors(folder, **tensors)
    return folder


def test_a_tied_folder_may_store_the_head_too_or_alone(tmp_path):
    """Catches a refusal of, or a second copy for, a head that equals the embedding, and an
    embedding left unfilled: some exports keep lm_head.weight and drop the other."""
    folder = tied(tmp_path)
    wanted = load_model(folder)
    edit_tensors(folder, lm_head__weight=wanted.embed_tokens.weight.clone())
    for tensors in ({}, {"model__embed_tokens__weight": ABSENT}):
        edit_tensors(folder, **tensors)
        model = load_model(folder)
        assert model.lm_head.weight is model.embed_tokens.weight
        assert model.fingerprint() == wanted.fingerprint()


@pytest.mark.parametrize("files", [
    None, ("a.safetensors", "b.safetensors"), ("b.safetensors", "a.safetensors")])
def test_a_head_that_differs_from_the_embedding_is_used(files, tmp_path):
    """Catches a folder that says tied but is not: both tensors count, in whatever order the
    files hold them (safetensors lists lm_head before model.embed_tokens)."""
    folder = tied(tmp_path)
    embedding = load_model(folder).embed_tokens.weight
    edit_tensors(folder, lm_head__weight=embedding * 2)
    if files:
        names = list(list_tensors(folder))
        shard(folder, {files[0]: [n for n in names if n != "lm_head.weight"],
                       files[1]: ["lm_head.weight"]})
    model = load_model(folder)
    assert torch.equal(model.embed_tokens.weight, embedding)
    assert torch.equal(model.lm_head.weight, embedding * 2)


def test_a_stored_rotary_constant_is_ignored(folder):
    """Catches a refusal of older exports, which store this constant in every layer."""
    edit_tensors(folder, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(2))
    load_model(folder)


# ---- weights that must be refused ----

def test_a_separate_head_must_be_finite_too(tmp_path):
    """Catches the one tensor of a tied folder that takes another way in."""
    folder = tied(tmp_path, lm_head__weight=torch.full((40, 16), float("nan")))
    refused(lambda: load_model(folder), "model.safetensors", "lm_head.weight", "NaN")


@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_damaged_header_never_crashes(where, byte):
    """Catches an exception other than InputError, whichever byte of the header is wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = save_tiny(Path(name), tiny_model(dtype=torch.float32, num_layers=1))
        data = bytearray((folder / "model.safetensors").read_bytes())
        data[where % (8 + struct.unpack("<Q", data[:8])[0])] = byte
        (folder / "model.safetensors").write_bytes(data)
        try:
            load_model(folder)  # a byte may also be what it was, or padding
        except InputError as error:
            assert name in str(error)


# ---- config.json: what is refused ----

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
NESTED = {"full_attention": {"rope_type": "default", "rope_theta": 1e4},
          "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}


@pytest.mark.parametrize("changes, word", [
    ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    ({"architectures": "LlamaForCausalLM", "model_type": "mamba"}, "mamba"),
    ({"architectures": ["Qwen2ForCausalLM"]}, "Qwen2ForCausalLM"),
    ({"model_type": "qwen2_moe"}, "qwen2_moe"), ({"model_type": ABSENT}, "model_type"),
    ({"model_type": {}}, "model_type {} is not supported"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
    ({"text_config": {"hidden_size": 8}}, "text_config"),
    ({"hidden_act": "gelu"}, "gelu"), ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "yarn"),
    ({"rope_parameters": NESTED}, "rope_parameters: full_attention {"),
    ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
     "rope_parameters: partial_rotary_factor 0.5"),
    ({"rope_scaling": {"rope_type": "default", "factor": 8.0}}, "rope_scaling: factor 8.0"),
    ({"rope_scaling": {"type": "default", "mrope_section": [2, 1, 1]}}, "mrope_section [2, 1, 1]"),
    ({"rope_scaling": {**LLAMA3, "attention_factor": 2.0}}, "attention_factor 2.0"),
    ({"rope_parameters": {"rope_type": ["llama3"]}}, "type ['llama3']"),
    ({"rope_scaling": {**LLAMA3, "factor": "8"}}, "factor must be a number, got '8'"),
    ({"rope_theta": True}, "rope_theta must be a number, got True"),
    ({"rms_norm_eps": "1e-6"}, "rms_norm_eps must be a number"),
    *(({key: False}, f"{key} False")
      for key in ("is_causal", "causal", "use_causal_mask", "unidirectional", "use_rope")),
    *(({key: value}, f"{key} {value!r}") for key, value in [
        ("logits_scaling", 8.0), ("logit_scale", 0.0625), ("residual_multiplier", 0.22),
        ("attention_multiplier", 1.0), ("mlp_multipliers", [0.9, 0.5]), ("scale_embedding", True),
        ("scale_emb", 12), ("final_logit_softcapping", 30.0), ("clip_qkv", 8.0),
        ("query_pre_attn_scalar", 256), ("no_rope_layers", [1, 0, 1]), ("use_qk_norm", True),
        ("qk_layernorm", True), ("alibi", True), ("use_parallel_residual", True),
        ("parallel_attn", True), ("attention_chunk_size", 8), ("sliding_window_pattern", 4),
        ("use_bidirectional_attention", True), ("num_kv_shared_layers", 2), ("use_mrope", True),
        ("per_layer_config", {"0": {"head_dim": 8}}), ("hidden_activation", "gelu_pytorch_tanh"),
        ("kv_lora_rank", 512), ("moe_intermediate_size", 8), ("num_local_experts", 8),
        ("use_dynamic_ntk", True), ("use_logn_attn", True), ("rotary_pct", 0.25),
        ("position_embedding_type", "alibi"), ("rope_interleave", True), ("swiglu_limit", 7.0),
        ("vision_config", {"depth": 2}), ("loop_num_passes", 2)]),
    ({"attention_bias": "false"}, "attention_bias must be true or false, got 'false'"),
    ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false"),
    ({"mlp_bias": [0]}, "mlp_bias must be true or false"),
    ({"rope_scaling": "linear"}, "rope_scaling must be an object, got 'linear'"),
    ({"rope_parameters": ["linear"]}, "rope_parameters must be an object, got ['linear']"),
    ({"rope_scaling": {**LLAMA3, "factor": 0}}, "factor"),
    ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "freq_factor"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "freq_factor"),
    ({"rope_theta": 0}, "rope_theta"), ({"rope_theta": float("nan")}, "rope_theta"),
    ({"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2}, "sliding_window"),
    ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "sliding_window"),
    ({"num_key_value_heads": 3}, "3"), ({"num_key_value_heads": 8}, "8"),
    ({"num_hidden_layers": -1}, "-1"), ({"vocab_size": 0}, "0"), ({"hidden_size": 16.0}, "16.0"),
    ({"intermediate_size": "24"}, "'24'"), ({"head_dim": 3}, "3"),
    ({"num_hidden_layers": 1001}, "num_hidden_layers 1001; the limit is 1000"),
    ({"vocab_size": 2 ** 48 + 1}, f"the limit is {2 ** 48}"),
    ({"num_attention_heads": 0}, "0"), ({"num_attention_heads": 0, "head_dim": ABSENT}, "head"),
    ({"hidden_size": ABSENT}, "hidden_size"), ({"vocab_size": ABSENT}, "vocab_size"),
    ({"torch_dtype": "float8_e4m3fn"}, "float8_e4m3fn"), ({"dtype": "int8"}, "int8"),
    ({"dtype": {"": "float32"}}, "dtype {'': 'float32'} is not supported"),
    ({"torch_dtype": ["float32"]}, "dtype ['float32'] is not supported"),
], ids=lambda value: str(value)[:70])
def test_a_config_that_cannot_be_honoured_is_refused_by_name(changes, word, folder):
    """Catches a key that changes the computation and is read over in silence."""
    refused(lambda: config_with(folder, **changes), folder / "config.json", word)


SCALARS = st.none() | st.booleans() | st.integers(-3, 70) | st.floats() | st.text(max_size=3)
JSON = st.recursive(SCALARS, lambda values: st.lists(values, max_size=2) | st.dictionaries(
    st.sampled_from(("rope_type", "type", "factor", "a")), values, max_size=2), max_leaves=4)
KEYS = ["architectures", "model_type", "hidden_size", "num_attention_heads", "num_key_value_heads",
        "head_dim", "num_hidden_layers", "rope_theta", "rope_scaling", "rope_parameters",
        "torch_dtype", "layer_types", "sliding_window", "use_sliding_window", "max_window_layers",
        "rms_norm_eps", "max_position_embeddings", "original_max_position_embeddings",
        "partial_rotary_factor", "tie_word_embeddings", "quantization_config", "hidden_act"]
TINY = tiny_model(dtype=torch.float32, num_layers=1)


@given(st.dictionaries(st.sampled_from(KEYS), JSON, min_size=1, max_size=3), st.booleans())
@example({"rope_parameters": [1]}, False)
@example({"num_attention_heads": 0}, True)
def test_any_config_is_read_or_refused(changes, no_head_dim):
    """Catches every other exception: a key may hold any JSON value at all."""
    with tempfile.TemporaryDirectory() as name:
        folder = save_tiny(Path(name), TINY)
        head = {"head_dim": ABSENT} if no_head_dim else {}
        try:
            assert isinstance(config_with(folder, **{**head, **changes}), Config)
        except InputError as error:
            assert "config.json" in str(error)


REAL_NOTES = {  # keys of real folders, and what old versions of transformers wrote of defaults
    "_name_or_path": "x", "transformers_version": "4.49.0", "use_cache": True,
    "attn_implementation": "sdpa", "_attn_implementation_autoset": True, "pretraining_tp": 1,
    "initializer_range": 0.02, "attention_dropout": 0.0, "pad_token_id": 0, "torchscript": False,
    "use_mrope": False, "max_window_layers": 36, "unsloth_fixed": True, "max_sequence_length": 64,
    "add_cross_attention": False, "chunk_size_feed_forward": 0, "pruned_heads": {},
    "cross_attention_hidden_size": None, "is_encoder_decoder": False, "length_penalty": 1.0,
    "output_router_logits": False, "num_experts": 0, "logits_scaling": 1.0, "is_causal": True,
    "final_logit_softcapping": None, "partial_rotary_factor": 1, "residual_multiplier": 1,
    "is_decoder": True, "id2label": {"0": "LABEL_0"}, "quantization_config": {}, "alibi": False,
    "hidden_act": "swish", "ffn_dim_multiplier": 1.3, "multiple_of": 256}


@pytest.mark.parametrize("model_type", sorted(CONFIG_FAMILIES))
def test_a_note_that_changes_nothing_is_read_over(model_type, folder):
    """Catches legal folders refused: other programs leave notes in config.json."""
    plain = config_with(folder, architectures=ABSENT, model_type=model_type)
    for key, value in REAL_NOTES.items():
        assert config_with(folder, **{key: value}) == plain


# ---- config.json: one record per family ----

@pytest.mark.parametrize("model_type", sorted(CONFIG_FAMILIES))
def test_a_window_of_each_family_is_refused(model_type, folder):
    """Catches a family whose layers see less in its library of origin than here: whichever keys
    its record reads."""
    record = CONFIG_FAMILIES[model_type]
    edit_json(folder / "config.json", architectures=ABSENT, model_type=model_type)
    switch = {record.window_switch: True} if record.window_switch else {}
    wanted = {"sliding_window": 8, "max_window_layers": 2, **switch}
    refused(lambda: config_with(folder, **wanted), "sliding_window")
    refused(lambda: config_with(folder, sliding_window=0), "sliding_window")
    if record.window_switch:  # then other keys say which layers have it
        assert config_with(folder, max_window_layers=3)
        assert config_with(folder, layer_types=["full_attention"] * 3, max_window_layers=0)
    refused(lambda: config_with(folder, layer_types=["full_attention", "sliding_attention"]),
            "sliding_window")
    edit_json(folder / "config.json", layer_types=ABSENT, sliding_window=ABSENT)
    if "sliding_window" in record.defaults:  # 4096 is meant if none is named
        refused(lambda: config_with(folder), "sliding_window")
    if record.window_switch:
        assert config_with(folder, **{record.window_switch: False}, sliding_window=8)
        assert config_with(folder, **{record.window_switch: ABSENT})


MISTRAL = Family(  # as its library has it; a record is all that a family of known blocks needs
    "mistral", "MistralForCausalLM", ignored=frozenset({"attention_bias", "mlp_bias"}),
    defaults={**CONFIG_FAMILIES["llama"].defaults, "num_key_value_heads": 8, "head_dim": None,
              "max_position_embeddings": 131072, "sliding_window": 4096})


def test_a_new_family_is_what_its_record_says_and_nothing_of_the_others(folder, monkeypatch):
    """Catches a family that inherits the defaults, the switch or the biases of another one."""
    monkeypatch.setitem(CONFIG_FAMILIES, "mistral", MISTRAL)
    edit_json(folder / "config.json", architectures=["MistralForCausalLM"], model_type="mistral")
    for window in (ABSENT, 8):
        refused(lambda: config_with(folder, sliding_window=window, use_sliding_window=False),
                "sliding_window")
    # the window alone decides in that library, whatever other families say of layers
    for key, value in (("max_window_layers", 3), ("layer_types", ["full_attention"] * 3)):
        refused(lambda: config_with(folder, sliding_window=8, **{key: value}), "sliding_window")
        edit_json(folder / "config.json", **{key: ABSENT})
    config = config_with(folder, sliding_window=None, attention_bias=True, mlp_bias=True,
                         num_attention_heads=16, hidden_size=64, head_dim=ABSENT,
                         num_key_value_heads=ABSENT, max_position_embeddings=ABSENT)
    assert (config.num_kv_heads, config.max_positions, config.head_dim) == (8, 131072, 4)
    assert not (config.qkv_bias or config.o_bias or config.mlp_bias or config.qk_norm)


# ---- config.json: how defaults resolve ----

@pytest.mark.parametrize("changes, wanted", [
    ({"num_key_value_heads": None}, {"num_kv_heads": 4}),
    ({"num_key_value_heads": ABSENT}, {"num_kv_heads": 4}),
    ({"model_type": "qwen2", "num_key_value_heads": None}, {"num_kv_heads": 4}),
    ({"model_type": "qwen2", "num_key_value_heads": ABSENT, "num_attention_heads": 64,
      "hidden_size": 128}, {"num_kv_heads": 32}),
    ({"max_position_embeddings": ABSENT}, {"max_positions": 2048}),
    ({"model_type": "qwen2", "max_position_embeddings": ABSENT}, {"max_positions": 32768}),
    ({"head_dim": None}, {"head_dim": 4}), ({"head_dim": ABSENT}, {"head_dim": 4}),
    ({"model_type": "qwen2", "head_dim": ABSENT}, {"head_dim": 4}),
    ({"model_type": "qwen3", "head_dim": ABSENT}, {"head_dim": 128, "qk_norm": True}),
    ({"attention_bias": True}, {"qkv_bias": True, "o_bias": True}),
    ({"model_type": "qwen2", "attention_bias": False}, {"qkv_bias": True, "o_bias": False}),
    ({"model_type": "qwen2", "attention_bias": True}, {"qkv_bias": True, "o_bias": False}),
    ({"model_type": "qwen3", "attention_bias": True}, {"qkv_bias": True, "o_bias": True}),
    ({"mlp_bias": True}, {"mlp_bias": True}),
    ({"model_type": "qwen3", "mlp_bias": True}, {"mlp_bias": False}),
    ({"rope_theta": ABSENT}, {"rope_theta": 10000.0}), ({"rope_theta": 5e5}, {"rope_theta": 5e5}),
    ({"rope_theta": ABSENT, "rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}},
     {"rope_theta": 7.0, "rope_scaling": None}),
    ({"rope_theta": 5.0, "rope_parameters": {"rope_theta": 7.0}}, {"rope_theta": 7.0}),
    ({"rope_parameters": {**LLAMA3, "rope_theta": 7.0}},
     {"rope_scaling": Llama3Rope(8.0, 1.0, 4.0, 16), "rope_theta": 7.0}),
    ({"rope_scaling": LLAMA3, "rope_parameters": {"rope_type": "default"}},
     {"rope_scaling": Llama3Rope(8.0, 1.0, 4.0, 16)}),
    ({"rope_scaling": {**LLAMA3, "original_max_position_embeddings": None}},
     {"rope_scaling": Llama3Rope(8.0, 1.0, 4.0, 64)}),
    ({"rope_scaling": LLAMA3, "original_max_position_embeddings": 32},
     {"rope_scaling": Llama3Rope(8.0, 1.0, 4.0, 32)}),
    ({"torch_dtype": "float16"}, {"dtype": torch.float16}),
    ({"torch_dtype": "float16", "dtype": "bfloat16"}, {"dtype": torch.bfloat16}),
    ({"torch_dtype": ABSENT, "dtype": "bfloat16"}, {"dtype": torch.bfloat16}),
    ({"torch_dtype": ABSENT}, {"dtype": torch.float32}),
    ({"tie_word_embeddings": ABSENT}, {"tie_embeddings": False}),
], ids=lambda value: str(value)[:70])
def test_config_defaults_resolve_as_in_the_library_of_origin(changes, wanted, folder):
    """Catches a default taken from the wrong family, and a new spelling that is not read."""
    if "model_type" in changes:
        changes = {"architectures": ABSENT, **changes}
    config = config_with(folder, **changes)
    assert {name: getattr(config, name) for name in wanted} == wanted


# ---- tokenizer and stop ids ----

CUTS = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
PADS = {"strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": 8, "pad_id": 1,
        "pad_type_id": 0, "pad_token": "<eos>"}


@pytest.mark.parametrize("left", [
    {"truncation": CUTS}, {"truncation": {**CUTS, "direction": "Left"}}, {"padding": PADS},
    {"padding": {**PADS, "strategy": "BatchLongest"}}, {"truncation": CUTS, "padding": PADS}])
def test_what_training_leaves_in_tokenizer_json_is_switched_off(left, folder):
    """Catches prompts that are cut or filled up without a word: of 77.5% correct answers 19.0%
    are left. transformers switches both off when it encodes."""
    wanted = load_tokenizer(folder).encode("Question: 3 4 5")
    edit_json(folder / "tokenizer.json", **left)
    assert load_tokenizer(folder).encode("Question: 3 4 5") == wanted
    assert len(wanted) == 4


def test_a_text_has_the_same_tokens_every_time(folder):
    """Catches BPE dropout that training left behind: another prompt at every call."""
    words = ["<unk>", "<eos>", "a", "b", "ab", "abab"]
    edit_json(folder / "tokenizer.json", pre_tokenizer=None, normalizer=None, model={
        "type": "BPE", "dropout": 0.9, "vocab": {word: n for n, word in enumerate(words)},
        "merges": ["a b", "ab ab"], "unk_token": "<unk>"})
    tokenizer = load_tokenizer(folder)
    assert [tokenizer.encode("abababab") for _ in range(20)] == [[5, 5]] * 20


def test_a_tokenizer_json_that_the_library_refuses_is_named(folder):
    """Catches a traceback of the library's, which raises bare Exception."""
    edit_json(folder / "tokenizer.json", model={"type": "no such model"})
    refused(lambda: load_tokenizer(folder), folder / "tokenizer.json")


def test_special_tokens_in_a_text_are_split_only_where_the_folder_says_so(folder):
    """Catches a key of tokenizer_config.json that transformers obeys."""
    assert load_tokenizer(folder).encode("3<eos>4") == [5, 1, 6]
    edit_json(folder / "tokenizer_config.json", split_special_tokens=True)
    assert load_tokenizer(folder).encode("3<eos>4") == [0]


@pytest.mark.parametrize("generation, config, wanted", [
    (5, 1, {1, 5}), ([5, 7, 5, None], 1, {1, 5, 7}), (None, 6, {1, 6}), (ABSENT, 6, {1, 6}),
    (ABSENT, [6, 8], {1, 6, 8}), (ABSENT, None, {1}), (ABSENT, ABSENT, {1}), (0, 6, {0, 1})])
def test_stop_ids_come_from_every_place_that_names_them(generation, config, wanted, folder):
    """Catches an answer that runs past its end: generation_config.json wins over config.json,
    and 1 is the eos_token of tokenizer_config.json."""
    edit_json(folder / "generation_config.json", eos_token_id=generation)
    edit_json(folder / "config.json", eos_token_id=config)
    stop_ids = load_tokenizer(folder).stop_ids
    assert set(stop_ids) == wanted and len(stop_ids) == len(wanted)


def test_decoding_leaves_out_special_and_unknown_ids(folder):
    """Catches a crash on ids beyond the tokenizer: models have more rows than it has words."""
    assert load_tokenizer(folder).decode([5, 1, 6, 10**6]) == "3 4"


LLAMA2 = {"type": "Sequence", "normalizers": [
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}


@pytest.mark.parametrize("legacy, normalizer, splitter, wanted", [
    (False, LLAMA2, None, [6, 2, 5]), (True, LLAMA2, None, [6, 2, 3, 5]),
    (ABSENT, LLAMA2, None, [6, 2, 3, 5]), (None, LLAMA2, None, [6, 2, 3, 5]),
    (False, LLAMA2, {"type": "WhitespaceSplit"}, [6, 2, 3, 5]),
    (False, {**LLAMA2, "normalizers": LLAMA2["normalizers"][1:]}, None, [4, 2, 5])])
def test_text_after_a_special_token_has_no_blank_unless_legacy(legacy, normalizer, splitter,
                                                              wanted, folder):
    """Catches a blank (id 3) that the model's owners do not put there: tokenizer.json of a
    Llama 2 kind of folder asks for it, and "legacy": false in tokenizer_config.json revokes it."""
    words = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a"]
    edit_json(folder / "tokenizer.json", pre_tokenizer=splitter, normalizer=normalizer, model={
        "type": "BPE", "vocab": {word: n for n, word in enumerate(words)},
        "merges": ["▁ a"], "unk_token": "<unk>"}, added_tokens=[
        {"id": 2, "content": "</s>", "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}])
    edit_json(folder / "tokenizer_config.json", legacy=legacy)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("a</s>b") == wanted
    assert tokenizer.encode("a a") == ([4, 6] if wanted[0] == 4 else [6, 6])


# ---- chat templates ----

LISTED = [{"name": "tool_use", "template": "9"}, {"name": "default", "template": "4"}]


@pytest.mark.parametrize("settings, file, wanted", [
    ("3", None, [5]), (LISTED, None, [6]), (LISTED[:1], None, [11]), ("3", "7", [9]),
    (ABSENT, "7", [9]), (LISTED, "7", [9])])
def test_the_template_is_found_where_the_folder_keeps_it(settings, file, wanted, folder):
    """Catches the wrong one of several templates: the .jinja file overrides the others."""
    edit_json(folder / "tokenizer_config.json", chat_template=settings)
    if file:
        (folder / "chat_template.jinja").write_text(file, encoding="utf-8")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.has_template and tokenizer.chat(HI) == wanted


@pytest.mark.parametrize("settings", [ABSENT, None, []])
def test_a_folder_without_template_says_so(settings, folder):
    """Catches a base model that is asked as if it had been tuned for chat."""
    edit_json(folder / "tokenizer_config.json", chat_template=settings)
    tokenizer = load_tokenizer(folder)
    assert not tokenizer.has_template
    refused(lambda: tokenizer.chat(HI), "chat template")


def test_bos_is_not_doubled(folder):
    """Catches a second BOS: the template prints one and the tokenizer would add another."""
    file = folder / "tokenizer.json"
    edit_json(file, post_processor={
        "type": "TemplateProcessing", "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
        "single": [{"SpecialToken": {"id": "<eos>", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<eos>": {"id": "<eos>", "ids": [1], "tokens": ["<eos>"]}}})
    edit_json(folder / "tokenizer_config.json", bos_token="<eos>",
              chat_template="{{ bos_token }} {{ messages[0].content }}")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.chat(HI) == tokenizer.encode("3 4") == [1, 5, 6]
    assert tokenizer.encode("3 4", add_special_tokens=False) == [5, 6]


@pytest.mark.parametrize("condition", [
    "add_generation_prompt", "enable_thinking is false", "date_string is not defined",
    "strftime_now('%Y-%m-%d') == '2024-07-26'", "messages[0].role == 'user'",
    "tools is defined and tools is none", "documents is defined and documents is none"])
def test_chat_asks_for_an_answer_at_once_on_a_fixed_day(condition, folder):
    """Catches a conversation that waits for nobody, a chain of thought, and today's date."""
    edit_json(folder / "tokenizer_config.json",
              chat_template="{% if " + condition + " %}3{% else %}4{% endif %}")
    assert load_tokenizer(folder).chat(HI) == [5]


@pytest.mark.parametrize("template, wanted", [
    ("{{ strftime_now('%d %b %Y') }}", FIXED_DATE), ("{{ x | tojson }}", '{"a": "<é>"}'),
    ("{{ {'b': 'é', 'a': 1} | tojson(ensure_ascii=True, sort_keys=True) }}",
     '{"a": 1, "b": "\\u00e9"}'),
    ("{{ [1, {'a': 2}] | tojson(separators=(',', ':')) }}", '[1,{"a":2}]'),
    ("{{ {'a': 1} | tojson(indent=2) }}", '{\n  "a": 1\n}'),
    ("{% generation %}a{{ x.a }}{% endgeneration %}b", "a<é>b"),
    ("{%- generation -%} a {%- endgeneration -%} b", "ab"),
    ("{% set y = 1 %}{% generation %}{% set y = 2 %}{{ y }}{% endgeneration %}{{ y }}", "21"),
    ("{% for i in 'ab' %}{% generation %}{{ loop.index }}{% endgeneration %}{% endfor %}", "12"),
    ("{% for i in range(9) %}{% if i > 1 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
    ("{{ '{:>3}'.format(7) }}{{ '%3d' | format(7) }}{{ 7 | string | center(3) }}", "  7  7 7 "),
    ("{% if true %}\n  a\n  {% endif %}\nb", "  a\nb")])
def test_templates_get_the_helpers_they_expect(template, wanted):
    """Catches a date that changes the prompt every day, and blanks that change its tokens."""
    assert render(template, x={"a": "<é>"}) == wanted


@pytest.mark.parametrize("template, word", [
    ("{{ raise_exception('roles must alternate') }}", "roles must alternate"), ("{% if", ""),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "__class__"),
    ("{{ (lipsum | attr('__globals__'))['os'] }}", ""),
    ("{{ x.append(1) }}", "append"), ("{% include '/etc/passwd' %}", ""),
    ("{{ range(1000000000) | list }}", "100000"), ("{{ 1 // 0 }}", "zero"),
    ("{% for a in x %}" * 25 + "{% endfor %}" * 25, "nested"),
    ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", ""),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ("{{ missing.content }}", "missing"),
], ids=lambda value: value[:40])
def test_a_template_that_fails_or_escapes_is_refused(template, word):
    """Catches code of a stranger that reaches Python's classes, files or a traceback."""
    refused(lambda: render(template, x=[1]), word)


TOKENS_OF_A_FOLDER = [  # (tokenizer_config.json, special_tokens_map.json, what a template sees)
    ({"unk_token": "U"}, {}, {"unk_token": "U", "eos_token": "<eos>"}),
    ({"sep_token": "S", "cls_token": {"content": "C"}, "mask_token": "M", "pad_token": None},
     {}, {"sep_token": "S", "cls_token": "C", "mask_token": "M", "eos_token": "<eos>"}),
    ({}, {"unk_token": {"content": "U", "lstrip": False}, "bos_token": "B"},
     {"unk_token": "U", "bos_token": "B", "eos_token": "<eos>"}),
    ({"unk_token": "old"}, {"unk_token": "U"}, {"unk_token": "U", "eos_token": "<eos>"}),
    ({"added_tokens_decoder": {}}, {"unk_token": "U"}, {"eos_token": "<eos>"}),
    ({"additional_special_tokens": ["A", {"content": "B"}], "add_bos_token": True}, {},
     {"additional_special_tokens": ["A", "B"], "eos_token": "<eos>"}),
    ({"extra_special_tokens": {"image_token": "I"}, "boi_token": "J"}, {},
     {"image_token": "I", "boi_token": "J", "eos_token": "<eos>"}),
    ({"model_specific_special_tokens": {"image_token": "I"}}, {},
     {"image_token": "I", "eos_token": "<eos>"}),
    ({"tokenizer_class": "LlamaTokenizerFast"}, {},
     {"bos_token": "<s>", "eos_token": "<eos>", "unk_token": "<unk>"}),
    ({"tokenizer_class": "LlamaTokenizer", "bos_token": None}, {},
     {"eos_token": "<eos>", "unk_token": "<unk>"}),
    ({"tokenizer_class": "Qwen2Tokenizer", "pad_token": "P"}, {},
     {"eos_token": "<eos>", "unk_token": "<|endoftext|>", "pad_token": "P"})]


@pytest.mark.parametrize("settings, special_map, wanted", TOKENS_OF_A_FOLDER)
def test_a_template_sees_the_special_tokens_that_transformers_hands_it(settings, special_map,
                                                                       wanted, folder):
    """Catches a token that a template prints as nothing, whichever file or class names it."""
    edit_json(folder / "tokenizer_config.json", **settings, chat_template=(
        "{{ [bos_token, eos_token, unk_token, sep_token, pad_token, cls_token, mask_token,"
        " image_token, boi_token, additional_special_tokens, add_bos_token] | map('default', '-')"
        " | list | tojson }}"))
    if special_map:
        edit_json(folder / "special_tokens_map.json", **special_map)
    names = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
             "mask_token", "image_token", "boi_token", "additional_special_tokens", "add_bos_token"]
    tokenizer = load_tokenizer(folder)
    assert tokenizer.special == wanted
    assert json.loads(tokenizer.render(HI)) == [wanted.get(name, "-") for name in names]


def test_a_special_token_that_is_a_mere_word_of_tokenizer_json_stays_whole(folder):
    """Catches an end of text, printed by a template, that is cut into letters."""
    edit_json(folder / "tokenizer_config.json", unk_token="z", additional_special_tokens=["y"],
              pad_token="not in the vocabulary")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("3z4y5") == [5, 37, 6, 36, 7] and tokenizer.decode([5, 37, 36]) == "3"
    assert tokenizer.fast.get_vocab_size() == 40
    edit_json(folder / "tokenizer_config.json", additional_special_tokens=[3])
    refused(lambda: load_tokenizer(folder), "additional_special_tokens must be texts, got [3]")


def test_a_template_does_not_see_what_is_none_in_a_message(folder):
    """Catches a template that takes the branch for tool calls, or prints None."""
    edit_json(folder / "tokenizer_config.json",
              chat_template="{{ 4 if messages[0].tool_calls is defined else 3 }}")
    assert load_tokenizer(folder).chat([{**HI[0], "tool_calls": None}]) == [5]


def test_an_end_of_text_that_only_the_special_tokens_map_names_ends_an_answer(folder):
    """Catches an answer that runs on: older folders name eos_token in that file alone."""
    edit_json(folder / "config.json", eos_token_id=ABSENT)
    edit_json(folder / "tokenizer_config.json", eos_token=ABSENT)
    assert load_tokenizer(folder).stop_ids == ()
    edit_json(folder / "special_tokens_map.json", eos_token={"content": "<eos>"})
    assert load_tokenizer(folder).stop_ids == (1,)


ENDLESS = ("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}")


@contextlib.contextmanager
def child():
    """A process of this test's own that renders."""
    made = chat_template._child(os.getpid())
    try:
        yield made
    finally:
        made.kill()
        made.wait()
        chat_template._child.cache_clear()


@pytest.fixture
def hasty(monkeypatch):
    """Rendering that may take 0.2 s of work."""
    with child():
        pass
    monkeypatch.setattr(chat_template, "SECONDS", 0.2)
    with child() as made:
        assert render("{{ 1 }}") == "1"
        yield made


def cpu_seconds(pid):
    """The work a process has done."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def test_the_deadline_counts_work_and_not_waiting():
    """Catches an honest template refused, and a whole run with it, because the machine is busy:
    here the process that renders is stopped for longer than its work may take."""
    with child() as made:
        assert render("{{ 1 }}") == "1"
        threading.Timer(0.02, made.send_signal, [signal.SIGSTOP]).start()
        threading.Timer(chat_template.SECONDS + 0.5, made.send_signal, [signal.SIGCONT]).start()
        assert render(ENDLESS.replace("100000", "2000") + "done") == "done"


def test_the_deadline_is_of_one_rendering_and_not_of_all(hasty):
    """Catches a limit that a run of thousands of prompts reaches, each of them quick."""
    slow = "{% for a in range(20000) %}{% endfor %}done"
    while cpu_seconds(hasty.pid) < 0.5:
        assert render(slow) == "done"
    assert hasty.poll() is None


@pytest.mark.parametrize("template", [
    ENDLESS, "{{ lipsum(n=900000) }}", "{{ ('9' * 4000) | int ** ('9' * 4000) | int }}"])
def test_an_endless_template_ends_in_any_thread(template, hasty):
    """Catches a deadline that needs signals, which only the main thread gets, one that is looked
    at between two lines of Python only, and a dead process that nobody waits for."""
    errors = []

    def work():
        try:
            render(template)
        except InputError as error:
            errors.append(str(error))
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert errors and "0.2 s" in errors[0]
    assert not Path(f"/proc/{hasty.pid}").exists()
    assert render("{{ 3 }}") == "3"


@pytest.mark.parametrize("template", [
    "{% for a in range(100000) %}0123456789abcdef{% endfor %}", "{{ 'x' | center(2000000) }}"])
def test_a_huge_rendering_is_refused(template):
    """Catches a prompt of millions of characters."""
    refused(lambda: render(template), "1000000")


GROWING = ("{{% set ns = namespace(x='aa') %}}{{% for i in range(40) %}}{{% set ns.x = {} %}}"
           "{{% endfor %}}{{{{ ns.x | length }}}}")


@pytest.mark.parametrize("template, word", [
    (GROWING.format("ns.x ~ ns.x"), "536870912 bytes"), (GROWING.format("ns.x + ns.x"), ""),
    ("{{ '%10000000000d' | format(1) | length }}", "bytes"),
    ("{{ [1] | tojson(indent=10000000000) | length }}", "536870912 bytes"),
    ("{{ ('a' * 10000000000) | length }}", "536870912 bytes")], ids=lambda value: value[-50:])
def test_a_template_cannot_fill_the_memory(template, word):
    """Catches a template that takes the machine down, step by step or at once, even if it prints
    nothing of it."""
    refused(lambda: render(template), word)


def test_the_process_that_renders_is_refused_memory():
    """Catches a bound that is only meant to be there."""
    with child() as made:
        render("{{ 1 }}")
        limits = Path(f"/proc/{made.pid}/limits").read_text(encoding="utf-8")
        bound = limits.split("Max address space")[1].split()
        assert bound[:2] == [str(chat_template.MEMORY)] * 2


def test_a_template_that_kills_its_process_harms_no_other():
    """Catches a child that stays dead, or an answer that is taken for another question's."""
    with child() as made:
        assert render("{{ 1 }}") == "1"
        made.send_signal(signal.SIGKILL)
        made.wait()
        refused(lambda: render("{{ 2 }}"), "out of memory")
    assert render("{{ 3 }}") == "3"


def test_a_rendering_that_is_interrupted_answers_no_other(monkeypatch):
    """Catches the answer to one conversation given to the next, after a Ctrl-C that somebody
    caught: the tokens of a wrong prompt, which nobody would notice."""
    def interrupt(*_):
        raise KeyboardInterrupt
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            render(ENDLESS.replace("100000", "3000") + "slow")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert render("{{ 7 }}") == "7"


def test_threads_get_the_answers_to_their_own_questions():
    """Catches two threads that talk to one process at once."""
    wrong = []

    def work(number):
        for n in range(50):
            wrong.extend({render("{{ x }}", x=f"{number}-{n}")} - {f"{number}-{n}"})
    threads = [threading.Thread(target=work, args=[n], daemon=True) for n in range(8)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 60
    for thread in threads:
        thread.join(max(0, end - time.monotonic()))
    assert not wrong and not any(thread.is_alive() for thread in threads)


FORKS = """
import os, sys
from checkpoint.chat_template import _child, render
assert render("{{ 1 }}", {}) == ["1", ""]
mine = os.fork()
for n in range(300):
    assert render("{{ x }}", {"x": f"{mine}-{n}"}) == [f"{mine}-{n}", ""]
print(_child(os.getpid()).pid, flush=True)
if mine:
    assert os.waitpid(mine, 0)[1] == 0
"""


def test_a_forked_process_renders_for_itself_and_nothing_outlives_it():
    """Catches a pipe that two processes share, and a process left behind by each run. The script
    comes from standard input: a child that imported its parent's main would fail on it."""
    made = subprocess.run([sys.executable, "-"], input=FORKS, capture_output=True, encoding="utf-8",
                          cwd=ROOT)
    children = made.stdout.split()
    assert (made.returncode, made.stderr, len({*children})) == (0, "", 2)
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes()
              for pid in children):  # a zombie has no command line
        assert time.monotonic() < end
        time.sleep(0.05)


def test_ctrl_c_does_not_reach_the_process_that_renders():
    """Catches a traceback of the child's: Ctrl-C goes to every process of the terminal."""
    with child() as made:
        assert os.getsid(made.pid) == made.pid


ASKS = ("{% if m.startswith('<tool>') %}tool{% endif %}{{ m.split('</think>')[-1] }}"
        "{{ m | trim | replace('\\r', '') }}")


@pytest.mark.parametrize("content", [
    "What is 3.14159265 * 2?", "Population: 1000000.", "100% of 1234567", "{x: 1234567}",
    "%1000000d", "{{ 1 // 0 }} {% if", "{0.__class__}", "\ud7ff\U0001f600 \0\n\u2028"])
def test_a_message_may_hold_any_text(content):
    """Catches limits on a template's own formats that refuse the numbers of a question: real
    templates call startswith, split and trim on the text of a message. And a line break in it
    that ends the line between two processes."""
    assert render(ASKS, m=content) == content + content.strip()


PIECES = [
    "{% for a in x %}", "{% endfor %}", "{% if a %}", "{% else %}", "{% endif %}", "{{ a }}",
    "{% set a = x %}", "{{ a[0].b }}", "{% break %}", "{{ '{1}'.format(a) }}", "{{ a | upper }}",
    "{{ loop.index }}", "{{ a + 1 }}", "{{ x[5:] | first }}", "{% macro a(b) %}", "{{ a(1) }}",
    "{% endmacro %}", "{% block a %}", "{% endblock %}", "{{ super() }}", "{{", "%}", "{{ ns.a }}",
    "{% continue %}", "{{ x | batch(0) | list }}", "{{ x | map('int') | sum }}", "text\n",
    "{{ a.b.c }}", "{# ", " #}", "{%- set ns = namespace() -%}", "{% call a() %}", "{% endcall %}",
    "{{ a | tojson(indent='x') }}", "{% filter upper %}", "{% endfilter %}"]


@given(st.lists(st.sampled_from(PIECES), max_size=8))
def test_any_template_renders_or_is_refused(pieces):
    """Catches every exception: a template may fail in ways nobody has listed."""
    text, problem = chat_template.render("".join(pieces), {"x": [1, "b", None]})
    assert isinstance(text, str) and isinstance(problem, str) and not (text and problem)


def test_a_template_remembers_nothing():
    """Catches values of one conversation that show up in the next."""
    template = ("{% if x is defined %}{% set seen = x %}{% endif %}{{ seen | default('-') }}"
                "{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}")
    assert [render(template, **values) for values in ({"x": 7}, {}, {"x": 8})] == ["71", "-1", "81"]


def test_a_template_is_compiled_once():
    """Catches a compilation per prompt, which costs a hundred times the rendering. The work of
    30 renderings is set against that of the first, which compiles."""
    template = "".join(f"{{% if x == {n} %}}{{{{ x + {n} }}}}{{% endif %}}" for n in range(1500))
    with child() as made:
        assert render(template, x=7) == "14"
        first = cpu_seconds(made.pid)
        assert [render(template, x=7) for _ in range(30)] == ["14"] * 30
        assert cpu_seconds(made.pid) < 4 * first


def test_a_folders_template_that_fails_is_refused_with_the_folders_name(folder):
    """Catches a refusal that leaves the user to guess which of two models is meant."""
    edit_json(folder / "tokenizer_config.json", chat_template="{{ raise_exception('no') }}")
    refused(lambda: load_tokenizer(folder).chat(HI), folder, "chat template", "no")


def test_text_that_is_not_unicode_is_refused(folder):
    """Catches a lone surrogate (a JSON escape can spell one) that the tokenizer cannot take."""
    edit_json(folder / "tokenizer_config.json", chat_template="{{ messages[0].content }}")
    tokenizer = load_tokenizer(folder)
    refused(lambda: tokenizer.chat([{"role": "user", "content": "3 \ud800"}]))
    refused(lambda: tokenizer.encode("3 \ud800"))


# ---- real folders ----

def real(shared, name, file="config.json"):
    folder = shared / "models" / name
    if not (folder / file).exists():
        pytest.skip(f"no {folder / file}: this test wants a real folder")
    return folder


def test_every_real_config_is_read(shared):
    """Catches a refusal of the folders this decoder exists for."""
    files = sorted((shared / "models").glob("*/config.json"))
    assert files
    for file in files:
        assert isinstance(read_config(file.parent), Config), file


@pytest.mark.parametrize("name, wanted", [
    ("Llama-3.2-3B", {
        "num_layers": 28, "num_heads": 24, "num_kv_heads": 8, "head_dim": 128,
        "hidden_size": 3072, "vocab_size": 128256, "rope_theta": 500000.0, "tie_embeddings": True,
        "rope_scaling": Llama3Rope(32.0, 1.0, 4.0, 8192), "rms_norm_eps": 1e-5,
        "qkv_bias": False, "qk_norm": False, "dtype": torch.bfloat16, "max_positions": 131072}),
    ("Llama-3.1-8B-Instruct", {
        "num_layers": 32, "num_heads": 32, "num_kv_heads": 8, "head_dim": 128,
        "rope_scaling": Llama3Rope(8.0, 1.0, 4.0, 8192), "tie_embeddings": False}),
    ("Qwen2.5-7B-Instruct", {
        "num_layers": 28, "num_heads": 28, "num_kv_heads": 4, "head_dim": 128, "qkv_bias": True,
        "o_bias": False, "rope_theta": 1000000.0, "rope_scaling": None, "tie_embeddings": False}),
    ("Qwen3-4B", {
        "num_layers": 36, "num_heads": 32, "num_kv_heads": 8, "head_dim": 128, "qk_norm": True,
        "qkv_bias": False, "hidden_size": 2560, "tie_embeddings": True}),
    ("TinyLlama-1.1B-Chat-v1.0", {
        "num_layers": 22, "num_kv_heads": 4, "head_dim": 64, "dtype": torch.float32}),
])
def test_real_configs_mean_what_their_model_cards_say(name, wanted, shared):
    """Catches a default that overrides what a real folder says."""
    config = read_config(real(shared, name))
    assert {key: getattr(config, key) for key in wanted} == wanted


TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "What is 2+2?"}]
LLAMA_TALK = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWhat is 2+2?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n")
QWEN_TALK = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nWhat is 2+2?<|im_end|>\n"
    "<|im_start|>assistant\n")
TINYLLAMA_TALK = (
    "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello!</s>\n"
    "<|user|>\nWhat is 2+2?</s>\n<|assistant|>\n")


@pytest.mark.parametrize("name, text, first, stop_ids", [
    ("Llama-3.2-3B-Instruct", LLAMA_TALK, [128000, 128006, 9125, 128007],
     {128001, 128008, 128009}),
    ("Qwen2.5-0.5B-Instruct", QWEN_TALK, [151644, 8948, 198], {151643, 151645}),
    ("TinyLlama-1.1B-Chat-v1.0", TINYLLAMA_TALK, [], {2})])
def test_a_real_conversation_has_the_tokens_of_its_template(name, text, first, stop_ids, shared):
    """Catches a wrong template, date or blank, special tokens cut into letters, a doubled BOS."""
    tokenizer = load_tokenizer(real(shared, name, "tokenizer.json"))
    ids = tokenizer.chat(TALK)
    assert tokenizer.fast.decode(ids, skip_special_tokens=False) == text
    assert ids[:len(first)] == first
    assert set(tokenizer.stop_ids) == stop_ids


PUBLISHED = {  # lines of llama.cpp's ggml-vocab-llama-bpe.gguf.inp and .out, and Meta's own test
    "ied 4 ½ months": "1142 220 19 220 27154 4038", "\t\n": "1602", "3333333": "8765 8765 18",
    " this is 🦙.cpp": "420 374 11410 99 247 13 11055", "' era": "6 11639",
    "нещо на Български": "79862 102118 13373 64571 34694 3114 112203 80112",
    "    Hello\n    Hello": "262 22691 198 262 22691",
    "This is a test sentence.": "2028 374 264 1296 11914 13",
    "<|start_header_id|>assistant<|end_header_id|>\n\n": "128006 78191 128007 271"}


def test_llama3_text_has_the_tokens_that_were_published(shared):
    """Catches a tokenizer.json that is not read as its owners meant it."""
    tokenizer = load_tokenizer(real(shared, "Llama-3.2-3B-Instruct", "tokenizer.json"))
    for text, ids in PUBLISHED.items():
        assert tokenizer.encode(text, add_special_tokens=False) == [int(i) for i in ids.split()]


def test_tinyllama_text_has_the_tokens_of_the_reference(shared):
    """Catches a blank after every special token (29871), which the reference does not put there."""
    tokenizer = load_tokenizer(real(shared, "TinyLlama-1.1B-Chat-v1.0", "tokenizer.json"))
    for text, ids in {"bat</s>\n<|a": "17152 2 13 29966 29989 29874", " bat": "17152",
                      "</s>x": "2 29916", " </s> x": "29871 2 921", "": "",
                      "  a  b": "29871 263 29871 289"}.items():
        assert tokenizer.encode(text, add_special_tokens=False) == [int(i) for i in ids.split()]


def test_qwen3_is_asked_to_answer_without_thinking(shared):
    """Catches answers that spend their tokens on a chain of thought nobody grades."""
    file = real(shared, "Qwen3-4B") / "tokenizer_config.json"
    template = json.loads(file.read_text(encoding="utf-8"))["chat_template"]
    text = render(template, messages=TALK[1:2], add_generation_prompt=True, enable_thinking=False)
    assert text == ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
                    "<think>\n\n</think>\n\n")


def test_a_trained_model_tells_a_story(shared):
    """Catches weights that load but do not fit: a trained model stops making sense at once."""
    folder = real(shared, "TinyStories-656K", "model.safetensors")
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    prompt = tokenizer.encode("Once upon a time")
    assert prompt[0] == 1 and prompt.count(1) == 1  # its BOS
    answer = generate(model, [prompt], max_new_tokens=20, stop_ids=tokenizer.stop_ids)
    assert len(answer.tokens[0]) == 20 and answer.layers_executed.tolist() == [40]
    assert "a little girl named Lily lived in a small house" in tokenizer.decode(answer.tokens[0])


def test_a_file_of_the_folder_is_told_from_a_missing_folder(tmp_path):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="config.json: a file; --model names the folder it is in"):
        load_tokenizer(tmp_path / "config.json")
