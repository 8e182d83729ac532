"""The paper's tables and figures on your own run, one command each, with what its referees asked.

    table2  search statistics         figure1  accuracy against layers    figure9  labels
    table3  in domain                 figure4  layers used, by task       router   F1, agreement
    table4  out of domain             figure5  width, depth, windows      ood      gate, anchors
    table5  other methods             figure6  the knob p                 frontier over static
    table6  states or embeddings      figure7  losses

Each prints a table and leaves NAME.json (command, seeds, model, versions) and, where matplotlib is
installed, NAME.png in the output folder. A finished table, or a finished row of one, is not
computed again. figure10 and figure8 are part of figure4 and figure5.

    python -m extras.paper table3 --run runs/demo
"""
import argparse
import json
import platform
import re
import sys
import time
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import cli
import train
from answers import prepare
from baselines import BASELINES, Setting
from choose import similarity_space, upper_hull
from cli import InputError, read_json, write_json
from diagnostics import interval
from drllm import RouterRoute, fit_gate
from evaluate import Comparison, static_at, summarise
from label import DEMO_MODEL, content_hash, read_rows
from model_llama import fixed
from extras import pictures
from extras.experiments import EXPERIMENTS
from extras.studies import static_paths
from tables import aligned, percent

INHERITED = ("simulations", "clusters", "seed", "choose", "price", "no_gate", "limit")  # of a run
ALIASES = {"figure8": "figure5", "figure10": "figure4"}  # two sides of one experiment
PERCENT = ("accuracy", "sd", "gain", "over_static", "in", "near", "far", "out", "bare", "gate")
GIVEN = ("model", "device", "dtype", "data", "test", "batch_size")  # on the command line


class Lab:
    """One finished run of train.py, its questions, and what the experiments share."""

    def __init__(self, args):
        self.args, self.out = args, args.out or args.run / "paper"
        settings = args.run / "config.json"
        if not settings.exists():
            raise InputError(f"{settings}: no such file; --run is the folder of a finished run "
                             "of train.py")
        stored = read_json(settings)
        flags = train.parse_args([])
        for name in INHERITED:
            setattr(flags, name, stored.get(name, getattr(flags, name)))
        for name in GIVEN:
            setattr(flags, name, getattr(args, name))
        flags.out = args.run
        self.run = train.Run(flags)
        self.model, self.tokenizer = self.run.model, self.run.tokenizer
        self.fingerprint = self.model.fingerprint()
        if stored.get("fingerprint") != self.fingerprint:
            raise InputError(f"{settings}: a run of model {stored.get('fingerprint')}; "
                             f"{args.model} is {self.fingerprint}")
        self.seeds = list(range(flags.seed, flags.seed + args.seeds))  # as train.py counts them
        self.L = self.model.config.num_layers
        self._read_questions(flags)

    def _read_questions(self, flags):
        to_label, held_out = train.load_data(flags)
        self.labelled, _ = prepare(to_label[:flags.limit], self.tokenizer, self.model)
        rows = read_rows(self.args.run / "labels.jsonl")
        missing = [p.question.id for p in self.labelled if p.question.id not in rows]
        if missing:
            raise InputError(f"{self.args.run / 'labels.jsonl'}: {len(missing)} of "
                             f"{len(self.labelled)} label questions have no row, e.g. {missing[0]}")
        self.rows = [rows[p.question.id] for p in self.labelled]
        self.tasks = {p.question.task for p in self.labelled}
        tests, _ = prepare(held_out, self.tokenizer, self.model)
        self.inside = [p for p in tests if p.question.task in self.tasks][:self.args.limit]
        if not self.inside:
            raise InputError(f"{(flags.test or ['--data'])[0]}: none of {len(tests)} test "
                             "questions is of a labelled task "
                             f"({', '.join(sorted(self.tasks))})")
        self.outside = self._some_of_each([p for p in tests if p.question.task not in self.tasks])

    def _some_of_each(self, prompts):
        """As many prompts as in domain at most, the same number of every task."""
        counts = {p.question.task: 0 for p in prompts}
        kept = []
        for prompt in prompts:
            counts[prompt.question.task] += 1
            if counts[prompt.question.task] <= max(1, self.args.limit // len(counts)):
                kept.append(prompt)
        return kept

    @property
    def key(self):
        """What must be the same for a stored result to stand for this one."""
        asked = (*self.labelled, *self.inside, *self.outside)
        flags = self.run.args
        return {"model": self.fingerprint, "seeds": self.seeds, "depth": self.args.depth,
                **{name: getattr(flags, name) for name in (*INHERITED, "dtype")},
                "train": asdict(self.run.config), "labels": train.digest(self.rows)[:16],
                "questions": train.digest([content_hash(p) for p in asked])[:16]}

    # ---- labels and routers ----

    @cached_property
    def _labels(self):
        return train.labels_of(self.run, self.rows, self.labelled)

    def labels(self, choice=None):
        """A path or None per label question, by one choice."""
        return self._labels[0][choice or self.run.args.choose]

    @property
    def statics(self):
        """[(length, path)]: the static frontier of the label questions."""
        return self._labels[1]

    @cached_property
    def space(self):
        """(N, 3D) where the label questions lie to each other."""
        default = torch.ones(len(self.labelled), self.L, dtype=torch.long)
        return similarity_space(*train.features(self.model, self.labelled, default,
                                                store=self.run.store))

    @cached_property
    def measured_paths(self):
        """(paths, right (N, K)): what training tried on every label question."""
        return train.measured_paths(self.run, self.rows, self.labelled, self.space)

    def routers(self, choice=None):
        """The run's own routers of a choice, a seed each; trained here if the run has fewer."""
        choice = choice or self.run.args.choose
        return train.fit(self.run, choice, self.labelled, self.labels(choice), self.seeds)

    def examples(self, labels, windows=8):
        """(pooled (N, L, W, D), counts (N,), decisions (N, L)) of the questions with a label."""
        kept = [n for n, path in enumerate(labels) if path is not None]
        decisions = torch.tensor([labels[n] for n in kept])
        prompts = [self.labelled[n] for n in kept]
        return *train.features(self.model, prompts, decisions, windows,
                               store=self.run.store), decisions

    def train(self, pooled, counts, decisions, config=None, gate_on=None, **more):
        """Routers of every seed. gate_on: how many of the first rows the gate is fitted on."""
        trained, config = [], config or self.run.config
        for seed in tqdm(self.seeds, desc="routers", unit="seed", leave=False):
            routers = train.train_routers(pooled, counts, decisions, seed, config,
                                          self.args.device, **more)
            if config.gate and len(pooled) >= train.SMALLEST_GROUP:
                routers.set_gate(*fit_gate(pooled[:gate_on], counts[:gate_on], seed))
            trained.append(routers)
        return trained

    # ---- answers ----

    def routes(self, choice=None, **more):
        """The run's own routers as routes, a seed each."""
        return [RouterRoute(routers, **more) for routers in self.routers(choice)]

    def comparison(self, prompts):
        table = Comparison(self.model, self.tokenizer, prompts, self.tasks, self.args.batch_size)
        table.add("vanilla", [None])
        return table

    @cached_property
    def table(self):
        """In domain, vanilla answered."""
        return self.comparison(self.inside)

    @cached_property
    def far_table(self):
        """Out of domain, vanilla answered."""
        if not self.outside:
            raise InputError("no test question is of a task that the labels do not know; --test "
                             "FILE adds some")
        return self.comparison(self.outside)

    def own(self, table):
        """The Outcome of the run's own routers on the questions of a table."""
        return table.outcomes.get("dr.llm") or table.add("dr.llm", self.routes())

    @cached_property
    def static_paths(self):
        """{length: (share of the label questions answered, path)}."""
        return static_paths(self)

    @cached_property
    def static_points(self):
        """[(length, right (N,))] in domain: what routing is to beat at its own depth. Those of the
        static paths that no mix of two others beats, on the label questions."""
        points = [(length, share, path) for length, (share, path) in self.static_paths.items()]
        return [(length, self.table.ask("static", [fixed(path)]).right)
                for length, _, path in upper_hull(points)]

    def figures(self, routes=None, table=None, name="", **more):
        """The summary of routes, or of the run's own routers, on all questions of a table; in
        domain by default, and then also what they gain over the mix of static paths of the same
        depth."""
        inside, table = table is None, table or self.table
        outcome = table.ask(name, routes, **more) if routes is not None else self.own(table)
        rows = torch.ones(len(table.prompts), dtype=torch.bool)
        found = summarise(outcome, table.outcomes["vanilla"], rows)
        found["seconds"] = round(outcome.seconds, 2)
        if inside:
            over = outcome.right - static_at(found["layers"], self.static_points)
            found |= {"over_static": over.mean().item(), "over interval": list(interval(over))}
        return found

    def setting(self, table, depth=None, labels=None):
        """What baselines may use to answer a table's questions."""
        outcome = self.own(table)
        return Setting(self.model, self.tokenizer, table.prompts, self.routers(),
                       outcome.seeds[0].decisions, depth or outcome.layers.mean().item(),
                       self.labelled, labels, batch_size=self.args.batch_size)

    def method(self, name, depth=None):
        """The in-domain row of one of BASELINES; depth: the mean layers it is to meet."""
        def make():
            baseline = BASELINES[name]
            entrant = baseline.make(self.setting(self.table, depth, self.labels()))
            return {"note": baseline.note, **self.figures(
                entrant.routes, name=name, model=entrant.model, layers_of=entrant.layers_of)}
        return self.row(BASELINES[name].title + (f" @{depth:.2f}" if depth else ""), make)

    def row(self, name, make):
        """make() once: the row is kept under the name beside the tables."""
        file = self.out / "rows" / f"{re.sub('[^a-z0-9.+-]+', '-', name.lower())}.json"
        if file.exists() and (stored := read_json(file))["key"] == self.key:
            return stored["row"]
        row = {"name": name} | make()
        write_json(file, {"key": self.key, "row": row})
        return row


# ---- what a person reads ----

def text_of(value):
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) >= 100 or 0 < abs(value) < 0.001 else f"{value:.3f}"
    return str(value)


def cells(row):
    """A row's figures as text, in the order of the columns."""
    shown = {}
    for key, value in row.items():
        if key in PERCENT and value is not None:
            shown[key] = percent(value, sign=key not in ("accuracy", "sd"))
        elif key.endswith("layers"):
            shown[key] = f"{value:.2f}"
        elif key.endswith("interval"):
            shown[key] = f"[{percent(value[0], True)}, {percent(value[1], True)}]"
        elif value is None:
            shown[key] = ""
        elif not isinstance(value, (list, dict)):
            shown[key] = text_of(value)
    return shown


def print_result(name, result):
    """Title, rows in columns, and the notes of one experiment."""
    print(f"\n{name}: {result['title']}")
    rows = [cells(row) for row in result["rows"]]
    print("\n".join([*aligned(rows, left=("name",)), *result.get("notes", [])]))


# ---- the commands ----

def perform(lab, name):
    """The result of one experiment, computed or found; prints it and writes JSON and picture."""
    file, began = lab.out / f"{name}.json", time.time()
    if file.exists() and (stored := read_json(file))["key"] == lab.key:
        result = stored["result"]
    else:
        result = EXPERIMENTS[name](lab)
        versions = {"python": platform.python_version(), "torch": torch.__version__,
                    "numpy": np.__version__}
        write_json(file, {"key": lab.key, "command": " ".join(sys.argv), "versions": versions,
                          "seconds": round(time.time() - began, 1), "result": result})
    print_result(name, json.loads(json.dumps(result)))
    picture = lab.out / f"{name}.png"
    if not picture.exists() or picture.stat().st_mtime < file.stat().st_mtime:
        pictures.draw(name, result, picture)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="+", choices=[*EXPERIMENTS, *ALIASES, "all"], metavar="NAME",
                        help=f"{', '.join(EXPERIMENTS)}, or all")
    cli.add_model_flags(parser, DEMO_MODEL)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), metavar="DIR",
                        help="finished run folder of train.py (default: %(default)s)")
    parser.add_argument("--data", nargs="+", metavar="FILE",
                        help="the question files that were labelled (default: the demo's)")
    parser.add_argument("--test", nargs="+", metavar="FILE", help="held-out question files")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: DIR/paper of --run")
    parser.add_argument("--seeds", type=int, default=3, help="routers trained per row")
    parser.add_argument("--limit", type=int, default=1000,
                        help="test questions in domain, and out of it (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=512, help="questions answered at once")
    parser.add_argument("--depth", type=float,
                        help="table5: mean layers the methods are to meet; default: Dr.LLM's own")
    args = parser.parse_args(argv)
    args.skip_bad_rows = False
    if args.seeds < 1 or args.limit < 1:
        parser.error(f"--seeds and --limit must be at least 1, got {args.seeds} and {args.limit}")
    return args


def main(argv=None):
    args = parse_args(argv)
    lab = Lab(args)
    names = EXPERIMENTS if "all" in args.names else [ALIASES.get(n, n) for n in args.names]
    for name in tqdm(names, unit="table", disable=len(names) == 1):
        perform(lab, name)
    print(f"\n{lab.out}: " + " ".join(f"{name}.json" for name in names))


if __name__ == "__main__":
    cli.run(main)
