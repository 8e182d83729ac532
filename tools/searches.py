"""The search beside four others, at the same number of paths: does a branching tree earn its keep?

    ours         progressive widening, stacked edits (mcts.select, mcts.grow)
    chain        the authors': always extends the newest leaf, ends where that is stuck
    restarts     the chain, begun again at the root where it is stuck
    root first   every edit of a node before any of its children: plain MCTS
    random       uniform random legal paths, of lengths drawn from those that ours asked

Asked of a model's questions, and of a made-up reward whose best path is known. Of questions that
the default path answers: how many have a shorter right path, and the mean number of layers it
saves; of the others: how many are repaired. With the standard error over questions.

    python -m tools.searches --limit 400
"""
import math
import random
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

import cli
from label import question_rng, search_all
from mcts import EXECUTE, REPEAT, SKIP, SearchConfig, SearchResult, is_legal, search, select
from model_llama import load_model, load_tokenizer
from storage.files import write_json
from cli import progress_bar
from questions.loading import load_all
from answers import prepare

RULES = ("ours", "chain", "restarts", "root first", "random")


# ---- other ways to choose the next path ----

def newest_leaf(root, known, config, rng, restart=False):
    """mcts.select of the authors' chain: the last child of the last child of ... the root."""
    newest = root
    while newest.children:
        newest = newest.children[-1]
    for node in (newest, root) if restart else (newest,):
        if any(path not in known for path in node.edits):
            return node
    return None


def random_path(num_layers, length, rng):
    """A legal path of `length` layers, all equally likely."""
    pairs = [(skips, length - num_layers + skips) for skips in range(num_layers + 1)]
    pairs = [(s, r) for s, r in pairs if 0 <= r <= num_layers - s]
    weights = [math.comb(num_layers, s) * math.comb(num_layers - s, r) for s, r in pairs]
    while True:
        skips, repeats = rng.choices(pairs, weights)[0]
        path = [SKIP] * skips + [REPEAT] * repeats + [EXECUTE] * (num_layers - skips - repeats)
        rng.shuffle(path)
        if is_legal(path):
            return tuple(path)


def random_search(lengths, num_layers, config, rng):
    """Like mcts.search, with random paths; lengths: to draw from."""
    default = (EXECUTE,) * num_layers
    rewards = {default: (yield default)}
    tries = 0
    while len(rewards) <= config.simulations and tries < 100 * config.simulations:
        tries += 1
        path = random_path(num_layers, rng.choice(lengths), rng)
        if path not in rewards:
            rewards[path] = yield path
    right = [path for path, reward in rewards.items() if reward > 0]
    return SearchResult(min(right, key=sum, default=None), rewards[default], rewards)


def searchers(lengths):
    """{rule: a generator like mcts.search}."""
    def by(select=select, **changes):
        one_edit = {"stacking": 0.0, "stacking_blind": 0.0} | changes
        return lambda L, config, rng: search(L, replace(config, **one_edit), rng, select)
    return {"ours": search, "chain": by(newest_leaf),
            "restarts": by(partial(newest_leaf, restart=True)),
            "root first": by(widening=1.0), "random": partial(random_search, lengths)}


# ---- a reward with a known answer ----

@dataclass(frozen=True)
class Puzzle:
    """Right are the paths that run every layer of `needed` and repeat `extra` layers of `helpful`,
    whichever they are: as a question may need more steps than the model has layers for."""
    num_layers: int
    needed: frozenset
    helpful: frozenset
    extra: int

    def reward(self, decisions):
        kept = all(decisions[layer] for layer in self.needed)
        return float(kept and sum(decisions[n] == REPEAT for n in self.helpful) >= self.extra)

    @property
    def most_saved(self):
        """Layers that the shortest right path saves if no repeat is asked for: of a run of layers
        that nobody needs, one in three stays, since no three in a row may be skipped."""
        marks = "".join("." if n in self.needed else " " for n in range(self.num_layers))
        return sum(len(run) - len(run) // 3 for run in marks.split("."))


def puzzles(number, num_layers=12, needed=8, helpful=6, seed=0):
    """Puzzles whose right paths need no repeat, one, two and three, by turns."""
    rng = random.Random(seed)
    pick = lambda count: frozenset(rng.sample(range(num_layers), count))
    return [Puzzle(num_layers, pick(needed), pick(helpful), n % 4) for n in range(number)]


def solve(puzzle, steps):
    """Drives one search by hand: the SearchResult."""
    path = next(steps)
    while True:
        try:
            path = steps.send(puzzle.reward(path))
        except StopIteration as end:
            return end.value


# ---- the table ----

def figures(results):
    """The three figures of one rule, each with its standard error, from its SearchResults."""
    right = [r for r in results if r.default_reward]
    wrong = [r for r in results if not r.default_reward]
    saved = [len(r.best) - sum(r.best) for r in right]
    columns = {"shorter": [s > 0 for s in saved], "saved": saved,
               "repaired": [r.best is not None for r in wrong],
               "paths": [len(r.rewards) - 1 for r in results]}
    return {name: (float(np.mean(values)), float(np.std(values) / math.sqrt(max(1, len(values)))))
            for name, values in columns.items() if len(values)} | {
                "right": len(right), "wrong": len(wrong)}


def table(name, ask):
    """{rule: figures}, printed; ask(searcher) gives the SearchResults of all questions."""
    lengths, rows = [1], {}
    print(f"\n{name}\n{'':<12}{'shorter right path':>20}{'layers saved':>17}{'repaired':>15}"
          f"{'paths':>8}")
    for rule in RULES:
        results = ask(searchers(lengths)[rule])
        if rule == "ours":
            lengths = [sum(path) for r in results for path in list(r.rewards)[1:]]
        rows[rule] = figures(results)
        print(row_text(rule, rows[rule]))
    return rows


def row_text(rule, row):
    percent = lambda cell: f"{100 * cell[0]:.1f}% ± {100 * cell[1]:.1f}" if cell else "-"
    saved = row.get("saved")
    return (f"{rule:<12}{percent(row.get('shorter')):>20}"
            f"{f'{saved[0]:.2f} ± {saved[1]:.2f}' if saved else '-':>17}"
            f"{percent(row.get('repaired')):>15}{row['paths'][0]:>8.1f}")


def ask_model(model, tokenizer, prompts, config, args, searcher):
    with progress_bar(total=len(prompts) * (config.simulations + 1), unit="path") as bar:
        found = search_all(model, tokenizer, prompts, config, args.seed, args.batch_size,
                           bar.update, search=searcher)
        return [result for _, result, _ in found]


def main(argv=None):
    parser = cli.Parser(__doc__, prog="python -m tools.searches")
    cli.add_model_flags(parser)
    cli.add_data_flags(parser, [cli.DEMO_LABEL], batch_size=256)
    parser.add_argument("--simulations", type=cli.count, default=SearchConfig().simulations,
                        help="paths tried per question after the default")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args(argv)
    cli.use_device(args)
    config = SearchConfig(simulations=args.simulations, stop_when_repaired=False)
    made_up = puzzles(1000, seed=args.seed)
    drive = lambda searcher: [solve(puzzle, searcher(12, config, question_rng(str(n), args.seed)))
                              for n, puzzle in enumerate(made_up)]
    most = np.mean([puzzle.most_saved for puzzle in made_up if not puzzle.extra])
    rows = {"puzzles": table("1000 puzzles of 12 layers, 8 of them needed; at most "
                             f"{most:.2f} layers can be saved", drive)}
    tokenizer = load_tokenizer(args.model)
    model = load_model(args.model, args.device, cli.DTYPES.get(args.dtype))
    prompts, _ = prepare(load_all(args.data, args.skip_bad_rows)[:args.limit], tokenizer, model)
    rows["model"] = table(f"{args.model}: {len(prompts)} questions, {args.simulations} simulations",
                          partial(ask_model, model, tokenizer, prompts, config, args))
    if args.out:
        write_json(args.out, rows)


if __name__ == "__main__":
    cli.run(main)
