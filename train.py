"""Searches, labels, routers and a first evaluation in one command.

Paper §3.3. Questions that have not been searched yet are searched first (label.py). Under teacher
forcing (the labelled paths are run, not the routers' decisions) the hidden states do not depend on
the routers, so the pooled windows are computed once; the 25 epochs are then a small MLP problem
over all layers at once.

Ours: which correct path becomes the label is a choice (--choose, see choose.py; `shortest` is the
paper's), and an out-of-distribution guard leaves the base model alone on prompts unlike the
training questions (--no-guard). Under torchrun, processes share the work. In a single process,
`shared_map` is map, `wait` does nothing, and `is_first` is true.

    python train.py                              the demo, into runs/demo
    python train.py --model DIR --out runs/mine            arithmetic of the model's own level
    python train.py --model DIR --data questions.jsonl --out runs/mine
    torchrun --nproc-per-node 2 train.py --model DIR --data questions.jsonl --out runs/mine
"""
import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import torch

import cli
from answers import (answer, batches, cached_grade_paths, get_answers, prompts_that_fit,
                     what_answers_depend_on)
from base_check import check_base_model, default_paths, make_arithmetic, margin
from choose import (CHOICES, CONFIDENT_COST, PAPERS_CHOICE, SMALLEST_GROUP, candidate_paths,
                    consensus_of_neighbours, frontier, standardised, states_at_depths)
from cli import bounds, percent, progress_bar
from drllm import RouterRoute, Routers, class_weights, fit_guard, focal_loss, pool_windows
from evaluate import compare, interval, report
from label import header, label, summary
from mcts import SearchConfig
from model_llama import FixedRoute, load, pad, prefill
from paths import DECISIONS, EXECUTE, blocks
from questions.arithmetic import held_out_kinds
from questions.loading import disjoint, load_all, split
from storage.answer_cache import AnswerCache, digest, source_hash
from storage.files import InputError, mapped_zeros, write_json
from storage.processes import is_first, process, shared_map, wait
from storage.run_folder import (kept_to_one_run, read_candidate_paths, read_fixed_paths,
                                refuse_other_run, replace_other_run, write_candidate_paths,
                                write_kinds)

# N questions   L layers   T tokens   D hidden size   W windows   K candidate paths


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
    guard: bool = True        # execute on prompts unlike the training questions


# ---- features: what the routers see ----

FEATURE_BATCH = 256  # prompts


@torch.inference_mode()
def features(model, prompts, decisions, windows=8, batch_size=FEATURE_BATCH, folder=None):
    """(pooled (N, L, W, D) float32 on the CPU, windows in use (N,)): what routers would see along
    decisions (N, L). folder: where they are mapped to a file; None: all is in memory."""
    size = (len(prompts), model.config.num_layers, windows, model.config.hidden_size)
    pooled = mapped_zeros(size, folder) if folder else torch.zeros(size)
    for rows in batches(prompts, batch_size):
        labelled_path = FixedRoute(decisions[rows])

        def watch(layer, hidden, lengths):
            seen = pool_windows(hidden, lengths, windows)  # (rows, up to W, D)
            pooled[rows, layer, :seen.shape[1]] = seen.cpu()
            return labelled_path(layer, hidden, lengths)

        ids = [prompts[n].ids for n in rows]
        tokens, lengths = pad(ids, model.embed_tokens.weight.device)
        prefill(model, tokens, watch, lengths)
    num_windows = [min(windows, len(prompt.ids)) for prompt in prompts]
    return pooled, torch.tensor(num_windows)


# ---- training ----

def train_routers(model, prompts, labels, config=TrainConfig(), seeds=(0,), device="cpu",
                  folder=None):
    """Yields Routers of each seed, with their guard, trained on the prompts that have a label.
    labels: a path or None per prompt. folder: see features."""
    labelled = [n for n, path in enumerate(labels) if path is not None]
    decisions = torch.tensor([labels[n] for n in labelled])
    prompts = [prompts[n] for n in labelled]
    pooled, num_windows = features(model, prompts, decisions, config.windows, folder=folder)
    for seed in seeds:
        if (decisions == EXECUTE).all():  # nothing to learn
            routers = execute_always(model, config, seed, device)
        else:
            routers = fit_routers(pooled, num_windows, decisions, seed, config, device)
        if config.guard:
            guard = fit_guard(pooled, num_windows, seed)
            # as in their file, so that routers answer alike before and after they are loaded
            routers.set_guard(*(tensor.contiguous() for tensor in guard))
        routers.metadata = {"seed": seed}
        yield routers


def fit_routers(pooled, num_windows, labels, seed=0, config=TrainConfig(), device="cpu",
                kind=Routers):
    """Routers fitted to labels (N, L) on windows (N, L, W, D), of which num_windows (N,) count."""
    N, L, W, D = pooled.shape
    torch.manual_seed(seed)  # the initial weights
    routers = kind(L, D, config.width, config.windows).to(device)
    optimizer = torch.optim.AdamW(routers.parameters(), weight_decay=config.weight_decay,
                                  fused=True)  # one pass over the weights instead of ten
    class_counts = labels.flatten().bincount(minlength=len(DECISIONS))
    weights = class_weights(class_counts, config.beta).to(device)

    rng = torch.Generator().manual_seed(seed)  # the order of the examples
    steps = []
    for _ in range(config.epochs):
        steps += torch.randperm(N, generator=rng).split(config.batch)
    for step, rows in enumerate(progress_bar(steps, f"routers, seed {seed}", unit="step")):
        optimizer.param_groups[0]["lr"] = learning_rate(step, len(steps), config)
        logits = routers(pooled[rows].to(device), num_windows[rows].to(device))  # (rows, L, 3)
        loss = focal_loss(logits, labels[rows].to(device), weights, config.gamma)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return routers.requires_grad_(False)


def learning_rate(step, steps, config):
    """Linear warm-up, then a cosine to zero."""
    warm = max(1, round(config.warmup * steps))
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def execute_always(model, config, seed, device):
    """Routers that execute every layer for any prompt. Training on such labels would not ensure it:
    the initial weights may already fit them, whatever they decide on other prompts."""
    torch.manual_seed(seed)
    size = model.config.num_layers, model.config.hidden_size
    routers = Routers(*size, config.width, config.windows).to(device).requires_grad_(False)
    routers.w2.zero_()
    routers.b2.zero_()
    routers.b2[..., EXECUTE] = 1.0
    return routers


# ---- a run ----

class Run:
    """The questions, the model, the folder, the settings and the answer cache of a training run."""

    def __init__(self, args):
        self.args, self.out = args, args.out
        self.search = SearchConfig(simulations=args.simulations, stop_when_repaired=False)
        self.config = TrainConfig(guard=not args.no_guard)
        self.tokenizer, self.model = load(args)
        self.kinds = None  # of arithmetic, if the model is asked that
        if cli.asks_arithmetic(args):
            self.training, self.held_out, self.kinds = make_arithmetic(
                args, self.tokenizer, self.model, self.out)
        else:
            self.training, self.held_out = load_data(args)
        self.tasks = sorted({q.task for q in self.training})  # known, whatever --limit leaves out
        settings = {**vars(args), "search": asdict(self.search), "train": asdict(self.config),
                    "fingerprint": self.model.fingerprint(), "torch": torch.__version__}
        if self.kinds:
            held_out = held_out_kinds(list(self.kinds["shares"]))
            settings["data"] = []  # none of the default's
            settings["arithmetic"] = {"shares": self.kinds["shares"], "held_out": held_out}
        # they are compared with those of config.json, where a Path, for example, is text
        self.settings = json.loads(json.dumps(settings, default=str))
        self.cache = AnswerCache()  # until the folder is this process's alone


def load_data(args):
    """(training questions, test questions): from files of their own, or a split of --data."""
    if args.data == [cli.DEMO_LABEL] and not args.test:
        args.test = cli.DEMO_TEST
    read = partial(load_all, skip_bad_rows=args.skip_bad_rows, score=args.score, begin=args.begin)
    training = read(args.data)
    if args.test:
        test_files = args.test
        test = read(args.test)
    else:
        test_files = args.data
        training, test = split(training)
    training = disjoint(test_files, test, "--data", training)
    if not training or not test:  # rather now than after hours of searching
        raise InputError(f"{test_files[0]}: {len(training)} training questions and {len(test)} "
                         "test questions; both need one at least")
    return training, test


# ---- labels ----

class Evidence:
    """What a choice of label may look at (choose.Choice): the training questions' prompts and the
    records of their searches. What is expensive is computed when it is first needed, by all
    processes together: choose.label_by_consensus needs the candidates, which need the space."""

    def __init__(self, run, prompts, records):
        self.run, self.prompts = run, prompts
        self.records = records  # None without searches
        self.model, self.tokenizer = run.model, run.tokenizer
        self.num_layers = run.model.config.num_layers
        self.cost_per_layer = run.args.cost_per_layer  # None: not given

    @cached_property
    def space(self):
        """(N, S): similar questions are near each other. Each process runs some of the batches."""
        def describe(numbers):
            prompts = [self.prompts[n] for n in numbers]
            default = default_paths(self.model, prompts)
            return states_at_depths(*features(self.model, prompts, default, folder=self.run.out))

        groups = list(batches(self.prompts, FEATURE_BATCH))
        described = torch.cat(shared_map(describe, groups))
        place = torch.tensor(sum(groups, [])).argsort()
        return standardised(described[place])

    @cached_property
    def candidates(self):
        """(candidate paths, correct (N, K)), see choose.candidate_paths; stored in paths.json."""
        run, file = self.run, self.run.out / "paths.json"
        key = {"labels": header(run.model, run.search, run.args.seed),
               "clusters": run.args.clusters, "source": source_hash("choose.py", "train.py"),
               "questions": digest(*(prompt.key() for prompt in self.prompts))}
        stored = read_candidate_paths(file, key, self.num_layers, len(self.prompts))
        if stored is not None:
            paths, correct = stored
            return paths, torch.tensor(correct)
        paths, correct = candidate_paths(
            self.model, self.tokenizer, self.prompts, self.records, self.space, run.args.clusters,
            batch_size=run.args.batch_size, ask=partial(cached_grade_paths, run.cache))
        if is_first():
            write_candidate_paths(file, key, paths, correct.tolist(), frontier(paths, correct))
        wait()  # the other processes read the fixed paths in this file
        return paths, correct

    def consensus(self, numbers=None):
        """(labels, cost per layer) by consensus among the questions of these numbers, by default
        all. The run's cache has those of an earlier start, which then need no `space`."""
        paths, correct = self.candidates
        if numbers is None:
            numbers = torch.arange(len(self.prompts))

        def choose_labels():
            return consensus_of_neighbours(self.space[numbers], correct[numbers], paths,
                                           self.cost_per_layer)

        about = ["consensus", numbers.tolist(), paths, correct.tolist(), self.cost_per_layer,
                 source_hash("choose.py", "train.py"),
                 *what_answers_depend_on(self.model, self.tokenizer, self.prompts)]
        labels, cost_per_layer = self.run.cache.get(about, choose_labels)
        labels = [None if path is None else tuple(path) for path in labels]  # JSON has lists
        return labels, cost_per_layer

    def routing_pays(self):
        """Whether routers that learn by consensus are expected to pay off; prints why."""
        gains, layers = cross_validate(self)
        pays = routing_pays(gains, layers, self.num_layers)
        print(expectation(gains, layers, self.num_layers, pays))
        return pays


def labels_of(choice, evidence):
    """A path or None per training question. InputError if too few of them have one."""
    labels = CHOICES[choice].label(evidence)
    number = sum(path is not None for path in labels)
    if number < SMALLEST_GROUP:
        raise InputError(f"{evidence.run.out}: {number} questions with a label by --choose "
                         f"{choice}; routers need {SMALLEST_GROUP}. Another --choose may do")
    return labels


# ---- the steps of a run ----

BUSY = 0.75  # load per core, from which on programs wait for each other's threads
FEW_TESTS = 100  # questions: with fewer, an interval reaches 10 points or more to either side


def prepare_questions(run):
    """(training prompts, test prompts, number of test questions that are too long). Says what the
    run is about to do; InputError if it would be in vain, or would replace another run."""
    args, model, tokenizer = run.args, run.model, run.tokenizer
    training = run.training[:args.limit]
    tests, too_long = prompts_that_fit(run.held_out[:args.limit], tokenizer, model)
    search_note = ""
    if CHOICES[args.choose].needs_search:
        search_note = f", searched along {args.simulations + 1} paths each"
    print(f"{args.model}: {len(training)} training questions{search_note}, {len(tests)} test "
          f"questions, into {run.out}")
    prompts, _ = prompts_that_fit(training, tokenizer, model, "training questions")
    refuse_other_run(run.out, run.settings, args.overwrite)
    if is_first():
        write_kinds(run.out, model.fingerprint(), run.kinds)
    print_warnings(args, len(tests))
    run.cache = AnswerCache(run.out / "answers.jsonl", writes=False)  # the run may yet be refused
    check_base_model(model, tokenizer, prompts, args, run.cache, refuse=not args.force)
    return prompts, tests, too_long


def print_warnings(args, num_tests):
    """What makes a run slow or its figures uncertain, before it begins."""
    load = os.getloadavg()[0]
    cores = os.cpu_count() or 1
    if load > BUSY * cores and not args.threads:
        print(f"other work keeps {load:.1f} of {cores} cores busy, and every small operation waits "
              "for all threads; --threads 1 may be several times as fast")
    if num_tests < FEW_TESTS:
        print(f"{num_tests} test questions: a 95% interval will reach about "
              f"{100 * margin(0.5, num_tests):.0f} points to either side")


def search_questions(run, prompts):
    """The search record of each training question. InputError if too few have a correct path."""
    args, file = run.args, run.out / "labels.jsonl"
    records = label(run.model, run.tokenizer, prompts, file, run.search, args.seed,
                    args.batch_size, args.memory)
    print(f"labels: {len(records)} questions; {summary(records)}")
    answered = sum(bool(record["correct"]) for record in records)
    if answered < SMALLEST_GROUP:
        raise InputError(f"{file}: {answered} questions with a correct path; routers need "
                         f"{SMALLEST_GROUP}. The others are beyond this model, or it does not "
                         "answer in the form asked for (a letter, or \\boxed{})")
    return records


def router_metadata(run, choice, prompts, labels):
    """What a router file says of the run, and of the labels that the routers learned from."""
    labelled = [(prompt.key(), path) for prompt, path in zip(prompts, labels) if path is not None]
    keys = [key for key, _ in labelled]
    paths = [path for _, path in labelled]
    has_options = any(prompt.question.choices for prompt in prompts)
    return {"model": run.model.fingerprint(), "choice": choice, "train": asdict(run.config),
            "tasks": run.tasks, "questions": sorted(p.question.wording for p in prompts),
            "score": run.args.score if has_options else None, "begin": run.args.begin,
            "labels": len(labelled), "label_hash": digest(*keys, paths),
            "source": source_hash("train.py", "drllm.py")}


def load_or_train(run, choice, prompts, labels, seeds):
    """Routers of every seed for the labels of one choice: from the run's folder, or trained now and
    stored there."""
    metadata = router_metadata(run, choice, prompts, labels)
    file_of = {seed: run.out / "routers" / f"{choice}-{seed}.safetensors" for seed in seeds}
    routers_of = {}
    for seed, file in file_of.items():
        if file.exists():
            stored = Routers.load(file, run.model)
            # trained on these very labels, by this very code
            if metadata.items() <= stored.metadata.items():
                routers_of[seed] = stored

    missing = [seed for seed in seeds if seed not in routers_of]
    wait()  # all processes have seen the same files; now each trains some of the seeds
    rank, world = process()
    my_seeds = missing[rank::world]
    if my_seeds:
        for routers in train_routers(run.model, prompts, labels, run.config, my_seeds,
                                     run.args.device, run.out):
            seed = routers.metadata["seed"]
            routers.metadata = metadata | routers.metadata
            routers.save(file_of[seed])
            routers_of[seed] = routers
    wait()
    for seed in missing:
        if seed not in my_seeds:
            routers_of[seed] = Routers.load(file_of[seed], run.model)
    return [routers_of[seed] for seed in seeds]


def save_chosen(run, prompts, labels, routers):
    """Writes the main results of the run: each training question's label, and the first seed's
    routers."""
    routers[0].save(run.out / "routers.safetensors")
    chosen = {}
    for prompt, path in zip(prompts, labels):
        if path is not None:
            chosen[prompt.question.id] = path
    write_json(run.out / "chosen.json", chosen)


def compare_on_tests(run, tests, routers, fixed_paths, too_long):
    """Prints the table of a run and writes its metrics.json. routers: {choice: Routers per seed};
    fixed_paths: [(length, path)]; too_long: the number of test questions that were left out."""
    args, out = run.args, run.out
    routes = [of_seed.route for of_seed in routers[args.choose]]
    routed = {"dr.llm": (f"Dr.LLM, {args.choose}", routes)}
    if PAPERS_CHOICE in routers:
        paper = [RouterRoute(of_seed, guard=False) for of_seed in routers[PAPERS_CHOICE]]
        routed["dr.llm shortest"] = ("Dr.LLM, the paper's", paper)
    table = compare(run.model, run.tokenizer, tests, run.tasks, routed, fixed_paths,
                    batch_size=args.batch_size, cache=run.cache)
    report(table, "dr.llm", out, args.seed,
           {"command": " ".join(sys.argv), "too_long": too_long})


# ---- is routing expected to pay off? ----

FOLDS = 4  # of the cross-validation: routers learn from three quarters of the questions
TOLERATED_LOSS = 0.005  # half a point: what fewer layers may cost in accuracy
WORTHWHILE_DEPTH = 0.97  # of all layers: saving less than 3% is not worth a router per layer


def routing_pays(gains, layers, num_layers):
    """True if more answers are correct, or if layers are saved and accuracy is not lost: both by
    the lower end of the gain's interval. gains, layers (N,): of each training question."""
    low, _ = interval(gains)
    if low > 0:
        return True
    saves_layers = bool(layers.mean() < WORTHWHILE_DEPTH * num_layers)
    return saves_layers and low > -TOLERATED_LOSS


def cross_validate(evidence):
    """(gains over the default path (N,), layers (N,)): each training question is answered by
    routers that learned by consensus from the other *folds*, which are parts of the questions.

    The candidate paths were chosen on all questions, so the gains are a little too high.
    """
    _, correct = evidence.candidates
    fold_of = torch.tensor([int(digest(prompt.question.id, "fold"), 16) % FOLDS
                            for prompt in evidence.prompts])
    labels_for = {}  # {fold: the labels of the questions of all other folds}
    for fold in range(FOLDS):
        others = (fold_of != fold).nonzero()[:, 0]
        is_empty = len(others) == len(fold_of)
        # a fold whose routers have too little to learn from stays on the default path
        if not is_empty and correct[others].any(1).sum() >= SMALLEST_GROUP:
            labels_for[fold], _ = evidence.consensus(others)

    with progress_bar(total=len(labels_for), desc="expected gain", unit="fold") as bar:
        answered = shared_map(
            lambda fold: answers_of_fold(evidence, fold, fold_of, labels_for[fold]),
            labels_for, bar.update)
    gains = torch.zeros(len(evidence.prompts))
    layers = torch.full((len(evidence.prompts),), float(evidence.num_layers))
    for fold, answers in zip(labels_for, answered):
        held_out = fold_of == fold
        # f1 gives shares; of the default path's answers it is only known which are correct
        gains[held_out] = (answers.correct > 0).float() - correct[held_out, 0].float()
        layers[held_out] = blocks(answers.decisions).float()
    return gains, layers


def answers_of_fold(evidence, fold, fold_of, labels):
    """The Answers to a fold's questions by routers that learned the labels of all other folds."""
    run, prompts = evidence.run, evidence.prompts

    def train_and_answer():
        others = [prompts[n] for n in (fold_of != fold).nonzero()[:, 0]]
        held_out = [prompts[n] for n in (fold_of == fold).nonzero()[:, 0]]
        [routers] = train_routers(run.model, others, labels, run.config, [run.args.seed],
                                  run.args.device, run.out)
        return answer(run.model, run.tokenizer, held_out, routers.route, run.args.batch_size)

    # these answers are also those of routers trained here, with these settings
    about = ["fold", fold, run.args.seed, labels, asdict(run.config), source_hash("train.py"),
             *what_answers_depend_on(run.model, run.tokenizer, prompts)]
    return get_answers(run.cache, about, train_and_answer)


def expectation(gains, layers, num_layers, pays):
    """The sentence on what routing is expected to do. gains, layers (N,): see cross_validate."""
    low, high = interval(gains)
    figures = (f"{percent(gains.mean(), sign=True)} points {bounds((low, high))} at "
               f"{layers.mean():.2f} of {num_layers} layers")
    verdict = "routing is expected to pay off on this model"
    if not pays:
        verdict = ("routing is not expected to pay off on this model, so the routers execute every "
                   "layer (--choose consensus trains others all the same)")
    return (f"expected on new questions, cross-validated on {len(gains)} training questions: "
            f"{figures}: {verdict}")


# ---- the command ----

def parse_args(argv=None):
    parser = cli.Parser(__doc__)
    cli.add_model_flags(parser)
    cli.add_data_flags(parser, [cli.DEMO_LABEL], batch_size=256)
    cli.add_own_model_flags(parser)
    parser.add_argument("--simulations", type=cli.count, default=SearchConfig().simulations,
                        help="paths tried per question after the default")
    cli.add_memory_flag(parser)
    parser.add_argument("--test", nargs="+", metavar="FILE",
                        help="test questions; without it a fifth of --data, by its words")
    parser.add_argument("--out", type=Path,
                        help="run folder; default: runs/ and the name of the model, or demo")
    parser.add_argument("--choose", choices=CHOICES, default="safe",
                        help="which correct path becomes the label; shortest is the paper's")
    parser.add_argument("--cost-per-layer", type=cli.number(-1e6, 1e6),
                        help=f"cost per layer, in reward; without it {CONFIDENT_COST} for "
                             "confident, and for consensus what keeps half of the gain")
    parser.add_argument("--clusters", type=cli.count, default=16, help="groups of questions")
    parser.add_argument("--no-guard", action="store_true",
                        help="trust the routers on any prompt, as the paper does")
    parser.add_argument("--seeds", type=cli.count, default=5, help="routers per choice of label")
    parser.add_argument("--force", action="store_true", help="continue with a model at chance")
    parser.add_argument("--overwrite", action="store_true", help="replace a finished run in --out")
    args = parser.parse_args(argv)
    if args.test and cli.asks_arithmetic(args):
        parser.error("--test FILE needs --data FILE; without both, arithmetic is made")
    if args.out is None:
        model = args.model.resolve()
        args.out = Path("runs") / ("demo" if model == cli.DEMO_MODEL else model.name)
    return args


def main(argv=None):
    """Locks the folder; checks all that may refuse the run; searches; makes the folder this run's
    own; then labels, routers and the table."""
    args = parse_args(argv)
    began, run = time.time(), Run(args)
    with kept_to_one_run(args.out):
        prompts, tests, too_long = prepare_questions(run)
        records, choices = None, [args.choose]
        if CHOICES[args.choose].needs_search:
            records = search_questions(run, prompts)
            choices = dict.fromkeys([args.choose, PAPERS_CHOICE])  # the table has both
        wait()
        if is_first():  # only now: the refusals above cost another run nothing
            replace_other_run(args.out, run.settings)
        wait()
        run.cache.start_writing()

        evidence = Evidence(run, prompts, records)
        labels = {choice: labels_of(choice, evidence) for choice in choices}
        fixed_paths = []
        if CHOICES[args.choose].has_fixed_paths:
            fixed_paths = read_fixed_paths(
                args.out / "paths.json", run.model.fingerprint(), run.model.config.num_layers)
        seeds = range(args.seed, args.seed + args.seeds)
        routers = {choice: load_or_train(run, choice, prompts, labels[choice], seeds)
                   for choice in choices}
        if is_first():
            save_chosen(run, prompts, labels[args.choose], routers[args.choose])
        compare_on_tests(run, tests, routers, fixed_paths, too_long)
        run.cache.merge()
    files = ["config.json", "labels.jsonl", "routers.safetensors", "metrics.json"]
    made = " ".join(file for file in files if (args.out / file).exists())
    print(f"\n{args.out}: {made} ({time.time() - began:.0f} s)")


if __name__ == "__main__":
    cli.run(main)
