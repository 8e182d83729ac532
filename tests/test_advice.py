"""What a run says beside its figures, and which it refuses: chance, time, other settings."""
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import save_tiny, tiny_model

import cli
import label
import train
from label import margin, plain_score
from train import span
from storage.files import InputError, write_json
from questions.loading import Question
from storage.run_folder import CARD, claim, folder_of, take


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


def of_task(task, options, number):
    choices = tuple("abcd"[:options])
    return [SimpleNamespace(question=Question(f"{task}{n}", task, 0, "q", "a", choices))
            for n in range(number)]


def test_no_open_question_right_is_said_to_be_perhaps_a_matter_of_form():
    said, lucky = plain_score(torch.zeros(7), torch.zeros(7), 51)
    assert said.startswith("the plain model answers 0.0% of 7 open questions. Does it answer in")
    assert not lucky and "form" not in plain_score(torch.ones(7), torch.zeros(7), 51)[0]


def test_the_time_said_is_of_the_searches_that_are_left(tmp_path, monkeypatch, capsys):
    """Catches an estimate for a finished search that is as long as for a new one."""
    monkeypatch.setattr(train, "plain_model", lambda *_, refuse: 1.0)
    monkeypatch.setattr(train, "answer", lambda *_: None)
    args = SimpleNamespace(threads=1, batch_size=1, simulations=50, choose="shortest", seeds=1,
                           force=False)
    run = SimpleNamespace(args=args, model=tiny_model(2), tokenizer=None, out=tmp_path,
                          config=SimpleNamespace(epochs=1, width=1, windows=1))
    for searched, said in (0, "510 s"), (4, "306 s"), (99, "1 s"):
        (tmp_path / "labels.jsonl").write_text("{}\n" * searched)
        monkeypatch.setattr(train, "span", lambda seconds: f"{max(1, round(seconds))} s")
        train.say_before(run, [None] * 10, [None] * 100)
        assert f"takes at most about {said}" in capsys.readouterr().out


# ---- a finished run ----

@pytest.fixture
def finished(tmp_path):
    """A folder with the files of a finished run of seed 1."""
    for name in ("metrics.json", "chosen.json", "labels.jsonl", "paths.json",
                 "routers.safetensors"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "README.md").write_text(f"---\n{CARD}\n---\n")
    (tmp_path / "routers").mkdir()
    (tmp_path / "routers" / "safe-1.safetensors").write_text("")
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
    (finished / "README.md").write_text("my notes")
    take(finished, {"seed": 2})
    assert (finished / "README.md").read_text() == "my notes"


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
    file.write_text("".join(f"{train.json.dumps(row)}\n" for row in rows))
    command = ["--model", str(model), "--data", str(file), "--out", str(tmp_path / "run"),
               "--simulations", "2", "--seeds", "1"]
    with pytest.raises(InputError, match="chance 50.0% ± .* --force goes on"):
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
