"""Routability: planted path effects, interactions and luck are told apart; forms are the same
questions; the commands run and refuse."""
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import cli
from experiments import forms, routability
from experiments.forms import questions_in_forms, shuffled_options
from experiments.routability import (bound, control_figures, figures, reliability,
                                     shares_and_reliability)
from experiments.statistics import bootstrap, rank_correlation
from model_llama import load_model
from questions import grade
from questions.arithmetic import arithmetic_questions, is_test
from questions.loading import Question, load_questions

N, K = 300, 40


def noise(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def measured(path=0.0, question=0.0, interaction=0.0, luck=0.0):
    """(correct, logprobs), each (2, N, K): planted effects with these standard deviations. An
    answer is correct if its log-probability is above -1; the base model's are around -1.5."""
    effects = (path * noise(K, seed=1) + question * noise(N, 1, seed=2)
               + interaction * noise(N, K, seed=3) + luck * noise(2, N, K, seed=4))
    effects[..., 0] = 0
    logprobs = effects + 0.5 * noise(N, 1, seed=5) - 1.5
    return (logprobs > -1).float(), logprobs


# ---- controls ----

def test_pure_path_effects_are_no_interaction_and_promise_nothing():
    correct, logprobs = measured(path=1.0)
    parts = shares_and_reliability(logprobs)
    assert parts["path"] == pytest.approx(1, abs=1e-6)
    assert parts["interaction"] == pytest.approx(0, abs=1e-6)
    assert bound(correct, logprobs) == pytest.approx(0, abs=0.01)


def test_luck_of_single_forms_promises_nothing():
    """Catches the share of correct paths that a search finds by luck, taken for a gain."""
    correct, logprobs = measured(luck=1.0)
    row = figures(correct, logprobs, noise(N, 3, seed=6))
    assert correct.amax(2).mean() > 0.95  # some path is correct for nearly every question
    assert row["rest"] > 0.97 and abs(row["reliability"]) < 0.03
    low, high = row["bound interval"]
    assert low <= 0.02 and abs(row["bound"]) < 0.12
    assert abs(row["nearest"]) < 0.03


def test_a_planted_interaction_is_recovered_and_bounds_what_any_selector_gains():
    """With equal interaction and luck the reliability is a half. A selector that knows the
    interaction gains less than the bound, and not much less."""
    correct, logprobs = measured(path=0.2, question=0.3, interaction=0.7, luck=0.7)
    parts = shares_and_reliability(logprobs)
    total = 0.2 ** 2 + 0.3 ** 2 + 2 * 0.7 ** 2
    assert parts["interaction"] == pytest.approx(0.49 / total, abs=0.03)
    assert parts["question"] == pytest.approx(0.09 / total, abs=0.03)
    assert reliability(logprobs) == pytest.approx(0.5, abs=0.03)
    truth = measured(path=0.2, question=0.3, interaction=0.7)[1][0]  # without luck
    ideal = correct.gather(2, truth.argmax(1).expand(2, 1, -1).mT).mean()
    gain = (ideal - correct.mean((0, 1)).max()).item()
    assert gain - 0.03 < bound(correct, logprobs) < gain + 0.15


def test_shuffled_paths_leave_nothing():
    """Catches a control that moves both forms alike, or a bound that luck alone feeds."""
    control = control_figures(*measured(path=0.5, interaction=0.7, luck=0.5))
    assert -0.05 < control["reliability"][0] < 0 < control["reliability"][1] < 0.05
    assert control["bound"][0] < 0 < control["bound"][1]


def test_the_rule_of_the_nearest_finds_what_similar_questions_share():
    """Path 1 helps on one side of the space, path 2 on the other."""
    space = noise(N, 3, seed=7)
    side = space[:, 0] > 0
    space[:, 0] = torch.where(side, 100.0, -100.0)
    correct, logprobs = measured(luck=0.1)
    logprobs[:, side, 1], logprobs[:, ~side, 2] = 0.0, 0.0
    correct = (logprobs > -1).float()
    row = figures(correct, logprobs, space)
    assert row["nearest"] > 0.3 and row["nearest interval"][0] > 0.2
    assert row["bound interval"][0] > 0.2


# ---- forms ----

def test_other_worked_examples_before_the_same_problems():
    """Catches problems that change with their examples, and a problem that is its own example."""
    kinds = ["add2", "mul11", "sub1"]
    for side in (0, 1):
        first, *others = [arithmetic_questions(kinds, 40, 3, pair)[side] for pair in range(4)]
        assert arithmetic_questions(kinds, 40, 3)[side] == first
        for other in others:
            assert [q.id for q in other] == [q.id for q in first]
            assert [q.answer for q in other] == [q.answer for q in first]
            for question, same in zip(other, first):
                *worked, asked = question.prompt.splitlines()
                assert asked == same.prompt.splitlines()[-1] and len(worked) == 2
                assert question.prompt != same.prompt
                texts = [line.partition(" = ")[0] for line in worked]
                assert all(is_test(text) != is_test(asked.removesuffix(" =")) for text in texts)


@pytest.mark.parametrize("file", ["test", "ood"])
def test_options_in_another_order_keep_the_correct_one(file):
    """Catches a letter that stays where its option went, and options that are not in the prompt."""
    questions = load_questions(cli.DEMO / "questions" / f"{file}.jsonl")
    for question in questions:
        made = shuffled_options(question, 1)
        assert (made is None) == (not question.choices)
        if made:
            assert sorted(made.choices) == sorted(question.choices) and made != question
            option = made.choices["ABCD".index(made.answer)]
            assert option == question.choices["ABCD".index(question.answer)]
            assert f"({made.answer}) {option}" in made.prompt
            assert grade(made.answer, made) == 1.0
        assert shuffled_options(question, 0) in (question, None)


def test_options_by_likelihood_come_after_other_worked_examples():
    questions = [Question(f"{n}", "t", 0, f"q{n}?", "AB"[n % 2], ("x", "y"), metric="likelihood")
                 for n in range(9)]
    first, second = questions_in_forms(questions, 2)
    assert [q.id for q in first] == [q.id for q in second] == ["4", "5", "6", "7", "8"]
    assert first[0].prompt == ("Question: q0?\nAnswer: x\n\nQuestion: q1?\nAnswer: y\n\n"
                               "Question: q4?\nAnswer:")
    assert second[0].prompt.startswith("Question: q2?\nAnswer: x\n\nQuestion: q3?\nAnswer: y\n\n")


# ---- statistics ----

def test_rank_correlation_and_bootstrap():
    assert rank_correlation([1, 2, 9], [0, 5, 6]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 3], [1, 1, 1]) == 0
    values = noise(400).numpy()
    low, high = bootstrap(lambda rows: values[rows].mean(), 400)
    assert low < values.mean() < high and high - low == pytest.approx(4 / 20, rel=0.2)


# ---- the command ----

def test_the_command_measures_the_demo_and_goes_on(tmp_path, capsys, monkeypatch):
    """Catches edits that are asked again, and a run's routers beside another task."""
    run = tmp_path / "run"
    run.mkdir()
    routes = {"dr.llm": {"accuracy": 0.8, "gain": 0.07, "interval": [0.05, 0.09], "layers": 11.6,
                         "n": 9}}
    (run / "metrics.json").write_text(json.dumps({"routes": routes, "tasks": {
        "easy": {"domain": "in", "routes": routes}}}), encoding="utf-8")
    made_of = {"labels": {"model": load_model(cli.DEMO_MODEL).fingerprint()}}
    (run / "paths.json").write_text(json.dumps({"key": made_of, "frontier": [
        [12, [2, 0] + [1] * 10]]}), encoding="utf-8")
    command = ["--limit", "24", "--run", str(run), "--out", str(tmp_path / "out")]
    routability.main(command)
    printed = capsys.readouterr().out
    assert "398 of 1000 questions are left out" in printed
    made = json.loads((tmp_path / "out/routability.json").read_text(encoding="utf-8"))
    assert made["paths"] == 26 and set(made["rows"]) == {"all", "easy", "challenge"}
    assert made["rows"]["all"]["n"] == 24 and made["rows"]["easy"]["routers"] == 0.07
    assert "routers" not in made["rows"]["challenge"]
    assert "routers" not in made["rows"]["all"]  # the run's total is over another set of tasks
    monkeypatch.setattr("experiments.edits.ask_batch", None)  # all of it is kept
    routability.main(command)
    assert capsys.readouterr().out == printed


def test_a_question_that_is_too_long_in_one_form_is_in_none(tiny_questions, capsys, monkeypatch):
    """Catches forms with other questions, and a sentence about "None" that exceed the context."""
    model, tokenizer, prompts = tiny_questions
    short = [replace(prompt.question, choices=()) for prompt in prompts[:4]]
    long = replace(short[0], prompt=" ".join(["7"] * (model.config.max_positions + 1)))
    two_forms = [short, [long, *short[1:]]]
    monkeypatch.setattr(forms, "arithmetic_in_forms", lambda *_: two_forms)
    monkeypatch.setattr(cli, "asks_arithmetic", lambda _: True)
    args = SimpleNamespace(limit=None, model="tiny")
    first, second = forms.in_forms(args, tokenizer, model, 2, least=1)
    kept = [prompt.question.id for prompt in first]
    assert kept == [prompt.question.id for prompt in second]
    assert kept == [question.id for question in short[1:]]
    assert not capsys.readouterr().out


def test_questions_in_one_form_only_are_refused_in_one_line(tmp_path, capsys):
    """Catches an open question compared with itself, which would look perfectly reliable."""
    file = tmp_path / "open.jsonl"
    file.write_text('{"question": "What is 2 + 3?", "answer": "5"}\n', encoding="utf-8")
    for command in (["--data", str(file)], ["--problems", "0"]):
        with pytest.raises(SystemExit) as end:
            cli.run(lambda: routability.main([*command, "--out", str(tmp_path / "out")]))
        assert end.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
