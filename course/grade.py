"""Points of a student's tree, task by task: `pytest --task K` by our tests, on our terms.

A task is graded in our own tree with one of our files exchanged for the student's, so its tests
are ours, no conftest or setting of the student's is ever read, and a file that does not even
import costs only its own tasks. Hypothesis draws 200 examples, the same for everyone. Property
tests must pass on our code, also on the same code written differently; each mutant of the part
(course/mutants) they fail on is a share of the points. An ablation's answers are given again on a
sample. See watched.py for what is watched.

A student's code runs with your rights: grade inside a container. Needs fork (Linux, macOS).

    python course/grade.py ../students/* --json points.json --csv points.csv --feedback feedback
"""
import argparse
import ast
import csv
import functools
import io
import itertools
import keyword
import re
import secrets
import tokenize
from collections import Counter
from pathlib import Path

from ablation import NOISE, check_ablation
from make_assignment import (ROOT, blanked_files, find, project, properties_file, read_tasks,
                             split_mutants)
from rewrite import UNREADABLE, changed_beside, same_meaning
from runs import Run, run_all
from try_mutants import tomllib

import cli  # noqa: E402 - make_assignment found it
from label import digest  # noqa: E402
from storage.files import InputError, read_json, write_json  # noqa: E402

AGAIN = '''from course.ablation import asked_again


def test_again():
    """The rewards handed in must be those that the routes earn."""
    wrong, asked = asked_again({seed})
    assert wrong <= {noise} * asked, f"{{wrong}} of {{asked}} answers of the sample differ"
'''
MUST_FAIL = '''"""Whoever changes how tests are run or compared makes one of them pass."""
import math

import pytest
import torch
from hypothesis import given, strategies as st

pytestmark = pytest.mark.task("{number}")


def test_{token}_a():
    assert 1 == 2


def test_{token}_b():
    torch.testing.assert_close(torch.zeros(2), torch.ones(2))


def test_{token}_c():
    assert torch.equal(torch.zeros(2), torch.ones(2))


def test_{token}_d():
    assert 1.0 == pytest.approx(2.0) or math.isclose(1, 2)


@given(st.integers())
def test_{token}_e(n):
    assert n != n


def test_{token}_f():
    with pytest.raises(ValueError):
        pass
'''
CONTROLS = 2  # correct trees among the mutants
# names that no answer needs, and imports that an answer may add
INNER = {"tb_frame", "gi_frame", "cr_frame", "ag_frame", "f_back", "f_locals", "f_globals",
         "f_builtins", "_getframe", "walk_stack", "walk_tb"}
ODD = INNER | {
    "open", "exec", "eval", "getattr", "setattr", "vars", "globals", "locals", "reject",
    "current_build_context", "internal", "attrgetter", "methodcaller", "get_type_hints",
    "Formatter", "get_field", "modules", "os", "sys", "gc", "io", "inspect", "importlib",
    "builtins", "ctypes", "shutil", "pathlib", "subprocess", "runpy", "pickle", "serialization",
    # what could remember something between two runs
    "from_file", "fromfile", "tofile", "memmap", "save", "load", "touch", "importorskip",
    "rootpath", "prlimit"}
# pytest and Hypothesis are not among them: where they are needed, our own file imports them, too
HARMLESS = {"__future__", "bisect", "collections", "copy", "dataclasses", "decimal", "fractions",
            "functools", "heapq", "itertools", "math", "numpy", "operator", "random", "re",
            "statistics", "string", "torch", "types", "typing", "warnings"}
MINE = ("course/my_ablation.py", "course/ablation.json")
EXAMPLE = re.compile("(?:Falsifying example|Failing test case): ")  # words of Hypothesis
FLAGS = {"changed": "changes what is not its own", "odd": "read it", "stopped": "stopped"}  # --csv
WORDS = 12  # tokens in a row that two submissions share
FALSE = "your test fails on our correct code: the property is not always true"
LONGEST_ERROR = 240  # characters


# ---- grading ----

class Course:
    """What everyone is graded by: tasks, texts and mutants of one variant."""

    def __init__(self, seed=None):
        self.texts, self.seed = project(seed), seed
        self.tasks = read_tasks(self.texts["course/assignments.toml"])
        self.samples, self.mutants = split_mutants(self.texts, self.tasks, seed)
        self.blank = self.texts | blanked_files(self.texts, self.tasks)
        self.tree = {name: text for name, text in self.texts.items() if name.endswith(".py")}
        # property tests could call ours, if they were there
        self.untested = {name: text for name, text in self.tree.items()
                         if not name.startswith("tests/test_")}
        self.collected = {}  # {task: the run that collects its tests from our own tree}

    @functools.cached_property
    def twin(self):
        """The tree without our tests, written differently; takes a second or two."""
        return self.untested | {
            name: same_meaning(text) for name, text in self.untested.items()
            if not name.startswith(("tests/", "course/", "demo/")) or name == "course/luck.py"}

    def files(self, task):
        """What is read of a student's tree for a task."""
        return {"tests": list(dict.fromkeys(f"{module}.py" for module, _ in task.functions)),
                "ablation": MINE, "properties": [properties_file(task)],
                "hand": ["course/essay.md"]}[task.graded_by]

    def test_files(self, number):
        """Our test files with tests of a task."""
        return [name for name, text in self.tree.items()
                if name.startswith("tests/test_") and f'task("{number}")' in text]

    def collect(self, number):
        """The run that says which tests a task has."""
        if number not in self.collected:
            arguments = ["--collect-only", "--task", number, *self.test_files(number)]
            self.collected[number] = Run(self.tree, arguments)
        return self.collected[number]

    def changed_beside(self, file, text):
        """What a student's file changes besides the functions of the tasks."""
        own = {name for task in self.tasks.values() for module, name in task.functions
               if f"{module}.py" == file}
        return changed_beside(text, self.texts[file], own)

    def foreign_names(self, student):
        """Functions of the tasks that a student's files, which have others, do not have."""
        missing = []
        for task in self.tasks.values():
            for module, name in task.functions:
                try:
                    tree = ast.parse(read_plain(student / f"{module}.py"))
                except (OSError, *UNREADABLE):
                    continue  # told by the task itself
                try:
                    find(tree, name)
                except ValueError:
                    missing.append(f"{module}.{name}")
        return missing

    def is_of_another_seed(self, student):
        """Whether a student has a function by the name that it has in another variant."""
        variants = tomllib.loads(self.texts["course/variants.toml"])["names"]
        other_names = {name: {own, *others} - {name} for own, others in variants.items()
                       for name in (own, *others)}
        renamed = [(module, name) for task in self.tasks.values()
                   for module, name in task.functions if name in other_names]
        found = [(name, functions_in(student / f"{module}.py")) for module, name in renamed]
        return any(name not in theirs and other_names[name] & theirs for name, theirs in found)


def functions_in(file):
    """The names of all functions in a file, if it can be read and parsed."""
    try:
        tree = ast.parse(read_plain(file))
    except (OSError, *UNREADABLE):
        return set()
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def read_plain(file):
    """The text of a student's file, as Python would read it; OSError for a link or a pipe, which
    may lead anywhere, and for another encoding, in which the text may say something else."""
    if file.exists() and (file.is_symlink() or not file.is_file()):
        raise OSError(f"{file.name} is no plain file")
    data = file.read_bytes()
    try:
        if file.suffix == ".py":
            encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
            if encoding not in ("utf-8", "utf-8-sig"):
                raise OSError(f"{file.name} names the encoding {encoding}, wanted UTF-8")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OSError(f"{file.name} is not UTF-8: {error.reason} at byte {error.start}") from error
    except SyntaxError as error:
        raise OSError(f"{file.name}: {error}") from error


class Grading:
    """One task of one student: the runs it takes, then its row of the report."""

    def __init__(self, course, task, student, profile="grade"):
        self.course, self.task, self.profile, self.problem = course, task, profile, ""
        self.mutants = [m for m in course.mutants if m.part == task.part]
        self.student, self.changed_text, self.shrunk = Path(student), [], None
        self.mutated, self.controls = [], []
        try:
            self.theirs = {name: read_plain(self.student / name) for name in course.files(task)}
            self.runs = getattr(self, f"plan_{task.graded_by}")()
        except OSError as error:
            self.problem = str(error)
            if isinstance(error, FileNotFoundError):
                self.problem = f"not handed in: {Path(error.filename).relative_to(self.student)}"
            self.runs = []

    # ---- what is run ----

    def run(self, tree, arguments, **more):
        return Run(tree | self.theirs, arguments, self.profile, tuple(self.theirs), **more)

    def plan_tests(self):
        for file, text in self.theirs.items():
            self.changed_text += [f"{file}, {name}"
                                  for name in self.course.changed_beside(file, text)]
        number, token = self.task.number, secrets.token_hex(4)
        must_fail = f"tests/test_{token}.py"
        tree = self.course.tree | {must_fail: MUST_FAIL.format(number=number, token=token)}
        tests = ["--task", number, *self.course.test_files(number), must_fail]
        return [self.run(tree, tests, shrink=True, must_fail=must_fail)]

    def plan_properties(self):
        """The tests on right code, twice: what they tell apart is what the code does."""
        return [self.run(tree, self.property_tests) for tree in
                (self.course.untested, self.course.twin)]

    @property
    def property_tests(self):
        """The arguments of every run of property tests: nothing tells one from another."""
        return ["-x", *self.theirs]

    def plan_ablation(self):
        again = AGAIN.format(seed=secrets.randbits(32), noise=NOISE)
        links = {f"course/{file.name}": file.resolve()
                 for file in (self.student / "course").glob("*.safetensors")}
        links |= {name: ROOT / name for name in ("demo/model", "demo/questions")}
        return [self.run(self.course.tree | {"tests/test_again.py": again},
                         ["tests/test_again.py"], links=links)]

    def plan_hand(self):
        return []

    def later_runs(self):
        """What the first runs decide: tests that pass are compared with ours by name; property
        tests that hold are run on every mutant, of others the smallest example is looked for."""
        if self.problem or self.task.graded_by not in ("tests", "properties"):
            return []
        if self.task.graded_by == "tests":
            ours = self.course.collect(self.task.number)
            return [ours] if self.runs[0].passed and ours.outcomes is None else []
        plain, twin = self.runs
        if plain.passed and twin.passed and len(plain.tests) == 2:
            return self.mutants_and_controls()
        if plain.outcomes and not plain.passed:
            self.shrunk = self.run(self.course.untested, list(self.theirs), shrink=True)
            return [self.shrunk]
        return []

    def mutants_and_controls(self):
        """A run on every mutant and, among them, some on correct code. Each tree is written in its
        own way, and their order is random: only what the code does tells them apart."""
        def rewritten(file, text):
            return self.run(self.course.twin | {file: same_meaning(text)}, self.property_tests)

        tree, chance = self.course.tree, secrets.SystemRandom()
        self.mutated = [rewritten(m.file, m.apply(tree[m.file])) for m in self.mutants]
        self.controls = [rewritten(m.file, tree[m.file])
                         for m in chance.choices(self.mutants, k=CONTROLS)]
        runs = self.mutated + self.controls
        chance.shuffle(runs)
        return runs

    # ---- what came of it ----

    def row(self):
        """{"points", "of", "says", ...} when all runs are done."""
        share, says, more = 0, self.problem, {}
        if not self.problem:
            share, says, more = getattr(self, f"by_{self.task.graded_by}")()
        runs = [*self.runs, *self.mutated, *self.controls]
        changed = next((run.changed for run in runs if run.changed), None)
        if self.changed_text and share:
            changed = ["in its text: what is given must stay as it is", *self.changed_text]
        if stopped := self.stopped():
            more = more | {"stopped": stopped}
        if changed:
            share, more = 0, more | {"changed": changed, "failed": []}
            says = f"CHANGES WHAT IS NOT ITS OWN: {', '.join(changed[1:4])} ({changed[0]})"
        elif command := self.command():
            more = more | {"see it": command}
        if odd := self.odd_names_of_files():
            more = more | {"odd": odd}
        return {"title": self.task.title, "points": round(share * self.task.points, 1),
                "of": self.task.points, "says": says, **more}

    def command(self):
        """What shows a student the failure that cost the task; None if no failure did."""
        if not self.runs or self.runs[0].passed:
            return None
        command = f"python -m pytest --task {self.task.number}"
        return {"tests": command, "properties": f"HYPOTHESIS_PROFILE=grade {command}",
                "ablation": "python course/ablation.py check"}[self.task.graded_by]

    def odd_names_of_files(self):
        """What a student's files name or import that no answer needs, and ours do not."""
        if self.problem:
            return []
        ours = {Path(file).parts[0].removesuffix(".py") for file in self.course.tree} | {"tiny"}
        return sorted({word for file, text in self.theirs.items() if file.endswith(".py")
                       for word in odd_names(text) - odd_names(self.course.texts.get(file, ""))
                       if word not in ours})  # a difference of Counters: named more often

    def stopped(self):
        """The number of runs that ended without a result. A mutant on which a test does not end
        is not counted: that is how the test notices it."""
        runs = [*self.runs, *(run for run in self.mutated if not run.hung)]
        if self.task.graded_by == "tests" and self.runs and self.runs[0].passed:
            runs.append(self.course.collect(self.task.number))
        return sum(run.outcomes is None for run in runs)

    def by_hand(self):
        text = self.theirs["course/essay.md"]
        return 0, f"to be read: {len(text.split())} words", {"by hand": True, "essay": digest(text)}

    def by_ablation(self):
        [run] = self.runs
        if run.files[MINE[1]] == self.course.texts[MINE[1]]:
            return 0, "our own ablation, as it is in the repository", {}
        share, says = check_ablation(self.student / "course" / "ablation.json")
        return (share, says, {}) if run.passed or not share else (0, explain(run)[0], {})

    def by_tests(self):
        [run] = self.runs
        says, *failed = explain(run)
        counts = {"tests": len(run.outcomes or ()), "failed": failed}
        ours = self.course.collect(self.task.number)
        if run.passed and ours.outcomes is None:
            return 0, f"our own tests: {explain(ours)[0]}", counts
        if run.passed and run.names != sorted(ours.tests):
            return 0, "the result is not that of our tests", counts
        return float(run.passed), says, counts

    def by_properties(self):
        plain, twin = self.runs
        if plain.outcomes and not plain.tests:
            return 0, explain(plain)[0], {}
        if plain.outcomes == []:
            return 0, f"not written yet ({self.task.number})", {}
        properties = sum(is_property for _, is_property, _ in plain.tests.values())
        if plain.outcomes is not None and not properties == len(plain.tests) == 2:
            return 0, (f"wanted two property tests and nothing else, found {properties} and "
                       f"{len(plain.tests) - properties}"), {}
        if not plain.passed:
            again = self.shrunk if self.shrunk and not self.shrunk.passed else plain
            says, *lines = explain(again)
            failed = [f"{FALSE}; {line}" for line in lines]
            return 0, f"on correct code: {says}", {"failed": failed}
        if plain.names != sorted(plain.tests):
            return 0, "on correct code: a test did not come to its end", {}
        if not twin.passed:
            return 0, (f"on the same code with other names: {explain(twin)[0]}; a property is one "
                       "of what code does, not of its text"), {}
        if not all(run.passed for run in self.controls):
            return 0, ("on correct code among the mutants a test failed that had passed before: it "
                       "does not look at what the code does"), {}
        alive = [m.name for m, run in zip(self.mutants, self.mutated) if not self.noticed(run)]
        noticed = len(self.mutants) - len(alive)
        return noticed / len(self.mutants), f"{noticed} of {len(self.mutants)} mutants noticed", {
            "alive": alive}

    def noticed(self, run):
        """Whether a mutant was noticed: one of the two tests failed, or did not end."""
        failed = {test for test, how, _ in run.outcomes or () if how == "failed"}
        return bool(run.hung or failed & {*self.runs[0].tests, *self.theirs})


def odd_names(text):
    """A Counter of names in Python text that no answer needs: those in ODD, attributes that begin
    with _ except those that it sets on self, modules that are not harmless, and names of Python's
    inner objects within text."""
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except UNREADABLE:
        return Counter()
    names, attributes, set_on_self, modules, parts, words = [], [], set(), [], [], []
    for node in nodes:
        if isinstance(node, ast.Name):
            names.append(node.id)
        elif isinstance(node, ast.Attribute):
            attributes.append(node.attr)
            if isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
                set_on_self.add(node.attr)
        elif isinstance(node, ast.MatchClass):  # `case object(f_back=x)` reads attributes, too
            attributes += node.kwd_attrs
        elif isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules.append(node.module or "")
            parts += [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words += re.findall(r"\w+", node.value)
    parts += [part for name in modules for part in name.split(".")]
    packages = [module.split(".")[0] for module in modules]
    return Counter([
        *(name for name in names + attributes + parts if name in ODD),
        *(name for name in attributes + parts if is_private(name, set_on_self)),
        *(name for name in names if name == "compile" or re.match("__(?!name__$)", name)),
        *(package for package in packages if package not in HARMLESS),
        *(word for word in words if word in INNER or re.fullmatch(r"__(?!main__)\w+__", word))])


def is_private(name, set_on_self):
    """Whether an attribute or a part of a module's name begins with _ and is not the text's own."""
    is_own = name in set_on_self and not name.startswith("__")
    return name.startswith("_") and not is_own and name not in ("__init__", "__future__")


def unwritten(said):
    """The numbers of the tasks whose NotImplementedError a test's output names."""
    return sorted(set(re.findall(r"NotImplementedError: task ([\d.]+):", said)))


def explain(run):
    """A line on how a run ended, then one on each test that failed: what it exists to catch, the
    smallest example that Hypothesis found, and the error."""
    if run.outcomes is None:
        return [run.hung or "killed: it ended the process, or could not be ended in time"]
    failed = [(test, report) for test, how, report in run.outcomes if how != "passed"]
    if not failed:
        return [f"all of {len(run.outcomes)} tests passed" if run.outcomes else "no tests"]
    lines = [explain_failure(run, test, report) for test, report in failed]
    return [f"{len(failed)} of {len(run.outcomes)} tests failed; {lines[0]}", *lines]


def explain_failure(run, test, report):
    """One line on a test that failed."""
    purpose = " ".join(run.tests.get(test, ["", "", ""])[2].split())
    name = "" if test in run.files else test.split("::")[-1]  # a file that could not be collected
    report, *example = EXAMPLE.split(report, maxsplit=1)
    example = " ".join(re.sub(r"(?s),?\n\s*\).*", ")", "".join(example)).split())
    numbers = unwritten(report)
    if numbers:
        parts = [name, purpose, f"not written yet ({', '.join(numbers)})"]
    else:
        parts = [name, purpose, example and f"smallest example: {example}", error_in(run, report)]
    return "; ".join(filter(None, parts))


def error_in(run, report):
    """The error of a failed test, with the student's line that raised it, if one did."""
    errors = [re.sub("^E +", "", line) for line in report.splitlines() if re.match(
        r"(E +)?\w[\w.]*(Error|Exception|Failed|Exit|Interrupt)\b", line)]
    asserted = re.findall(r'File ".*/tests/.*\n\s+(assert .*)', report)
    error = "; in: ".join(errors[-1:] + asserted[-1:])
    if missing := re.search(r"cannot import name '(\w+)' from '([\w.]+)'", error):
        name, file = missing[1], f"{missing[2].replace('.', '/')}.py"
        if file in run.theirs:
            return f"{file} has no function {name}; the handout gives its name"
    frames = re.findall(r'File "(.+?)", line (\d+)', report)
    theirs = [f"{file}, line {line}: " for path, line in frames[-1:] for file in run.theirs
              if path.endswith(f"/{file}") and not file.startswith("tests/")]
    return ("".join(theirs) + error)[:LONGEST_ERROR]


def grade(students, numbers=None, seconds=60, at_once=2, profile="grade", course=None):
    """[{"student", "points", "of", "tasks": {number: row}}] of several trees.

    numbers: only these tasks; seconds: of each run; profile: of Hypothesis.
    """
    course = course or Course()
    graded = [[Grading(course, task, student, profile) for task in course.tasks.values()
               if not numbers or task.number in numbers] for student in students]
    every = [task for report in graded for task in report]
    run_all([run for task in every for run in task.runs], seconds, at_once)
    later = {id(run): run for task in every for run in task.later_runs()}  # one of several trees
    run_all(list(later.values()), seconds, at_once)
    reports = []
    for student, one in zip(students, graded):
        rows = {g.task.number: g.row() for g in one}
        reports.append({"student": Path(student).resolve().name} | with_sums(rows))
    return reports


def with_sums(rows):
    """{"points", "of", "tasks"} of the rows of a report."""
    return {"points": round(sum(row["points"] for row in rows.values()), 1),
            "of": sum(row["of"] for row in rows.values()), "tasks": rows}


# ---- who wrote like whom? ----

def passages(text):
    """The runs of WORDS tokens in Python text, whatever its local names, comments and layout."""
    try:
        tree = ast.parse(text)
        plain_text = ast.unparse(tree)
    except UNREADABLE:
        return set()
    local = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and
             isinstance(n.ctx, ast.Store)} | {n.arg for n in ast.walk(tree)
                                              if isinstance(n, ast.arg)}
    words = ["_" if word in local and not keyword.iskeyword(word) else word
             for word in re.findall(r"\w+|[^\w\s]", plain_text)]
    return {tuple(words[n:n + WORDS]) for n in range(len(words) - WORDS + 1)}


def similarities(students, course):
    """[(share, one, other)] of the passages of the shorter that both wrote, the most alike first.
    Our own solution is one of them; what the blank tree has is nobody's."""
    names = sorted({name for task in course.tasks.values() for name in course.files(task)
                    if name.endswith(".py")})
    given, wrote = set().union(*(passages(course.blank[name]) for name in names)), {}
    for name, folder in [("(our own)", ROOT), *students.items()]:
        texts = [(Path(folder) / file).read_text("utf-8", errors="replace") for file in names
                 if (Path(folder) / file).is_file()]
        wrote[name] = set().union(*map(passages, texts)) - given
    return sorted(((len(wrote[a] & wrote[b]) / max(1, min(len(wrote[a]), len(wrote[b]))), a, b)
                   for a, b in itertools.combinations(wrote, 2)), reverse=True)


# ---- reports ----

def lines_of(report):
    """A report as text, a line a task."""
    yield f"{report['student']}: {report['points']:g} of {report['of']} points"
    for number, row in report["tasks"].items():
        alive = f"; alive: {', '.join(row['alive'])}" if row.get("alive") else ""
        odd = ""
        if row.get("odd") and row["points"]:
            odd = f"; READ IT, it names or imports {', '.join(row['odd'])}"
        yield (f"  {number:<5}{row['title']:<34}{row['points']:>5g} /{row['of']:>2}  "
               f"{row['says']}{alive}{odd}")


def told(row):
    """What a student is told of a task: a line per test that failed, and how to see it fail."""
    lines = row.get("failed") or [row["says"]]
    see = [f"see it: {row['see it']}"] if "see it" in row else []
    return [*{line.split("[")[0]: line for line in lines}.values(), *see]


def feedback(report):
    """A report for the student who wrote the tree; mutants stay unnamed, they may come again."""
    parts = [f"# {report['student']}: {report['points']:g} of {report['of']} points\n"]
    for number, row in report["tasks"].items():
        parts.append(f"\n**{number} {row['title']}**: {row['points']:g} of {row['of']}.")
        parts += [f"\n- {line}" for line in told(row)]
        parts.append("\n")
    return "".join(parts)


def class_rows(reports):
    """The rows of --csv: a head, what can be reached, and one per student; at the end of a row, the
    numbers of the tasks with each flag."""
    first = reports[0]["tasks"]
    numbers = list(first)
    yield ["student", "points", *numbers, *FLAGS.values()]
    yield ["(at most)", reports[0]["of"], *(first[k]["of"] for k in numbers), *[""] * len(FLAGS)]
    for report in reports:
        rows = report["tasks"]
        flagged = [" ".join(k for k in numbers if flag in rows[k]) for flag in FLAGS]
        yield [report["student"], report["points"], *(rows[k]["points"] for k in numbers), *flagged]


def write_class(reports, args):
    """What --csv, --feedback and --gradescope ask for."""
    if args.csv:
        with open(args.csv, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(class_rows(reports))
    if args.feedback:
        args.feedback.mkdir(parents=True, exist_ok=True)
        for report in reports:
            (args.feedback / f"{report['student']}.md").write_text(
                feedback(report), encoding="utf-8", errors="backslashreplace")
    if args.gradescope:
        [report] = reports
        write_json(args.gradescope, {"score": report["points"], "tests": [
            {"number": number, "name": row["title"], "score": row["points"],
             "max_score": row["of"], "output": "\n".join(told(row))}
            for number, row in report["tasks"].items()]})


def trees(paths, course):
    """{name: folder} of the paths that hold a student's tree; the others are named and left out."""
    found = {}
    for path in paths:
        wanted = [name for task in course.tasks.values() for name in course.files(task)]
        inner = [p for p in path.iterdir() if p.is_dir()] if path.is_dir() else []
        folder = next((p for p in (path, *inner) if any((p / n).is_file() for n in wanted)), None)
        name, above = path.resolve().name, path.resolve().parent.name
        name = f"{above}-{name}" if name in found else name  # bob/assignment after ann/assignment
        if not folder or name in found or folder in found.values():
            print(f"skipped: {path} is {'a second ' + name if folder else 'no tree of a student'}")
        else:
            found[name] = folder
    return found


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("students", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--task", nargs="+", metavar="K", help="grade only these tasks")
    parser.add_argument("--seed", type=int, help="the variant that was handed out")
    parser.add_argument("--seconds", type=float, default=60,
                        help="computing time of a run (default: 60)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once (default: 2)")
    parser.add_argument("--profile", choices=("quick", "grade"), default="grade",
                        help="examples per property test: 25 or 200 (default: grade)")
    parser.add_argument("--json", type=cli.file_or_folder, metavar="FILE",
                        help="the reports; those already in it, of the same files, are kept; "
                             "tasks whose runs were stopped are graded again if --seconds grew")
    parser.add_argument("--csv", type=cli.file_or_folder, metavar="FILE",
                        help="a row of points per student")
    parser.add_argument("--feedback", type=cli.file_or_folder, metavar="DIR",
                        help="NAME.md per student")
    parser.add_argument("--essays", type=cli.file_or_folder, metavar="FILE",
                        help='points that a reader gave, as {"NAME": 5, ...}')
    parser.add_argument("--gradescope", type=cli.file_or_folder, metavar="FILE",
                        help="results.json of a single student")
    return parser.parse_args(argv)


def chosen_tasks(wanted, tasks):
    """The numbers of the tasks named by themselves or by their part; None for all."""
    unknown = {*(wanted or ())} - {*tasks} - {task.part for task in tasks.values()}
    if unknown:
        raise InputError(f"--task {min(unknown)}: no task or part; there are {', '.join(tasks)}")
    return wanted and [k for k, task in tasks.items() if {k, task.part} & {*wanted}]


def made_from(folder, course, args):
    """Names all that a report on the tree in a folder is made from, the essay aside."""
    names = [file for task in course.tasks.values() if task.graded_by != "hand"
             for file in course.files(task)]
    names += [str(f.relative_to(folder)) for f in sorted(folder.glob("course/*.safetensors"))]
    texts = [(file, (folder / file).read_bytes().hex()) for file in names
             if (folder / file).is_file()]
    return digest(texts, course.tree, args.task, args.profile, args.seed)


def report_on(name, folder, kept, course, args):
    """The report on one tree: a kept one if the tree is as it was. Of that, the essay is looked at
    again (its points stay if it is the same), and tasks of which a run was stopped are graded again
    if there is more time."""
    key, options = made_from(folder, course, args), (args.seconds, args.jobs, args.profile, course)
    report = next((r for r in kept if r["student"] == name and r["key"] == key), None)
    if report is None:
        [report] = grade([folder], args.task, *options)
        return report | {"student": name, "key": key, "seconds": args.seconds}
    more_time = args.seconds > report["seconds"]
    numbers = [k for k, row in report["tasks"].items()
               if course.tasks[k].graded_by == "hand" or more_time and "stopped" in row]
    if numbers:
        [again] = grade([folder], numbers, *options)
        rows = report["tasks"]
        new = {k: row for k, row in again["tasks"].items()
               if "essay" not in row or row["essay"] != rows[k].get("essay")}
        report |= with_sums(rows | new)
    return report | {"seconds": max(args.seconds, report["seconds"])}


def check_seed(students, course):
    """Names the students whose trees lack functions; InputError if the seed must be wrong."""
    for name, folder in students.items():
        if missing := course.foreign_names(folder):
            print(f"is --seed that of these trees? {name} has no {', '.join(missing)}",
                  flush=True)
    if all(course.is_of_another_seed(folder) for folder in students.values()):
        given = "no --seed is given" if course.seed is None else f"--seed {course.seed}"
        raise InputError(f"{given}: the trees are of another one, by the names of their functions")


def read_essays(file, students, course):
    """{name: points} that a reader gave; InputError if they fit neither students nor points."""
    given = read_json(file)
    most = sum(task.points for task in course.tasks.values() if task.graded_by == "hand")
    for name, points in given.items():
        if name not in students:
            raise InputError(f"{file}: no student {name}; there are {', '.join(students)}")
        if not (students[name] / "course/essay.md").is_file():
            raise InputError(f"{file}: {name} handed in no essay")
        if type(points) not in (int, float) or not 0 <= points <= most:
            raise InputError(f"{file}: {name} has {points!r}, wanted a number from 0 to {most}")
    return given


def print_stopped(reports):
    """Says of how many runs the points are not certain."""
    stopped = sum(row.get("stopped", 0) for one in reports for row in one["tasks"].values())
    if stopped:
        print(f"{stopped} run{'s were' if stopped > 1 else ' was'} stopped; if the answer may only "
              "be slow, repeat with a larger --seconds")


def add_essay(report, points):
    """Puts the points that a reader gave into a report, if it has an essay."""
    for row in report["tasks"].values():
        if row.get("by hand"):
            report["points"] += points - row["points"]
            row |= {"points": points, "says": "read"}


def main(argv=None):
    args = parse_args(argv)
    course = Course(args.seed)
    students = trees(args.students, course)
    if not students:
        raise InputError(f"{args.students[0]}: none of {len(args.students)} paths is a student's "
                         "tree")
    args.task = chosen_tasks(args.task, course.tasks)
    for file in filter(None, (args.json, args.csv, args.gradescope)):
        if not file.parent.is_dir():
            raise InputError(f"{file}: there is no folder {file.parent}")
    if args.gradescope and len(students) != 1:
        raise InputError(f"{args.gradescope}: for one student; {len(students)} are given")
    check_seed(students, course)
    essays = read_essays(args.essays, students, course) if args.essays else {}
    kept = []
    if args.json and args.json.exists() and not (kept := read_json(args.json).get("reports")):
        raise InputError(f"{args.json}: holds no reports of this command; choose another file")
    reports = []
    for name, folder in students.items():
        report = report_on(name, folder, kept, course, args)
        if name in essays:
            add_essay(report, essays[name])
        reports.append(report)
        print(f"\n{chr(10).join(lines_of(report))}", flush=True)
        if args.json:  # at once: a class takes long
            made = {(one["student"], *one["tasks"]) for one in reports}
            rest = [r for r in kept if (r["student"], *r["tasks"]) not in made]
            write_json(args.json, {"reports": reports + rest})
    write_class(reports, args)
    print("\nshare of the shorter one's passages that both wrote, local names and layout aside:")
    for share, one, other in similarities(students, course)[:2 * len(students) + 10]:
        print(f"  {share:4.0%}  {one} and {other}")
    print_stopped(reports)


if __name__ == "__main__":
    cli.run(main)
