"""The routers of Dr.LLM: one small MLP per layer that decides skip, execute or repeat.

Paper §3.1: the prompt's hidden states that enter a layer are averaged in W windows; each window
passes through Linear - GELU - Linear; the logits are averaged over the windows; the decision with
the largest average is taken. The routers of all layers are stacked, so that training them is one
batched problem.
Paper §3.3: focal loss with effective-number class weights. The base model is never changed.

Ours: an out-of-distribution guard per layer; a bias on the logits that moves trained routers along
the trade-off of accuracy and layers; a router file with the *fingerprint* of its model, a hash of
the weights.

    generate(model, ids, Routers.load("runs/demo/routers.safetensors", model).route)
"""
import hashlib

import torch
import torch.nn.functional as F
from torch import nn

from paths import DECISIONS, EXECUTE, PASSES, REPEAT, SKIP
from storage import router_file
from storage.router_file import GUARD, NEAREST, SIZES

# N prompts   L layers, l of them   T tokens   D hidden size   W windows   R router width
# C decisions (skip, execute, repeat)   M reference points of the guard   G their dimensions

CLASSES = len(DECISIONS)    # C
ROUTERS_THEMSELVES = -0.5   # the value of p at which the routers' probabilities are unchanged


# ---- windowed pooling ----

def window_matrix(lengths, T, windows):
    """(N, min(W, T), T): row w averages the tokens of window w; unused windows are zero.

    A prompt of n tokens has w = min(W, n) windows of n // w tokens each; the remainder is dropped
    (paper §3.1). Ten tokens in four windows: [0,1] [2,3] [4,5] [6,7], and 8, 9 in none.
    """
    num_windows = lengths.clamp(max=windows)  # (N,)
    sizes = lengths // num_windows  # (N,) tokens per window
    window_of = torch.arange(T, device=lengths.device) // sizes[:, None]  # (N, T)
    window_of = window_of.masked_fill(window_of >= num_windows[:, None], -1)  # in no window
    numbers = torch.arange(min(windows, T), device=lengths.device)  # (W,)
    in_window = window_of[:, None] == numbers[:, None]  # (N, W, T)
    return in_window / sizes[:, None, None]


def pool_windows(hidden, lengths, windows):
    """Mean hidden state of every window, float32: (N, T, D) and lengths (N,) give
    (N, min(W, T), D). Rows with fewer windows than others end in zeros."""
    return window_matrix(lengths, hidden.shape[1], windows) @ hidden.float()


# ---- loss ----

def class_weights(counts, beta=0.999):
    """Weight of each class from its count n: (1 - beta) / (1 - beta ** n), scaled to a mean of 1.

    This is one over the effective number of samples (paper §3.3): the more labels a class has, the
    less a further one adds. Counts (10, 100, 1000) at beta 0.999 give about (2.68, 0.28, 0.04). A
    class never seen counts as seen once.
    """
    counts = torch.as_tensor(counts, dtype=torch.float64).clamp(min=1)
    weights = (1 - beta) / (1 - beta ** counts)
    return (weights / weights.mean()).float()


def focal_loss(logits, labels, weights=None, gamma=2.0):
    """Mean of -w_y (1 - p_y)^gamma ln p_y over all labels y: (..., C) and (...) give a scalar.

    gamma 0 is (weighted) cross-entropy; at gamma 2, a label of p = 0.9 counts 100 times less.
    """
    log_probabilities = logits.log_softmax(-1)  # (..., C)
    log_p = log_probabilities.gather(-1, labels[..., None])[..., 0]  # (...), of the labels
    miss = -torch.expm1(log_p)  # 1 - p, exact even if p is close to 1
    # the minimum keeps the gradient finite: at 0, a power below 1 has an infinite slope
    loss = -(miss.clamp(min=1e-12) ** gamma) * log_p
    if weights is not None:
        loss = loss * weights.to(loss)[labels]
    return loss.mean()


# ---- the paper's interpolation parameter p ----

def interpolate(probabilities, control):
    """Probabilities (..., C) at the paper's p in [-1, 1], linear between four stops: always skip
    (-1), the routers themselves (-0.5), always execute (0.5), always repeat (1)."""
    if not -1 <= control <= 1:
        raise ValueError(f"control must be in [-1, 1], got {control}")
    one_hot = torch.eye(CLASSES, device=probabilities.device, dtype=probabilities.dtype)
    skip, execute, repeat = one_hot[SKIP], one_hot[EXECUTE], one_hot[REPEAT]
    stops = [(-1.0, skip), (-0.5, probabilities), (0.5, execute), (1.0, repeat)]
    for (low, below), (high, above) in zip(stops, stops[1:]):
        if control <= high:
            share = (control - low) / (high - low)
            return (1 - share) * below + share * above.expand_as(probabilities)


# ---- the out-of-distribution guard ----
#
# Half of the training questions are stored as reference points. A prompt counts as out of
# distribution if its distance to the third-nearest reference point exceeds the 99th percentile of
# the other half. The layer is then executed.

def mean_state(pooled, num_windows):
    """Mean over the windows in use: pooled (..., W, D) and num_windows (...) give (..., D)."""
    return pooled.sum(-2) / num_windows[..., None]  # unused windows are zero


def nearest_distance(states, points):
    """Distance of states (..., N, G) to their third-nearest point of (..., M, G): (..., N)."""
    return torch.cdist(states, points).topk(NEAREST, largest=False).values[..., -1]


def fit_guard(pooled, num_windows, seed=0, points=512, dimensions=32, quantile=0.99):
    """(projection (D, G), points (L, M, G), limits (L,)) from the prompts that routers are trained
    on: pooled (N, L, W, D), num_windows (N,), N >= 8. points: store at most this many."""
    rng = torch.Generator().manual_seed(seed)
    N, L, W, D = pooled.shape
    # distances are measured in a few random directions: the stored points stay small
    directions = torch.randn(D, min(D, dimensions), generator=rng)
    projection, _ = torch.linalg.qr(directions)
    states = mean_state(pooled, num_windows[:, None]) @ projection  # (N, L, G)
    order = torch.randperm(N, generator=rng)
    number = min(points, N // 2)  # M
    reference = states[order[:number]].transpose(0, 1).contiguous()  # (L, M, G)
    others = states[order[number:]].transpose(0, 1)  # (L, N - M, G)
    limits = nearest_distance(others, reference).quantile(quantile, dim=1)
    return projection, reference, limits


# ---- the routers ----

class Routers(nn.Module):
    """The routers of L layers, stacked. `.route` is the Route that generate() takes."""

    def __init__(self, num_layers, hidden_size, width=128, windows=8):
        super().__init__()
        self.num_layers, self.hidden_size = num_layers, hidden_size
        self.width, self.windows = width, windows
        self.metadata = {}  # what their file says beside the sizes: model, labels, tasks
        self.w1 = nn.Parameter(torch.empty(num_layers, hidden_size, width))
        self.b1 = nn.Parameter(torch.zeros(num_layers, 1, width))
        self.w2 = nn.Parameter(torch.empty(num_layers, width, CLASSES))
        self.b2 = nn.Parameter(torch.zeros(num_layers, 1, CLASSES))
        for matrix in (*self.w1, *self.w2):  # layer by layer: Xavier's range is of one MLP
            nn.init.xavier_uniform_(matrix)
        for name in GUARD:
            self.register_buffer(name, None)

    def set_guard(self, projection, points, limits):
        """From now on, layers execute for prompts out of distribution. Arguments: see fit_guard."""
        device = self.w1.device
        self.guard_projection = projection.to(device)
        self.guard_points = points.to(device)
        self.guard_limits = limits.to(device)

    def is_ood(self, layer, pooled, num_windows):
        """(N,) bool: which prompts, given their pooled windows (N, W, D), are out of distribution
        for this layer. None of them without a guard."""
        if self.guard_points is None:
            return torch.zeros_like(num_windows, dtype=torch.bool)
        states = mean_state(pooled, num_windows) @ self.guard_projection  # (N, G)
        distance = nearest_distance(states, self.guard_points[layer])  # (N,)
        return ~(distance <= self.guard_limits[layer])  # true, too, if the distance is no number

    def forward(self, pooled, num_windows, layers=slice(None)):
        """Logits (N, l, C) of pooled windows (N, l, W, D), num_windows (N,) of which are in use."""
        N, l, W, D = pooled.shape
        windows = pooled.transpose(0, 1).reshape(l, N * W, D)
        inner = torch.baddbmm(self.b1[layers], windows, self.w1[layers])  # (l, N * W, R)
        logits = torch.baddbmm(self.b2[layers], F.gelu(inner), self.w2[layers])  # (l, N * W, C)
        logits = logits.view(l, N, W, CLASSES)
        # a window that is not in use is zero, but its logits are not: the biases remain
        in_use = torch.arange(W, device=num_windows.device) < num_windows[:, None]  # (N, W)
        total = (logits * in_use[..., None]).sum(2)  # (l, N, C)
        return (total / num_windows[:, None]).transpose(0, 1)

    @property
    def route(self):
        return RouterRoute(self)

    def key(self):
        """What tells these routers from all others, as plain values: answers are cached under it.
        None for a subclass, which may compute otherwise."""
        if type(self) is not Routers:
            return None
        weights = hashlib.sha256()
        for name, tensor in self.state_dict().items():  # the guard's too, if there is one
            description = f"{name} {tuple(tensor.shape)} {tensor.dtype}"
            weights.update(description.encode())
            weights.update(tensor.float().cpu().numpy().tobytes())
        return [self.windows, self.width, weights.hexdigest()]

    def save(self, file):
        """Writes the routers as safetensors, with their sizes in the metadata."""
        sizes = {name: getattr(self, name) for name in SIZES}
        router_file.write(file, self.state_dict(), self.metadata | sizes)

    @classmethod
    def load(cls, file, model):
        """The routers of a file, or of a folder that has one, on the model's device. InputError if
        they are another model's."""
        tensors, metadata = router_file.read(file, model.fingerprint(), model.config.num_layers,
                                             model.config.hidden_size)
        sizes = [metadata[name] for name in SIZES]
        routers = cls(*sizes)
        routers.metadata = metadata
        for name, tensor in tensors.items():
            setattr(routers, name, tensor if name in GUARD else nn.Parameter(tensor))
        return routers.to(model.embed_tokens.weight.device).requires_grad_(False)


class RouterRoute:
    """Routers as a Route. Their decisions are formed in this order:

    1. logits, plus depth_bias times the number of passes (0, 1, 2) of each decision;
    2. guard: a layer for which the prompt is out of distribution executes; guard=False trusts the
       routers on any prompt, as the paper does;
    3. control, the paper's p: at -0.5 nothing changes, -1 skips and 1 repeats every layer, also
       for prompts out of distribution.
    """

    def __init__(self, routers, depth_bias=0.0, control=ROUTERS_THEMSELVES, guard=True):
        self.routers, self.guard = routers, guard
        self.depth_bias, self.control = depth_bias, control
        self.num_layers = routers.num_layers

    def pool(self, hidden, lengths):
        """(pooled windows (B, W, D), number of them in use (B,)) of hidden states (B, T, D)."""
        windows = self.routers.windows
        return pool_windows(hidden, lengths, windows), lengths.clamp(max=windows)

    def logits(self, layer, pooled, num_windows):
        """(B, C) of one layer's router, with the depth bias."""
        one_layer = slice(layer, layer + 1)
        logits = self.routers(pooled[:, None], num_windows, one_layer)[:, 0]  # (B, C)
        return logits + self.depth_bias * PASSES.to(logits.device)

    def scores(self, layer, hidden, lengths):
        """(B, C): the decision with the largest score is taken. hidden (B, T, D) enters the layer;
        lengths (B,)."""
        pooled, num_windows = self.pool(hidden, lengths)
        scores = self.logits(layer, pooled, num_windows)  # (B, C)
        if self.guard:  # out of distribution, the router's own decision is to execute
            ood = self.routers.is_ood(layer, pooled, num_windows)  # (B,)
            scores[ood] = -torch.inf
            scores[ood, EXECUTE] = 0.0
        if self.control != ROUTERS_THEMSELVES:
            scores = interpolate(scores.softmax(-1), self.control)
        return scores

    def __call__(self, layer, hidden, lengths):
        """(B,) decisions from the hidden states (B, T, D) that enter a layer, lengths (B,)."""
        return self.scores(layer, hidden, lengths).argmax(-1)

    def key(self):
        """What tells this route from all others, as plain values; None for a subclass, which may
        see or decide otherwise."""
        routers = self.routers.key()
        if type(self) is not RouterRoute or routers is None:
            return None
        return ["routers", routers, self.depth_bias, self.control, self.guard]
