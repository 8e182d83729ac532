r"""Are two written answers mathematically equal?  Text -> tokens -> numbers of sympy -> comparison.

Nothing is solved or simplified.  A variable stands for random rationals, one per sample point, and
the parser calculates with them while it reads: exactly as long as + - * / and whole powers suffice,
else with DIGITS digits.  Formulas are equal if their values are, at every point where both are
defined.  Text that is no mathematics is compared word by word.

Conventions.  Nothing is rounded: 3.14 is not \pi.  A unit, percent or degree sign may be missing on
one side; two different units differ.  "x = 5" answers "5", not "y = 5"; an equation may be
multiplied by a constant, an inequality by a positive one.  A list "1, 2" is unordered; it equals
{1, 2} and, in this order, the pair (1, 2), which is an interval where the other side is a set of
reals.  \pm gives both values, 1/2x is x/2, \log has an unknown base.  Number bases are left out.
Run: python -c "import grading; print(questions.grading.answers_equal(r'\frac12', '0.5'))"   # True
"""
import random
import re
import threading
from fractions import Fraction
from operator import add, mul, neg, sub, truediv
from typing import NamedTuple

import sympy
from sympy import FiniteSet, Integer, Interval, Rational, nan, oo

MAX_LENGTH = 1000  # characters of one answer
MAX_DEPTH = 24  # brackets, powers and arguments inside each other
MAX_BITS = 3000  # of a power of a rational, and of a denominator
MAX_WORK = 60_000  # of one comparison, very roughly in microseconds
DIGITS, TINY = 400, Rational(1, 10**250)  # of an inexact number; less is rounding error
HUGE = Integer(10) ** 100  # numbers of this size count as undefined
LOCK = threading.Lock()  # sympy's precision and constants are shared by all threads

GREEK = "alpha beta gamma delta epsilon theta lambda mu rho sigma phi psi omega Delta ell".split()
CONSTANTS = {"pi": sympy.pi.evalf(DIGITS), "e": sympy.E.evalf(DIGITS), "i": sympy.I, "infty": oo,
             r"-\infty": -oo, "%": Rational(1, 100), "°": sympy.pi.evalf(DIGITS) / 180}
of_reals = lambda function: lambda x: nan if x.has(sympy.I) else function(x.evalf(DIGITS))
FUNCTIONS = {name: of_reals(getattr(sympy, name.replace("arc", "a"))) for name in
             "sin cos tan cot sec csc arcsin arccos arctan ln log exp".split()}
FUNCTIONS |= {"abs": sympy.Abs, "floor": of_reals(lambda x: sympy.floor(x + TINY)),
              "ceil": of_reals(lambda x: sympy.ceiling(x - TINY))}
NAMES = "|".join([*FUNCTIONS, "pi", "infinity"])
REWRITINGS = [(re.compile(pattern), new) for pattern, new in [  # in this order
    (r"(?<=\d) ?(, ?\\!|\{,\}) ?(?=\d{3})", ""), (r"(?<!\\)\\(left|right)(?![a-z]) ?", ""),
    (r"(?<!\\)\\((display|text)style|limits|[bB]ig[lr]?|q?quad)(?![a-z])", " "),
    (r"(?<!\\)(\\[,;:>!()\[\] ]|\$)|~", " "), (r"\\\$(.*)", r"\1 dollars"), (r"^ *\\approx", ""),
    (r"(\\\\ ?)?\\(begin|end)\{[pb]?matrix\}", r"\\\2 "), (r" ?\bpercent\b|\\%", "%"),
    (r"\^ ?(\{ ?\\circ ?\}|\\circ)| ?\bdegrees?\b", "°"), (r"- ?(\\infty|∞)", r"-\\infty "),
    (r"\\(sin|cos|tan) ?\^ ?\{-1\}", r"\\arc\1"), (r"([_^]) ?\{ ?(\w) ?\}", r"\1\2 "),
    (r"\\[lr]?vert", "|"), (r"\|([^|]*)\|", r"\\abs(\1)"), (r"\\l(floor|ceil)", r"\\\1("),
    (r"\\r(floor|ceil)", ")"), (r"\\\{ ?\\\}|\\varnothing|∅", r"\\emptyset"),
    (r"√|\\sqrt|(?<![A-Za-z\\])sqrt", r"\\sqrt"), (r"\\sqrt ?\[(\w+)\]", r"\\root{\1}"),
    (r"\\sqrt ?(\d+)", r"\\root{2}{\1}"), (r"\\sqrt", r"\\root{2}"), (r"\\pm(?![a-z])", "±"),
    (r"(\\|(?<![A-Za-z\\]))log(?! ?_)", r"\\log_\\ell "), (r"^([^±]*)±([^±]*)$", r"\1+\2,\1-\2"),
    (r"\{([^{}]*)\\over\b([^{}]*)\}", r"\\frac{\1}{\2}"), (r"\\[dtc]?(frac|binom)", r"\\\1"),
    (r"(\\frac|\\binom) ?(\d)", r"\1{\2}"), (r"(\\frac|\\binom) ?(\{[^{}]*\}) ?(\d)", r"\1\2{\3}"),
    (r"(?<![\d.^_])(\d+) ?\\frac ?(\{ ?\d+ ?\}) ?(\{ ?\d+ ?\})", r"\\mixed{\1}\2\3"),
    (r"(?<![\d.^_])(\d+) (\d+) ?/ ?(\d+)", r"\\mixed{\1}{\2}{\3}")]]
ALIASES = {old: new for new, *olds in (row.split() for row in r"""<= \le \leq \leqslant ≤; < \lt;
    >= \ge \geq \geqslant ≥; > \gt; \ne \neq != ≠; = \in ∈; * \times \cdot \ast × ·; / \div ÷; ^ **;
    - − –; ( \langle; ) \rangle; \{ \lbrace; \} \rbrace; \cup ∪; infty ∞ infinity; pi π; \and and;
    \or or""".split(";")) for old in olds}
ALIASES |= {rf"\{name}": name for name in [*CONSTANTS, *FUNCTIONS, *GREEK]}
NUMBER = re.compile(r"\d*\.\d*\\(?:overline|bar)\ ?\{\d+\}"
                    r"|(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3}(?!\d))?", re.ASCII)
TOKEN = re.compile(rf"""{NUMBER.pattern} | "[^"]*" | -\\infty | \\[a-zA-Z]+ | \\. | \*\* | [<>!]=
    | (?:and|or)\b | (?:{NAMES})(?![a-z]{{2}}) | [fgh]\(\w\) | [A-Z]\(\w\)(?=\ ?=) | d[xyzt]\b
    | (?:[A-Z]{{2,}}|[A-Za-z])(?:_\w|_\{{\w+\}})? | \S""", re.VERBOSE | re.ASCII)
# Words and units, to be put in quotes; of \text{...} only those with two letters or more.
WORD = re.compile(rf"""\\(?:text(?:bf|it|rm)?|math(?:rm|bf|it)|mbox|operatorname)\ ?\{{([^{{}}]*)\}}
    | (?<=\d)\ ?(?:[mck]m|ft|kg|lbs?|mph|hrs?)\b | \b(?:[Yy]es|[Nn]o|[A-Z][a-z]{{2}})\b
    | (?<![\\A-Za-z])(?!(?:{NAMES})[a-z]?\b)[A-Za-z][a-z]{{3,}}""", re.VERBOSE)
# After a number these change its value or meaning, so they are no unit.
NOT_UNIT = re.compile(r"""\b([mbtr]+illions?|(hundred|thousand|ten)(th)?s?|dozens?|hal(f|ves)|times
    |thirds?|quarters?|(four|fif|six|seven|eigh|nin)ths?|not|only|if|when|where|for|more|less|least
    |most|than|plus|minus|over|squared|cubed|factorial|choose|mod\w*|remainder|to|from|with\w*|root
    |between|through|base|negative|or|and|is|are|by|pi|infinity|[ie]|theta)\b""", re.VERBOSE)


def tokenize(text):
    r"""Tokens without \boxed, spacing and marks that group digits; words and units in quotes."""
    boxed = extract_boxed(text)
    text = " ".join((text if boxed is None else boxed).replace('"', " ").split()).rstrip(" .,;\\$")
    for pattern, new in REWRITINGS:
        text = pattern.sub(new, text)
    if not re.search(r"[(\[]|\\\{", text):  # in brackets, a comma stands between two items
        text = re.sub(r"(?<![\d.,^_])\d{1,3}([, ]\d{3})+(?!,?\d| ?/)",
                      lambda match: re.sub("[, ]", "", match[0]), text)
    return [ALIASES.get(token, token) for token in TOKEN.findall(WORD.sub(quoted, text))]


def quoted(match):
    body = match[0] if match[1] is None else match[1].strip(" ,;").rstrip(".")
    words = re.search(r"[A-Za-z]{2}|^[mshgL]\b", body) and body not in ("and", "or", *FUNCTIONS)
    return f' "{body}" ' if words and not body.isupper() else f" {body} "


class Reading(NamedTuple):
    """What an answer, or a part of it, says."""
    kind: str  # number, relation, list, group (in brackets), set or union
    items: tuple  # of a number its values, of a relation triples (left, sign, right), else readings
    marks: tuple = ()  # what stands between the items and around them
    unit: str = ""
    label: str = ""  # the name of a lone variable, or of one that occurs once in a relation


def decimal(token):
    r"""The rational written as "12", ".5", "1.5e3" or "0.1\overline{6}"."""
    head, _, tail = token.partition("\\")
    period, place = re.sub(r"\D", "", tail), Fraction(1, 10 ** len(head.partition(".")[2]))
    repeating = place * int(period) / (10 ** len(period) - 1) if period else 0
    return Rational(Fraction(f"0{head}") + repeating)


def power(base, exponent):
    """base^exponent; of a negative base the real root, where there is one."""
    if base == 0 or exponent.is_Integer:
        size = (base.p * base.q).bit_length() if base.is_Rational else 1
        return nan if base == exponent == 0 or size * abs(exponent) > MAX_BITS else base**exponent
    base = base.evalf(DIGITS)
    if base.is_Float and base < 0 and exponent.is_Rational and exponent.q % 2:
        return (-1) ** exponent.p * (-base) ** exponent
    return base**exponent


factorial = lambda n: sympy.factorial(n) if n.is_Integer and 0 <= n <= 1000 else nan
pair = lambda items: ("(", *"," * (len(items) - 1), ")")  # the marks of a tuple
SIGNS = {"+": add, "-": sub, "*": mul, "/": truediv}
COMMANDS = {  # and the number of their arguments; an improper mixed number is ambiguous
    r"\frac": (truediv, 2), r"\mixed": (lambda n, x, y: n + x / y if 0 < x < y else nan, 3),
    r"\binom": (lambda n, k: factorial(n) / factorial(k) / factorial(n - k), 2),
    r"\root": (lambda n, x: power(x, 1 / n), 2)}


class Parser:
    """Recursive descent over one answer."""
    CLOSING = {"(": ")]", "[": ")]", "{": "}", r"\{": [r"\}"], r"\begin": [r"\end"]}
    FACTORS = {*CLOSING, *COMMANDS, "%", "°"}

    def __init__(self, tokens, judge):
        self.tokens, self.last, self.names = ["", *reversed(tokens)], "", []
        self.judge, self.compute, self.depth = judge, judge.compute, 0

    def accept(self, *wanted):
        return self.tokens.pop() if self.tokens[-1] in wanted else ""

    def items(self, close):
        """Items up to one of `close`, and the marks between and behind them."""
        items, marks = [self.relation()], []
        while mark := self.accept(",", ";", "&", r"\\", r"\and", r"\or"):
            marks.append(self.accept(r"\and", r"\or") or mark)
            items.append(self.relation())
        if self.tokens[-1] not in close:
            raise ValueError(f"{self.tokens[-1]!r} instead of {close}")
        return tuple(items), (*marks, self.accept(*close))

    def answer(self):
        """Everything; equations with different left sides are a tuple in alphabetical order."""
        items, marks = self.items([""])
        labels = {item.label if item.kind == "relation" else "": item for item in items}
        if "" not in labels and len(labels) == len(items) > 1:
            return Reading("group", tuple(labels[label] for label in sorted(labels)), pair(items))
        label = items[0].label if len(labels) == 1 else ""
        return Reading("list", items, marks, label=label) if len(items) > 1 else items[0]

    def relation(self):
        """A quantity, or comparisons such as 1 < x < 3."""
        start, left, found = len(self.names), self.quantity(), []
        while sign := self.accept("=", "<", ">", "<=", ">=", r"\ne"):
            right = self.quantity()
            found.append((right, "<" + sign[1:], left) if sign[0] == ">" else (left, sign, right))
            left = right
        label = next((side.label for x, _, y in found for side in (x, y) if side.label), "")
        label = label if self.names[start:].count(label) < 2 else ""
        return Reading("relation", tuple(found), label=label) if found else left

    def quantity(self):
        r"""A sum with its unit, which covers all of it: 3 + \sqrt2 feet."""
        reading = self.sum()
        unit = self.last if self.last in ("%", "°") else ""
        while self.tokens[-1][:1] == '"' or (unit and self.tokens[-1] in ("^", "/", "2", "3")):
            unit += self.tokens.pop().lower()
        if NOT_UNIT.search(unit):
            raise ValueError(f"{unit!r} is no unit")
        return reading._replace(unit=re.sub(r"(?<=[a-z]{2})s\b|[\s\"]+", "", unit))

    def sum(self):
        total = self.product()
        while mark := self.accept("+", "-", r"\cup"):
            both = (total, self.product())
            total = Reading("union", both) if mark == r"\cup" else self.compute(SIGNS[mark], *both)
        return total

    def product(self, stop=()):
        """Factors up to one of `stop`; no number without a sign before it: "2 3" is not 6."""
        total = self.signed(self.power)
        while self.tokens[-1] not in stop:
            if mark := self.accept("*", "/"):
                total = self.compute(SIGNS[mark], total, self.signed(self.power))
            elif self.tokens[-1][:1].isalpha() or self.tokens[-1] in self.FACTORS:
                total = self.compute(mul, total, self.power())
            else:
                break
        return total

    def signed(self, read):
        """What `read` reads, behind any number of signs."""
        negative = False
        while mark := self.accept("+", "-"):
            negative ^= mark == "-"
        return self.compute(neg, read()) if negative else read()

    def power(self):
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError("too deep")
        reading = self.atom()
        if self.accept("!"):
            reading = self.compute(factorial, reading)
        if self.accept("^"):
            reading = self.compute(power, reading, self.signed(self.atom))
        self.depth -= 1
        return reading

    def atom(self):
        """A number, a variable, or what stands in brackets or behind the name of a function."""
        token = self.last = self.tokens.pop()
        if NUMBER.fullmatch(token) or token in CONSTANTS:
            return Reading("number", (CONSTANTS.get(token) or decimal(token),))
        if token in self.CLOSING:
            return self.bracket(token)
        if token in COMMANDS:
            function, count = COMMANDS[token]
            return self.compute(function, *(self.atom() for _ in range(count)))
        if token in FUNCTIONS:
            return self.function(token)
        if not token[:1].isalpha():
            raise ValueError(f"no value: {token!r}")
        self.names.append(token)
        return self.judge.variable(token)

    def bracket(self, opening):
        items, marks = self.items(self.CLOSING[opening])
        if opening + marks[-1] in ("()", "[]", "{}") and len(items) == 1:
            return items[0]._replace(label="")
        label = ",".join(i.label for i in items) if all(i.label for i in items) else ""
        return Reading("set" if "{" in opening else "group", items, (opening, *marks), label=label)

    def function(self, name):
        r"""\sin^2 x, \log_2 8, sin(x): a bare argument ends before ( + - * / or a function."""
        exponent = self.signed(self.atom) if self.accept("^") else None
        bases = [self.atom()] if self.accept("_") else []
        bare = self.tokens[-1] not in ("(", "{")
        argument = self.product(stop=("*", "/", "(", "[", *FUNCTIONS)) if bare else self.atom()
        self.judge.spend(300 * len(argument.items))
        result = self.compute(FUNCTIONS[name], argument)
        for base in bases:
            result = self.compute(lambda x, b: x / FUNCTIONS["ln"](b), result, base)
        return self.compute(power, result, exponent) if exponent else result


class Judge:
    """One comparison: its sample points, its budget of work, and what equality means."""
    def __init__(self, tokens):
        self.work, self.real = 0, "i" not in tokens  # real: complex values do not count
        # Sample points lie in c - r ... c + r: some beyond, or near, the numbers in the text.
        literals = sorted({decimal(token) for token in tokens if NUMBER.fullmatch(token)} | {1})
        top = literals[-1] + 1
        self.ranges = [(5, 5), (-9, 9), (0, 1), (top, 1), (-top, 1), (0, 40), (0, 9)]
        self.ranges = self.ranges[: 7 if self.real else 2]
        if {"abs", "floor", "ceil"} & set(tokens):
            self.ranges += [(c, 1) for n in literals[-4:] for c in (n + 1, n - 1, 1 - n, -1 - n)]

    def spend(self, work):
        self.work += work
        if self.work > MAX_WORK:
            raise ValueError("too much work")

    def variable(self, name):
        """A number with random values in the ranges, and a few whole ones."""
        dice = random.Random(ascii(name))
        # Even denominators: where a negative base meets such an exponent, nothing is real.
        values = [c + r * Rational(dice.randrange(-63, 64, 2), 64) for c, r in self.ranges]
        return Reading("number", (*values, *map(Integer, dice.sample(range(4, 20), 4))), label=name)

    def compute(self, function, *readings):
        """The number function(*readings), whose value is nan where it is undefined."""
        if any(reading.kind != "number" for reading in readings):
            raise ValueError("only numbers can be calculated with")
        n = max(len(reading.items) for reading in readings)
        rows = zip(*(r.items * n if len(r.items) == 1 else r.items for r in readings))
        return Reading("number", tuple(self.value(function, r, self.real and n > 1) for r in rows))

    def value(self, function, row, real):
        try:
            for x in row:  # where infinity or nan comes in, the result is undefined, too
                size = abs(float(x) if x.is_Rational or x.is_Float else complex(x))
                if x and not 1 / HUGE < size < HUGE or getattr(x, "q", 1).bit_length() > MAX_BITS:
                    return nan
            value = function(*row)
            value = value if value.is_Rational else value.evalf(DIGITS, chop=TINY)
        except (ArithmeticError, TypeError):
            return nan
        self.spend(50 if value.is_Rational else 150 if value.is_Float else 1000)
        return value if not real or value.is_Rational or value.is_Float else nan

    def agree(self, a, b, scale=1):
        """True if a = scale * b wherever both are defined, which is at 3 points or more."""
        if len(a.items) == 1 and a.items[0] in (oo, -oo):
            return a.items == b.items
        differences = self.compute(lambda x, y: x - scale * y, a, b).items
        defined = [difference for difference in differences if difference != nan]
        return not any(defined) and len(defined) >= min(3, len(differences))

    def equal(self, a, b):
        """True if two readings say the same."""
        kinds = {a.kind, b.kind}
        b, a = sorted((a, b), key=lambda reading: (reading.kind == "relation", reading.unit))
        if a.unit and b.unit and a.unit != b.unit:
            return False
        if kinds == {"number"}:
            return self.agree(a, b) or not b.unit and self.agree(a, b, CONSTANTS.get(a.unit, 1))
        if kinds == {"relation"}:
            found = self.matched(a.items, b.items, self.same_comparison)
        elif "relation" in kinds:
            found = self.answers(a, b)
        elif kinds <= {"list", "set"}:
            found = self.matched(a.items, b.items, self.equal)
        else:
            marks = {pair(r.items) if r.kind == "list" else r.marks for r in (a, b)}
            found = len(marks) == 1 and kinds < {"group", "list", "union"} and all(
                map(self.equal, a.items, b.items))
        try:
            return found or len({a.label, b.label, ""}) < 3 and self.region(a) == self.region(b)
        except ValueError:
            return False

    def matched(self, xs, ys, same):
        """True if the items, fewer than 50, pair off in some order."""
        return any(same(xs[0], y) and self.matched(xs[1:], ys[:n] + ys[n + 1 :], same)
                   for n, y in enumerate(ys)) if 0 < len(xs) < 50 else xs == ys

    def answers(self, relation, other):
        """True if the relation is "x = other", or a chain of numbers equal to the other."""
        lefts, signs, rights = zip(*relation.items)
        sides = [lefts[0], *rights]
        if relation.label:
            sides.pop(0 if sides[0].label else -1)
        return set(signs) == {"="} and all(self.equal(side, other) for side in sides)

    def same_comparison(self, a, b):
        """True if two comparisons are the same up to a constant (positive) factor."""
        (x, sign, y), (u, other, v) = a, b
        if sign != other or {r.kind for r in (x, y, u, v)} != {"number"}:
            return sign == other and self.equal(x, u) and self.equal(y, v)
        ratio = self.compute(truediv, self.compute(sub, x, y), self.compute(sub, u, v))
        factor = next((value for value in ratio.items if value != nan), Integer(0))
        fits = factor.is_positive if sign[0] == "<" else factor != 0
        return fits and len(ratio.items) > 1 and self.agree(ratio, Reading("number", (factor,)))

    def region(self, reading):
        """The set of reals in intervals, finite sets, inequalities in one variable, and unions."""
        kind, items, marks, _, label = reading
        self.spend(2000)
        found = sympy.EmptySet
        if kind == "relation" and label and len(items) < 3:
            found = sympy.Intersection(*(half_line(*comparison) for comparison in items))
        elif kind == "union" or (kind == "list" and label and r"\or" in marks):
            found = sympy.Union(*map(self.region, items))
        elif kind == "set":
            found = FiniteSet(*map(end_point, items))
        elif kind == "group" and len(items) == 2 and set(marks) <= set("()[],"):
            found = Interval(*map(end_point, items), marks[0] == "(", marks[-1] == ")")
        if found == sympy.EmptySet:
            raise ValueError("no set of reals")
        return found


def half_line(left, sign, right):
    end = end_point(right if left.label else left)
    ends = (-oo, end) if left.label else (end, oo)
    return {"=": FiniteSet(end), "<": Interval.open(*ends), "<=": Interval(*ends),
            r"\ne": sympy.Reals - FiniteSet(end)}[sign]


def end_point(reading):
    """A real constant, rounded so that equal ones are equal for sympy too."""
    value = reading.items[0] if reading.kind == "number" and len(reading.items) == 1 else nan
    if not value.is_extended_real:
        raise ValueError("no real constant")
    return sympy.floor(value / TINY + Rational(1, 2)) * TINY


def extract_boxed(text):
    r"""Content of the last \boxed{...} or \fbox{...}, or of "\boxed 5"; None if not closed."""
    start = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
    match = re.compile(r"\\(?:boxed|fbox)(?:\s*(\{)|\s+([^\s$]+))").match(text, max(start, 0))
    if not match or not match[1]:
        return match and match[2]
    depth = 0
    for mark in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, match.start(1)):
        depth += (mark[0] == "{") - (mark[0] == "}")
        if depth == 0:
            return text[match.end(1) : mark.start()]


def answers_equal(prediction, gold):
    """True if two answers are equal under the conventions above; never raises, never hangs."""
    if max(len(prediction), len(gold)) > MAX_LENGTH:
        return prediction.strip() == gold.strip()
    tokens = sorted(tokenize(text) for text in (prediction, gold))  # one order, one verdict
    words = [" ".join(t.lower() if t[0] == '"' else t for t in side) for side in tokens]
    words = [re.sub(r'"|(?<=(?<!\\)\b[A-Za-z]) (?=[A-Za-z]\b)', "", text) for text in words]
    if words[0] == words[1]:
        return any(map(str.isalnum, words[0]))
    try:
        with LOCK:
            judge = Judge(tokens[0] + tokens[1])
            return bool(judge.equal(*(Parser(side, judge).answer() for side in tokens)))
    except (ValueError, RecursionError):
        return False
