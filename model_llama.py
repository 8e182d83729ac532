"""A Llama / Qwen2.5 / Qwen3 decoder whose layers each run 0, 1 or 2 times, row by row.

One loop, many routes (`run_blocks`): a *route* is asked, layer by layer, how often every row of
the batch runs that layer, given the prompt's hidden states entering it (paper §3.1). It is asked
on the prompt only; decoding replays its decisions. The plain model, a searched path, the trained
routers and every baseline are routes through this loop, and nothing else runs a block.

Departures from the authors' code: a slot of keys and values per (layer, pass), so that a second
pass attends to second-pass keys; a path per row; lengths that no skipped layer can shift.

    model = load_model("demo/model"); model(torch.tensor([[1, 2, 3]])).shape
"""
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cli import DTYPES, check_device, use_device
from checkpoint.config import read_config
from checkpoint.tokenizer import load_tokenizer  # noqa: F401 - for importers
from checkpoint.weights import read_weights

# B batch rows   T tokens in this call   S tokens visible (cache + T)   D hidden size
# H query heads  K key/value heads       E head size   F MLP width   V vocabulary   L layers

Route = Callable[[int, Tensor, Tensor], Tensor]  # (layer, hidden (B,T,D), lengths (B,)) -> (B,)


# ---- positions, keys and values ----

def inverse_frequencies(config):
    """RoPE's angle per position for each pair of channels, (E/2,), float32, radians."""
    exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    frequencies = config.rope_theta ** -exponents
    rope = config.rope_scaling
    if rope is None:
        return frequencies
    # llama3: wavelengths beyond the original context are slowed, a ramp joins the two regimes
    turns = rope.original_max_position_embeddings * frequencies / (2 * torch.pi)
    low, high = rope.low_freq_factor, rope.high_freq_factor
    ramp = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - ramp) * frequencies / rope.factor + ramp * frequencies


def rotate(heads, cos, sin):
    """Heads (B, H, T, E) turned by their position's angles; the pairs are (i, i + E/2)."""
    first, second = heads.chunk(2, dim=-1)
    return torch.addcmul(heads * cos, torch.cat((-second, first), dim=-1), sin)


@dataclass
class Span:
    """Where T new tokens per row stand and what each sees; made once per call, for all layers.

    All rows store them in the same columns of the cache. Behind a shorter prompt this leaves a gap,
    which the mask hides and positions do not count."""
    start: int                  # column of the first new token
    cos: Tensor                 # (T, E), or (B, 1, T, E) where rows differ
    sin: Tensor                 # the same
    mask: Tensor | None = None  # (B, 1, T, S), True where visible; None: see attention()

    def take(self, rows):
        """The span of some rows; they differ only where there is a mask."""
        if self.mask is None:
            return self
        return Span(self.start, self.cos[rows], self.sin[rows], self.mask[rows])


class Slot:
    """Keys and values (N, K, capacity, E) of one (layer, pass), for exactly the rows that run it:
    (N,) row numbers, or None for every row. A capacity of 0 keeps nothing."""

    def __init__(self, rows, capacity=0):
        self.rows, self.capacity, self.keys, self.values = rows, capacity, None, None

    def write(self, keys, values, span):
        """Stores the new keys and values (N, K, T, E); returns all so far, (N, K, S, E)."""
        if not self.capacity:
            return keys, values
        N, K, T, E = keys.shape
        if self.keys is None:
            self.keys, self.values = keys.new_empty(2, N, K, self.capacity, E)
        end = span.start + T
        self.keys[:, :, span.start:end] = keys
        self.values[:, :, span.start:end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCache:
    """What a batch remembers: its decisions, one Slot per (layer, pass), and the tokens per row,
    before decoding (prompts) and now (lengths). capacity: tokens per row that fit, prompt included;
    0 keeps no keys. angles: (cos, sin) of every position, each (positions, E)."""

    def __init__(self, lengths, num_layers, capacity=0, angles=None):
        self.prompts = self.lengths = list(lengths)
        self.capacity, self.angles = capacity, angles
        self.slots = [[] for _ in range(num_layers)]
        self.decisions = torch.ones(len(self.lengths), num_layers, dtype=torch.long)

    def admit(self, layer, counts):
        """Opens the slots of a layer, a pass each, for rows that run it counts (B,) times."""
        if counts.shape != (len(self.lengths),) or counts.min() < 0 or counts.max() > 2:
            raise ValueError(f"layer {layer}: a route must give {len(self.lengths)} counts in "
                             f"0..2, got {counts.tolist()}")
        self.decisions[:, layer] = counts
        for visit in range(int(counts.max())):
            rows = (counts > visit).nonzero().flatten()
            everyone = len(rows) == len(counts)
            self.slots[layer].append(Slot(None if everyone else rows, self.capacity))


# ---- the network; parameters carry the checkpoint's own names ----

ONEDNN_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # private: may be absent


class Linear(nn.Linear):
    """nn.Linear, for speed alone by oneDNN where a float32 product on a CPU is large and frozen:
    torch's own choice, MKL, takes twice as long on AMD processors."""

    def forward(self, x):
        large = self.weight.numel() >= 2 ** 18 or x.numel() * self.out_features >= 2 ** 20
        frozen = not (x.requires_grad or self.weight.requires_grad)
        if ONEDNN_LINEAR and x.is_cpu and large and frozen and x.dtype == torch.float32:
            return ONEDNN_LINEAR(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)


class RMSNorm(nn.Module):
    """x / root mean square of x, times a weight per channel."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def attention(queries, keys, values, mask):
    """Grouped-query attention: (N, H, T, E) with (N, K, S, E) gives (N, H, T, E). No mask means
    causal from an empty cache, or a single token that sees everything."""
    (N, H, T, E), K = queries.shape, keys.shape[1]
    if T == 1:  # the H/K queries that share a key head become rows of one product
        queries = queries.reshape(N, K, H // K, E)
        return F.scaled_dot_product_attention(queries, keys, values, mask).reshape(N, H, 1, E)
    return F.scaled_dot_product_attention(queries, keys, values, mask, is_causal=mask is None,
                                          enable_gqa=True)


class Attention(nn.Module):
    """Self-attention over what a slot has stored. Qwen3 norms each head's queries and keys."""

    def __init__(self, config):
        super().__init__()
        D, E, H, K = config.hidden_size, config.head_dim, config.num_heads, config.num_kv_heads
        self.head_dim = E
        self.q_proj = Linear(D, H * E, bias=config.qkv_bias)
        self.k_proj = Linear(D, K * E, bias=config.qkv_bias)
        self.v_proj = Linear(D, K * E, bias=config.qkv_bias)
        self.o_proj = Linear(H * E, D, bias=config.o_bias)
        self.q_norm = RMSNorm(E, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(E, config.rms_norm_eps) if config.qk_norm else None

    def forward(self, x, span, slot):
        """(N, T, D) of normed hidden states (N, T, D); keys and values are kept in slot."""
        queries, keys, values = (  # (N, H, T, E), twice (N, K, T, E)
            product(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for product in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        queries, keys = rotate(queries, span.cos, span.sin), rotate(keys, span.cos, span.sin)
        keys, values = slot.write(keys, values, span)  # (N, K, S, E)
        mixed = attention(queries, keys, values, span.mask)
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

    def forward(self, hidden, span, slot):
        """hidden (N, T, D) after this block; its keys and values are kept in slot."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), span, slot)
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

    def span(self, cache, start, T):
        """The Span of T new tokens per row, kept from column `start` on: 0 for the prompt, then
        the longest row's length."""
        cos, sin = cache.angles
        if start == 0 or (T == 1 and min(cache.lengths) == start):  # causal, and no gap
            return Span(start, cos[start:start + T], sin[start:start + T])
        lengths, prompts = torch.tensor([cache.lengths, cache.prompts], device=cos.device)
        new, column = (torch.arange(size, device=cos.device) for size in (T, start + T))
        positions = lengths[:, None] + new  # (B, T)
        gap = (prompts[:, None] <= column) & (column < max(cache.prompts))  # (B, S)
        mask = (column <= start + new[:, None]) & ~gap[:, None, None]  # (B, 1, T, S)
        return Span(start, cos[positions][:, None], sin[positions][:, None], mask)

    def named_weights(self):
        """{name in a checkpoint: parameter}; a tied lm_head is not named twice."""
        return {name if name == "lm_head.weight" else f"model.{name}": parameter.data
                for name, parameter in self.named_parameters()}

    def fingerprint(self):
        """16 hex digits that name these weights: a hash over a sample of every tensor."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.named_weights().items()):
            flat = weight.reshape(-1)
            sample = flat[::max(1, len(flat) // 1000)].to("cpu", torch.bfloat16).float()
            digest.update(f"{name} {tuple(weight.shape)}".encode() + sample.numpy().tobytes())
        return digest.hexdigest()[:16]

    def empty_cache(self, lengths, T, capacity=0):
        """A KVCache for prompts of these lengths, T tokens wide with their padding."""
        angles = torch.arange(max(T, capacity))[:, None] * inverse_frequencies(self.config)
        cos_sin = [turn.repeat(1, 2).to(self.norm.weight) for turn in (angles.cos(), angles.sin())]
        return KVCache(lengths, self.config.num_layers, capacity, cos_sin)


# ---- the one loop, and its two regimes ----

def run_blocks(model, hidden, span, cache, route=None):
    """hidden (B, T, D) after every layer ran 0, 1 or 2 times per row. With a route this is the
    prompt: the route is asked at every layer. Without, the cache's decisions are replayed."""
    lengths = None if route is None else torch.tensor(cache.lengths, device=hidden.device)
    for layer, block in enumerate(model.layers):
        if route is not None:
            cache.admit(layer, route(layer, hidden, lengths))
        for slot in cache.slots[layer]:
            rows = slot.rows
            if rows is None:
                hidden = block(hidden, span, slot)
            else:
                hidden = hidden.index_copy(0, rows, block(hidden[rows], span.take(rows), slot))
    return hidden


def prefill(model, tokens, route=None, lengths=None, capacity=0, span=None):
    """(hidden (B, T, D), cache) of prompts (B, T), right-padded where lengths say so; what follows
    a prompt in its row is never shown to the route, which decides here, once per row. capacity:
    tokens per row the cache has room for. span: positions and mask, if not a plain text's."""
    B, T = tokens.shape
    lengths = [T] * B if lengths is None else [int(n) for n in lengths]
    if not 0 < min(lengths) <= max(lengths) <= T:
        raise ValueError(f"lengths must lie in 1..{T}, got {lengths}")
    if 0 < capacity < T:
        raise ValueError(f"{T} prompt tokens; the cache has room for {capacity}")
    layers = model.config.num_layers
    route = fixed((1,) * layers) if route is None else route
    if getattr(route, "num_layers", layers) != layers:
        raise ValueError(f"the route is for {route.num_layers} layers; the model has {layers}")
    cache = model.empty_cache(lengths, T, capacity)
    hidden, span = model.embed_tokens(tokens), span or model.span(cache, 0, T)
    decide = lambda layer, hidden, lengths: route(layer, hidden[:, :max(cache.lengths)], lengths)
    return run_blocks(model, hidden, span, cache, decide), cache


def decode(model, tokens, cache):
    """hidden (B, T, D) of the next T tokens (B, T) of every row, after those in the cache."""
    start, T = max(cache.lengths), tokens.shape[1]
    if start + T > cache.capacity:
        raise ValueError(f"{start} tokens and {T} new; the cache has room for {cache.capacity}")
    hidden = run_blocks(model, model.embed_tokens(tokens), model.span(cache, start, T), cache)
    cache.lengths = [length + T for length in cache.lengths]
    return hidden


class fixed:  # noqa: N801 - used like a function
    """The Route that always gives these decisions: (L,) for every row, or (B, L)."""

    def __init__(self, decisions):
        self.decisions = torch.as_tensor(decisions, dtype=torch.long)
        self.num_layers = self.decisions.shape[-1]

    def __call__(self, layer, hidden, lengths):
        counts = self.decisions[..., layer]
        return (counts.expand(len(hidden)) if counts.dim() == 0 else counts).to(hidden.device)


# ---- greedy generation ----

@dataclass
class Generation:
    """What generate() answers for B prompts."""
    tokens: list             # B id lists, stop id excluded
    decisions: Tensor        # (B, L)
    layers_executed: Tensor  # (B,) summed over the passes: the prompt once, each decoded token once
    passes: Tensor           # (B,) forward passes
    logprobs: Tensor         # (B,) ln of the probability of the tokens, stop id included


def pad(prompts, device=None):
    """(tokens (B, T), lengths) of id lists, right-padded with 0, which no real token sees."""
    rows = [torch.tensor(prompt) for prompt in prompts]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device), [len(row) for row in rows]


@torch.inference_mode()
def generate(model, prompts, route=None, max_new_tokens=32, stop_ids=()):
    """Greedy continuations of B prompts (token-id lists of any lengths) as a Generation. An answer
    ends with a stop id, after max_new_tokens, or with the model's context; its row runs on,
    unheard, until the last row has ended."""
    tokens, lengths = pad(prompts, model.embed_tokens.weight.device)
    (B, T), context = tokens.shape, model.config.max_positions
    if T >= context:
        raise ValueError(f"a prompt of {T} tokens; the model's context is {context}")
    room = [min(max_new_tokens, context - length) for length in lengths]
    hidden, cache = prefill(model, tokens, route, lengths, T + max(room))
    hidden = hidden[torch.arange(B), torch.tensor(lengths) - 1]  # (B, D), of the last tokens
    answers = [[] for _ in prompts]
    passes, logprobs = torch.zeros(B, dtype=torch.long), torch.zeros(B)
    going = [row for row in range(B) if room[row] > 0]
    while going:
        best, chosen = model.head(hidden).float().log_softmax(-1).max(-1)  # (B,)
        passes[going] += 1
        logprobs[going] += best.cpu()[going]
        said = chosen.tolist()
        going = [row for row in going if said[row] not in stop_ids]
        for row in going:
            answers[row].append(said[row])
        going = [row for row in going if len(answers[row]) < room[row]]
        if going:
            hidden = decode(model, chosen[:, None], cache)[:, 0]
    return Generation(answers, cache.decisions, passes * cache.decisions.sum(1), passes, logprobs)


# ---- loading ----

def load_model(folder, device="cpu", dtype=None):
    """The Llama of a Hugging Face folder, frozen. dtype None: the checkpoint's, float32 on a CPU.
    InputError names a tensor that is missing, unexpected, mis-shaped or not finite."""
    check_device(device)
    config = read_config(folder)
    dtype = dtype or (torch.float32 if torch.device(device).type == "cpu" else config.dtype)
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
