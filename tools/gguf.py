"""A GGUF file (llama.cpp's format) as a folder that load_model and load_tokenizer read.

It reads the model families whose record in checkpoint/config.py names a GGUF architecture, in
every quantisation that the gguf package can decode, with a byte-level BPE tokenizer whose
pre-tokenizer is in PRE. Whatever else would change the computation is refused by name.

Two things are stored differently in such a file. llama.cpp rotates neighbouring channels of a head
by one angle, Hugging Face channels half a head apart, so the rows of queries and keys are put back
in order. And of Llama 3's RoPE scaling the file has no parameters, only the divisor of each
frequency, from which `rope_scaling_of` finds them again.

Left out: sentencepiece tokenizers, files split into parts, chat templates besides the default.

    python -m tools.gguf SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2  # needs: pip install gguf
"""
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers,
                        processors)

import cli
from checkpoint.config import FAMILIES, read_config
from model_llama import Llama, inverse_frequencies
from storage.files import InputError, open_file, require, write_json, write_whole

ARCHITECTURES = {family.gguf: family for family in FAMILIES.values() if family.gguf}
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
PARTS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
         "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
         "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj"}
ROPE, HEAD_DIMS = "rope_freqs.weight", ("rope.dimension_count", "attention.value_length")
READ = {"block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size",
        "attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon",
        "attention.key_length", "rope.freq_base", "tensor_data_layout"}
HARMLESS = {  # further keys of the architecture, and the values that leave the computation alone
    "expert_count": (0,), "expert_used_count": (0,), "attention.sliding_window": (0,),
    "attention.causal": (True,), "rope.scaling.type": ("none", "linear"),
    "rope.scaling.factor": (0, 1), "rope.scale_linear": (0, 1)}
WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}"
         r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")  # %d: the longest run of digits
PRE = {"gpt-2": [], "smollm": [pre_tokenizers.Digits(individual_digits=True)],
       "qwen2": [pre_tokenizers.Split(Regex(WORDS % 1), "isolated")],
       "llama-bpe": [pre_tokenizers.Split(Regex(WORDS % 3), "isolated")]}
CONTROL = 3  # kinds of tokens, as llama.cpp numbers them
USER_DEFINED = 4
UNUSED = 5
STOP_NAMES = {"eos", "eot", "eom"}  # what ends an answer, by its name in the file
STOP_TEXTS = {  # and by its text: many files name only one of them
    "<|endoftext|>", "<|im_end|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"}


def convert(file, folder, dtype="bfloat16"):
    """Writes the folder of a GGUF file, whole or not at all; the number of weights.

    InputError names the file and what cannot be read or followed."""
    folder = Path(folder).resolve()
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    require(not folder.exists() or (folder.is_dir() and not any(folder.iterdir())),
            f"{folder}: exists already and is not an empty folder")
    with open_file(file):  # a regular file that may be read
        pass
    try:
        part.mkdir(parents=True)
        keys, tensors = read(file)
        number = write_folder(part, keys, tensors, dtype)
        os.replace(part, folder)
    except (ValueError, TypeError, LookupError, ArithmeticError, NotImplementedError) as error:
        reason = f"no key {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{file}: {reason.replace(f'{part}{os.sep}', '')}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return number


def read(file):
    """({key: value}, {name: tensor}) of a GGUF file; the tensors are mapped, not yet read."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise InputError("reading GGUF needs the gguf package (pip install gguf)") from error

    class Reader(GGUFReader):
        def _get(self, offset, dtype, count=1, **order):  # a slice would end early, and say nothing
            end = int(offset) + int(count) * np.dtype(dtype).itemsize
            require(end <= len(self.data), f"the file ends at byte {len(self.data)}, before the "
                    f"bytes from {offset} to {end}")
            return super()._get(offset, dtype, count, **order)

    reader = Reader(file)
    require(reader.byte_order == "I", "its numbers have their bytes in the other order")
    keys = {key: field.contents() for key, field in reader.fields.items()}
    return keys, {tensor.name: tensor for tensor in reader.tensors}


def write_folder(folder, keys, tensors, dtype):
    """Writes all files of the folder; the number of weights."""
    parts = keys.get("split.count", 0)
    require(parts < 2, f"one of {parts} parts; join them first (llama-gguf-split --merge)")
    name = keys["general.architecture"]
    require(name in ARCHITECTURES, f"architecture {name!r} is not supported; supported are "
            f"{', '.join(ARCHITECTURES)}")
    family = ARCHITECTURES[name]
    settings = read_settings(family, keys, tensors)
    tokenizer, tokenizer_settings, stop_ids = read_tokenizer(keys, settings["vocab_size"])
    write_json(folder / "config.json", settings | {"torch_dtype": dtype})
    config = read_config(folder)
    check(config, tensors)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", tokenizer_settings)
    if stop_ids:
        write_json(folder / "generation_config.json", {"eos_token_id": stop_ids})
    weights = {hf_name(name): read_weight(tensor, family, config, cli.DTYPES[dtype])
               for name, tensor in tensors.items() if name != ROPE}
    write_whole(folder / "model.safetensors",
                lambda part: save_file(weights, part, metadata={"format": "pt"}))
    return sum(weight.numel() for weight in weights.values())


# ---- config.json ----

def read_settings(family, keys, tensors):
    """What config.json says, but for the dtype."""
    prefix = f"{family.gguf}."
    own = {key.removeprefix(prefix): keys[key] for key in keys if key.startswith(prefix)}
    hidden, heads = own["embedding_length"], own["attention.head_count"]
    head_dim = own.get("attention.key_length", hidden // heads)
    followed = HARMLESS | dict.fromkeys(HEAD_DIMS, (head_dim,))
    for key, value in own.items():
        require(key in READ or value in followed.get(key, ()),
                f"{prefix}{key} {value!r} is not supported")
    settings = {
        "architectures": [family.architecture], "model_type": family.model_type,
        "hidden_act": "silu", "hidden_size": hidden,
        "vocab_size": int(tensors["token_embd.weight"].shape[-1]),
        "intermediate_size": own["feed_forward_length"], "num_hidden_layers": own["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": own.get("attention.head_count_kv", heads),
        "head_dim": head_dim, "max_position_embeddings": own["context_length"],
        "rms_norm_eps": shortest(own["attention.layer_norm_rms_epsilon"]),
        "rope_theta": shortest(own.get("rope.freq_base", 10000.0)),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_output.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors}
    if ROPE in tensors:
        # llama.cpp reads it in the computation that turns neighbouring channels, and in no other
        require(family.gguf_interleaved,
                f"tensor {ROPE} is not supported in a {family.model_type} model")
        divisors = read_numbers(tensors[ROPE])
        settings["rope_scaling"] = rope_scaling_of(divisors, settings["rope_theta"], head_dim)
    return settings


def shortest(number):
    """The shortest decimal that names this float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(number)))


def rope_scaling_of(divisors, theta, head_dim):
    """The rope_scaling whose llama3 rule has these divisors of the frequencies; see check().

    The slowest frequencies are divided by the factor, the fastest by 1. In between, the divisor
    depends on the turns that a frequency makes within the original context: a ramp from 1 turn to
    4. Every Llama 3 has these two bounds; the rule depends only on their ratio to the context.
    """
    turns = theta ** -(np.arange(0, head_dim, 2) / head_dim) / (2 * np.pi)  # per position
    require(divisors.shape == turns.shape,
             f"{ROPE} has {len(divisors)} numbers; a head has {len(turns)} frequencies")
    factor, original = float(divisors.max()), 8192
    between = (divisors > 1.0001) & (divisors < 0.9999 * factor)
    if between.any():
        ramp = (1 / divisors[between] - 1 / factor) / (1 - 1 / factor)
        original = round(float(np.median((1 + 3 * ramp) / turns[between])))
    return {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": original}


def check(config, tensors):
    """InputError unless the tensors are those of the config, and its RoPE is that of the file."""
    with torch.device("meta"):  # shapes only
        model = Llama(config)
    wanted = {name: tuple(weight.shape) for name, weight in model.named_weights().items()}
    stored = {hf_name(name): tuple(tensor.shape[::-1].tolist())
              for name, tensor in tensors.items() if name != ROPE}
    for name in sorted(wanted.keys() | stored.keys()):
        require(name in stored, f"no tensor {name}")
        require(stored[name] == wanted.get(name), f"tensor {name} has shape {stored[name]}; the "
                f"model wants {wanted.get(name, 'none of this name')}")
    if ROPE in tensors:
        plain = inverse_frequencies(replace(config, rope_scaling=None))
        divided = plain / torch.from_numpy(read_numbers(tensors[ROPE]))
        require(torch.allclose(inverse_frequencies(config), divided, rtol=1e-4, atol=0),
                f"{ROPE} is not the llama3 scaling of a context by 1 and 4 turns")


# ---- weights ----

def hf_name(name):
    """The name of a tensor in a Hugging Face folder: blk.3.attn_q.bias gives
    model.layers.3.self_attn.q_proj.bias."""
    stem, _, kind = name.rpartition(".")
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if block and block[2] in PARTS:
        return f"model.layers.{block[1]}.{PARTS[block[2]]}.{kind}"
    require(stem in TOP, f"tensor {name!r} is not supported")
    return f"{TOP[stem]}.{kind}"


def read_numbers(tensor):
    """A tensor of the file as float32, whatever its quantisation."""
    from gguf.quants import dequantize
    with np.errstate(all="ignore"):  # what is not finite is refused in one line
        return np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)


def read_weight(tensor, family, config, dtype):
    """A tensor of the file as the decoder wants it."""
    weight = torch.from_numpy(read_numbers(tensor))
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}
    part = tensor.name.split(".")[-2]
    if family.gguf_interleaved and part in heads:
        # in every head, channels 0, 2, 4, ... and then 1, 3, 5, ...
        pairs = weight.unflatten(0, (heads[part], -1, 2))
        weight = pairs.transpose(1, 2).flatten(0, 2)
    weight = weight.to(dtype).contiguous()
    require(weight.isfinite().all(), f"{tensor.name} holds NaN or infinite values in {dtype}")
    return weight


# ---- tokenizer ----

def read_tokenizer(keys, rows):
    """(tokenizer, what tokenizer_config.json says, ids that end an answer). rows: of embeddings."""
    own = {key.removeprefix("tokenizer.ggml."): value for key, value in keys.items()}
    require(own["model"] == "gpt2",
            f"tokenizer {own['model']!r} is not supported; byte-level BPE ('gpt2') is")
    pre, tokens, kinds = own["pre"], own["tokens"], own["token_type"]
    require(pre in PRE, f"pre-tokenizer {pre!r} is not supported; supported are {', '.join(PRE)}")
    require(not own.get("add_space_prefix"), "tokenizer.ggml.add_space_prefix is not supported")
    require(len({*tokens}) == len(kinds) <= rows, f"{len({*tokens})} different tokens, "
            f"{len(kinds)} token types, {rows} rows of embeddings")
    special = {}  # {name: id}
    for name in ("bos", "eos", "padding", "eot", "eom"):
        if f"{name}_token_id" in own:
            special[name] = own[f"{name}_token_id"]
            require(special[name] in range(len(tokens)),
                    f"{name} token {special[name]}; there are {len(tokens)} tokens")
    tokenizer = build(tokens, kinds, own["merges"], pre)
    before = ["bos"] if own.get("add_bos_token", pre == "llama-bpe") else []  # llama.cpp's default
    after = ["eos"] if own.get("add_eos_token") else []
    if before + after:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after], special_tokens=[
                {"id": name, "ids": [special[name]], "tokens": [tokens[special[name]]]}
                for name in before + after])
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": bool(before)}
    for name, key in (("bos", "bos_token"), ("eos", "eos_token"), ("padding", "pad_token")):
        if name in special:
            settings[key] = tokens[special[name]]
    if "tokenizer.chat_template" in keys:
        settings["chat_template"] = keys["tokenizer.chat_template"]
    stop_ids = {special[name] for name in special.keys() & STOP_NAMES}
    stop_ids |= {i for i, token in enumerate(tokens)
                 if token in STOP_TEXTS and kinds[i] == CONTROL}
    return tokenizer, settings, sorted(stop_ids)


def build(tokens, kinds, merges, pre):
    """The byte-level BPE tokenizer. Rows of embeddings beyond the tokens in use have none."""
    for merge in merges:
        require(merge.count(" ") == 1, f"merge {merge!r} is not of two tokens")
    used = max(i + 1 for i, kind in enumerate(kinds) if kind != UNUSED)
    try:
        tokenizer = Tokenizer(models.BPE(
            {token: i for i, token in enumerate(tokens[:used])},
            [tuple(merge.split(" ")) for merge in merges], ignore_merges=pre == "llama-bpe"))
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"tokenizer: {error}") from error
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre in ("gpt-2", "smollm"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*PRE[pre], letters])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=kind == CONTROL)
                          for token, kind in zip(tokens, kinds) if kind in (CONTROL, USER_DEFINED)])
    return tokenizer


def main(argv=None):
    parser = cli.Parser(__doc__, prog="python -m tools.gguf")
    parser.add_argument("file", type=Path, metavar="FILE.gguf")
    parser.add_argument("folder", type=Path, metavar="DIR", help="is made; must not exist yet")
    parser.add_argument("--dtype", choices=cli.DTYPES, default="bfloat16", help="of the weights")
    args = parser.parse_args(argv)
    number = convert(args.file, args.folder, args.dtype)
    print(f"{args.folder}: {number} weights in {args.dtype}")


if __name__ == "__main__":
    cli.run(main)
