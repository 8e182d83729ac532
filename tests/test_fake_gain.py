"""How many questions luck alone repairs (task 6.3 of the course)."""
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from course.luck import lucky_corrections

pytestmark = pytest.mark.task("6.3")
questions = st.lists(st.tuples(st.floats(0, 0.99), st.integers(0, 60)), max_size=6)


def test_luck_by_hand():
    """One coin tried twice is right with 3/4; eleven guesses among four letters, fifty times, are
    all right. Catches p k, the number of right tries, taken for the number of questions, also where
    p is small."""
    assert lucky_corrections([0.5], [2]) == pytest.approx((0.75, math.sqrt(3) / 4))
    assert lucky_corrections([0.25] * 11, [50] * 11)[0] == pytest.approx(11, abs=1e-4)
    assert lucky_corrections([1e-6], [10**6])[0] == pytest.approx(1 - 1 / math.e, rel=1e-6)


@given(questions)
def test_luck_equals_a_sum_over_all_outcomes(drawn):
    """Catches a mean chance used for all, deviations that are added in place of variances."""
    chances = [1 - (1 - p) ** k for p, k in drawn]
    mean = square = 0.0
    for corrected in itertools.product((0, 1), repeat=len(drawn)):
        weight = math.prod(q if hit else 1 - q for q, hit in zip(chances, corrected))
        mean, square = mean + weight * sum(corrected), square + weight * sum(corrected) ** 2
    got = lucky_corrections([p for p, _ in drawn], [k for _, k in drawn])
    assert got[0] == pytest.approx(mean, abs=1e-9)
    assert got[1] ** 2 == pytest.approx(square - mean ** 2, abs=1e-9)


@given(st.integers(1, 10**6), st.floats(1e-18, 1e-15))
def test_luck_of_a_small_chance_is_not_rounded_away(tries, chance):
    """Catches 1 - (1 - p)^k, which is 0 for every p below 1e-16."""
    expected, deviation = lucky_corrections([chance], [tries])
    assert expected == pytest.approx(chance * tries, rel=1e-6)
    assert deviation == pytest.approx(math.sqrt(chance * tries), rel=1e-6)
