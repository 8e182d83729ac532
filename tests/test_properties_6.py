"""Task 6.4: two properties of the figures. See course/handouts/6.4.md."""
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course.luck import lucky_corrections
from evaluate import Outcome, fixed_paths_at, interval, shuffled, summarise
from answers import Answers

pytestmark = pytest.mark.task("6.4")


def outcome(correct):
    """Rewards (N,) as the outcome of a route that executes each of two layers."""
    N = len(correct)
    twos, once = torch.full((N,), 2), torch.ones(N, 2).long()
    return Outcome("x", [Answers(correct, torch.ones(N), once, twos, twos, [""] * N)])


@given(st.integers(0, 999), st.integers(100, 400))
def test_an_interval_is_the_error_of_a_mean_of_paired_differences(seed, n):
    """About two standard errors to each side; none at all for a route that changes nothing."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0.2, 1.0, n)
    low, high = interval(values, resamples=300)
    assert 0.7 < (high - low) / (3.92 * values.std() / n ** 0.5) < 1.3
    same = outcome(torch.from_numpy(rng.integers(2, size=n)).float())
    figures = summarise(same, same, torch.ones(n, dtype=torch.bool))
    assert list(figures["interval"]) == [0, 0] and figures["gain"] == 0


@given(st.integers(10, 30).map(lambda n: n / 2), st.integers(1, 9), st.integers(1, 9),
       st.integers(0, 99))
def test_controls_keep_the_depth_and_luck_repairs_no_question_twice(layers, rows, num_layers, seed):
    """A mix of fixed paths has the depth asked for, as far as there are such paths; shuffling
    moves a row's decisions within the row; N coins have a deviation of sqrt(N) / 2 at most."""
    fixed_paths = [(length, torch.tensor([float(length)])) for length in (7, 9, 13)]
    for depth in (layers, 6, 14):  # the last two are beyond the ends
        nearest = min(max(depth, 7), 13)
        assert fixed_paths_at(depth, fixed_paths).item() == pytest.approx(nearest, abs=1e-5)
    decisions = torch.randint(3, (rows, num_layers), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(shuffled(decisions, seed).sort(1).values, decisions.sort(1).values)
    expected, deviation = lucky_corrections([0.3] * rows, [num_layers] * rows)
    assert expected <= rows and deviation <= rows ** 0.5 / 2 + 1e-9
