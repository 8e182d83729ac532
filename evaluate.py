"""Every route side by side on questions that nobody trained on, with uncertainty.

A route is worth its name only if it beats what needs no router, so two controls stand in every
table: the best *static* path of the label questions at the same mean depth (two may be mixed to
meet it), and the routers' own decisions *shuffled* over the layers. The paper's other methods come
in through one hook, in compare(). Gains are paired: a bootstrap over the same questions.

"in" are tasks the labels knew, "out" others. layers: blocks per forward pass; layers_executed
("summed"): over all forward passes, as the paper counts.

    python evaluate.py --routers runs/demo/routers.safetensors --out runs/again
    python evaluate.py --routers runs/mine --model DIR --data arc=FILE --routes vanilla,dr.llm
"""
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

import cli
from cli import aligned, percent
from drllm import RouterRoute, Routers
from label import chance_of
from model_llama import load_model, load_tokenizer
from storage.files import InputError, write_json
from storage.answer_cache import Kept
from cli import progress_bar
from questions.loading import disjoint, left_out, load_all
from storage.run_folder import folder_of, make_folder, read_chosen, read_statics
from answers import answer, cached_answer, prepare

ROUTES = ("vanilla", "dr.llm", "static", "shuffled")
ACTIONS = ("skip", "execute", "repeat")


# ---- one route's answers ----

@dataclass
class Outcome:
    """A route's answers: one Answers per router seed, a single one for routes without seeds.
    depth: (N,) layers per pass, where decisions don't say it."""
    name: str
    seeds: list
    depth: torch.Tensor = None

    def __post_init__(self):
        self.right = torch.stack([a.right for a in self.seeds]).mean(0)  # (N,), mean over seeds
        self.decisions = torch.stack([a.decisions for a in self.seeds])  # (seeds, N, L)
        layers = self.decisions.sum(2).float() if self.depth is None else self.depth[None]
        passes = torch.stack([a.passes for a in self.seeds]).float()
        self.layers = layers.mean(0)  # (N,) blocks per forward pass
        self.layers_executed = (layers * passes).mean(0)  # (N,) summed over all forward passes


def interval(difference, resamples=1000, seed=0):
    """95% bootstrap interval (low, high) of the mean of paired differences (N,)."""
    values = np.asarray(difference, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    return tuple(np.percentile(means, (2.5, 97.5)).tolist())


def summarise(outcome, vanilla, rows):
    """The figures of one route on some questions, rows (N,) bool. sd: over router seeds."""
    right, gain = outcome.right[rows], (outcome.right - vanilla.right)[rows]
    decisions = outcome.decisions[:, rows]
    by_seed = [a.right[rows].mean().item() for a in outcome.seeds]
    return {"accuracy": right.mean().item(), "layers": outcome.layers[rows].mean().item(),
            "layers_executed": outcome.layers_executed[rows].mean().item(),
            "n": int(rows.sum()), "gain": gain.mean().item(), "interval": list(interval(gain)),
            "sd": float(np.std(by_seed, ddof=1)) if by_seed[1:] else None,
            **{name: (decisions == count).float().mean().item()
               for count, name in enumerate(ACTIONS)}}


# ---- the controls ----

def shuffled(decisions, seed=0):
    """Decisions (N, L), each row's in a random order of layers: only the depth stays."""
    rng = torch.Generator().manual_seed(seed)
    order = torch.rand(decisions.shape, generator=rng).argsort(1)
    return decisions.gather(1, order)


# ---- the comparison ----

class Comparison:
    """Asks every route the same questions and keeps what the tables need."""

    def __init__(self, model, tokenizer, prompts, known_tasks, batch_size=512, kept=None):
        self.model, self.tokenizer, self.prompts = model, tokenizer, prompts
        self.batch_size, self.kept = batch_size, kept or Kept()
        self.tasks = [p.question.task for p in prompts]
        self.inside = torch.tensor([task in known_tasks for task in self.tasks])
        self.counted = self.inside if self.inside.any() else ~self.inside  # what totals are over
        self.outcomes, self.statics = {}, []

    def ask(self, title, routes, model=None, layers_of=None):
        """The Outcome of routes, one per seed. model: a view of the model that the routes go
        through, whose layers_of(decisions) are (N,)."""
        ask = answer if model else partial(cached_answer, self.kept)
        with progress_bar(total=len(self.prompts) * len(routes), desc=title, unit="answer") as bar:
            seeds = [ask(model or self.model, self.tokenizer, self.prompts, route,
                         self.batch_size, bar.update) for route in routes]
        depth = layers_of and torch.stack([layers_of(a.decisions) for a in seeds]).mean(0)
        return Outcome(title, seeds, depth)

    def add(self, name, routes, title=None, **view):
        self.outcomes[name] = self.ask(title or name, routes, **view)
        return self.outcomes[name]

    def summary(self, rows):
        vanilla = self.outcomes["vanilla"]
        return {name: summarise(o, vanilla, rows) for name, o in self.outcomes.items()}

    def metrics(self):
        """The object of metrics.json."""
        tasks, questions = {}, [prompt.question for prompt in self.prompts]
        for task in dict.fromkeys(self.tasks):
            rows = torch.tensor([q.task == task for q in questions])
            domain = "in" if self.inside[rows].all() else "out"
            tasks[task] = {"domain": domain, "routes": self.summary(rows)}
            levels = sorted({q.level for q in questions if q.task == task})
            if len(levels) > 1:
                tasks[task]["levels"] = {level: self.summary(rows & torch.tensor(
                    [q.level == level for q in questions])) for level in levels}
        return {"routes": self.summary(self.counted), "tasks": tasks}


def compare(model, tokenizer, prompts, known_tasks, routed, statics, routes=ROUTES,
            batch_size=512, calibration=None, labels=None, kept=None):
    """The Comparison of the named routes, and of vanilla, which gains are measured against.

    routed: {name: (title, a RouterRoute per seed)}; controls take their depth from the first.
    statics: [(length, path)] of the label questions' frontier, or []. calibration: prompts that
    other methods are fitted on; labels: {id: path} for them. kept: answers there are, a Kept.
    """
    table = Comparison(model, tokenizer, prompts, known_tasks, batch_size, kept)
    table.add("vanilla", [None])
    if set(routes) == {"vanilla"}:
        return table
    for name, (title, seeds) in routed.items():
        table.add(name, seeds, title)
    main = next(iter(routed))
    if "static" in routes and statics:
        add_static(table, main, statics)
    if "shuffled" in routes:
        table.add("shuffled", [shuffled(table.outcomes[main].decisions[0])])
    if others := [name for name in routes if name not in ROUTES]:
        from experiments import methods as baselines  # the hook: it builds on this project, which works without it
        baselines.add(table, others, [route.routers for route in routed[main][1]],
                      table.outcomes[main], calibration, labels)
    if "dr.llm" not in routes:  # it was asked for its depth and decisions only
        del table.outcomes[main]
    return table


def add_static(table, main, statics):
    """Asks every static path of the frontier; the two around the routers' depth become routes."""
    paths = {length: torch.tensor([path] * len(table.prompts)) for length, path in statics}
    asked = {length: table.ask(f"static, {length} layers", [path])
             for length, path in paths.items()}
    table.statics = [(length, outcome.right) for length, outcome in asked.items()]
    layers = table.outcomes[main].layers[table.counted].mean().item()
    below = max((length for length in asked if length <= layers), default=min(asked))
    above = min((length for length in asked if length > layers), default=below)
    table.outcomes["static below"] = asked[below]
    if above != below:
        table.outcomes["static above"] = asked[above]


# ---- what a person reads ----

def total_row(name, figures):
    """A line of the table over all questions of the tasks the labels knew."""
    low, high = (percent(end, True) for end in figures["interval"])
    return {"route": name, "right %": percent(figures["accuracy"]),
            "gain": percent(figures["gain"], True), "95% interval": f"[{low}, {high}]",
            "layers": f"{figures['layers']:.2f}", "summed": f"{figures['layers_executed']:.1f}"}


def task_rows(metrics, names):
    """A line per task and level: right % (layers) of the first six routes; metrics.json has all."""
    columns = [name for name in metrics["routes"] if name != "shuffled"][:6]
    for task, figures in sorted(metrics["tasks"].items(), key=lambda task: task[1]["domain"]):
        for level, routes in (figures.get("levels") or {"": figures["routes"]}).items():
            yield {"task": f"{figures['domain']} {task} {level}".rstrip(),
                   "n": str(routes["vanilla"]["n"])} | {
                names[c]: f"{percent(routes[c]['accuracy'])} ({routes[c]['layers']:.2f})"
                for c in columns}


FEW = 30  # questions below which nothing is said of a task


def tasks_at_chance(table):
    """A sentence that names the multiple-choice tasks of a Comparison on which chance explains what
    the plain model answers, of FEW questions or more; [] if there are none."""
    found, right = [], table.outcomes["vanilla"].right
    asked = [(prompt.question.task, len(prompt.question.choices)) for prompt in table.prompts]
    for task in dict.fromkeys(name for name, options in asked if options):
        rows = [n for n, one in enumerate(asked) if one[0] == task and one[1]]
        chance, off = chance_of(torch.tensor([asked[n][1] for n in rows]))
        if len(rows) >= FEW and (share := right[rows].mean().item()) <= chance + off:
            found.append(f"{task} ({100 * share:.1f}%, chance {100 * chance:.1f} ± "
                         f"{100 * off:.1f})")
    return [f"The plain model is no better than chance on {', '.join(found)}: there, gains and "
            "losses are luck."] if found else []


def other_score(seeds, score, prompts):
    """A sentence where multiple choice is asked otherwise than routers learned it; else []."""
    learned = {one.notes.get("score") or score for one in seeds} - {score}
    asked = any(prompt.question.choices for prompt in prompts)
    return [f"These routers learned from multiple choice by {', '.join(learned)}, and were asked "
            f"by {score}: see --score."] if learned and asked else []


def after(metrics, names):
    """Sentences that say what the table says of every trained route. metrics: of metrics.json."""
    routes, said = metrics["routes"], []
    plain = routes["vanilla"]
    for name in (name for name in routes if name.startswith("dr.llm")):
        found = routes[name]
        (low, high), gain = found["interval"], 100 * found["gain"]
        sure = ("surely more" if low > 0 else "surely fewer" if high < 0 else
                "these questions do not tell if more or fewer")
        against = ("as many right answers as the plain model" if low == high == 0 else
                   f"{gain:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}], {sure} right "
                   "answers than the plain model")
        said.append(f"{names[name]}: {against}, at {found['layers']:.2f} of "
                    f"{plain['layers']:.0f} layers.")
        fewer, more = (found[key] - plain[key] for key in ("layers", "layers_executed"))
        if fewer < 0 < more:
            said.append(f"Its answers are longer: {found['layers_executed']:.1f} layers run per "
                        f"answer, {plain['layers_executed']:.1f} along the default path.")
    return said


def report(table, main, out, first_seed=0, extra=None, told=True):
    """Prints the tables, writes metrics.json and returns it. main: the route whose router seeds,
    from first_seed on, are listed; told: it is known that no question was labelled."""
    metrics, rows = table.metrics(), table.counted
    if main in table.outcomes:
        metrics["seeds"] = [{"seed": seed, "accuracy": a.right[rows].mean().item(),
                             "layers": a.decisions[rows].sum(1).float().mean().item()}
                            for seed, a in enumerate(table.outcomes[main].seeds, first_seed)]
    metrics["static"] = [{"layers": layers, "accuracy": right[rows].mean().item()}
                         for layers, right in table.statics]
    write_json(Path(out) / "metrics.json", metrics | (extra or {}))  # first: `| head` ends us
    names = {key: outcome.name for key, outcome in table.outcomes.items()}
    print(f"\n{'In' if table.inside.any() else 'Out of'} domain, {int(rows.sum())} questions, "
          + ("none of them labelled or trained on" if told else "perhaps among those labelled"))
    print(aligned([total_row(names[name], one) for name, one in metrics["routes"].items()]))
    print("\nRight % (layers) by task and level, in domain and out of it")
    print(aligned(list(task_rows(metrics, names))))
    print("", *after(metrics, names), *tasks_at_chance(table), sep="\n")
    return metrics


# ---- the command ----

def parse_args(argv=None):
    parser = cli.Parser(__doc__)
    cli.add_model_flags(parser)
    cli.add_data_flags(parser, cli.DEMO_TEST, batch_size=512)
    parser.add_argument("--routers", type=Path, nargs="+", default=[], metavar="FILE",
                        help="router files; several are taken as seeds of one recipe")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluation"), help="result folder")
    parser.add_argument("--routes", default=",".join(ROUTES),
                        help="comma-separated: these, or a method of experiments/methods.py. vanilla "
                             "is always asked, since gains are against it; static needs the "
                             "paths.json that training leaves beside the routers")
    parser.add_argument("--calibration", nargs="+", metavar="FILE",
                        help="question files that other methods are fitted on, e.g. those labelled")
    parser.add_argument("--control", type=cli.number(-1, 1), default=-0.5,
                        help="the paper's knob, -1 to 1; -0.5 is the routers themselves")
    parser.add_argument("--tilt", type=cli.number(-1e6, 1e6), default=0.0,
                        help="times (0, 1, 2) is added to the logits of skip, execute, repeat")
    args = parser.parse_args(argv)
    args.routes = args.routes.split(",")
    if set(args.routes) - set(ROUTES):
        from experiments.methods import BASELINES
        unknown = sorted(set(args.routes) - {*ROUTES, *BASELINES})
        if unknown:
            parser.error(f"unknown routes {', '.join(unknown)}; known are "
                         f"{', '.join((*ROUTES, *BASELINES))}")
    if not args.routers and set(args.routes) != {"vanilla"}:
        parser.error("every route but vanilla needs --routers")
    return args


def load_seeds(files, model):
    """The Routers of every file, which must be of one recipe and of different seeds."""
    seeds = [Routers.load(file, model) for file in files]
    for file, one in zip(files, seeds):
        for key in sorted({*one.notes, *seeds[0].notes} - {"seed"}):
            mine, first = (routers.notes.get(key) for routers in (one, seeds[0]))
            if mine != first:
                raise InputError(f"{file}: {key} {str(mine)[:60]}; {files[0]}: {str(first)[:60]}. "
                                 "Seeds of one recipe agree")
    # by their weights, not by the files' names: train.py itself writes one seed to two files
    file_of = {}
    for file, routers in zip(files, seeds):
        key = str(routers.key())
        if key in file_of:
            raise InputError(f"{file}: the same routers as {file_of[key]}; a seed counts once")
        file_of[key] = file
    return seeds


def main(argv=None):
    args = parse_args(argv)
    make_folder(args.out)  # rather now than after an hour
    cli.use_device(args)
    tokenizer = load_tokenizer(args.model)
    model = load_model(args.model, args.device, cli.DTYPES.get(args.dtype))
    seeds = load_seeds(args.routers, model)
    data, fitted = (load_all(files, args.skip_bad_rows, args.score) if files else []
                    for files in (args.data, args.calibration))
    fitted = disjoint(args.data, data, "--calibration", fitted)
    learned = {name for one in seeds for name in one.notes.get("questions", ())}
    data = left_out(args.data, data, learned, "were labelled for these routers")
    prompts, calibration = (some and prepare(some[:args.limit], tokenizer, model)[0]
                            for some in (data, fitted))
    beside = folder_of(args.routers) or args.out
    statics = read_statics(beside / "paths.json", model.config.num_layers, "static" in args.routes)
    known = seeds[0].notes["tasks"] if seeds else {question.task for question in data}
    routes = [RouterRoute(one, args.tilt, args.control) for one in seeds]
    kept = Kept(args.out / "kept.jsonl")
    table = compare(model, tokenizer, prompts, known, {"dr.llm": ("Dr.LLM", routes)}, statics,
                    args.routes, args.batch_size, calibration,
                    read_chosen(beside, model.config.num_layers), kept)
    report(table, "dr.llm", args.out, told=all(one.notes.get("questions") for one in seeds))
    print(*other_score(seeds, args.score, prompts), f"{args.out}: metrics.json", sep="\n")


if __name__ == "__main__":
    cli.run(main)
