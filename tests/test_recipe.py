"""The recipe: how routers are trained, and on which labels.

fit_routers is compared with a loop written out below.
"""
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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


def by_hand(pooled, counts, labels, seed, config):
    """Routers after the whole recipe."""
    torch.manual_seed(seed)
    routers = Routers(pooled.shape[1], pooled.shape[3], config.width, config.windows)
    adam = torch.optim.AdamW(routers.parameters(), weight_decay=config.weight_decay)
    weights = class_weights(torch.bincount(labels.flatten(), minlength=3), config.beta)
    steps = shuffled_anew(len(labels), seed, config)
    for step, rows in enumerate(steps):
        adam.param_groups[0]["lr"] = learning_rate(step, len(steps), config)
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


def test_the_defaults_are_the_papers():
    """Nothing else notices routers that are trained at another learning rate."""
    config = TrainConfig()
    assert (config.epochs, config.batch, config.learning_rate) == (25, 16, 1e-3)
    assert (config.weight_decay, config.gamma, config.beta) == (0.01, 2.0, 0.999)
    assert (config.width, config.windows) == (128, 8)
    assert config.warmup == 0.08 and config.guard  # the guard is ours


def test_no_number_of_the_hand_loop_is_a_default():
    """A setting that is ignored would go unnoticed where it has its default."""
    default = vars(TrainConfig())
    numbers = {name: value for name, value in vars(CONFIG).items() if type(value) is not bool}
    assert not [name for name, value in numbers.items() if value == default[name]]


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
