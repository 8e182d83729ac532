"""Imports finished runs of experiments/routability.py, rules.py and voting.py into
assets/routability.json: tables with the command that made each. A table stays as it was if no
folder is given for it.

    .venv/bin/python docs/import_routability.py --routability "the demo" runs/routability \\
        --rules SmolLM2-135M runs/rules --voting SmolLM2-135M runs/voting
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


def routability_tables(runs):
    """The shares and bounds of every model and task, and the order of bounds and gains: over tasks
    of FEW questions at least, or over all questions of a model that has no such task."""
    rows, controls, pairs = [], [], []
    for model, folder in runs:
        made = read_json(folder / "routability.json")
        large = {task for task, figures in made["rows"].items()
                 if figures["n"] >= FEW and task != "all"} or {"all"}
        for task, figures in made["rows"].items():
            rows.append({"model": model, "task": task} | as_row(task, figures))
            rows[-1].pop("")
            if task in large and "routers" in figures:
                gain = figures["routers"]
                pairs.append((figures["bound"], gain, figures["best fixed"] + figures["bound"]))
        low, high = made["shuffled"]["reliability"]
        controls.append({"model": model, "reliability, 95%": f"[{low:.2f}, {high:.2f}]",
                         "bound, 95%": bounds(made["shuffled"]["bound"])})
    command = ".venv/bin/python -m experiments.routability"
    tables = {"routability": table(rows, command), "shuffled": table(controls, command)}
    if len(pairs) > 2:
        of_bounds, gains, of_sums = zip(*pairs)
        tables["order"] = table([{
            "pairs of model and task": str(len(pairs)),
            "gains and bounds": correlation(gains, of_bounds),
            "gains and best fixed path plus bound": correlation(gains, of_sums)}], command)
    return tables


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


def voting_table(runs, name):
    """The rows on votes, or on confidence, of several models."""
    rows = []
    for model, folder in runs:
        made = read_json(folder / "voting.json")
        for row in made[name]:
            rows.append({"model": model, "questions": str(made["questions"])} | {
                key or "answer": cell for key, cell in row.items()})
    return table(rows, ".venv/bin/python -m experiments.voting")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for flag in ("--routability", "--rules", "--voting"):
        parser.add_argument(flag, nargs=2, action="append", default=[], metavar=("NAME", "DIR"),
                            help="a model's name in the tables, and the folder of its results")
    parser.add_argument("--note", default="", help="of the tables imported now: questions, flags")
    args, file = parser.parse_args(argv), ASSETS / "routability.json"
    given = lambda runs: [(name, Path(folder)) for name, folder in runs]
    tables = {}
    if args.routability:
        tables |= routability_tables(given(args.routability))
    if args.rules:
        tables["rules"] = rules_table(given(args.rules))
    if args.voting:
        for name in ("votes", "confidence"):
            tables[name] = voting_table(given(args.voting), name)
    for made in tables.values():
        made["note"] = args.note
    write_json(file, (read_json(file) if file.exists() else {}) | tables)


if __name__ == "__main__":
    cli.run(main)
