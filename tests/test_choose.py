"""Which right path becomes the label: each choice on cases small enough to do by hand."""
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from choose import (along_each, cluster, confident, consensus, edit_effects, good_paths,
                    half_gain_price, neighbours, shortest, similarity_space, strongest)
from mcts import is_legal

DEFAULT, SHORT, LONG = (1, 1, 1), (1, 0, 1), (1, 2, 1)


def row(default_correct, decisions, correct):
    return {"default_correct": default_correct, "decisions": decisions, "correct": correct}


ROWS = [row(True, SHORT, [(DEFAULT, 0.9), (SHORT, 0.5), (LONG, 0.95)]),
        row(False, LONG, [(LONG, 0.6)]),
        row(False, DEFAULT, [])]


def test_shortest_is_the_papers_label_and_an_unanswered_question_has_none():
    assert shortest(ROWS) == [SHORT, LONG, None]


@pytest.mark.task("3.2")
def test_confident_trades_probability_against_layers():
    """A price of zero takes the surest path, a high price the shortest; forgetting it is a bug."""
    assert confident(ROWS, 0.0) == [LONG, LONG, None]
    assert confident(ROWS, 0.06) == [DEFAULT, LONG, None]    # .95 - .24 < .9 - .18
    assert confident(ROWS, 1.0)[0] == SHORT


@pytest.mark.task("3.4")
def test_consensus_takes_what_neighbours_share_among_the_paths_right_for_the_question():
    paths = [DEFAULT, SHORT, LONG]
    right = torch.tensor([[True, True, False], [False, False, True], [False, False, False]])
    share = torch.tensor([[0.5, 0.4, 1.0], [1.0, 1.0, 0.1], [1.0, 1.0, 1.0]])
    assert consensus(right, share, paths, 0.0) == [DEFAULT, LONG, None]
    assert consensus(right, share, paths, 0.2)[0] == SHORT


def test_half_gain_price_by_hand():
    """Ten questions: the default answers 4, a path of two layers more all 10, one of two fewer 7.
    Half of the gain of 6 is 7 right: the short path still has it. Where it answers 6, it has not."""
    paths = [(1,) * 6, (2, 2, 1, 1, 1, 1), (0, 0, 1, 1, 1, 1)]
    answers = lambda short: torch.tensor([[n < 4, True, n < short] for n in range(10)])
    share = lambda right: right.float().mean(0).expand(10, 3)
    assert half_gain_price(answers(7), share(answers(7)), paths) == 0.1
    # 1.0 - 8p against 0.6 - 4p: beyond 0.1 the short path would be chosen
    assert half_gain_price(answers(6), share(answers(6)), paths) == pytest.approx(0.1, abs=0.0051)
    assert half_gain_price(answers(8), share(answers(8)), paths) == 0.1


@pytest.mark.task("3.3")
def test_neighbours_leave_the_question_itself_out():
    """A question that is its own neighbour would vote for the path that is right by luck."""
    space = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    right = torch.tensor([[True], [False], [True], [True]])
    assert neighbours(space, right, 1).flatten().tolist() == [0.0, 1.0, 1.0, 1.0]


def test_similarity_ignores_windows_that_are_not_in_use():
    """Zero windows of short prompts must not pull their mean towards zero."""
    short = torch.zeros(1, 3, 4, 2)
    short[:, :, 0] = 3.0
    full = torch.full((1, 3, 4, 2), 3.0)
    both = similarity_space(torch.cat([short, full]), torch.tensor([1, 4]))
    assert torch.allclose(both[0], both[1])


def test_clusters_separate_what_is_far_apart_and_are_reproducible():
    space = torch.cat([torch.randn(20, 3), torch.randn(20, 3) + 100])
    group = cluster(space, 2)
    assert len(set(group[:20].tolist())) == len(set(group[20:].tolist())) == 1
    assert group[0] != group[20] and torch.equal(group, cluster(space, 2))


@given(st.integers(2, 6), st.integers(0, 10**6))
def test_edit_effects_recover_an_additive_truth(layers, seed):
    """Searches try paths at random; what helps must come out positive, whatever the question."""
    rng = torch.Generator().manual_seed(seed)
    truth = torch.randn(layers, 3, generator=rng)
    truth[:, 1] = 0
    rows = []
    for question in range(12):
        tried = torch.randint(3, (40, layers), generator=rng)
        worth = truth[torch.arange(layers), tried].sum(1)
        right = worth > worth.median()
        rows.append({"correct": [(tuple(p), 1.0) for p, r in zip(tried.tolist(), right) if r],
                     "wrong": [p for p, r in zip(tried.tolist(), right) if not r]})
    found = edit_effects(rows, ridge=1.0)
    top = truth.abs().argmax()  # the strongest of all edits must be seen for what it is
    assert found.flatten()[top].sign() == truth.flatten()[top].sign() and not found[:, 1].any()


def test_edit_effects_ignore_how_hard_a_question_is():
    """An easy question that happened to try skips must not make skipping look good."""
    easy = {"correct": [((0, 1), 1.0), ((0, 1), 1.0), ((1, 1), 1.0)], "wrong": []}
    hard = {"correct": [], "wrong": [(1, 1), (1, 1), (0, 1)]}
    assert edit_effects([easy, hard]).abs().max() < 1e-6


@given(st.integers(1, 9), st.integers(0, 10**6), st.floats(0, 0.5))
def test_strongest_edits_come_first_and_stay_legal(layers, seed, price):
    effects = torch.randn(layers, 3, generator=torch.Generator().manual_seed(seed))
    effects[:, 1] = 0
    paths = strongest(effects, price)
    assert all(is_legal(path) for path in paths) and len(paths) <= 7
    sizes = [sum(n != 1 for n in path) for path in paths]
    assert sizes == list(range(1, len(paths) + 1))
    gain = lambda path: sum(effects[i, n].item() - price * (n - 1) for i, n in enumerate(path))
    assert all(gain(b) > gain(a) for a, b in zip(paths, paths[1:]))


def test_good_paths_hold_the_default_and_do_what_they_promise(tiny_questions):
    """Shares handed to the wrong path or group would still look plausible."""
    model, tokenizer, prompts = tiny_questions
    rng = random.Random(0)
    tried = [[tuple(rng.randrange(3) for _ in range(3)) for _ in range(20)] for _ in prompts]
    rows = []
    for prompt, paths in zip(prompts, tried):
        right = along_each(model, tokenizer, [prompt], paths)[0]
        rows.append({"correct": [(p, 1.0) for p, r in zip(paths, right) if r],
                     "wrong": [list(p) for p, r in zip(paths, right) if not r]})
    groups = [[0, 1, 2, 3], [4, 5, 6, 7]]
    together = good_paths(model, tokenizer, prompts, rows, groups)
    assert together[0] == (1, 1, 1) and all(is_legal(path) for path in together)
    alone = set().union(*(good_paths(model, tokenizer, prompts, rows, [g]) for g in groups))
    assert set(together) == alone


def test_along_each_says_which_path_answers_which_question(tiny_questions):
    model, tokenizer, prompts = tiny_questions
    paths = [(1, 1, 1), (2, 0, 1)]
    right = along_each(model, tokenizer, prompts, paths)
    assert right.shape == (len(prompts), 2)
    assert right[:, 0].any() and not torch.equal(right[:, 0], right[:, 1])
