"""A finished run of train.py, opened again: its questions, labels, routers and comparisons, which
the experiments share. Every row of a result is stored in a file and not computed twice.

    lab = Lab(parse_args(["table3", "--run", "runs/demo"]))  # of experiments/paper.py
    lab.figures(lab.routes(depth_bias=1.0))                  # the run's own routers, shifted
"""
import math
import re
from functools import cached_property
from pathlib import Path

import torch

import cli
import train
from answers import prompts_that_fit
from choose import DEPTHS, confidence_if_correct, frontier, upper_hull
from cli import bounds, percent, progress_bar
from drllm import RouterRoute, fit_guard
from evaluate import Comparison, fixed_paths_at, interval, numbers_by_task, summarise
from experiments import methods
from model_llama import FixedRoute
from paths import DECISIONS, blocks, with_decision
from storage.answer_cache import digest
from storage.files import InputError, read_json, write_json
from storage.label_file import read_rows
from storage.run_folder import read_config, read_metrics, read_result

INHERITED = ("simulations", "clusters", "seed", "choose", "cost_per_layer", "no_guard", "limit",
             "score", "problems", "begin")  # settings that are the run's
GIVEN = ("model", "device", "dtype", "data", "test", "skip_bad_rows", "batch_size")  # as flags
SCREEN = 100         # training questions on which edited fixed paths are screened

# N questions   L layers   K paths


def add_run_flags(parser, batch_size):
    """The flags that name a finished run and its questions, the same in every experiment."""
    cli.add_model_flags(parser)
    cli.add_data_flags(parser, [cli.DEMO_LABEL], batch_size)
    parser.set_defaults(limit=1000)  # of test questions in domain, and as many out of it
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), metavar="DIR",
                        help="finished run folder of train.py, whose --data this takes too")
    parser.add_argument("--test", nargs="+", metavar="FILE", help="held-out question files")


# ---- figures as text, the same in every table of an experiment ----

SHARES = ("accuracy", "sd", "share", "by luck", "if one did it all")
CHANGES = ("gain", "over_static", "in", "near", "far", "out", "bare", "guard", "effect")
TITLES = {"over_static": "over fixed paths", "bare": "without guard", "guard": "with guard"}


def cell(key, value):
    """A figure of a table's row as text: shares in percent, changes in points with their sign."""
    if value is None:
        return ""
    if "interval" in key:
        is_share = key == "95% interval"
        return bounds(value, sign=not is_share)
    if not isinstance(value, float):
        return str(value)
    if key in SHARES:
        return percent(value)
    if key in CHANGES:
        return percent(value, sign=True)
    if key.endswith("layers"):
        return f"{value:.2f}"
    is_extreme = abs(value) >= 100 or 0 < abs(value) < 0.001
    return f"{value:.3g}" if is_extreme else f"{value:.3f}"


def cells(row):
    """{title: text} of a row; what belongs only to a picture is left out."""
    texts = {}
    for key, value in row.items():
        if "interval" in key or not isinstance(value, list | dict):
            title = TITLES.get(key, key)
            texts[f"{title} %" if key in SHARES else title] = cell(key, value)
    return texts


# ---- the folder of a finished run ----

class FinishedRun:
    """What is in the folder of a finished run of train.py. No other file of experiments/ or docs/
    depends on where it is."""

    def __init__(self, folder):
        self.folder = folder

    @property
    def settings(self):
        """The flags that it was made with, and the model's fingerprint."""
        file = self.folder / "config.json"
        if not file.exists():
            raise InputError(f"{file}: no such file; --run is the folder of a finished run of "
                             "train.py")
        return read_config(self.folder)

    @property
    def metrics(self):
        """The object of its metrics.json."""
        return read_metrics(self.folder)

    def searches(self, num_layers):
        """{question id: record of its search}; {} if its choice of label searched nothing."""
        return read_rows(self.folder / "labels.jsonl", num_layers)

    @property
    def candidate_paths(self):
        """The candidate paths that it tried on all training questions; [] if it tried none."""
        file = self.folder / "paths.json"
        return read_json(file)["paths"] if file.exists() else []

    def reopened(self, given):
        """The train.Run of it, with its own settings and the flags given."""
        stored, flags = self.settings, train.parse_args([])
        for name in INHERITED:
            setattr(flags, name, stored.get(name, getattr(flags, name)))
        for name in GIVEN:
            setattr(flags, name, getattr(given, name))
        flags.out = self.folder
        run = train.Run(flags)
        if stored.get("fingerprint") != run.model.fingerprint():
            raise InputError(f"{self.folder}: a run of model {stored.get('fingerprint')}; "
                             f"{given.model} is {run.model.fingerprint()}")
        return run


# ---- the run and its questions ----

def same_of_each_task(prompts, limit):
    """At most `limit` prompts, the same number of every task."""
    tasks = numbers_by_task(prompts)
    most = max(1, limit // max(1, len(tasks)))
    taken = [n for numbers in tasks.values() for n in numbers[:most]]
    return [prompts[n] for n in sorted(taken)]


def summary_of_all(outcome, table):
    """The figures of an Outcome on all questions of its Comparison."""
    everything = torch.ones(len(table.prompts)).bool()
    return summarise(outcome, table.outcomes["vanilla"], everything)


class Lab:
    """The run (a train.Run), its questions, and what the experiments share."""

    def __init__(self, args):
        self.args = args
        self.out = args.out or args.run / "paper"
        finished = FinishedRun(args.run)
        self.run = finished.reopened(args)
        self.settings, self._labels = self.run.settings, {}
        self.model, self.tokenizer = self.run.model, self.run.tokenizer
        self.L, self.choice = self.model.config.num_layers, self.run.args.choose
        first = self.run.args.seed
        self.seeds = list(range(first, first + args.seeds))  # as train.py counts them
        self.tasks = set(self.run.tasks)
        training = self.run.training[:self.run.args.limit]
        self.labelled, _ = prompts_that_fit(training, self.tokenizer, self.model,
                                            "training questions")
        self.stored_searches = finished.searches(self.L)
        self.read_tests(self.run.held_out)

    def read_tests(self, questions):
        """Sets the test prompts inside and outside the training tasks, --limit of each at most."""
        tests, _ = prompts_that_fit(questions, self.tokenizer, self.model)
        inside = [prompt for prompt in tests if prompt.question.task in self.tasks]
        outside = [prompt for prompt in tests if prompt.question.task not in self.tasks]
        self.inside = inside[:self.args.limit]
        self.outside = same_of_each_task(outside, self.args.limit)
        if not self.inside:
            raise InputError(f"{(self.run.args.test or self.run.args.data)[0]}: none of "
                             f"{len(tests)} test questions is of a training task "
                             f"({', '.join(sorted(self.tasks))})")

    @cached_property
    def records(self):
        """The record of every training question's search."""
        names = [prompt.question.id for prompt in self.labelled]
        missing = [name for name in names if name not in self.stored_searches]
        if missing:
            raise InputError(f"{self.args.run}: has no search of {len(missing)} of {len(names)} "
                             f"training questions, e.g. {missing[0]}")
        return [self.stored_searches[name] for name in names]

    @property
    def key(self):
        """What must be the same for a stored result to be used again."""
        prompts = (*self.labelled, *self.inside, *self.outside)
        searches = self.records if self.stored_searches else []
        return {"model": self.settings["fingerprint"], "seeds": self.seeds,
                **{name: self.settings[name] for name in (*INHERITED, "dtype", "train")},
                "labels": digest(searches),
                "questions": digest([prompt.key() for prompt in prompts])}

    def row(self, name, make):
        """The row that make() returns. It is stored under its name, and made once."""
        file = self.out / "rows" / f"{re.sub('[^a-z0-9.+-]+', '-', name.lower())}.json"
        row = read_result(file, self.key, "row")
        if row is not None:
            return row
        row = {"name": name} | make()
        write_json(file, {"key": self.key, "row": row})
        return row

    # ---- labels and routers ----

    def labels(self, choice=None):
        """A path or None per training question, by one choice or the run's own."""
        choice = choice or self.choice
        if choice not in self._labels:
            self._labels[choice] = train.labels_of(choice, self.evidence)
        return self._labels[choice]

    @property
    def label_of(self):
        """{id: path or None} of the training questions, by the run's choice."""
        return dict(zip([p.question.id for p in self.labelled], self.labels()))

    @cached_property
    def evidence(self):
        """What a choice of label may use of the training questions."""
        return train.Evidence(self.run, self.labelled, self.records)

    @cached_property
    def candidate_paths(self):
        """(candidate paths, correct (N, K)) on the training questions."""
        return self.evidence.candidates

    def routers(self, choice=None):
        """The run's own routers of a choice, a seed each; trained here if the run has fewer."""
        choice = choice or self.choice
        return train.load_or_train(self.run, choice, self.labelled, self.labels(choice), self.seeds)

    def routes(self, choice=None, **settings):
        """The run's own routers as routes, a seed each."""
        return [RouterRoute(routers, **settings) for routers in self.routers(choice)]

    def examples(self, labels, windows=8):
        """(pooled (N, L, W, D), counts (N,), decisions (N, L)) of the questions with a label."""
        numbers = [n for n, path in enumerate(labels) if path is not None]
        decisions = torch.tensor([labels[n] for n in numbers])
        prompts = [self.labelled[n] for n in numbers]
        pooled, counts = train.features(self.model, prompts, decisions, windows,
                                        folder=self.run.out)
        return pooled, counts, decisions

    def trained(self, pooled, counts, decisions, config=None, **kind):
        """Routers of every seed, trained on examples."""
        config = config or self.run.config
        trained = []
        for seed in progress_bar(self.seeds, desc="routers", unit="seed"):
            routers = train.fit_routers(pooled, counts, decisions, seed, config,
                                        self.args.device, **kind)
            if config.guard and len(pooled) >= train.SMALLEST_GROUP:
                routers.set_guard(*fit_guard(pooled, counts, seed))
            trained.append(routers)
        return trained

    # ---- answers ----

    def comparison(self, prompts):
        """A Comparison on the prompts, the base model's answers in it."""
        table = Comparison(self.model, self.tokenizer, prompts, self.tasks, self.args.batch_size)
        table.add("vanilla", [None], "base model")
        return table

    @cached_property
    def table(self):
        """The Comparison in domain."""
        return self.comparison(self.inside)

    @cached_property
    def far_table(self):
        """The Comparison out of domain."""
        if not self.outside:
            raise InputError("no test question is of a task that training did not see; --test FILE "
                             "adds some")
        return self.comparison(self.outside)

    def own(self, table):
        """The Outcome of the run's own routers on the questions of a table."""
        if "dr.llm" not in table.outcomes:
            table.add("dr.llm", self.routes(), f"Dr.LLM, {self.choice}")
        return table.outcomes["dr.llm"]

    def figures(self, routes, table=None):
        """The summary of routes on all questions of a table; without a table, figures_of them in
        domain."""
        if table is None:
            return self.figures_of(self.table.ask("answers", routes))
        return summary_of_all(table.ask("answers", routes), table)

    def own_figures(self):
        """figures_of the run's own routers."""
        return self.figures_of(self.own(self.table))

    def figures_of(self, outcome):
        """The summary of an Outcome in domain, with its gain over the mix of fixed paths of the
        same depth."""
        row = summary_of_all(outcome, self.table)
        over = outcome.correct - fixed_paths_at(row["layers"], self.fixed_points)
        return row | {"over_static": over.mean().item(), "over interval": list(interval(over))}

    def method(self, name, depth=None):
        """The in-domain row of another method; depth: the mean layers it is matched to."""
        method = methods.METHODS[name]

        def make():
            setting = methods.setting_of(self.table, self.routers(), self.own(self.table),
                                         self.labelled, self.label_of, depth)
            outcome = method.make(setting).outcome(self.table, method.title)
            return {"note": method.note, **self.figures_of(outcome)}
        return self.row(method.title + (f" @{depth:.2f}" if depth else ""), make)

    # ---- fixed paths ----

    @property
    def fixed_paths(self):
        """[(length, path)]: the best candidate paths on the training questions."""
        return frontier(*self.candidate_paths)

    def answered_by(self, paths, prompts):
        """(K,) share of the prompts that each path answers correctly."""
        confidence = confidence_if_correct(self.model, self.tokenizer, prompts, paths,
                                           self.args.batch_size)
        return (confidence > 0).float().mean(0).tolist()

    def best_path_of(self, length):
        """(share of the training questions answered correctly, path): the best fixed path of a
        length, or None. It is a candidate path, or an edit of one of the two best that are a layer
        longer or shorter. Edits are screened on few questions, and the best two asked of all."""
        paths, correct = self.candidate_paths
        ranked = sorted(zip(correct.float().mean(0).tolist(), map(tuple, paths)), reverse=True)
        entrants = [(share, path) for share, path in ranked if blocks(path) == length]
        neighbours = [path for _, path in ranked if abs(blocks(path) - length) == 1][:2]
        tried = {path for _, path in ranked}
        edited = [path for path in self.edits_of_length(neighbours, length) if path not in tried]
        if edited:
            screened = zip(self.answered_by(edited, self.labelled[:SCREEN]), edited)
            best = [path for _, path in sorted(screened)[-2:]]
            entrants += zip(self.answered_by(best, self.labelled), best)
        return max(entrants, default=None)

    def edits_of_length(self, paths, length):
        """All different paths of this length that differ from one of the paths in one layer."""
        edited = {}  # a dict, since it keeps the order
        for path in paths:
            for layer in range(self.L):
                for code in range(len(DECISIONS)):
                    edited[with_decision(path, layer, code)] = None
        return [path for path in edited if blocks(path) == length]

    @cached_property
    def best_of_length(self):
        """{length: (share of the training questions answered correctly, path)}, of the lengths that
        candidate paths may have."""
        least, most = (share * self.L for share in DEPTHS)
        best_of = {}
        for length in range(math.ceil(least), math.floor(most) + 1):
            row = self.row(f"fixed path {length}", lambda: {"best": self.best_path_of(length)})
            if row["best"]:
                share, path = row["best"]
                best_of[length] = share, tuple(path)
        return best_of

    @cached_property
    def fixed_points(self):
        """[(length, correct (N,))] in domain, which routing is to beat at its own depth: of the
        fixed paths that no mix of two others beats on the training questions."""
        points = [(length, *best) for length, best in self.best_of_length.items()]
        return [(length, self.table.ask("fixed", [FixedRoute(path)]).correct)
                for length, _, path in upper_hull(points)]
