"""The path constraints and the tree search of mcts.py, as properties of whole searches. Its
functions one by one are in test_assignments.py.

No model here: a question is a table of rewards, one fixed coin per path, so a thousand searches
cost less than one forward pass. Small spaces are checked against brute force over all 3^L paths.
"""
import itertools
import random
from dataclasses import FrozenInstanceError, replace
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mcts
from mcts import (EXECUTE, REPEAT, SKIP, Node, SearchConfig, decisions_of, edits, is_legal,
                  path_of, search)

# ---- what the tests draw, and the independent definitions they compare with ----

seeds = st.integers(0, 10**6)
ONE_EDIT = {"extra_edit_prob": 0.0, "extra_edit_prob_before_success": 0.0}
any_decisions = st.lists(st.sampled_from((SKIP, EXECUTE, REPEAT)), max_size=9).map(tuple)


@st.composite
def legal_decisions(draw):
    """Built layer by layer: after two skips a third is not on offer."""
    decisions = ()
    for _ in range(draw(st.integers(1, 9))):
        stuck = decisions[-2:] == (SKIP, SKIP)
        decisions += (draw(st.sampled_from((EXECUTE, REPEAT) if stuck else (0, 1, 2))),)
    return decisions


@st.composite
def configs(draw, **settled):
    """Search settings, extremes included; those named by the caller are not drawn."""
    drawn = {"simulations": draw(st.integers(0, 40)),
             "exploration": draw(st.sampled_from((0.0, 1.8, 50.0))),
             "length_penalty": draw(st.sampled_from((0.0, 3.0, 50.0))),
             "random_child": draw(st.sampled_from((0.0, 0.1, 1.0))),
             "stop_when_repaired": draw(st.booleans()),
             "widening": draw(st.sampled_from((0.0, 0.5, 1.0))),
             "extra_edit_prob": draw(st.sampled_from((0.0, 0.3, 0.9))),
             "extra_edit_prob_before_success": draw(st.sampled_from((0.0, 0.7)))}
    return SearchConfig(**drawn | settled)


def reward_table(seed, chance=0.3, default=None):
    """A fixed reward for every path: right with this chance, and then 1/4, 1/2 or 1."""
    def reward(path):
        if default is not None and set(path) == {EXECUTE}:
            return default
        coin = random.Random(f"{seed} {path}")
        return coin.choice((0.25, 0.5, 1.0)) if coin.random() < chance else 0.0
    return reward


def has_three_skips(decisions):
    return "000" in "".join(map(str, decisions))


def all_legal(num_layers):
    """Brute force: of all 3^L paths, those without 000."""
    every = itertools.product((0, 1, 2), repeat=num_layers)
    return {decisions for decisions in every if not has_three_skips(decisions)}


class CountedRandom(random.Random):
    """A random source that runs dry: a search that spins forever fails instead of hanging."""
    draws = 0

    def random(self):
        self.draws += 1
        assert self.draws < 50_000, "the search spins: 50000 random draws and no end"
        return super().random()


class Run(NamedTuple):
    """A finished search: its result, the paths in the order asked, the nodes of its tree."""
    result: mcts.SearchResult
    asked: list
    nodes: list


def run_search(num_layers, config, seed, reward):
    """The Run of one search, driven to its end."""
    nodes, asked = [], []

    class RecordedNode(Node):
        def __init__(self, *args):
            super().__init__(*args)
            nodes.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mcts, "Node", RecordedNode)
        steps = search(num_layers, config, CountedRandom(seed))
        asked.append(next(steps))
        while True:
            try:
                asked.append(steps.send(reward(asked[-1])))
            except StopIteration as end:
                return Run(end.value, asked, nodes)


def test_the_defaults_are_the_papers_and_nobody_changes_them():
    """Catches a constant of Algorithm 1 that is another, or is set for every later search."""
    config = SearchConfig()
    assert (config.simulations, config.exploration, config.length_penalty, config.random_child,
            config.stop_when_repaired) == (50, 1.8, 3.0, 0.1, True)
    assert (config.widening, config.extra_edit_prob, config.extra_edit_prob_before_success) == (
        0.5, 0.3, 0.7)  # ours
    with pytest.raises(FrozenInstanceError):
        config.random_child = 0.0


# ---- paths ----

@pytest.mark.task("2.1")
def test_paths_by_hand():
    """The README's example, and the two ends: everything skipped, everything repeated."""
    assert path_of((1, 0, 2)) == (0, 2, 2)
    assert decisions_of((0, 2, 2), 3) == (1, 0, 2)
    assert path_of((0, 0)) == () and decisions_of((), 2) == (0, 0)
    assert path_of((2, 2)) == (0, 0, 1, 1)
    assert decisions_of([0, 2, 2], 3) == (1, 0, 2)  # a list as well


@pytest.mark.task("2.1")
@given(any_decisions)
def test_path_of_and_decisions_of_are_inverses(decisions):
    """A path that is off by one layer, or loses the layers skipped at its end."""
    assert decisions_of(path_of(decisions), len(decisions)) == decisions


@pytest.mark.task("2.1")
@given(st.lists(st.integers(0, 5), min_size=2, max_size=9).filter(lambda p: p != sorted(p)))
def test_decisions_of_refuses_a_path_out_of_order(path):
    """Sorting silently: going back to layer 0 is not one of the paper's paths."""
    with pytest.raises(ValueError, match="ordered"):
        decisions_of(path, 6)


@pytest.mark.task("2.1")
@given(any_decisions.filter(len), st.integers(0, 3))
def test_decisions_of_names_the_layer_it_does_not_have_and_the_last_it_has(decisions, beyond):
    """A path of another model; a negative layer, which Python would count from the end."""
    num_layers = len(decisions)
    with pytest.raises(ValueError, match=rf"\b{num_layers + beyond}\b.*0\.\.{num_layers - 1}\b"):
        decisions_of((*path_of(decisions), num_layers + beyond), num_layers)
    with pytest.raises(ValueError, match=rf"-1\b.*0\.\.{num_layers - 1}\b"):
        decisions_of((-1, *path_of(decisions)), num_layers)


@pytest.mark.task("2.1")
@given(st.integers(0, 4), st.integers(3, 6))
def test_decisions_of_names_how_often_a_layer_runs_and_the_limit(layer, times):
    """Three passes through one layer, whichever it is: no decision says that."""
    path = (*range(layer), *(layer,) * times, 5)
    with pytest.raises(ValueError, match=rf"\b{times} times; 2 is the most"):
        decisions_of(path, 6)


# ---- legality ----

@pytest.mark.task("2.2")
@pytest.mark.parametrize("num_layers", range(8))
def test_is_legal_equals_brute_force(num_layers):
    """Counting skips without starting again after an executed layer; an off-by-one limit."""
    every = itertools.product((0, 1, 2), repeat=num_layers)
    assert {decisions for decisions in every if is_legal(decisions)} == all_legal(num_layers)


@pytest.mark.task("2.2")
@given(legal_decisions(), st.integers(0, 9), st.sampled_from((-1, 3, 4)))
def test_any_other_count_is_illegal(decisions, where, count):
    """A repeat applied to a layer that is already repeated gives 3."""
    assert not is_legal(decisions[:where] + (count,) + decisions[where:])


# ---- edits ----

@pytest.mark.task("2.2")
@given(legal_decisions().filter(lambda d: len(d) <= 5))
def test_edits_are_exactly_the_legal_neighbours(decisions):
    """An edit that touches two layers, that undoes an earlier one, or that is forgotten."""
    def is_neighbour(other):
        changed = [layer for layer, pair in enumerate(zip(decisions, other)) if len(set(pair)) > 1]
        return len(changed) == 1 and decisions[changed[0]] == EXECUTE

    found = edits(decisions)
    assert len(found) == len(set(found))
    assert set(found) == {path for path in all_legal(len(decisions)) if is_neighbour(path)}


@pytest.mark.task("2.2")
@given(legal_decisions())
def test_every_edit_is_legal_and_one_layer_longer_or_shorter(decisions):
    """An edit that is checked before it is made, or that repeats twice at once."""
    for path in edits(decisions):
        assert is_legal(path)
        assert abs(sum(path) - sum(decisions)) == 1


# ---- what a search asks ----

@given(st.integers(1, 7), configs(), seeds)
def test_search_asks_the_default_first_and_only_legal_paths_each_once(num_layers, config, seed):
    """Spending simulations on a path already known, or on one the paper forbids."""
    asked = run_search(num_layers, config, seed, reward_table(seed)).asked
    assert asked[0] == (EXECUTE,) * num_layers
    assert len(asked) == len(set(asked))
    assert set(asked) <= all_legal(num_layers)


@given(st.sampled_from((1, 2, 3, 4)), configs(simulations=300, stop_when_repaired=False), seeds)
def test_exhausts_small_space_and_finds_brute_force_best(num_layers, config, seed):
    """A corner of the tree that is never entered, or a search that spins when all is known."""
    reward = reward_table(seed, chance=0.1, default=1.0)
    result, asked, _ = run_search(num_layers, config, seed, reward)
    assert sorted(asked) == sorted(all_legal(num_layers))
    shortest = min(sum(path) for path in all_legal(num_layers) if reward(path) > 0)
    assert sum(result.paper_label) == shortest


# ---- the tree ----

@given(st.integers(1, 7), configs(), seeds)
def test_every_node_visits_equal_own_evaluation_plus_children(num_layers, config, seed):
    """Backpropagation that stops below the root, or that counts the new node twice."""
    reward = reward_table(seed)
    _, asked, nodes = run_search(num_layers, config, seed, reward)
    assert [node.decisions for node in nodes] == asked
    for node in nodes:
        below = node.children
        assert node.visits == 1 + sum(child.visits for child in below)
        assert node.total_reward == reward(node.decisions) + sum(c.total_reward for c in below)


@given(st.integers(3, 9), st.sampled_from((0.0, 1.0)), seeds)
def test_blind_stacking_ends_with_the_first_right_path(num_layers, default, seed):
    """Catches one of the two settings used for the other."""
    config = SearchConfig(8, extra_edit_prob=0.9 * (1 - default),
                          extra_edit_prob_before_success=0.9 * default)
    nodes = run_search(num_layers, config, seed, reward_table(seed, 0.0, default)).nodes
    for node in nodes[1:]:
        assert node.decisions in edits(node.parent.decisions)


def test_edits_stack_by_chance():
    """The mean number of edits a first child of twelve layers adds is about 1 / (1 - 0.5)."""
    config = SearchConfig(1, extra_edit_prob_before_success=0.5)
    edited = [sum(n != EXECUTE for n in run_search(12, config, seed, lambda path: 0.0).asked[1])
              for seed in range(400)]
    assert 1.85 < sum(edited) / 400 < 2.15


@given(st.integers(6, 10), seeds, st.sampled_from((0.0, 0.3, 1.0)))
def test_tree_branches(num_layers, seed, chance):
    """The authors' search extends its newest leaf only: a chain from the default downwards. At its
    second visit a node has room for another child. Below an incorrect default at most eight
    children share 50 visits, so one of them has its second; below a correct one they need not."""
    config = SearchConfig(stop_when_repaired=False)
    root = run_search(num_layers, config, seed, reward_table(seed, chance)).nodes[0]
    assert len(root.children) >= 2
    config = replace(config, **ONE_EDIT)
    root = run_search(num_layers, config, seed, reward_table(seed, chance, default=0.0)).nodes[0]
    assert any(len(child.children) >= 2 for child in root.children)


@given(st.integers(6, 10), seeds, st.sampled_from((0.0, 1.0)))
def test_tree_goes_deep(num_layers, seed, reward):
    """The opposite mistake: 50 simulations all spent on single edits of the default. Where all
    paths are alike, one of the root's eight children has 7 visits, one of that child's three has
    2, and the second of them added a third edit."""
    config = SearchConfig(stop_when_repaired=False, **ONE_EDIT)
    asked = run_search(num_layers, config, seed, lambda path: reward).asked
    assert max(sum(count != EXECUTE for count in path) for path in asked) >= 3


@given(st.integers(1, 16), st.floats(0, 1), seeds)
def test_children_worse_than_their_parent_take_no_room(simulations, widening, seed):
    """Catches a tree that grows below an edit that broke the answer."""
    config = SearchConfig(simulations, widening=widening, **ONE_EDIT)
    nodes = run_search(8, config, seed, reward_table(seed, 0.0, default=1.0)).nodes
    assert len(nodes[0].children) == simulations


# ---- same seed, and many at once ----

@given(st.integers(1, 7), configs(), seeds)
def test_same_seed_same_tree(num_layers, config, seed):
    """A draw from the global random state, or an order that depends on a set."""
    def tree():
        run = run_search(num_layers, config, seed, reward_table(seed))
        return run.result, [(node.decisions, node.parent and node.parent.decisions)
                            for node in run.nodes]

    first = tree()
    random.seed(seed)
    assert tree() == first


def test_every_edit_may_come_first():
    """Edits tried in a fixed order: early layers always, late ones never. Odds: 6 (5/6)^300."""
    config = SearchConfig(1, **ONE_EDIT)
    first = {run_search(3, config, seed, reward_table(0)).asked[1] for seed in range(300)}
    assert first == set(edits((1, 1, 1)))


@given(st.lists(st.tuples(st.integers(1, 5), configs(), seeds), min_size=2, max_size=6))
def test_searches_in_lockstep_equal_searches_one_at_a_time(questions):
    """Anything shared between searches: a default argument, a table on the module."""
    alone = [run_search(*question, reward_table(question[2])).result for question in questions]
    together = [None] * len(questions)
    running = {number: search(num_layers, config, CountedRandom(seed))
               for number, (num_layers, config, seed) in enumerate(questions)}
    waiting = {number: next(steps) for number, steps in running.items()}
    while waiting:
        for number, path in list(waiting.items()):
            try:
                waiting[number] = running[number].send(reward_table(questions[number][2])(path))
            except StopIteration as end:
                together[number] = end.value
                del waiting[number]
    assert together == alone


# ---- when to stop ----

@given(st.integers(2, 6), configs(stop_when_repaired=False), seeds)
def test_search_goes_on_after_a_repair_if_told_so(num_layers, config, seed):
    """A stop rule that cannot be switched off; both searches agree until the first correct path."""
    reward = reward_table(seed, default=0.0)
    asked = run_search(num_layers, config, seed, reward).asked
    stopped = run_search(num_layers, replace(config, stop_when_repaired=True), seed, reward).asked
    assert stopped == asked[:len(stopped)]
    assert len(asked) == min(config.simulations + 1, len(all_legal(num_layers)))
