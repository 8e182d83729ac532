"""Runs of tests on a student's code, each in a folder and a process of its own.

The processes are children of watched.py, which is started once and has never read a solution. A
run that does not end is ended when it has computed for its time, and says in which line it hung.
"""
import functools
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from storage.files import InputError

COURSE = Path(__file__).resolve().parent
PATIENCE = 3  # a run that computes less than it waits is ended after so many times its seconds
GRACE = 60  # seconds that a run has to end itself when its time is up, on a busy machine


@functools.lru_cache(None)
def server():
    """The process that forks all runs; it ends with this one, when its input ends. What a teacher
    has set for Python and pytest (a path to look for modules, options) is not in force there."""
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(("PYTHON", "PYTEST", "HYPOTHESIS"))}
    return subprocess.Popen([sys.executable, "-W", "ignore", COURSE / "watched.py"],
                            encoding="utf-8", env=environment,
                            cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def ask_server(order=""):
    """What the server replies to an order."""
    try:
        server().stdin.write(f"{json.dumps(order) if order else ''}\n")
        server().stdin.flush()
        return json.loads(server().stdout.readline())
    except (BrokenPipeError, json.JSONDecodeError):
        raise InputError("the process that runs the tests was ended; start again") from None


@dataclass
class Run:
    """Tests in a folder of their own. files: {path: text} of the whole tree; theirs: the paths of
    those a student wrote; links: {path: target} of what is too large to copy; must_fail: the path
    of a file of tests which show that assertions still assert.

    Afterwards, outcomes: [(test, "passed" | "failed" | ..., its report)], None if the run was
    killed or ended itself; hung: where, if its time was up; changed: [when, what, ...] the
    student's code did to others; tests: {test: (its task, is it Hypothesis's, its docstring)}.
    """
    files: dict
    arguments: list
    profile: str = "grade"
    theirs: tuple = ()
    links: dict = field(default_factory=dict)
    shrink: bool = False
    must_fail: str = ""
    outcomes: list = None
    tests: dict = field(default_factory=dict)
    changed: list = ()
    hung: str = ""

    def start(self, folder, seconds):
        """Starts the run; returns its process id."""
        self.folder, self.result = folder / "tree", folder / secrets.token_hex()
        self.folder.mkdir()
        for file, text in self.files.items():
            (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / file).write_text(text, encoding="utf-8")
        for file, target in self.links.items():
            (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / file).symlink_to(target)
        return ask_server({"folder": str(self.folder), "result": str(self.result),
                           "arguments": self.arguments, "profile": self.profile,
                           "theirs": self.theirs, "shrink": self.shrink, "seconds": seconds,
                           "patience": PATIENCE * seconds})

    def finish(self, seconds):
        """Reads what the run left."""
        if self.result.exists():
            self.outcomes, self.tests, self.changed = json.loads(self.result.read_text("utf-8"))
            self.set_must_fail_apart()
        elif (self.folder / "hung").exists():
            dump = (self.folder / "hung").read_text("utf-8")
            if dump:
                waited = dump.startswith("Timeout")  # else the system ended it: it computed
                limit = f"{PATIENCE * seconds:g} s of waiting" if waited else f"{seconds:g} s"
                self.hung = f"no end after {limit}{self.line_in(dump)}"

    def set_must_fail_apart(self):
        """Takes the tests that must fail out of the outcomes. If a test of the task passed and one
        of them did not fail, the student's code has changed how tests are run."""
        if not self.must_fail:
            return
        apart = {test for test in self.tests if test.startswith(self.must_fail)}
        failed = {test for test, how, _ in self.outcomes if how == "failed"}
        self.outcomes = [outcome for outcome in self.outcomes if outcome[0] not in apart]
        self.tests = {test: told for test, told in self.tests.items() if test not in apart}
        some_passed = any(how == "passed" for _, how, _ in self.outcomes)
        if some_passed and (not apart or apart - failed) and not self.changed:
            self.changed = ["during the tests", "tests that must fail did not"]

    def line_in(self, dump):
        """Where a dumped stack was: the innermost line in a student's file, else in the tree."""
        lines = re.findall(r'File "(.+)", line (\d+) in (\S+)', dump)
        inside = [(Path(file).relative_to(self.folder), number, name)
                  for file, number, name in lines if Path(file).is_relative_to(self.folder)]
        where = [line for line in inside if str(line[0]) in self.theirs] or inside
        return "".join(f": {file}, line {number}, in {name}" for file, number, name in where[:1])

    @property
    def passed(self):
        """Every test passed, there was one, and nothing else was touched."""
        return (bool(self.outcomes) and not self.changed
                and all(how == "passed" for _, how, _ in self.outcomes))

    @property
    def names(self):
        """The tests of which the run reports."""
        return sorted(test for test, _, _ in self.outcomes or ())


def run_all(runs, seconds, at_once):
    """Runs all, so many at once; each is ended, with what it started, after so many seconds of
    computing, whatever else the machine does."""
    waiting, running = list(reversed(runs)), {}
    bar = tqdm(total=len(runs), desc="runs of tests", leave=False, disable=None)
    with bar, tempfile.TemporaryDirectory(prefix="course-") as folder:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    run = waiting.pop()
                    place = Path(tempfile.mkdtemp(dir=folder)).resolve()
                    child = run.start(place, seconds)
                    running[child] = run, place, time.monotonic() + PATIENCE * seconds + GRACE
                ended = ask_server()
                for child, (run, place, deadline) in list(running.items()):
                    if child in ended or time.monotonic() > deadline:
                        kill_group(child)
                        run.finish(seconds)
                        shutil.rmtree(place, ignore_errors=True)  # no later run finds it
                        del running[child]
                        bar.update()
                time.sleep(0.02)
        finally:
            for child in running:
                kill_group(child)


def kill_group(child):
    """Ends a run and everything it started."""
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it had ended by itself, and left nothing behind
