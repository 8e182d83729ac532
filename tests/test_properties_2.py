"""Task 2.7: two properties of the search. See course/handouts/2.7.md."""
import itertools
import math
import random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcts import SearchConfig, decisions_of, edits, ucb_score, search

pytestmark = pytest.mark.task("2.7")


def asked(num_layers, config, seed, default_is_right):
    """Every path a search asks about; a path other than the default is right one time in five."""
    steps, paths = search(num_layers, config, random.Random(seed)), []
    reward = None
    while True:
        try:
            paths.append(steps.send(reward))
        except StopIteration:
            return paths
        lucky = random.Random(f"{seed}{paths[-1]}").random() < 0.2
        reward = float(lucky if len(paths) > 1 else default_is_right)


def legal(num_layers):
    every = itertools.product("012", repeat=num_layers)
    return {tuple(map(int, path)) for path in every if "000" not in "".join(path)}


@given(st.integers(1, 7), st.integers(0, 60), st.integers(0, 99))
def test_a_right_question_asks_new_legal_paths_wide_and_deep(num_layers, simulations, seed):
    """As many as there are simulations, or as there are paths; and not along a single chain."""
    paths = asked(num_layers, SearchConfig(simulations), seed, default_is_right=True)
    every = legal(num_layers)
    assert set(paths) <= every and len(set(paths)) == len(paths)
    assert len(paths) == min(simulations + 1, len(every))
    changes = [sum(count != 1 for count in path) for path in paths]
    if simulations >= 40:
        assert changes.count(1) >= 2 and max(changes) >= min(3, num_layers)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple), st.integers(1, 20),
       st.integers(1, 20), st.integers(0, 20))
def test_paths_edits_and_scores_follow_their_definitions(path, visits, more, right):
    """An edit changes one layer; no layer runs three times; a score is the paper's Eq. 2."""
    for edit in edits(path):
        assert sum(a != b for a, b in zip(edit, path)) == 1
    with pytest.raises(ValueError):
        decisions_of((0,) * 3, len(path))
    child = SimpleNamespace(decisions=path, visits=visits, total_reward=right,
                            parent=SimpleNamespace(visits=visits + more))
    wanted = (right / visits + 1.8 * math.sqrt(math.log(visits + more) / visits)
              - 3 * sum(path) / len(path))
    assert ucb_score(child, SearchConfig()) == pytest.approx(wanted)
