"""Which right path becomes the label: each choice on cases small enough to do by hand."""
import doctest
import itertools
import random
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import choose
from choose import (CHOICES, confidence_if_correct, cluster, combine_edits, confident, consensus,
                    consensus_of_neighbours, cost_keeping_half_the_gain, edit_effects, frontier,
                    candidate_paths, neighbours, propose_paths, shortest, similarity_space)
from mcts import is_legal
from model_llama import FixedRoute, generate
from questions.reward import grade

seeds = st.integers(0, 10**6)
DEFAULT, SHORT, LONG = (1, 1, 1), (1, 0, 1), (1, 2, 1)


def row(default_correct, decisions, correct):
    return {"default_correct": default_correct, "decisions": decisions, "correct": correct}


ROWS = [row(True, SHORT, [(DEFAULT, 0.9), (SHORT, 0.5), (LONG, 0.95)]),
        row(False, LONG, [(LONG, 0.6)]),
        row(False, DEFAULT, [])]


def test_shortest_is_the_papers_label_and_an_unanswered_question_has_none():
    """Catches a label that is looked for among the correct paths once more: of equally short ones
    it is the first that was met, and after an incorrect default the first of all."""
    assert shortest(ROWS) == [SHORT, LONG, None]
    equal = row(True, DEFAULT, [(DEFAULT, 0.5), ((2, 1, 0), 0.5)])
    repaired = row(False, LONG, [(LONG, 0.5), (SHORT, 0.5)])
    assert shortest([equal, repaired]) == [DEFAULT, LONG]


def test_examples_in_the_docstrings_print_what_they_say():
    failed, tried = doctest.testmod(choose)
    assert tried > 5 and not failed


def test_every_choice_gives_labels_from_what_it_says_it_needs():
    """Catches a choice that asks candidate paths of every question where its entry has none."""
    class Evidence(SimpleNamespace):
        used = set()

        @property
        def candidates(self):
            self.used.add("candidates")
            return [DEFAULT, SHORT], torch.tensor([[False, True]] * 3)

        def consensus(self):
            paths, correct = self.candidates
            return consensus_of_neighbours(torch.arange(3.0)[:, None], correct, paths, 0.01)

        @property
        def records(self):
            self.used.add("records")
            return ROWS

    for name, choice in CHOICES.items():
        evidence = Evidence(cost_per_layer=0.01, num_layers=3)
        evidence.routing_pays, evidence.used = lambda: False, set()
        labels = choice.label(evidence)
        assert len(labels) == 3 and all(path is None or len(path) == 3 for path in labels)
        assert choice.has_fixed_paths == ("candidates" in evidence.used)
        assert choice.needs_search  # the candidate paths come from searches too
        if name == "safe":
            assert labels == [DEFAULT] * 3
            evidence.routing_pays = lambda: True
            assert choice.label(evidence) == [SHORT] * 3
        if name == "confident":
            evidence.cost_per_layer = 1.0
            assert choice.label(evidence) == [SHORT, LONG, None]


@pytest.mark.task("3.2")
def test_confident_trades_probability_against_layers():
    """A price of zero takes the surest path, a high price the shortest; forgetting it is a bug."""
    assert confident(ROWS, 0.0) == [LONG, LONG, None]
    assert confident(ROWS, 0.06) == [DEFAULT, LONG, None]    # .95 - .24 < .9 - .18
    assert confident(ROWS, 1.0)[0] == SHORT
    equal = [(SHORT, 0.5), ((0, 1, 1), 0.5)]  # the first met is the label
    assert confident([row(False, SHORT, equal)], 0.1) == [SHORT]


@pytest.mark.task("3.4")
def test_consensus_takes_what_neighbours_share_among_the_paths_right_for_the_question():
    """Catches the neighbours' favourite that is wrong here, and a question without a right path
    that gets a label."""
    paths = [DEFAULT, SHORT, LONG]
    correct = torch.tensor([[True, True, False], [False, False, True], [False, False, False]])
    share = torch.tensor([[0.5, 0.4, 1.0], [1.0, 1.0, 0.1], [1.0, 1.0, 1.0]])
    assert consensus(correct, share, paths, 0.0) == [DEFAULT, LONG, None]
    assert consensus(correct, share, paths, 0.2)[0] == SHORT
    equal = torch.ones(1, 2)
    assert consensus(equal > 0, equal, [SHORT, (0, 1, 1)], 0.2) == [SHORT]  # the first listed


# ---- the price of a layer ----

@given(st.sampled_from((4, 8, 16)), st.lists(st.integers(2, 14), min_size=2, max_size=5), seeds)
def test_cost_keeping_half_the_gain_is_the_largest_that_keeps_half(N, lengths, seed):
    """Always the highest price, the lowest, or one too far: what each price keeps is counted."""
    rng = torch.Generator().manual_seed(seed)
    correct = torch.rand(N, len(lengths), generator=rng) < torch.rand(len(lengths), generator=rng)
    share = torch.rand(N, len(lengths), generator=rng)
    costs = [n / 200 for n in range(1, 21)]

    def answered(cost_per_layer):
        worth = share - cost_per_layer * torch.tensor(lengths).float()
        return sum(correct[n, row.argmax()].item() for n, row in enumerate(worth))

    most = max(map(answered, costs))
    kept = [p for p in costs if 2 * answered(p) >= correct[:, 0].sum().item() + most]
    found = cost_keeping_half_the_gain(correct, share, [(1,) * length for length in lengths])
    assert found == pytest.approx(max(kept, default=0.005))


@given(st.integers(2, 40), st.integers(1, 40), st.integers(1, 100), seeds)
def test_neighbours_are_the_same_however_many_distances_are_held_at_once(N, number, held, seed):
    """All distances of 100,000 questions are 40 GB. A block may begin or end anywhere."""
    rng = torch.Generator().manual_seed(seed)
    space, correct = torch.randn(N, 3, generator=rng), torch.rand(N, 4, generator=rng) < 0.5
    largest, cdist = 0, torch.cdist

    def counted(*points):
        nonlocal largest
        distance = cdist(*points)
        largest = max(largest, distance.numel())
        return distance

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "DISTANCES_AT_ONCE", held)
        patch.setattr(choose.torch, "cdist", counted)
        in_blocks = neighbours(space, correct, number)
    assert largest <= max(held, N)
    assert torch.equal(in_blocks, neighbours(space, correct, number))


def test_the_frontier_takes_rewards_and_probabilities():
    """Three paths of 2, 3 and 4 blocks: the middle one is on the hull only if it is worth more than
    half of what the outer ones are together."""
    for value, middle in ((0.5, False), (0.7, True)):
        values = torch.tensor([[0.0, value, 0.6], [0.4, value, 1.0]])  # means of 0.2 and 0.8
        lengths = [length for length, _ in frontier([SHORT, DEFAULT, LONG], values)]
        assert lengths == ([2, 3, 4] if middle else [2, 4])
    assert frontier([DEFAULT, SHORT], torch.tensor([[True, True]])) == [(2, SHORT)]


def test_similarity_ignores_windows_that_are_not_in_use_and_scales_all_numbers_alike():
    """Zero windows of short prompts must not pull their mean towards zero, and no number of a large
    spread outweighs the others."""
    short = torch.zeros(1, 3, 4, 2)
    short[:, :, 0] = 3.0
    full = torch.full((1, 3, 4, 2), 3.0)
    both = similarity_space(torch.cat([short, full]), torch.tensor([1, 4]))
    assert torch.allclose(both[0], both[1])
    wide = similarity_space(9 * torch.randn(30, 3, 4, 2), torch.full((30,), 4))
    assert torch.allclose(wide.std(0, correction=0), torch.ones(6), atol=1e-3)


def test_a_question_alone_lies_nowhere_in_particular():
    """The spread of one question is no number, and asking for it a warning."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        space = similarity_space(torch.randn(1, 3, 4, 2), torch.tensor([4]))
    assert not said and torch.equal(space, torch.zeros(1, 6))


def test_clusters_separate_what_is_far_apart_and_are_reproducible():
    space = torch.cat([torch.randn(20, 3), torch.randn(20, 3) + 100])
    group = cluster(space, 2)
    assert len(set(group[:20].tolist())) == len(set(group[20:].tolist())) == 1
    assert group[0] != group[20] and torch.equal(group, cluster(space, 2))


def tried(correct, wrong, times):
    """A labels row of a search that tried these two paths so many times each."""
    return {"correct": [(correct, 1.0)] * times, "wrong": [wrong] * times}


def test_edit_effects_by_hand():
    """40 tries with and 40 without the edit: both columns are half above and half below their mean,
    so the effect is 20 / (20 + ridge). Uncentred edits would give 20 / (40 + ridge)."""
    found = edit_effects([tried((0, 1), (1, 1), 40)], ridge=20.0)
    assert torch.allclose(found, torch.tensor([[0.5, 0, 0], [0, 0, 0]]), atol=1e-6)
    found = edit_effects([tried((1, 1), (1, 2), 40)], ridge=60.0)
    assert torch.allclose(found, torch.tensor([[0, 0, 0], [0, 0, -0.25]]), atol=1e-6)


@given(st.integers(1, 4), st.integers(1, 5), st.sampled_from((0, 2)), seeds)
def test_an_edit_that_all_paths_of_a_question_share_says_nothing(layers, questions, edit, seed):
    """Edits that are not centred, or over all questions at once: a layer that one question always
    skips would seem to matter, and would change what the others seem to do."""
    rng = random.Random(seed)
    plain, shared = [], []
    for _ in range(questions):
        paths = [[rng.randrange(3) for _ in range(layers)] for _ in range(10)]
        split = rng.randrange(11)
        for rows, first in ((plain, 1), (shared, rng.choice((1, edit)))):
            rows.append({"correct": [((first, *path), 1.0) for path in paths[:split]],
                         "wrong": [[first, *path] for path in paths[split:]]})
    found = edit_effects(shared)
    assert found[0].abs().max() < 1e-5
    assert torch.allclose(found, edit_effects(plain), atol=1e-5)


@given(st.integers(1, 9), st.integers(0, 10**6), st.floats(0, 0.5))
def test_strongest_edits_come_first_and_stay_legal(layers, seed, cost_per_layer):
    effects = torch.randn(layers, 3, generator=torch.Generator().manual_seed(seed))
    effects[:, 1] = 0
    paths = combine_edits(effects, cost_per_layer)
    assert all(is_legal(path) for path in paths)
    sizes = [sum(n != 1 for n in path) for path in paths]
    assert sizes == list(range(1, len(paths) + 1))
    gain = lambda path: sum(effects[i, n].item() - cost_per_layer * (n - 1)
                            for i, n in enumerate(path))
    assert all(gain(b) > gain(a) for a, b in zip(paths, paths[1:]))


def test_a_candidate_path_has_seven_edits_at_most():
    """Catches paths that are edited at every layer because each edit alone has helped a little."""
    helps = torch.ones(9, 3)
    assert [sum(n != 1 for n in path) for path in combine_edits(helps, 0.0)] == [*range(1, 8)]


def test_candidate_paths_are_the_default_and_what_every_group_proposes(
        tiny_questions, monkeypatch):
    """Shares handed to the wrong path or group would still look plausible."""
    model, tokenizer, prompts = tiny_questions
    rng = random.Random(0)
    tried = [[tuple(rng.randrange(3) for _ in range(3)) for _ in range(20)] for _ in prompts]
    rows = []
    for prompt, paths in zip(prompts, tried):
        correct = confidence_if_correct(model, tokenizer, [prompt], paths)[0]
        rows.append({"correct": [(p, 1.0) for p, r in zip(paths, correct) if r],
                     "wrong": [list(p) for p, r in zip(paths, correct) if not r]})
    found = propose_paths(model, tokenizer, prompts, rows)
    assert found and all(is_legal(path) for path in found)
    monkeypatch.setattr(choose, "SMALLEST_GROUP", 4)
    space = torch.tensor([[0.0]] * 4 + [[9.0]] * 4)
    paths, correct = candidate_paths(model, tokenizer, prompts, rows, space, 2)
    alone = [propose_paths(model, tokenizer, prompts[some], rows[some])
             for some in (slice(8), slice(4), slice(4, 8))]
    assert paths[0] == (1, 1, 1) and set(paths) == {(1, 1, 1)}.union(*alone)
    assert torch.equal(correct, confidence_if_correct(model, tokenizer, prompts, paths) > 0)


def paths_found(monkeypatch, groups, worth):
    """propose_paths of every group, of a model of ten layers that is not there: question n answers
    along a path with probability worth(n, path). groups: the rows of each group."""
    def asked(model, tokenizer, prompts, paths, *args, **how):
        return torch.tensor([[worth(n, path) for path in paths] for n in prompts])

    monkeypatch.setattr(choose, "confidence_if_correct", asked)
    numbers = iter(range(sum(map(len, groups))))
    model = SimpleNamespace(config=SimpleNamespace(num_layers=10))
    return [path for rows in groups
            for path in propose_paths(model, None, [next(numbers) for _ in rows], rows)]


def but(layer, count):
    """The default path of ten layers with another count at one of them."""
    return tuple(count if here == layer else 1 for here in range(10))


def test_proposed_paths_stay_between_seven_tenths_and_fourteen_tenths_of_the_depth(monkeypatch):
    """The band left out, or without its ends. Skips down to 3 layers and repeats up to 17 are
    suggested; every length is on the frontier, as each further layer is worth less."""
    skips = [tried(but(0, 1), but(0, 1), 1)]  # no effect at all: only a price makes skips pay
    repeats = [tried(but(layer, 2), but(0, 1), 100) for layer in range(10)]
    found = paths_found(monkeypatch, [skips, repeats], lambda n, path: (sum(path) / 20) ** 0.5)
    assert sorted(map(sum, found)) == [7, 8, 9, 10, 10, 11, 12, 13, 14]  # both have the default


def test_proposed_paths_are_each_groups_own(monkeypatch):
    """Groups put together, or asked each other's questions. One group is helped by skipping layer
    1, the other by skipping layer 7; every other edit costs 0.2."""
    def worth(n, path):
        helps = but(1 if n < 4 else 7, 0)
        return (path[helps.index(0)] == 0) + 1 - 0.2 * sum(a != b for a, b in zip(path, helps))

    groups = [[tried(but(layer, 0), but(0, 1), 100)] * 4 for layer in (1, 7)]
    assert paths_found(monkeypatch, groups, worth) == [but(1, 0), but(7, 0)]


def test_along_each_columns_are_the_paths_in_the_order_given(tiny_questions):
    """Columns in the order in which the paths happen to be asked; rows in that of the lengths."""
    model, tokenizer, prompts = tiny_questions
    paths = random.Random(0).sample([*itertools.product((0, 1, 2), repeat=3)], 12)
    made = confidence_if_correct(model, tokenizer, prompts, paths, batch_size=3)
    assert paths != sorted(paths) and made.shape == (len(prompts), 12)
    for k, path in enumerate(paths):
        for n, prompt in enumerate(prompts):
            said = generate(model, [prompt.ids], FixedRoute(path), 2, tokenizer.stop_ids)
            correct = grade(tokenizer.decode(said.tokens[0]), prompt.question) > 0
            assert (made[n, k] > 0) == correct
    assert len(set(map(tuple, (made > 0).T.tolist()))) > 3  # else a wrong order would not show


def test_groups_are_found_without_the_distances_of_all_pairs(monkeypatch):
    """Catches a matrix of N x N, which at 100,000 questions would need 40 GB."""
    sizes, cdist = [], torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda a, b: sizes.append(len(a) * len(b)) or cdist(a, b))
    cluster(torch.randn(600, 4), 16)
    assert max(sizes) == 600 * 16


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 50)), min_size=1, max_size=12))
@example([(1, 0), (2, 2), (6, 4)])  # slopes of 2 and 1/2, over lengths of 1 and 4
def test_no_mix_of_two_points_is_above_the_hull(points):
    """Catches lengths that are left out of the slopes, and points below a mix of their neighbours
    or no better than a shorter one."""
    hull = choose.upper_hull(points)
    lengths, values = zip(*hull)
    assert {*hull} <= {*points} and lengths[0] == min(length for length, _ in points)
    assert list(lengths) == sorted({*lengths}) and list(values) == sorted({*values})
    for (a, low), (b, middle), (c, high) in zip(hull, hull[1:], hull[2:]):
        assert (middle - low) * (c - a) > (high - low) * (b - a)
    for length, value in points:
        assert value <= np.interp(length, lengths, values) + 1e-9
