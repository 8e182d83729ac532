"""Runs tests on a student's code: in a folder and a process of their own, and watched.

The tests bind what they assert with before any code of a student's loads, and whatever that code
changes outside itself (torch, pytest, builtins, another file of ours) is named in the outcome. A
run that does not end is ended after its time, and says in which line it hung.

This stops what is done in passing, not a determined attack: code in one process can reach all of
it. So read what looks odd, and grade inside a container. Needs fork (Linux, macOS).
"""
import ast
import faulthandler
import functools
import json
import os
import re
import secrets
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace

# imported once here, inherited by every run: a fork takes milliseconds, these take seconds
import hypothesis
import hypothesis.internal.conjecture.engine as engine
import numpy.random  # noqa: F401 - itself lazy
import pytest
import safetensors.torch  # noqa: F401
import sympy  # noqa: F401
import tokenizers  # noqa: F401
import torch

from try_mutants import COURSE, ROOT

ASSERTED_WITH = ("math", "itertools", "random", "json", "pytest", "numpy", "torch.nn.functional",
                 "torch.testing", "torch")
PATCHED_BY_TORCH = {(torch, "manual_seed")}  # once, when its compiler is first looked for
ROOMS = ("storage", "questions", "checkpoint", "experiments", "tools")
FOLDERS = (ROOT, COURSE, *(ROOT / room for room in ROOMS))
RESTLESS = ("warnings", "sys", "threading", "_pytest.", "hypothesis.", "linecache", "torch._dynamo")


# ---- what a student's code must leave alone ----

def snapshot():
    """{(module or class, name): (value, its code)} of the functions, classes and modules there
    are."""
    places = {m for name, m in sys.modules.items() if type(m) is ModuleType
              and not name.startswith(RESTLESS)}
    classes = {v for place in places for v in vars(place).values() if isinstance(v, type)}
    return {(place, name): (value, vars_of_function(value))
            for place in places | classes for name, value in list(vars(place).items())
            if (callable(value) or type(value) is ModuleType)
            and (place, name) not in PATCHED_BY_TORCH}


def vars_of_function(value):
    """What of a function can be exchanged without exchanging the function."""
    if type(value) is FunctionType:
        return value.__code__, value.__defaults__, tuple((value.__kwdefaults__ or {}).values())


def changed_since(before):
    """The names in a snapshot that mean something else by now."""
    missing = object()
    return [f"{getattr(place, '__module__', None) or ''}.{place.__name__}.{name}".lstrip(".")
            for (place, name), (value, parts) in before.items()
            if (now := vars(place).get(name, missing)) is not value
            or vars_of_function(now) is not parts and vars_of_function(now) != parts]


@functools.lru_cache(None)
def names_in(file):
    """The names that a file defines at its top."""
    return {node.name for node in ast.parse(file.read_text("utf-8")).body if hasattr(node, "name")}


def usurped(folder, theirs):
    """Functions of our files in the folder whose code stands in one of theirs."""
    for module in list(sys.modules.values()):
        file = Path(getattr(module, "__file__", None) or "/")
        if folder in file.parents and file not in theirs:
            for name in names_in(file) & vars(module).keys():
                code = getattr(vars(module)[name], "__code__", None)
                if code and Path(code.co_filename) in theirs:
                    yield f"{module.__name__}.{name}"


class Recorder:
    """A pytest plugin that keeps every outcome, and watches what a student's files change."""

    def __init__(self, folder, theirs, shrink):
        self.folder, self.theirs, self.shrink = folder, {folder / file for file in theirs}, shrink
        self.outcomes, self.found, self.changed = [], {}, []

    def pytest_collection(self, session):
        if self.shrink:  # a person reads the example
            engine.MAX_SHRINKING_SECONDS = 5
            hypothesis.settings.register_profile(
                "shrinking", hypothesis.settings.default, report_multiple_bugs=False,
                phases=(*hypothesis.settings.default.phases, hypothesis.Phase.shrink))
            hypothesis.settings.load_profile("shrinking")
        self.copies = {}
        for name in ASSERTED_WITH:
            module, copy = sys.modules[name], SimpleNamespace(**vars(sys.modules[name]))
            self.copies[id(module)] = copy
        self.copies[id(torch)].testing = self.copies[id(torch.testing)]
        self.before = snapshot() if self.theirs else {}

    def pytest_collection_finish(self, session):
        self.look("being imported")
        for module in list(sys.modules.values()):
            if self.folder / "tests" in Path(getattr(module, "__file__", None) or "/").parents:
                for name, value in list(vars(module).items()):
                    if id(value) in self.copies:
                        setattr(module, name, self.copies[id(value)])
                        self.before.pop((module, name), None)
        for item in session.items:
            mark = item.get_closest_marker("task")
            self.found[item.nodeid] = (mark.args[0] if mark else None,
                                       hasattr(item.obj, "hypothesis"), item.obj.__doc__ or "")

    def look(self, when):
        if not self.theirs or self.changed:  # nobody to watch, or seen already
            return
        names = changed_since(self.before) + list(usurped(self.folder, self.theirs))
        if names:
            self.changed = [when, *names]

    def pytest_collectreport(self, report):
        if report.failed:
            self.outcomes.append((report.nodeid, "failed", report.longreprtext[-4000:]))

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or not report.passed:
            self.outcomes.append((report.nodeid, report.outcome, report.longreprtext[-4000:]))
        if report.when == "teardown":
            self.look(report.nodeid.split("::")[-1])


# ---- a run ----

@dataclass
class Run:
    """Tests in a folder of their own. files: {path: text} of the whole tree; theirs: the paths of
    those a student wrote; links: {path: target} of what is too large to copy.

    Afterwards, outcomes: [(test, "passed" | "failed" | ..., what it said)], None if the run was
    killed or ended itself; hung: where, if its time was up; changed: [when, what, ...] the
    student's code did to others; found: {test: (its task, is it Hypothesis's, its docstring)}.
    """
    files: dict
    arguments: list
    profile: str = "grade"
    theirs: tuple = ()
    links: dict = field(default_factory=dict)
    shrink: bool = False
    outcomes: list = None
    found: dict = field(default_factory=dict)
    changed: list = ()
    hung: str = ""

    def start(self, folder, seconds):
        """Forks the run; returns its process id."""
        self.folder, self.result = folder, folder.parent / secrets.token_hex()
        for file, text in self.files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text, encoding="utf-8")
        for file, target in self.links.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).symlink_to(target)
        child = os.fork()
        if not child:
            run_pytest(self, seconds)
        return child

    def finish(self, seconds):
        """Reads what the run left."""
        if self.result.exists():
            self.outcomes, self.found, self.changed = json.loads(self.result.read_text("utf-8"))
        elif (self.folder / "hung").exists() and (
                dump := (self.folder / "hung").read_text("utf-8")):
            lines = re.findall(r'File "(.+)", line (\d+) in (\S+)', dump)
            at = [(Path(f).relative_to(self.folder), n, name) for f, n, name in lines
                  if Path(f).is_relative_to(self.folder)]
            where = [hit for hit in at if str(hit[0]) in self.theirs] or at
            self.hung = f"no end after {seconds:g} s" + "".join(
                f": {file}, line {n}, in {name}" for file, n, name in where[:1])

    @property
    def passed(self):
        """Every test passed, there was one, and nothing else was touched."""
        return (bool(self.outcomes) and not self.changed
                and all(how == "passed" for _, how, _ in self.outcomes))


def run_pytest(run, seconds):
    """The child's side of a run: pytest in the folder, the result, and out."""
    os.setsid()
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    os.chdir(run.folder)
    os.environ["HYPOTHESIS_PROFILE"] = run.profile
    faulthandler.dump_traceback_later(seconds, exit=True, file=open("hung", "w", encoding="utf-8"))
    for name, module in list(sys.modules.items()):  # ours, which the tree has its own copies of
        if Path(getattr(module, "__file__", None) or "/").parent in FOLDERS:
            del sys.modules[name]
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() not in (ROOT, COURSE)]
    recorder = Recorder(run.folder, run.theirs, run.shrink)
    try:
        pytest.main(["-p", "no:cacheprovider", "-p", "no:faulthandler", "--hypothesis-seed=0",
                     "--assert=plain", "--tb=native", *run.arguments], plugins=[recorder])
        part = Path("result")
        part.write_text(json.dumps([recorder.outcomes, recorder.found, recorder.changed]),
                        encoding="utf-8")
        part.rename(run.result)
    finally:
        os._exit(0)


def run_all(runs, seconds, at_once):
    """Runs all, so many at once; each is ended, with what it started, after so many seconds."""
    waiting, running = list(reversed(runs)), {}
    with tempfile.TemporaryDirectory(prefix="course-") as folder:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    run = waiting.pop()
                    place = Path(tempfile.mkdtemp(dir=folder)).resolve()
                    running[run.start(place, seconds)] = run, time.monotonic() + seconds + 5
                for child, (run, deadline) in list(running.items()):
                    if time.monotonic() > deadline or os.waitpid(child, os.WNOHANG)[0]:
                        kill_group(child)
                        run.finish(seconds)
                        del running[child]
                time.sleep(0.02)
        finally:
            for child in running:
                kill_group(child)


def kill_group(child):
    """Ends a run and everything it started."""
    try:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):
        pass  # it had ended by itself, and left nothing behind
