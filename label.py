"""Supervision: searches, for every question, for paths that skip and repeat layers.

Hundreds of searches (paper Algorithm 1) advance in lockstep: a step gathers one path per question
and grades all answers in a few batched calls. When a search ends, its *record* is written at once,
as a line of labels.jsonl, so the same command continues where it stopped; a file of another model
or search is refused. A question's seed comes from its id, so its tree does not depend on others.

    python label.py --model demo/model --out labels.jsonl --limit 100
    torchrun --nproc-per-node 2 label.py --model DIR --data FILE --out labels.jsonl
"""
import hashlib
import json
import math
import random
from collections import deque
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

import cli
from answers import drop_deepest, grade_paths, prompts_that_fit
from base_check import check_base_model, make_arithmetic
from cli import progress_bar
from mcts import SearchConfig, search
from model_llama import load
from paths import blocks
from questions.loading import load_all
from storage.answer_cache import AnswerCache, digest, source_hash
from storage.files import InputError, writing
from storage.label_file import opened
from storage.processes import is_first, process
from storage.run_folder import write_kinds

SHARE_OF_MEMORY = 0.5  # of the device's free memory, for the hidden states that paths share
PATHS_KEPT = 12  # whose states a search holds at least, of 51 paths: see search_bytes


# ---- searches in lockstep ----

class Search:
    """A question's search under way.

    path: the one it tries now. confidence: {path: the model's confidence} of the correct paths met
    so far, in order. shared_states: the hidden states that its paths share (see
    answers.final_states). memory: bytes that they may take.
    """

    def __init__(self, prompt, model, config, seed, memory=0):
        L = model.config.num_layers
        self.prompt = prompt
        self.confidence, self.shared_states = {}, {}
        # with room for 13 paths, the states of 12 are kept while the 13th is run
        paths_held = memory // path_bytes(model, prompt)
        self.most_states = L * max(0, paths_held - 1)
        self.steps = search(L, config, question_rng(prompt.question.id, seed))
        self.path = next(self.steps)

    def advance(self, reward, confidence):
        """Takes the reward and the confidence of the answer along `path`. The SearchResult if that
        ends this search; else None, and `path` is the next one to try."""
        drop_deepest(self.shared_states, self.most_states)
        if reward > 0:
            self.confidence[self.path] = confidence
        try:
            self.path = self.steps.send(reward)
        except StopIteration as end:
            return end.value


def search_all(model, tokenizer, prompts, config, seed, batch_size=256, progress=None, memory=None):
    """Yields (prompt, SearchResult, {decisions: confidence of correct paths}) as searches finish.

    At most batch_size searches are under way, fewer if the states that they share would need more
    than `memory` bytes, by default half of what is free; InputError if they hold none.
    """
    if not prompts:
        return
    if memory is None:
        memory = shared_memory(model)
    at_once = searches_that_fit(model, prompts, config, batch_size, memory)
    # 256 / 51: six searches begin with every step, and later six end with every step, so that an
    # interruption loses little
    most_new = math.ceil(at_once / (config.simulations + 1))
    # the longest first: a lack of memory shows at once
    waiting = deque(sorted(prompts, key=lambda prompt: len(prompt.sequence), reverse=True))
    running = []
    while waiting or running:
        room = at_once - len(running)
        for _ in range(min(most_new, room, len(waiting))):
            running.append(Search(waiting.popleft(), model, config, seed, memory // at_once))
        rewards, confidence = ask_one_path_each(model, tokenizer, running, batch_size)
        if progress:
            progress(len(running))
        unfinished = []
        for current, reward, sure in zip(running, rewards, confidence):
            result = current.advance(reward, sure)
            if result is None:
                unfinished.append(current)
            else:
                yield current.prompt, result, current.confidence
        running = unfinished


def ask_one_path_each(model, tokenizer, running, batch_size):
    """(rewards, confidence), two lists: of the answer along the path that each search tries now."""
    prompts = [current.prompt for current in running]
    paths = torch.tensor([current.path for current in running])  # (len(running), L)
    shared_states = [current.shared_states for current in running]
    rewards, confidence = grade_paths(model, tokenizer, prompts, paths, batch_size,
                                      shared_states=shared_states)
    return rewards.tolist(), confidence.tolist()


def question_rng(name, seed):
    """Seeded by (seed, question id), so that batching and processes do not change the tree."""
    digits = hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()
    return random.Random(int(digits[:16], 16))


def search_record(prompt, result, confidence):
    """A line of labels.jsonl. decisions: the paper's label, or the default path if no path was
    correct. correct: every correct path in the order it was met, with the probability of its
    answer. wrong: the other paths tried."""
    question, tried = prompt.question, list(result.rewards)
    decisions = tried[0] if result.paper_label is None else result.paper_label
    return {"id": question.id, "task": question.task, "level": question.level,
            "content": prompt.key(), "default_correct": bool(result.default_reward),
            "decisions": decisions, "length": blocks(decisions),
            "correct": [(path, round(sure, 6)) for path, sure in confidence.items()],
            "wrong": [path for path in tried if not result.rewards[path]],
            "simulations": len(tried) - 1}


# ---- all questions ----

def header(model, config, seed):
    """What must be the same for records to be in one file."""
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    # the fingerprint is of the weights alone; rotary angles, for example, are in the config
    return {"model": model.fingerprint(), "config": digest(repr(model.config)), "dtype": dtype,
            "search": asdict(config), "seed": seed, "source": source_hash("mcts.py", "label.py")}


def label(model, tokenizer, prompts, file, config, seed=0, batch_size=256, memory=None,
          before_search=None):
    """The search records of the prompts, made now or read from the file, in their order. memory:
    see search_all. before_search: called if there is anything to search.

    Under torchrun each process searches the questions whose id falls to its rank.
    """
    file, num_layers = Path(file), model.config.num_layers
    rank, world = process()
    source = "--memory"
    if memory is None:
        memory, source = shared_memory(model), "half of what is free; see --memory"
    searches_that_fit(model, prompts, config, batch_size, memory)  # refused before a file is made
    ids = [prompt.question.id for prompt in prompts]
    # settings of the search that a file does not name had these values when it was made
    defaults = {"search": asdict(SearchConfig())}
    with opened(file, header(model, config, seed), num_layers, ids, defaults) as (my_file, records):
        missing = []
        for prompt in prompts:
            stored = records.get(prompt.question.id, {"content": None})
            is_mine = int(digest(prompt.question.id), 16) % world == rank
            if is_mine and stored["content"] != prompt.key():  # never searched, or edited since
                missing.append(prompt)
        if missing:
            if before_search and is_first():
                before_search()
            at_once = searches_that_fit(model, missing, config, batch_size, memory)
            print(f"{at_once} searches at once, whose paths share hidden states in "
                  f"{memory / 1e9:.3g} GB ({source})")
        searches = partial(search_all, model, tokenizer, missing, config, seed, batch_size,
                           memory=memory)
        append_records(my_file, searches, records, len(missing), config.simulations + 1)
    return [records[name] for name in ids]


def append_records(file, searches, records, number, paths_each):
    """Appends the record of every finished search as a line, and puts it into records {id: record}.
    searches: of `number` questions, with up to paths_each paths each."""
    if not number:
        return
    bar = progress_bar(total=number * paths_each, unit="path", desc=f"searching {number} questions")
    with writing(file), open(file, "a", encoding="utf-8") as stream, bar:
        for prompt, result, confidence in searches(progress=bar.update):
            record = search_record(prompt, result, confidence)
            records[record["id"]] = record
            stream.write(json.dumps(record) + "\n")
            stream.flush()
            # the bar counted on the most paths; a search that ended early tried fewer
            bar.total -= paths_each - len(result.rewards)
            bar.set_postfix_str(summary(records.values()), refresh=False)


def summary(records):
    """Table 2 of the paper: how often, and by how much, searches improved on default paths."""
    correct = [record for record in records if record["default_correct"]]
    incorrect = [record for record in records if not record["default_correct"]]
    saved = sum(len(record["decisions"]) - record["length"] for record in correct)  # layers
    mean_saved = saved / max(1, len(correct))
    corrected = sum(bool(record["correct"]) for record in incorrect)
    return f"saved {mean_saved:.2f} layers, corrected {corrected}/{len(incorrect)}"


# ---- how many searches the memory holds ----

def path_bytes(model, prompt):
    """Bytes of the hidden states along one path: of the prompt's tokens, entering every layer."""
    weight = model.embed_tokens.weight
    state = len(prompt.sequence) * weight.shape[1] * weight.element_size()
    return state * model.config.num_layers


def search_bytes(model, prompt, config):
    """Bytes that a search needs for the states that its paths share: of those that are kept, and of
    the path that was run last.

    Llama-3.2-3B in bfloat16, 200 tokens: 28 layers * 200 * 3072 * 2 bytes = 34.4 MB a path, 447 MB
    a search. Next to 6.4 GB of weights, half of what is free lets 82 searches be under way in
    80 GB, and 10 in 16 GB.

    Keeping the states of 12 paths instead of all 51 costs 2 to 3% more blocks."""
    return path_bytes(model, prompt) * (min(PATHS_KEPT, config.simulations) + 1)


def shared_memory(model):
    """Bytes for the states that searches share, if --memory does not say."""
    return int(SHARE_OF_MEMORY * cli.free_memory(model.embed_tokens.weight.device))


def searches_that_fit(model, prompts, config, batch_size, memory):
    """How many searches of the longest prompt may be under way. InputError if not one of them can
    store a path."""
    longest = max(prompts, key=lambda prompt: len(prompt.sequence))
    needed = path_bytes(model, longest)
    if memory < needed:
        raise InputError(f"--memory: {memory / 1e9:.3g} GB fit no search; the longest question, "
                         f"{len(longest.sequence)} tokens, needs {needed / 1e9:.3g} at least and "
                         f"{search_bytes(model, longest, config) / 1e9:.3g} to be fast")
    return max(1, min(batch_size, len(prompts), memory // search_bytes(model, longest, config)))


# ---- the command ----

def main(argv=None):
    parser = cli.Parser(__doc__)
    cli.add_model_flags(parser)
    cli.add_data_flags(parser, [cli.DEMO_LABEL], batch_size=256)
    cli.add_own_model_flags(parser)
    parser.add_argument("--simulations", type=cli.count, default=SearchConfig().simulations,
                        help="paths tried per question after the default")
    cli.add_memory_flag(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/labels.jsonl"), help="labels file")
    args = parser.parse_args(argv)
    if args.out.is_dir():
        raise InputError(f"{args.out}: a folder; --out names the labels file")
    tokenizer, model = load(args)
    config = SearchConfig(simulations=args.simulations, stop_when_repaired=False)
    if cli.asks_arithmetic(args):
        questions, _, kinds = make_arithmetic(args, tokenizer, model, args.out.parent)
        if is_first():
            write_kinds(args.out.parent, model.fingerprint(), kinds)
    else:
        questions = load_all(args.data, args.skip_bad_rows, args.score, args.begin)
    prompts, _ = prompts_that_fit(questions[:args.limit], tokenizer, model, "questions")
    check = partial(check_base_model, model, tokenizer, prompts, args, AnswerCache())
    records = label(model, tokenizer, prompts, args.out, config, args.seed, args.batch_size,
                    args.memory, check)
    print(f"{args.out}: {len(records)} questions; {summary(records)}")


if __name__ == "__main__":
    cli.run(main)
