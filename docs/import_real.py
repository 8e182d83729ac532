"""Imports finished runs on an independently pretrained model into assets/real.json, from where
make_results.py writes docs/real_model.md. A table of real.json stays as it was if the folder has
nothing for it. The folder holds runs of train.py: arithmetic-safe and arithmetic-consensus (with
--choose safe and --choose consensus), and optionally choices-safe and choices-consensus, their
routers asked other tasks in choices-consensus-outside and choices-shortest-outside, the output of
experiments/luck.py in luck.txt, and a run of experiments/rules.py in rules/.

    .venv/bin/python docs/import_real.py runs/real
"""
import argparse
from pathlib import Path

import make_results  # puts the repository's root on the path
from make_results import ASSETS, CELLS

import cli
from evaluate import ACTIONS
from experiments.lab import FinishedRun
from experiments.statistics import is_corrected, layers_saved, split_by_default
from storage.files import read_json, write_json

RUNS = {"arithmetic": "arithmetic", "choices": "ARC, by likelihood"}
MAKE = (".venv/bin/python train.py --model runs/real/SmolLM2-135M --dtype bfloat16 --choose "
        "consensus --out runs/real/arithmetic-consensus")
CHOICES = (".venv/bin/python train.py --model runs/real/SmolLM2-135M --dtype bfloat16 --score "
           "likelihood --choose consensus --data arc_easy=E.jsonl arc_challenge=C.jsonl --test "
           "arc_easy=F.jsonl arc_challenge=G.jsonl --out runs/real/choices-consensus")
FILES = ("E and C are the first 150 lines of ARC-Easy-Train.jsonl and ARC-Challenge-Train.jsonl, F "
         "and G the first 200 of ARC-Easy-Dev.jsonl and ARC-Challenge-Dev.jsonl; the others are "
         "the first 200 questions of validation sets, 100 of COPA")
RULES = (".venv/bin/python -m experiments.rules --model runs/real/SmolLM2-135M --dtype bfloat16 "
         "--data runs/fresh/label.jsonl --test runs/fresh/newest.jsonl --out runs/real/rules")
NAMES = {"dr.llm": "Dr.LLM, consensus", "dr.llm shortest": "Dr.LLM, the paper's"}
TITLES = {"vanilla": "base model", **NAMES}  # of routes in metrics.json
COLUMNS = ("accuracy %", "gain", "layers")


def figures(row, *columns):
    """Cells of a row's columns."""
    return [CELLS[column](row) for column in columns]


def score(row):
    """`72.3 (29.98)`: accuracy and layers."""
    return "{} ({})".format(*figures(row, "accuracy %", "layers"))


def run_of(folder, name, choice="consensus"):
    """The finished run of a name and choice of label."""
    return FinishedRun(folder / f"{name}-{choice}")


def domain(folder, name):
    """Rows of every route in domain: safe's routers, then all that the run of consensus asked."""
    safe = run_of(folder, name, "safe").metrics["routes"]["dr.llm"]
    yield ["Dr.LLM, safe (the default)", *figures(safe, *COLUMNS)]
    for route, row in run_of(folder, name).metrics["routes"].items():
        title = f"fixed path, {row['layers']:.0f} layers" if "fixed" in route else route
        yield [TITLES.get(route, title), *figures(row, *COLUMNS)]


def by_task(folder, name):
    """Rows of every task in domain: accuracy (layers) along the main routes."""
    for task, found in sorted(run_of(folder, name).metrics["tasks"].items()):
        scores = [score(found["routes"][route]) for route in ("vanilla", *NAMES)]
        yield [task, str(found["routes"]["vanilla"]["n"]), *scores]


def outside(folder, name):
    """Rows of every task that the routers of a run had not seen."""
    ours, paper = (run_of(folder, name, f"{choice}-outside").metrics
                   for choice in ("consensus", "shortest"))
    tasks = {task: (found["routes"], paper["tasks"][task]["routes"])
             for task, found in ours["tasks"].items()}
    for task, routes in (tasks | {"all": (ours["routes"], paper["routes"])}).items():
        gains = [" @ ".join(figures(of_choice["dr.llm"], "gain", "layers")) for of_choice in routes]
        base = routes[0]["vanilla"]
        yield [task, str(base["n"]), CELLS["accuracy %"](base), *gains]


def percentage(flags):
    """How many percent of some flags are true."""
    flags = list(flags)
    return 100 * sum(flags) / max(1, len(flags))


def correct_among_tried(records):
    """How many percent of the paths tried were correct."""
    correct = sum(len(record["correct"]) for record in records)
    return 100 * correct / max(1, sum(record["simulations"] + 1 for record in records))


def searched(folder, name):
    """A column of Table 2 and Figure 9: what the searches of a run found."""
    run = run_of(folder, name)
    num_layers = len(run.candidate_paths[0])
    records = list(run.searches(num_layers).values())
    correct, incorrect = split_by_default(records)
    saved = list(map(layers_saved, correct))
    labels = [record["decisions"] for record in records if record["correct"]]
    codes = [code for path in labels for code in path]
    shares = [percentage(code == action for code in codes) for action in range(len(ACTIONS))]
    return {"training questions": str(len(records)),
            "layers saved if the default path is correct":
                f"{sum(saved) / len(saved):.2f} of {num_layers}",
            "correct ones with a shorter correct path":
                f"{percentage(layers > 0 for layers in saved):.1f}%",
            "incorrect ones corrected":
                f"{percentage(map(is_corrected, incorrect)):.1f}% of {len(incorrect)}",
            f"shortest labels, {' / '.join(ACTIONS)}":
                " / ".join(f"{share:.1f}" for share in shares) + "%",
            "correct among the paths tried, default correct / incorrect":
                f"{correct_among_tried(correct):.1f}% / {correct_among_tried(incorrect):.1f}%"}


NUMBERED = [f"{number}." for number in range(1, 7)]
PAPER = {"layers saved if the default path is correct": "1.82 of 28 to 32",
         "incorrect ones corrected": "about 30%",
         f"shortest labels, {' / '.join(ACTIONS)}": "7.6 / 90 / 2.3%"}


SHOWN = {"table5": ["accuracy %", "gain", "layers", "over fixed paths"],
         "table6": ["accuracy %", "gain", "layers", "over fixed paths"],
         "figure6": ["accuracy %", "gain", "layers", "s/e/r %"],
         "figure4": ["layers", "per layer"],
         "figure1": ["accuracy %", "layers", "over fixed paths"]}
IN_THE_PICTURE = ("fixed", "interpolation")  # of figure1: too many rows
PAPERS = ("--model runs/real/SmolLM2-135M --dtype bfloat16 --run runs/real/arithmetic-consensus "
          "--seeds 5")


def experiments(folder):
    """{name: a table} of what experiments/paper.py measured on the arithmetic run; a row of one
    table is not shown again in a later one."""
    shown = set()
    for name, columns in SHOWN.items():
        file = run_of(folder, "arithmetic").folder / "paper" / f"{name}.json"
        if not file.exists():
            continue
        stored, rows = read_json(file), []
        for row in stored["result"]["rows"]:
            if not row["name"].startswith(IN_THE_PICTURE) and row["name"] not in shown:
                cells = [row[c] if c == "per layer" else CELLS[c](row) for c in columns]
                rows.append([row["name"], *cells])
        shown |= {row[0] for row in rows}
        yield name, table(["", *columns], rows,
                          f".venv/bin/python -m experiments.paper {name} {PAPERS}",
                          f"{stored['seconds'] / 60:.0f} minutes, one thread")


def table(head, rows, command, note=""):
    """A table as in measured.json."""
    return {"head": head, "rows": [*map(list, rows)], "command": command, "note": note}


def rules(folder):
    """The rows of routers that learned without a search."""
    for route, row in FinishedRun(folder / "rules").metrics["routes"].items():
        titles = TITLES | {"dr.llm": "Dr.LLM, labels of the nearest questions"}
        yield [titles.get(route, route), *figures(row, *COLUMNS)]


def printed(file):
    """The lines that experiments.luck printed into a file, its sections apart."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        lines += ["", line] if line[:2] in NUMBERED else [line]
    return lines[1:]


def imported(folder):
    """{name: a table as in measured.json} of all that is in the folder."""
    tables = {}
    runs = {name: title for name, title in RUNS.items()
            if (run_of(folder, name).folder / "metrics.json").exists()}
    columns = {title: searched(folder, name) for name, title in runs.items()}
    rows = [[key, *(column[key] for column in columns.values()), PAPER.get(key, "")]
            for key in next(iter(columns.values()))]
    tables["search"] = table(["", *columns, "the paper, 3 to 8 billion weights"], rows, MAKE,
                             f"the second column by `{CHOICES}`")
    for name in runs:
        command, note = (MAKE, "") if name == "arithmetic" else (CHOICES, FILES)
        tables[f"{name}_routes"] = table(["route", "accuracy %", "gain", "layers of 30"],
                                         domain(folder, name), command, note)
        tables[f"{name}_tasks"] = table(["task", "n", "base model", *NAMES.values()],
                                        by_task(folder, name), command, note)
        if (run_of(folder, name, "shortest-outside").folder / "metrics.json").exists():
            tables[f"{name}_outside"] = table(
                ["task", "n", "base model", "gain, consensus @ layers",
                 "gain, the paper's @ layers"], outside(folder, name), CHOICES, FILES)
    if (folder / "luck.txt").exists():
        tables["luck"] = printed(folder / "luck.txt")
    if (folder / "rules" / "metrics.json").exists():
        tables["rules_learned"] = table(["route", *COLUMNS], rules(folder), RULES)
    return tables | dict(experiments(folder))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="finished folder of tools/real.py")
    args, file = parser.parse_args(argv), ASSETS / "real.json"
    write_json(file, (read_json(file) if file.exists() else {}) | imported(args.folder))
    make_results.main()


if __name__ == "__main__":
    cli.run(main)
