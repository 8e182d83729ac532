"""The routers of drllm.py: windows, loss, knobs, files; each against a loop or a worked value."""
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from drllm import (GUARD, RouterRoute, Routers, class_weights, fit_guard, focal_loss,
                   interpolate, pool_windows, window_matrix)
from model_llama import Slot, generate, prompts_only
from paths import blocks
from storage.files import InputError
from tiny import WORDS, tiny_model

D = 16  # hidden size of the tiny model
MODEL = tiny_model()

seeds = st.integers(0, 10**6)
ragged = st.lists(st.integers(1, 40), min_size=1, max_size=4)  # lengths of a batch of prompts
window_limits = st.integers(1, 9)  # W


# ---- the same things by hand: one prompt, one window, one router at a time ----

def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_routers(seed, num_layers=3, width=8, windows=4):
    """Routers with biases, whose decisions differ from prompt to prompt."""
    routers = Routers(num_layers, D, width, windows)
    rng = torch.Generator().manual_seed(10**9 + seed)  # not the numbers of randn(seed)
    for parameter in routers.parameters():
        parameter.data = torch.randn(parameter.shape, generator=rng)
    return routers.requires_grad_(False)


def constant_routers(logits):
    """One router that gives the same logits to every prompt."""
    routers = random_routers(0, num_layers=1)
    routers.w2.zero_()
    routers.b2.copy_(torch.tensor(logits))
    return routers


def windows_by_hand(n, W):
    """The token numbers of each window of a prompt of n tokens."""
    used = min(W, n)
    size = n // used
    return [list(range(window * size, (window + 1) * size)) for window in range(used)]


def logits_by_hand(routers, layer, hidden):
    """(3,) of one prompt's hidden states (T, D) without padding."""
    w1, b1 = routers.w1[layer], routers.b1[layer, 0]
    w2, b2 = routers.w2[layer], routers.b2[layer, 0]
    votes = []
    for tokens in windows_by_hand(len(hidden), routers.windows):
        inner = hidden[tokens].float().mean(0) @ w1 + b1
        inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2  # GELU
        votes.append(inner @ w2 + b2)
    return torch.stack(votes).mean(0)


# ---- windowed pooling ----

@pytest.mark.task("4.1")
def test_windows_by_hand():
    """The docstring's example: ten tokens in four windows of two; tokens 8 and 9 are unseen."""
    matrix = window_matrix(torch.tensor([10]), 10, 4)[0]
    assert [row.nonzero().flatten().tolist() for row in matrix] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert matrix.sum(1).tolist() == [1, 1, 1, 1]


@pytest.mark.task("4.1")
@given(ragged, window_limits, seeds)
@example([3, 1], 8, 0)  # fewer tokens than windows
def test_pooling_equals_a_loop_over_prompts_and_windows(lengths, W, seed):
    """Windows laid out by the longest prompt of the batch: short prompts then average padding."""
    T = max(lengths)
    hidden = randn(seed, len(lengths), T, 5)
    pooled = pool_windows(hidden, torch.tensor(lengths), W)
    assert pooled.shape == (len(lengths), min(W, T), 5)
    for row, states, n in zip(pooled, hidden, lengths):
        means = torch.stack([states[tokens].mean(0) for tokens in windows_by_hand(n, W)])
        torch.testing.assert_close(row[:len(means)], means)
        assert not row[len(means):].any()


# ---- the routers ----

def test_initial_weights_are_xavier_per_layer_and_biases_zero():
    """Bounds taken over the stacked tensor (its fan-in includes L): weights far too small."""
    routers = Routers(4, 60, 40, 8)
    for stacked, fans in ((routers.w1, 60 + 40), (routers.w2, 40 + 3)):
        bound = math.sqrt(6 / fans)
        for matrix in stacked:
            assert 0.9 * bound < matrix.abs().max() <= bound
            assert abs(matrix.mean()) < 0.2 * bound
        assert not torch.equal(stacked[0], stacked[1])
    assert not routers.b1.any() and not routers.b2.any()


# ---- loss ----

def labelled(seed, n=6):
    """Random logits (n, 2, 3) and labels (n, 2)."""
    labels = torch.randint(3, (n, 2), generator=torch.Generator().manual_seed(seed))
    return 3 * randn(seed, n, 2, 3), labels


@pytest.mark.task("4.3")
def test_focal_loss_by_hand():
    """p = 0.9: 0.01 times 0.10536, a hundredth of the cross-entropy."""
    logits = torch.tensor([[0.05, 0.9, 0.05]]).log()
    assert focal_loss(logits, torch.tensor([1])).item() == pytest.approx(0.01 * 0.10536, rel=1e-4)


@pytest.mark.task("4.3")
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("size", [100.0, 1e30])
def test_focal_loss_gradient_is_finite_at_extreme_logits(gamma, size):
    """ln of a probability that underflowed to 0; a power of 1 - p where p rounds to 1."""
    logits = torch.tensor([[size, 0, 0], [0, size, -size], [0, 0, 0]], requires_grad=True)
    for label in range(3):
        focal_loss(logits, torch.tensor([label] * 3), gamma=gamma).backward()
        assert logits.grad.isfinite().all(), f"gradient at {size}: {logits.grad.tolist()}"


@pytest.mark.task("4.2")
def test_class_weights_by_hand():
    """The docstring's example."""
    weights = class_weights((10, 100, 1000))
    assert weights.tolist() == pytest.approx([2.68, 0.28, 0.04], abs=5e-3)


counts = st.lists(st.integers(0, 10**7), min_size=2, max_size=4)


@pytest.mark.task("4.2")
@given(counts, st.sampled_from((0.9, 0.99, 0.999, 0.9999)))
def test_rarer_class_never_weighs_less_and_the_mean_is_one(counts, beta):
    """Inverted or unscaled weights; a class never seen divides by zero."""
    weights = class_weights(counts, beta)
    assert weights.dtype == torch.float32 and weights.isfinite().all() and weights.min() > 0
    assert weights.mean().item() == pytest.approx(1, abs=1e-5)
    ordered = [weight for _, weight in sorted(zip(counts, weights.tolist()))]
    assert all(rare >= common * (1 - 1e-6) for rare, common in zip(ordered, ordered[1:]))


@pytest.mark.task("4.2")
@given(counts)
def test_beta_zero_gives_equal_weights_and_a_class_never_seen_counts_as_seen_once(counts):
    """The two ends of the effective number of samples. Counts may be a list or a tensor."""
    assert class_weights(counts, 0.0).tolist() == [1] * len(counts)
    seen_once = torch.tensor(counts).clamp(min=1)
    assert torch.equal(class_weights(counts), class_weights(seen_once))


# ---- knobs ----

@pytest.mark.task("4.4")
@given(seeds)
def test_control_stops_are_exact(seed):
    """-1 skips, -0.5 is the routers, 0.5 executes, 1 repeats."""
    p = randn(seed, 2, 5, 3).softmax(-1)
    for control, expected in ((-1, [1, 0, 0]), (-0.5, p), (0.5, [0, 1, 0]), (1, [0, 0, 1])):
        expected = torch.as_tensor(expected, dtype=p.dtype).expand_as(p)
        assert torch.equal(interpolate(p, control), expected)


@pytest.mark.task("4.4")
@given(seeds, st.floats(0, 1), st.sampled_from(((-1, -0.5), (-0.5, 0.5), (0.5, 1))))
def test_control_is_linear_between_stops_and_stays_a_distribution(seed, share, ends):
    """A kink between two stops, or shares that do not add up to one."""
    p, (low, high) = randn(seed, 4, 3).softmax(-1), ends
    mixed = interpolate(p, low + share * (high - low))
    line = (1 - share) * interpolate(p, low) + share * interpolate(p, high)
    torch.testing.assert_close(mixed, line, rtol=0, atol=1e-6)
    torch.testing.assert_close(mixed.sum(-1), torch.ones(4))
    assert mixed.min() >= 0


@pytest.mark.task("4.4")
@pytest.mark.parametrize("control", [-1.01, 1.01, 5, math.nan, math.inf])
def test_control_out_of_range_is_refused(control):
    """Extrapolation: beyond the stops the mixture is no distribution."""
    with pytest.raises(ValueError, match=str(control)):
        interpolate(torch.tensor([0.2, 0.3, 0.5]), control)


def test_tilt_by_hand():
    """tilt * (0, 1, 2) on logits (1, 0, -3): executes beyond tilt 1, repeats beyond tilt 3."""
    routers, hidden, n = constant_routers((1.0, 0.0, -3.0)), torch.zeros(1, 1, D), torch.tensor([1])
    tilts = (-9, 0, 0.9, 1.1, 2.9, 3.1)
    decisions = [int(RouterRoute(routers, depth_bias)(0, hidden, n)) for depth_bias in tilts]
    assert decisions == [0, 0, 0, 1, 1, 2]
    assert int(RouterRoute(routers, 9.0, control=-0.6)(0, hidden, n)) == 2  # tilted, then mixed


@given(ragged, seeds, st.sampled_from([-0.75, -0.5, -0.2, 0.7]))
def test_the_likeliest_decision_at_a_control_is_taken(lengths, seed, control):
    """Catches a parameter p that is not applied, and padding that takes part."""
    lengths, routers = torch.tensor(lengths), random_routers(seed)
    hidden = randn(seed, len(lengths), int(lengths.max()), D)
    route = RouterRoute(routers, control=control)
    for layer in range(3):
        pooled = pool_windows(hidden, lengths, 4)[:, None]
        logits = routers(pooled, lengths.clamp(max=4), slice(layer, layer + 1))[:, 0]
        chances = interpolate(logits.softmax(-1), control)
        for decision, chance in zip(route(layer, hidden, lengths).tolist(), chances):
            assert chance[decision] >= max(chance) - 1e-6


# ---- the guard ----

LENGTHS = torch.arange(120) % 12 + 1  # of the prompts the guard is fitted on; some under 4 tokens


def strange_prompts(seed, scale):
    """Hidden states (120, 12, D) entering each of three layers, larger from layer to layer."""
    return [scale * size * randn(seed + size, len(LENGTHS), 12, D) for size in (1, 2, 4)]


def guarded_routers():
    """Routers that skip every layer, guarded on prompts of scale 1."""
    pooled = torch.stack([pool_windows(h, LENGTHS, 4) for h in strange_prompts(0, 1.0)], 1)
    routers = random_routers(0)
    routers.w2.zero_()
    routers.b2.copy_(torch.tensor([9.0, 0.0, 0.0]))
    routers.set_guard(*fit_guard(pooled, LENGTHS.clamp(max=4)))
    return routers


def state_by_hand(routers, hidden):
    """The mean of a prompt's windows (T, D without padding), as the guard sees it."""
    means = [hidden[tokens].mean(0) for tokens in windows_by_hand(len(hidden), routers.windows)]
    return torch.stack(means).mean(0) @ routers.guard_projection


def distance_by_hand(routers, layer, hidden):
    """From a prompt to its third nearest point."""
    state = state_by_hand(routers, hidden)
    return sorted((state - point).norm().item() for point in routers.guard_points[layer])[2]


def test_guard_limit_is_what_99_percent_of_the_prompts_left_out_stay_within():
    """Points judged by themselves are at distance 0 of one: the limit would be far too small."""
    routers = guarded_routers()
    for layer, hidden in enumerate(strange_prompts(0, 1.0)):
        points = routers.guard_points[layer]
        assert len(points) == 60
        states = [state_by_hand(routers, h[:n]) for h, n in zip(hidden, LENGTHS)]
        left_out = [row for row, state in enumerate(states)
                    if min((state - point).norm() for point in points) > 1e-3]
        assert len(left_out) == 60
        distances = torch.tensor([distance_by_hand(routers, layer, hidden[row, :LENGTHS[row]])
                                  for row in left_out])
        torch.testing.assert_close(routers.guard_limits[layer], distances.quantile(0.99),
                                   rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale, least, most", [(1.0, 0.0, 0.1), (1.7, 0.1, 0.9), (9.0, 0.9, 1.0)])
def test_guarded_layers_execute_for_strange_prompts_and_only_for_those(scale, least, most):
    """The guard upside down, one layer's limit for all, or a mean that counts unused windows."""
    routers = guarded_routers()
    for layer, hidden in enumerate(strange_prompts(7, scale)):
        decisions = routers.route(layer, hidden, LENGTHS)
        limit = routers.guard_limits[layer].item()
        assert decisions.tolist() == [
            int(distance_by_hand(routers, layer, h[:n]) > limit) for h, n in zip(hidden, LENGTHS)]
        assert least <= decisions.float().mean() <= most
        assert not RouterRoute(routers, guard=False)(layer, hidden, LENGTHS).any()


def routers_that_know_nothing(seed):
    """Random routers for which every prompt is out of distribution, in every layer."""
    routers = random_routers(seed)
    routers.set_guard(torch.eye(D), torch.full((3, 3, D), 1e6), torch.zeros(3))
    return routers


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), seeds, st.booleans())
def test_the_ends_of_p_skip_and_repeat_every_layer_whatever_the_guard_says(lengths, seed, guard):
    """Catches a guard after the interpolation: ends that run 9.98 and 18.80 of 12 layers. In the
    middle, the guard's decision is moved as a router's would be: away from execute at the ends."""
    prompts, routers = [[3] * length for length in lengths], routers_that_know_nothing(seed)

    def run(p):
        """The blocks that one forward pass runs for each prompt."""
        route = RouterRoute(routers, control=p, guard=guard)
        return blocks(generate(MODEL, prompts, route, max_new_tokens=1).decisions).tolist()

    assert run(-1) == [0] * len(prompts) and run(1) == [6] * len(prompts)
    assert run(0.5) == [3] * len(prompts)
    if guard:
        shares = {-0.8: 0, -0.7: 3, -0.5: 3, 0: 3, 0.7: 3, 0.8: 6}
        assert {p: run(p) for p in shares} == {p: [n] * len(prompts) for p, n in shares.items()}


# ---- in the model ----


def prompts_of(lengths, seed):
    """Prompts of random tokens with these lengths."""
    rng = torch.Generator().manual_seed(seed)
    return [torch.randint(len(WORDS), (n,), generator=rng).tolist() for n in lengths]


@torch.inference_mode()
def decisions_by_hand(model, routers, prompt):
    """Layer by layer, one prompt: ask the router, run the block so often, continue."""
    hidden = model.embed_tokens(torch.tensor([prompt]))
    T, decisions = len(prompt), []
    span = model.positions(model.empty_cache([T], T), 0, T)
    for layer, block in enumerate(model.layers):
        decisions.append(int(logits_by_hand(routers, layer, hidden[0]).argmax()))
        for _ in range(decisions[-1]):
            hidden = block(hidden, span, Slot(None))
    return decisions


@settings(derandomize=True)  # a tie between two logits is the only thing that could go wrong
@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), seeds)
def test_generated_decisions_equal_routers_asked_layer_by_layer(lengths, seed):
    """Logits of the wrong layer, or hidden states that leave a layer in place of entering it."""
    routers, prompts = random_routers(seed), prompts_of(lengths, seed)
    found = generate(MODEL, prompts, routers.route, max_new_tokens=2).decisions.tolist()
    assert found == [decisions_by_hand(MODEL, routers, prompt) for prompt in prompts]


# ---- training ----

def test_every_router_of_the_stack_receives_gradient():
    """A router that gets none (detached, or a layer left out of the stack) never learns."""
    routers, used = Routers(3, D, 8, 4), torch.tensor([2, 4, 4, 4, 3, 1])
    labels = torch.arange(18).view(6, 3) % 3
    loss = focal_loss(routers(randn(0, 6, 3, 4, D), used), labels, class_weights((6, 6, 6)))
    loss.backward()
    assert {name for name, _ in routers.named_parameters()} == {"w1", "b1", "w2", "b2"}
    for parameter in routers.parameters():
        assert all(layer.abs().max() > 0 for layer in parameter.grad)


# ---- files ----

SIZES = {"num_layers": 3, "hidden_size": D, "width": 8, "windows": 4}


def saved(file, **notes):
    """Random routers of MODEL, saved; returns them."""
    routers = random_routers(3)
    routers.metadata = {"model": MODEL.fingerprint()} | notes
    routers.save(file)
    return routers


def write_with(file, notes, change=lambda tensor: tensor):
    """A router file whose metadata and tensors are as given, sensible or not."""
    tensors = {name: change(t).contiguous() for name, t in random_routers(3).state_dict().items()}
    notes = {"model": MODEL.fingerprint(), **SIZES} | notes if isinstance(notes, dict) else notes
    text = notes if isinstance(notes, str) else json.dumps(notes)
    save_file(tensors, file, {"drllm": text})


def refusal(file, model=MODEL):
    """The message with which a file is refused; it names the file."""
    with pytest.raises(InputError) as caught:
        Routers.load(file, model)
    assert str(file) in str(caught.value)
    return str(caught.value)


def test_load_gives_back_what_was_saved(tmp_path):
    """Windows or notes lost on the way; a folder that does not exist yet; and a run that was
    stopped and continued, whose router file then has another order."""
    file = tmp_path / "new" / "routers.safetensors"
    routers = saved(file, tasks=["add"])
    loaded = Routers.load(file, MODEL)
    assert loaded.metadata == {"model": MODEL.fingerprint(), "tasks": ["add"], **SIZES}
    assert {name: getattr(loaded, name) for name in SIZES} == SIZES
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    pooled, used = randn(5, 2, 3, 4, D), torch.tensor([4, 2])
    assert torch.equal(loaded(pooled, used), routers(pooled, used))
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == file.read_bytes()


def test_load_gives_back_the_guard(tmp_path):
    """A guard that is saved but not used again: routers would decide out of distribution."""
    routers, file = guarded_routers(), tmp_path / "r.safetensors"
    routers.metadata = {"model": MODEL.fingerprint()}
    routers.save(file)
    loaded = Routers.load(file, MODEL)
    assert all(torch.equal(getattr(loaded, name), getattr(routers, name)) for name in GUARD)
    for layer, hidden in enumerate(strange_prompts(7, 1.7)):
        decisions = loaded.route(layer, hidden, LENGTHS)
        assert torch.equal(decisions, routers.route(layer, hidden, LENGTHS))


@pytest.mark.parametrize("name", GUARD)
def test_load_refuses_half_a_guard_and_one_of_another_size(tmp_path, name):
    """A guard without its limits has no say, and one of another model has another."""
    routers, file = guarded_routers(), tmp_path / "r.safetensors"
    routers.metadata = {"model": MODEL.fingerprint()}
    whole = getattr(routers, name)
    parts = [None, whole[:-1].clone(), whole[None].clone()]
    if name == "guard_points":
        parts.append(whole[:, :2].clone())  # no third nearest point
    for part in parts:
        setattr(routers, name, part)
        routers.save(file)
        refusal(file)


def test_load_refuses_routers_of_another_model_and_names_both(tmp_path):
    """Routers read other layers' states without complaint: only the fingerprint tells. Those that
    were saved before the model was noted could be anyone's."""
    saved(tmp_path / "r.safetensors")
    other = tiny_model(seed=1)
    message = refusal(tmp_path / "r.safetensors", other)
    assert MODEL.fingerprint() in message and other.fingerprint() in message
    random_routers(0).save(tmp_path / "r.safetensors")
    assert MODEL.fingerprint() in refusal(tmp_path / "r.safetensors")


@pytest.mark.parametrize("name", ["num_layers", "hidden_size", "width"])
def test_load_refuses_tensors_that_do_not_fit_the_metadata(tmp_path, name):
    """A file stitched together from two trainings; the message has both shapes."""
    write_with(tmp_path / "r.safetensors", {name: SIZES[name] + 1})
    assert str(SIZES[name]) in (message := refusal(tmp_path / "r.safetensors"))
    assert str(SIZES[name] + 1) in message


@pytest.mark.parametrize("notes", [
    "{}", "[]", "7", "null", "not json", "", {"width": "8"}, {"width": 8.0}, {"windows": None},
    pytest.param("[" * 10**5, id="deeply nested")])
def test_load_refuses_metadata_without_whole_number_sizes(tmp_path, notes):
    """Metadata is text that anyone may have edited."""
    write_with(tmp_path / "r.safetensors", notes)
    refusal(tmp_path / "r.safetensors")


@pytest.mark.parametrize("notes", [
    {"windows": 0}, {"windows": -4}, {"num_layers": -3}, {"width": 10**30}, {"num_layers": 2**19},
    {"num_layers": 2}, {"hidden_size": 2**19}, {"width": 2**19}, {"windows": 2**19}])
def test_load_refuses_sizes_that_no_routers_have(tmp_path, notes, monkeypatch):
    """No windows at all divides by zero at the first prompt, far from the file that said so; and
    half a million layers are made for minutes before they are found not to be the model's."""
    write_with(tmp_path / "r.safetensors", notes)
    monkeypatch.setattr(Routers, "__init__", lambda *sizes: pytest.fail(f"{sizes} were made"))
    assert all(str(size) in refusal(tmp_path / "r.safetensors") for size in notes.values())


@pytest.mark.parametrize("change", [torch.Tensor.long, torch.Tensor.half, torch.Tensor.double,
                                    lambda tensor: tensor * torch.nan])
def test_load_refuses_tensors_that_are_not_float32_or_not_finite(tmp_path, change):
    """Windows are pooled in float32: other weights end the first prompt with a traceback. NaN
    logits skip every layer without a word."""
    write_with(tmp_path / "r.safetensors", {}, change)
    refusal(tmp_path / "r.safetensors")


def test_load_refuses_a_file_that_is_cut_short_absent_or_something_else(tmp_path):
    """A copy that was interrupted; the base model's weights given in place of the routers'."""
    file = tmp_path / "r.safetensors"
    refusal(file)
    saved(file)
    whole = file.read_bytes()
    for part in (whole[:-1], whole[:len(whole) // 2], whole[:5], b"", b"#!/bin/sh\n" * 20):
        file.write_bytes(part)
        refusal(file)
    save_file({"model.norm.weight": torch.ones(D)}, file)
    refusal(file)


def test_failed_save_leaves_the_old_file_and_no_half_one(tmp_path, monkeypatch):
    """A full disk in the middle of writing must not cost the routers of last night."""
    file = tmp_path / "r.safetensors"
    saved(file)
    before = file.read_bytes()

    def disk_full(part, data):
        part.write_text("half", encoding="utf-8")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(OSError, match="No space"):
        random_routers(4).save(file)
    assert list(tmp_path.iterdir()) == [file] and file.read_bytes() == before


@pytest.mark.parametrize("control", [-0.5, 0.3])
def test_a_guarded_layer_executes_where_a_state_is_no_number(control):
    """Catches nan, which is not above the limit, and whose largest logit is that of skip."""
    routers = constant_routers([9.0, 0.0, 0.0])
    routers.set_guard(torch.eye(D), torch.zeros(1, 3, D), torch.full((1,), 1e9))
    hidden = torch.zeros(3, 2, D)
    hidden[1, 0, 0], hidden[2, 1, 3] = math.nan, math.inf
    route = RouterRoute(routers, control=control)
    in_distribution, *others = route(0, hidden, torch.tensor([2, 2, 2])).tolist()
    assert others == RouterRoute(constant_routers([-99.0, 0.0, -99.0]), control=control)(
        0, torch.zeros(2, 2, D), torch.tensor([2, 2])).tolist()
    assert control != -0.5 or (in_distribution == 0 and others == [1, 1])


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_no_route_sees_what_follows_a_prompt_whatever_it_is(value):
    """Catches padding that is multiplied by 0: infinity times 0 is no number, and a product of
    windows and states spreads it over the prompt."""
    hidden, seen = torch.ones(2, 4, D), []
    hidden[0, 2:] = value
    route = prompts_only(lambda layer, states, lengths: seen.append(states), hidden, [2, 4])
    route(0, hidden, torch.tensor([2, 4]))
    assert seen[0].isfinite().all() and not seen[0][0, 2:].any() and seen[0].sum() == 6 * D


def test_the_guard_follows_the_routers_to_their_device():
    """A guard fitted on the CPU once stayed there beside routers on a GPU."""
    routers = Routers(2, 8).to("meta")
    routers.set_guard(torch.zeros(8, 4), torch.zeros(2, 5, 4), torch.zeros(2))
    assert {tensor.device.type for tensor in routers.state_dict().values()} == {"meta"}
