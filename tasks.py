"""Questions in, reward out: prompts, answers along a route, and their grades.

parts/questions.py says what a question is, and reads files of them. Prompts are the paper's
(Appendix A): through the chat template if the folder has one, else the base prompt with the answer
already begun. Multiple choice is answered by a letter, or scored by the likelihood of its options
as the lm-evaluation-harness does; anything else is answered inside \\boxed{}. Model output is text
to compare, never to run.

    grade("so \\\\boxed{2/4}", Question("1", "halves", 0, "What is 1/2?", "1/2"))    # 1.0
"""
import functools
import re
from dataclasses import dataclass

import torch

from grading import answers_equal, extract_boxed
from model_llama import fixed, generate
from parts import likelihood
from parts.files import InputError
from parts.questions import OPENED, Question, load_all, load_questions  # noqa: F401 - for importers
from parts.schemas import LETTERS, f1
from parts.sharing import through_layers

CHAT_LETTER = """Question: {question}
{choices}
Answer with a single letter ({letters}) and no explanation. Your answer should start with \
"Answer: " and be followed by the letter of the answer you choose. Do not include any other text \
in your response."""
CHAT_BOXED = """Question: {question}
The final answer MUST BE put in \\boxed{{}} and no explanation."""
BASE_LETTER = """Question: {question}

{choices}

Answer: The correct answer is"""
BASE_BOXED = """Question: What is $2 + 3$?
Answer: \\boxed{{5}}

Question: What is $10 \\div 2$?
Answer: \\boxed{{5}}

Question: {question}
Answer: \\boxed{{"""


# ---- prompts ----

def prompt_ids(question, tokenizer):
    """The token ids a model is given for a question that it answers in writing."""
    if question.prompt is not None:
        return tokenizer.encode(question.prompt)
    if tokenizer.has_template:
        content = _fill(question, CHAT_LETTER, CHAT_BOXED, "{}. {}")
        return tokenizer.chat([{"role": "user", "content": content}])
    return tokenizer.encode(_fill(question, BASE_LETTER, BASE_BOXED, "({}) {}"))


def _fill(question, letter_form, boxed_form, option_form):
    if not question.choices:
        return boxed_form.format(question=question.question)
    letters = LETTERS[:len(question.choices)]
    choices = "\n".join(option_form.format(*pair) for pair in zip(letters, question.choices))
    listed = ", ".join(letters[:-1]) + f" or {letters[-1]}"
    return letter_form.format(question=question.question, choices=choices, letters=listed)


def gold_ids(question, tokenizer):
    """The right answer's token ids as a model would most likely go on, cut to its budget: a guess,
    which is compared with what the model says and never taken for it."""
    is_chat = question.prompt is None and tokenizer.has_template
    space = " " if question.prompt and not question.prompt[-1].isspace() else ""
    if question.choices:
        forms = (question.answer if is_chat else f" {question.answer}",)
    elif question.stop:
        forms = (space + question.answer + question.stop,)
    elif is_chat:
        forms = (OPENED + question.answer + "}",)
    elif question.prompt is None or question.prompt.rstrip().endswith(OPENED):
        forms = (question.answer + "}", question.answer + " }")  # some tokenizers split at spaces
    else:
        forms = (question.answer,)
    for text in forms:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if _squeezed(tokenizer.decode(ids)) == _squeezed(text):
            break
    return ids[:question.budget]


def _squeezed(text):
    return "".join(text.split())


# ---- reward ----

_LETTER = re.compile(rf"\s*(?:answer:?|the correct answer is:?|\s)*(?:\(([{LETTERS}])\)|"
                     rf"([{LETTERS}])(?=[.):]|\s*$|\s*\n))", re.IGNORECASE)
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_WORDS = re.compile(r"\w(?: \w)+")  # single letters or digits, one after the other


def extract_answer(text, question):
    """What a model's answer text says: a letter, or the expression in its box; else None. A box
    that the prompt opened is the answer; else the last box of the text. A verbatim prompt that
    asks for no box takes the whole text, too, and only that where a `stop` ends it."""
    if question.choices:
        found = _LETTER.match(text)
        return (found.group(1) or found.group(2)).upper() if found else None
    if not question.asks_for_box:
        return (not question.stop and extract_boxed(text)) or text.strip() or None
    begun = _closed_by_text(text)
    return extract_boxed(text) if begun is None else extract_boxed(begun) or begun


def _closed_by_text(text):
    """What stands before the first brace that closes none of the text's own: the end of a box that
    the prompt opened. A base model then goes on with examples of its own, which do not count."""
    depth = 0
    for mark in _BRACES.finditer(text):
        depth += (mark[0] == "{") - (mark[0] == "}")
        if depth < 0:
            return text[:mark.start()]
    return None


def grade(text, question):
    """The reward of a model's answer text in [0, 1]: 1 where it is right, SQuAD's f1 where that is
    the question's metric. Never raises, never hangs, never evaluates the text as code. An answer
    that a `stop` ends is compared as it is spelled, like words and letters; any other by what it
    means (grading.py)."""
    text = text[:4000]
    if question.stop:
        text = text.partition(question.stop)[0]
    golds = question.answers or (question.answer,)
    found = extract_answer(text, question)
    if question.metric == "f1":
        return f1(text if found is None else found, golds)
    return float(found is not None and any(_same(found.strip(), gold.strip(), question)
                                           for gold in golds))


def _same(found, gold, question):
    if question.choices or question.stop or _WORDS.fullmatch(gold):  # "c a b" is no product
        return found.split() == gold.split()
    return found == gold or answers_equal(found, gold)


# ---- answers: one model, many prompts, any route ----

BATCH_TOKENS = 16384  # tokens in one call, whatever the number of rows


@dataclass(frozen=True)
class Prompt:
    """A question as one model's token ids. gold: the right answer as the model may write it.
    stop_ids end an answer. options, scored: see likelihood.option_ids; () if it is written."""
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
        ids, options, scored = likelihood.option_ids(question, tokenizer)
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
    likelihood, see parts/sharing.py."""
    N, L = len(prompts), model.config.num_layers
    result = Answers(torch.zeros(N), torch.zeros(N), torch.ones(N, L, dtype=torch.long),
                     torch.zeros(N, dtype=torch.long), torch.ones(N, dtype=torch.long), [""] * N)
    for rows in batches(prompts, batch_size):
        here = fixed(route[rows]) if isinstance(route, torch.Tensor) else route
        some = [prompts[i] for i in rows]
        if some[0].options:
            said, result.confidence[rows], decisions = likelihood.likeliest(
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
    known: see parts/sharing.py."""
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
        closed = not question.stop and _closed_by_text(text) is not None
        return grade(text, question) if closed else None
    begun = _squeezed(text).rstrip("\ufffd")  # half of a character is none
    may_be_right = not question.stop or question.metric == "f1" or any(
        _squeezed(gold + question.stop).startswith(begun)
        for gold in question.answers or (question.answer,))
    return None if may_be_right else 0.0
