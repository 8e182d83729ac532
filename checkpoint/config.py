"""config.json of a Hugging Face folder: every key that changes the computation is followed or
refused by name; nothing is guessed.

What differs between model families is in one record per family, FAMILIES. A key that neither
Config nor a family reads is refused if its name or its value says that it changes another
family's computation (EXACT, FACTORS, SWITCHES); any other key is a note to somebody else.

    read_config("demo/model").num_layers
"""
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from cli import DTYPES
from storage.files import InputError, read_json, require


# ---- the families ----

@dataclass(frozen=True)
class Family:
    """What a family's library of origin does with config.json, and what its blocks contain."""
    model_type: str
    architecture: str
    defaults: dict                      # {key: its value where config.json does not have the key}
    ignored: frozenset = frozenset()    # keys that change nothing, whatever they say
    qkv_bias: bool = False              # True: always; False: as attention_bias says
    qk_norm: bool = False
    window_switch: str | None = None    # sliding_window counts if this key is true; None: always
    gguf: str | None = None             # architecture in a GGUF file; None: such files are refused
    gguf_interleaved: bool = False      # there, RoPE turns neighbouring channels


LIBRARY = {  # what the libraries of these three families agree on; another family says its own
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "attention_bias": False, "mlp_bias": False}
QWEN = LIBRARY | {
    "num_key_value_heads": 32, "max_position_embeddings": 32768, "use_sliding_window": False,
    "sliding_window": 4096, "max_window_layers": 28}
FAMILIES = {family.model_type: family for family in (
    Family(
        "llama", "LlamaForCausalLM",
        defaults=LIBRARY | {"num_key_value_heads": None, "max_position_embeddings": 2048,
                            "head_dim": None},
        window_switch="use_sliding_window", gguf="llama", gguf_interleaved=True),
    Family(
        "qwen2", "Qwen2ForCausalLM", defaults=QWEN | {"head_dim": None},
        ignored=frozenset({"attention_bias", "mlp_bias"}), qkv_bias=True,
        window_switch="use_sliding_window", gguf="qwen2"),
    Family(
        "qwen3", "Qwen3ForCausalLM", defaults=QWEN | {"head_dim": 128},
        ignored=frozenset({"mlp_bias"}), qk_norm=True,
        window_switch="use_sliding_window", gguf="qwen3"))}


# ---- keys of other families ----

SILU = ("silu", "swish")  # two names of one function
EXACT = {  # key: the values that this decoder follows
    "hidden_act": SILU, "hidden_activation": SILU, "activation_function": SILU,
    "is_causal": (True,), "causal": (True,), "use_causal_mask": (True,), "unidirectional": (True,),
    "use_rope": (True,), "position_embedding_type": ("rope",)}
SWITCHES = re.compile(  # parts of keys that change something unless they are 0, false or empty
    r"(^|_)(rope|mrope|nope|yarn|alibi|swa|moe|mamba|ssm|altup|laurel|loop|mup|recurrent)(_|$)"
    r"|rotary_dim|dynamic_ntk|logn_attn|(rel|abs|learned)_pos|sliding|(attention|attn|local)_window"
    r"|window_(size|pattern)|local_attention|attention_(types?$|chunk|gate|sink|k_eq_v)|causal"
    r"|bidirectional|prefix_lm|encoder_decoder|cross_attention|parallel_(attn|residual)|sparse"
    r"|qk_(norm|ln|layernorm)|norm_type|unit_offset|post_norm|sandwich_norm|residual_weight|rescale"
    r"|query_pre_attn|attention_multiplier|softmax_scale|attn_scale|temperature_tuning"
    r"|soft_?cap|logit_cap|clip_(qkv|thresh)|swiglu_(limit|alpha)|expert|dense_replace|lora_rank"
    r"|kv_shared|layer_sharing|per_layer|block_(configs|types?)|mlp_layer_types|pruned_heads|quant"
    r"|auto_map|(text|vision|audio)_config")
FACTORS = re.compile(  # parts of keys that change something unless they are 1 or false
    r"(?<!ffn_dim_)multiplier|(^|_)scal(e|ing)(_|$)|partial_rotary_factor|rotary_pct|rope_ratio")
READ_ELSEWHERE = {"rope_theta", "rope_scaling", "rope_parameters", "sliding_window",
                  "use_sliding_window", "max_window_layers"}


def _check_keys(raw):
    """InputError for a key with which another family changes its computation."""
    for key, value in raw.items():
        if value is None or key in READ_ELSEWHERE:
            continue
        followed = True
        if key in EXACT:
            followed = value in EXACT[key]
        elif SWITCHES.search(key):
            followed = value in (False, {}, [], "")  # 0 equals False
        elif FACTORS.search(key):
            followed = value is False or (_is_number(value) and value == 1)
        require(followed, f"{key} {value!r} is not supported")


# ---- the Config ----

MOST_LAYERS = 1000
MOST_SIZE = 2 ** 48  # no product of two sizes that fit in a memory overflows


@dataclass(frozen=True)
class Llama3Rope:
    """The llama3 stretching of RoPE: long wavelengths are slowed by `factor`."""
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


ROPE_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
ROPE_TYPES = {"default": ROPE_KEYS, "llama3": ROPE_KEYS | set(Llama3Rope.__annotations__)}


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
    """The Config of a folder. Raises InputError naming the key that cannot be followed."""
    file = Path(folder) / "config.json"
    raw = read_json(file)
    try:
        family = _family(raw)
        raw = {key: value for key, value in raw.items() if key not in family.ignored}
        _check_keys(raw)
        config = _resolve(family, family.defaults | raw)
        _check_values(config)
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
        missing = "no key " if isinstance(error, KeyError) else ""
        raise InputError(f"{file}: {missing}{error}") from error
    return config


def _family(raw):
    architectures = raw.get("architectures")
    model_type = _choice("model_type", raw.get("model_type"), FAMILIES)
    family = FAMILIES[model_type]
    require(architectures in (None, [], [family.architecture]),
            f"architectures {architectures!r}: not supported; a {model_type} model is a "
            f"{family.architecture}")
    return family


def _resolve(family, raw):
    """The Config of a family. raw: config.json with the family's defaults filled in."""
    _check_window(family, raw)
    num_heads = _size(raw, "num_attention_heads")
    num_kv_heads, head_dim = num_heads, raw["hidden_size"] // num_heads
    if raw["num_key_value_heads"] is not None:
        num_kv_heads = _size(raw, "num_key_value_heads")
    if raw["head_dim"] is not None:
        head_dim = _size(raw, "head_dim")
    rope_theta, rope_scaling = _rope(raw)
    attention_bias = _flag(raw, "attention_bias")
    dtype = _first_given(raw.get("dtype"), raw.get("torch_dtype"), "float32")
    return Config(
        model_type=family.model_type, vocab_size=_size(raw, "vocab_size"),
        hidden_size=_size(raw, "hidden_size"), intermediate_size=_size(raw, "intermediate_size"),
        num_layers=_size(raw, "num_hidden_layers", MOST_LAYERS), num_heads=num_heads,
        num_kv_heads=num_kv_heads, head_dim=head_dim,
        max_positions=_size(raw, "max_position_embeddings"),
        rms_norm_eps=_number(raw, "rms_norm_eps"), rope_theta=rope_theta,
        rope_scaling=rope_scaling, tie_embeddings=_flag(raw, "tie_word_embeddings"),
        qkv_bias=family.qkv_bias or attention_bias, o_bias=attention_bias,
        mlp_bias=_flag(raw, "mlp_bias"), qk_norm=family.qk_norm,
        dtype=DTYPES[_choice("dtype", dtype, DTYPES)])


def _check_window(family, raw):
    """InputError if a layer sees only the last `sliding_window` tokens."""
    layer_types = _first_given(raw.get("layer_types"), [])
    if any(kind != "full_attention" for kind in layer_types):
        windowed = True
    elif family.window_switch is None:  # then the window alone decides, for all layers
        windowed = raw.get("sliding_window") is not None
    elif layer_types:
        windowed = False
    elif not _flag(raw, family.window_switch):
        windowed = False
    else:
        # the layers from max_window_layers on have it; 0 is a window, too
        first_layer = raw.get("max_window_layers", 0)
        windowed = (raw.get("sliding_window") is not None
                    and first_layer < raw["num_hidden_layers"])
    require(not windowed, "sliding_window: attention over a window is not supported")


def _rope(raw):
    """(theta, scaling) from the old spelling (rope_theta, rope_scaling) or rope_parameters."""
    name = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    rope = _first_given(raw.get(name), {})
    require(isinstance(rope, dict), f"{name} must be an object, got {rope!r}")
    rope = {key: value for key, value in rope.items() if value is not None}
    kind = _choice(f"{name}: type", rope.get("rope_type", rope.get("type", "default")), ROPE_TYPES)
    for key, value in rope.items():
        require(key in ROPE_TYPES[kind],
                f"{name}: {key} {value!r} is not supported with type {kind!r}")
    factor = rope.get("partial_rotary_factor", 1)
    require(factor == 1, f"{name}: partial_rotary_factor {factor!r} is not supported")
    theta = _number(raw | rope, "rope_theta")
    if kind == "default":
        return theta, None
    length = "original_max_position_embeddings"
    factors = [_number(rope, key) for key in ("factor", "low_freq_factor", "high_freq_factor")]
    original = _first_given(raw.get(length), rope.get(length), raw["max_position_embeddings"])
    return theta, Llama3Rope(*factors, _size({length: original}, length))


def _check_values(config):
    require(config.num_heads % config.num_kv_heads == 0, f"{config.num_heads} query heads do not "
            f"divide over {config.num_kv_heads} key/value heads")
    require(config.head_dim > 0 and config.head_dim % 2 == 0,
            f"head_dim must be even for RoPE, got {config.head_dim}")
    require(0 <= config.rms_norm_eps < 1, f"rms_norm_eps {config.rms_norm_eps} is not in [0, 1)")
    require(0 < config.rope_theta < math.inf, f"rope_theta {config.rope_theta} is not positive")
    if rope := config.rope_scaling:
        require(0 < rope.factor < math.inf
                and 0 < rope.low_freq_factor < rope.high_freq_factor < math.inf,
                f"factors must be positive, low_freq_factor below high_freq_factor, got {rope}")


# ---- one value of a JSON object ----

def _first_given(*values):
    return next(value for value in values if value is not None)


def _choice(name, value, choices):
    require(isinstance(value, str) and value in choices,
            f"{name} {value!r} is not supported; supported are {', '.join(choices)}")
    return value


def _size(raw, key, most=MOST_SIZE):
    value = raw[key]
    require(type(value) is int and value > 0, f"{key} must be a positive integer, got {value!r}")
    require(value <= most, f"{key} {value}; the limit is {most}")
    return value


def _flag(raw, key):
    """A truth value; null is false. "false" in quotes would count as true, and is refused."""
    value = raw.get(key)
    require(value in (None, False, True), f"{key} must be true or false, got {value!r}")
    return bool(value)


def _is_number(value):
    return type(value) in (int, float)


def _number(raw, key):
    require(_is_number(raw[key]), f"{key} must be a number, got {raw[key]!r}")
    return float(raw[key])
