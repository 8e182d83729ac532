"""A finished run of train.py, opened again: its questions, labels, routers and comparisons, which
the experiments share. Every row of a result is kept in a file, and not computed twice.

    lab = Lab(parse_args(["table3", "--run", "runs/demo"]))  # of experiments/paper.py
    lab.figures(lab.routes(tilt=1.0))                         # the run's own routers, tilted
"""
import re
from functools import cached_property

import torch

import train
from choose import along_each, frontier, upper_hull
from drllm import RouterRoute, fit_guard
from evaluate import Comparison, interval, summarise
from experiments import methods as baselines
from experiments.statistics import static_at, wilcoxon
from label import content_hash, read_rows
from model_llama import fixed
from storage.files import InputError, write_json
from storage.run_folder import read_config, read_result
from cli import progress_bar
from answers import prepare

INHERITED = ("simulations", "clusters", "seed", "choose", "price", "no_guard", "limit",
             "score")  # of a run
GIVEN = ("model", "device", "dtype", "data", "test", "skip_bad_rows", "batch_size")  # as flags
SCREEN = 100  # label questions that candidates for static paths are screened on


def opened(args):
    """The train.Run of a finished run's folder, with its own settings and the flags given."""
    file = args.run / "config.json"
    if not file.exists():
        raise InputError(f"{file}: no such file; --run is the folder of a finished run of train.py")
    stored, flags = read_config(args.run), train.parse_args([])
    for name in INHERITED:
        setattr(flags, name, stored.get(name, getattr(flags, name)))
    for name in GIVEN:
        setattr(flags, name, getattr(args, name))
    flags.out = args.run
    run = train.Run(flags)
    if stored.get("fingerprint") != run.model.fingerprint():
        raise InputError(f"{file}: a run of model {stored.get('fingerprint')}; {args.model} is "
                         f"{run.model.fingerprint()}")
    return run


def some_of_each(prompts, limit):
    """At most `limit` prompts, the same number of every task."""
    taken = {prompt.question.task: [] for prompt in prompts}
    for prompt in prompts:
        taken[prompt.question.task].append(prompt)
    most = max(1, limit // max(1, len(taken)))
    first = {id(prompt) for some in taken.values() for prompt in some[:most]}
    return [prompt for prompt in prompts if id(prompt) in first]


class Lab:
    """The run (a train.Run), its questions, and what the experiments share."""

    def __init__(self, args):
        self.args, self.out = args, args.out or args.run / "paper"
        self.run = opened(args)
        self.settings, self._labels = self.run.settings, {}
        self.model, self.tokenizer = self.run.model, self.run.tokenizer
        self.L, self.choice = self.model.config.num_layers, self.run.args.choose
        first = self.run.args.seed
        self.seeds = list(range(first, first + args.seeds))  # as train.py counts them
        self.tasks = set(self.run.tasks)
        self.read_labelled(self.run.to_label)
        self.read_tests(self.run.held_out)

    def read_labelled(self, questions):
        """Sets the labelled prompts and their rows."""
        file = self.args.run / "labels.jsonl"
        self.labelled, _ = prepare(questions[:self.run.args.limit], self.tokenizer, self.model)
        rows = read_rows(file, self.L)
        missing = [p.question.id for p in self.labelled if p.question.id not in rows]
        if missing:
            raise InputError(f"{file}: {len(missing)} of {len(self.labelled)} label questions have "
                             f"no row, e.g. {missing[0]}")
        self.label_rows = [rows[p.question.id] for p in self.labelled]

    def read_tests(self, questions):
        """Sets the test prompts inside and outside the labelled tasks, --limit of each at most."""
        tests, _ = prepare(questions, self.tokenizer, self.model)
        known = lambda prompt: prompt.question.task in self.tasks
        self.inside = [prompt for prompt in tests if known(prompt)][:self.args.limit]
        if not self.inside:
            raise InputError(f"{(self.run.args.test or self.run.args.data)[0]}: none of "
                             f"{len(tests)} test questions is of a labelled task "
                             f"({', '.join(sorted(self.tasks))})")
        self.outside = some_of_each([p for p in tests if not known(p)], self.args.limit)

    @property
    def key(self):
        """What must be the same for a stored result to stand for this one."""
        asked = (*self.labelled, *self.inside, *self.outside)
        return {"model": self.settings["fingerprint"], "seeds": self.seeds,
                **{name: self.settings[name] for name in (*INHERITED, "dtype", "train")},
                "depth": self.args.depth,
                "labels": train.digest(self.label_rows)[:16],
                "questions": train.digest([content_hash(p) for p in asked])[:16]}

    def row(self, name, make):
        """make() once: the row is kept under the name beside the tables."""
        file = self.out / "rows" / f"{re.sub('[^a-z0-9.+-]+', '-', name.lower())}.json"
        row = read_result(file, self.key, "row")
        if row is not None:
            return row
        row = {"name": name} | make()
        write_json(file, {"key": self.key, "row": row})
        return row

    # ---- labels and routers ----

    def labels(self, choice=None):
        """A path or None per label question, by one choice or the run's own."""
        choice = choice or self.choice
        if choice not in self._labels:
            self._labels[choice] = train.labels_of(choice, self.evidence)
        return self._labels[choice]

    @cached_property
    def evidence(self):
        """The training questions, as choices of label see them."""
        return train.Evidence(self.run, self.labelled, self.label_rows)

    @cached_property
    def menu(self):
        """(paths, right (N, K)): what choosing labels asked of every label question."""
        return self.evidence.candidates

    def routers(self, choice=None):
        """The run's own routers of a choice, a seed each; trained here if the run has fewer."""
        choice = choice or self.choice
        return train.load_or_train(self.run, choice, self.labelled, self.labels(choice), self.seeds)

    def routes(self, choice=None, **how):
        """The run's own routers as routes, a seed each."""
        return [RouterRoute(routers, **how) for routers in self.routers(choice)]

    def examples(self, labels, windows=8):
        """(pooled (N, L, W, D), counts (N,), decisions (N, L)) of the questions with a label."""
        pairs = [pair for pair in zip(self.labelled, labels) if pair[1] is not None]
        decisions = torch.tensor([path for _, path in pairs])
        return *train.features(self.model, [prompt for prompt, _ in pairs], decisions, windows,
                               folder=self.run.out), decisions

    def trained(self, pooled, counts, decisions, config=None, guard_on=None, **how):
        """Routers of every seed. guard_on: how many of the first examples the guard is fitted
        on."""
        trained, config = [], config or self.run.config
        for seed in progress_bar(self.seeds, desc="routers", unit="seed"):
            routers = train.fit_routers(pooled, counts, decisions, seed, config,
                                        self.args.device, **how)
            if config.guard and len(pooled) >= train.SMALLEST_GROUP:
                routers.set_guard(*fit_guard(pooled[:guard_on], counts[:guard_on], seed))
            trained.append(routers)
        return trained

    # ---- answers ----

    def comparison(self, prompts):
        """A Comparison on the prompts, vanilla answered."""
        table = Comparison(self.model, self.tokenizer, prompts, self.tasks, self.args.batch_size)
        table.add("vanilla", [None])
        return table

    @cached_property
    def table(self):
        """The Comparison in domain."""
        return self.comparison(self.inside)

    @cached_property
    def far_table(self):
        """The Comparison out of domain."""
        if not self.outside:
            raise InputError("no test question is of a task that the labels do not know; --test "
                             "FILE adds some")
        return self.comparison(self.outside)

    def own(self, table):
        """The Outcome of the run's own routers on the questions of a table."""
        return table.outcomes.get("dr.llm") or table.add("dr.llm", self.routes(),
                                                         f"Dr.LLM, {self.choice}")

    def figures(self, routes=None, table=None, **how):
        """The summary of routes, or of the run's own routers, on all questions of a table; in
        domain by default, and then also what they gain over the mix of static paths of the same
        depth."""
        inside, table = table is None, table or self.table
        outcome = self.own(table) if routes is None else table.ask("answers", routes, **how)
        vanilla, everything = table.outcomes["vanilla"], torch.ones(len(table.prompts)).bool()
        found = summarise(outcome, vanilla, everything)
        found |= {"p": wilcoxon(outcome.right - vanilla.right)}
        if inside:
            over = outcome.right - static_at(found["layers"], self.static_points)
            found |= {"over_static": over.mean().item(), "over interval": list(interval(over))}
        return found

    def method(self, name, depth=None):
        """The in-domain row of one of baselines.BASELINES; depth: the mean layers it is to meet."""
        one = baselines.BASELINES[name]

        def make():
            setting = baselines.setting_of(self.table, [name], self.routers(), self.own(self.table),
                                           self.labelled, self.label_of, depth)
            entrant = one.make(setting)
            return {"note": one.note, **self.figures(entrant.routes, model=entrant.model,
                                                     layers_of=entrant.layers_of)}
        return self.row(one.title + (f" @{depth:.2f}" if depth else ""), make)

    @property
    def label_of(self):
        """{id: path} of the label questions, by the run's choice."""
        return dict(zip([p.question.id for p in self.labelled], self.labels()))

    # ---- static paths ----

    @property
    def statics(self):
        """[(length, path)]: the frontier of the menu on the label questions."""
        return frontier(*self.menu)

    def answered_by(self, paths, prompts):
        """(K,) share of the prompts that each path answers."""
        right = along_each(self.model, self.tokenizer, prompts, paths, self.args.batch_size) > 0
        return right.float().mean(0).tolist()

    def best_static(self, length):
        """(share of the label questions answered, path): the best static path of a length, or None.

        It is one of the menu, or an edit of one of its two best that are a layer longer or shorter;
        edits are screened on some questions, and the best two of them asked of all.
        """
        paths, right = self.menu
        known = sorted(zip(right.float().mean(0).tolist(), map(tuple, paths)), reverse=True)
        near = [path for _, path in known if abs(sum(path) - length) == 1][:2]
        edited = {path[:l] + (n + length - sum(path),) + path[l + 1:]: None
                  for path in near for l, n in enumerate(path) if 0 <= n + length - sum(path) <= 2}
        edited = [path for path in edited if path not in [tried for _, tried in known]]
        found = [pair for pair in known if sum(pair[1]) == length]
        if edited:
            screened = zip(self.answered_by(edited, self.labelled[:SCREEN]), edited)
            best = [path for _, path in sorted(screened)[-2:]]
            found += zip(self.answered_by(best, self.labelled), best)
        return max(found, default=None)

    @cached_property
    def static_paths(self):
        """{length: (share of the label questions answered, path)} for every depth from 0.7 L to
        1.4 L."""
        lengths = [n for n in range(2 * self.L + 1) if 0.7 * self.L <= n <= 1.4 * self.L]
        found = {n: self.row(f"static path {n}", lambda: {"best": self.best_static(n)})["best"]
                 for n in lengths}
        return {n: (best[0], tuple(best[1])) for n, best in found.items() if best}

    @cached_property
    def static_points(self):
        """[(length, right (N,))] in domain: what routing is to beat at its own depth. Those of the
        static paths that no mix of two others beats, on the label questions."""
        points = [(length, share, path) for length, (share, path) in self.static_paths.items()]
        return [(length, self.table.ask("static", [fixed(path)]).right)
                for length, _, path in upper_hull(points)]
