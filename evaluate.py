"""Every route side by side on questions that nobody trained on, with uncertainty.

A route is worth its name only if it beats what needs no router, so two controls stand in every
table: the best *static* path of the label questions at the same mean depth (two static paths may
be mixed to meet it exactly), and the routers' own decisions shuffled over the layers. The other
methods of the paper are in baselines.py. Gains are paired: the same questions, a bootstrap over
them and a signed-rank test, the mean over router seeds.

"in" are tasks the labels knew, "out" are tasks they never saw. layers: blocks per forward pass,
as comparable to L; layers_executed: summed over all forward passes, as the paper counts.

    python evaluate.py --model demo/model --routers runs/demo/routers.safetensors \\
        --data demo/questions/test.jsonl demo/questions/ood.jsonl --out runs/again
"""
import argparse
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import cli
from answers import answer, prepare
from baselines import BASELINES, Setting
from cli import InputError, read_json, write_json
from diagnostics import ACTIONS, interval, wilcoxon
from drllm import RouterRoute, Routers
from model_llama import fixed, load_model, load_tokenizer
from tables import print_frontier, print_heat_map, print_tables
from tasks import load_all

ROUTES = ("vanilla", "dr.llm", "static", "shuffled")
TILTS = (-0.5, 2.0)


@dataclass
class Outcome:
    """A route's answers: one Answers per router seed (one only for routes without seeds).

    seconds: wall time of one seed. depth: (N,) layers per pass, where decisions don't say it.
    """
    name: str
    seeds: list
    seconds: float = 0.0
    depth: torch.Tensor = None

    @property
    def right(self):
        """(N,) reward, mean over the seeds."""
        return torch.stack([a.right for a in self.seeds]).mean(0)

    @property
    def decisions(self):
        """(seeds, N, L)."""
        return torch.stack([a.decisions for a in self.seeds])

    @property
    def layers(self):
        """(N,) blocks per forward pass, mean over the seeds."""
        return self.decisions.sum(2).float().mean(0) if self.depth is None else self.depth

    @property
    def layers_executed(self):
        """(N,) blocks summed over all forward passes, mean over the seeds."""
        passes = torch.stack([a.passes for a in self.seeds]).float()
        if self.depth is not None:
            return self.depth * passes.mean(0)
        return (self.decisions.sum(2) * passes).mean(0)


def summarise(outcome, vanilla, rows):
    """The figures of one route on some questions, rows (N,) bool. sd: over router seeds."""
    right, gain = outcome.right[rows], (outcome.right - vanilla.right)[rows]
    decisions = outcome.decisions[:, rows]
    low, high = interval(gain)
    by_seed = [a.right[rows].mean().item() for a in outcome.seeds]
    return {"accuracy": right.mean().item(), "layers": outcome.layers[rows].mean().item(),
            "layers_executed": outcome.layers_executed[rows].mean().item(),
            "n": int(rows.sum()), "gain": gain.mean().item(), "interval": [low, high],
            "p": wilcoxon(gain), "sd": float(np.std(by_seed, ddof=1)) if by_seed[1:] else None,
            **{name: (decisions == count).float().mean().item()
               for count, name in enumerate(ACTIONS)}}


# ---- the static control ----

def static_at(layers, statics):
    """(N,) expected reward of a mix of static paths with this mean depth.

    statics: [(length, right (N,))], shortest first. Beyond the ends the end is taken.
    """
    if layers <= statics[0][0]:
        return statics[0][1]
    for (low, below), (high, above) in zip(statics, statics[1:]):
        if layers <= high:
            share = (layers - low) / (high - low)
            return (1 - share) * below + share * above
    return statics[-1][1]


# ---- the comparison ----

class Comparison:
    """Asks every route the same questions and keeps what the tables need."""

    def __init__(self, model, tokenizer, prompts, known_tasks, batch_size=512):
        self.model, self.tokenizer, self.prompts = model, tokenizer, prompts
        self.batch_size = batch_size
        self.tasks = [p.question.task for p in prompts]
        self.inside = torch.tensor([task in known_tasks for task in self.tasks])
        self.counted = self.inside if self.inside.any() else ~self.inside  # what totals are over
        self.outcomes, self.statics = {}, []

    def ask(self, name, routes, rows=None, model=None, layers_of=None):
        """The Outcome of routes (one per seed); rows (N,) bool restricts the questions. model: a
        view of the model that the routes go through, whose layers_of(decisions) are (N,)."""
        prompts = self.prompts if rows is None else [p for p, r in zip(self.prompts, rows) if r]
        began, model = time.time(), model or self.model
        with tqdm(total=len(prompts) * len(routes), desc=name, unit="answer", leave=False) as bar:
            seeds = [answer(model, self.tokenizer, prompts, route, self.batch_size, bar.update)
                     for route in routes]
        depth = None
        if layers_of:
            depth = torch.stack([layers_of(a.decisions) for a in seeds]).mean(0)
        return Outcome(name, seeds, (time.time() - began) / len(routes), depth)

    def add(self, name, routes):
        self.outcomes[name] = self.ask(name, routes)
        return self.outcomes[name]

    def add_baselines(self, names, setting):
        """Asks the named BASELINES; what they are fitted on stands in the setting."""
        for name in names:
            entrant = BASELINES[name].make(setting)
            self.outcomes[name] = replace(
                self.ask(name, entrant.routes, None, entrant.model, entrant.layers_of),
                name=BASELINES[name].title)

    def summary(self, rows):
        vanilla = self.outcomes["vanilla"]
        return {name: summarise(o, vanilla, rows) for name, o in self.outcomes.items()}

    def metrics(self):
        """The object of metrics.json."""
        task_of = np.array(self.tasks)
        tasks = {}
        for task in dict.fromkeys(self.tasks):
            rows = torch.from_numpy(task_of == task)
            domain = "in" if self.inside[rows].all() else "out"
            tasks[task] = {"domain": domain, "routes": self.summary(rows)}
            levels = sorted({p.question.level for p, r in zip(self.prompts, rows) if r})
            if len(levels) > 1:
                at = lambda level: torch.tensor([p.question.level == level for p in self.prompts])
                tasks[task]["levels"] = {level: self.summary(rows & at(level)) for level in levels}
        return {"routes": self.summary(self.counted), "tasks": tasks}


def compare(model, tokenizer, prompts, known_tasks, routers, statics, routes=ROUTES,
            control=-0.5, tilt=0.0, batch_size=512, calibration=None):
    """The Comparison of the named routes, and of vanilla, which gains are measured against.

    routers: {name: Routers per seed}, the first name is the one controls take their depth from.
    statics: [(length, path)] of the label questions' frontier, or []. calibration: prompts that
    baselines are fitted on.
    """
    table = Comparison(model, tokenizer, prompts, known_tasks, batch_size)
    table.add("vanilla", [None])
    if set(routes) == {"vanilla"}:
        return table
    for name, seeds in routers.items():
        table.add(name, [RouterRoute(one, tilt, control) for one in seeds])
    main = next(iter(routers))
    if "static" in routes and statics:
        add_static(table, main, statics)
    outcome = table.outcomes[main]
    setting = Setting(model, tokenizer, prompts, routers[main], outcome.seeds[0].decisions,
                      outcome.layers[table.counted].mean().item(), calibration,
                      batch_size=batch_size)
    table.add_baselines([name for name in routes if name in BASELINES], setting)
    if "dr.llm" not in routes:  # it was asked for its depth and decisions only
        del table.outcomes[main]
    return table


def add_static(table, main, statics):
    """Asks every static path of the frontier; the two around the routers' depth become routes."""
    asked = [(length, table.ask(f"static {length}", [fixed(path)])) for length, path in statics]
    table.statics = [(length, outcome.right) for length, outcome in asked]
    layers = table.outcomes[main].layers[table.counted].mean().item()
    below = max((pair for pair in asked if pair[0] <= layers), default=asked[0], key=lambda p: p[0])
    above = min((pair for pair in asked if pair[0] > layers), default=asked[-1], key=lambda p: p[0])
    table.outcomes["static below"] = replace(below[1], name=f"static, {below[0]} layers")
    if above is not below:
        table.outcomes["static above"] = replace(above[1], name=f"static, {above[0]} layers")


def tilted(table, main, seeds, tilts=TILTS):
    """[{tilt, layers, accuracy, over_static, interval}]: the routers' frontier."""
    rows, points = table.counted, []
    for tilt in tilts:
        if tilt:
            routes = [RouterRoute(one, tilt) for one in seeds]
            outcome = table.ask(f"tilt {tilt:+.1f}", routes, rows)
            right, layers = outcome.right, outcome.layers.mean().item()
        else:
            outcome = table.outcomes[main]
            right, layers = outcome.right[rows], outcome.layers[rows].mean().item()
        over = right - static_at(layers, [(n, r[rows]) for n, r in table.statics])
        points.append({"tilt": tilt, "layers": layers, "accuracy": right.mean().item(),
                       "over_static": over.mean().item(), "interval": list(interval(over))})
    return sorted(points, key=lambda point: point["layers"])


# ---- the report ----

def report(table, main, seeds, names, out, extra=None):
    """Prints every table and writes metrics.json; returns the metrics."""
    metrics = table.metrics()
    if table.statics and seeds and main in table.outcomes:
        metrics["frontier"] = tilted(table, main, seeds, (0.0, *TILTS))
        metrics["static"] = [{"layers": n, "accuracy": r[table.counted].mean().item()}
                             for n, r in table.statics]
    rows = table.counted
    metrics["seconds"] = {name: outcome.seconds for name, outcome in table.outcomes.items()}
    if main in table.outcomes:
        metrics["seeds"] = [{"seed": seed, "accuracy": a.right[rows].mean().item(),
                             "layers": a.decisions[rows].sum(1).float().mean().item()}
                            for seed, a in enumerate(table.outcomes[main].seeds)]
    write_json(Path(out) / "metrics.json", metrics | (extra or {}))  # first: `| head` ends us
    print_tables(metrics, {key: o.name for key, o in table.outcomes.items()} | names)
    if "frontier" in metrics:
        print_frontier(metrics["frontier"], [(n, r[table.counted]) for n, r in table.statics])
    if main in table.outcomes:
        print_heat_map(table, main)
    return metrics


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_model_flags(parser, Path("demo/model"))
    parser.add_argument("--routers", type=Path, nargs="+", default=[], metavar="FILE",
                        help="router files; several are taken as seeds of one recipe")
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE",
                        help="question files, FILE or TASK=FILE")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluation"),
                        help="folder of metrics.json")
    parser.add_argument("--routes", default=",".join(ROUTES),
                        help=f"comma-separated, of {', '.join((*ROUTES[:3], *BASELINES))} "
                             "(default: %(default)s). vanilla is always asked, since gains are "
                             "against it; static needs the paths.json that training leaves "
                             "beside the routers")
    parser.add_argument("--calibration", nargs="+", metavar="FILE",
                        help="question files that baselines are fitted on, e.g. those labelled")
    parser.add_argument("--limit", type=int, help="take only the first N questions")
    parser.add_argument("--control", type=float, default=-0.5, help="the paper's knob, -1 to 1")
    parser.add_argument("--tilt", type=float, default=0.0,
                        help="times (0, 1, 2) is added to the logits of skip, execute, repeat")
    parser.add_argument("--skip-bad-rows", action="store_true",
                        help="leave out question rows that cannot be used, instead of stopping")
    parser.add_argument("--batch-size", type=int, default=512, help="questions per batch")
    args = parser.parse_args(argv)
    args.routes = args.routes.split(",")
    known = {*ROUTES, *BASELINES}
    if set(args.routes) - known:
        parser.error(f"unknown routes {', '.join(sorted(set(args.routes) - known))}; known are "
                     f"{', '.join(sorted(known))}")
    if not args.routers and set(args.routes) != {"vanilla"}:
        parser.error("every route but vanilla needs --routers")
    cli.check_counts(parser, args, "batch_size", "limit")
    if not -1 <= args.control <= 1:
        parser.error(f"--control must lie in [-1, 1], got {args.control}")
    if not math.isfinite(args.tilt):
        parser.error(f"--tilt must be finite, got {args.tilt}")
    return args


def load_seeds(files, model):
    """(Routers of every file, the tasks they were trained on); files must be of one recipe."""
    seeds = [Routers.load(file, model) for file in files]
    for file, one in zip(files, seeds):
        tasks = one.notes.get("tasks")
        if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
            raise InputError(f"{file}: its metadata must list the tasks it was trained on, got "
                             f"{tasks!r}")
        for key in ("windows", "width", "tasks"):
            if one.notes[key] != seeds[0].notes[key]:
                raise InputError(f"{file}: {key} {one.notes[key]}; {files[0]} has "
                                 f"{seeds[0].notes[key]}. Seeds of one recipe agree")
    return seeds, {task for one in seeds for task in one.notes["tasks"]}


def read_statics(file, num_layers):
    """[(length, path)] of the frontier in a paths.json."""
    try:
        statics = [(sum(path), tuple(path)) for _, path in read_json(file)["frontier"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file}: no frontier of static paths ({error!r})") from error
    for _, path in statics:
        if len(path) != num_layers or not set(path) <= {0, 1, 2}:
            raise InputError(f"{file}: a path of {len(path)} layers, {path}; the model has "
                             f"{num_layers}")
    return statics


def read_prompts(files, args, model, tokenizer):
    """Prompts of the questions in files; InputError if none fits the context."""
    questions = load_all(files, args.skip_bad_rows)[:args.limit]
    prompts, too_long = prepare(questions, tokenizer, model)
    if not prompts:
        raise InputError(f"{files[0]}: all {len(too_long)} questions exceed the context of "
                         f"{model.config.max_positions} tokens")
    return prompts


def main(argv=None):
    args = parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)  # rather now than after an hour
    tokenizer = load_tokenizer(args.model)
    model = load_model(args.model, args.device, cli.DTYPES.get(args.dtype))
    seeds, known = load_seeds(args.routers, model)
    prompts = read_prompts(args.data, args, model, tokenizer)
    calibration = args.calibration and read_prompts(args.calibration, args, model, tokenizer)
    both = {p.question.id for p in calibration or ()} & {p.question.id for p in prompts}
    if both:
        raise InputError(f"{args.data[0]}: {len(both)} of {len(prompts)} questions also stand in "
                         f"--calibration, e.g. {min(both)}")
    statics = []
    if "static" in args.routes and (stored := args.routers[0].parent / "paths.json").exists():
        statics = read_statics(stored, model.config.num_layers)
    elif "static" in args.routes:
        print(f"no {stored}: the static paths are left out")
    known = known or {prompt.question.task for prompt in prompts}  # without routers: every task
    table = compare(model, tokenizer, prompts, known, {"dr.llm": seeds}, statics, args.routes,
                    args.control, args.tilt, args.batch_size, calibration)
    report(table, "dr.llm", [] if args.tilt or args.control != -0.5 else seeds,
           {"dr.llm": "Dr.LLM"}, args.out)


if __name__ == "__main__":
    cli.run(main)
