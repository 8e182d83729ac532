"""A Llama / Qwen2.5 / Qwen3 decoder whose layers each run 0, 1 or 2 times, row by row.

One loop, many routes (`run_blocks`): a *route* is asked, layer by layer, how often every row
of the batch runs that layer, given the prompt's hidden states entering it (paper §3.1). It is
asked on the prompt only; decoding replays what it said. The plain model, a searched path, the
trained routers and every baseline are routes through this loop, and nothing else runs a block.

Departures from the authors' code: keys and values have a slot per (layer, pass), so a repeated
layer's second pass attends to second-pass keys; every row of a batch has its own path; the
cache owns the lengths, so a skipped layer cannot shift a position.

Left out: training, sampling, sliding windows, tensor parallelism.

    model = load_model("demo/model"); model(torch.tensor([[1, 2, 3]])).shape
"""
import hashlib
from dataclasses import dataclass
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cli import InputError, check_device
from hf_folder import Config, list_tensors, load_tokenizer, read_config, read_tensor

__all__ = ["Config", "Generation", "KVCache", "Llama", "Route", "decode", "fixed", "generate",
           "load_model", "load_tokenizer", "prefill"]

# B batch rows   T tokens in this call   S tokens visible (cache + T)   D hidden size
# H query heads  K key/value heads       E head size   F MLP width   V vocabulary   L layers

Route = Callable[[int, Tensor, Tensor], Tensor]  # (layer, hidden (B,T,D), lengths (B,)) -> (B,)


# ---- rotary positions ----

def inverse_frequencies(config, device=None):
    """RoPE's angle per position for each pair of channels, (E/2,), float32, radians."""
    exponent = torch.arange(0, config.head_dim, 2, device=device).float() / config.head_dim
    frequencies = config.rope_theta ** -exponent
    rope = config.rope_scaling
    if rope is None:
        return frequencies
    # llama3: wavelengths beyond the original context are slowed, a ramp joins the two regimes
    turns = rope.original_max_position_embeddings * frequencies / (2 * torch.pi)
    ramp = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    ramp = ramp.clamp(0, 1)
    return (1 - ramp) * frequencies / rope.factor + ramp * frequencies


def angle_table(config, positions, like):
    """(cos, sin), each (positions, E), of every position's angles."""
    turn = torch.arange(positions, device=like.device)[:, None]
    angles = (turn * inverse_frequencies(config, like.device)).repeat(1, 2)  # (positions, E)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(heads, cos, sin):
    """Heads (B, H, T, E) turned by their position's angles; the pairs are (i, i + E/2)."""
    first, second = heads.chunk(2, dim=-1)
    return torch.addcmul(heads * cos, torch.cat((-second, first), dim=-1), sin)


@dataclass
class Span:
    """Where the T new tokens of every row stand, worked out once per call."""
    start: int | None  # the common number of tokens before them, None where rows differ
    cos: Tensor        # (B, 1, T, E), or (T, E) where every row stands alike
    sin: Tensor        # the same
    mask: Tensor | None = None  # (B or 1, 1, T, S) True where visible; None: causal, or one token
    positions: Tensor | None = None  # (B, T) where rows differ

    def take(self, rows):
        """The span of some rows."""
        if self.start is not None:
            return self
        return Span(None, self.cos[rows], self.sin[rows], self.mask[rows], self.positions[rows])


# ---- keys and values ----

class Slot:
    """Keys and values of one (layer, pass), for exactly the rows that run it.

    rows: (N,) row numbers, or None for every row. keys, values: (N, K, capacity, E), or None
    where nothing is decoded afterwards.
    """

    def __init__(self, rows, keys=None, values=None):
        self.rows, self.keys, self.values = rows, keys, values

    def write(self, keys, values, span):
        """Stores the new keys and values (N, K, T, E); returns all that are visible."""
        if self.keys is None:
            return keys, values
        if span.start is not None:
            end = span.start + keys.shape[2]
            self.keys[:, :, span.start:end] = keys
            self.values[:, :, span.start:end] = values
        else:
            where = span.positions[:, None, :, None].expand_as(keys)
            self.keys.scatter_(2, where, keys)
            self.values.scatter_(2, where, values)
            end = span.mask.shape[-1]
        return self.keys[:, :, :end], self.values[:, :, :end]

    def keep(self, alive, renumber):
        """Drops the rows that are not alive (B,) bool."""
        here = alive if self.rows is None else alive[self.rows]
        if self.keys is not None:
            self.keys, self.values = self.keys[here], self.values[here]
        self.rows = None if self.rows is None else renumber[self.rows[here]]


class KVCache:
    """What a batch remembers: its lengths, its decisions, and one Slot per (layer, pass).

    A layer that a row skips stores nothing for it; a layer that it repeats stores two sets.
    capacity is in tokens per row, prompt included; 0 keeps no keys (a single full pass).
    angles: the cosines and sines of every position it has room for, see angle_table.
    """

    def __init__(self, lengths, num_layers, capacity=0, angles=None):
        self.lengths = list(lengths)
        self.capacity, self.angles = capacity, angles
        self.slots = [[] for _ in range(num_layers)]
        self.decisions = torch.ones(len(self.lengths), num_layers, dtype=torch.long)

    def admit(self, layer, counts, empty):
        """Opens the slots of a layer: counts (B,) in {0, 1, 2}; empty(N) gives their storage."""
        if counts.shape != (len(self.lengths),) or counts.min() < 0 or counts.max() > 2:
            raise ValueError(f"layer {layer}: a route must give {len(self.lengths)} counts in "
                             f"0..2, got {counts.tolist()}")
        self.decisions[:, layer] = counts
        for visit in range(int(counts.max())):
            rows = (counts > visit).nonzero().flatten()
            stored = empty(len(rows), self.capacity) if self.capacity else ()
            self.slots[layer].append(Slot(None if len(rows) == len(counts) else rows, *stored))

    def keep(self, alive):
        """Drops finished rows: alive (B,) bool, on the CPU."""
        renumber = alive.long().cumsum(0) - 1
        self.lengths = [length for length, stays in zip(self.lengths, alive.tolist()) if stays]
        self.decisions = self.decisions[alive]
        for slot in (slot for layer in self.slots for slot in layer):
            device = alive.device if slot.keys is None else slot.keys.device
            slot.keep(alive.to(device), renumber.to(device))

    @property
    def bytes(self):
        """Memory of all keys and values, bytes."""
        stored = (s.keys for layer in self.slots for s in layer if s.keys is not None)
        return sum(2 * keys.numel() * keys.element_size() for keys in stored)


# ---- the network; parameter layout fuses the products that read the same input ----

class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


ONEDNN = torch.backends.mkldnn.is_available()


class Linear(nn.Linear):
    """nn.Linear; on a CPU, frozen float32 products of some size go to oneDNN, as torch's own
    bfloat16 ones do, and not to MKL, which took twice the time on the CPU we measured."""

    def forward(self, x):
        weight = self.weight
        large = x.is_cpu and x.numel() * self.out_features >= 2 ** 20
        frozen = not (x.requires_grad or weight.requires_grad)
        if large and frozen and x.dtype == torch.float32 and ONEDNN:
            return torch.ops.mkldnn._linear_pointwise(x, weight, self.bias, "none", [], "")
        return F.linear(x, weight, self.bias)


def attention(queries, keys, values, mask):
    """Grouped-query attention: (N, H, T, E) with (N, K, S, E) gives (N, H, T, E).

    mask None means causal from an empty cache, or a single token that sees everything.
    """
    N, H, T, E = queries.shape
    K = keys.shape[1]
    if T == 1:  # the H/K queries that share a key head become rows of one product
        queries = queries.reshape(N, K, H // K, E)
        return F.scaled_dot_product_attention(queries, keys, values, mask).reshape(N, H, 1, E)
    return F.scaled_dot_product_attention(queries, keys, values, mask, is_causal=mask is None,
                                          enable_gqa=True)


class Block(nn.Module):
    """One decoder block: hidden + attention, then + gated MLP, each on a normed input."""

    def __init__(self, config):
        super().__init__()
        D, E, H, K = config.hidden_size, config.head_dim, config.num_heads, config.num_kv_heads
        self.heads = (H, K)
        self.input_layernorm = RMSNorm(D, config.rms_norm_eps)
        self.qkv_proj = Linear(D, (H + 2 * K) * E, bias=config.qkv_bias)
        self.q_norm = RMSNorm(E, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(E, config.rms_norm_eps) if config.qk_norm else None
        self.o_proj = Linear(H * E, D, bias=config.o_bias)
        self.post_attention_layernorm = RMSNorm(D, config.rms_norm_eps)
        self.gate_up_proj = Linear(D, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = Linear(config.intermediate_size, D, bias=config.mlp_bias)

    def forward(self, hidden, span, slot):
        """hidden (N, T, D) after this block; its keys and values are kept in slot."""
        return self.feed(self.attend(hidden, span, slot))

    def attend(self, hidden, span, slot):
        """hidden (N, T, D) plus attention, the block's first half."""
        N, T, D = hidden.shape
        H, K = self.heads
        heads = self.qkv_proj(self.input_layernorm(hidden)).view(N, T, H + 2 * K, -1)
        heads = heads.transpose(1, 2)  # (N, H + K + K, T, E)
        values = heads[:, H + K:]
        heads = heads[:, :H + K]
        if self.q_norm is not None:
            heads = torch.cat((self.q_norm(heads[:, :H]), self.k_norm(heads[:, H:])), dim=1)
        queries, keys = rotate(heads, span.cos, span.sin).split((H, K), dim=1)
        keys, values = slot.write(keys, values, span)  # (N, K, S, E)
        mixed = attention(queries, keys, values, span.mask)
        return hidden + self.o_proj(mixed.transpose(1, 2).reshape(N, T, -1))

    def feed(self, hidden):
        """hidden (N, T, D) plus the gated MLP, the block's second half."""
        gate, up = self.gate_up_proj(self.post_attention_layernorm(hidden)).chunk(2, dim=-1)
        return hidden + self.down_proj(F.silu(gate) * up)


class Llama(nn.Module):
    """The decoder of a Config. `model(tokens, route)` gives logits; see also generate."""

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
        """The Span of T new tokens after `start` others in every row, None: as many as the cache
        holds of each row; start 0 means an empty cache."""
        cos, sin = cache.angles
        if start == 0 or (T == 1 and start is not None):  # nothing to hide but what is causal
            here = slice(start, start + T)
            return Span(start, cos[here], sin[here])
        first = torch.tensor(cache.lengths if start is None else [start], device=cos.device)
        positions = first[:, None] + torch.arange(T, device=cos.device)  # (B or 1, T)
        seen = torch.arange(max(cache.lengths) + T, device=cos.device)
        mask = (seen <= positions[..., None])[:, None]  # (B or 1, 1, T, S)
        return Span(start, cos[positions][:, None], sin[positions][:, None], mask, positions)

    def fingerprint(self):
        """16 hex digits that name these weights: a hash over a sample of every tensor."""
        digest = hashlib.sha256()
        for name, view in sorted(checkpoint_views(self).items()):
            flat = view.reshape(-1)
            sample = flat[::max(1, len(flat) // 1000)].to("cpu", torch.bfloat16).float()
            digest.update(f"{name} {tuple(view.shape)}".encode() + sample.numpy().tobytes())
        return digest.hexdigest()[:16]

    def empty_cache(self, lengths, T, capacity=0):
        """A KVCache for prompts of these lengths, T tokens wide with their padding."""
        angles = angle_table(self.config, max(T, capacity), self.embed_tokens.weight)
        return KVCache(lengths, self.config.num_layers, capacity, angles)

    def empty_slot(self, rows, capacity):
        """Zeroed keys and values (rows, K, capacity, E)."""
        like, config = self.embed_tokens.weight, self.config
        size = (rows, config.num_kv_heads, capacity, config.head_dim)
        return like.new_zeros(size), like.new_zeros(size)


# ---- the one loop, and its two regimes ----

def run_blocks(model, hidden, span, cache, route=None):
    """hidden (B, T, D) after every layer ran 0, 1 or 2 times per row.

    With a route this is the prompt: the route is asked at every layer and the cache remembers.
    Without, the cache's decisions are replayed.
    """
    lengths = None if route is None else torch.tensor(cache.lengths, device=hidden.device)
    for layer, block in enumerate(model.layers):
        if route is not None:
            cache.admit(layer, route(layer, hidden, lengths), model.empty_slot)
        for slot in cache.slots[layer]:
            if slot.rows is None:
                hidden = block(hidden, span, slot)
            elif len(slot.rows):
                some = block(hidden[slot.rows], span.take(slot.rows), slot)
                hidden = hidden.index_copy(0, slot.rows, some)
    return hidden


def prefill(model, tokens, route=None, lengths=None, capacity=0):
    """(hidden (B, T, D), cache) of prompts (B, T), right-padded where lengths say so.

    The route decides here, once per row. capacity: tokens per row the cache has room for.
    """
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
    hidden = run_blocks(model, model.embed_tokens(tokens), model.span(cache, 0, T), cache, route)
    return hidden, cache


def decode(model, tokens, cache):
    """hidden (B, T, D) of the next T tokens (B, T) of every row, after those in the cache."""
    T, lengths = tokens.shape[1], cache.lengths
    if max(lengths) + T > cache.capacity:
        raise ValueError(f"{max(lengths)} tokens and {T} new ones; the cache has room for "
                         f"{cache.capacity}")
    start = lengths[0] if min(lengths) == max(lengths) else None
    span = model.span(cache, start, T)
    hidden = run_blocks(model, model.embed_tokens(tokens), span, cache)
    cache.lengths = [length + T for length in lengths]
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
    """What generate() answers.

    tokens: B id lists, stop id excluded. decisions: (B, L). layers_executed: (B,), the active
    layers summed over every forward pass of the row (the prompt once, then each decoded token).
    passes: (B,), how many those were. logprobs: (B,), natural log of the probability of the row's
    tokens, stop id included. drafted, accepted: (B,), tokens that a draft proposed, and those of
    them that the model agreed with; None without a draft.
    """
    tokens: list
    decisions: Tensor
    layers_executed: Tensor
    passes: Tensor
    logprobs: Tensor
    drafted: Tensor | None = None
    accepted: Tensor | None = None


def pad(prompts, device=None):
    """(tokens (B, T), lengths) of id lists, right-padded with 0, which no real token sees."""
    lengths = [len(prompt) for prompt in prompts]
    tokens = torch.zeros(len(prompts), max(lengths), dtype=torch.long)
    for row, prompt in zip(tokens, prompts):
        row[:len(prompt)] = torch.tensor(prompt)
    return tokens.to(device), lengths


class Transcript:
    """What every row has said so far, and which rows go on."""

    def __init__(self, room, stop_ids):
        self.room, self.stop_ids = room, stop_ids
        self.tokens, self.going = [[] for _ in room], [tokens > 0 for tokens in room]
        self.passes = torch.zeros(len(room), dtype=torch.long)
        self.logprobs = torch.zeros(len(room))

    def add(self, rows, logits):
        """The likeliest next tokens (N,) of some rows, written down; logits (N, V)."""
        best, chosen = logits.float().log_softmax(-1).max(-1)
        for row, token, logprob in zip(rows, chosen.tolist(), best.tolist()):
            self.say(row, token, logprob)
        return chosen

    def say(self, row, token, logprob):
        """One more token of a row that is going on."""
        self.passes[row] += 1
        self.logprobs[row] += logprob
        self.going[row] = token not in self.stop_ids
        if self.going[row]:
            self.tokens[row].append(token)
            self.going[row] = len(self.tokens[row]) < self.room[row]


def room_of(model, prompts, max_new_tokens):
    """How many tokens may follow each prompt; ValueError if the context has no room for one."""
    if not prompts:
        raise ValueError("no prompts: generate() wants at least one list of token ids")
    longest, limit = max(map(len, prompts)), model.config.max_positions
    if longest >= limit:
        raise ValueError(f"a prompt of {longest} tokens; the model's context is {limit}")
    return [min(max_new_tokens, limit - len(prompt)) for prompt in prompts]


@torch.inference_mode()
def generate(model, prompts, route=None, max_new_tokens=32, stop_ids=(), guesses=None,
             run_prompt=prefill, draft=None, draft_tokens=4):
    """Greedy continuations of B prompts (token-id lists of any lengths) as a Generation.

    guesses: B id lists that the answers may begin with. They change nothing but the time: a guess
    goes through the layers together with its prompt, and what it has right is not decoded again.
    run_prompt: what stands in for prefill, e.g. one that knows parts of the work (reuse.py).
    draft: a Route that proposes draft_tokens at a time for the model to confirm (draft.py, which
    leaves out the two above); it changes nothing but the time either.
    """
    if draft is not None:
        from draft import generate_drafted  # which builds on this file
        return generate_drafted(model, prompts, route, draft, draft_tokens, max_new_tokens,
                                stop_ids)
    room = room_of(model, prompts, max_new_tokens)
    guesses = [()] * len(prompts) if guesses is None else guesses
    tokens, _ = pad([[*prompt, *guess] for prompt, guess in zip(prompts, guesses)],
                    model.embed_tokens.weight.device)
    capacity = tokens.shape[1] + max(room)
    hidden, cache = run_prompt(model, tokens, route, [len(p) for p in prompts], capacity)
    decisions = cache.decisions
    answers = Transcript(room, set(stop_ids))
    last = follow_guesses(model, hidden, cache, guesses, answers)
    rows = list(range(len(prompts)))  # row of the cache -> prompt
    while any(answers.going):
        going = [answers.going[row] for row in rows]
        if 2 * sum(going) <= len(rows):  # finished rows cost time: let go of them
            alive = torch.tensor(going)
            cache.keep(alive)
            last = last[alive.to(last.device)]
            rows = [row for row, on in zip(rows, going) if on]
            going = [True] * len(rows)
        hidden = decode(model, last[:, None], cache)[:, 0]
        on = torch.tensor(going, device=last.device)
        last = last.masked_scatter(on, answers.add([r for r, g in zip(rows, going) if g],
                                                   model.head(hidden[on])))
    layers = answers.passes * decisions.sum(1)
    return Generation(answers.tokens, decisions, layers, answers.passes, answers.logprobs)


def follow_guesses(model, hidden, cache, guesses, answers):
    """The first token (B,) of every row that the prompt's hidden states (B, T, D) do not answer:
    each row follows its guess while that is what it says, and the cache's lengths with it."""
    last = torch.zeros(len(guesses), dtype=torch.long, device=hidden.device)
    rows, place = [row for row, on in enumerate(answers.going) if on], 0
    while rows:
        ends = torch.tensor([cache.lengths[row] - 1 for row in rows])
        last[rows] = answers.add(rows, model.head(hidden[rows, ends]))
        said = last.tolist()
        rows = [row for row in rows if answers.going[row] and place < len(guesses[row])
                and said[row] == guesses[row][place]]
        for row in rows:
            cache.lengths[row] += 1
        place += 1
    return last


# ---- weights ----

def checkpoint_views(model):
    """{name in a Hugging Face checkpoint: view of the parameter that holds it}."""
    config, views = model.config, {}
    sizes = {"qkv_proj": {"self_attn.q_proj": config.num_heads * config.head_dim,
                          "self_attn.k_proj": config.num_kv_heads * config.head_dim,
                          "self_attn.v_proj": config.num_kv_heads * config.head_dim},
             "gate_up_proj": {"mlp.gate_proj": config.intermediate_size,
                              "mlp.up_proj": config.intermediate_size}}
    homes = {"o_proj": "self_attn.o_proj", "q_norm": "self_attn.q_norm",
             "k_norm": "self_attn.k_norm", "down_proj": "mlp.down_proj"}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        *prefix, module, kind = name.split(".")
        if module in sizes:
            parts = parameter.data.split(list(sizes[module].values()))
            views.update({".".join(["model", *prefix, part, kind]): view
                          for part, view in zip(sizes[module], parts)})
        else:
            top = [] if module == "lm_head" else ["model"]
            views[".".join([*top, *prefix, homes.get(module, module), kind])] = parameter.data
    if model.lm_head.weight is model.embed_tokens.weight:
        del views["lm_head.weight"]
    return views


def load_model(folder, device="cpu", dtype=None):
    """The Llama of a Hugging Face folder, frozen. dtype None: the checkpoint's, float32 on a CPU.

    Raises InputError naming a tensor that is missing, unexpected, mis-shaped or not finite.
    """
    check_device(device)
    config = read_config(folder)
    if dtype is None:
        dtype = torch.float32 if torch.device(device).type == "cpu" else config.dtype
    with torch.device("meta"):  # shapes only: nothing is allocated before the files agree
        model = Llama(config).to(dtype)
    stored = _check_tensors(model, folder)
    model.to_empty(device=device)
    if config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    _fill(model, stored)
    return model.eval().requires_grad_(False)


def _homes(model, names):
    """checkpoint_views of the model, fitted to how a tied folder stores its one or two tables."""
    views = checkpoint_views(model)
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if model.config.tie_embeddings and head in names:
        if embedding in names:  # declared tied, yet stored twice: the head may be its own
            model.lm_head.weight = nn.Parameter(torch.empty_like(model.embed_tokens.weight))
            views[head] = model.lm_head.weight.data
        else:  # some tied folders store only the head
            views[head] = views.pop(embedding)
    return views


def _check_tensors(model, folder):
    """[(file, name)] of a folder whose names and shapes are the model's; InputError otherwise."""
    stored = list_tensors(folder)
    names = {name for _, name, _ in stored}
    views = _homes(model, names)
    missing, extra = sorted(set(views) - names), sorted(names - set(views))
    if missing or extra:
        raise InputError(f"{folder}: {len(missing)} tensors missing {missing[:3]}, "
                         f"{len(extra)} unexpected {extra[:3]}")
    for file, name, shape in stored:
        if shape != tuple(views[name].shape):
            raise InputError(f"{file}: {name} has shape {shape}; config.json says "
                             f"{tuple(views[name].shape)}")
    return [(file, name) for file, name, _ in stored]


def _fill(model, stored):
    """Reads every tensor into its place."""
    views = _homes(model, {name for _, name in stored})
    for file, name in stored:
        read_tensor(file, name, views[name])
        if not views[name].isfinite().all():
            raise InputError(f"{file}: {name} holds NaN or infinite values")
    if model.config.tie_embeddings and torch.equal(model.lm_head.weight, model.embed_tokens.weight):
        model.lm_head.weight = model.embed_tokens.weight
