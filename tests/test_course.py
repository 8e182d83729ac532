"""The course proves itself: the tasks stand alone, the mutants die, the grader cannot be fooled.

`python course/prove.py --thorough` proves the same with all tests in every tree, in minutes.
"""
import ast
import doctest
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COURSE = ROOT / "course"
sys.path.insert(0, str(COURSE))

from ablation import check_ablation, figures, problems  # noqa: E402
from make_assignment import SECRET, blank, blanked_files, read_tasks, write_tree  # noqa: E402

from parts.files import InputError  # noqa: E402

TASKS = read_tasks()
WRITTEN = [k for k, task in TASKS.items() if task.functions]


# ---- the student's tree ----

@pytest.fixture(scope="module")
def assignment(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("course") / "assignment", TASKS)


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
        ours, theirs = (ROOT / file).read_text(), (assignment / file).read_text()
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
                 "demo/model/config.json", "course/README.md", "course/tasks.toml",
                 "course/ablation.py", *(f"course/{task.handout}" for task in TASKS.values())):
        assert (assignment / name).is_file(), name
    assert not any((assignment / name).exists() for name in SECRET | {".git", ".venv"})
    for task in TASKS.values():
        if task.graded_by == "properties":
            text = (assignment / f"tests/test_properties_{task.part}.py").read_text()
            assert "def test_" not in text and f'mark.task("{task.number}")' in text


def test_kept_tasks_are_the_only_ones_solved():
    """Catches --keep that keeps a whole file."""
    changed = blanked_files(TASKS, keep=["2.3"])
    assert functions(changed["mcts.py"])["score"] == functions(
        (ROOT / "mcts.py").read_text())["score"]
    assert "task 2.4" in changed["mcts.py"] and "task 2.3" not in changed["mcts.py"]


@pytest.mark.parametrize("name, words", [
    ("mcts.nothing", "missing"), ("mcts.Node.nothing", "missing"), ("mcts.Node", "not a function"),
    ("nothing.score", "No such file"), ("test_me.inner.deep", "missing"),
    ("train.features.watched", "nested")])
def test_names_that_cannot_be_blanked_are_refused(tmp_path, name, words):
    """Catches a task that silently blanks nothing."""
    row = f'["1.1"]\ntitle = "t"\npoints = 1\nhandout = "h"\nfunctions = ["{name}"]\n'
    (tmp_path / "tasks.toml").write_text(row)
    with pytest.raises(InputError, match=words if "test_me" not in name else "No such file"):
        blanked_files(read_tasks(tmp_path / "tasks.toml"))


def test_a_function_listed_twice_is_refused(tmp_path):
    """Catches two tasks with one function, where no tree could restore one alone."""
    row = 'title = "t"\npoints = 1\nhandout = "h"\nfunctions = ["mcts.score"]\n'
    (tmp_path / "tasks.toml").write_text(f'["1.1"]\n{row}["1.2"]\n{row}')
    with pytest.raises(InputError, match="mcts.score is listed twice, in tasks 1.1 and 1.2"):
        read_tasks(tmp_path / "tasks.toml")


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
    (tmp_path / "mine.py").write_text("work")
    with pytest.raises(InputError, match="not empty"):
        write_tree(tmp_path, TASKS)
    with pytest.raises(InputError, match="outside the project"):
        write_tree(ROOT / "course" / "out", TASKS)


# ---- handouts ----

@pytest.mark.parametrize("number", TASKS)
def test_a_handout_is_complete_and_its_example_true(number):
    """Catches an example worked out for other code, and a handout without its command."""
    task = TASKS[number]
    file = COURSE / task.handout
    text = file.read_text()
    for heading in ("Goal", "Equation", "On paper first", "Deliver", "Command", "Account for it",
                    "Hint"):
        assert f"**{heading}.**" in text
    assert "CPU time: " in text and f"({task.points} point" in text
    found = doctest.testfile(str(file), module_relative=False)
    assert found.attempted and not found.failed


# ---- the proof, and the grader ----

def python(*arguments):
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, text=True,
                          capture_output=True)


def test_every_task_stands_alone_and_every_mutant_is_killed():
    """The claims are listed at the top of course/prove.py."""
    done = python(COURSE / "prove.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\ntrue  task ") == len(WRITTEN) and "FALSE" not in done.stdout


CHEAT = "import sys; sys.exit('the conftest of a student was imported')\n"


@pytest.fixture(scope="module")
def graded(assignment, tmp_path_factory):
    """{task: row} of a student who hangs, exits, breaks a file and brings other tests."""
    student = tmp_path_factory.mktemp("student") / "tree"
    shutil.copytree(assignment, student)
    text = (student / "mcts.py").read_text()
    for number, body in (("2.5", "while True: pass"), ("2.3", "__import__('os')._exit(0)")):
        stop = f'raise NotImplementedError("{TASKS[number].message}")'
        assert stop in text
        text = text.replace(stop, body)
    (student / "mcts.py").write_text(text)
    (student / "drllm.py").write_text("this is no Python")
    shutil.copy(ROOT / "choose.py", student)
    for name in ("conftest.py", "tests/conftest.py", "sitecustomize.py"):
        (student / name).write_text(CHEAT)
    (student / "tests/test_parts.py").write_text("def test_nothing():\n    pass\n")
    one = "from hypothesis import given, strategies as st\n\n\n@given(st.integers())\n"
    false = ("def test_a(n):\n    assert n < 0\n\n\n"
             "@given(st.integers())\ndef test_b(n):\n    pass\n")
    (student / "tests/test_properties_5.py").write_text(one + false)
    (student / "tests/test_properties_3.py").write_text(one + "def test_a(n):\n    pass\n")
    out = student / "points.json"
    (student / "notes.txt").write_text("not a tree, and no reason to stop a class")
    done = python(COURSE / "grade.py", student / "notes.txt", student, "--seconds", 10,
                  "--json", out, "--task", "2.2", "2.3", "2.5", "3.2", "3.5", "4.2", "5.4")
    assert done.returncode == 0, done.stderr
    assert "3.2  the label the model is surest of" in done.stdout
    assert f"skipped: {student / 'notes.txt'} is no tree of a student" in done.stdout
    return json.loads(out.read_text())[0]["tasks"]


def test_a_task_that_hangs_or_ends_the_process_is_killed_alone(graded):
    for number in ("2.3", "2.5"):
        assert graded[number]["points"] == 0 and "killed" in graded[number]["says"]
    assert "not written yet (2.2)" in graded["2.2"]["says"]


def test_a_file_that_does_not_import_costs_only_its_own_tasks(graded):
    assert graded["4.2"]["points"] == 0 and graded["3.2"]["points"] == graded["3.2"]["of"]


def test_properties_that_fail_on_right_code_earn_nothing(graded):
    """A test that always fails kills every mutant."""
    says = graded["5.4"]["says"]
    assert graded["5.4"]["points"] == 0 and "on right code" in says
    assert says.endswith("test_a; smallest example: test_a( n=0); AssertionError")
    assert graded["3.5"]["points"] == 0 and "wanted two" in graded["3.5"]["says"]


def test_a_mutant_that_no_longer_applies_is_an_error():
    """Catches a refactoring that leaves a mutant without a mistake in it."""
    done = python("-c", "import sys; sys.path.insert(0, 'course'); import grade\n"
                        "grade.Mutant('m', '1', '', 'mcts.py', 'no such text', '').apply('x')")
    assert "stands 0 times in mcts.py, wanted 1" in done.stderr


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
    ({"baseline": [1] * 399}, "same questions"), ({"changed": [2] * 400}, "0..1")])
def test_an_ablation_that_contradicts_its_rewards_is_found_out(changes, words):
    [problem] = problems(report(**changes))
    assert words in problem


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"baseline": 3}', "not json",
                                  json.dumps(report(interval="wide"))])
def test_an_ablation_that_cannot_be_read_earns_nothing_and_raises_nothing(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    assert check_ablation(tmp_path / "a.json")[0] == 0.0
    assert check_ablation(tmp_path / "none.json")[0] == 0.0


def test_our_own_ablation_holds():
    assert check_ablation(COURSE / "ablation.json")[0] == 1.0
