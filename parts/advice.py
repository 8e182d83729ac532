"""What a run says to its user beside the figures: before a long search, and below the table.

A gain that luck explains is none, so a search is refused where the plain model is no better than
chance: any path is then right as often as another, and the ones found right are the lucky ones.
"""
import math
import os
import time

import torch

from parts.files import InputError, whole_lines
from tasks import answer, judge

ASKED = 400  # label questions that are asked first, at most
FEW = 30  # questions below which nothing is said of a task
MENU, STATICS = 25, 12  # paths that a menu costs, and of it asked in the evaluation: about so many
PRODUCT = 1e-11  # seconds per multiplication when routers are trained, about
AT_ZERO = ("Does it answer in the form asked for (a letter, \\boxed{})? `python -m extras.explain` "
           "shows one answer")


def margin(share, number):
    """Half the width of a 95% interval of a share that was measured on so many questions."""
    return 1.96 * math.sqrt(share * (1 - share) / number)


def before(run, prompts, tests):
    """Says what the plain model answers of the label questions, beside chance, and about how long
    all will take. InputError if it answers multiple choice no better than chance, without --force.
    """
    args = run.args
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > 0.75 * cores and not args.threads:
        print(f"other work keeps {load:.1f} of {cores} cores busy, and every small operation waits "
              "for all threads; --threads 1 may be several times as fast")
    if len(tests) < 100:
        print(f"{len(tests)} test questions: a 95% interval will reach about "
              f"{100 * margin(0.5, len(tests)):.0f} points to either side")
    each = plain_model(run.model, run.tokenizer, prompts, args, refuse=not args.force)
    began, few = time.time(), tests[:64]
    answer(run.model, run.tokenizer, few, None, args.batch_size)
    written = (time.time() - began) / len(few)
    paths = args.simulations + 1
    searched = len(whole_lines(run.out / "labels.jsonl"))
    asked = (max(0, len(prompts) - searched) * paths
             + len(prompts) * MENU * (args.choose in ("safe", "consensus")))
    trained = (2 * args.seeds + 4 * (args.choose == "safe")) * run.config.epochs * len(prompts)
    sizes = run.model.config.num_layers * run.model.config.hidden_size * run.config.width
    seconds = (each * asked + written * len(tests) * (2 * args.seeds + STATICS)
               + PRODUCT * trained * 6 * sizes * run.config.windows)
    less = "at most " if run.out.exists() else ""  # some of it may be there already
    print(f"all together this takes {less}about {span(seconds)}; what is found is kept, so that "
          "the same command goes on where it was stopped")


def plain_model(model, tokenizer, prompts, args, refuse=False):
    """Says what the plain model answers of the first questions, beside chance; returns how many
    seconds a question took. refuse: InputError where chance explains multiple choice."""
    some = prompts[:ASKED]
    default = torch.ones(len(some), model.config.num_layers, dtype=torch.long)
    judge(model, tokenizer, some[:32], default[:32])  # the first call makes kernels
    began = time.time()
    right, _ = judge(model, tokenizer, some, default, args.batch_size)
    each = (time.time() - began) / len(some)
    options = torch.tensor([len(prompt.question.choices) for prompt in some])
    likely = "--score likelihood, " if args.score == "letter" else ""
    for rows in (options > 0, options == 0):
        if rows.any():
            said, lucky = plain_score(right[rows], options[rows], args.simulations + 1)
            if lucky:
                said += (f". What a search finds is luck then. Use {likely}questions with examples "
                         "in their prompt, or a model that can do it")
            if lucky and refuse:
                raise InputError(f"{args.model}: {said}; --force goes on all the same")
            print(said)
    return each


def plain_score(right, options, paths):
    """(a sentence on the plain model's answers, whether chance explains them). right (N,): rewards;
    options (N,): how many each question has, 0 for an open one; paths: tried per question."""
    share, number = right.mean().item(), len(right)
    if not options[0]:
        return (f"the plain model answers {100 * share:.1f}% of {number} open questions"
                + (f". {AT_ZERO}" if share == 0 else ""), False)
    chance, off = chance_of(options)
    return (f"the plain model answers {100 * share:.1f}% of {number} multiple-choice questions, "
            f"chance {100 * chance:.1f}% ± {100 * off:.1f}; of {paths} paths per question luck "
            f"alone makes {paths * chance:.0f} right", share <= chance + off)


def chance_of(options):
    """(share of right answers by guessing, half of its 95% interval) of questions with so many
    options (N,) each."""
    chance = (1 / options).mean().item()
    return chance, margin(chance, len(options))


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


def expectation(gain, interval, layers, num_layers, pays):
    """The sentence on what routing is expected to do. gain, layers (N,): of each label question, by
    routers that learned from others."""
    low, high = (100 * end for end in interval)
    return (f"expected on fresh questions, cross-validated on {len(gain)} label questions: "
            f"{100 * gain.mean():+.1f} points [{low:+.1f}, {high:+.1f}] at {layers.mean():.2f} of "
            f"{num_layers} layers: routing is {'' if pays else 'not '}expected to pay on this model"
            + ("" if pays else ", so the routers execute every layer "
                               "(--choose consensus trains others all the same)"))


def span(seconds):
    """About how long, with one digit that counts: "40 s", "6 min", "3 h"."""
    for unit, size in (("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= 2 * size or unit == "s":
            return f"{max(1, round(seconds / size))} {unit}"


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
