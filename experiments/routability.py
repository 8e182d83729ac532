"""How much could any router gain that chooses among some fixed paths? Known before any training.

A router can gain only if paths help some questions and harm others, and if that is a property of
the question, not of the form in which it happens to be asked. So the default path, all single edits
and the best fixed paths of --run are asked of all questions in two forms that should not matter
(forms.py). The change of the correct answer's log-probability against the default path is split as
in an analysis of variance:

    change = path + question + path x question + the rest

Each share but the last is a covariance between the two forms, so that luck of one form is in the
rest. The *reliability* of the interaction is the correlation of its two measurements.

A selector that knows the correct answers chooses each question's path by one form: a correct path,
of several the one that is most sure of the answer. It is scored on the other form. It knows more
than any router, but it also follows the luck of the form it chose by. If measurements are normal,
that leaves it sqrt(reliability) of what the true interaction is worth. So the *bound* is its gain
over the best fixed path of that form, divided by sqrt(reliability); at most what it gains on the
very form it chose by. *nearest* is what the rule of rules.py gains, which knows no answer: it
learns in one form and is scored in the other, cross-validated.

The bound is believed if all of this holds (fixed before anything was measured):
1. for the demo and its sister models, where routing pays, the bound's interval is above 0;
2. if the paths of each question are shuffled, the intervals of reliability and bound contain 0;
3. over six or more pairs of model and task, the rank correlation of the bounds with what trained
   routers gained is positive, and its interval is above 0.

    python -m experiments.routability --model DIR --run runs/mine --out runs/mine-routability
"""
from pathlib import Path

import numpy as np
import torch

import cli
from base_check import default_paths
from choose import SMALLEST_GROUP, similarity_space
from cli import aligned, bounds, percent, with_interval
from evaluate import interval
from experiments.edits import effects_of
from experiments.forms import add_flags, ask_forms, in_forms
from experiments.rules import cross_validated
from experiments.statistics import bootstrap
from model_llama import load
from storage.answer_cache import AnswerCache
from storage.files import write_json
from storage.run_folder import read_fixed_paths, read_metrics
from train import features

# N questions   K paths, the default path first   correct, logprobs (2, N, K): of both forms

FORMS = ((0, 1), (1, 0))  # (the form that chooses, the form that is scored)
LEAST = 0.1               # reliability at least, as a divisor: below it the bound would be noise
SURE = 1e3                # nats: a correct path is chosen before any that is not
SHUFFLES = 100            # of the control


# ---- shares of the variance ----

def shares_and_reliability(logprobs):
    """{part: share of the variance of the changes against the default path; "reliability": the
    correlation of the path x question interaction between the two forms}."""
    changes = torch.stack([effects_of(form)[:, 1:] for form in logprobs]).double()
    changes = changes - changes.mean((1, 2), keepdim=True)
    path, question = changes.mean(1, keepdim=True), changes.mean(2, keepdim=True)
    interaction = changes - path - question
    total = changes.square().mean().clamp(min=1e-12)
    found = {}
    for name, part in ("path", path), ("question", question), ("interaction", interaction):
        found[name] = ((part[0] * part[1]).mean() / total).item()
    found["rest"] = 1 - sum(found.values())  # on which the forms disagree
    spread = interaction.square().mean((1, 2)).prod().sqrt().clamp(min=1e-12)
    return found | {"reliability": ((interaction[0] * interaction[1]).mean() / spread).item()}


def reliability(logprobs):
    return shares_and_reliability(logprobs)["reliability"]


# ---- what a selector of paths gains over the best fixed path ----

def best_fixed(correct):
    """The path of (N, K) that answers most questions; of several the first."""
    return int(correct.mean(0).argmax())


def oracle_gain(correct, logprobs, forms):
    """The gain of paths chosen by one form and scored on another (see FORMS), over the best fixed
    path of the form that chooses."""
    gains = []
    for learned, scored in forms:
        chosen = (logprobs[learned] + SURE * correct[learned]).argmax(1)
        answers = correct[scored]
        gain = answers.gather(1, chosen[:, None])[:, 0] - answers[:, best_fixed(correct[learned])]
        gains.append(gain.mean().item())
    return sum(gains) / len(gains)


def bound(correct, logprobs):
    """What a selector that knows the true interaction gains over the best fixed path, see above."""
    across = oracle_gain(correct, logprobs, FORMS)
    within = oracle_gain(correct, logprobs, ((0, 0), (1, 1)))
    return min(across / max(LEAST, reliability(logprobs)) ** 0.5, within)


# ---- the figures of a task ----

def control_figures(correct, logprobs):
    """{figure: [low, high]} in 95% of the shuffles of each question's paths, in each form apart."""
    values = {"reliability": [], "bound": []}
    for seed in range(SHUFFLES):
        rng = torch.Generator().manual_seed(seed)
        order = torch.rand(correct.shape, generator=rng).argsort(2)
        shuffled = logprobs.gather(2, order)
        values["reliability"].append(reliability(shuffled))
        values["bound"].append(bound(correct.gather(2, order), shuffled))
    return {name: np.percentile(found, (2.5, 97.5)).tolist() for name, found in values.items()}


def figures(correct, logprobs, space):
    """All figures of some questions. space (N, S): see choose.similarity_space."""
    number, gains = correct.shape[1], {"nearest": 0, "best fixed": 0}  # (N,) each
    for learned, scored in FORMS:
        answers, fixed = correct[scored], best_fixed(correct[learned])
        gains["nearest"] += cross_validated(space, correct[learned], logprobs[learned], answers,
                                            best_fixed) / len(FORMS)
        gains["best fixed"] += (answers[:, fixed] - answers[:, 0]) / len(FORMS)
    row = {"n": number, "base": correct[:, :, 0].mean().item(), "bound": bound(correct, logprobs)}
    row |= shares_and_reliability(logprobs)
    row["reliability interval"] = bootstrap(lambda rows: reliability(logprobs[:, rows]), number)
    row["bound interval"] = bootstrap(
        lambda rows: bound(correct[:, rows], logprobs[:, rows]), number)
    for name, gain in gains.items():
        row |= {name: gain.mean().item(), f"{name} interval": list(interval(gain))}
    return row


def as_row(name, row):
    """A line of the table."""
    line = {"": name, "questions": str(row["n"]), "base model %": percent(row["base"])}
    for part in ("path", "question", "interaction", "rest"):
        line[f"{part} %"] = percent(row[part])
    low, high = row["reliability interval"]
    line["reliability"] = f"{row['reliability']:.2f} [{low:.2f}, {high:.2f}]"
    for figure in ("bound", "nearest", "best fixed", "routers"):
        if figure in row:
            line[figure] = with_interval(row[figure], row[f"{figure} interval"])
    return line


# ---- the command ----

def add_routers(rows, tasks, metrics):
    """Adds to each task's figures what the routers of a run gained on it, and to those of all
    `tasks` together if the run was in domain on just these."""
    of_task = dict(metrics["tasks"])
    if set(tasks) == {task for task, found in of_task.items() if found["domain"] == "in"}:
        of_task["all"] = metrics
    for task in rows.keys() & of_task.keys():
        routers = of_task[task]["routes"]["dr.llm"]
        rows[task] |= {"routers": routers["gain"], "routers interval": routers["interval"]}


def main(argv=None):
    parser = cli.Parser(__doc__, prog="python -m experiments.routability")
    add_flags(parser, "runs/routability")
    parser.add_argument("--run", type=Path, metavar="DIR", help="finished run of train.py: its "
                        "best fixed paths are asked, too, and its routers' gain is shown")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer, model = load(args)
    forms = in_forms(args, tokenizer, model, 2, SMALLEST_GROUP)
    fixed = []
    if args.run:
        fixed = read_fixed_paths(args.run / "paths.json", model.fingerprint(),
                                 model.config.num_layers)
    cache = AnswerCache(args.out / "answers.jsonl")
    correct, logprobs = ask_forms(model, forms, [path for _, path in fixed], cache,
                                  args.batch_size)
    default = default_paths(model, forms[0])
    space = similarity_space(*features(model, forms[0], default, folder=args.out))

    tasks = [prompt.question.task for prompt in forms[0]]
    rows = {"all": figures(correct, logprobs, space)}
    for task in sorted(set(tasks)):
        chosen = torch.tensor([name == task for name in tasks])
        if SMALLEST_GROUP <= chosen.sum() < len(tasks):
            rows[task] = figures(correct[:, chosen], logprobs[:, chosen], space[chosen])
    if args.run:
        add_routers(rows, tasks, read_metrics(args.run))
    control = control_figures(correct, logprobs)
    write_json(args.out / "routability.json",
               {"paths": correct.shape[2], "rows": rows, "shuffled": control})
    print(aligned([as_row(name, row) for name, row in rows.items()]))
    low, high = control["reliability"]
    print("bound, nearest: points over the best fixed path; best fixed, routers of --run: over the "
          f"base model\nwith shuffled paths: reliability [{low:.2f}, {high:.2f}], bound "
          f"{bounds(control['bound'])}")


if __name__ == "__main__":
    cli.run(main)
