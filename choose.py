"""Which of the right paths of a question becomes its label.

A search meets some thirty right paths per question, most of them right by luck. Routers learn
what holds across questions, so the choice decides whether routing pays:

    shortest    the paper's: the shortest right path; where the default was wrong, the first met
    confident   the right path the model is surest along, less a price per layer
    consensus   the right path that also works for similar questions, less a price per layer

Consensus groups the questions by what the routers see of them, climbs to a good path for each
group (edit by edit, the share of the group answered right as its reward), asks every question
along every group's path, and prefers the path that was right for a question's neighbours.
Questions that no path answers get no label; a default path that stays best is a label like any.
"""
import torch

from answers import answer
from mcts import EXECUTE, edits, is_legal

PRICES = {"shortest": 0.0, "confident": 0.001, "consensus": 0.003}  # reward per layer, by default


def shortest(rows):
    """The paper's label of each row, None where no path was right."""
    return [tuple(row["decisions"]) if row["correct"] else None for row in rows]


def confident(rows, price=PRICES["confident"]):
    """argmax over the right paths of P(answer) - price * |path|."""
    return [max(row["correct"], key=lambda met: met[1] - price * sum(met[0]), default=(None,))[0]
            for row in rows]


def consensus(right, share, paths, price=PRICES["consensus"]):
    """argmax over the paths that are right for a question of share - price * |path|.

    right (N, K) bool: path k answers question n. share (N, K): of its neighbours.
    """
    lengths = torch.tensor([float(sum(path)) for path in paths])
    worth = (share - price * lengths).masked_fill(~right, -torch.inf)
    best = worth.argmax(1)
    return [paths[k] if answered else None
            for k, answered in zip(best.tolist(), right.any(1).tolist())]


# ---- what works across similar questions ----

def similarity_space(pooled, counts):
    """A vector per question, (N, 3D): its mean state entering the first layer, and a third and two
    thirds of the way up the default path, standardised. pooled (N, L, W, D)."""
    L = pooled.shape[1]
    mean = pooled[:, [0, L // 3, 2 * L // 3]].sum(2) / counts[:, None, None]
    space = mean.flatten(1)
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


def climb(num_layers, price, rounds):
    """Generator of a greedy ascent: yields a list of paths, is sent their rewards in [0, 1].

    From the default path, the best of all single changes (edits, or a layer back to execute) is
    taken while reward - price * |path| grows. Returns the paths it stood on.
    """
    here = (EXECUTE,) * num_layers
    (reward,) = yield [here]
    worth, visited = reward - price * num_layers, [here]
    for _ in range(rounds):
        undo = [here[:i] + (EXECUTE,) + here[i + 1:] for i, n in enumerate(here) if n != EXECUTE]
        steps = edits(here) + [path for path in undo if is_legal(path)]
        rewards = yield steps
        best, path = max((r - price * sum(p), p) for r, p in zip(rewards, steps))
        if best <= worth:
            break
        worth, here = best, path
        visited.append(path)
    return visited


def good_paths(model, tokenizer, prompts, climbs, rounds=6, batch_size=512, progress=None):
    """Paths met on all climbs, in lockstep, the default first. climbs: [(prompt numbers, price)]."""
    L = model.config.num_layers
    asked = [(members, climb(L, price, rounds)) for members, price in climbs]
    asked = [(members, steps, next(steps)) for members, steps in asked]
    found = {(EXECUTE,) * L: None}
    while asked:
        pairs = [(n, path) for members, _, paths in asked for path in paths for n in members]
        right = answer(model, tokenizer, [prompts[n] for n, _ in pairs],
                       torch.tensor([path for _, path in pairs]), batch_size, progress).right
        still, start = [], 0
        for members, steps, paths in asked:
            end = start + len(paths) * len(members)
            rewards = right[start:end].view(len(paths), -1).mean(1).tolist()
            start = end
            try:
                still.append((members, steps, steps.send(rewards)))
            except StopIteration as stop:
                found.update(dict.fromkeys(stop.value))
        asked = still
    return list(found)


def along_each(model, tokenizer, prompts, paths, batch_size=512, progress=None):
    """(N, K) bool: whether path k answers question n."""
    columns = []
    for path in paths:
        every = torch.tensor(path).expand(len(prompts), -1)
        columns.append(answer(model, tokenizer, prompts, every, batch_size, progress).right > 0)
    return torch.stack(columns, dim=1)
