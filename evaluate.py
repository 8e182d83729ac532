"""Every route side by side on questions that nobody trained on, with uncertainty.

A route is worth its name only if it beats what needs no router, so two controls stand in every
table: the best *static* path of the label questions at the same mean depth (two static paths may
be mixed to meet it exactly), and the routers' own decisions shuffled over the layers. Gains are
paired: the same questions, a bootstrap over them, the mean over router seeds.

"in" are tasks the labels knew, "out" are tasks they never saw. layers: blocks per forward pass,
as comparable to L; layers_executed: summed over all forward passes, as the paper counts.

    python evaluate.py --model demo/model --routers runs/demo/routers.safetensors \\
        --data demo/questions/test.jsonl demo/questions/ood.jsonl --out runs/again
"""
import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import cli
from answers import answer, prepare
from cli import InputError, read_json, write_json
from drllm import RouterRoute, Routers
from model_llama import load_model, load_tokenizer
from tasks import load_all

ROUTES = ("vanilla", "dr.llm", "static", "shuffled")
TILTS = (-0.5, 2.0)
BARS = "▁▂▃▄▅▆▇█"


@dataclass
class Outcome:
    """A route's answers: one Answers per router seed (one only for routes without seeds)."""
    name: str
    seeds: list

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
        return self.decisions.sum(2).float().mean(0)


# ---- uncertainty ----

def interval(difference, resamples=1000, seed=0):
    """95% bootstrap interval (low, high) of the mean of paired differences (N,)."""
    values = np.asarray(difference, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def summarise(outcome, vanilla, rows):
    """The figures of one route on some questions, rows (N,) bool."""
    right, gain = outcome.right[rows], (outcome.right - vanilla.right)[rows]
    decisions = outcome.decisions[:, rows]
    low, high = interval(gain)
    return {"accuracy": right.mean().item(), "layers": outcome.layers[rows].mean().item(),
            "layers_executed": float(np.mean([a.layers[rows].float().mean() for a in outcome.seeds])),
            "n": int(rows.sum()), "gain": gain.mean().item(), "interval": [low, high],
            **{name: (decisions == count).float().mean().item()
               for count, name in enumerate(("skip", "execute", "repeat"))}}


# ---- controls ----

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


def shuffled(decisions, seed=0):
    """Decisions (N, L), each row's in a random order of layers: the depth stays, the choice goes."""
    rng = torch.Generator().manual_seed(seed)
    order = torch.rand(decisions.shape, generator=rng).argsort(1)
    return decisions.gather(1, order)


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

    def ask(self, name, routes, rows=None):
        """The Outcome of routes (one per seed); rows (N,) bool restricts the questions."""
        prompts = self.prompts if rows is None else [p for p, r in zip(self.prompts, rows) if r]
        with tqdm(total=len(prompts) * len(routes), desc=name, unit="answer", leave=False) as bar:
            seeds = [answer(self.model, self.tokenizer, prompts, route, self.batch_size, bar.update)
                     for route in routes]
        return Outcome(name, seeds)

    def add(self, name, routes):
        self.outcomes[name] = self.ask(name, routes)
        return self.outcomes[name]

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
            control=-0.5, tilt=0.0, batch_size=512):
    """The Comparison of the named routes.

    routers: {name: Routers per seed}, the first name is the one the frontier is drawn for.
    statics: [(length, path)] of the label questions' frontier, or [].
    """
    table = Comparison(model, tokenizer, prompts, known_tasks, batch_size)
    table.add("vanilla", [None])
    for name, seeds in routers.items():
        table.add(name, [RouterRoute(one, tilt, control) for one in seeds])
    main = next(iter(routers))
    if "static" in routes and statics:
        add_static(table, main, statics)
    if "shuffled" in routes:
        table.add("shuffled", [shuffled(table.outcomes[main].seeds[0].decisions)])
    return table


def add_static(table, main, statics):
    """Asks every static path of the frontier; the two around the routers' depth become routes."""
    asked = [(length, table.ask(f"static {length}", [torch.tensor(path).expand(
        len(table.prompts), -1)])) for length, path in statics]
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
            outcome = table.ask(f"tilt {tilt:+.1f}", [RouterRoute(one, tilt) for one in seeds], rows)
            right, layers = outcome.right, outcome.layers.mean().item()
        else:
            outcome = table.outcomes[main]
            right, layers = outcome.right[rows], outcome.layers[rows].mean().item()
        over = right - static_at(layers, [(n, r[rows]) for n, r in table.statics])
        points.append({"tilt": tilt, "layers": layers, "accuracy": right.mean().item(),
                       "over_static": over.mean().item(), "interval": list(interval(over))})
    return sorted(points, key=lambda point: point["layers"])


# ---- what a person reads ----

def percent(value, sign=False):
    return f"{100 * value:{'+' if sign else ''}.1f}"


def row_text(name, figures):
    low, high = figures["interval"]
    shares = "/".join(f"{100 * figures[key]:.0f}" for key in ("skip", "execute", "repeat"))
    return (f"{name:<22}{percent(figures['accuracy']):>6}  {percent(figures['gain'], True):>6} "
            f"[{percent(low, True):>5}, {percent(high, True):>5}]  {figures['layers']:>6.2f} "
            f"{figures['layers_executed']:>7.1f}  {shares:>9}")


HEAD = (f"{'route':<22}{'right':>6}  {'gain':>6} {'95% interval':>14}  {'layers':>6} {'summed':>7}  "
        f"{'s/e/r %':>9}")


def print_tables(metrics, names):
    """The comparison per task and level, and over the tasks the labels knew."""
    inside = {n: t for n, t in metrics["tasks"].items() if t["domain"] == "in"}
    total = next(iter(metrics["routes"].values()))["n"]
    print(f"\n{'In' if inside else 'Out of'} domain, {total} questions, none of them labelled or trained on\n{HEAD}")
    for name, figures in metrics["routes"].items():
        print(row_text(names.get(name, name), figures))
    print("\nright % (layers) by task and level")
    columns = [name for name in metrics["routes"] if name != "shuffled"]
    print(f"{'':<18}{'n':>5} " + "".join(f"{names.get(c, c)[:17]:>18}" for c in columns))
    for domain in ("in", "out"):
        for task, figures in metrics["tasks"].items():
            if figures["domain"] != domain:
                continue
            lines = {f"{task} {level}": f for level, f in figures.get("levels", {}).items()}
            for label, routes in (lines or {task: figures["routes"]}).items():
                cells = (f"{percent(routes[c]['accuracy'])} ({routes[c]['layers']:.2f})" for c in columns)
                print(f"{domain + ' ' + label:<18}{routes[columns[0]]['n']:>5} "
                      + "".join(f"{cell:>18}" for cell in cells))
    outside = [t for t in metrics["tasks"].values() if t["domain"] == "out"]
    if outside and inside:
        drops = {c: np.mean([t["routes"][c]["gain"] for t in outside]) for c in columns[1:]}
        print("mean out-of-domain change: "
              + ", ".join(f"{names.get(c, c)} {percent(d, True)}" for c, d in drops.items()))


def print_frontier(points, statics):
    print("\nThe frontier: routers with a constant t * (0, 1, 2) added to their logits, "
          "over static paths of the same mean depth")
    for point in points:
        low, high = point["interval"]
        print(f"  tilt {point['tilt']:+.1f}  layers {point['layers']:5.2f}  right "
              f"{percent(point['accuracy']):>5}  over static {percent(point['over_static'], True):>5} "
              f"[{percent(low, True)}, {percent(high, True)}]")
    print("  static paths: " + "  ".join(f"{n} layers {percent(r.mean().item())}" for n, r in statics))


def print_heat_map(table, name):
    """How often each layer runs, by task and level: a bar is 0 (empty) to 2 (full), half is once."""
    runs = table.outcomes[name].decisions.float().mean(0)  # (N, L)
    groups = {}
    for n, prompt in enumerate(table.prompts):
        key = (not table.inside[n], prompt.question.task, prompt.question.level)
        groups.setdefault(key, []).append(n)
    print(f"\nHow often {name} runs each layer ({BARS[0]} never, {BARS[3]} once, {BARS[7]} twice), "
          f"layers 0 to {runs.shape[1] - 1}")
    for (out, task, level), rows in sorted(groups.items()):
        bar = "".join(BARS[round(min(7.0, mean * 3 if mean < 1 else 3 + 4 * (mean - 1)))]
                      for mean in runs[rows].mean(0).tolist())
        print(f"  {'out' if out else 'in '} {task + (f' {level}' if level else ''):<14} {bar}"
              f"  {runs[rows].sum(1).mean():.2f}")


def report(table, main, seeds, names, out, extra=None):
    """Prints every table and writes metrics.json; returns the metrics."""
    metrics = table.metrics()
    if table.statics and seeds:
        metrics["frontier"] = tilted(table, main, seeds, (0.0, *TILTS))
        metrics["static"] = [{"layers": n, "accuracy": r[table.counted].mean().item()}
                             for n, r in table.statics]
    rows = table.counted
    metrics["seeds"] = [{"seed": seed, "accuracy": a.right[rows].mean().item(),
                         "layers": a.decisions[rows].sum(1).float().mean().item()}
                        for seed, a in enumerate(table.outcomes[main].seeds)]
    write_json(Path(out) / "metrics.json", metrics | (extra or {}))  # first: `| head` ends us
    print_tables(metrics, {key: o.name for key, o in table.outcomes.items()} | names)
    if "frontier" in metrics:
        print_frontier(metrics["frontier"], [(n, r[table.counted]) for n, r in table.statics])
    print_heat_map(table, main)
    return metrics


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_model_flags(parser, Path("demo/model"))
    parser.add_argument("--routers", type=Path, nargs="+", required=True, metavar="FILE",
                        help="router files; several are taken as seeds of one recipe")
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE",
                        help="question files, FILE or TASK=FILE")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluation"),
                        help="folder of metrics.json")
    parser.add_argument("--routes", default=",".join(ROUTES),
                        help="comma-separated, of %(default)s; static needs the paths.json that "
                             "training leaves beside the routers")
    parser.add_argument("--limit", type=int, help="take only the first N questions")
    parser.add_argument("--control", type=float, default=-0.5, help="the paper's knob, -1 to 1")
    parser.add_argument("--tilt", type=float, default=0.0,
                        help="times (0, 1, 2) is added to the logits of skip, execute, repeat")
    parser.add_argument("--skip-bad-rows", action="store_true",
                        help="leave out question rows that cannot be used, instead of stopping")
    parser.add_argument("--batch-size", type=int, default=512, help="questions per batch")
    args = parser.parse_args(argv)
    args.routes = args.routes.split(",")
    unknown = set(args.routes) - set(ROUTES)
    if unknown:
        parser.error(f"unknown routes {', '.join(sorted(unknown))}; known are {', '.join(ROUTES)}")
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
    return seeds, set(seeds[0].notes["tasks"])


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


def main(argv=None):
    args = parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)  # rather now than after an hour
    tokenizer = load_tokenizer(args.model)
    model = load_model(args.model, args.device, cli.DTYPES.get(args.dtype))
    seeds, known = load_seeds(args.routers, model)
    questions = load_all(args.data, args.skip_bad_rows)[:args.limit]
    prompts, too_long = prepare(questions, tokenizer, model)
    if not prompts:
        raise InputError(f"{args.data[0]}: all {len(too_long)} questions exceed the context of "
                         f"{model.config.max_positions} tokens")
    stored = args.routers[0].parent / "paths.json"
    statics = []
    if "static" in args.routes and stored.exists():
        statics = read_statics(stored, model.config.num_layers)
    elif "static" in args.routes:
        print(f"no {stored}: the static paths are left out")
    table = compare(model, tokenizer, prompts, known, {"dr.llm": seeds}, statics, args.routes,
                    args.control, args.tilt, args.batch_size)
    report(table, "dr.llm", [] if args.tilt or args.control != -0.5 else seeds,
           {"dr.llm": "Dr.LLM"}, args.out)


if __name__ == "__main__":
    cli.run(main)
