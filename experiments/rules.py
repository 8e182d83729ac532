"""Labels without a search: which single edit helped the questions nearest to this one?

The search asks which path is correct for one question, and is misled by luck. Here every path with
one edit (a layer skipped or repeated) is asked of all training questions alike, and its effect is
the change of the log-probability of the gold answer. The label of a question is the edit with the
best mean effect on its 32 nearest questions, two standard errors subtracted, or no edit. Routers
learn these labels, and are evaluated beside the best fixed paths and their own decisions shuffled.

    python -m experiments.rules --model DIR --data training.jsonl --test test.jsonl
"""
import sys
from pathlib import Path

import torch

import cli
from answers import batches, final_states, prepare, what_answers_depend_on
from choose import frontier, similarity_space
from cli import progress_bar
from evaluate import compare, report
from model_llama import FixedRoute, load_model, load_tokenizer
from paths import EDITS, default_path
from questions.loading import disjoint, load_all
from storage.answer_cache import AnswerCache, source_hash
from storage.files import InputError
from train import TrainConfig, features, train_routers

# N questions   K paths, the default path first   S numbers that describe a question

NEAREST = 32         # questions whose effects decide, the question itself among them
STANDARD_ERRORS = 2  # subtracted from a mean effect, so that an edit of unknown worth is not chosen
LARGEST = 5.0        # nats; a larger change counts no more, or single questions would decide


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
    sequences, lengths = [p.sequence for p in prompts], [len(p.ids) for p in prompts]
    sizes = [len(p.gold) for p in prompts]
    default_states, asked = [{} for _ in prompts], []
    for k, path in enumerate(paths):
        # what comes before the edited layer is the default path's: it is computed once
        states = default_states if k == 0 else [dict(of_prompt) for of_prompt in default_states]
        route = FixedRoute(torch.tensor([path] * len(prompts)))
        hidden, _ = final_states(model, sequences, lengths, route, states)
        before_gold = [h[len(p.ids) - 1:len(p.sequence) - 1] for h, p in zip(hidden, prompts)]
        logprobs = model.head(torch.cat(before_gold)).float().log_softmax(-1)  # (tokens, V)
        gold = torch.tensor([token for p in prompts for token in p.gold], device=logprobs.device)
        agrees = (logprobs.argmax(-1) == gold).split(sizes)
        of_gold = logprobs.gather(1, gold[:, None])[:, 0].split(sizes)
        asked.append([[float(tokens.all()) for tokens in agrees],
                      [tokens.sum().item() for tokens in of_gold]])
    return torch.tensor(asked).permute(1, 2, 0)


def ask_edits(model, prompts, paths, cache, batch_size=128):
    """(correct, log-probability of the gold answer), each (N, K)."""
    asked = torch.zeros(2, len(prompts), len(paths))
    with progress_bar(total=len(prompts), desc="single edits", unit="question") as bar:
        for rows in batches(prompts, batch_size):
            batch = [prompts[n] for n in rows]
            about = ["single edits", paths, source_hash("experiments/rules.py"),
                     *what_answers_depend_on(model), *(prompt.key() for prompt in batch)]
            asked[:, rows] = torch.tensor(cache.get(
                about, lambda: ask_batch(model, batch, paths).tolist()))
            bar.update(len(rows))
    return asked


# ---- labels ----

def lower_bounds(effects):
    """(n, K) mean effects less their standard errors, of effects (n, m, K) on m questions each.
    Path 0 changes nothing, which is certain."""
    means, number = effects.mean(1), effects.shape[1]
    if number < 2:  # one question says nothing of others
        return torch.full_like(means, -torch.inf).index_fill(1, torch.tensor([0]), 0.0)
    bounds = means - STANDARD_ERRORS * effects.std(1) / number ** 0.5
    bounds[:, 0] = 0
    return bounds


def labels_of_nearest(space, logprobs, paths):
    """A path per question, from what the edits did to the questions nearest to it. space (N, S)."""
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


def main(argv=None):
    args = parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    cli.use_device(args)
    tokenizer = load_tokenizer(args.model)
    model = load_model(args.model, args.device, cli.DTYPES.get(args.dtype))
    tests = load_all(args.test, args.skip_bad_rows, args.score)
    training = disjoint(args.test, tests, "--data",
                        load_all(args.data, args.skip_bad_rows, args.score))
    prompts, _ = prepare(training[:args.limit], tokenizer, model)
    test_prompts, _ = prepare(tests[:args.limit], tokenizer, model)
    if unwritten := [p.question.id for p in prompts if not p.gold]:
        raise InputError(f"question {unwritten[0]}: its answer is not written, but scored")

    paths = single_edit_paths(model.config.num_layers)
    cache = AnswerCache(args.out / "answers.jsonl")
    correct, logprobs = ask_edits(model, prompts, paths, cache, args.batch_size)
    default = torch.tensor([paths[0]] * len(prompts))
    space = similarity_space(*features(model, prompts, default, folder=args.out))
    labels = labels_of_nearest(space, logprobs, paths)
    edited = sum(label != paths[0] for label in labels)
    print(f"{len(prompts)} training questions, {edited} of them labelled with an edit")

    routers = train_routers(model, prompts, labels, TrainConfig(), range(args.seeds), args.device,
                            args.out)
    routes = [of_seed.route for of_seed in routers]
    tasks = {prompt.question.task for prompt in prompts}
    table = compare(model, tokenizer, test_prompts, tasks,
                    {"dr.llm": ("Dr.LLM, edits of the nearest", routes)}, frontier(paths, correct),
                    batch_size=args.batch_size, cache=cache)
    report(table, "dr.llm", args.out, extra={"command": " ".join(sys.argv)})


if __name__ == "__main__":
    cli.run(main)
