"""A model answers many prompts, each along its own path; is the answer correct?

A written answer is generated greedily and graded. Whether it is correct is mostly known from one
pass: prompt and gold answer go through the layers together. Multiple choice can also be scored by
likelihood, as the lm-evaluation-harness does.

    answer(model, tokenizer, prepare(questions, tokenizer, model)[0], route)
"""
import functools
import os
from dataclasses import asdict, dataclass

import torch

from model_llama import Span, fixed, generate, pad, prefill, run_blocks
from questions.loading import Question
from questions.prompts import gold_ids, prompt_ids, without_blanks
from questions.reward import closed_by_text, extract_answer, grade
from questions.schemas import LETTERS
from storage.answer_cache import digest, source_hash
from storage.files import InputError

FORM = """Question: {question}
Answer:"""

# B prompts   T tokens of a prompt and its options   D hidden size   V vocabulary


# ---- one pass through the layers; paths of a question share what they can ----

def through_layers(model, sequences, lengths, route, known=None, span=None):
    """(hidden (B, T, D), decisions (B, L)) of B id lists; the route sees the first `lengths`
    tokens. span: their positions and mask, where they are not those of a plain text. known: per row
    {decisions of the first l layers: hidden (T, D) entering layer l}. A row goes on from the
    longest beginning of its path that is known, and adds what it computes; the route is fixed."""
    tokens, ends = pad(sequences, model.embed_tokens.weight.device)
    if known is None:
        hidden, cache = prefill(model, tokens, route, lengths, span=span)
        return hidden, cache.decisions
    (B, T), L = tokens.shape, model.config.num_layers
    hidden, cache = model.embed_tokens(tokens), model.empty_cache(lengths, T)
    paths = route.decisions.expand(B, L)
    decisions = [tuple(path) for path in paths.tolist()]
    starts = [max((l for l in range(1, L) if path[:l] in found), default=0)
              for path, found in zip(decisions, known)]
    for row, start in enumerate(starts):
        if start:
            hidden[row, :ends[row]] = known[row][decisions[row][:start]]
    remaining = (paths * (torch.arange(L) >= torch.tensor(starts)[:, None])).to(tokens.device)

    def remember(layer, entering, lengths):
        for row, start in enumerate(starts):
            if layer > start:
                known[row][decisions[row][:layer]] = entering[row, :ends[row]].clone()
        return remaining[:, layer]
    return run_blocks(model, hidden, span or model.span(cache, 0, T), cache, remember), paths


# ---- multiple choice by likelihood ----

def option_ids(question, tokenizer):
    """(ids, options, scored) for scoring by likelihood: what all options begin with, how each goes
    on, and how many last tokens of each are its score.

    The text before the options is a base prompt, as in the lm-evaluation-harness, whatever chat
    template the folder has. As there, a text and its option are encoded together, and what is
    longer than the text encoded alone is the option, also where a token spans the two."""
    if question.continuation:
        pairs = [(begun, begun + question.continuation) for begun in question.choices]
    else:
        form = "{question}" if question.unfinished else FORM
        text = question.prompt or form.format(question=question.question)
        space = "" if text[-1].isspace() else " "
        pairs = [(text.rstrip(), text + space + choice) for choice in question.choices]
    contexts = [tokenizer.encode(text) for text, _ in pairs]
    added = [tokenizer.encode(whole)[len(ids):] for ids, (_, whole) in zip(contexts, pairs)]
    shared = len(os.path.commonprefix(contexts))  # which compares any sequences
    scored = tuple(map(len, added))
    if not shared or min(scored) < 1:
        raise InputError(f"{tokenizer.folder}: question {question.id}: its options share {shared} "
                         f"tokens and add {min(scored)} at least; --score likelihood needs 1 each")
    options = tuple(tuple(ids[shared:] + more) for ids, more in zip(contexts, added))
    return contexts[0][:shared], options, scored


def span_of(model, prompts):
    """The Span of B sequences, each a prompt and its options one after the other: the tokens of an
    option see the prompt and themselves, and their positions go on from the prompt's."""
    device = model.embed_tokens.weight.device
    member, places = [], []  # of each token: 0 for the prompt, k for option k; its position
    for prompt in prompts:
        start = len(prompt.ids)
        member.append([0] * start)
        places.append([*range(start)])
        for k, option in enumerate(prompt.options, 1):
            member[-1] += [k] * len(option)
            places[-1] += range(start, start + len(option))
    (member, _), (places, _) = pad(member, device), pad(places, device)
    visible = (member[:, None] == 0) | (member[:, None] == member[..., None])  # (B, T, T)
    cos, sin = model.empty_cache([1], int(places.max()) + 1).angles
    return Span(0, cos[places][:, None], sin[places][:, None], visible.tril()[:, None])


def scores_of(model, hidden, prompt):
    """[(log-probability, whether its tokens are the likeliest)] of every option of a prompt, from
    the hidden states (T, D) that come out of the last layer. Each prompt has a call of its own,
    since logits are as wide as the vocabulary."""
    start, scores = len(prompt.ids), []
    for option, scored in zip(prompt.options, prompt.scored):
        before = [len(prompt.ids) - 1, *range(start, start + len(option) - 1)][-scored:]
        logprobs = model.head(hidden[before]).float().log_softmax(-1)  # (scored, V)
        wanted = torch.tensor(option[-scored:], device=hidden.device)
        scores.append((logprobs.gather(1, wanted[:, None]).sum().item(),
                       logprobs.argmax(-1).equal(wanted)))
        start += len(option)
    return scores


def pick(question, scores):
    """(number of the likeliest option, softmax of what was compared at that option)."""
    worth = torch.tensor([logprob for logprob, _ in scores])
    if question.metric == "likelihood-per-byte":
        texts = [question.continuation or choice for choice in question.choices]
        worth = worth / torch.tensor([len(text.encode()) for text in texts])
    return int(worth.argmax()), worth.softmax(0).max().item()


def likeliest(model, prompts, route, known=None):
    """(letters, confidence (B,), decisions (B, L)) of the options that a model finds likeliest."""
    scores, decisions = option_scores(model, prompts, route, known)
    options, confidence = zip(*(pick(p.question, one) for p, one in zip(prompts, scores)))
    return [LETTERS[option] for option in options], torch.tensor(confidence), decisions


@torch.inference_mode()
def option_scores(model, prompts, route, known=None):
    """(what scores_of gives of each, decisions (B, L)) of prompts with options. The route sees the
    text before the options. known: see sharing.through_layers."""
    hidden, decisions = through_layers(
        model, [p.sequence for p in prompts], [len(p.ids) for p in prompts], route, known,
        span_of(model, prompts))
    scores = [scores_of(model, states, p) for p, states in zip(prompts, hidden)]
    return scores, decisions


# ---- answers: one model, many prompts, any route ----

BATCH_TOKENS = 16384  # tokens in one call, whatever the number of rows


@dataclass(frozen=True)
class Prompt:
    """A question as one model's token ids. gold: the right answer as the model may write it.
    stop_ids end an answer. options, scored: see option_ids; () if it is written."""
    question: Question
    ids: tuple
    gold: tuple = ()
    stop_ids: tuple = ()
    options: tuple = ()
    scored: tuple = ()

    @property
    def sequence(self):
        """All ids that one pass reads to judge an answer."""
        return self.ids + sum(self.options, self.gold)

    def key(self):
        """What tells this prompt, and what is correct for it, from all others: 16 hex digits."""
        return digest(asdict(self))


@dataclass
class Answers:
    """Row n belongs to prompt n. right: (N,) reward in [0, 1]. confidence: (N,) probability
    the model gave its own answer. decisions: (N, L). layers: (N,) blocks run over all forward
    passes. passes: (N,) forward passes. texts: N strings."""
    right: torch.Tensor
    confidence: torch.Tensor
    decisions: torch.Tensor
    layers: torch.Tensor
    passes: torch.Tensor
    texts: list


def prepare(questions, tokenizer, model):
    """(prompts, too long): questions whose prompt and answer exceed the context are set apart.
    InputError if that is all of them, or if the tokenizer is another model's."""
    limit, size, prompts, too_long = model.config.max_positions, model.config.vocab_size, [], []
    for question in questions:
        prompt = make_prompt(question, tokenizer)
        largest = max(prompt.sequence, default=-1)
        if not prompt.ids or largest >= size:
            raise InputError(f"{tokenizer.folder}: tokenizer.json gives question {question.id} "
                             f"{len(prompt.ids)} ids up to {largest}; the model knows 0 to "
                             f"{size - 1}")
        added = max(map(len, prompt.options), default=question.budget)
        if len(prompt.ids) + added <= limit:
            prompts.append(prompt)
        else:
            too_long.append(question)
    if not prompts:
        raise InputError(f"{tokenizer.folder}: 0 of {len(questions)} questions fit into the "
                         f"model's context of {limit} tokens, so there is nothing to do")
    return prompts, too_long


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
    size = tokenizer.fast.get_vocab_size() if stop else 0
    return tuple(tokenizer.stop_ids) + tuple(i for i in range(size)
                                             if tokenizer.decode([i]).startswith(stop))


def batches(prompts, batch_size):
    """Lists of prompt indices of the same answer budget and stop, of like length, longest first."""
    kind = lambda i: (bool(prompts[i].options), prompts[i].question.budget,
                      prompts[i].question.stop or "")
    length = [len(p.sequence) if p.options else len(p.ids) for p in prompts]
    current = []
    for i in sorted(range(len(prompts)), reverse=True, key=lambda i: (kind(i), length[i])):
        if current:
            full = (len(current) == batch_size
                    or (len(current) + 1) * length[current[0]] > BATCH_TOKENS)
            if full or kind(i) != kind(current[0]):
                yield current
                current = []
        current.append(i)
    if current:
        yield current


def answer(model, tokenizer, prompts, route, batch_size=512, progress=None, known=None):
    """The Answers of every prompt. route: a Route, None, or decisions (N, L), a path per prompt.
    progress: called with the number of prompts answered by each batch. known: of options scored by
    likelihood, see answers.py."""
    N, L = len(prompts), model.config.num_layers
    result = Answers(torch.zeros(N), torch.zeros(N), torch.ones(N, L, dtype=torch.long),
                     torch.zeros(N, dtype=torch.long), torch.ones(N, dtype=torch.long), [""] * N)
    for rows in batches(prompts, batch_size):
        here = fixed(route[rows]) if isinstance(route, torch.Tensor) else route
        some = [prompts[i] for i in rows]
        if some[0].options:
            said, result.confidence[rows], decisions = likeliest(
                model, some, here, known and [known[i] for i in rows])
            result.decisions[rows], result.layers[rows] = decisions, decisions.sum(1)
        else:
            made = generate(model, [p.ids for p in some], here, some[0].question.budget,
                            some[0].stop_ids)
            result.decisions[rows], result.layers[rows] = made.decisions, made.layers_executed
            result.passes[rows], result.confidence[rows] = made.passes, made.logprobs.exp()
            said = [tokenizer.decode(ids) for ids in made.tokens]
        for i, text in zip(rows, said):
            result.texts[i] = text
            result.right[i] = grade(text, prompts[i].question)
        if progress:
            progress(len(rows))
    return result


# ---- is the answer right along a path? ----

@torch.inference_mode()
def judge(model, tokenizer, prompts, paths, batch_size=256, progress=None, known=None):
    """(right (N,), confidence (N,)) of the answers along paths (N, L): answer()'s grades, sooner.
    Prompt and gold answer go through the layers together, so one pass shows what the model says
    for as long as that is the gold answer, and what it says instead. Only where this does not
    settle the grade is the answer generated. confidence: the probability of what settled it.
    known: see answers.py."""
    if prompts and prompts[0].options:
        made = answer(model, tokenizer, prompts, paths, batch_size, progress, known)
        return made.right, made.confidence
    right, confidence, unsettled = torch.zeros(len(prompts)), torch.zeros(len(prompts)), []
    for rows in batches(prompts, batch_size):
        some = [prompts[i] for i in rows]
        hidden, _ = through_layers(model, [p.sequence for p in some], [len(p.ids) for p in some],
                                   fixed(paths[rows]), known and [known[i] for i in rows])
        asked = [states[len(p.ids) - 1:len(p.sequence)] for p, states in zip(some, hidden)]
        best, ids = model.head(torch.cat(asked)).float().log_softmax(-1).max(-1)
        sizes = [len(states) for states in asked]
        for i, logprobs, here in zip(rows, best.split(sizes), ids.split(sizes)):
            said = said_first(here.tolist(), prompts[i])
            settled = settled_grade(said, prompts[i], tokenizer)
            if settled is None:
                unsettled.append(i)
            else:
                right[i], confidence[i] = settled, logprobs[:len(said)].sum().exp()
        if progress:
            progress(len(rows))
    if unsettled:
        made = answer(model, tokenizer, [prompts[i] for i in unsettled], paths[unsettled],
                      batch_size)
        right[unsettled], confidence[unsettled] = made.right, made.confidence
    return right, confidence


def said_first(ids, prompt):
    """How an answer begins that says ids[k] after the first k gold tokens: the gold tokens while it
    agrees with them, and the first that differs or follows; no more than the answer may have."""
    for k, (mine, gold) in enumerate(zip(ids, prompt.gold)):
        if mine != gold or mine in prompt.stop_ids:
            return ids[:k + 1]
    return ids[:prompt.question.budget]


def settled_grade(said, prompt, tokenizer):
    """The grade of an answer that begins with these ids; None while what follows may change it."""
    question, ended = prompt.question, said[-1] in prompt.stop_ids
    text = tokenizer.decode(said[:-1] if ended else said)
    if ended or len(said) == question.budget or question.stop and question.stop in text:
        return grade(text, question)
    if question.choices:
        letter = extract_answer(text, question)
        return 0.0 if letter not in (None, question.answer, "A") else None  # "A" begins "Answer:"
    if question.asks_for_box:
        closed = not question.stop and closed_by_text(text) is not None
        return grade(text, question) if closed else None
    begun = without_blanks(text).rstrip("\ufffd")  # half of a character is none
    may_be_right = not question.stop or question.metric == "f1" or any(
        without_blanks(gold + question.stop).startswith(begun)
        for gold in question.answers or (question.answer,))
    return None if may_be_right else 0.0


# ---- answers that a run has had already ----

# The files that decide what a model answers and what is correct. An edit of one of them discards
# all cached answers; an edit elsewhere (tables, documents, the search) discards none.
ANSWER_SOURCES = ("paths.py", "model_llama.py", "drllm.py", "answers.py", "questions/*.py",
                  "checkpoint/*.py", "storage/router_file.py")


def what_answers_depend_on(model):
    """What, beside prompts and route, decides what is answered, as plain values."""
    weight = model.embed_tokens.weight
    # the fingerprint is of the weights alone; rotary angles, for example, are in the config
    return [source_hash(*ANSWER_SOURCES), torch.__version__, model.fingerprint(),
            repr(model.config), str(weight.dtype), weight.device.type]


@functools.lru_cache
def tokenizer_key(tokenizer):
    """What tells a tokenizer from others: equal ids may be decoded to different texts."""
    return digest(tokenizer.fast.to_str())


def route_key(route):
    """What tells a route, None or decisions (N, L) from all others, as plain values; None for a
    route without a key."""
    if route is None:
        return "default path"
    if isinstance(route, torch.Tensor):
        return fixed(route).key()
    return route.key() if hasattr(route, "key") else None


def cached_answers(cache, about, make):
    """The Answers that make() returns, or returned before about these plain values."""
    def plain_answers():
        fields = vars(make())
        return {name: value if name == "texts" else value.tolist()
                for name, value in fields.items()}
    fields = cache.get(about, plain_answers)
    return Answers(**{name: value if name == "texts" else torch.tensor(value)
                      for name, value in fields.items()})


def cached_answer(cache, model, tokenizer, prompts, route, batch_size=512, progress=None):
    """answer(), asked only if the cache lacks it. A route without a key is always asked."""
    make = functools.partial(answer, model, tokenizer, prompts, route, batch_size, progress)
    key = route_key(route)
    if key is None:
        return make()
    about = ["answer", key, *what_answers_depend_on(model), tokenizer_key(tokenizer),
             *(prompt.key() for prompt in prompts)]
    if progress and about in cache:
        progress(len(prompts))
    return cached_answers(cache, about, make)


def cached_judge(cache, model, tokenizer, prompts, paths, batch_size=256, progress=None,
                 known=None):
    """judge(), asked only if the cache lacks it."""
    def plain_grades():
        grades = judge(model, tokenizer, prompts, paths, batch_size, progress, known)
        return [values.tolist() for values in grades]
    about = ["judge", paths.tolist(), *what_answers_depend_on(model), tokenizer_key(tokenizer),
             *(prompt.key() for prompt in prompts)]
    if progress and about in cache:
        progress(len(prompts))
    right, confidence = cache.get(about, plain_grades)
    return torch.tensor(right), torch.tensor(confidence)
