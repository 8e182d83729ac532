"""Task 3.5: two properties of answers and labels. See course/handouts/3.5.md."""
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from choose import confident, consensus, neighbours
from questions.loading import Question
from questions.reward import extract_answer

pytestmark = pytest.mark.task("3.5")

CHOICE = Question("c", "t", 0, "Which?", "B", ("red", "green", "blue", "grey"))
OPENED = Question("o", "t", 0, "", "5", prompt="2 + 3 = \\boxed{")


@given(st.sampled_from("ABCD"), st.from_regex("[a-z]{2,6}", fullmatch=True), st.integers(0, 999))
def test_an_answer_is_found_where_it_stands_and_nowhere_else(letter, word, number):
    """A letter in brackets or alone is a choice, the first letter of a sentence is not; what
    follows an open box is in it, with its own braces."""
    assert extract_answer(f"({letter}) {word}", CHOICE) == letter
    assert extract_answer(f" {letter}", CHOICE) == letter
    assert extract_answer(f"{letter} {word}", CHOICE) is None
    assert extract_answer(f"{number}}} {word}", OPENED) == str(number)
    assert extract_answer(f"\\sqrt{{{number}}}}} {word}", OPENED) == f"\\sqrt{{{number}}}"


@given(st.integers(2, 6), st.integers(1, 4), st.integers(0, 99), st.floats(0.001, 0.1))
def test_a_label_is_right_and_owes_nothing_to_the_question_alone(N, K, seed, cost_per_layer):
    """Its own answer is no vote; the label answers its question; of equally sure paths the
    shorter one wins."""
    rng = torch.Generator().manual_seed(seed)
    space, correct = torch.randn(N, 2, generator=rng), torch.rand(N, K, generator=rng) < 0.5
    turned = correct.clone()
    turned[0] = ~turned[0]
    assert torch.equal(neighbours(space, correct)[0], neighbours(space, turned)[0])
    paths = [(1,) * (k + 1) for k in range(K)]
    labels = consensus(correct, neighbours(space, correct), paths, cost_per_layer)
    for label, row in zip(labels, correct.tolist()):
        assert row[paths.index(label)] if label else not any(row)
    assert confident([{"correct": [((2, 2), 0.5), ((1, 1), 0.5)]}], cost_per_layer) == [(1, 1)]
