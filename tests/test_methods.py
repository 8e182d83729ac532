"""Each method's defining property, on tiny models, and the command that compares them."""
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drllm import Routers
from evaluate import Comparison
from experiments import methods
from experiments.methods import (METHODS, Setting, at_depth, block_influence, block_scores,
                              random_choices, swapped)
from model_llama import FixedRoute, generate
from storage.files import InputError, read_json
from answers import Prompt, answer
from questions.loading import Question
from tiny import read_lines, tiny_model, write_lines


def prompts_of(tasks, length=7, seed=0):
    """Prompts of random tokens, one per task name."""
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


def asked(setting, route, model=None):
    return answer(model or setting.model, setting.tokenizer, setting.prompts, route)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("name", METHODS)
def test_every_method_answers_every_question(setting, name, dtype):
    """Catches a method's own weights, which stay in float32, meeting a model in bfloat16."""
    setting.model.to(dtype)
    entrant = METHODS[name].make(setting)
    for route in entrant.routes:
        found = asked(setting, route, entrant.model)
        assert len(found.texts) == len(setting.prompts) and found.passes.min() > 0


# ---- added to a comparison ----

@pytest.fixture
def table(setting):
    """A Comparison with Dr.LLM's routes asked, of questions half of which are out of domain."""
    table = Comparison(setting.model, setting.tokenizer, setting.prompts, {"own"})
    table.counted = torch.arange(len(setting.prompts)) % 2 == 0
    table.add("dr.llm", [routers.route for routers in setting.routers])
    return table


def add(table, setting, names, calibration=(), labels=None):
    methods.add(table, names, setting.routers, table.outcomes["dr.llm"], calibration or [],
                labels or {})
    return table.outcomes


@pytest.mark.parametrize("name", METHODS)
def test_a_method_asks_for_what_it_needs_and_for_nothing_else(table, setting, name):
    """One that needs nothing is answered without; the others are refused until they have it."""
    needs = METHODS[name].needs
    if not needs:
        assert len(add(table, setting, [name], None)[name].correct) == len(setting.prompts)
        return
    with pytest.raises(InputError, match=f"route {name} .* --calibration FILE"):
        add(table, setting, ["random", name], None)
    assert "random" not in table.outcomes    # nothing is asked, and no time lost, before that
    labels = {p.question.id: [1, 2, 1] for p in setting.prompts[1:]}
    others = {"someone-else": [1, 2, 1]}
    if needs == "labels":
        with pytest.raises(InputError, match="none of 8 .* chosen.json"):
            add(table, setting, [name], setting.calibration, others)
    found = add(table, setting, [name], setting.calibration,
                labels if needs == "labels" else others)
    assert len(found[name].correct) == 8 and found[name].name == METHODS[name].title


def test_methods_learn_the_labels_of_the_questions_they_are_given(table, setting):
    """By id: a label given to its neighbour would teach another path."""
    labels = {p.question.id: [0, 1, 2] if n % 2 else [2, 1, 0]
              for n, p in enumerate(reversed(setting.prompts))}
    found = methods.setting_of(table, setting.routers, table.outcomes["dr.llm"],
                                 setting.prompts[2:], labels)
    assert found.labels == [labels[p.question.id] for p in setting.prompts[2:]]


def test_static_methods_run_at_the_depth_of_the_counted_questions(table, setting):
    own, N = table.outcomes["dr.llm"], len(setting.prompts)
    wanted = own.layers[table.counted].mean().item()
    assert abs(wanted - own.layers.mean().item()) > 1 / N    # else the test could not fail
    found = add(table, setting, ["early-exit"])["early-exit"]
    assert found.layers.mean().item() == pytest.approx(min(wanted, 3.0), abs=0.51 / N)


# ---- the command ----

def metrics_of(command, *more):
    methods.main([*command, *more])
    return read_json(Path(command[5]) / "metrics.json")


@pytest.mark.parametrize("routes, asked", [
    ("shortgpt", ["shortgpt"]), ("shuffled, random", ["shuffled", "random"]),
    ("dr.llm,executed-only,early-exit", ["dr.llm", "executed-only", "early-exit"]),
    ("dr.llm", ["dr.llm"])])
def test_the_command_has_the_routes_of_evaluate_and_the_methods(command, routes, asked):
    other = str(Path(command[1][3]).with_name("label.jsonl"))
    metrics = metrics_of(command[1], "--routes", routes, "--calibration", other)
    assert set(metrics["routes"]) == {"vanilla", *asked} and metrics["too_long"] == 0
    assert metrics["routes"].get("executed-only", {}).get("gain", 0.0) == 0.0


def test_labels_of_the_run_reach_the_method(command):
    """Catches labels that are looked for in another folder than the routers'."""
    folder = Path(command[1][7]).parent
    (folder / "chosen.json").write_text(json.dumps({"label-1": [1, 0, 1]}), encoding="utf-8")
    metrics = metrics_of(command[1], "--routes", "polar", "--calibration",
                         str(folder / "label.jsonl"))
    assert metrics["routes"]["polar"]["layers"] == 2.0


def test_what_a_method_lacks_is_said_before_anything_is_asked(command, monkeypatch):
    """Catches an hour of answers before "give --calibration FILE"."""
    monkeypatch.setattr(methods.evaluate, "compare", None)
    with pytest.raises(InputError, match="route mod .* --calibration FILE"):
        metrics_of(command[1], "--routes", "random,mod")


def test_calibration_questions_that_are_also_asked_are_refused(command):
    with pytest.raises(InputError, match="8 of 8 questions are also in --calibration"):
        metrics_of(command[1], "--routes", "shortgpt", "--calibration", command[1][3])


def test_calibration_questions_that_exceed_the_context_are_said(command, capsys):
    file = Path(command[1][3]).with_name("label.jsonl")
    rows = read_lines(file)
    rows[0]["prompt"] = " ".join(["a"] * 63)
    write_lines(file, rows)
    metrics = metrics_of(command[1], "--routes", "shortgpt", "--calibration", str(file))
    assert "1 of 8 calibration questions exceed the context (64" in capsys.readouterr().out
    assert metrics["too_long"] == 0


def test_an_unknown_method_is_refused_with_those_there_are(capsys):
    with pytest.raises(SystemExit):
        methods.parse_args(["--routers", "r", "--routes", "shortgpt,teleport"])
    line = capsys.readouterr().err
    assert "unknown routes teleport; known are vanilla, " in line and "early-exit" in line


# ---- controls ----

def test_forced_to_execute_equals_vanilla_and_masks_forbid_only_their_action(setting):
    run = lambda name: [asked(setting, route) for route in METHODS[name].make(setting).routes]
    plain = asked(setting, None)
    for found in run("executed-only"):
        assert found.texts == plain.texts and torch.equal(found.decisions, plain.decisions)
    assert all((found.decisions > 0).all() for found in run("no-skip"))
    assert all((found.decisions < 2).all() for found in run("no-repeat"))
    assert any((found.decisions == 0).any() for found in run("no-repeat"))


@pytest.mark.parametrize("forbidden", [(0,), (2,), (0, 2)])
def test_instead_of_a_forbidden_decision_the_next_likeliest_is_taken(setting, forbidden):
    """A router that may not repeat must not fall back on executing: its second choice counts."""
    route = methods.WithoutDecisions(setting.routers[0], forbidden)
    hidden, lengths = torch.randn(50, 5, 16), torch.full((50,), 5)
    for layer in range(3):
        logits = route.logits(layer, *route.pool(hidden, lengths))  # (50, 3)
        for decision, chances in zip(route(layer, hidden, lengths).tolist(), logits.tolist()):
            assert decision not in forbidden
            assert chances[decision] == max(
                chance for code, chance in enumerate(chances) if code not in forbidden)


def test_the_guard_executes_whatever_is_forbidden(setting):
    """Catches a layer that is repeated out of distribution, since it may not be skipped."""
    routers = setting.routers[0]
    routers.set_guard(torch.eye(16), torch.full((3, 3, 16), 1e6), torch.zeros(3))  # nothing fits
    decisions = methods.WithoutDecisions(routers, [0])(1, torch.randn(9, 5, 16),
                                                       torch.full((9,), 5))
    assert decisions.tolist() == [1] * 9


@given(st.integers(0, 10**6))
def test_random_choices_have_each_tasks_frequencies(seed):
    """Frequencies pooled over tasks would skip where the task never skips."""
    prompts = prompts_of(["a"] * 200 + ["b"] * 200)
    decisions = torch.ones(400, 10, dtype=torch.long)
    decisions[:200, :3] = 0
    drawn = random_choices(decisions, prompts, seed)
    assert (drawn[200:] == 1).all() and not (drawn == 2).any()
    assert abs((drawn[:200] == 0).float().mean() - 0.3) < 0.08    # eight deviations
    assert abs((drawn[:200, 5:] == 0).float().mean() - 0.3) < 0.11    # whatever the layer


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=20), st.integers(0, 10**6))
def test_swapped_only_moves_paths_within_a_task(tasks, seed):
    decisions = torch.arange(len(tasks))[:, None].expand(-1, 2).clone()
    moved = swapped(decisions, prompts_of(tasks), seed)
    for task in set(tasks):
        some = [n for n, t in enumerate(tasks) if t == task]
        assert sorted(moved[some, 0].tolist()) == some
        assert len(some) == 1 or not (moved[some, 0] == torch.tensor(some)).any()


# ---- static paths ----

@given(st.integers(1, 16), st.integers(5, 60), st.floats(0, 1), st.integers(0, 10**6))
def test_static_paths_meet_the_depth_and_follow_the_order(L, N, share, seed):
    depth = share * L
    order = torch.randperm(L, generator=torch.Generator().manual_seed(seed)).tolist()
    paths = at_depth(depth, order, L, N, seed)
    assert paths.sum(1).float().mean() == pytest.approx(depth, abs=0.51 / N + 1e-4)
    assert len(paths.unique(dim=0)) <= 2 and paths.max() <= 1
    for path in paths.unique(dim=0):
        kept = path.nonzero().flatten().tolist()
        assert set(kept) == set(order[L - len(kept):])
    assert at_depth(L + 3, order, L, N, seed).float().mean() == 1.0
    assert at_depth(0.0, order, L, N, seed).sum() == 0


def identity(model, layer):
    """Makes a block add nothing to the residual."""
    model.layers[layer].self_attn.o_proj.weight.data.zero_()
    model.layers[layer].mlp.down_proj.weight.data.zero_()
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
    assert all(torch.equal(a, b) and not b.requires_grad and b.grad is None
               for a, b in zip(before, model.parameters()))


def test_scores_do_not_depend_on_the_batches():
    """The mean over all answers, however they are split."""
    prompts = [replace(p, gold=(5, 7)) for p in prompts_of(["a"] * 40)]    # two batches
    model = tiny_model()
    model.layers.requires_grad_(True)
    loss = methods.answer_loss(model, prompts)
    gradients = torch.autograd.grad(loss, list(model.layers.parameters()))
    weights = list(model.layers.parameters())
    whole = torch.stack([(w * g).abs().sum() for w, g in zip(weights, gradients)])
    model.layers.requires_grad_(False)
    per_block = whole.view(3, -1).sum(1) * len(prompts)
    assert torch.allclose(block_scores(model, prompts), per_block.detach())


def test_influence_ignores_padding_and_batching():
    """Padded positions hold states of tokens nobody wrote."""
    model, prompts = tiny_model(dtype=torch.float32), prompts_of(["a"] * 6)
    together, alone = block_influence(model, prompts, 6), block_influence(model, prompts, 1)
    assert torch.allclose(together, alone, atol=1e-5)


def test_early_exit_is_the_head_on_an_earlier_layer(setting):
    path = METHODS["early-exit"].make(replace(setting, depth=2.0)).routes[0]
    assert path.tolist() == [[1, 1, 0]] * len(setting.prompts)


# ---- a whole path before the first layer ----

def test_predictor_learns_what_the_first_token_says_and_ignores_padding():
    model = tiny_model(dtype=torch.float32)
    prompts = [replace(p, ids=(2 + n % 2, *p.ids)) for n, p in enumerate(prompts_of(["a"] * 60))]
    paths = [(0, 1, 2) if prompt.ids[0] % 2 else (2, 1, 0) for prompt in prompts]
    predictor = methods.train_predictor(model, prompts, paths, epochs=40, rate=3e-3)
    route = methods.PredictorRoute(predictor)
    found = generate(model, [p.ids for p in prompts], route, 1)
    assert (found.decisions == torch.tensor(paths)).float().mean() > 0.9
    alone = [generate(model, [p.ids], route, 1).decisions for p in prompts]
    assert torch.equal(found.decisions, torch.cat(alone))


def test_predictor_decides_before_any_layer_ran():
    """A path that depends on layer 0's output would not be decided beforehand."""
    model, other = tiny_model(dtype=torch.float32), tiny_model(dtype=torch.float32)
    for parameter in other.layers.parameters():
        parameter.data.mul_(0.5)
    torch.manual_seed(0)
    predictor = methods.PathPredictor(3, 16).eval().requires_grad_(False)
    states, route = torch.randn(2, 6, 16), methods.PredictorRoute(predictor)
    padded, short = predictor(states, torch.tensor([6, 4])), states[1:, :4]
    assert torch.allclose(padded[1:], predictor(short, torch.tensor([4])), atol=1e-5)
    ids = [p.ids for p in prompts_of(["a"] * 8)]
    assert torch.equal(generate(model, ids, route, 1).decisions,
                       generate(other, ids, route, 1).decisions)


def test_oracle_is_never_worse_than_vanilla(setting):
    paths = METHODS["cola"].make(setting).routes[0]
    correct, plain = asked(setting, paths).correct, asked(setting, None).correct
    assert (correct >= plain).all() and correct.mean() > plain.mean()


# ---- shared cache ----

def shared_or_plain(model, prompts, decisions, shared, tokens=4):
    return generate(methods.sharing(model) if shared else model, prompts, FixedRoute(decisions),
                    tokens)


@given(st.integers(0, 10**6), st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=4))
def test_shared_cache_equals_plain_without_repeats(seed, paths):
    model = tiny_model(seed % 7)
    prompts = [p.ids for p in prompts_of(["a"] * len(paths), seed=seed)]
    plain, shared = (shared_or_plain(model, prompts, torch.tensor(paths), kind)
                     for kind in (False, True))
    assert torch.equal(plain.decisions, shared.decisions)
    for row, path in enumerate(paths):
        if 2 not in path:
            assert torch.isclose(plain.logprobs[row], shared.logprobs[row], atol=1e-5)
            assert plain.tokens[row] == shared.tokens[row]


def test_shared_cache_changes_a_repeat_and_decoding_equals_recomputing():
    """The second pass reads first-pass keys: another function, and the same one cached or not."""
    model = tiny_model()
    prompts = [p.ids for p in prompts_of(["a"] * 4)]
    decisions = torch.tensor([[2, 1, 1], [1, 2, 0], [0, 2, 2], [1, 1, 1]])
    plain = shared_or_plain(model, prompts, decisions, False)
    shared = shared_or_plain(model, prompts, decisions, True)
    assert not torch.isclose(plain.logprobs[:3], shared.logprobs[:3]).any()
    alone = [shared_or_plain(model, [ids], path[None], True)
             for ids, path in zip(prompts, decisions)]
    assert torch.allclose(torch.cat([found.logprobs for found in alone]), shared.logprobs)
    for step in range(4):
        longer = [[*ids, *made[:step]] for ids, made in zip(prompts, shared.tokens)]
        again = shared_or_plain(model, longer, decisions, True, 1)
        assert [made[0] for made in again.tokens] == [made[step] for made in shared.tokens]


def test_shared_second_pass_by_definition():
    """One layer, repeated: queries of the second pass over keys and values of the first."""
    model, tokens = tiny_model(num_layers=1), torch.randint(2, 38, (1, 5))
    block, positions = model.layers[0], model.positions(model.empty_cache([5], 5), 0, 5)
    first, hidden = Store(), model.embed_tokens(tokens)
    twice = block(block(hidden, positions, first), positions, Give(first.cache))
    assert torch.equal(methods.sharing(model)(tokens, FixedRoute([2])), model.head(twice))


class Store:
    def write(self, keys, values, positions):
        self.cache = keys, values
        return self.cache


class Give:
    def __init__(self, kept):
        self.cache = kept

    def write(self, keys, values, positions):
        return self.cache


def test_views_share_the_weights_and_leave_the_model_alone():
    model, tokens = tiny_model(), torch.randint(2, 38, (2, 5))
    before = model(tokens, FixedRoute([2, 1, 1]))
    other, sharing = methods.view(model, list(model.layers)[:2]), methods.sharing(model)
    assert len(model.layers) == model.config.num_layers == 3
    assert other.config.num_layers == 2 and other.layers[0] is model.layers[0] is sharing.layers[0]
    assert torch.equal(model(tokens, FixedRoute([2, 1, 1])), before)


# ---- trained switches ----

TRAINED = ("mindskip", "halting", "flexidepth", "mod")


def test_half_blocks_one_after_the_other_are_the_block():
    model = tiny_model()
    halves = [methods.Half(block, attention) for block in model.layers
              for attention in (True, False)]
    tokens = torch.randint(2, 38, (3, 6))
    split = methods.view(model, halves)
    assert torch.allclose(split(tokens), model(tokens))
    skipping = split(tokens, FixedRoute([0, 1] * 3))    # attention nowhere: tokens no longer mix
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] - 1) % 36 + 2
    assert torch.allclose(skipping[:, 1:], split(changed, FixedRoute([0, 1] * 3))[:, 1:])
    assert not torch.allclose(model(tokens)[:, 1:], model(changed)[:, 1:])
    assert not torch.allclose(skipping, model(tokens, FixedRoute([0] * 3)))    # the MLPs still run


def test_a_second_entry_of_every_block_is_a_repeat():
    model, tokens = tiny_model(), torch.randint(2, 38, (2, 5))
    doubled = methods.view(model, [block for block in model.layers for _ in range(2)])
    assert torch.allclose(doubled(tokens, FixedRoute([1, 1, 1, 0, 1, 1])),
                          model(tokens, FixedRoute([2, 1, 2])))


def random_switches(number, seed):
    """Switches of random weights and a bias that lets some pass."""
    switches = methods.Switches(number, 16).requires_grad_(False)
    rng = torch.Generator().manual_seed(seed)
    switches.weight.data = torch.randn(number, 16, generator=rng)
    return switches


@given(st.integers(0, 10**6))
def test_training_sees_what_the_route_does(seed):
    """A switch trained on one function and used in another would learn nothing of use."""
    model = tiny_model(seed % 5, dtype=torch.float32)
    layers = [block for block in model.layers for _ in range(2)]
    norms = {2 * n + 1: block.input_layernorm for n, block in enumerate(model.layers)}
    switches = random_switches(3, seed)
    tokens, lengths = torch.randint(2, 38, (4, 7)), [7, 3, 5, 6]
    switches.watch(torch.tensor(lengths))
    weighted = methods.view(model, methods.switched(layers, norms, switches, per_token=False))
    soft = weighted(tokens, lengths=lengths)
    route = methods.SwitchRoute(switches, norms, 6)
    hard, cache = methods.prefill(methods.view(model, layers), tokens, route, lengths)
    for row, length in enumerate(lengths):
        assert torch.allclose(soft[row, :length], model.head(hard)[row, :length], atol=1e-4)
    assert torch.equal(torch.stack(switches.shares, 1), cache.decisions[:, 1::2].float())


@given(st.integers(0, 10**6))
def test_the_gradient_of_a_hard_choice_is_that_of_its_sigmoid(seed):
    score = torch.randn(9, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    on = methods.straight_through(score >= 0, score)
    assert torch.equal(on.detach(), (score >= 0).float())
    on.sum().backward()
    assert torch.allclose(score.grad, score.sigmoid() * (1 - score.sigmoid()))


@pytest.mark.parametrize("name", TRAINED)
def test_switches_train_and_the_base_does_not(setting, name, monkeypatch):
    monkeypatch.setattr(methods, "EPOCHS", 1)
    made = []
    monkeypatch.setattr(methods, "Switches", lambda *a: made.append(Switches(*a)) or made[0])
    before = [weight.clone() for weight in setting.model.parameters()]
    entrant = METHODS[name].make(setting)
    after = list(setting.model.parameters())
    assert all(torch.equal(a, b) and not b.requires_grad for a, b in zip(before, after))
    assert made[0].weight.abs().sum() > 0 and not made[0].weight.requires_grad
    found = asked(setting, entrant.routes[0], entrant.model)
    depth = entrant.layers_of(found.decisions) if entrant.layers_of else found.decisions.sum(1)
    assert depth.shape == (len(setting.prompts),) and 0 <= depth.min() <= depth.max() <= 6


Switches = methods.Switches


def test_adapters_are_trained_with_their_switches(setting, monkeypatch):
    """They begin as nothing, so untrained ones would leave the block out. They learn from tokens
    that skip, of which a great step makes some at once."""
    monkeypatch.setattr(methods, "RATE", 1.0)
    entrant = METHODS["flexidepth"].make(replace(setting, depth=1.0))
    adapters = [layer.adapter for layer in entrant.model.layers if hasattr(layer, "adapter")]
    assert len(adapters) == 2    # the upper half of three layers
    assert all(adapter[-1].bias.abs().sum() > 0 for adapter in adapters)


def test_capacity_term_brings_the_share_down_to_the_capacity(setting, monkeypatch):
    """Without its sign, or beyond the capacity, it would switch everything off or nothing."""
    monkeypatch.setattr(methods, "EPOCHS", 60)
    monkeypatch.setattr(methods, "PRESSURE", 50.0)
    entrant = methods.mindskip(replace(setting, depth=2.9))
    found = asked(setting, entrant.routes[0], entrant.model)
    depth = entrant.layers_of(found.decisions).mean().item()
    assert depth < 3.0 and depth > 2.3    # attention is a third of a block, two layers are switched


def token_switched(model, switches):
    norms = {n: block.input_layernorm for n, block in enumerate(model.layers)}
    return methods.view(model, methods.switched(model.layers, norms, switches))


def test_open_switches_change_nothing_and_closed_ones_leave_the_embeddings():
    model, tokens = tiny_model(dtype=torch.float32), torch.randint(2, 38, (3, 6))
    switches = Switches(3, 16, 1.0).requires_grad_(False).eval()
    view = token_switched(model, switches)
    assert torch.allclose(view(tokens), model(tokens), atol=1e-6)
    assert methods.token_layers(view, switches, prompts_of(["a"] * 4)).tolist() == [3.0] * 4
    switches.bias.data.fill_(-1.0)
    assert torch.allclose(view(tokens), model(tokens, FixedRoute([0, 0, 0])), atol=1e-6)
    assert methods.token_layers(view, switches, prompts_of(["a"] * 4)).tolist() == [0.0] * 4


def test_layers_of_tokens_ignore_padding_and_batching():
    model, prompts = tiny_model(dtype=torch.float32), prompts_of(["a"] * 6)
    switches = random_switches(3, 0).eval()
    together, alone = (methods.token_layers(token_switched(model, switches), switches, prompts, n)
                       for n in (6, 1))
    assert torch.allclose(together, alone, atol=1e-5) and len(together.unique()) > 2


def test_tokens_that_skip_still_write_keys():
    """Key completeness: a later token that runs the block attends to one that did not."""
    model, tokens = tiny_model(dtype=torch.float32), torch.randint(2, 38, (1, 6))
    switches = Switches(3, 16).requires_grad_(False).eval()
    score = lambda index, states: torch.tensor([[-1.0] * 5 + [1.0]])    # only the last token runs
    switches.score = score
    view, changed = token_switched(model, switches), tokens.clone()
    changed[:, 0] = (changed[:, 0] - 1) % 36 + 2
    assert not torch.allclose(view(tokens)[:, -1], view(changed)[:, -1])
    assert torch.allclose(view(tokens)[:, 1:5], view(changed)[:, 1:5])


def test_an_adapter_serves_only_the_tokens_that_skip():
    model, tokens = tiny_model(num_layers=1, dtype=torch.float32), torch.randint(2, 38, (1, 4))
    switches = Switches(1, 16).requires_grad_(False).eval()
    switches.score = lambda index, states: torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    layer = methods.Switched(model.layers[0], model.layers[0].input_layernorm, switches, 0)
    layer.adapter = lambda normed: torch.full_like(normed, 5.0)
    hidden, positions = model.embed_tokens(tokens), model.positions(model.empty_cache([4], 4), 0, 4)
    out = layer(hidden, positions, Store())
    assert torch.allclose(out[:, 1::2], hidden[:, 1::2] + 5.0)
    whole = model.layers[0](hidden, positions, Store())
    assert torch.allclose(out[:, ::2], whole[:, ::2], atol=1e-5)


@given(st.floats(0, 1), st.integers(0, 10**6))
def test_top_k_passes_the_share_of_each_rows_own_tokens(share, seed):
    """Padding must not take a place."""
    lengths = torch.tensor([7, 3, 1])
    score = torch.randn(3, 7, generator=torch.Generator().manual_seed(seed))
    passed = methods.top_share(score, lengths, share)
    for row, length in enumerate(lengths.tolist()):
        number = int(np.ceil(np.float32(share) * np.float32(length)))
        assert passed[row].sum() == number and passed[row, length:].sum() == 0
        if 0 < number < length:
            inside, chosen = score[row, :length], passed[row, :length]
            assert inside[chosen].min() >= inside[~chosen].max()
