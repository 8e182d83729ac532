"""Statistics on cases that can be counted out by hand."""
import torch

from experiments.statistics import is_corrected, layers_saved, share_of_actions, split_by_default


def test_share_of_actions_by_hand():
    found = share_of_actions(torch.tensor([[0, 1], [2, 1], [2, 1], [1, 1]]))
    assert found.tolist() == [[0.25, 0.25, 0.5], [0.0, 1.0, 0.0]]


def test_what_searches_changed_by_hand():
    """One correct by default and shortened by two, one corrected, one beyond the model."""
    shortened = {"default_correct": True, "correct": [1], "decisions": (1,) * 4, "length": 2}
    corrected = {"default_correct": False, "correct": [1], "decisions": (1,) * 4, "length": 5}
    beyond = {"default_correct": False, "correct": [], "decisions": (1,) * 4, "length": 4}
    records = [beyond, shortened, corrected]
    assert split_by_default(records) == ([shortened], [beyond, corrected])
    assert [is_corrected(record) for record in records] == [False, False, True]
    assert [layers_saved(record) for record in records] == [0, 2, -1]
