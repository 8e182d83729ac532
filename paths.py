"""What a path through the layers is: one decision per layer.

All other files speak of paths in these words: the decoder runs them, the search edits them, the
routers predict them. `DECISIONS` is the only place that defines what a decision does; a decision's
code (0, 1, 2) is its index in that table, its class in the routers, and its digit in files.

    path_of((EXECUTE, SKIP, REPEAT))    # (0, 2, 2): layer 0 once, layer 2 twice
"""
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Decision:
    """What happens to one layer. passes: how often its block runs. edit: whether the search tries
    it instead of executing the layer. mark: one character for terminals."""
    name: str
    passes: int
    edit: bool
    mark: str


DECISIONS = (Decision("skip", passes=0, edit=True, mark="·"),
             Decision("execute", passes=1, edit=False, mark="│"),
             Decision("repeat", passes=2, edit=True, mark="║"))
SKIP, EXECUTE, REPEAT = range(len(DECISIONS))
PASSES = torch.tensor([decision.passes for decision in DECISIONS])  # indexed by a decision's code
EDITS = tuple(code for code, decision in enumerate(DECISIONS) if decision.edit)


def default_path(num_layers):
    """The decisions of the base model: every layer is executed once."""
    return (EXECUTE,) * num_layers


def blocks(decisions):
    """How many blocks one forward pass runs, |path| in the paper: an int for the decisions of one
    path, a tensor (...) for a tensor (..., L) of decisions."""
    if isinstance(decisions, torch.Tensor):
        return PASSES.to(decisions.device)[decisions].sum(-1)
    return sum(DECISIONS[code].passes for code in decisions)


def path_of(decisions):
    """Layer indices in execution order: (1, 0, 2) gives (0, 2, 2). Here and in decisions_of, and
    nowhere else, a path is such a list; everywhere else it is its decisions."""
    return tuple(layer for layer, code in enumerate(decisions)
                 for _ in range(DECISIONS[code].passes))


def decisions_of(path, num_layers):
    """The decisions of a list of layer indices; ValueError unless it is in order with at most two
    passes a layer."""
    path = tuple(path)
    if list(path) != sorted(path) or not {*path} <= {*range(num_layers)}:
        raise ValueError(f"path {path} is not an ordered walk through layers 0..{num_layers - 1}")
    code_of = {decision.passes: code for code, decision in enumerate(DECISIONS)}
    passes = [path.count(layer) for layer in range(num_layers)]
    if max(passes, default=0) > max(code_of):
        raise ValueError(f"path {path} runs a layer {max(passes)} times; {max(code_of)} is the "
                         "most")
    return tuple(code_of[number] for number in passes)


def with_decision(decisions, layer, code):
    """The same decisions but for one layer."""
    return decisions[:layer] + (code,) + decisions[layer + 1:]


def is_legal(decisions):
    """True if every value is a decision and no three layers in a row are skipped (paper §3.2)."""
    if not {*decisions} <= {*range(len(DECISIONS))}:
        return False
    in_a_row = zip(decisions, decisions[1:], decisions[2:])
    return (SKIP, SKIP, SKIP) not in in_a_row


def edits(decisions):
    """Every legal path with one more edit: a layer that is executed once is skipped or repeated."""
    # Edits are never undone or changed: a search only moves away from the default path, so every
    # path has finitely many paths below it.
    edited = [with_decision(decisions, layer, code)
              for layer, current in enumerate(decisions) if current == EXECUTE
              for code in EDITS]
    return [path for path in edited if is_legal(path)]
