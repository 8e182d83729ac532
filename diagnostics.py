"""Can a difference be believed, and what did the routers learn? Numbers about finished answers.

Uncertainty of paired differences (bootstrap interval, Wilcoxon signed-rank p) and quality of
decisions against searched labels (precision, recall, F1, per-layer accuracy, agreement beside a
router that always executes). Nothing here runs a model.

    interval([0, 1, 1, 0, 1]), wilcoxon([0, 1, 1, 0, 1])
"""
import math

import numpy as np
import torch

ACTIONS = ("skip", "execute", "repeat")
EXACT_UP_TO = 50  # differences that are not zero


# ---- uncertainty ----

def interval(difference, resamples=1000, seed=0):
    """95% bootstrap interval (low, high) of the mean of paired differences (N,)."""
    values = np.asarray(difference, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


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
    positive = ranks[values > 0].sum()
    if len(values) <= EXACT_UP_TO:
        return _exact(ranks, positive)
    distance = abs(positive - ranks.sum() / 2) - 0.5  # continuity
    deviation = math.sqrt((ranks ** 2).sum() / 4)  # of a sum of ranks with random signs
    return math.erfc(max(0.0, distance) / deviation / math.sqrt(2))


def _exact(ranks, positive):
    """Share of all sign assignments whose positive ranks sum to as far from the middle."""
    doubled = np.round(2 * ranks).astype(int)  # midranks are halves
    ways = np.zeros(doubled.sum() + 1)
    ways[0] = 1.0
    for rank in doubled:
        ways[rank:] = ways[rank:] + ways[:-rank]
    away = np.abs(np.arange(len(ways)) - doubled.sum() / 2)
    return float(ways[away >= abs(2 * positive - doubled.sum() / 2) - 1e-9].sum() / ways.sum())


# ---- decisions against labels ----

def share_of_actions(decisions):
    """(..., L, 3) share of skip, execute, repeat per layer, over rows: decisions (N, L)."""
    return torch.stack([(decisions == count).float().mean(0) for count in range(3)], dim=-1)


def class_report(decided, labels):
    """Precision, recall, F1 and support per action, macro F1 and accuracy per layer of decisions
    (N, L) against labels (N, L). A class neither decided nor labelled has no F1 and is left out of
    the macro mean."""
    report, scores = {}, []
    for count, name in enumerate(ACTIONS):
        chosen, true = decided == count, labels == count
        hits, either = (chosen & true).sum().item(), (chosen.sum() + true.sum()).item()
        report[name] = {"precision": hits / max(1, chosen.sum().item()),
                        "recall": hits / max(1, true.sum().item()),
                        "f1": 2 * hits / max(1, either), "support": true.sum().item()}
        scores += [report[name]["f1"]] if either else []
    right = (decided == labels).float()
    return report | {"macro_f1": sum(scores) / len(scores), "accuracy": right.mean().item(),
                     "per_layer": right.mean(0).tolist()}


def agreement(decided, labels):
    """How often decisions (N, L) equal the labels, beside a router that always executes."""
    same, default = (decided == labels).float(), (labels == 1).float()
    return {"agreement": same.mean().item(), "always_execute": default.mean().item(),
            "whole_paths": same.amin(1).mean().item(),
            "whole_default": default.amin(1).mean().item(), "n": len(labels)}
