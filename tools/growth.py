"""How do time and memory grow with the prompt, the batch, the layers, the number of questions?

Each size is measured in a process of its own, on one thread: CPU seconds, and the peak of memory
beyond what the process began with. An exponent of 1 is growth in proportion, 2 is quadratic
growth: log(ratio of two times) / log(ratio of their sizes), the median over neighbouring sizes
and, in brackets, the spread. The models have the demo's width and random weights.

    python -m tools.growth
    python -m tools.growth --only search choosing --out runs/growth.json
"""
import math
import multiprocessing
import resource
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

import cli
from answers import Prompt, answer
from checkpoint.config import read_config
from choose import cluster, consensus_of_neighbours
from label import search_all
from mcts import SearchConfig
from model_llama import Llama, load_tokenizer
from questions.loading import Question
from storage.files import write_json
from tools.bench import with_spread

BUDGET = 4       # tokens of an answer
MOST_TOKENS = 2048
CANDIDATES = 32  # paths that labels are chosen from
TOKENS, QUESTIONS, LAYERS = (64, 128, 256, 512, 1024), (1, 4, 16, 64), (6, 12, 24, 48)
MEASURES = [  # a kind, the argument that is set, its sizes, and the words of the table
    ("prefill", "tokens", TOKENS, "prefill and answers, by prompt tokens"),
    ("prefill", "questions", QUESTIONS, "prefill and answers, by questions at once"),
    ("prefill", "layers", LAYERS, "prefill and answers, by layers"),
    ("search", "tokens", TOKENS, "search, by prompt tokens"),
    ("search", "questions", QUESTIONS, "search, by questions at once"),
    ("search", "layers", LAYERS, "search, by layers"),
    ("choosing", "questions", (100, 300, 1000, 3000, 10000), "choosing labels, by questions"),
]


# ---- what is measured ----

def random_model(layers):
    """A Llama of the demo's width, with random weights."""
    config = read_config(cli.DEMO_MODEL)
    torch.manual_seed(0)
    model = Llama(replace(config, num_layers=layers, max_positions=MOST_TOKENS))
    return model.eval().requires_grad_(False)


def random_prompts(questions, tokens):
    ids = torch.randint(10, 50, (questions, tokens), generator=torch.Generator().manual_seed(0))
    return [Prompt(Question(f"q{n}", "growth", 0, "", "0", max_new_tokens=BUDGET),
                   tuple(row), gold=tuple(row[:BUDGET])) for n, row in enumerate(ids.tolist())]


def ask(questions=4, tokens=64, layers=12):
    """Answers along the default path."""
    model, tokenizer = random_model(layers), load_tokenizer(cli.DEMO_MODEL)
    prompts = random_prompts(questions, tokens)
    return lambda: answer(model, tokenizer, prompts, None)


def search(questions=4, tokens=64, layers=12):
    """Searches in lockstep, with the states that paths share."""
    model, tokenizer = random_model(layers), load_tokenizer(cli.DEMO_MODEL)
    prompts = random_prompts(questions, tokens)
    return lambda: list(search_all(model, tokenizer, prompts, SearchConfig(), seed=0))


def choose_labels(questions):
    """Groups and consensus labels, from what every candidate path answers."""
    rng = torch.Generator().manual_seed(0)
    space = torch.randn(questions, 384, generator=rng)
    correct = torch.rand(questions, CANDIDATES, generator=rng) < 0.5
    paths = [(1,) * (n % 12) + (2,) for n in range(CANDIDATES)]

    def run():
        cluster(space, 16)
        consensus_of_neighbours(space, correct, paths)

    return run


KINDS = {"prefill": ask, "search": search, "choosing": choose_labels}


# ---- measuring ----

def measure(kind, sizes, results):
    """Puts (CPU seconds, bytes) of one run into a queue. Runs in a process of its own."""
    torch.set_num_threads(1)
    run = KINDS[kind](**sizes)
    bytes_before = peak_bytes()
    began = time.process_time()
    with torch.inference_mode():
        run()
    results.put((time.process_time() - began, peak_bytes() - bytes_before))


def peak_bytes():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measured_apart(kind, sizes, repeats):
    """(median CPU seconds, median bytes) of runs in new processes."""
    start = multiprocessing.get_context("spawn")
    results = start.SimpleQueue()
    runs = []
    for _ in range(repeats):
        child = start.Process(target=measure, args=(kind, sizes, results))
        child.start()
        child.join()
        if child.exitcode:
            raise RuntimeError(f"{kind} with {sizes} ended with exit code {child.exitcode}")
        runs.append(results.get())
    seconds, peaks = zip(*runs)
    return median(seconds), median(peaks)


def exponent(sizes, values):
    """'median [lowest, highest]' of the exponents between neighbouring sizes."""
    slopes = [math.log(values[n + 1] / values[n]) / math.log(sizes[n + 1] / sizes[n])
              for n in range(len(sizes) - 1)]
    return with_spread(slopes, digits=2)


def row(kind, name, sizes, title, repeats):
    """A row of the table, of one of MEASURES."""
    measured = [measured_apart(kind, {name: size}, repeats) for size in sizes]
    seconds, peaks = zip(*measured)
    return {"measured": title, "sizes": ", ".join(map(str, sizes)),
            "CPU seconds": ", ".join(f"{value:.3g}" for value in seconds),
            "exponent": exponent(sizes, seconds),
            "MB": ", ".join(f"{value / 1e6:.0f}" for value in peaks)}


def parse_args(argv=None):
    parser = cli.Parser(__doc__, prog="python -m tools.growth")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS),
                        help="what is measured")
    parser.add_argument("--repeats", type=cli.count, default=3, help="runs of every size")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    chosen = [measured for measured in MEASURES if measured[0] in args.only]
    rows = [row(*one, args.repeats) for one in cli.progress_bar(chosen, desc="measuring")]
    print("", cli.aligned(rows), sep="\n")
    if args.out:
        write_json(args.out, {"torch": torch.__version__, "rows": rows})


if __name__ == "__main__":
    cli.run(main)
