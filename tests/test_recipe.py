"""The recipe: how routers are trained, and on which labels.

fit_routers is compared with a loop written out below. MISTAKES holds the same loop with one
thing wrong, so that a recipe which has drifted is called by its name.
"""
import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

import choose
import train
from drllm import Routers, class_weights, focal_loss
from storage.files import read_json
from tiny import read_lines
from train import TrainConfig, learning_rate

seeds = st.integers(0, 10**6)
# no number is a default; 18 examples, 7 at once, make 12 steps, the first 4 of them warm-up
CONFIG = TrainConfig(epochs=4, batch=7, learning_rate=0.01, weight_decay=0.5, warmup=0.3, gamma=0.7,
                     beta=0.9, width=5, windows=3)


def examples(N=18, seed=0, L=2, W=3, D=4):
    """(pooled, counts, labels): random windows, and labels of which EXECUTE is the commonest."""
    rng = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, W + 1, (N,), generator=rng)
    unused = torch.arange(W) >= counts[:, None]  # (N, W)
    pooled = torch.randn(N, L, W, D, generator=rng).masked_fill(unused[:, None, :, None], 0.0)
    shares = torch.tensor([1.0, 6.0, 3.0]).expand(N, 3)
    return pooled, counts, torch.multinomial(shares, L, replacement=True, generator=rng)


# ---- the loop, by hand ----

def shuffled_anew(N, seed, config):
    """The batches of all epochs: every epoch draws a new order from the seed's own generator."""
    rng = torch.Generator().manual_seed(seed)
    return [rows for _ in range(config.epochs)
            for rows in torch.randperm(N, generator=rng).split(config.batch)]


def by_hand(pooled, counts, labels, seed, config, batches=shuffled_anew, rate=learning_rate):
    """Routers after the whole recipe. batches and rate: where a mistake comes in."""
    torch.manual_seed(seed)
    routers = Routers(pooled.shape[1], pooled.shape[3], config.width, config.windows)
    adam = torch.optim.AdamW(routers.parameters(), weight_decay=config.weight_decay)
    weights = class_weights(torch.bincount(labels.flatten(), minlength=3), config.beta)
    steps = batches(len(labels), seed, config)
    for step, rows in enumerate(steps):
        adam.param_groups[0]["lr"] = rate(step, len(steps), config)
        loss = focal_loss(routers(pooled[rows], counts[rows]), labels[rows], weights, config.gamma)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return routers


def difference(one, other):
    """The largest difference between the weights of two Routers."""
    pairs = zip(one.parameters(), other.parameters())
    return max((a - b).abs().max().item() for a, b in pairs)


@given(st.integers(1, 20), st.integers(1, 9), st.integers(1, 3), seeds)
def test_training_is_the_loop_written_by_hand(N, batch, epochs, seed):
    """Any step left out or added: one epoch, one batch and one example included."""
    data, config = examples(N, seed), replace(CONFIG, batch=batch, epochs=epochs)
    made = train.fit_routers(*data, seed, config)
    assert difference(made, by_hand(*data, seed, config)) < 1e-5


def test_no_number_of_the_hand_loop_is_a_default():
    """A setting that is ignored would go unnoticed where it has its default."""
    default = vars(TrainConfig())
    numbers = {name: value for name, value in vars(CONFIG).items() if type(value) is not bool}
    assert not [name for name, value in numbers.items() if value == default[name]]


MISTAKES = {
    "plain cross-entropy": {"config": replace(CONFIG, gamma=0.0, beta=0.0)},
    "gamma ignored": {"config": replace(CONFIG, gamma=TrainConfig.gamma)},
    "class weights left out": {"config": replace(CONFIG, beta=0.0)},
    "beta ignored": {"config": replace(CONFIG, beta=TrainConfig.beta)},
    "weight decay ignored": {"config": replace(CONFIG, weight_decay=TrainConfig.weight_decay)},
    "constant learning rate": {"rate": lambda step, steps, config: config.learning_rate},
    "no warm-up": {"config": replace(CONFIG, warmup=0.0)},
    "the end never reached": {"rate": lambda step, steps, config:
                              learning_rate(step, 2 * steps, config)},
    "examples in the order of the file": {"batches": lambda N, seed, config:
                                          torch.arange(N).split(config.batch) * config.epochs},
    "the same order in every epoch": {"batches": lambda N, seed, config:
                                      shuffled_anew(N, seed, config)[:3] * config.epochs},
    "the same order for every seed": {"batches": lambda N, seed, config:
                                      shuffled_anew(N, 0, config)},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_training_does_not_make_the_mistake(mistake):
    """Fails where the routers are those of this one mistake: the test's name says which."""
    data, how = examples(), {"config": CONFIG} | MISTAKES[mistake]
    made = train.fit_routers(*data, 3, CONFIG)
    assert difference(made, by_hand(*data, 3, **how)) > 1e-3


# ---- what the loop is seen to do, step by step ----

@contextmanager
def watched():
    """(rates, batches): the learning rate of every step, and the pooled windows it looked at."""
    rates, batches = [], []

    def note_rate(optimizer, args, kwargs):
        rates.append(optimizer.param_groups[0]["lr"])

    def note_batch(module, args):
        if isinstance(module, Routers):
            batches.append(args[0])

    hooks = [register_optimizer_step_pre_hook(note_rate),
             register_module_forward_pre_hook(note_batch)]
    try:
        yield rates, batches
    finally:
        for hook in hooks:
            hook.remove()


def test_the_rate_climbs_to_its_peak_and_ends_near_zero_in_the_loop_itself():
    """A right schedule that the loop asks for the wrong step, or not at all. 25 steps, 5 of them
    warm-up; the last of the 20 that go down is at sin(pi / 40)^2 = 0.6% of the peak."""
    with watched() as (rates, _):
        train.fit_routers(*examples(40), 0, replace(CONFIG, epochs=5, batch=8, warmup=0.2))
    assert rates[:5] == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01])
    assert rates[15] == pytest.approx(0.005) and rates[5:] == sorted(rates[5:], reverse=True)
    assert len(rates) == 25 and rates[-1] == pytest.approx(0.0062 * 0.01, rel=0.01)


@given(st.integers(1, 400), st.floats(0, 0.9), st.floats(1e-5, 1.0))
def test_the_schedule_climbs_by_equal_steps_and_falls_along_half_a_cosine(steps, warmup, peak):
    """No warm-up, one that overshoots, a fall that ends too early, too late, or is a line."""
    config = replace(CONFIG, warmup=warmup, learning_rate=peak)
    rates = [learning_rate(step, steps, config) for step in range(steps)]
    warm = max(1, round(warmup * steps))
    assert rates[:warm] == pytest.approx([peak * n / warm for n in range(1, warm + 1)])
    fall = steps - warm
    assert rates[warm:] == pytest.approx(
        [peak * math.cos(math.pi / 2 * n / fall) ** 2 for n in range(fall)])


@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 4), seeds)
def test_every_epoch_shows_every_example_once_in_an_order_of_its_own(N, batch, epochs, seed):
    """Examples in the order of the file, the same order again and again, some left out."""
    pooled = torch.arange(float(N))[:, None, None, None].expand(N, 1, 1, 2)  # an example's number
    config = replace(CONFIG, batch=batch, epochs=epochs, windows=1)
    with watched() as (_, batches):
        train.fit_routers(pooled, torch.ones(N), torch.ones(N, 1).long(), seed, config)
    seen = [rows[:, 0, 0, 0].long().tolist() for rows in batches]
    assert seen == [rows.tolist() for rows in shuffled_anew(N, seed, config)]


# ---- whole runs ----

@pytest.fixture
def run(own_folder, tmp_path):
    """run(*flags) trains, in a few seconds at most; the folder of the run."""
    def run(*flags):
        train.main(["--model", str(own_folder / "model"), "--data", str(own_folder / "q.jsonl"),
                    "--out", str(tmp_path / "run"), "--simulations", "12", "--clusters", "3",
                    "--seeds", "2", *flags])
        return tmp_path / "run"
    return run


def test_seeds_in_the_metrics_are_those_of_the_routers(run):
    """Seeds counted from 0 whatever --seed says: the routers of one are named after another's."""
    folder = run("--seed", "3")
    assert [row["seed"] for row in read_json(folder / "metrics.json")["seeds"]] == [3, 4]
    files = {file.stem for file in (folder / "routers").iterdir()}
    assert {"safe-3", "safe-4"} <= files


def test_paths_are_looked_for_in_groups_of_similar_questions(run, monkeypatch):
    """Clusters that are made and then forgotten: the paths of all questions together would do."""
    asked, propose_paths = [], choose.propose_paths

    def note(model, tokenizer, prompts, rows, *args, **how):
        asked.append([prompt.question.id for prompt in prompts])
        assert asked[-1] == [row["id"] for row in rows]
        return propose_paths(model, tokenizer, prompts, rows, *args, **how)

    monkeypatch.setattr(choose, "propose_paths", note)
    labelled = read_lines(run() / "labels.jsonl")
    everyone, *groups = asked
    assert sorted(everyone) == sorted(row["id"] for row in labelled)
    assert groups and all(8 <= len(group) < len(everyone) for group in groups)
    together = [name for group in groups for name in group]
    assert len(set(together)) == len(together)  # no question is in two


def paper_label(row):
    """Of a labels row: the shortest right path, the first of equals; a wrong default's first."""
    correct = [tuple(path) for path, _ in row["correct"]]
    return min(correct, key=sum) if row["default_correct"] else correct[0]


def surest_label(row):
    """Of a labels row: the path of the largest probability less 0.001 per layer."""
    return tuple(max(row["correct"], key=lambda met: met[1] - 0.001 * sum(met[0]))[0])


@pytest.mark.parametrize("choice, label_of", [("shortest", paper_label),
                                              ("confident", surest_label)])
def test_routers_learn_the_label_the_choice_names(run, monkeypatch, choice, label_of):
    """Another choice, or another question's label."""
    seen, fit_routers = [], train.fit_routers

    def note(pooled, counts, labels, *args, **how):
        seen.append([tuple(path) for path in labels.tolist()])
        return fit_routers(pooled, counts, labels, *args, **how)

    monkeypatch.setattr(train, "fit_routers", note)
    rows = read_lines(run("--choose", choice) / "labels.jsonl")
    answered = [row for row in rows if row["correct"]]
    wanted = [label_of(row) for row in answered]
    assert wanted in seen and len(set(wanted)) > 3
