"""Supervision: searches, for every question, which layers to skip and repeat.

Hundreds of searches advance in lockstep (paper Algorithm 1 each): a step gathers one path per
question and answers them all in a few batched calls. A finished question is one line of
labels.jsonl, flushed at once; the same command again goes on where it stopped, and a file made
with another model or search is refused. A question's seed comes from its id, so its tree does
not depend on what is searched beside it.

    python label.py --model demo/model --out labels.jsonl --limit 100
    torchrun --nproc-per-node 2 label.py --model DIR --data FILE --out labels.jsonl
"""
import contextlib
import glob
import hashlib
import json
import math
import os
import random
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

import cli
from cli import InputError, read_json, write_json, write_whole
from mcts import SearchConfig, search
from model_llama import load_model, load_tokenizer
from tasks import Prompt, judge, load_all, prepare

SHARED_GIB = 2.0  # memory for hidden states that paths of a question share
ROW = {"id": str, "task": str, "level": int, "content": str, "default_correct": bool, "length": int,
       "simulations": int, "correct": list, "wrong": list, "decisions": list}  # of labels.jsonl


@dataclass
class Search:
    """A search under way. path: what it asks about now. confidence: of the right paths met so
    far, in order. known: the hidden states that its paths share (tasks.through_layers)."""
    prompt: Prompt
    steps: Generator
    path: tuple
    confidence: dict = field(default_factory=dict)
    known: dict = field(default_factory=dict)


def search_all(model, tokenizer, prompts, config, seed, batch_size=256, progress=None,
               shared_gib=SHARED_GIB, search=search):
    """Yields (prompt, SearchResult, {decisions: confidence of right paths}) as searches finish.

    At most batch_size searches are under way, fewer if their shared states need more than
    shared_gib (0: nothing is shared). They begin a few at a time, so that they also end a few at a
    time and an interruption loses little.
    """
    waiting = sorted(reversed(prompts), key=lambda p: len(p.ids))  # the longest is popped first
    batch_size = min(batch_size, how_many_fit(model, prompts, config, shared_gib))
    a_few, running = math.ceil(batch_size / (config.simulations + 1)), []
    while waiting or running:
        for _ in range(min(a_few, len(waiting), batch_size - len(running))):
            prompt = waiting.pop()
            steps = search(model.config.num_layers, config, question_rng(prompt.question.id, seed))
            running.append(Search(prompt, steps, next(steps)))
        asked, paths = [one.prompt for one in running], torch.tensor([one.path for one in running])
        known = [one.known for one in running] if shared_gib else None
        rewards, sure = judge(model, tokenizer, asked, paths, batch_size, known=known)
        if progress:
            progress(len(running))
        still = []
        for one, reward, confidence in zip(running, rewards.tolist(), sure.tolist()):
            if reward > 0:
                one.confidence[one.path] = confidence
            try:
                one.path = one.steps.send(reward)
                still.append(one)
            except StopIteration as end:
                yield one.prompt, end.value, one.confidence
        running = still


def how_many_fit(model, prompts, config, gib):
    """How many searches under way keep at most so many GiB of hidden states; no limit for 0."""
    longest = max((len(prompt.ids) + len(prompt.gold) for prompt in prompts), default=1)
    state = longest * model.config.hidden_size * model.embed_tokens.weight.element_size()  # bytes
    each = state * model.config.num_layers * (config.simulations + 1)
    return max(1, int(gib * 2 ** 30 / each)) if gib else len(prompts)


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


# ---- the file ----

def header(model, config, seed):
    """What must be the same for rows to stand in one file."""
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    return {"model": model.fingerprint(), "dtype": dtype, "search": asdict(config), "seed": seed}


def check_header(file, wanted):
    """Writes the header beside a new labels file; refuses a file made under another one."""
    side = file.with_suffix(".meta.json")
    if not file.exists() and not parts(file):
        return write_json(side, wanted)
    found = read_json(side)
    flat = lambda header: {**header, **header.get("search", {})}
    for key, here in flat(wanted).items():
        if key != "search" and (there := flat(found).get(key)) != here:
            raise InputError(f"{file}: made with {key} {there}; this run has {key} {here}. Choose "
                             "another --out, or remove the file")


def read_rows(file, num_layers, mend=False):
    """{id: row} of a labels file, paths as tuples; InputError naming the line that is no row of a
    model with so many layers. A question that was edited and searched again has its last row.
    mend: a last line that a crash left unfinished is cut off the file."""
    rows, data = {}, cli.read_file(file) if file.exists() else b""
    end = data.rfind(b"\n") + 1
    if mend and end < len(data):
        os.truncate(file, end)
    for number, line in enumerate(data[:end].splitlines(), 1):
        try:
            row = checked(cli.parse_json(line, "the line"), num_layers)
            if row["content"] == rows.get(row["id"], {}).get("content"):
                raise ValueError(f"id {row['id']!r} stands there twice")
        except (ValueError, KeyError, TypeError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else error
            raise InputError(f"{file}:{number}: not a labels row: {reason}") from error
        rows[row["id"]] = row
    return rows


def checked(row, num_layers):
    """A labels row, paths as tuples; KeyError, TypeError or ValueError if it is none."""
    for key, kind in ROW.items():
        if type(row[key]) is not kind:
            raise ValueError(f"{key} must be of type {kind.__name__}, got {row[key]!r}")
    row["correct"] = [(tuple(path), sure) for path, sure in row["correct"]]
    row["wrong"], row["decisions"] = [*map(tuple, row["wrong"])], tuple(row["decisions"])
    for path in [row["decisions"], *(path for path, _ in row["correct"]), *row["wrong"]]:
        if len(path) != num_layers or any(type(n) is not int or not 0 <= n <= 2 for n in path):
            raise ValueError(f"path {list(path)} of {len(path)} layers; the model has "
                             f"{num_layers}, each run 0, 1 or 2 times")
    for path, sure in row["correct"]:
        if type(sure) is not float or not 0 <= sure <= 1:
            raise ValueError(f"the probability of path {list(path)} is {sure!r}, not in 0..1")
    if row["correct"] and row["decisions"] not in dict(row["correct"]):
        raise ValueError(f"decisions {list(row['decisions'])} are no right path")
    if row["length"] != sum(row["decisions"]):
        raise ValueError(f"length {row['length']} of a path of {sum(row['decisions'])} layers")
    return row


def parts(file, form="{}"):
    """What several processes wrote of a labels file, one part each; ".{}.lock": their locks."""
    names = f"{glob.escape(file.stem)}.part-*{glob.escape(file.suffix)}"
    return sorted(file.parent.glob(form.format(names)))


def read_all(file, num_layers, mine):
    """{id: row} of a labels file and its parts; only the file written by this process is mended."""
    rows = {}
    for one in [file, *parts(file)]:
        rows |= read_rows(one, num_layers, mend=one == mine)
    return rows


def merge(file, num_layers, questions):
    """Puts the rows of a finished labels file and its parts in the questions' order, whatever
    process wrote them and when; rows of other questions follow."""
    rows = read_all(file, num_layers, file)
    order = {q.id: n for n, q in enumerate(questions)}
    ids = sorted(rows, key=lambda name: (order.get(name, len(order)), name))
    text = "".join(json.dumps(rows[name]) + "\n" for name in ids)
    if not file.exists() or file.read_text() != text:
        write_whole(file, lambda part: part.write_text(text))
    for part in parts(file):
        part.unlink()
    for lock in parts(file, ".{}.lock"):
        with contextlib.suppress(InputError), cli.locked(lock.with_name(lock.name[1:-5])):
            pass  # left by a killed process: to take it and lift it removes it


# ---- all questions ----

def label(model, tokenizer, questions, file, config, seed=0, batch_size=256,
          shared_gib=SHARED_GIB):
    """Rows of labels for the questions, made now or found in the file, in the questions' order.

    Under torchrun each process takes the questions whose id falls to its rank and appends to a
    part of its own; the first process merges the parts. Two runs cannot write one file.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    file, layers = Path(file), model.config.num_layers
    mine = file if world == 1 else file.with_name(f"{file.stem}.part-{rank}{file.suffix}")
    prompts, too_long = prepare(questions, tokenizer, model)
    if too_long and rank == 0:
        print(f"{len(too_long)} of {len(questions)} questions exceed the context of "
              f"{model.config.max_positions} tokens and are left out: "
              f"{', '.join(q.id for q in too_long[:5])} ...")
    with cli.locked(mine if rank else file):
        for part in parts(file) if world == 1 else ():  # one of torchrun's may be at work yet
            with cli.locked(part):
                pass
        check_header(file, header(model, config, seed))
        rows = read_all(file, layers, mine)
        missing = [p for p in prompts
                   if rows.get(p.question.id, {}).get("content") != content_hash(p)
                   and int(digest(p.question.id), 16) % world == rank]
        searches = partial(search_all, model, tokenizer, missing, config, seed, batch_size,
                           shared_gib=shared_gib)
        append_rows(mine, searches, rows, len(missing), config.simulations + 1)
        if world > 1:
            torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))
            torch.distributed.barrier()  # every part is complete, however far apart they finish
        if rank == 0:
            merge(file, layers, questions)
        if world > 1:
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
        rows = read_rows(file, layers)
    return [rows[p.question.id] for p in prompts]


def append_rows(file, searches, rows, number, paths_each):
    """Appends a flushed line per finished search; rows {id: row} so far feed the progress bar."""
    if not number:
        return
    bar = tqdm(total=number * paths_each, unit="path", desc=f"searching {number} questions")
    with cli.writing(file), open(file, "a") as stream, bar:
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


def add_search_flags(parser):
    """The flags of a search, the same in label.py and train.py."""
    parser.add_argument("--simulations", type=cli.count, default=SearchConfig().simulations,
                        help="paths tried per question after the default")
    parser.add_argument("--reuse-memory", type=cli.number(0, 2 ** 20), default=SHARED_GIB,
                        metavar="GIB", help="for hidden states that paths of a question share; 0 "
                                            "computes all anew")


def main(argv=None):
    parser = cli.Parser(description=__doc__.split("\n")[0])
    cli.add_model_flags(parser)
    cli.add_data_flags(parser, [cli.DEMO_LABEL], batch_size=256)
    add_search_flags(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/labels.jsonl"),
                        help="labels file to append to")
    args = parser.parse_args(argv)
    if args.out.is_dir():
        raise InputError(f"{args.out}: a folder; --out names the labels file")
    cli.use_device(args)
    tokenizer = load_tokenizer(args.model)
    model = load_model(args.model, args.device, cli.DTYPES.get(args.dtype))
    config = SearchConfig(simulations=args.simulations, stop_when_repaired=False)
    questions = load_all(args.data, args.skip_bad_rows)[:args.limit]
    rows = label(model, tokenizer, questions, args.out, config, args.seed, args.batch_size,
                 args.reuse_memory)
    if os.environ.get("RANK", "0") == "0":
        print(f"{args.out}: {len(rows)} questions; {summary(rows)}")


if __name__ == "__main__":
    cli.run(main)
