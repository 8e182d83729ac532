"""GGUF files made with the gguf package's own writer, read back as folders. (pip install gguf)"""
import dataclasses
import json
import os
import random
import re
import shutil
import sys
import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import checkpoint.config
import tiny
from conftest import leaves
import tools.gguf
from tools.gguf import convert, rope_scaling_of
from checkpoint.config import Llama3Rope
from checkpoint.tokenizer import load_tokenizer
from model_llama import inverse_frequencies, load_model
from storage.files import InputError, read_json
from tiny import tiny_config, tiny_model

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
NAMES = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output",
         "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
         "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
         "q_norm": "attn_q_norm", "k_norm": "attn_k_norm", "gate_proj": "ffn_gate",
         "up_proj": "ffn_up", "down_proj": "ffn_down"}


# ---- a tokenizer, written down a second time ----

def byte_letters():
    """GPT-2's letter for every byte: printable Latin-1 is its own, the rest count up from 256."""
    plain = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b]
    rest = [b for b in range(256) if b not in plain]
    return {b: chr(b) if b in plain else chr(256 + rest.index(b)) for b in range(256)}


LETTERS = byte_letters()
as_letters = lambda text: "".join(LETTERS[b] for b in text.encode())
CHUNKS = ["the", "The", " the", " hello", "HELLO", "don", "'t", "'S", "'ll", " it's", "I'M", "0",
          "1", "42", " 1234567", "3.14", " ", "  ", "    ", "\n", "\n\n", " \n", "\r\n", "\t",
          "é", "e\u0301", "naïve", " über", "ß", "日本", "русский", "😀", "👩\u200d👧", "½", "²",
          "…", "def f(x):", "    return x[0] != y_1;", "//", "{}", "=>", "a_b", " zz", "zz", "<|im",
          "!?", "<|endoftext|>", "<think>", " -", ".\n", "\u00a0", "٣٤", "x²"]
SPECIAL = [("<|endoftext|>", CONTROL), ("<|im_start|>", CONTROL), ("<|im_end|>", CONTROL),
           ("<think>", USER_DEFINED)]


def texts(number=200):
    rng = random.Random(7)
    return ["".join(rng.choices(CHUNKS, k=rng.randint(1, 12))) for _ in range(number)]


def small_vocabulary():
    """(tokens, kinds, merges): special ones first, bytes, words; one that no merge makes; unused"""
    merges, words = {}, ["the", " the", " hello", "HELLO", "don", "'t", "'ll", "  ", "    ", "\n\n",
                         " \n", "42", "1234567", " 123", "é", "über", "日本", "😀", "return", "!=",
                         "."]
    for word in map(as_letters, words):
        for i in range(1, len(word)):
            merges[word[:i], word[i]] = None
    plain = [*LETTERS.values(), *(a + b for a, b in merges), as_letters(" zz")]
    plain = list(dict.fromkeys(plain))
    tokens = [*(token for token, _ in SPECIAL), *plain, "[PAD0]", "[PAD1]"]
    kinds = [*(kind for _, kind in SPECIAL), *[NORMAL] * len(plain), UNUSED, UNUSED]
    return tokens, kinds, [f"{a} {b}" for a, b in merges]


def pieces(text, pre):
    """The words that BPE is asked about, by Python's own regular expressions."""
    if pre == "qwen2":
        text = unicodedata.normalize("NFC", text)
    of_class = lambda kinds: "".join(re.escape(c) for c in sorted({*text})
                                     if unicodedata.category(c)[0] in kinds) or "\ue000"
    L, N = of_class("L"), of_class("N")
    if pre in ("gpt-2", "smollm"):
        parts = re.split(f"([{N}])", text) if pre == "smollm" else [text]
        word = (rf"'s|'t|'re|'ve|'m|'ll|'d| ?[{L}]+| ?[{N}]+| ?[^\s{L}{N}]+|\s+(?!\S)|\s+")
        return [found for part in parts for found in re.findall(word, part)]
    most = 1 if pre == "qwen2" else 3
    word = (rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n{L}{N}]?[{L}]+|[{N}]{{1,{most}}}"
            rf"| ?[^\s{L}{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    return re.findall(word, text)


def reference_ids(text, pre, tokens, merges):
    """Token ids by the textbook: the earliest merge first, until none is left."""
    rank, number = {tuple(m.split(" ")): i for i, m in enumerate(merges)}, {}
    for i, token in enumerate(tokens):
        number[token] = i
    ids = []
    for part in re.split("(" + "|".join(re.escape(t) for t, _ in SPECIAL) + ")", text):
        if part in dict(SPECIAL):
            ids.append(number[part])
            continue
        for word in map(as_letters, pieces(part, pre)):
            symbols = [word] if pre == "llama-bpe" and word in number else [*word]
            while len(symbols) > 1:
                pair = min(zip(symbols, symbols[1:]), key=lambda p: rank.get(p, len(rank)))
                if pair not in rank:
                    break
                i = [*zip(symbols, symbols[1:])].index(pair)
                symbols[i:i + 2] = ["".join(pair)]
            ids += [number[symbol] for symbol in symbols]
    return ids


# ---- GGUF files ----

def llama_cpp_order(weight, heads):
    """Rows as llama.cpp keeps them: of a head of six, 0 3 1 4 2 5."""
    size = len(weight) // heads
    return weight[[h * size + half * (size // 2) + i
                   for h in range(heads) for i in range(size // 2) for half in range(2)]]


def rope_divisors(config):
    """What llama.cpp divides each frequency by, from the rule on wavelengths."""
    rope, divisors = config.rope_scaling, []
    for i in range(0, config.head_dim, 2):
        wavelength = 2 * np.pi * config.rope_theta ** (i / config.head_dim)
        turns = rope.original_max_position_embeddings / wavelength
        smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        smooth = min(1.0, max(0.0, smooth))
        divisors.append(1 / ((1 - smooth) / rope.factor + smooth))
    return np.array(divisors, dtype=np.float32)


def gguf_arrays(model):
    """{tensor's name in a GGUF file: float32 array}."""
    arrays, config = {}, model.config
    for name, weight in model.named_weights().items():
        *before, part, kind = name.removeprefix("model.").split(".")
        interleaved = checkpoint.config.FAMILIES[config.model_type].gguf_interleaved
        if interleaved and part in ("q_proj", "k_proj"):
            weight = llama_cpp_order(weight, config.num_heads if part == "q_proj"
                                     else config.num_kv_heads)
        block = f"blk.{before[1]}." if before else ""
        arrays[f"{block}{NAMES[part]}.{kind}"] = weight.float().numpy()
    if config.rope_scaling:
        arrays["rope_freqs.weight"] = rope_divisors(config)
    return arrays


def write_gguf(file, model, kind="F32", pre="gpt-2", vocabulary=None, tensors=(), **changes):
    """Writes a model; kind: the quantisation of its matrices. changes and tensors overwrite keys
    (dots spelt __) and arrays; None leaves one out."""
    gguf = pytest.importorskip("gguf", reason="no gguf package (pip install gguf)")
    config, (tokens, kinds, merges) = model.config, vocabulary or small_vocabulary()
    family = checkpoint.config.FAMILIES[config.model_type]
    arch = changes.pop("architecture", family.gguf)
    keys = {"block_count": config.num_layers, "context_length": config.max_positions,
            "embedding_length": config.hidden_size, "feed_forward_length": config.intermediate_size,
            "attention.head_count": config.num_heads,
            "attention.head_count_kv": config.num_kv_heads,
            "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
            "attention.key_length": config.head_dim, "attention.value_length": config.head_dim,
            "rope.dimension_count": config.head_dim, "rope.freq_base": config.rope_theta}
    keys = {f"{arch}.{key}": value for key, value in keys.items()} | {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}"}
    keys |= {key.replace("__", "."): value for key, value in changes.items()}
    writer = gguf.GGUFWriter(file, arch)
    for key, value in keys.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
               str: writer.add_string, list: writer.add_array}.get(type(value))
        if value is not None:
            add(key, value)
    for name, array in {**gguf_arrays(model), **dict(tensors)}.items():
        if array is None:
            continue
        own = kind if array.ndim == 2 else "F32"
        own = gguf.GGMLQuantizationType[own]
        writer.add_tensor(name, gguf.quants.quantize(array, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def gguf_model(family="llama", **changes):
    sizes = {"vocab_size": len(small_vocabulary()[0]), "hidden_size": 64, "intermediate_size": 96,
             "head_dim": 24 if family == "qwen3" else 16}
    return tiny_model(3, family, torch.float32, **{**sizes, **changes})


def rounded(model, kind):
    """The model with the weights that its GGUF file of this quantisation holds."""
    gguf = pytest.importorskip("gguf", reason="no gguf package (pip install gguf)")
    own = gguf.GGMLQuantizationType[kind]
    for weight in {p.data_ptr(): p for p in model.parameters()}.values():
        if weight.dim() == 2:
            stored = gguf.quants.quantize(weight.data.numpy(), own)
            weight.data = torch.from_numpy(np.array(gguf.quants.dequantize(stored, own)))
    return model


# ---- weights ----

FAMILIES = [name for name in sorted(tiny.FAMILIES)
            if checkpoint.config.FAMILIES[tiny_config(name).model_type].gguf]
TOKENS = torch.arange(5, 35).reshape(2, 15)


@pytest.mark.parametrize("family", FAMILIES)
def test_float_file_gives_the_model_it_came_from(tmp_path, family):
    model = gguf_model(family)
    file = write_gguf(tmp_path / "m.gguf", model)
    number = convert(file, tmp_path / "out", "float32")
    loaded = load_model(tmp_path / "out")
    assert loaded.config == model.config
    assert torch.equal(loaded(TOKENS), model(TOKENS))
    assert number == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_quantised_file_gives_the_dequantised_weights(tmp_path, family, kind):
    model = gguf_model(family)
    before = model(TOKENS)
    convert(write_gguf(tmp_path / "m.gguf", model, kind), tmp_path / "out", "float32")
    logits = rounded(model, kind)(TOKENS)
    assert torch.equal(load_model(tmp_path / "out")(TOKENS), logits)
    assert not torch.equal(before, logits)


def test_weights_are_bfloat16_unless_told(tmp_path):
    model = gguf_model()
    convert(write_gguf(tmp_path / "m.gguf", model), tmp_path / "out")
    loaded = load_model(tmp_path / "out", dtype=torch.bfloat16)
    assert loaded.config.dtype == torch.bfloat16
    for mine, theirs in zip(loaded.parameters(), model.parameters()):
        assert torch.equal(mine, theirs.bfloat16())


def test_absent_keys_have_llama_cpp_s_defaults(tmp_path):
    model = gguf_model(num_kv_heads=4)
    absent = ("attention__key_length", "attention__value_length", "attention__head_count_kv",
              "rope__freq_base", "rope__dimension_count")
    file = write_gguf(tmp_path / "m.gguf", model, **{f"llama__{key}": None for key in absent})
    convert(file, tmp_path / "out", "float32")
    assert load_model(tmp_path / "out").config == model.config


@given(st.floats(2, 64), st.integers(64, 2 ** 16), st.sampled_from([5e5, 1e6]),
       st.sampled_from([64, 128]), st.sampled_from([1.0, 0.5, 2.0]))
def test_rope_scaling_is_found_from_its_divisors(factor, half, theta, head_dim, unit):
    """Bounds of 1 and 4 turns in some context, or both times a unit in that many times the
    context: the same effect, so the same frequencies."""
    rope = Llama3Rope(factor, unit, 4 * unit, 2 * half)
    config = tiny_config(rope_scaling=rope, rope_theta=theta, head_dim=head_dim)
    found = rope_scaling_of(rope_divisors(config), theta, head_dim)
    assert found.pop("rope_type") == "llama3"
    assert found["original_max_position_embeddings"] == 2 * half / unit
    same = dataclasses.replace(config, rope_scaling=Llama3Rope(**found))
    torch.testing.assert_close(inverse_frequencies(same), inverse_frequencies(config),
                               rtol=1e-5, atol=0)


# ---- tokenizer ----

@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "qwen2", "llama-bpe"])
def test_token_ids_are_the_textbook_s(tmp_path, pre):
    tokens, _, merges = small_vocabulary()
    file = write_gguf(tmp_path / "m.gguf", gguf_model(), pre=pre)
    convert(file, tmp_path / "out")
    tokenizer = load_tokenizer(tmp_path / "out")
    for text in texts():
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == reference_ids(text, pre, tokens, merges), text
        whole = unicodedata.normalize("NFC", text) if pre == "qwen2" else text
        assert tokenizer.decode(ids) == whole.replace("<|endoftext|>", "")
    assert tokenizer.fast.get_vocab_size() == len(tokens) - 2  # unused rows are no tokens


@pytest.mark.parametrize("name, pre, rows, bos", [
    ("Llama-3.2-3B-Instruct", "llama-bpe", 128256, 128000),
    ("Qwen2.5-0.5B-Instruct", "qwen2", 151936, None)])
def test_token_ids_are_those_of_the_published_tokenizer(tmp_path, shared, name, pre, rows, bos):
    folder = shared / "models" / name
    if not (folder / "tokenizer.json").exists():
        pytest.skip(f"no {folder}: this test wants its tokenizer")
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    theirs = load_tokenizer(folder)
    number = {**stored["model"]["vocab"], **{a["content"]: a["id"] for a in stored["added_tokens"]}}
    kind = {a["content"]: CONTROL if a["special"] else USER_DEFINED for a in stored["added_tokens"]}
    tokens = [f"[PAD{i}]" for i in range(rows)]
    for token, i in number.items():
        tokens[i] = token
    kinds = [kind.get(t, NORMAL if t in number else UNUSED) for t in tokens]
    merges = [m if isinstance(m, str) else " ".join(m) for m in stored["model"]["merges"]]
    model = tiny_model(0, dtype=torch.float32, vocab_size=rows, num_layers=1)
    file = write_gguf(tmp_path / "m.gguf", model, pre=pre, vocabulary=(tokens, kinds, merges),
                      tokenizer__ggml__bos_token_id=bos, tokenizer__chat_template=theirs.template,
                      tokenizer__ggml__eos_token_id=number[theirs.special["eos_token"]])
    convert(file, tmp_path / "out")
    ours = load_tokenizer(tmp_path / "out")
    for text in texts() + ["".join(token for token in kind)]:
        ids = ours.encode(text, add_special_tokens=False)
        assert ids == theirs.encode(text, add_special_tokens=False), text
        assert ours.decode(ids) == theirs.decode(ids)
    assert ours.stop_ids == tuple(sorted({*theirs.stop_ids, *(i for t, i in number.items() if t in (
        "<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"))}))
    assert ours.encode("a")[:-1] == [bos] * (bos is not None)
    assert ours.chat([{"role": "user", "content": "Hi"}]) == theirs.chat(
        [{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize("pre, add, expected", [
    ("gpt-2", None, False), ("llama-bpe", None, True), ("llama-bpe", False, False),
    ("gpt-2", True, True)])
def test_bos_is_added_as_the_file_says(tmp_path, pre, add, expected):
    file = write_gguf(tmp_path / "m.gguf", gguf_model(), pre=pre,
                      tokenizer__ggml__add_bos_token=add)
    convert(file, tmp_path / "out")
    ours = load_tokenizer(tmp_path / "out")
    assert ours.encode("the") == [1] * expected + ours.encode("the", add_special_tokens=False)
    assert read_json(tmp_path / "out" / "tokenizer_config.json")["add_bos_token"] is expected


def test_template_and_ends_are_kept(tmp_path):
    file = write_gguf(tmp_path / "m.gguf", gguf_model(), tokenizer__ggml__add_eos_token=True,
                      tokenizer__ggml__eos_token_id=3, tokenizer__ggml__eot_token_id=7)
    convert(file, tmp_path / "out")
    ours = load_tokenizer(tmp_path / "out")
    assert ours.render([{"role": "user", "content": "the"}]) == "<|im_start|>the"
    assert ours.stop_ids == (0, 2, 3, 7)  # named by key or by text
    assert ours.encode("the")[-1] == 3


# ---- bad input ----

def refuses(file, match, folder=None):
    """convert() gives one line that names the file, and leaves nothing behind."""
    home = file.parent / "home"
    with pytest.raises(InputError, match=match) as caught:
        convert(file, folder or home / "out")
    assert str(file) in str(caught.value) and "\n" not in str(caught.value).strip()
    assert not home.exists() or not [*home.iterdir()]


@pytest.mark.parametrize("changes, match", [
    ({"architecture": "gemma2"}, "'gemma2' is not supported"),
    ({"llama__block_count": None}, "no key 'block_count'"),
    ({"llama__block_count": 2}, "blk|layers.2"),
    ({"llama__block_count": 10 ** 6}, "1000000; the limit is"),
    ({"llama__attention__head_count": 0}, "zero"),
    ({"llama__attention__head_count": [4, 4, 4]}, "list"),
    ({"llama__attention__head_count": 2, "llama__attention__key_length": 16}, "shape"),
    ({"llama__attention__key_length": 32}, "dimension_count 16|value_length 16"),
    ({"llama__rope__dimension_count": 8}, "dimension_count 8 is not"),
    ({"llama__rope__scaling__type": "yarn"}, "scaling.type 'yarn' is not"),
    ({"llama__rope__scaling__factor": 4.0}, "scaling.factor 4.0 is not"),
    ({"llama__expert_count": 8}, "expert_count 8 is not"),
    ({"llama__attention__sliding_window": 16}, "sliding_window 16 is not"),
    ({"llama__logit_scale": 0.5}, "logit_scale 0.5 is not"),
    ({"split__count": 3}, "one of 3 parts"),
    ({"tokenizer__ggml__model": "llama"}, "tokenizer 'llama' is not"),
    ({"tokenizer__ggml__pre": "tekken"}, "pre-tokenizer 'tekken' is not"),
    ({"tokenizer__ggml__eos_token_id": 10 ** 6}, "eos token 1000000"),
    ({"tokenizer__ggml__bos_token_id": None, "tokenizer__ggml__add_bos_token": True}, "'bos'"),
    ({"tokenizer__ggml__merges": ["q x y"]}, "merge 'q x y'"),
    ({"tokenizer__ggml__merges": ["q qq"]}, "tokenizer: .*qq"),
    ({"tokenizer__ggml__tokens": ["a", "a", "b"]}, "2 different tokens"),
    ({"tokenizer__ggml__add_space_prefix": True}, "add_space_prefix"),
    ({"tensors": {"output_norm.weight": None}}, "no tensor model.norm.weight"),
    ({"tensors": {"blk.0.ffn_gate_inp.weight": np.ones((2, 64), np.float32)}}, "ffn_gate_inp"),
    ({"tensors": {"blk.0.attn_q.bias": np.ones(64, np.float32)}}, "q_proj.bias.*none of this"),
    ({"tensors": {"blk.0.attn_q.weight": np.ones((32, 64), np.float32)}}, r"\(32, 64\).*\(64, 64"),
    ({"tensors": {"rope_freqs.weight": np.array([1, 9, 2, 1, 1, 1, 1, 8], np.float32)}}, "llama3"),
    ({"tensors": {"rope_freqs.weight": np.full(8, np.nan, np.float32)}}, "positive"),
    ({"tensors": {"rope_freqs.weight": np.ones(5, np.float32)}}, "5 numbers.*8 frequencies"),
    ({"model": gguf_model("qwen2"), "tensors": {"rope_freqs.weight": np.ones(8, np.float32)}},
     "rope_freqs.weight is not supported in a qwen2 model"),
    ({"model": gguf_model("llama3", rope_scaling=Llama3Rope(8.0, 1.0, 3.0, 64), head_dim=64)},
     "not the llama3 scaling")])
def test_refusal_names_what_cannot_be_followed(tmp_path, changes, match):
    refuses(write_gguf(tmp_path / "m.gguf", **{"model": gguf_model(), **changes}), match)


@pytest.mark.parametrize("name, match", [("Q8_1", "Q8_1"), (99, "99")])
def test_unknown_quantisation_is_refused(tmp_path, name, match):
    gguf = pytest.importorskip("gguf", reason="no gguf package (pip install gguf)")
    file = write_gguf(tmp_path / "m.gguf", gguf_model(), "Q8_0")
    where = [f for f in gguf.GGUFReader(file).tensors if f.name == "blk.1.ffn_up.weight"][0].field
    at = where.offset + sum(part.nbytes for part in where.parts[:4])
    data = bytearray(file.read_bytes())
    number = gguf.GGMLQuantizationType[name].value if isinstance(name, str) else name
    data[at:at + 4] = number.to_bytes(4, "little")
    file.write_bytes(data)
    refuses(file, match)


def test_truncated_file_is_refused_wherever_it_ends(tmp_path):
    whole = write_gguf(tmp_path / "m.gguf", gguf_model(), "Q8_0").read_bytes()
    cut = tmp_path / "cut.gguf"
    ends = sorted({*range(0, 400, 7), *range(400, len(whole), len(whole) // 40), len(whole) - 300})
    for end in ends:
        cut.write_bytes(whole[:end])
        refuses(cut, "ends at byte|empty|magic")


def test_number_that_a_dtype_cannot_hold_is_refused(tmp_path):
    file = write_gguf(tmp_path / "m.gguf", gguf_model(),
                      tensors={"output_norm.weight": np.full(64, 1e6, np.float32)})
    with pytest.raises(InputError, match="output_norm.weight holds NaN or infinite.*float16"):
        convert(file, tmp_path / "out", "float16")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data())
def test_damaged_file_is_read_or_refused(tmp_path, data):
    whole, file = tmp_path / "m.gguf", tmp_path / "damaged.gguf"
    if not whole.exists():
        write_gguf(whole, gguf_model(), "Q4_0")
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, min(len(content), 16000) - 1))
        content[at] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    try:
        convert(file, tmp_path / "home" / "out")
    except InputError as error:
        assert str(file) in str(error)
        assert not [*(tmp_path / "home").iterdir()]
    shutil.rmtree(tmp_path / "home", ignore_errors=True)


def test_the_families_whose_record_names_gguf_are_read():
    """Catches a converter that opens every family of the decoder, without knowing how llama.cpp
    stores it."""
    assert tools.gguf.ARCHITECTURES.keys() == {"llama", "qwen2", "qwen3"}


def test_files_may_be_read_by_whom_the_user_says(tmp_path):
    """Catches weights that only their owner can read: the library makes them so."""
    before = os.umask(0o002)
    try:
        convert(write_gguf(tmp_path / "m.gguf", gguf_model()), tmp_path / "out")
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()}
    assert modes == dict.fromkeys(modes, 0o664)


def test_folder_with_files_is_left_alone(tmp_path):
    file = write_gguf(tmp_path / "m.gguf", gguf_model())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep", encoding="utf-8")
    with pytest.raises(InputError, match="exists already"):
        convert(file, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


def test_command_writes_a_folder_or_one_line(tmp_path, capsys):
    file = write_gguf(tmp_path / "m.gguf", gguf_model())
    tools.gguf.main([str(file), str(tmp_path / "out"), "--dtype", "float32"])
    printed = capsys.readouterr()
    assert "weights in float32" in printed.out and not printed.err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json"]
    file.write_bytes(file.read_bytes()[:5000])
    code, line = leaves(lambda: tools.gguf.main([str(file), str(tmp_path / "new")]), capsys)
    assert code == 2 and line.count("\n") == 1 and str(file) in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gguf", "out"]


def test_without_the_package_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    refuses(tmp_path / "m.gguf", "pip install gguf")


@pytest.mark.parametrize("name", ["absent.gguf", "."])
def test_what_is_no_file_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="No such file|a directory"):
        convert(tmp_path / name, tmp_path / "home" / "out")
    assert not (tmp_path / "home").exists()
