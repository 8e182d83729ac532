"""The ladder of arithmetic: true answers, no problem on both sides, kinds of a fitting hardness."""
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from questions import grade
from questions.arithmetic import (BETWEEN, KINDS, MOST_KINDS, arithmetic_questions, held_out_kinds,
                                  is_test, kinds_between, problems, sample_of_every_kind,
                                  shares_of_kinds)

seeds = st.integers(0, 2 ** 32)


def asked(question):
    """The problem that a prompt ends with: its last line, without the equals sign."""
    return question.prompt.splitlines()[-1].removesuffix(" =")


@pytest.mark.parametrize("kind", KINDS)
@given(seed=seeds, test=st.booleans())
def test_every_answer_and_worked_example_is_true(kind, seed, test):
    """Catches a quotient with a remainder, a negative difference, and a division by zero."""
    for question in problems(kind, 5, test, seed):
        *worked, _ = question.prompt.splitlines()
        lines = [*worked, f"{asked(question)} = {question.answer}"]
        for text, answer in (line.split(" = ") for line in lines):
            assert re.fullmatch(r"\d+", answer)
            assert eval(text) == int(answer)
        assert grade(f" {question.answer}\n", question) == 1.0
        assert grade(f" {int(question.answer) + 1}\n", question) == 0.0


@given(seed=seeds, other=seeds)
def test_a_problem_is_for_training_or_for_the_test_under_every_seed(seed, other):
    """Catches a split that a second run with another seed mixes up."""
    kinds = ["add1", "mul11", "sub2"]
    training, _ = arithmetic_questions(kinds, 10, seed)
    _, test = arithmetic_questions(kinds, 10, other)
    assert not {q.id for q in training} & {q.id for q in test}
    assert all(is_test(asked(q)) for q in test) and not any(is_test(asked(q)) for q in training)


@given(seed=seeds)
def test_the_same_seed_makes_the_same_questions_and_no_example_is_asked(seed):
    kinds = ["add2", "div", "mod"]
    assert arithmetic_questions(kinds, 8, seed) == arithmetic_questions(kinds, 8, seed)
    for question in sum(arithmetic_questions(kinds, 8, seed), []):
        worked = question.prompt.splitlines()[:-1]
        assert asked(question) not in [line.partition(" = ")[0] for line in worked]


def test_training_and_test_questions_of_a_kind_have_the_same_worked_examples():
    training, test = arithmetic_questions(["add3"], 5, seed=1)
    assert len({q.prompt.rpartition("\n")[0] for q in training + test}) == 1


@given(shares=st.lists(st.integers(0, 24), min_size=len(KINDS), max_size=len(KINDS)))
def test_kinds_that_are_taken_are_between_and_no_kind_left_out_is_nearer_to_one_half(shares):
    """Catches kinds that a model always or never answers: there, no label teaches anything."""
    questions = sample_of_every_kind(0)
    rewards = {kind: [1.0] * share + [0.0] * (24 - share) for kind, share in zip(KINDS, shares)}
    correct = [rewards[question.task].pop() for question in questions]
    taken = kinds_between(shares_of_kinds(questions, correct))
    between = {kind: share / 24 for kind, share in zip(KINDS, shares)
               if BETWEEN[0] <= share / 24 <= BETWEEN[1]}
    assert taken.items() <= between.items()
    assert len(taken) == min(MOST_KINDS, len(between))
    distance = lambda kind: abs(between[kind] - 0.5)
    left_out = between.keys() - taken.keys()
    assert not taken or all(distance(kind) >= max(map(distance, taken)) for kind in left_out)


@pytest.mark.parametrize("number, held_out", [(1, 0), (2, 0), (3, 1), (5, 1), (8, 1)])
def test_held_out_kinds_have_test_questions_only(number, held_out):
    kinds = list(KINDS)[:number]
    assert len(held_out_kinds(kinds)) == held_out
    training, test = arithmetic_questions(kinds, 4, seed=0)
    assert {q.task for q in test} == set(kinds)
    assert {q.task for q in training} == set(kinds) - set(held_out_kinds(kinds))
