"""Supervision: searches, for every question, which layers to skip and repeat.

Hundreds of searches advance in lockstep (paper Algorithm 1 each): a step gathers one path per
question and answers them all in a few batched calls. A finished question is a line of labels.jsonl,
flushed at once, so the same command goes on where it stopped; a file of another model or search is
refused. A question's seed comes from its id, so its tree does not depend on others.

    python label.py --model demo/model --out labels.jsonl --limit 100
    torchrun --nproc-per-node 2 label.py --model DIR --data FILE --out labels.jsonl
"""
import hashlib
import json
import math
import random
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch

import cli
from mcts import SearchConfig, search
from model_llama import load_model, load_tokenizer
from storage.files import InputError, writing
from storage.label_file import opened, process, read_rows
from cli import progress_bar
from questions.loading import load_all
from answers import Prompt, judge, prepare

SHARED_BYTES = 2 ** 31  # memory for hidden states that the paths of a question share

ASKED = 400  # label questions that are asked first, at most
AT_ZERO = ("Does it answer in the form asked for (a letter, \\boxed{})? `python -m tools.explain` "
           "shows one answer")


# ---- the plain model, before a search ----

def margin(share, number):
    """Half the width of a 95% interval of a share that was measured on so many questions."""
    return 1.96 * math.sqrt(share * (1 - share) / number)


def plain_model(model, tokenizer, prompts, args, refuse=False):
    """Says what the plain model answers of the first questions, beside chance; returns how many
    seconds a question took. refuse: InputError where chance explains multiple choice."""
    some = prompts[:ASKED]
    default = torch.ones(len(some), model.config.num_layers, dtype=torch.long)
    judge(model, tokenizer, some[:32], default[:32])  # the first call makes kernels
    began = time.time()
    right, _ = judge(model, tokenizer, some, default, args.batch_size)
    each = (time.time() - began) / len(some)
    options = torch.tensor([len(prompt.question.choices) for prompt in some])
    likely = "--score likelihood, " if args.score == "letter" else ""
    for rows in (options > 0, options == 0):
        if rows.any():
            said, lucky = plain_score(right[rows], options[rows], args.simulations + 1)
            if lucky:
                said += (f". What a search finds is luck then. Use {likely}questions with examples "
                         "in their prompt, or a model that can do it")
            if lucky and refuse:
                raise InputError(f"{args.model}: {said}; --force goes on all the same")
            print(said)
    return each


def plain_score(right, options, paths):
    """(a sentence on the plain model's answers, whether chance explains them). right (N,): rewards;
    options (N,): how many each question has, 0 for an open one; paths: tried per question."""
    share, number = right.mean().item(), len(right)
    if not options[0]:
        return (f"the plain model answers {100 * share:.1f}% of {number} open questions"
                + (f". {AT_ZERO}" if share == 0 else ""), False)
    chance, off = chance_of(options)
    return (f"the plain model answers {100 * share:.1f}% of {number} multiple-choice questions, "
            f"chance {100 * chance:.1f}% ± {100 * off:.1f}; of {paths} paths per question luck "
            f"alone makes {paths * chance:.0f} right", share <= chance + off)


def chance_of(options):
    """(share of right answers by guessing, half of its 95% interval) of questions with so many
    options (N,) each."""
    chance = (1 / options).mean().item()
    return chance, margin(chance, len(options))


# ---- searches in lockstep ----

@dataclass
class Search:
    """A search under way. path: what it asks about now. confidence: of the right paths met so
    far, in order. known: the hidden states that its paths share (answers.py)."""
    prompt: Prompt
    steps: Generator
    path: tuple
    confidence: dict = field(default_factory=dict)
    known: dict = field(default_factory=dict)


def search_all(model, tokenizer, prompts, config, seed, batch_size=256, progress=None, share=True,
               search=search):
    """Yields (prompt, SearchResult, {decisions: confidence of right paths}) as searches finish.

    At most batch_size searches are under way, fewer where the states that they share need too much
    memory. They begin a few at a time, so that they also end a few at a time and an interruption
    loses little. share=False computes every path from its first layer on.
    """
    waiting = sorted(reversed(prompts), key=lambda p: len(p.sequence))  # the longest comes first
    if share and waiting:
        weight = model.embed_tokens.weight
        state = len(waiting[-1].sequence) * weight.shape[1] * weight.element_size()  # bytes
        each = state * model.config.num_layers * (config.simulations + 1)
        batch_size = max(1, min(batch_size, SHARED_BYTES // each))
    a_few, running = math.ceil(batch_size / (config.simulations + 1)), []
    while waiting or running:
        for _ in range(min(a_few, len(waiting), batch_size - len(running))):
            prompt = waiting.pop()
            steps = search(model.config.num_layers, config, question_rng(prompt.question.id, seed))
            running.append(Search(prompt, steps, next(steps)))
        rewards, sure = judge(model, tokenizer, [one.prompt for one in running],
                              torch.tensor([one.path for one in running]), batch_size,
                              known=[one.known for one in running] if share else None)
        if progress:
            progress(len(running))
        asked, running = running, []
        for one, reward, confidence in zip(asked, rewards.tolist(), sure.tolist()):
            if reward > 0:
                one.confidence[one.path] = confidence
            try:
                one.path = one.steps.send(reward)
                running.append(one)
            except StopIteration as end:
                yield one.prompt, end.value, one.confidence


def digest(*values):
    """16 hex digits that name plain values, the same on every machine."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def question_rng(name, seed):
    """Seeded by (seed, question id), so that batching and processes do not change the tree."""
    return random.Random(int(hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()[:16], 16))


def content_hash(prompt):
    """Names what a question asks and what is right, so that an edited one is searched again."""
    return digest(prompt.ids, asdict(prompt.question))


def row_of(prompt, result, confidence):
    """One line of labels.jsonl. decisions: the paper's label, the default path where nothing was
    right. correct: every right path in the order it was met, with the probability of its answer.
    wrong: the other paths tried."""
    question, tried = prompt.question, list(result.rewards)
    decisions = result.best or tried[0]
    return {"id": question.id, "task": question.task, "level": question.level,
            "content": content_hash(prompt), "default_correct": bool(result.default_reward),
            "decisions": decisions, "length": sum(decisions),
            "correct": [[path, round(sure, 6)] for path, sure in confidence.items()],
            "wrong": [path for path in tried if not result.rewards[path]],
            "simulations": len(tried) - 1}


# ---- all questions ----

def header(model, config, seed):
    """What must be the same for rows to stand in one file."""
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    return {"model": model.fingerprint(), "dtype": dtype, "search": asdict(config), "seed": seed}


def label(model, tokenizer, questions, file, config, seed=0, batch_size=256):
    """Rows of labels for the questions, made now or found in the file, in the questions' order.

    Under torchrun each process takes the questions whose id falls to its rank.
    """
    (rank, world), file, layers = process(), Path(file), model.config.num_layers
    prompts, too_long = prepare(questions, tokenizer, model)
    if too_long and rank == 0:
        print(f"{len(too_long)} of {len(questions)} questions exceed the context "
              f"({model.config.max_positions} tokens): {', '.join(q.id for q in too_long[:5])} ...")
    with opened(file, header(model, config, seed), layers, questions) as (mine, rows):
        missing = [p for p in prompts
                   if rows.get(p.question.id, {}).get("content") != content_hash(p)
                   and int(digest(p.question.id), 16) % world == rank]
        searches = partial(search_all, model, tokenizer, missing, config, seed, batch_size)
        append_rows(mine, searches, rows, len(missing), config.simulations + 1)
    rows = read_rows(file, layers)
    return [rows[p.question.id] for p in prompts]


def append_rows(file, searches, rows, number, paths_each):
    """Appends a flushed line per finished search; rows {id: row} so far feed the progress bar."""
    if not number:
        return
    bar = progress_bar(total=number * paths_each, unit="path", desc=f"searching {number} questions")
    with writing(file), open(file, "a") as stream, bar:
        for result in searches(progress=bar.update):
            row = row_of(*result)
            rows[row["id"]] = row
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            bar.total -= paths_each - 1 - row["simulations"]
            bar.set_postfix_str(summary(rows.values()), refresh=False)


def summary(rows):
    """Table 2 in a line: how often, and by how much, a search improved on the default path."""
    right = [row for row in rows if row["default_correct"]]
    wrong = [row for row in rows if not row["default_correct"]]
    saved = sum(len(row["decisions"]) - row["length"] for row in right) / max(1, len(right))
    repaired = sum(bool(row["correct"]) for row in wrong)
    return f"saved {saved:.2f} layers, repaired {repaired}/{len(wrong)}"


def main(argv=None):
    parser = cli.Parser(__doc__)
    cli.add_model_flags(parser)
    cli.add_data_flags(parser, [cli.DEMO_LABEL], batch_size=256)
    parser.add_argument("--simulations", type=cli.count, default=SearchConfig().simulations,
                        help="paths tried per question after the default")
    parser.add_argument("--out", type=Path, default=Path("runs/labels.jsonl"), help="labels file")
    args = parser.parse_args(argv)
    if args.out.is_dir():
        raise InputError(f"{args.out}: a folder; --out names the labels file")
    cli.use_device(args)
    tokenizer = load_tokenizer(args.model)
    model = load_model(args.model, args.device, cli.DTYPES.get(args.dtype))
    config = SearchConfig(simulations=args.simulations, stop_when_repaired=False)
    questions = load_all(args.data, args.skip_bad_rows, args.score)[:args.limit]
    if process()[0] == 0:
        plain_model(model, tokenizer, prepare(questions, tokenizer, model)[0], args)
    rows = label(model, tokenizer, questions, args.out, config, args.seed, args.batch_size)
    if process()[0] == 0:
        print(f"{args.out}: {len(rows)} questions; {summary(rows)}")


if __name__ == "__main__":
    cli.run(main)
