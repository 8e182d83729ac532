"""A Hugging Face model folder, read without Hugging Face code: config, weights, tokenizer.

The folder is somebody else's input. Every key that changes the computation is honoured or
refused by name; nothing is guessed. Weights are read from safetensors files only: a pickle is
a program. A chat template is one too, which is why parts/chat_template.py runs it.

    from hf_folder import load_tokenizer; load_tokenizer("demo/model").encode("3 + 4")
"""
import math
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import normalizers, pre_tokenizers

from cli import DTYPES
from parts import chat_template
from parts.files import MOST_JSON, InputError, open_tensors, read_file, read_json

FAMILIES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
FOLLOWED = {  # keys that change the computation, and the only value this decoder follows
    "hidden_act": "silu", "partial_rotary_factor": 1.0, "quantization_config": None,
    "auto_map": None, "text_config": None, "num_experts": 0, "num_local_experts": 0}
FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names of the dtypes that weights may have
HEAD = "lm_head.weight"
TABLES = {HEAD, "model.embed_tokens.weight"}  # which some folders tie: one tensor for both
MOST_LAYERS, MOST_TOKENIZER = 1000, 2 ** 28  # bytes of a tokenizer.json
LLAMA2 = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


@dataclass(frozen=True)
class Llama3Rope:
    """The llama3 stretching of RoPE: long wavelengths are slowed by `factor`."""
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class Config:
    """What of config.json changes the computation, each default resolved once."""
    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: Llama3Rope | None = None
    tie_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    dtype: torch.dtype = torch.float32


def _require(holds, otherwise):
    if not holds:
        raise InputError(otherwise)


def read_config(folder):
    """The Config of a folder. Raises InputError naming the key that cannot be honoured."""
    file = Path(folder) / "config.json"
    raw = read_json(file)
    try:
        _check_keys(raw)
        config = _resolve(raw)
        _check_sizes(config)
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
        missing = "no key " if isinstance(error, KeyError) else ""
        raise InputError(f"{file}: {missing}{error}") from error
    return config


def _check_keys(raw):
    family, architecture = raw.get("model_type"), (raw.get("architectures") or [None])[0]
    _require(family in FAMILIES and architecture in (None, FAMILIES[family]),
             f"model_type {family!r}, architecture {architecture!r}: not supported; supported are "
             f"{', '.join(FAMILIES.values())}")
    for key, value in FOLLOWED.items():
        _require(raw.get(key) in (None, {}, value), f"{key} {raw.get(key)!r} is not supported")
    windowed = set(raw.get("layer_types") or ()) - {"full_attention"}
    if raw.get("layer_types") is None and raw.get("sliding_window"):
        windowed = (raw.get("use_sliding_window")
                    and raw.get("max_window_layers", 28) < raw["num_hidden_layers"])
    _require(not windowed, "sliding_window: attention over a window is not supported")


def _resolve(raw):
    """The Config, with the defaults of the family's library of origin."""
    family, heads, theta, scaling = raw["model_type"], raw["num_attention_heads"], *_rope(raw)
    qwen, bias = family != "llama", bool(raw.get("attention_bias", False))
    dtype = raw.get("dtype") or raw.get("torch_dtype") or "float32"
    _require(dtype in DTYPES, f"dtype {dtype!r}: supported are {', '.join(DTYPES)}")
    return Config(
        model_type=family, vocab_size=raw["vocab_size"], hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"], num_layers=raw["num_hidden_layers"],
        num_heads=heads, num_kv_heads=raw.get("num_key_value_heads", 32 if qwen else None) or heads,
        head_dim=raw.get("head_dim", 128 if family == "qwen3" else None)
        or raw["hidden_size"] // max(1, heads),
        max_positions=raw.get("max_position_embeddings", 32768 if qwen else 2048),
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)), rope_theta=theta, rope_scaling=scaling,
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=bias or family == "qwen2", o_bias=bias and family != "qwen2",
        mlp_bias=bool(raw.get("mlp_bias", False)) and not qwen, qk_norm=family == "qwen3",
        dtype=DTYPES[dtype])


def _rope(raw):
    """(theta, scaling) from the old spelling (rope_theta, rope_scaling) or rope_parameters."""
    key = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    rope, length = raw.get(key) or {}, "original_max_position_embeddings"
    _require(isinstance(rope, dict), f"{key} must be an object, got {rope!r}")
    nested = [name for name, value in rope.items() if isinstance(value, dict)]
    kind = nested or rope.get("rope_type", rope.get("type", "default"))
    _require(kind in ("default", "llama3"),
             f"{key}: type {kind!r} is not supported; 'default' and 'llama3' are")
    theta = float(rope.get("rope_theta", raw.get("rope_theta", 10000.0)))
    return theta, None if kind == "default" else Llama3Rope(
        *(float(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor")),
        int(raw.get(length) or rope.get(length) or raw["max_position_embeddings"]))


def _check_sizes(config):
    for field in fields(config):
        value = getattr(config, field.name)
        _require(field.type is not int or type(value) is int and 0 < value < 2 ** 48,
                 f"{field.name} must be a positive integer, got {value!r}")
    _require(config.num_layers <= MOST_LAYERS,
             f"num_hidden_layers {config.num_layers}; the limit is {MOST_LAYERS}")
    _require(config.num_heads % config.num_kv_heads == 0, f"{config.num_heads} query heads do not "
             f"divide over {config.num_kv_heads} key/value heads")
    _require(config.head_dim % 2 == 0, f"head_dim must be even for RoPE, got {config.head_dim}")
    _require(0 <= config.rms_norm_eps < 1, f"rms_norm_eps {config.rms_norm_eps} is not in [0, 1)")
    _require(0 < config.rope_theta < math.inf, f"rope_theta {config.rope_theta} is not positive")
    if rope := config.rope_scaling:
        _require(0 < rope.factor < math.inf and rope.original_max_position_embeddings > 0
                 and 0 < rope.low_freq_factor < rope.high_freq_factor < math.inf,
                 f"factors must be positive, low_freq_factor below high_freq_factor, got {rope}")


# ---- weights ----

def tensor_files(folder):
    """The safetensors files of a folder, shards in order."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    _require(index.exists(), f"{folder}: no {single.name} and no {index.name}")
    shards = read_json(index).get("weight_map")
    _require(isinstance(shards, dict) and shards, f"{index}: no weight_map")
    for name in shards.values():
        _require(isinstance(name, str) and Path(name).name == name,
                 f"{index}: shard {name!r} lies outside the folder")
    return [folder / name for name in sorted(set(shards.values()))]


def list_tensors(folder):
    """{name: (file, shape)} of every tensor of a folder; only the files' headers are read."""
    found = {}
    for file in tensor_files(Path(folder)):
        with open_tensors(file) as tensors:
            for name in tensors.keys():
                if name.endswith("rotary_emb.inv_freq"):  # a constant that old exports store
                    continue
                piece = tensors.get_slice(name)
                _require(piece.get_dtype() in FLOATS, f"{file}: {name} has dtype "
                         f"{piece.get_dtype()}; weights are one of {', '.join(FLOATS)}")
                _require(name not in found,
                         f"{file}: {name} also stands in {found.get(name, [0])[0]}")
                found[name] = file, tuple(piece.get_shape())
    return found


def read_weights(folder, config, shapes, device, dtype):
    """The model's state dict from a folder: names as stored, without a leading "model.".

    shapes: {name: shape} that the model wants. InputError names what is missing, unexpected or
    mis-shaped, before a tensor is read, and then what is not finite. Where config ties the two
    tables and one is absent, or both are equal, they are the same tensor."""
    wanted = {name if name == HEAD else f"model.{name}": tuple(shapes[name]) for name in shapes}
    found, weights = list_tensors(folder), {}
    spare = TABLES if config.tie_embeddings and found.keys() & TABLES else set()
    missing, extra = sorted(wanted.keys() - found - spare), sorted(found.keys() - wanted)
    _require(not missing and not extra, f"{folder}: {len(missing)} tensors missing {missing[:3]}, "
             f"{len(extra)} unexpected {extra[:3]}")
    for name, (file, shape) in found.items():
        _require(shape == wanted[name],
                 f"{file}: {name} has shape {shape}; config.json says {wanted[name]}")
    for name, (file, _) in found.items():
        with open_tensors(file) as tensors:  # one at a time: what is mapped counts as memory
            weights[name] = tensors.get_tensor(name).to(device, dtype, copy=True)
        _require(weights[name].isfinite().all(), f"{file}: {name} holds NaN or infinite values")
    tables = [weights[name] for name in TABLES if name in weights]
    if config.tie_embeddings and (len(tables) == 1 or torch.equal(*tables)):
        weights |= dict.fromkeys(TABLES, tables[0])
    return {name.removeprefix("model."): tensor for name, tensor in weights.items()}


# ---- tokenizer ----

class Tokenizer:
    """Text to token ids and back, with the folder's own chat template, where it `.has_template`:
    `.chat(messages)` gives the ids of a conversation that waits for its answer. `.stop_ids` end it.
    """

    def __init__(self, folder):
        self.folder, self.special = Path(folder), {}
        file, side = self.folder / "tokenizer.json", self.folder / "tokenizer_config.json"
        _require(not self.folder.is_file(), f"{folder}: a file; --model names the folder it is in")
        _require(self.folder.is_dir(), f"{folder}: no such folder. A model of a hub is downloaded "
                 "first: hf download OWNER/NAME --local-dir DIR")
        _require(file.exists(), f"{file}: no such file; only the tokenizer.json format is read")
        data, settings = read_file(file, MOST_TOKENIZER), read_json(side) if side.exists() else {}
        try:
            self.fast = FastTokenizer.from_buffer(data)
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"{file}: {error}") from error
        if (settings.get("legacy") is False and self.fast.pre_tokenizer is None
                and str(self.fast.normalizer) == str(LLAMA2)):
            self.fast.normalizer = None  # a word after a special token gets no blank before it
            self.fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        for key in ("bos_token", "eos_token", "pad_token"):
            token = settings.get(key)  # text, or an object with its content
            token = token.get("content") if isinstance(token, dict) else token
            _require(isinstance(token, str | None), f"{side}: {key} must be text, got {token!r}")
            if token is not None:
                self.special[key] = token
        self.template = _template(self.folder, settings.get("chat_template"))
        self.has_template = self.template is not None
        self.stop_ids = _stop_ids(self.folder, self.fast, self.special)

    def encode(self, text, add_special_tokens=True):
        try:
            return self.fast.encode(text, add_special_tokens=add_special_tokens).ids
        except (TypeError, UnicodeError) as error:  # a lone surrogate is no text
            raise InputError(f"text cannot be encoded: {error}") from error

    def decode(self, ids):
        """Text of the ids; special tokens and ids beyond the vocabulary are left out."""
        return self.fast.decode([i for i in ids if i < self.fast.get_vocab_size()])

    def render(self, messages, add_generation_prompt=True):
        """The text of a conversation; it waits for an answer if add_generation_prompt."""
        _require(self.has_template, f"{self.folder}: no chat template; use encode")
        text, problem = chat_template.render(self.template, {
            "messages": messages, "add_generation_prompt": add_generation_prompt,
            "enable_thinking": False, **self.special})
        _require(not problem, f"{self.folder}: chat template: {problem}")
        return text

    def chat(self, messages):
        return self.encode(self.render(messages), add_special_tokens=False)  # it prints BOS itself


load_tokenizer = Tokenizer  # of a folder, as load_model


def _template(folder, template):
    file, side = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.exists():  # overrides tokenizer_config.json
        try:
            return read_file(file, MOST_JSON).decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: not UTF-8 ({error})") from error
    if isinstance(template, list):
        _require(all(isinstance(one, dict) and {"name", "template"} <= one.keys() for one in
                     template), f"{side}: chat_template lists what has no name or no template")
        named = sorted(template, key=lambda one: one["name"] != "default")
        template = named[0]["template"] if named else None
    _require(isinstance(template, str | None), f"{side}: chat_template must be text")
    return template


def _stop_ids(folder, fast, special):
    """Ids that end an answer: generation_config.json's, else config.json's; and eos_token."""
    for file in (folder / "generation_config.json", folder / "config.json"):
        found = read_json(file).get("eos_token_id") if file.exists() else None
        ids = found if isinstance(found, list) else [found]
        _require(all(type(i) in (int, type(None)) for i in ids),
                 f"{file}: eos_token_id must be a number or a list, got {found!r}")
        if found is not None:
            break
    return tuple(sorted({*ids, fast.token_to_id(special.get("eos_token", ""))} - {None}))
