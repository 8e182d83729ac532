"""The folder of a run: what a finished run keeps, and which other runs it refuses."""
from pathlib import Path

import pytest

from storage.files import InputError, write_json
from storage.run_folder import CARD, claim, folder_of, take


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
