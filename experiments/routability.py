"""How much could any router gain? Known before anything is searched or trained.

A router sees a question and chooses a path. It can gain only if paths help some questions and harm
others, and if that is a property of the question, not of the form in which it happens to be asked.
So some fixed paths (the default path, all single edits, the best fixed paths of --run) are asked of
all questions twice, in two forms that should not matter (forms.py). The change of the correct
answer's log-probability against the default path is split as in an analysis of variance:

    change = path + question + path x question + the rest

Each share but the last is a covariance between the two forms, so that luck of one form is in the
rest. The *reliability* of the interaction is the correlation of its two measurements.

*Selector of the other form*: choose each question's path by one form (a correct path; of several
the one with the most probable answer), score it on the other form. It knows the correct answers,
which no router does; but it also suffers from the luck of the form that it was chosen by. If
measurements are normal, the choice is worth sqrt(reliability) of that by the true interaction. The
*bound* is its gain over the best fixed path (chosen by the same form), divided by
sqrt(reliability). LEAST bounds the divisor, and the gain on the very form that chose is the most
that the bound may be.

*Nearest*: what the rule of edits.py gains over the best fixed path, cross-validated: it learns from
the other folds in one form and is scored on this fold in the other form.

What must be so if the bound is to be believed (fixed before anything was measured):
1. for the demo and its sister models, where routing pays, the bound's interval is above 0;
2. if the paths of each question are shuffled, the intervals of reliability and bound contain 0;
3. over six or more pairs of model and task, the rank correlation of the bounds with what trained
   routers gained is positive, and its interval is above 0.

    python -m experiments.routability --run runs/demo --out runs/routability
    python -m experiments.routability --model DIR --problems 50 --out runs/mine-routability
"""
from pathlib import Path

import torch

import cli
from choose import SMALLEST_GROUP, similarity_space
from cli import aligned, bounds, percent, with_interval
from evaluate import interval
from experiments.edits import ask_edits, effects_of, single_edit_paths
from experiments.forms import in_forms
from experiments.lab import FinishedRun
from experiments.rules import cross_validated
from experiments.statistics import bootstrap
from model_llama import load
from storage.answer_cache import AnswerCache
from storage.files import InputError, write_json
from storage.run_folder import read_fixed_paths
from train import features

# N questions   K paths, the default path first   correct, logprobs (2, N, K): of both forms

FORMS = ((0, 1), (1, 0))  # (the form that chooses, the form that is scored)
LEAST = 0.1               # reliability at least, as a divisor: below it the bound would be noise
SURE = 1e3                # nats: a correct path is chosen before any that is not


# ---- shares of the variance ----

def parts_of(logprobs):
    """{part: (2, N, K-1) or what broadcasts to it} of the changes against the default path."""
    changes = torch.stack([effects_of(form)[:, 1:] for form in logprobs]).double()
    changes = changes - changes.mean((1, 2), keepdim=True)
    path, question = changes.mean(1, keepdim=True), changes.mean(2, keepdim=True)
    return {"all": changes, "path": path, "question": question,
            "interaction": changes - path - question}


def shares(logprobs):
    """{part: share of the variance}; they sum to 1 with the rest, on which the forms disagree."""
    parts = parts_of(logprobs)
    total = parts.pop("all").square().mean()
    result = {part: ((a * b).mean() / total).item() for part, (a, b) in parts.items()}
    return result | {"rest": 1 - sum(result.values())}


def reliability(logprobs):
    """The correlation of the path x question interaction between the two forms."""
    a, b = parts_of(logprobs)["interaction"]
    spread = (a.square().mean() * b.square().mean()).sqrt()
    return ((a * b).mean() / spread).item() if spread > 0 else 0.0


# ---- what a selector of paths gains over the best fixed path ----

def best_fixed(correct):
    """The path of (N, K) that answers most questions; of several the first."""
    return int(correct.mean(0).argmax())


def picked(correct, chosen):
    """(N,) whether the chosen path of each question is correct."""
    return correct.gather(1, chosen[:, None])[:, 0]


def oracle_gain(correct, logprobs, forms):
    """The gain of paths chosen by one form and scored on another (see FORMS), over the best fixed
    path of the form that chooses."""
    gains = []
    for learned, scored in forms:
        chosen = (logprobs[learned] + SURE * correct[learned]).argmax(1)
        fixed = correct[scored][:, best_fixed(correct[learned])]
        gains.append((picked(correct[scored], chosen) - fixed).mean().item())
    return sum(gains) / len(gains)


def bound(correct, logprobs):
    """What a selector that knows the true interaction gains over the best fixed path."""
    across = oracle_gain(correct, logprobs, FORMS)
    within = oracle_gain(correct, logprobs, ((0, 0), (1, 1)))
    return min(across / max(LEAST, reliability(logprobs)) ** 0.5, within)


def gains_of_nearest(correct, logprobs, space):
    """(N,) gain of the rule of the nearest questions over the best fixed path, cross-validated
    within the questions and across the forms."""
    gains = [cross_validated(space, correct[learned], logprobs[learned], correct[scored],
                             best_fixed)
             for learned, scored in FORMS]
    return sum(gains) / len(gains)


# ---- the figures of a task ----

def over_questions(statistic, *matrices):
    """[low, high]: 95% interval of a statistic of matrices (2, N, K), over their questions."""
    resampled = lambda rows: statistic(*(matrix[:, rows] for matrix in matrices))
    return bootstrap(resampled, matrices[0].shape[1])


def shuffled_paths(correct, logprobs, seed=0):
    """The control: in each form, the paths of each question change places."""
    rng = torch.Generator().manual_seed(seed)
    order = torch.rand(correct.shape, generator=rng).argsort(2)
    return correct.gather(2, order), logprobs.gather(2, order)


def figures(correct, logprobs, space):
    """All figures of some questions. space (N, S): see choose.similarity_space."""
    nearest = gains_of_nearest(correct, logprobs, space)
    return {"n": correct.shape[1], "base": correct[:, :, 0].mean().item(), **shares(logprobs),
            "reliability": reliability(logprobs),
            "reliability interval": over_questions(reliability, logprobs),
            "bound": bound(correct, logprobs),
            "bound interval": over_questions(bound, correct, logprobs),
            "nearest": nearest.mean().item(), "nearest interval": list(interval(nearest))}


def as_row(name, row):
    """A line of the table."""
    low, high = row["reliability interval"]
    gained = with_interval(row["routers"], row["routers interval"]) if "routers" in row else ""
    return {"": name, "questions": str(row["n"]), "base model %": percent(row["base"]),
            **{f"{part} %": percent(row[part])
               for part in ("path", "question", "interaction", "rest")},
            "reliability": f"{row['reliability']:.2f} [{low:.2f}, {high:.2f}]",
            "bound": f"{percent(row['bound'], sign=True)} {bounds(row['bound interval'])}",
            "nearest": with_interval(row["nearest"], row["nearest interval"]), "routers": gained}


# ---- the command ----

def parse_args(argv=None):
    parser = cli.Parser(__doc__, prog="python -m experiments.routability")
    cli.add_model_flags(parser)
    cli.add_data_flags(parser, [cli.DEMO_LABEL], batch_size=128)
    cli.add_own_model_flags(parser)
    parser.set_defaults(limit=300)
    parser.add_argument("--run", type=Path, metavar="DIR",
                        help="finished run of train.py on this model: its best fixed paths are "
                             "asked, too, and what its routers gained is in the table")
    parser.add_argument("--out", type=Path, default=Path("runs/routability"), help="result folder")
    return parser.parse_args(argv)


def ask_forms(args, model, forms, cache):
    """(correct, logprobs), each (2, N, K): of all single edits and the run's best fixed paths."""
    singles, fixed = single_edit_paths(model.config.num_layers), []
    if args.run:
        fixed = read_fixed_paths(args.run / "paths.json", model.config.num_layers)
    further = [path for _, path in fixed if path not in singles]
    of_forms = []
    for prompts in forms:
        asked = ask_edits(model, prompts, singles, cache, args.batch_size)
        if further:
            more = ask_edits(model, prompts, [singles[0], *further], cache, args.batch_size)
            asked = torch.cat([asked, more[:, :, 1:]], dim=2)
        of_forms.append(asked)
    return torch.stack(of_forms, dim=1)


def add_routers(rows, metrics):
    """Adds to each task's figures what the routers of a run gained on it."""
    of_task = {task: found["routes"] for task, found in metrics["tasks"].items()}
    of_task["all"] = metrics["routes"]
    for task in rows.keys() & of_task.keys():
        routers = of_task[task]["dr.llm"]
        rows[task] |= {"routers": routers["gain"], "routers interval": routers["interval"]}


def main(argv=None):
    args = parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer, model = load(args)
    forms = in_forms(args, tokenizer, model, 2)
    if len(forms[0]) < SMALLEST_GROUP:
        raise InputError(f"{len(forms[0])} questions; routability needs {SMALLEST_GROUP}")
    cache = AnswerCache(args.out / "answers.jsonl")
    correct, logprobs = ask_forms(args, model, forms, cache)
    default = torch.ones(len(forms[0]), model.config.num_layers, dtype=torch.long)
    space = similarity_space(*features(model, forms[0], default, folder=args.out))

    tasks = [prompt.question.task for prompt in forms[0]]
    rows = {"all": figures(correct, logprobs, space)}
    for task in sorted(set(tasks)):
        chosen = torch.tensor([name == task for name in tasks])
        if SMALLEST_GROUP <= chosen.sum() < len(tasks):
            rows[task] = figures(correct[:, chosen], logprobs[:, chosen], space[chosen])
    if args.run:
        add_routers(rows, FinishedRun(args.run).metrics)
    rows["shuffled"] = figures(*shuffled_paths(correct, logprobs), space)
    write_json(args.out / "routability.json", {"paths": correct.shape[2], "rows": rows})
    print(aligned([as_row(name, row) for name, row in rows.items()]))
    print("bound and nearest: points over the best fixed path; routers: those of --run, points "
          "over the base model")


if __name__ == "__main__":
    cli.run(main)
