"""Functions on their own, with everything around them replaced by something simpler.

The tests of whole files run these together; here a function that is wrong fails alone, and one
that is right passes although its neighbours are not written yet. The course (course/README.md)
grades by them.
"""
import math
import random
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import mcts
from choose import confident, consensus, neighbours
from drllm import Routers, class_weights, focal_loss, interpolate, nearest_distance
from evaluate import interval, shuffled
from mcts import SearchConfig, backpropagate, ucb_score, search, select_node_to_expand
from model_llama import KVCache, RMSNorm, Slot, attention, FixedRoute, rotate, run_blocks
from questions.loading import Question
from questions.reward import extract_answer
from tiny import cos_sin

seeds = st.integers(0, 10**6)
sizes = st.integers(1, 5)


def randn(seed, *shape):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def close(got, wanted, tolerance=1e-10):
    __tracebackhide__ = True
    torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance, check_dtype=False)


# ---- the decoder ----

@pytest.mark.task("1.1")
@given(st.integers(1, 9), seeds, st.floats(1e-8, 1.0))
def test_rms_norm_equals_its_formula(size, seed, eps):
    """Catches a mean that is subtracted, eps outside the root, and a weight that is left out."""
    norm, x = RMSNorm(size, eps).double(), randn(seed, 2, 3, size)
    norm.weight.data = randn(seed + 1, size)
    for vector, normed in zip(x.view(-1, size), norm(x).view(-1, size)):
        root = math.sqrt(sum(v * v for v in vector.tolist()) / size + eps)
        close(normed, vector / root * norm.weight)


def turned(heads, angles):
    """heads (..., T, E) with channel pairs (i, i + E/2) turned by angles (..., T, E/2), as
    numbers of the complex plane."""
    first, second = heads.chunk(2, dim=-1)
    spun = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((spun.real, spun.imag), dim=-1)


@pytest.mark.task("1.2")
@given(sizes, sizes, st.sampled_from((2, 4, 6)), st.sampled_from(((), (2, 1))), seeds)
def test_rotate_turns_each_pair_by_its_angle(heads, tokens, head_dim, rows, seed):
    """Catches neighbouring channels taken for a pair, a turn the wrong way round, and one row's
    angles used for all. rows: () if both rows have the same angles."""
    x = randn(seed, 2, heads, tokens, head_dim)
    angles = randn(seed + 1, *rows, tokens, head_dim // 2)
    wanted = turned(x, angles)  # before x is given away
    close(rotate(x, *cos_sin(angles)), wanted)


@pytest.mark.task("1.2")
def test_rotate_by_hand():
    """A quarter turn takes (1, 0) to (0, 1) and (0, 1) to (-1, 0). What was turned stays as it is.
    """
    quarter, heads = cos_sin(torch.tensor([torch.pi / 2])), torch.eye(2)
    close(rotate(heads, *quarter), torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), 1e-6)
    assert torch.equal(heads, torch.eye(2))


def attention_by_hand(queries, keys, values, visible):
    """One row, one head, one query at a time; visible (N, T, S) bool."""
    N, H, T, E = queries.shape
    group, out = H // keys.shape[1], torch.zeros_like(queries)
    for n in range(N):
        for h in range(H):
            for t in range(T):
                seen = visible[n, t]
                scores = keys[n, h // group, seen] @ queries[n, h, t] / math.sqrt(E)
                out[n, h, t] = scores.softmax(0) @ values[n, h // group, seen]
    return out


@st.composite
def heads(draw):
    """(queries (N, H, T, E), keys and values (N, K, S, E)) for T tokens after S - T others."""
    N, K, group, T, before = (draw(st.integers(1, 3)) for _ in range(5))
    E, seed, before = draw(st.sampled_from((2, 4, 16, 32))), draw(seeds), before - 1
    shape = (N, K, T + before, E)
    spread = draw(st.sampled_from((1, 1000)))  # exp() of a score of 1000 is infinite
    queries = spread * randn(seed, N, K * group, T, E)
    return queries, randn(seed + 1, *shape), randn(seed + 2, *shape)


@pytest.mark.task("1.3")
@given(heads())
def test_attention_without_mask_is_causal_or_one_token_that_sees_all(drawn):
    """Catches key heads handed out in turns instead of in groups, and a look at the future."""
    queries, keys, values = drawn
    T, S = queries.shape[2], keys.shape[2]
    if T > 1:
        keys, values, S = keys[:, :, :T], values[:, :, :T], T
    visible = torch.ones(T, S).tril(S - T).bool().expand(len(queries), T, S)
    close(attention(queries, keys, values, None),
          attention_by_hand(queries, keys, values, visible))


@pytest.mark.task("1.3")
@given(heads(), st.booleans(), seeds)
def test_attention_sees_exactly_what_the_mask_shows(drawn, for_all, seed):
    """Catches a second chunk masked as if it were the first, and one row's mask used for all."""
    queries, keys, values = drawn
    (N, _, T, _), S = queries.shape, keys.shape[2]
    visible = randn(seed, 1 if for_all else N, T, S) > 0
    visible[:, :, 0] = True
    close(attention(queries, keys, values, visible[:, None]),
          attention_by_hand(queries, keys, values, visible.expand(N, T, S)))


@pytest.mark.task("1.4")
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 3), sizes, seeds)
def test_a_slot_gives_back_all_chunks_in_order(chunks, room, rows, seed):
    """Catches a chunk written over the one before it, unwritten room handed out as keys, and a
    last column that stays empty."""
    total = sum(chunks)
    keys, values = randn(seed, rows, 2, total, 4), randn(seed + 1, rows, 2, total, 4)
    slot, start = Slot(None, total + room), 0
    for T in chunks:
        span, end = SimpleNamespace(start=start), start + T
        seen = slot.write(keys[:, :, start:end], values[:, :, start:end], span)
        close(seen[0], keys[:, :, :end])
        close(seen[1], values[:, :, :end])
        assert slot.keys.shape == slot.values.shape == (rows, 2, total + room, 4)
        start = end


@pytest.mark.task("1.4")
@given(st.integers(1, 4), st.integers(1, 3), seeds)
def test_a_slot_writes_over_the_padding_of_a_prompt(length, padding, seed):
    """Catches a slot that counts for itself, since the span says where new tokens stand, and one
    that makes new tensors for every token."""
    prompt, new = randn(seed, 2, 2, 1, length + padding, 4), randn(seed + 1, 2, 2, 1, 1, 4)
    slot = Slot(None, length + padding + 1)
    slot.write(*prompt, SimpleNamespace(start=0))
    stored = slot.keys, slot.values
    for old, added, seen in zip(prompt, new, slot.write(*new, SimpleNamespace(start=length))):
        close(seen, torch.cat((old[:, :, :length], added), dim=2))
    assert slot.keys is stored[0] and slot.values is stored[1]


@pytest.mark.task("1.4")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_slot_stores_what_it_is_given_in_its_own_dtype(dtype):
    """Catches a cache of float64 that takes twice the memory, and keys stored as values."""
    keys, values = randn(0, 1, 2, 3, 4).to(dtype), randn(1, 1, 2, 3, 4).to(dtype)
    slot = Slot(None, 5)
    seen = slot.write(keys, values, SimpleNamespace(start=0))
    assert slot.keys.dtype == slot.values.dtype == dtype
    assert torch.equal(seen[0], keys) and torch.equal(seen[1], values)
    assert torch.equal(slot.keys[:, :, :3], keys) and torch.equal(slot.values[:, :, :3], values)


@pytest.mark.task("1.4")
def test_a_slot_without_room_keeps_nothing():
    """Catches a single full pass that allocates, or that fails."""
    keys, values, slot = randn(0, 2, 2, 3, 4), randn(1, 2, 2, 3, 4), Slot(None)
    seen = slot.write(keys, values, SimpleNamespace(start=0))
    assert seen[0] is keys and seen[1] is values and slot.keys is None


class CountedBlock:
    """Stands for a block: 2 hidden + 1 + its layer; notes the slot of every pass."""

    def __init__(self, layer):
        self.layer, self.passes = layer, []

    def __call__(self, hidden, span, slot):
        rows = torch.arange(len(hidden)) if slot.rows is None else slot.rows
        assert span.rows.tolist() == rows.tolist(), "the positions are those of other rows"
        self.passes.append((slot, len(hidden)))
        return 2 * hidden + 1 + self.layer


class CountedSpan:
    """Stands for the positions of rows; it knows their numbers only, rows (N,)."""

    def __init__(self, rows):
        self.rows = rows

    def take(self, rows):
        assert rows is not None, "take() was given None: all rows run"
        return CountedSpan(self.rows[rows])


def fake_model(layers):
    return SimpleNamespace(layers=[CountedBlock(layer) for layer in range(layers)])


@st.composite
def batches_of_paths(draw):
    """(B, L) decisions of one to four rows through one to four layers."""
    layers = draw(st.integers(1, 4))
    path = st.lists(st.integers(0, 2), min_size=layers, max_size=layers)
    return torch.tensor(draw(st.lists(path, min_size=1, max_size=4)))


@pytest.mark.task("1.5")
@given(batches_of_paths(), seeds)
def test_the_loop_runs_each_layer_as_often_as_its_row_says(decisions, seed):
    """Catches row 0's decision used for all rows, a route asked about the wrong states, a second
    pass that reads what the first one read, and rows that skip but do not stay as they are."""
    B, L = decisions.shape
    start, asked = randn(seed, B, 3, 2), []

    def route(layer, hidden, lengths):
        assert isinstance(lengths, torch.Tensor), "the route is given cache.lengths"
        asked.append((layer, hidden.clone(), lengths.tolist()))
        return decisions[:, layer].clone()

    model, cache = fake_model(L), KVCache([3, 2, 1, 3][:B], L)
    got = run_blocks(model, start, CountedSpan(torch.arange(B)), cache, route)
    wanted = start.clone()
    for layer, (number, seen, lengths) in zip(range(L), asked):
        assert number == layer and lengths == [3, 2, 1, 3][:B]
        close(seen, wanted)
        for row in range(B):
            for _ in range(decisions[row, layer]):
                wanted[row] = 2 * wanted[row] + 1 + layer
    close(got, wanted)
    assert len(asked) == L and torch.equal(cache.decisions, decisions)
    for layer, block in enumerate(model.layers):  # no row enters a block in vain
        assert sum(rows for _, rows in block.passes) == decisions[:, layer].sum()


@pytest.mark.task("1.5")
@given(batches_of_paths(), seeds)
def test_without_a_route_the_loop_replays_the_same_passes_in_the_same_slots(decisions, seed):
    """Catches both passes sharing a slot, and a decode that forgets what the prompt decided."""
    B, L = decisions.shape
    model, cache, start = fake_model(L), KVCache([3] * B, L), randn(seed, B, 3, 2)
    span = CountedSpan(torch.arange(B))
    first = run_blocks(model, start, span, cache, FixedRoute(decisions))
    passes = [list(block.passes) for block in model.layers]
    close(run_blocks(model, start, span, cache), first)
    for block, before in zip(model.layers, passes):
        slots = [slot for slot, _ in before]
        assert len(set(map(id, slots))) == len(slots)
        assert block.passes == before * 2


# ---- paths and search: a tree of bare nodes ----

class Bare(SimpleNamespace):
    """A node without anything to do; a message shows its path only, or that it is the root."""

    def __repr__(self):
        return "root" if self.parent is None else f"node{self.decisions}".replace(",)", ")")


def bare(decisions, visits=1, total_reward=0.0, parent=None, edits=(), reward=0.0):
    node = Bare(decisions=decisions, visits=visits, total_reward=total_reward, parent=parent,
                edits=list(edits), reward=reward, children=[], exhausted=False)
    if parent is not None:
        parent.children.append(node)
    return node


@contextmanager
def replaced(**functions):
    """mcts with some of its functions replaced."""
    with pytest.MonkeyPatch.context() as patch:
        for name, function in functions.items():
            patch.setattr(mcts, name, function)
        yield


@pytest.mark.task("2.3")
def test_score_by_hand():
    """0.5 + 1.8 * 0.8326 - 3.0 * 0.9167: the parent was visited 4 times, the child twice."""
    child = bare((0,) + (1,) * 11, visits=2, total_reward=1.0, parent=bare((1,) * 12, visits=4))
    assert ucb_score(child, SearchConfig()) == pytest.approx(-0.7514, abs=5e-5)


@pytest.mark.task("2.3")
@given(st.lists(st.integers(0, 2), min_size=1, max_size=9), st.integers(1, 50),
       st.integers(0, 50), st.floats(0, 1), st.floats(0, 5), st.floats(0, 5))
def test_score_equals_its_formula(path, visits, more, mean, exploration, penalty):
    """Catches the child's visits under the logarithm, a sum in place of a mean, a sign."""
    parent = bare((2,) * len(path), visits=visits + more)  # L is not the blocks of its path
    child = bare(tuple(path), visits, mean * visits, parent)
    bonus = exploration * math.sqrt(math.log(visits + more) / visits)
    wanted = mean + bonus - penalty * sum(path) / len(path)
    config = SearchConfig(exploration=exploration, length_penalty=penalty)
    assert ucb_score(child, config) == pytest.approx(wanted, abs=1e-9)


def by_number(child, config):
    """Stands for the score: the number a child carries as its path."""
    return child.decisions[0]


def chosen(root, known=(), random_child=0.0, widening=0.5, seed=0):
    """What select gives, with the score of a child being its number."""
    config = SearchConfig(random_child=random_child, widening=widening)
    with replaced(ucb_score=by_number):
        rewards = {path: 0.0 for path in known}
        return select_node_to_expand(root, rewards, config, random.Random(seed))


@pytest.mark.task("2.4")
@given(st.permutations(range(5)))
def test_select_descends_to_the_child_of_the_largest_score(numbers):
    """Catches min in place of max, and a descent that stops half way."""
    root = bare((9,), visits=30)
    for number in numbers:
        child = bare((number,), 6, parent=root)
        for leaf in numbers:
            bare((leaf,), parent=child, edits=[(100 + 10 * number + leaf,)])
    best = chosen(root)
    assert best.decisions == (4,) and best.parent.decisions == (4,)


@pytest.mark.task("2.4")
@given(st.integers(1, 40), st.lists(st.sampled_from((0.0, 0.5, 1.0)), max_size=8),
       st.sampled_from((0.0, 0.5, 1.0)))
@example(5, [1.0, 1.0], 0.5)  # two are fewer than 5 ** 0.5 = 2.236
def test_select_widens_a_node_by_a_power_of_its_visits(visits, rewards, widening):
    """Catches a chain (never a second child), a star (never a grandchild), and children worse
    than their parent that take the room of others."""
    root = bare((9,), visits, edits=[(99,)], reward=0.5)
    for number, reward in enumerate(rewards):
        bare((number,), parent=root, edits=[(10 + number,)], reward=reward)
    widens = sum(reward >= 0.5 for reward in rewards) < visits ** widening
    assert (chosen(root, widening=widening) is root) == widens


@pytest.mark.task("2.4")
def test_select_forgets_what_is_known_and_says_when_nothing_is_left():
    """Catches a path that is asked twice, a finished branch that is entered, an endless loop, and a
    list of edits that loses what was asked."""
    root = bare((9,), visits=3)
    done, live = bare((5,), parent=root, edits=[(1,)]), bare((4,), parent=root, edits=[(1,), (2,)])
    assert chosen(root, known=[(1,)]) is live and done.exhausted and not root.exhausted
    assert chosen(root, known=[(1,), (2,)]) is None and root.exhausted
    assert done.edits == [(1,)] and live.edits == [(1,), (2,)]
    assert (root.visits, done.visits, live.visits) == (3, 1, 1)


@pytest.mark.task("2.4")
def test_select_takes_a_random_child_as_often_as_told():
    """Catches the coin turned over. Odds of missing a child of five in 200: 5 (4/5)^200."""
    def leaves(random_child):
        found = set()
        for seed in range(200):
            root = bare((9,), visits=25)
            for number in range(5):
                bare((number,), parent=root, edits=[(10 + number,)])
            found.add(chosen(root, random_child=random_child, seed=seed).decisions)
        return found

    assert leaves(0.0) == {(4,)} and leaves(1.0) == {(n,) for n in range(5)}


@pytest.mark.task("2.4")
def test_select_tosses_a_coin_at_every_node():
    """Catches one coin for a whole walk, and a probability that is rounded or forgotten below the
    root. Of 2,000 walks at 0.4, 400 turn to the worse child at each of two nodes, 80 at both; the
    bounds are five standard deviations away."""
    root = bare((9,), visits=4)
    for number in range(2):
        child = bare((number,), 4, parent=root)
        for leaf in range(2):
            bare((leaf,), parent=child, edits=[(10 + 2 * number + leaf,)])
    walks = [chosen(root, random_child=0.4, seed=seed) for seed in range(2000)]
    above = [node.parent.decisions == (0,) for node in walks]
    below = [node.decisions == (0,) for node in walks]
    assert 310 < sum(above) < 490 and 310 < sum(below) < 490
    assert 37 < sum(map(min, above, below)) < 123


@pytest.mark.task("2.4")
@pytest.mark.parametrize("random_child", [0.0, 1.0])
def test_select_never_enters_an_exhausted_child(random_child):
    """Catches a score, or a coin, that takes a branch in which nothing is left."""
    for seed in range(20):
        root = bare((9,), visits=25)
        for number in range(5):
            bare((number,), parent=root, edits=[(10 + number,)]).exhausted = number != 2
        assert chosen(root, random_child=random_child, seed=seed).decisions == (2,)


@pytest.mark.task("2.4")
def test_select_widens_a_full_node_whose_children_are_all_exhausted():
    """Catches a node with an edit left that is given up, or a choice among no children."""
    root = bare((9,), visits=1, edits=[(99,)])
    for number in range(3):
        bare((number,), parent=root).exhausted = True
    assert chosen(root) is root and not root.exhausted


@pytest.mark.task("2.4")
def test_select_counts_exhausted_children_too():
    """Catches room that a finished branch gives back: a node would widen without end."""
    root = bare((9,), visits=4, edits=[(99,)])
    for number in range(3):
        bare((number,), parent=root, edits=[(10 + number,)]).exhausted = number < 2
    assert chosen(root).decisions == (2,)


@pytest.mark.task("2.4")
def test_select_measures_children_and_visits_by_the_node_itself():
    """Catches the root's reward or visits used at every depth."""
    root = bare((9,), visits=100, reward=0.0)
    for number in range(10):
        child = bare((number,), 4, parent=root, edits=[(50,)], reward=1.0)
        bare((20,), parent=child, edits=[(51,)], reward=1.0)
        bare((21,), parent=child, edits=[(52,)], reward=0.5)
    assert chosen(root).decisions == (9,)  # one of its children is as good as it; two may be
    for child in root.children:
        bare((22,), parent=child, edits=[(53,)], reward=1.0)
    assert chosen(root).decisions == (22,)


@pytest.mark.task("2.4")
def test_select_starts_again_at_the_root_after_a_dead_end():
    """Catches a walk that goes on at the parent. The right-hand child is then taken in one of two
    walks, not in 5 of 8: four standard deviations apart in 1,000 walks."""
    taken = 0
    for seed in range(1000):
        root = bare((9,), visits=9)
        left, right = bare((1,), 9, parent=root), bare((2,), parent=root, edits=[(20,)])
        bare((3,), parent=left)  # nothing below it
        bare((4,), parent=left, edits=[(40,)])
        taken += chosen(root, random_child=1.0, seed=seed) is right
    assert 562 < taken < 690


@pytest.mark.task("2.4")
def test_select_draws_from_the_generator_it_is_given():
    """Catches the global generator, with which no search can be repeated."""
    root = bare((9,), visits=25)
    for number in range(5):
        bare((number,), parent=root, edits=[(10 + number,)])
    before = random.getstate()
    walks = [[chosen(root, random_child=0.5, seed=seed) for seed in range(30)] for _ in range(2)]
    assert walks[0] == walks[1] and random.getstate() == before


@pytest.mark.task("2.5")
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.floats(0, 1))
def test_backpropagate_reaches_the_root_and_nothing_else(visits, reward):
    """Catches a walk that stops below the root or at an exhausted node, siblings that are credited,
    and a reward that takes the place of another node's own."""
    chain, parent = [], None
    for count in visits:
        parent = bare((1,), count, float(count), parent)
        parent.exhausted = count % 2 == 1
        chain.append(parent)
    beside = [bare((0,), 3, 2.0, node) for node in chain]
    chain[-1].reward = reward
    backpropagate(chain[-1])
    assert [node.visits for node in chain] == [count + 1 for count in visits]
    assert [node.total_reward for node in chain] == [count + reward for count in visits]
    assert all((node.visits, node.total_reward) == (3, 2.0) for node in beside)
    assert [node.reward for node in chain] == [0.0] * (len(chain) - 1) + [reward]
    assert [node.exhausted for node in chain] == [count % 2 == 1 for count in visits]


def walk(num_layers, config, reward, edits):
    """A search driven to its end over a tree that is walked in a fixed order:
    (result, paths asked, credited)."""
    asked, credited, given = [], [], (config, random.Random(0))

    def check(known, *others):
        assert known == {path: reward(path) for path in asked}
        assert others == given, "the search was given another config or rng"

    def first_open(root, known, config, rng):
        check(known, config, rng)
        nodes = [root]
        for node in nodes:
            if any(path not in known for path in node.edits):
                return node
            nodes.extend(node.children)

    def last_open(parent, known, config, rng):
        check(known, config, rng)
        return [path for path in parent.edits if path not in known][-1]

    with replaced(edits=edits, propose_child_path=last_open,
                  backpropagate=lambda node: credited.append((node.decisions, node.reward))):
        steps = search(num_layers, *given, first_open)
        asked.append(next(steps))
        while True:
            try:
                asked.append(steps.send(reward(asked[-1])))
            except StopIteration as end:
                return end.value, asked, credited


def one_change(decisions):
    """All paths with one more layer changed."""
    return [decisions[:i] + (n,) + decisions[i + 1:] for i, now in enumerate(decisions) if now == 1
            for n in (0, 2)]


rewards_by_seed = st.tuples(seeds, st.sampled_from((0.0, 0.1, 0.5)),
                            st.sampled_from((0.0, 0.0, 0.01, 0.5, 1.0)))


def reward_of(drawn):
    """A fixed reward per path; the third value is the default's. A small reward is correct too."""
    seed, chance, default = drawn

    def reward(path):
        if set(path) == {1}:
            return default
        coin = random.Random(f"{seed} {path}")
        return coin.choice((0.01, 0.25, 1.0)) if coin.random() < chance else 0.0
    return reward


@pytest.mark.task("2.6")
@given(st.integers(1, 4), st.integers(0, 30), rewards_by_seed, st.booleans())
def test_search_asks_the_default_then_one_new_path_per_simulation(layers, n, drawn, stops):
    """Catches the default counted as a simulation, a path asked twice, and a reward that is
    credited to another node than the one asked about."""
    reward = reward_of(drawn)
    config = SearchConfig(n, stop_when_repaired=stops)
    result, asked, credited = walk(layers, config, reward, one_change)
    assert asked[0] == (1,) * layers and len(set(asked)) == len(asked)
    assert credited == [(path, reward(path)) for path in asked]
    assert list(result.rewards.items()) == credited and result.default_reward == reward(asked[0])
    corrected = stops and not reward(asked[0]) and reward(asked[-1]) > 0
    assert corrected or len(asked) == min(n + 1, 3 ** layers)


@pytest.mark.task("2.6")
@given(st.integers(1, 4), st.integers(0, 30), rewards_by_seed)
def test_search_stops_at_the_first_repair_only_where_the_default_was_wrong(layers, n, drawn):
    """Catches a right default that ends the search, and a search that goes on after a repair."""
    reward = reward_of(drawn)
    result, asked, _ = walk(layers, SearchConfig(n), reward, one_change)
    correct = [path for path in asked if reward(path) > 0]
    if reward(asked[0]):
        assert len(asked) == min(n + 1, 3 ** layers)
        assert result.paper_label == min(correct, key=sum)
    else:
        assert correct in ([], asked[-1:])
        assert result.paper_label == (correct[0] if correct else None)


def small_search(rewards, default, stops=False):
    """(result, nodes) of a search over two layers that asks all nine paths, each below the one
    before it: rewards {path: reward} of the correct ones."""
    nodes = []
    order = [(2, 1), (0, 1), (1, 0), (1, 2), (0, 0), (0, 2), (2, 0), (2, 2)]

    def deepest(root, asked, config, rng):
        assert nodes, "select was called before backpropagate was given the root"
        return nodes[-1]

    def next_path(parent, asked, config, rng):
        assert 1 <= len(asked) <= len(order), (
            f"child {len(nodes)} was asked for with {len(asked)} rewards, of at most {len(order)}")
        return order[len(asked) - 1]

    with replaced(edits=lambda path: [], propose_child_path=next_path, backpropagate=nodes.append):
        config = SearchConfig(len(order), stop_when_repaired=stops)
        steps = search(2, config, random.Random(0), deepest)
        path = next(steps)
        while True:
            try:
                path = steps.send(default if path == (1, 1) else rewards.get(path, 0.0))
            except StopIteration as end:
                return end.value, nodes


@pytest.mark.task("2.6")
def test_search_hangs_every_child_below_the_node_that_was_selected():
    """Catches a tree that is a star, and one whose nodes do not know their children."""
    _, nodes = small_search({}, default=0.0)
    assert len(nodes) == 9 and nodes[0].parent is None
    for parent, child in zip(nodes, nodes[1:]):
        assert child.parent is parent
        assert len(parent.children) == 1 and parent.children[0] is child


@pytest.mark.task("2.6")
def test_search_returns_the_papers_label():
    """Catches the shortest or the last path where the first correct one is wanted, layers counted
    in place of block runs, and the last of equally short paths. Any reward above 0 is correct."""
    correct = {(2, 1): 0.01, (0, 1): 0.5, (0, 0): 1.0}
    assert small_search(correct, default=0.0)[0].paper_label == (2, 1)
    stopped, _ = small_search(correct, default=0.0, stops=True)
    assert stopped.paper_label == (2, 1) and list(stopped.rewards) == [(1, 1), (2, 1)]
    for default in (0.01, 0.5, 1.0):
        assert small_search(correct, default, stops=True)[0].paper_label == (0, 0)
    assert small_search({(0, 2): 1.0, (2, 0): 1.0}, default=1.0)[0].paper_label == (1, 1)
    assert small_search({(0, 1): 1.0, (1, 0): 1.0}, default=1.0)[0].paper_label == (0, 1)


# ---- answers and labels ----

@pytest.mark.task("3.1")
def test_an_answer_that_a_stop_ends_is_the_whole_text():
    """Catches a box looked for in an answer that is compared as it is spelled."""
    question = Question("s", "t", 0, "", "x", prompt="Q: x?\nA:", stop="\n")
    assert extract_answer(" it is \\boxed{5} ", question) == "it is \\boxed{5}"
    assert extract_answer("  ", question) is None


@pytest.mark.task("3.1")
@given(st.sampled_from("ABCD"), st.from_regex("[b-z]{3,6}", fullmatch=True), st.integers(0, 999))
def test_an_answer_is_found_whatever_it_is(letter, word, number):
    """Catches answers that are looked up in a table."""
    choice = Question("c", "t", 0, "?", "A", ("w", "x", "y", "z"))
    assert extract_answer(f"({letter}) {word}", choice) == letter
    assert extract_answer(f"**Answer: {letter.lower()}.**", choice) == letter
    written = Question("w", "t", 0, "?", "5")
    assert extract_answer(f"{word}: \\boxed{{7}}, no, \\boxed{{{number}}}", written) == str(number)
    assert extract_answer(f"{word} {number}", written) is None


@pytest.mark.task("3.2")
@given(st.lists(st.tuples(st.integers(0, 24), st.floats(0, 1)), max_size=8), st.floats(0, 0.2))
def test_confident_label_is_worth_most(met, cost_per_layer):
    """Catches a price with the wrong sign, a shortest path, a question that is left out."""
    correct = [((1,) * length, sure) for length, sure in met]
    labels = confident([{"correct": correct}], cost_per_layer)
    assert len(labels) == 1, f"{len(labels)} labels for 1 record"
    [label] = labels
    worth = {path: sure - cost_per_layer * len(path)
             for path, sure in sorted(correct, key=lambda m: m[1])}
    assert (label is None) == (not correct)
    assert not correct or worth[label] == max(worth.values())


@pytest.mark.task("3.3")
@given(st.integers(2, 12), st.integers(1, 4), st.integers(1, 12), seeds)
def test_neighbours_equal_a_loop(N, K, number, seed):
    """Catches a share over all questions, and more neighbours than there are."""
    space, correct = randn(seed, N, 3), randn(seed + 1, N, K) > 0
    shares = neighbours(space, correct, number)
    for n in range(N):
        others = sorted((m for m in range(N) if m != n),
                        key=lambda m: (space[n] - space[m]).norm().item())[:number]
        close(shares[n], correct[others].double().mean(0), 1e-6)


@pytest.mark.task("3.3")
def test_a_question_at_the_same_place_is_a_neighbour():
    """Catches the nearest row taken for the question itself: it may be its twin."""
    correct = torch.eye(4, dtype=torch.bool)
    others = (1 - torch.eye(4)) / 3
    close(neighbours(torch.zeros(4, 2), correct, 3), others, 1e-6)


@pytest.mark.task("3.4")
@given(st.integers(1, 6), st.integers(1, 5), st.floats(0, 2), seeds)
def test_consensus_label_is_right_and_worth_most(N, K, cost_per_layer, seed):
    """Catches a label that answers the neighbours but not the question, and length for free. At a
    cost per layer of 2 a path of eight blocks is worth about -16."""
    rng = random.Random(seed)
    paths = [tuple(rng.randrange(3) for _ in range(4)) for _ in range(K)]
    correct, share = randn(seed, N, K) > 0, randn(seed + 1, N, K).clamp(0, 1)  # half are 0
    for n, label in enumerate(consensus(correct, share, paths, cost_per_layer)):
        worth = [(share[n, k].item() - cost_per_layer * sum(paths[k]), paths[k])
                 for k in range(K) if correct[n, k]]
        assert label is None or label in [path for _, path in worth], (
            f"question {n}: {label} is not correct for it")
        assert (label is None) == (not worth)
        assert not worth or max(w for w, path in worth if path == label) == pytest.approx(
            max(worth)[0], abs=1e-5)


@pytest.mark.task("3.4")
def test_consensus_leaves_its_arguments_alone():
    """Catches `share[~correct] = -inf`: the caller's own tensor would lose its values. At a high
    cost per layer an incorrect path must still be worth less than a correct one."""
    correct, share = torch.tensor([[True, False]]), torch.tensor([[0.25, 0.5]])
    paths = [(1, 1), (0, 1)]
    assert consensus(correct, share, paths, 0.1) == [(1, 1)]
    assert consensus(~correct, share, [(1, 1), (2, 2)], 1e6) == [(2, 2)]
    assert correct.tolist() == [[True, False]] and share.tolist() == [[0.25, 0.5]]
    assert paths == [(1, 1), (0, 1)]


@pytest.mark.task("3.4")
def test_of_equally_good_paths_consensus_takes_the_first():
    """Catches the last of equals, with which a label changes when a path is added."""
    paths, correct = [(1, 1), (2, 0), (0, 2)], torch.ones(1, 3, dtype=torch.bool)
    assert consensus(correct, torch.full((1, 3), 0.5), paths, 0.01) == [(1, 1)]
    paths, share = [(2, 2), (1, 1)], torch.tensor([[0.75, 0.25]])
    assert consensus(correct[:, :2], share, paths, 0.25) == [(2, 2)]


@pytest.mark.task("3.2")
def test_of_equally_good_paths_the_first_met_is_the_label():
    """Catches the last of equals, a shorter path preferred beyond its price, and worths that are
    compared after rounding."""
    row = {"correct": [((2, 2), 0.75), ((1, 1), 0.25), ((2, 0), 0.25)]}
    assert confident([row], 0.25) == [(2, 2)]
    assert confident([{"correct": row["correct"][1:]}], 0.25) == [(1, 1)]
    assert confident([{"correct": [((1, 1), 0.5), ((2, 0), 0.50001)]}], 0.25) == [(2, 0)]


# ---- routers ----

@pytest.mark.task("4.2")
@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 1 - 1e-7])
def test_class_weights_equal_their_formula_for_large_counts(beta):
    """Catches float32, in which a beta close to 1 is another number."""
    counts = (3, 10**5, 10**7)
    weights = [(1 - beta) / (1 - beta ** n) for n in counts]
    wanted = [weight * 3 / sum(weights) for weight in weights]
    assert class_weights(counts, beta).tolist() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.task("4.3")
@given(seeds, st.floats(0, 4), st.sampled_from((1.0, 8.0)))
def test_focal_loss_equals_its_formula(seed, gamma, spread):
    """Catches a gamma that is rounded, and easy labels that are all worth the same."""
    logits, weights = spread * randn(seed, 4, 2, 3), torch.tensor([0.5, 1.0, 1.5]).double()
    labels = torch.randint(3, (4, 2), generator=torch.Generator().manual_seed(seed))
    terms = []
    for row, label in zip(logits.view(-1, 3), labels.flatten()):
        odds = sum(math.exp(other - row[label]) for n, other in enumerate(row) if n != label)
        terms.append(weights[label] * (odds / (1 + odds)) ** gamma * math.log1p(odds))
    wanted = sum(terms) / len(terms)
    torch.testing.assert_close(focal_loss(logits, labels, weights, gamma), wanted, rtol=1e-5,
                               atol=1e-11)


@pytest.mark.task("4.3")
def test_focal_loss_of_an_easy_label_by_hand():
    """Catches a floor under 1 - p. With 1 - p = q the loss at gamma 1 is q times q + q^2 / 2 + ...
    """
    for q in (1e-4, 1e-7):
        logits = torch.tensor([[q / 2, 1 - q, q / 2]], dtype=torch.float64).log()
        for gamma in (1.0, 2.0):
            loss = focal_loss(logits, torch.tensor([1]), gamma=gamma).item()
            assert loss == pytest.approx(q ** (gamma + 1), rel=1e-3, abs=0)


@pytest.mark.task("4.3")
def test_focal_loss_has_the_slope_of_its_formula():
    """Catches a factor (1 - p)^gamma that training takes for a constant."""
    logits, labels = randn(3, 5, 3).requires_grad_(), torch.tensor([0, 1, 2, 1, 0])
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, labels, gamma=2.0), logits)


@pytest.mark.task("4.4")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("control", [-1.0, -0.75, -0.5, 0.0, 0.75, 1.0])
def test_interpolation_keeps_shape_and_dtype(control, dtype):
    """Catches stops of another dtype, and a stop that is not expanded to all prompts."""
    probabilities = randn(0, 2, 4, 3).softmax(-1).to(dtype)
    mixed = interpolate(probabilities, control)
    assert mixed.dtype == dtype and mixed.shape == (2, 4, 3)


def routers_of(seed, layers, width, windows):
    """Routers on 5 channels with random weights and biases, float64."""
    routers = Routers(layers, 5, width, windows).double()
    for n, parameter in enumerate(routers.parameters()):
        parameter.data = randn(seed + n, *parameter.shape)
    return routers.requires_grad_(False)


def vote(routers, layer, window):
    """(3,) logits of one router for one window (D,)."""
    inner = window @ routers.w1[layer] + routers.b1[layer, 0]
    inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2  # GELU
    return inner @ routers.w2[layer] + routers.b2[layer, 0]


@pytest.mark.task("4.5")
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 3), sizes, seeds)
def test_routers_equal_one_vote_per_layer_prompt_and_window(used, layers, width, seed):
    """Catches layers or windows mixed up by a reshape, the tanh GELU, a bias per window."""
    routers, pooled = routers_of(seed, layers, width, 4), randn(seed, len(used), layers, 4, 5)
    logits = routers(pooled, torch.tensor(used))
    assert logits.shape == (len(used), layers, 3)
    for row, count in enumerate(used):
        for layer in range(layers):
            votes = [vote(routers, layer, pooled[row, layer, w]) for w in range(count)]
            close(logits[row, layer], torch.stack(votes).mean(0), 1e-9)


@pytest.mark.task("4.5")
@given(st.integers(2, 4), st.data(), seeds)
def test_some_layers_equal_the_same_layers_of_all(layers, data, seed):
    """Catches a slice of layers that is ignored, or that slices prompts."""
    first = data.draw(st.integers(0, layers - 1))
    some = slice(first, data.draw(st.integers(first + 1, layers)))
    routers, pooled = routers_of(seed, layers, 3, 4), randn(seed, 2, layers, 4, 5)
    counts = torch.tensor([4, 2])
    close(routers(pooled[:, some], counts, some), routers(pooled, counts)[:, some])


@pytest.mark.task("4.6")
@given(sizes, st.integers(3, 8), sizes, seeds)
def test_nearest_distance_is_to_the_third_nearest_point(N, M, G, seed):
    """Catches the nearest point: one lucky prompt beside a strange one would lift the guard."""
    states, points = randn(seed, 2, N, G), randn(seed + 1, 2, M, G)
    distances = nearest_distance(states, points)
    assert distances.shape == (2, N)
    for b in range(2):
        for n in range(N):
            by_hand = sorted((states[b, n] - point).norm().item() for point in points[b])
            assert distances[b, n].item() == pytest.approx(by_hand[2], abs=1e-6)


@pytest.mark.task("4.6")
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), seeds)
def test_strange_prompts_lie_beyond_the_limit_of_their_layer(used, seed):
    """Catches a guard upside down, another layer's limit, and a mean over empty windows."""
    routers, pooled = routers_of(seed, 2, 3, 4), randn(seed, len(used), 4, 5)
    counts = torch.tensor(used)
    in_use = torch.arange(4) < counts[:, None]
    pooled = pooled * in_use[..., None]
    projection, points = randn(seed + 1, 5, 3), randn(seed + 2, 2, 7, 3)
    routers.set_guard(projection, points, torch.tensor([1.2, 1.8]))
    for layer, limit in enumerate((1.2, 1.8)):
        states = torch.stack([row[:n].mean(0) for row, n in zip(pooled, used)]) @ projection
        third = [sorted((state - p).norm().item() for p in points[layer])[2] for state in states]
        found = routers.is_ood(layer, pooled, counts)
        assert found.tolist() == [distance > limit for distance in third]


@pytest.mark.task("4.6")
def test_a_prompt_at_the_limit_is_within_it():
    """Catches >= in place of >: a training prompt may be as far as the limit. A point at the same
    place counts, and so do two at the same distance: the third nearest of these is 3 away."""
    routers = Routers(1, 1)
    for limit, strange in ((3.0, False), (2.5, True)):
        routers.set_guard(torch.ones(1, 1), torch.tensor([[[0.0], [-3.0], [3.0], [5.0]]]),
                          torch.tensor([limit]))
        found = routers.is_ood(0, torch.zeros(1, 1, 1), torch.tensor([1]))
        assert found.tolist() == [strange]


@pytest.mark.task("4.6")
def test_without_a_guard_nothing_is_strange():
    """Catches the paper's routers, which have no guard, failing at their first prompt."""
    found = Routers(2, 5).is_ood(0, torch.zeros(3, 4, 5), torch.tensor([4, 1, 2]))
    assert found.dtype == torch.bool and not found.any() and found.shape == (3,)


# ---- figures ----

@pytest.mark.task("6.2")
def test_every_row_is_shuffled_in_its_own_order_and_the_seed_decides():
    """Catches one order for all rows, and none. Odds of two equal orders of 12: 2e-9."""
    decisions = torch.arange(12).expand(20, 12)
    mixed = shuffled(decisions, 1)
    assert len(set(map(tuple, mixed.tolist()))) == 20
    assert torch.equal(mixed, shuffled(decisions, 1))
    assert not torch.equal(mixed, shuffled(decisions, 2))


@pytest.mark.task("6.2")
def test_shuffling_is_uniform():
    """Catches an order that favours some places. In 9,000 rows a share of 1/6 has a standard
    deviation of 0.004."""
    mixed = shuffled(torch.arange(6).expand(9000, 6))
    for decision in range(6):
        assert (mixed == decision).double().mean(0).tolist() == pytest.approx([1 / 6] * 6, abs=0.02)


@pytest.mark.task("6.2")
def test_shuffling_leaves_its_input_and_torchs_own_generator_alone():
    """Catches decisions that are shuffled in place, and one that is set for everybody."""
    decisions, before = torch.arange(12).expand(4, 12).clone(), torch.get_rng_state()
    shuffled(decisions, 3)
    assert torch.equal(decisions, torch.arange(12).expand(4, 12))
    assert torch.equal(torch.get_rng_state(), before)


SKEWED = np.random.default_rng(5).lognormal(sigma=1.5, size=40)


@pytest.mark.task("6.1")
def test_an_interval_depends_on_its_seed_and_on_nothing_else():
    """Catches a generator without the seed: the same figures would differ from run to run."""
    before = np.random.get_state()[1].tolist()
    assert interval(SKEWED, seed=3) == interval(SKEWED, seed=3) != interval(SKEWED, seed=4)
    assert np.random.get_state()[1].tolist() == before


@pytest.mark.task("6.1")
def test_an_interval_draws_as_many_means_as_it_is_told():
    """Catches a fixed number of resamples. The percentiles of a single mean are that mean."""
    low, high = interval(SKEWED, resamples=1)
    assert low == high != SKEWED.mean()


@pytest.mark.task("6.1")
def test_an_interval_draws_every_question():
    """Catches a draw that leaves out the first or the last question, or fails for a single one."""
    assert interval([0.0] * 9 + [90.0])[1] > 0
    assert interval([90.0] + [0.0] * 9)[1] > 0
    assert interval([1 / 3]) == (1 / 3, 1 / 3)
    assert interval([0.0, 1.0], resamples=9999) == (0.0, 1.0)  # a quarter of the means at each end


@pytest.mark.task("6.1")
def test_an_interval_of_a_skewed_sample_is_skewed():
    """Catches mean +- 1.96 standard errors, and an interval that is turned round."""
    low, high = interval(SKEWED)
    assert high - SKEWED.mean() > 1.15 * (SKEWED.mean() - low) > 0


@pytest.mark.task("6.1")
def test_an_interval_is_about_four_standard_errors_wide():
    """Catches other percentiles: between 2 and 98 it is 4.7% wider. So it is if eleven of twelve
    are drawn. With 20,000 means its width varies by 0.7%, and its middle by 0.013 errors."""
    values = np.random.default_rng(0).normal(size=6)
    values = np.concatenate((values, -values))
    low, high = interval(values, resamples=20_000)
    error = values.std() / math.sqrt(12)
    assert (high - low) / error == pytest.approx(3.91, rel=0.023)
    assert abs(low + high) < 0.1 * error
