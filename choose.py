"""Which of the right paths of a question becomes its label.

A search meets some thirty right paths per question, most of them right by luck. Routers learn
what holds across questions, so the choice decides whether routing pays:

    shortest    the paper's: the shortest right path; where the default was wrong, the first met
    confident   the right path the model is surest along, less a price per layer
    consensus   the right path that also works for similar questions, less a price per layer
    safe        consensus where routing is expected to pay (train.expected), else the default path

Consensus needs a *menu*: a few paths, each asked of every question. It groups the questions by
what the routers see of them. What a group's searches tried says how much each single edit helps
there; the most helpful edits together make a few paths; the best of these at some depth join the
menu. Questions that no path of the menu answers get no label.
"""
import torch

from drllm import mean_state
from mcts import EXECUTE, REPEAT, SKIP, is_legal
from cli import progress_bar
from answers import batches, judge

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
    return max((p for p in PRICES_TRIED if answered[p] >= half), default=PRICES_TRIED[0])


def consensus(right, share, paths, price):
    """argmax over the paths that are right for a question of share - price * |path|.
    right (N, K) bool: path k answers question n. share (N, K): of its neighbours."""
    lengths = torch.tensor([float(sum(path)) for path in paths])
    worth = (share - price * lengths).masked_fill(~right, -torch.inf)
    best = worth.argmax(1).tolist()
    return [paths[k] if right[n, k] else None for n, k in enumerate(best)]


def consensus_of_neighbours(space, right, paths, price=None):
    """(labels, price): consensus among neighbours in space (N, S), or at half_gain_price."""
    share = neighbours(space, right)
    price = half_gain_price(right, share, paths) if price is None else price
    return consensus(right, share, paths, price), price


# ---- what works across similar questions ----

def similarity_space(pooled, counts):
    """A vector per question, (N, 3D): its mean state entering the first layer, and a third and two
    thirds of the way up the default path, standardised. pooled (N, L, W, D)."""
    L = pooled.shape[1]
    space = mean_state(pooled[:, [0, L // 3, 2 * L // 3]], counts[:, None]).flatten(1)
    return (space - space.mean(0)) / (space.std(0, correction=0) + 1e-3)


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
        counts = torch.tensor([path for path, _ in row["correct"]] + row["wrong"])
        right = (torch.arange(len(counts)) < len(row["correct"])).float()
        edited = torch.cat([counts == SKIP, counts == REPEAT], dim=1).float()  # (paths, 2L)
        edits_tried.append(edited - edited.mean(0))
        outcome.append(right - right.mean())
    X, y = torch.cat(edits_tried), torch.cat(outcome)
    skip, repeat = torch.linalg.solve(X.T @ X + ridge * torch.eye(X.shape[1]), X.T @ y).chunk(2)
    return torch.stack([skip, torch.zeros_like(skip), repeat], dim=1)


def strongest(effects, price, most=7):
    """Legal paths with the one, two, ... most worthwhile edits: effect - price * layers added."""
    gains = [(effects[layer, count].item() - price * (count - EXECUTE), layer, count)
             for layer in range(len(effects)) for count in (SKIP, REPEAT)]
    path, paths = (EXECUTE,) * len(effects), []
    for gain, layer, count in sorted(gains, reverse=True):
        edited = path[:layer] + (count,) + path[layer + 1:]
        if gain > 0 and path[layer] == EXECUTE and is_legal(edited):
            path = edited
            paths.append(path)
    return paths[:most]


def frontier(paths, right):
    """[(length, path)] that no mix of two others beats by the share of questions answered,
    shortest first. paths: K tuples; right: (N, K) rewards."""
    points = sorted(zip(map(sum, paths), right.float().mean(0).tolist(), paths))
    return [(length, path) for length, _, path in upper_hull(points)]


def upper_hull(points):
    """The points (length, score, ...) that no mix of two others beats, shortest first; of points
    with the same length and score the first."""
    slope = lambda a, b: (b[1] - a[1]) / (b[0] - a[0])
    hull = []
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if not hull or point[1] > hull[-1][1]:
            while len(hull) > 1 and slope(*hull[-2:]) <= slope(hull[-1], point):
                hull.pop()
            hull.append(point)
    return hull


# ---- the menu ----

def good_paths(model, tokenizer, prompts, rows, most=32, **how):
    """What the searches (rows) of a group of questions suggest, asked of its first `most`: the
    frontier between 0.7 and 1.4 times the depth of the model. how: see along_each."""
    L, effects = model.config.num_layers, edit_effects(rows)
    suggested = [path for price in SUGGESTED_PRICES for path in strongest(effects, price)]
    paths = list(dict.fromkeys([(EXECUTE,) * L, *suggested]))
    best = frontier(paths, along_each(model, tokenizer, prompts[:most], paths, **how))
    return [path for length, path in best if 0.7 * L <= length <= 1.4 * L]


def along_each(model, tokenizer, prompts, paths, batch_size=256, progress=None, ask=judge):
    """(N, K) probability the model gives its answer to question n along path k; 0 if it is wrong.
    Paths are asked in an order in which neighbours share their first layers. ask: like judge."""
    sure = torch.zeros(len(prompts), len(paths))
    for rows in batches(prompts, batch_size):
        some, known = [prompts[n] for n in rows], [{} for _ in rows]
        for k in sorted(range(len(paths)), key=paths.__getitem__):
            known = [{path: hidden for path, hidden in one.items()
                      if path == paths[k][:len(path)]} for one in known]
            every = torch.tensor(paths[k]).expand(len(some), -1)
            right, confidence = ask(model, tokenizer, some, every, batch_size, progress, known)
            sure[rows, k] = right * confidence.clamp(min=1e-9)
    return sure


def menu(model, tokenizer, prompts, rows, space, clusters, **how):
    """(paths, right (N, K)): the default path, good paths of all questions together and of every
    group of similar ones, each asked of all questions. space (N, S): see similarity_space."""
    everyone = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0)).tolist()
    member_of = cluster(space, clusters)
    groups = [[n for n in everyone if member_of[n] == g] for g in range(clusters)]
    groups = [everyone, *(group for group in groups if len(group) >= SMALLEST_GROUP)]
    paths = [(EXECUTE,) * model.config.num_layers]
    for group in progress_bar(groups, "paths for groups of questions", unit="group"):
        asked, searched = [prompts[n] for n in group], [rows[n] for n in group]
        paths += good_paths(model, tokenizer, asked, searched, **how)
    paths = list(dict.fromkeys(paths))
    with progress_bar(total=len(paths) * len(prompts), desc="the menu", unit="answer") as bar:
        return paths, along_each(model, tokenizer, prompts, paths, **how, progress=bar.update) > 0
