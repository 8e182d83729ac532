"""The figures of the report on cases one can work by hand."""
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import evaluate
from drllm import Routers
from cli import aligned, with_interval
from evaluate import Outcome, fixed_paths_at, interval, shuffled, summarise
from model_llama import FixedRoute
from storage.files import InputError, locked, read_json
from questions.loading import Question, read_row
from answers import Answers, answer
from tiny import read_lines, write_lines


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


@pytest.mark.task("5.1")
def test_static_mix_meets_the_depth_exactly():
    """Catches shares the wrong way round, an end that is extrapolated, a depth that is rounded,
    and the two nearest paths in place of those around the depth."""
    fixed_paths = [(10, torch.tensor([0.0, 1.0])), (14, torch.tensor([1.0, 1.0]))]
    assert fixed_paths_at(11, fixed_paths).tolist() == [0.25, 1.0]
    assert fixed_paths_at(9, fixed_paths).tolist() == [0.0, 1.0]
    assert fixed_paths_at(15, fixed_paths).tolist() == [1.0, 1.0]
    fixed_paths.append((15, torch.tensor([0.5, 0.0])))
    assert fixed_paths_at(13.37, fixed_paths).tolist() == pytest.approx([0.8425, 1.0])
    assert fixed_paths_at(14.2, fixed_paths).tolist() == pytest.approx([0.9, 0.8])


@pytest.mark.task("5.1")
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4, unique=True), st.floats(0, 41),
       st.integers(0, 10**6))
def test_fixed_paths_are_mixed_as_numpy_interpolates(lengths, layers, seed):
    """Catches mixes that are looked up in a table."""
    rewards = torch.rand(len(lengths), 3, generator=torch.Generator().manual_seed(seed))
    lengths = sorted(lengths)
    mixed = fixed_paths_at(layers, list(zip(lengths, rewards)))
    assert mixed.tolist() == pytest.approx(
        [np.interp(layers, lengths, column) for column in rewards.T.tolist()], abs=1e-5)


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
    asked = [table.outcomes.get(f"fixed {side}") for side in ("below", "above")]
    assert [int(outcome.layers.mean()) for outcome in asked if outcome] == around
    assert list(table.fixed_paths) == [1, 2, 3, 5]
    assert set(table.outcomes) <= {"vanilla", "fixed below", "fixed above"}


def test_the_gain_over_fixed_paths_is_paired_and_at_the_routers_depth(tiny_questions):
    """Catches a gain over a fixed path of another depth, and the interval of something else."""
    paths = [(1, 1, 1)] * 4 + [(2, 1, 1)] * 4  # 3.5 blocks
    routed = {"dr.llm": ("Dr.LLM", [FixedRoute(paths)])}
    table = evaluate.compare(*tiny_questions, {"own"}, routed, STATICS[::-1], ("fixed", "dr.llm"))
    three, five = table.fixed_paths[3].correct, table.fixed_paths[5].correct
    over = table.outcomes["dr.llm"].correct - 0.75 * three - 0.25 * five
    row = table.metrics()["routes"]["dr.llm"]
    assert row["over_fixed"] == pytest.approx(over.mean().item())
    assert row["over_fixed_interval"] == pytest.approx(interval(over))
    said = with_interval(over.mean().item(), interval(over))
    sentences = evaluate.gain_sentences(table.metrics(), {"dr.llm": "Dr.LLM"})
    assert f"Over fixed paths of the same depth: {said} points." in sentences


def metrics_of(command, *more):
    evaluate.main([*command, *more])
    return read_json(Path(command[5]) / "metrics.json")


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
        routed.blocks_run.float().mean().item())
    assert metrics["tasks"]["own"]["domain"] == "in" and len(metrics["fixed"]) == 2
    assert "In domain, 8 questions" in capsys.readouterr().out


def test_the_guard_can_be_left_out(command):
    """Catches routers whose row in train.py's table, without a guard, cannot be had again."""
    routers, line = command
    routers.requires_grad_(False).b2[..., 2] = 9.0  # repeat every layer
    far_away = torch.full((3, 3, 16), 1e6)  # every prompt is out of distribution
    routers.set_guard(torch.eye(16), far_away, torch.zeros(3))
    routers.save(Path(line[-1]))
    layers = [metrics_of(line, *flags)["routes"]["dr.llm"]["layers"]
              for flags in ([], ["--no-guard"])]
    assert layers == [3.0, 6.0]


def test_two_evaluations_cannot_write_one_folder(command):
    """Catches a cached answer that another process cuts in half."""
    line = command[1]
    with locked(Path(line[5])), pytest.raises(InputError, match=f"process {os.getpid()} is at"):
        evaluate.main(line)


def test_routers_may_be_named_by_their_folder(command):
    """Catches a folder taken for a file, and paths.json looked for beside the folder."""
    named = metrics_of(command[1])
    folder = metrics_of([*command[1][:-1], str(Path(command[1][-1]).parent)])
    assert folder["routes"].keys() == named["routes"].keys() >= {"dr.llm", "fixed below"}
    assert folder["routes"] == named["routes"]


@pytest.mark.parametrize("routes, asked", [
    ("vanilla", []), ("dr.llm", ["dr.llm"]), ("shuffled", ["shuffled"]),
    ("vanilla, dr.llm", ["dr.llm"]), ("dr.llm,,dr.llm ,vanilla,", ["dr.llm"])])
def test_exactly_the_named_routes_and_vanilla_are_reported(command, routes, asked):
    """Catches " dr.llm" that is unknown."""
    assert set(metrics_of(command[1], "--routes", routes)["routes"]) == {"vanilla", *asked}


def test_other_methods_are_added_by_functions(tiny_questions):
    """Catches a method that is asked before there is a depth to meet, or not at all."""
    seen = []

    def add(table, main):
        seen.append(sorted(table.outcomes))
        table.add("plain", [None], "plain again")
        assert table.outcomes[main].decisions.shape == (1, 8, 3)
    routed = {"dr.llm": ("Dr.LLM", [FixedRoute([(0, 1, 1)] * 8)])}
    table = evaluate.compare(*tiny_questions, {"own"}, routed, [], ("plain",), others=[add])
    assert seen == [["dr.llm", "vanilla"]] and sorted(table.outcomes) == ["plain", "vanilla"]


def test_questions_that_the_routers_learned_from_are_not_asked(command, capsys):
    """Catches "none of them labelled" above the figures of questions that were."""
    routers, line = command
    rows = read_lines(Path(line[3]))
    words = [read_row(row).wording for row in rows]
    for learned, asked, said in (([], 8, "perhaps some of them labelled"),
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
    write_lines(Path(line[3]), renamed)
    with pytest.raises(InputError, match="8 of 8 questions were labelled"):
        metrics_of(line)


def test_a_run_s_own_metrics_are_not_replaced(command):
    out = Path(command[1][5])
    out.mkdir()
    (out / "labels.jsonl").write_text("", encoding="utf-8")
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


@pytest.mark.parametrize("name", ["routers.safetensors", "copy.safetensors", "."])
def test_one_seed_given_twice_is_refused(command, name):
    """Catches an interval over two seeds that are one: the same file, its folder, or a copy."""
    file = Path(command[1][-1])
    again = file.with_name(name) if name != "." else file.parent
    if not again.exists():
        again.write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="the same routers as .*; a seed counts once"):
        metrics_of([*command[1], str(again)])


def test_routers_among_the_seeds_of_a_run_find_its_paths(command):
    """Catches static paths that are left out where every seed is evaluated."""
    file = Path(command[1][-1])
    (file.parent / "routers").mkdir()
    seed = file.rename(file.parent / "routers" / "safe-0.safetensors")
    assert "fixed below" in metrics_of([*command[1][:-1], str(seed)])["routes"]


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


@pytest.mark.parametrize("arguments, words", [
    (["--routes", "vanilla, teleport"], "unknown routes teleport; known are vanilla, dr.llm"),
    (["--routes", "dr.llm,shortgpt,polar"],
     "unknown routes shortgpt, polar; .* python -m experiments.methods --routes shortgpt,polar$"),
    (["--routes", " , "], "--routes: ' , ' has no name in it"),
    (["--control", "1.5"], "'1.5' is not a number from -1 to 1"),
    (["--depth-bias", "-inf"], "'-inf' is not a number"),
    (["--routes", "dr.llm", "--routers"], "expected at least")])
def test_unknown_routes_and_numbers_out_of_range_are_refused(arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.parse_args(["--data", "q", "--routers", "r", *arguments])
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1 and re.search(words, line)


def test_routes_without_routers_are_refused_with_the_way_out(capsys):
    with pytest.raises(SystemExit):
        evaluate.parse_args(["--data", "q"])
    assert re.search("needs --routers FILE; train.py .* --routes vanilla", capsys.readouterr().err)
    assert evaluate.parse_args(["--routes", " vanilla ,vanilla"]).routes == ["vanilla"]


# ---- what the tables do not say ----

def test_questions_that_exceed_the_context_are_counted_and_named(command, capsys):
    """Catches a report on 6 of 8 questions that says nothing of the other two."""
    file = Path(command[1][3])
    rows = read_lines(file)
    for letter, row in zip("ab", rows[2:4]):
        row["prompt"] = " ".join([letter] * 63)  # the context is 64, an answer takes 2
    write_lines(file, rows)
    metrics = metrics_of(command[1])
    assert metrics["too_long"] == 2 and metrics["routes"]["vanilla"]["n"] == 6
    assert ("2 of 8 test questions exceed the context (64 tokens) and are left out: own-2, own-3\n"
            in capsys.readouterr().out)
    write_lines(file, rows[:2])
    assert metrics_of(command[1])["too_long"] == 0
    assert "exceed the context" not in capsys.readouterr().out


def of_task(task, options, number):
    choices = tuple("abcd"[:options])
    return [SimpleNamespace(question=Question(f"{task}{n}", task, 0, "q", "a", choices))
            for n in range(number)]


def table_of(rights, number=200):
    """A Comparison of `number` questions, of which the base model answers none; rights: the share
    that the routers of each seed answer."""
    table = evaluate.Comparison(None, None, of_task("own", 0, number), {"own"}, cache=1)
    path = [[1, 1]] * number
    outcome = lambda name, shares: Outcome(name, [
        answers([float(n < share * number) for n in range(number)], path) for share in shares])
    table.outcomes = {"vanilla": outcome("vanilla", [0.0]), "dr.llm": outcome("Dr.LLM", rights)}
    return table


@pytest.mark.parametrize("rights, words, outside", [
    ([0.5], [], False), ([0.5, 0.5], ["mean of 2 router seeds", "gains +50.0 [+"], False),
    ([0.5, 0.52, 0.48], ["mean of 3 router seeds", "gains +50.0"], False),
    ([0.2, 0.5, 0.5], ["gains +20.0 [+", "interval +40.0 [+"], True),
    ([0.9, 0.5], ["gains +90.0 [+", "interval +70.0 [+"], True)])
def test_what_the_interval_leaves_out_is_said_below_the_table(rights, words, outside):
    """Catches a table over five seeds, beside the routers of one that does much worse."""
    [of_questions, *of_seeds] = evaluate.seed_sentences(table_of(rights), "dr.llm", "r.safetensors")
    assert "over questions only" in of_questions and len(of_seeds) == (len(rights) > 1)
    for sentence in of_seeds:
        assert "The first of them, r.safetensors, gains" in sentence
        assert all(word in sentence for word in words)
        assert ("outside the mean's interval" in sentence) == outside


def test_a_table_without_routers_says_nothing_of_seeds(tmp_path, capsys):
    table = table_of([0.5])
    assert evaluate.seed_sentences(table, "other", None) == []
    evaluate.report(table, "dr.llm", tmp_path)
    assert "over questions only" in capsys.readouterr().out


def figures(gain, interval, layers=11.0, executed=20.0, n=30):
    return {"gain": gain, "interval": interval, "layers": layers, "layers_executed": executed,
            "n": n}


@pytest.mark.parametrize("gain, interval, words", [
    (0.07, [0.05, 0.09], "+7.0 [+5.0, +9.0] points, significantly more correct"),
    (-0.07, [-0.09, -0.05], "-7.0 [-9.0, -5.0] points, significantly fewer correct"),
    (0.01, [-0.02, 0.04], "+1.0 [-2.0, +4.0] points, no significant difference from the base"),
    (0.0, [0.0, 0.0], "as many correct answers as the base model, at 11.00 of 12 layers.")])
def test_a_sentence_says_what_the_table_says(gain, interval, words):
    """Catches "significantly" when the interval includes zero, and a control taken for a route."""
    routes = {"vanilla": figures(0, [0, 0], 12.0, 24.0), "dr.llm": figures(gain, interval),
              "fixed below": figures(0.5, [0.4, 0.6])}
    [sentence] = evaluate.gain_sentences({"routes": routes}, {"dr.llm": "Dr.LLM"})
    assert sentence.startswith(f"Dr.LLM: {words}")


def test_nothing_is_significant_on_a_few_questions():
    """Catches one question whose interval is [1, 1], and all of whose resamples are the same."""
    sentences = evaluate.sentences_on("Dr.LLM", figures(1.0, [1.0, 1.0], n=1),
                                      figures(0.0, [0.0, 0.0], layers=12.0, n=1))
    assert "+100.0 [+100.0, +100.0] points on 1 questions, too few to say more" in sentences[0]


@pytest.mark.parametrize("layers, executed, warned", [
    (11, 25, True), (11, 23, False), (13, 26, False)])
def test_answers_that_grow_longer_are_said_to_when_fewer_layers_would_hide_it(
        layers, executed, warned):
    routes = {"vanilla": figures(0, [0, 0], 12.0, 24.0),
              "dr.llm": figures(0, [0, 0], layers, executed)}
    sentences = evaluate.gain_sentences({"routes": routes}, {"dr.llm": "x"})
    assert any("longer" in sentence for sentence in sentences) == warned


def test_tasks_that_chance_explains_are_named_below_the_table():
    """Catches a gain on a benchmark that the model only guesses at."""
    prompts = of_task("guessed", 4, 100) + of_task("known", 4, 100) + of_task("open", 0, 100)
    correct = torch.tensor([1.0] * 33 + [0.0] * 67 + [1.0] * 34 + [0.0] * 166)
    table = lambda some: SimpleNamespace(prompts=prompts[some], outcomes={
        "vanilla": SimpleNamespace(correct=correct[some])})
    assert evaluate.chance_sentences(table(slice(0, 300))) == [
        "The base model is no better than chance on guessed (33.0%, chance 25.0 ± 8.5). Gains and "
        "losses there are luck."]
    assert evaluate.chance_sentences(table(slice(100, 300))) == []
    assert evaluate.chance_sentences(table(slice(71, 100))) == []  # too few to say so


def test_another_score_than_the_routers_learned_from_is_said():
    seeds = [SimpleNamespace(metadata={"score": "likelihood"})] * 2
    [sentence] = evaluate.score_sentences(seeds, "letter", of_task("x", 4, 1))
    assert "scored by likelihood; here it is scored by letter" in sentence
    assert not evaluate.score_sentences(seeds, "likelihood", of_task("x", 4, 1))
    assert not evaluate.score_sentences(seeds, "letter", of_task("x", 0, 1))
    unknown = [SimpleNamespace(metadata={})]
    assert not evaluate.score_sentences(unknown, "letter", of_task("x", 4, 1))


def test_aligned_rows_by_hand():
    """Catches a column lost where the first row lacks it, and figures that do not line up."""
    rows = [{"name": "a", "right": "7.5"}, {"name": "long", "n": "12"}]
    assert aligned(rows) == "name  right   n\na       7.5\nlong         12"
