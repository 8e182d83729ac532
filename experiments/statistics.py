"""Numbers about finished answers: what searches changed, and how often each layer runs."""
import torch

from paths import DECISIONS

# N prompts   L layers


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
