"""Numbers about finished answers: is a difference more than chance, what would static paths have
done at the same depth, and what did searches change?

    wilcoxon([0, 1, 1, 0, 1])
    with_interval(0.012, (0.003, 0.021))    # "+1.2 [+0.3, +2.1]"
"""
import math

import numpy as np
import torch

from cli import percent
from paths import DECISIONS

EXACT_UP_TO = 50  # differences that are not zero


# ---- as text ----

def between(interval, sign=True):
    """`[+0.3, +2.1]` of an interval of fractions, in percent or points."""
    low, high = interval
    return f"[{percent(low, sign)}, {percent(high, sign)}]"


def with_interval(value, interval):
    """`+1.2 [+0.3, +2.1]`: a gain and its interval, both fractions, in points."""
    return f"{percent(value, True)} {between(interval)}"


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
    away = abs(ranks[values > 0].sum() - ranks.sum() / 2)
    if len(values) > EXACT_UP_TO:
        deviation = math.sqrt((ranks ** 2).sum() / 4)  # of a sum of ranks with random signs
        return math.erfc(max(0.0, away - 0.5) / deviation / math.sqrt(2))
    doubled = (2 * ranks).round().astype(int)  # midranks are halves
    ways = np.zeros(doubled.sum() + 1)  # how many assignments of signs have each sum of ranks
    ways[0] = 1.0
    for rank in doubled:
        ways[rank:] = ways[rank:] + ways[:-rank]
    sums = np.arange(len(ways)) / 2
    return float(ways[abs(sums - ranks.sum() / 2) >= away - 1e-9].sum() / ways.sum())


# ---- fixed paths at the same depth ----

def fixed_paths_at(layers, fixed_paths):
    """(N,) expected reward of a mix of static paths with this mean depth.

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
    return ([record for record in records if record["default_correct"]],
            [record for record in records if not record["default_correct"]])


def is_corrected(record):
    """Whether the default path is incorrect and the search met a correct path."""
    return bool(record["correct"]) and not record["default_correct"]


def layers_saved(record):
    """How many layers a record's label has less than the default path."""
    return len(record["decisions"]) - record["length"]


# ---- decisions ----

def share_of_actions(decisions):
    """(..., L, 3) share of skip, execute, repeat per layer, over prompts: decisions (N, L)."""
    return torch.stack([(decisions == code).float().mean(0) for code in range(len(DECISIONS))],
                       dim=-1)
