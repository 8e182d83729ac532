"""Supervision: searches, for every question, which layers to skip and repeat.

Hundreds of searches advance in lockstep (paper Algorithm 1 each): a step gathers one path per
question and answers them all in a few batched calls. A finished question is a line of labels.jsonl,
flushed at once, so the same command continues where it stopped; a file of another model or search
is refused. A question's seed comes from its id, so its tree does not depend on others.

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
from mcts import SearchConfig, search
from model_llama import load_model, load_tokenizer
from paths import DECISIONS
from questions.arithmetic import (ASKED_PER_KIND, BETWEEN, KINDS, arithmetic_questions,
                                  held_out_kinds, kinds_between, sample_of_every_kind,
                                  shares_of_kinds)
from storage.answer_cache import AnswerCache, digest
from storage.files import InputError, writing
from storage.label_file import opened, read_rows  # noqa: F401 - for importers
from storage.processes import is_first, process
from storage.run_folder import read_kinds, write_kinds
from cli import progress_bar
from questions.loading import load_all
from questions.prompts import without_blanks
from questions.reward import extract_answer, with_beginning
from answers import (answer, drop_deepest, grade_paths, prepare, prompts_that_fit, tokenizer_key,
                     what_answers_depend_on)

SHARE_OF_MEMORY = 0.5  # of the device's free memory, for the hidden states that paths share
PATHS_KEPT = 12  # whose states a search holds at least, of 51 paths: see search_bytes

CHECKED = 32  # questions on which the form of answers, and whether paths matter, is checked first
ASKED = 400  # training questions that are asked first, at most: 95% intervals of 5 points
AT_ZERO = ("Does it answer in the form asked for (a letter, \\boxed{})? `python -m tools.explain` "
           "shows one answer")


# ---- without question files: arithmetic that suits the model ----

def make_arithmetic(args, tokenizer, model, folder=None, any_seed=False):
    """(training questions, test questions, kinds as storage.run_folder.read_kinds has them) of what
    the base model answers sometimes. folder: of a run, whose kinds are taken if it recorded them,
    of this seed or of any; else the model is asked."""
    if args.begin or args.score != cli.SCORES[0]:
        raise InputError("--begin and --score are for questions of --data FILE; without it, "
                         "arithmetic is made, which has prompts of its own and no options")
    kinds = read_kinds(folder, model.fingerprint(), KINDS) if folder else None
    if not kinds or not (any_seed or kinds["seed"] == args.seed):
        kinds = {"seed": args.seed, "shares": ask_every_kind(args, tokenizer, model)}
    names = list(kinds["shares"])
    if is_first():
        held_out = ", ".join(held_out_kinds(names)) or "nothing, since there are few kinds"
        print("no --data, so arithmetic is made for this model, of kinds that it answers "
              f"{SOMETIMES} of ({ASKED_PER_KIND} problems each): {as_text(kinds['shares'])}. "
              f"Held out of training: {held_out}")
    return *arithmetic_questions(names, args.problems, kinds["seed"]), kinds


def ask_every_kind(args, tokenizer, model):
    """{kind: share of correct answers} of the kinds that the base model answers sometimes.
    InputError if there is none, or if the tokenizer cannot write digits."""
    otherwise = "--data FILE names other questions"
    digits = "0123456789"
    written = tokenizer.decode(tokenizer.encode(digits, add_special_tokens=False))
    if without_blanks(written) != digits:
        raise InputError(f"{args.model}: its tokenizer writes {digits} as {written!r}, so it "
                         f"cannot be asked arithmetic; {otherwise}")
    prompts, _ = prepare(sample_of_every_kind(args.seed), tokenizer, model)
    default = torch.ones(len(prompts), model.config.num_layers, dtype=torch.long)
    with progress_bar(total=len(prompts), desc="asking every kind of arithmetic") as bar:
        correct, _ = grade_paths(model, tokenizer, prompts, default, args.batch_size, bar.update)
    shares = shares_of_kinds([prompt.question for prompt in prompts], correct.tolist())
    taken = kinds_between(shares)
    if not taken:
        raise InputError(f"{args.model}: answers {SOMETIMES} of no kind of arithmetic "
                         f"({as_text(shares)}); {otherwise}")
    return taken


SOMETIMES = " to ".join(f"{share:.0%}" for share in BETWEEN)


def as_text(shares):
    """as_text({"add2": 0.333}) is "add2 33%"."""
    return ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())


# ---- the base model, before a search ----

def margin(share, number):
    """Half the width of a 95% interval of a share that was measured on so many questions."""
    return 1.96 * math.sqrt(share * (1 - share) / number)


def plain_model(model, tokenizer, prompts, args, refuse=False, cache=None):
    """Prints how often the base model is correct on the first questions, beside chance. refuse:
    InputError if chance explains multiple choice. cache: an AnswerCache, which is asked first; the
    function that is returned stores the answers there, once the run is refused no more."""
    prompts, cache = prompts[:ASKED], cache or AnswerCache()
    about = ["base model", *what_answers_depend_on(model), tokenizer_key(tokenizer),
             *(prompt.key() for prompt in prompts)]
    if about in cache:
        correct = torch.tensor(cache.get(about, None))
    else:
        check_routes_matter(model, tokenizer, prompts[:CHECKED])
        check_form(model, tokenizer, prompts[:CHECKED])
        default = torch.ones(len(prompts), model.config.num_layers, dtype=torch.long)
        correct, _ = grade_paths(model, tokenizer, prompts, default, args.batch_size)
    num_options = torch.tensor([len(prompt.question.choices) for prompt in prompts])
    for group in (num_options > 0, num_options == 0):  # multiple choice, and open questions
        if not group.any():
            continue
        sentence, is_luck = plain_score(correct[group], num_options[group], args.simulations + 1)
        if is_luck:
            likelihood = "--score likelihood, " if args.score == "letter" else ""
            sentence += (f". What a search finds is luck then. Use {likelihood}questions with "
                         "examples in their prompt, or a model that can do it")
        if is_luck and refuse:
            raise InputError(f"{args.model}: {sentence}; --force continues all the same")
        print(sentence)
    return partial(cache.get, about, correct.tolist)


def check_routes_matter(model, tokenizer, prompts):
    """InputError if a path that skips, executes and repeats layers in turns gives every answer the
    probability that the default path gives it: then no search can find anything."""
    default = torch.ones(len(prompts), model.config.num_layers, dtype=torch.long)
    other = (torch.arange(model.config.num_layers) % len(DECISIONS)).expand_as(default)
    _, confidence = grade_paths(model, tokenizer, prompts, default)
    _, along_other = grade_paths(model, tokenizer, prompts, other)
    if torch.equal(confidence, along_other):
        raise InputError(f"{len(prompts)} answers have the same probability along the default path "
                         "and along one that skips and repeats layers: paths change nothing here")


def check_form(model, tokenizer, prompts):
    """Prints a hint if most answers of the base model through its chat template have no form that
    counts."""
    written = [prompt for prompt in prompts
               if prompt.question.prompt is None and not prompt.options]
    if not written or not tokenizer.has_template:
        return
    texts = answer(model, tokenizer, written, None).texts
    texts = [with_beginning(text, prompt.question) for text, prompt in zip(texts, written)]
    formless = sum(extract_answer(text, prompt.question) is None
                   for text, prompt in zip(texts, written))
    if formless > len(written) / 2:
        print(f"{formless} of {len(written)} answers of the base model have no letter or no box; "
              "--begin 'Answer: ' or --begin '\\boxed{' begins every answer with it")


def plain_score(correct, num_options, paths):
    """(a sentence on the base model's answers, whether chance explains them). correct (N,):
    rewards; num_options (N,): of each question, 0 for an open one; paths: tried per question."""
    share, number = correct.mean().item(), len(correct)
    if not num_options[0]:
        sentence = f"the base model answers {100 * share:.1f}% of {number} open questions"
        return (f"{sentence}. {AT_ZERO}" if share == 0 else sentence), False
    chance, half_interval = chance_of(num_options)
    sentence = (f"the base model answers {100 * share:.1f}% of {number} multiple-choice "
                f"questions, chance {100 * chance:.1f}% ± {100 * half_interval:.1f}; of {paths} "
                f"paths per question luck alone makes {paths * chance:.0f} correct")
    return sentence, share <= chance + half_interval


def chance_of(num_options):
    """(share that guessing answers correctly, half of its 95% interval) of questions with so many
    options (N,) each."""
    chance = (1 / num_options).mean().item()
    return chance, margin(chance, len(num_options))


# ---- searches in lockstep ----

class Search:
    """A question's search under way.

    path: what it asks about now. confidence: {path: the model's confidence} of the correct paths
    met so far, in order. shared_states: the hidden states that its paths share (answers.py).
    memory: bytes that they may take.
    """

    def __init__(self, prompt, num_layers, config, seed, search=search, memory=0):
        self.prompt, self.confidence, self.shared_states = prompt, {}, {}
        self.memory = memory
        self.steps = search(num_layers, config, question_rng(prompt.question.id, seed))
        self.path = next(self.steps)

    def advance(self, reward):
        """The SearchResult, if the reward of its path ends this search; else None, and `path` is
        the next one to ask about."""
        try:
            self.path = self.steps.send(reward)
        except StopIteration as end:
            return end.value


def search_all(model, tokenizer, prompts, config, seed, batch_size=256, progress=None, share=True,
               search=search, memory=None):
    """Yields (prompt, SearchResult, {decisions: confidence of correct paths}) as searches finish.

    At most batch_size searches are under way, fewer if the states that they share need more than
    `memory` bytes, by default half of what is free. share=False computes every path from its first
    layer on.
    """
    num_layers = model.config.num_layers
    by_length = sorted(prompts, key=lambda prompt: len(prompt.sequence), reverse=True)
    waiting, running = deque(by_length), []  # the longest first: a lack of memory shows at once
    if memory is None:
        memory = shared_memory(model)
    # searches begin a few at a time, so that they also end so, and an interruption loses little
    most_new = math.ceil(batch_size / (config.simulations + 1))
    while waiting or running:
        for _ in range(min(most_new, len(waiting), batch_size - len(running))):
            # an equal part of the memory, if that is more than it needs: then nothing is dropped
            needed = max(memory // batch_size, search_bytes(model, waiting[0], config))
            taken = sum(state.memory for state in running)
            if share and running and taken + needed > memory:
                break
            part = min(needed, memory)
            running.append(Search(waiting.popleft(), num_layers, config, seed, search, part))
        # one path of every search under way, (len(running), L)
        paths = torch.tensor([state.path for state in running])
        shared_states = [state.shared_states for state in running] if share else None
        rewards, confidence = grade_paths(
            model, tokenizer, [state.prompt for state in running], paths, batch_size,
            shared_states=shared_states)
        if progress:
            progress(len(running))
        unfinished = []
        for state, reward, sure in zip(running, rewards.tolist(), confidence.tolist()):
            paths_held = state.memory // path_bytes(model, state.prompt)  # the next one included
            drop_deepest(state.shared_states, num_layers * max(0, paths_held - 1))
            if reward > 0:
                state.confidence[state.path] = sure
            result = state.advance(reward)
            if result is None:
                unfinished.append(state)
            else:
                yield state.prompt, result, state.confidence
        running = unfinished


def path_bytes(model, prompt):
    """Bytes of the hidden states along one path: of the prompt's tokens, entering every layer."""
    weight = model.embed_tokens.weight
    state = len(prompt.sequence) * weight.shape[1] * weight.element_size()
    return state * model.config.num_layers


def search_bytes(model, prompt, config):
    """Bytes that a search needs for the states that its paths share: of those that are kept, and of
    the path that was run last.

    Llama-3.2-3B in bfloat16, 200 tokens: 28 layers * 200 * 3072 * 2 bytes = 34.4 MB a path, 447 MB
    a search. Beside 6.4 GB of weights, half of what is free lets 82 searches be under way in 80 GB,
    and 10 in 16 GB.

    Beginnings in common are stored once, so the states of 51 paths have the size of 29 paths (demo)
    or 37 (SmolLM2-135M). With the shortest beginnings alone, of the size of 12 paths, 2% (demo) and
    3% more blocks are run. Which paths were correct says little: on SmolLM2-135M, 363 of 580 paths
    went on from an incorrect one, 179 from the default path, and 38 from another correct one."""
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


def question_rng(name, seed):
    """Seeded by (seed, question id), so that batching and processes do not change the tree."""
    return random.Random(int(hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()[:16], 16))


def content_hash(prompt):
    """Names what a question asks and what is correct, so that an edited one is searched again."""
    return prompt.key()


def row_of(prompt, result, confidence):
    """One line of labels.jsonl. decisions: the paper's label, or the default path if no path was
    correct. correct: every correct path in the order it was met, with the probability of its
    answer. wrong: the other paths tried."""
    question, tried = prompt.question, list(result.rewards)
    decisions = tried[0] if result.paper_label is None else result.paper_label
    return {"id": question.id, "task": question.task, "level": question.level,
            "content": content_hash(prompt), "default_correct": bool(result.default_reward),
            "decisions": decisions, "length": sum(decisions),
            "correct": [(path, round(sure, 6)) for path, sure in confidence.items()],
            "wrong": [path for path in tried if not result.rewards[path]],
            "simulations": len(tried) - 1}


# ---- all questions ----

def header(model, config, seed):
    """What must be the same for rows to be in one file."""
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    # the fingerprint is of the weights alone; rotary angles, for example, are in the config
    return {"model": model.fingerprint(), "config": digest(repr(model.config)), "dtype": dtype,
            "search": asdict(config), "seed": seed}


def label(model, tokenizer, prompts, file, config, seed=0, batch_size=256, memory=None,
          before_search=None):
    """Rows of labels of the prepared prompts, made now or found in the file, in their order.
    memory: bytes for hidden states that paths share, see search_all. before_search: called if
    there is anything to search.

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
    with opened(file, header(model, config, seed), num_layers, ids, defaults) as (mine, rows):
        missing = []
        for prompt in prompts:
            stored = rows.get(prompt.question.id, {"content": None})
            is_mine = int(digest(prompt.question.id), 16) % world == rank
            if is_mine and stored["content"] != content_hash(prompt):
                missing.append(prompt)
        if missing:
            if before_search and is_first():
                before_search()
            at_once = searches_that_fit(model, missing, config, batch_size, memory)
            print(f"{at_once} searches at once, whose paths share hidden states in "
                  f"{memory / 1e9:.3g} GB ({source})")
        searches = partial(search_all, model, tokenizer, missing, config, seed, batch_size,
                           memory=memory)
        append_rows(mine, searches, rows, len(missing), config.simulations + 1)
    return [rows[name] for name in ids]


def append_rows(file, searches, rows, number, paths_each):
    """Appends a flushed line per finished search, and puts it into rows {id: row}. searches: of
    `number` questions, with up to paths_each paths each."""
    if not number:
        return
    bar = progress_bar(total=number * paths_each, unit="path", desc=f"searching {number} questions")
    with writing(file), open(file, "a", encoding="utf-8") as stream, bar:
        for prompt, result, confidence in searches(progress=bar.update):
            row = row_of(prompt, result, confidence)
            rows[row["id"]] = row
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            # the bar counted on the most paths; a search that ended early asked fewer
            paths_asked = len(result.rewards)
            bar.total -= paths_each - paths_asked
            bar.set_postfix_str(summary(rows.values()), refresh=False)


def summary(rows):
    """Table 2 in a line: how often, and by how much, a search improved on the default path."""
    correct = [row for row in rows if row["default_correct"]]
    wrong = [row for row in rows if not row["default_correct"]]
    saved = sum(len(row["decisions"]) - row["length"] for row in correct) / max(1, len(correct))
    corrected = sum(bool(row["correct"]) for row in wrong)
    return f"saved {saved:.2f} layers, corrected {corrected}/{len(wrong)}"


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
    cli.use_device(args)
    tokenizer = load_tokenizer(args.model)
    model = load_model(args.model, args.device, cli.DTYPES.get(args.dtype))
    config = SearchConfig(simulations=args.simulations, stop_when_repaired=False)
    if cli.asks_arithmetic(args):
        questions, _, kinds = make_arithmetic(args, tokenizer, model, args.out.parent)
        if is_first():
            write_kinds(args.out.parent, model.fingerprint(), kinds)
    else:
        questions = load_all(args.data, args.skip_bad_rows, args.score, args.begin)
    prompts, _ = prompts_that_fit(questions[:args.limit], tokenizer, model, "questions")
    rows = label(model, tokenizer, prompts, args.out, config, args.seed, args.batch_size,
                 args.memory, partial(plain_model, model, tokenizer, prompts, args))
    print(f"{args.out}: {len(rows)} questions; {summary(rows)}")


if __name__ == "__main__":
    cli.run(main)
