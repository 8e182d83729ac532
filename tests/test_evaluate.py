"""The figures of the report on cases one can work by hand."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import evaluate
from choose import frontier
from drllm import Routers
from cli import aligned
from evaluate import Outcome, interval, shuffled, summarise
from experiments.statistics import fixed_paths_at
from model_llama import FixedRoute
from storage.files import InputError
from questions.loading import read_row
from answers import Answers, answer


def answers(correct, decisions, passes=2):
    decisions = torch.tensor(decisions)
    layers = decisions.sum(1) * passes
    return Answers(torch.tensor(correct), torch.ones(len(correct)), decisions, layers,
                   torch.full((len(correct),), passes), [""] * len(correct))


def test_summary_of_two_seeds_by_hand():
    """Gains are paired with vanilla and averaged over seeds; layers per pass and summed differ."""
    vanilla = Outcome("vanilla", [answers([1.0, 0.0, 0.0, 1.0], [[1, 1]] * 4)])
    routed = Outcome("x", [answers([1.0, 1.0, 0.0, 0.0], [[0, 1], [2, 2], [1, 1], [1, 0]]),
                           answers([1.0, 1.0, 1.0, 0.0], [[0, 1], [1, 2], [1, 1], [1, 1]])])
    figures = summarise(routed, vanilla, torch.tensor([True, True, True, False]))
    assert figures["n"] == 3
    assert figures["accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert figures["gain"] == pytest.approx((2 / 3 + 1) / 2 - 1 / 3)
    assert figures["layers"] == pytest.approx((7 / 3 + 6 / 3) / 2)
    assert figures["layers_executed"] == pytest.approx(2 * (7 / 3 + 6 / 3) / 2)
    assert figures["skip"] == pytest.approx(2 / 12) and figures["repeat"] == pytest.approx(3 / 12)


@pytest.mark.task("6.1")
@given(st.integers(0, 10**6), st.integers(30, 300))
def test_interval_holds_the_mean_and_narrows_with_more_questions(seed, n):
    """Catches percentiles of the values, which do not move with the number of questions."""
    rng = np.random.default_rng(seed)
    values = rng.choice([-1.0, 0.0, 1.0], size=n)
    low, high = interval(values, resamples=300)
    assert low <= values.mean() <= high
    fewer, more = low, high
    low, high = interval(np.tile(values, 16), resamples=300)  # a quarter of the standard error
    assert high - low <= more - fewer


@pytest.mark.task("6.1")
def test_interval_covers_as_often_as_it_says():
    """Catches other percentiles than 2.5 and 97.5, and standard deviations taken for errors."""
    rng = np.random.default_rng(0)
    samples = rng.normal(0.1, 1.0, size=(200, 100))
    held = [low <= 0.1 <= high for low, high in (interval(s, resamples=400) for s in samples)]
    assert 178 <= sum(held) <= 198, (f"{sum(held)} of 200 intervals hold the mean, wanted about "
                                     "190: wrong percentiles?")


@pytest.mark.task("5.1")
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_frontier_is_the_upper_hull_of_the_static_paths(seed, number):
    """No static path, and no mix of two, lies above it at the same length."""
    rng = torch.Generator().manual_seed(seed)
    paths = [tuple(path) for path in torch.randint(3, (number, 4), generator=rng).tolist()]
    paths = list(dict.fromkeys(paths))
    correct = torch.rand(16, len(paths), generator=rng) < 0.5
    hull = frontier(paths, correct)
    score = {path: correct[:, k].float().mean() for k, path in enumerate(paths)}
    points = [(length, score[path].expand(1)) for length, path in hull]
    for path in paths:
        assert fixed_paths_at(sum(path), points) >= score[path] - 1e-6 or sum(path) < hull[0][0]
    gains = [(points[i + 1][1] - points[i][1]) / (points[i + 1][0] - points[i][0])
             for i in range(len(points) - 1)]
    assert all(gain > 0 for gain in gains) and gains == sorted(gains, reverse=True)


@pytest.mark.task("5.1")
def test_static_mix_meets_the_depth_exactly():
    """Catches shares the wrong way round, and an end that is extrapolated."""
    fixed_paths = [(10, torch.tensor([0.0, 1.0])), (14, torch.tensor([1.0, 1.0]))]
    assert fixed_paths_at(11, fixed_paths).tolist() == [0.25, 1.0]
    assert fixed_paths_at(9, fixed_paths).tolist() == [0.0, 1.0]
    assert fixed_paths_at(15, fixed_paths).tolist() == [1.0, 1.0]


@pytest.mark.task("6.2")
@given(st.integers(1, 20), st.integers(1, 12), st.integers(0, 10**6))
def test_shuffled_keeps_each_rows_decisions_and_depth(rows, layers, seed):
    """Catches decisions that move to another row, and with them its depth."""
    decisions = torch.randint(3, (rows, layers))
    mixed = shuffled(decisions, seed)
    assert torch.equal(decisions.sort(1).values, mixed.sort(1).values)


STATICS = [(1, (0, 0, 1)), (2, (1, 0, 1)), (3, (1, 1, 1)), (5, (2, 2, 1))]


@pytest.mark.parametrize("paths, around", [
    ([(0, 0, 0)] * 8, [1]), ([(0, 1, 1)] * 8, [2, 3]), ([(0, 1, 1)] * 4 + [(2, 1, 1)] * 4, [3, 5]),
    ([(0, 1, 0)] * 7 + [(1, 1, 0)], [1, 2]), ([(2, 1, 2)] * 8, [5]), ([(2, 2, 2)] * 8, [5])])
def test_static_routes_are_those_around_the_routers_depth(tiny_questions, paths, around):
    """Catches a control at another depth, which says nothing about what routing is worth."""
    routed = {"dr.llm": ("Dr.LLM", [FixedRoute(paths)])}
    table = evaluate.compare(*tiny_questions, {"own"}, routed, STATICS, ("fixed",))
    asked = [table.outcomes.get(f"static {side}") for side in ("below", "above")]
    assert [int(outcome.layers.mean()) for outcome in asked if outcome] == around
    assert [length for length, _ in table.fixed_paths] == [1, 2, 3, 5]
    assert set(table.outcomes) <= {"vanilla", "fixed below", "fixed above"}


@pytest.fixture
def command(tmp_path, tiny_questions):
    """(routers, the command line that evaluates them on the tiny questions)."""
    model, tokenizer, prompts = tiny_questions
    routers = Routers(3, 16)
    routers.metadata = {"model": model.fingerprint(), "tasks": ["own"]}
    routers.save(tmp_path / "routers.safetensors")
    rows = [{"id": p.question.id, "task": p.question.task, "prompt": p.question.prompt,
             "answer": p.question.answer, "max_new_tokens": 2} for p in prompts]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fitted_on = [row | {"id": f"label-{n}", "prompt": f"c {row['prompt']}"}
                 for n, row in enumerate(rows)]
    (tmp_path / "label.jsonl").write_text("".join(json.dumps(row) + "\n" for row in fitted_on))
    (tmp_path / "paths.json").write_text(json.dumps({"frontier": [[2, [1, 0, 1]], [4, [1, 2, 1]]]}))
    return routers, ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "q.jsonl"),
                     "--out", str(tmp_path / "out"), "--routers",
                     str(tmp_path / "routers.safetensors")]


def metrics_of(command, *more):
    evaluate.main([*command, *more])
    return json.loads((Path(command[5]) / "metrics.json").read_text())


def test_command_line_repeats_what_training_reported(command, tiny_questions, capsys):
    """evaluate.py on saved routers asks the same questions along the same decisions."""
    model, tokenizer, prompts = tiny_questions
    routers, line = command
    metrics = metrics_of(line)
    routed = answer(model, tokenizer, prompts, routers.route)
    assert metrics["routes"]["dr.llm"]["accuracy"] == pytest.approx(routed.correct.mean().item())
    assert metrics["routes"]["dr.llm"]["layers"] == pytest.approx(
        routed.decisions.sum(1).float().mean().item())
    assert metrics["routes"]["dr.llm"]["layers_executed"] == pytest.approx(
        routed.layers.float().mean().item())
    assert metrics["tasks"]["own"]["domain"] == "in" and len(metrics["fixed"]) == 2
    assert "In domain, 8 questions" in capsys.readouterr().out


def test_routers_may_be_named_by_their_folder(command):
    """Catches a folder taken for a file, and paths.json looked for beside the folder."""
    named = metrics_of(command[1])
    folder = metrics_of([*command[1][:-1], str(Path(command[1][-1]).parent)])
    assert folder["routes"].keys() == named["routes"].keys() >= {"dr.llm", "fixed below"}
    assert folder["routes"] == named["routes"]


def test_what_a_killed_run_left_is_gone_after_the_next(command):
    """Catches .metrics.json.PID.part that stays for ever."""
    out, ended = Path(command[1][5]), subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    out.mkdir()
    for number in (ended.pid, os.getpid()):
        (out / f".metrics.json.{number}.part").write_text("half")
    metrics_of(command[1])
    assert {file.name for file in out.iterdir()} == {"metrics.json", "answers.jsonl"}


@pytest.mark.parametrize("routes, asked", [
    ("vanilla", ["vanilla"]), ("dr.llm", ["vanilla", "dr.llm"]),
    ("shortgpt", ["vanilla", "shortgpt"]), ("shuffled,random", ["vanilla", "shuffled", "random"]),
    ("dr.llm,executed-only,early-exit", ["vanilla", "dr.llm", "executed-only", "early-exit"])])
def test_exactly_the_named_routes_and_vanilla_are_reported(command, routes, asked):
    other = str(Path(command[1][3]).with_name("label.jsonl"))
    metrics = metrics_of(command[1], "--routes", routes, "--calibration", other)
    assert set(metrics["routes"]) == set(asked)
    assert metrics["routes"].get("executed-only", {}).get("gain", 0.0) == 0.0


def test_questions_that_the_routers_learned_from_are_not_asked(command, capsys):
    """Catches "none of them labelled" above the figures of questions that were."""
    routers, line = command
    rows = [json.loads(row) for row in Path(line[3]).read_text().splitlines()]
    words = [read_row(row).wording for row in rows]
    for learned, asked, said in (([], 8, "perhaps among those labelled"),
                                 (words[:3], 5, "none of them labelled or trained on"),
                                 (words + ["elsewhere"], 0, "8 of 8 questions were labelled")):
        routers.metadata["questions"] = learned
        routers.save(line[7])
        if asked:
            found = metrics_of([*line, "--score", "letter"], "--routes", "dr.llm")
            assert found["routes"]["dr.llm"]["n"] == asked
        else:
            with pytest.raises(InputError, match="8 of 8 questions were labelled"):
                metrics_of(line)
        printed = capsys.readouterr().out
        assert (said in printed or not asked) and ("3 of 8" in printed) == (asked == 5)
    renamed = [row | {"id": f"x{n}", "task": "renamed"} for n, row in enumerate(rows)]
    Path(line[3]).write_text("".join(json.dumps(row) + "\n" for row in renamed))
    with pytest.raises(InputError, match="8 of 8 questions were labelled"):
        metrics_of(line)


def test_a_run_s_own_metrics_are_not_replaced(command):
    out = Path(command[1][5])
    out.mkdir()
    (out / "labels.jsonl").write_text("")
    with pytest.raises(InputError, match="out: a folder of train.py or label.py"):
        metrics_of(command[1])
    assert not (out / "metrics.json").exists()


@pytest.mark.parametrize("key", ["choice", "questions", "label_hash", "windows"])
def test_routers_of_two_recipes_are_not_seeds_of_one(command, key):
    """Catches routers/*.safetensors, the paper's among ours, averaged without a word."""
    routers, line = command
    more = Path(line[7]).with_name("more.safetensors")
    if key == "windows":
        routers.windows = 4
    else:
        routers.metadata[key] = ["x"] if key == "questions" else "x"
    routers.save(more)
    with pytest.raises(InputError, match=f"more.safetensors: {key} .*Seeds of one recipe agree"):
        metrics_of([*line, str(more)])


def test_routers_among_the_seeds_of_a_run_find_its_paths(command):
    """Catches static paths that are left out where every seed is evaluated."""
    file = Path(command[1][-1])
    (file.parent / "routers").mkdir()
    seed = file.rename(file.parent / "routers" / "safe-0.safetensors")
    assert "fixed below" in metrics_of([*command[1][:-1], str(seed)])["routes"]


def test_calibration_questions_that_are_also_asked_are_refused(command):
    with pytest.raises(InputError, match="8 of 8 questions also stand in --calibration"):
        metrics_of(command[1], "--routes", "shortgpt", "--calibration", command[1][3])


def test_static_methods_run_at_the_depth_of_the_routers(command):
    metrics = metrics_of(command[1], "--routes", "dr.llm,early-exit")
    wanted = min(3.0, metrics["routes"]["dr.llm"]["layers"])
    assert metrics["routes"]["early-exit"]["layers"] == pytest.approx(wanted, abs=0.07)


def test_layers_of_a_view_are_its_own_count():
    """A view's decisions count halves of blocks; what is reported are layers."""
    halves = Outcome("x", [answers([1.0, 1.0], [[1, 1, 0, 1], [1] * 4], passes=3)],
                     depth=torch.tensor([1.5, 2.0]))
    assert halves.layers.tolist() == [1.5, 2.0] and halves.layers_executed.tolist() == [4.5, 6.0]


def test_questions_of_unknown_tasks_alone_still_get_figures(tmp_path, tiny_questions, capsys):
    """Totals over no question at all are NaN."""
    model, tokenizer, prompts = tiny_questions
    routed = {"dr.llm": ("Dr.LLM", [Routers(3, 16).route])}
    table = evaluate.compare(model, tokenizer, prompts, {"other"}, routed,
                             [(2, (1, 0, 1)), (4, (1, 2, 1))])
    metrics = evaluate.report(table, "dr.llm", tmp_path)
    assert metrics["routes"]["vanilla"]["n"] == len(prompts) and "NaN" not in json.dumps(metrics)
    assert metrics["tasks"]["own"]["domain"] == "out"
    assert "Out of domain" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--routes", "vanilla,teleport"], ["--control", "1.5"],
                                       ["--routes", "dr.llm", "--routers"]])
def test_unknown_routes_and_knobs_out_of_range_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.parse_args(["--data", "q", "--routers", "r", *arguments])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert any(text in said for text in ("teleport", "1.5", "expected at least"))


def test_aligned_rows_by_hand():
    """Catches a column lost where the first row lacks it, and figures that do not line up."""
    rows = [{"name": "a", "right": "7.5"}, {"name": "long", "n": "12"}]
    assert aligned(rows) == "name  right   n\na       7.5\nlong         12"
