"""Imports finished runs on an independently pretrained model into assets/real.json, from where
make_results.py writes docs/real_models.md and the README's table.

    .venv/bin/python train.py --model DIR --dtype bfloat16 --out runs/NAME
    cp -r runs/NAME runs/NAME-consensus
    .venv/bin/python train.py --model DIR --dtype bfloat16 --choose consensus --overwrite \\
        --out runs/NAME-consensus
    .venv/bin/python docs/import_real.py MODEL QUESTIONS runs/NAME --note "24 minutes, one thread"

MODEL and QUESTIONS are the words of the tables, e.g. SmolLM2-135M and arithmetic. The run without
a choice of label shows the default, safe; the other one shows consensus and the paper's labels. A
model whose tables were imported before gets new ones. What experiments/paper.py measured on the
second run is imported, too.
"""
import argparse
from pathlib import Path

import make_results  # puts the repository's root on the path
from make_results import ASSETS, CELLS, with_interval

import cli
from evaluate import ACTIONS
from experiments.lab import FinishedRun
from experiments.statistics import is_corrected, layers_saved, split_by_default
from storage.files import read_json, write_json

TITLES = {"vanilla": "base model", "dr.llm": "Dr.LLM, consensus",
          "dr.llm shortest": "Dr.LLM, the paper's"}  # of routes in metrics.json
COLUMNS = ("accuracy %", "gain", "layers")


def figures(row, *columns):
    """Cells of a row's columns."""
    return [CELLS[column](row) for column in columns]


# ---- what the searches found ----

def percentage(flags):
    """How many percent of some flags are true."""
    flags = list(flags)
    return 100 * sum(flags) / max(1, len(flags))


def correct_among_tried(records):
    """How many percent of the paths tried were correct."""
    correct = sum(len(record["correct"]) for record in records)
    return 100 * correct / max(1, sum(record["simulations"] + 1 for record in records))


def searched(run):
    """A column of the paper's Table 2 and Figure 9: what the searches of a run found."""
    num_layers = len(run.candidate_paths[0])
    records = list(run.searches(num_layers).values())
    correct, incorrect = split_by_default(records)
    saved = [layers_saved(record) for record in correct]
    codes = [code for record in records if record["correct"] for code in record["decisions"]]
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


# ---- the routes side by side ----

def over_fixed_paths(figures):
    """The gain over fixed paths of the same depth, with its interval."""
    return with_interval(figures["over_fixed"], figures["over_fixed_interval"])


def routes(safe, consensus):
    """Rows of every route in domain, from the metrics of the two runs."""
    yield ["Dr.LLM, safe (the default)", *figures(safe["routes"]["dr.llm"], *COLUMNS),
           over_fixed_paths(safe["routes"]["dr.llm"])]
    for route, row in consensus["routes"].items():
        title = f"fixed path, {row['layers']:.0f} layers" if "fixed" in route else route
        yield [TITLES.get(route, title), *figures(row, *COLUMNS),
               over_fixed_paths(row)]


def tasks(consensus):
    """Rows of every task: accuracy (layers) along the main routes."""
    for name, task in sorted(consensus["tasks"].items()):
        scores = ["{} ({})".format(*figures(task["routes"][route], "accuracy %", "layers"))
                  for route in TITLES]
        held_out = " (held out)" if task["domain"] == "out" else ""
        yield [name + held_out, str(task["routes"]["vanilla"]["n"]), *scores]


# ---- the paper's experiments on the run ----

SHOWN = {"table5": ["accuracy %", "gain", "layers", "over fixed paths"],
         "table6": ["accuracy %", "gain", "layers", "over fixed paths"],
         "figure6": ["accuracy %", "gain", "layers", "s/e/r %"],
         "figure4": ["layers", "per layer"],
         "figure1": ["accuracy %", "layers", "over fixed paths"]}
IN_THE_PICTURE = ("fixed", "cost per layer", "interpolation")  # of figure1: too many rows


def experiments(folder, command):
    """{name: a table} of what experiments/paper.py measured on a run; a row of one table is not
    shown again in a later one."""
    shown, tables = set(), {}
    for name, columns in SHOWN.items():
        file = folder / "paper" / f"{name}.json"
        if not file.exists():
            continue
        stored, rows = read_json(file), []
        for row in stored["result"]["rows"]:
            if not row["name"].startswith(IN_THE_PICTURE) and row["name"] not in shown:
                cells = [row[c] if c == "per layer" else CELLS[c](row) for c in columns]
                rows.append([row["name"], *cells])
        shown |= {row[0] for row in rows}
        tables[name] = {"head": ["", *columns], "rows": rows,
                        "command": f".venv/bin/python -m experiments.paper {name} {command}",
                        "note": f"{stored['seconds'] / 60:.0f} minutes"}
    return tables


# ---- the command ----

def imported(folder, note):
    """What assets/real.json has of the two runs of a model."""
    of_safe = FinishedRun(folder)
    of_consensus = FinishedRun(folder.with_name(f"{folder.name}-consensus"))
    safe, consensus = of_safe.metrics, of_consensus.metrics
    return {"command": ".venv/bin/python " + safe["command"], "note": note,
            "search": searched(of_safe), "routes": list(routes(safe, consensus)),
            "tasks": list(tasks(consensus))}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="its name in the tables")
    parser.add_argument("questions", help="their name in the tables, e.g. arithmetic")
    parser.add_argument("folder", type=Path, help="of the run with the default choice of label")
    parser.add_argument("--note", default="", help="how long the run took, on what")
    args, file = parser.parse_args(argv), ASSETS / "real.json"
    stored = read_json(file)
    name = f"{args.model}, {args.questions}"
    stored["runs"] = {name: imported(args.folder, args.note)} | {
        of: run for of, run in stored["runs"].items() if of != name}
    consensus = args.folder.with_name(f"{args.folder.name}-consensus")
    stored |= experiments(consensus, f"--run {consensus}")
    write_json(file, stored)
    make_results.main()


if __name__ == "__main__":
    cli.run(main)
