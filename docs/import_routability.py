"""Imports finished runs of experiments/routability.py and rules.py into assets/routability.json:
tables with the command that made each. Rows of models for which no folder is given stay as they
were.

    .venv/bin/python docs/import_routability.py --routability "the demo" runs/routability \\
        --rules SmolLM2-135M runs/rules
"""
import argparse
from pathlib import Path

import numpy as np

import make_results  # noqa: F401 - puts the repository's root on the path
from make_results import ASSETS

import cli
from cli import bounds, percent, with_interval
from evaluate import FEW
from experiments.routability import as_row
from experiments.statistics import bootstrap, rank_correlation
from storage.files import read_json, write_json
from storage.run_folder import read_metrics


def table(rows, command):
    """A table of real.json's form, of rows {column: text}."""
    head = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[row.get(column, "") for column in head] for row in rows]
    return {"head": head, "rows": cells, "command": command}


def rows_of_others(stored, runs):
    """The rows {column: text} of a stored table, or of None, that are of no model of these runs."""
    if stored is None:
        return []
    names = {name for name, _ in runs}
    rows = [dict(zip(stored["head"], cells)) for cells in stored["rows"]]
    return [row for row in rows if row["model"] not in names]


def routability_tables(runs, stored):
    """The shares and bounds of every model and task, the control, and the order of bounds and
    gains. stored: the tables so far."""
    rows = rows_of_others(stored.get("routability"), runs)
    controls = rows_of_others(stored.get("shuffled"), runs)
    for model, folder in runs:
        made = read_json(folder / "routability.json")
        for task, figures in made["rows"].items():
            rows.append({"model": model, "task": task} | as_row(task, figures))
            rows[-1].pop("")
        low, high = made["shuffled"]["reliability"]
        controls.append({"model": model, "reliability, 95%": f"[{low:.2f}, {high:.2f}]",
                         "bound, 95%": bounds(made["shuffled"]["bound"])})
    command = ".venv/bin/python -m experiments.routability"
    return {"routability": table(rows, command), "shuffled": table(controls, command),
            "order": table([order_row(rows)], command)}


def order_row(rows):
    """How the order of the bounds agrees with that of the routers' gains, over the tasks of FEW
    questions at least that routers were measured on."""
    pairs = []
    for row in rows:
        if row["task"] != "all" and int(row["questions"]) >= FEW and row.get("routers"):
            bound, best_fixed, gain = (float(row[column].split()[0])
                                       for column in ("bound", "best fixed", "routers"))
            pairs.append((bound, gain, best_fixed + bound))
    of_bounds, gains, of_sums = zip(*pairs)
    return {"pairs of model and task": str(len(pairs)),
            "gains and bounds": correlation(gains, of_bounds),
            "gains and best fixed path plus bound": correlation(gains, of_sums)}


def correlation(a, b):
    """The rank correlation as text, with its interval over pairs."""
    a, b = np.array(a), np.array(b)
    low, high = bootstrap(lambda drawn: rank_correlation(a[drawn], b[drawn]), len(a))
    return f"{rank_correlation(a, b):+.2f} [{low:+.2f}, {high:+.2f}]"


def rules_table(runs):
    """The rule of the nearest questions on several models, side by side."""
    rows = []
    for model, folder in runs:
        metrics = read_metrics(folder)
        rule, routes = metrics["cross_validated"], metrics["routes"]
        routers = routes["dr.llm"]
        rows.append({
            "model": model, "training problems": str(metrics["training"]),
            "with an edit": str(metrics["edited"]), "test problems": str(routers["n"]),
            "base model %": percent(routes["vanilla"]["accuracy"]),
            "the rule, cross-validated": with_interval(rule["gain"], rule["interval"]),
            "its routers": with_interval(routers["gain"], routers["interval"]),
            "layers": f"{routers['layers']:.2f} of {routes['vanilla']['layers']:.0f}"})
    return table(rows, ".venv/bin/python -m experiments.rules")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for flag in ("--routability", "--rules"):
        parser.add_argument(flag, nargs=2, action="append", default=[], metavar=("NAME", "DIR"),
                            help="a model's name in the tables, and the folder of its results")
    parser.add_argument("--note", default="", help="of the tables imported now: questions, flags")
    args, file = parser.parse_args(argv), ASSETS / "routability.json"
    stored = read_json(file) if file.exists() else {}
    given = lambda runs: [(name, Path(folder)) for name, folder in runs]
    tables = {}
    if args.routability:
        tables |= routability_tables(given(args.routability), stored)
    if args.rules:
        tables["rules"] = rules_table(given(args.rules))
    for made in tables.values():
        made["note"] = args.note
    write_json(file, stored | tables)


if __name__ == "__main__":
    cli.run(main)
