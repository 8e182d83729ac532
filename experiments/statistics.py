"""Numbers about finished answers: is a difference more than chance, what would fixed paths have
done at the same depth, what did searches change, and how good are decisions?

    wilcoxon([0, 1, 1, 0, 1])
"""
import math

import numpy as np
import torch

from paths import DECISIONS

EXACT_UP_TO = 50  # differences that are not zero

# N questions   L layers


# ---- is a difference more than chance? ----

def midranks(values):
    """Ranks from 1; equal values share their mean rank: (3, 1, 3) gives (2.5, 1, 2.5)."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[inverse]


def wilcoxon(difference):
    """Two-sided p that paired differences lie around zero (signed ranks); zeros are dropped.

    Exact, ties included, up to 50 differences; beyond that the normal approximation with the
    variance corrected for ties. No difference at all gives 1. Five times +1 gives 2 / 2**5.
    """
    values = np.asarray(difference, dtype=np.float64)
    values = values[values != 0]
    if not len(values):
        return 1.0
    ranks = midranks(np.abs(values).round(9))
    deviation = abs(ranks[values > 0].sum() - ranks.sum() / 2)
    if len(values) > EXACT_UP_TO:
        spread = math.sqrt((ranks ** 2).sum() / 4)  # of a sum of ranks with random signs
        return math.erfc(max(0.0, deviation - 0.5) / spread / math.sqrt(2))
    doubled = (2 * ranks).round().astype(int)  # midranks are halves
    # how many assignments of signs have each sum of doubled ranks, one rank after the other
    assignments = np.zeros(doubled.sum() + 1)
    assignments[0] = 1.0
    for rank in doubled:
        assignments[rank:] = assignments[rank:] + assignments[:-rank]
    sums = np.arange(len(assignments)) / 2
    as_far = abs(sums - ranks.sum() / 2) >= deviation - 1e-9  # less a rounding error
    return float(assignments[as_far].sum() / assignments.sum())


def bootstrap(statistic, number, resamples=500, seed=0):
    """[low, high]: 95% interval of statistic(rows), where rows are drawn from 0..number-1."""
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(number, size=number)) for _ in range(resamples)]
    return np.percentile(values, (2.5, 97.5)).tolist()


def rank_correlation(a, b):
    """Spearman's: 1 if b grows with a, -1 if it falls; 0 if one of them is constant."""
    ranks_a, ranks_b = midranks(a), midranks(b)
    if np.ptp(ranks_a) == 0 or np.ptp(ranks_b) == 0:
        return 0.0
    return float(np.corrcoef(ranks_a, ranks_b)[0, 1])


def auroc(scores, correct):
    """The chance that a correct answer has a higher score than an incorrect one, ties by half; 0.5
    if there are not both."""
    correct = np.asarray(correct) > 0
    number = int(correct.sum())
    others = len(correct) - number
    if not number or not others:
        return 0.5
    rank_sum = midranks(np.asarray(scores))[correct].sum()
    return float((rank_sum - number * (number + 1) / 2) / (number * others))


# ---- fixed paths at the same depth ----

def fixed_paths_at(layers, fixed_paths):
    """(N,) expected reward of a mix of fixed paths with this mean depth.

    fixed_paths: [(length, correct (N,))], shortest first. Beyond the ends the end is taken.
    """
    if layers <= fixed_paths[0][0]:
        return fixed_paths[0][1]
    for (low, below), (high, above) in zip(fixed_paths, fixed_paths[1:]):
        if layers <= high:
            share = (layers - low) / (high - low)
            return (1 - share) * below + share * above
    return fixed_paths[-1][1]


# ---- what searches changed ----

def split_by_default(records):
    """(records whose default path is correct, the others)."""
    correct = [record for record in records if record["default_correct"]]
    incorrect = [record for record in records if not record["default_correct"]]
    return correct, incorrect


def is_corrected(record):
    """Whether the default path is incorrect and the search met a correct path."""
    return bool(record["correct"]) and not record["default_correct"]


def layers_saved(record):
    """How many layers a record's label has less than the default path."""
    return len(record["decisions"]) - record["length"]


# ---- decisions ----

def share_of_actions(decisions):
    """(..., L, 3) share of skip, execute, repeat per layer, over prompts: decisions (N, L)."""
    shares = [(decisions == code).float().mean(0) for code in range(len(DECISIONS))]
    return torch.stack(shares, dim=-1)


def f1_by_action(decisions, labels):
    """{action: F1} of decisions (N, L) against labels (N, L): the harmonic mean of precision and
    recall, 2 hits / (times decided + times labelled). An action that never occurs has none."""
    f1 = {}
    for code, action in enumerate(DECISIONS):
        hits = ((decisions == code) & (labels == code)).sum().item()
        occurrences = (decisions == code).sum().item() + (labels == code).sum().item()
        if occurrences:
            f1[action.name] = 2 * hits / occurrences
    return f1


def macro_f1(decisions, labels):
    """The mean F1 of the actions, which counts a rare one as much as a frequent one: always
    executing agrees with most labels and still has a low macro-F1."""
    f1 = f1_by_action(decisions, labels)
    return sum(f1.values()) / len(f1)
