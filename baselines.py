"""The other methods of the paper's tables, as routes through the one loop.

Most need a route only. Where a method needs more it gets a *view*: the same frozen weights under
another list of layers, here blocks that share their cache between passes; gates.py has the rest.
Methods that by nature train the base model stand here as "frozen retrofit". Sources and
differences are named at each function. Everything is fitted on the label questions only.

    python evaluate.py --routers runs/demo/routers.safetensors --routes dr.llm,shortgpt \\
        --calibration demo/questions/label.jsonl --data demo/questions/test.jsonl
"""
import copy
import math
from dataclasses import dataclass, replace
from typing import Callable

import torch
import torch.nn.functional as F
from torch import nn

import gates
from answers import batches
from cli import InputError
from drllm import RouterRoute
from label import search_all
from mcts import SearchConfig
from model_llama import pad, prefill

# N prompts   L layers   T tokens   D hidden size   R width of a predictor


@dataclass
class Setting:
    """What a baseline may use. depth: the mean layers per forward pass it is to meet.

    calibration: prompts of the label questions, the only ones anything is fitted on. decisions
    (N, L): what Dr.LLM decided for the prompts to answer. labels: a path (or None) per calibration
    prompt. Only the oracle reads the answers of `prompts`.
    """
    model: nn.Module
    tokenizer: object
    prompts: list
    routers: list
    decisions: torch.Tensor
    depth: float
    calibration: list = None
    labels: list = None
    seed: int = 0
    batch_size: int = 512

    def need(self, name, method):
        """The calibration prompts, or the labels; InputError where there are none."""
        if not getattr(self, name):
            raise InputError(f"route {method} needs {name}, got none (evaluate.py --calibration "
                             "FILE gives calibration questions; python -m extras.paper table5 "
                             "--run DIR gives both)")
        return getattr(self, name)


@dataclass
class Entrant:
    """A model or view, and a route per seed. layers_of(decisions): (N,) layers per forward pass
    where that isn't the sum of the decisions."""
    model: nn.Module
    routes: list
    layers_of: Callable = None


# ---- controls made of Dr.LLM's own decisions ----

class Masked(RouterRoute):
    """Routers with some actions forbidden: `allowed` of (skip, execute, repeat)."""

    def __init__(self, routers, allowed):
        super().__init__(routers)
        self.allowed = torch.tensor(allowed)

    def _logits(self, layer, pooled, counts):
        logits = super()._logits(layer, pooled, counts)
        return logits.masked_fill(~self.allowed.to(logits.device), -torch.inf)


def masked(*allowed):
    return lambda setting: Entrant(setting.model, [Masked(r, allowed) for r in setting.routers])


def shuffled(decisions, seed=0):
    """Decisions (N, L), each row's in a random order of layers: only the depth stays."""
    rng = torch.Generator().manual_seed(seed)
    order = torch.rand(decisions.shape, generator=rng).argsort(1)
    return decisions.gather(1, order)


def rows_of_tasks(prompts):
    """Lists of the row numbers of every task."""
    groups = {}
    for n, prompt in enumerate(prompts):
        groups.setdefault(prompt.question.task, []).append(n)
    return list(groups.values())


def random_choices(decisions, prompts, seed=0):
    """(N, L) drawn independently with the frequencies of the three actions in the row's task."""
    rng = torch.Generator().manual_seed(seed)
    drawn = torch.empty_like(decisions)
    for rows in rows_of_tasks(prompts):
        share = decisions[rows].flatten().bincount(minlength=3).float()
        picks = torch.multinomial(share, len(rows) * decisions.shape[1], True, generator=rng)
        drawn[rows] = picks.view(len(rows), -1)
    return drawn


def swapped(decisions, prompts, seed=0):
    """(N, L) every row gets the path of another question of its task: what is lost is routing
    within a task."""
    rng = torch.Generator().manual_seed(seed)
    given = decisions.clone()
    for rows in rows_of_tasks(prompts):
        order = torch.randperm(len(rows), generator=rng)
        rows = torch.tensor(rows)[order]
        given[rows] = decisions[rows.roll(1)]
    return given


# ---- static paths ----

def removing(order, number, L):
    """The path (L,) without the first `number` layers of order."""
    path = torch.ones(L, dtype=torch.long)
    path[list(order[:number])] = 0
    return path


def at_depth(depth, order, L, N, seed=0):
    """(N, L) paths of this mean depth: random rows go without one layer of `order` more."""
    removed = min(max(L - depth, 0.0), float(L))
    low, share = int(removed), removed - int(removed)
    more = torch.randperm(N, generator=torch.Generator().manual_seed(seed)) < round(share * N)
    longer, shorter = removing(order, low, L), removing(order, min(L, low + 1), L)
    return torch.where(more[:, None], shorter, longer)


class Influence:
    """A Route that executes everything and adds up how far each layer turns the hidden states."""

    def __init__(self, num_layers):
        self.num_layers, self.total, self.tokens = num_layers, torch.zeros(num_layers), 0
        self.before = None

    def __call__(self, layer, hidden, lengths):
        if layer:
            self.add(layer - 1, hidden, lengths)
        self.before = hidden
        return torch.ones(len(hidden), dtype=torch.long, device=hidden.device)

    def add(self, layer, hidden, lengths):
        real = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]  # (B, T)
        turned = 1 - F.cosine_similarity(self.before.float(), hidden.float(), dim=-1)
        self.total[layer] += turned[real].sum().cpu()
        self.tokens += int(real.sum()) if layer == 0 else 0


@torch.inference_mode()
def block_influence(model, prompts, batch_size=256):
    """(L,) ShortGPT: 1 - mean cosine of a block's input and output, over all calibration tokens."""
    device, seen = model.embed_tokens.weight.device, Influence(model.config.num_layers)
    for rows in batches(prompts, batch_size):
        tokens, lengths = pad([prompts[n].ids for n in rows], device)
        hidden, _ = prefill(model, tokens, seen, lengths)
        seen.add(seen.num_layers - 1, hidden, torch.tensor(lengths, device=device))
    return seen.total / seen.tokens


def answer_loss(model, prompts):
    """Mean cross-entropy, nats per token, of the right answers after their prompts."""
    tokens, lengths = pad([[*p.ids, *p.gold] for p in prompts], model.embed_tokens.weight.device)
    logits = model(tokens, lengths=lengths)[:, :-1].float()  # (N, T - 1, V)
    positions = torch.arange(1, tokens.shape[1])
    ends = torch.tensor(lengths)[:, None]
    begins = torch.tensor([len(p.ids) for p in prompts])[:, None]
    wanted = ((positions >= begins) & (positions < ends)).to(tokens.device)
    return F.cross_entropy(logits[wanted], tokens[:, 1:][wanted])


def block_scores(model, prompts, most=128):
    """(L,) LLM-Pruner's first-order importance, sum of |weight * gradient| over a whole block, the
    gradient being that of the answers' loss on up to `most` calibration prompts."""
    prompts = prompts[:most]
    weights = [list(block.parameters()) for block in model.layers]
    flat = [weight for block in weights for weight in block]
    for weight in flat:
        weight.requires_grad_(True)
    try:
        gradients = [torch.zeros_like(weight) for weight in flat]
        for rows in batches(prompts, 32):
            loss = answer_loss(model, [prompts[n] for n in rows]) * len(rows)
            for total, part in zip(gradients, torch.autograd.grad(loss, flat)):
                total += part
    finally:
        for weight in flat:
            weight.requires_grad_(False)
    found = iter(gradients)
    return torch.stack([sum((weight * next(found)).abs().sum() for weight in block)
                        for block in weights]).detach().cpu()


def static(setting, order):
    """Every question along one of two static paths that together meet the depth."""
    paths = at_depth(setting.depth, order, setting.model.config.num_layers, len(setting.prompts),
                     setting.seed)
    return Entrant(setting.model, [paths])


def shortgpt(setting):
    """ShortGPT (Men 2024): the blocks of least influence are removed for every question."""
    influence = block_influence(setting.model, setting.need("calibration", "shortgpt"))
    return static(setting, influence.argsort().tolist())


def pruner(setting):
    """LLM-Pruner (Ma 2023) at the grain of blocks; no LoRA recovery, the base stays frozen."""
    scores = block_scores(setting.model, setting.need("calibration", "pruner"))
    return static(setting, scores.argsort().tolist())


def early_exit(setting):
    """LayerSkip (Elhoushi 2024) without its training: the last layers are left out."""
    return static(setting, list(range(setting.model.config.num_layers))[::-1])


# ---- a whole path before the first layer ----

class PathPredictor(nn.Module):
    """PoLar-like (2606.06574): learned layer queries attend to the prompt's embeddings, a small
    transformer over layers follows, each layer gets three logits. Left out: segments, beams, and
    the separate embedding model (the frozen model's own embeddings and positions stand in)."""

    def __init__(self, num_layers, hidden_size, width=64, heads=4):
        super().__init__()
        self.num_layers = num_layers
        self.project = nn.Linear(hidden_size, width)
        self.queries = nn.Parameter(torch.randn(1, num_layers, width) * 0.1)
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, batch_first=True)
        self.mix = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 3)

    def forward(self, embeddings, lengths):
        """Logits (N, L, 3) of embeddings (N, T, D), lengths (N,)."""
        N, T, _ = embeddings.shape
        tokens = self.project(embeddings) + places(T, self.queries)
        padding = torch.arange(T, device=lengths.device) >= lengths[:, None]
        queries = self.queries.expand(N, -1, -1)
        read = self.attend(queries, tokens, tokens, key_padding_mask=padding)[0]
        return self.head(self.mix(queries + read))


def places(T, like):
    """(T, R) sines and cosines of the positions, in the width and dtype of `like`."""
    half = like.shape[-1] // 2
    speed = torch.exp(-math.log(1000.0) * torch.arange(half, device=like.device) / half)
    angles = torch.arange(T, device=like.device)[:, None] * speed
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(like)


class Predicted:
    """The Route of a PathPredictor: all layers are decided when the first one asks."""

    def __init__(self, predictor):
        self.predictor, self.num_layers, self.path = predictor, predictor.num_layers, None

    def __call__(self, layer, hidden, lengths):
        if layer == 0:
            self.path = self.predictor(hidden.float(), lengths).argmax(-1)  # (B, L)
        return self.path[:, layer]


def train_predictor(model, prompts, paths, seed=0, epochs=25, batch=32, rate=1e-3):
    """A PathPredictor fitted to a path per prompt by cross-entropy."""
    torch.manual_seed(seed)
    predictor = PathPredictor(model.config.num_layers, model.config.hidden_size)
    predictor.to(model.embed_tokens.weight.device)
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=rate)
    rng = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(prompts), generator=rng).split(batch):
            tokens, lengths = pad([prompts[n].ids for n in rows], model.embed_tokens.weight.device)
            embeddings = model.embed_tokens(tokens).float()
            logits = predictor(embeddings, torch.tensor(lengths, device=tokens.device))
            wanted = torch.tensor([paths[n] for n in rows], device=tokens.device)
            loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return predictor.eval().requires_grad_(False)


def polar(setting):
    """The whole path from the embeddings, learned from the labels Dr.LLM learns from."""
    pairs = [(prompt, path) for prompt, path in
             zip(setting.need("calibration", "polar"), setting.need("labels", "polar")) if path]
    predictor = train_predictor(setting.model, *map(list, zip(*pairs)), setting.seed)
    return Entrant(setting.model, [Predicted(predictor)])


def cola(setting, simulations=25):
    """CoLa (2507.07996): search for each question, told whether an answer is right. An oracle: the
    gold answer chooses the path."""
    config = SearchConfig(simulations=simulations)
    L = setting.model.config.num_layers
    found = {prompt.question.id: result.best for prompt, result, _ in
             search_all(setting.model, setting.tokenizer, setting.prompts, config, setting.seed,
                        setting.batch_size)}
    paths = [found[prompt.question.id] or (1,) * L for prompt in setting.prompts]
    return Entrant(setting.model, [torch.tensor(paths)])


# ---- views: the same weights under another list of layers ----

def view(model, layers):
    """A shallow copy of the model with another list of layers; the weights are shared."""
    other = copy.copy(model)
    other._modules = dict(model._modules, layers=nn.ModuleList(layers))
    other.config = replace(model.config, num_layers=len(layers))
    return other


class SharedCache(nn.Module):
    """A block whose second pass reads the first pass's keys and values and writes none
    (Mixture-of-Recursions' recursive sharing). `begin` is called before a new prompt."""

    def __init__(self, block):
        super().__init__()
        self.block = block
        self.begin()

    def begin(self):
        self.slot = self.seen = None

    def forward(self, hidden, span, slot):
        if self.slot is None:
            self.slot = slot
        if slot is self.slot:
            self.seen = Remembering(slot)
            return self.block(hidden, span, self.seen)
        return self.block(hidden, span, Reading(self.seen, slot.rows))


class Remembering:
    """A Slot that also keeps what its last write returned."""

    def __init__(self, slot):
        self.slot, self.rows = slot, slot.rows

    def write(self, keys, values, span):
        self.visible = self.slot.write(keys, values, span)
        return self.visible


class Reading:
    """A Slot that ignores what is written and gives what another one saw for the same rows."""

    def __init__(self, seen, rows):
        self.seen, self.rows = seen, rows

    def write(self, keys, values, span):
        if self.rows is None:
            return self.seen.visible
        here = self.rows
        if self.seen.rows is not None:
            here = torch.searchsorted(self.seen.rows, self.rows)
        return tuple(tensor[here] for tensor in self.seen.visible)


class Beginning:
    """A Route that tells every shared cache when a new prompt starts."""

    def __init__(self, route, blocks):
        self.route, self.blocks, self.num_layers = route, blocks, route.num_layers

    def __call__(self, layer, hidden, lengths):
        self.blocks[layer].begin()
        return self.route(layer, hidden, lengths)


def recursions(setting):
    """Mixture-of-Recursions (2507.10524), frozen retrofit: Dr.LLM's routes, but a repeated layer's
    second pass reads the first pass's keys and values."""
    blocks = [SharedCache(block) for block in setting.model.layers]
    return Entrant(view(setting.model, blocks),
                   [Beginning(RouterRoute(routers), blocks) for routers in setting.routers])


# ---- gates trained on the answers' loss (gates.py) ----

def attention_share(block):
    """Share of a block's weights that stand in its attention half."""
    size = lambda *modules: sum(p.numel() for module in modules for p in module.parameters())
    return size(block.qkv_proj, block.o_proj) / size(block)


def mindskip(setting):
    """MindSkip (Router-Tuning, 2410.13184): attention of every layer but the last may be skipped,
    once per prompt; half a block counts by its share of the weights."""
    model, L = setting.model, setting.model.config.num_layers
    halves = [half for block in model.layers
              for half in (gates.AttentionHalf(block), gates.MlpHalf(block))]
    share = attention_share(model.layers[0])
    capacity = 1 - (L - setting.depth) / max(1, L - 1) / share
    gate_of = {2 * n: (n, model.layers[n].input_layernorm) for n in range(L - 1)}
    route = fit_prompt_gates(setting, halves, gate_of, gates.above(capacity), 0.5, "mindskip")
    cost = torch.tensor([share, 1 - share] * L)
    return Entrant(view(model, halves), [route], lambda decisions: decisions.float() @ cost)


def halting(setting):
    """Universal Transformer (Dehghani 2018), frozen retrofit: after each layer a gate may ask for
    one more pass; it pays a ponder cost."""
    layers = [block for block in setting.model.layers for _ in range(2)]
    gate_of = {2 * n + 1: (n, block.input_layernorm)
               for n, block in enumerate(setting.model.layers)}
    ponder = lambda share: gates.PONDER * share
    route = fit_prompt_gates(setting, layers, gate_of, ponder, -1.0, "halting")
    return Entrant(view(setting.model, layers), [route])


def fit_prompt_gates(setting, layers, gate_of, penalty, bias, name):
    """The route of gates trained on the calibration prompts' answers."""
    model = setting.model
    learned = gates.Gates(len(gate_of), model.config.hidden_size, bias)
    learned.to(model.embed_tokens.weight.device)
    gates.train_gates(view(model, gates.prompt_gated(layers, learned, gate_of)), learned,
                      setting.need("calibration", name), answer_loss, penalty,
                      seed=setting.seed)
    return gates.GateRoute(learned, gate_of, len(layers))


def flexidepth(setting):
    """FlexiDepth (2503.23798): in the upper half of the layers a token runs the block or an
    adapter."""
    L, D = setting.model.config.num_layers, setting.model.config.hidden_size
    width = max(1, setting.model.config.intermediate_size // 16)
    torch.manual_seed(setting.seed)
    adapters = {n: gates.Adapter(D, width) for n in range(L // 2, L)}
    return token_entrant(setting, adapters, None, 1.0, "flexidepth")


def mod(setting):
    """Mixture-of-Depths (Raposo 2024), frozen retrofit: in every other layer some tokens run."""
    layers = range(1, setting.model.config.num_layers, 2)
    share = 1 - (setting.model.config.num_layers - setting.depth) / max(1, len(layers))
    return token_entrant(setting, dict.fromkeys(layers), min(1.0, max(0.0, share)), 0.0, "mod")


def token_entrant(setting, adapters, share, bias, name):
    """The entrant of token gates in the layers of adapters, {layer: Adapter or None}."""
    model, L = setting.model, setting.model.config.num_layers
    device = model.embed_tokens.weight.device
    learned = gates.Gates(len(adapters), model.config.hidden_size, bias).to(device)
    blocks = list(model.layers)
    for index, (n, adapter) in enumerate(adapters.items()):
        adapter = adapter and adapter.to(device)
        blocks[n] = gates.TokenGated(model.layers[n], learned, index, adapter, share)
    capacity = 1 - (L - setting.depth) / max(1, len(adapters))
    more = [p for adapter in adapters.values() if adapter for p in adapter.parameters()]
    gated = view(model, blocks)
    gates.train_gates(gated, learned, setting.need("calibration", name), answer_loss,
                      gates.above(capacity), more, setting.seed)
    layers = gates.token_layers(gated, learned, setting.prompts)
    return Entrant(gated, [None], lambda decisions: layers)


# ---- the table of methods ----

@dataclass(frozen=True)
class Baseline:
    """A row of the comparison: its title, what it is, and how it comes about."""
    title: str
    note: str
    make: Callable


BASELINES = {
    "executed-only": Baseline("forced to execute", "Dr.LLM, skip and repeat forbidden",
                              masked(False, True, False)),
    "no-skip": Baseline("skip forbidden", "Dr.LLM", masked(False, True, True)),
    "no-repeat": Baseline("repeat forbidden", "Dr.LLM", masked(True, True, False)),
    "shuffled": Baseline("shuffled", "control: each question's own counts in random layers",
                         lambda s: Entrant(s.model, [shuffled(s.decisions, s.seed)])),
    "random": Baseline("random", "control: Dr.LLM's frequencies per task",
                       lambda s: Entrant(s.model, [
                           random_choices(s.decisions, s.prompts, s.seed)])),
    "swapped": Baseline("swapped", "control: the path of another question of the task",
                        lambda s: Entrant(s.model, [swapped(s.decisions, s.prompts, s.seed)])),
    "shortgpt": Baseline("ShortGPT", "static, block influence", shortgpt),
    "pruner": Baseline("LLM-Pruner score", "static, |weight * gradient| per block", pruner),
    "early-exit": Baseline("LayerSkip, early exit", "frozen retrofit, static", early_exit),
    "polar": Baseline("PoLar-like", "whole path from the embeddings", polar),
    "mindskip": Baseline("MindSkip", "attention only, gates trained on answers", mindskip),
    "flexidepth": Baseline("FlexiDepth", "per token, gates and adapters trained", flexidepth),
    "mod": Baseline("MoD, top-k tokens", "frozen retrofit, gates trained", mod),
    "halting": Baseline("UT, halting", "frozen retrofit, repeat gates trained", halting),
    "recursions": Baseline("MoR, shared cache", "frozen retrofit, Dr.LLM's paths", recursions),
    "cola": Baseline("CoLa (oracle)", "search with the gold answer", cola),
}
