"""The folder of a run: what a finished run keeps, and which other runs it refuses."""
from pathlib import Path

import pytest

from storage.files import InputError, write_json
from storage.run_folder import (CARD, folder_of, make_folder, read_candidate_paths, read_chosen,
                                read_config, read_fixed_paths, read_kinds, read_metrics,
                                read_result, refuse_other_run, replace_other_run,
                                write_candidate_paths, write_kinds)
from tiny import ABSENT, edit_json


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
        refuse_other_run(finished, {"seed": 2, "threads": 2}, overwrite=False)
    with pytest.raises(InputError, match="with choose None; this run has choose safe"):
        refuse_other_run(finished, {"seed": 1, "choose": "safe"}, overwrite=False)
    assert sorted(finished.rglob("*")) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_same_settings_go_on_and_remove_nothing(finished, overwrite):
    """The number of threads, the batch size and the device make no other run."""
    before = sorted(finished.rglob("*"))
    settings = {"seed": 1, "threads": 9, "batch_size": 3, "overwrite": overwrite}
    refuse_other_run(finished, settings, overwrite)
    assert sorted(finished.rglob("*")) == before


def test_overwrite_removes_routers_and_metrics_and_keeps_labels(finished):
    before = sorted(finished.rglob("*"))
    refuse_other_run(finished, {"seed": 2}, overwrite=True)
    assert sorted(finished.rglob("*")) == before  # what follows may still refuse the run
    replace_other_run(finished, {"seed": 2})
    assert {file.name for file in finished.iterdir()} == {"config.json", "labels.jsonl"}
    (finished / "metrics.json").unlink(missing_ok=True)
    refuse_other_run(finished, {"seed": 3}, overwrite=False)  # not finished any more


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_overwrite_keeps_a_readme_that_a_person_wrote(finished, encoding):
    """Catches a person's notes removed, and a traceback at them after labels are made."""
    (finished / "README.md").write_text("Übung", encoding)
    replace_other_run(finished, {"seed": 2})
    assert (finished / "README.md").read_text(encoding) == "Übung"
    assert not (finished / "metrics.json").exists()


def test_an_evaluation_is_not_replaced_by_a_run(tmp_path):
    write_json(tmp_path / "metrics.json", {})
    with pytest.raises(InputError, match="metrics.json: of an evaluation"):
        refuse_other_run(tmp_path, {"seed": 2}, overwrite=False)
    refuse_other_run(tmp_path, {"seed": 2}, overwrite=True)


@pytest.mark.parametrize("file", ["labels.jsonl", "config.json"])
def test_the_folder_of_routers_is_their_run_s(file, tmp_path, monkeypatch):
    """Catches a run that is itself named routers, also one without searches, and a path without
    folders."""
    run = tmp_path / "routers"
    (run / "routers").mkdir(parents=True)
    (run / file).touch()
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


def test_kinds_of_arithmetic_are_those_of_the_same_model(tmp_path):
    """Catches a model that is asked the kinds which fit another one."""
    kinds = {"seed": 3, "shares": {"add1": 0.25, "of a newer version": 0.5}}
    assert read_kinds(tmp_path, "a1", ["add1", "mod"]) is None
    write_kinds(tmp_path, "a1", kinds)
    assert read_kinds(tmp_path, "a1", ["add1", "mod"]) == {"seed": 3, "shares": {"add1": 0.25}}
    assert read_kinds(tmp_path, "b2", ["add1"]) is None
    for damaged in ({"seed": "?", "shares": {}}, {"seed": 3}, {"shares": {}},
                    {"seed": 3, "shares": {"add1": None}}, {"seed": 1e999, "shares": {}}):
        write_kinds(tmp_path, "a1", damaged)
        with pytest.raises(InputError, match=r"kinds\.json: not what a run wrote"):
            read_kinds(tmp_path, "a1", ["add1"])
    write_kinds(tmp_path, "a1", None)
    assert read_kinds(tmp_path, "a1", ["add1"]) is None


PATHS = [(1, 1, 1), (1, 0, 2)]
CORRECT = [[True, False], [False, True], [True, True]]
DAMAGED_PATHS = [  # changes to the object of a paths.json of two paths and three questions
    {"key": ABSENT}, {"paths": ABSENT}, {"correct": ABSENT}, {"correct": None},
    {"correct": ["10", "01"]}, {"correct": ["1", "0", "1"]},
    {"correct": [1, 1, 1]}, {"correct": ["10", "02", "11"]},
    {"correct": "101"}, {"paths": []}, {"paths": [[1, 1], [1, 0, 2]]},
    {"paths": [[1, 1, 3], [1, 0, 2]]}, {"paths": 3}]


def test_candidate_paths_come_back_as_they_were_written_and_under_their_key_alone(tmp_path):
    file = tmp_path / "paths.json"
    assert read_candidate_paths(file, "k", 3, 3) is None
    write_candidate_paths(file, "k", PATHS, CORRECT, [(3, PATHS[0])])
    assert read_candidate_paths(file, "k", 3, 3) == (PATHS, CORRECT)
    assert read_candidate_paths(file, "of other labels", 3, 3) is None


def test_fixed_paths_are_those_of_the_same_model(tmp_path, capsys):
    """Catches a control of another model that was in the folder before."""
    file = tmp_path / "paths.json"
    write_candidate_paths(file, {"labels": {"model": "a1"}}, PATHS, CORRECT, [(3, PATHS[0])])
    assert read_fixed_paths(file, "a1", 3) == [(3, PATHS[0])]
    assert read_fixed_paths(file, "a1", 3, wanted=False) == [] and not capsys.readouterr().out
    assert read_fixed_paths(file, "b2", 3) == []
    assert "of model a1; this one is b2" in capsys.readouterr().out


@pytest.mark.parametrize("changes", DAMAGED_PATHS, ids=str)
def test_damaged_candidate_paths_are_refused_by_name(tmp_path, changes):
    """Catches a figure that is computed from half a table."""
    file = tmp_path / "paths.json"
    write_candidate_paths(file, "k", PATHS, CORRECT, [])
    edit_json(file, **changes)
    with pytest.raises(InputError, match=r"paths\.json: not what a run wrote.* Remove the file"):
        read_candidate_paths(file, "k", 3, 3)


@pytest.mark.parametrize("fixed_paths", [
    ABSENT, 3, [3], [[3]], [[99, [1, 1, 1]]], [[2, [1, 1]]], [[4, [1, 3, 0]]]], ids=str)
def test_damaged_fixed_paths_are_refused_by_name(tmp_path, fixed_paths):
    """Catches a control of another depth than the table says."""
    edit_json(tmp_path / "paths.json", key={"labels": {"model": "a1"}}, frontier=fixed_paths)
    with pytest.raises(InputError, match=r"paths\.json: .* no frontier of fixed paths"):
        read_fixed_paths(tmp_path / "paths.json", "a1", 3)
