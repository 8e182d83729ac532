"""Points of a student's tree, task by task: `pytest --task K` by our tests, on our terms.

A task is graded in our own tree with one of our files exchanged for the student's, so its tests
are ours, no conftest or setting of the student's is ever read, and a file that does not even
import costs only its own tasks. Hypothesis draws 200 examples, the same for everyone. Property
tests must pass on our code; each mutant of the part (course/mutants) they fail on is a share of
the points. Every run is a process group of its own, killed when its time is up.

A student's code runs with your rights: grade inside a container. Needs fork (Linux, macOS).

    python course/grade.py ../students/* --json points.json
"""
import argparse
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

# imported once here, inherited by every run: a fork takes milliseconds, these take seconds
import hypothesis
import hypothesis.internal.conjecture.engine as engine
import numpy  # noqa: F401
import pytest
import safetensors.torch  # noqa: F401
import sympy  # noqa: F401
import tokenizers  # noqa: F401
import torch  # noqa: F401
from ablation import check_ablation
from make_assignment import COURSE, ROOT, properties_file, read_tasks, tomllib

import cli  # noqa: E402 - make_assignment found it
from parts.files import InputError, write_json  # noqa: E402

EXAMPLE = re.compile("(?:Falsifying example|Failing test case): ")  # words of Hypothesis
# what a tree needs for the tests of the tasks
OURS = ("*.py", "tests/*.py", "demo/*.py", "extras/*.py", "parts/*.py")


# ---- mutants ----

@dataclass(frozen=True)
class Mutant:
    """A planted mistake: in file, the text old, which stands there once, becomes new."""
    name: str
    part: str
    mistake: str
    file: str
    old: str
    new: str

    def apply(self, source):
        if source.count(self.old) != 1:
            raise InputError(f"course/mutants/{self.name}.toml: its old text stands "
                             f"{source.count(self.old)} times in {self.file}, wanted 1")
        return source.replace(self.old, self.new)


def read_mutants(folder=COURSE / "mutants"):
    """All mutants, by name. The part they belong to is the first word of their file's name."""
    files = sorted(folder.glob("*.toml"))
    return [Mutant(file.stem, file.stem.split("-")[0], **tomllib.loads(file.read_text()))
            for file in files]


# ---- one run: a tree, and the tests of a task in it ----

@dataclass
class Run:
    """Tests run in a folder of their own. exchanged: {path: text} that differs from our tree.

    Afterwards, outcomes: [(test, "passed" | "failed" | ..., what it said)], None if the run was
    killed or ended itself; found: {test: (its task, whether Hypothesis drives it, its docstring)}.
    shrink: a failure is made small first, for a person to read.
    """
    exchanged: dict
    arguments: list
    profile: str = "grade"
    shrink: bool = False
    folder: Path = None
    outcomes: list = None
    found: dict = field(default_factory=dict)

    def start(self, folder):
        """Forks the run; returns its process id."""
        self.folder = folder
        for pattern in OURS:
            for file in ROOT.glob(pattern):
                place = folder / file.relative_to(ROOT)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, place)
        for file, text in self.exchanged.items():
            (folder / file).write_text(text)
        child = os.fork()
        if not child:
            run_pytest(folder, self.arguments, self.profile, self.shrink)
        return child

    def finish(self):
        """Reads what the run left and removes its folder."""
        if (self.folder / "outcomes.json").exists():
            self.outcomes, self.found = json.loads((self.folder / "outcomes.json").read_text())
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def passed(self):
        """Every test passed, and there was one."""
        return bool(self.outcomes) and all(how == "passed" for _, how, _ in self.outcomes)


class Recorder:
    """A pytest plugin that keeps every outcome."""

    def __init__(self, shrink):
        self.outcomes, self.found, self.shrink = [], {}, shrink

    def pytest_collection(self, session):
        if self.shrink:
            engine.MAX_SHRINKING_SECONDS = 5
            default = hypothesis.settings.default
            hypothesis.settings.register_profile(
                "shrinking", default, report_multiple_bugs=False,
                phases=(*default.phases, hypothesis.Phase.shrink))
            hypothesis.settings.load_profile("shrinking")

    def pytest_collection_finish(self, session):
        for item in session.items:
            mark = item.get_closest_marker("task")
            number = mark.args[0] if mark else None
            self.found[item.nodeid] = (number, hasattr(item.obj, "hypothesis"),
                                       item.obj.__doc__ or "")

    def pytest_collectreport(self, report):
        if report.failed:
            self.outcomes.append((report.nodeid, "failed", report.longreprtext[-4000:]))

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or not report.passed:
            self.outcomes.append((report.nodeid, report.outcome, report.longreprtext[-4000:]))


def run_pytest(folder, arguments, profile, shrink):
    """The child's side of a run: pytest in the folder, outcomes.json, and out."""
    os.setsid()
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    os.chdir(folder)
    os.environ["HYPOTHESIS_PROFILE"] = profile
    for name, module in list(sys.modules.items()):  # ours, which the tree has its own copies of
        if Path(getattr(module, "__file__", None) or "/").parent in (ROOT, COURSE):
            del sys.modules[name]
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() not in (ROOT, COURSE)]
    recorder = Recorder(shrink)
    try:
        pytest.main(["-p", "no:cacheprovider", "--hypothesis-seed=0", "--assert=plain",
                     "--tb=native", *arguments], plugins=[recorder])
        Path(folder, "outcomes.json").write_text(
            json.dumps([recorder.outcomes, recorder.found]))
    finally:
        os._exit(0)


def run_all(runs, seconds, at_once):
    """Runs all, so many at once; each is killed, with what it started, after so many seconds."""
    waiting, running = list(reversed(runs)), {}
    with tempfile.TemporaryDirectory(prefix="course-") as folder:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    run = waiting.pop()
                    place = Path(tempfile.mkdtemp(dir=folder)).resolve()
                    running[run.start(place)] = run, time.monotonic() + seconds
                for child, (run, deadline) in list(running.items()):
                    if time.monotonic() > deadline or os.waitpid(child, os.WNOHANG)[0]:
                        kill_group(child)
                        run.finish()
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


# ---- grading ----

def test_files(number):
    """Our test files with tests of a task."""
    return [str(file.relative_to(ROOT)) for file in sorted((ROOT / "tests").glob("test_*.py"))
            if f'task("{number}")' in file.read_text()]


class Grading:
    """One task of one student: the runs it takes, then its row of the report."""

    def __init__(self, task, student, mutants=(), profile="grade"):
        self.task, self.mutants, self.problem = task, mutants, ""
        try:
            self.runs = self.plan(Path(student), profile)
        except (OSError, UnicodeDecodeError) as error:
            self.runs, self.problem = [], f"cannot be read: {error}"

    def plan(self, student, profile):
        task = self.task
        if task.graded_by == "ablation":
            self.file = student / "course" / "ablation.json"
            return []
        if task.graded_by == "tests":
            changed = {f"{module}.py": (student / f"{module}.py").read_text()
                       for module, _ in task.functions}
            return [Run(changed, ["--task", task.number, *test_files(task.number)], profile,
                        shrink=True)]
        file = properties_file(task)
        mine = {file: (student / file).read_text()}
        mutated = [{m.file: m.apply((ROOT / m.file).read_text())} for m in self.mutants]
        return [Run(mine | change, [file], profile, shrink=not change)
                for change in [{}, *mutated]]

    def row(self):
        """{"points", "of", "says", ...} when all runs are done."""
        share, says, more = getattr(self, f"by_{self.task.graded_by}")()
        return {"title": self.task.title, "points": round(share * self.task.points, 1),
                "of": self.task.points, "says": self.problem or says, **more}

    def by_ablation(self):
        share, says = check_ablation(self.file)
        return share, says, {}

    def by_tests(self):
        if not self.runs:
            return 0, "", {}
        [run] = self.runs
        return float(run.passed), explain(run), {"tests": len(run.outcomes or ())}

    def by_properties(self):
        if not self.runs:
            return 0, "", {}
        plain, *mutated = self.runs
        properties = sum(is_property for _, is_property, _ in plain.found.values())
        if plain.outcomes is not None and not properties == len(plain.found) == 2:
            return 0, (f"wanted two property tests and nothing else, found {properties} and "
                       f"{len(plain.found) - properties}"), {}
        if not plain.passed:
            return 0, f"on right code: {explain(plain)}", {}
        alive = [m.name for m, run in zip(self.mutants, mutated) if run.passed]
        killed = len(self.mutants) - len(alive)
        return killed / len(self.mutants), f"{killed} of {len(self.mutants)} mutants killed", {
            "alive": alive}


def unwritten(said):
    """The numbers of the tasks whose NotImplementedError a test's output names."""
    return sorted(set(re.findall(r"NotImplementedError: task ([\d.]+):", said)))


def explain(run):
    """A line on how a run ended."""
    if run.outcomes is None:
        return "killed: it ran out of time, or ended the process"
    failed = [(name, text) for name, how, text in run.outcomes if how != "passed"]
    if not run.outcomes:
        return "no tests"
    if not failed:
        return f"{len(run.outcomes)} tests passed"
    name, text = min(failed, key=lambda one: not EXAMPLE.search(one[1]))
    numbers = unwritten(text)
    reason = f"not written yet ({', '.join(numbers)})" if numbers else why(run, name, text)
    return f"{len(failed)} of {len(run.outcomes)} tests failed; {reason}"


def why(run, name, text):
    """What a failed test exists to catch (its docstring), the smallest example that Hypothesis
    found, and the error."""
    said, *example = EXAMPLE.split(text, maxsplit=1)
    example = " ".join(re.sub(r"(?s),?\n\s*\).*", ")", "".join(example)).split())
    error = [line for line in said.splitlines()
             if re.match(r"\w[\w.]*(Error|Exception|Failed|Exit|Interrupt)\b", line)]
    return "; ".join(filter(None, [
        name.split("::")[-1], " ".join(run.found.get(name, ["", "", ""])[2].split()),
        example and f"smallest example: {example}", " ".join(error[-1:])[:200]]))


def grade(students, numbers=None, seconds=60, at_once=2, profile="grade"):
    """[{"student", "points", "of", "tasks": {number: row}}] of several trees.

    numbers: only these tasks; seconds: of each run; profile: of Hypothesis.
    """
    tasks, mutants, graded = read_tasks(), read_mutants(), []
    for student in students:
        graded.append([Grading(task, student, [m for m in mutants if m.part == task.part], profile)
                       for task in tasks.values() if not numbers or task.number in numbers])
    run_all([run for one in graded for g in one for run in g.runs], seconds, at_once)
    reports = []
    for student, one in zip(students, graded):
        rows = {g.task.number: g.row() for g in one}
        reports.append({"student": str(student), "points": sum(r["points"] for r in rows.values()),
                        "of": sum(r["of"] for r in rows.values()), "tasks": rows})
    return reports


def print_report(report):
    print(f"\n{report['student']}: {report['points']:g} of {report['of']} points")
    for number, row in report["tasks"].items():
        alive = f"; alive: {', '.join(row['alive'])}" if row.get("alive") else ""
        print(f"  {number:<5}{row['title']:<34}{row['points']:>5g} /{row['of']:>2}  "
              f"{row['says']}{alive}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("students", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--task", nargs="+", metavar="K", help="grade only these tasks")
    parser.add_argument("--seconds", type=float, default=60, help="time of a run (default: 60)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once (default: 2)")
    parser.add_argument("--profile", choices=("quick", "grade"), default="grade",
                        help="examples per property test: 25 or 200 (default: grade)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the reports there too")
    args = parser.parse_args(argv)
    students = [path for path in args.students if (path / "mcts.py").is_file()]
    for path in args.students:
        if path not in students:
            print(f"skipped: {path} is no tree of a student")
    if not students:
        raise InputError(f"{args.students[0]}: none of {len(args.students)} is a student's tree")
    reports = grade(students, args.task, args.seconds, args.jobs, args.profile)
    for report in reports:
        print_report(report)
    if args.json:
        write_json(args.json, reports)


if __name__ == "__main__":
    cli.run(main)
