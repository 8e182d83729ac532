"""config.json of a Hugging Face folder: every key that changes the computation is honoured or
refused by name; nothing is guessed.

    read_config("demo/model").num_layers
"""
import math
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from cli import DTYPES
from storage.files import InputError, read_json, require

FAMILIES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
FOLLOWED = {  # keys that change the computation, and the only value this decoder follows
    "hidden_act": "silu", "partial_rotary_factor": 1.0, "quantization_config": None,
    "auto_map": None, "text_config": None, "num_experts": 0, "num_local_experts": 0}
MOST_LAYERS = 1000


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
    require(family in FAMILIES and architecture in (None, FAMILIES[family]),
             f"model_type {family!r}, architecture {architecture!r}: not supported; supported are "
             f"{', '.join(FAMILIES.values())}")
    for key, value in FOLLOWED.items():
        require(raw.get(key) in (None, {}, value), f"{key} {raw.get(key)!r} is not supported")
    windowed = set(raw.get("layer_types") or ()) - {"full_attention"}
    if raw.get("layer_types") is None and raw.get("sliding_window"):
        windowed = (raw.get("use_sliding_window")
                    and raw.get("max_window_layers", 28) < raw["num_hidden_layers"])
    require(not windowed, "sliding_window: attention over a window is not supported")


def _resolve(raw):
    """The Config, with the defaults of the family's library of origin."""
    family, heads, theta, scaling = raw["model_type"], raw["num_attention_heads"], *_rope(raw)
    qwen, bias = family != "llama", bool(raw.get("attention_bias", False))
    dtype = raw.get("dtype") or raw.get("torch_dtype") or "float32"
    require(dtype in DTYPES, f"dtype {dtype!r}: supported are {', '.join(DTYPES)}")
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
    require(isinstance(rope, dict), f"{key} must be an object, got {rope!r}")
    nested = [name for name, value in rope.items() if isinstance(value, dict)]
    kind = nested or rope.get("rope_type", rope.get("type", "default"))
    require(kind in ("default", "llama3"),
             f"{key}: type {kind!r} is not supported; 'default' and 'llama3' are")
    theta = float(rope.get("rope_theta", raw.get("rope_theta", 10000.0)))
    return theta, None if kind == "default" else Llama3Rope(
        *(float(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor")),
        int(raw.get(length) or rope.get(length) or raw["max_position_embeddings"]))


def _check_sizes(config):
    for field in fields(config):
        value = getattr(config, field.name)
        require(field.type is not int or type(value) is int and 0 < value < 2 ** 48,
                 f"{field.name} must be a positive integer, got {value!r}")
    require(config.num_layers <= MOST_LAYERS,
             f"num_hidden_layers {config.num_layers}; the limit is {MOST_LAYERS}")
    require(config.num_heads % config.num_kv_heads == 0, f"{config.num_heads} query heads do not "
             f"divide over {config.num_kv_heads} key/value heads")
    require(config.head_dim % 2 == 0, f"head_dim must be even for RoPE, got {config.head_dim}")
    require(0 <= config.rms_norm_eps < 1, f"rms_norm_eps {config.rms_norm_eps} is not in [0, 1)")
    require(0 < config.rope_theta < math.inf, f"rope_theta {config.rope_theta} is not positive")
    if rope := config.rope_scaling:
        require(0 < rope.factor < math.inf and rope.original_max_position_embeddings > 0
                 and 0 < rope.low_freq_factor < rope.high_freq_factor < math.inf,
                 f"factors must be positive, low_freq_factor below high_freq_factor, got {rope}")
