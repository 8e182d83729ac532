"""Claims about what all commands share: files read and written, locks, flags.

More of them, through whole commands, are in test_hostile.py.
"""
import argparse
import fcntl
import io
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cli
from conftest import leaves
from programs import Program
from storage.files import (InputError, locked, open_tensors, read_file, read_json, write_json,
                           write_whole)

# ---- how a command ends ----


def raising(error):
    def main():
        raise error
    return main


def test_refusal_is_one_line_even_where_its_text_has_several(capsys):
    """Catches a file name or a reason with a newline in it."""
    code, said = leaves(raising(InputError("a.jsonl:1: bad\n  and   worse")), capsys)
    assert (code, said) == (2, "error: a.jsonl:1: bad and worse\n")


def fill_memory():
    torch.empty(2 ** 58)  # bytes that no computer has


@pytest.mark.parametrize("main", [
    raising(MemoryError()), raising(torch.OutOfMemoryError("CUDA out of memory.")), fill_memory],
    ids=["Python's", "a GPU's", "the computer's"])
def test_a_full_memory_is_one_line_that_says_what_helps(main, capsys):
    """Catches a traceback of the allocator's."""
    code, said = leaves(main, capsys)
    assert code == 2 and "--batch-size" in said and said.count("\n") == 1


def test_numbers_below_the_range_of_float32_count_as_zero(capsys):
    """Routers of the demo train six times slower on an Intel processor if they do not."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no such setting")
    torch.set_flush_denormal(False)
    tiny = torch.tensor(1e-30)
    assert (tiny * 1e-10).item() > 0
    cli.run(lambda: print((tiny * 1e-10).item()))
    assert capsys.readouterr().out == "0.0\n"


@pytest.mark.parametrize("error", [RuntimeError("shapes"), ZeroDivisionError()])
def test_an_error_of_ours_stays_a_traceback(error):
    """Catches a mistake in the code that is called a lack of memory, or the user's."""
    with pytest.raises(type(error)):
        cli.run(raising(error))


def test_ctrl_c_is_130_and_says_how_to_go_on(capsys):
    """Catches a traceback on Ctrl-C."""
    code, said = leaves(raising(KeyboardInterrupt()), capsys)
    assert code == 130 and "continues" in said and "Traceback" not in said


def test_file_the_system_refuses_is_exit_2_with_its_name(tmp_path, capsys):
    """Catches a traceback on a missing file, a full disk, or a folder that is a file."""
    code, said = leaves(lambda: open(tmp_path / "none", encoding="utf-8"), capsys)
    assert (code, said) == (2, f"error: {tmp_path / 'none'}: No such file or directory\n")
    assert leaves(raising(OSError(28, "No space left")), capsys) == (
        2, "error: output: No space left\n")


# ---- reading ----

@pytest.mark.parametrize("data, word", [
    (b"", "not valid JSON"), (b'{"a": 1,\n "b" 2}', "not valid JSON at line 2, column 6"),
    (b"\xff", "not valid JSON"), (b"[" * 10**5, "not valid JSON"), (b"9" * 5000, "not valid JSON"),
    (b"[1]", "object, got list")])
def test_wrong_json_is_described_for_people(data, word, tmp_path):
    """Catches the library's own words: "Expecting value: line 1 column 1 (char 0)"."""
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(InputError) as error:
        read_json(tmp_path / "a.json")
    assert f"{tmp_path / 'a.json'}: " in str(error.value) and word in str(error.value)
    assert "Expecting" not in str(error.value)


def test_a_file_is_read_up_to_its_limit_and_not_beyond(tmp_path):
    """Catches a limit off by one, or a file cut to the limit in silence."""
    (tmp_path / "a").write_bytes(b"12345")
    assert read_file(tmp_path / "a", most=5) == read_file(tmp_path / "a") == b"12345"
    with pytest.raises(InputError, match="5 bytes; the limit is 4"):
        read_file(tmp_path / "a", most=4)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    """Catches a reader that waits for ever at a pipe, or fills the memory from a device."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero", "/dev/null"):
        with pytest.raises(InputError, match="a directory, a pipe or a device"):
            read_file(path)
        with pytest.raises(InputError, match="a directory, a pipe or a device"):
            with open_tensors(path):
                pass
    with pytest.raises(InputError, match="none: No such file"):
        read_file(tmp_path / "none")


# ---- writing ----

def test_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    """Catches a half-written result under the real name."""
    file = tmp_path / "result.json"
    write_json(file, {"old": 1})

    def half(path):
        path.write_text("half", encoding="utf-8")
        raise OSError(28, "No space left")
    with pytest.raises(OSError, match=f"No space left: '{file}'"):
        write_whole(file, half)
    assert read_json(file) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_file_is_not_there_until_it_is_complete(tmp_path):
    """Catches a writer that is given the real name."""
    file = tmp_path / "deep" / "er" / "result.txt"

    def write(path):
        assert not file.exists() and path.parent == file.parent
        path.write_text("whole", encoding="utf-8")
    write_whole(file, write)
    assert file.read_text(encoding="utf-8") == "whole" and len(list(file.parent.iterdir())) == 1


def dead():
    """The number of a process that is no more."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_parts_left_by_killed_processes_are_removed_and_no_others(tmp_path):
    """Catches .metrics.json.PID.part that stays for ever, and a living writer's part removed."""
    stale = [f".a[1].json.{dead()}.part", f".a[1].json.{dead()}.part"]
    kept = [f".a[1].json.{os.getppid()}.part", f".b.json.{dead()}.part", ".a[1].json.part",
            f".a[1].json.{10**30}.part", ".a[1].json.old.part", ".a1.json.1.part", "a[1].json.7"]
    for name in stale + kept:
        (tmp_path / name).touch()
    write_json(tmp_path / "a[1].json", {})
    assert {file.name for file in tmp_path.iterdir()} == {"a[1].json", *kept}


# ---- locks ----

HOLDER = """
import sys, time
from storage.files import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path / "out"."""
    made = Program("-c", HOLDER, tmp_path / "out")
    made.wait_for("held\n")
    yield made
    made.kill()
    made.wait()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_lock_names_its_owner_and_ends_with_it(end, holder, tmp_path):
    """Catches two writers of one file, a lock that outlives a kill, and one left behind."""
    for _ in range(2):
        with pytest.raises(InputError, match=f"out: process {holder.pid} is at work on it"):
            with locked(tmp_path / "out"):
                pass
    with locked(tmp_path / "other"):
        pass
    os.kill(holder.pid, end)
    holder.wait()
    with locked(tmp_path / "out"), pytest.raises(InputError, match=f"process {os.getpid()} "):
        with locked(tmp_path / "out"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_failure_under_a_lock_is_passed_on_and_lifts_it(tmp_path):
    """Catches an error swallowed by the lock: it catches one of the system's errors itself."""
    for error in (BlockingIOError(11, "busy"), InputError("bad"), KeyboardInterrupt()):
        with pytest.raises(type(error)), locked(tmp_path / "new" / "out"):
            raise error
    assert list((tmp_path / "new").iterdir()) == []


def test_a_lock_whose_file_was_just_removed_is_none(tmp_path, monkeypatch):
    """Catches the gap between opening the lock's file and taking it, in which its owner may have
    removed it: two would then hold locks on two files of one name."""
    def late(file, how):
        (tmp_path / ".out.lock").unlink()
        take(file, how)
    take = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(InputError, match="out: process .* is at work on it"), \
            locked(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_made_names_what_it_is_for(tmp_path):
    """Catches the name of a hidden file in the refusal, or none at all."""
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as error, locked(tmp_path / "file" / "out"):
        pass
    assert error.value.filename == str(tmp_path / "file" / "out")


def test_a_lock_on_a_full_disk_names_what_it_is_for_and_leaves_nothing(tmp_path):
    """Catches "error: output: No space left", and an empty lock that stays."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(OSError) as error, locked(tmp_path / "out"):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.filename == str(tmp_path / "out") and list(tmp_path.iterdir()) == []


# ---- flags ----

def parser():
    made = cli.Parser(prog="tool")
    cli.add_model_flags(made)
    cli.add_data_flags(made, ["q.jsonl"], batch_size=7)
    made.add_argument("--share", type=cli.number(-1, 1), default=0.25, help="of it")
    return made


@pytest.mark.parametrize("flag, value, words", [
    *(("--limit", text, f"{text!r} is not a whole number from 1")
      for text in ("0", "-1", "1.5", "nan", "-1e3", "")),
    *(("--share", text, f"{text!r} is not a number from -1 to 1")
      for text in ("nan", "inf", "-inf", "-nan", "1.01", "-1e3", "x")),
    ("--batch-size", "1" + "0" * 20, "whole number"), ("--limit", "1" * 5000, "whole number"),
    ("--threads", "100000", "from 1 to 1024"), ("--seed", "-1", "from 0"),
    ("--dtype", "int8", "float32"), ("--nonsense", "1", "--nonsense")])
def test_a_wrong_flag_is_one_line_that_names_it(flag, value, words, capsys):
    """Catches nan that compares with nothing, a number below zero that argparse takes for a flag, a
    traceback, and a usage message of ten lines."""
    for arguments in [f"{flag}={value}"], [flag, value]:
        with pytest.raises(SystemExit) as end:
            parser().parse_args(arguments)
        said = capsys.readouterr()
        assert end.value.code == 2 and said.out == ""
        assert said.err.startswith("error: ") and said.err.count("\n") == 1
        assert flag in said.err and words in said.err


@given(st.integers(1, 10**9), st.floats(-1, 1))
def test_a_right_number_is_read_exactly(limit, share):
    """Catches a bound that is left out, and a number that is rounded."""
    args = parser().parse_args([f"--limit={limit}", f"--share={share!r}"])
    assert (args.limit, args.share) == (limit, share) and type(args.limit) is int


@pytest.mark.parametrize("text, value", [
    ("-1e-3", -1e-3), ("-1E-1", -0.1), ("-.5", -0.5), ("-1", -1.0), ("-0.25e0", -0.25),
    ("-1.", -1.0)])
def test_a_number_below_zero_is_the_value_of_the_flag_before_it(text, value):
    """Catches "--cost-per-layer: expected one argument" for --cost-per-layer -1e-3."""
    assert parser().parse_args(["--share", text]).share == value


@pytest.mark.parametrize("value", ["-x", "--limit"])
def test_a_flag_is_no_number_below_zero(value, capsys):
    """Catches a misspelt flag that is taken for the value of the flag before it."""
    with pytest.raises(SystemExit):
        parser().parse_args(["--share", value])
    assert "expected one argument" in capsys.readouterr().err


def test_a_question_may_begin_with_a_minus():
    made = parser()
    made.add_argument("question")
    assert made.parse_args(["-5 + 3 ="]).question == "-5 + 3 ="
    assert made.parse_args(["-5e1", "--share", "-1"]).question == "-5e1"


@pytest.mark.parametrize("text, listed", [
    ("a", ["a"]), ("a, b", ["a", "b"]), (" b ,a,,b,", ["b", "a"]), ("a b", ["a b"])])
def test_names_between_commas_lose_their_blanks_and_repeats(text, listed):
    """Catches "unknown routes  dr.llm"."""
    assert cli.names(text) == listed


@pytest.mark.parametrize("text", ["", " , "])
def test_no_name_at_all_is_refused(text):
    """Catches a list of no routes."""
    with pytest.raises(argparse.ArgumentTypeError, match="name"):
        cli.names(text)


def test_values_of_a_flag_that_is_given_twice_are_taken_together():
    """Catches `--data a --data b`, of which argparse keeps b alone."""
    read = parser().parse_args
    assert read(["--data", "a", "b", "--limit", "1", "--data", "c"]).data == ["a", "b", "c"]
    assert read(["--data", "a"]).data == ["a"] and read([]).data == ["q.jsonl"]


def test_a_gain_and_its_interval_in_points_by_hand():
    assert cli.with_interval(0.012, (0.003, 0.021)) == "+1.2 [+0.3, +2.1]"
    assert cli.with_interval(-0.5, [-1, 0]) == "-50.0 [-100.0, +0.0]"
    assert cli.bounds((0.003, 0.021)) == "[+0.3, +2.1]"
    assert cli.bounds((0.25, 1), sign=False) == "[25.0, 100.0]"


def test_a_table_of_a_single_column():
    assert cli.aligned([{"a": "1"}, {"a": "22"}]) == "a\n1\n22"


def test_help_shows_defaults_as_one_would_type_them_and_calls_a_count_n(capsys):
    """Catches a default that nobody can find, "default: None", [PosixPath('demo/...')], a percent
    sign in a path taken for a format, and `--paths PATHS` beside `--limit N`."""
    made = parser()
    made.add_argument("--files", nargs="+", default=[Path("a%b/c"), Path("d")], help="files")
    made.add_argument("--paths", type=cli.count, default=3, help="tried")
    with pytest.raises(SystemExit):
        made.parse_args(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "of it (default: 0.25)" in said and "(default: 7)" in said and "default: cpu" in said
    assert "files (default: a%b/c d)" in said
    assert "None" not in said and "False" not in said
    assert "--paths N" in said and "--limit N" in said and "PATHS" not in said


def test_use_device_sets_threads_and_checks_the_device(monkeypatch):
    """Catches flags that do not arrive, and torchrun's processes that share one GPU."""
    before, asked = torch.get_num_threads(), []
    try:
        cli.use_device(argparse.Namespace(threads=2, device="cpu"))
        assert torch.get_num_threads() == 2
        cli.use_device(argparse.Namespace(threads=None, device="cpu"))
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(cli.os, "cpu_count", lambda: 6)
        for beside, threads in ("2", 3), ("8", 1):  # processes of torchrun have a share each
            monkeypatch.setenv("LOCAL_WORLD_SIZE", beside)
            cli.use_device(argparse.Namespace(threads=None, device="cpu"))
            assert torch.get_num_threads() == threads
        cli.use_device(argparse.Namespace(threads=2, device="cpu"))
        assert torch.get_num_threads() == 2
    finally:
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        torch.set_num_threads(before)
    with pytest.raises(InputError, match="--device nonsense"):
        cli.use_device(argparse.Namespace(threads=None, device="nonsense"))
    monkeypatch.setattr(cli, "check_device", asked.append)
    for rank in (None, "3"):
        args = argparse.Namespace(threads=None, device="cuda")
        if rank:
            monkeypatch.setenv("LOCAL_RANK", rank)
        cli.use_device(args)
    assert asked == ["cuda", "cuda:3"] and args.device == "cuda:3"


# ---- what an unset variable or a terminal without letters does ----

@pytest.mark.parametrize("flag", ["--out", "--model", "--routers"])
def test_an_empty_name_is_not_the_current_folder(flag, capsys):
    """Catches `--out "$OUT"` with OUT unset, which wrote into the current folder."""
    import evaluate
    for text in ("", " "):
        with pytest.raises(SystemExit):
            evaluate.parse_args([flag, text])
        assert capsys.readouterr().err.startswith(f"error: argument {flag}: an empty name")


@pytest.mark.parametrize("encoding, shown", [
    ("ascii", "\\xb1 \\u8a9e \\ud800"), ("latin-1", "± \\u8a9e \\ud800"),
    ("utf-8", "± 語 \\ud800")])
def test_what_a_terminal_cannot_show_is_shown_otherwise(encoding, shown, monkeypatch):
    """Catches a command that dies of ± when its work is done."""
    terminal = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(terminal, encoding=encoding))
    cli.run(lambda: print("\xb1 \u8a9e \ud800"))
    assert terminal.getvalue().decode(encoding) == shown + "\n"


def test_a_new_file_has_the_permissions_of_any_other(tmp_path):
    """Catches a model or routers that only their owner may read, as safetensors leaves them."""
    from safetensors.torch import save_file
    old = os.umask(0o027)
    try:
        write_whole(tmp_path / "a", lambda part: save_file({"x": torch.zeros(1)}, part))
        write_json(tmp_path / "b.json", {})
    finally:
        os.umask(old)
    for name in ("a", "b.json"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o640


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
