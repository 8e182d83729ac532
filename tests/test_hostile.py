"""Wrong inputs through the real command lines: one line, exit code 2, and no file touched.

What a reader refuses is in the tests of that reader (test_cli.py, test_hf_folder.py,
test_questions.py, test_schemas.py, test_label.py, test_drllm.py, test_run_folder.py). Here is a
case or two of every reader, which show that the commands ask it.

A case is a small world (a model folder, questions, labels, routers) in which one thing is damaged,
a command, the file that its refusal must name, and what else it must say, both numbers where there
are two. The message is the user's only clue, so a traceback, a second line, a changed file or one
left behind fails the test. Then what needs a process or a disk of its own: `| head`, a full disk,
files that may not be read.
"""
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

import evaluate
import label
import train
from conftest import ROOT, leaves
from drllm import Routers
from model_llama import load_model
from programs import run_program
from questions.loading import read_row, split
from storage.files import read_json
from tiny import edit_json, edit_tensors, save_tiny, tiny_model

COUNT = 10
ROWS = [{"id": f"q{n}", "task": "own", "question": f"{n} {n}", "answer": str(n)}
        for n in range(COUNT)]
TO_LABEL, TO_TEST = split([read_row(row) for row in ROWS])  # where no --test is named


def row_of(question):
    row, = (row for row in ROWS if row["id"] == question.id)
    return row


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def save_routers(at, **notes):
    """Writes the world's router file. notes: other entries of its metadata."""
    routers = Routers(3, 16, 8, windows=8)
    fingerprint = load_model(at / "model").fingerprint()
    routers.metadata = {"model": fingerprint, "tasks": ["own"], **notes}
    routers.save(at / ROUTERS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder in which nothing is wrong."""
    at = tmp_path_factory.mktemp("whole")
    model = tiny_model(5, dtype=torch.float32, max_positions=96)
    save_tiny(at / "model", model)
    (at / WEIGHTS).chmod(0o644)  # safetensors leaves what it writes to its owner alone
    (at / "q.jsonl").write_text(lines(ROWS), encoding="utf-8")
    label.main(arguments("label", at)[1])
    save_routers(at)
    edit_json(at / "run/paths.json", key={"labels": {"model": model.fingerprint()}},
              frontier=[[2, [1, 0, 1]], [4, [1, 2, 1]]])
    return at


def arguments(command, at):
    """(main, argv) of a command in a world."""
    argv = ["--model", at / "model", "--data", at / "q.jsonl"]
    main, more = {
        "label": (label.main, ["--out", at / "run/labels.jsonl", "--simulations", 3]),
        "train": (train.main, ["--out", at / "run", "--simulations", 3, "--seeds", 1]),
        "evaluate": (evaluate.main, ["--out", at / "evaluated", "--routers",
                                     at / "run/routers.safetensors"])}[command]
    return main, [str(part) for part in argv + more]


def contents(at):
    """{path: bytes} of every file, the hidden ones too."""
    return {str(file.relative_to(at)): file.read_bytes() for file in at.rglob("*")
            if file.is_file()}


# ---- how a world is damaged; each gives a function of its folder ----

def write(file, content):
    def damage(at):
        data = content if isinstance(content, bytes) else content.encode()
        (at / file).parent.mkdir(exist_ok=True)
        (at / file).write_bytes(data)
    return damage


def changed(file, change):
    """The bytes of a file, changed."""
    return lambda at: (at / file).write_bytes(change((at / file).read_bytes()))


def pipe(file):
    """A named pipe, into which nobody writes, in the place of a file."""
    def damage(at):
        (at / file).unlink(missing_ok=True)
        os.mkfifo(at / file)
    return damage


def huge(file, size=2 ** 25):
    """A file of so many zeros, which take no room on the disk."""
    def damage(at):
        (at / file).touch()
        os.truncate(at / file, size)
    return damage


def config(**changes):
    return lambda at: edit_json(at / "model/config.json", **changes)


def template(text):
    return lambda at: edit_json(at / "model/tokenizer_config.json", chat_template=text)


def flags(*more, damage=lambda at: None):
    """Nothing damaged but the command: {at} stands for the folder."""
    def both(at):
        damage(at)
        return [str(part).format(at=at) for part in more]
    return both


def other_model(at):
    save_tiny(at / "model", tiny_model(6, dtype=torch.float32))


JINJA = "model/chat_template.jinja"
UP = "model.layers.1.mlp.up_proj.weight"
WEIGHTS, LABELS, ROUTERS = "model/model.safetensors", "run/labels.jsonl", "run/routers.safetensors"
CONFIG, TOKENIZER = "model/config.json", "model/tokenizer.json"
SETTINGS, GENERATION = "model/tokenizer_config.json", "model/generation_config.json"
PATHS = "run/paths.json"

CASES = {  # name: (command, damage, file that must be named, what else must be said)
    # the model's folder
    "config cut": ("label", changed(CONFIG, lambda data: data[:40]), CONFIG, ["JSON"]),
    "more memory than there is": ("label", config(vocab_size=10**13), "model", [10**13, 40]),
    "weights cut short": ("label", changed(WEIGHTS, lambda data: data[:-1]), WEIGHTS, ["bytes"]),
    "a pickle": ("label", lambda at: (at / WEIGHTS).rename(at / "model/pytorch_model.bin"),
                 "model", ["no model.safetensors"]),
    "weights too large for float16": ("label", flags("--dtype", "float16", damage=lambda at: (
        edit_tensors(at / "model", **{UP: torch.full((24, 16), 1e30)}))), WEIGHTS,
                                      [UP, "infinite"]),
    "no tokenizer": ("label", lambda at: (at / TOKENIZER).unlink(), TOKENIZER, ["no such file"]),
    "tokenizer cut": ("label", changed(TOKENIZER, lambda data: data[:99]), TOKENIZER, []),
    "tokenizer of a larger model": ("label", flags(
        "--data", "{at}/long.jsonl", damage=lambda at: (
            changed(TOKENIZER, lambda data: data.replace(b'"z": 37', b'"z": 999'))(at),
            write("long.jsonl", lines([{"prompt": "z", "answer": "1"}]))(at))),
        "model", ["999", "39"]),
    "a token that is a number": ("label", lambda at: edit_json(at / SETTINGS, eos_token=5),
                                 SETTINGS, ["eos_token", "5"]),
    "stop ids in words": ("label", write(GENERATION, '{"eos_token_id": "2"}'), GENERATION,
                          ["eos_token_id", "'2'"]),
    "templates without names": ("label", template([{"template": "x"}]), SETTINGS, ["name"]),
    "a template in a list": ("label", template(["x"]), SETTINGS, ["chat_template"]),
    "a template that is a number": ("label", template(5), SETTINGS, ["chat_template"]),
    "a template not in UTF-8": ("label", write(JINJA, b"\xff\xfe"), JINJA, ["UTF-8"]),
    # what is no file, or too large: of every reader
    **{f"{file} is a pipe": ("label", pipe(file), file, ["a directory, a pipe or a device"])
       for file in (CONFIG, TOKENIZER, SETTINGS, WEIGHTS, JINJA, GENERATION, "q.jsonl", LABELS)},
    "routers that are a pipe": ("evaluate", pipe(ROUTERS), ROUTERS, ["pipe"]),
    "fixed paths that are a pipe": ("evaluate", pipe(PATHS), PATHS, ["pipe"]),
    "a huge config": ("label", huge(CONFIG), CONFIG, ["33554432 bytes", "16777216"]),
    "a huge template": ("label", huge(JINJA), JINJA, ["33554432 bytes", "16777216"]),
    "a huge tokenizer": ("label", huge(TOKENIZER, 2 ** 28 + 1), TOKENIZER,
                         ["268435457 bytes", "268435456"]),
    # question files
    "questions empty": ("label", write("q.jsonl", ""), "q.jsonl", ["no questions"]),
    "questions in latin-1": ("label", write("q.jsonl", '{"question": "é"}'.encode("latin-1")),
                             "q.jsonl", ["UTF-8"]),
    "a list cut": ("label", write("q.jsonl", '[{"question": "q"'), "q.jsonl", ["JSON"]),
    "a list nested deep": ("label", write("q.jsonl", "[" * 50_000), "q.jsonl", ["JSON"]),
    "bad rows only": ("label", flags("--skip-bad-rows", damage=write("q.jsonl", "{}\n5\n")),
                      "q.jsonl", ["no questions"]),
    "nothing left to test": ("train", flags("--data", "{at}/one.jsonl", damage=write(
        "one.jsonl", lines([row_of(TO_LABEL[0])]))), "one.jsonl",
                             ["1 training questions and 0 test"]),
    "nothing left to label": ("train", flags("--data", "{at}/one.jsonl", damage=write(
        "one.jsonl", lines([row_of(TO_TEST[0])]))), "one.jsonl",
                              ["0 training questions and 1 test"]),
    "nothing fits": ("evaluate", config(max_position_embeddings=8), "", ["0 of 10", "8"]),
    # labels
    "labels of another model": ("train", other_model, LABELS, ["model"]),
    "labels into the questions' file": ("label", flags("--out", "{at}/q.jsonl"), "q.jsonl",
                                        ["not a labels file", "q.meta.json"]),
    "labels in a folder's name": ("label", flags("--out", "{at}/run"), "run", ["a folder"]),
    "labels below a file": ("label", flags("--out", "{at}/q.jsonl/labels.jsonl"), "q.jsonl", []),
    # routers
    "routers of unknown tasks": ("evaluate", lambda at: save_routers(at, tasks=None), ROUTERS,
                                 ["tasks", "None"]),
    "results below a file": ("evaluate", flags("--out", "{at}/q.jsonl"), "q.jsonl", []),
    # the command itself
    "a device of no numbers": ("train", flags("--device", "meta"), "", ["--device meta"]),
}
NUMBERS = {"label": {"limit": 0, "simulations": 0, "batch-size": 0, "threads": 0, "seed": -1},
           "train": {"seeds": 0, "clusters": 0, "cost-per-layer": "nan"},
           "evaluate": {"depth-bias": "inf", "control": 2}}
CASES |= {f"--{name} {value}, to {command}": (command, flags(f"--{name}={value}"), "",
                                              [f"--{name}", value])
          for command, wrong in NUMBERS.items() for name, value in wrong.items()}


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_input_is_one_line_and_touches_no_file(name, whole, tmp_path, capsys):
    command, damage, file, words = CASES[name]
    at = shutil.copytree(whole, tmp_path / "case")
    main, argv = arguments(command, at)
    more = damage(at)
    if isinstance(more, list):
        if "--data" in more:  # instead of the world's: files of a flag given twice add up
            place = argv.index("--data")
            del argv[place:place + 2]
        argv += more
    before = contents(at)
    code, line = leaves(lambda: main(argv), capsys)
    assert code == 2 and line.startswith("error: ") and line.count("\n") == 1
    assert not file or str(at / file) in line
    line = line.replace(str(at), "")  # the folder's name has numbers of its own
    assert all(str(word) in line for word in words), line
    assert contents(at) == before


@pytest.mark.parametrize("command", ["label", "evaluate"])
def test_the_undamaged_world_is_accepted(command, whole, tmp_path, capsys):
    """Catches a table that passes because everything is refused."""
    main, argv = arguments(command, shutil.copytree(whole, tmp_path / "case"))
    main(argv)


# ---- what stands there already ----

def cut_short(at, command, capsys, limit):
    """A command that may write files of `limit` bytes: (exit code, its last line of error)."""
    main, argv = arguments(command, at)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        code, said = leaves(lambda: main(argv), capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return code, said.splitlines()[-1]


def whole_lines(file):
    """The complete lines of a file."""
    return file.read_bytes().split(b"\n")[:-1]


def test_labels_that_outgrow_the_disk_go_on_where_they_stopped(whole, tmp_path, capsys):
    """Catches finished rows that are lost, or a torn one that is kept."""
    at = shutil.copytree(whole, tmp_path / "case")
    finished = (at / LABELS).read_bytes()
    (at / LABELS).write_bytes(finished[:finished.index(b"\n") + 1])
    code, line = cut_short(at, "label", capsys, len(finished) - 100)
    assert (code, line) == (2, f"error: {at / LABELS}: File too large")
    rows = whole_lines(at / LABELS)
    assert 1 < len(rows) < COUNT and set(rows) < set(finished.splitlines())
    label.main(arguments("label", at)[1])
    assert contents(at) == contents(whole)


def test_results_that_outgrow_the_disk_leave_the_old_ones(whole, tmp_path, capsys):
    """Catches yesterday's metrics.json cut short by today's."""
    at = shutil.copytree(whole, tmp_path / "case")
    write("evaluated/metrics.json", "yesterday")(at)
    before = contents(at)
    code, line = cut_short(at, "evaluate", capsys, 100)
    kept = at / "evaluated/answers.jsonl"  # half a line of it, which the next run cuts off
    assert (code, line) == (2, f"error: {kept}: File too large")
    kept.unlink()
    assert contents(at) == before


# ---- standard output that nobody reads ----

CLOSED = """
import os, runpy, sys
os.close(1)
sys.stdout = None  # as Python finds it
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("output, code", [("head", 0), ("closed", 0), ("full", 2)])
def test_results_are_written_whatever_becomes_of_standard_output(output, code, whole, tmp_path):
    """Catches `| head` that costs the results, and a second error as Python exits."""
    at = shutil.copytree(whole, tmp_path / "case")
    reader, writer = os.pipe()
    os.close(reader)  # as after `| head`
    where = {"head": writer, "full": open("/dev/full", "w", encoding="utf-8")}
    if output == "closed":
        made = run_program("-c", CLOSED, ROOT / "evaluate.py", *arguments("evaluate", at)[1])
    else:
        made = subprocess.run([sys.executable, ROOT / "evaluate.py", *arguments("evaluate", at)[1]],
                              stdout=where[output], stderr=subprocess.PIPE, encoding="utf-8")
    os.close(writer)
    last = (made.stderr.splitlines() or [""])[-1]
    assert made.returncode == code and "Traceback" not in made.stderr
    assert (last == "error: output: No space left on device") == (code == 2)
    assert read_json(at / "evaluated/metrics.json")["routes"]


def test_the_command_itself_says_one_line(whole, tmp_path):
    """Catches what only a process shows: another exit code, output on the wrong stream."""
    made = run_program(ROOT / "label.py", "--model", tmp_path / "none", folder=tmp_path)
    assert (made.returncode, made.stdout) == (2, "")
    assert made.stderr.startswith(f"error: {tmp_path / 'none'}: no such folder. A model of a hub")
    assert made.stderr.count("\n") == 1


# ---- files that may not be read ----

@contextlib.contextmanager
def nobody():
    """The user who may read nothing of ours; root may read everything."""
    if os.geteuid() == 0:
        try:
            os.seteuid(65534)
        except OSError as error:
            pytest.skip(f"root that cannot be another user ({error}): this test wants one")
    try:
        yield
    finally:
        if os.getuid() == 0:
            os.seteuid(0)


@pytest.mark.parametrize("command, file", [
    ("label", CONFIG), ("label", WEIGHTS), ("label", "q.jsonl"), ("label", LABELS),
    ("label", "model"), ("evaluate", "run")])
def test_a_file_that_may_not_be_read_is_named(command, file, whole, capsys):
    """Catches a PermissionError traceback from any of the readers."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        at = shutil.copytree(whole, Path(name) / "case")
        at.chmod(0o777)
        (at / "run").chmod(0o777)  # where a lock is to be written
        main, argv = arguments(command, at)
        before = contents(at)
        mode = (at / file).stat().st_mode
        (at / file).chmod(0)
        with nobody():
            code, line = leaves(lambda: main(argv), capsys)
        (at / file).chmod(mode)
        assert code == 2 and line.startswith("error: ") and line.count("\n") == 1
        assert str(at / file) in line and "ermission denied" in line
        assert contents(at) == before
