"""The routers of Dr.LLM: one small MLP per layer that says skip, execute or repeat.

Paper §3.1: the prompt's hidden states entering a layer are averaged in W windows; each window
passes Linear - GELU - Linear; the windows' logits are averaged; the largest of three wins. The
routers of all layers are stacked, so training them is one batched problem. Paper §3.3: focal
loss with effective-number class weights. The base model is never touched.

Ours: a *gate* per layer executes the layer for prompts unlike any the routers were trained on;
`tilt`, a constant added to the logits, moves finished routers along the accuracy-layers frontier;
routers are a file of their own that names the model they belong to.

    generate(model, ids, Routers.load("runs/demo/routers.safetensors", model).route)
"""
import json

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from cli import InputError, open_tensors, write_whole

# N prompts   L layers   T tokens   D hidden size   W windows   R router width   3 decisions
# M gate points   G gate dimensions

SETTINGS = ("num_layers", "hidden_size", "width", "windows")
GATE = ("gate_projection", "gate_points", "gate_limits")
NEAREST = 3  # the gate measures the distance to the third nearest point


# ---- windowed pooling ----

def window_counts(lengths, windows):
    """How many windows each prompt fills, (N,): a short prompt has one per token."""
    return lengths.clamp(max=windows)


def window_matrix(lengths, T, windows):
    """(N, min(W, T), T): row w averages the tokens of window w; unused windows are zero.

    A prompt of n tokens has w = min(W, n) windows of n // w tokens; the remainder is dropped
    (paper §3.1). Ten tokens in four windows: [0,1] [2,3] [4,5] [6,7], and 8, 9 unseen.
    """
    counts = window_counts(lengths, windows)
    sizes = lengths // counts
    window_of = torch.arange(T, device=lengths.device) // sizes[:, None]  # (N, T)
    window_of = window_of.masked_fill(window_of >= counts[:, None], -1)
    numbers = torch.arange(min(windows, T), device=lengths.device)
    return (window_of[:, None] == numbers[:, None]) / sizes[:, None, None]


def pool_windows(hidden, lengths, windows):
    """Mean hidden state of every window: (N, T, D) and lengths (N,) give (N, min(W, T), D).

    float32. Rows with fewer windows than the widest end in zeros.
    """
    return window_matrix(lengths, hidden.shape[1], windows) @ hidden.float()


# ---- loss ----

def class_weights(counts, beta=0.999):
    """Weight per class from its count: (1 - beta) / (1 - beta ** n), scaled to a mean of 1.

    The effective number of samples (paper §3.3). Counts (10, 100, 1000), beta 0.999 give about
    (2.68, 0.28, 0.04). A class never seen counts as seen once.
    """
    counts = torch.as_tensor(counts, dtype=torch.float64).clamp(min=1)
    weights = (1 - beta) / (1 - beta ** counts)
    return (weights / weights.mean()).float()


def focal_loss(logits, labels, weights=None, gamma=2.0):
    """Mean of -w_y (1 - p_y)^gamma ln p_y over all labels: (..., 3) and (...) give a scalar.

    gamma 0 is (weighted) cross-entropy; a p of 0.9 then counts 100 times less at gamma 2.
    """
    log_p = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    miss = -torch.expm1(log_p)  # 1 - p, exact where p is close to 1
    loss = -(miss.clamp(min=1e-12) ** gamma) * log_p  # a power below 1 has no slope at 0
    return (loss if weights is None else loss * weights.to(loss)[labels]).mean()


# ---- control knob ----

def interpolate(probabilities, control):
    """The paper's knob p in [-1, 1] on (..., 3) probabilities: from always skip (-1) over the
    routers themselves (-0.5) and always execute (0.5) to always repeat (1), linear in between."""
    if not -1 <= control <= 1:
        raise ValueError(f"control must lie in [-1, 1], got {control}")
    skip, execute, repeat = torch.eye(3, device=probabilities.device, dtype=probabilities.dtype)
    stops = [(-1.0, skip), (-0.5, probabilities), (0.5, execute), (1.0, repeat)]
    for (low, below), (high, above) in zip(stops, stops[1:]):
        if control <= high:
            share = (control - low) / (high - low)
            return (1 - share) * below + share * above.expand_as(probabilities)


# ---- the gate ----

def mean_state(pooled, counts):
    """Mean over the windows in use: pooled (..., W, D) and counts (...), or what broadcasts to it,
    give (..., D)."""
    return pooled.sum(-2) / counts[..., None]


def nearest_distance(states, points):
    """Distance of states (..., N, G) to their third nearest of points (..., M, G): (..., N)."""
    return torch.cdist(states, points).topk(NEAREST, largest=False).values[..., -1]


def fit_gate(pooled, counts, seed=0, points=512, dimensions=32, quantile=0.99):
    """(projection (D, G), points (L, M, G), limits (L,)) of the prompts routers are trained on.

    Half of the prompts, at most `points`, are kept as points; the limit of a layer is the distance
    to them that 99% of the other half stay within. pooled (N, L, W, D), counts (N,), N >= 8.
    """
    rng = torch.Generator().manual_seed(seed)
    N, L, W, D = pooled.shape
    projection = torch.linalg.qr(torch.randn(D, min(D, dimensions), generator=rng))[0]
    states = mean_state(pooled, counts[:, None]) @ projection  # (N, L, G)
    order = torch.randperm(N, generator=rng)
    kept = min(points, N // 2)
    points, others = states[order[:kept]].transpose(0, 1), states[order[kept:]].transpose(0, 1)
    limits = nearest_distance(others, points).quantile(quantile, dim=1)
    return projection, points.contiguous(), limits


# ---- the routers ----

class Routers(nn.Module):
    """L routers, stacked. `.route` is the Route that generate() takes."""

    def __init__(self, num_layers, hidden_size, width=128, windows=8):
        super().__init__()
        self.num_layers, self.hidden_size = num_layers, hidden_size
        self.width, self.windows = width, windows
        self.notes = {}  # what the file says beside the weights: model, labels, tasks
        self.w1 = nn.Parameter(torch.empty(num_layers, hidden_size, width))
        self.b1 = nn.Parameter(torch.zeros(num_layers, 1, width))
        self.w2 = nn.Parameter(torch.empty(num_layers, width, 3))
        self.b2 = nn.Parameter(torch.zeros(num_layers, 1, 3))
        for matrix in (*self.w1, *self.w2):
            nn.init.xavier_uniform_(matrix)
        for name in GATE:
            self.register_buffer(name, None)

    def set_gate(self, projection, points, limits):
        """Layers execute for prompts farther than the limits from the points (see fit_gate)."""
        gate = [tensor.to(self.w1.device) for tensor in (projection, points, limits)]
        self.gate_projection, self.gate_points, self.gate_limits = gate

    def is_strange(self, layer, pooled, counts):
        """(N,) bool: pooled windows (N, W, D) unlike all that this layer's router learned from."""
        if self.gate_points is None:
            return torch.zeros_like(counts, dtype=torch.bool)
        states = mean_state(pooled, counts) @ self.gate_projection  # (N, G)
        return nearest_distance(states, self.gate_points[layer]) > self.gate_limits[layer]

    def forward(self, pooled, counts, layers=slice(None)):
        """Logits (N, l, 3) of pooled windows (N, l, W, D), counts (N,) of them in use."""
        N, l, W, D = pooled.shape
        windows = pooled.transpose(0, 1).reshape(l, N * W, D)
        inner = F.gelu(torch.baddbmm(self.b1[layers], windows, self.w1[layers]))
        logits = torch.baddbmm(self.b2[layers], inner, self.w2[layers]).view(l, N, W, 3)
        in_use = torch.arange(W, device=counts.device) < counts[:, None]  # (N, W)
        return ((logits * in_use[..., None]).sum(2) / counts[:, None]).transpose(0, 1)

    @property
    def route(self):
        return RouterRoute(self)

    def save(self, file):
        """Writes the routers as safetensors; sizes and notes stand in the metadata."""
        notes = self.notes | {name: getattr(self, name) for name in SETTINGS}
        metadata = {"drllm": json.dumps(notes)}
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        write_whole(file, lambda part: part.write_bytes(
            safetensors.torch.save(tensors, metadata)))

    @classmethod
    def load(cls, file, model):
        """The routers of a file, on the model's device. InputError if they are another model's."""
        with open_tensors(file) as stored:
            text = (stored.metadata() or {}).get("drllm", "{}")
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}
        try:
            notes = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file}: not a router file: {error}") from error
        sizes = [notes.get(name) for name in SETTINGS] if isinstance(notes, dict) else [None]
        if not all(type(size) is int and 0 < size < 2 ** 20 for size in sizes):
            raise InputError(f"{file}: not a router file (sizes {sizes} in its metadata)")
        for name, tensor in tensors.items():
            if tensor.dtype != torch.float32 or not tensor.isfinite().all():
                raise InputError(f"{file}: {name} ({tensor.dtype}) is not all finite float32")
        if notes.get("model") != model.fingerprint():
            raise InputError(f"{file}: these routers belong to model {notes.get('model')}; the "
                             f"model given is {model.fingerprint()}")
        with torch.device("meta"):
            routers = cls(*(notes[name] for name in SETTINGS))
        expected = {name: tuple(p.shape) for name, p in routers.state_dict().items()}
        if GATE[1] in tensors and tensors[GATE[1]].dim() == 3:
            M, G = tensors[GATE[1]].shape[1:]
            if M < NEAREST:
                raise InputError(f"{file}: a gate of {M} points; at least {NEAREST} are needed")
            L, D = routers.num_layers, routers.hidden_size
            expected |= dict(zip(GATE, ((D, G), (L, M, G), (L,))))
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != expected:
            raise InputError(f"{file}: tensors {found} do not fit the sizes in its metadata, "
                             f"{expected}")
        gate = [tensors.pop(name) for name in GATE if name in tensors]
        routers.load_state_dict(tensors, assign=True)
        if gate:
            routers.set_gate(*gate)
        routers.notes = notes
        return routers.to(model.embed_tokens.weight.device).requires_grad_(False)


class RouterRoute:
    """Routers as a Route: tilt adds tilt * (0, 1, 2) to the logits, control is the paper's knob,
    gate=False trusts the routers on any prompt, as the paper does."""

    def __init__(self, routers, tilt=0.0, control=-0.5, gate=True):
        self.routers, self.tilt, self.control, self.gate = routers, tilt, control, gate
        self.num_layers = routers.num_layers

    def logits(self, layer, hidden, lengths):
        """(B, 3) of the hidden states (B, T, D) entering a layer, lengths (B,)."""
        return self._logits(layer, *self._pool(hidden, lengths))

    def _pool(self, hidden, lengths):
        pooled = pool_windows(hidden, lengths, self.routers.windows)
        return pooled, window_counts(lengths, self.routers.windows)

    def _logits(self, layer, pooled, counts):
        logits = self.routers(pooled[:, None], counts, slice(layer, layer + 1))[:, 0]
        return logits + self.tilt * torch.arange(3, device=logits.device)

    def __call__(self, layer, hidden, lengths):
        pooled, counts = self._pool(hidden, lengths)
        logits = self._logits(layer, pooled, counts)
        if self.control != -0.5:
            logits = interpolate(logits.softmax(-1), self.control)
        decisions = logits.argmax(-1)
        if self.gate:
            decisions = decisions.masked_fill(self.routers.is_strange(layer, pooled, counts), 1)
        return decisions
