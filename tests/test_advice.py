"""What a run says beside its figures, and which it refuses: chance, time, other settings."""
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import save_tiny, tiny_model

import cli
import evaluate
import label
import train
from evaluate import after
from label import margin, plain_score
from train import span
from storage.files import InputError, write_json
from questions.loading import Question
from storage.run_folder import (CARD, claim, folder_of, make_folder, read_chosen, read_config,
                                read_metrics, read_result, take)


def test_chance_is_said_with_its_interval_and_what_luck_makes_right():
    right = torch.tensor([1.0] * 30 + [0.0] * 70)
    said, lucky = plain_score(right, torch.full((100,), 4), 51)
    assert said == ("the plain model answers 30.0% of 100 multiple-choice questions, chance 25.0% "
                    "± 8.5; of 51 paths per question luck alone makes 13 right")
    assert lucky and margin(0.25, 100) == pytest.approx(0.0849, abs=1e-4)


@pytest.mark.parametrize("share, options, lucky", [
    (0.34, 4, False), (0.33, 4, True), (0.10, 4, True), (0.50, 2, True), (0.61, 2, False),
    (0.0, 0, False)])
def test_a_model_is_at_chance_within_the_error_of_chance_and_an_open_question_has_none(
        share, options, lucky):
    right = (torch.arange(100) < 100 * share).float()
    assert plain_score(right, torch.full((100,), options), 51)[1] == lucky


@pytest.mark.parametrize("seconds, said", [
    (0.1, "1 s"), (59, "59 s"), (119, "119 s"), (150, "2 min"), (7199, "120 min"), (9000, "2 h")])
def test_a_time_has_the_unit_that_a_person_would_take(seconds, said):
    assert span(seconds) == said


def test_a_busy_machine_is_said_once_and_only_where_threads_were_not_chosen(monkeypatch):
    """Two processes of two threads on two cores run many times slower, and nobody knew why."""
    def said(load, threads):
        lines = []
        monkeypatch.setattr(train.os, "getloadavg", lambda: (load, 0, 0))
        monkeypatch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(words)))
        monkeypatch.setattr(label, "judge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        args = SimpleNamespace(threads=threads, batch_size=1, force=False)
        run = SimpleNamespace(args=args, model=tiny_model(2), tokenizer=None)
        with pytest.raises(KeyboardInterrupt):
            train.say_before(run, [None], [None] * 100)
        return lines
    assert len(said(99, None)) == 1 and "--threads 1" in said(99, None)[0]
    assert not said(0.0, None) and not said(99, 1)


def figures(gain, interval, layers=11.0, summed=20.0):
    return {"gain": gain, "interval": interval, "layers": layers, "layers_executed": summed}


@pytest.mark.parametrize("gain, interval, word", [
    (0.07, [0.05, 0.09], "+7.0 points [+5.0, +9.0], surely more right"),
    (-0.07, [-0.09, -0.05], "-7.0 points [-9.0, -5.0], surely fewer right"),
    (0.01, [-0.02, 0.04], "+1.0 points [-2.0, +4.0], these questions do not tell"),
    (0.0, [0.0, 0.0], "as many right answers as the plain model, at 11.00 of 12 layers.")])
def test_a_sentence_says_what_the_table_says(gain, interval, word):
    """Catches "surely" where the interval reaches over zero, and a control taken for a route."""
    routes = {"vanilla": figures(0, [0, 0], 12.0, 24.0), "dr.llm": figures(gain, interval),
              "static below": figures(0.5, [0.4, 0.6])}
    said, = after({"routes": routes}, {"dr.llm": "Dr.LLM"})
    assert said.startswith(f"Dr.LLM: {word}")


@pytest.mark.parametrize("layers, summed, warned", [
    (11, 25, True), (11, 23, False), (13, 26, False)])
def test_answers_that_grow_longer_are_said_to_where_fewer_layers_would_hide_it(
        layers, summed, warned):
    routes = {"vanilla": figures(0, [0, 0], 12.0, 24.0),
              "dr.llm": figures(0, [0, 0], layers, summed)}
    assert any("longer" in line for line in after({"routes": routes}, {"dr.llm": "x"})) == warned


def of_task(task, options, number):
    choices = tuple("abcd"[:options])
    return [SimpleNamespace(question=Question(f"{task}{n}", task, 0, "q", "a", choices))
            for n in range(number)]


def test_tasks_that_chance_explains_are_named_below_the_table():
    """Catches a gain on a benchmark that the model only guesses at."""
    prompts = of_task("guessed", 4, 100) + of_task("known", 4, 100) + of_task("open", 0, 100)
    right = torch.tensor([1.0] * 33 + [0.0] * 67 + [1.0] * 34 + [0.0] * 166)
    table = lambda some: SimpleNamespace(prompts=prompts[some], outcomes={
        "vanilla": SimpleNamespace(right=right[some])})
    assert evaluate.tasks_at_chance(table(slice(0, 300))) == [
        "The plain model is no better than chance on guessed (33.0%, chance 25.0 ± 8.5): there, "
        "gains and losses are luck."]
    assert evaluate.tasks_at_chance(table(slice(100, 300))) == []
    assert evaluate.tasks_at_chance(table(slice(71, 100))) == []  # too few to say so


def test_no_open_question_right_is_said_to_be_perhaps_a_matter_of_form():
    said, lucky = plain_score(torch.zeros(7), torch.zeros(7), 51)
    assert said.startswith("the plain model answers 0.0% of 7 open questions. Does it answer in")
    assert not lucky and "form" not in plain_score(torch.ones(7), torch.zeros(7), 51)[0]


def test_another_score_than_the_routers_learned_from_is_said():
    seeds = [SimpleNamespace(notes={"score": "likelihood"})] * 2
    said, = evaluate.other_score(seeds, "letter", of_task("x", 4, 1))
    assert "by likelihood, and were asked by letter" in said
    assert not evaluate.other_score(seeds, "likelihood", of_task("x", 4, 1))
    assert not evaluate.other_score(seeds, "letter", of_task("x", 0, 1))
    assert not evaluate.other_score([SimpleNamespace(notes={})], "letter", of_task("x", 4, 1))


def test_the_time_said_is_of_the_searches_that_are_left(tmp_path, monkeypatch, capsys):
    """Catches an estimate for a finished search that is as long as for a new one."""
    monkeypatch.setattr(train, "plain_model", lambda *_, refuse: 1.0)
    monkeypatch.setattr(train, "answer", lambda *_: None)
    args = SimpleNamespace(threads=1, batch_size=1, simulations=50, choose="shortest", seeds=1,
                           force=False)
    run = SimpleNamespace(args=args, model=tiny_model(2), tokenizer=None, out=tmp_path,
                          config=SimpleNamespace(epochs=1, width=1, windows=1))
    for searched, said in (0, "510 s"), (4, "306 s"), (99, "1 s"):
        (tmp_path / "labels.jsonl").write_text("{}\n" * searched, encoding="utf-8")
        monkeypatch.setattr(train, "span", lambda seconds: f"{max(1, round(seconds))} s")
        train.say_before(run, [None] * 10, [None] * 100)
        assert f"takes at most about {said}" in capsys.readouterr().out


# ---- a finished run ----

@pytest.fixture
def finished(tmp_path):
    """A folder with the files of a finished run of seed 1."""
    for name in ("metrics.json", "chosen.json", "labels.jsonl", "paths.json",
                 "routers.safetensors"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    (tmp_path / "README.md").write_text(f"---\n{CARD}\n---\n", encoding="utf-8")
    (tmp_path / "routers").mkdir()
    (tmp_path / "routers" / "safe-1.safetensors").write_text("", encoding="utf-8")
    write_json(tmp_path / "config.json", {"seed": 1, "threads": 2})
    return tmp_path


def test_a_finished_run_of_other_settings_is_named_and_kept(finished):
    before = sorted(finished.rglob("*"))
    with pytest.raises(InputError, match="config.json: a finished run with seed 1; .* seed 2.*"):
        claim(finished, {"seed": 2, "threads": 2}, overwrite=False)
    with pytest.raises(InputError, match="with choose None; this run has choose safe"):
        claim(finished, {"seed": 1, "choose": "safe"}, overwrite=False)
    assert sorted(finished.rglob("*")) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_same_settings_go_on_and_remove_nothing(finished, overwrite):
    """The number of threads, the batch size and the device make no other run."""
    before = sorted(finished.rglob("*"))
    claim(finished, {"seed": 1, "threads": 9, "batch_size": 3, "overwrite": overwrite}, overwrite)
    assert sorted(finished.rglob("*")) == before


def test_overwrite_removes_routers_and_metrics_and_keeps_labels(finished):
    before = sorted(finished.rglob("*"))
    claim(finished, {"seed": 2}, overwrite=True)
    assert sorted(finished.rglob("*")) == before  # what follows may still refuse the run
    take(finished, {"seed": 2})
    assert {file.name for file in finished.iterdir()} == {"config.json", "labels.jsonl",
                                                          "paths.json"}
    (finished / "metrics.json").unlink(missing_ok=True)
    claim(finished, {"seed": 3}, overwrite=False)  # not finished any more


def test_overwrite_keeps_a_readme_that_a_person_wrote(finished):
    (finished / "README.md").write_text("my notes", encoding="utf-8")
    take(finished, {"seed": 2})
    assert (finished / "README.md").read_text(encoding="utf-8") == "my notes"


def test_an_evaluation_is_not_replaced_by_a_run(tmp_path):
    write_json(tmp_path / "metrics.json", {})
    with pytest.raises(InputError, match="metrics.json: of an evaluation"):
        claim(tmp_path, {"seed": 2}, overwrite=False)
    claim(tmp_path, {"seed": 2}, overwrite=True)


def test_the_folder_of_routers_is_their_run_s(tmp_path, monkeypatch):
    """Catches a run that is itself named routers, and a path without folders."""
    run = tmp_path / "routers"
    (run / "routers").mkdir(parents=True)
    (run / "labels.jsonl").touch()
    assert folder_of([]) is None
    for name in "routers.safetensors", "routers/safe-1.safetensors":
        (run / name).touch()
        assert folder_of([run / name]).resolve() == run
    assert folder_of([run]) == run
    monkeypatch.chdir(run / "routers")
    assert folder_of([Path("safe-1.safetensors")]) == run


@pytest.mark.parametrize("file", ["config.json", "labels.jsonl"])
def test_a_run_is_not_overwritten_by_an_evaluation(tmp_path, file):
    """Catches a run that made its labels without a search, and lost its metrics."""
    (tmp_path / file).touch()
    with pytest.raises(InputError, match="a folder of train.py or label.py"):
        make_folder(tmp_path)
    (tmp_path / file).unlink()
    make_folder(tmp_path)


def test_a_run_without_searches_is_the_folder_of_its_routers(tmp_path):
    """Catches paths.json looked for above a run that is itself named routers."""
    run = tmp_path / "routers"
    run.mkdir()
    (run / "config.json").touch()
    (run / "routers.safetensors").touch()
    assert folder_of([run / "routers.safetensors"]) == run


def test_a_readme_in_another_encoding_is_kept(finished):
    """Catches a traceback, after labels are made, at a person's own notes."""
    (finished / "README.md").write_bytes("Übung".encode("latin-1"))
    take(finished, {"seed": 2})
    assert (finished / "README.md").exists() and not (finished / "metrics.json").exists()


@pytest.mark.parametrize("value", ["null", "[]", "{", '{"a": 3}', '{"a": [1, 1]}',
                                   '{"a": [1, 1, 3]}', '{"a": null}', '{"a": "111"}'])
def test_damaged_labels_of_a_run_are_refused_by_name(tmp_path, value):
    assert read_chosen(tmp_path, 3) == {}
    write_json(tmp_path / "chosen.json", {"a": [1, 0, 2]})
    assert read_chosen(tmp_path, 3) == {"a": (1, 0, 2)}
    (tmp_path / "chosen.json").write_text(value, encoding="utf-8")
    with pytest.raises(InputError, match=r"chosen\.json: "):
        read_chosen(tmp_path, 3)


@pytest.mark.parametrize("change", [{"seed": "1"}, {"data": "q"}, {"train": None}, {"limit": 2.5},
                                    {"skip_bad_rows": None}, {"search": [1]}, {"seed": True}])
def test_damaged_settings_of_a_run_are_refused_by_name(tmp_path, change):
    settings = {"seed": 1, "data": ["q"], "train": {}, "limit": None, "search": {}}
    write_json(tmp_path / "config.json", settings)
    assert read_config(tmp_path) == settings
    write_json(tmp_path / "config.json", settings | change)
    with pytest.raises(InputError, match=rf"config\.json: .* {next(iter(change))} is "):
        read_config(tmp_path)


def test_damaged_metrics_of_a_run_are_refused_by_name(tmp_path):
    figures = {"accuracy": 0.5, "gain": 0.0, "layers": 3.0, "n": 4, "interval": [-0.1, 0.1]}
    routes = {"vanilla": figures}
    metrics = {"routes": routes, "tasks": {"a": {"domain": "in", "routes": routes}}}
    write_json(tmp_path / "metrics.json", metrics)
    assert read_metrics(tmp_path) == metrics
    task = metrics["tasks"]["a"]
    for damaged in [{}, {"routes": []}, {"routes": None}, {"tasks": None}, {"tasks": {"a": 3}},
                    {"tasks": {"a": task | {"domain": "near"}}}, {"seeds": 3},
                    {"routes": {"vanilla": figures | {"gain": None}}},
                    {"routes": {"vanilla": figures | {"gain": float("nan")}}},
                    {"routes": {"vanilla": figures | {"interval": [1]}}}]:
        write_json(tmp_path / "metrics.json", metrics | damaged if damaged else {})
        with pytest.raises(InputError, match=r"metrics\.json: not what a run wrote"):
            read_metrics(tmp_path)


def test_a_result_is_that_of_its_key_or_none(tmp_path):
    """Catches a traceback at a stored result whose fields were renamed."""
    file = tmp_path / "result.json"
    assert read_result(file, {"a": 1}, "row") is None
    write_json(file, {"key": {"a": 1}, "row": {"x": 2}})
    assert read_result(file, {"a": 1}, "row") == {"x": 2}
    assert read_result(file, {"a": 2}, "row") is None
    for damaged in {"key": {"a": 1}}, {"row": {}}, {}:
        write_json(file, damaged)
        with pytest.raises(InputError, match=r"result\.json: "):
            read_result(file, {"a": 1}, "row")


def test_advice_is_not_what_was_done_already(tmp_path):
    """Catches "use --score likelihood" under --score likelihood, and a sentence said twice."""
    model, prompts = tiny_model(2), of_task("x", 4, 40)
    for score in "letter", "likelihood":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(label, "judge", lambda *_: (torch.zeros(40), None))
            args = SimpleNamespace(model="m", batch_size=1, simulations=50, score=score)
            with pytest.raises(InputError, match="m: .*luck then.*; --force") as error:
                label.plain_model(model, None, prompts, args, refuse=True)
        assert ("--score likelihood" in str(error.value)) == (score == "letter")


def test_a_model_at_chance_is_refused_before_the_search_unless_forced(tmp_path, capsys):
    """Catches hours of search for paths that are right by luck."""
    model = save_tiny(tmp_path / "model", tiny_model(2, dtype=torch.float32))
    rows = [{"id": str(n), "question": f"{n}?", "choices": ["a", "b"], "answer": "AB"[n % 2]}
            for n in range(40)]
    file = tmp_path / "q.jsonl"
    file.write_text("".join(f"{train.json.dumps(row)}\n" for row in rows), encoding="utf-8")
    command = ["--model", str(model), "--data", str(file), "--out", str(tmp_path / "run"),
               "--simulations", "2", "--seeds", "1"]
    with pytest.raises(InputError, match="chance 50.0% ± .* --force continues"):
        train.main(command)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="0 questions with a right path"):
        train.main([*command, "--force"])  # a tiny model writes no letter
    assert "all together this takes about" in capsys.readouterr().out


# ---- progress ----

def test_where_there_is_no_terminal_a_bar_is_lines_and_short_work_shows_none(monkeypatch, capsys):
    """Catches a log file of one line with ten thousand carriage returns."""
    for every, lines in (30, 0), (0, 4):
        monkeypatch.setattr(cli, "EVERY", every)
        assert list(cli.progress_bar(range(3), "work", miniters=1)) == [0, 1, 2]
        said = capsys.readouterr().err
        assert "\r" not in said and said.count("\n") == said.count("work: ") == lines
        assert all(line == line.strip() for line in said.splitlines())


def test_on_a_terminal_it_is_the_library_s_own_bar(monkeypatch):
    monkeypatch.setattr(cli.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(cli, "tqdm", lambda *args, **options: (args, options))
    assert cli.progress_bar([1], "x") == (([1], "x"), {"leave": False})
