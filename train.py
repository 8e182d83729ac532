"""The main job: labels, features, routers, and a first evaluation, in one command.

Paper §3.3. Labels are searched first if they are not there yet (label.py). Under teacher forcing
the hidden states along a labelled path do not depend on the routers, so the pooled windows are
computed once; the 25 epochs are then a small MLP problem over all layers at once.

Ours: which right path becomes the label is a choice (--choose, see choose.py; `shortest` is the
paper's), and a guard leaves the model alone on prompts unlike the labelled ones (--no-guard).

    python train.py                              the demo, into runs/demo
    python train.py --model DIR --data questions.jsonl --out runs/mine
"""
import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import cli
from choose import (CHOICES, SMALLEST_GROUP, confident, consensus_of_neighbours, frontier, menu,
                    shortest, similarity_space)
from drllm import RouterRoute, Routers, class_weights, fit_guard, focal_loss, pool_windows
from evaluate import compare, interval, prompts_that_fit, report
from label import content_hash, digest, header, label, margin, plain_model, summary
from mcts import EXECUTE, SearchConfig
from model_llama import fixed, load_model, load_tokenizer, pad, prefill
from storage.files import (InputError, locked, mapped_zeros, read_json, whole_lines,
                           write_json)
from storage.answer_cache import Kept
from cli import progress_bar
from questions.loading import disjoint, load_all, split
from storage.run_folder import claim, read_statics, take
from answers import answer, batches, prepare


@dataclass(frozen=True)
class TrainConfig:
    """Paper §3.3 and §4.1. The guard is ours."""
    epochs: int = 25
    batch: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.08      # share of all steps
    gamma: float = 2.0        # of the focal loss
    beta: float = 0.999       # of the class weights
    width: int = 128
    windows: int = 8
    guard: bool = True        # execute on prompts unlike the labelled ones


# ---- features ----

@torch.inference_mode()
def features(model, prompts, decisions, windows=8, batch_size=256, folder=None):
    """(pooled (N, L, W, D) float32 on the CPU, window counts (N,)): what routers would see along
    decisions (N, L). folder: where they are mapped to a file; None: all is in memory."""
    size = (len(prompts), model.config.num_layers, windows, model.config.hidden_size)
    pooled = mapped_zeros(size, folder) if folder else torch.zeros(size)
    for rows in batches(prompts, batch_size):
        path = fixed(decisions[rows])

        def watched(layer, hidden, lengths):
            seen = pool_windows(hidden, lengths, windows)  # (rows, up to W, D)
            pooled[rows, layer, :seen.shape[1]] = seen.cpu()
            return path(layer, hidden, lengths)
        tokens, lengths = pad([prompts[n].ids for n in rows], model.embed_tokens.weight.device)
        prefill(model, tokens, watched, lengths)
    return pooled, torch.tensor([min(windows, len(prompt.ids)) for prompt in prompts])


# ---- training ----

def learning_rate(step, steps, config):
    """Linear warm-up, then a cosine to zero."""
    warm = max(1, round(config.warmup * steps))
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def train_routers(pooled, counts, labels, seed=0, config=TrainConfig(), device="cpu", kind=Routers):
    """Routers fitted to labels (N, L) on pooled (N, L, W, D) windows, counts (N,) in use."""
    N, L, W, D = pooled.shape
    torch.manual_seed(seed)  # the initial weights
    routers = kind(L, D, config.width, config.windows).to(device)
    optimizer = torch.optim.AdamW(routers.parameters(), weight_decay=config.weight_decay,
                                  fused=True)  # one pass over the weights instead of ten
    weights = class_weights(labels.flatten().bincount(minlength=3), config.beta).to(device)
    rng = torch.Generator().manual_seed(seed)  # the order of the examples
    steps = [rows for epoch in range(config.epochs)
             for rows in torch.randperm(N, generator=rng).split(config.batch)]
    for step, rows in enumerate(progress_bar(steps, f"routers, seed {seed}", unit="step")):
        optimizer.param_groups[0]["lr"] = learning_rate(step, len(steps), config)
        logits = routers(pooled[rows].to(device), counts[rows].to(device))
        loss = focal_loss(logits, labels[rows].to(device), weights, config.gamma)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return routers.requires_grad_(False)


# ---- the run ----

def load_data(args):
    """(questions to label, held-out questions): of files of their own, or a split of --data."""
    load = lambda files: load_all(files, args.skip_bad_rows, args.score)
    if args.data == [cli.DEMO_LABEL] and not args.test:
        args.test = cli.DEMO_TEST
    to_label, test = (load(args.data), load(args.test)) if args.test else split(load(args.data))
    to_label = disjoint(args.test or args.data, test, "--data", to_label)
    if not to_label or not test:  # rather now than after hours of labelling
        raise InputError(f"{(args.test or args.data)[0]}: {len(to_label)} questions to label and "
                         f"{len(test)} to test; both need one at least")
    return to_label, test


class Run:
    """The questions, the model, the folder and the settings of one training run."""

    def __init__(self, args):
        self.args, self.out = args, args.out
        self.to_label, self.held_out = load_data(args)
        self.tasks = sorted({q.task for q in self.to_label})  # known, whatever --limit leaves out
        self.search = SearchConfig(simulations=args.simulations, stop_when_repaired=False)
        self.config = TrainConfig(guard=not args.no_guard)
        self.tokenizer = load_tokenizer(args.model)
        self.model = load_model(args.model, args.device, cli.DTYPES.get(args.dtype))
        self.settings = json.loads(json.dumps({
            **vars(args), "search": asdict(self.search), "train": asdict(self.config),
            "fingerprint": self.model.fingerprint(), "torch": torch.__version__}, default=str))
        self.kept = Kept()  # until the folder is this process's alone


# ---- labels and routers ----

def labels_of(run, choice, rows, prompts):
    """The label of each question by one choice, None where it gives none."""
    price, default = run.args.price, [(EXECUTE,) * run.model.config.num_layers] * len(prompts)
    if choice == "shortest":
        return shortest(rows)
    if choice == "confident":
        return confident(rows, 0.001 if price is None else price)
    space = similarity_space(*features(run.model, prompts, torch.tensor(default), folder=run.out))
    paths, right = measured_menu(run, rows, prompts, space)
    labels, price = consensus_of_neighbours(space, right, paths, price)
    print(f"{len(paths)} paths tried on every question; price of a layer: {price}")
    if choice == "safe" and not expected(run, prompts, space, paths, right):
        return default
    if (number := sum(map(bool, labels))) < SMALLEST_GROUP:
        raise InputError(f"{run.out / 'paths.json'}: {number} questions with a right path on the "
                         f"menu; routers need {SMALLEST_GROUP}. Another --choose may do")
    return labels


def measured_menu(run, rows, prompts, space):
    """(paths, right (N, K)), see choose.menu; kept in paths.json, so it is made once."""
    file = run.out / "paths.json"
    key = {"labels": header(run.model, run.search, run.args.seed), "clusters": run.args.clusters,
           "questions": digest(*map(content_hash, prompts))}
    stored = read_json(file) if file.exists() else {}
    if stored.get("key") != key:
        paths, right = menu(run.model, run.tokenizer, prompts, rows, space, run.args.clusters,
                            batch_size=run.args.batch_size, ask=run.kept.judge)
        lines = ["".join(map(str, row)) for row in right.int().tolist()]
        stored = {"key": key, "paths": paths, "right": lines, "frontier": frontier(paths, right)}
        write_json(file, stored)
    right = torch.tensor([[mark == "1" for mark in line] for line in stored["right"]])
    return [tuple(path) for path in stored["paths"]], right


def expected(run, prompts, space, paths, right, folds=4):
    """Says what routing is expected to gain over the default path, paths[0]. True if it pays: more
    right answers for sure, or fewer layers and surely not half a point lost.

    The questions of each fold are answered by routers that learned from the others. The menu was
    chosen on all of them, so this errs, a little, on the hopeful side.
    """
    def answered(rest, held, labels):
        [routers] = learn(run, [prompts[n] for n in rest], labels, [run.args.seed])
        return answer(run.model, run.tokenizer, [prompts[n] for n in held], routers.route,
                      run.args.batch_size)

    N, L = len(prompts), len(paths[0])
    fold_of = torch.tensor([int(digest(p.question.id, "fold"), 16) % folds for p in prompts])
    gain, layers = torch.zeros(N), torch.full((N,), float(L))  # of routers that learned nothing
    for fold in progress_bar(range(folds), "is routing expected to pay?", unit="fold"):
        rest, held = (fold_of != fold).nonzero()[:, 0], (fold_of == fold).nonzero()[:, 0]
        if right[rest].any(1).sum() < SMALLEST_GROUP:
            continue
        labels, _ = consensus_of_neighbours(space[rest], right[rest], paths, run.args.price)
        about = ["fold", fold, run.args.seed, labels, *map(content_hash, prompts)]
        made = run.kept.answers(about, lambda: answered(rest, held, labels))
        gain[held] = made.right - right[held, 0].float()
        layers[held] = made.decisions.sum(1).float()
    low, high = interval(gain)
    pays = low > 0 or (low > -0.005 and layers.mean() < 0.97 * L)
    print(expectation(gain, (low, high), layers, L, pays))
    return pays


def learn(run, prompts, labels, seeds):
    """Yields routers of every seed, with their guard, of the questions that have a label."""
    decisions = torch.tensor([path for path in labels if path])
    chosen = [prompt for prompt, path in zip(prompts, labels) if path]
    pooled, counts = features(run.model, chosen, decisions, run.config.windows, folder=run.out)
    for seed in seeds:
        routers = train_routers(pooled, counts, decisions, seed, run.config, run.args.device)
        if (decisions == EXECUTE).all():  # then for any prompt, whatever few examples leave open
            routers.w2.zero_()
            routers.b2.copy_(torch.tensor([0.0, 1.0, 0.0]))
        if run.config.guard:
            routers.set_guard(*fit_guard(pooled, counts, seed))
        yield routers


def fit(run, choice, prompts, labels, seeds):
    """Routers per seed for one choice of label; those that the run folder lacks are trained."""
    chosen = [(content_hash(prompt), path) for prompt, path in zip(prompts, labels) if path]
    notes = {"model": run.model.fingerprint(), "choice": choice, "train": asdict(run.config),
             "tasks": run.tasks, "questions": sorted(p.question.wording for p in prompts),
             "score": run.args.score if any(p.question.choices for p in prompts) else None,
             "labels": len(chosen),
             "label_hash": digest(*(asked for asked, _ in chosen), [path for _, path in chosen])}
    file_of = {seed: run.out / "routers" / f"{choice}-{seed}.safetensors" for seed in seeds}
    missing = [seed for seed, file in file_of.items() if not file.exists()
               or not notes.items() <= Routers.load(file, run.model).notes.items()]
    for seed, routers in zip(missing, learn(run, prompts, labels, missing)):
        routers.notes = notes | {"seed": seed}
        routers.save(file_of[seed])
    return [Routers.load(file, run.model) for file in file_of.values()]


# ---- what a run says before it begins ----

MENU, STATICS = 25, 12  # paths that a menu costs, and of it asked in the evaluation: about so many
PRODUCT = 1e-11  # seconds per multiplication when routers are trained, about


def say_before(run, prompts, tests):
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


# ---- the command ----

def parse_args(argv=None):
    parser = cli.Parser(__doc__)
    cli.add_model_flags(parser)
    cli.add_data_flags(parser, [cli.DEMO_LABEL], batch_size=256)
    parser.add_argument("--simulations", type=cli.count, default=SearchConfig().simulations,
                        help="paths tried per question after the default")
    parser.add_argument("--test", nargs="+", metavar="FILE",
                        help="held-out questions; without it a fifth of --data, by its words")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder")
    parser.add_argument("--choose", choices=CHOICES, default="safe",
                        help="which right path becomes the label; shortest is the paper's")
    parser.add_argument("--price", type=cli.number(-1e6, 1e6),
                        help="of a layer, in reward; without it 0.001 for confident, and for "
                             "consensus what keeps half of the gain")
    parser.add_argument("--clusters", type=cli.count, default=16, help="groups of questions")
    parser.add_argument("--no-guard", action="store_true",
                        help="trust the routers on any prompt, as the paper does")
    parser.add_argument("--seeds", type=cli.count, default=5, help="routers per choice of label")
    parser.add_argument("--force", action="store_true", help="go on with a model at chance")
    parser.add_argument("--overwrite", action="store_true", help="replace a finished run in --out")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    cli.use_device(args)
    began, run = time.time(), Run(args)
    with locked(args.out):
        train(run)
    print(f"\n{args.out}: config.json labels.jsonl routers.safetensors metrics.json "
          f"({time.time() - began:.0f} s)")


def train(run):
    """Labels, routers and their evaluation, in the run's folder."""
    args, out, to_label = run.args, run.out, run.to_label[:run.args.limit]
    tests, too_long = prompts_that_fit(run.held_out[:args.limit], run.tokenizer, run.model)
    print(f"{args.model}: {len(to_label)} questions to label along {args.simulations + 1} paths "
          f"each, {len(tests)} to test, into {out}")
    prompts, _ = prepare(to_label, run.tokenizer, run.model)
    claim(out, run.settings, args.overwrite)
    say_before(run, prompts, tests)
    run.kept = Kept(out / "kept.jsonl", run.model, run.settings["train"])
    rows = label(run.model, run.tokenizer, to_label, out / "labels.jsonl", run.search, args.seed,
                 args.batch_size)
    print(f"labels: {len(rows)} questions; {summary(rows)}")
    if (answered := sum(bool(row["correct"]) for row in rows)) < SMALLEST_GROUP:
        raise InputError(f"{out / 'labels.jsonl'}: {answered} questions with a right path; routers "
                         f"need {SMALLEST_GROUP}. The others are beyond this model, or it does not "
                         "answer in the form asked for (a letter, or \\boxed{})")
    take(out, run.settings)  # now that labels are there, and enough
    labels, routers, seeds = {}, {}, range(args.seed, args.seed + args.seeds)
    for choice in dict.fromkeys((args.choose, "shortest")):
        labels[choice] = labels_of(run, choice, rows, prompts)
        routers[choice] = fit(run, choice, prompts, labels[choice], seeds)
    routers[args.choose][0].save(out / "routers.safetensors")
    write_json(out / "chosen.json", {prompt.question.id: path for prompt, path
                                     in zip(prompts, labels[args.choose]) if path})
    paper = [RouterRoute(one, guard=False) for one in routers["shortest"]]
    routed = {"dr.llm": (f"Dr.LLM, {args.choose}", [one.route for one in routers[args.choose]]),
              "dr.llm shortest": ("Dr.LLM, the paper's", paper)}
    statics = (read_statics(out / "paths.json", run.model.config.num_layers)
               if args.choose in ("safe", "consensus") else [])
    table = compare(run.model, run.tokenizer, tests, run.tasks, routed, statics,
                    batch_size=args.batch_size, kept=run.kept)
    report(table, "dr.llm", out, args.seed,
           {"command": " ".join(sys.argv), "too_long": too_long})


if __name__ == "__main__":
    cli.run(main)
