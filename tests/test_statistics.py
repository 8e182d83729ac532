"""Statistics on cases that can be counted out by hand."""
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments import statistics
from experiments.statistics import (between, is_corrected, layers_saved, midranks, share_of_actions,
                                    split_by_default, wilcoxon, with_interval)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_wilcoxon_is_the_share_of_sign_flips_at_least_as_far_out(values):
    """The definition of the test, by listing every assignment of signs; ties and zeros included."""
    kept = [v for v in values if v]
    if not kept:
        assert wilcoxon(values) == 1.0
        return
    ranks = midranks(np.abs(kept))
    statistic = lambda signs: abs(sum(r for r, s in zip(ranks, signs) if s > 0) - ranks.sum() / 2)
    seen = statistic(kept)
    every = [statistic(signs) >= seen - 1e-9
             for signs in itertools.product((-1, 1), repeat=len(kept))]
    assert wilcoxon(values) == pytest.approx(np.mean(every))


@given(st.integers(0, 10**6))
def test_normal_approximation_continues_the_exact_test(seed):
    """One difference more and the other formula answers: the two must meet."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-3, 4, size=49) + (rng.random(49) < 0.2)
    values = np.concatenate([values[values != 0], [1, 2, -3] * 4])[:50]    # 12 at the least
    exact = wilcoxon(values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "EXACT_UP_TO", 0)
        assert wilcoxon(values) == pytest.approx(exact, abs=0.05)


def test_wilcoxon_by_hand_and_in_both_directions():
    assert wilcoxon([1] * 5) == pytest.approx(2 / 32)
    assert wilcoxon([1, 2, 3, 4, -5]) == wilcoxon([-1, -2, -3, -4, 5])
    assert wilcoxon([0, 0]) == 1.0 and wilcoxon([1.0] * 200) < 1e-20
    assert wilcoxon([1, -1] * 100) == 1.0


def test_wilcoxon_under_no_effect_is_rarely_small():
    """A p that forgets a factor of two, or the ties, rejects too often or never."""
    rng = np.random.default_rng(0)
    small = [wilcoxon(rng.normal(size=100)) < 0.05 for _ in range(1000)]
    assert 0.03 <= np.mean(small) <= 0.07


def test_midranks_by_hand():
    assert midranks(np.array([3, 1, 3])).tolist() == [2.5, 1.0, 2.5]


def test_share_of_actions_by_hand():
    found = share_of_actions(torch.tensor([[0, 1], [2, 1], [2, 1], [1, 1]]))
    assert found.tolist() == [[0.25, 0.25, 0.5], [0.0, 1.0, 0.0]]


def test_gains_and_intervals_are_written_in_one_way():
    assert with_interval(0.012, (0.003, -0.0211)) == "+1.2 [+0.3, -2.1]"
    assert between((0.25, 1), sign=False) == "[25.0, 100.0]"


def test_what_searches_changed_by_hand():
    """One correct by default and shortened by two, one corrected, one beyond the model."""
    shortened = {"default_correct": True, "correct": [1], "decisions": (1,) * 4, "length": 2}
    mended = {"default_correct": False, "correct": [1], "decisions": (1,) * 4, "length": 5}
    beyond = {"default_correct": False, "correct": [], "decisions": (1,) * 4, "length": 4}
    records = [beyond, shortened, mended]
    assert split_by_default(records) == ([shortened], [beyond, mended])
    assert [is_corrected(record) for record in records] == [False, False, True]
    assert [layers_saved(record) for record in records] == [0, 2, -1]
