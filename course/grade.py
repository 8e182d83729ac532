"""Points of a student's tree, task by task: `pytest --task K` by our tests, on our terms.

A task is graded in our own tree with one of our files exchanged for the student's, so its tests
are ours, no conftest or setting of the student's is ever read, and a file that does not even
import costs only its own tasks. Hypothesis draws 200 examples, the same for everyone. Property
tests must pass on our code; each mutant of the part (course/mutants) they fail on is a share of
the points. An ablation's answers are given again on a sample. See runs.py for what is watched.

A student's code runs with your rights: grade inside a container. Needs fork (Linux, macOS).

    python course/grade.py ../students/* --json points.json --csv points.csv --feedback feedback
"""
import argparse
import ast
import csv
import itertools
import keyword
import re
import secrets
from pathlib import Path

from ablation import NOISE, check_ablation
from make_assignment import (ROOT, blanked_files, project, properties_file, read_tasks,
                             split_mutants)
from runs import Run, run_all

import cli  # noqa: E402 - make_assignment found it
from label import digest  # noqa: E402
from storage.files import InputError, read_json, write_json  # noqa: E402

AGAIN = '''from course.ablation import asked_again


def test_again():
    """The rewards handed in must be those that the routes earn."""
    wrong, asked = asked_again({seed})
    assert wrong <= {noise} * asked, f"{{wrong}} of {{asked}} answers of the sample differ"
'''
MINE = ("course/my_ablation.py", "course/ablation.json")
EXAMPLE = re.compile("(?:Falsifying example|Failing test case): ")  # words of Hypothesis
WORDS = 12  # tokens in a row that two submissions share


# ---- grading ----

class Course:
    """What everyone is graded by: tasks, texts and mutants of one variant."""

    def __init__(self, seed=None):
        self.texts, self.seed = project(seed), seed
        self.tasks = read_tasks(self.texts["course/assignments.toml"])
        self.samples, self.mutants = split_mutants(self.texts, self.tasks, seed)
        self.blank = self.texts | blanked_files(self.texts, self.tasks)
        self.tree = {name: text for name, text in self.texts.items() if name.endswith(".py")}

    def files(self, task):
        """What is read of a student's tree for a task."""
        return {"tests": [f"{module}.py" for module, _ in task.functions], "ablation": MINE,
                "properties": [properties_file(task)], "hand": ["course/essay.md"]}[task.graded_by]

    def test_files(self, number):
        """Our test files with tests of a task."""
        return [name for name, text in self.tree.items()
                if name.startswith("tests/test_") and f'task("{number}")' in text]


class Grading:
    """One task of one student: the runs it takes, then its row of the report."""

    def __init__(self, course, task, student, profile="grade"):
        self.course, self.task, self.problem = course, task, ""
        self.mutants = [m for m in course.mutants if m.part == task.part]
        try:
            self.student = Path(student)
            self.runs = self.plan(profile)
        except (OSError, UnicodeDecodeError) as error:
            missing = isinstance(error, FileNotFoundError)
            what = f"not handed in: {Path(error.filename).name}" if missing else repr(error)
            self.runs, self.problem = [], what

    def plan(self, profile):
        task, tree = self.task, self.course.tree
        theirs = {name: (self.student / name).read_text("utf-8")
                  for name in self.course.files(task)}
        common = {"profile": profile, "theirs": tuple(theirs)}
        if task.graded_by == "tests":
            tests = ["--task", task.number, *self.course.test_files(task.number)]
            return [Run(tree | theirs, tests, shrink=True, **common)]
        if task.graded_by == "properties":
            mutated = [{m.file: m.apply(tree[m.file])} for m in self.mutants]
            return [Run(tree | theirs, list(theirs), shrink=True, **common),
                    *(Run(tree | theirs | change, ["-x", *theirs], profile) for change in mutated)]
        if task.graded_by == "ablation":
            again = AGAIN.format(seed=secrets.randbits(32), noise=NOISE)
            links = {f"course/{file.name}": file.resolve()
                     for file in (self.student / "course").glob("*.safetensors")}
            return [Run(tree | theirs | {"tests/test_again.py": again}, ["tests/test_again.py"],
                        links=links | {"demo/model": ROOT / "demo/model",
                                       "demo/questions": ROOT / "demo/questions"}, **common)]
        self.says = f"to be read: {len(theirs['course/essay.md'].split())} words"
        return []

    def row(self):
        """{"points", "of", "says", ...} when all runs are done."""
        share, says, more = 0, self.problem, {}
        if not self.problem:
            share, says, more = getattr(self, f"by_{self.task.graded_by}")()
        changed = next((run.changed for run in self.runs if run.changed), None)
        if changed:
            share, more = 0, more | {"changed": changed, "failed": []}
            says = f"CHANGES WHAT IS NOT ITS OWN: {', '.join(changed[1:4])} ({changed[0]})"
        return {"title": self.task.title, "points": round(share * self.task.points, 1),
                "of": self.task.points, "says": says, **more}

    def by_hand(self):
        return 0, self.says, {"by hand": True}

    def by_ablation(self):
        [run] = self.runs
        if run.files[MINE[1]] == self.course.texts[MINE[1]]:
            return 0, "our own ablation, as it stands in the repository", {}
        share, says = check_ablation(self.student / "course" / "ablation.json")
        return (share, says, {}) if run.passed or not share else (0, explain(run)[0], {})

    def by_tests(self):
        [run] = self.runs
        says, *failed = explain(run)
        return float(run.passed), says, {"tests": len(run.outcomes or ()), "failed": failed}

    def by_properties(self):
        plain, *mutated = self.runs
        if plain.outcomes and not plain.found:
            return 0, explain(plain)[0], {}
        properties = sum(is_property for _, is_property, _ in plain.found.values())
        if plain.outcomes == [] and not plain.found:
            return 0, f"not written yet ({self.task.number})", {}
        if plain.outcomes is not None and not properties == len(plain.found) == 2:
            return 0, (f"wanted two property tests and nothing else, found {properties} and "
                       f"{len(plain.found) - properties}"), {}
        if not plain.passed:
            says, *failed = explain(plain)
            return 0, f"on right code: {says}", {"failed": failed}
        alive = [m.name for m, run in zip(self.mutants, mutated) if run.passed]
        killed = len(self.mutants) - len(alive)
        return killed / len(self.mutants), f"{killed} of {len(self.mutants)} mutants killed", {
            "alive": alive}


def unwritten(said):
    """The numbers of the tasks whose NotImplementedError a test's output names."""
    return sorted(set(re.findall(r"NotImplementedError: task ([\d.]+):", said)))


def explain(run):
    """A line on how a run ended, then one on each test that failed: what it exists to catch, the
    smallest example that Hypothesis found, and the error."""
    if run.outcomes is None:
        return [run.hung or "killed: it ended the process, or could not be ended in time"]
    failed = [(test, said) for test, how, said in run.outcomes if how != "passed"]
    if not failed:
        return [f"all of {len(run.outcomes)} tests passed" if run.outcomes else "no tests"]
    lines = []
    for test, said in failed:
        document = " ".join(run.found.get(test, ["", "", ""])[2].split())
        said, *example = EXAMPLE.split(said, maxsplit=1)
        example = " ".join(re.sub(r"(?s),?\n\s*\).*", ")", "".join(example)).split())
        error = [re.sub("^E +", "", line) for line in said.splitlines() if re.match(
            r"(E +)?\w[\w.]*(Error|Exception|Failed|Exit|Interrupt)\b", line)]
        where = re.findall(r'File ".*/tests/.*\n\s+(assert .*)', said)
        number = unwritten(said)
        if error and re.search("cannot import name .* from", error[-1]):
            error[-1] = error[-1].split(" (")[0] + " (is --seed that of this tree?)"
        lines.append("; ".join(filter(None, [
            test.split("::")[-1], document,
            "" if number else example and f"smallest example: {example}",
            f"not written yet ({', '.join(number)})" if number else
            " ".join(error[-1:] + where[-1:])[:200]])))
    return [f"{len(failed)} of {len(run.outcomes)} tests failed; {lines[0]}", *lines]


def grade(students, numbers=None, seconds=60, at_once=2, profile="grade", course=None):
    """[{"student", "points", "of", "tasks": {number: row}}] of several trees.

    numbers: only these tasks; seconds: of each run; profile: of Hypothesis.
    """
    course = course or Course()
    graded = [[Grading(course, task, student, profile) for task in course.tasks.values()
               if not numbers or task.number in numbers] for student in students]
    run_all([run for one in graded for g in one for run in g.runs], seconds, at_once)
    reports = []
    for student, one in zip(students, graded):
        rows = {g.task.number: g.row() for g in one}
        reports.append({"student": Path(student).resolve().name,
                        "points": round(sum(r["points"] for r in rows.values()), 1),
                        "of": sum(r["of"] for r in rows.values()), "tasks": rows})
    return reports


# ---- who wrote like whom? ----

def passages(text):
    """The runs of WORDS tokens in Python text, whatever its local names, comments and layout."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return set()
    local = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and
             isinstance(n.ctx, ast.Store)} | {n.arg for n in ast.walk(tree)
                                              if isinstance(n, ast.arg)}
    words = ["_" if word in local and not keyword.iskeyword(word) else word
             for word in re.findall(r"\w+|[^\w\s]", ast.unparse(tree))]
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
        yield (f"  {number:<5}{row['title']:<34}{row['points']:>5g} /{row['of']:>2}  "
               f"{row['says']}{alive}")


def feedback(report):
    """A report for the student who wrote the tree; mutants stay unnamed, they may come again."""
    parts = [f"# {report['student']}: {report['points']:g} of {report['of']} points\n"]
    for number, row in report["tasks"].items():
        parts.append(f"\n**{number} {row['title']}**: {row['points']:g} of {row['of']}. ")
        lines = row.get("failed") or [row["says"]]
        parts += [f"\n- {line}" for line in {line.split("[")[0]: line for line in lines}.values()]
        parts.append("\n")
    return "".join(parts)


def write_class(reports, args):
    """What --csv, --feedback and --gradescope ask for."""
    if args.csv:
        with open(args.csv, "w", newline="", encoding="utf-8") as file:
            numbers = list(reports[0]["tasks"]) if reports else []
            csv.writer(file).writerows(
                [["student", "points", *numbers, "changes what is not its own"],
                 *(["(at most)", r["of"], *(r["tasks"][k]["of"] for k in numbers), ""]
                   for r in reports[:1]),
                 *([r["student"], r["points"], *(r["tasks"][k]["points"] for k in numbers),
                    " ".join(k for k in numbers if "changed" in r["tasks"][k])]
                   for r in reports)])
    if args.feedback:
        args.feedback.mkdir(parents=True, exist_ok=True)
        for report in reports:
            (args.feedback / f"{report['student']}.md").write_text(feedback(report),
                                                                   encoding="utf-8")
    if args.gradescope:
        [report] = reports
        write_json(args.gradescope, {"score": report["points"], "tests": [
            {"number": number, "name": row["title"], "score": row["points"],
             "max_score": row["of"], "output": "\n".join(row.get("failed") or [row["says"]])}
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
    parser.add_argument("--seconds", type=float, default=60, help="time of a run (default: 60)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once (default: 2)")
    parser.add_argument("--profile", choices=("quick", "grade"), default="grade",
                        help="examples per property test: 25 or 200 (default: grade)")
    parser.add_argument("--json", type=cli.file_or_folder, metavar="FILE",
                        help="the reports; those already in it, of the same files, are kept")
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
    """Names all that a report on the tree in a folder is made from."""
    names = [file for task in course.tasks.values() for file in course.files(task)]
    names += [str(f.relative_to(folder)) for f in sorted(folder.glob("course/*.safetensors"))]
    texts = [(file, (folder / file).read_bytes().hex()) for file in names
             if (folder / file).is_file()]
    return digest(texts, course.tree, args.task, args.profile, args.seconds, args.seed)


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
    if args.gradescope and len(students) != 1:
        raise InputError(f"{args.gradescope}: for one student; {len(students)} are given")
    essays = read_json(args.essays) if args.essays else {}
    kept = []
    if args.json and args.json.exists() and not (kept := read_json(args.json).get("reports")):
        raise InputError(f"{args.json}: holds no reports of this command; choose another file")
    reports = []
    for name, folder in students.items():
        key = made_from(folder, course, args)
        report = next((r for r in kept if r["student"] == name and r["key"] == key), None)
        if not report:
            [report] = grade([folder], args.task, args.seconds, args.jobs, args.profile, course)
            report |= {"student": name, "key": key}
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


if __name__ == "__main__":
    cli.run(main)
