"""Which right path becomes the label: each choice on cases small enough to do by hand."""
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from choose import (climb, cluster, confident, consensus, good_paths, along_each, neighbours,
                    shortest, similarity_space)
from mcts import is_legal

DEFAULT, SHORT, LONG = (1, 1, 1), (1, 0, 1), (1, 2, 1)


def row(default_correct, decisions, correct):
    return {"default_correct": default_correct, "decisions": decisions, "correct": correct}


ROWS = [row(True, SHORT, [(DEFAULT, 0.9), (SHORT, 0.5), (LONG, 0.95)]),
        row(False, LONG, [(LONG, 0.6)]),
        row(False, DEFAULT, [])]


def test_shortest_is_the_papers_label_and_an_unanswered_question_has_none():
    assert shortest(ROWS) == [SHORT, LONG, None]


def test_confident_trades_probability_against_layers():
    """A price of zero takes the surest path, a high price the shortest; forgetting it is a bug."""
    assert confident(ROWS, 0.0) == [LONG, LONG, None]
    assert confident(ROWS, 0.06) == [DEFAULT, LONG, None]    # .95 - .24 < .9 - .18
    assert confident(ROWS, 1.0)[0] == SHORT


def test_consensus_takes_what_neighbours_share_among_the_paths_right_for_the_question():
    paths = [DEFAULT, SHORT, LONG]
    right = torch.tensor([[True, True, False], [False, False, True], [False, False, False]])
    share = torch.tensor([[0.5, 0.4, 1.0], [1.0, 1.0, 0.1], [1.0, 1.0, 1.0]])
    assert consensus(right, share, paths, 0.0) == [DEFAULT, LONG, None]
    assert consensus(right, share, paths, 0.2)[0] == SHORT


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


def drive(reward, layers, price, rounds=10):
    """The paths a climb stood on, and all it asked."""
    steps, asked = climb(layers, price, rounds), []
    paths = next(steps)
    while True:
        asked += paths
        try:
            paths = steps.send([reward(path) for path in paths])
        except StopIteration as stop:
            return stop.value, asked


@given(st.integers(2, 7), st.integers(0, 10**6))
def test_climb_finds_the_best_of_an_additive_reward_and_asks_legal_paths_only(layers, seed):
    """With one bonus per layer and decision, greedy single changes cannot get stuck."""
    rng = random.Random(seed)
    gain = [[rng.random() / layers for _ in range(3)] for _ in range(layers)]
    gain = [[min(g[0], g[1]), g[1], g[2]] for g in gain]    # skipping never pays: all legal
    reward = lambda path: sum(gain[i][n] for i, n in enumerate(path))
    stood, asked = drive(reward, layers, 0.0, rounds=layers)
    assert all(is_legal(path) for path in asked)
    best = sum(max(g) for g in gain)
    assert reward(stood[-1]) == pytest.approx(best)
    assert stood[0] == (1,) * layers


def test_climb_with_a_price_prefers_shorter_paths_of_equal_reward():
    free, _ = drive(lambda path: 1.0, 6, 0.0)
    priced, _ = drive(lambda path: 1.0, 6, 0.01)
    assert sum(free[-1]) == 6 and sum(priced[-1]) < 6 and is_legal(priced[-1])


def test_good_paths_in_lockstep_equal_each_climb_alone(tiny_questions):
    """Rewards handed to the wrong climb would still look plausible."""
    model, tokenizer, prompts = tiny_questions
    climbs = [([0, 1, 2], 0.0), ([3, 4], 0.01), ([5, 6, 7], 0.1)]
    together = set(good_paths(model, tokenizer, prompts, climbs, rounds=2))
    alone = set()
    for one in climbs:
        alone |= set(good_paths(model, tokenizer, prompts, [one], rounds=2))
    assert together == alone


def test_along_each_says_which_path_answers_which_question(tiny_questions):
    model, tokenizer, prompts = tiny_questions
    paths = [(1, 1, 1), (2, 0, 1)]
    right = along_each(model, tokenizer, prompts, paths)
    assert right.shape == (len(prompts), 2)
    assert right[:, 0].any() and not torch.equal(right[:, 0], right[:, 1])
