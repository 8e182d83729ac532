"""A Hugging Face model folder, read without Hugging Face code: config, tensors, tokenizer.

The folder is somebody else's input. Every key that changes the computation is honoured or
refused by name; nothing is guessed. Weights come from safetensors only, memory-mapped, never
from pickle. Chat templates are programs: they run in jinja2's immutable sandbox, with a fixed
date (so that labels made today hold tomorrow) and bounds on time and size.

Left out: rope scalings other than llama3, sliding windows, quantised and remote-code folders.

    from hf_folder import load_tokenizer; load_tokenizer("demo/model").encode("3 + 4")
"""
import functools
import json
import math
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from tokenizers import Tokenizer as FastTokenizer

from cli import DTYPES, InputError, open_tensors, read_json

FAMILIES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
REFUSED = {  # keys that change the computation in ways this decoder does not follow
    "quantization_config": "quantised weights", "auto_map": "remote code",
    "text_config": "a multimodal model", "num_experts": "a mixture of experts",
    "num_local_experts": "a mixture of experts",
}
MOST_LAYERS = 1000
FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names of the dtypes that weights may have
FIXED_DATE = "26 Jul 2024"  # what the Llama 3 templates print when not given today's date


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
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder")
    file = Path(folder) / "config.json"
    raw = read_json(file)
    try:
        _refuse(raw)
        config = _resolve(raw)
        _check_sizes(config)
    except KeyError as error:
        raise InputError(f"{file}: no key {error}") from error
    except (TypeError, ValueError, ArithmeticError, AttributeError, IndexError) as error:
        raise InputError(f"{file}: {error}") from error
    return config


def _refuse(raw):
    family, architectures = raw.get("model_type"), raw.get("architectures") or [None]
    if family not in FAMILIES or architectures[0] not in (None, FAMILIES[family]):
        raise ValueError(f"model_type {family!r}, architecture {architectures[0]!r}: not "
                         f"supported; supported are {', '.join(FAMILIES.values())}")
    for key, what in REFUSED.items():
        if raw.get(key):
            raise ValueError(f"{key}: {what} is not supported")
    if raw.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act {raw['hidden_act']!r}: only 'silu' is supported")
    share = raw.get("partial_rotary_factor")
    if share not in (None, 1, 1.0):
        raise ValueError(f"partial_rotary_factor {share}: only 1.0 is supported")
    full = set(raw.get("layer_types") or ()) <= {"full_attention"}
    windowed = raw.get("sliding_window") and raw.get("use_sliding_window")
    if raw.get("layer_types") is None and windowed:
        full = raw.get("max_window_layers", 28) >= raw["num_hidden_layers"]
    if not full:
        raise ValueError("sliding_window: attention over a window is not supported")


def _resolve(raw):
    family, hidden, heads = raw["model_type"], raw["hidden_size"], raw["num_attention_heads"]
    qwen = family != "llama"
    kv_heads = raw.get("num_key_value_heads", 32 if qwen else None)  # Qwen's own default is 32
    head_dim = raw.get("head_dim", 128 if family == "qwen3" else None)
    bias = bool(raw.get("attention_bias", False))
    dtype = raw.get("dtype") or raw.get("torch_dtype") or "float32"
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: supported are {', '.join(DTYPES)}")
    theta, scaling = _rope(raw)
    return Config(
        model_type=family, vocab_size=raw["vocab_size"], hidden_size=hidden,
        intermediate_size=raw["intermediate_size"], num_layers=raw["num_hidden_layers"],
        num_heads=heads, num_kv_heads=kv_heads or heads,
        head_dim=head_dim or hidden // max(1, heads),
        max_positions=raw.get("max_position_embeddings", 2048 if not qwen else 32768),
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)), rope_theta=theta, rope_scaling=scaling,
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=True if family == "qwen2" else bias, o_bias=False if family == "qwen2" else bias,
        mlp_bias=family == "llama" and bool(raw.get("mlp_bias", False)), qk_norm=family == "qwen3",
        dtype=DTYPES[dtype])


def _rope(raw):
    """(theta, scaling) from the old spelling (rope_theta, rope_scaling) or rope_parameters."""
    key = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    rope = raw.get(key) or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{key} must be an object, got {rope!r}")
    nested = [name for name, value in rope.items() if isinstance(value, dict)]
    if nested:
        raise ValueError(f"{key}: settings per kind of layer ({', '.join(nested)}) are not "
                         "supported")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ValueError(f"{key}: rope type {kind!r} is not supported; 'default' and 'llama3' are")
    theta = float(rope.get("rope_theta", raw.get("rope_theta", 10000.0)))
    if kind == "default":
        return theta, None
    original = (raw.get("original_max_position_embeddings")
                or rope.get("original_max_position_embeddings") or raw["max_position_embeddings"])
    return theta, Llama3Rope(float(rope["factor"]), float(rope["low_freq_factor"]),
                             float(rope["high_freq_factor"]), int(original))


def _check_sizes(config):
    if not 0 < config.rope_theta < math.inf:
        raise ValueError(f"rope_theta must be positive, got {config.rope_theta}")
    rope = config.rope_scaling
    if rope and not (0 < rope.factor < math.inf and rope.original_max_position_embeddings > 0):
        raise ValueError(f"rope factor must be positive, got {rope}")
    if rope and not 0 < rope.low_freq_factor < rope.high_freq_factor < math.inf:
        raise ValueError(f"low_freq_factor must be below high_freq_factor, got {rope}")
    if not 0 <= config.rms_norm_eps < 1:
        raise ValueError(f"rms_norm_eps must lie in [0, 1), got {config.rms_norm_eps}")
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads",
                 "num_kv_heads", "head_dim", "max_positions"):
        if type(getattr(config, name)) is not int or not 0 < getattr(config, name) < 2 ** 48:
            raise ValueError(f"{name} must be a positive integer, got {getattr(config, name)!r}")
    if config.num_layers > MOST_LAYERS:
        raise ValueError(f"num_hidden_layers {config.num_layers}; the limit is {MOST_LAYERS}")
    if config.num_heads % config.num_kv_heads:
        raise ValueError(f"{config.num_heads} query heads do not divide over "
                         f"{config.num_kv_heads} key/value heads")
    if config.head_dim % 2:
        raise ValueError(f"head_dim must be even for RoPE, got {config.head_dim}")


# ---- tensors ----

def tensor_files(folder):
    """The safetensors files of a folder, shards in order."""
    folder = Path(folder)
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        raise InputError(f"{folder}: no model.safetensors and no model.safetensors.index.json")
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise InputError(f"{index}: no weight_map")
    for name in shards.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise InputError(f"{index}: shard {name!r} lies outside the folder")
    return [folder / name for name in sorted(set(shards.values()))]


CHUNK = 2 ** 25  # bytes of a tensor mapped at a time


def list_tensors(folder):
    """[(file, name, shape)] of every tensor of a folder; only the files' headers are read."""
    found, home = [], {}
    for file in tensor_files(folder):
        with open_tensors(file) as tensors:
            for name in tensors.keys():
                piece = tensors.get_slice(name)
                if name.endswith("rotary_emb.inv_freq"):  # a constant that old exports store
                    continue
                if piece.get_dtype() not in FLOATS:
                    raise InputError(f"{file}: {name} has dtype {piece.get_dtype()}; weights are "
                                     f"one of {', '.join(FLOATS)}")
                if home.setdefault(name, file) != file:
                    raise InputError(f"{file}: {name} also stands in {home[name].name}")
                found.append((file, name, tuple(piece.get_shape())))
    return found


def read_tensor(file, name, into):
    """Copies a tensor into one of its shape, a piece at a time: each piece is mapped, converted and
    unmapped, so that loading never holds a second copy of the weights."""
    rows = max(1, CHUNK // max(1, into[:1].numel() * into.element_size()))
    for start in range(0, len(into), rows):
        with open_tensors(file) as tensors:
            into[start:start + rows].copy_(tensors.get_slice(name)[start:start + rows])


# ---- tokenizer and chat template ----

class Tokenizer:
    """Text to token ids and back, with the folder's own chat template.

    `.chat(messages)` gives the ids of a rendered conversation that waits for the answer;
    `.has_template` says whether the folder has a template; `.stop_ids` end an answer.
    """

    def __init__(self, folder, fast, template, special, stop_ids):
        self.folder, self.fast, self.template, self.special = folder, fast, template, special
        self.stop_ids = tuple(stop_ids)

    @property
    def has_template(self):
        return self.template is not None

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
        if self.template is None:
            raise InputError(f"{self.folder}: no chat template; use encode")
        try:
            return render(self.template, messages=messages, date_string=FIXED_DATE,
                          add_generation_prompt=add_generation_prompt, enable_thinking=False,
                          **self.special)
        except InputError as error:
            raise InputError(f"{self.folder}: {error}") from error

    def chat(self, messages):
        # the template prints BOS itself
        return self.encode(self.render(messages), add_special_tokens=False)


def load_tokenizer(folder):
    """The Tokenizer of a folder; InputError if tokenizer.json is missing or malformed."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    file = folder / "tokenizer.json"
    if not file.exists():
        raise InputError(f"{file}: no such file; only the tokenizer.json format is read")
    try:
        fast = FastTokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{file}: {error}") from error
    settings = _optional_json(folder / "tokenizer_config.json")
    special = _special_tokens(folder / "tokenizer_config.json", settings)
    return Tokenizer(folder, fast, _template(folder, settings), special,
                     _stop_ids(folder, fast, special))


def _optional_json(file):
    return read_json(file) if file.exists() else {}


def _special_tokens(file, settings):
    """{name: text}; a token is written as text or as an object with its content."""
    special = {}
    for key in ("bos_token", "eos_token", "pad_token"):
        token = settings.get(key)
        text = token.get("content") if isinstance(token, dict) else token
        if not isinstance(text, (str, type(None))):
            raise InputError(f"{file}: {key} must be text, got {text!r}")
        if text is not None:
            special[key] = text
    return special


def _template(folder, settings):
    file = folder / "chat_template.jinja"
    if file.exists():  # overrides tokenizer_config.json
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: not UTF-8 ({error})") from error
    template = settings.get("chat_template")
    if isinstance(template, list):
        try:
            named = {entry["name"]: entry["template"] for entry in template}
        except (KeyError, TypeError) as error:
            raise InputError(f"{folder / 'tokenizer_config.json'}: chat_template is a list whose "
                             f"entries lack {error}") from error
        template = named.get("default", next(iter(named.values()), None))
    if not isinstance(template, (str, type(None))):
        raise InputError(f"{folder / 'tokenizer_config.json'}: chat_template must be text")
    return template


def _stop_ids(folder, fast, special):
    """Ids that end an answer: generation_config.json's, else config.json's; and eos_token."""
    for file in (folder / "generation_config.json", folder / "config.json"):
        found = _optional_json(file).get("eos_token_id")
        ids = list(found) if isinstance(found, list) else [found]
        if any(type(i) not in (int, type(None)) for i in ids):
            raise InputError(f"{file}: eos_token_id must be a number or a list, got {found!r}")
        if found is not None:
            break
    ids.append(fast.token_to_id(special.get("eos_token", "")))
    return sorted({i for i in ids if i is not None})


LARGEST = 1_000_000  # characters or items of anything a template builds


class _Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's immutable sandbox that also refuses to build huge values."""
    intercepted_binops = frozenset(("*", "**", "%", "+"))

    def call_binop(self, context, operator, left, right):
        sized = [value for value in (left, right) if isinstance(value, (str, list, tuple))]
        if operator == "**" or (sized and operator != "+"):
            raise SecurityError(f"operator {operator} is not allowed in a chat template")
        if sum(map(len, sized)) > LARGEST:
            raise SecurityError(f"a sum over {LARGEST} characters in a chat template")
        return super().call_binop(context, operator, left, right)

    def call(self, context, function, *args, **kwargs):
        method = getattr(function, "__wrapped__", function)  # str.format comes wrapped
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            _check_size(getattr(method, "__name__", ""), owner, *args, *kwargs.values())
        return super().call(context, function, *args, **kwargs)


def _check_size(name, value, *args):
    """Refuses a string method or filter, by name, whose result would be huge."""
    size = max((n for n in args if type(n) is int), default=0)  # a width
    if name == "format" and isinstance(value, str):
        size = max(size, *(int(n[:9]) for n in re.findall(r"\d+", value)), 0)
    elif name == "replace" and sum(isinstance(x, str) for x in (value, *args[:2])) == 3:
        size = value.count(args[0]) * len(args[1])
    elif name == "join":
        items = value if isinstance(value, (list, tuple)) else args[0] if args else ()
        size = sum(len(x) for x in items if isinstance(x, str))
    if size > LARGEST:
        raise SecurityError(f"{name} to {size}; the limit in a chat template is {LARGEST}")


def _bounded(name, original):
    """A filter that is checked first; wraps keeps jinja2's marks on it."""
    takes_environment = hasattr(original, "jinja_pass_arg")

    @functools.wraps(original)
    def bounded(*args, **kwargs):
        _check_size(name, *args[takes_environment:], *kwargs.values())
        return original(*args, **kwargs)
    return bounded


@functools.lru_cache(maxsize=16)
def _compiled(template):
    """The template as a program of its own sandbox; compiling takes longer than rendering."""
    def fail(message=""):
        raise TemplateError(message)
    sandbox = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    for name in ("center", "format", "indent", "join", "replace", "wordwrap"):
        sandbox.filters[name] = _bounded(name, sandbox.filters[name])
    sandbox.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent)
    sandbox.globals.update(raise_exception=fail, strftime_now=lambda form: FIXED_DATE)
    return sandbox.from_string(template)


def render(template, seconds=2.0, size=LARGEST, **values):
    """The text of a chat template; InputError if it fails, or runs over `seconds` or `size`."""
    try:
        text = _with_deadline(lambda: _compiled(template).render(**values), seconds, size)
    except Exception as error:  # a stranger's program may fail in any way there is
        raise InputError(f"chat template: {type(error).__name__}: {error}") from error
    if len(text) > size:
        raise InputError(f"chat template: renders {len(text)} characters; the limit is {size}")
    return text


def _with_deadline(call, seconds, size):
    """call(), or TimeoutError: a trace function looks at the clock at every line it runs, and at
    the length of every joined string.

    No signal and no thread, so it works in any thread and leaves nothing running behind.
    """
    end = time.thread_time() + seconds  # work, not waiting: the machine may be busy

    def watch(frame, event, argument):
        if time.thread_time() > end:
            raise TimeoutError(f"ran over {seconds} s")
        if event == "call" and frame.f_code.co_name in ("str_join", "markup_join"):
            if sum(len(x) for x in frame.f_locals["seq"] if isinstance(x, str)) > size:
                raise MemoryError(f"joins over {size} characters")
        return watch
    before = sys.gettrace()
    sys.settrace(watch)
    try:
        return call()
    finally:
        sys.settrace(before)
