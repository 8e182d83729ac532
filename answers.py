"""Answers many prompts, each along its own path, and grades the answers.

1. `prepare` makes a `Prompt` of a question: token ids for one model. Its *gold* answer is the
   correct one. The model's answer ends with a stop id, or after `budget` tokens.
2. `answer` has the model write an answer along any route and grades its text.
3. `grade_paths` grades the answers along given paths without writing most of them. Prompt and gold
   answer go through the layers in one pass (`final_states`), which shows whether the model would
   have written the gold answer. Only if this leaves the grade open is the answer written.
4. A multiple-choice question can also be answered by likelihood: the option that the model finds
   most probable is its answer, as in the lm-evaluation-harness.
5. A cache saves asking again. You can read `answer` wherever cached_answer is written, and
   `grade_paths` wherever cached_grade_paths is.

    answer(model, tokenizer, prepare(questions, tokenizer, model)[0], route)
"""
import functools
import itertools
import os
from dataclasses import asdict, dataclass

import torch

from model_llama import FixedRoute, Positions, generate, pad, prefill, run_blocks
from paths import EXECUTE, SKIP, blocks
from questions.loading import Question
from questions.prompts import gold_ids, prompt_ids, without_blanks
from questions.reward import closed_by_text, extract_answer, grade, with_beginning
from questions.schemas import LETTERS
from storage.answer_cache import digest, source_hash
from storage.files import InputError
from storage.processes import shared_map

# N prompts   B prompts of a batch   T tokens of a prompt and what follows it   D hidden size
# L layers    V vocabulary

BATCH_TOKENS = 16384  # tokens per batch, padding included: bounds the memory of long prompts
LOGITS_AT_ONCE = 2 ** 26  # numbers, 256 MB: as many as 440 tokens have with a vocabulary of 152,000


# ---- a question as token ids ----

@dataclass(frozen=True)
class Prompt:
    """A question as one model's token ids. gold: the correct answer as the model may write it.
    stop_ids: any of them ends an answer. options, scored: see option_ids; () if the model writes
    its answer."""
    question: Question
    ids: tuple
    gold: tuple = ()
    stop_ids: tuple = ()
    options: tuple = ()
    scored: tuple = ()

    @property
    def sequence(self):
        """All ids that one pass reads: the prompt, and after it the gold answer or all options."""
        return self.ids + self.gold + sum(self.options, ())  # one of the two is ()

    @functools.cached_property
    def _key(self):
        return digest(asdict(self))

    def key(self):
        """16 hex digits that identify the prompt together with what is correct for it."""
        return self._key


def prepare(questions, tokenizer, model):
    """(prompts, questions that are too long): the latter do not fit into the model's context with
    their answer. InputError if none fits, or if the tokenizer is another model's."""
    limit, vocabulary = model.config.max_positions, model.config.vocab_size
    prompts, too_long = [], []
    for question in questions:
        prompt = make_prompt(question, tokenizer)
        largest = max(prompt.sequence, default=-1)
        if not prompt.ids or largest >= vocabulary:
            raise InputError(f"{tokenizer.folder}: tokenizer.json gives question {question.id} "
                             f"{len(prompt.ids)} ids up to {largest}; the model knows 0 to "
                             f"{vocabulary - 1}")
        added = max(map(len, prompt.options), default=question.budget)
        if len(prompt.ids) + added <= limit:
            prompts.append(prompt)
        else:
            too_long.append(question)
    if not prompts:
        raise InputError(f"{tokenizer.folder}: 0 of {len(questions)} questions fit into the "
                         f"model's context of {limit} tokens, so there is nothing to do")
    return prompts, too_long


def prompts_that_fit(questions, tokenizer, model, kind="test questions"):
    """(prompts, number of the questions that exceed the model's context). That number is printed,
    with the first of their ids."""
    prompts, too_long = prepare(questions, tokenizer, model)
    if too_long:
        ids = ", ".join(question.id for question in too_long[:5])
        print(f"{len(too_long)} of {len(questions)} {kind} exceed the context "
              f"({model.config.max_positions} tokens) and are left out: {ids}")
    return prompts, len(too_long)


def make_prompt(question, tokenizer):
    """The Prompt of a question for this tokenizer's model."""
    if question.metric.startswith("likelihood"):
        ids, options, scored = option_ids(question, tokenizer)
        return Prompt(question, tuple(ids), options=options, scored=scored)
    return Prompt(question, tuple(prompt_ids(question, tokenizer)),
                  tuple(gold_ids(question, tokenizer)), stop_ids(question.stop, tokenizer))


@functools.lru_cache
def stop_ids(stop, tokenizer):
    """The ids that end an answer: the tokenizer's, and those whose text begins with `stop`."""
    ids = list(tokenizer.stop_ids)
    if stop:
        for token in range(tokenizer.fast.get_vocab_size()):
            if tokenizer.decode([token]).startswith(stop):
                ids.append(token)
    return tuple(ids)


def batches(prompts, batch_size):
    """Lists of prompt numbers. The prompts of a batch have the same budget and stop (the text that
    ends their answers) and are of similar length; longer ones come first."""
    def kind(n):
        question = prompts[n].question
        return bool(prompts[n].options), question.budget, question.stop or ""

    def length(n):
        return len(prompts[n].sequence if prompts[n].options else prompts[n].ids)

    order = sorted(range(len(prompts)), key=lambda n: (kind(n), length(n)), reverse=True)
    for _, group in itertools.groupby(order, key=kind):
        group = list(group)
        while group:
            longest = length(group[0])  # all others are padded to it
            size = max(1, min(batch_size, BATCH_TOKENS // longest))
            yield group[:size]
            group = group[size:]


# ---- answers along any route ----

@dataclass
class Answers:
    """Row n belongs to prompt n. correct: (N,) reward in [0, 1], above 0 if correct. confidence:
    (N,) probability the model gave its own answer. decisions: (N, L). blocks_run: (N,) over all
    forward passes. passes: (N,) forward passes. texts: N strings."""
    correct: torch.Tensor
    confidence: torch.Tensor
    decisions: torch.Tensor
    blocks_run: torch.Tensor
    passes: torch.Tensor
    texts: list


def answer(model, tokenizer, prompts, route, batch_size=512, progress=None, shared_states=None):
    """The Answers of all prompts. route: a Route, None, or decisions (N, L), a path per prompt.
    progress: called with the number of prompts of each batch that is done. shared_states: of each
    prompt, if options are scored by likelihood along paths (final_states)."""
    N, L = len(prompts), model.config.num_layers
    result = Answers(correct=torch.zeros(N), confidence=torch.zeros(N),
                     decisions=torch.full((N, L), EXECUTE),
                     blocks_run=torch.zeros(N, dtype=torch.long),
                     passes=torch.ones(N, dtype=torch.long), texts=[""] * N)
    for numbers in batches(prompts, batch_size):
        batch = [prompts[n] for n in numbers]
        batch_route = FixedRoute(route[numbers]) if isinstance(route, torch.Tensor) else route
        if batch[0].options:
            shared = None if shared_states is None else [shared_states[n] for n in numbers]
            texts, confidence, decisions = answers_by_likelihood(model, batch, batch_route, shared)
        else:
            written = generate(model, [prompt.ids for prompt in batch], batch_route,
                               batch[0].question.budget, batch[0].stop_ids)
            texts = [tokenizer.decode(ids) for ids in written.tokens]
            confidence, decisions = written.logprobs.exp(), written.decisions
            result.passes[numbers] = written.passes
        result.confidence[numbers] = confidence
        result.decisions[numbers] = decisions
        result.blocks_run[numbers] = result.passes[numbers] * blocks(decisions)
        for n, text in zip(numbers, texts):
            result.texts[n] = text
            result.correct[n] = grade(text, prompts[n].question)
        if progress:
            progress(len(numbers))
    return result


# ---- is the answer along a path correct? ----

@torch.inference_mode()
def grade_paths(model, tokenizer, prompts, paths, batch_size=256, progress=None,
                shared_states=None):
    """(rewards (N,), confidence (N,)) of the answers along paths (N, L): the grades of answer(), in
    less time. Prompt and gold answer go through the layers together. The likeliest tokens after the
    prompt and after each gold token show what the model would write for as long as it writes the
    gold answer, and what it writes instead. Only if this does not settle the grade is the answer
    written. confidence: the probability of the tokens that settled it. shared_states: of each
    prompt (final_states)."""
    if prompts and prompts[0].options:  # --score likelihood: then all prompts have options
        result = answer(model, tokenizer, prompts, paths, batch_size, progress, shared_states)
        return result.correct, result.confidence
    rewards, confidence = torch.zeros(len(prompts)), torch.zeros(len(prompts))
    unsettled = []
    for numbers in batches(prompts, batch_size):
        batch = [prompts[n] for n in numbers]
        shared = None if shared_states is None else [shared_states[n] for n in numbers]
        sequences = [prompt.sequence for prompt in batch]
        lengths = [len(prompt.ids) for prompt in batch]
        hidden, _ = final_states(model, sequences, lengths, FixedRoute(paths[numbers]), shared)
        for n, (ids, logprobs) in zip(numbers, greedy_along_gold(model, batch, hidden)):
            beginning = answer_beginning(ids.tolist(), prompts[n])
            settled = grade_if_settled(beginning, prompts[n], tokenizer)
            if settled is None:
                unsettled.append(n)
            else:
                rewards[n] = settled
                confidence[n] = logprobs[:len(beginning)].sum().exp()
        if progress:
            progress(len(numbers))
    if unsettled:
        rest = [prompts[n] for n in unsettled]
        result = answer(model, tokenizer, rest, paths[unsettled], batch_size)
        rewards[unsettled], confidence[unsettled] = result.correct, result.confidence
    return rewards, confidence


def greedy_along_gold(model, prompts, hidden):
    """[(ids, log-probabilities)]: per prompt, the likeliest token after the prompt and after each
    gold token. hidden: (B, T, D) after the last layer, of prompts and gold answers."""
    states = [row[len(prompt.ids) - 1:len(prompt.sequence)] for prompt, row in zip(prompts, hidden)]
    ids, logprobs = [], []
    tokens_at_once = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    for tokens in torch.cat(states).split(tokens_at_once):  # (tokens, D)
        likeliest = model.head(tokens).float().log_softmax(-1).max(-1)
        ids.append(likeliest.indices)
        logprobs.append(likeliest.values)
    sizes = [len(rows) for rows in states]
    return list(zip(torch.cat(ids).split(sizes), torch.cat(logprobs).split(sizes)))


def answer_beginning(ids, prompt):
    """The beginning of a greedy answer, given its likeliest token after each of the first k gold
    tokens: gold tokens while the two agree, then the first token that differs, ends the answer, or
    follows the gold answer; at most as many as the answer may have. If the gold answer is `2 }`,
    beginnings are `2 } end`, `2 7`, or `5`."""
    for k, (token, gold) in enumerate(zip(ids, prompt.gold)):
        if token != gold or token in prompt.stop_ids:
            return ids[:k + 1]
    return ids[:prompt.question.budget]


def grade_if_settled(beginning, prompt, tokenizer):
    """The grade of every answer that begins with these ids; None if what follows may change it.

    Settled is an answer that has ended; an incorrect letter; a box that is closed; a text with a
    stop, once it cannot become a gold answer."""
    question, ended = prompt.question, beginning[-1] in prompt.stop_ids
    written = tokenizer.decode(beginning[:-1] if ended else beginning)
    complete = ended or len(beginning) == question.budget
    if complete or (question.stop and question.stop in written):
        return grade(written, question)
    text = with_beginning(written, question)
    if question.choices:
        # an incorrect letter stays one, except that "A" may be the beginning of "Answer:"; the
        # correct letter may still turn out to be the beginning of a word
        letter = extract_answer(text, question)
        return None if letter in (None, question.answer, "A") else 0.0
    if question.asks_for_box:
        # nothing counts after the brace that closes the prompt's box, unless it begins the stop
        closed = not question.stop and closed_by_text(text) is not None
        return grade(written, question) if closed else None
    if not question.stop or question.metric == "f1":  # then anything that follows counts
        return None
    # the whole text up to the stop is the answer: could it still become a gold one?
    begun = without_blanks(text).rstrip("\ufffd")  # without the first bytes of a character
    gold_answers = question.answers if question.answers else (question.answer,)
    complete_answers = [without_blanks(gold + question.stop) for gold in gold_answers]
    may_become_gold = any(whole.startswith(begun) for whole in complete_answers)
    return None if may_become_gold else 0.0


# ---- one pass through the layers; paths of one question share hidden states ----

def final_states(model, sequences, lengths, route, shared_states=None, positions=None):
    """(hidden states (B, T, D) after the last layer, decisions (B, L)) of B id lists. The route
    sees the first `lengths` tokens. positions: see prefill.

    shared_states: of each row's question, if the route is a fixed one. Paths that begin with the
    same decisions have the same hidden states up to the layer where they part. So a question's
    {decisions of its first l layers: hidden states (T, D) entering layer l} are stored. A row
    continues from the longest beginning of its path that is stored, and stores what it runs. If
    (1, 0, 2, 1) was run, (1, 0, 1, 1) continues from the states of (1, 0), which enter layer 2.
    """
    tokens, ends = pad(sequences, model.embed_tokens.weight.device)
    if shared_states is None:
        hidden, cache = prefill(model, tokens, route, lengths, positions=positions)
        return hidden, cache.decisions

    (B, T), L = tokens.shape, model.config.num_layers
    decisions = route.decisions.expand(B, L)
    paths = [tuple(path) for path in decisions.tolist()]
    starts = [longest_beginning(path, states) for path, states in zip(paths, shared_states)]
    hidden = model.embed_tokens(tokens)
    for row, start in enumerate(starts):
        if start > 0:
            hidden[row, :ends[row]] = shared_states[row][paths[row][:start]]
    # the layers before a row's start have been run for it: it skips them now
    still_to_run = torch.arange(L) >= torch.tensor(starts)[:, None]  # (B, L)
    remaining = torch.where(still_to_run, decisions, SKIP).to(tokens.device)

    def run_and_store(layer, entering, lengths):
        for row, start in enumerate(starts):
            if layer > start:
                shared_states[row][paths[row][:layer]] = entering[row, :ends[row]].clone()
        return remaining[:, layer]

    cache = model.empty_cache(lengths, T)
    if positions is None:
        positions = model.positions(cache, 0, T)
    return run_blocks(model, hidden, positions, cache, run_and_store), decisions


def longest_beginning(path, states):
    """How many of the path's first layers have been run: states of that beginning are stored."""
    return max((layer for layer in range(1, len(path)) if path[:layer] in states), default=0)


def drop_deepest(states, number):
    """Keeps the stored states of the `number` shortest beginnings, of equally long ones the newest.
    More paths to come begin with a short one, and what was dropped is computed again."""
    if len(states) > number:
        newest_first = reversed(list(states))
        for beginning in sorted(newest_first, key=len)[number:]:
            del states[beginning]


# ---- multiple choice by likelihood ----

FORM = """Question: {question}
Answer:"""


def option_ids(question, tokenizer):
    """(ids, options, scored) for scoring by likelihood: the ids that all options begin with, the
    further ids of each option, and how many of its last ids are its score.

    The text before the options is a base prompt, as in the lm-evaluation-harness, even if the
    folder has a chat template. As there, a text and its option are encoded together, and the ids
    beyond the length of the text alone are the option's, even if a token spans the two."""
    if question.continuation:  # WinoGrande: options begin the text, the same words follow each
        pairs = [(begun, begun + question.continuation) for begun in question.choices]
    else:
        form = "{question}" if question.unfinished else FORM
        text = question.prompt or form.format(question=question.question)
        space = "" if text[-1].isspace() else " "
        pairs = [(text.rstrip(), text + space + choice) for choice in question.choices]
    texts = {text for text, _ in pairs}  # mostly one
    encoded = {text: tokenizer.encode(text) for text in texts}
    contexts = [encoded[text] for text, _ in pairs]
    added = [tokenizer.encode(whole)[len(encoded[text]):] for text, whole in pairs]
    shared = len(os.path.commonprefix(contexts))  # which compares any sequences
    scored = tuple(map(len, added))
    if not shared or min(scored) < 1:
        raise InputError(f"{tokenizer.folder}: question {question.id}: its options share {shared} "
                         f"tokens and add {min(scored)} at least; --score likelihood needs 1 each")
    options = tuple(tuple(ids[shared:] + more) for ids, more in zip(contexts, added))
    return contexts[0][:shared], options, scored


def answers_by_likelihood(model, prompts, route, shared_states=None):
    """(letters, confidence (B,), decisions (B, L)) of the options that a model finds likeliest."""
    scores, decisions = option_scores(model, prompts, route, shared_states)
    likeliest = [likeliest_option(p.question, pairs) for p, pairs in zip(prompts, scores)]
    letters = ["" if option is None else LETTERS[option] for option, _ in likeliest]
    confidence = torch.tensor([probability for _, probability in likeliest])
    return letters, confidence, decisions


@torch.inference_mode()
def option_scores(model, prompts, route, shared_states=None):
    """(scores of each prompt's options, see score_options, decisions (B, L)). The route sees the
    text before the options. shared_states: of each prompt (final_states)."""
    sequences = [prompt.sequence for prompt in prompts]
    lengths = [len(prompt.ids) for prompt in prompts]
    hidden, decisions = final_states(model, sequences, lengths, route, shared_states,
                                     option_positions(model, prompts))
    # a call per prompt, since logits are as wide as the vocabulary
    scores = [score_options(model, states, prompt) for prompt, states in zip(prompts, hidden)]
    return scores, decisions


def option_positions(model, prompts):
    """The Positions of B sequences, each a prompt and then its options, one after the other. An
    option's tokens see the prompt and their own option; their positions continue the prompt's.
    Prompt a b with the options c d and e: members 0 0 1 1 2, positions 0 1 2 3 2; e sees a b e."""
    members, positions = [], []  # of each token: 0 in the prompt, k in option k; its position
    for prompt in prompts:
        start = len(prompt.ids)
        member, position = [0] * start, list(range(start))
        for k, option in enumerate(prompt.options, 1):
            member += [k] * len(option)
            position += range(start, start + len(option))
        members.append(member)
        positions.append(position)
    device = model.embed_tokens.weight.device
    member, _ = pad(members, device)  # (B, T)
    position, _ = pad(positions, device)  # (B, T)
    seen = member[:, None]  # (B, 1, T)
    visible = (seen == 0) | (seen == member[..., None])  # (B, T, T)
    cos, sin = model.empty_cache([1], int(position.max()) + 1).angles
    cos, sin = cos[position][:, None], sin[position][:, None]  # (B, 1, T, E)
    return Positions(0, cos, sin, visible.tril()[:, None])


def score_options(model, hidden, prompt):
    """[(log-probability, whether its tokens are the greedy ones)] of a prompt's options, from
    hidden states (T, D) after the last layer."""
    start, scores = len(prompt.ids), []
    for option, scored in zip(prompt.options, prompt.scored):
        # a token's probability is in the state before it: for the first one, the prompt's last
        before = [len(prompt.ids) - 1, *range(start, start + len(option) - 1)]
        logprobs = model.head(hidden[before[-scored:]]).float().log_softmax(-1)  # (scored, V)
        wanted = torch.tensor(option[-scored:], device=hidden.device)
        total = logprobs.gather(1, wanted[:, None]).sum().item()
        scores.append((total, logprobs.argmax(-1).equal(wanted)))
        start += len(option)
    return scores


def option_values(question, scores):
    """(options,) by which a question's options are compared: log-probabilities, or those per byte
    of the option's text."""
    values = torch.tensor([logprob for logprob, _ in scores])
    if question.metric == "likelihood-per-byte":
        texts = question.choices
        if question.continuation:
            texts = [question.continuation] * len(question.choices)
        values = values / torch.tensor([len(text.encode()) for text in texts])
    return values


def likeliest_option(question, scores):
    """(number of the likeliest option, its probability: a softmax over the options' values). An
    option whose value is no finite number is never the likeliest; (None, 0) if no value is."""
    values = option_values(question, scores).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    if values.isinf().all():
        return None, 0.0
    return int(values.argmax()), values.softmax(0).max().item()


# ---- answers that a run has had already ----

# The files that decide what a model answers and what is correct. An edit of one of them discards
# all cached answers; an edit elsewhere (tables, documents, the search) discards none.
ANSWER_SOURCES = ("paths.py", "model_llama.py", "drllm.py", "answers.py", "questions/*.py",
                  "checkpoint/*.py", "storage/router_file.py")


def what_answers_depend_on(model, tokenizer=None, prompts=()):
    """What, besides the route, decides the answers to these prompts, as plain values."""
    weight = model.embed_tokens.weight
    # the fingerprint is of the weights alone; rotary angles, for example, are in the config
    depends = [source_hash(*ANSWER_SOURCES), torch.__version__, model.fingerprint(),
               repr(model.config), str(weight.dtype), weight.device.type]
    if tokenizer is not None:
        depends.append(tokenizer_key(tokenizer))
    return [*depends, *(prompt.key() for prompt in prompts)]


@functools.lru_cache
def tokenizer_key(tokenizer):
    """Identifies a tokenizer: another one may decode the same ids to another text."""
    return digest(tokenizer.fast.to_str())


def route_key(route):
    """Plain values that identify a route, which may also be None or decisions (N, L). None for a
    route without a key."""
    if route is None:
        return "default path"
    if isinstance(route, torch.Tensor):
        return FixedRoute(route).key()
    return route.key() if hasattr(route, "key") else None


def get_answers(cache, about, make):
    """The Answers that the cache has under the plain values `about`; if it has none, those that
    make() returns, which are then stored."""
    def plain_answers():
        fields = vars(make())
        return {name: value if name == "texts" else value.tolist()
                for name, value in fields.items()}
    fields = cache.get(about, plain_answers)
    return Answers(**{name: value if name == "texts" else torch.tensor(value)
                      for name, value in fields.items()})


def cached_answer(cache, model, tokenizer, prompts, route, batch_size=512, progress=None,
                  each=shared_map):
    """Like answer(), but runs the model only on batches that are not in the cache. A route without
    a key is always run. each: map, or shared_map, which divides the batches among the processes of
    torchrun and is map in a single one. The batches do not depend on the number of processes, so
    every answer is the same to the bit."""
    paths = route if isinstance(route, torch.Tensor) else None
    key = None if paths is not None else route_key(route)

    def answer_batch(numbers):
        batch = [prompts[n] for n in numbers]
        batch_route = route if paths is None else paths[numbers]
        batch_key = key if paths is None else route_key(batch_route)
        make = functools.partial(answer, model, tokenizer, batch, batch_route, batch_size, progress)
        if batch_key is None:
            return make()
        about = ["answer", batch_key, *what_answers_depend_on(model, tokenizer, batch)]
        if progress and about in cache:
            progress(len(batch))
        return get_answers(cache, about, make)

    groups = list(batches(prompts, batch_size))
    return in_order(list(each(answer_batch, groups)), sum(groups, []))


def in_order(parts, numbers):
    """The Answers of all prompts from those of parts, whose rows belong to prompts `numbers`."""
    place = torch.tensor(numbers).argsort()
    texts = sum((part.texts for part in parts), [])
    fields = {name: torch.cat([getattr(part, name) for part in parts])[place]
              for name in vars(parts[0]) if name != "texts"}
    return Answers(**fields, texts=[texts[n] for n in place.tolist()])


def cached_grade_paths(cache, model, tokenizer, prompts, paths, batch_size=256, progress=None,
                       shared_states=None):
    """grade_paths(), asked only if the cache lacks it."""
    def plain_grades():
        grades = grade_paths(model, tokenizer, prompts, paths, batch_size, progress, shared_states)
        return [values.tolist() for values in grades]
    about = ["grades", paths.tolist(), *what_answers_depend_on(model, tokenizer, prompts)]
    if progress and about in cache:
        progress(len(prompts))
    correct, confidence = cache.get(about, plain_grades)
    return torch.tensor(correct), torch.tensor(confidence)
