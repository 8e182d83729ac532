"""A Llama / Qwen2.5 / Qwen3 decoder whose layers each run 0, 1 or 2 times, row by row.

One loop, many routes (`run_blocks`): at every layer, a *route* decides for each row of the batch
whether the layer is skipped, executed or repeated, from the prompt's hidden states that enter it
(paper §3.1). The route decides once, on the prompt; decoding replays its decisions. The base
model, a searched path, the trained routers and every baseline are routes through this loop, and
nothing else runs a block.

Departures from the authors' code: a KV-cache entry per (layer, pass), so that a second pass
attends to second-pass keys; a path per row; lengths that no skipped layer can shift.

    model = load_model("demo/model"); model(torch.tensor([[1, 2, 3]])).shape
"""
import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from checkpoint.config import read_config
from checkpoint.tokenizer import load_tokenizer
from checkpoint.weights import read_weights
from cli import DTYPES, check_device, use_device
from paths import DECISIONS, EXECUTE, PASSES, blocks, default_path

# B batch rows   N of them, those that run a layer   T tokens in this call
# S tokens visible (cache + T)   D hidden size   H query heads   K key/value heads
# E head size   V vocabulary   L layers

# (layer, hidden states (B, T, D) of the prompts, their lengths (B,)) -> decisions (B,)
Route = Callable[[int, Tensor, Tensor], Tensor]


# ---- positions, keys and values ----

def inverse_frequencies(config):
    """RoPE's angle per position for each pair of channels, (E/2,), float32, radians."""
    exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    frequencies = config.rope_theta ** -exponents
    rope = config.rope_scaling
    if rope is None:
        return frequencies
    # Llama 3 slows the channels that turn rarely within the original context by `factor`, leaves
    # those that turn often as they are, and interpolates between the two
    turns = rope.original_max_position_embeddings * frequencies / (2 * torch.pi)
    low, high = rope.low_freq_factor, rope.high_freq_factor
    ramp = ((turns - low) / (high - low)).clamp(0, 1)  # 0: slowed, 1: unchanged
    return (1 - ramp) * frequencies / rope.factor + ramp * frequencies


def rotate(heads, cos, sin):
    """Heads (B, H, T, E), each pair of channels (i, i + E/2) turned by its position's angle."""
    first, second = heads.chunk(2, dim=-1)
    return torch.addcmul(heads * cos, torch.cat((-second, first), dim=-1), sin)


@dataclass
class Positions:
    """Positions and mask of T new tokens per row; made once per call and used by all layers.

    All rows store their new tokens in the same columns of the cache. A row with a shorter prompt
    therefore has a gap of unused columns: the mask hides it and positions do not count it. Prompts
    of 2 and 4 tokens, first new token: both rows write column 4; for the first, columns 2 and 3 are
    the gap, and its position is 2."""
    start: int                  # column of the first new token
    cos: Tensor                 # (T, E), or (B, 1, T, E) if the rows' positions differ
    sin: Tensor                 # the same
    mask: Tensor | None = None  # (B, 1, T, S), True if visible; None: see attention()

    def take(self, rows):
        """The positions and mask of these rows."""
        if self.mask is None:  # then all rows have the same positions
            return self
        return Positions(self.start, self.cos[rows], self.sin[rows], self.mask[rows])


class Slot:
    """The KV-cache entry (*slot*) of one (layer, pass): keys and values (N, K, capacity, E) of the
    rows that run it. rows: their numbers (N,), or None for every row. capacity: see KVCache."""

    def __init__(self, rows, capacity=0):
        self.rows, self.capacity = rows, capacity
        self.keys = self.values = None

    def write(self, keys, values, positions):
        """Stores the new keys and values (N, K, T, E); returns all so far, (N, K, S, E)."""
        if not self.capacity:
            return keys, values
        N, K, T, E = keys.shape
        if self.keys is None:
            self.keys, self.values = keys.new_empty(2, N, K, self.capacity, E)
        end = positions.start + T  # the first columns are the prompt's, the padding included
        self.keys[:, :, positions.start:end] = keys
        self.values[:, :, positions.start:end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCache:
    """What a batch remembers between calls: its decisions (B, L), a Slot per (layer, pass), and the
    number of tokens in each row, of the prompt (prompt_lengths) and of all so far (lengths).
    capacity: tokens per row that fit, prompt included; 0 stores no keys and values. angles: (cos,
    sin) of every position, each (positions, E).

    The cache itself counts the tokens. A length read off some layer's keys would be wrong as soon
    as that layer is skipped."""

    def __init__(self, lengths, num_layers, capacity=0, angles=None):
        self.prompt_lengths, self.lengths = list(lengths), list(lengths)
        self.capacity, self.angles = capacity, angles
        self.slots = [[] for _ in range(num_layers)]
        self.decisions = torch.full((len(self.lengths), num_layers), EXECUTE)

    def admit(self, layer, decisions):
        """Records the rows' decisions (B,) at a layer, and opens a slot for each of its passes.
        ValueError if they are no decisions."""
        B, last = len(self.lengths), len(DECISIONS) - 1
        if decisions.shape != (B,) or decisions.min() < 0 or decisions.max() > last:
            raise ValueError(f"layer {layer}: a route must give {B} decisions in 0..{last}, got "
                             f"{decisions.tolist()}")
        self.decisions[:, layer] = decisions
        passes = PASSES.to(decisions.device)[decisions]  # (B,)
        for number in range(int(passes.max())):
            rows = (passes > number).nonzero().flatten()  # (N,) that have this pass
            everyone = len(rows) == B
            self.slots[layer].append(Slot(None if everyone else rows, self.capacity))


# ---- nn.Linear, made faster on a CPU; you can read nn.Linear wherever Linear is written ----

# oneDNN's product of float32 matrices, which PyTorch has but offers for no public call. For several
# tokens it is faster than MKL's, which nn.Linear uses. For a single token it is faster on AMD
# processors, where MKL takes twice as long, and slower on others. The name is private and may
# disappear.
ONEDNN_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
LARGE_WEIGHT = 2 ** 18   # from this many weights, or
LARGE_PRODUCT = 2 ** 20  # from this many inputs times outputs, oneDNN's extra cost per call pays


def runs_on_amd():
    """Whether the processor is AMD's, as far as Linux tells."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return "AuthenticAMD" in file.read(1000)  # the first core says enough
    except OSError:
        return False


ON_AMD = runs_on_amd()


class Linear(nn.Linear):
    """nn.Linear. On a CPU and without gradients, large float32 products run on oneDNN."""

    def forward(self, x):
        frozen = not (x.requires_grad or self.weight.requires_grad)
        float32_on_cpu = x.is_cpu and x.dtype == torch.float32
        if frozen and float32_on_cpu and ONEDNN_LINEAR and self.suits_onednn(x):
            return ONEDNN_LINEAR(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)

    def suits_onednn(self, x):
        """Whether oneDNN is faster for this product, its extra cost per call included."""
        is_single_token = x.numel() == self.in_features
        if is_single_token and not ON_AMD:
            return False
        return (self.weight.numel() >= LARGE_WEIGHT
                or x.numel() * self.out_features >= LARGE_PRODUCT)


# ---- the network; its parameters have the names of the checkpoint ----

class RMSNorm(nn.Module):
    """x / root mean square of x, times a weight per channel."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def attention(queries, keys, values, mask):
    """Grouped-query attention: (N, H, T, E) with (N, K, S, E) gives (N, H, T, E). Without a mask it
    is causal (an empty cache, S = T), or a single token that sees everything."""
    (N, H, T, E), K = queries.shape, keys.shape[1]
    if T == 1:  # decoding: the H/K queries that share a key head become rows of one product
        queries = queries.reshape(N, K, H // K, E)
        return F.scaled_dot_product_attention(queries, keys, values, mask).reshape(N, H, 1, E)
    return F.scaled_dot_product_attention(queries, keys, values, mask, is_causal=mask is None,
                                          enable_gqa=True)


class Attention(nn.Module):
    """Self-attention over the tokens that a slot stores."""

    def __init__(self, config):
        super().__init__()
        D, E = config.hidden_size, config.head_dim
        H, K = config.num_heads, config.num_kv_heads
        self.head_dim = E
        self.q_proj = Linear(D, H * E, bias=config.qkv_bias)
        self.k_proj = Linear(D, K * E, bias=config.qkv_bias)
        self.v_proj = Linear(D, K * E, bias=config.qkv_bias)
        self.o_proj = Linear(H * E, D, bias=config.o_bias)
        # Qwen3 normalises the queries and keys of each head
        self.q_norm = RMSNorm(E, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(E, config.rms_norm_eps) if config.qk_norm else None

    def heads(self, projected):
        """Projections (N, T, heads * E) as (N, heads, T, E)."""
        return projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(self, x, positions, slot):
        """(N, T, D) of normed hidden states (N, T, D); stores their keys and values in the slot."""
        queries = self.heads(self.q_proj(x))  # (N, H, T, E)
        keys = self.heads(self.k_proj(x))     # (N, K, T, E)
        values = self.heads(self.v_proj(x))   # (N, K, T, E)
        if self.q_norm is not None:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        queries = rotate(queries, positions.cos, positions.sin)
        keys = rotate(keys, positions.cos, positions.sin)
        keys, values = slot.write(keys, values, positions)  # (N, K, S, E)
        mixed = attention(queries, keys, values, positions.mask)  # (N, H, T, E)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config):
        super().__init__()
        D, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = Linear(D, inner, bias=config.mlp_bias)
        self.up_proj = Linear(D, inner, bias=config.mlp_bias)
        self.down_proj = Linear(inner, D, bias=config.mlp_bias)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One decoder block: hidden + attention, then + gated MLP, each on a normed input."""

    def __init__(self, config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, hidden, positions, slot):
        """Hidden states (N, T, D) after this block, which stores keys and values in the slot."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), positions, slot)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Llama(nn.Module):
    """The decoder of a Config. model(tokens, route) gives logits; see also generate()."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, tokens, route=None, lengths=None):
        """Logits (B, T, V) of tokens (B, T) int64; lengths (B,) where rows are right-padded."""
        return self.head(prefill(self, tokens, route, lengths)[0])

    def head(self, hidden):
        """Logits (..., V) of hidden states (..., D) that come out of the last layer."""
        return self.lm_head(self.norm(hidden))

    def positions(self, cache, start, T):
        """The Positions of T new tokens per row, stored from column `start` on: 0 for the prompt,
        then the longest row's length."""
        cos, sin = cache.angles
        causal_from_empty = start == 0
        one_token_sees_all = T == 1 and min(cache.lengths) == start
        if causal_from_empty or one_token_sees_all:  # the two cases that need no mask
            return Positions(start, cos[start:start + T], sin[start:start + T])
        lengths = torch.tensor(cache.lengths, device=cos.device)
        prompts = torch.tensor(cache.prompt_lengths, device=cos.device)
        new = torch.arange(T, device=cos.device)
        column = torch.arange(start + T, device=cos.device)
        positions = lengths[:, None] + new  # (B, T)
        # the columns between the end of a row's prompt and of the longest one hold padding
        gap = (prompts[:, None] <= column) & (column < prompts.max())  # (B, S)
        mask = (column <= start + new[:, None]) & ~gap[:, None, None]  # (B, 1, T, S)
        return Positions(start, cos[positions][:, None], sin[positions][:, None], mask)

    def named_weights(self):
        """{name in a checkpoint: parameter}; a tied lm_head is not named twice."""
        weights = {}
        for name, parameter in self.named_parameters():
            if name != "lm_head.weight":
                name = f"model.{name}"
            weights[name] = parameter.data
        return weights

    def fingerprint(self):
        """16 hex digits that name these weights: a hash of a sample of every tensor, in bfloat16,
        so that a model has the same fingerprint in float32 and bfloat16. In float16 it has another
        one, since weights are rounded twice. Computed only once, since the weights are frozen."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self):
        digest = hashlib.sha256()
        for name, weight in sorted(self.named_weights().items()):
            flat = weight.reshape(-1)
            stride = max(1, len(flat) // 1000)
            sample = flat[::stride].to("cpu", torch.bfloat16).float()
            digest.update(f"{name} {tuple(weight.shape)}".encode())
            digest.update(sample.numpy().tobytes())
        return digest.hexdigest()[:16]

    def empty_cache(self, lengths, T, capacity=0):
        """A KVCache for prompts of these lengths, T tokens wide with their padding."""
        positions = torch.arange(max(T, capacity))
        angles = positions[:, None] * inverse_frequencies(self.config)  # (positions, E/2)
        angles = angles.repeat(1, 2)  # both channels of a pair turn by the same angle
        cos_sin = [angles.cos().to(self.norm.weight), angles.sin().to(self.norm.weight)]
        return KVCache(lengths, self.config.num_layers, capacity, cos_sin)


# ---- the one loop, and its two regimes ----

def run_blocks(model, hidden, positions, cache, route=None):
    """Hidden states (B, T, D) after all layers, each skipped, executed or repeated per row.

    With a route, the tokens are the prompt, and the route decides at every layer. Without one, they
    are new tokens, and the decisions in the cache are replayed."""
    lengths = None if route is None else torch.tensor(cache.lengths, device=hidden.device)
    for layer, block in enumerate(model.layers):
        if route is not None:
            cache.admit(layer, route(layer, hidden, lengths))
        # one slot per pass: none if every row skips the layer, two if any row repeats it
        for slot in cache.slots[layer]:
            rows = slot.rows
            if rows is None:
                hidden = block(hidden, positions, slot)
            else:  # only the rows that run this pass; the others keep their hidden states
                hidden = hidden.index_copy(0, rows, block(hidden[rows], positions.take(rows), slot))
    return hidden


def prefill(model, tokens, route=None, lengths=None, capacity=0, positions=None):
    """(hidden states (B, T, D), cache) of prompts (B, T), right-padded if lengths (B,) are given.
    The route decides here, once per row and layer. capacity: tokens per row that the cache can
    hold. positions: only for several options side by side (answers.option_positions)."""
    B, T = tokens.shape
    lengths = [T] * B if lengths is None else [int(n) for n in lengths]
    if not 0 < min(lengths) <= max(lengths) <= T:
        raise ValueError(f"lengths must be in 1..{T}, got {lengths}")
    if 0 < capacity < T:
        raise ValueError(f"{T} prompt tokens; the cache has room for {capacity}")
    layers = model.config.num_layers
    if route is None:
        route = FixedRoute(default_path(layers))
    if getattr(route, "num_layers", layers) != layers:
        raise ValueError(f"the route is for {route.num_layers} layers; the model has {layers}")
    cache = model.empty_cache(lengths, T, capacity)
    if positions is None:
        positions = model.positions(cache, 0, T)
    hidden = model.embed_tokens(tokens)
    return run_blocks(model, hidden, positions, cache, prompts_only(route, hidden, lengths)), cache


def prompts_only(route, hidden, lengths):
    """The route, which sees only prompts: hidden states (B, longest prompt, D), zero after the end
    of each row's own prompt. What follows there in the row (the gold answer, options, padding) must
    not take part in a decision, since it is unknown when a question is asked."""
    longest = max(lengths)
    if type(route) is FixedRoute:  # looks at nothing; a subclass might
        return route
    if min(lengths) == longest:
        return lambda layer, hidden, lengths: route(layer, hidden[:, :longest], lengths)
    position = torch.arange(longest, device=hidden.device)
    is_after = position >= torch.tensor(lengths, device=hidden.device)[:, None]  # (B, longest)

    def see_prompt_only(layer, hidden, lengths):
        # a product with 0 would not do: padding may be infinite, and 0 times infinity is no number
        prompt = hidden[:, :longest].masked_fill(is_after[..., None], 0)
        return route(layer, prompt, lengths)

    return see_prompt_only


def decode(model, tokens, cache):
    """Hidden states (B, T, D) of the next T tokens (B, T) of every row in the cache."""
    start, T = max(cache.lengths), tokens.shape[1]
    if start + T > cache.capacity:
        raise ValueError(f"{start} tokens and {T} new; the cache has room for {cache.capacity}")
    hidden = run_blocks(model, model.embed_tokens(tokens), model.positions(cache, start, T), cache)
    cache.lengths = [length + T for length in cache.lengths]
    return hidden


class FixedRoute:
    """The Route that always gives these decisions: (L,) for every row, or (B, L)."""

    def __init__(self, decisions):
        self.decisions = torch.as_tensor(decisions, dtype=torch.long)
        self.num_layers = self.decisions.shape[-1]

    def __call__(self, layer, hidden, lengths):
        decisions = self.decisions[..., layer]
        if decisions.dim() == 0:  # one path for all rows
            decisions = decisions.expand(len(hidden))
        return decisions.to(hidden.device)

    def key(self):
        """What tells this route from all others, as plain values: answers are cached under it.
        None for a subclass, which may decide otherwise."""
        return ["fixed path", self.decisions.tolist()] if type(self) is FixedRoute else None


# ---- greedy generation ----

@dataclass
class Generation:
    """What generate() returns for B prompts."""
    tokens: list             # B id lists, stop id excluded
    decisions: Tensor        # (B, L)
    layers_executed: Tensor  # (B,) blocks run, over all passes: the prompt, each decoded token
    passes: Tensor           # (B,) forward passes
    logprobs: Tensor         # (B,) ln of the probability of the tokens, stop id included


def pad(prompts, device=None):
    """(tokens (B, T), lengths) of id lists, right-padded with 0, which no real token sees."""
    rows = [torch.tensor(prompt) for prompt in prompts]
    tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
    return tokens, [len(row) for row in rows]


@torch.inference_mode()
def generate(model, prompts, route=None, max_new_tokens=32, stop_ids=()):
    """The Generation of B prompts (token-id lists of any lengths), greedily decoded. An answer ends
    with a stop id, after max_new_tokens, or with the model's context. A row that has ended stays in
    the batch, and its further tokens are ignored, until the last row has ended."""
    tokens, lengths = pad(prompts, model.embed_tokens.weight.device)
    (B, T), context = tokens.shape, model.config.max_positions
    if T >= context:
        raise ValueError(f"a prompt of {T} tokens; the model's context is {context}")
    tokens_left = [min(max_new_tokens, context - length) for length in lengths]
    hidden, cache = prefill(model, tokens, route, lengths, T + max(tokens_left))
    hidden = hidden[torch.arange(B), torch.tensor(lengths) - 1]  # (B, D), of the last tokens

    answers = [[] for _ in prompts]
    passes = torch.zeros(B, dtype=torch.long)
    logprobs = torch.zeros(B)
    active_rows = [row for row in range(B) if tokens_left[row] > 0]
    while active_rows:
        best, next_tokens = model.head(hidden).float().log_softmax(-1).max(-1)  # (B,)
        passes[active_rows] += 1
        logprobs[active_rows] += best.cpu()[active_rows]
        next_ids = next_tokens.tolist()
        active_rows = [row for row in active_rows if next_ids[row] not in stop_ids]
        for row in active_rows:
            answers[row].append(next_ids[row])
            tokens_left[row] -= 1
        active_rows = [row for row in active_rows if tokens_left[row] > 0]
        if active_rows:  # all rows run, so that the cache keeps one length per row
            hidden = decode(model, next_tokens[:, None], cache)[:, 0]
    layers_executed = passes * blocks(cache.decisions)
    return Generation(answers, cache.decisions, layers_executed, passes, logprobs)


# ---- loading ----

def load_model(folder, device="cpu", dtype=None):
    """The Llama of a Hugging Face folder, frozen. dtype None: the checkpoint's, float32 on a CPU.
    InputError names a tensor that is missing, unexpected, mis-shaped or not finite."""
    check_device(device)
    config = read_config(folder)
    if dtype is None:
        on_cpu = torch.device(device).type == "cpu"
        dtype = torch.float32 if on_cpu else config.dtype
    with torch.device("meta"):  # shapes only: nothing is allocated before the files agree
        model = Llama(config)
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    weights = read_weights(folder, config, shapes, device, dtype)
    model.load_state_dict(weights, assign=True)
    if weights["lm_head.weight"] is weights["embed_tokens.weight"]:  # one table for both
        model.lm_head.weight = model.embed_tokens.weight
    return model.eval().requires_grad_(False)


def load(args):
    """(tokenizer, model) that the flags of a command name, on its device (cli.add_model_flags)."""
    use_device(args)
    tokenizer = load_tokenizer(args.model)
    return tokenizer, load_model(args.model, args.device, DTYPES.get(args.dtype))
