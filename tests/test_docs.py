"""The documents are run: their examples, their commands, their tables, and every name they give.

A fence is of a known kind: `python` is executed in order as doctests; `console` is executed in a
copy of the project and its output compared, a line of `...` standing for any; of `sh`, too long
to run, every program, flag and value is given to that program's own parser; `text`, `math` and
`bibtex` are not code; `py` is source of the project, put in by docs/make_tutorial.py. Tables come
from assets/*.json (docs/make_results.py).
"""
import argparse
import ast
import contextlib
import doctest
import functools
import importlib
import io
import json
import re
import shlex
import sys
from dataclasses import dataclass
from unittest import mock

import pytest
import torch

from conftest import ROOT
from programs import run_program

sys.path.append(str(ROOT / "docs"))

import code_blocks  # noqa: E402
import draw_tutorial  # noqa: E402
import make_notebook  # noqa: E402
import make_results  # noqa: E402
import make_tutorial  # noqa: E402
from draw import draw  # noqa: E402

from evaluate import fixed_paths_at  # noqa: E402
from storage.files import read_json  # noqa: E402

PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in (
    "README.md", "CONTRIBUTING.md", "docs/tutorial.md", "docs/results.md", "docs/real_models.md",
    "docs/your_model.md")}
README, TUTORIAL = PAGES["README.md"], PAGES["docs/tutorial.md"]
RESULTS = PAGES["docs/results.md"]
EVERY_PAGE = pytest.mark.parametrize("page", PAGES)
KINDS = ("python", "py", "console", "sh", "text", "math", "bibtex")
ROOMS = ("storage", "questions", "checkpoint", "experiments", "tools")
FOLDERS = (*ROOMS, "demo", "assets", "course", "docs")
OPTIONAL = {"lm-eval", "gguf"}  # extras that a page may tell to install


@dataclass
class Fence:
    kind: str
    text: str
    line: int  # of the page, from 1


def fences(text):
    """Every fenced block, in order."""
    found, opened = [], None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("```"):
            continue
        if opened is None:
            opened = (line[3:].strip(), number)
        else:
            body = "\n".join(text.splitlines()[opened[1]:number - 1]) + "\n"
            found.append(Fence(opened[0], body, opened[1] + 1))
            opened = None
    assert opened is None, f"line {opened[1]}: this block has no end"
    return found


def without_fences(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def code_spans(text):
    return re.findall(r"`([^`\n]+)`", without_fences(text))


@EVERY_PAGE
def test_fences_are_of_known_kinds(page):
    assert {fence.kind for fence in fences(PAGES[page])} <= set(KINDS)


# ---- examples ----

class NearIntervals(doctest.OutputChecker):
    """Exact, but for lines with an interval such as [-24, -13]: another processor rounds otherwise,
    training follows it, and such a line's numbers may differ by one in the last digit."""
    number = re.compile(r"[+-]?\d+(?:\.\d+)?")
    interval = re.compile(r"\[[+-]\d+, [+-]\d+\]")

    def check_output(self, want, got, optionflags):
        lines, others = want.splitlines(), got.splitlines()
        return (len(lines) == len(others)
                and all(a == b or self.near(a, b) for a, b in zip(lines, others))
                or super().check_output(want, got, optionflags))

    def near(self, line, other):
        numbers, others = self.number.findall(line), self.number.findall(other)
        if not self.interval.search(line) or len(numbers) != len(others):
            return False
        if self.number.sub("", line) != self.number.sub("", other):
            return False
        units = [10.0 ** -len(text.partition(".")[2]) for text in numbers]
        return all(abs(float(a) - float(b)) < 1.5 * unit
                   for a, b, unit in zip(numbers, others, units))


def test_only_numbers_beside_an_interval_may_differ_by_one_in_the_last_digit():
    same = functools.partial(NearIntervals().check_output, optionflags=0)
    assert same("a 59 -18 [-24, -13] 9.5\n", "a 58 -19 [-25, -14] 9.4\n")
    assert not same("a 59 -18 [-24, -13] 9.5\n", "a 57 -18 [-24, -13] 9.5\n")
    assert not same("a 59 -18 [-24, -13] 9.5\n", "a 59 -18 [-24, -13] 9.3\n")
    assert not same("(0.3, 59)\n", "(0.3, 58)\n") and not same("1\n2\n", "1\n")


def failed_examples(text):
    """What python examples give that the page does not say; all share one namespace."""
    names, said = {}, io.StringIO()
    runner = doctest.DocTestRunner(NearIntervals(), verbose=False,
                                   optionflags=doctest.REPORT_NDIFF)
    for fence in fences(text):
        if fence.kind == "python":
            example = doctest.DocTestParser().get_doctest(
                fence.text, names, f"line {fence.line}", "page", fence.line)
            assert example.examples, f"line {fence.line}: no example starts with >>>"
            runner.run(example, out=said.write, clear_globs=False)
            names = example.globs
    return said.getvalue()


@pytest.fixture
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_tutorial_examples_print_what_it_says(in_root):
    assert len([fence for fence in fences(TUTORIAL) if fence.kind == "python"]) >= 9
    assert not failed_examples(TUTORIAL)


def test_wrong_values_in_examples_are_noticed(in_root):
    changed = TUTORIAL.split("\n### The search of our question")[0]  # the rest takes half a minute
    for value in ("(0.5, 1.4986, 2.75, -0.7514)", "(531441, 401392)", "('2', 0.99)"):
        assert changed.count(value) == 1
        changed = changed.replace(value, value[:-2] + "7" + value[-1:])
    assert failed_examples(changed).count("Failed example") == 3


def run_cells(cells):
    """[(what the cell shows, what it prints)] of the cells of code, as a notebook runs them: one
    namespace, and the value of a last expression is printed."""
    names, found = {}, []
    for one in cells:
        if one["cell_type"] == "code":
            said, body = io.StringIO(), ast.parse("".join(one["source"])).body
            last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
            with contextlib.redirect_stdout(said):
                exec(compile(ast.Module(body, []), "cell", "exec"), names)
                if last is not None:
                    value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
                    if value is not None:
                        print(repr(value))
            wanted = "".join(text for out in one["outputs"] for text in out["text"])
            found.append((wanted, said.getvalue()))
    return found


def test_the_notebook_is_the_tutorial_and_runs(monkeypatch):
    """Catches a notebook that was not made again, and one that runs from one folder only. Its cells
    are the page's examples; those that take seconds are run above, as the page's, and only there.
    """
    text = (ROOT / "docs/tutorial.ipynb").read_text(encoding="utf-8")
    assert text == make_notebook.notebook(TUTORIAL), "run docs/make_notebook.py"
    path = sys.path[:]
    monkeypatch.chdir(ROOT / "docs")
    cells = json.loads(text)["cells"]
    slow = next(n for n, one in enumerate(cells)
                if "### The search of our question" in "".join(one["source"]))
    shown = run_cells(cells[:slow])
    sys.path[:] = path
    assert len(shown) > 10
    assert all(NearIntervals().check_output(wanted, printed, 0) for wanted, printed in shown)


# ---- commands that are run ----

@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A folder like a clean clone: what is in it are links, what commands make is its own."""
    folder = tmp_path_factory.mktemp("clone")
    for entry in (*ROOT.glob("*.py"), *(ROOT / name for name in ("demo", *ROOMS))):
        (folder / entry.name).symlink_to(entry)
    return folder


def run(command, folder):
    """What a command prints on both streams."""
    words = shlex.split(command)
    assert words[0] == ".venv/bin/python", command
    done = run_program(*words[1:], folder=folder)
    printed = done.stdout + done.stderr
    assert done.returncode == (2 if "error: " in printed else 0), printed
    return printed


@pytest.mark.parametrize("page", ["docs/tutorial.md", "docs/your_model.md"])
def test_console_commands_print_what_the_page_says_and_write_into_runs_only(page, copy):
    checker, there = doctest.OutputChecker(), {file.name for file in copy.iterdir()}
    asked = [part.split("\n", 1) for fence in fences(PAGES[page]) if fence.kind == "console"
             for part in re.split(r"^\$ ", fence.text, flags=re.MULTILINE)[1:]]
    assert asked
    for command, wanted in asked:
        printed = run(command, copy)
        assert wanted.strip() not in ("", "..."), f"nothing is compared: {command}"
        assert checker.check_output(wanted, printed, doctest.ELLIPSIS), f"{command}\n{printed}"
    assert {file.name for file in copy.iterdir()} - there <= {"runs", "__pycache__"}


# ---- commands that are only read ----

class Parsed(Exception):
    """A program's parser has taken its arguments; the program itself does not run."""


def parse(module, arguments):
    """'' if the program takes these arguments, else what its parser says."""
    real, said = argparse.ArgumentParser.parse_args, io.StringIO()

    def stop(parser, *given):
        real(parser, *given)
        raise Parsed
    beside = str((ROOT / module.replace(".", "/")).parent)  # where a script looks first
    with mock.patch.object(sys, "path", [beside, *sys.path]), \
            mock.patch.object(argparse.ArgumentParser, "parse_args", stop), \
            contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            importlib.import_module(module).main(arguments)
        except Parsed:
            return ""
        except SystemExit as end:
            return said.getvalue() if end.code else ""
    return f"{module}: no parser in its main"


def harness_arguments(words):
    """The adapter's options in --model_args; its other flags are the harness's own."""
    given = next(words[n + 1] for n, word in enumerate(words) if word == "--model_args")
    tree = ast.parse((ROOT / "tools" / "lm_eval_drllm.py").read_text(encoding="utf-8"))
    maker = next(f for c in tree.body if isinstance(c, ast.ClassDef) for f in c.body
                 if isinstance(f, ast.FunctionDef) and f.name == "__init__")
    wrong = {pair.split("=")[0] for pair in given.split(",")} - {a.arg for a in maker.args.args}
    return f"no model_args {wrong}" if wrong else ""


def misunderstood(command):
    """'' if a command's program exists and takes these flags and values, else what is wrong."""
    words = shlex.split(command, comments=True)
    if words[0] == "torchrun" and words[1] == "--nproc-per-node" and words[2].isdigit():
        words = [".venv/bin/python", *words[3:]]
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        return "" if set(words[1:]) <= set(targets) else f"make has only {targets}"
    if words[:3] == ["uv", "pip", "compile"]:
        return "" if (ROOT / words[3]).exists() else f"no {words[3]}"
    if words[0] != ".venv/bin/python":
        return f"no rule for {words[0]}"
    if words[1:4] == ["-m", "pip", "install"]:
        return "" if set(words[4:]) <= OPTIONAL else f"not an extra: {words[4:]}"
    if words[1:4] == ["-m", "pip", "download"] or words[1:3] == ["-m", "zipfile"]:
        return "" if any(word.startswith("runs") for word in words) else "not into runs/"
    if words[1:3] == ["-m", "pytest"]:
        return "".join(f"no {w}; " for w in words[3:] if "/" in w and not (ROOT / w).exists())
    module = words[2] if words[1] == "-m" else words[1].removesuffix(".py").replace("/", ".")
    if not (ROOT / f"{module.replace('.', '/')}.py").is_file():
        return f"no program {module}"
    if module in ("docs.make_results", "docs.make_tutorial"):  # no arguments and no parser
        return "".join(words[2:])
    arguments = words[3:] if words[1] == "-m" else words[2:]
    if module == "tools.lm_eval_drllm":
        return harness_arguments(words)
    return parse(module, arguments)


def read_commands(text):
    """Commands that are shown and not run: in sh blocks, and in the prose but for old commits'."""
    for fence in fences(text):
        if fence.kind == "sh":
            for line in fence.text.splitlines():
                yield from line.split(" && ")
    now = "\n".join(line for line in text.splitlines() if "at commit" not in line)
    starts = (".venv/bin/python ", "make ", "torchrun ")
    yield from (span for span in code_spans(now) if span == "make" or span.startswith(starts))


def wrong_commands(text):
    return [f"{command}: {wrong}" for command in read_commands(text)
            if (wrong := misunderstood(command))]


@EVERY_PAGE
def test_commands_name_programs_and_flags_that_exist(page, in_root):
    assert list(read_commands(PAGES[page]))
    assert not wrong_commands(PAGES[page])


@EVERY_PAGE
def test_commands_leave_nothing_in_the_root(page):
    for command in read_commands(PAGES[page]):
        words = shlex.split(command, comments=True)
        for flag, value in zip(words, words[1:]):
            assert flag != "--out" or value.startswith("runs/"), command


# ---- names ----

def wrong_flags(text):
    """Flags in the prose that no program of the project has."""
    sources = "".join(file.read_text(encoding="utf-8") for where in (
        "*.py", *(f"{room}/*.py" for room in ROOMS), "course/*.py", "demo/*.py", "docs/*.py",
        "tests/conftest.py") for file in ROOT.glob(where))
    flags = {word for span in code_spans(text) if span.startswith("--")
             for word in span.split() if word.startswith("--")}
    return [flag for flag in flags if f'"{flag}"' not in sources]


def anchors(text):
    """The anchors that a hub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)", without_fences(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@functools.cache
def defined(file):
    """Functions, classes and constants at a file's top level."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node]
        names |= {getattr(t, "name", getattr(t, "id", None)) for t in targets}
    return names


def wrong_links(page, text):
    """Links of a page to files and headings that are not there."""
    wrong = []
    for target in re.findall(r"\]\(([^)]+)\)", without_fences(text)):
        file, _, anchor = target.partition("#")
        there = (ROOT / page).parent / file if file else ROOT / page
        if not target.startswith("https://") and not there.exists():
            wrong.append(target)
        elif anchor and not file.startswith("https://"):
            wrong += [] if anchor in anchors(there.read_text(encoding="utf-8")) else [target]
    return wrong


def wrong_names(text):
    """Files, functions and tests that a page names and the project does not have."""
    tests = set().union(*(defined(file) for file in ROOT.glob("tests/test_*.py")))
    of_a_run = {"labels", "paths", "routers", "metrics", "config", "tokenizer"}
    wrong = []
    for span in code_spans(text):
        name = re.fullmatch(r"([a-z_]+)\.([A-Za-z_]\w*)", span)
        if re.fullmatch(r"test_\w+", span):
            exists = span in tests
        elif re.fullmatch(rf"[\w/]+\.py|(?:{'|'.join(FOLDERS)})/[\w./]*", span):
            exists = (ROOT / span).exists() or any((ROOT / room / span).exists() for room in ROOMS)
        elif name and name[1] not in of_a_run and name[2] not in ("json", "jsonl", "csv", "txt",
                                                                   "toml", "lock"):
            exists = any(file.exists() and name[2] in defined(file) for file in (
                ROOT / f"{name[1]}.py", *(ROOT / room / f"{name[1]}.py" for room in ROOMS)))
        else:
            continue
        wrong += [] if exists else [span]
    return wrong


@EVERY_PAGE
def test_links_flags_files_functions_and_tests_exist(page):
    text = PAGES[page]
    assert not wrong_links(page, text) and not wrong_names(text) and not wrong_flags(text)


# ---- the shape of the pages ----

def test_readme_is_read_in_ten_minutes():
    assert len(README.splitlines()) <= 200 and len(README.split()) <= 1600


def test_tutorials_sections_are_read_in_ninety_minutes():
    """Without their exercises; what comes after the sections is for looking things up."""
    sections_of_page = TUTORIAL.split("\n## Where to go from here")[0]
    read = re.sub(r"\*\*Exercises\*\*.*?</details>", "", sections_of_page, flags=re.DOTALL)
    assert len(without_fences(read).split()) <= 90 * 55  # words a minute, the examples run


def test_readme_explains_a_word_before_it_uses_it():
    later = ("cost per layer", "depth bias", "router seeds", "recipe", "vanilla", "interpolation")
    lower = README.lower()
    assert not [word for word in later if re.search(rf"\b{word}\b", lower)]
    first_screen, text = README.split("## The idea")
    assert "(the *base model*)" in first_screen and "*fixed path*" in first_screen
    for word in ("hidden states", "paths", "default path", "consensus", "route", "in domain"):
        first = re.search(rf"\b{word}\b", text, re.IGNORECASE).start()
        assert text[first - 1] == "*", f"not explained at its first place: {word}"


def test_readme_shows_what_it_is_and_whether_it_works_on_the_first_screen():
    order = ["](assets/paths.svg)", "## Does it work?", "<!-- summary -->", "\nmake  ",
             "(docs/tutorial.md)", "(docs/your_model.md)", "(docs/results.md)", "## The idea",
             "<!-- table -->", "<!-- files -->", "## Your own model", "## Limits"]
    places = [README.index(part) for part in order]
    assert places == sorted(places)
    assert README[:README.index("## The idea")].count("\n") <= 55


def test_the_demos_gain_over_fixed_paths_is_that_of_its_stored_run():
    """Catches a figure that was copied by hand from another run."""
    metrics = read_json(make_results.ASSETS / "demo.json")["metrics"]
    figures = metrics["routes"]["dr.llm"]
    fixed = [(point["layers"], torch.tensor(point["accuracy"])) for point in metrics["fixed"]]
    computed = figures["accuracy"] - fixed_paths_at(figures["layers"], fixed).item()
    _, _, over_fixed, _ = make_results.demo_line()
    assert make_results.signed(computed) == over_fixed.split()[0] == "+4.2"
    gain = make_results.signed(figures["gain"]).removeprefix("+")
    assert f"**Routers on our labels gain {gain} points on the demo" in README


def imported(name):
    """The files of the core that a file imports, wherever in it."""
    tree = ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
             for alias in node.names}
    return (names | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            ) & set(make_results.FILES)


def test_tutorial_tells_to_read_every_file_of_the_core_after_those_it_imports():
    """Catches an order of reading that is not the README's, or that needs a later file."""
    sentence = TUTORIAL.split("follow the order of the imports")[1].split("Plan ")[0]
    files = re.findall(r"`(\w+)\.py`", sentence)
    assert files == list(make_results.IN_THE_PAPER)
    for place, name in enumerate(files):
        assert imported(name) - {"cli"} <= set(files[:place]), name


def chapters():
    """{heading: text} of the tutorial's numbered sections."""
    parts = re.split(r"^## ", TUTORIAL, flags=re.MULTILINE)[1:]
    return {part.split("\n")[0]: part for part in parts if part[0].isdigit()}


def test_every_section_but_the_last_has_exercises_and_their_answers():
    *practised, last = chapters().values()
    assert len(practised) == 7 and last.startswith("8. Real models")
    for section in practised:
        asked, answered = section.split("**Exercises**")[1].split("<details>")
        count = len(re.findall(r"^\d\. ", asked, re.MULTILINE))
        assert count in (2, 3) and count == len(re.findall(r"^\d\. ", answered, re.MULTILINE))
        assert answered.rstrip().endswith("</details>")


def test_the_minutes_of_the_sections_add_up():
    minutes = re.findall(r"^\| \[\d\]\(#.*\| (\d+) \|$", TUTORIAL, re.MULTILINE)
    assert len(minutes) == len(chapters())
    assert f"{sum(map(int, minutes))} minutes in all" in TUTORIAL


@pytest.mark.skipif(not (ROOT / "course" / "grade.py").exists(), reason="a student's own files")
def test_code_on_the_page_is_the_source():
    """Catches a function that was changed, and a copy that was edited by hand."""
    assert TUTORIAL == make_tutorial.tutorial(TUTORIAL), "run docs/make_tutorial.py"
    for name in ("model_llama.run_blocks", "mcts.ucb_score", "mcts.select_node_to_expand",
                 "mcts.search", "drllm.pool_windows", "drllm.focal_loss", "choose.consensus",
                 "train.fit_routers", "train.train_routers", "evaluate.interval"):
        lines = make_tutorial.source_of(name)
        assert TUTORIAL.count(f"{lines}\n") == 1, name
        stale = TUTORIAL.replace(lines, lines + " + 1")
        assert make_tutorial.tutorial(stale) == TUTORIAL
    assert len([fence for fence in fences(TUTORIAL) if fence.kind == "py"]) == len(
        code_blocks.CODE.findall(TUTORIAL))


@pytest.mark.skipif(not (ROOT / "course" / "grade.py").exists(), reason="a student's own files")
def test_a_students_tutorial_shows_no_solution(tmp_path):
    """Catches a page that has the bodies which the course takes out of the source."""
    sys.path.append(str(ROOT / "course"))
    make_assignment = importlib.import_module("make_assignment")
    tasks = make_assignment.write_tree(tmp_path / "student")
    wanted = {f"{file}.{name}" for task in tasks.values() for file, name in task.functions}
    for page in ("tutorial.md", "tutorial.ipynb"):
        text = (tmp_path / "student" / "docs" / page).read_text(encoding="utf-8")
        for names in code_blocks.CODE.finditer(TUTORIAL):
            for name in {*names[1].split(", ")} & wanted:
                last = make_tutorial.source_of(name).splitlines()[-1].strip()
                assert last not in text, name
        assert "NotImplementedError" in text


def test_figures_of_the_tutorial_are_drawn_from_what_they_show():
    """Catches a figure of an older search or run, and one that is not described."""
    drawn = draw_tutorial.figures()
    for name, svg in drawn.items():
        file = draw_tutorial.ASSETS / f"{name}.svg"
        assert file.read_text(encoding="utf-8") == svg, "run docs/make_tutorial.py"
        assert "prefers-color-scheme: dark" in svg and 'rect fill="var(--page)"' in svg
        assert len(re.search(r'aria-label="([^"]+)"', svg)[1]) > 60
    shown = re.findall(r"!\[([^\]]+)\]\(\.\./assets/(\w+)\.svg\)", TUTORIAL)
    assert sorted(name for _, name in shown) == sorted(drawn)
    assert all(len(words) > 60 for words, _ in shown)


def test_departures_are_numbered_and_each_names_a_test():
    section = TUTORIAL.split("\n## Departures")[1].split("\n## ")[0]
    items = re.split(r"^\d+\. ", section, flags=re.MULTILINE)[1:]
    assert len(items) >= 18 and all("`test_" in item for item in items)
    numbers = re.findall(r"^(\d+)\. ", section, re.MULTILINE)
    assert [int(n) for n in numbers] == list(range(1, len(items) + 1))


# ---- numbers ----

def test_results_are_those_of_the_stored_measurements():
    assert RESULTS == make_results.results()
    assert PAGES["docs/real_models.md"] == make_results.real_models()
    cases = read_json(make_results.ASSETS / "demo.json")["picture"]
    assert (make_results.ASSETS / "paths.svg").read_text(encoding="utf-8") == draw(cases)
    assert all(len(case["decisions"]) == 12 for case in cases)


@pytest.mark.skipif(not (ROOT / "course" / "grade.py").exists(), reason="a student's own files")
def test_readme_has_the_measured_tables_and_what_every_file_says_of_itself():
    assert README == make_results.readme(README), "run .venv/bin/python docs/make_results.py"


def test_stale_tables_are_noticed():
    for part, old in (("summary", "+7.2"), ("table", "12.00"), ("files", "`mcts.py` |"),
                      ("rooms", "`tools/` |")):
        before, after = README.split(f"<!-- {part} -->")
        stale = f"{before}<!-- {part} -->{after.replace(old, old + '1', 1)}"
        assert stale != README and make_results.readme(stale) == make_results.readme(README)


NUMBER = re.compile(r"(?<![\w.§/-])\d+(?:,\d{3})*\.\d+(?![\w/]|\.\d)")
NAMES_WITH_NUMBERS = re.compile(r"Python 3\.\d+|Llama 3\.\d|Qwen2\.5|3\.x|arXiv:[\d.]+")


def sections(text):
    return re.split(r"^(?=#{2,3} )", text, flags=re.MULTILINE)


def unpinned(section):
    """Decimal numbers in a section's sentences that neither its tables nor its examples have."""
    prose = "\n".join(line for line in without_fences(section).splitlines()
                      if line[:1] != "|" and not line.startswith("Measured by `"))
    prose = re.sub(r"`[^`\n]+`|\]\([^)]+\)", "", NAMES_WITH_NUMBERS.sub("", prose))
    beside = " ".join([line for line in section.splitlines() if line[:1] == "|"]
                      + [fence.text for fence in fences(section)])
    shown = set(re.findall(r"\d+(?:\.\d+)?", beside.replace(",", "")))
    return [n for n in NUMBER.findall(prose) if n.replace(",", "") not in shown]


@pytest.mark.parametrize("page", ["docs/tutorial.md", "docs/results.md", "docs/real_models.md"])
def test_every_figure_in_a_sentence_stands_in_a_table_or_an_example_beside_it(page):
    assert not [n for section in sections(PAGES[page]) for n in unpinned(section)]


def test_every_table_of_results_stands_beside_its_command():
    for section in sections(RESULTS):
        if "\n| " in section and "no command here repeats them" not in section:
            assert ".venv/bin/python" in section, section[:80]


# ---- claims ----

def test_claims_about_the_demo_hold_for_the_measured_run():
    metrics = read_json(make_results.ASSETS / "demo.json")["metrics"]
    found = read_json(make_results.ASSETS / "paper.json")[make_results.FIRST]["frontier"]
    routes, rows = metrics["routes"], {row["name"]: row for row in found}
    main, plain, own = routes["dr.llm"], routes["vanilla"], rows["depth bias +0.0"]
    outside = [task["routes"]["dr.llm"]["gain"] for task in metrics["tasks"].values()
               if task["domain"] == "out"]
    gains = {name: (row["gain"], 1 - row["layers"] / plain["layers"]) for name, row in rows.items()
             if name.startswith("depth bias")}
    depths = [point["accuracy"] for point in metrics["fixed"]]
    fewer = gains["depth bias -0.5"]
    holds = {
        "More correct answers with fewer layers": main["interval"][0] > 0
        and main["layers"] < plain["layers"],
        "The paper's recipe does not work here": routes["dr.llm shortest"]["interval"][1] < 0,
        "Part of the gain is not routing": own["over interval"][0] > 0
        and own["over_static"] < own["gain"] and depths == sorted(depths),
        "Nothing is lost out of domain, on average": sum(outside) / len(outside) > -0.005,
        "We did not reach our aim of 6 points more with 7% fewer layers":
        not any(gain >= 0.06 and saved >= 0.07 for gain, saved in gains.values())
        and 0.03 < fewer[0] < 0.06 and fewer[1] > 0.05}
    section = RESULTS.split("\n## The demo\n")[1].split("\n## ")[0]
    assert re.findall(r"^- \*\*(.*?)\.\*\*", section, re.MULTILINE) == list(holds)
    assert all(holds.values()), holds


def test_claims_about_the_papers_experiments_hold_for_the_measured_ones():
    paper = read_json(make_results.ASSETS / "paper.json")
    own = {name: {row["name"]: row for row in rows}
           for name, rows in paper[make_results.FIRST].items()}
    methods, shapes, ood = own["table5"], own["figure5"], own["ood"]
    above = [row for name, row in methods.items() if name.startswith(
        ("ShortGPT", "LLM-Pruner", "LayerSkip", "MindSkip", "MoD", "MoR"))]
    assert len(above) == 6
    for row in above:
        assert row["interval"][1] < methods["Dr.LLM"]["interval"][0]
        assert row["over interval"][1] < methods["Dr.LLM"]["over_static"]
    assert methods["PoLar-like"]["interval"][1] > methods["Dr.LLM"]["interval"][0]  # not clearly
    small = [row["accuracy"] for name, row in shapes.items()
             if name.startswith("width") or name in ("1 window", "2 windows", "4 windows")]
    assert max(abs(value - shapes["8 windows"]["accuracy"]) for value in small) < 0.01
    assert ood["consensus, without guard"]["out interval"][1] < 0
    assert ood["consensus, with guard"]["out"] > -0.003
    assert 12 - ood["consensus, with guard"]["near layers"] > 2
    assert ood["shortest, without guard"]["out interval"][1] < 0
    assert ood["shortest, with guard"]["near"] < -0.05


@pytest.mark.parametrize("base", read_json(make_results.ASSETS / "paper.json"))
def test_claims_about_every_base_model_hold_for_the_measured_ones(base):
    found = read_json(make_results.ASSETS / "paper.json")[base]
    rows = {row["name"]: row for row in found["frontier"]}
    for depth_bias in (-1.0, -0.5, 0.0, 0.5, 1.0, 2.0):
        assert rows[f"depth bias {depth_bias:+.1f}"]["over interval"][0] > 0
    assert rows["interpolation +0.00"]["over interval"][1] < 0
    for name, row in rows.items():
        if name.startswith(("depth bias", "cost per layer")):
            assert row["over interval"][0] > 0 or row["layers"] > 12.9
            assert row["over interval"][0] <= 0 or row["layers"] < 14.4
    over = {row["name"]: row["over_static"] for row in found["figure5"] + found["table6"]}
    assert over["1 linear layer"] > over["8 windows"] > over["16 windows"]
    assert over["8 windows"] > over["width 16"]
    assert over["embeddings only"] > over["hidden states"] - 0.001


def test_figures_of_full_runs_in_the_tutorial_are_those_of_the_results():
    """Catches a table of the tutorial that was not changed with a new measurement."""
    sections_of = chapters()
    evidence, real = sections_of["6. The evidence"], sections_of["8. Real models"]
    choices = {row[0]: row for row in read_json(make_results.ASSETS / "measured.json")[
        "choices"]["rows"] if row[1] == "0"}
    for name in ("consensus", "shortest, the paper's"):
        assert f"| {name} | {choices[name][5]} |" in evidence
    run = read_json(make_results.ASSETS / "real.json")["runs"]["SmolLM2-135M, arithmetic"]
    rows = {row[0]: row for row in run["routes"]}
    for name, title in (("the paper's", "the paper's"), ("consensus", "consensus"),
                        ("safe, the default", "safe (the default)")):
        _, _, gain, layers, _ = rows[f"Dr.LLM, {title}"]
        assert f"| {name} | {gain} | {layers} |" in real
    saved, corrected = ("layers saved if the default path is correct",
                        "incorrect ones corrected")
    for name, search in (("SmolLM2-135M", run["search"]),
                         ("the paper's models", make_results.PAPERS_SEARCH)):
        assert f"| {name} | {search[saved]} | {search[corrected]} |" in real


# ---- the checks themselves ----

@pytest.mark.parametrize("page, old, new, notices", [
    ("docs/tutorial.md", "`test_tree_branches`", "`test_tree_branch`", wrong_names),
    ("docs/tutorial.md", "`mcts.propose_child_path`", "`mcts.propose_child`", wrong_names),
    ("docs/tutorial.md", "`mcts.propose_child_path`", "`mcst.propose_child_path`", wrong_names),
    ("README.md", "(assets/paths.svg)", "(assets/path.svg)",
     lambda text: wrong_links("README.md", text)),
    ("docs/your_model.md", "#7-how-to-know-that-a-routing-gain-is-fake", "#7-how-to-know",
     lambda text: wrong_links("docs/your_model.md", text)),
    ("docs/tutorial.md", "0.504 to 0.696", "0.504 to 0.697",
     lambda text: [n for section in sections(text) for n in unpinned(section)]),
    ("docs/your_model.md", "--choose shortest --no-guard", "--choose shortest --noguard",
     wrong_flags),
    ("docs/your_model.md", "--nproc-per-node 8 label.py", "--nproc-per-node 8 labels.py",
     wrong_commands),
    ("README.md", "--limit 200 --out", "--limits 200 --out", wrong_commands),
    ("docs/your_model.md", "routers=runs/mine", "router=runs/mine", wrong_commands),
    ("README.md", "make test ", "make tests ", wrong_commands),
])
def test_a_corrupted_page_is_noticed(in_root, page, old, new, notices):
    text = PAGES[page]
    assert old in text
    assert not notices(text) and notices(text.replace(old, new))
