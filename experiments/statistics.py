"""Numbers about finished answers: intervals and ranks, what searches changed, and how often each
layer runs.
"""
import numpy as np
import torch

from paths import DECISIONS

# N prompts   L layers


# ---- intervals and ranks ----

def midranks(values):
    """Ranks from 1; equal values share their mean rank: (3, 1, 3) gives (2.5, 1, 2.5)."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[inverse]


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
