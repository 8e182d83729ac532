"""Which of a question's correct paths becomes its label.

A search of the demo finds about thirty correct paths per question. Some are correct by luck, most
of all the shortest. Routers learn what holds for many questions, so the choice of the label decides
whether routing pays off:

    shortest    the paper's: the shortest correct path; if the default path is incorrect, the first
                correct path that the search met
    confident   the correct path with the most probable answer, minus a cost per layer
    consensus   the correct path that also works for similar questions, minus a cost per layer
    safe        consensus if routing is expected to pay off (train.routing_pays), else the default
                path

Consensus needs to know what the same few paths, the *candidate paths*, do for every question:

    1. group similar questions                         similarity_space, cluster
    2. estimate the effect of every single edit        edit_effects
    3. combine good edits into candidate paths         combine_edits, propose_paths, candidate_paths
    4. choose a correct one with the neighbours' help  neighbours, consensus

A question that no candidate path answers gets no label. `CHOICES` lists the choices. The records
of the searches are those of label.search_record.
"""
from collections.abc import Callable
from dataclasses import dataclass

import torch

from answers import batches, grade_paths
from cli import progress_bar
from drllm import mean_state
from paths import DECISIONS, EDITS, EXECUTE, blocks, default_path, is_legal, with_decision
from storage.processes import shared_map

# N questions   L layers   K candidate paths   S numbers that describe a question

SMALLEST_GROUP = 8  # questions; fewer say too little, and the routers' guard needs as many
CONFIDENT_COST = 0.001  # per layer: of two paths that are equally sure, the shorter is the label
COSTS_TRIED = [step / 200 for step in range(1, 21)]  # 0.005 to 0.1 of reward per layer
GROUP_COSTS = (0.0, 0.01, 0.02, 0.04, 0.06, 0.09, 0.13)  # from deep candidate paths to short ones
MOST_EDITS = 7  # in a candidate path
SCREENED_ON = 32  # questions of a group that its proposals are tried on
DEPTHS = (0.7, 1.4)  # of the model's: the shallowest and the deepest candidate path
DISTANCES_AT_ONCE = 2 ** 26  # 256 MB of float32


# ---- one question alone ----

def shortest(records):
    """The paper's label of each search record, None if no path was correct."""
    return [record["decisions"] if record["correct"] else None for record in records]


def confident(records, cost_per_layer=CONFIDENT_COST):
    """argmax over the correct paths of P(answer) - cost_per_layer * |path|, None if there are none.
    """
    def worth(path_and_probability):
        path, probability = path_and_probability
        return probability - cost_per_layer * blocks(path)

    labels = []
    for record in records:
        best = max(record["correct"], key=worth, default=None)  # of equals the first met
        labels.append(None if best is None else best[0])
    return labels


# ---- step 1: similar questions ----

def similarity_space(pooled, num_windows):
    """A vector per question, (N, 3D): its mean hidden state at three depths of the default path,
    standardised. pooled (N, L, W, D): see train.features."""
    return standardised(states_at_depths(pooled, num_windows))


def states_at_depths(pooled, num_windows):
    """(N, 3D): each question's mean hidden states at three depths."""
    L = pooled.shape[1]
    depths = [0, L // 3, 2 * L // 3]
    return mean_state(pooled[:, depths], num_windows[:, None]).flatten(1)


def standardised(states):
    """States (N, S), each column minus its mean and divided by its spread."""
    spread = states.std(0, correction=0) + 1e-3  # some numbers may be the same for all questions
    return (states - states.mean(0)) / spread


def cluster(space, number, seed=0, rounds=20):
    """k-means: the group 0..number-1 of every question, (N,)."""
    rng = torch.Generator().manual_seed(seed)
    first = torch.randperm(len(space), generator=rng)[:number]
    centres = space[first].clone()
    for _ in range(rounds):
        group_of = torch.cdist(space, centres).argmin(1)
        for group in range(len(centres)):
            members = group_of == group
            if members.any():
                centres[group] = space[members].mean(0)
    return group_of


# ---- step 2: what single edits do ----

def edit_effects(records, ridge=20.0):
    """(L, 3): by how much a decision at a layer changes the chance of a correct answer; 0 for
    executing it. Least squares on all paths that the searches of these records tried. The ridge
    counts as 20 tries without effect, so that a rarely tried edit gets a small effect."""
    edits_tried, outcome = [], []
    for record in records:
        correct_paths = [path for path, _ in record["correct"]]
        tried = torch.tensor(correct_paths + record["wrong"])  # (paths, L)
        correct = (torch.arange(len(tried)) < len(correct_paths)).float()
        edited = torch.cat([tried == code for code in EDITS], dim=1).float()  # (paths, 2L)
        # without a question's own mean: that it is easy says nothing about its edits
        edits_tried.append(edited - edited.mean(0))
        outcome.append(correct - correct.mean())
    X = torch.cat(edits_tried)
    y = torch.cat(outcome)
    solved = torch.linalg.solve(X.T @ X + ridge * torch.eye(X.shape[1]), X.T @ y)  # (2L,)
    effects = torch.zeros(len(solved) // len(EDITS), len(DECISIONS))
    effects[:, EDITS] = solved.view(len(EDITS), -1).T
    return effects


# ---- step 3: candidate paths ----

def combine_edits(effects, cost_per_layer):
    """Legal paths with the one, two, ... best edits by effect (L, 3) - cost * blocks added."""
    L = len(effects)
    gains = []
    for layer in range(L):
        for code in EDITS:
            blocks_added = DECISIONS[code].passes - DECISIONS[EXECUTE].passes
            gains.append((effects[layer, code].item() - cost_per_layer * blocks_added, layer, code))
    path, paths = default_path(L), []
    for gain, layer, code in sorted(gains, reverse=True):
        edited = with_decision(path, layer, code)
        if gain > 0 and path[layer] == EXECUTE and is_legal(edited):
            path = edited
            paths.append(path)
    return paths[:MOST_EDITS]


def propose_paths(model, tokenizer, prompts, records, **how):
    """The paths that the searches of a group suggest and that do best at their depth.

    Edits are combined at several costs per layer, so that short and deep paths are proposed. Each
    is tried on the first prompts of the group. how: see confidence_if_correct.
    """
    L = model.config.num_layers
    effects = edit_effects(records)
    proposed = [default_path(L)]
    for cost in GROUP_COSTS:
        proposed += combine_edits(effects, cost)
    proposed = list(dict.fromkeys(proposed))
    confidence = confidence_if_correct(model, tokenizer, prompts[:SCREENED_ON], proposed, **how)
    shallowest, deepest = DEPTHS[0] * L, DEPTHS[1] * L
    best = frontier(proposed, confidence)
    return [path for length, path in best if shallowest <= length <= deepest]


def candidate_paths(model, tokenizer, prompts, records, space, clusters, **how):
    """(candidate paths, correct (N, K)): the default path, and what all questions together and
    every group of similar ones propose; each is tried on all questions. records: of their
    searches. space (N, S): see similarity_space. how: see confidence_if_correct."""
    N = len(prompts)
    everyone = torch.randperm(N, generator=torch.Generator().manual_seed(0)).tolist()
    group_of = cluster(space, clusters)
    groups = [everyone]
    for group in range(clusters):
        members = [n for n in everyone if group_of[n] == group]
        if len(members) >= SMALLEST_GROUP:
            groups.append(members)

    def propose(members):
        group_prompts = [prompts[n] for n in members]
        group_records = [records[n] for n in members]
        return propose_paths(model, tokenizer, group_prompts, group_records, **how)

    with progress_bar(total=len(groups), desc="paths for groups of questions", unit="group") as bar:
        proposed = shared_map(propose, groups, bar.update)
    paths = list(dict.fromkeys(sum(proposed, [default_path(model.config.num_layers)])))

    with progress_bar(total=len(paths) * N, desc="candidate paths", unit="answer") as bar:
        how["progress"] = bar.update
        confidence = confidence_if_correct(model, tokenizer, prompts, paths, each=shared_map, **how)
    return paths, confidence > 0


def confidence_if_correct(model, tokenizer, prompts, paths, batch_size=256, progress=None,
                          ask=grade_paths, each=map):
    """(N, K) probability of the model's answer to question n along path k; 0 if it is incorrect.
    ask: like grade_paths, e.g. with a cache. each: map, or shared_map to share the batches among
    processes."""
    # sorted, so that paths which share their first layers follow each other
    order = sorted(range(len(paths)), key=paths.__getitem__)

    def ask_batch(rows):
        values = torch.zeros(len(rows), len(paths))
        batch = [prompts[n] for n in rows]
        shared_states = [{} for _ in rows]  # per prompt, see answers.final_states
        for k in order:
            shared_states = [states_on_path(states, paths[k]) for states in shared_states]
            decisions = torch.tensor(paths[k]).expand(len(batch), -1)
            rewards, confidence = ask(model, tokenizer, batch, decisions, batch_size, progress,
                                      shared_states)
            # a correct answer stays above 0, however improbable it is
            values[:, k] = rewards * confidence.clamp(min=1e-9)
        return values

    groups = list(batches(prompts, batch_size))
    result = torch.zeros(len(prompts), len(paths))
    for rows, values in zip(groups, each(ask_batch, groups)):
        result[rows] = values
    return result


def states_on_path(states, path):
    """Those of {first decisions: hidden states} with which a path begins."""
    return {first: hidden for first, hidden in states.items() if first == path[:len(first)]}


# ---- step 4: the path that also works for similar questions ----

def consensus(correct, share, paths, cost_per_layer):
    """argmax over the paths that are correct for a question of share - cost * |path|.

    correct (N, K) bool: path k is correct for question n. share (N, K): for how many of its
    neighbours. Three questions, and paths of 3, 2 and 4 blocks, which cost 0.6, 0.4 and 0.8:

    >>> paths = [(1, 1, 1), (1, 0, 1), (1, 2, 1)]
    >>> correct = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    >>> share = torch.tensor([[0.5, 0.4, 1.0], [0.5, 0.1, 0.9], [1.0, 1.0, 1.0]])
    >>> consensus(correct, share, paths, cost_per_layer=0.2)
    [(1, 0, 1), (1, 2, 1), None]
    """
    lengths = block_counts(paths)
    worth = (share - cost_per_layer * lengths).masked_fill(~correct, -torch.inf)
    best = worth.argmax(1).tolist()
    return [paths[k] if correct[n, k] else None for n, k in enumerate(best)]


def consensus_of_neighbours(space, correct, paths, cost_per_layer=None):
    """(labels, cost per layer) by consensus among neighbours in space (N, S).
    cost_per_layer None: the cost that keeps half of the gain."""
    share = neighbours(space, correct)
    if cost_per_layer is None:
        cost_per_layer = cost_keeping_half_the_gain(correct, share, paths)
    return consensus(correct, share, paths, cost_per_layer), cost_per_layer


def cost_keeping_half_the_gain(correct, share, paths):
    """The largest cost per layer that keeps half of the accuracy gained over the default path.

    Each question takes the path that its neighbours favour at a cost; whether that path is correct
    for the question itself has no say in it, as for a new question. The gain is the best accuracy
    at any cost, minus that of the default path, paths[0]. Training questions decide alone.
    """
    lengths = block_counts(paths)
    accuracy_at = {}
    for cost in COSTS_TRIED:
        chosen = (share - cost * lengths).argmax(1)  # (N,)
        answered = correct.gather(1, chosen[:, None])
        accuracy_at[cost] = answered.float().mean()
    default_accuracy = correct[:, 0].float().mean()
    halfway = (default_accuracy + max(accuracy_at.values())) / 2
    costs = [cost for cost in COSTS_TRIED if accuracy_at[cost] >= halfway]
    return max(costs, default=COSTS_TRIED[0])


def neighbours(space, correct, number=32):
    """(N, K) share of each question's `number` nearest other questions that path k answers.

    The first question's nearest other is the second, which only the second path answers:

    >>> space = torch.tensor([[0.0], [0.1], [5.0]])
    >>> correct = torch.tensor([[True, False], [False, True], [True, True]])
    >>> neighbours(space, correct, number=1)
    tensor([[0., 1.],
            [1., 0.],
            [0., 1.]])
    """
    N = len(space)
    share = []
    # all N * N distances of 100,000 questions would need 40 GB
    for rows in torch.arange(N).split(max(1, DISTANCES_AT_ONCE // N)):
        distance = torch.cdist(space[rows], space)  # (rows, N)
        distance[torch.arange(len(rows)), rows] = torch.inf  # a question has no vote on itself
        nearest = distance.topk(min(number, N - 1), largest=False).indices  # (rows, number)
        share += [correct[others].float().mean(0) for others in nearest]
    return torch.stack(share)


# ---- paths compared by length ----

def block_counts(paths):
    """(K,) blocks that each path runs, as floats."""
    return torch.tensor([float(blocks(path)) for path in paths])


def frontier(paths, values):
    """[(length, path)] that no mix of two others beats by its mean value, shortest first. A mix is
    one path for a share of the questions and another for the rest. values (N, K): what path k is
    worth for question n, e.g. 1 if it is correct."""
    means = values.float().mean(0).tolist()
    points = sorted(zip(map(blocks, paths), means, paths))
    return [(length, path) for length, _, path in upper_hull(points)]


def upper_hull(points):
    """The points (length, value, ...) that no mix of two others beats, shortest first: the convex
    hull from above, as far as it rises. Of points with the same length and value, the first."""
    def slope(left, right):
        return (right[1] - left[1]) / (right[0] - left[0])

    hull = []
    for point in sorted(points, key=lambda point: (point[0], -point[1])):
        if hull and point[1] <= hull[-1][1]:  # longer, and not better
            continue
        while len(hull) > 1 and slope(hull[-2], hull[-1]) <= slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


# ---- the choices ----

@dataclass(frozen=True)
class Choice:
    """One way to choose labels, and what it needs.

    label: a function of train.Evidence, which holds the training questions and what is known of
    them, that returns a path or None per question. needs_search: it reads the searches' records;
    if it does not, no search is run. has_fixed_paths: it tries candidate paths on every question;
    the best of them are fixed paths that routing is compared with.
    """
    label: Callable
    needs_search: bool = True
    has_fixed_paths: bool = False


def label_as_the_paper(evidence):
    return shortest(evidence.records)


def label_by_confidence(evidence):
    cost_per_layer = CONFIDENT_COST if evidence.cost_per_layer is None else evidence.cost_per_layer
    return confident(evidence.records, cost_per_layer)


def label_by_consensus(evidence):
    paths, _ = evidence.candidates
    labels, cost_per_layer = evidence.consensus()
    print(f"{len(paths)} candidate paths tried on every question; cost per layer: {cost_per_layer}")
    return labels


def label_safely(evidence):
    labels = label_by_consensus(evidence)
    if evidence.routing_pays():
        return labels
    return [default_path(evidence.num_layers)] * len(labels)


CHOICES = {"safe": Choice(label_safely, has_fixed_paths=True),
           "consensus": Choice(label_by_consensus, has_fixed_paths=True),
           "confident": Choice(label_by_confidence),
           "shortest": Choice(label_as_the_paper)}
PAPERS_CHOICE = "shortest"
