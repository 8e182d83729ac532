"""Writes a student's tree: this project with the bodies of the tasks' functions taken out.

course/assignments.toml names the functions. Signature and docstring stay, the body becomes
`raise NotImplementedError("task 4.3: focal loss")`; nothing else in a file changes. The answers
(the grader, our own properties and ablation, most mutants) stay behind.

A seed makes a variant: other names, another constant, another order of windows (variants.toml),
other mutants to try. Grade it with the same seed.

    python course/make_assignment.py ../assignment --seed 518203746
    python course/make_assignment.py ../answer --keep 4.3 5     # with our solutions of some
"""
import argparse
import ast
import random
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from try_mutants import COURSE, ROOT, read_mutants, tomllib

import cli  # noqa: E402 - try_mutants found it
sys.path.append(str(ROOT / "docs"))
from code_blocks import with_code  # noqa: E402
from make_notebook import notebook  # noqa: E402
from storage.files import InputError  # noqa: E402

SECRET = {"course/make_assignment.py", "course/grade.py", "course/prove.py", "course/runs.py",
          "course/watched.py", "course/rewrite.py", "course/wrong_answers.toml",
          "course/ablation.json", "course/my_ablation.py", "course/TEACHER.md",
          "course/variants.toml", "tests/test_course.py"}
PASSING = {"__pycache__", "runs"}  # and whatever starts with a dot
TEXTS = ("*.py", "*.md", "docs/*", "course/*.*", "course/*/*", "tests/*.py", "demo/*.py",
         "storage/*.py", "questions/*.py", "checkpoint/*.py", "experiments/*.py", "tools/*.py")
SAMPLES = 2  # mutants of a part that students may try
LEAST = 3  # mutants of a part to grade by, if it has so many


@dataclass(frozen=True)
class Task:
    """One task of the course. functions: (file, name) pairs, () where graded_by says how."""
    number: str
    title: str
    points: int
    handout: str
    functions: tuple
    graded_by: str

    @property
    def part(self):
        return self.number.split(".")[0]

    @property
    def message(self):
        return f"task {self.number}: {self.title}"


def read_tasks(text=None):
    """{number: Task} of a task table; InputError where a function is listed twice."""
    tasks, seen = {}, {}
    text = text or (COURSE / "assignments.toml").read_text(encoding="utf-8")
    for number, row in tomllib.loads(text).items():
        functions = tuple(tuple(name.split(".", 1)) for name in row.get("functions", ()))
        for module, name in functions:
            if (module, name) in seen:
                raise InputError(f"course/assignments.toml: {module}.{name} is listed twice, in "
                                 f"tasks {seen[module, name]} and {number}")
            seen[module, name] = number
        tasks[number] = Task(number, row["title"], row["points"], row["handout"], functions,
                             row.get("graded_by", "tests"))
    return tasks


def properties_file(task):
    """Where a student writes the two property tests of a task."""
    return f"tests/test_properties_{task.part}.py"


# ---- variants ----

def project(seed=None):
    """{path: text} of the project's text files, in the variant that a seed makes."""
    names = {file.relative_to(ROOT).as_posix() for pattern in TEXTS for file in ROOT.glob(pattern)
             if file.suffix in (".py", ".md", ".toml", ".ipynb", ".json")}
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in sorted(names)}
    if seed is None:
        return texts
    rng, variants = random.Random(seed), tomllib.loads(texts["course/variants.toml"])
    for choice in variants["choice"]:
        value = rng.choice(choice["values"])
        for file, old, new in choice["edits"]:
            if texts[file].count(old) != 1:
                raise InputError(f"course/variants.toml: {old!r} stands {texts[file].count(old)} "
                                 f"times in {file}, wanted 1")
            texts[file] = texts[file].replace(old, new.replace("VALUE", value))
    renamed = {old: rng.choice(others) for old, others in variants["names"].items()}
    pattern = re.compile(rf"\b({'|'.join(renamed)})\b")
    return {name: text if name == "course/variants.toml" else
            pattern.sub(lambda met: renamed[met[1]], text) for name, text in texts.items()}


def split_mutants(texts, tasks, seed=None):
    """(samples, others): some mutants of every part that stand in code nobody writes, so that a
    student can plant them too; and those to grade by, with a seed three quarters of the rest of
    each part, at least LEAST."""
    blanked, rng = texts | blanked_files(texts, tasks), random.Random(seed or 0)
    mutants, samples = read_mutants(texts), []
    parts = sorted({task.part for task in tasks.values()})
    for part in parts:
        plantable = [m for m in mutants if m.part == part and blanked[m.file].count(m.old) == 1]
        samples += rng.sample(plantable, min(SAMPLES, len(plantable)))
    others = []
    for part in parts:
        rest = [m for m in mutants if m.part == part and m not in samples]
        if seed is not None:
            rest = rng.sample(rest, min(len(rest), max(LEAST, len(rest) * 3 // 4)))
        others += rest
    return samples, others


# ---- taking a body out ----

def find(tree, name):
    """The function or method of that name in a module's tree; ValueError if it is not one."""
    node = tree
    for part in name.split("."):
        if isinstance(node, ast.FunctionDef):
            raise ValueError(f"is nested in the function {node.name}")
        found = [inner for inner in node.body if getattr(inner, "name", None) == part]
        if len(found) != 1:
            raise ValueError(f"is {'missing' if not found else 'defined twice'}")
        node = found[0]
    if not isinstance(node, ast.FunctionDef) or node.body[0].lineno == node.lineno:
        raise ValueError("is not a function of several lines")
    return node


def blank(source, messages):
    """The source with the bodies of some functions replaced. messages: {name: what it raises}."""
    lines, tree = source.splitlines(keepends=True), ast.parse(source)
    functions = sorted(((find(tree, name), message) for name, message in messages.items()),
                       key=lambda pair: pair[0].lineno, reverse=True)
    for function, message in functions:
        first = function.body[0]
        kept = first.end_lineno if ast.get_docstring(function) is not None else first.lineno - 1
        lines[kept:function.end_lineno] = [
            f'{" " * first.col_offset}raise NotImplementedError("{message}")\n']
    return "".join(lines)


def without_tests(source):
    """A file of property tests without its tests: what stands above the first of them."""
    tree = ast.parse(source)
    test = next(node for node in tree.body if getattr(node, "name", "").startswith("test_"))
    start = min([test.lineno, *(d.lineno for d in test.decorator_list)])
    return "".join(source.splitlines(keepends=True)[:start - 1]).rstrip() + "\n"


# ---- the tree ----

def blanked_files(texts, tasks, keep=()):
    """{path: text} of every file that differs in a tree where only the tasks in keep are solved."""
    messages, changed = {}, {}
    for task in tasks.values():
        if task.number in keep:
            continue
        for module, name in task.functions:
            messages.setdefault(f"{module}.py", {})[name] = task.message
        if task.graded_by == "properties":
            file = properties_file(task)
            changed[file] = without_tests(texts[file])
    for file, wanted in messages.items():
        for name in wanted:
            try:
                find(ast.parse(texts[file]), name)
            except (ValueError, KeyError) as error:
                raise InputError(f"course/assignments.toml: {file}: {name} {error}") from error
        changed[file] = blank(texts[file], wanted)
    return changed


def left_behind(secret):
    """The `ignore` of shutil.copytree: answers, and what a run leaves in the project."""
    def ignore(folder, names):
        inside = Path(folder).relative_to(ROOT)
        return [name for name in names if (inside / name).as_posix() in secret or name in PASSING
                or (name.startswith(".") and name != ".gitignore")]
    return ignore


def write_tree(out, keep=(), seed=None):
    """A student's tree in the new folder out, with our own solutions of the tasks in keep; returns
    the tasks that are left to do."""
    out = Path(out).resolve()
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: the folder is not empty")
    if ROOT in out.parents or out == ROOT:
        raise InputError(f"{out}: choose a folder outside the project")
    texts = project(seed)
    tasks = read_tasks(text=texts["course/assignments.toml"])
    unknown = set(keep) - set(tasks) - {task.part for task in tasks.values()}
    if unknown:
        raise InputError(f"course/assignments.toml: no task or part {min(unknown)}")
    left = {k: task for k, task in tasks.items() if not {k, task.part} & set(keep)}
    kept = {file for k in tasks.keys() - left.keys() if tasks[k].graded_by == "ablation"
            for file in ("course/ablation.json", "course/my_ablation.py")}
    samples, _ = split_mutants(texts, tasks, seed)
    secret = SECRET - kept | {f"course/mutants/{mutant.name}.toml" for mutant in read_mutants(texts)
                                 if mutant not in samples}
    shutil.copytree(ROOT, out, ignore=left_behind(secret), dirs_exist_ok=True)
    texts |= blanked_files(texts, left)
    # the tutorial shows functions of the course: as they are in this tree, without our solutions
    texts["docs/tutorial.md"] = with_code(texts["docs/tutorial.md"], texts.__getitem__)
    texts["docs/tutorial.ipynb"] = notebook(texts["docs/tutorial.md"])
    for file, text in texts.items():
        if (out / file).exists():
            (out / file).write_text(text, encoding="utf-8")
    return left


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=cli.file_or_folder, help="new folder outside the project")
    parser.add_argument("--keep", nargs="+", default=[], metavar="TASK",
                        help="tasks or parts whose solution stays in, e.g. 4.3 or 1")
    parser.add_argument("--seed", type=int, help="of a variant; without it, this project as it is")
    args = parser.parse_args(argv)
    left = write_tree(args.out, args.keep, args.seed)
    print(f"{args.out}: {len(left)} tasks, {sum(t.points for t in left.values())} points; "
          "begin with course/README.md")


if __name__ == "__main__":
    cli.run(main)
