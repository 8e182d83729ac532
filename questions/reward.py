"""What an answer's text says, and whether it is correct.

Model output is text to compare and is never run.

    grade("so \\\\boxed{2/4}", Question("1", "halves", 0, "What is 1/2?", "1/2"))    # 1.0
"""
import re

from questions.grading import BRACE, answers_equal, extract_boxes
from questions.loading import OPENED
from questions.schemas import LETTERS, f1

MAX_LENGTH = 4000  # characters of an answer that are read
# The letter that an answer begins with, in brackets or on its own: "(B) green", "B.", "Answer: B".
# "A cat" and "I think" begin with words. No introduction may itself begin with a letter of LETTERS
# other than A: answers.grade_if_settled trusts the first letter before the rest is written.
_LETTER = re.compile(
    r"(?:(?:answer|option|the (?:correct |right |best |final )?(?:answer|option|choice) is)"
    r"(?:\s*[:：=])?|\s)*"
    rf"(?:[(\[]\s*([{LETTERS}])\s*[)\]]|"
    rf"([{LETTERS}])(?=[.)]|\s*:|\s+[-–—]\s|\s*$|\s*\n))", re.IGNORECASE)
# \boxed{A} or \boxed{B}: whoever marks two letters chooses none
_SECOND = re.compile(r"\s*(?:[,/&]\s*(?:and|or)?|and|or)\s", re.IGNORECASE)
# \boxed{B}, **B** and <b>B</b>, and marks that may be left over: *B*, _B_, $B$, `B`, "B", \(B\)
_BOX = re.compile(r"\\(?:boxed|fbox|text[a-z]*|math[a-z]*)\s*\{([^{}]*)\}")
_BOLD = re.compile(r"\*\*([^*]+)\*\*|__([^_]+)__|<(?:b|strong)>([^<]+)</(?:b|strong)>")
_MARKS = re.compile(r"[*_`$\"“”‘’]|\\[()\[\]]|^\s*#+\s")
_LETTERS_OR_DIGITS = re.compile(r"\w(?: \w)+")  # single ones with blanks between them


def extract_answer(text, question):
    """What a model's answer text says: a letter, or the expression in its box; else None. A box
    that the prompt opened is the answer; else the last box of the text. A verbatim prompt that
    asks for no box takes the whole text, too, and only that if a `stop` ends it."""
    if question.choices:
        return extract_letter(without_emphasis(text))
    if not question.asks_for_box:
        boxed = None if question.stop else extract_boxes(text)
        return boxed or text.strip() or None
    begun = closed_by_text(text)
    if begun is None:
        return extract_boxes(text)
    return extract_boxes(begun) or begun


def with_beginning(text, question):
    """The answer that a text ends, if --begin began it. A box that it opened is like one that the
    prompt opened: only what is in it belongs to the answer."""
    if question.choices:
        return question.begin + text
    return question.begin.rpartition(OPENED)[2] + text


def extract_letter(text):
    """The letter that an answer begins with; None if there is none, or a second one next to it."""
    match = _LETTER.match(text)
    if match is None:
        return None
    joint = _SECOND.match(text, match.end())
    if joint is not None and _LETTER.match(text, joint.end()):
        return None
    return match[match.lastindex].upper()


def without_emphasis(text):
    """The text without boxes and bold type, each of whose contents then ends its line: a letter
    that is marked so is meant as one, whatever follows."""
    for _ in range(3):  # boxes in boxes: \\boxed{\\textbf{(B)}}
        text = _BOX.sub(r"\1\n", text)
    text = _BOLD.sub(r"\1\2\3\n", text)
    return _MARKS.sub("", text)


def closed_by_text(text):
    """What comes before the first brace that closes none of the text's own: the end of a box that
    the prompt opened; None if there is no such brace. A base model then continues with examples of
    its own, which do not count."""
    depth = 0
    for mark in BRACE.finditer(text):
        depth += (mark[0] == "{") - (mark[0] == "}")
        if depth < 0:
            return text[:mark.start()]
    return None


def grade(text, question):
    """The reward of a model's answer text, in [0, 1]: 1 if it is correct, SQuAD's f1 if that is the
    question's metric. Never raises, never hangs, never evaluates the text as code."""
    text = text[:MAX_LENGTH]
    if question.stop:
        text = text.partition(question.stop)[0]
    text = with_beginning(text, question)
    golds = question.answers or (question.answer,)
    answer = extract_answer(text, question)
    if question.metric == "f1":
        return f1(text if answer is None else answer, golds)
    if answer is None:
        return 0.0
    return float(any(says_the_same(answer.strip(), gold.strip(), question) for gold in golds))


def says_the_same(answer, gold, question):
    """True if an answer is as good as the gold answer. Letters, answers that a `stop` ends, and
    lists like "c a b" are compared by their spelling, any other by its mathematical meaning."""
    if question.choices or question.stop or _LETTERS_OR_DIGITS.fullmatch(gold):
        return answer.split() == gold.split()  # "c a b" is no product
    return answer == gold or answers_equal(answer, gold)
