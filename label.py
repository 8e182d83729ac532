"""Supervision: searches, for every question, which layers to skip and repeat.

Hundreds of searches advance in lockstep (paper Algorithm 1 each): a step gathers one path per
question and answers them all in a few batched calls. A finished question is one line of
labels.jsonl, flushed at once; the same command again goes on where it stopped, and a file made
with another model or search is refused. A question's seed comes from its id, so its tree does
not depend on what is searched beside it.

    python label.py --model demo/model --out labels.jsonl --limit 100
    torchrun --nproc-per-node 2 label.py --model DIR --data FILE --out labels.jsonl
"""
import argparse
import glob
import hashlib
import json
import math
import os
import random
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import torch
from tqdm import tqdm

import cli
from answers import answer, prepare
from cli import InputError, read_json, write_json, write_whole
from mcts import SearchConfig, search
from model_llama import load_model, load_tokenizer
from reuse import REUSE_BYTES, Prefixes
from tasks import load_all

DEMO = Path(__file__).resolve().parent / "demo"
DEMO_MODEL, DEMO_LABEL = DEMO / "model", DEMO / "questions" / "label.jsonl"


def search_all(model, tokenizer, prompts, config, seed, batch_size=256, progress=None,
               prefixes=None, search=search):
    """Yields (prompt, SearchResult, {decisions: confidence of right paths}) as searches finish.

    At most batch_size searches are under way. They are admitted a few at a time, so that they
    also finish a few at a time and an interruption loses little.
    """
    prefixes = Prefixes(REUSE_BYTES) if prefixes is None else prefixes
    waiting = sorted(reversed(prompts), key=lambda p: len(p.ids))  # the longest is popped first
    a_few = math.ceil(batch_size / (config.simulations + 1))
    running = []  # [prompt, generator, path it asks about, confidences]
    while waiting or running:
        for _ in range(min(a_few, len(waiting), batch_size - len(running))):
            prompt = waiting.pop()
            steps = search(model.config.num_layers, config, question_rng(prompt.question.id, seed))
            running.append([prompt, steps, next(steps), {}])
        paths = torch.tensor([path for _, _, path, _ in running])
        asked = [prompt for prompt, _, _, _ in running]
        found = answer(model, tokenizer, asked, paths, batch_size, prefixes=prefixes)
        still = []
        for entry, reward, sure in zip(running, found.right.tolist(), found.confidence.tolist()):
            prompt, steps, path, confidence = entry
            if reward > 0:
                confidence[path] = sure
            try:
                entry[2] = steps.send(reward)
                still.append(entry)
            except StopIteration as end:
                yield prompt, end.value, confidence
        if progress:
            progress(len(running))
        running = still


def question_rng(name, seed):
    """The random source of a question's search: the same whatever runs beside it."""
    return random.Random(question_hash(name, seed))


def question_hash(name, salt):
    """A number that depends on a question's id and the salt only, the same on every machine."""
    return int(hashlib.sha256(f"{salt}/{name}".encode()).hexdigest()[:16], 16)


def content_hash(prompt):
    """Names what a question asks and what is right, so that an edited one is searched again."""
    question = prompt.question
    said = json.dumps([prompt.ids, question.answer, question.choices, question.budget])
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def row_of(prompt, result, confidence):
    """One line of labels.jsonl. decisions is the paper's label; correct holds every right path in
    the order it was met, each with the probability the model gave its answer; wrong the others."""
    right = list(confidence)
    best = None
    if right:
        best = min(right, key=sum) if result.default_reward else right[0]
    question = prompt.question
    return {"id": question.id, "task": question.task, "level": question.level,
            "content": content_hash(prompt), "default_correct": bool(result.default_reward),
            "decisions": best or [1] * len(next(iter(result.rewards))),
            "length": sum(best) if best else len(next(iter(result.rewards))),
            "correct": [[list(path), round(sure, 6)] for path, sure in confidence.items()],
            "wrong": [list(path) for path, reward in result.rewards.items() if not reward],
            "simulations": len(result.rewards) - 1}


# ---- the file ----

def header(model, config, seed):
    """What must be the same for rows to stand in one file."""
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    return {"model": model.fingerprint(), "dtype": dtype, "search": asdict(config), "seed": seed}


def whole_lines(file, mend=False):
    """The complete lines of a file; mend cuts a last line that a crash left unfinished."""
    data = Path(file).read_bytes() if Path(file).exists() else b""
    end = data.rfind(b"\n") + 1
    if mend and end < len(data):
        with open(file, "r+b") as stream:
            stream.truncate(end)
    return data[:end].splitlines()


def read_rows(file, mend=False):
    """{id: row} of a labels file, right paths as tuples."""
    rows = {}
    for number, line in enumerate(whole_lines(file, mend), 1):
        try:
            row = json.loads(line)
            correct = [(tuple(path), sure) for path, sure in row["correct"]]
            rows[row["id"]] = row | {"correct": correct}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}:{number}: not a labels row ({error!r})") from error
    return rows


def parts(file):
    """What several processes wrote of a labels file, one part each."""
    pattern = f"{glob.escape(file.stem)}.part-*{glob.escape(file.suffix)}"
    return sorted(file.parent.glob(pattern))


def read_all(file, mine):
    """{id: row} of a labels file and its parts; only the file written by this process is mended."""
    rows = {}
    for one in [file, *parts(file)]:
        rows |= read_rows(one, mend=one == mine)
    return rows


def merge(file, questions):
    """Puts the rows of a finished labels file and its parts in the questions' order, whatever
    process wrote them and when; rows of other questions follow."""
    rows = read_all(file, file)
    order = {q.id: n for n, q in enumerate(questions)}
    ids = sorted(rows, key=lambda name: (order.get(name, len(order)), name))
    text = "".join(json.dumps(rows[name]) + "\n" for name in ids)
    if not file.exists() or file.read_text() != text:
        write_whole(file, lambda part: part.write_text(text))
    for part in parts(file):
        part.unlink()


def check_header(file, wanted):
    """Writes the header beside a new labels file; refuses a file made under another one."""
    side = Path(file).with_suffix(".meta.json")
    if not Path(file).exists() and not parts(Path(file)):
        return write_json(side, wanted)
    found = read_json(side)
    for key, there, here in differences(found, wanted):
        raise InputError(f"{file}: made with {key} {there}; this run has {key} {here}. Choose "
                         "another --out, or remove the file")


def differences(found, wanted):
    """(key, found, wanted) wherever two nested objects differ."""
    for key, value in wanted.items():
        if isinstance(value, dict) and isinstance(found.get(key), dict):
            yield from differences(found[key], value)
        elif found.get(key) != value:
            yield key, found.get(key), value


def label(model, tokenizer, questions, file, config, seed=0, batch_size=256,
          reuse_bytes=REUSE_BYTES):
    """Rows of labels for the questions, made now or found in the file, in the questions' order.

    Under torchrun each process takes the questions whose id falls to its rank and appends to a
    part of its own; the first process merges the parts.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    file = Path(file)
    mine = file if world == 1 else file.with_name(f"{file.stem}.part-{rank}{file.suffix}")
    file.parent.mkdir(parents=True, exist_ok=True)
    check_header(file, header(model, config, seed))
    rows = read_all(file, mine)
    prompts, too_long = prepare(questions, tokenizer, model)
    if too_long and rank == 0:
        print(f"{len(too_long)} questions exceed the context of {model.config.max_positions} "
              f"tokens and are left out: {', '.join(q.id for q in too_long[:5])} ...")
    missing = [p for p in prompts
               if rows.get(p.question.id, {}).get("content") != content_hash(p)
               and question_hash(p.question.id, "rank") % world == rank]
    if missing:
        search_missing(model, tokenizer, missing, mine, config, seed, batch_size, rows,
                       Prefixes(reuse_bytes))
    if world > 1:
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))
        torch.distributed.barrier()  # every part is complete, however far apart they finish
        if rank == 0:
            merge(file, questions)
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    else:
        merge(file, questions)
    rows = read_rows(file)
    return [rows[p.question.id] for p in prompts]


def search_missing(model, tokenizer, missing, file, config, seed, batch_size, rows, prefixes):
    """Searches the missing prompts and appends a flushed line each; rows feeds the progress bar."""
    per_question = config.simulations + 1
    bar = tqdm(total=len(missing) * per_question, unit="path", smoothing=0.05,
               desc=f"searching {len(missing)} questions")
    with open(file, "a") as stream, bar:
        for found in search_all(model, tokenizer, missing, config, seed, batch_size, bar.update,
                                prefixes):
            row = row_of(*found)
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            rows[row["id"]] = row
            bar.total -= per_question - (row["simulations"] + 1)
            bar.set_postfix_str(summary(rows.values()), refresh=False)


def summary(rows):
    """Table 2 in a line: how often, and by how much, a search improved on the default path."""
    right = [row for row in rows if row["default_correct"]]
    wrong = [row for row in rows if not row["default_correct"]]
    saved = sum(len(row["decisions"]) - row["length"] for row in right) / max(1, len(right))
    repaired = sum(bool(row["correct"]) for row in wrong)
    return f"saved {saved:.2f} layers, repaired {repaired}/{len(wrong)}"


def add_reuse_flag(parser):
    parser.add_argument("--reuse-memory", type=float, default=REUSE_BYTES / 2 ** 30, metavar="GIB",
                        help="for states that paths of a question share; 0 computes all anew "
                             "(default: %(default)s)")


def main(argv=None):
    defaults = SearchConfig()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_model_flags(parser, DEMO_MODEL)
    parser.add_argument("--data", nargs="+", default=[DEMO_LABEL], metavar="FILE",
                        help="question files, FILE or TASK=FILE (default: the demo's)")
    parser.add_argument("--out", type=Path, default=Path("labels.jsonl"),
                        help="labels file to append to")
    parser.add_argument("--simulations", type=int, default=defaults.simulations,
                        help="paths tried per question after the default (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="take only the first N questions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip-bad-rows", action="store_true",
                        help="leave out question rows that cannot be used, instead of stopping")
    parser.add_argument("--batch-size", type=int, default=256, help="searches under way at once")
    add_reuse_flag(parser)
    args = parser.parse_args(argv)
    if args.batch_size < 1 or args.simulations < 1:
        parser.error(f"--batch-size and --simulations must be at least 1, got {args.batch_size} "
                     f"and {args.simulations}")
    if args.device == "cuda" and "LOCAL_RANK" in os.environ:
        args.device = f"cuda:{os.environ['LOCAL_RANK']}"
    tokenizer = load_tokenizer(args.model)
    model = load_model(args.model, args.device, cli.DTYPES.get(args.dtype))
    config = SearchConfig(simulations=args.simulations, stop_when_repaired=False)
    questions = load_all(args.data, args.skip_bad_rows)[:args.limit]
    rows = label(model, tokenizer, questions, args.out, config, args.seed, args.batch_size,
                 int(args.reuse_memory * 2 ** 30))
    if os.environ.get("RANK", "0") == "0":
        print(f"{args.out}: {len(rows)} questions; {summary(rows)}")


if __name__ == "__main__":
    cli.run(main)
