"""Gates trained on the loss of the label questions' answers, the base model frozen.

    MindSkip       per prompt and layer: is attention skipped? (2410.13184; capacity term)
    halting        per prompt and layer: does the layer run once more? (Universal Transformer, as a
                   frozen retrofit: one gate instead of a sum of halting probabilities)
    FlexiDepth     per token and upper layer: the block or a small adapter; skipped tokens still
                   write their keys and values
    MoD            per token and every other layer: the block or nothing; top-k in training, a
                   learned threshold afterwards, since top-k would look ahead (frozen retrofit;
                   left-out tokens still write keys and values)

The choice is hard in training too; its gradient is the sigmoid's (straight-through). The first two
are routes over a view: blocks cut in two halves, or listed twice. Token choices sit in the block,
so they are computed in full and save nothing here; their layers are counted, not timed.

    entrant = mindskip(Setting(model, tokenizer, prompts, routers, decisions, 11.0, calibration))
"""
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from answers import batches
from drllm import pool_windows
from model_llama import pad, prefill

# N rows   T tokens   D hidden size   L layers   G gates

EPOCHS, BATCH, RATE = 4, 32, 1e-3
PRESSURE = 2.0  # nats per unit of share above the capacity
PONDER = 0.05   # nats per share of layers repeated


class Gates(nn.Module):
    """G linear scores: at or above 0 the gated thing runs. Also what one pass over prompts used."""

    def __init__(self, number, hidden_size, bias=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(number, hidden_size))
        self.bias = nn.Parameter(torch.full((number,), bias))
        self.watch(None, None)

    def watch(self, prompts, ends):
        """From now on the shares used are kept: token counts of prompts and of whole rows, (N,).
        None: nothing is kept."""
        self.prompts, self.ends, self.shares, self.extra = prompts, ends, [], []

    def score(self, index, states):
        """(...) of states (..., D)."""
        return states.float() @ self.weight[index] + self.bias[index]


def choose(score):
    """1 where the score is at or above 0, else 0, with the slope of its sigmoid."""
    soft = score.sigmoid()
    return (score >= 0).to(score) + (soft - soft.detach())


def mean_of(states, lengths):
    """Mean (N, D) over the first lengths (N,) tokens of states (N, T, D), float32: one window."""
    return pool_windows(states, lengths, windows=1)[:, 0]


# ---- one choice per prompt: training sees a weight, answering a route ----

class AttentionHalf(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, hidden, span, slot):
        return self.block.attend(hidden, span, slot)


class MlpHalf(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, hidden, span, slot):
        return self.block.feed(hidden)


class PromptGated(nn.Module):
    """A layer weighted by 0 or 1, chosen from the prompt's mean normed state; for training."""

    def __init__(self, inner, norm, gates, index):
        super().__init__()
        self.inner, self.norm, self.gates, self.index = inner, norm, gates, index

    def forward(self, hidden, span, slot):
        mean = mean_of(self.norm(hidden), self.gates.prompts)
        weight = choose(self.gates.score(self.index, mean))  # (N,)
        self.gates.shares.append(weight)
        return hidden + weight[:, None, None] * (self.inner(hidden, span, slot) - hidden)


class GateRoute:
    """The Route of prompt gates: gate_of maps a layer of the view to (gate index, norm)."""

    def __init__(self, gates, gate_of, num_layers):
        self.gates, self.gate_of, self.num_layers = gates, gate_of, num_layers

    def __call__(self, layer, hidden, lengths):
        if layer not in self.gate_of:
            return torch.ones(len(hidden), dtype=torch.long, device=hidden.device)
        index, norm = self.gate_of[layer]
        return (self.gates.score(index, mean_of(norm(hidden), lengths)) >= 0).long()


def prompt_gated(layers, gates, gate_of):
    """The layers of a view with those of gate_of wrapped for training."""
    return [PromptGated(layer, gate_of[n][1], gates, gate_of[n][0]) if n in gate_of else layer
            for n, layer in enumerate(layers)]


# ---- one choice per token ----

class TokenGated(nn.Module):
    """A block that every token runs or leaves to an adapter (or to nothing), by its own state.

    share: the share of tokens that pass while training, by rank; None: by their score alone.
    """

    def __init__(self, block, gates, index, adapter=None, share=None):
        super().__init__()
        self.block, self.gates, self.index = block, gates, index
        self.adapter, self.share = adapter, share

    def forward(self, hidden, span, slot):
        normed = self.block.input_layernorm(hidden)
        score = self.gates.score(self.index, normed)  # (N, T)
        weight = choose(score)
        if self.share is not None and self.gates.training:
            weight = self._ranked(score)
        self._keep(weight)
        weight = weight[..., None].to(hidden)
        out = hidden + weight * (self.block(hidden, span, slot) - hidden)
        return out if self.adapter is None else out + (1 - weight) * self.adapter(normed)

    def _ranked(self, score):
        """The weight of the best share of each row's tokens; the score learns to predict it."""
        real = torch.arange(score.shape[1], device=score.device) < self.gates.ends[:, None]
        ranks = score.masked_fill(~real, -torch.inf).argsort(1, descending=True).argsort(1)
        passes = (ranks < (self.share * self.gates.ends[:, None]).ceil()).to(score)
        self.gates.extra.append(F.binary_cross_entropy_with_logits(score[real], passes[real]))
        soft = score.sigmoid()
        return passes + (soft - soft.detach())

    def _keep(self, weight):
        if self.gates.ends is not None:
            self.gates.shares.append(mean_of(weight[..., None], self.gates.ends)[:, 0])


class Adapter(nn.Module):
    """Bottleneck MLP that begins as nothing."""

    def __init__(self, hidden_size, width):
        super().__init__()
        self.down, self.up = nn.Linear(hidden_size, width), nn.Linear(width, hidden_size)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, normed):
        return self.up(F.silu(self.down(normed)))


@torch.inference_mode()
def token_layers(view, gates, prompts, batch_size=256):
    """(N,) layers a prompt's tokens run on average, gated blocks counted by their share."""
    layers = torch.zeros(len(prompts))
    for rows in batches(prompts, batch_size):
        tokens, lengths = pad([prompts[n].ids for n in rows], view.embed_tokens.weight.device)
        counted = torch.tensor(lengths, device=tokens.device)
        gates.watch(counted, counted)
        prefill(view, tokens, None, lengths)
        skipped = sum(1 - share for share in gates.shares)
        layers[rows] = (view.config.num_layers - skipped).cpu()
    gates.watch(None, None)
    return layers


# ---- training ----

def train_gates(view, gates, prompts, loss_of, penalty, more=(), seed=0):
    """Fits the gates (and the parameters `more`) to loss_of(view, prompts) + penalty(mean share
    used)."""
    parameters = [*gates.parameters(), *more]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    rng = torch.Generator().manual_seed(seed)
    order = [rows for _ in range(EPOCHS)
             for rows in torch.randperm(len(prompts), generator=rng).split(BATCH)]
    for rows in tqdm(order, desc="gates", unit="step", leave=False):
        chosen = [prompts[n] for n in rows]
        lengths = torch.tensor([len(p.ids) for p in chosen], device=gates.weight.device)
        gates.watch(lengths, lengths)  # whole rows are the prompt and a few answer tokens
        loss = loss_of(view, chosen)
        loss = loss + penalty(torch.stack(gates.shares).mean()) + sum(gates.extra)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    gates.watch(None, None)
    gates.eval().requires_grad_(False)


def above(capacity):
    """The capacity term: what the share used exceeds the capacity by, times PRESSURE."""
    return lambda share: PRESSURE * F.relu(share - capacity)
