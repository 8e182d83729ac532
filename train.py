"""The main job: labels, features, routers, and a first evaluation, in one command.

Paper §3.3. Labels are searched first if they are not there yet (label.py). Under teacher forcing
the hidden states along a labelled path do not depend on the routers, so the pooled windows are
computed once; the 25 epochs are then a small MLP problem over all layers at once. Only router
weights are trained.

Ours: which right path becomes the label is a choice (--choose, see choose.py; `shortest` is the
paper's), and a gate leaves the model alone on prompts unlike the labelled ones (--no-gate).

    python train.py                              the demo, into runs/demo
    python train.py --model DIR --data questions.jsonl --out runs/mine
"""
import argparse
import hashlib
import json
import math
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

import cli
from answers import batches, prepare
from choose import (CHOICES, along_each, cluster, confident, consensus, frontier, good_paths,
                    half_gain_price, neighbours, shortest, similarity_space)
from cli import InputError, read_json, write_json
from drllm import Routers, class_weights, fit_gate, focal_loss, pool_windows, window_counts
from evaluate import ROUTES, compare, report
from label import (DEMO, DEMO_LABEL, DEMO_MODEL, add_reuse_flag, content_hash, header, label,
                   summary)
from mcts import SearchConfig
from model_llama import fixed, load_model, load_tokenizer, pad, prefill
from tasks import load_all


DEMO_TEST = [DEMO / "questions" / "test.jsonl", DEMO / "questions" / "ood.jsonl"]
SMALLEST_GROUP = 8  # questions


@dataclass(frozen=True)
class TrainConfig:
    """Paper §3.3 and §4.1. The gate is ours."""
    epochs: int = 25
    batch: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.08      # share of all steps
    gamma: float = 2.0        # of the focal loss
    beta: float = 0.999       # of the class weights
    width: int = 128
    windows: int = 8
    gate: bool = True         # execute on prompts unlike the labelled ones


# ---- features ----

class Recorder:
    """A Route along given decisions that keeps what the routers would see at every layer."""

    def __init__(self, decisions, windows, out):
        self.path, self.windows, self.out = fixed(decisions), windows, out
        self.num_layers = decisions.shape[-1]

    def __call__(self, layer, hidden, lengths):
        pooled = pool_windows(hidden, lengths, self.windows)
        self.out[:, layer, :pooled.shape[1]] = pooled.to(self.out)
        return self.path(layer, hidden, lengths)


def feature_store(size, folder, gigabytes):
    """float32 zeros of this size: in memory up to so many gigabytes; beyond, in a file of the
    folder that is mapped into memory, and gone with the process. The numbers are the same."""
    numbers = math.prod(size)
    if 4 * numbers <= gigabytes * 1e9:
        return torch.zeros(size)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="features-") as file:
        os.posix_fallocate(file.fileno(), 0, 4 * numbers)  # a full disk is met here, not later
        return torch.from_file(file.name, shared=True, size=numbers).view(size)


@torch.inference_mode()
def features(model, prompts, decisions, windows=8, batch_size=256, store=torch.zeros):
    """(pooled (N, L, W, D) float32 on the CPU, window counts (N,)) along decisions (N, L)."""
    config = model.config
    pooled = store((len(prompts), config.num_layers, windows, config.hidden_size))
    lengths = torch.tensor([len(prompt.ids) for prompt in prompts])
    for rows in batches(prompts, batch_size):
        tokens, here = pad([prompts[i].ids for i in rows], model.embed_tokens.weight.device)
        out = torch.zeros(len(rows), *pooled.shape[1:])
        prefill(model, tokens, Recorder(decisions[rows], windows, out), here)
        pooled[rows] = out
    return pooled, window_counts(lengths, windows)


# ---- training ----

def learning_rate(step, steps, config):
    """Linear warm-up, then a cosine to zero."""
    warm = max(1, round(config.warmup * steps))
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def train_routers(pooled, counts, labels, seed=0, config=TrainConfig(), device="cpu", progress=None,
                  kind=Routers):
    """Routers fitted to labels (N, L) on pooled (N, L, W, D) windows, counts (N,) in use."""
    N, L, W, D = pooled.shape
    torch.manual_seed(seed)  # the initial weights
    routers = kind(L, D, config.width, config.windows).to(device)
    optimizer = torch.optim.AdamW(routers.parameters(), weight_decay=config.weight_decay,
                                  fused=True)  # one pass over the weights instead of ten
    weights = class_weights(labels.flatten().bincount(minlength=3), config.beta).to(device)
    rng = torch.Generator().manual_seed(seed)  # the order of the examples
    per_epoch = math.ceil(N / config.batch)
    for step in range(config.epochs * per_epoch):
        if step % per_epoch == 0:
            order = torch.randperm(N, generator=rng).split(config.batch)
        optimizer.param_groups[0]["lr"] = learning_rate(step, config.epochs * per_epoch, config)
        rows = order[step % per_epoch]
        logits = routers(pooled[rows].to(device), counts[rows].to(device))
        loss = focal_loss(logits, labels[rows].to(device), weights, config.gamma)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if progress:
            progress(1)
    return routers.requires_grad_(False)


# ---- the run ----

def split(questions, share=0.2):
    """(to label, to test): a question's id decides, whatever other files and limits there are."""
    is_test = lambda q: hashlib.sha256(q.id.encode()).digest()[0] < 256 * share
    return [q for q in questions if not is_test(q)], [q for q in questions if is_test(q)]


def load_data(args):
    """(questions to label, held-out questions); with files of their own, or a split of --data."""
    if args.data is None:
        return load_all([DEMO_LABEL]), load_all(DEMO_TEST)
    if args.test:
        to_label, test = (load_all(files, args.skip_bad_rows) for files in (args.data, args.test))
        both = {q.id for q in to_label} & {q.id for q in test}
        if both:
            raise InputError(f"{args.test[0]}: {len(both)} of {len(test)} test questions also "
                             f"stand in --data, e.g. {min(both)}")
        return to_label, test
    return split(load_all(args.data, args.skip_bad_rows))


def digest(values):
    """A hash that names a list of plain values."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def measured_paths(run, rows, prompts, space):
    """(paths, right (N, K)): good paths of all questions together and of every group of similar
    ones, each asked of all label questions; kept in paths.json, so it is done once."""
    file = run.out / "paths.json"
    key = {"labels": header(run.model, run.search, run.args.seed), "clusters": run.args.clusters,
           "questions": digest([content_hash(prompt) for prompt in prompts])}
    if file.exists() and read_json(file).get("key") == key:
        stored = read_json(file)
        right = torch.tensor([[mark == "1" for mark in line] for line in stored["right"]])
        return [tuple(path) for path in stored["paths"]], right
    everyone = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0)).tolist()
    member_of = cluster(space, run.args.clusters)
    groups = [[n for n in everyone if member_of[n] == g] for g in range(run.args.clusters)]
    groups = [everyone, *(group for group in groups if len(group) >= SMALLEST_GROUP)]
    with tqdm(desc="paths for groups of similar questions", unit="path") as bar:
        how = {"batch_size": run.args.batch_size, "progress": bar.update,
               "reuse_bytes": run.reuse_bytes}
        paths = good_paths(run.model, run.tokenizer, prompts, rows, groups, **how)
        right = along_each(run.model, run.tokenizer, prompts, paths, **how) > 0
    lines = ["".join("01"[mark] for mark in row) for row in right.long().tolist()]
    write_json(file, {"key": key, "paths": paths, "right": lines,
                      "frontier": frontier(paths, right)})
    return paths, right


def fit(run, choice, prompts, labels, seeds):
    """Routers per seed for one choice of label; those that the run folder lacks are trained."""
    kept = [n for n, path in enumerate(labels) if path is not None]
    chosen = [prompts[n] for n in kept]
    decisions = torch.tensor([labels[n] for n in kept])
    notes = {"model": run.model.fingerprint(), "choice": choice, "train": asdict(run.config),
             "tasks": sorted({p.question.task for p in chosen}), "labels": len(kept),
             "label_hash": digest([content_hash(p) for p in chosen] + decisions.tolist())[:16]}
    file_of = {s: run.out / "routers" / f"{choice}-{s}.safetensors" for s in seeds}
    found = {s: Routers.load(file, run.model) for s, file in file_of.items() if file.exists()}
    found = {s: routers for s, routers in found.items() if routers.notes.items() >= notes.items()}
    missing = [seed for seed in seeds if seed not in found]
    if not missing:
        return [found[seed] for seed in seeds]
    pooled, counts = features(run.model, chosen, decisions, run.config.windows, store=run.store)
    steps = len(missing) * run.config.epochs * math.ceil(len(pooled) / run.config.batch)
    with tqdm(total=steps, desc=f"routers on {choice} labels", unit="step") as bar:
        for seed in missing:
            routers = found[seed] = train_routers(pooled, counts, decisions, seed, run.config,
                                                  run.args.device, bar.update)
            if run.config.gate and len(chosen) >= SMALLEST_GROUP:
                routers.set_gate(*fit_gate(pooled, counts, seed))
            routers.notes = notes | {"seed": seed}
            routers.save(file_of[seed])
    return [found[seed] for seed in seeds]


def parse_args(argv=None):
    search = SearchConfig()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_model_flags(parser, DEMO_MODEL)
    parser.add_argument("--data", nargs="+", metavar="FILE",
                        help="questions to label, FILE or TASK=FILE (default: the demo's)")
    parser.add_argument("--test", nargs="+", metavar="FILE",
                        help="held-out questions; default: a fifth of --data, by question id")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder")
    parser.add_argument("--choose", choices=CHOICES, default="consensus",
                        help="which right path becomes the label; shortest is the paper's")
    parser.add_argument("--price", type=float,
                        help="reward a layer costs in the choice of label; default: 0.001 for "
                             "confident, for consensus what keeps half of the gain")
    parser.add_argument("--simulations", type=int, default=search.simulations,
                        help="paths tried per question after the default (default: %(default)s)")
    parser.add_argument("--clusters", type=int, default=16, help="groups of similar questions")
    parser.add_argument("--no-gate", action="store_true",
                        help="trust the routers on any prompt, as the paper does")
    parser.add_argument("--seeds", type=int, default=5, help="routers trained per choice of label")
    parser.add_argument("--limit", type=int, help="label and test only the first N questions")
    parser.add_argument("--seed", type=int, default=0, help="of the searches and the first routers")
    parser.add_argument("--skip-bad-rows", action="store_true",
                        help="leave out question rows that cannot be used, instead of stopping")
    parser.add_argument("--batch-size", type=int, default=256, help="questions answered at once")
    parser.add_argument("--feature-memory", type=float, default=4.0, metavar="GB",
                        help="features beyond this lie in a file of --out while routers are "
                             "trained (default: %(default)s)")
    add_reuse_flag(parser)
    args = parser.parse_args(argv)
    cli.check_counts(parser, args, "simulations", "clusters", "seeds", "batch_size", "limit")
    if args.test and not args.data:
        parser.error("--test needs --data; without both, the demo's questions are taken")
    if not math.isfinite(args.price or 0):
        parser.error(f"--price must be finite, got {args.price}")
    return args


def prepare_tests(run, to_label, held_out):
    """The prompts of the held-out questions; InputError, before hours of labelling, if none."""
    tests, _ = prepare(held_out[:run.args.limit], run.tokenizer, run.model)
    if not to_label or not tests:
        file = (run.args.test or run.args.data or [DEMO_LABEL])[0]
        raise InputError(f"{file}: {len(to_label)} questions to label and {len(held_out)} to test, "
                         f"{len(tests)} of these within the context of "
                         f"{run.model.config.max_positions} tokens; both need one at least")
    return tests


class Run:
    """The model, the folder and the settings of one training run."""

    def __init__(self, args):
        self.args, self.out = args, args.out
        self.search = SearchConfig(simulations=args.simulations, stop_when_repaired=False)
        self.config = TrainConfig(gate=not args.no_gate)
        self.store = partial(feature_store, folder=args.out, gigabytes=args.feature_memory)
        self.reuse_bytes = int(args.reuse_memory * 2 ** 30)
        self.tokenizer = load_tokenizer(args.model)
        self.model = load_model(args.model, args.device, cli.DTYPES.get(args.dtype))


def labels_of(run, rows, prompts):
    """({choice: label per question}, static frontier), for --choose and for the paper's choice."""
    default = torch.ones(len(prompts), run.model.config.num_layers, dtype=torch.long)
    space = similarity_space(*features(run.model, prompts, default, run.config.windows,
                                       store=run.store))
    paths, right = measured_paths(run, rows, prompts, space)
    chosen, price, share = run.args.choose, run.args.price, neighbours(space, right)
    if price is None:
        price = half_gain_price(right, share, paths) if chosen == "consensus" else 0.001
    print(f"{len(paths)} paths tried on every question; price of a layer: {price}")
    labels = {"consensus": lambda: consensus(right, share, paths, price),
              "confident": lambda: confident(rows, price),
              "shortest": lambda: shortest(rows)}
    return {choice: labels[choice]() for choice in dict.fromkeys((chosen, "shortest"))}, \
        frontier(paths, right)


def main(argv=None):
    args = parse_args(argv)
    began = time.time()
    to_label, held_out = load_data(args)
    run = Run(args)
    tests = prepare_tests(run, to_label, held_out)
    settings = {**vars(args), "search": asdict(run.search), "train": asdict(run.config),
                "fingerprint": run.model.fingerprint(), "torch": torch.__version__}
    settings = {key: value if isinstance(value, (int, float, dict, type(None))) else str(value)
                for key, value in settings.items()}
    print(" ".join(f"{key}={value}" for key, value in settings.items()))
    rows = label(run.model, run.tokenizer, to_label[:args.limit], run.out / "labels.jsonl",
                 run.search, args.seed, args.batch_size, run.reuse_bytes)
    write_json(run.out / "config.json", settings)  # now that label has accepted the folder
    print(f"labels: {len(rows)} questions; {summary(rows)}")
    if not any(row["correct"] for row in rows):
        raise InputError(f"{run.out / 'labels.jsonl'}: the model answered none of {len(rows)} "
                         "questions right, along the default path or any of the "
                         f"{run.args.simulations} others tried, so there is no label to learn "
                         "from. Either the questions are beyond this model or it does not answer "
                         "in the form asked for (a letter, or \\boxed{})")
    prompts, _ = prepare(to_label[:args.limit], run.tokenizer, run.model)
    labels, statics = labels_of(run, rows, prompts)
    seeds = range(args.seed, args.seed + args.seeds)
    routers = {choice: fit(run, choice, prompts, paths, seeds) for choice, paths in labels.items()}
    routers[args.choose][0].save(run.out / "routers.safetensors")

    names = {"dr.llm": f"Dr.LLM, {args.choose}", "dr.llm shortest": "Dr.LLM, the paper's"}
    compared = {"dr.llm": routers[args.choose]}
    if args.choose != "shortest":
        compared["dr.llm shortest"] = routers["shortest"]
    table = compare(run.model, run.tokenizer, tests, set(routers[args.choose][0].notes["tasks"]),
                    compared, statics, ROUTES, batch_size=args.batch_size)
    report(table, "dr.llm", routers[args.choose], names, run.out, {"command": " ".join(sys.argv)})
    print(f"\n{run.out}: config.json labels.jsonl routers.safetensors metrics.json "
          f"({time.time() - began:.0f} s)")


if __name__ == "__main__":
    cli.run(main)
