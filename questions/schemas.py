"""Question files, whoever wrote them: file formats, our own row, and a table of other schemas.

A file holds JSON lines, a JSON list, CSV (with a header, or MMLU's six columns without one),
parquet where pyarrow is installed, or SQuAD's nested JSON. A row of our own schema has

    question or prompt   a question is wrapped in the paper's prompt, a prompt given as it stands
    answer               the right answer; with choices, the letter of the right one
    choices              2 to 13 options
    context              a text to put before the question
    answers              further right answers
    metric               "exact" (the default), or "f1" for the share of words in common
    stop                 a text that ends an answer, such as a new line
    unfinished           true: the choices go on with the question, as in "The sky is"
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
NO_ANSWER = ("unanswerable", "not answerable", "no answer", "na")  # "N/A" without its mark
NUMBERS = ("answer", "answers", "choices", "id", "level", "max_new_tokens")  # these may be numbers
CARRIED = ("id", "prompt", "stop", "max_new_tokens")  # ours, in whichever schema they stand
BEYOND = "cells beyond the header"  # the field for those of a CSV


# ---- SQuAD's metric ----

def f1(text, golds):
    """SQuAD's score of a text, in [0, 1], by the gold answer that is nearest to it: the harmonic
    mean of the share of its words that are gold and of the share of the gold words that it has.
    Articles, case and punctuation do not count; two that say "no answer" agree."""
    said, best = plain_words(text), 0.0
    for gold in map(plain_words, golds):
        common = sum((Counter(said) & Counter(gold)).values())
        either = len(said) + len(gold)
        best = max(best, 2 * common / either if either else 1.0)
    return best


def plain_words(text):
    """The words that SQuAD compares; none where the text says that there is no answer."""
    letters = "".join(c for c in text.lower() if c not in string.punctuation)
    words = re.sub(r"\b(a|an|the)\b", " ", letters).split()
    return [] if " ".join(words) in NO_ANSWER else words


# ---- files ----

def rows_of(file):
    """[(row number, row or its JSON text, fields to add)] of a file in any of the formats."""
    data = read_file(file)
    if file.suffix.lower() == ".parquet":
        rows = [*enumerate(parquet_rows(file, data), 1)]
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: not UTF-8 ({error})") from error
        rows = [*(csv_rows if file.suffix.lower() == ".csv" else json_rows)(file, text)]
    labels = file.with_name(file.stem + "-labels.lst")  # PIQA's right options stand beside it
    if not labels.exists():
        return [(*row, {}) for row in rows]
    found = read_file(labels).decode(errors="replace").split()
    if len(found) != len(rows):
        raise InputError(f"{labels}: {len(found)} labels for {len(rows)} rows of {file}")
    return [(*row, {"label": label}) for row, label in zip(rows, found)]


def json_rows(file, text):
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
    if not isinstance(value, dict) or not isinstance(value.get("data"), list):
        return value if isinstance(value, list) else [value]
    try:
        return [{"context": paragraph["context"]} | {key: asked[key] for key in (
                    "id", "question", "answers")}
                for article in value["data"] for paragraph in article["paragraphs"]
                for asked in paragraph["qas"]]
    except (KeyError, TypeError):
        return [value]


def csv_rows(file, text):
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
    for number, row in enumerate(rows[start:], start + 1):
        rest = row[len(names):]
        yield number, dict(zip(names, row)) | ({BEYOND: rest} if rest else {})


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
    """The fields of the Question that a row is, in whichever schema. KeyError or ValueError say
    what is wrong with a row: it would be asked wrongly, or no answer to it could be right."""
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {type(row).__name__}")
    row = as_ours(row)
    name, task, context, asked, prompt, answer, stop, metric, continuation = (
        text_of(row, name) for name in ("id", "task", "context", "question", "prompt", "answer",
                                        "stop", "metric", "continuation"))
    choices, answers = texts_of(row, "choices"), texts_of(row, "answers")
    question = "\n\n".join(filter(None, (context, asked)))
    words = [question, *choices, prompt, answer, *filter(None, (*answers, stop, continuation))]
    digest = hashlib.sha256("\0".join(words).encode()).hexdigest()  # raises if it is no text
    letters = list(LETTERS[:len(choices)])
    right = dict(zip(letters, choices)).get(answer)
    for is_wrong, reason in (
            (not answer.strip(), "no answer"),
            (not (prompt or question).strip(), "the question is empty"),
            (context and prompt, "a prompt is given as it stands: its context belongs into it"),
            (metric not in ("", *METRICS), f"metric must be exact or f1, got {metric!r}"),
            (metric == "f1" and choices, "metric f1 is for answers in words, not for choices"),
            (len(choices) == 1 or len(choices) > len(LETTERS),
             f"{len(choices)} choices; 2 to {len(LETTERS)} are supported"),
            (choices and answer not in letters,
             f"answer {answer!r} is not a letter of its {len(choices)} choices"),
            (choices.count(right) > 1, f"the right choice stands there twice: {right!r}"[:80]),
            (choices and answers, "several answers beside choices: only one letter is right"),
            (continuation and not choices, "a continuation without choices"),
            (row.get("unfinished") not in (None, True, False),
             f"unfinished must be true or false, got {row.get('unfinished')!r}"[:80])):
        if is_wrong:
            raise ValueError(reason)
    return {"id": name or digest[:12], "task": task or "questions", "question": question,
            "answer": answer, "choices": choices, "prompt": prompt or None, "stop": stop or None,
            "answers": tuple(dict.fromkeys((answer, *answers))) if answers else (),
            "metric": metric or "exact", "continuation": continuation,
            "unfinished": bool(row.get("unfinished")),
            "level": whole_of(row, "level", 0),
            "max_new_tokens": whole_of(row, "max_new_tokens", 1) or None}


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
    values = [] if row.get(name) in (None, "") else row[name]
    if not isinstance(values, list):
        raise ValueError(f"{name} must be a list, got {str(values)[:60]}")
    found = tuple(text_of({name: value}, name) for value in values)
    if not all(one.strip() for one in found):
        raise ValueError(f"an empty text among the {len(found)} {name}")
    return found


def whole_of(row, name, least):
    """A field that is a whole number; absent is 0."""
    number = text_of(row, name)
    if number and (not re.fullmatch(r"\d{1,9}(\.0)?", number) or float(number) < least):
        raise ValueError(f"{name} must be a whole number, at least {least}; got {number}")
    return int(float(number or 0))


def as_ours(row):
    """A row of any schema as a row of ours. ValueError where none claims it, or where the one that
    does would lose a field."""
    names = [" ".join(str(name).lower().split()) for name in row]
    if len(set(names)) < len(names):
        raise ValueError(f"two fields have one name: {', '.join(sorted(row)[:8])}")
    row = dict(zip(names, row.values()))
    for task, fields, read in SCHEMAS:
        claimed = fields.split(", ")
        if all(name in row or name[-1] in "?." for name in claimed):
            found = read(row)
            if found is not None:
                refuse_loss(row, claimed)
                return {name: row[name] for name in CARRIED if name in row} | {"task": task} | found
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
    claimed = {name.rstrip("?") for name in claimed}
    for name, value in row.items():
        known = name in claimed or "..." in claimed or value in (None, "", [], {})
        if not known and LOOKS_NEEDED.match(name):
            beside = ", ".join(sorted(claimed & row.keys()))
            raise ValueError(f"no known schema reads {name!r} beside {beside}; "
                             "it looks like a part of the question")


# ---- the table ----

def listed(options):
    """The options, if they are a list: the letters of a text would pass for options, too."""
    if not isinstance(options, list):
        raise ValueError(f"the options must be a list, got {str(options)[:60]}")
    return options


def chosen(question, options, key, keys=None, **more):
    """A multiple-choice row of ours. key: which option is right, as one of `keys`, the options'
    names; without keys they are numbered from 0."""
    if isinstance(key, list) and len(key) == 1:
        key = key[0]
    keys = [str(name) for name in (range(len(listed(options))) if keys is None else keys)]
    if len(keys) != len(options):
        raise ValueError(f"{len(options)} options for {len(keys)} labels")
    if str(key) not in keys:
        raise ValueError(f"the right option {key!r} is not among {', '.join(keys)}")
    letter = chr(ord("A") + keys.index(str(key)))
    return {"question": question, "choices": options, "answer": letter, **more}


def mixed(question, right, wrong):
    """A multiple-choice row whose file has the right option first: here the options stand in an
    order drawn from the question's text, so that it is the same whenever the file is read."""
    right, *wrong = (text.strip() for text in (right, *wrong))
    order = lambda text: hashlib.sha256(f"{question}\0{text}".encode()).digest()
    options = sorted([right, *wrong], key=order)
    return chosen(question, options, options.index(right))


def labelled(row):
    """ARC, OpenBookQA and CommonsenseQA as AI2 or as Hugging Face publish them."""
    question, more = row.get("question"), {}
    if "question_stem" in row:  # OpenBookQA's are mostly to be finished
        question, more = row["question_stem"], {"unfinished": True}
    if isinstance(question, dict):
        more = {"task": "commonsenseqa"} if "question_concept" in question else {}
        texts, labels = ([option[key] for option in question["choices"]]
                         for key in ("text", "label"))
        question = question["stem"]
    else:
        texts, labels = row["choices"]["text"], row["choices"]["label"]
    return chosen(question, texts, row["answerkey"], labels, **more)


def level_in(text):
    """The number in "Level 3"; 0 where there is none ("Level ?")."""
    found = re.search(r"\d+", str(text))
    return int(found.group()) if found else 0


def math(row):
    answer = row.get("answer")
    if answer in (None, ""):
        answer = extract_boxed(row.get("solution") or "")
    return {"question": row["problem"], "answer": answer, "level": level_in(row.get("level"))}


def gsm8k(row):
    _, mark, answer = str(row["answer"]).rpartition("####")
    if mark:
        return {"question": row["question"], "answer": answer.strip().replace(",", "")}


def mmlu_pro(row):
    if not isinstance(row["options"], list):
        return None
    options = [text for text in row["options"] if text != "N/A"]  # which fills up to ten
    found = chosen(row["question"], options, row["answer"], LETTERS[:len(options)])
    index = LETTERS.index(found["answer"])
    if row.get("answer_index", index) not in (index, str(index)):
        raise ValueError(f"answer {row['answer']!r} but answer_index {row['answer_index']!r}")
    return found


def agieval(row):
    passage = {"context": row.get("passage")}
    if not row["options"]:  # a question with a written answer
        return {"question": row["question"], "answer": row["answer"], **passage}
    options = [re.sub(rf"^\({LETTERS[n:n + 1]}\)\s*", "", text)
               for n, text in enumerate(listed(row["options"]))]
    return chosen(row["question"], options, row["label"], LETTERS[:len(options)], **passage)


def boolq(row):
    said = f"answer {row['answer']}" if "answer" in row else f"label {row.get('label')}"
    key = {"answer true": 0, "answer false": 1, "label 1": 0, "label 0": 1}.get(said.lower())
    if key is not None:  # the answer may be a word of the passage: another schema
        return chosen(row["question"], ["yes", "no"], key, context=row["passage"])


def winogrande(row):
    before, gap, after = row["sentence"].partition("_")
    if not gap or "_" in after:
        raise ValueError("a sentence with one gap, written _, was expected")
    begun = [before + row["option1"], before + row["option2"]]
    return chosen(row["sentence"], begun, row["answer"], "12", continuation=after)


def winogrande_contexts(row):
    """WinoGrande as prepared for scoring by likelihood: gives the same as its sentence does."""
    after = " " + row["continuation"].lstrip()
    shared = os.path.commonprefix(row["context_options"])
    sentence = shared[:shared.rfind(" ") + 1] + "_" + after
    return chosen(sentence, row["context_options"], row["gold"], continuation=after)


def copa(row):
    joint = {"cause": ", because", "effect": ", therefore"}.get(row["question"])
    options = [text[:1].lower() + text[1:] for text in (row["choice1"], row["choice2"])]
    return joint and chosen(row["premise"].rstrip(" .") + joint, options, row["label"],
                            unfinished=True)


def truthfulqa(row):
    wrong = [text for text in row["incorrect answers"].split(";") if text.strip()]
    return mixed(row["question"], row["best answer"], wrong)


def truthfulqa_mc1(row):
    if isinstance(row["mc1_targets"], dict):
        texts, labels = row["mc1_targets"]["choices"], row["mc1_targets"]["labels"]
        right = labels.index(1)
        return mixed(row["question"], texts[right], texts[:right] + texts[right + 1:])


def arithmetic(row):
    if "answer" not in row:
        return {"prompt": row["context"], "answer": row["continuation"].strip(), "stop": "\n"}


def squad(row):
    """A question about a text. Several answers may be right; none is: "unanswerable"."""
    answers = row["answers"]
    texts = answers["text"] if isinstance(answers, dict) else answers
    if "answer" in row or not isinstance(texts, list):
        return None
    texts = [text["text"] if isinstance(text, dict) else text for text in texts] or ["unanswerable"]
    return {"context": row["context"], "question": row["question"], "answer": texts[0],
            "answers": texts, "metric": "f1"}


SCHEMAS = (
    ("openbookqa", "question_stem, choices, answerkey", labelled),
    ("commonsenseqa", "question, question_concept, choices, answerkey", labelled),
    ("arc", "question, answerkey, choices?", labelled),
    ("math", "problem, answer?, solution?, level?", math),
    ("dart", "query, gt_ans, query_metadata?", lambda row: {
        "question": row["query"], "answer": row["gt_ans"],
        "level": level_in((row.get("query_metadata") or {}).get("level"))}),
    ("gsm8k", "question, answer", gsm8k),
    ("mmlu", "question, a, b, c, d, answer", lambda row: chosen(
        row["question"], [row[name] for name in "abcd"], row["answer"].strip(), "ABCD")),
    ("mmlu", "question, choice0, choice1, choice2, choice3, answer", lambda row: chosen(
        row["question"], [row[f"choice{n}"] for n in range(4)], row["answer"])),
    ("mmlu", "question, subject, choices, answer", lambda row: None if str(row["answer"]).isalpha()
        else chosen(row["question"], row["choices"], row["answer"])),
    ("agieval", "question, options, label, passage?, answer?", agieval),
    ("mmlu_pro", "question, options, answer, answer_index?", mmlu_pro),
    ("boolq", "question, passage, answer?, label?", boolq),
    ("piqa", "goal, sol1, sol2, label?", lambda row: chosen(
        row["goal"], [row["sol1"], row["sol2"]], row["label"])),
    ("hellaswag", "ctx, endings, label, ctx_a?, ctx_b?", lambda row: chosen(
        row["ctx"], row["endings"], row["label"], unfinished=True)),
    ("winogrande", "sentence, option1, option2, answer", winogrande),
    ("winogrande", "context_options, continuation, gold", winogrande_contexts),
    ("copa", "premise, question, choice1, choice2, label", copa),
    ("choices", "query, choices, gold", lambda row: chosen(
        row["query"], row["choices"], row["gold"], unfinished=True)),
    ("arithmetic", "context, continuation", arithmetic),
    ("truthfulqa", "question, best answer, incorrect answers, correct answers?, "
                   "best incorrect answer?", truthfulqa),
    ("truthfulqa", "question, mc1_targets, mc2_targets?", truthfulqa_mc1),
    ("gpqa", "question, correct answer, incorrect answer 1, incorrect answer 2, "
             "incorrect answer 3, ...", lambda row: mixed(
        row["question"], row["correct answer"],
        [row[f"incorrect answer {n}"] for n in (1, 2, 3)])),
    ("squad", "context, question, answers, plausible_answers?", squad),
    ("questions", "answer, question?, prompt?, id?, task?, level?, choices?, context?, answers?, "
                  "stop?, max_new_tokens?, metric?, unfinished?, continuation?", dict),
)
