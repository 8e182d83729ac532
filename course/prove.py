"""Proves the course on itself, a claim a line; exit code 1 if one does not hold.

    the properties that lie in tests/ pass on our code and kill every mutant of their part
    tests/test_choose.py and tests/test_recipe.py kill every mutant of the recipe
    the tests of a task fail on the wrong answers to it (wrong_answers.toml)
    the blank tree imports, and its tests fail with the number of their own task, no other
    with one task restored, all tests of that task pass

The last makes exactly one task green: the other tests of the blank tree stopped at a function
of their own task, before they could meet any other. --thorough runs them all in every tree
instead of arguing, tries all wrong answers instead of one per task (if one has ever passed), and
draws 200 examples in place of 25.

    python course/prove.py
    python course/prove.py --thorough --seed 518203746
"""
import argparse
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from grade import Course, explain, grade, unwritten
from make_assignment import ROOT, blank, blanked_files, write_tree
from runs import Run, run_all
from try_mutants import read_mutants, tomllib


def blank_tree(course, written, keep=(), number=None, profile="quick"):
    """The run of all tests of the written tasks (number: of one) where only some are solved."""
    files = {file for task in written for file in course.test_files(task)}
    chosen = ["--task", number] if number else ["-m", "task"]
    return Run(course.tree | blanked_files(course.texts, course.tasks, keep),
               [*chosen, *sorted(files)], profile)


def fails_with_its_own_number(run):
    """[tests of a blank tree that pass, or meet another task than their own]."""
    wrong = []
    for test, how, said in run.outcomes or [("the run", "killed", "")]:
        own = run.tests.get(test, [None])[0]
        met = unwritten(said)
        if how != "failed" or met != [own]:
            wrong.append(f"{test} of task {own}: {how} with {met}")
    return wrong


def errors_of_importing(seed):
    """What pytest says of files of a student's tree that it cannot collect, task numbers aside."""
    with tempfile.TemporaryDirectory(prefix="course-") as folder:
        tree = Path(folder) / "tree"
        write_tree(tree, seed=seed)
        done = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q",
                               "--collect-only"], cwd=tree, encoding="utf-8", capture_output=True)
    errors = [line for line in done.stdout.splitlines() if line.startswith("ERROR ")]
    if done.returncode not in (0, 2):  # 2: some file could not be collected
        errors += done.stderr.splitlines()[-1:]
    return [line for line in errors if not unwritten(line)]


def green(run):
    """The tasks all of whose tests passed."""
    tasks = {own for own, *_ in run.tests.values()}
    return tasks - {run.tests.get(test, [None])[0]  # a file that cannot be collected has no task
                    for test, how, _ in run.outcomes or () if how != "passed"}


def alive_in_the_recipe(course, at_once):
    """The mutants named recipe-... that no test of the recipe fails on."""
    files, runs = ["tests/test_recipe.py", "tests/test_choose.py"], {}
    for m in (m for m in read_mutants(course.texts) if m.part == "recipe"):
        likely = sorted(files, key=lambda file: m.file.split(".")[0] not in file)  # to end soon
        runs[m.name] = Run(course.tree | {m.file: m.apply(course.tree[m.file])},
                           ["-x", *likely], "quick")
    run_all(list(runs.values()), 120, at_once)
    return [name for name, run in runs.items()
            if not any(how == "failed" for _, how, _ in run.outcomes or ())]


def with_body(source, name, body):
    """The source with another body for a function."""
    lines = blank(source, {name: "here"}).splitlines(keepends=True)
    [place] = [n for n, line in enumerate(lines) if line.endswith('NotImplementedError("here")\n')]
    indent = lines[place][:-len(lines[place].lstrip())]
    lines[place] = textwrap.indent(body, indent)
    return "".join(lines)


def passing_wrong_answers(course, thorough, at_once, profile):
    """The wrong answers that pass the tests of their task."""
    runs = {}
    for number, answers in tomllib.loads(course.texts["course/wrong_answers.toml"]).items():
        files = {name: f"{module}.py" for module, name in course.tasks[number].functions}
        once_passed = [answer for answer in answers if answer.get("passed_once")]
        for answer in answers if thorough else once_passed[:1]:
            file = files[answer["function"]]
            text = with_body(course.tree[file], answer["function"], answer["body"])
            runs[f"{number}: {answer['mistake']}"] = Run(
                course.tree | {file: text},
                ["-x", "--task", number, *course.test_files(number)], profile)
    run_all(list(runs.values()), 30, at_once)  # some never end
    return [name for name, run in runs.items() if run.passed]


def full_marks(course, thorough, at_once, profile):
    """Yields the claims that our own solutions have all points, and our properties kill all."""
    written = [k for k, task in course.tasks.items() if task.graded_by == "tests"]
    others = [k for k, task in course.tasks.items() if task.graded_by not in ("tests", "hand")]
    course.mutants = read_mutants(course.texts)  # also those to try, and not drawn
    with tempfile.TemporaryDirectory(prefix="course-") as folder:
        for name, text in course.texts.items():  # the solution, in the variant of the course
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).write_text(text, encoding="utf-8")
        shutil.copy(ROOT / "course/routers.safetensors", Path(folder) / "course")
        with open(Path(folder) / "course/ablation.json", "a", encoding="utf-8") as ours:
            ours.write("\n")  # the repository's own text earns nothing
        [report] = grade([folder], written + others if thorough else others, at_once=at_once,
                         profile=profile, course=course)
    for number, row in report["tasks"].items():
        short = [] if row["points"] == row["of"] else [row["says"], *row.get("alive", ())]
        yield f"the full tree has all points of task {number}", short


def claims(thorough=False, at_once=2, seed=None):
    """Yields (claim, what speaks against it: [] if nothing)."""
    profile, course = "grade" if thorough else "quick", Course(seed)
    tasks = course.tasks
    written = [k for k, task in tasks.items() if task.graded_by == "tests"]
    yield from full_marks(course, thorough, at_once, profile)
    for part in sorted({task.part for task in tasks.values() if task.graded_by == "properties"}):
        yield (f"part {part} has a mutant to try",
               [] if any(m.part == part for m in course.samples) else ["none"])
    if seed is None:
        yield ("the tests of the recipe kill every mutant of it",
               alive_in_the_recipe(course, at_once))
    yield ("the tests of a task fail on wrong answers to it",
           passing_wrong_answers(course, thorough, at_once, profile))
    nothing = blank_tree(course, written)
    alone = {k: blank_tree(course, written, [k], None if thorough else k, profile)
             for k in written}
    run_all([nothing, *alone.values()], 120, at_once)
    yield "the blank tree and its tests import, or name a task", errors_of_importing(seed)
    yield "every test of the blank tree names its own task", fails_with_its_own_number(nothing)
    seen = {own for own, *_ in nothing.tests.values()}
    yield "every task has tests", sorted(set(written) - seen)
    for number, run in alone.items():
        against = [] if green(run) == {number} else [f"green: {sorted(green(run))}", *explain(run)]
        yield f"task {number} restored alone is {'the only one ' if thorough else ''}green", against


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thorough", action="store_true",
                        help="all tests in every tree, 200 examples each")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once (default: 2)")
    parser.add_argument("--seed", type=int, help="prove the variant of a seed")
    args = parser.parse_args(argv)
    failed = 0
    for claim, against in claims(args.thorough, args.jobs, args.seed):
        print(f"{'FALSE' if against else 'true '} {claim}", *against[:3], sep="; ", flush=True)
        failed += bool(against)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
