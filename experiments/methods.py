"""The other methods of the paper's tables, as routes through the one loop.

Most need only a route. Some need a *view*: the same frozen weights under another list of layers.
Four train *switches* on the loss of the answers: a switch says whether a layer is on, for a whole
prompt or for a token. Methods that train the base model itself appear as "frozen retrofit", without
that training. Each function names its source and its differences from it. Everything is fitted on
training questions only.

The command is evaluate.py with these methods among its --routes, and with --calibration.

    python -m experiments.methods --routers runs/demo/routers.safetensors \\
        --routes dr.llm,shortgpt,polar --calibration demo/questions/label.jsonl
"""
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

import cli
import evaluate
from answers import answer, batches, prompts_that_fit
from cli import progress_bar
from drllm import RouterRoute, pool_windows
from label import search_all
from mcts import SearchConfig
from model_llama import KVCache, Slot, pad, prefill
from paths import DECISIONS, EXECUTE, REPEAT, SKIP, default_path
from questions.loading import disjoint, load_all
from storage.files import InputError
from storage.run_folder import folder_of, read_chosen

# N prompts   L layers   T tokens   D hidden size   R width of a predictor

EPOCHS, BATCH, RATE = 4, 32, 1e-3  # of training switches
PRESSURE = 2.0  # nats of loss per unit of share above the capacity
PONDER = 0.05   # nats of loss per share of layers repeated


@dataclass
class Setting:
    """What a method may use. prompts: of the test questions, whose answers only the oracle reads.
    decisions: (N, L), Dr.LLM's for these prompts. depth: the mean layers per forward pass that the
    method is matched to. calibration: prompts of training questions, the only ones anything is
    fitted on. labels: a path or None for each of them."""
    model: nn.Module
    tokenizer: object
    prompts: list
    routers: list
    decisions: torch.Tensor
    depth: float
    calibration: list
    labels: list
    batch_size: int = 512
    seed: int = 0


@dataclass
class Entrant:
    """A method ready to answer: a model or a view of it, and a route per seed.
    layers_of(decisions): (N,) layers per forward pass, if that is not the sum of the decisions."""
    model: nn.Module
    routes: list
    layers_of: Callable = None

    def outcome(self, table, title):
        """The Outcome of its answers to a Comparison's questions. They are not cached: the cache
        tells a view from the model by the weights alone, which are the same."""
        number = len(table.prompts) * len(self.routes)
        with progress_bar(total=number, desc=title, unit="answer") as bar:
            seeds = [answer(self.model, table.tokenizer, table.prompts, route, table.batch_size,
                            bar.update) for route in self.routes]
        depth = None
        if self.layers_of:
            depths = [self.layers_of(answers.decisions) for answers in seeds]
            depth = torch.stack(depths).mean(0)
        return evaluate.Outcome(title, seeds, depth)


# ---- controls made of Dr.LLM's own decisions ----

class WithoutDecisions(RouterRoute):
    """Routers that take the likeliest decision which is not forbidden. EXECUTE is never forbidden,
    since the guard may need it."""

    def __init__(self, routers, forbidden):
        super().__init__(routers)
        self.forbidden = forbidden

    def __call__(self, layer, hidden, lengths):
        scores = self.scores(layer, hidden, lengths)
        scores[:, self.forbidden] = -torch.inf
        return scores.argmax(-1)


def without(*forbidden):
    """The method that is Dr.LLM without these decisions."""
    def make(setting):
        routes = [WithoutDecisions(routers, forbidden) for routers in setting.routers]
        return Entrant(setting.model, routes)
    return make


def from_decisions(choose):
    """The method that changes Dr.LLM's paths: choose(decisions, prompts, seed) gives (N, L)."""
    def make(setting):
        return Entrant(setting.model, [choose(setting.decisions, setting.prompts, setting.seed)])
    return make


def random_choices(decisions, prompts, seed=0):
    """(N, L) drawn independently with the frequencies of the decisions in the prompt's task."""
    rng = torch.Generator().manual_seed(seed)
    drawn = torch.empty_like(decisions)
    for of_task in evaluate.numbers_by_task(prompts).values():
        frequencies = decisions[of_task].flatten().bincount(minlength=len(DECISIONS)).float()
        size = len(of_task) * decisions.shape[1]
        picks = torch.multinomial(frequencies, size, replacement=True, generator=rng)
        drawn[of_task] = picks.view(len(of_task), -1)
    return drawn


def swapped(decisions, prompts, seed=0):
    """(N, L): every prompt has the path of another prompt of its task. What Dr.LLM loses by this
    is what it gains by routing within a task."""
    rng = torch.Generator().manual_seed(seed)
    moved = decisions.clone()
    for of_task in evaluate.numbers_by_task(prompts).values():
        order = torch.tensor(of_task)[torch.randperm(len(of_task), generator=rng)]
        moved[order] = decisions[order.roll(1)]
    return moved


# ---- fixed paths ----

def at_depth(depth, order, L, N, seed=0):
    """(N, L) paths of this mean depth that skip the first layers of `order`. The number of skipped
    layers is one of two neighbours; which prompts skip the larger number is random."""
    skipped = min(max(L - depth, 0.0), float(L))  # layers, on average
    fewer = int(skipped)
    rank = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    skips_one_more = rank < round((skipped - fewer) * N)
    paths = torch.full((N, L), EXECUTE)
    paths[:, order[:fewer]] = SKIP
    paths[skips_one_more, order[min(fewer, L - 1)]] = SKIP
    return paths


@torch.inference_mode()
def block_influence(model, prompts, batch_size=BATCH):
    """(L,) ShortGPT: 1 - mean cosine of a block's input and output, over all calibration tokens."""
    device = model.embed_tokens.weight.device
    total = torch.zeros(model.config.num_layers)
    for batch in batches(prompts, batch_size):
        tokens, lengths = pad([prompts[n].ids for n in batch], device)
        states = []  # (B, T, D) each: what enters the layers, and what leaves the last one

        def store_and_execute(layer, hidden, lengths):
            states.append(hidden)
            return torch.full_like(lengths, EXECUTE)
        last, _ = prefill(model, tokens, store_and_execute, lengths)
        states.append(last)
        real = is_token(tokens.shape[1], torch.tensor(lengths, device=device))
        for layer, (before, after) in enumerate(zip(states, states[1:])):
            cosine = F.cosine_similarity(before.float(), after.float(), dim=-1)  # (B, T)
            total[layer] += (1 - cosine)[real].sum().cpu()
    return total / sum(len(prompt.ids) for prompt in prompts)


def is_token(T, lengths):
    """(B, T) bool, False at padding; lengths (B,)."""
    return torch.arange(T, device=lengths.device) < lengths[:, None]


def answer_loss(model, prompts):
    """Mean cross-entropy, nats per token, of the gold answers after their prompts."""
    device = model.embed_tokens.weight.device
    tokens, lengths = pad([[*prompt.ids, *prompt.gold] for prompt in prompts], device)
    logits = model(tokens, lengths=lengths)[:, :-1].float()  # (N, T - 1, V)
    in_prompt = is_token(tokens.shape[1], torch.tensor([len(prompt.ids) for prompt in prompts]))
    in_sequence = is_token(tokens.shape[1], torch.tensor(lengths))
    of_answer = (in_sequence & ~in_prompt)[:, 1:].to(device)  # (N, T - 1)
    return F.cross_entropy(logits[of_answer], tokens[:, 1:][of_answer])


SCORED = 128  # calibration prompts for LLM-Pruner's score, at most


def block_scores(model, prompts):
    """(L,) LLM-Pruner's first-order importance: the sum of |weight * gradient| over a whole block,
    by the gradient of the answers' loss."""
    prompts, layers = prompts[:SCORED], model.layers
    layers.requires_grad_(True)
    try:
        for batch in batches(prompts, BATCH):
            loss = answer_loss(model, [prompts[n] for n in batch])
            (loss * len(batch)).backward()
        scores = [sum((weight * weight.grad).abs().sum() for weight in block.parameters())
                  for block in layers]
        return torch.stack(scores).detach().cpu()
    finally:
        layers.requires_grad_(False).zero_grad()


def without_first(setting, order):
    """The entrant that skips the first layers of `order` for every question."""
    L, N = setting.model.config.num_layers, len(setting.prompts)
    return Entrant(setting.model, [at_depth(setting.depth, order, L, N, setting.seed)])


def shortgpt(setting):
    """ShortGPT (Men 2024): the blocks of least influence are removed for every question."""
    influence = block_influence(setting.model, setting.calibration)
    return without_first(setting, influence.argsort().tolist())


def pruner(setting):
    """LLM-Pruner (Ma 2023) for whole blocks; without LoRA recovery, the base stays frozen."""
    scores = block_scores(setting.model, setting.calibration)
    return without_first(setting, scores.argsort().tolist())


def early_exit(setting):
    """LayerSkip (Elhoushi 2024) without its training: the last layers are left out."""
    return without_first(setting, list(reversed(range(setting.model.config.num_layers))))


# ---- a whole path before the first layer ----

class PathPredictor(nn.Module):
    """PoLar-like (2606.06574): learned layer queries attend to the prompt's embeddings, a small
    transformer over layers follows, each layer gets three logits. Left out: segments, beams, and
    the separate embedding model, which the frozen model's own embeddings and positions replace."""

    def __init__(self, num_layers, hidden_size, width=64, heads=4):
        super().__init__()
        self.num_layers = num_layers
        self.project = nn.Linear(hidden_size, width)
        self.queries = nn.Parameter(torch.randn(1, num_layers, width) * 0.1)
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, batch_first=True)
        self.mix = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, len(DECISIONS))

    def forward(self, embeddings, lengths):
        """Logits (N, L, 3) of embeddings (N, T, D), lengths (N,)."""
        N, T, _ = embeddings.shape
        tokens = self.project(embeddings) + position_codes(T, self.queries)  # (N, T, R)
        queries = self.queries.expand(N, -1, -1)  # (N, L, R)
        read, _ = self.attend(queries, tokens, tokens, key_padding_mask=~is_token(T, lengths))
        return self.head(self.mix(queries + read))


def position_codes(T, like):
    """(T, R) sines and cosines of the positions, in the width and dtype of `like`."""
    half = like.shape[-1] // 2
    speed = torch.exp(-math.log(1000.0) * torch.arange(half, device=like.device) / half)
    angles = torch.arange(T, device=like.device)[:, None] * speed
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(like)


class PredictorRoute:
    """The Route of a PathPredictor: all layers are decided when the first one asks."""

    def __init__(self, predictor):
        self.predictor = predictor
        self.num_layers = predictor.num_layers

    def __call__(self, layer, hidden, lengths):
        if layer == 0:
            self.path = self.predictor(hidden.float(), lengths).argmax(-1)  # (B, L)
        return self.path[:, layer]


def fit(parameters, number, loss_of, epochs, seed, rate=1e-3, decay=0.01):
    """AdamW on loss_of(numbers of a batch's prompts), in a random order every epoch."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    rng = torch.Generator().manual_seed(seed)
    steps = []
    for _ in range(epochs):
        steps += torch.randperm(number, generator=rng).split(BATCH)
    for batch in progress_bar(steps, desc="fitting", unit="step"):
        loss = loss_of(batch.tolist())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def train_predictor(model, prompts, paths, seed=0, epochs=25, rate=1e-3):
    """A PathPredictor fitted to a path per prompt by cross-entropy."""
    device = model.embed_tokens.weight.device
    torch.manual_seed(seed)
    predictor = PathPredictor(model.config.num_layers, model.config.hidden_size).to(device)

    def loss_of(batch):
        tokens, lengths = pad([prompts[n].ids for n in batch], device)
        embeddings = model.embed_tokens(tokens).float()
        logits = predictor(embeddings, torch.tensor(lengths, device=device))  # (B, L, 3)
        labels = torch.tensor([paths[n] for n in batch], device=device)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    fit(predictor.parameters(), len(prompts), loss_of, epochs, seed, rate)
    return predictor.eval().requires_grad_(False)


def polar(setting):
    """The whole path from the embeddings, learned from the labels that Dr.LLM learns from."""
    labelled = [n for n, path in enumerate(setting.labels) if path]
    prompts = [setting.calibration[n] for n in labelled]
    paths = [setting.labels[n] for n in labelled]
    predictor = train_predictor(setting.model, prompts, paths, setting.seed)
    return Entrant(setting.model, [PredictorRoute(predictor)])


def cola(setting, simulations=25):
    """CoLa (2507.07996): a search for each question, which sees whether an answer is correct. It
    is an oracle: the gold answer chooses the path."""
    searches = search_all(setting.model, setting.tokenizer, setting.prompts,
                          SearchConfig(simulations=simulations), setting.seed, setting.batch_size)
    path_of = {prompt.question.id: result.paper_label for prompt, result, _ in searches}
    default = default_path(setting.model.config.num_layers)
    paths = [path_of[prompt.question.id] or default for prompt in setting.prompts]
    return Entrant(setting.model, [torch.tensor(paths)])


# ---- views: the same weights under another list of layers, or with another cache ----

def view(model, layers):
    """A shallow copy of the model with another list of layers; the weights are shared."""
    other = copy.copy(model)
    other._modules = dict(model._modules, layers=nn.ModuleList(layers))
    other.config = replace(model.config, num_layers=len(layers))
    return other


class SharedCache(KVCache):
    """A KVCache in which a layer's second pass reads the keys and values of its first pass."""

    def admit(self, layer, decisions):
        super().admit(layer, decisions)
        if len(self.slots[layer]) == 2:
            first, second = self.slots[layer]
            self.slots[layer] = [first, SecondPass(first, second.rows)]


class SecondPass(Slot):
    """A Slot that stores nothing: it gives the entries that the first pass stored for its rows."""

    def __init__(self, first, rows):
        super().__init__(rows)
        self.first = first
        if rows is None:  # then the first pass runs every row, too
            self.rows_of_first = slice(None)
        elif first.rows is None:
            self.rows_of_first = rows
        else:
            self.rows_of_first = torch.searchsorted(first.rows, rows)

    def write(self, keys, values, positions):
        end = positions.start + keys.shape[2]
        stored = self.first.keys[:, :, :end], self.first.values[:, :, :end]
        return tuple(tensor[self.rows_of_first] for tensor in stored)  # (N, K, S, E) each


def sharing(model):
    """A view of the model whose repeated layers share the first pass's keys and values."""
    other = copy.copy(model)

    def empty_cache(lengths, T, capacity=0):
        angles = model.empty_cache(lengths, T, capacity).angles
        # at least T: the second pass reads what the first one has stored
        return SharedCache(lengths, model.config.num_layers, max(T, capacity), angles)
    other.empty_cache = empty_cache
    return other


def recursions(setting):
    """Mixture-of-Recursions (2507.10524), frozen retrofit: Dr.LLM's routes, but a repeated layer's
    second pass reads the first pass's keys and values."""
    routes = [RouterRoute(routers) for routers in setting.routers]
    return Entrant(sharing(setting.model), routes)


# ---- switches: trained on the answers' loss, the base model frozen ----

class Switches(nn.Module):
    """Linear scores: at or above 0 a switch is on. While they watch prompts of `lengths` (N,), the
    switches note the share of each prompt that was on, (N,) each, and further losses."""

    def __init__(self, number, hidden_size, bias=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(number, hidden_size))
        self.bias = nn.Parameter(torch.full((number,), bias))
        self.watch(None)

    def watch(self, lengths):
        self.lengths, self.shares, self.more_losses = lengths, [], []

    def score(self, index, states):
        """(...) of states (..., D)."""
        return states.float() @ self.weight[index] + self.bias[index]


def straight_through(on, score):
    """0 or 1, hard in training too; the gradient is that of the score's sigmoid."""
    soft = score.sigmoid()
    return on.to(score) + (soft - soft.detach())


def mean_of(states, lengths):
    """Mean (N, D) over the first lengths (N,) tokens of states (N, T, D), float32: one window."""
    return pool_windows(states, lengths, windows=1)[:, 0]


def top_share(score, lengths, share):
    """(N, T) bool: the share of each prompt's tokens whose score (N, T) is highest."""
    score = score.masked_fill(~is_token(score.shape[1], lengths), -torch.inf)
    ranks = score.argsort(1, descending=True).argsort(1)
    return ranks < (share * lengths[:, None]).ceil()


class Switched(nn.Module):
    """A layer with a switch, which sees the normed state of each token or, per_token=False, their
    mean. When it is off, the adapter runs instead, or nothing. share: the share of a prompt's
    tokens that pass in training, by rank; None: by their score alone."""

    def __init__(self, inner, norm, switches, index, per_token=True, adapter=None, share=None):
        super().__init__()
        self.inner, self.norm = inner, norm
        self.switches, self.index = switches, index
        self.per_token, self.adapter, self.share = per_token, adapter, share

    def forward(self, hidden, positions, slot):
        normed = self.norm(hidden)
        on = self.on(normed)[..., None].to(hidden)  # (N, T, 1), or (N, 1, 1) of whole prompts
        out = hidden + on * (self.inner(hidden, positions, slot) - hidden)
        if self.adapter is None:
            return out
        return out + (1 - on) * self.adapter(normed.float()).to(hidden)

    def on(self, normed):
        """(N, T), or (N, 1) for whole prompts, of 0 and 1."""
        switches, lengths = self.switches, self.switches.lengths
        states = normed if self.per_token else mean_of(normed, lengths)[:, None]
        score = switches.score(self.index, states)
        chosen = score >= 0
        if self.share is not None and switches.training:
            chosen = top_share(score, lengths, self.share)
            # the score learns to predict the rank, which is not known when an answer is written
            real = is_token(score.shape[1], lengths)
            switches.more_losses.append(F.binary_cross_entropy_with_logits(
                score[real], chosen[real].to(score)))
        on = straight_through(chosen, score)
        if lengths is not None:
            share_on = mean_of(on[..., None], lengths) if self.per_token else on  # (N, 1)
            switches.shares.append(share_on[:, 0])
        return on


def switched(layers, norms, switches, adapters=None, **how):
    """The layers, with a switch for each in norms {layer: norm of what its switch sees}."""
    layers = list(layers)
    for index, (layer, norm) in enumerate(norms.items()):
        adapter = adapters[index] if adapters else None
        layers[layer] = Switched(layers[layer], norm, switches, index, adapter=adapter, **how)
    return layers


def train_switches(setting, layers, norms, penalty, bias, **how):
    """(the view that they were trained in, Switches fitted to the answers' loss plus the penalty of
    the mean share that is on)."""
    model, prompts = setting.model, setting.calibration
    device = model.embed_tokens.weight.device
    switches = Switches(len(norms), model.config.hidden_size, bias).to(device)
    trained = view(model, switched(layers, norms, switches, **how))
    new = [weight for weight in trained.parameters() if weight.requires_grad]  # the base is frozen

    def loss_of(batch):
        chosen = [prompts[n] for n in batch]
        lengths = [len(prompt.ids) for prompt in chosen]
        switches.watch(torch.tensor(lengths, device=device))
        loss = answer_loss(trained, chosen)
        share_on = torch.stack(switches.shares).mean()
        return loss + penalty(share_on) + sum(switches.more_losses)
    fit(new, len(prompts), loss_of, EPOCHS, setting.seed, RATE, decay=0.0)
    switches.watch(None)
    trained.requires_grad_(False)
    return trained, switches.eval()


def above(capacity):
    """The capacity term: PRESSURE times the excess of the share that is on over the capacity."""
    return lambda share: PRESSURE * F.relu(share - capacity)


def capacity_of(setting, number, share=1.0):
    """The share of `number` switches that are on at the depth to meet, when each of them switches
    this share of a layer."""
    skipped = setting.model.config.num_layers - setting.depth
    return 1 - skipped / max(1, number) / share


# ---- a switch per prompt: a route over a view ----

class SwitchRoute:
    """The Route of prompt switches. norms: see switched()."""

    def __init__(self, switches, norms, num_layers):
        self.switches, self.norms, self.num_layers = switches, norms, num_layers
        self.index = {layer: index for index, layer in enumerate(norms)}

    def __call__(self, layer, hidden, lengths):
        if layer not in self.norms:
            return torch.full_like(lengths, EXECUTE)
        mean = mean_of(self.norms[layer](hidden), lengths)
        return (self.switches.score(self.index[layer], mean) >= 0).long()


def prompt_entrant(setting, layers, norms, penalty, bias, layers_of=None):
    """The entrant of these layers, of which those in norms are switched once per prompt."""
    _, switches = train_switches(setting, layers, norms, penalty, bias, per_token=False)
    route = SwitchRoute(switches, norms, len(layers))
    return Entrant(view(setting.model, layers), [route], layers_of)


class Half(nn.Module):
    """One half of a block as a layer: its attention or its MLP."""

    def __init__(self, block, attention):
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, hidden, positions, slot):
        block = self.block
        if self.attention:
            return hidden + block.self_attn(block.input_layernorm(hidden), positions, slot)
        return hidden + block.mlp(block.post_attention_layernorm(hidden))


def mindskip(setting):
    """MindSkip (Router-Tuning, 2410.13184): attention of every layer but the last may be skipped,
    once per prompt; half a block counts by its share of the weights."""
    blocks, L = setting.model.layers, setting.model.config.num_layers
    halves = [Half(block, attention) for block in blocks for attention in (True, False)]
    in_attention, in_block = (sum(weight.numel() for weight in part.parameters())
                              for part in (blocks[0].self_attn, blocks[0]))
    share = in_attention / in_block
    cost = torch.tensor([share, 1 - share] * L)
    norms = {2 * n: blocks[n].input_layernorm for n in range(L - 1)}
    return prompt_entrant(setting, halves, norms, above(capacity_of(setting, L - 1, share)), 0.5,
                          lambda decisions: decisions.float() @ cost)


def halting(setting):
    """Universal Transformer (Dehghani 2018), frozen retrofit: after each layer a switch instead of
    a sum of halting probabilities may ask for a second pass, at a ponder cost."""
    blocks = setting.model.layers
    twice = [block for block in blocks for _ in range(2)]
    norms = {2 * n + 1: block.input_layernorm for n, block in enumerate(blocks)}
    return prompt_entrant(setting, twice, norms, lambda share: PONDER * share, -1.0)


# ---- a switch per token: both branches are computed, so no time is saved; layers are counted ----

@torch.inference_mode()
def token_layers(trained, switches, prompts, batch_size=256):
    """(N,) layers that a prompt's tokens run on average, switched ones counted by their share."""
    layers = torch.zeros(len(prompts))
    device = trained.embed_tokens.weight.device
    for batch in batches(prompts, batch_size):
        tokens, lengths = pad([prompts[n].ids for n in batch], device)
        switches.watch(torch.tensor(lengths, device=device))
        prefill(trained, tokens, None, lengths)
        skipped = sum(1 - share for share in switches.shares)
        layers[batch] = (trained.config.num_layers - skipped).cpu()
    switches.watch(None)
    return layers


def token_entrant(setting, numbers, bias, **how):
    """The entrant of a model whose layers of these numbers are switched token by token."""
    blocks = setting.model.layers
    norms = {n: blocks[n].input_layernorm for n in numbers}
    penalty = above(capacity_of(setting, len(numbers)))
    trained, switches = train_switches(setting, blocks, norms, penalty, bias, **how)
    layers = token_layers(trained, switches, setting.prompts)
    return Entrant(trained, [None], lambda decisions: layers)


def adapter(hidden_size, width):
    """A bottleneck MLP whose output is zero at first."""
    down, up = nn.Linear(hidden_size, width), nn.Linear(width, hidden_size)
    nn.init.zeros_(up.weight)
    nn.init.zeros_(up.bias)
    return nn.Sequential(down, nn.SiLU(), up)


def flexidepth(setting):
    """FlexiDepth (2503.23798): in the upper half of the layers a token runs the block or a small
    adapter; tokens that skip still write their keys and values."""
    config = setting.model.config
    torch.manual_seed(setting.seed)
    upper_half = range(config.num_layers // 2, config.num_layers)
    width = max(1, config.intermediate_size // 16)
    adapters = nn.ModuleList(adapter(config.hidden_size, width) for _ in upper_half)
    adapters = adapters.to(setting.model.embed_tokens.weight.device)
    return token_entrant(setting, upper_half, 1.0, adapters=adapters)


def mod(setting):
    """Mixture-of-Depths (Raposo 2024), frozen retrofit: in every other layer some tokens run, the
    rest only write keys and values. Those that run are the top k in training; afterwards they are
    those above a learned threshold, since top k would look ahead."""
    every_other = range(1, setting.model.config.num_layers, 2)
    share = min(1.0, max(0.0, capacity_of(setting, len(every_other))))
    return token_entrant(setting, every_other, 0.0, share=share)


# ---- the table of methods ----

@dataclass(frozen=True)
class Method:
    """title and note: of its row in a table. make: gives the Entrant of a Setting. needs: what the
    Setting must have: "calibration" questions, their "labels" too, or nothing."""
    title: str
    note: str
    make: Callable
    needs: str = ""


METHODS = {
    "executed-only": Method("forced to execute", "Dr.LLM, skip and repeat forbidden",
                            without(SKIP, REPEAT)),
    "no-skip": Method("skip forbidden", "Dr.LLM", without(SKIP)),
    "no-repeat": Method("repeat forbidden", "Dr.LLM", without(REPEAT)),
    "random": Method("random", "control: Dr.LLM's frequencies per task",
                     from_decisions(random_choices)),
    "swapped": Method("swapped", "control: the path of another question of the task",
                      from_decisions(swapped)),
    "shortgpt": Method("ShortGPT", "fixed path, block influence", shortgpt, "calibration"),
    "pruner": Method("LLM-Pruner score", "fixed path, |weight * gradient| per block", pruner,
                     "calibration"),
    "early-exit": Method("LayerSkip, early exit", "frozen retrofit, fixed path", early_exit),
    "polar": Method("PoLar-like", "whole path from the embeddings", polar, "labels"),
    "mindskip": Method("MindSkip", "attention only, switches trained on answers", mindskip,
                       "calibration"),
    "flexidepth": Method("FlexiDepth", "per token, switches and adapters trained", flexidepth,
                         "calibration"),
    "mod": Method("MoD, top-k tokens", "frozen retrofit, switches trained", mod, "calibration"),
    "halting": Method("UT, halting", "frozen retrofit, repeat switches trained", halting,
                      "calibration"),
    "recursions": Method("MoR, shared cache", "frozen retrofit, Dr.LLM's paths", recursions),
    "cola": Method("CoLa (oracle)", "search with the gold answer", cola),
}


def check_needs(names, calibration, labels):
    """InputError if a named method would lack something. calibration: prompts of training
    questions; labels: {question id: path}."""
    is_labelled = any(labels.get(prompt.question.id) for prompt in calibration)
    for name in names:
        needs = METHODS[name].needs
        if needs and not calibration:
            raise InputError(f"route {name} is fitted on training questions and got none: give "
                             "--calibration FILE")
        if needs == "labels" and not is_labelled:
            raise InputError(f"route {name} learns from labels, and none of {len(calibration)} "
                             "questions of --calibration has one: chosen.json, which train.py "
                             "leaves next to the routers, must have them")


def setting_of(table, routers, outcome, calibration, labels, depth=None):
    """What methods may use to answer a Comparison's questions, at the depth of Dr.LLM's outcome or
    another. calibration, labels: see check_needs()."""
    depth = depth or outcome.layers[table.counted].mean().item()
    paths = [labels.get(prompt.question.id) for prompt in calibration]
    return Setting(table.model, table.tokenizer, table.prompts, routers, outcome.decisions[0],
                   depth, calibration, paths, table.batch_size)


def add(table, names, routers, outcome, calibration, labels):
    """Asks the named methods a Comparison's questions, at the depth of Dr.LLM's outcome, whose
    routers these are. calibration, labels: see check_needs()."""
    check_needs(names, calibration, labels)
    setting = setting_of(table, routers, outcome, calibration, labels)
    for name in names:
        method = METHODS[name]
        table.outcomes[name] = method.make(setting).outcome(table, method.title)


# ---- the command: evaluate.py, and these methods ----

def parse_args(argv=None):
    known = (*evaluate.ROUTES, *METHODS)
    parser = cli.Parser(__doc__, prog="python -m experiments.methods")
    evaluate.add_flags(parser, known)
    parser.add_argument("--calibration", nargs="+", action=cli.Gather, default=[], metavar="FILE",
                        help="question files that methods are fitted on, e.g. those that the "
                             "routers learned from")
    args = parser.parse_args(argv)
    evaluate.check_routes(parser, args, known)
    return args


def read_calibration(args, inputs):
    """The prompts of --calibration, [] without it; none of them asks what a test question asks."""
    if not args.calibration:
        return []
    questions = load_all(args.calibration, args.skip_bad_rows, args.score, args.begin)
    questions = disjoint(args.data, inputs.questions, "--calibration", questions)
    prompts, _ = prompts_that_fit(questions[:args.limit], inputs.tokenizer, inputs.model,
                                  "calibration questions")
    return prompts


def main(argv=None):
    args = parse_args(argv)
    inputs = evaluate.read_inputs(args)
    calibration = read_calibration(args, inputs)
    labels = read_chosen(folder_of(args.routers) or args.out, inputs.model.config.num_layers)
    names = [name for name in args.routes if name in METHODS]
    check_needs(names, calibration, labels)  # rather now than after the other routes

    def add_methods(table, main):
        add(table, names, inputs.seeds, table.outcomes[main], calibration, labels)
    evaluate.evaluate_routes(args, inputs, others=[add_methods])


if __name__ == "__main__":
    cli.run(main)
