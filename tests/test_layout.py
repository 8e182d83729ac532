"""Claims about the files as a whole: which there are, what uses what, and what an import does."""
import ast
import importlib.util
import os
import subprocess
import sys
from functools import cache

import pytest

from conftest import ROOT

# Rooms that the core stands on, then the core in the order of reading: a file uses only files
# before it.
BELOW = ["storage.files", "storage.processes", "storage.answer_cache", "storage.run_folder",
         "storage.router_file", "storage.label_file", "cli", "checkpoint.chat_template",
         "checkpoint.config", "checkpoint.weights", "checkpoint.tokenizer", "questions.grading",
         "questions.schemas", "questions.loading", "questions.arithmetic", "questions.prompts",
         "questions.reward"]
CORE = ["paths", "model_llama", "mcts", "drllm", "answers", "base_check", "label", "choose",
        "evaluate", "train"]
ORDER = [*BELOW, *CORE]
ROOMS_BELOW, ROOMS_ABOVE = ("storage", "questions", "checkpoint"), ("experiments", "tools")


def files_in(*rooms):
    """The names of the files of some rooms, as one imports them."""
    return sorted(f"{room}.{file.stem}" for room in rooms for file in ROOT.glob(f"{room}/*.py")
                  if file.stem != "__init__")


ABOVE = files_in(*ROOMS_ABOVE)
NEVER = {"pickle", "shelve", "marshal", "dill", "cloudpickle", "joblib", "transformers"}


def source(name):
    return (ROOT / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")


def modules_in(tree):
    """The modules that are imported in a syntax tree, inside functions too: experiments.lab for
    `from experiments import lab`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import"
            if node.module in ROOMS_BELOW + ROOMS_ABOVE:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module


@cache
def imports(name):
    return frozenset(modules_in(ast.parse(source(name))))


def own(name):
    """The files of this project that a file imports."""
    return imports(name) & {*ORDER, *ABOVE}


# ---- which files there are ----

def test_these_files_are_at_the_top_level_and_in_the_rooms_that_the_core_imports():
    assert {file.stem for file in ROOT.glob("*.py")} | {*files_in(*ROOMS_BELOW)} == set(ORDER)


# ---- what imports what ----

def arrows(names, targets):
    """(importer, imported): the arrows from some files to others."""
    return [(name, other) for name in names for other in sorted(own(name)) if other in targets]


def arrows_back():
    """The arrows that run against the order."""
    return [(name, other) for name, other in arrows(ORDER, ORDER)
            if ORDER.index(other) >= ORDER.index(name)]


def test_no_arrow_runs_back():
    """Catches an import of a later file, also one inside a function: the reader would meet a name
    before it is explained."""
    assert arrows_back() == []


def test_what_the_core_imports_imports_nothing_of_the_core():
    assert arrows(BELOW, CORE) == []


def test_the_core_imports_no_experiment_and_no_tool():
    """Catches a hook: without experiments/ and tools/ everything else still runs."""
    assert arrows(ORDER, ABOVE) == []


def test_imports_never_run_in_a_circle():
    """Takes away, again and again, what uses nothing that is left: a circle is what stays."""
    left = {name: own(name) for name in [*ORDER, *ABOVE]}
    while ready := [name for name, used in left.items() if not used & left.keys()]:
        for name in ready:
            del left[name]
    assert not left


@pytest.mark.parametrize("name", [*ORDER, *ABOVE])
def test_nothing_runs_what_a_stranger_wrote(name):
    """Catches pickle and its kin, transformers, and text taken for a program."""
    assert not {module.partition(".")[0] for module in imports(name)} & NEVER
    called = {node.func.id for node in ast.walk(ast.parse(source(name)))
              if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"eval", "exec", "compile", "__import__"}
    attributes = {(node.value.id, node.attr) for node in ast.walk(ast.parse(source(name)))
                  if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    assert not attributes & {("torch", "load"), ("sympy", "sympify"), ("sympy", "parse_expr"),
                             ("np", "load"), ("numpy", "load"), ("os", "system")}


BEFORE_ENCODING = {"open": 3, "read_text": 0, "write_text": 1}  # arguments by position


def without_encoding(tree):
    """Line numbers of calls that read or write text in the locale's encoding. ruff's PLW1514 sees
    only those whose object it can tell to be a path."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", None))
        options = {option.arg: option.value for option in node.keywords}
        if isinstance(node.func, ast.Attribute) and name == "open":
            continue  # os.open, or a method that ruff sees
        mode = node.args[1] if name == "open" and len(node.args) > 1 else None
        is_binary = isinstance(mode, ast.Constant) and "b" in mode.value
        names_none = len(node.args) <= BEFORE_ENCODING.get(name, -1)
        is_text = names_none and not is_binary
        is_process = ast.unparse(options.get("text", node.func)) == "True"
        if (is_text or is_process) and "encoding" not in options:
            yield node.lineno


@pytest.mark.parametrize("file", sorted(ROOT.glob("*.py")) + sorted(
    ROOT.glob("[!.]*/*.py")), ids=lambda file: file.relative_to(ROOT).as_posix())
def test_text_is_read_and_written_in_utf_8_whatever_the_locale(file):
    """Catches a file of ours that LC_ALL=C cannot read, and one that only this machine can."""
    assert not list(without_encoding(ast.parse(file.read_text(encoding="utf-8"))))


def test_a_circle_and_a_late_import_would_be_noticed(monkeypatch):
    """The tests around this one could not fail if they read nothing."""
    assert "questions.loading" in own("train") and "experiments.lab" in own("experiments.paper")
    late = ast.parse("def f():\n    import train\n    from experiments import lab, paper as p\n")
    assert set(modules_in(late)) == {"train", "experiments.lab", "experiments.paper"}
    added = {"cli": {"train"}, "evaluate": {"experiments.methods"}}
    monkeypatch.setitem(globals(), "own",
                        lambda name, own=own: own(name) | added.get(name, set()))
    assert ("cli", "train") in arrows_back()
    for test in (test_no_arrow_runs_back, test_imports_never_run_in_a_circle,
                 test_what_the_core_imports_imports_nothing_of_the_core,
                 test_the_core_imports_no_experiment_and_no_tool):
        with pytest.raises(AssertionError):
            test()


# ---- what importing does ----

QUIET = """
import importlib, os, random, sys, threading
import torch
sys.modules["transformers"] = None  # not installed, whatever there is
state = lambda: (os.getcwd(), sys.getrecursionlimit(), dict(os.environ), threading.active_count(),
                 random.getstate(), torch.get_rng_state().sum(), torch.get_default_dtype(),
                 torch.is_grad_enabled(), torch.get_num_threads())
before = state()
for name in sys.argv[1:]:
    importlib.import_module(name)
    assert state() == before, name
"""


def test_importing_a_file_does_nothing(tmp_path):
    """Catches output, files, threads, random numbers or settings that come with an import."""
    names = [name for name in [*ORDER, *ABOVE] if name != "tools.lm_eval_drllm"
             or importlib.util.find_spec("lm_eval")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    made = subprocess.run([sys.executable, "-W", "error", "-c", QUIET, *names], cwd=tmp_path,
                          env=environment, capture_output=True, encoding="utf-8", timeout=300)
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
    assert not any(tmp_path.iterdir())
