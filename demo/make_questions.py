"""The demo's questions: small tasks whose difficulty is a number of serial steps.

Every word is one token, so prompts read like the real thing and stay short:

    Question: 3 + 4 * 2 = Answer: \\boxed{                       -> 4 }      (left to right, mod 10)
    Question: second Options: (A) 3 (B) 7 (C) 5 (D) 1 Answer:   -> C

In domain (labelled): `math` with five levels, multiple choice `easy` and `challenge`.
Out of domain (the base model knows them, no router label ever shows them): near tasks that
share a skill in other words or other lengths, and far tasks with another skill.

    python demo/make_questions.py     writes demo/questions/{label,test,ood}.jsonl
"""
import argparse
import hashlib
import json
import random
from dataclasses import dataclass, field
from pathlib import Path

DIGITS, LETTERS, CHOICES = "0123456789", "abcdefghijklmnop", "ABCD"
OPERATIONS = {1: (3, 5, 7), 2: (6, 7, 8), 3: (8, 9), 4: (9, 10), 5: (10, 11)}  # of each level
EASY = ("same", "largest", "second", "sum1", "sum3", "sum6")
CHALLENGE = ("sum6", "sum7", "sum8")
NEAR = ("biggest", "smallest", "compute")        # other wording, neighbouring skill
FAR = ("reverse", "count", "next", "sort")       # another skill
SHARES = {"math": 0.4, "easy": 0.3, "challenge": 0.3}
WORDS = (["<unk>", "<eos>", "Question:", "Options:", "Answer:", "\\boxed{", "}", "=", "+", "-", "*"]
         + [f"({c})" for c in CHOICES] + [*CHOICES, *DIGITS, *LETTERS]
         + ["same", "largest", "second", "smallest", "biggest", "compute",
            "reverse", "count", "in", "next", "sort"])


@dataclass
class Draft:
    """A question as words; hints are (position in the prompt, word the model may know there)."""
    task: str
    level: int
    prompt: list
    reply: list          # the words of the correct answer, without the end mark
    answer: str
    choices: list = None
    hints: list = field(default_factory=list)

    def row(self, name):
        row = {"id": name, "task": self.task, "level": self.level, "prompt": " ".join(self.prompt),
               "answer": self.answer, "max_new_tokens": 2 if self.choices else 7}
        return row | ({"choices": self.choices} if self.choices else {})


def running(rng, operations):
    """Words of a left-to-right sum modulo 10, and its value after every operand."""
    value = rng.randrange(10)
    words, values = [str(value)], [str(value)]
    for _ in range(operations):
        sign = rng.choice("+-*")
        operand = rng.choice((2, 3)) if sign == "*" else rng.randrange(10)
        words += [sign, str(operand)]
        value = {"+": value + operand, "-": value - operand, "*": value * operand}[sign] % 10
        values.append(str(value))
    return words, values


def boxed(task, level, question, answer, hints=()):
    """A question whose answer is an expression in \\boxed{}, already opened by the prompt."""
    prompt = ["Question:", *question, "Answer:", "\\boxed{"]
    return Draft(task, level, prompt, [*answer, "}"], " ".join(answer), None, list(hints))


def math(rng, level, operations=None, words=(), task="math"):
    sum_, values = running(rng, operations or rng.choice(OPERATIONS[level]))
    hints = [(1 + len(words) + 2 * i, value) for i, value in enumerate(values) if i]
    return boxed(task, level, [*words, *sum_, "="], values[-1:], hints)


def multiple_choice(rng, kind, task, level=0):
    """One correct option among four. kind: a comparison, `same`, or `sumN` with N operations."""
    hints = []
    if kind.startswith("sum"):
        words, values = running(rng, int(kind[3:]))
        hints = [(1 + 2 * i, value) for i, value in enumerate(values) if i]
        question, target, pool = [*words, "="], values[-1], DIGITS
    elif kind == "same":
        target = rng.choice(LETTERS)
        question, pool = ["same", target], LETTERS
    else:
        question, target, pool = [kind], None, DIGITS
    if target is None:
        options = rng.sample(pool, 4)
        rank = {"largest": -1, "biggest": -1, "second": -2, "smallest": 0}[kind]
        best = [sorted(options[:n])[rank] if n >= abs(rank) else None for n in range(1, 5)]
        target = best[-1]
    else:
        options = rng.sample([word for word in pool if word != target], 3) + [target]
        rng.shuffle(options)
        best = [target if target in options[:n] else None for n in range(1, 5)]
    first = 3 + len(question)    # position of the first option's word
    hints += [(first + 2 * i, CHOICES[options.index(word)]) for i, word in enumerate(best) if word]
    listed = [word for pair in zip((f"({c})" for c in CHOICES), options) for word in pair]
    letter = CHOICES[options.index(target)]
    prompt = ["Question:", *question, "Options:", *listed, "Answer:"]
    return Draft(task, level, prompt, [letter], letter, options, hints)


def far(rng, task):
    if task == "reverse":
        word = [rng.choice(LETTERS[:10]) for _ in range(rng.randint(3, 5))]
        return boxed(task, 0, ["reverse", *word], word[::-1])
    if task == "sort":
        digits = [rng.choice(DIGITS) for _ in range(rng.randint(3, 4))]
        return boxed(task, 0, ["sort", *digits], sorted(digits))
    if task == "count":
        word, letter = [rng.choice("abc") for _ in range(rng.randint(4, 6))], rng.choice("abc")
        hints = [(4 + i, str(word[:i + 1].count(letter))) for i in range(len(word))]
        return boxed(task, 0, ["count", letter, "in", *word], [str(word.count(letter))], hints)
    word = [rng.choice(LETTERS) for _ in range(rng.randint(3, 5))]  # each letter's successor
    return boxed("next", 0, ["next", *word], [LETTERS[(LETTERS.index(c) + 1) % 16] for c in word])


def draw(rng, task):
    """One question of an evaluated task."""
    if task == "math":
        return math(rng, rng.randint(1, 5))
    if task in ("easy", "challenge"):
        return multiple_choice(rng, rng.choice(EASY if task == "easy" else CHALLENGE), task)
    if task == "compute":
        return math(rng, 0, rng.choice((4, 6, 8, 9)), ("compute",), "compute")
    return multiple_choice(rng, task, task) if task in NEAR else far(rng, task)


def held_out(prompt):
    """One prompt in eight, by its hash: questions are drawn from these, and the base model is
    trained on the others only, whatever the questions of today are."""
    return hashlib.sha256(" ".join(prompt).encode()).digest()[0] < 32


def distinct(rng, tasks, taken):
    """One question per entry of tasks, held out, none with a prompt in `taken`, which grows."""
    rows = []
    for task in tasks:
        draft = draw(rng, task)
        while " ".join(draft.prompt) in taken or not held_out(draft.prompt):
            draft = draw(rng, task)
        taken.add(" ".join(draft.prompt))
        rows.append(draft.row(f"{task}-{len(taken):05d}"))
    return rows


def make(seed=0, labels=1000, tests=2000, each=150):
    """{file name: rows}; no prompt is in them twice."""
    rng, taken = random.Random(seed), set()
    mixed = lambda n: rng.choices(list(SHARES), list(SHARES.values()), k=n)
    return {"label.jsonl": distinct(rng, mixed(labels), taken),
            "test.jsonl": distinct(rng, mixed(tests), taken),
            "ood.jsonl": distinct(rng, [t for t in NEAR + FAR for _ in range(each)], taken)}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "questions")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in make(args.seed).items():
        (args.out / name).write_text("".join(json.dumps(row) + "\n" for row in rows),
                                     encoding="utf-8")
        print(f"{args.out / name}: {len(rows)} questions")


if __name__ == "__main__":
    main()
