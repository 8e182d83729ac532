"""Numbers about finished answers: what would fixed paths have done at the same depth, what did
searches change, and how often does each layer run?

    fixed_paths_at(11, [(10, torch.tensor([0.7])), (12, torch.tensor([0.8]))])    # 0.75
"""
import torch

from paths import DECISIONS

# N questions   L layers


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
