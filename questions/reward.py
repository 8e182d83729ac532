"""What an answer's text says, and whether it is correct. Model output is text to compare, never to run.

    grade("so \\\\boxed{2/4}", Question("1", "halves", 0, "What is 1/2?", "1/2"))    # 1.0
"""
import re

from questions.grading import answers_equal, extract_boxed
from questions.schemas import LETTERS, f1

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
    begun = closed_by_text(text)
    return extract_boxed(text) if begun is None else extract_boxed(begun) or begun


def closed_by_text(text):
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
    means (questions/grading.py)."""
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
