"""Arithmetic for any language model: a ladder of kinds, from one-digit sums to seven-digit ones.

    27 + 14 = 41
    63 + 25 = 88
    89 + 93 =

A run without question files needs problems that the base model answers sometimes: where it is
always or never correct, there is nothing to learn. So the model is asked a few problems of every
kind, and the kinds between are taken (`kinds_between`). The answer ends at the line's end. A
problem is for training or for the test by a hash of its text, and the same seed makes the same
problems.

    training_questions, test_questions = arithmetic_questions(["add2", "sub2"], number=50, seed=0)
"""
import hashlib
import random

from questions.loading import Question

KINDS = {  # name: (operator, digits of each number)
    "add1": ("+", (1, 1)), "add2": ("+", (2, 2)), "add3": ("+", (3, 3)), "add5": ("+", (5, 5)),
    "add7": ("+", (7, 7)),
    "sub1": ("-", (1, 1)), "sub2": ("-", (2, 2)), "sub4": ("-", (4, 4)), "sub6": ("-", (6, 6)),
    "mul11": ("*", (1, 1)), "mul21": ("*", (2, 1)), "mul31": ("*", (3, 1)), "mul41": ("*", (4, 1)),
    "mul22": ("*", (2, 2)),
    "div": ("/", (2, 1)), "mod": ("%", (3, 1)),
    "sum3": ("+", (1, 1, 1)), "sum4": ("+", (1, 1, 1, 1)), "sum5": ("+", (1, 1, 1, 1, 1)),
    "sum33": ("+", (2, 2, 2)),
    "muladd": ("*+", (1, 1, 2)),
}
EXAMPLES = 2            # worked problems in every prompt
ANSWER_TOKENS = 12      # enough for nine digits, one by one
ASKED_PER_KIND = 24     # so a share is known to about 20 points either way
BETWEEN = (0.1, 0.9)    # shares of correct answers at which a kind is taken
MOST_KINDS = 8          # with 50 problems each this is an hour of search on a small model
TRIES = 100             # draws per problem that is wanted; one-digit kinds have few problems


# ---- problems ----

def problem(kind, rng):
    """(text, answer) of a random problem of a kind. Differences are not negative, quotients have no
    remainder, and nothing is divided by zero."""
    operator, digits = KINDS[kind]
    numbers = [rng.randrange(10 ** (n - 1) if n > 1 else 0, 10 ** n) for n in digits]
    a, b = numbers[:2]
    if operator == "+":
        return " + ".join(map(str, numbers)), sum(numbers)
    if operator == "-":
        return f"{max(a, b)} - {min(a, b)}", abs(a - b)
    if operator == "*":
        return f"{a} * {b}", a * b
    if operator == "*+":
        return f"{a} * {b} + {numbers[2]}", a * b + numbers[2]
    b = max(b, 2)  # the divisor; 0 and 1 are no problem
    if operator == "/":
        return f"{a * b} / {b}", a
    return f"{a} % {b}", a % b


def is_test(text):
    """Whether a problem is a test problem: its text decides, whatever the seed."""
    return hashlib.sha256(text.encode()).digest()[0] < 128


def problems(kind, number, test, seed):
    """At most `number` different Questions of a kind, fewer if there are not as many. Training and
    test questions have the same worked examples before the problem."""
    rng = random.Random(f"{seed}/{kind}")
    examples = [problem(kind, rng) for _ in range(EXAMPLES)]
    worked = "".join(f"{text} = {answer}\n" for text, answer in examples)
    questions = {}
    for _ in range(TRIES * number):
        if len(questions) == number:
            break
        text, answer = problem(kind, rng)
        if is_test(text) == test and (text, answer) not in examples:
            questions[text] = Question(
                id=f"{kind}: {text}", task=kind, level=0, question="", answer=str(answer),
                prompt=f"{worked}{text} =", stop="\n", max_new_tokens=ANSWER_TOKENS)
    return list(questions.values())


# ---- which kinds ----

def sample_of_every_kind(seed):
    """The training problems that the base model is asked before kinds are taken."""
    return [question for kind in KINDS for question in problems(kind, ASKED_PER_KIND, False, seed)]


def shares_of_kinds(questions, correct):
    """{kind: share of correct answers}. correct: a reward per question."""
    rewards = {kind: [] for kind in KINDS}
    for question, reward in zip(questions, correct):
        rewards[question.task].append(reward)
    return {kind: sum(values) / len(values) for kind, values in rewards.items() if values}


def kinds_between(shares):
    """Those of {kind: share of correct answers} that are neither too hard nor too easy: at most
    MOST_KINDS, those nearest to one half."""
    lowest, highest = BETWEEN
    between = [kind for kind in shares if lowest <= shares[kind] <= highest]
    nearest = sorted(between, key=lambda kind: abs(shares[kind] - 0.5))[:MOST_KINDS]
    return {kind: shares[kind] for kind in between if kind in nearest}


def held_out_kinds(kinds):
    """The kinds that no training question comes from: every fifth, from the middle on; none
    of fewer than three kinds."""
    if len(kinds) < 3:
        return []
    return kinds[len(kinds) // 2::5]


def arithmetic_questions(kinds, number, seed):
    """(training questions, test questions): `number` of each kind in both, mixed, so that --limit
    takes some of every kind. Held-out kinds have test questions only."""
    held_out = held_out_kinds(kinds)
    training = [question for kind in kinds if kind not in held_out
                for question in problems(kind, number, False, seed)]
    test = [question for kind in kinds for question in problems(kind, number, True, seed)]
    for questions in (training, test):
        random.Random(seed).shuffle(questions)
    return training, test
