"""Questions in, reward out: question files, prompts, answers along a route, and their grades.

Every file format and every schema of rows, ours and the usual benchmarks', is described in
parts/schemas.py; a schema is known by its fields, never by its file's name. Prompts are the
paper's (Appendix A): through the chat template if the folder has one, else the base prompt with
the answer already begun. Multiple choice is answered by a letter, or scored by the likelihood of
its options as the lm-evaluation-harness does; anything else is answered inside \\boxed{}. Model
output is text to compare, never to run.

    load_questions("demo/questions/test.jsonl")[0].prompt
"""
import functools
import json
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from grading import answers_equal, extract_boxed
from model_llama import fixed, generate
from parts import likelihood
from parts.files import InputError
from parts.schemas import LETTERS, f1, fields_of, rows_of
from parts.sharing import through_layers

OPENED = "\\boxed{"
LETTER_TOKENS, BOXED_TOKENS = 10, 15  # the authors' limits on a new answer

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


@dataclass(frozen=True)
class Question:
    """One question. `choices` are the texts of its options, () if it is not multiple choice;
    `answer` is then the right letter. `prompt` is used verbatim if given. `stop` is a text that
    ends an answer. `answers`: every right answer where there are several, else (). `metric` says
    what is right: "exact", "f1" (SQuAD's), or the option that "likelihood" or
    "likelihood-per-byte" finds. `unfinished`: the choices go on with the question's text rather
    than answer it. `continuation`: a text after each choice, whose likelihood then decides."""
    id: str
    task: str
    level: int
    question: str
    answer: str
    choices: tuple = ()
    prompt: str | None = None
    max_new_tokens: int | None = None
    stop: str | None = None
    answers: tuple = ()
    metric: str = "exact"
    continuation: str = ""
    unfinished: bool = False

    @property
    def asks_for_box(self):
        """Whether the answer is to stand in a box, rather than to be the whole text."""
        return self.prompt is None or OPENED in self.prompt

    @property
    def budget(self):
        """Tokens the answer may take."""
        return self.max_new_tokens or (LETTER_TOKENS if self.choices else BOXED_TOKENS)


# ---- reading files ----

def load_questions(file, task=None, skip_bad_rows=False):
    """The questions of a file in any of the schemas, in order; repeats are dropped and counted.
    task: their task's name, instead of the schema's. A row that cannot be used raises InputError
    naming file and row, before any question is returned; with skip_bad_rows it is counted."""
    file, questions, bad, notes = Path(file), {}, [], []
    rows = rows_of(file)
    for number, raw, label in rows:
        try:
            row = json.loads(raw) if isinstance(raw, str) else raw
            question = read_row(label | row if label else row)
            question = replace(question, task=task or question.task)
            if questions.setdefault(question.id, question) != question:
                raise ValueError(f"id {question.id!r} stands for two questions")
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else error
            if not skip_bad_rows:
                raise InputError(f"{file}:{number}: {reason}") from error
            bad.append(f"{number} ({reason})")
    if bad:
        notes.append(f"{len(bad)} bad rows skipped: {'; '.join(bad[:3])}"[:300])
    if repeats := len(rows) - len(bad) - len(questions):
        notes.append(f"{repeats} of {len(rows)} rows dropped as repeats")
    if not questions:
        raise InputError("; ".join([f"{file}: no questions in it", *notes]))
    if notes:
        print(f"{file}: {'; '.join(notes)}", file=sys.stderr)
    return list(questions.values())


def load_all(files, skip_bad_rows=False, score="letter"):
    """The questions of several FILE or TASK=FILE arguments; an id may stand in one file only.
    score: "letter", or the metric by which their options are to be compared."""
    questions = {}
    for argument in files:
        task, _, file = str(argument).rpartition("=")
        for question in load_questions(file, task or None, skip_bad_rows):
            if score != "letter":
                if len(set(question.choices)) < max(2, len(question.choices)):
                    raise InputError(f"{file}: question {question.id} has {len(question.choices)} "
                                     f"choices, {len(set(question.choices))} of them different; "
                                     f"--score {score} compares two or more")
                question = replace(question, metric=score)
            if questions.setdefault(question.id, question) != question:
                raise InputError(f"{file}: id {question.id!r} also stands in another file")
    return list(questions.values())


def refuse_overlap(file, questions, flag, others):
    """InputError if questions of the file also stand among the others, which the flag names."""
    if both := {q.id for q in questions} & {q.id for q in others}:
        raise InputError(f"{file}: {len(both)} of {len(questions)} questions also stand in {flag}, "
                         f"e.g. {min(both)}")


def read_row(row):
    """The Question of one row in any schema; KeyError or ValueError say what is wrong with it."""
    return Question(**fields_of(row))


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
