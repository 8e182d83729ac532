"""Which of the right paths of a question becomes its label.

A search meets some thirty right paths per question, most of them right by luck. Routers learn
what holds across questions, so the choice decides whether routing pays:

    shortest    the paper's: the shortest right path; where the default was wrong, the first met
    confident   the right path the model is surest along, less a price per layer
    consensus   the right path that also works for similar questions, less a price per layer
    safe        consensus where routing is expected to pay (train.expected), else the default path

Consensus needs a *menu*: a few paths, each asked of every question. It groups the questions by
what the routers see of them. What a group's searches tried says how much each single edit helps
there; the most helpful edits together make a few paths; those that are best at some depth on some
of the group's questions join the menu. A question's label is the path of the menu that is right
for it and for most of its neighbours. Questions that no path of the menu answers get no label.
"""
import torch

from drllm import mean_state
from mcts import EXECUTE, REPEAT, SKIP, is_legal
from tasks import batches, judge

CHOICES = ("safe", "consensus", "confident", "shortest")
PRICES_TRIED = [step / 200 for step in range(1, 21)]  # 0.005 to 0.1 of reward per layer
SMALLEST_GROUP = 8  # questions
SUGGESTED_PRICES = (0.0, 0.01, 0.02, 0.04, 0.06, 0.09, 0.13)  # of a layer, for a group's paths


def shortest(rows):
    """The paper's label of each row, None where no path was right."""
    return [row["decisions"] if row["correct"] else None for row in rows]


def confident(rows, price=0.001):
    """argmax over the right paths of P(answer) - price * |path|."""
    return [max(row["correct"], key=lambda met: met[1] - price * sum(met[0]), default=(None,))[0]
            for row in rows]


def half_gain_price(right, share, paths):
    """The largest price of a layer at which choosing paths by the neighbours alone, a question's
    own answers unseen, still keeps half of what it can gain over the default path, paths[0].
    It is measured on the label questions: no test question has a say in it."""
    lengths = torch.tensor([float(sum(path)) for path in paths])
    answered = {price: right.gather(1, (share - price * lengths).argmax(1)[:, None]).float().mean()
                for price in PRICES_TRIED}
    half = (right[:, 0].float().mean() + max(answered.values())) / 2
    kept = [price for price in PRICES_TRIED if answered[price] >= half]
    return max(kept, default=PRICES_TRIED[0])


def consensus(right, share, paths, price):
    """argmax over the paths that are right for a question of share - price * |path|.
    right (N, K) bool: path k answers question n. share (N, K): of its neighbours."""
    lengths = torch.tensor([float(sum(path)) for path in paths])
    worth = (share - price * lengths).masked_fill(~right, -torch.inf)
    best = worth.argmax(1)
    return [paths[k] if answered else None
            for k, answered in zip(best.tolist(), right.any(1).tolist())]


def consensus_of_neighbours(space, right, paths, price=None):
    """(labels, price): consensus among neighbours in space (N, S), at the half-gain price if none
    is given."""
    share = neighbours(space, right)
    price = half_gain_price(right, share, paths) if price is None else price
    return consensus(right, share, paths, price), price


# ---- what works across similar questions ----

def similarity_space(pooled, counts):
    """A vector per question, (N, 3D): its mean state entering the first layer, and a third and two
    thirds of the way up the default path, standardised. pooled (N, L, W, D)."""
    L = pooled.shape[1]
    space = mean_state(pooled[:, [0, L // 3, 2 * L // 3]], counts[:, None]).flatten(1)
    return (space - space.mean(0)) / (space.std(0) + 1e-3)


def cluster(space, number, seed=0, rounds=20):
    """k-means: the group 0..number-1 of every row, (N,)."""
    rng = torch.Generator().manual_seed(seed)
    centres = space[torch.randperm(len(space), generator=rng)[:number]].clone()
    for _ in range(rounds):
        group = torch.cdist(space, centres).argmin(1)
        for g in range(len(centres)):
            if (group == g).any():
                centres[g] = space[group == g].mean(0)
    return group


def neighbours(space, right, number=32):
    """(N, K) share of each question's nearest other questions that path k answers."""
    distance = torch.cdist(space, space).fill_diagonal_(torch.inf)
    near = distance.topk(min(number, len(space) - 1), largest=False).indices  # (N, number)
    return torch.stack([right[rows].float().mean(0) for rows in near])


def edit_effects(rows, ridge=20.0):
    """(L, 3): how much skipping, executing (0) or repeating a layer changes the chance of a right
    answer, from all that the searches of these rows tried: least squares on the single edits of
    every path, each question's own mean taken out (its difficulty says nothing about edits); the
    ridge is worth 20 tries of no effect."""
    edits_tried, outcome = [], []
    for row in rows:
        paths = [path for path, _ in row["correct"]] + row["wrong"]
        right = torch.tensor([1.0] * len(row["correct"]) + [0.0] * len(row["wrong"]))
        counts = torch.tensor(paths)
        edited = torch.cat([counts == SKIP, counts == REPEAT], dim=1).float()  # (paths, 2L)
        edits_tried.append(edited - edited.mean(0))
        outcome.append(right - right.mean())
    X, y = torch.cat(edits_tried), torch.cat(outcome)
    L = X.shape[1] // 2
    effect = torch.linalg.solve(X.T @ X + ridge * torch.eye(2 * L), X.T @ y)
    return torch.stack([effect[:L], torch.zeros(L), effect[L:]], dim=1)


def strongest(effects, price, most=7):
    """Legal paths with the one, two, ... most worthwhile edits: effect - price * layers added."""
    L = len(effects)
    gains = [(effects[layer, count].item() - price * (count - EXECUTE), layer, count)
             for layer in range(L) for count in (SKIP, REPEAT)]
    path, paths = (EXECUTE,) * L, []
    for gain, layer, count in sorted(gains, reverse=True):
        edited = path[:layer] + (count,) + path[layer + 1:]
        if gain > 0 and len(paths) < most and path[layer] == EXECUTE and is_legal(edited):
            path = edited
            paths.append(path)
    return paths


def frontier(paths, right):
    """[(length, path)] that no mix of two others beats by the share of questions answered: the
    upper hull of reward over length, shortest first. paths: K tuples; right: (N, K) rewards."""
    scores = right.float().mean(0).tolist()
    points = sorted((sum(path), score, path) for path, score in zip(paths, scores))
    return [(length, path) for length, _, path in upper_hull(points)]


def upper_hull(points):
    """The points (length, score, ...) that no mix of two others beats, shortest first; of points
    with the same length and score the first."""
    slope = lambda a, b: (b[1] - a[1]) / (b[0] - a[0])
    hull = []
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if hull and point[1] <= hull[-1][1]:
            continue
        hull.append(point)
        while len(hull) > 2 and slope(hull[-3], hull[-2]) <= slope(hull[-2], hull[-1]):
            del hull[-2]
    return hull


# ---- the menu ----

def good_paths(model, tokenizer, prompts, rows, groups, most=32, batch_size=256, progress=None):
    """What the searches of each group (a list of question numbers) suggest, asked of up to `most`
    of its questions: the frontier of every group between 0.7 and 1.4 times the depth of the
    model, the default path first."""
    L = model.config.num_layers
    found = {(EXECUTE,) * L: None}
    for group in groups:
        effects = edit_effects([rows[n] for n in group])
        suggested = [path for price in SUGGESTED_PRICES for path in strongest(effects, price)]
        paths = list(dict.fromkeys([(EXECUTE,) * L] + suggested))
        sure = along_each(model, tokenizer, [prompts[n] for n in group[:most]], paths, batch_size,
                          progress)
        best = frontier(paths, sure)
        found |= {path: None for length, path in best if 0.7 * L <= length <= 1.4 * L}
    return list(found)


def along_each(model, tokenizer, prompts, paths, batch_size=256, progress=None):
    """(N, K) probability the model gives its answer to question n along path k; 0 if it is wrong.
    Paths are asked in an order in which neighbours share their first layers."""
    sure = torch.zeros(len(prompts), len(paths))
    for rows in batches(prompts, batch_size):
        some, known = [prompts[n] for n in rows], [{} for _ in rows]
        for k in sorted(range(len(paths)), key=paths.__getitem__):
            known = [{path: hidden for path, hidden in one.items()
                      if path == paths[k][:len(path)]} for one in known]
            every = torch.tensor(paths[k]).expand(len(some), -1)
            right, confidence = judge(model, tokenizer, some, every, batch_size, progress, known)
            sure[rows, k] = right * confidence.clamp(min=1e-9)
    return sure


def menu(model, tokenizer, prompts, rows, space, clusters, batch_size, progress=None):
    """(paths, right (N, K)): good paths of all questions together and of every group of similar
    ones, each asked of all questions. space (N, S): see similarity_space."""
    everyone = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0)).tolist()
    member_of = cluster(space, clusters)
    groups = [[n for n in everyone if member_of[n] == g] for g in range(clusters)]
    groups = [everyone, *(group for group in groups if len(group) >= SMALLEST_GROUP)]
    how = {"batch_size": batch_size, "progress": progress}
    paths = good_paths(model, tokenizer, prompts, rows, groups, **how)
    return paths, along_each(model, tokenizer, prompts, paths, **how) > 0
