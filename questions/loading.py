"""Questions, and the files that they are read from, strictly: all of a file or none of it.

questions/schemas.py describes every schema of rows, ours and the usual benchmarks'. A schema is
recognised by its fields, never by its file's name.

    load_questions("demo/questions/test.jsonl")[0].prompt
"""
import hashlib
import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from questions.schemas import fields_of, rows_of
from storage.files import InputError

OPENED = "\\boxed{"
LETTER_TOKENS, BOXED_TOKENS = 10, 15  # the authors' limits on a new answer


@dataclass(frozen=True)
class Question:
    """One question. `choices` are the texts of its options, () if it is not multiple choice;
    `answer` is then the correct letter. `prompt` is used verbatim if given. `stop` is a text that
    ends an answer. `answers`: every correct answer if there are several, else (). `metric` decides
    what is correct: "exact", "f1" (SQuAD's), or the option that "likelihood" or
    "likelihood-per-byte" finds. `unfinished`: the choices continue the question's text rather than
    answer it. `continuation`: a text after each choice, whose likelihood then decides. `begin`
    begins the answer, after the chat template, so that the model only continues it."""
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
    begin: str = ""

    @property
    def asks_for_box(self):
        """Whether the answer belongs in a box; otherwise it is the whole text."""
        return self.prompt is None or OPENED in self.prompt

    @property
    def wording(self):
        """16 hex digits that name what the question asks, whatever its id, task and scoring are."""
        fields = (self.question, self.choices, self.prompt, self.continuation)
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:16]

    @property
    def budget(self):
        """Tokens the answer may take."""
        if self.max_new_tokens:
            return self.max_new_tokens
        return LETTER_TOKENS if self.choices else BOXED_TOKENS


# ---- reading files ----

def load_questions(file, task=None, skip_bad_rows=False):
    """The questions of a file in any of the schemas, in order; repeats are dropped and counted.
    task: their task's name, instead of the schema's. A row that cannot be used raises InputError
    naming file and row, before any question is returned; with skip_bad_rows it is counted."""
    file, questions, bad_rows = Path(file), {}, []
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
            bad_rows.append(f"{number} ({reason})")
    remarks = []
    if bad_rows:
        remarks.append(f"{len(bad_rows)} bad rows skipped: {'; '.join(bad_rows[:3])}"[:300])
    if repeats := len(rows) - len(bad_rows) - len(questions):
        remarks.append(f"{repeats} of {len(rows)} rows dropped as repeats")
    if not questions:
        raise InputError("; ".join([f"{file}: no questions in it", *remarks]))
    if remarks:
        print(f"{file}: {'; '.join(remarks)}", file=sys.stderr)
    return list(questions.values())


def read_row(row):
    """The Question of one row in any schema; KeyError or ValueError name what is wrong with it."""
    return Question(**fields_of(row))


def load_all(files, skip_bad_rows=False, score="letter", begin=None):
    """The questions of several FILE or TASK=FILE arguments; an id may be in one file only.
    score: "letter", or the metric by which their options are to be compared. begin: a text that
    begins every answer, or None."""
    questions = {}
    for argument in files:
        task, file = task_and_file(argument)
        for question in load_questions(file, task, skip_bad_rows):
            if score != "letter":
                check_options(question, file, score)
                question = replace(question, metric=score)
            if begin:
                if score != "letter" or question.prompt is not None:
                    raise InputError(f"{file}: question {question.id}: --begin continues a chat "
                                     "template, not a prompt of the file or --score likelihood; "
                                     "--begin '' leaves out what routers learned with")
                question = replace(question, begin=begin)
            if questions.setdefault(question.id, question) != question:
                raise InputError(f"{file}: id {question.id!r} is also in another file")
    return list(questions.values())


def task_and_file(argument):
    """(task or None, file) of FILE or TASK=FILE, both of which may contain "=". An argument that
    names an existing file is that file; else TASK ends at the first "=" after which an existing
    file is named; if there is none, at the first "=". A TASK contains no "/"."""
    argument = str(argument)
    parts = argument.split("=")
    splits = [("", argument)]
    for k in range(1, len(parts)):
        task, file = "=".join(parts[:k]), "=".join(parts[k:])
        if not os.path.dirname(task):
            splits.append((task, file))
    existing = [split for split in splits if os.path.exists(split[1])]
    task, file = (existing or splits[1:] or splits)[0]
    if not file.strip():  # Path("") would be the current folder
        raise InputError(f"{argument!r}: no file is named")
    return task or None, file


def check_options(question, file, score):
    """InputError unless the question has options that a likelihood can tell apart."""
    count, different = len(question.choices), len(set(question.choices))
    if different < max(2, count):
        raise InputError(f"{file}: question {question.id} has {count} choices, {different} of them "
                         f"different; --score {score} compares two or more")


# ---- questions on two sides: training and test ----

def disjoint(files, questions, flag, others):
    """The others, which the flag names, without those that ask what a question of the files asks;
    reports how many these are. InputError if an id is on both sides."""
    name = " ".join(map(str, files))
    shared_ids = {q.id for q in questions} & {q.id for q in others}
    if shared_ids:
        raise InputError(f"{name}: {len(shared_ids)} of {len(questions)} questions are also in "
                         f"{flag}, e.g. {min(shared_ids)}")
    return left_out([flag], others, {q.wording for q in questions}, f"are also in {name}")


def left_out(files, questions, wordings, reason):
    """The questions without those of the given wordings; reports why and how many these are.
    InputError if they are all."""
    rest = [question for question in questions if question.wording not in wordings]
    report = (f"{' '.join(map(str, files))}: {len(questions) - len(rest)} of {len(questions)} "
              f"questions {reason}")
    if questions and not rest:
        raise InputError(f"{report}; others are needed")
    if len(rest) < len(questions):
        print(f"{report} and are left out")
    return rest


def split(questions, share=0.2):
    """(training questions, test questions). A question's wording decides, so that it stays on its
    side whatever other files and limits there are."""
    training, test = [], []
    for question in questions:
        is_test = int(question.wording[:4], 16) < 2 ** 16 * share
        (test if is_test else training).append(question)
    return training, test
