"""Could another rule pay? A small menu, asked of every question, and rules that choose from it.

The search asks which path is right for this very question, and meets luck. Here every path of one
edit is asked of all label questions alike, so that none is picked by its luck; a *damped* repeat,
x + (g(x) - x) / 2 with x after the layer's first pass, is asked beside skip and repeat. A rule then
picks an edit per question from what the edits did to other questions. Its gain over the default
path is cross-validated on the label questions, and measured on test questions that chose nothing.

Rules: the best edit for *all* questions, for each *kind*, of the 32 *nearest* questions, or by
ridge *regression* on hidden states. What counts is right or wrong, or the log-probability of the
right answer; doubt is how many standard errors count against an edit. With --train, routers learn
what a rule picks for the label questions; a question is then one of the nearest to itself.

    python -m experiments.rules --model DIR --data label.jsonl --test test.jsonl --out runs/rules
    python -m experiments.rules --train kind --model DIR --data label.jsonl --test test.jsonl
"""
import itertools
import sys
from pathlib import Path

import torch
from torch import nn

import cli
from choose import similarity_space
from cli import aligned, percent
from evaluate import compare, interval, report
from label import content_hash
from mcts import EXECUTE, REPEAT, SKIP
from model_llama import fixed, load_model, load_tokenizer
from storage.files import InputError, write_json
from storage.answer_cache import Kept
from cli import progress_bar
from questions.loading import disjoint, load_all
from answers import final_states
from answers import batches, prepare
from train import TrainConfig, features, train_routers

# N questions   K edits, the first of them none   S numbers that describe a question

COUNTS = ("right or wrong", "log-probability")
DOUBTS = (0, 1, 2)       # standard errors
NEAREST, RIDGE = 32, 1000.0
FOLDS, ROUNDS = 8, 5     # of cross-validation
LARGEST = 5.0            # a change of log-probability counts no more


# ---- the menu ----

class Damped(nn.Module):
    """A block, then half of what a second pass of it would change."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, hidden, *how):
        once = self.block(hidden, *how)
        return once + (self.block(once, *how) - once) / 2


def menu(num_layers):
    """[(what is done, at which layer)], nothing first."""
    return [("execute", 0)] + [(what, layer) for what in ("skip", "repeat", "damped")
                               for layer in range(num_layers)]


def decisions_with(edit, num_layers):
    """The default path with one edit, as decisions; what is damped is told elsewhere."""
    what, layer = edit
    return tuple({"skip": SKIP, "repeat": REPEAT}.get(what, EXECUTE) if l == layer else EXECUTE
                 for l in range(num_layers))


@torch.inference_mode()
def asked(model, prompts, edits):
    """(right (N, K), log-probability of the right answer (N, K)) of a batch of prompts along the
    default path with one edit each; what comes before the edited layer is computed once."""
    N, L = len(prompts), model.config.num_layers
    known, found = [{} for _ in prompts], []
    for what, layer in edits:
        paths, block = torch.tensor([decisions_with((what, layer), L)] * N), model.layers[layer]
        if what != "execute":  # only what the default path leads to, up to this layer
            shared = [{p: h for p, h in one.items() if len(p) <= layer} for one in known]
        model.layers[layer] = Damped(block) if what == "damped" else block
        try:
            hidden, _ = through_layers(
                model, [p.sequence for p in prompts], [len(p.ids) for p in prompts], fixed(paths),
                known if what == "execute" else shared)
        finally:
            model.layers[layer] = block
        states = [h[len(p.ids) - 1:len(p.sequence) - 1] for h, p in zip(hidden, prompts)]
        said = model.head(torch.cat(states)).float().log_softmax(-1)
        gold = torch.tensor([token for p in prompts for token in p.gold], device=said.device)
        sizes = [len(p.gold) for p in prompts]
        agrees = (said.argmax(-1) == gold).split(sizes)
        logprobs = said.gather(1, gold[:, None])[:, 0].split(sizes)
        found.append([[float(one.all()) for one in agrees], [one.sum().item() for one in logprobs]])
    return torch.tensor(found).permute(1, 2, 0)


def effects(model, prompts, edits, kept, batch_size=128):
    """(right (N, K), log-probabilities (N, K)) of every edit on every question."""
    found = torch.zeros(2, len(prompts), len(edits))
    with progress_bar(total=len(prompts), desc="edits", unit="question") as bar:
        for rows in batches(prompts, batch_size):
            some = [prompts[n] for n in rows]
            about = ["edits", *edits, *map(content_hash, some)]
            found[:, rows] = torch.tensor(kept.lists(
                about, lambda: asked(model, some, edits).tolist()))
            bar.update(len(rows))
    return found


# ---- rules: the edit for each of n questions, from what edits did to N others ----

def careful(values, doubt, dim=0):
    """Mean effect less its standard errors, (N, K) or (n, N, K); doing nothing is 0 for sure."""
    low, number = values.mean(dim), values.shape[dim]
    if doubt:  # of one question alone nothing is sure
        low -= doubt * values.std(dim) / number ** 0.5 if number > 1 else torch.inf
    low[..., 0] = 0
    return low


def best_for_all(values, doubt, known, new):
    return careful(values, doubt).argmax().repeat(len(new.kinds))


def best_of_kind(values, doubt, known, new):
    best = {kind: careful(values[[k == kind for k in known.kinds]], doubt).argmax().item()
            for kind in set(known.kinds)}
    return torch.tensor([best.get(kind, 0) for kind in new.kinds])


def best_of_nearest(values, doubt, known, new):
    nearest = min(NEAREST, len(values))
    near = torch.cdist(new.space, known.space).topk(nearest, largest=False).indices  # (n, nearest)
    return careful(values[near], doubt, 1).argmax(1)


def regression(values, doubt, known, new):
    X, x = (torch.cat([one.space, torch.ones(len(one.space), 1)], 1) for one in (known, new))
    weights = torch.linalg.solve(X @ X.T + RIDGE * torch.eye(len(X)), values)  # (N, K)
    errors = (values - X @ (X.T @ weights)).std(0) / len(X) ** 0.5
    promised = x @ (X.T @ weights) - doubt * errors
    promised[:, 0] = 0
    return promised.argmax(1)


RULES = {"all": best_for_all, "kind": best_of_kind, "nearest": best_of_nearest,
         "regression": regression}


class Group:
    """Questions as rules see them: kinds (N,) and space (N, S)."""

    def __init__(self, kinds, space):
        self.kinds, self.space = kinds, space

    def __getitem__(self, rows):
        return Group([self.kinds[n] for n in rows.tolist()], self.space[rows])


def cross_validated(rule, values, doubt, group, columns, seed=0):
    """(edits chosen (ROUNDS, N)): each from the questions of the other folds, for several
    divisions into folds. columns: which edits the rule may choose."""
    N, chosen = len(values), []
    for round in range(ROUNDS):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(seed + round))
        fold, picks = torch.arange(N)[order.argsort()] % FOLDS, torch.zeros(N, dtype=torch.long)
        for f in range(FOLDS):
            rest, held = (fold != f).nonzero()[:, 0], (fold == f).nonzero()[:, 0]
            picks[held] = rule(values[rest][:, columns], doubt, group[rest], group[held])
        chosen.append(columns[picks])
    return torch.stack(chosen)


# ---- every rule, beside what it does to fresh questions ----

def targets(right, logprob):
    """{what counts: (N, K) changes against doing nothing}, of rewards and log-probabilities (N, K).
    """
    change = logprob - logprob[:, :1]
    return dict(zip(COUNTS, (right - right[:, :1], change.clamp(-LARGEST, LARGEST))))


def figures(gain, layers):
    """`+2.4 [+0.8, +4.2] @ 30.59` of gains (N,) and layers of any shape."""
    low, high = (percent(end, True) for end in interval(gain))
    return f"{percent(gain.mean().item(), True)} [{low}, {high}] @ {layers.mean():.2f}"


def compared(right, logprob, fresh, edits, known, new, seed):
    """Yields a row of the table per menu, target, doubt and rule. right, logprob (N, K): of the
    known questions, which choose; fresh (n, K): rewards of the new ones, which choose nothing."""
    L = len(edits) // 3  # nothing, and three edits of each layer
    layers = torch.tensor([sum(decisions_with(edit, L)) + (edit[0] == "damped") for edit in edits])
    layers, one_each = layers.float(), torch.arange(len(fresh))
    for title, wanted in (("skip, repeat", ("skip", "repeat")), ("damped", ("damped",))):
        columns = torch.tensor([k for k, (what, _) in enumerate(edits)
                                if k == 0 or what in wanted])
        for (counts, values), doubt, (name, rule) in itertools.product(
                targets(right, logprob).items(), DOUBTS, RULES.items()):
            chosen = cross_validated(rule, values, doubt, known, columns, seed)
            own = right.gather(1, chosen.T).mean(1) - right[:, 0]
            picked = columns[rule(values[:, columns], doubt, known, new)]
            gain = fresh[one_each, picked] - fresh[:, 0]
            yield {"menu": title, "counts": counts, "doubt": str(doubt), "rule": name,
                   "cross-validated": figures(own, layers[chosen]),
                   "test": figures(gain, layers[picked])}


# ---- routers that learn what a rule picks ----

def routed(args, model, tokenizer, label, labels, test, kept):
    """Trains routers on a rule's labels, a path per question, and reports what they do to test
    questions beside the plain model and their own decisions shuffled."""
    routes = [routers.route for routers in train_routers(
        model, label, labels, TrainConfig(), range(args.seeds), args.device, args.out)]
    known = {prompt.question.task for prompt in label}
    table = compare(model, tokenizer, test, known, {"dr.llm": (f"Dr.LLM, {args.train}", routes)},
                    [], ("vanilla", "dr.llm", "shuffled"), args.batch_size, kept=kept)
    report(table, "dr.llm", args.out)


# ---- the command ----

def parse_args(argv=None):
    parser = cli.Parser(__doc__, prog="python -m experiments.rules")
    cli.add_model_flags(parser)
    cli.add_data_flags(parser, [cli.DEMO_LABEL], batch_size=128)
    parser.add_argument("--test", nargs="+", metavar="FILE", default=[cli.DEMO_TEST[0]],
                        help="held-out question files")
    parser.add_argument("--train", choices=RULES, help="train routers on what this rule picks of "
                        "skips and repeats, instead of comparing all rules")
    parser.add_argument("--counts", choices=COUNTS, default=COUNTS[0], help="of --train")
    parser.add_argument("--doubt", type=cli.number(0, 100), default=1.0,
                        help="of --train, in standard errors")
    parser.add_argument("--seeds", type=cli.count, default=5, help="routers that --train trains")
    parser.add_argument("--out", type=Path, default=Path("runs/rules"), help="result folder")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    cli.use_device(args)
    tokenizer = load_tokenizer(args.model)
    model = load_model(args.model, args.device, cli.DTYPES.get(args.dtype))
    test = load_all(args.test, args.skip_bad_rows, args.score)
    label = disjoint(args.test, test, "--data",
                     load_all(args.data, args.skip_bad_rows, args.score))
    L, edits = model.config.num_layers, menu(model.config.num_layers)
    kept = Kept(args.out / "kept.jsonl", model)
    label, test = (prepare(some[:args.limit], tokenizer, model)[0] for some in (label, test))
    if missing := [p.question.id for p in label + test if not p.gold]:
        raise InputError(f"question {missing[0]}: its answer is not written, but scored")
    right, logprob = effects(model, label, edits, kept, args.batch_size)
    placed = label if args.train else label + test  # labels are made without the test's prompts
    paths = torch.ones(len(placed), L, dtype=torch.long)
    everything = Group([p.question.task for p in placed], similarity_space(
        *features(model, placed, paths, folder=args.out)))
    known, new = (everything[torch.arange(len(placed))[where]]
                  for where in (slice(len(label)), slice(len(label), None)))
    if args.train:
        single = torch.tensor([k for k, (what, _) in enumerate(edits) if what != "damped"])
        values = targets(right, logprob)[args.counts][:, single]
        picks = single[RULES[args.train](values, args.doubt, known, known)]
        labels = [decisions_with(edits[k], L) for k in picks.tolist()]
        return routed(args, model, tokenizer, label, labels, test, kept)
    fresh, _ = effects(model, test, edits, kept, args.batch_size)
    rows = [*compared(right, logprob, fresh, edits, known, new, args.seed)]
    print(f"{len(right)} label and {len(fresh)} test questions; the default path answers "
          f"{percent(right[:, 0].mean().item())}% and {percent(fresh[:, 0].mean().item())}%")
    print(aligned(rows))
    write_json(args.out / "rules.json", {"command": " ".join(sys.argv), "label": len(right),
                                         "test": len(fresh), "rows": rows})


if __name__ == "__main__":
    cli.run(main)
