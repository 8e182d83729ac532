"""Question files, whoever wrote them: file formats, our own row, and a table of other schemas.

A file holds JSON lines, a JSON list, CSV (with a header, or MMLU's six columns without one),
parquet where pyarrow is installed, or SQuAD's nested JSON. A row of our own schema has

    question or prompt   a question is wrapped in the paper's prompt, a prompt given as it stands
    answer               the correct answer; with choices, the letter of the correct one
    choices              2 to 13 options
    context              a text to put before the question
    answers              further correct answers
    metric               "exact" (the default), or "f1" for the share of words in common
    stop                 a text that ends an answer, such as a new line
    unfinished           true: the choices continue the question, as in "The sky is"
    continuation         for scoring by likelihood: a text that follows each of the choices
    id, task, level, max_new_tokens

SCHEMAS says how other rows become such a row. Unknown fields are ignored, but a row is never read
without its options or its passage: a field that looks like a part of the question (LOOKS_NEEDED)
and that no schema reads is refused.

    as_ours({"goal": "Open a jar.", "sol1": "Twist the lid.", "sol2": "Sing.", "label": 0})
"""
import csv
import hashlib
import io
import json
import os
import re
import string
from collections import Counter

from questions.grading import extract_boxed
from storage.files import InputError, read_file

LETTERS = "ABCDEFGHIJKLM"
METRICS = ("exact", "f1")
NO_ANSWER = ("unanswerable", "not answerable", "no answer")
NUMBERS = ("answer", "answers", "choices", "id", "level", "max_new_tokens")  # these may be numbers
CARRIED = ("id", "prompt", "stop", "max_new_tokens")  # ours, read with any schema
BEYOND = "cells beyond the header"  # the field for those of a CSV


# ---- SQuAD's metric ----

def f1(text, golds):
    """SQuAD's score of a text, in [0, 1], by the gold answer that is nearest to it: the harmonic
    mean of the share of its words that are gold and of the share of the gold words that it has.
    Articles, case and punctuation do not count; two that say "no answer" agree."""
    return max((word_f1(plain_words(text), plain_words(gold)) for gold in golds), default=0.0)


def word_f1(words, gold_words):
    if not words or not gold_words:  # "no answer" has nothing in common with words
        return float(words == gold_words)
    common = (Counter(words) & Counter(gold_words)).total()
    return 2 * common / (len(words) + len(gold_words))


def plain_words(text):
    """The words that SQuAD compares; none only if the text says that there is no answer."""
    text = text.lower()
    letters = "".join(c for c in text if c not in string.punctuation)
    words = re.sub(r"\b(a|an|the)\b", " ", letters).split()
    is_n_a = words == ["na"] and "na" not in text  # "N/A" or "n.a."; but "Na" is sodium
    if is_n_a or " ".join(words) in NO_ANSWER:
        return []
    # Vitamin "A" is an answer though it looks like an article, and so is the operator "+".
    return words or sorted(set(letters.split())) or text.split()


# ---- files ----

def rows_of(file):
    """[(row number, row or its JSON text, fields to add)] of a file in any of the formats."""
    data = read_file(file)
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        rows = [*enumerate(parquet_rows(file, data), 1)]
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: not UTF-8 ({error})") from error
        rows = [*csv_rows(file, text)] if suffix == ".csv" else [*json_rows(file, text)]
    label_file = file.with_name(file.stem + "-labels.lst")  # PIQA's correct options are next to it
    if not label_file.exists():
        return [(number, row, {}) for number, row in rows]
    labels = read_file(label_file).decode(errors="replace").split()
    if len(labels) != len(rows):
        raise InputError(f"{label_file}: {len(labels)} labels for {len(rows)} rows of {file}")
    return [(number, row, {"label": label}) for (number, row), label in zip(rows, labels)]


def json_rows(file, text):
    """(row number, row) of one JSON value, or (line number, its text) of JSON lines."""
    try:
        return enumerate(unnested(json.loads(text)), 1)
    except (ValueError, RecursionError) as error:  # not one JSON value: one on each line, then
        if text.lstrip().startswith("["):
            raise InputError(f"{file}: not valid JSON ({error})") from error
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if lines and not any(line.lstrip().startswith("{") for _, line in lines):
        raise InputError(f"{file}: no line of {len(lines)} is a JSON object; JSON, JSON lines, "
                         ".csv and .parquet are read")
    return lines


def unnested(value):
    """The rows in one JSON value: a list, a single row, or SQuAD's articles."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict) or not isinstance(value.get("data"), list):
        return [value]
    rows = []
    try:
        for article in value["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    row = {key: question[key] for key in ("id", "question", "answers")}
                    rows.append({"context": paragraph["context"]} | row)
    except (KeyError, TypeError):  # a row of another schema that has a field "data"
        return [value]
    return rows


def csv_rows(file, text):
    """(row number, row) of a CSV with a header, or of MMLU's without one."""
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error as error:
        raise InputError(f"{file}: not valid CSV ({error})") from error
    names, start = rows[0] if rows else [], 1
    is_header = "question" in map(str.lower, names)
    if not is_header and len(names) == 6 and names[5].strip() in [*"ABCD"]:
        names, start = ["question", *"ABCD", "answer"], 0  # MMLU's columns
    if len(set(names)) < len(names):
        raise InputError(f"{file}: {len(names)} columns with {len(set(names))} names")
    for number, cells in enumerate(rows[start:], start + 1):
        row = dict(zip(names, cells))
        if len(cells) > len(names):
            row[BEYOND] = cells[len(names):]
        yield number, row


def parquet_rows(file, data):
    if not data[:4] == data[-4:] == b"PAR1":
        raise InputError(f"{file}: not a whole parquet file ({len(data)} bytes, which begin with "
                         f"{data[:4]} and end with {data[-4:]}, not b'PAR1')")
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{file}: reading parquet needs pyarrow (pip install pyarrow)") from error
    try:
        return pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{file}: unreadable parquet: {error}") from error


# ---- rows ----

def fields_of(row):
    """The fields of the Question that a row is, in whichever schema. KeyError or ValueError name
    what is wrong with a row: it would be asked wrongly, or no answer to it could be correct."""
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {type(row).__name__}")
    row = as_ours(row)
    texts = {name: text_of(row, name) for name in (
        "id", "task", "context", "question", "prompt", "answer", "stop", "metric", "continuation")}
    choices, answers = texts_of(row, "choices"), texts_of(row, "answers")
    check_row(row, texts, choices, answers)
    answer, prompt, stop = texts["answer"], texts["prompt"], texts["stop"]
    question = with_context(texts)
    # The id comes from the contents, so that a question keeps it in any file and place.
    words = [question, *choices, prompt, answer,
             *filter(None, (*answers, stop, texts["continuation"]))]
    digest = hashlib.sha256("\0".join(words).encode()).hexdigest()  # raises if it is no text
    return {"id": texts["id"] or digest[:12], "task": texts["task"] or "questions",
            "question": question, "answer": answer, "choices": choices,
            "prompt": prompt or None, "stop": stop or None,
            "answers": tuple(dict.fromkeys((answer, *answers))) if answers else (),
            "metric": texts["metric"] or "exact", "continuation": texts["continuation"],
            "unfinished": bool(row.get("unfinished")),
            "level": whole_of(row, "level", 0),
            "max_new_tokens": whole_of(row, "max_new_tokens", 1) or None}


def with_context(texts):
    return "\n\n".join(filter(None, (texts["context"], texts["question"])))


def check_row(row, texts, choices, answers):
    """ValueError with the first reason for which a row of ours cannot be used."""
    answer, metric, prompt = texts["answer"], texts["metric"], texts["prompt"]
    letters = list(LETTERS[:len(choices)])
    chosen_text = dict(zip(letters, choices)).get(answer)
    unfinished = row.get("unfinished")
    for is_wrong, reason in (
            (not answer.strip(), "no answer"),
            (not (prompt or with_context(texts)).strip(), "the question is empty"),
            (texts["context"] and prompt,
             "a prompt is given as it stands: its context belongs into it"),
            (metric not in ("", *METRICS), f"metric must be exact or f1, got {metric!r}"),
            (metric == "f1" and choices, "metric f1 is for answers in words, not for choices"),
            (len(choices) == 1 or len(choices) > len(LETTERS),
             f"{len(choices)} choices; 2 to {len(LETTERS)} are supported"),
            (choices and answer not in letters,
             f"answer {answer!r} is not a letter of its {len(choices)} choices"),
            (choices.count(chosen_text) > 1,
             f"the correct choice occurs twice: {chosen_text!r}"[:80]),
            (choices and answers, "several answers next to choices: only one letter is correct"),
            (texts["continuation"] and not choices, "a continuation without choices"),
            (unfinished not in (None, True, False),
             f"unfinished must be true or false, got {unfinished!r}"[:80])):
        if is_wrong:
            raise ValueError(reason)


def text_of(row, name):
    """A field as text; absent is empty, and 0 is an answer like any."""
    value = row.get(name)
    if value is None or value != value:  # NaN: an empty cell of a table
        return ""
    kinds = (str, int, float) if name in NUMBERS else str
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise ValueError(f"{name} must be text, got {str(value)[:60]}")
    return str(value)


def texts_of(row, name):
    """A field that is a list of texts; absent is ()."""
    values = row.get(name)
    if values in (None, ""):
        return ()
    if not isinstance(values, list):
        raise ValueError(f"{name} must be a list, got {str(values)[:60]}")
    texts = tuple(text_of({name: value}, name) for value in values)
    if not all(text.strip() for text in texts):
        raise ValueError(f"an empty text among the {len(texts)} {name}")
    return texts


def whole_of(row, name, least):
    """A field that is a whole number; absent is 0."""
    number = text_of(row, name)
    if not number:
        return 0
    if not re.fullmatch(r"\d{1,9}(\.0)?", number) or float(number) < least:
        raise ValueError(f"{name} must be a whole number, at least {least}; got {number}")
    return int(float(number))


def as_ours(row):
    """A row of any schema as a row of ours. ValueError if no schema claims it, or if the one that
    does would lose a field."""
    names = [" ".join(str(name).lower().split()) for name in row]
    if len(set(names)) < len(names):
        raise ValueError(f"two fields have one name: {', '.join(sorted(row)[:8])}")
    row = dict(zip(names, row.values()))
    for task, fields, read in SCHEMAS:
        claimed = fields.split(", ")
        if not all(name in row or name.endswith(("?", "...")) for name in claimed):
            continue
        fields_of_ours = read(row)
        if fields_of_ours is not None:
            refuse_loss(row, claimed)
            carried = {name: row[name] for name in CARRIED if name in row}
            return carried | {"task": task} | fields_of_ours
    raise ValueError(f"no known schema has the fields {', '.join(sorted(row)[:8])}")


LOOKS_NEEDED = re.compile(r"""
    (?! (num|n|has|is)_ | .*_(count|length|type)$ )        # "num_choices" is not the choices
    (?: [a-h]$ | [1-9]$ | text$ | input$                   # "a": a column for each option
      | .*(option|choice|passage|context|paragraph|image)  # anywhere: "answer_choices", "imageurl"
      | .*answers$                                         # several answers
      | (.*[^a-z])? (?:                                    # the others where a word begins
            (op|opt|sol|ans|answer)[\W_]?([a-m]|\d+)$      # options: "opa", "sol1", "answer_b"
          | ending | candidate | distractor | alternative
          | ctx | article | document | story | premise | background | dialog | conversation
          | history | transcript | excerpt | evidence | support | scenario | abstract | hint
          | sentence | body | table
          | img | figure | picture | photo | diagram | chart | video | audio
          | (best|correct|incorrect|wrong|false)[\W_]?answer | target | alias )
      | cells\ beyond )                                    # CSV: more of them than columns
    """, re.VERBOSE)


def refuse_loss(row, claimed):
    """ValueError if a field that is not claimed looks like options, a passage, an image or further
    answers. An empty one does no harm."""
    if "..." in claimed:
        return
    claimed = {name.rstrip("?") for name in claimed}
    for name, value in row.items():
        is_read = name in claimed or value in (None, "", [], {})
        if not is_read and LOOKS_NEEDED.match(name):
            others = ", ".join(sorted(claimed & row.keys()))
            raise ValueError(f"no known schema reads {name!r} next to {others}; "
                             "it looks like a part of the question")


# ---- readers: a row of a benchmark -> a row of ours, or None if it belongs to another schema ----

def as_list(options):
    """The options, if they are a list: the letters of a text would pass for options, too."""
    if not isinstance(options, list):
        raise ValueError(f"the options must be a list, got {str(options)[:60]}")
    return options


def multiple_choice(question, options, key, keys=None, **more):
    """A multiple-choice row of ours. key: which option is correct, as one of `keys`, the options'
    names; without keys they are numbered from 0."""
    if isinstance(key, list) and len(key) == 1:
        key = key[0]
    if keys is None:
        keys = range(len(as_list(options)))
    keys = [str(name) for name in keys]
    if len(keys) != len(options):
        raise ValueError(f"{len(options)} options for {len(keys)} labels")
    if str(key) not in keys:
        raise ValueError(f"the correct option {key!r} is not among {', '.join(keys)}")
    letter = chr(ord("A") + keys.index(str(key)))
    return {"question": question, "choices": options, "answer": letter, **more}


def shuffled_choice(question, correct, incorrect):
    """A multiple-choice row whose file has the correct option first: here the options are in an
    order drawn from the question's text, so that it is the same whenever the file is read."""
    correct = correct.strip()
    options = [correct, *(text.strip() for text in incorrect)]
    options.sort(key=lambda text: hashlib.sha256(f"{question}\0{text}".encode()).digest())
    return multiple_choice(question, options, options.index(correct))


def labelled_options(row):
    """ARC, OpenBookQA and CommonsenseQA as AI2 or as Hugging Face publish them."""
    question, more = row.get("question"), {}
    if "question_stem" in row:  # most of OpenBookQA's are to be finished
        question, more = row["question_stem"], {"unfinished": True}
    if not isinstance(question, dict):
        texts, labels = row["choices"]["text"], row["choices"]["label"]
        return multiple_choice(question, texts, row["answerkey"], labels, **more)
    # AI2's: the options are inside the question
    if "question_concept" in question:
        more = {"task": "commonsenseqa"}
    texts = [option["text"] for option in question["choices"]]
    labels = [option["label"] for option in question["choices"]]
    return multiple_choice(question["stem"], texts, row["answerkey"], labels, **more)


def level_in(text):
    """The number in "Level 3"; 0 if there is none ("Level ?")."""
    digits = re.search(r"\d+", str(text))
    return int(digits[0]) if digits else 0


def math(row):
    answer = row.get("answer")
    if answer in (None, ""):
        answer = extract_boxed(row.get("solution") or "")
    return {"question": row["problem"], "answer": answer, "level": level_in(row.get("level"))}


def dart(row):
    metadata = row.get("query_metadata") or {}
    level = level_in(metadata.get("level"))
    return {"question": row["query"], "answer": row["gt_ans"], "level": level}


def gsm8k(row):
    _, mark, answer = str(row["answer"]).rpartition("####")
    if not mark:
        return None
    return {"question": row["question"], "answer": answer.strip().replace(",", "")}


def mmlu(row):
    options = [row[name] for name in "abcd"]
    return multiple_choice(row["question"], options, row["answer"].strip(), "ABCD")


def mmlu_numbered(row):
    options = [row[f"choice{n}"] for n in range(4)]
    return multiple_choice(row["question"], options, row["answer"])


def mmlu_listed(row):
    if str(row["answer"]).isalpha():  # a letter: our own schema
        return None
    return multiple_choice(row["question"], row["choices"], row["answer"])


def mmlu_pro(row):
    if not isinstance(row["options"], list):
        return None
    options = [text for text in row["options"] if text != "N/A"]  # which fills up to ten
    ours = multiple_choice(row["question"], options, row["answer"], LETTERS[:len(options)])
    index = LETTERS.index(ours["answer"])
    if row.get("answer_index", index) not in (index, str(index)):
        raise ValueError(f"answer {row['answer']!r} but answer_index {row['answer_index']!r}")
    return ours


def agieval(row):
    passage = {"context": row.get("passage")}
    if not row["options"]:  # a question with a written answer
        return {"question": row["question"], "answer": row["answer"], **passage}
    options = []
    for n, text in enumerate(as_list(row["options"])):
        options.append(re.sub(rf"^\({LETTERS[n:n + 1]}\)\s*", "", text))  # "(A)text"
    letters = LETTERS[:len(options)]
    return multiple_choice(row["question"], options, row["label"], letters, **passage)


def boolq(row):
    name = "answer" if "answer" in row else "label"
    key = {"true": 0, "false": 1} if name == "answer" else {"1": 0, "0": 1}
    option = key.get(str(row.get(name)).lower())
    if option is None:  # the answer may be a word of the passage: another schema
        return None
    return multiple_choice(row["question"], ["yes", "no"], option, context=row["passage"])


def piqa(row):
    return multiple_choice(row["goal"], [row["sol1"], row["sol2"]], row["label"])


def hellaswag(row):
    return multiple_choice(row["ctx"], row["endings"], row["label"], unfinished=True)


def winogrande(row):
    before, gap, after = row["sentence"].partition("_")
    if not gap or "_" in after:
        raise ValueError("a sentence with one gap, written _, was expected")
    filled = [before + row["option1"], before + row["option2"]]
    return multiple_choice(row["sentence"], filled, row["answer"], "12", continuation=after)


def winogrande_contexts(row):
    """WinoGrande as prepared for scoring by likelihood: gives the same as its sentence does."""
    after = " " + row["continuation"].lstrip()
    shared = os.path.commonprefix(row["context_options"])
    sentence = shared[:shared.rfind(" ") + 1] + "_" + after
    return multiple_choice(sentence, row["context_options"], row["gold"], continuation=after)


def copa(row):
    joint = {"cause": ", because", "effect": ", therefore"}.get(row["question"])
    if joint is None:
        return None
    options = [text[:1].lower() + text[1:] for text in (row["choice1"], row["choice2"])]
    begun = row["premise"].rstrip(" .") + joint
    return multiple_choice(begun, options, row["label"], unfinished=True)


def query_choices(row):
    return multiple_choice(row["query"], row["choices"], row["gold"], unfinished=True)


def truthfulqa(row):
    incorrect = [text for text in row["incorrect answers"].split(";") if text.strip()]
    return shuffled_choice(row["question"], row["best answer"], incorrect)


def truthfulqa_mc1(row):
    targets = row["mc1_targets"]
    if not isinstance(targets, dict):
        return None
    options, index = targets["choices"], targets["labels"].index(1)
    return shuffled_choice(row["question"], options[index], options[:index] + options[index + 1:])


def gpqa(row):
    incorrect = [row[f"incorrect answer {n}"] for n in (1, 2, 3)]
    return shuffled_choice(row["question"], row["correct answer"], incorrect)


def arithmetic(row):
    if "answer" in row:
        return None
    return {"prompt": row["context"], "answer": row["continuation"].strip(), "stop": "\n"}


def squad(row):
    """A question about a text. Several answers may be correct; if none is, "unanswerable" is."""
    answers = row["answers"]
    texts = answers["text"] if isinstance(answers, dict) else answers
    if "answer" in row or not isinstance(texts, list):
        return None
    if not texts:
        texts = ["unanswerable"]
    texts = [text["text"] if isinstance(text, dict) else text for text in texts]
    return {"context": row["context"], "question": row["question"], "answer": texts[0],
            "answers": texts, "metric": "f1"}


# The table. Each line is (task, fields, reader); fields are names in small letters.
#
#   name     the row must have this field
#   name?    the row may have it: the reader uses it, or can do without it
#   ...      the row may have any other field, even one that looks like a part of the question
#
# ORDER MATTERS. A row is read by the first line all of whose required fields it has and whose
# reader returns something; a reader that returns None passes the row on to the next line. So a
# line with more fields comes before one with some of the same: CommonsenseQA before ARC, boolq
# before our own. Our own is the last: it asks for "answer" alone.
SCHEMAS = (
    ("openbookqa", "question_stem, choices, answerkey", labelled_options),
    ("commonsenseqa", "question, question_concept, choices, answerkey", labelled_options),
    ("arc", "question, answerkey, choices?", labelled_options),
    ("math", "problem, answer?, solution?, level?", math),
    ("dart", "query, gt_ans, query_metadata?", dart),
    ("gsm8k", "question, answer", gsm8k),
    ("mmlu", "question, a, b, c, d, answer", mmlu),
    ("mmlu", "question, choice0, choice1, choice2, choice3, answer", mmlu_numbered),
    ("mmlu", "question, subject, choices, answer", mmlu_listed),
    ("agieval", "question, options, label, passage?, answer?", agieval),
    ("mmlu_pro", "question, options, answer, answer_index?", mmlu_pro),
    ("boolq", "question, passage, answer?, label?", boolq),
    ("piqa", "goal, sol1, sol2, label?", piqa),
    ("hellaswag", "ctx, endings, label, ctx_a?, ctx_b?", hellaswag),
    ("winogrande", "sentence, option1, option2, answer", winogrande),
    ("winogrande", "context_options, continuation, gold", winogrande_contexts),
    ("copa", "premise, question, choice1, choice2, label", copa),
    ("choices", "query, choices, gold", query_choices),
    ("arithmetic", "context, continuation", arithmetic),
    ("truthfulqa", "question, best answer, incorrect answers, correct answers?, "
                   "best incorrect answer?", truthfulqa),
    ("truthfulqa", "question, mc1_targets, mc2_targets?", truthfulqa_mc1),
    ("gpqa", "question, correct answer, incorrect answer 1, incorrect answer 2, "
             "incorrect answer 3, ...", gpqa),
    ("squad", "context, question, answers, plausible_answers?", squad),
    ("questions", "answer, question?, prompt?, id?, task?, level?, choices?, context?, answers?, "
                  "stop?, max_new_tokens?, metric?, unfinished?, continuation?", dict),
)
