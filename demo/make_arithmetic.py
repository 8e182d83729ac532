"""Arithmetic of eight kinds for a really pretrained model: two worked examples, then a question.

    27 + 14 = 41
    63 + 25 = 88
    89 + 93 =

The answer ends at the line's end, so that one pass over prompt and answer shows whether the model
would say it. The kinds of problem are the tasks; a problem is in one file only, by a hash of
its text. The same seed makes the same files.

    python demo/make_arithmetic.py runs/arithmetic --label 48 --test 100
"""
import argparse
import hashlib
import json
import random
from pathlib import Path

KINDS = {  # operator, digits of each operand
    "add1": ("+", (1, 1)), "add2": ("+", (2, 2)), "add3": ("+", (3, 3)), "sub1": ("-", (1, 1)),
    "sub2": ("-", (2, 2)), "mul1": ("*", (1, 1)), "mul2": ("*", (2, 1)), "sum3": ("+", (1, 1, 1)),
}


def problem(kind, rng):
    """(text, answer) of a random problem; differences are never negative."""
    operator, digits = KINDS[kind]
    numbers = [rng.randrange(10 ** (n - 1) if n > 1 else 0, 10 ** n) for n in digits]
    if operator == "-":
        numbers.sort(reverse=True)
    value = {"+": sum(numbers), "-": numbers[0] - numbers[-1], "*": numbers[0] * numbers[-1]}
    return f" {operator} ".join(map(str, numbers)), value[operator]


def is_test(text):
    """Whether a problem belongs to the test file; its text decides."""
    return hashlib.sha256(text.encode()).digest()[0] < 128


def questions(kind, number, test, seed, tries=100_000):
    """At most `number` different questions of a kind, fewer where there are fewer."""
    rng, rows = random.Random(f"{seed}/{kind}"), {}
    examples = [problem(kind, rng) for _ in range(2)]  # the same for training and test questions
    shown = "".join(f"{text} = {answer}\n" for text, answer in examples)
    for _ in range(tries):
        text, answer = problem(kind, rng)
        if len(rows) == number:
            break
        if is_test(text) == test and (text, answer) not in examples:
            rows[text] = {"id": f"{kind}: {text}", "task": kind, "prompt": f"{shown}{text} =",
                           "answer": str(answer), "stop": "\n", "max_new_tokens": 8}
    return list(rows.values())


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where label.jsonl and test.jsonl are written")
    parser.add_argument("--label", type=int, default=48, help="training questions per kind")
    parser.add_argument("--test", type=int, default=100, help="test questions per kind")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, number, test in (("label", args.label, False), ("test", args.test, True)):
        rows = [row for kind in KINDS for row in questions(kind, number, test, args.seed)]
        random.Random(args.seed).shuffle(rows)  # so that --limit takes some of every kind
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (args.folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{args.folder / name}.jsonl: {len(rows)} questions")


if __name__ == "__main__":
    main()
