"""The routers of Dr.LLM: one small MLP per layer that says skip, execute or repeat.

Paper §3.1: the prompt's hidden states entering a layer are averaged in W windows; each window
passes Linear - GELU - Linear; the windows' logits are averaged; the largest of three wins. The
routers of all layers are stacked, so training them is one batched problem. Paper §3.3: focal
loss with effective-number class weights. The base model is never touched.

Ours: a *guard* per layer executes the layer for prompts unlike any the routers were trained on;
a `tilt` of the logits moves finished routers along the accuracy-layers frontier; routers are a
file of their own that names the model they belong to.

    generate(model, ids, Routers.load("runs/demo/routers.safetensors", model).route)
"""
import hashlib

import torch
import torch.nn.functional as F
from torch import nn

from storage import router_file
from storage.router_file import GUARD, NEAREST, SIZES

# N prompts   L layers   T tokens   D hidden size   W windows   R router width   3 decisions
# M guard points   G guard dimensions


# ---- windowed pooling ----

def window_matrix(lengths, T, windows):
    """(N, min(W, T), T): row w averages the tokens of window w; unused windows are zero.

    A prompt of n tokens has w = min(W, n) windows of n // w tokens; the remainder is dropped
    (paper §3.1). Ten tokens in four windows: [0,1] [2,3] [4,5] [6,7], and 8, 9 unseen.
    """
    counts = lengths.clamp(max=windows)
    sizes = lengths // counts
    window_of = torch.arange(T, device=lengths.device) // sizes[:, None]  # (N, T)
    window_of = window_of.masked_fill(window_of >= counts[:, None], -1)
    numbers = torch.arange(min(windows, T), device=lengths.device)
    return (window_of[:, None] == numbers[:, None]) / sizes[:, None, None]


def pool_windows(hidden, lengths, windows):
    """Mean hidden state of every window, float32: (N, T, D) and lengths (N,) give
    (N, min(W, T), D). Rows with fewer windows than the widest end in zeros."""
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


# ---- the guard ----

def mean_state(pooled, counts):
    """Mean over the windows in use: pooled (..., W, D) and counts (...) give (..., D)."""
    return pooled.sum(-2) / counts[..., None]


def nearest_distance(states, points):
    """Distance of states (..., N, G) to their third nearest of points (..., M, G): (..., N)."""
    return torch.cdist(states, points).topk(NEAREST, largest=False).values[..., -1]


def fit_guard(pooled, counts, seed=0, points=512, dimensions=32, quantile=0.99):
    """(projection (D, G), points (L, M, G), limits (L,)) of the prompts routers are trained on:
    pooled (N, L, W, D), counts (N,), N >= 8. Half of the prompts, at most `points`, are kept as
    points; the limit of a layer is the distance to them that 99% of the other half stay within.
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
        for name in GUARD:
            self.register_buffer(name, None)

    def set_guard(self, projection, points, limits):
        """Layers execute for prompts farther than the limits from the points (see fit_guard)."""
        guard = [tensor.to(self.w1.device) for tensor in (projection, points, limits)]
        self.guard_projection, self.guard_points, self.guard_limits = guard

    def is_strange(self, layer, pooled, counts):
        """(N,) bool: pooled windows (N, W, D) unlike all that this layer's router learned from."""
        if self.guard_points is None:
            return torch.zeros_like(counts, dtype=torch.bool)
        states = mean_state(pooled, counts) @ self.guard_projection  # (N, G)
        return nearest_distance(states, self.guard_points[layer]) > self.guard_limits[layer]

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

    def key(self):
        """What tells these routers from all others, as plain values; None for a subclass, which may
        compute otherwise."""
        if type(self) is not Routers:
            return None
        weights = hashlib.sha256()
        for name, tensor in self.state_dict().items():  # the guard's too, if there is one
            weights.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            weights.update(tensor.float().cpu().numpy().tobytes())
        return [self.windows, self.width, weights.hexdigest()]

    def save(self, file):
        """Writes the routers as safetensors; sizes and notes stand in the metadata."""
        sizes = {name: getattr(self, name) for name in SIZES}
        router_file.write(file, self.state_dict(), self.notes | sizes)

    @classmethod
    def load(cls, file, model):
        """The routers of a file, or of a folder that has one, on the model's device. InputError if
        they are another model's."""
        tensors, notes = router_file.read(file, model.fingerprint(), model.config.num_layers,
                                          model.config.hidden_size)
        routers = cls(*(notes[name] for name in SIZES))
        routers.notes = notes
        for name, tensor in tensors.items():
            setattr(routers, name, tensor if name in GUARD else nn.Parameter(tensor))
        return routers.to(model.embed_tokens.weight.device).requires_grad_(False)


class RouterRoute:
    """Routers as a Route. tilt * (0, 1, 2) is added to the logits of (skip, execute, repeat);
    control is the paper's knob; allowed says which of the three may be chosen; guard=False trusts
    the routers on any prompt, as the paper does."""

    def __init__(self, routers, tilt=0.0, control=-0.5, guard=True, allowed=(True, True, True)):
        self.routers, self.tilt, self.control, self.guard = routers, tilt, control, guard
        self.forbidden = ~torch.tensor(allowed, device=routers.w1.device)
        self.num_layers = routers.num_layers

    def pool(self, hidden, lengths):
        """(pooled windows (B, W, D), counts of them in use (B,)) of hidden states (B, T, D)."""
        windows = self.routers.windows
        return pool_windows(hidden, lengths, windows), lengths.clamp(max=windows)

    def logits(self, layer, pooled, counts):
        """(B, 3) of skip, execute and repeat."""
        logits = self.routers(pooled[:, None], counts, slice(layer, layer + 1))[:, 0]
        return logits + self.tilt * torch.arange(3, device=logits.device)

    def __call__(self, layer, hidden, lengths):
        """(B,) decisions from the hidden states (B, T, D) entering a layer, lengths (B,)."""
        pooled, counts = self.pool(hidden, lengths)
        logits = self.logits(layer, pooled, counts)
        if self.control != -0.5:
            logits = interpolate(logits.softmax(-1), self.control)
        decisions = logits.masked_fill(self.forbidden, -torch.inf).argmax(-1)
        if self.guard:
            decisions = decisions.masked_fill(self.routers.is_strange(layer, pooled, counts), 1)
        return decisions

    def key(self):
        """What tells this route from all others, as plain values; None for a subclass, which may
        see or decide otherwise."""
        routers = self.routers.key()
        if type(self) is not RouterRoute or routers is None:
            return None
        return ["routers", routers, self.tilt, self.control, self.guard, self.forbidden.tolist()]


if __name__ == "__main__":
    print(__doc__, "\nThis file is a library: train.py trains routers, evaluate.py measures them.")
