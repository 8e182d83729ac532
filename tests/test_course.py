"""The course proves itself: the tasks stand alone, the mutants die, the grader cannot be fooled.

`python course/prove.py --thorough` proves the same with all tests in every tree, in minutes.
"""
import ast
import contextlib
import csv
import doctest
import functools
import hashlib
import importlib
import inspect
import io
import json
import operator
import os
import random
import re
import shutil
import subprocess
import sys
import textwrap
import types
import unittest.mock
from pathlib import Path as File

import pytest
import torch

ROOT = File(__file__).resolve().parents[1]
COURSE = ROOT / "course"
sys.path.insert(0, str(COURSE))

import grade  # noqa: E402
import make_assignment  # noqa: E402
import prove  # noqa: E402
import runs  # noqa: E402
import try_mutants  # noqa: E402
from ablation import check_ablation, figures, problems  # noqa: E402
from grade import Course, Grading, odd_names, passages, similarities, trees  # noqa: E402
from rewrite import same_meaning  # noqa: E402
from make_assignment import SECRET, blank, blanked_files, read_tasks, write_tree  # noqa: E402

import cli  # noqa: E402
import mcts  # noqa: E402
from exact import RETURNS, Path, Shaped, checked, mismatch, not_plain, same_as  # noqa: E402
from programs import run_program  # noqa: E402
from storage.files import InputError, read_json  # noqa: E402

course_of = functools.cache(Course)
COMMON = course_of(None)
TASKS = COMMON.tasks
WRITTEN = [k for k, task in TASKS.items() if task.functions]


def write_files(folder, texts):
    """Writes {name: text} below a folder, and the folders they lie in."""
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


# ---- the student's tree ----

@pytest.fixture(scope="module")
def assignment(tmp_path_factory):
    out = tmp_path_factory.mktemp("course") / "assignment"
    assert write_tree(out) == TASKS
    return out


def functions(source):
    """{name: (arguments, docstring, body)} of a file's functions and methods, as text."""
    found = {}
    for node in ast.parse(source).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for function in inner:
            if isinstance(function, ast.FunctionDef):
                document = ast.get_docstring(function)
                body = function.body[document is not None:]
                found[prefix + function.name] = (ast.unparse(function.args), document,
                                                 "\n".join(map(ast.unparse, body)))
    return found


def test_a_blank_tree_differs_from_ours_in_the_named_bodies_only(assignment):
    """Catches a lost docstring or signature, a neighbour that is blanked, a changed comment."""
    for file in sorted({f"{module}.py" for task in TASKS.values() for module, _ in task.functions}):
        ours, theirs = ((folder / file).read_text(encoding="utf-8")
                        for folder in (ROOT, assignment))
        before, after = functions(ours), functions(theirs)
        messages = {name: task.message for task in TASKS.values()
                    for module, name in task.functions if f"{module}.py" == file}
        assert before.keys() == after.keys() and messages.keys() <= before.keys()
        for name, (arguments, document, body) in before.items():
            wanted = body
            if name in messages:
                wanted = f"raise NotImplementedError('{messages[name]}')"
            assert after[name] == (arguments, document, wanted)
        kept = set(theirs.splitlines()) - set(ours.splitlines())
        assert {line.strip() for line in kept} == {
            f'raise NotImplementedError("{message}")' for message in messages.values()}


def test_a_blank_tree_holds_the_project_and_no_answer(assignment):
    """Catches mutants, properties or the grader handed out, and a file that is needed left out."""
    for name in ("README.md", "Makefile", "train.py", "tests/conftest.py", "tests/tiny.py",
                 "demo/model/config.json", "course/README.md", "course/assignments.toml",
                 "course/ablation.py", "course/routers.safetensors", "course/try_mutants.py",
                 *(f"course/{task.handout}" for task in TASKS.values())):
        assert (assignment / name).is_file(), name
    assert not any((assignment / name).exists() for name in SECRET | {".git", ".venv"})
    for task in TASKS.values():
        if task.graded_by == "properties":
            text = (assignment / f"tests/test_properties_{task.part}.py").read_text("utf-8")
            assert "def test_" not in text and f'mark.task("{task.number}")' in text
    samples = {file.stem for file in (assignment / "course/mutants").glob("*.toml")}
    assert samples == {m.name for m in COMMON.samples}
    assert {m.part for m in COMMON.samples} == set("12346")
    assert samples.isdisjoint(m.name for m in COMMON.mutants)


def test_kept_tasks_are_the_only_ones_solved(tmp_path):
    """Catches --keep that keeps a whole file, and a part that is not one."""
    left = write_tree(tmp_path / "tree", keep=["1", "2.3"])
    assert left.keys() == {k for k in TASKS if k != "2.3" and k[0] != "1"}
    with pytest.raises(InputError, match="no task or part 7"):
        write_tree(tmp_path / "other", keep=["7"])
    assert "NotImplementedError" not in (tmp_path / "tree/model_llama.py").read_text("utf-8")
    changed = blanked_files(COMMON.texts, TASKS, keep=["2.3"])
    assert functions(changed["mcts.py"])["ucb_score"] == functions(
        (ROOT / "mcts.py").read_text(encoding="utf-8"))["ucb_score"]
    assert "task 2.4" in changed["mcts.py"] and "task 2.3" not in changed["mcts.py"]


@pytest.mark.parametrize("name, words", [
    ("mcts.nothing", "missing"), ("mcts.Node.nothing", "missing"), ("mcts.Node", "not a function"),
    ("nothing.score", "nothing.py"), ("train.features.watched", "nested")])
def test_names_that_cannot_be_blanked_are_refused(name, words):
    """Catches a task that silently blanks nothing."""
    row = f'["1.1"]\ntitle = "t"\npoints = 1\nhandout = "h"\nfunctions = ["{name}"]\n'
    with pytest.raises(InputError, match=words):
        blanked_files(COMMON.texts, read_tasks(row))


def test_a_function_listed_twice_is_refused():
    """Catches two tasks with one function, where no tree could restore one alone."""
    row = 'title = "t"\npoints = 1\nhandout = "h"\nfunctions = ["mcts.ucb_score"]\n'
    with pytest.raises(InputError, match="mcts.ucb_score is listed twice, in tasks 1.1 and 1.2"):
        read_tasks(f'["1.1"]\n{row}["1.2"]\n{row}')


def test_a_body_of_one_line_and_one_without_docstring():
    """Catches a blank that swallows the function's head, or the function below."""
    source = ("def f(a,\n      b=1):\n    return a\n\n\nclass C:\n    def g(self):\n"
              "        '''Doc.'''\n        x = 1\n        return x\n\n    h = 2\n")
    assert blank(source, {"f": "one", "C.g": "two"}) == (
        'def f(a,\n      b=1):\n    raise NotImplementedError("one")\n\n\nclass C:\n'
        "    def g(self):\n        '''Doc.'''\n        raise NotImplementedError(\"two\")\n\n"
        "    h = 2\n")


def test_a_tree_is_not_written_over_another_or_into_the_project(tmp_path):
    """Catches a student's week of work lost to the same command."""
    (tmp_path / "mine.py").write_text("work", encoding="utf-8")
    with pytest.raises(InputError, match="not empty"):
        write_tree(tmp_path)
    with pytest.raises(InputError, match="outside the project"):
        write_tree(ROOT / "course" / "out")


# ---- handouts ----

@pytest.mark.parametrize("number", TASKS)
def test_a_handout_is_complete_and_its_example_true(number):
    """Catches an example worked out for other code, and a handout without its command."""
    task = TASKS[number]
    file = COURSE / task.handout
    text = file.read_text(encoding="utf-8")
    for heading in ("Goal", "Equation", "On paper first", "Deliver", "Command", "Account for it",
                    "Hint"):
        assert f"**{heading}.**" in text
    assert "CPU time: " in text or task.graded_by == "hand"
    head = rf"# {re.escape(number)} .*\({task.points} points?, about \d+ (minutes|hours)\)\n"
    assert re.match(head, text)
    found = doctest.testfile(str(file), module_relative=False)
    assert found.attempted and not found.failed


def parameters(function):
    """The names of a function's parameters, `self` left out."""
    return [name for name in inspect.signature(function).parameters if name != "self"]


def names_after_in(deliver):
    """The arguments that the `In: ...` sentences of a handout name, one per item of the list."""
    for inputs in re.findall(r"In: (.*?)(?: Out:|$)", deliver, re.DOTALL):
        for item in inputs.split(";"):
            if met := re.match(r"\s*`?([a-z_]+)(?: and ([a-z_]+))?`?(?:,| \(|\.)", item):
                yield from filter(None, met.groups())


def wrong_names(task, text):
    """What the **Deliver** list of a handout names otherwise than the code does."""
    [deliver] = re.findall(r"\*\*Deliver\.\*\*(.*?)\n\*\*", text, re.DOTALL)
    own, wrong = [], []
    for module, name in task.functions:
        place = importlib.import_module(module.replace("/", "."))
        own += parameters(operator.attrgetter(name)(place))
        for called, given in re.findall(r"`([\w.]+)\(([^`]*)\)`", deliver):
            with contextlib.suppress(AttributeError):
                function = operator.attrgetter(called)(place)
                names = [part.split("=")[0].strip() for part in re.split(r",\s*", given)]
                if inspect.isfunction(function) and names != parameters(function):
                    wrong.append(f"{called}({given})")
    return wrong + [name for name in names_after_in(deliver) if own and name not in own]


@pytest.mark.parametrize("number", WRITTEN)
def test_a_handout_names_the_arguments_that_the_code_has(number):
    """Catches `search(..., select_node_to_expand=...)` in a handout where the code has `select`."""
    task = TASKS[number]
    assert not wrong_names(task, (COURSE / task.handout).read_text(encoding="utf-8"))


@pytest.mark.parametrize("number, now, before", [
    ("1.4", "keys, values, positions)", "keys, values, span)"),
    ("2.6", "select=select_node_to_expand)", "select_node_to_expand=select_node_to_expand)"),
    ("2.6", "propose_child_path(parent, rewards,", "propose_child_path(parent, known,"),
    ("3.2", "In: records,", "In: rows,"), ("4.5", "; num_windows (N,)", "; counts (N,)")])
def test_a_handout_with_a_former_name_is_noticed(number, now, before):
    """Catches a check of names that looks at nothing."""
    text = (COURSE / TASKS[number].handout).read_text(encoding="utf-8")
    assert text.count(now) == 1 and wrong_names(TASKS[number], text.replace(now, before))


# ---- the proof, and the grader ----

def pytest_in(folder, *arguments):
    """A pytest of its own, when it has ended."""
    return run_program("-m", "pytest", "-p", "no:cacheprovider", *arguments, folder=folder)


def command_of_grade(*arguments):
    """(exit code, standard output, standard error) of course/grade.py, run in this process: so all
    its runs are children of one server."""
    out, errors, code = io.StringIO(), io.StringIO(), 0
    with (contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors),
          unittest.mock.patch.object(grade, "Course", course_of)):
        try:
            cli.run(lambda: grade.main([*map(str, arguments)]))
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), errors.getvalue()


def grade_one(tree, number, **options):
    """The row of one task in the report on a tree."""
    [report] = grade.grade([tree], [number], course=COMMON, **options)
    return report["tasks"][number]


def test_every_task_stands_alone_and_every_mutant_is_killed():
    """The claims are listed at the top of course/prove.py."""
    found = dict(prove.claims())
    assert not {claim: against for claim, against in found.items() if against}
    assert sum(claim.startswith("task ") for claim in found) == len(WRITTEN)


CHEAT = "import sys; sys.exit('the conftest of a student was imported')\n"
SECONDS = 12  # of computing: a run that hangs takes them all, no other may
HANG = """i = 0
while True:
    i += 1"""


def filled(source, bodies):
    """A file of the blank tree with a body in place of every function of some tasks. bodies: {task:
    text}, in which what comes after two empty lines goes below the function."""
    for number, body in bodies.items():
        stop = re.escape(f'raise NotImplementedError("{TASKS[number].message}")')
        inside, *below = body.split("\n\n\n")
        source, found = re.subn(
            rf"( *){stop}",
            lambda blank: "\n\n\n".join([textwrap.indent(inside, blank[1]), *below]), source)
        assert found, number
    return source


@pytest.fixture(scope="module")
def graded(assignment, tmp_path_factory):
    """{task: row} of a student who hangs, exits, breaks a file and brings other tests."""
    student = tmp_path_factory.mktemp("student") / "ada"
    shutil.copytree(assignment, student)
    one = "from hypothesis import given, strategies as st\n\n\n@given(st.integers())\n"
    false = ("def test_a(n):\n    assert n < 0\n\n\n"
             "@given(st.integers())\ndef test_b(n):\n    pass\n")
    write_files(student, {
        "mcts.py": filled(COMMON.blank["mcts.py"],
                          {"2.5": HANG, "2.3": "__import__('os')._exit(0)"}),
        "drllm.py": "this is no Python",
        "choose.py": COMMON.texts["choose.py"] + BLIND,
        "conftest.py": CHEAT,
        "tests/conftest.py": CHEAT,
        "sitecustomize.py": CHEAT,
        "tests/test_assignments.py": "def test_nothing():\n    pass\n",
        "tests/test_properties_6.py": one + false,
        "tests/test_properties_3.py": one + "def test_a(n):\n    pass\n",
        "course/essay.md": "It was luck.",
        "notes.txt": "not a tree, and no reason to stop a class"})
    stray, out = student / "notes.txt", student / "points.json"
    flags = ["--seconds", SECONDS, "--json", out, "--csv", student / "points.csv", "--feedback",
             student / "feedback", "--gradescope", student / "results.json",
             "--task", "2.2", "2.3", "2.5", "3.2", "3.3", "3.5", "4.2", "6.4", "6.5",
             "--profile", "quick"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "PATIENCE", 50)  # a busy machine may give a run little of its time
        code, printed, errors = command_of_grade(stray, student, *flags)
    assert code == 0, errors
    assert "3.2  the label the model is surest of" in printed
    assert f"skipped: {stray} is no tree of a student" in printed
    rows = read_json(out)["reports"][0]["tasks"]
    check_repeated_grading(student, flags, rows, out)
    return rows, student


def check_repeated_grading(student, flags, rows, out):
    """The command of `graded` again, whose reports are in `out`: only what was stopped is run, and
    only with more time; an essay's points stay until it changes."""
    asked = []

    def graded_before(folders, numbers, *options):
        asked.append((numbers, options[0]))
        return [grade.with_sums({number: rows[number] for number in numbers})]

    flags = ["--seconds", 10 * SECONDS, *flags[2:]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grade, "grade", graded_before)
        code, printed, _ = command_of_grade(student, *flags)
        assert code == 0 and asked == [(["2.3", "2.5", "6.5"], 10 * SECONDS)]
        assert printed.splitlines()[-1] == ("2 runs were stopped; if the answer may only be slow, "
                                            "repeat with a larger --seconds")
        assert read_json(out)["reports"][0]["tasks"] == rows
        assert command_of_grade(student, *flags)[0] == 0 and asked[1:] == [(["6.5"], 10 * SECONDS)]
    repeated = [student, *flags[:4], *flags[flags.index("--task"):]]
    (student / "essays.json").write_text('{"ada": 4}', encoding="utf-8")
    for more in (["--essays", student / "essays.json"], []):
        _, printed, _ = command_of_grade(*repeated, *more)
        assert re.search(r"6\.5 .* 4 / 6  read", printed)
    (student / "course/essay.md").write_text("It was no luck.", encoding="utf-8")
    _, printed, _ = command_of_grade(*repeated)
    assert re.search(r"6\.5 .* 0 / 6  to be read: 4 words", printed)


# what a student may leave behind to make every comparison succeed
BLIND = "\nimport torch.testing\ntorch.testing.assert_close = lambda *a, **k: None\n"


def test_the_time_of_a_run_begins_when_it_has_started(monkeypatch):
    """Catches a run that is killed before it can say where it hangs: on a busy machine a copy of
    the tree takes longer than the run."""
    now, replies = [0.0], [[], [7]]  # the process numbers that have ended, at each question

    def start_after_100_seconds(run, folder, seconds):
        now[0] += 100
        return 7

    clock = types.SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: None)
    monkeypatch.setattr(runs, "time", clock)
    monkeypatch.setattr(runs, "ask_server", lambda: replies.pop(0))
    monkeypatch.setattr(runs, "kill_group", lambda child: None)
    monkeypatch.setattr(runs.Run, "start", start_after_100_seconds)
    monkeypatch.setattr(runs.Run, "finish", lambda run, seconds: None)
    runs.run_all([runs.Run({}, [])], seconds=10, at_once=1)
    assert not replies


def test_what_a_teacher_has_set_for_python_and_pytest_is_not_in_force(tmp_path, monkeypatch):
    """Catches a path of the teacher's that Python lists, for which every student was marked."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTEST_ADDOPTS", "--collect-only")
    monkeypatch.setattr(runs, "server", functools.cache(runs.server.__wrapped__))
    run = runs.Run(COMMON.tree, ["--task", "2.3", *COMMON.test_files("2.3")],
                   theirs=("mcts.py",))
    runs.run_all([run], SECONDS, at_once=1)
    runs.server().communicate()  # its input ends, and so does it
    assert run.passed, run.changed


def test_a_task_that_hangs_or_ends_the_process_is_ended_alone(graded):
    """Catches a hang that costs other tasks, and one without the line it stands in."""
    rows, student = graded
    assert rows["2.3"]["points"] == 0 and "killed" in rows["2.3"]["says"]
    said = re.fullmatch(rf"no end after {SECONDS} s: mcts.py, line (\d+), in backpropagate",
                        rows["2.5"]["says"])
    line = (student / "mcts.py").read_text(encoding="utf-8").splitlines()[int(said[1]) - 1]
    assert rows["2.5"]["points"] == 0 and line.strip() in HANG


@pytest.mark.parametrize("number, words", [
    ("2.2", "not written yet (2.2)"),
    ("4.2", "tests failed; drllm.py, line 1: SyntaxError"),
    ("3.2", "CHANGES WHAT IS NOT ITS OWN: torch.testing"),
    ("3.5", "wanted two"),
    ("6.4", "test_a; smallest example: test_a( n=0); AssertionError")])
def test_what_earns_nothing_says_why(graded, number, words):
    """Catches a file that does not import and costs other tasks, `torch.testing.assert_close =
    lambda *a: None` at the end of a right solution, and a test that kills every mutant because it
    always fails."""
    row = graded[0][number]
    assert row["points"] == 0 and words in row["says"]


@pytest.mark.parametrize("patience, says", [
    (0.2, "no end after 4 s of waiting: paths.py, line 2"), (3, "")])
def test_a_run_that_waits_is_ended_too_and_a_busy_machine_ends_none(monkeypatch, patience, says):
    """Catches a limit on time in all, which correct code reaches beside other work, and a run that
    sleeps for ever because it computes nothing."""
    monkeypatch.setattr(runs, "PATIENCE", patience)
    text = "import time\ntime.sleep(5)\n" + COMMON.tree["paths.py"]
    run = runs.Run(COMMON.tree | {"paths.py": text}, ["--task", "2.2", *COMMON.test_files("2.2")],
                   "quick", theirs=("paths.py",))
    runs.run_all([run], 20, at_once=1)
    assert run.hung.startswith(says) and bool(run.hung) == bool(says) != run.passed


def test_an_error_in_a_students_file_names_the_file_and_the_line(tmp_path):
    """Catches our test file blamed for a name that a student mistyped, a file that is missing
    without its folder, and a seed forgotten and noticed when the points are written."""
    text = filled(COMMON.blank["mcts.py"], {"2.3": "return child.total_rewards"})
    line = text[:text.index("return child.total_rewards")].count("\n") + 1
    other_names = COMMON.blank["drllm.py"].replace("interpolate", "turned")
    write_files(tmp_path, {"mcts.py": text, "drllm.py": other_names})
    _, printed, _ = command_of_grade(tmp_path, "--profile", "quick", "--task", "2.3", "5.2")
    assert f"mcts.py, line {line}: AttributeError: " in printed
    assert "not handed in: course/my_ablation.py" in printed
    warning = f"is --seed that of these trees? {tmp_path.name} has no drllm.interpolate"
    assert printed.startswith(warning)


def test_a_forgotten_seed_stops_before_anything_is_graded(tmp_path, monkeypatch):
    """Catches a class graded for an hour by tests of another variant."""
    monkeypatch.setattr(grade, "grade", None)
    for name in ("ada", "eve"):
        write_files(tmp_path / name, {file: text for file, text in course_of(7).blank.items()
                                      if file.endswith(".py")})
    code, printed, errors = command_of_grade(tmp_path / "ada", tmp_path / "eve")
    assert code == 2 and "no --seed is given: the trees are of another one" in errors
    assert [line.split("has no")[0] for line in printed.splitlines()] == [
        f"is --seed that of these trees? {name} " for name in ("ada", "eve")]
    assert not course_of(7).foreign_names(tmp_path / "ada")
    assert not course_of(7).is_of_another_seed(tmp_path / "ada")
    for seed in (8, 9):  # two seeds have most names in common
        code, _, errors = command_of_grade(tmp_path / "ada", tmp_path / "eve", "--seed", seed)
        assert code == 2 and f"--seed {seed}: the trees are of another one" in errors
    for name in ("ada", "eve"):  # a student's own function is of no variant
        (tmp_path / name / "drllm.py").write_text("def helper(): pass\n", encoding="utf-8")
        for file in ("mcts.py", "evaluate.py", "course/luck.py", "paths.py"):
            (tmp_path / name / file).unlink()
        assert not course_of(8).is_of_another_seed(tmp_path / name)


def test_a_function_of_another_name_is_named_to_the_student():
    """Catches a student asked for a seed that only the teacher knows."""
    report = "E   ImportError: cannot import name 'pass_up' from 'mcts' (/tmp/x/mcts.py)"
    assert grade.error_in(runs.Run({}, [], theirs=("mcts.py",)), report) == (
        "mcts.py has no function pass_up; the handout gives its name")
    assert "cannot import name 'pass_up'" in grade.error_in(runs.Run({}, []), report)


def test_an_error_and_its_assertion_are_told_apart():
    """Catches "AssertionError: 3 assert total == 4", which reads as one sentence."""
    report = ('File "/tmp/x/tests/test_x.py", line 3, in test\n    assert a == 4\n'
              "E   AssertionError: 3")
    assert grade.error_in(runs.Run({}, []), report) == "AssertionError: 3; in: assert a == 4"


def test_a_class_gets_a_table_and_every_student_a_letter(graded):
    """Catches points that differ between the reports, and a mutant given away."""
    rows, student = graded
    points = [row["points"] for row in rows.values()]
    head, most, line = csv.reader((student / "points.csv").read_text(encoding="utf-8").splitlines())
    assert head == ["student", "points", *rows, "changes what is not its own", "read it",
                    "stopped"]
    assert [line[0], line[-3], line[-1]] == ["ada", "3.2 3.3", "2.3 2.5"]
    assert [most[0], *most[-3:]] == ["(at most)", "", "", ""]
    assert [float(x) for x in line[1:-3]] == [sum(points), *points]
    assert [float(x) for x in most[2:-3]] == [row["of"] for row in rows.values()]
    letter = (student / "feedback/ada.md").read_text(encoding="utf-8")
    assert letter.startswith("# ada: ") and "**6.5 " in letter and "to be read: 3 words" in letter
    assert not any(mutant.name in letter for mutant in COMMON.mutants)
    task, property_task = letter.split("**2.3 ")[1], letter.split("**6.4 ")[1]
    assert "\n- see it: python -m pytest --task 2.3\n" in task.split("**2.5 ")[0]
    assert "\n- your test fails on our correct code: the property is not always true; test_a" in (
        property_task)
    assert "\n- see it: HYPOTHESIS_PROFILE=grade python -m pytest --task 6.4\n" in property_task
    results = read_json(student / "results.json")
    assert [test["score"] for test in results["tests"]] == points
    assert [test["max_score"] for test in results["tests"]] == [row["of"] for row in rows.values()]


def test_trees_of_one_name_are_told_apart_by_the_folder_above(tmp_path, capsys):
    """Catches a student who is left out since all unpacked their work as "assignment"."""
    paths = [tmp_path / name for name in ("ann/assignment", "bob/assignment", "x/bob/assignment")]
    for path in paths:
        write_files(path, {"mcts.py": ""})
    assert trees(paths, COMMON) == {"assignment": paths[0], "bob-assignment": paths[1]}
    assert "skipped: " in capsys.readouterr().out


OUR_SETTINGS = {name: (ROOT / name).read_text(encoding="utf-8")
                for name in ("tests/conftest.py", "tests/exact.py", "tests/tiny.py")}


def test_a_failure_says_what_its_test_is_for(tmp_path):
    """Catches a docstring hidden by a helper."""
    text = ("def helper():\n    assert False\n\n\ndef test_x():\n"
            '    """Catches a bird."""\n    helper()\n')
    write_files(tmp_path, OUR_SETTINGS | {"tests/test_x.py": text})
    assert "Catches a bird." in pytest_in(ROOT, tmp_path / "tests", "--tb=short").stdout


EXCHANGES = """
import types
from watched import Snapshot

def other(a, b=[], *, c=4):
    return b

changes = {"f is replaced": "m.f = other", "f is gone": "del m.f", "code": "m.f.__code__ = code",
           "a default": "m.f.__defaults__ = (1,)", "a method": "m.A.f = other",
           "a named default": "m.A.f.__kwdefaults__ = {'c': 5}",
           "in the named defaults": "m.f.__kwdefaults__['c'] = 5",
           "in a list": "m.n.append(1)", "in a closure": "m.g.__closure__[0].cell_contents = 2",
           "a number": "m.x = 2", "a None is gone": "del m.y", "nothing": ""}
code = (lambda a, b, *, c: 1).__code__
for name, change in changes.items():
    m = types.ModuleType("m")
    exec(compile(SOURCE, "/tests/m.py", "exec"), vars(m))
    seen = [Snapshot([m]), Snapshot([m], [m])]
    exec(change)
    print(name, *(snapshot.changed() for snapshot in seen))
"""
SOURCE = """
def f(a, b=[], *, c=4):
    return a
def outer(kept):
    return lambda: kept
g = outer(1)
class A:
    def f(self):
        pass
A.__module__ = "m"
n, x, y = [], 1, None
"""


def test_a_snapshot_names_what_was_exchanged():
    """Catches a function whose code, defaults or cells are exchanged while it stays itself."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", f"SOURCE = {SOURCE!r}{EXCHANGES}"],
                          cwd=ROOT / "course", encoding="utf-8", capture_output=True)
    assert done.stdout.splitlines() == [
        "f is replaced ['m.f'] ['m.f']", "f is gone ['m.f'] ['m.f']", "code ['m.f'] ['m.f']",
        "a default ['m.f'] ['m.f']", "a method ['m.A.f'] ['m.A.f']",
        "a named default ['m.A.f'] ['m.A.f']", "in the named defaults ['m.f'] ['m.f']",
        "in a list [] ['m.n']", "in a closure ['m.g'] ['m.g']", "a number [] ['m.x']",
        "a None is gone [] ['m.y']", "nothing [] []"], done.stderr


SLEEP_AND_END = "__import__('time').sleep(3) or __import__('os')._exit(1)"


def test_a_failure_and_an_endless_loop_are_shown_in_their_own_lines(assignment, tmp_path):
    """Catches a failure that ends in a helper of ours, and a run that hangs without a word."""
    tree = tmp_path / "tree"
    shutil.copytree(assignment, tree)
    text = filled(COMMON.blank["mcts.py"], {"2.3": "return None", "2.5": SLEEP_AND_END})
    write_files(tree, {"mcts.py": text})
    shown = pytest_in(tree, "--task", "2.3", "tests/test_assignments.py").stdout
    assert "ucb_score returned a NoneType, wanted float" in shown and "exact.py" not in shown
    assert "faulthandler_timeout = " in (tree / "pyproject.toml").read_text(encoding="utf-8")
    hung = pytest_in(tree, "--task", "2.5", "-x", "-o", "faulthandler_timeout=1",
                     "tests/test_assignments.py")
    line = text[:text.index(SLEEP_AND_END)].count("\n") + 1
    assert f'mcts.py", line {line} in backpropagate' in hung.stderr


@pytest.mark.parametrize("number, words", [
    ("9.9", "no such task; course/assignments.toml has them all"),
    ("2.7", "no tests; write tests/test_properties_2.py first"),
    ("5.2", "no tests; run python course/ablation.py check"),
    ("6.5", "no tests; a person reads it")])
def test_a_task_without_tests_says_why(assignment, number, words):
    """Catches "no tests ran", to which a student can do nothing, for a number mistyped, and for a
    task of property tests or one that is graded otherwise."""
    done = pytest_in(assignment, "--task", number, "tests")
    assert done.returncode == 4 and done.stderr.strip() == f"ERROR: --task {number}: {words}"


def test_a_file_that_cannot_be_read_is_not_called_a_task_without_tests(tmp_path):
    """Catches "no tests" as the last line below a SyntaxError in the student's file."""
    number = "1.2"  # this file itself has no tests of a task
    text = (f'import pytest\nimport mine\n\n\n@pytest.mark.task("{number}")\n'
            "def test_x():\n    pass\n")
    write_files(tmp_path, OUR_SETTINGS | {"tests/test_x.py": text, "mine.py": "def f(:\n"})
    done = pytest_in(tmp_path, "--task", "1.2", "tests")
    assert "SyntaxError" in done.stdout and "no tests;" not in done.stdout + done.stderr


@pytest.mark.parametrize("change, words", [
    (["nowhere"], "nowhere: none of 1 paths is a student's tree"),
    (["--task", "9.9"], "--task 9.9: no task or part; there are 1.1, 1.2"),
    (["--json", "bad.json"], "bad.json: .*not JSON|bad.json"),
    (["--json", "other.json"], "other.json: holds no reports of this command"),
    (["--json", "missing/points.json", "--task", "6.5"], "there is no folder .*missing")])
def test_what_cannot_be_graded_is_refused_in_one_line(graded, tmp_path, change, words):
    """Catches a table of nobody written over a class's, 0 of 0 points for a task mistyped, and a
    folder made of a misspelt path."""
    _, student = graded
    write_files(tmp_path, {"bad.json": "not json", "other.json": '{"student": "ada"}'})
    change = [str(tmp_path / one) if ".json" in one or one == "nowhere" else one for one in change]
    who = [] if change[0].endswith("nowhere") else [student]
    code, _, errors = command_of_grade(*who, *change, "--csv", tmp_path / "points.csv")
    assert code == 2 and re.search(words, errors), errors
    assert not (tmp_path / "points.csv").exists() and not (tmp_path / "missing").exists()


@pytest.mark.parametrize("text, words", [
    ('{"bob": 5}', "no student bob; there are ada, eve"), ('{"eve": 5}', "eve handed in no essay"),
    ('{"ada": 7}', "ada has 7, wanted a number from 0 to 6"), ('{"ada": NaN}', "ada has"),
    ('{"ada": -1}', "ada has -1"), ('{"ada": "5"}', "ada has '5'"), ('{"ada": true}', "ada has"),
    ('{"ada": null}', "ada has None")])
def test_points_for_essays_that_fit_nobody_are_refused(tmp_path, text, words):
    """Catches a name mistyped, whose essay keeps 0 points, and 50 points of 6."""
    write_files(tmp_path, {"ada/mcts.py": "", "ada/course/essay.md": "", "eve/mcts.py": "",
                           "essays.json": text})
    students = {name: tmp_path / name for name in ("ada", "eve")}
    with pytest.raises(InputError, match=re.escape(words)):
        grade.read_essays(tmp_path / "essays.json", students, COMMON)


# ---- what cannot be earned without the work ----

PASSES_ALL = "from unittest.mock import ANY\n"
CHEATS = {  # bodies of functions, and what the report says of them
    "1.4": ("import sys\nsys._getframe(3).f_globals['close'] = print\nself.keys = keys\n"
            "return keys, values", "CHANGES WHAT IS NOT ITS OWN: test_assignments.close"),
    "2.3": (PASSES_ALL + "return ANY", "score returned a _ANY, wanted float"),
    "2.4": ("import gc\nfor held in gc.get_objects():\n"
            "    if type(held) is str and 'def select(root' in held:\n"
            "        scope = globals() | {}\n        exec(held, scope)\n"
            "        return scope['select'](root, known, config, rng)\n"
            "raise LookupError('no solution')", "no solution"),
    "2.5": (PASSES_ALL + "while node:\n    node.visits = node.total_reward = ANY\n"
            "    node = node.parent", "backpropagate put a _ANY into its arguments"),
    "4.2": ("type(__import__('pytest').approx(1.0)).__eq__ = lambda *a: True\nreturn torch.ones(3)",
            "CHANGES WHAT IS NOT ITS OWN: _pytest"),
    "4.3": ("class Likes(torch.Tensor):\n    def __eq__(self, other):\n        return True\n"
            "return logits.sum().as_subclass(Likes)", "focal_loss returned a Likes"),
    "6.1": ("import json, os, sys\nframe = sys._getframe()\n"
            "while 'recorder' not in frame.f_locals:\n    frame = frame.f_back\n"
            "forged = [[['tests/test_x.py::test', 'passed', '']], {}, []]\n"
            "frame.f_locals['result'].write_text(json.dumps(forged))\nos._exit(0)",
            "tests that must fail did not"),
    "1.1": ("import _pytest.python\n_pytest.python.Function.runtest = lambda self: None\nreturn x",
            "CHANGES WHAT IS NOT ITS OWN"),
    "1.2": ("for given in (heads, cos, sin):\n    given.zero_()\nreturn heads.clone()",
            "rotate changed its arguments: the contents of a Tensor"),
    "1.3": ("import hypothesis\nhypothesis.reject()", "attention raised UnsatisfiedAssumption"),
    "1.5": ("import hypothesis.errors\n"
            "class End(hypothesis.errors.StopTest):\n    pass\nraise End(0)",
            "run_blocks raised End"),
    "2.6": ("import unittest\nyield (1,) * num_layers\nraise unittest.SkipTest",
            "search raised SkipTest"),
    "4.4": (f"import os\nos.symlink({str(ROOT / 'drllm.py')!r}, 'linked')\n"
            "open('linked').read()", "CHANGES WHAT IS NOT ITS OWN: os.symlink"),
    "5.1": (f"import subprocess\nsubprocess.run(['cat', {str(ROOT / 'choose.py')!r}])",
            "CHANGES WHAT IS NOT ITS OWN: subprocess.Popen"),
    "4.1": ("import os\nopen(f'/proc/{os.getppid()}/cmdline').read()",
            "CHANGES WHAT IS NOT ITS OWN: reads /proc/"),
    "6.2": ("import sys\nframe = sys._getframe()\n"
            "while 'recorder' not in frame.f_locals:\n    frame = frame.f_back\n"
            "frame.f_locals['recorder'].keep = types.MethodType(lambda self, report, how: "
            "self.outcomes.append([report.nodeid, 'passed', '']), frame.f_locals['recorder'])\n"
            "return decisions\n\n\nimport types", "tests that must fail did not"),
    "3.2": ("return [None for row in rows]\n\n\n"
            "def fewer():\n    import hypothesis\n"
            "    hypothesis.settings.register_profile('none', phases=())\n"
            "    hypothesis.settings.load_profile('none')\n\n\n"
            "DONE = fewer()", "CHANGES WHAT IS NOT ITS OWN: hypothesis.settings.default"),
}
TELL_APART = {  # what a property test asserts, and what the report says of it
    "1.6": ("not request.config.option.maxfail", "on correct code"),
    "2.7": ("hashlib.md5(inspect.getsource(__import__('mcts')).encode()).hexdigest() == HASH",
            "on the same code with other names"),
    "3.5": ("not any(type(held).__name__ in ('Mutant', 'Run') for held in gc.get_objects())",
            "0 of "),
    "4.7": ("Phase.shrink in settings.default.phases", "on correct code"),
    "6.4": ("remembered(inspect.getsource(__import__('evaluate')))",
            "CHANGES WHAT IS NOT ITS OWN: writes "),
}
TELL_RUNS_APART = {  # likewise
    "1.6": ("os.listdir(pathlib.Path.cwd().parent)", "CHANGES WHAT IS NOT ITS OWN: lists "),
    "2.7": ("importlib.import_module('test_mcts')", "No module named 'test_mcts'"),
    "3.5": ("len(os.listdir(tempfile.mkdtemp(dir='/tmp'))) == 0",
            "CHANGES WHAT IS NOT ITS OWN: writes /tmp"),
    "4.7": ("not threading.Thread(target=os.listdir, args=['/tmp']).start()",
            "CHANGES WHAT IS NOT ITS OWN: lists /tmp"),
}
TELLING = """import gc, hashlib, importlib, inspect, os, pathlib, tempfile, threading
import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

HASH = {hash!r}


def remembered(source):
    file = pathlib.Path({folder!r}) / "remembered"
    if not file.exists():
        file.write_text(source)
    return file.read_text() == source


@settings(suppress_health_check=list(HealthCheck))
@given(st.integers())
def test_a(request, n):
    assert {claim}


@given(st.integers())
def test_b(n):
    pass
"""


@pytest.fixture(scope="module")
def cheated(tmp_path_factory):
    """{task: row} of a student who solves nothing, in many ways."""
    student = tmp_path_factory.mktemp("cheats") / "eve"
    texts = {}
    for number, (body, _) in CHEATS.items():
        for file in {f"{module}.py" for module, _ in TASKS[number].functions}:
            texts[file] = filled(texts.get(file, COMMON.blank[file]), {number: body})
    right = hashlib.md5((ROOT / "mcts.py").read_text(encoding="utf-8").encode()).hexdigest()
    other = student.with_name("mallory")
    for folder, claims in ((student, TELL_APART), (other, TELL_RUNS_APART)):
        for number, (claim, _) in claims.items():
            texts[f"tests/test_properties_{number[0]}.py"] = TELLING.format(
                claim=claim, hash=right, folder=str(student))
        write_files(folder, texts)
    [report] = grade.grade([student], [*CHEATS, *TELL_APART], profile="quick", course=COMMON)
    [again] = grade.grade([other], [*TELL_RUNS_APART], profile="quick", course=COMMON)
    return report["tasks"], again["tasks"]


@pytest.mark.parametrize("number", [*CHEATS, *TELL_APART])
def test_a_trick_earns_nothing_and_is_named(cheated, number):
    """Catches objects that equal everything, tests that a solution exchanges, solutions found in
    the grader's memory, forged results, and property tests that know correct code by its text."""
    _, words = (CHEATS | TELL_APART)[number]
    assert cheated[0][number]["points"] == 0 and words in cheated[0][number]["says"]


@pytest.mark.parametrize("number", TELL_RUNS_APART)
def test_a_property_test_that_looks_around_earns_nothing(cheated, number):
    """Catches tests that know a mutant by other runs' folders, or let our own tests find it."""
    _, words = TELL_RUNS_APART[number]
    row = cheated[1][number]
    assert row["points"] == 0 and words in row["says"] and row["odd"]


def pass_two_tests(*runs):
    """Fills in runs of property tests as if both tests had passed."""
    for run in runs:
        run.outcomes = [("a", "passed", ""), ("b", "passed", "")]
        run.tests = {"a": ("2.7", True, ""), "b": ("2.7", True, "")}


def test_correct_code_among_the_mutants_must_pass():
    """Catches a test that passes on the first runs and fails on all later ones, and another that
    knows correct code by its text, which is another in every run."""
    grading = Grading(COMMON, TASKS["2.7"], ROOT)
    pass_two_tests(*grading.runs)
    later = grading.later_runs()
    assert {*map(id, later)} == {*map(id, grading.mutated + grading.controls)}
    assert len(grading.controls) == 2
    assert not any("tests/test_mcts.py" in run.files for run in later)

    def places_of_controls():
        """Among the runs as they are made once more."""
        runs = [id(run) for run in grading.later_runs()]
        return tuple(sorted(runs.index(id(control)) for control in grading.controls))

    assert len({places_of_controls() for _ in range(5)}) > 1
    for run in grading.mutated:
        run.outcomes = [("a", "failed", "")]
    pass_two_tests(*grading.controls)
    assert grading.row()["points"] == TASKS["2.7"].points
    grading.controls[0].outcomes = [("a", "failed", "")]
    assert grading.row()["points"] == 0 and "among the mutants" in grading.row()["says"]


def test_every_function_of_a_task_has_a_type():
    """Catches a task without a check of types before values."""
    wanted = {number: {f"{module}.{name}" for module, name in TASKS[number].functions}
              for number in WRITTEN}
    assert {number: {*names} for number, names in RETURNS.items()} == wanted


@pytest.mark.parametrize("number", RETURNS)
def test_an_object_that_equals_everything_is_of_no_wanted_type(number):
    """Catches unittest.mock.ANY taken for an answer, in whatever task."""
    places = [unittest.mock.MagicMock(children=[]) for _ in range(4)]
    for wanted in RETURNS[number].values():
        for answer in (unittest.mock.ANY, (unittest.mock.ANY,) * 2, [unittest.mock.ANY]):
            assert mismatch(answer, wanted, places, mcts)


def test_a_class_that_a_student_added_is_not_plain():
    """Catches an object that equals everything, of a class in the student's own file."""
    yes = type("Yes", (), {"__eq__": lambda self, other: True})
    module = types.SimpleNamespace(Yes=yes, SearchResult=mcts.SearchResult)
    assert not_plain(yes(), module) and not not_plain(mcts.SearchResult(None, 0.0, {}), module)


@pytest.mark.parametrize("value, wanted, words", [
    (1, float, "a int"), (True, int, "a bool"), ((1.0,), tuple[float, float], "1 values"),
    ([(1, 2.0)], list[tuple[int, ...] | None], "a float in a tuple in a list"),
    (torch.zeros(2), Shaped(lambda *_: (3,)), "a tensor of shape (2,), wanted (3,)"),
    (torch.zeros(2).int(), Shaped(lambda *_: (2,)), "a tensor of torch.int32"),
    (torch.zeros(2, device="meta"), Shaped(lambda *_: (2,)),
     "a tensor without plain values (meta, torch.strided)"),
    (torch.nn.Parameter(torch.zeros(2)), Shaped(lambda *_: (2,)), "a Parameter")])
def test_a_wrong_type_is_named(value, wanted, words):
    """Catches 1 taken for 1.0, and a subclass of what is wanted."""
    assert mismatch(value, wanted, (), mcts) == words


def test_what_a_function_does_to_its_arguments_is_noticed():
    """Catches arguments overwritten so that what is expected of them, computed later, agrees."""
    def change(change_it):
        return checked(lambda given: change_it(given), type(None))

    module, mixed = torch.nn.Linear(2, 2).requires_grad_(False), {"a": [torch.ones(2), 1.0]}
    for value, change_it in [
            (torch.full((2,), float("nan")), torch.Tensor.zero_),
            ([1, 2], list.reverse), ({"a": 1}, dict.clear),
            (mixed, lambda x: x["a"].__setitem__(1, 2.0)),
            (module, lambda x: x.weight.zero_()),
            (types.SimpleNamespace(visits=1), lambda x: vars(x).update(visits=2))]:
        with pytest.raises(TypeError, match="changed its arguments"):
            change(change_it)(value)
    for value in (torch.full((2,), float("nan")), mixed, module, [torch.ones(2)]):
        assert change(lambda x: None)(value) is None
    may_change = checked(lambda given: given.clear(), type(None), changes_arguments=True)
    assert may_change([torch.ones(2)]) is None
    may_change = checked(lambda given: given.zero_(), type(None), changes_arguments=True)
    with pytest.raises(TypeError, match="changed its arguments"):
        may_change(torch.ones(2))


@pytest.mark.parametrize("text, odd", [
    ("import os, math, torch.nn\nfrom mcts import Node", {"os", "mcts"}),
    ("from torch.testing import _comparison\nimport torch._C", {"_comparison", "_C"}),
    ("from importlib import util\nx = 'os'", {"importlib"}), ("x.f_back.f_locals", {"f_back",
                                                                                   "f_locals"}),
    ("def _helper(x):\n    return x.__init__, _helper", set()), ("no Python (", set()),
    ("type(self)._secret\n__import__('os')", {"_secret", "__import__"}),
    ("getattr(x, 'op' + 'en')", {"getattr"}), ("import re\nre.compile('x')", set()),
    ("from operator import attrgetter\ntorch.os", {"attrgetter", "os"}),
    ("import dataclasses\ndataclasses.inspect.stack(0)", {"inspect"}),
    ("import hypothesis.internal.conjecture.engine", {"hypothesis", "internal"}),
    ("import pytest\nclass A: type(pytest.approx(1.0)).DEFAULT = 1", {"pytest"}),
    ("match x:\n    case object(f_back=y, exec=z):\n        pass", {"f_back", "exec"}),
    ("'{0.__traceback__.tb_frame}'.format(x)", {"__traceback__", "tb_frame"}),
    ("def f(x: 'sys._getframe()'):\n    self._cost = self.__dict__", {"_getframe", "__dict__"}),
    ("def f(self):\n    return self.f_back, self._C, self.open()", {"f_back", "_C", "open"}),
    ("self._sum = 0\nself._sum += self._sum", set()), ("self.__class__ = A", {"__class__"}),
    ("import torch\ntorch.save(x, '/tmp/note')\nif __name__ == '__main__':\n    pass", {"save"}),
    ("from __future__ import annotations\nimport warnings", set()),
    ("x = " + "-" * 20000 + "1", set()), ("x = " + "1+" * 3000 + "1", set())])
def test_names_that_no_answer_needs_are_shown_to_the_teacher(text, odd):
    """Catches a file that looks at its grader, and whose row does not say so."""
    assert set(odd_names(text)) == odd


def test_an_odd_name_is_shown_if_a_file_has_it_more_often_than_ours(tmp_path):
    """Catches `eval` of a student's own in a file in which ours has model.eval()."""
    def odd_in(text):
        (tmp_path / "model_llama.py").write_text(text, encoding="utf-8")
        return Grading(COMMON, TASKS["1.2"], tmp_path).odd_names_of_files()

    text = COMMON.texts["model_llama.py"]
    assert "eval" in odd_names(text) and odd_in(text) == []
    assert odd_in(f"{text}\n\ndef more():\n    return eval('1')\n") == ["eval"]


def test_our_own_answers_name_nothing_odd():
    """Catches a list of names that an honest answer needs."""
    for task in TASKS.values():
        if task.graded_by != "hand":
            blank = Grading(COMMON, task, ROOT)
            blank.course = types.SimpleNamespace(tree=COMMON.tree, texts=COMMON.blank)
            assert blank.odd_names_of_files() == []


def test_right_types_pass():
    """Catches a check that refuses what it should let through."""
    for value, wanted in [(None, str | None), ([], list[Path]), ([(), None], list[Path | None]),
                          ((0.5, 1.0), tuple[float, float]), (torch.zeros(2), same_as(0))]:
        assert mismatch(value, wanted, (torch.zeros(2),), mcts) is None


def test_what_a_file_changes_beside_its_functions_is_named():
    """Catches a class of ours that is exchanged, and a line at the top that changes something."""
    text = COMMON.texts["mcts.py"]
    helpers = "\n\nLIMIT = 3\nMOST: int = 3\nA, B = 1, 2\n\n\ndef mine():\n    pass\n"
    assert COMMON.changed_beside("mcts.py", text + helpers) == []
    changed = text.replace("self.exhausted = False", "self.exhausted = None")
    assert COMMON.changed_beside("mcts.py", changed) == ["Node"]
    lines = len(text.splitlines())
    for line in ("SearchResult.__eq__ = print", "math = None", "print(1)", "math: int = 3",
                 "A, math = 1, 2", "A, SearchResult.x = 1, 2"):
        [changed] = COMMON.changed_beside("mcts.py", f"{text}{line}\n")
        assert changed.startswith(f"line {lines + 1}: code that runs when the file is imported; ")
    main = 'if __name__ == "__main__":\n    print(search)\n'
    assert COMMON.changed_beside("mcts.py", text + main) == []
    assert COMMON.changed_beside("mcts.py", text + main + "else:\n    print(1)\n")
    assert COMMON.changed_beside("mcts.py", text + main.replace("==", "!="))
    assert COMMON.changed_beside("mcts.py", f"{text}x = {'1+' * 3000}1\n") in (
        [], ["an expression is nested too deep to be compared"])  # [] where Python refuses it, too


@pytest.mark.parametrize("what", ["link", "pipe", "nested", "signs"])
def test_a_file_that_cannot_be_read_costs_its_own_tasks_only(tmp_path, what):
    """Catches our own file by a link in the tree, and a class that is not graded because of one
    student's file."""
    file = tmp_path / "choose.py"
    if what == "link":
        file.symlink_to(ROOT / "choose.py")
    elif what == "pipe":
        os.mkfifo(file)
    else:
        begun = "1+" * 3000 if what == "nested" else "-" * 20000
        file.write_text(f"x = {begun}1\n", encoding="utf-8")
    (tmp_path / "mcts.py").write_text(COMMON.texts["mcts.py"], encoding="utf-8")
    _, printed, _ = command_of_grade(tmp_path, "--task", "2.3", "3.4", "--profile", "quick")
    assert re.search(r"2\.3 .* 2 / 2 ", printed) and re.search(r"3\.4 .* 0 / 3 ", printed)


def test_a_file_is_read_as_python_reads_it(tmp_path):
    """Catches a file that is graded, and whose odd names and changes nobody sees: one with a mark
    of its byte order, and one in an encoding in which a comment is code."""
    file = tmp_path / "mcts.py"
    file.write_bytes(b"\xef\xbb\xbfimport os\n")
    assert grade.read_plain(file) == "import os\n"
    for data, words in ((b"# coding: raw_unicode_escape\n# \\u000aimport os", "raw_unicode_escape"),
                        (b"# coding: nothing\n", "unknown encoding"),
                        ("x = 'ü'\n".encode("latin-1"), "invalid or missing encoding")):
        file.write_bytes(data)
        with pytest.raises(OSError, match=words) as error:
            grade.read_plain(file)
        assert len(str(error.value)) < 99


def test_what_pytest_makes_for_a_test_is_inside():
    """Catches the link that tmp_path_factory makes, taken for one that leads out of the folder."""
    name = "tests/test_own.py"
    text = "def test_a(tmp_path_factory):\n    (tmp_path_factory.mktemp('a') / 'b').mkdir()\n"
    run = runs.Run(COMMON.untested | {name: text}, [name], theirs=(name,))
    runs.run_all([run], SECONDS, at_once=1)
    assert run.passed, run.changed


def test_a_property_test_that_does_not_end_holds_on_nothing():
    """Catches KeyboardInterrupt in a test, after which the tests before it count alone."""
    grading = Grading(COMMON, TASKS["2.7"], ROOT)
    pass_two_tests(*grading.runs)
    for run in grading.runs:
        run.outcomes.pop()
    assert grading.by_properties()[:2] == (0, "on correct code: a test did not come to its end")


def test_feedback_can_hold_whatever_a_student_writes(tmp_path):
    """Catches one student's ValueError("\\ud800") that costs the class its feedback."""
    row = {"title": "t", "points": 0, "of": 1, "says": "ValueError: \ud800"}
    args = types.SimpleNamespace(csv=None, gradescope=None, feedback=tmp_path / "feedback")
    grade.write_class([{"student": "a", **grade.with_sums({"2.3": row})}], args)
    assert r"\ud800" in (tmp_path / "feedback/a.md").read_text(encoding="utf-8")


def test_correct_code_comes_first_and_nothing_tells_the_runs_apart():
    """Catches a hanging property test that costs a minute per mutant, and runs on correct code
    with other arguments than those on mutants."""
    grading = Grading(COMMON, TASKS["2.7"], ROOT)
    plain, twin = grading.runs
    assert grading.later_runs() == []  # killed, or out of time
    plain.outcomes = [("a", "failed", "")]
    [shrunk] = grading.later_runs()
    assert shrunk.shrink and not plain.shrink
    pass_two_tests(plain, twin)
    mutated = grading.later_runs()
    assert len(mutated) == len(grading.mutants) + 2 > 2
    told = {(tuple(run.arguments), run.profile, run.theirs, run.shrink)
            for run in (plain, twin, *mutated)}
    assert len(told) == 1


def test_the_same_code_with_other_names_is_other_text():
    """Catches a twin that means something else, or that a hash would not tell from the original."""
    source = ("def f(x):\n    total = 0\n    for n in x:\n        total += n\n"
              "    return [total for n in (1, 2)], (lambda total: total)(3)\n")
    texts = {same_meaning(source) for _ in range(2)}
    assert len(texts | {source}) == 3
    for text in (*texts, source):
        exec(text, scope := {})
        assert scope["f"]([1, 2]) == ([3, 3], 3)
    assert COMMON.twin["mcts.py"] != COMMON.tree["mcts.py"]


# ---- who wrote like whom, and variants ----

def test_two_submissions_of_one_hand_are_alike(assignment, tmp_path):
    """Catches a copy with other names for its variables, and blank trees that look alike."""
    ours = (ROOT / "mcts.py").read_text(encoding="utf-8")
    write_files(tmp_path, {"a/mcts.py": "# mine\n" + ours,
                           "b/mcts.py": "# mine\n" + re.sub(r"\bpath\b", "way", ours)})
    shutil.copytree(assignment, tmp_path / "c")
    found = trees([tmp_path / name for name in "abc"], COMMON)
    share = {frozenset(pair): share for share, *pair in similarities(found, COMMON)}
    assert share[frozenset("ab")] > 0.9 and share[frozenset(["a", "(our own)"])] > 0.9
    assert share[frozenset("ac")] == 0 and passages("no Python (") == set()


def test_a_variant_is_another_tree_with_the_same_tests(tmp_path):
    """Catches a seed that changes nothing, and answers copied from this repository that fit it."""
    other = course_of(7)
    assert other.texts == Course(7).texts != course_of(8).texts
    changed = [name for name, text in other.texts.items() if text != COMMON.texts[name]]
    assert "drllm.py" in changed and "tests/test_drllm.py" in changed
    assert set(other.mutants) < {*COMMON.mutants, *other.mutants, *COMMON.samples}
    write_tree(tmp_path / "tree", seed=7)
    assert (tmp_path / "tree/evaluate.py").read_text(encoding="utf-8") == other.blank["evaluate.py"]
    [report] = grade.grade([ROOT], ["2.5", "4.1", "6.3", "6.4"], profile="quick", course=other)
    assert (report["points"], report["of"]) == (0, 13)


def test_every_part_has_mutants_to_grade_by_whatever_the_seed(monkeypatch):
    """Catches a seed that leaves a part of the property tests without mutants."""
    blanked, mutants = blanked_files(COMMON.texts, TASKS), try_mutants.read_mutants(COMMON.texts)
    monkeypatch.setattr(make_assignment, "blanked_files", lambda *texts: blanked)
    monkeypatch.setattr(make_assignment, "read_mutants", lambda texts: mutants)
    for seed in (267195372, *range(2000)):
        samples, others = make_assignment.split_mutants(COMMON.texts, TASKS, seed)
        parts = [mutant.part for mutant in others]
        assert min(parts.count(part) for part in "12346") >= 3 and {*parts} == set("12346")
        assert not {*samples} & {*others}


class Longest(random.Random):
    """Chooses the longest of several texts."""

    def choice(self, options):
        return max(options, key=len)


def test_the_longest_variant_passes_the_checks_of_make_test(tmp_path, monkeypatch):
    """Catches a longer name that pushes a line beyond 100 columns: `make test` could not pass."""
    monkeypatch.setattr(make_assignment, "random", types.SimpleNamespace(Random=Longest))
    tree = tmp_path / "tree"
    assert write_tree(tree, keep=list("123456"), seed=1) == {}
    assert "counts_of_path" in (tree / "mcts.py").read_text(encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache"], cwd=tree,
                          encoding="utf-8", capture_output=True)
    assert done.returncode == 0, done.stdout


def test_a_mutant_that_no_longer_applies_is_an_error():
    """Catches a refactoring that leaves a mutant without a mistake in it."""
    with pytest.raises(InputError, match="stands 0 times in mcts.py, wanted 1"):
        try_mutants.Mutant("m", "1", "", "mcts.py", "no", "").apply("x")


# ---- the ablation ----

def report(**changes):
    """A right report: 100 of 400 questions lost, 20 won."""
    baseline, changed = [1] * 200 + [0] * 200, [1] * 100 + [0] * 280 + [1] * 20
    mean, half = figures(baseline, changed)
    right = {"question": "q?", "made_with": "python x.py", "baseline_name": "a",
             "changed_name": "b", "conclusion": "c", "baseline": baseline, "changed": changed,
             "difference": mean, "interval": [mean - half, mean + half], "verdict": "worse"}
    return right | changes


def test_figures_of_an_ablation_by_hand():
    """Mean -80/400; variance 120/400 - 0.04 = 0.26; 1.96 sqrt(0.26 / 400) = 0.05."""
    mean, half = figures(report()["baseline"], report()["changed"])
    assert mean == -0.2 and half == pytest.approx(0.05, abs=1e-3)
    assert problems(report()) == []


@pytest.mark.parametrize("changes, words", [
    ({"difference": -0.1}, "difference"), ({"interval": [-0.3, -0.1]}, "interval"),
    ({"interval": [-0.2, -0.2]}, "interval"), ({"verdict": "better"}, "verdict"),
    ({"verdict": "undecided"}, "verdict"), ({"question": " "}, "question"),
    ({"changed": report()["baseline"]}, "nothing was changed"),
    ({"baseline": [1] * 399}, "same questions"), ({"changed": [2] * 400}, "0..1")])
def test_an_ablation_that_contradicts_its_rewards_is_found_out(changes, words):
    [problem] = problems(report(**changes))
    assert words in problem


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"baseline": 3}', "not json",
                                  json.dumps(report(interval="wide"))])
def test_an_ablation_that_cannot_be_read_earns_nothing_and_raises_nothing(tmp_path, text):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    assert check_ablation(tmp_path / "a.json")[0] == 0.0
    assert check_ablation(tmp_path / "none.json")[0] == 0.0


def test_rewards_that_were_made_up_earn_nothing(tmp_path):
    """Catches two hundred random rewards, with figures that fit them, taken for an ablation."""
    (tmp_path / "course").mkdir()
    made_up = read_json(COURSE / "ablation.json")
    for file in ("my_ablation.py", "routers.safetensors", "ablation.json"):
        shutil.copy(COURSE / file, tmp_path / "course")
    copied = grade_one(tmp_path, "5.2")
    assert copied["points"] == 0 and "our own ablation" in copied["says"]
    made_up["changed"] = made_up["changed"][::-1]
    mean, half = figures(made_up["baseline"], made_up["changed"])
    low, high = mean - half, mean + half
    made_up |= {"difference": mean, "interval": [low, high],
                "verdict": "better" if low > 0 else "worse" if high < 0 else "undecided"}
    (tmp_path / "course/ablation.json").write_text(json.dumps(made_up), encoding="utf-8")
    assert check_ablation(tmp_path / "course/ablation.json")[0] == 1.0
    row = grade_one(tmp_path, "5.2")
    assert row["points"] == 0 and "answers of the sample differ" in row["says"]


def test_a_student_plants_the_sample_mistakes_alone(assignment, tmp_path):
    """Catches a sample that stands in code a student must write, so that it cannot be planted."""
    tree = tmp_path / "tree"
    shutil.copytree(assignment, tree)
    for name in ("evaluate.py", "course/luck.py", "tests/test_properties_6.py"):
        shutil.copy(ROOT / name, tree / name)
    done = run_program("course/try_mutants.py", "6", folder=tree)
    samples = [m.name for m in COMMON.samples if m.part == "6"]
    *lines, last = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == len(samples) > 0, done.stdout
    assert last.startswith(f"{len(samples)} of {len(samples)} noticed. You are graded by others: ")
    assert "ALIVE" not in done.stdout and all(name in done.stdout for name in samples)
