"""Writes a student's tree: this project with the bodies of the tasks' functions taken out.

course/tasks.toml names the functions. Signature and docstring stay, the body becomes
`raise NotImplementedError("task 4.3: focal loss")`; nothing else in a file changes. The answers
(mutants, the grader, our own properties and ablation) stay behind.

    python course/make_assignment.py ../assignment
    python course/make_assignment.py ../answer --keep 4.3      # with our own solution of one task
"""
import argparse
import ast
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10, where pytest brings the same reader along
    import tomli as tomllib

COURSE = Path(__file__).resolve().parent
ROOT = COURSE.parent
sys.path.insert(0, str(ROOT))

import cli  # noqa: E402 - it lies one folder up
from parts.files import InputError  # noqa: E402

SECRET = {"course/mutants", "course/make_assignment.py", "course/grade.py", "course/prove.py",
          "course/ablation.json", "course/answers.md", "tests/test_course.py"}
PASSING = {"__pycache__", "runs"}  # and whatever starts with a dot


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


def read_tasks(file=COURSE / "tasks.toml"):
    """{number: Task} of a task table; InputError where a function is listed twice."""
    tasks, seen = {}, {}
    for number, row in tomllib.loads(Path(file).read_text()).items():
        functions = tuple(tuple(name.split(".", 1)) for name in row.get("functions", ()))
        for module, name in functions:
            if (module, name) in seen:
                raise InputError(f"{file}: {module}.{name} is listed twice, in tasks "
                                 f"{seen[module, name]} and {number}")
            seen[module, name] = number
        tasks[number] = Task(number, row["title"], row["points"], row["handout"], functions,
                             row.get("graded_by", "tests"))
    return tasks


def properties_file(task):
    """Where a student writes the two property tests of a task."""
    return f"tests/test_properties_{task.part}.py"


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

def blanked_files(tasks, keep=()):
    """{path: text} of every file that differs in a tree where only the tasks in keep are solved."""
    messages, changed = {}, {}
    for task in tasks.values():
        if task.number in keep:
            continue
        for module, name in task.functions:
            messages.setdefault(f"{module}.py", {})[name] = task.message
        if task.graded_by == "properties":
            file = properties_file(task)
            changed[file] = without_tests((ROOT / file).read_text())
    for file, wanted in messages.items():
        for name in wanted:
            try:
                find(ast.parse((ROOT / file).read_text()), name)
            except (ValueError, OSError) as error:
                raise InputError(f"course/tasks.toml: {file}: {name} {error}") from error
        changed[file] = blank((ROOT / file).read_text(), wanted)
    return changed


def left_behind(secret):
    """The `ignore` of shutil.copytree: answers, and what a run leaves in the project."""
    def ignore(folder, names):
        inside = Path(folder).relative_to(ROOT)
        return [name for name in names if (inside / name).as_posix() in secret or name in PASSING
                or (name.startswith(".") and name != ".gitignore")]
    return ignore


def write_tree(out, tasks, keep=()):
    """A student's tree in the new folder out, with our own solutions of the tasks in keep."""
    out = Path(out).resolve()
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: the folder is not empty")
    if ROOT in out.parents or out == ROOT:
        raise InputError(f"{out}: choose a folder outside the project")
    unknown = set(keep) - set(tasks)
    if unknown:
        raise InputError(f"course/tasks.toml: no task {min(unknown)}")
    changed = blanked_files(tasks, keep)
    kept = {"course/ablation.json" for k in keep if tasks[k].graded_by == "ablation"}
    shutil.copytree(ROOT, out, ignore=left_behind(SECRET - kept), dirs_exist_ok=True)
    for file, text in changed.items():
        (out / file).write_text(text)
    return out


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="new folder outside the project")
    parser.add_argument("--keep", nargs="+", default=[], metavar="TASK",
                        help="tasks whose solution stays in, e.g. 4.3")
    args = parser.parse_args(argv)
    tasks = read_tasks()
    write_tree(args.out, tasks, args.keep)
    print(f"{args.out}: {len(tasks)} tasks, {sum(t.points for t in tasks.values())} points; "
          "begin with course/README.md")


if __name__ == "__main__":
    cli.run(main)
