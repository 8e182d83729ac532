"""The main job: labels, features, routers, and a first evaluation, in one command.

Paper §3.3. Labels are searched first if they are not there yet (label.py). Under teacher forcing
the hidden states along a labelled path do not depend on the routers, so the pooled windows are
computed once; the 25 epochs are then a small MLP problem over all layers at once. Only router
weights are trained.

Ours: which right path becomes the label is a choice (--choose, see choose.py; `shortest` is the
paper's), and a guard leaves the model alone on prompts unlike the labelled ones (--no-guard).

    python train.py                              the demo, into runs/demo
    python train.py --model DIR --data questions.jsonl --out runs/mine
"""
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
from choose import (CHOICES, SMALLEST_GROUP, confident, consensus_of_neighbours, frontier, menu,
                    shortest, similarity_space)
from cli import InputError, read_json, write_json
from drllm import (RouterRoute, Routers, class_weights, fit_guard, focal_loss, pool_windows,
                   window_counts)
from evaluate import compare, interval, report
from label import add_search_flags, content_hash, digest, header, label, summary
from mcts import EXECUTE, SearchConfig
from model_llama import fixed, load_model, load_tokenizer, pad, prefill
from tasks import answer, batches, load_all, prepare


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

class FeatureRoute:
    """A Route along given decisions that writes down what the routers would see at every layer."""

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
    with tempfile.TemporaryFile(dir=folder) as file:  # without a name, so a kill leaves nothing
        os.posix_fallocate(file.fileno(), 0, 4 * numbers)  # a full disk is met here, not later
        return torch.from_file(f"/dev/fd/{file.fileno()}", shared=True, size=numbers).view(size)


@torch.inference_mode()
def features(model, prompts, decisions, windows=8, batch_size=256, store=torch.zeros):
    """(pooled (N, L, W, D) float32 on the CPU, window counts (N,)) along decisions (N, L)."""
    config = model.config
    pooled = store((len(prompts), config.num_layers, windows, config.hidden_size))
    lengths = torch.tensor([len(prompt.ids) for prompt in prompts])
    for rows in batches(prompts, batch_size):
        tokens, here = pad([prompts[i].ids for i in rows], model.embed_tokens.weight.device)
        out = torch.zeros(len(rows), *pooled.shape[1:])
        prefill(model, tokens, FeatureRoute(decisions[rows], windows, out), here)
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
    """(questions to label, held-out questions): of files of their own, or a split of --data."""
    if args.data == [cli.DEMO_LABEL] and not args.test:
        args.test = cli.DEMO_TEST
    if not args.test:
        return split(load_all(args.data, args.skip_bad_rows))
    to_label, test = (load_all(files, args.skip_bad_rows) for files in (args.data, args.test))
    both = {q.id for q in to_label} & {q.id for q in test}
    if both:
        raise InputError(f"{args.test[0]}: {len(both)} of {len(test)} test questions also "
                         f"stand in --data, e.g. {min(both)}")
    return to_label, test


class Run:
    """The model, the folder and the settings of one training run."""

    def __init__(self, args):
        self.args, self.out = args, args.out
        self.search = SearchConfig(simulations=args.simulations, stop_when_repaired=False)
        self.config = TrainConfig(guard=not args.no_guard)
        self.store = partial(feature_store, folder=args.out, gigabytes=args.feature_memory)
        self.tokenizer = load_tokenizer(args.model)
        self.model = load_model(args.model, args.device, cli.DTYPES.get(args.dtype))
        settings = {**vars(args), "search": asdict(self.search), "train": asdict(self.config),
                    "fingerprint": self.model.fingerprint(), "torch": torch.__version__}
        self.settings = json.loads(json.dumps(settings, default=str))


def measured_menu(run, rows, prompts, space):
    """(paths, right (N, K)), see choose.menu; kept in paths.json, so it is made once."""
    file = run.out / "paths.json"
    key = {"labels": header(run.model, run.search, run.args.seed), "clusters": run.args.clusters,
           "questions": digest(*map(content_hash, prompts))}
    if file.exists() and (stored := read_json(file)).get("key") == key:
        right = torch.tensor([[mark == "1" for mark in line] for line in stored["right"]])
        return [tuple(path) for path in stored["paths"]], right
    with tqdm(desc="a menu of paths for groups of similar questions", unit="path") as bar:
        paths, right = menu(run.model, run.tokenizer, prompts, rows, space, run.args.clusters,
                            run.args.batch_size, bar.update)
    lines = ["".join("01"[mark] for mark in row) for row in right.long().tolist()]
    write_json(file, {"key": key, "paths": paths, "right": lines,
                      "frontier": frontier(paths, right)})
    return paths, right


def labels_of(run, rows, prompts):
    """({choice: label per question}, static frontier): first --choose, then the paper's choice."""
    chosen, price, statics = run.args.choose, run.args.price, []
    default = (EXECUTE,) * run.model.config.num_layers
    labels = {"confident": lambda: confident(rows, 0.001 if price is None else price),
              "shortest": lambda: shortest(rows)}
    if chosen in ("safe", "consensus"):
        along_default = torch.tensor(default).expand(len(prompts), -1)
        space = similarity_space(*features(run.model, prompts, along_default, run.config.windows,
                                           store=run.store))
        paths, right = measured_menu(run, rows, prompts, space)
        statics = frontier(paths, right)
        agreed, price_used = consensus_of_neighbours(space, right, paths, price)
        print(f"{len(paths)} paths tried on every question; price of a layer: {price_used}")
        if chosen == "consensus" and not any(agreed):
            raise InputError(f"{run.out / 'paths.json'}: none of the {len(paths)} paths answers "
                             f"any of {len(prompts)} questions; another --choose needs none")
        pays = chosen == "consensus" or expect(run, *expected(run, prompts, space, paths, right))
        labels[chosen] = lambda: agreed if pays else [default] * len(prompts)
    return {choice: labels[choice]() for choice in dict.fromkeys((chosen, "shortest"))}, statics


def expected(run, prompts, space, paths, right, folds=4):
    """(gain (N,), layers (N,)) of routers on questions that they have not seen: the questions of
    each fold are answered by routers that learned from the others. The default path is paths[0].

    The menu was chosen on all of them, so this errs, a little, on the hopeful side.
    """
    fold_of = torch.tensor([int(digest(p.question.id, "fold"), 16) % folds for p in prompts])
    gain, layers = torch.zeros(len(prompts)), torch.zeros(len(prompts))
    for fold in tqdm(range(folds), desc="is routing expected to pay?", unit="fold"):
        rest, held = (fold_of != fold).nonzero().flatten(), (fold_of == fold).nonzero().flatten()
        labels = [] if len(rest) < 2 else consensus_of_neighbours(
            space[rest], right[rest], paths, run.args.price)[0]
        kept = [n for n, path in zip(rest.tolist(), labels) if path]
        if not kept:  # nothing to learn from: every layer is executed
            layers[held] = len(paths[0])
            continue
        decisions = torch.tensor([path for path in labels if path])
        pooled, counts = features(run.model, [prompts[n] for n in kept], decisions,
                                  run.config.windows, store=run.store)
        routers = learn(run, pooled, counts, decisions, run.args.seed)
        made = answer(run.model, run.tokenizer, [prompts[n] for n in held], routers.route,
                      run.args.batch_size)
        gain[held] = made.right - right[held, 0].float()
        layers[held] = made.decisions.sum(1).float()
    return gain, layers


def expect(run, gain, layers):
    """Says what gain is to be expected, (N,) per question; True if routing is expected to pay:
    more right answers for sure, or fewer layers and surely not half a point lost."""
    (low, high), L = interval(gain), run.model.config.num_layers
    pays = low > 0 or (low > -0.005 and layers.mean() < 0.97 * L)
    print(f"expected on fresh questions, cross-validated on {len(gain)} label questions: "
          f"{100 * gain.mean():+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}] at "
          f"{layers.mean():.2f} of {L} layers: routing is {'' if pays else 'not '}expected to pay "
          "on this model" + ("" if pays else ", so the routers execute every layer "
                             "(--choose consensus trains others all the same)"))
    return pays


def learn(run, pooled, counts, decisions, seed, progress=None):
    """Routers of one seed, with their guard."""
    routers = train_routers(pooled, counts, decisions, seed, run.config, run.args.device, progress)
    if (decisions == EXECUTE).all():  # so does every other prompt, whatever few examples leave open
        routers.w2.zero_()
    if run.config.guard and len(pooled) >= SMALLEST_GROUP:
        routers.set_guard(*fit_guard(pooled, counts, seed))
    return routers


def fit(run, choice, prompts, labels, seeds):
    """Routers per seed for one choice of label; those that the run folder lacks are trained."""
    kept = [n for n, path in enumerate(labels) if path is not None]
    chosen = [prompts[n] for n in kept]
    decisions = torch.tensor([labels[n] for n in kept])
    notes = {"model": run.model.fingerprint(), "choice": choice, "train": asdict(run.config),
             "tasks": sorted({p.question.task for p in chosen}), "labels": len(kept),
             "label_hash": digest(*map(content_hash, chosen), decisions.tolist())}
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
            routers = found[seed] = learn(run, pooled, counts, decisions, seed, bar.update)
            routers.notes = notes | {"seed": seed}
            routers.save(file_of[seed])
    return [found[seed] for seed in seeds]


def parse_args(argv=None):
    parser = cli.Parser(description=__doc__.split("\n")[0])
    cli.add_model_flags(parser)
    cli.add_data_flags(parser, [cli.DEMO_LABEL], batch_size=256)
    add_search_flags(parser)
    parser.add_argument("--test", nargs="+", metavar="FILE",
                        help="held-out questions; without it a fifth of --data, by question id")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder")
    parser.add_argument("--choose", choices=CHOICES, default="safe",
                        help="which right path becomes the label; shortest is the paper's")
    parser.add_argument("--price", type=cli.number(-1e6, 1e6),
                        help="reward a layer costs in the choice of label; without it 0.001 for "
                             "confident, and for consensus what keeps half of the gain")
    parser.add_argument("--clusters", type=cli.count, default=16,
                        help="groups of similar questions")
    parser.add_argument("--no-guard", action="store_true",
                        help="trust the routers on any prompt, as the paper does")
    parser.add_argument("--seeds", type=cli.count, default=5,
                        help="routers trained per choice of label")
    parser.add_argument("--feature-memory", type=cli.number(0, 2 ** 20), default=4.0, metavar="GB",
                        help="features beyond this lie in a file of --out while routers train")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    cli.use_device(args)
    began, (to_label, held_out) = time.time(), load_data(args)
    if not to_label or not held_out:  # rather now than after hours of labelling
        raise InputError(f"{(args.test or args.data)[0]}: {len(to_label)} questions to label and "
                         f"{len(held_out)} to test; both need one at least")
    run = Run(args)
    tests, _ = prepare(held_out[:args.limit], run.tokenizer, run.model)
    with cli.locked(args.out):
        train(run, to_label[:args.limit], tests)
    print(f"\n{args.out}: config.json labels.jsonl routers.safetensors metrics.json "
          f"({time.time() - began:.0f} s)")


def train(run, to_label, tests):
    """Labels, routers and their evaluation, in the run's folder."""
    args, out = run.args, run.out
    print(f"{args.model}: {len(to_label)} questions to label along {args.simulations + 1} paths "
          f"each, {len(tests)} to test, into {out}")
    rows = label(run.model, run.tokenizer, to_label, out / "labels.jsonl", run.search, args.seed,
                 args.batch_size, args.reuse_memory)
    write_json(out / "config.json", run.settings)  # now that label has accepted the folder
    print(f"labels: {len(rows)} questions; {summary(rows)}")
    if not any(row["correct"] for row in rows):
        raise InputError(f"{out / 'labels.jsonl'}: the model answered none of {len(rows)} "
                         "questions right, along the default path or any of the "
                         f"{args.simulations} others tried, so there is no label to learn from. "
                         "Either the questions are beyond this model or it does not answer in "
                         "the form asked for (a letter, or \\boxed{})")
    prompts, _ = prepare(to_label, run.tokenizer, run.model)
    labels, statics = labels_of(run, rows, prompts)
    seeds = range(args.seed, args.seed + args.seeds)
    routers = {choice: fit(run, choice, prompts, paths, seeds) for choice, paths in labels.items()}
    routers[args.choose][0].save(out / "routers.safetensors")
    write_json(out / "chosen.json", {p.question.id: path for p, path
                                     in zip(prompts, labels[args.choose]) if path})
    routed = {"dr.llm": (f"Dr.LLM, {args.choose}", [one.route for one in routers[args.choose]])}
    paper = [RouterRoute(one, guard=False) for one in routers["shortest"]]
    routed |= {"dr.llm shortest": ("Dr.LLM, the paper's", paper)}
    table = compare(run.model, run.tokenizer, tests, set(routers[args.choose][0].notes["tasks"]),
                    routed, statics, batch_size=args.batch_size)
    report(table, "dr.llm", out, args.seed, {"command": " ".join(sys.argv)})


if __name__ == "__main__":
    cli.run(main)
