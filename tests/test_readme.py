"""The README is run: its examples, its commands, its figures, and every name it gives.

A fence is one of six kinds: `python` is executed in order as doctests, values exact; `console` is
executed in a copy of the project and its output compared, a line of `...` standing for any; of
`sh`, too long to run, every program, flag and value is given to that program's own parser;
`text` is generated from assets/demo.json or a drawing; `math` and `bibtex` are not code.

A decimal number or one of 1,000 and more in the prose must come from somewhere: from a run or a
default (FIGURES of assets/update_readme.py), from the section's python examples, or the paragraph
says in a comment which command measured it, or whom it quotes.
"""
import argparse
import ast
import contextlib
import doctest
import functools
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "assets"))

import draw  # noqa: E402
import evaluate  # noqa: E402
import update_readme  # noqa: E402
from cli import InputError, read_json  # noqa: E402

README = (ROOT / "README.md").read_text(encoding="utf-8")
KINDS = ("python", "console", "sh", "text", "math", "bibtex")
GENERATED = re.compile(r"<!-- generated: \w+ -->\n.*?<!-- end -->\n", re.DOTALL)
SOURCE = re.compile(r"<!-- (measured|quoted): (.*?) -->")
INSTALLED = {"lm-eval"}  # optional extras that the README may tell to install


@dataclass
class Fence:
    kind: str
    text: str
    line: int  # of the README, from 1


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


# ---- examples ----

def failed_examples(text):
    """What python examples give that the README does not say; all share one namespace."""
    names, said = {}, io.StringIO()
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.REPORT_NDIFF)
    for fence in fences(text):
        if fence.kind == "python":
            example = doctest.DocTestParser().get_doctest(
                fence.text, names, f"README.md:{fence.line}", "README.md", fence.line)
            assert example.examples, f"line {fence.line}: no example starts with >>>"
            runner.run(example, out=said.write, clear_globs=False)
            names = example.globs
    return said.getvalue()


@pytest.fixture
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_python_examples_print_what_the_readme_says(in_root):
    assert not failed_examples(README)


def test_wrong_values_in_examples_are_noticed(in_root):
    changed = README
    for value in ("(0.5, 1.4986, 2.75, -0.7514)", "[36, 45, 33]", "8 81920 81920"):
        assert changed.count(value) == 1
        changed = changed.replace(value, value[:-2] + "7" + value[-1:])
    assert failed_examples(changed).count("Failed example") == 3


# ---- commands that are run ----

def sessions(text):
    """[(command, output)] of a console block."""
    commands = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
    return [tuple(command.split("\n", 1)) for command in commands]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A folder like a clean clone: what is in it are links, what commands make is its own."""
    folder = tmp_path_factory.mktemp("clone")
    for entry in (*ROOT.glob("*.py"), *(ROOT / name for name in ("demo", "extras", "assets"))):
        (folder / entry.name).symlink_to(entry)
    return folder


def run(command, folder):
    """What a command prints on both streams; progress bars are off."""
    words = shlex.split(command)
    assert words[0] == "python", command
    done = subprocess.run([sys.executable, *words[1:]], cwd=folder, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          env=os.environ | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"})
    assert done.returncode == (2 if "error: " in done.stdout else 0), done.stdout
    return done.stdout


def test_console_commands_print_what_the_readme_says(copy):
    checker = doctest.OutputChecker()
    asked = [pair for fence in fences(README) if fence.kind == "console"
             for pair in sessions(fence.text)]
    assert asked
    for command, wanted in asked:
        printed = run(command, copy)
        assert wanted.strip() not in ("", "..."), f"nothing is compared: {command}"
        assert checker.check_output(wanted, printed, doctest.ELLIPSIS), f"{command}\n{printed}"


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
    tree = ast.parse((ROOT / "extras" / "lm_eval_drllm.py").read_text())
    maker = next(f for c in tree.body if isinstance(c, ast.ClassDef) for f in c.body
                 if isinstance(f, ast.FunctionDef) and f.name == "__init__")
    known = {argument.arg for argument in maker.args.args}
    wrong = {pair.split("=")[0] for pair in given.split(",")} - known
    return f"no model_args {wrong}" if wrong else ""


def wrong_in_pytest(words):
    """Files and options of a pytest command that are not there."""
    missing = [w for w in words if "/" in w and not (ROOT / w.split("::")[0]).exists()]
    flags = [w for w in words if w.startswith("--")]
    options = (ROOT / "tests" / "conftest.py").read_text()
    return "".join(f"no {w}; " for w in missing + [f for f in flags if f'"{f}"' not in options])


def misunderstood(command):
    """'' if a command's program exists and takes these flags and values, else what is wrong."""
    words = shlex.split(command, comments=True)
    if words[0] == "torchrun" and words[1] == "--nproc-per-node" and words[2].isdigit():
        words = ["python", *words[3:]]
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return "" if set(words[1:]) <= set(targets) else f"make has only {targets}"
    if words[:2] == ["pip", "install"]:
        return "" if set(words[2:]) <= INSTALLED else f"not an extra: {words[2:]}"
    if words[0] == "pytest" or words[:3] == ["python", "-m", "pytest"]:
        return wrong_in_pytest(words[words.index("pytest") + 1:])
    if words[0] != "python":
        return f"no rule for {words[0]}"
    module = words[2] if words[1] == "-m" else words[1].removesuffix(".py").replace("/", ".")
    if not (ROOT / f"{module.replace('.', '/')}.py").is_file():
        return f"no program {module}"
    arguments = words[3:] if words[1] == "-m" else words[2:]
    if module == "extras.lm_eval_drllm":
        return harness_arguments(words)
    return parse(module, arguments)


def read_commands(text):
    """Commands that are shown but not run: in sh blocks, in the prose, behind `measured`."""
    for fence in fences(text):
        if fence.kind == "sh":
            yield from fence.text.replace("\\\n", " ").strip().splitlines()
    starts = ("python ", "make", "torchrun ", "pytest ", "pip ")
    yield from (span for span in code_spans(text) if span == "make" or span.startswith(starts[:1]
                + ("make ",) + starts[2:]))
    for fence in fences(text):
        if fence.kind == "text":
            yield from re.findall(r"^\$ (.*)", fence.text, re.MULTILINE)
    yield from (what for kind, what in SOURCE.findall(text) if kind == "measured")


def wrong_commands(text):
    return [f"{command}: {wrong}" for command in read_commands(text)
            if (wrong := misunderstood(command))]


def test_commands_name_programs_and_flags_that_exist(in_root):
    assert len(list(read_commands(README))) > 10
    assert not wrong_commands(README)


# ---- names ----

def wrong_flags(text):
    """Flags in the prose that no program of the project has."""
    sources = "".join(file.read_text(encoding="utf-8") for file in ROOT.glob("*.py"))
    sources += "".join(file.read_text() for file in [*ROOT.glob("extras/*.py"),
                                                     *ROOT.glob("course/*.py"),
                                                     *ROOT.glob("tests/conftest.py")])
    flags = {word for span in code_spans(text) if span.startswith("--")
             for word in span.split() if word.startswith("--")}
    return [flag for flag in flags if f'"{flag}"' not in sources]


def slug(heading):
    """The anchor a hub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@functools.cache
def defined(file):
    """Functions, classes and constants at a file's top level."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node]
        names |= {getattr(t, "name", getattr(t, "id", None)) for t in targets}
    return names


def all_tests():
    return set().union(*(defined(file) for file in ROOT.glob("tests/test_*.py")))


def wrong_names(text):
    """Links, files, functions and tests that the README names and the project does not have."""
    anchors = {slug(h) for h in re.findall(r"^#+ (.*)", without_fences(text), re.MULTILINE)}
    wrong = []
    for target in re.findall(r"\]\(([^)]+)\)", without_fences(text)):
        if target.startswith("#"):
            wrong += [] if target[1:] in anchors else [target]
        elif not target.startswith("https://"):
            wrong += [] if (ROOT / target).exists() else [target]
    for span in code_spans(text):
        if re.fullmatch(r"test_\w+", span):
            wrong += [] if span in all_tests() else [span]
            continue
        if (found := re.fullmatch(r"(\w+)\.([A-Za-z_]\w*)", span)) and found[2] != "py" \
                and (ROOT / f"{found[1]}.py").exists():
            file, name = ROOT / f"{found[1]}.py", found[2]
        elif re.fullmatch(r"[\w/]+\.py|(?:demo|assets|extras|course)/[\w./]*", span):
            wrong += [] if (ROOT / span).exists() else [span]
            continue
        else:
            continue
        wrong += [] if file.exists() and name in defined(file) else [span]
    return wrong


def unknown_modules(text):
    """Spans like `mcst.score` whose file does not exist."""
    files = {"labels", "paths", "routers", "metrics", "config", "tokenizer", "demo"}  # of a run
    spans = [re.fullmatch(r"([a-z_]+)\.([A-Za-z_]\w*)", span) for span in code_spans(text)]
    return [s[0] for s in spans if s and s[1] not in files and not (ROOT / f"{s[1]}.py").exists()]


def test_links_files_functions_and_tests_exist():
    assert not wrong_names(README) and not unknown_modules(README)


def test_every_departure_names_a_test():
    section = README.split("\n## Departures\n")[1].split("\n## ")[0]
    items = re.split(r"^\d+\. ", section, flags=re.MULTILINE)[1:]
    assert len(items) >= 10 and all("`test_" in item for item in items)
    assert [int(n) for n in re.findall(r"^(\d+)\. ", section, re.MULTILINE)] == list(
        range(1, len(items) + 1))


def test_every_file_of_the_core_has_its_section_in_order():
    files = re.findall(r"`(\w+\.py)`", " ".join(re.findall(r"^### \d.*", README, re.MULTILINE)))
    assert files == [f"{name}.py" for name in ("model_llama hf_folder mcts tasks grading answers "
                                               "label choose drllm train evaluate").split()]


# ---- numbers ----

NUMBER = re.compile(r"(?<![\w.§/-])\d+(?:,\d{3})*(?:\.\d+)?(?![\w/]|\.\d)")
NAMES_WITH_NUMBERS = re.compile(r"Python 3\.\d+|Llama 3\.\d|Qwen2\.5|arXiv:[\d.]+")


def plain(number):
    return number.replace(",", "")


def is_a_figure(number):
    return "." in number or len(plain(number)) > 3 and number != plain(number)


def sections(text):
    return re.split(r"^(?=#{2,3} )", text, flags=re.MULTILINE)


def unpinned(text):
    """Figures in the prose that nothing produces."""
    wrong = []
    for template in update_readme.FIGURES:
        text = update_readme.sentence(template).sub("", text)
    for section in sections(GENERATED.sub("", text)):
        code = " ".join(f.text for f in fences(section) if f.kind == "python")
        known = set(re.findall(r"\d+(?:\.\d+)?", code))
        for paragraph in without_fences(section).split("\n\n"):
            if SOURCE.search(paragraph):
                continue
            prose = re.sub(r"`[^`\n]+`|\]\([^)]+\)", "", NAMES_WITH_NUMBERS.sub("", paragraph))
            wrong += [number for number in NUMBER.findall(prose)
                      if is_a_figure(number) and plain(number) not in known]
    return wrong


def test_every_figure_in_the_prose_comes_from_somewhere():
    assert not unpinned(README)


def test_tables_figures_and_picture_are_those_of_the_measured_run():
    assert README == update_readme.rewritten(README)
    cases = read_json(update_readme.DEMO)["picture"]
    assert update_readme.PICTURE.read_text() == draw.draw(cases)
    assert all(len(case["decisions"]) == 12 for case in cases)


def test_the_printed_report_is_what_evaluate_prints_for_the_metrics(capsys):
    """The log and the metrics are of one run, and evaluate.py still prints such a report."""
    demo = read_json(update_readme.DEMO)
    lines, metrics = demo["printed"], demo["metrics"]
    first = next(n for n, line in enumerate(lines) if "domain, " in line)
    rows = lines[first + 2:first + 2 + len(metrics["routes"])]
    names = {route: row[:22].strip() for route, row in zip(metrics["routes"], rows)}
    evaluate.print_tables(metrics, names)
    made = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line]
    assert lines[first:first + len(made)] == made


def test_the_claims_of_the_result_hold_for_the_measured_run():
    metrics = read_json(update_readme.DEMO)["metrics"]
    routes, points = metrics["routes"], metrics["frontier"]
    main, plain = routes["dr.llm"], routes["vanilla"]
    own = next(point for point in points if not point["tilt"])
    outside = update_readme.brief("", metrics)["outside"]
    gains = [(p["accuracy"] - plain["accuracy"], 1 - p["layers"] / plain["layers"]) for p in points]
    holds = {
        "More right answers with fewer layers": main["interval"][0] > 0
        and main["layers"] < plain["layers"],
        "The paper's own labels do not work here": routes["dr.llm shortest"]["interval"][1] < 0,
        "Part of the gain is not routing": 0 < own["interval"][0]
        and own["over_static"] < main["gain"],
        "Out of domain nothing breaks": outside > -0.005,
        "One or the other, not yet both": not any(g >= 0.06 and s >= 0.07 for g, s in gains)}
    section = README.split("\n## The result\n")[1].split("\n## ")[0]
    assert re.findall(r"^- \*\*(.*?)\.\*\*", section, re.MULTILINE) == list(holds)
    assert all(holds.values()), holds


def test_the_claims_about_the_papers_experiments_hold_for_the_measured_ones():
    paper = read_json(update_readme.PAPER)
    own = {name: {row["name"]: row for row in rows}
           for name, rows in next(iter(paper.values())).items()}
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
    assert ood["consensus, bare"]["out interval"][1] < 0 and ood["consensus, gate"]["out"] > -0.003
    assert 12 - ood["consensus, gate"]["near layers"] > 2
    assert ood["shortest, bare"]["out interval"][1] < 0 and ood["shortest, gate"]["near"] < -0.05
    assert len(paper) == 4
    for found in paper.values():
        rows = {row["name"]: row for row in found["frontier"]}
        for tilt in (-1.0, -0.5, 0.0, 0.5, 1.0, 2.0):
            assert rows[f"tilt {tilt:+.1f}"]["over interval"][0] > 0
        assert rows["control +0.00"]["over interval"][1] < 0
        for name, row in rows.items():
            if name.startswith(("tilt", "price")):
                assert row["over interval"][0] > 0 or row["layers"] > 12.9
                assert row["over interval"][0] <= 0 or row["layers"] < 14.4
        over = {row["name"]: row["over_static"] for row in found["figure5"] + found["table6"]}
        assert over["1 linear layer"] > over["8 windows"] > over["16 windows"]
        assert over["8 windows"] > over["width 16"]
        assert over["embeddings only"] > over["hidden states"] - 0.001


def test_fences_are_of_known_kinds_and_text_is_generated_or_a_drawing():
    assert {fence.kind for fence in fences(README)} <= set(KINDS)
    loose = [f for f in fences(GENERATED.sub("", README)) if f.kind == "text"]
    assert all(not NUMBER.search(fence.text) for fence in loose)


@pytest.mark.parametrize("old, new, notices", [
    ("`test_tree_branches`", "`test_tree_branch`", wrong_names),
    ("`mcts.score`", "`mcts.scores`", wrong_names),
    ("`mcts.score`", "`mcst.score`", unknown_modules),
    ("(assets/paths.svg)", "(assets/path.svg)", wrong_names),
    ("(#the-result)", "(#the-results)", wrong_names),
    ("401,392", "401,393", unpinned),
    ("0.504 to 0.696", "0.504 to 0.697", unpinned),
    ("loss of 0.85 points", "loss of 0.85 points\n\nor 0.86", unpinned),
    ("--choose shortest --no-gate", "--choose shortest --nogate", wrong_flags),
    ("--nproc-per-node 8 label.py", "--nproc-per-node 8 labels.py", wrong_commands),
    ("--limit 200 --out", "--limits 200 --out", wrong_commands),
    ("routers=runs/mine", "router=runs/mine", wrong_commands),
    ("measured: make", "measured: make all", wrong_commands),
])
def test_a_corrupted_readme_is_noticed(in_root, old, new, notices):
    assert old in README
    assert not notices(README) and notices(README.replace(old, new))


def test_flags_in_the_prose_exist():
    assert not wrong_flags(README)


def is_noticed(changed):
    try:
        return update_readme.rewritten(changed) != changed
    except InputError:
        return True


def test_stale_tables_and_figures_and_lost_sentences_are_noticed():
    assert not is_noticed(README)
    assert is_noticed(README.replace("12.00", "12.01", 1))
    assert is_noticed(README.replace("<!-- generated: bases -->\n| base", "| base"))
    for template in update_readme.FIGURES:
        here = update_readme.sentence(template).search(README)
        lost = README[:here.start()] + README[here.end():]
        start, end = here.span(1)
        stale = README[:start] + "7" + README[start:end] + README[end:]
        assert is_noticed(lost) and is_noticed(stale), template
