"""Questions in, reward out: readers for the usual files, prompts, answer extraction, grading.

A file's schema is known by its fields, never by its name:

    ARC (AI2)    id, question: {stem, choices: [{text, label}]}, answerKey
    ARC (HF)     id, question, choices: {text: [...], label: [...]}, answerKey
    MATH         problem, level "Level 3", answer or solution with \\boxed{}
    DART-Math    query, gt_ans, query_metadata: {level}
    GSM8K        question, answer ending in "#### 72"
    MMLU         CSV without a header: question, four choices, letter
    ours         question or prompt, answer; optional id, task, level, choices, max_new_tokens

JSON lines, a JSON list, CSV with a header, or parquet where pyarrow is installed. In ours
`prompt` is given to the model as it stands, `question` is wrapped in the paper's prompt.
Prompts are the paper's (Appendix A): through the chat template if the folder has one, else the
base prompt with the answer already begun. Multiple choice is answered by a letter, anything
else inside \\boxed{}. Model output is text to compare, never to run.

    load_questions("demo/questions/test.jsonl")[0].prompt
"""
import csv
import hashlib
import io
import json
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from cli import InputError
from grading import answers_equal, extract_boxed

LETTERS = "ABCDEFGHIJ"
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
    `answer` is then the right letter, A for the first. `prompt` is used verbatim if given."""
    id: str
    task: str
    level: int
    question: str
    answer: str
    choices: tuple = ()
    prompt: str | None = None
    max_new_tokens: int | None = None

    @property
    def budget(self):
        """Tokens the answer may take."""
        return self.max_new_tokens or (LETTER_TOKENS if self.choices else BOXED_TOKENS)


# ---- reading files ----

def load_questions(file, task=None, skip_bad_rows=False):
    """The questions of a file in any of the schemas, in order, repeats dropped.

    task: their task's name, instead of the schema's. A row that cannot be used raises InputError
    naming file and row, before any question is returned; with skip_bad_rows it is counted instead.
    """
    file, questions, bad = Path(file), {}, []
    for number, raw in _rows(file):
        try:
            question = read_row(json.loads(raw) if isinstance(raw, str) else raw)
            question = replace(question, task=task or question.task)
            if questions.setdefault(question.id, question) != question:
                raise ValueError(f"id {question.id!r} stands for two questions")
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError,
                RecursionError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else error
            if not skip_bad_rows:
                raise InputError(f"{file}:{number}: {reason}") from error
            bad.append(f"{number} ({reason})")
    if bad:
        print(f"{file}: {len(bad)} bad rows skipped: {'; '.join(bad[:3])}"[:300], file=sys.stderr)
    if not questions:
        raise InputError(f"{file}: no questions in it")
    return list(questions.values())


def load_all(files, skip_bad_rows=False):
    """The questions of several FILE or TASK=FILE arguments; an id may stand in one file only."""
    questions = {}
    for argument in files:
        task, _, file = str(argument).rpartition("=")
        for question in load_questions(file, task or None, skip_bad_rows):
            if questions.setdefault(question.id, question) != question:
                raise InputError(f"{file}: id {question.id!r} also stands in another file")
    return list(questions.values())


def _rows(file):
    """(row number, object or JSON text) of a file: a JSON list, JSON lines, CSV or parquet."""
    if file.suffix == ".parquet":
        return enumerate(_parquet(file), 1)
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 ({error})") from error
    if file.suffix == ".csv":
        return _csv(file, text)
    if text.lstrip().startswith("["):
        try:
            return enumerate(json.loads(text), 1)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file}: not valid JSON ({error})") from error
    return ((n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip())


def _csv(file, text):
    """Rows of a CSV with a header, or of MMLU's six columns without one."""
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except csv.Error as error:
        raise InputError(f"{file}: not valid CSV ({error})") from error
    if rows and all(len(row) == 6 and row[5].strip() in "ABCD" for row in rows):
        return ((n, {"question": row[0], "choices": row[1:5], "answer": row[5].strip(),
                     "task": "mmlu"}) for n, row in enumerate(rows, 1))
    return ((n, dict(zip(rows[0], row))) for n, row in enumerate(rows[1:], 2))


def _parquet(file):
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{file}: reading parquet needs pyarrow (pip install pyarrow)") from error
    try:
        return pyarrow.parquet.read_table(file).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{file}: unreadable parquet: {error}") from error


def read_row(row):
    """The Question of one row; raises KeyError or ValueError saying what is wrong with it."""
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {type(row).__name__}")
    for is_mine, read in SCHEMAS:
        if is_mine(row):
            question = read(row)
            break
    else:
        raise ValueError(f"no known schema has the fields {', '.join(sorted(row)[:8])}")
    if not question.answer.strip():
        raise ValueError("no answer")
    "".join([question.question, question.prompt or "", *question.choices]).encode()  # is it text?
    if not (question.question or question.prompt or "").strip():
        raise ValueError("the question is empty")
    return question


def _new(row, task, question, answer, level=0, **more):
    words = "\0".join([question, *more.get("choices", ()), more.get("prompt") or "", answer])
    name = _text(row.get("id")) or hashlib.sha256(words.encode()).hexdigest()[:12]
    return Question(name, task, level, question, answer, **more)


def _arc(row):
    inner, choices = row["question"], row.get("choices")
    if isinstance(inner, dict):
        choices = {key: [option[key] for option in inner["choices"]] for key in ("text", "label")}
        inner = inner["stem"]
    labels, key = [str(label) for label in choices["label"]], str(row["answerKey"])
    if len(labels) != len(choices["text"]):
        raise ValueError(f"{len(choices['text'])} texts for {len(labels)} labels")
    if key not in labels:
        raise ValueError(f"answerKey {key!r} is not among the labels {', '.join(labels)}")
    return _new(row, "arc", inner, LETTERS[labels.index(key)], choices=_texts(choices["text"]))


def _text(value):
    """A field as text; absent is empty, and 0 is an answer like any."""
    return "" if value is None else str(value)


def _texts(texts):
    if not isinstance(texts, list):
        raise ValueError(f"choices must be a list, got {texts!r}"[:80])
    if not 2 <= len(texts) <= len(LETTERS):
        raise ValueError(f"{len(texts)} choices; 2 to {len(LETTERS)} are supported")
    return tuple(str(text) for text in texts)


def _level(text):
    """The number in "Level 3"; 0 where there is none ("Level ?")."""
    found = re.search(r"\d+", str(text))
    return int(found.group()) if found else 0


def _math(row):
    answer = _text(row.get("answer")) or extract_boxed(row.get("solution") or "") or ""
    return _new(row, "math", row["problem"], answer, _level(row.get("level")))


def _dart(row):
    level = _level((row.get("query_metadata") or {}).get("level"))
    return _new(row, "dart", row["query"], _text(row["gt_ans"]), level)


def _gsm8k(row):
    answer = row["answer"].rpartition("####")[2].strip().replace(",", "")
    return _new(row, "gsm8k", row["question"], answer)


def _ours(row):
    choices = _texts(row["choices"]) if row.get("choices") else ()
    answer, budget = _text(row["answer"]), _text(row.get("max_new_tokens"))
    if choices and answer not in list(LETTERS[:len(choices)]):
        raise ValueError(f"answer {answer!r} is not a letter of its {len(choices)} choices")
    if budget and int(budget) < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {budget}")
    return _new(row, str(row.get("task", "questions")), row.get("question") or "", answer,
                int(row.get("level") or 0), choices=choices, prompt=row.get("prompt") or None,
                max_new_tokens=int(budget) if budget else None)


SCHEMAS = (
    (lambda row: "answerKey" in row, _arc),
    (lambda row: "problem" in row, _math),
    (lambda row: "query" in row and "gt_ans" in row, _dart),
    (lambda row: "question" in row and "####" in str(row.get("answer")), _gsm8k),
    (lambda row: "answer" in row and ("question" in row or "prompt" in row), _ours),
)


# ---- prompts ----

def prompt_ids(question, tokenizer):
    """The token ids a model is given for a question."""
    if question.prompt is not None:
        return tokenizer.encode(question.prompt)
    if tokenizer.has_template:
        content = _fill(question, CHAT_LETTER, CHAT_BOXED, "{}. {}")
        return tokenizer.chat([{"role": "user", "content": content}])
    return tokenizer.encode(_fill(question, BASE_LETTER, BASE_BOXED, "({}) {}"))


def gold_ids(question, tokenizer):
    """The right answer's token ids as a model would most likely go on, cut to its budget.

    A guess: it saves time where it is what the model says, and is never taken for its answer.
    """
    is_chat = question.prompt is None and tokenizer.has_template
    opened = question.prompt is None or question.prompt.rstrip().endswith(OPENED)
    if question.choices:
        forms = (question.answer if is_chat else f" {question.answer}",)
    elif is_chat:
        forms = (OPENED + question.answer + "}",)
    elif opened:
        forms = (question.answer + "}", question.answer + " }")  # some tokenizers split at spaces
    else:
        forms = (question.answer,)
    squeezed = lambda text: "".join(text.split())
    for text in forms:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if squeezed(tokenizer.decode(ids)) == squeezed(text):
            break
    return ids[:question.budget]


def _fill(question, letter_form, boxed_form, option_form):
    if not question.choices:
        return boxed_form.format(question=question.question)
    letters = LETTERS[:len(question.choices)]
    choices = "\n".join(option_form.format(*pair) for pair in zip(letters, question.choices))
    listed = ", ".join(letters[:-1]) + f" or {letters[-1]}"
    return letter_form.format(question=question.question, choices=choices, letters=listed)


# ---- reward ----

_LETTER = re.compile(r"\s*(?:answer:?|the correct answer is:?|\s)*"
                     r"(?:\(([a-j])\)|([a-j])(?=[.):]|\s*$|\s*\n))", re.IGNORECASE)
_WORDS = re.compile(r"\w(?: \w)+")  # single letters or digits, one after the other


def extract_answer(text, question):
    """What a model's answer text says: a letter, or the expression in its last box; else None.

    Where the prompt opened the box already, the text goes on inside it. A verbatim prompt that
    asks for no box takes the whole text.
    """
    if question.choices:
        found = _LETTER.match(text)
        return (found.group(1) or found.group(2)).upper() if found else None
    if question.prompt is not None and OPENED not in question.prompt:
        return extract_boxed(text) or text.strip() or None
    opened = question.prompt is not None and question.prompt.rstrip().endswith(OPENED)
    if opened or (question.prompt is None and "}" in text and OPENED not in text):
        text = OPENED + text  # the base prompt opens the box, a chat answer writes its own
    return extract_boxed(text)


def grade(text, question):
    """1.0 if a model's answer text is right, else 0.0. Never raises, never hangs, never
    evaluates the text as code."""
    found = extract_answer(text[:4000], question)
    if found is None:
        return 0.0
    gold = question.answer.strip()
    if question.choices or _WORDS.fullmatch(gold):  # "c a b" is no product
        return float(found.split() == gold.split())
    return float(found.strip() == gold or answers_equal(found, gold))
