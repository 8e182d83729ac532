"""Every route side by side on test questions, with uncertainty.

Routing has to beat methods that need no router, so every table has two controls. One is the best
*fixed paths* of the training questions, of which the two around the routers' mean depth are shown.
The other is the routers' own decisions *shuffled* over the layers. Gains over the base model (the
route `vanilla`) are paired: a bootstrap over the same questions.

"in" domain are the tasks of the training questions, "out" all others. layers: blocks per forward
pass; layers_executed: total blocks per answer, over all of its forward passes, as the paper counts.
A *seed* is one of several trainings of the same routers, which differ in their random numbers.

    python evaluate.py --routers runs/demo/routers.safetensors --out runs/again
    python evaluate.py --routers runs/mine --model DIR --data arc=FILE --routes vanilla,dr.llm
    torchrun --nproc-per-node 2 evaluate.py --routers runs/mine --model DIR --data arc=FILE
"""
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import cli
from answers import cached_answer, prompts_that_fit
from base_check import chance_of, make_arithmetic
from cli import aligned, bounds, percent, progress_bar, with_interval
from drllm import ROUTERS_THEMSELVES, RouterRoute, Routers
from model_llama import Llama, load
from paths import DECISIONS, blocks
from questions.loading import left_out, load_all
from storage.answer_cache import AnswerCache
from storage.files import InputError, write_json
from storage.processes import is_first
from storage.run_folder import folder_of, kept_to_one_run, make_folder, read_fixed_paths

ROUTES = ("vanilla", "dr.llm", "fixed", "shuffled")
ACTIONS = tuple(decision.name for decision in DECISIONS)
OTHER_METHODS = "python -m experiments.methods --routes"  # evaluates the paper's other methods

# N questions   L layers


# ---- one route's answers ----

@dataclass
class Outcome:
    """A route's answers: one Answers per seed, a single one for routes without routers. depth:
    (N,) layers per forward pass, given only if the decisions do not determine it."""
    name: str
    seeds: list
    depth: torch.Tensor = None

    def __post_init__(self):
        self.correct = torch.stack([answers.correct for answers in self.seeds]).mean(0)  # (N,)
        self.decisions = torch.stack([answers.decisions for answers in self.seeds])  # (seeds, N, L)
        passes = torch.stack([answers.passes for answers in self.seeds]).float()  # (seeds, N)
        if self.depth is None:
            layers = blocks(self.decisions).float()  # (seeds, N)
        else:
            layers = self.depth[None]
        self.layers = layers.mean(0)  # (N,) blocks per forward pass
        self.layers_executed = (layers * passes).mean(0)  # (N,) over all forward passes


def interval(difference, resamples=1000, seed=0):
    """95% bootstrap interval (low, high) of the mean of paired differences (N,)."""
    values = np.asarray(difference, dtype=np.float64)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(values), size=(resamples, len(values)))  # questions, some repeatedly
    means = values[drawn].mean(1)
    return tuple(np.percentile(means, (2.5, 97.5)).tolist())


def summarise(outcome, base, chosen):
    """The figures of one route on the chosen questions, (N,) bool. sd: over seeds."""
    correct = outcome.correct[chosen]
    gain = correct - base.correct[chosen]  # paired: question by question
    decisions = outcome.decisions[:, chosen]  # (seeds, n, L)
    by_seed = [answers.correct[chosen].mean().item() for answers in outcome.seeds]
    sd = float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None
    figures = {
        "accuracy": correct.mean().item(),
        "layers": outcome.layers[chosen].mean().item(),
        "layers_executed": outcome.layers_executed[chosen].mean().item(),
        "n": int(chosen.sum()),
        "gain": gain.mean().item(),
        "interval": list(interval(gain)),
        "sd": sd}
    for code, action in enumerate(ACTIONS):
        figures[action] = (decisions == code).float().mean().item()
    return figures


# ---- the controls ----

def shuffled(decisions, seed=0):
    """Decisions (N, L), each row's in a random order of layers: only the depth stays."""
    rng = torch.Generator().manual_seed(seed)
    order = torch.rand(decisions.shape, generator=rng).argsort(1)
    return decisions.gather(1, order)


def fixed_paths_at(layers, fixed_paths):
    """(N,) expected reward of a mix of fixed paths with this mean depth.

    fixed_paths: [(length, correct (N,))], shortest first. Beyond the ends the end is taken.
    """
    if layers <= fixed_paths[0][0]:
        return fixed_paths[0][1]
    for (low, below), (high, above) in zip(fixed_paths, fixed_paths[1:]):
        if layers <= high:
            share = (layers - low) / (high - low)
            return (1 - share) * below + share * above
    return fixed_paths[-1][1]


def add_fixed_paths(table, main, fixed_paths):
    """Evaluates every one of fixed_paths, [(length, path)]. The two whose lengths are around the
    depth of the route `main` become routes of the table; table.fixed_paths has them all."""
    for length, path in fixed_paths:
        decisions = torch.tensor([path] * len(table.prompts))  # (N, L)
        table.fixed_paths[length] = table.ask(f"fixed path, {length} layers", [decisions])
    lengths = list(table.fixed_paths)
    depth = table.outcomes[main].layers[table.counted].mean().item()
    below = max((length for length in lengths if length <= depth), default=min(lengths))
    above = min((length for length in lengths if length > depth), default=below)
    table.outcomes["fixed below"] = table.fixed_paths[below]
    if above != below:
        table.outcomes["fixed above"] = table.fixed_paths[above]


# ---- the comparison ----

class Comparison:
    """Answers the same questions along every route and keeps what the tables need.

    outcomes: {key of a route: Outcome}. fixed_paths: {length: Outcome}. inside: (N,) which
    questions are in domain. counted: (N,) which questions the totals are over."""

    def __init__(self, model, tokenizer, prompts, known_tasks, batch_size=512, cache=None):
        self.model, self.tokenizer, self.prompts = model, tokenizer, prompts
        self.batch_size, self.cache = batch_size, cache or AnswerCache()
        self.tasks = [prompt.question.task for prompt in prompts]
        self.inside = torch.tensor([task in known_tasks for task in self.tasks])
        self.counted = self.inside if self.inside.any() else ~self.inside
        self.outcomes = {}
        self.fixed_paths = {}

    def ask(self, title, routes):
        """The Outcome of routes, one per seed."""
        with progress_bar(total=len(self.prompts) * len(routes), desc=title, unit="answer") as bar:
            seeds = [cached_answer(self.cache, self.model, self.tokenizer, self.prompts, route,
                                   self.batch_size, bar.update) for route in routes]
        return Outcome(title, seeds)

    def add(self, name, routes, title=None):
        """Answers along the routes, and makes their Outcome a row of the tables."""
        self.outcomes[name] = self.ask(title or name, routes)

    def summary(self, chosen):
        """{key of a route: its figures on the chosen questions, (N,) bool}."""
        base = self.outcomes["vanilla"]
        return {name: summarise(outcome, base, chosen)
                for name, outcome in self.outcomes.items()}

    def task_metrics(self, task):
        """The figures of one task, and of its levels where it has several."""
        of_task = torch.tensor([name == task for name in self.tasks])
        metrics = {"domain": "in" if self.inside[of_task].all() else "out",
                   "routes": self.summary(of_task)}
        level_of = [prompt.question.level for prompt in self.prompts]
        levels = sorted({level for level, name in zip(level_of, self.tasks) if name == task})
        if len(levels) > 1:
            metrics["levels"] = {}
            for level in levels:
                of_level = torch.tensor([other == level for other in level_of])
                metrics["levels"][level] = self.summary(of_task & of_level)
        return metrics

    def over_fixed_paths(self, outcome):
        """(n,) what an outcome gains on every counted question over the mix of fixed paths that has
        its mean depth."""
        fixed_paths = [(length, fixed.correct[self.counted])
                       for length, fixed in sorted(self.fixed_paths.items())]
        layers = outcome.layers[self.counted].mean().item()
        return outcome.correct[self.counted] - fixed_paths_at(layers, fixed_paths)

    def metrics(self):
        """The object of metrics.json."""
        tasks = {task: self.task_metrics(task) for task in dict.fromkeys(self.tasks)}
        routes = self.summary(self.counted)
        if self.fixed_paths:
            for name, outcome in self.outcomes.items():
                over = self.over_fixed_paths(outcome)
                routes[name] |= {"over_fixed": over.mean().item(),
                                 "over_fixed_interval": list(interval(over))}
        return {"routes": routes, "tasks": tasks}


def compare(model, tokenizer, prompts, known_tasks, routed, fixed_paths, routes=ROUTES,
            batch_size=512, cache=None, others=()):
    """The Comparison of the named routes, and of the base model, which gains are measured against.

    routed: {name: (title, a RouterRoute per seed)}; controls take their depth from the first.
    fixed_paths: [(length, path)] of the best fixed paths, or []. cache: an AnswerCache.
    others: functions that add further methods; they are called with the Comparison and the name of
    the first of `routed`.
    """
    table = Comparison(model, tokenizer, prompts, known_tasks, batch_size, cache)
    table.add("vanilla", [None], "base model")
    if set(routes) == {"vanilla"}:
        return table
    for name, (title, seeds) in routed.items():
        table.add(name, seeds, title)
    main = next(iter(routed))
    if "fixed" in routes and fixed_paths:
        add_fixed_paths(table, main, fixed_paths)
    if "shuffled" in routes:
        table.add("shuffled", [shuffled(table.outcomes[main].decisions[0])])
    for add_methods in others:
        add_methods(table, main)
    if "dr.llm" not in routes:  # its depth and decisions were needed for the controls only
        del table.outcomes[main]
    return table


def report(table, main, out, first_seed=0, extra=None, checked=True,
           first_file="routers.safetensors"):
    """Prints the tables, writes metrics.json and returns it. main: the route whose seeds, from
    first_seed on, are listed; the first of them is in first_file. extra: further values of
    metrics.json. checked: no question is a training question, as far as the router files know."""
    metrics = table.metrics()
    if main in table.outcomes:
        metrics["seeds"] = []
        for seed, answers in enumerate(table.outcomes[main].seeds, first_seed):
            metrics["seeds"].append({
                "seed": seed, "accuracy": answers.correct[table.counted].mean().item(),
                "layers": blocks(answers.decisions[table.counted]).float().mean().item()})
    metrics["fixed"] = []
    for length, outcome in table.fixed_paths.items():
        accuracy = outcome.correct[table.counted].mean().item()
        metrics["fixed"].append({"layers": length, "accuracy": accuracy})
    # first the file: a closed pipe (`| head`) ends the command while it prints
    if is_first():
        write_json(Path(out) / "metrics.json", metrics | (extra or {}))
    titles = {key: outcome.name for key, outcome in table.outcomes.items()}
    domain = "In" if table.inside.any() else "Out of"
    known = ("none of them labelled or trained on" if checked
             else "perhaps some of them labelled or trained on")
    print(f"\n{domain} domain, {int(table.counted.sum())} questions, {known}")
    print(aligned([total_row(titles[key], row) for key, row in metrics["routes"].items()]))
    print("\nAccuracy % (layers) by task and level, in domain and out of it")
    print(aligned(task_rows(metrics, titles)))
    print("", *gain_sentences(metrics, titles), *seed_sentences(table, main, first_file),
          *chance_sentences(table), sep="\n")
    return metrics


# ---- an evaluation ----

def evaluate_routes(args, inputs, others=()):
    """Compares and reports the routes that the flags name. others: see compare()."""
    model, seeds = inputs.model, inputs.seeds
    folder = folder_of(args.routers) or args.out
    fixed_paths = read_fixed_paths(folder / "paths.json", model.fingerprint(),
                                   model.config.num_layers, wanted="fixed" in args.routes)
    if seeds:
        known_tasks = seeds[0].metadata["tasks"]
    else:
        known_tasks = {question.task for question in inputs.questions}
    routes = [RouterRoute(routers, args.depth_bias, args.control, guard=not args.no_guard)
              for routers in seeds]
    with kept_to_one_run(args.out):
        cache = AnswerCache(args.out / "answers.jsonl")
        table = compare(model, inputs.tokenizer, inputs.prompts, known_tasks,
                        {"dr.llm": ("Dr.LLM", routes)}, fixed_paths, args.routes, args.batch_size,
                        cache, others)
        report(table, "dr.llm", args.out, extra={"too_long": inputs.too_long},
               checked=all(routers.metadata.get("questions") for routers in seeds),
               first_file=args.routers[0] if seeds else None)
        cache.merge()
    print(*score_sentences(seeds, args.score, inputs.prompts), f"{args.out}: metrics.json",
          sep="\n")


@dataclass
class Inputs:
    """What an evaluation's flags name, read and checked. seeds: Routers, one per file. questions:
    all of --data. prompts: of those that are asked. too_long: how many exceed the context."""
    model: Llama
    tokenizer: object
    seeds: list
    questions: list
    prompts: list
    too_long: int


def read_inputs(args):
    """The Inputs that the flags name."""
    make_folder(args.out)  # rather now than after an hour
    tokenizer, model = load(args)
    seeds = load_seeds(args.routers, model)
    if args.begin is None and seeds:  # as the routers learned
        args.begin = seeds[0].metadata.get("begin")
    if cli.asks_arithmetic(args):
        run = folder_of(args.routers)
        _, questions, _ = make_arithmetic(args, tokenizer, model, run, any_seed=True)
    else:
        questions = load_all(args.data, args.skip_bad_rows, args.score, args.begin)
    learned = set()  # wordings of training questions
    for routers in seeds:
        learned.update(routers.metadata.get("questions", ()))
    new = left_out(args.data, questions, learned, "were labelled for these routers")
    prompts, too_long = prompts_that_fit(new[:args.limit], tokenizer, model)
    return Inputs(model, tokenizer, seeds, questions, prompts, too_long)


def load_seeds(files, model):
    """The Routers of every file, which must be of one recipe and of different seeds."""
    seeds = [Routers.load(file, model) for file in files]
    for file, routers in zip(files, seeds):
        for key in sorted({*routers.metadata, *seeds[0].metadata} - {"seed"}):
            value, first = routers.metadata.get(key), seeds[0].metadata.get(key)
            if value != first:
                raise InputError(f"{file}: {key} {str(value)[:60]}; {files[0]}: {str(first)[:60]}. "
                                 "Seeds of one recipe agree")
    # by their weights, not by the files' names: train.py itself writes one seed to two files
    file_of = {}
    for file, routers in zip(files, seeds):
        key = str(routers.key())
        if key in file_of:
            raise InputError(f"{file}: the same routers as {file_of[key]}; a seed counts once")
        file_of[key] = file
    return seeds


# ---- the tables that a person reads ----

MOST_COLUMNS = 6  # routes side by side in the table by task: what fits on a screen


def total_row(name, figures):
    """A line of the table over all questions in domain."""
    return {"route": name, "accuracy %": percent(figures["accuracy"]),
            "gain": percent(figures["gain"], sign=True),
            "95% interval": bounds(figures["interval"]),
            "layers": f"{figures['layers']:.2f}",
            "blocks per answer": f"{figures['layers_executed']:.1f}"}


def task_row(label, routes, titles):
    """A line of the table by task: accuracy % (layers) of the routes in titles {key: title}."""
    row = {"task": label, "n": str(routes["vanilla"]["n"])}
    for key, title in titles.items():
        row[title] = f"{percent(routes[key]['accuracy'])} ({routes[key]['layers']:.2f})"
    return row


def task_rows(metrics, titles):
    """The lines of the table by task and level, in domain first; metrics.json has all routes."""
    columns = [key for key in metrics["routes"] if key != "shuffled"][:MOST_COLUMNS]
    titles = {key: titles[key] for key in columns}
    lines = []
    for task, figures in sorted(metrics["tasks"].items(), key=lambda item: item[1]["domain"]):
        label = f"{figures['domain']} {task}"
        if "levels" not in figures:
            lines.append(task_row(label, figures["routes"], titles))
        for level, routes in figures.get("levels", {}).items():
            lines.append(task_row(f"{label} {level}", routes, titles))
    return lines


# ---- the sentences below the tables ----

FEW = 30  # questions below which nothing is said of a task or a gain


def gain_sentences(metrics, titles):
    """What the table says of every trained route. metrics: of metrics.json."""
    routes, sentences = metrics["routes"], []
    base = routes["vanilla"]
    for key in routes:
        if key.startswith("dr.llm"):
            sentences += sentences_on(titles[key], routes[key], base)
    return sentences


def sentences_on(title, routed, base):
    """A trained route's gain over the base model, its gain over fixed paths, and a sentence on the
    length of its answers if fewer layers per pass are more blocks in total."""
    low, high = routed["interval"]
    change = f"{with_interval(routed['gain'], routed['interval'])} points"
    if low == high == 0:
        verdict = "as many correct answers as the base model"
    elif routed["n"] < FEW:
        verdict = f"{change} on {routed['n']} questions, too few to say more"
    elif low > 0:
        verdict = f"{change}, significantly more correct answers than the base model"
    elif high < 0:
        verdict = f"{change}, significantly fewer correct answers than the base model"
    else:
        verdict = f"{change}, no significant difference from the base model"
    sentences = [f"{title}: {verdict}, at {routed['layers']:.2f} of {base['layers']:.0f} layers."]
    if "over_fixed" in routed:
        over = with_interval(routed["over_fixed"], routed["over_fixed_interval"])
        sentences.append(f"Over fixed paths of the same depth: {over} points.")
    if (routed["layers"] < base["layers"]
            and routed["layers_executed"] > base["layers_executed"]):
        sentences.append(f"Its answers are longer: {routed['layers_executed']:.1f} blocks per "
                         f"answer in total, {base['layers_executed']:.1f} of the base model.")
    return sentences


def seed_sentences(table, main, first_file):
    """What the intervals leave out: the training of the routers. first_file: where the routers of
    the first seed are."""
    if main not in table.outcomes:
        return []
    sentences = ["The intervals are over questions only. They do not cover training again: "
                 "routers of another seed answer otherwise."]
    if len(table.outcomes[main].seeds) > 1:
        sentences.append(first_seed_sentence(table, main, first_file))
    return sentences


def first_seed_sentence(table, main, first_file):
    """Compares the routers of the first seed, in first_file, with the mean of all seeds."""
    outcome, base = table.outcomes[main], table.outcomes["vanilla"].correct
    mean_gain = (outcome.correct - base)[table.counted]
    first_gain = (outcome.seeds[0].correct - base)[table.counted]
    low, high = interval(mean_gain)
    first = with_interval(first_gain.mean().item(), interval(first_gain))
    sentence = (f"{outcome.name} is the mean of {len(outcome.seeds)} router seeds. The first of "
                f"them, {first_file}, gains {first} points")
    if low <= first_gain.double().mean().item() <= high:
        return f"{sentence}."
    mean = with_interval(mean_gain.mean().item(), (low, high))
    return (f"{sentence}, which is outside the mean's interval {mean}: the table does not hold for "
            "these routers.")


def numbers_by_task(prompts):
    """{task: the numbers of its prompts}."""
    numbers_of = {}
    for n, prompt in enumerate(prompts):
        numbers_of.setdefault(prompt.question.task, []).append(n)
    return numbers_of


def chance_sentences(table):
    """Names the multiple-choice tasks, of FEW questions or more, on which the base model is no
    better than chance."""
    num_options = torch.tensor([len(prompt.question.choices) for prompt in table.prompts])
    correct = table.outcomes["vanilla"].correct
    guessed = []
    for task, numbers in numbers_by_task(table.prompts).items():
        numbers = [n for n in numbers if num_options[n] > 0]
        if len(numbers) < FEW:
            continue
        chance, half_width = chance_of(num_options[numbers])
        accuracy = correct[numbers].mean().item()
        if accuracy <= chance + half_width:
            guessed.append(f"{task} ({percent(accuracy)}%, chance {percent(chance)} ± "
                           f"{percent(half_width)})")
    if not guessed:
        return []
    return [f"The base model is no better than chance on {', '.join(guessed)}. Gains and losses "
            "there are luck."]


def score_sentences(seeds, score, prompts):
    """Says when multiple choice is scored in another way than the routers learned from."""
    if not any(prompt.question.choices for prompt in prompts):
        return []
    learned = {routers.metadata.get("score") or score for routers in seeds} - {score}
    return [f"These routers learned from multiple choice scored by {other}; here it is scored by "
            f"{score}: see --score." for other in sorted(learned)]


# ---- the command ----

def add_flags(parser, names=ROUTES):
    """The flags of an evaluation. names: of the routes that it knows."""
    cli.add_model_flags(parser)
    cli.add_data_flags(parser, cli.DEMO_TEST, batch_size=512)
    cli.add_own_model_flags(parser)
    parser.add_argument("--routers", type=Path, nargs="+", action=cli.Gather, default=[],
                        metavar="FILE", help="router files; several are taken as seeds of one "
                                             "recipe")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluation"),
                        help="result folder")
    parser.add_argument("--routes", type=cli.names, default=",".join(ROUTES),
                        help=f"of {', '.join(names)}. vanilla, the base model, is always asked, "
                             "since gains are against it; fixed needs the paths.json that "
                             "training leaves next to the routers")
    parser.add_argument("--control", type=cli.number(-1, 1), default=ROUTERS_THEMSELVES,
                        help="the paper's interpolation parameter p, -1 to 1; at -0.5 the routers "
                             "decide alone")
    parser.add_argument("--depth-bias", type=cli.number(-1e6, 1e6), default=0.0,
                        help="times (0, 1, 2) is added to the logits of skip, execute, repeat")
    parser.add_argument("--no-guard", action="store_true",
                        help="trust the routers on any prompt, as the paper does")


def check_routes(parser, args, names=ROUTES):
    """Ends the command when a route's name is unknown, or when routers are missing."""
    unknown = [name for name in args.routes if name not in names]
    if unknown:
        parser.error(f"unknown routes {', '.join(unknown)}; known are {', '.join(names)}. The "
                     f"paper's other methods: {OTHER_METHODS} {','.join(unknown)}")
    if not args.routers and args.routes != ["vanilla"]:
        parser.error("every route but vanilla needs --routers FILE; train.py makes one, and "
                     "--routes vanilla asks the base model alone")


def parse_args(argv=None):
    parser = cli.Parser(__doc__)
    add_flags(parser)
    args = parser.parse_args(argv)
    check_routes(parser, args)
    return args


def main(argv=None):
    args = parse_args(argv)
    evaluate_routes(args, read_inputs(args))


if __name__ == "__main__":
    cli.run(main)
