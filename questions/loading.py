"""Questions, and the files that they are read from, strictly: all of a file or none of it.

Every schema of rows, ours and the usual benchmarks', is described in questions/schemas.py; a schema is
known by its fields, never by its file's name.

    load_questions("demo/questions/test.jsonl")[0].prompt
"""
import hashlib
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from storage.files import InputError
from questions.schemas import fields_of, rows_of

OPENED = "\\boxed{"
LETTER_TOKENS, BOXED_TOKENS = 10, 15  # the authors' limits on a new answer


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
    def wording(self):
        """16 hex digits that name what is asked, whatever its id, task and scoring are."""
        asked = (self.question, self.choices, self.prompt, self.continuation)
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]

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


def disjoint(files, questions, flag, others):
    """The others, which the flag names, without those that ask what a question of the files asks;
    says how many these are. InputError if an id stands on both sides."""
    name = " ".join(map(str, files))
    if both := {q.id for q in questions} & {q.id for q in others}:
        raise InputError(f"{name}: {len(both)} of {len(questions)} questions also stand in {flag}, "
                         f"e.g. {min(both)}")
    return left_out([flag], others, {q.wording for q in questions}, f"also stand in {name}")


def left_out(files, questions, wordings, reason):
    """The questions without those of the given wordings; says why and how many these are.
    InputError if they are all."""
    rest = [question for question in questions if question.wording not in wordings]
    said = (f"{' '.join(map(str, files))}: {len(questions) - len(rest)} of {len(questions)} "
            f"questions {reason}")
    if questions and not rest:
        raise InputError(f"{said}; others are needed")
    if len(rest) < len(questions):
        print(f"{said} and are left out")
    return rest


def read_row(row):
    """The Question of one row in any schema; KeyError or ValueError say what is wrong with it."""
    return Question(**fields_of(row))


def split(questions, share=0.2):
    """(to label, to test): a question's words decide, whatever other files and limits there are."""
    is_test = lambda q: int(q.wording[:4], 16) < 2 ** 16 * share
    return [q for q in questions if not is_test(q)], [q for q in questions if is_test(q)]
