"""How fast are the searches? Paths tried per second, as ratios measured in one run.

The sides of the comparison are timed in turn, A B A B. The table shows medians over the repeats
and, in brackets, the spread from the fastest to the slowest. No search can be faster than its own
matrix products; these are timed alone, too.

    python -m tools.bench
    python -m tools.bench --model runs/real/SmolLM2-135M --data runs/real/label.jsonl
    python -m tools.bench --device cuda --dtype bfloat16 --out runs/bench.json
"""
import datetime
import platform
import random
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch

import cli
from answers import prompts_that_fit
from cli import aligned, progress_bar
from label import search_all
from mcts import SearchConfig
from model_llama import FixedRoute, Linear, load
from questions.loading import load_all
from storage.files import write_json

SLOW_PATHS = 16  # paths that are timed one at a time, which takes long
SLOW = "one at a time, no cache"
PRODUCTS = ", products alone"  # after the name of the searches that they are of


# ---- measuring ----

def seconds(run, device):
    """Wall time of run(), the device's work included."""
    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize()

    wait()
    began = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - began


def interleaved(sides, repeats, device):
    """{side: [seconds, ...]} of callables, one warm-up each and then in turn, A B A B."""
    times = {side: [] for side in sides}
    for _ in progress_bar(range(repeats + 1), desc="measuring"):
        for side, run in sides.items():
            times[side].append(seconds(run, device))
    return {side: side_times[1:] for side, side_times in times.items()}


def paired(above, below):
    """'median [lowest, highest]' of the ratios of measurements taken side by side."""
    return with_spread([a / b for a, b in zip(above, below)], digits=3)


def with_spread(values, digits):
    """'median [lowest, highest]' of some values."""
    return "{1:.{0}f} [{2:.{0}f}, {3:.{0}f}]".format(digits, median(values), min(values),
                                                     max(values))


# ---- whole searches ----

@torch.inference_mode()
def answer_without_cache(model, prompt, path, stop_ids=()):
    """Greedy tokens of one question, with everything computed again for each token."""
    ids, end = list(prompt.ids), len(prompt.ids) + prompt.question.budget
    while len(ids) < end and ids[-1] not in stop_ids:
        tokens = torch.tensor([ids], device=model.embed_tokens.weight.device)
        logits = model(tokens, FixedRoute(path))  # (1, T, V)
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt.ids):]


@torch.inference_mode()
def matrix_products(model, run):
    """A function that does the matrix products of run() and nothing else, on random numbers."""
    products = []  # (layer, rows of its input), in order

    def note(layer, inputs):
        products.append((layer, inputs[0].numel() // layer.in_features))

    layers = [layer for layer in model.modules() if isinstance(layer, Linear)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    run()
    for hook in hooks:
        hook.remove()
    most_rows = max(rows for _, rows in products)
    inputs = {layer.in_features: torch.randn(most_rows, layer.in_features).to(layer.weight)
              for layer in layers}

    @torch.inference_mode()
    def multiply():
        for layer, rows in products:
            layer(inputs[layer.in_features][:rows])

    return multiply


def search_speed(args, tokenizer, model):
    """Paths tried per second by whole searches in lockstep, next to their matrix products alone,
    which no search can be faster than, and to the same paths one at a time."""
    questions = load_all(args.data)[:args.questions]
    prompts, _ = prompts_that_fit(questions, tokenizer, model, "questions")
    config = SearchConfig(stop_when_repaired=False)

    def search_together(size):
        return list(search_all(model, tokenizer, prompts, config, 0, size))

    tried = [(prompt, path) for prompt, result, _ in search_together(len(prompts))
             for path in result.rewards]
    few = random.Random(0).sample(tried, min(len(tried), SLOW_PATHS))

    def answer_one_at_a_time():
        for prompt, path in few:
            answer_without_cache(model, prompt, path, tokenizer.stop_ids)

    sides = {SLOW: answer_one_at_a_time}
    for size in args.together:
        if size <= len(prompts):
            side = f"{size} together"
            sides[side] = partial(search_together, size)
            sides[side + PRODUCTS] = matrix_products(model, sides[side])
    times = interleaved(sides, args.repeats, model.embed_tokens.weight.device)

    per_path = {}  # {side: [seconds per path, ...]}
    for side, side_times in times.items():
        number = len(few) if side == SLOW else len(tried)
        per_path[side] = [took / number for took in side_times]
    rows = []
    for side, took in per_path.items():
        row = {"searches": side, "paths/s": f"{1 / median(took):.4g}",
               "times as fast": paired(per_path[SLOW], took), "of its products": ""}
        if side + PRODUCTS in per_path:
            row["of its products"] = paired(per_path[side + PRODUCTS], took)
        rows.append(row)
    return rows


# ---- the command ----

def parse_args(argv=None):
    parser = cli.Parser(__doc__, prog="python -m tools.bench")
    cli.add_model_flags(parser)
    parser.set_defaults(dtype="float32")
    parser.add_argument("--data", nargs="+", default=[cli.DEMO_LABEL], metavar="FILE",
                        help="questions that are searched")
    parser.add_argument("--repeats", type=cli.count, default=3,
                        help="measurements of every side")
    parser.add_argument("--questions", type=cli.count, default=64,
                        help="questions searched, at most")
    parser.add_argument("--together", type=cli.count, nargs="+", default=[1, 16, 64, 256],
                        help="searches under way at once")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    tokenizer, model = load(args)
    about = {"command": " ".join(["python -m tools.bench", *(argv or sys.argv[1:])]),
             "machine": platform.platform(), "threads": torch.get_num_threads(),
             "torch": torch.__version__, "date": datetime.date.today().isoformat()}
    print(" ".join(f"{key}={value}" for key, value in about.items()))
    rows = search_speed(args, tokenizer, model)
    print("", aligned(rows), sep="\n")
    if args.out:
        write_json(args.out, about | {"rows": rows})


if __name__ == "__main__":
    cli.run(main)
