"""Labels without a search: which single edit helped the questions nearest to this one?

Every path with one edit is asked of all training questions (edits.py). The label of a question is
the edit with the best mean effect on its 32 nearest questions, two standard errors subtracted, or
no edit. Routers learn these labels; they are evaluated alongside the best fixed paths and their own
decisions shuffled. Before that, cross-validation says what the rule itself, without routers, gains.

    python -m experiments.rules --model DIR        arithmetic of the model's own level
    python -m experiments.rules --model DIR --data training.jsonl --test test.jsonl
"""
import sys
from pathlib import Path

import torch

import cli
from answers import prompts_that_fit
from base_check import default_paths, make_arithmetic
from choose import frontier, similarity_space
from cli import with_interval
from evaluate import compare, interval, report
from experiments.edits import ask_edits, best_for_nearest, effects_of, single_edit_paths
from model_llama import load
from questions.loading import disjoint, load_all
from storage.answer_cache import AnswerCache
from storage.run_folder import write_kinds
from train import FOLDS, TrainConfig, features, train_routers

# N questions   K paths, the default path first   S numbers that describe a question


def labels_of_nearest(space, logprobs, paths):
    """A path per question, from the effects of the edits on its nearest questions, the question
    itself among them. space (N, S), logprobs (N, K)."""
    return [paths[k] for k in best_for_nearest(space, space, effects_of(logprobs)).tolist()]


def cross_validated(space, correct, logprobs, scored, reference):
    """(N,) gain of the rule over a reference path, on each question by its answers `scored`
    (N, K). The rule learns from the other folds' `correct` and `logprobs`, (N, K) each; so does
    reference(correct), which gives the number of a path."""
    gains = torch.zeros(len(space))
    fold_of = torch.arange(len(space)) % FOLDS
    for fold in range(min(FOLDS, len(space))):
        held_out = fold_of == fold
        others = ~held_out
        if others.any():
            path = reference(correct[others])
            effects = effects_of(logprobs[others], path)
            chosen = best_for_nearest(space[held_out], space[others], effects)
            answers = scored[held_out]
            gains[held_out] = answers.gather(1, chosen[:, None])[:, 0] - answers[:, path]
    return gains


# ---- the command ----

def parse_args(argv=None):
    parser = cli.Parser(__doc__, prog="python -m experiments.rules")
    cli.add_model_flags(parser)
    cli.add_data_flags(parser, [cli.DEMO_LABEL], batch_size=128)
    cli.add_own_model_flags(parser)
    parser.add_argument("--test", nargs="+", metavar="FILE", help="held-out question files")
    parser.add_argument("--seeds", type=cli.count, default=5, help="routers trained")
    parser.add_argument("--out", type=Path, default=Path("runs/rules"), help="result folder")
    args = parser.parse_args(argv)
    if args.test and cli.asks_arithmetic(args):
        parser.error("--test FILE needs --data FILE; without both, arithmetic is made")
    if args.test is None:
        args.test = [cli.DEMO_TEST[0]]
    return args


def read_prompts(args, tokenizer, model):
    """(training prompts, test prompts) of --data and --test, or of the arithmetic that train.py
    asks this model."""
    if cli.asks_arithmetic(args):
        training, tests, kinds = make_arithmetic(args, tokenizer, model, args.out)
        write_kinds(args.out, model.fingerprint(), kinds)
    else:
        tests = load_all(args.test, args.skip_bad_rows, args.score, args.begin)
        training = load_all(args.data, args.skip_bad_rows, args.score, args.begin)
        training = disjoint(args.test, tests, "--data", training)
    prompts, _ = prompts_that_fit(training[:args.limit], tokenizer, model, "training questions")
    test_prompts, _ = prompts_that_fit(tests[:args.limit], tokenizer, model)
    return prompts, test_prompts


def main(argv=None):
    args = parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer, model = load(args)
    prompts, test_prompts = read_prompts(args, tokenizer, model)
    paths = single_edit_paths(model.config.num_layers)
    cache = AnswerCache(args.out / "answers.jsonl")
    correct, logprobs = ask_edits(model, prompts, paths, cache, args.batch_size)
    default = default_paths(model, prompts)
    space = similarity_space(*features(model, prompts, default, folder=args.out))
    labels = labels_of_nearest(space, logprobs, paths)
    edited = sum(label != paths[0] for label in labels)
    print(f"{len(prompts)} training questions, {edited} of them labelled with an edit")
    default_number = 0
    expected = cross_validated(space, correct, logprobs, correct, lambda _: default_number)
    gain, bounds = expected.mean().item(), interval(expected)
    print(f"the rule without routers, cross-validated: {with_interval(gain, bounds)} points")

    seeds = range(args.seeds)
    routers = train_routers(model, prompts, labels, TrainConfig(), seeds, args.device, args.out)
    routes = [of_seed.route for of_seed in routers]
    tasks = {prompt.question.task for prompt in prompts}
    table = compare(model, tokenizer, test_prompts, tasks,
                    {"dr.llm": ("Dr.LLM, edits of the nearest", routes)}, frontier(paths, correct),
                    batch_size=args.batch_size, cache=cache)
    report(table, "dr.llm", args.out, extra={
        "command": " ".join(sys.argv), "training": len(prompts), "edited": edited,
        "cross_validated": {"gain": gain, "interval": list(bounds)}})


if __name__ == "__main__":
    cli.run(main)
