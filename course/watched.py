"""The process in which a student's code runs: it has read nothing of ours, and watches.

runs.py starts this file as a process of its own, which imports what tests need and then forks a
child for each run. Neither has ever held a solution, a mutant or the grader in its memory. The
tests bind what they assert with before any code of a student's loads. Whatever that code changes
outside itself (torch, pytest, builtins, the tests, another file of ours) is named in the outcome,
and so is what it reads, writes, lists or starts outside the folder of the run.

This stops what is done in passing, not a determined attack: code in one process can reach all of
it. So read what looks odd, and grade inside a container. Needs fork (Linux, macOS).
"""
import ast
import faulthandler
import functools
import gc
import itertools
import json
import math
import operator
import os
import re
import resource
import signal
import sys
import tempfile
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace

# imported once here, inherited by every run: a fork takes milliseconds, these take seconds
import hypothesis
import hypothesis.strategies
import hypothesis.internal.conjecture.engine as engine
import hypothesis.internal.conjecture.providers as providers
import numpy.random  # noqa: F401 - itself lazy
import pytest
import safetensors.torch  # noqa: F401
import sympy  # noqa: F401
import tokenizers  # noqa: F401
import torch
import torch._dynamo  # noqa: F401 - torch itself imports both when they are first needed
import torch.distributed.tensor  # noqa: F401

PROJECT = Path(__file__).resolve().parents[1]
ASSERTED_WITH = ("math", "itertools", "random", "json", "pytest", "numpy", "torch.nn.functional",
                 "torch.testing", "torch")
PATCHED_BY_OTHERS = {  # by torch when its compiler is first looked for; by pytest and Hypothesis
    (torch, "manual_seed"), (pytest.Config, "_getini_unknown_type"),
    (pytest.fixture.__globals__["FixtureFunctionMarker"], "__call__")}
COMPARES = pytest.approx.__module__
RESTLESS = ("warnings", "sys", "threading", "linecache", "torch._dynamo")
# audit events of what no test needs: other processes, links, sockets, libraries of C
STARTING = ("subprocess.", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.fork",
            "socket.", "ctypes.dlopen", "pty.")
LINKING = ("os.symlink", "os.link")
LISTING = ("os.listdir", "os.scandir")
MOVING = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.truncate")
INSTALLED = [os.path.realpath(path) for path in (sys.prefix, sys.base_prefix)]
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
EXCHANGEABLE = ("__code__", "__defaults__", "__kwdefaults__")  # attributes of a function
CONTAINERS = (list, tuple, set, dict, SimpleNamespace)
SET_BY_IMPORT = {"__builtins__", "__cached__", "__file__", "__loader__", "__spec__"}
MISSING = object()
LONGEST_REPORT = 4000  # characters of a failure that are kept


# ---- what a student's code must leave alone ----

class Snapshot:
    """What some modules and their classes hold: functions, classes and modules; of the modules
    in `whole`, everything. values: {module or class: {name: value}}; attributes: {attribute: what
    every one of `functions` has there}; parts: {id of a value: (it, what in it can be exchanged)}.

    Most functions and names are those of torch, some ten thousands, so that they are compared a
    list at a time."""

    def __init__(self, modules, whole=()):
        classes = {value for module in modules for value in vars(module).values()
                   if isinstance(value, type) and is_watched(value.__module__)}
        self.values = {
            place: {name: value for name, value in list(vars(place).items())
                    if (place in whole or callable(value) or type(value) is ModuleType)
                    and name not in SET_BY_IMPORT and (place, name) not in PATCHED_BY_OTHERS}
            for place in {*modules, *classes}}
        held = [value for names in self.values.values() for value in names.values()]
        self.functions = [value for value in held if type(value) is FunctionType]
        self.attributes = {attribute: self.now(attribute) for attribute in EXCHANGEABLE}
        self.parts = {id(value): (value, inner_parts(value)) for value in held if has_parts(value)}

    def now(self, attribute):
        """What every function has there now."""
        return list(map(operator.attrgetter(attribute), self.functions))

    def changed(self):
        """The names that mean something else by now."""
        exchanged = {key for key, (value, parts) in self.parts.items()
                     if not same_objects(inner_parts(value), parts)}
        for attribute, before in self.attributes.items():
            now = self.now(attribute)
            if not same_objects(now, before):
                exchanged |= {id(function) for function, value, old
                              in zip(self.functions, now, before) if value is not old}
        return [f"{getattr(place, '__module__', None) or ''}.{place.__name__}.{name}".lstrip(".")
                for place, names in self.values.items() for now in [values_of(place, names)]
                if exchanged or not same_objects(now, names.values())
                for (name, value), value_now in zip(names.items(), now)
                if value_now is not value or id(value) in exchanged]


def values_of(place, names):
    """What these names mean in a module or class; MISSING if nothing."""
    return list(map(vars(place).get, names, itertools.repeat(MISSING)))


def is_watched(module):
    """Whether nothing but a student's code would change the module of that name."""
    return not str(module).startswith(RESTLESS)


def loaded_modules():
    return {module for name, module in sys.modules.items()
            if type(module) is ModuleType and is_watched(name)}


def modules_in(folder):
    """The loaded modules of a folder, and the file of each. Texts are compared: there are thousands
    of other modules, and a Path for each would take longer than most tests."""
    beginning = f"{folder}{os.sep}"
    files = [(module, getattr(module, "__file__", None)) for module in list(sys.modules.values())]
    return [(module, Path(file)) for module, file in files
            if isinstance(file, str) and file.startswith(beginning)]


def has_parts(value):
    """Whether it can change without another value in its place; a function's attributes aside."""
    if type(value) is FunctionType:
        return bool(value.__kwdefaults__ or value.__closure__)
    return type(value) in CONTAINERS


def inner_parts(value):
    """What of a value can be exchanged without exchanging the value; of a function, what is in
    its attributes."""
    if type(value) is FunctionType:
        parts = [*(value.__kwdefaults__ or {}).values()]
        if value.__closure__ and "/tests/" in value.__code__.co_filename:
            parts += [cell.cell_contents for cell in value.__closure__ if holds_something(cell)]
        return parts
    if type(value) is dict:
        return [*value.keys(), *value.values()]
    if type(value) is SimpleNamespace:
        return list(vars(value).values())
    return list(value)


def holds_something(cell):
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def same_objects(some, others):
    return len(some) == len(others) and all(map(operator.is_, some, others))


@functools.lru_cache(None)
def names_in(file):
    """The names that a file defines at its top."""
    return {node.name for node in ast.parse(file.read_text("utf-8")).body if hasattr(node, "name")}


def usurped(folder, theirs):
    """Functions of our files in the folder whose code is in one of theirs."""
    for module, file in modules_in(folder):
        if file not in theirs:
            for name in names_in(file) & vars(module).keys():
                code = getattr(vars(module)[name], "__code__", None)
                if code and Path(code.co_filename) in theirs:
                    yield f"{module.__name__}.{name}"


def torch_modes():
    """How many modes change the meaning of torch's functions."""
    return torch._C._len_torch_function_stack() + torch._C._len_torch_dispatch_stack()


class Recorder:
    """A pytest plugin that keeps every outcome, and watches what a student's files change."""

    def __init__(self, folder, theirs, shrink):
        self.folder, self.theirs, self.shrink = folder, {folder / file for file in theirs}, shrink
        self.outcomes, self.tests, self.changed = [], {}, []
        self.outside = []  # what the run did outside its folder
        self.near = None  # what is compared after every test, if somebody is watched

    def pytest_collection(self, session):
        if self.shrink:  # a person reads the example
            engine.MAX_SHRINKING_SECONDS = 5
            hypothesis.settings.register_profile(
                "shrinking", hypothesis.settings.default, report_multiple_bugs=False,
                phases=(*hypothesis.settings.default.phases, hypothesis.Phase.shrink))
            hypothesis.settings.load_profile("shrinking")
        self.copies = {}
        for name in ASSERTED_WITH:
            module = sys.modules[name]
            self.copies[id(module)] = SimpleNamespace(**vars(module))
        self.copies[id(torch)].testing = self.copies[id(torch.testing)]
        self.before = [BEFORE]
        self.settings = hypothesis.settings.default

    def pytest_collection_finish(self, session):
        self.look("being imported")
        for module, _ in modules_in(self.folder / "tests"):
            for name, value in list(vars(module).items()):
                if id(value) in self.copies:
                    setattr(module, name, self.copies[id(value)])
        for item in session.items:
            mark = item.get_closest_marker("task")
            self.tests[item.nodeid] = (mark.args[0] if mark else None,
                                       hasattr(item.obj, "hypothesis"), item.obj.__doc__ or "")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session):
        """Everything is in its place now: the tests' own names and copies are watched, too."""
        if not self.theirs:
            return
        new = loaded_modules() - MODULES
        tests = new & {module for module, _ in modules_in(self.folder / "tests")}
        asserted = {sys.modules[name] for name in (*ASSERTED_WITH, COMPARES, "builtins")}
        self.near = [Snapshot(asserted | tests, tests)]
        self.before = [BEFORE, Snapshot(new - tests)]
        self.parts_of_copies = [inner_parts(copied) for copied in self.copies.values()]

    def look(self, when, before=None):
        """Notes what differs from snapshots, by default those of everything."""
        if not self.theirs or self.changed:  # nobody to watch, or seen already
            return
        snapshots = self.before if before is None else before
        names = [name for snapshot in snapshots for name in snapshot.changed()]
        names += [*usurped(self.folder, self.theirs), *["torch's modes"] * torch_modes()]
        if hypothesis.settings.default is not self.settings:
            names.append("hypothesis.settings.default")
        names += self.outside
        if before is not None:
            now = [inner_parts(copied) for copied in self.copies.values()]
            names += [name for name, parts, parts_now in
                      zip(ASSERTED_WITH, self.parts_of_copies, now)
                      if not same_objects(parts, parts_now)]
        if names:
            self.changed = [when, *names]

    def pytest_sessionfinish(self, session):
        self.look("during the tests")

    def pytest_collectreport(self, report):
        if report.failed:
            self.keep(report, "failed")

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or not report.passed:
            self.keep(report, report.outcome)
        if report.when == "teardown":
            self.look(report.nodeid.split("::")[-1], self.near)

    def keep(self, report, outcome):
        self.outcomes.append((report.nodeid, outcome, report.longreprtext[-LONGEST_REPORT:]))


def watch_outside(recorder, may_read_project):
    """Notes what a run does outside its folder: files written or moved, source files read, folders
    listed, other processes looked at or started."""
    def hook(event, arguments):
        if event == "object.__getattr__":  # a snapshot looks at a function: ten thousands of times
            return
        if event.startswith(STARTING) or (
                event in LINKING and leads_out(str(recorder.folder), *arguments[:2])):
            recorder.outside.append(event)
        elif event in ("open", *LISTING, *MOVING) and isinstance(arguments[0], (str, bytes)):
            path, lists = os.fsdecode(arguments[0]), event in LISTING
            writes = event in MOVING or event == "open" and arguments[2] & WRITING
            done = done_outside(path, writes, lists, str(recorder.folder), may_read_project)
            if done:
                recorder.outside.append(done)

    sys.addaudithook(hook)


def done_outside(path, writes, lists, folder, may_read_project):
    """What a run does to a path, in words; "" inside its folder, and where it may."""
    named = os.path.abspath(path)
    file = os.path.realpath(named)
    if is_inside(file, folder) or named in (os.devnull, __file__):
        return ""
    if writes:
        return f"writes {file}"
    if re.match(r"/proc/\d", named):
        return f"reads {named}"
    if any(is_inside(file, installed) for installed in INSTALLED):
        return ""
    if lists or os.path.isdir(file):  # a folder can be opened, and read from
        return f"lists {file}"
    in_project = is_inside(file, str(PROJECT)) and not may_read_project
    return f"reads {file}" if in_project or file.endswith(".py") else ""


def leads_out(folder, target, link):
    """Whether a link that is made leads out of a folder, or lies outside; pytest makes some inside.
    """
    place = os.path.abspath(os.fsdecode(link))
    named = os.path.join(os.path.dirname(place), os.fsdecode(target))
    return not all(is_inside(os.path.realpath(path), folder) for path in (place, named))


def is_inside(path, folder):
    return os.path.commonpath([path, folder]) == folder


hypothesis.strategies.text().validate()  # makes a table of all characters, which takes seconds
# Hypothesis would draw constants that it reads in a student's code; everyone has the same examples
providers.is_local_module_file = lambda file: False
MODULES = loaded_modules()
BEFORE = Snapshot(MODULES)


# ---- a run ----

def limit_time(seconds, patience, hung):
    """Ends this process after so many seconds of computing, or so much time in all; writes into
    `hung` in which line it was."""
    seconds = math.ceil(seconds)
    # the system sends a signal, and kills 5 seconds later if that had no effect
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    faulthandler.register(signal.SIGXCPU, file=hung, chain=True)
    faulthandler.dump_traceback_later(patience, exit=True, file=hung)


def run_pytest(order):
    """The child's side of a run: pytest in the folder, the result, and out."""
    folder, result = Path(order["folder"]), Path(order["result"])
    os.setsid()
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    os.chdir(folder)
    os.mkdir("temporary")  # a run finds nothing that another left
    temporary = str(folder / "temporary")
    os.environ |= {"HYPOTHESIS_PROFILE": order["profile"], "HOME": temporary, "TMPDIR": temporary,
                   "HYPOTHESIS_STORAGE_DIRECTORY": temporary}
    tempfile.tempdir, sys.dont_write_bytecode = None, True
    limit_time(order["seconds"], order["patience"], open("hung", "w", encoding="utf-8"))
    recorder = Recorder(folder, order["theirs"], order["shrink"])
    del order
    watch_outside(recorder, may_read_project=any(folder.glob("demo/model")))
    try:
        pytest.main(["-p", "no:cacheprovider", "-p", "no:faulthandler", "--hypothesis-seed=0",
                     "--assert=plain", "--tb=native", *sys.argv[1:]], plugins=[recorder])
        part = Path("result")
        part.write_text(json.dumps([recorder.outcomes, recorder.tests, recorder.changed]),
                        encoding="utf-8")
        part.rename(result)
    finally:
        os._exit(0)


def ended_children():
    """The numbers of the children that have ended since this was last asked."""
    ended = []
    while True:
        try:
            child, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if not child:
            return ended
        ended.append(child)


def serve():
    """A line in, a line out: an order to run something gives a process id, an empty line the ids
    of those that have ended."""
    sys.path.pop(0)  # the folder of this file
    gc.freeze()  # children share these pages
    for line in sys.stdin:
        if line.strip():
            order = json.loads(line)
            reply = os.fork()
            if not reply:
                sys.argv[1:] = order.pop("arguments")
                run_pytest(order)
        else:  # only now: an end that is not told would be waited for until the deadline
            reply = ended_children()
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    serve()
