"""Each baseline's defining property, on tiny models."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import baselines
import gates
from answers import answer
from baselines import (BASELINES, Setting, at_depth, block_influence, block_scores, random_choices,
                       recursions, shuffled, swapped)
from cli import InputError
from drllm import Routers
from model_llama import fixed, generate
from tiny import tiny_model


def prompts_of(tasks, length=7, seed=0):
    """Prompts of random tokens, one per task name."""
    from answers import Prompt
    from tasks import Question
    rng = torch.Generator().manual_seed(seed)
    return [Prompt(Question(f"{task}-{n}", task, 0, "q", "a"),
                   tuple(torch.randint(2, 38, (length + n % 3,), generator=rng).tolist()))
            for n, task in enumerate(tasks)]


@pytest.fixture
def setting(tiny_questions):
    model, tokenizer, prompts = tiny_questions
    torch.manual_seed(3)
    routers = [Routers(3, 16).requires_grad_(False) for _ in range(2)]
    decisions = answer(model, tokenizer, prompts, routers[0].route).decisions
    return Setting(model, tokenizer, prompts, routers, decisions, 2.5, prompts,
                   [(1, 0, 1), None, *[(1, 2, 1)] * (len(prompts) - 2)])


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_answers_every_question(setting, name):
    entrant = BASELINES[name].make(setting)
    for route in entrant.routes:
        found = answer(entrant.model, setting.tokenizer, setting.prompts, route)
        assert len(found.texts) == len(setting.prompts) and found.passes.min() > 0


@pytest.mark.parametrize("name", ["shortgpt", "pruner", "polar", "mindskip", "flexidepth"])
def test_a_baseline_without_calibration_questions_is_refused(setting, name):
    setting.calibration = None
    with pytest.raises(InputError, match=f"route {name} needs calibration"):
        BASELINES[name].make(setting)


# ---- controls ----

def test_forced_to_execute_equals_vanilla_and_masks_forbid_only_their_action(setting):
    run = lambda name: [answer(setting.model, setting.tokenizer, setting.prompts, route)
                        for route in BASELINES[name].make(setting).routes]
    plain = answer(setting.model, setting.tokenizer, setting.prompts, None)
    for found in run("executed-only"):
        assert found.texts == plain.texts and torch.equal(found.decisions, plain.decisions)
    assert all((found.decisions > 0).all() for found in run("no-skip"))
    assert all((found.decisions < 2).all() for found in run("no-repeat"))
    assert any((found.decisions == 0).any() for found in run("no-repeat"))


@pytest.mark.task("5.3")
@given(st.integers(1, 20), st.integers(1, 12), st.integers(0, 10**6))
def test_shuffled_keeps_each_rows_decisions_and_depth(rows, layers, seed):
    decisions = torch.randint(3, (rows, layers))
    mixed = shuffled(decisions, seed)
    assert torch.equal(decisions.sort(1).values, mixed.sort(1).values)


@given(st.integers(0, 10**6))
def test_random_choices_have_each_tasks_frequencies(seed):
    """Frequencies pooled over tasks would skip where the task never skips."""
    prompts = prompts_of(["a"] * 200 + ["b"] * 200)
    decisions = torch.ones(400, 10, dtype=torch.long)
    decisions[:200, :3] = 0
    drawn = random_choices(decisions, prompts, seed)
    assert (drawn[200:] == 1).all() and not (drawn == 2).any()
    assert abs((drawn[:200] == 0).float().mean() - 0.3) < 0.06
    assert abs((drawn[:200, 5:] == 0).float().mean() - 0.3) < 0.09    # whatever the layer


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=20), st.integers(0, 10**6))
def test_swapped_only_moves_paths_within_a_task(tasks, seed):
    decisions = torch.arange(len(tasks))[:, None].expand(-1, 2).clone()
    moved = swapped(decisions, prompts_of(tasks), seed)
    for task in set(tasks):
        rows = [n for n, t in enumerate(tasks) if t == task]
        assert sorted(moved[rows, 0].tolist()) == rows
        assert len(rows) == 1 or not (moved[rows, 0] == torch.tensor(rows)).any()


# ---- static paths ----

@given(st.integers(1, 16), st.integers(5, 60), st.floats(0, 1), st.integers(0, 10**6))
def test_static_paths_meet_the_depth_and_follow_the_order(L, N, share, seed):
    depth = share * L
    order = torch.randperm(L, generator=torch.Generator().manual_seed(seed)).tolist()
    paths = at_depth(depth, order, L, N, seed)
    assert paths.sum(1).float().mean() == pytest.approx(depth, abs=0.51 / N + 1e-4)
    assert len(paths.unique(dim=0)) <= 2 and paths.max() <= 1
    kept = paths[0].nonzero().flatten().tolist()
    assert set(kept) == set(order[L - len(kept):])
    assert at_depth(L + 3, order, L, N, seed).float().mean() == 1.0


def identity(model, layer):
    """Makes a block add nothing to the residual."""
    model.layers[layer].o_proj.weight.data.zero_()
    model.layers[layer].down_proj.weight.data.zero_()
    return model


@given(st.integers(0, 2))
def test_an_identity_block_has_no_influence_and_no_score(layer):
    model = identity(tiny_model(dtype=torch.float32), layer)
    influence = block_influence(model, prompts_of(["a"] * 5))
    assert influence.argmin() == layer and influence[layer] == pytest.approx(0, abs=1e-6)
    assert (influence[[n for n in range(3) if n != layer]] > 1e-3).all()
    before = [weight.clone() for weight in model.parameters()]
    scores = block_scores(model, [replace(p, gold=(5,)) for p in prompts_of(["a"] * 5)])
    assert scores.argmin() == layer and (scores > 0).sum() == 2 + (scores[layer] > 0)
    assert all(torch.equal(a, b) and not b.requires_grad
               for a, b in zip(before, model.parameters()))


def test_influence_ignores_padding_and_batching():
    """Padded positions hold states of tokens nobody wrote."""
    model, prompts = tiny_model(dtype=torch.float32), prompts_of(["a"] * 6)
    together, alone = block_influence(model, prompts, 6), block_influence(model, prompts, 1)
    assert torch.allclose(together, alone, atol=1e-5)


def test_early_exit_is_the_head_on_an_earlier_layer(setting):
    setting.depth = 2.0
    path = BASELINES["early-exit"].make(setting).routes[0]
    assert path.tolist() == [[1, 1, 0]] * len(setting.prompts)


# ---- a whole path before the first layer ----

def test_predictor_learns_what_the_first_token_says_and_ignores_padding():
    model = tiny_model(dtype=torch.float32)
    prompts = [replace(p, ids=(2 + n % 2, *p.ids)) for n, p in enumerate(prompts_of(["a"] * 60))]
    paths = [(0, 1, 2) if prompt.ids[0] % 2 else (2, 1, 0) for prompt in prompts]
    predictor = baselines.train_predictor(model, prompts, paths, epochs=40, rate=3e-3)
    found = generate(model, [p.ids for p in prompts], baselines.Predicted(predictor), 1)
    assert (found.decisions == torch.tensor(paths)).float().mean() > 0.9
    alone = [generate(model, [p.ids], baselines.Predicted(predictor), 1).decisions for p in prompts]
    assert torch.equal(found.decisions, torch.cat(alone))


def test_predictor_decides_before_any_layer_ran():
    """A path that depends on layer 0's output would not be decided beforehand."""
    model, other = tiny_model(dtype=torch.float32), tiny_model(dtype=torch.float32)
    for parameter in other.layers.parameters():
        parameter.data.mul_(0.5)
    torch.manual_seed(0)
    predictor = baselines.PathPredictor(3, 16).eval().requires_grad_(False)
    states, route = torch.randn(2, 6, 16), baselines.Predicted(predictor)
    padded, short = predictor(states, torch.tensor([6, 4])), states[1:, :4]
    assert torch.allclose(padded[1:], predictor(short, torch.tensor([4])), atol=1e-5)
    ids = [p.ids for p in prompts_of(["a"] * 8)]
    assert torch.equal(generate(model, ids, route, 1).decisions,
                       generate(other, ids, route, 1).decisions)


def test_oracle_is_never_worse_than_vanilla(setting):
    paths = BASELINES["cola"].make(setting).routes[0]
    ask = lambda route: answer(setting.model, setting.tokenizer, setting.prompts, route).right
    assert (ask(paths) >= ask(None)).all() and ask(paths).mean() > ask(None).mean()


# ---- shared cache ----

@given(st.integers(0, 10**6), st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=4))
def test_shared_cache_equals_plain_without_repeats_and_differs_with(seed, paths):
    model = tiny_model(seed % 7, dtype=torch.float32)
    prompts = [p.ids for p in prompts_of(["a"] * len(paths), seed=seed)]
    run = lambda path, shared: shared_or_plain(model, prompts, torch.tensor(path), shared)
    plain, shared = run(paths, False), run(paths, True)
    assert torch.equal(plain.decisions, shared.decisions)
    for row, path in enumerate(paths):
        close = torch.isclose(plain.logprobs[row], shared.logprobs[row], atol=1e-4)
        if 2 not in path:
            assert close and plain.tokens[row] == shared.tokens[row]


def shared_or_plain(model, prompts, decisions, shared, tokens=4):
    route = fixed(decisions)
    if shared:
        blocks = [baselines.SharedCache(block) for block in model.layers]
        model, route = baselines.view(model, blocks), baselines.Beginning(route, blocks)
    return generate(model, prompts, route, tokens)


def test_shared_cache_changes_a_repeat_and_decoding_equals_recomputing():
    """The second pass reads first-pass keys: another function, and the same one cached or not."""
    model = tiny_model(dtype=torch.float64)
    prompts = [p.ids for p in prompts_of(["a"] * 4)]
    decisions = torch.tensor([[2, 1, 1], [1, 2, 0], [0, 2, 2], [1, 1, 1]])
    plain = shared_or_plain(model, prompts, decisions, False)
    shared = shared_or_plain(model, prompts, decisions, True)
    assert not torch.allclose(plain.logprobs[:3], shared.logprobs[:3])
    alone = [shared_or_plain(model, [ids], path[None], True) for ids, path in zip(prompts, decisions)]
    assert torch.allclose(torch.cat([found.logprobs for found in alone]), shared.logprobs)
    for step in range(4):
        longer = [[*ids, *made[:step]] for ids, made in zip(prompts, shared.tokens)]
        again = shared_or_plain(model, longer, decisions, True, 1)
        assert [made[0] for made in again.tokens] == [made[step] for made in shared.tokens]


def test_shared_second_pass_by_definition():
    """One layer, repeated: queries of the second pass over keys and values of the first."""
    model = tiny_model(num_layers=1)
    block, span = model.layers[0], model.span(model.empty_cache([5], 5), 0, 5)
    hidden = torch.randn(1, 5, 16, dtype=torch.float64)
    shared, first, second = baselines.SharedCache(block), Store(), Store()
    once = shared(hidden, span, first)
    twice = shared(once, span, second)
    assert torch.equal(twice, block(once, span, Give(first.kept))) and second.kept is None


class Store:
    rows = kept = None

    def write(self, keys, values, span):
        self.kept = keys, values
        return self.kept


class Give:
    def __init__(self, kept):
        self.kept = kept

    def write(self, keys, values, span):
        return self.kept


def test_views_share_the_weights_and_leave_the_model_alone():
    model = tiny_model()
    blocks = list(model.layers)
    other = baselines.view(model, blocks[:2])
    assert len(model.layers) == model.config.num_layers == 3
    assert other.config.num_layers == 2 and other.layers[0] is model.layers[0]


# ---- trained gates ----

TRAINED = ("mindskip", "halting", "flexidepth", "mod")


def test_half_blocks_one_after_the_other_are_the_block():
    model = tiny_model()
    halves = [half for block in model.layers
              for half in (gates.AttentionHalf(block), gates.MlpHalf(block))]
    tokens = torch.randint(2, 38, (3, 6))
    split = baselines.view(model, halves)
    assert torch.allclose(split(tokens), model(tokens))
    skipping = split(tokens, fixed([0, 1] * 3))    # attention nowhere: tokens no longer mix
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] - 1) % 36 + 2
    assert torch.allclose(skipping[:, 1:], split(changed, fixed([0, 1] * 3))[:, 1:])
    assert not torch.allclose(model(tokens)[:, 1:], model(changed)[:, 1:])


def test_a_second_entry_of_every_block_is_a_repeat():
    model, tokens = tiny_model(), torch.randint(2, 38, (2, 5))
    doubled = baselines.view(model, [block for block in model.layers for _ in range(2)])
    assert torch.allclose(doubled(tokens, fixed([1, 1, 1, 0, 1, 1])),
                          model(tokens, fixed([2, 1, 2])))


@given(st.integers(0, 10**6))
def test_training_sees_what_the_route_does(seed):
    """A gate trained on one function and used in another would learn nothing of use."""
    model = tiny_model(seed % 5, dtype=torch.float32)
    layers = [block for block in model.layers for _ in range(2)]
    gate_of = {2 * n + 1: (n, block.input_layernorm) for n, block in enumerate(model.layers)}
    learned = gates.Gates(3, 16).requires_grad_(False)
    learned.weight.data = torch.randn(3, 16, generator=torch.Generator().manual_seed(seed))
    tokens, lengths = torch.randint(2, 38, (4, 7)), [7, 3, 5, 6]
    learned.watch(torch.tensor(lengths), torch.tensor(lengths))
    weighted = baselines.view(model, gates.prompt_gated(layers, learned, gate_of))
    routed = baselines.view(model, layers)
    soft = weighted(tokens, lengths=lengths)
    hard = routed(tokens, gates.GateRoute(learned, gate_of, 6), lengths)
    for row, length in enumerate(lengths):
        assert torch.allclose(soft[row, :length], hard[row, :length], atol=1e-4)


@pytest.mark.parametrize("name", TRAINED)
def test_gates_train_and_the_base_does_not(setting, name, monkeypatch):
    monkeypatch.setattr(gates, "EPOCHS", 1)
    before = [weight.clone() for weight in setting.model.parameters()]
    entrant = BASELINES[name].make(setting)
    after = list(setting.model.parameters())
    assert all(torch.equal(a, b) and not b.requires_grad for a, b in zip(before, after))
    found = answer(entrant.model, setting.tokenizer, setting.prompts, entrant.routes[0])
    depth = entrant.layers_of(found.decisions) if entrant.layers_of else found.decisions.sum(1)
    assert depth.shape == (len(setting.prompts),) and 0 <= depth.min() <= depth.max() <= 6


def test_capacity_term_brings_the_share_down_to_the_capacity(setting, monkeypatch):
    """Without its sign, or beyond the capacity, it would switch everything off or nothing."""
    monkeypatch.setattr(gates, "EPOCHS", 60)
    monkeypatch.setattr(gates, "PRESSURE", 50.0)
    entrant = baselines.mindskip(replace_depth(setting, 2.9))
    found = answer(entrant.model, setting.tokenizer, setting.prompts, entrant.routes[0])
    depth = entrant.layers_of(found.decisions).mean().item()
    assert depth < 3.0 and depth > 2.3    # attention is a third of a block, two layers are gated


def replace_depth(setting, depth):
    return replace(setting, depth=depth)


def token_gated(model, learned, **more):
    return baselines.view(model, [gates.TokenGated(block, learned, n, **more)
                                  for n, block in enumerate(model.layers)])


def test_open_token_gates_change_nothing_and_closed_ones_leave_the_embeddings():
    model, tokens = tiny_model(dtype=torch.float32), torch.randint(2, 38, (3, 6))
    learned = gates.Gates(3, 16, bias=1.0).requires_grad_(False).eval()
    view = token_gated(model, learned)
    assert torch.allclose(view(tokens), model(tokens), atol=1e-6)
    learned.bias.data.fill_(-1.0)
    assert torch.allclose(view(tokens), model(tokens, fixed([0, 0, 0])), atol=1e-6)
    assert gates.token_layers(view, learned, prompts_of(["a"] * 4)).tolist() == [0.0] * 4


def test_tokens_that_skip_still_write_keys():
    """Key completeness: a later token that runs the block attends to one that did not."""
    model, tokens = tiny_model(dtype=torch.float32), torch.randint(2, 38, (1, 6))
    learned = gates.Gates(3, 16).requires_grad_(False).eval()
    score = lambda index, states: torch.tensor([[-1.0] * 5 + [1.0]])    # only the last token runs
    learned.score = score
    view, changed = token_gated(model, learned), tokens.clone()
    changed[:, 0] = (changed[:, 0] - 1) % 36 + 2
    assert not torch.allclose(view(tokens)[:, -1], view(changed)[:, -1])
    assert torch.allclose(view(tokens)[:, 1:5], view(changed)[:, 1:5])


def test_an_adapter_serves_only_the_tokens_that_skip():
    model, tokens = tiny_model(num_layers=1, dtype=torch.float32), torch.randint(2, 38, (1, 4))
    learned = gates.Gates(1, 16).requires_grad_(False).eval()
    learned.score = lambda index, states: torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    adapter = lambda normed: torch.full_like(normed, 5.0)
    layer = gates.TokenGated(model.layers[0], learned, 0)
    layer.adapter = adapter
    hidden, span = model.embed_tokens(tokens), model.span(model.empty_cache([4], 4), 0, 4)
    out = layer(hidden, span, Store())
    assert torch.allclose(out[:, 1::2], hidden[:, 1::2] + 5.0)
    assert torch.allclose(out[:, ::2], model.layers[0](hidden, span, Store())[:, ::2], atol=1e-5)


@given(st.floats(0, 1), st.integers(0, 10**6))
def test_top_k_passes_the_share_of_each_rows_own_tokens(share, seed):
    """Padding must not take a place."""
    learned = gates.Gates(1, 16)
    layer = gates.TokenGated(tiny_model(num_layers=1).layers[0], learned, 0, share=share)
    lengths = torch.tensor([7, 3, 1])
    learned.watch(lengths, lengths)
    score = torch.randn(3, 7, generator=torch.Generator().manual_seed(seed))
    passed = layer._ranked(score).detach().round()
    for row, length in enumerate(lengths.tolist()):
        number = int(np.ceil(np.float32(share) * np.float32(length)))
        assert passed[row].sum() == number and passed[row, length:].sum() == 0
        if 0 < number < length:
            inside = score[row, :length]
            chosen = passed[row, :length] > 0
            assert inside[chosen].min() >= inside[~chosen].max()
