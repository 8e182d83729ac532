"""Supervision: searches, for every question, which layers to skip and repeat.

Hundreds of searches advance in lockstep (paper Algorithm 1 each): a step gathers one path per
question and answers them all in a few batched calls. A finished question is one line of
labels.jsonl, flushed at once; the same command again goes on where it stopped, and a file made
with another model or search is refused. A question's seed comes from its id, so its tree does
not depend on what is searched beside it.

    python label.py --model demo/model --out labels.jsonl --limit 100
"""
import argparse
import hashlib
import json
import os
import random
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

import cli
from answers import answer, prepare
from cli import InputError, read_json, write_json
from mcts import SearchConfig, search
from model_llama import load_model, load_tokenizer
from tasks import load_all

DEMO = Path(__file__).resolve().parent / "demo"
DEMO_MODEL, DEMO_LABEL = DEMO / "model", DEMO / "questions" / "label.jsonl"


def search_all(model, tokenizer, prompts, config, seed, batch_size=512, progress=None):
    """Yields (prompt, SearchResult, {decisions: confidence of right paths}) as searches finish.

    batch_size searches are under way at any time; a finished one makes room for the next.
    """
    waiting = sorted(prompts, key=lambda p: -len(p.ids))[::-1]
    running = []  # [prompt, generator, path it asks about, confidences]
    while waiting or running:
        while waiting and len(running) < batch_size:
            prompt = waiting.pop()
            steps = search(model.config.num_layers, config, question_rng(prompt.question.id, seed))
            running.append([prompt, steps, next(steps), {}])
        paths = torch.tensor([path for _, _, path, _ in running])
        found = answer(model, tokenizer, [entry[0] for entry in running], paths, batch_size)
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
    return random.Random(int(hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()[:16], 16))


def row_of(prompt, result, confidence):
    """One line of labels.jsonl. decisions is the paper's label; correct holds every right path in
    the order it was met, each with the probability the model gave its answer."""
    right = list(confidence)
    best = None
    if right:
        best = min(right, key=sum) if result.default_reward else right[0]
    question = prompt.question
    return {"id": question.id, "task": question.task, "level": question.level,
            "default_correct": bool(result.default_reward),
            "decisions": best or [1] * len(next(iter(result.rewards))),
            "length": sum(best) if best else len(next(iter(result.rewards))),
            "correct": [[list(path), round(sure, 6)] for path, sure in confidence.items()],
            "simulations": len(result.rewards) - 1}


# ---- the file ----

def header(model, config, seed):
    """What must be the same for rows to stand in one file."""
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    return {"model": model.fingerprint(), "dtype": dtype, "search": asdict(config), "seed": seed}


def read_rows(file):
    """Rows of a labels file; a last line cut short by a crash is dropped from the file."""
    file = Path(file)
    data = file.read_bytes() if file.exists() else b""
    whole = data[:data.rfind(b"\n") + 1]
    if whole != data:
        with open(file, "r+b") as stream:
            stream.truncate(len(whole))
    rows = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
            rows.append(row | {"correct": [(tuple(path), sure) for path, sure in row["correct"]]})
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}:{number}: not a labels row ({error!r})") from error
    return rows


def check_header(file, wanted):
    """Writes the header beside a new labels file; refuses a file made under another one."""
    side = Path(file).with_suffix(".meta.json")
    if not Path(file).exists():
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


def label(model, tokenizer, questions, file, config, seed=0, batch_size=512):
    """Rows of labels for the questions, made now or found in the file, in the questions' order."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    check_header(file, header(model, config, seed))
    rows = {row["id"]: row for row in read_rows(file)}
    prompts, too_long = prepare(questions, tokenizer, model)
    if too_long:
        print(f"{len(too_long)} questions exceed the context of {model.config.max_positions} "
              f"tokens and are left out: {', '.join(q.id for q in too_long[:5])} ...")
    missing = [prompt for prompt in prompts if prompt.question.id not in rows]
    if missing:
        per_question = config.simulations + 1
        bar = tqdm(total=len(missing) * per_question, unit="path", smoothing=0.05,
                   desc=f"searching {len(missing)} questions")
        with open(file, "a") as stream:
            for found in search_all(model, tokenizer, missing, config, seed, batch_size, bar.update):
                row = row_of(*found)
                stream.write(json.dumps(row) + "\n")
                stream.flush()
                rows[row["id"]] = row | {"correct": [(tuple(p), s) for p, s in row["correct"]]}
                bar.total -= per_question - (row["simulations"] + 1)
                bar.set_postfix_str(summary(rows.values()), refresh=False)
        bar.close()
    return [rows[p.question.id] for p in prompts]


def summary(rows):
    """Table 2 in a line: how often, and by how much, a search improved on the default path."""
    right = [row for row in rows if row["default_correct"]]
    wrong = [row for row in rows if not row["default_correct"]]
    saved = sum(len(row["decisions"]) - row["length"] for row in right) / max(1, len(right))
    repaired = sum(bool(row["correct"]) for row in wrong)
    return f"saved {saved:.2f} layers, repaired {repaired}/{len(wrong)}"


def main(argv=None):
    defaults = SearchConfig()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_model_flags(parser, DEMO_MODEL)
    parser.add_argument("--data", nargs="+", default=[DEMO_LABEL], metavar="FILE",
                        help="question files, FILE or TASK=FILE (default: the demo's)")
    parser.add_argument("--out", type=Path, default=Path("labels.jsonl"), help="labels file to append to")
    parser.add_argument("--simulations", type=int, default=defaults.simulations,
                        help="paths tried per question after the default (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="take only the first N questions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=512, help="searches under way at once")
    args = parser.parse_args(argv)
    tokenizer, model = load_tokenizer(args.model), load_model(args.model, args.device, cli.DTYPES.get(args.dtype))
    config = SearchConfig(simulations=args.simulations, stop_when_repaired=False)
    rows = label(model, tokenizer, load_all(args.data)[:args.limit], args.out, config, args.seed,
                 args.batch_size)
    print(f"{args.out}: {len(rows)} questions; {summary(rows)}")


if __name__ == "__main__":
    cli.run(main)
