"""Statistics on cases that can be counted out by hand."""
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments import statistics
from experiments.statistics import (f1_by_action, is_corrected, layers_saved, macro_f1, midranks,
                                    share_of_actions, split_by_default, wilcoxon)


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


def test_f1_by_hand():
    """Skips: one of two decided is labelled, one of one labelled is decided, 2 / 3. Executes: three
    of four hit, of five labelled. A repeat is neither decided nor labelled."""
    decisions, labels = torch.tensor([[0, 0, 1], [1, 1, 1]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    f1 = f1_by_action(decisions, labels)
    assert f1 == {"skip": pytest.approx(2 / 3), "execute": pytest.approx(8 / 9)}
    assert macro_f1(decisions, labels) == pytest.approx((2 / 3 + 8 / 9) / 2)


def test_always_executing_has_the_f1_of_one_action_in_three():
    labels = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 2]])
    assert macro_f1(torch.ones_like(labels), labels) == pytest.approx(2 * 6 / 14 / 3)
    assert macro_f1(labels, labels) == 1.0


@given(st.integers(0, 10**6))
def test_f1_is_the_harmonic_mean_of_precision_and_recall(seed):
    rng = torch.Generator().manual_seed(seed)
    decisions, labels = torch.randint(3, (2, 5, 4), generator=rng)
    for code, action in enumerate(("skip", "execute", "repeat")):
        decided, labelled = decisions == code, labels == code
        hits = (decided & labelled).sum()
        if hits:
            precision, recall = hits / decided.sum(), hits / labelled.sum()
            expected = 2 / (1 / precision + 1 / recall)
            assert f1_by_action(decisions, labels)[action] == pytest.approx(expected.item())


def test_what_searches_changed_by_hand():
    """One correct by default and shortened by two, one corrected, one beyond the model."""
    shortened = {"default_correct": True, "correct": [1], "decisions": (1,) * 4, "length": 2}
    corrected = {"default_correct": False, "correct": [1], "decisions": (1,) * 4, "length": 5}
    beyond = {"default_correct": False, "correct": [], "decisions": (1,) * 4, "length": 4}
    records = [beyond, shortened, corrected]
    assert split_by_default(records) == ([shortened], [beyond, corrected])
    assert [is_corrected(record) for record in records] == [False, False, True]
    assert [layers_saved(record) for record in records] == [0, 2, -1]
