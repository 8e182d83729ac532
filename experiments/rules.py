"""Labels without a search: which single edit helped the questions nearest to this one?

The search asks which path is correct for one question, and luck misleads it. Here every path with
one edit (a layer skipped or repeated) is tried on all training questions alike. The effect of an
edit is the change of the log-probability of the gold answer. The label of a question is the edit
with the best mean effect on its 32 nearest questions, two standard errors subtracted, or no edit.
Routers learn these labels; they are evaluated beside the best fixed paths and their own decisions
shuffled.

    python -m experiments.rules --model DIR --data training.jsonl --test test.jsonl
"""
import sys
from pathlib import Path

import torch

import cli
from answers import batches, final_states, prompts_that_fit, what_answers_depend_on
from choose import frontier, similarity_space
from cli import progress_bar
from evaluate import compare, report
from model_llama import FixedRoute, load
from paths import EDITS, default_path
from questions.loading import disjoint, load_all
from storage.answer_cache import AnswerCache, source_hash
from storage.files import InputError
from train import TrainConfig, features, train_routers

# N questions   K paths, the default path first   S numbers that describe a question

NEAREST = 32         # questions whose effects decide, the question itself among them
STANDARD_ERRORS = 2  # subtracted from a mean effect, so that an uncertain edit is not chosen
LARGEST = 5.0        # nats; larger changes count as this, or single questions would decide


# ---- effects of every edit on every training question ----

def single_edit_paths(num_layers):
    """The default path and every path with one edit, skips before repeats."""
    default = default_path(num_layers)
    return [default, *(default[:layer] + (code,) + default[layer + 1:]
                       for code in EDITS for layer in range(num_layers))]


@torch.inference_mode()
def ask_batch(model, prompts, paths):
    """(correct, log-probability of the gold answer), each (N, K), of a batch of prompts. paths:
    see single_edit_paths."""
    sequences = [prompt.sequence for prompt in prompts]
    lengths = [len(prompt.ids) for prompt in prompts]
    default_states = [{} for _ in prompts]
    of_paths = []
    for k, path in enumerate(paths):
        # what comes before the edited layer is the default path's: it is computed once
        states = default_states if k == 0 else [dict(of_prompt) for of_prompt in default_states]
        route = FixedRoute(torch.tensor([path] * len(prompts)))
        hidden, _ = final_states(model, sequences, lengths, route, states)
        of_paths.append(grade_gold(model, prompts, hidden))
    return torch.stack(of_paths, dim=-1)


def grade_gold(model, prompts, hidden):
    """(2, N): whether the greedy tokens are those of the gold answer, and its log-probability.
    hidden: (N, T, D) after the last layer, of prompts and gold answers."""
    before_gold = [states[len(prompt.ids) - 1:len(prompt.sequence) - 1]
                   for states, prompt in zip(hidden, prompts)]
    logprobs = model.head(torch.cat(before_gold)).float().log_softmax(-1)  # (tokens, V)
    gold = torch.tensor([token for prompt in prompts for token in prompt.gold],
                        device=logprobs.device)
    sizes = [len(prompt.gold) for prompt in prompts]
    is_greedy = (logprobs.argmax(-1) == gold).split(sizes)
    of_gold = logprobs.gather(1, gold[:, None])[:, 0].split(sizes)
    return torch.tensor([[float(tokens.all()) for tokens in is_greedy],
                         [tokens.sum().item() for tokens in of_gold]])


def ask_edits(model, prompts, paths, cache, batch_size=128):
    """(correct, log-probability of the gold answer), each (N, K)."""
    asked = torch.zeros(2, len(prompts), len(paths))
    with progress_bar(total=len(prompts), desc="single edits", unit="question") as bar:
        for numbers in batches(prompts, batch_size):
            batch = [prompts[n] for n in numbers]
            about = ["single edits", paths, source_hash("experiments/rules.py"),
                     *what_answers_depend_on(model), *(prompt.key() for prompt in batch)]
            made = cache.get(about, lambda: ask_batch(model, batch, paths).tolist())
            asked[:, numbers] = torch.tensor(made)
            bar.update(len(numbers))
    return asked


# ---- labels ----

def lower_bounds(effects):
    """(N, K) mean effects less their standard errors, of effects (N, m, K) on m questions each.
    Path 0 is the default path, whose effect is exactly 0."""
    means, number = effects.mean(1), effects.shape[1]
    if number < 2:  # one question says nothing of others
        return torch.full_like(means, -torch.inf).index_fill(1, torch.tensor([0]), 0.0)
    bounds = means - STANDARD_ERRORS * effects.std(1) / number ** 0.5
    bounds[:, 0] = 0
    return bounds


def labels_of_nearest(space, logprobs, paths):
    """A path per question, from the effects of the edits on its nearest questions. space (N, S)."""
    effects = (logprobs - logprobs[:, :1]).clamp(-LARGEST, LARGEST)  # (N, K)
    number = min(NEAREST, len(space))
    near = torch.cdist(space, space).topk(number, largest=False).indices  # (N, number)
    return [paths[k] for k in lower_bounds(effects[near]).argmax(1).tolist()]


# ---- the command ----

def parse_args(argv=None):
    parser = cli.Parser(__doc__, prog="python -m experiments.rules")
    cli.add_model_flags(parser)
    cli.add_data_flags(parser, [cli.DEMO_LABEL], batch_size=128)
    parser.add_argument("--test", nargs="+", metavar="FILE", default=[cli.DEMO_TEST[0]],
                        help="held-out question files")
    parser.add_argument("--seeds", type=cli.count, default=5, help="routers trained")
    parser.add_argument("--out", type=Path, default=Path("runs/rules"), help="result folder")
    return parser.parse_args(argv)


def read_prompts(args, tokenizer, model):
    """(training prompts, test prompts) of --data and --test."""
    tests = load_all(args.test, args.skip_bad_rows, args.score)
    training = load_all(args.data, args.skip_bad_rows, args.score)
    training = disjoint(args.test, tests, "--data", training)
    prompts, _ = prompts_that_fit(training[:args.limit], tokenizer, model, "training questions")
    test_prompts, _ = prompts_that_fit(tests[:args.limit], tokenizer, model)
    for prompt in prompts:
        if not prompt.gold:
            raise InputError(f"question {prompt.question.id}: its answer is not written, but "
                             "scored")
    return prompts, test_prompts


def main(argv=None):
    args = parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer, model = load(args)
    prompts, test_prompts = read_prompts(args, tokenizer, model)
    paths = single_edit_paths(model.config.num_layers)
    cache = AnswerCache(args.out / "answers.jsonl")
    correct, logprobs = ask_edits(model, prompts, paths, cache, args.batch_size)
    default = torch.tensor([paths[0]] * len(prompts))
    space = similarity_space(*features(model, prompts, default, folder=args.out))
    labels = labels_of_nearest(space, logprobs, paths)
    edited = sum(label != paths[0] for label in labels)
    print(f"{len(prompts)} training questions, {edited} of them labelled with an edit")

    seeds = range(args.seeds)
    routers = train_routers(model, prompts, labels, TrainConfig(), seeds, args.device, args.out)
    routes = [of_seed.route for of_seed in routers]
    tasks = {prompt.question.task for prompt in prompts}
    table = compare(model, tokenizer, test_prompts, tasks,
                    {"dr.llm": ("Dr.LLM, edits of the nearest", routes)}, frontier(paths, correct),
                    batch_size=args.batch_size, cache=cache)
    report(table, "dr.llm", args.out, extra={"command": " ".join(sys.argv)})


if __name__ == "__main__":
    cli.run(main)
