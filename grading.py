r"""Are two written answers mathematically equal?  Text -> tokens -> tree -> comparison; no eval.

Two formulas are equal if they agree at sample points drawn from a hash of both: exactly where only
+ - * / and whole powers occur, else to 190 bits or more, growing with the numbers met.  Variables
are real unless that leaves nothing defined; points where a side is undefined do not count.

Conventions.  No rounding: 3.14 is not \pi; of "a \approx b" only a counts.  A unit, percent or
degree sign or modulus may be missing on one side, and 50% also equals 1/2, 60^\circ also \pi/3;
two different units differ, none is converted.  A subscripted base may be missing on one side.
"x = 5" answers "5", not "y = 5"; equations are equal up to a constant factor, inequalities up to a
positive one.  A bare list "1, 2" is unordered; it equals the set {1, 2} and, in this order, the
tuple (1, 2).  (1, 2) is an interval when the other side is a set of reals or an inequality.
\log has an unknown base, \pm gives both values, \sqrt[3]{-8} is -2, 1/2x is x/2, [x] is (x).

Left out: integrals, limits, derivatives, solving, matrix arithmetic.  Caps on length, depth, size
and work make hostile text "not equal"; text with no reading is compared token by token.
Run: python -c "import grading; print(grading.answers_equal(r'\frac12', '0.5'))"   # True
"""

import math
import random
import re
import threading
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from operator import add, mul, sub, truediv
from typing import NamedTuple

MAX_LENGTH = 1000  # characters of one answer
MAX_DEPTH = 24  # nested brackets, powers, arguments
MAX_BITS = 8192  # of an exact number, numerator plus denominator
MAX_MAGNITUDE = 1200  # |log2| of any other nonzero number
MAX_WORK = 40_000  # per comparison, in about microseconds


class NotMath(Exception):
    """The text has no reading in the grammar below."""


class Undefined(Exception):
    """No finite value here, or none within the caps."""


class TooMuchWork(Exception):
    """The comparison spent MAX_WORK."""


class Token(NamedTuple):
    kind: str  # number, word, text (of \text{...}), separator (and, or), symbol
    text: str
    spaced: bool  # white space stood before it


@dataclass(frozen=True)
class Node:
    kind: str
    parts: tuple


# ---------------------------------------------------------------- text -> tokens

UNICODE = str.maketrans(dict(zip(
    "−–×÷·∞π√≤≥≠≈∪∩∈∅±θ°²³ℝ",
    [f" {s} " for s in r"""- - \times \div \cdot \infty \pi \sqrt \le \ge \ne \approx \cup \cap \in
    \emptyset \pm \theta ^\circ ^2 ^3 \mathbb{R}""".split()], strict=True,
)))  # fmt: skip
ALIASES = dict(pair.rsplit("=>", 1) for pair in r"""
    \dfrac=>\frac \tfrac=>\frac \cfrac=>\frac \dbinom=>\binom \tbinom=>\binom \le=><= \leq=><=
    \leqslant=><= \ge=>>= \geq=>>= \geqslant=>>= \lt=>< \gt=>> \neq=>\ne !==>\ne ===>= \cdot=>*
    \times=>* \ast=>* \div=>/ **=>^ \lbrace=>\{ \rbrace=>\} \lvert=>| \rvert=>| \vert=>| \%=>%
    \varnothing=>\emptyset \langle=>( \rangle=>) \backslash=>\setminus \R=>\mathbb{R}
    """.split())  # fmt: skip
IGNORED = set(r"""\left \right \displaystyle \textstyle \limits \( \) \[ \] \big \Big \bigl \bigr
    \Bigl \Bigr \bigg \Bigg \tiny \rm \bf""".split())
SPACING = re.compile(r"(\\\\)|(\\!)|\\[,;:> ]|~|\\q?quad(?![a-zA-Z])")
TOKEN = re.compile(r"""(?P<space>\s+)
  | \\(?:text|text(?:bf|it|rm)|math(?:rm|bf|it)|mbox|operatorname)\s*\{(?P<text>[^{}]*)\}
  | (?P<repeating>\d*\.\d*\\(?:overline|bar)\s*\{\d+\})
  | (?P<grouped>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d{1,3}(?:[ ]\d{3})+(?!\d)(?:\.\d+)?)
  | (?P<number>(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?)
  | (?P<word>[A-Za-z]+)
  | (?P<symbol>\\begin\{\w+\}(?:\{[clr|]*\})?|\\end\{\w+\}|\\mathbb\{\w\}|\\[a-zA-Z]+|\\.
      |\*\*|[<>!=]=|.)""", re.VERBOSE | re.DOTALL | re.ASCII)  # fmt: skip


def clean(text):
    r"""`text` in ASCII where possible, without \boxed, spacing commands and "the answer is"."""
    boxed = extract_boxed(text)
    text = (text if boxed is None else boxed).translate(UNICODE).strip()
    text = re.sub(r"\s*,\s*\\!\s*(?=\d{3})|\{,\}(?=\d{3})", ",", text)
    text = SPACING.sub(lambda m: m[1] or ("" if m[2] else " "), text)
    return re.sub(r"(?i)^(?:the )?(?:final )?answer(?: is:?|:) ", "", text)


def tokenize(text, thousands=True):
    """Tokens of `text`; at bracket depth 0 the commas of 1,000 group digits if `thousands`."""
    tokens, depth, spaced, start = [], 0, False, 0
    while match := TOKEN.match(text, start):
        kind, piece = match.lastgroup, match[match.lastgroup]
        if kind == "grouped" and "," in piece and (depth or not thousands):
            # No list item is written 000, but (1,000) is not clearly a number either.
            kind, piece = ("symbol", piece) if ",0" in piece else ("number", piece.split(",")[0])
        start = start + len(piece) if kind == "number" else match.end()
        depth += (piece in ("(", "[", r"\{")) - (piece in (")", "]", r"\}"))
        if kind == "text":
            tokens += text_tokens(piece.strip().lstrip(", ").rstrip(".,;"), tokens)
        elif kind != "space" and piece not in IGNORED:
            kind = {"grouped": "number", "repeating": "number"}.get(kind, kind)
            kind = "separator" if piece in ("and", "or") else kind
            piece = re.sub("[, ]", "", piece) if kind == "number" else ALIASES.get(piece, piece)
            tokens.append(Token(kind, piece, spaced))
        spaced = kind == "space"
    return trimmed(tokens)


def text_tokens(body, before):
    r"""Tokens of \text{body}: words and units stay text; "1,024", "(B)" or a letter become math."""
    if body in ("and", "or") or body in FUNCTIONS:
        return [Token("word" if body in FUNCTIONS else "separator", body, True)]
    after_number = before and before[-1].kind == "number"
    if re.search("[A-Za-z]{2}", body) or (after_number and re.split("[/^]", body)[0] in UNITS):
        return [Token("text", body, True)]
    return tokenize(body)


def trimmed(tokens):
    r"""`tokens` without $...$ and a final period or \\; an unpaired $ is a dollar sign."""
    paired = sum(t.text == "$" for t in tokens) % 2 == 0
    tokens = [t._replace(text=r"\$") if t.text == "$" else t
              for t in tokens if not (t.text == "$" and paired)]  # fmt: skip
    while tokens and tokens[-1].text in (".", ",", ";", r"\\"):
        tokens.pop()
    return tokens


def spelled(tokens):
    """Words and symbols in order; "Even" and "even" are one word, "AB" and "ab" two."""
    pieces = " ".join(t.text for t in tokens).split()
    return [p.lower() if re.fullmatch("[A-Z][a-z]{2,}|No", p) else p for p in pieces]


# ---------------------------------------------------------------- tokens -> tree

RELATIONS = {"=", "<", ">", "<=", ">=", r"\ne", r"\in", r"\approx"}
CONSTANTS = {r"\pi": "pi", "pi": "pi", "e": "e", "i": "i", r"\infty": "infinity",
             "infinity": "infinity"}
GREEK = set(r"""\alpha \beta \gamma \delta \epsilon \varepsilon \zeta \eta \theta \vartheta \kappa
    \lambda \mu \nu \xi \rho \sigma \tau \phi \varphi \chi \psi \omega \Gamma \Delta \Theta \Lambda
    \Sigma \Phi \Psi \Omega \ell""".split())
FUNCTIONS = set("""sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp abs floor
    ceil sqrt""".split())
UNITS = dict(pair.split(":") for pair in """cm:centimeter mm:millimeter km:kilometer m:meter ft:foot
    feet:foot in:inch inches:inch kg:kilogram g:gram lb:pound lbs:pound hr:hour hrs:hour h:hour
    s:second mph:mile/hour oz:ounce yd:yard L:liter percent:% unit: units: sq:square per:/
    """.split())
# After a number these change its value or meaning, so no phrase with one of them is a unit.
NOT_UNITS = {name[1:] for name in GREEK} | set(CONSTANTS) | set("""million billion trillion thousand
    hundred dozen half halve third quarter fourth fifth sixth seventh eighth ninth tenth hundredth
    thousandth not only if when where for more less least most than times plus minus over squared
    cubed factorial choose mod modulo remainder to from with without between through root repeating
    base negative or and is are both up by""".split())


def number(value):
    return Node("number", (Fraction(value),))


def times(*factors):
    return Node("mul", factors) if len(factors) > 1 else factors[0]


def negated(tree):
    if tree.kind == "number":
        return number(-tree.parts[0])
    if tree.kind == "degree":
        return Node("degree", (negated(*tree.parts),))
    return times(number(-1), tree)


def inverse(tree):
    return Node("pow", (tree, number(-1)))


def decimal(text):
    r"""The rational written as "12", ".5", "1.5e3" or "0.1\overline{6}"."""
    head, _, repeating = text.partition("\\")
    mantissa, _, exponent = head.lower().partition("e")
    if len(exponent) > 4 or abs(int(exponent or 0)) > MAX_LENGTH:
        raise NotMath(f"exponent {exponent[:9]} is too large")
    value = Fraction("0" + mantissa.rstrip(".")) * Fraction(10) ** int(exponent or 0)
    if repeating:
        digits = re.search(r"\d+", repeating)[0]
        places = len(mantissa.partition(".")[2])
        value += Fraction(int(digits), (10 ** len(digits) - 1) * 10**places)
    return value


def unit_names(text):
    """Singular names and marks of a unit: "square feet" -> ["square", "foot"]."""
    names = [UNITS.get(n, n).lower() for n in re.findall(r"[^\W\d]+|[^\w\s.]|\d", text)]
    singular = [n[:-1] if re.fullmatch("[a-z]{2,}[^s]s", n) else n for n in names]
    if NOT_UNITS & {*names, *singular}:
        raise NotMath(f"{text!r} is not a unit")
    return singular


class Parser:
    r"""Recursive descent over one answer; `sign` is the sign \pm has in this pass."""

    def __init__(self, tokens):
        self.tokens, self.position, self.depth, self.bars = list(tokens), 0, 0, 0
        self.sign, self.signs_met, self.money = "+", 0, ""

    def ahead(self, offset=0):
        index = self.position + offset
        return self.tokens[index] if 0 <= index < len(self.tokens) else Token("end", "", False)

    def peek(self):
        return self.ahead().text if self.ahead().kind != "text" else ""

    def take(self):
        self.position += 1
        return self.tokens[self.position - 1].text

    def accept(self, *texts):
        return self.take() if self.peek() in texts and self.peek() else ""

    def expect(self, text):
        if not self.accept(text):
            raise NotMath(f"expected {text!r}, found {self.peek()!r}")

    def cut(self, length):
        """Makes two tokens of the next one if it is longer than `length`."""
        kind, text, spaced = self.ahead()
        if kind in ("number", "word") and len(text) > length:
            pieces = [Token(kind, text[:length], spaced), Token(kind, text[length:], False)]
            self.tokens[self.position : self.position + 1] = pieces

    def answer(self):
        items, words = self.element(), set()
        while word := self.accept(",", ";", "and", "or"):
            words |= {word, self.accept("and", "or")}
            items += self.element()
        if self.position < len(self.tokens):
            raise NotMath(f"unread: {self.peek()!r}")
        word = "or" if "or" in words else "and" if "and" in words else ","
        return Node("list", (word, *items)) if len(items) > 1 else items[0]

    def element(self):
        r"""One item, or both values of one that holds \pm; two \pm in it would be ambiguous."""
        start, self.sign, self.signs_met = self.position, "+", 0
        items = [self.relation()]
        if self.signs_met > 1:
            raise NotMath(r"more than one \pm")
        if self.signs_met:
            self.position, self.sign = start, "-"
            items.append(self.relation())
        return items

    def relation(self):
        self.accept(r"\approx")
        parts = [self.quantity()]
        while operator := self.accept(*RELATIONS):
            parts += [operator, self.quantity()]
        if r"\approx" in parts:
            del parts[parts.index(r"\approx") :]
        return Node("relation", tuple(parts)) if len(parts) > 1 else parts[0]

    def quantity(self):
        r"""A set, ratio or sum with its unit, which covers all of it: 3 + \sqrt2 feet."""
        outer, self.money = self.money, self.accept("€", "£")
        tree = self.union()
        if self.peek() == ":":
            tree = Node("group", (":", ":", tree))
            while self.accept(":"):
                tree = Node("group", (*tree.parts, self.union()))
        unit = self.unit() or self.money
        self.money = outer
        if tree.kind == "degree" and not unit:
            tree, unit = tree.parts[0], "degree"
        return Node("quantity", (tree, unit)) if unit else tree

    def unit(self):
        """The words, powers and slashes behind a value in one spelling, or ""."""
        if self.accept(r"\pmod"):
            return f"mod {self.script()}"
        names = []
        while self.starts_unit() or (names and self.peek() in ("^", "/")):
            names += unit_names(self.take())
            if names[-1] == "^":
                names.append(str(*self.script().parts))
        if names[:1] in (["square"], ["cubic"]):
            names = [*names[1:], "^", "2" if names[0] == "square" else "3"]
        unit = "".join(names)
        return unit if re.search("[a-z%]", unit) else ""  # "square units" names no unit

    def starts_unit(self):
        """True if a unit stands here; a bare word needs a value or unit before it."""
        before, (kind, text, spaced) = self.ahead(-1), self.ahead()
        if kind != "word" or text in FUNCTIONS or text in CONSTANTS:
            return kind == "text" or text == "%"
        after = before.kind in ("number", "text") or before.text in (")", "}", "/", *UNITS)
        after = after or (before.kind == "word" and len(before.text) >= 4)
        word = spaced and len(text) >= 4 and first_name(text) == len(text)
        return after and (word or (text in UNITS and len(text) >= 2))

    def union(self):
        tree = self.sum()
        while operator := self.accept(r"\cup", r"\cap", r"\setminus"):
            tree = Node("union", (operator, tree, self.sum()))
        return tree

    def sum(self):
        terms = [self.product()]
        while self.peek() in ("+", "-", r"\pm", r"\mp"):
            terms.append(self.product())
        return Node("add", tuple(terms)) if len(terms) > 1 else terms[0]

    def product(self):
        factors = [self.signed()]
        while True:
            if self.accept("*"):
                factors.append(self.signed())
            elif self.accept("/"):
                factors.append(inverse(self.signed()))
            elif self.starts_factor():
                factors.append(self.power())
            else:
                return times(*factors)

    def signed(self):
        """A factor behind any number of signs."""
        negative = False
        while mark := self.accept("+", "-", r"\pm", r"\mp", r"\$"):
            if mark in (r"\pm", r"\mp"):
                self.signs_met += 1
                mark = "+" if (mark == r"\pm") == (self.sign == "+") else "-"
            self.money = "dollar" if mark == r"\$" else self.money
            negative ^= mark == "-"
        return negated(self.power()) if negative else self.power()

    def starts_factor(self):
        """True if an implicit factor follows; a number never does: "2 3" is not 6."""
        kind, text, _ = self.ahead()
        if kind == "word":
            return not self.starts_unit()
        return kind == "symbol" and (
            text in ATOMS or text in CONSTANTS or text in GREEK or text[1:] in FUNCTIONS
        ) and not (text == "|" and self.bars) and text != r"\circ"  # fmt: skip

    def power(self):
        tree = self.mixed() if self.ahead().kind == "number" else self.atom()
        if self.accept("!"):
            tree = Node("factorial", (tree,))
        if self.accept("^"):
            exponent = self.script()
            degree = exponent == Node("circle", ())
            tree = Node("degree", (tree,)) if degree else Node("pow", (tree, exponent))
        if self.peek() in ("!", "^"):
            raise NotMath("ambiguous: x!!, x^2! or x^y^z")
        return tree

    def script(self):
        """An exponent or index: {...} or one atom, perhaps negative."""
        return negated(self.atom()) if self.accept("-") else self.atom()

    def mixed(self):
        r"""A number, also one such as 1\frac{2}{3} or 1 2/3; an improper fraction is ambiguous."""
        whole, tree = self.ahead(), self.atom()
        after, slash, below = self.ahead(), self.ahead(1), self.ahead(2)
        if not whole.text.isdigit() or tree.kind != "number":
            return tree
        if after.text == r"\frac":
            fraction = self.atom()
        elif (after.kind, slash.text, below.kind) == ("number", "/", "number") and after.spaced:
            top, _, bottom = self.atom(), self.take(), self.atom()
            fraction = times(top, inverse(bottom))
        else:
            return tree
        top, bottom = fraction.parts[0], fraction.parts[1].parts[0]
        if (top.kind, bottom.kind) != ("number", "number"):
            return times(tree, fraction)
        if not 0 < top.parts[0] < bottom.parts[0]:
            raise NotMath("a mixed number needs a proper fraction")
        return number(tree.parts[0] + top.parts[0] / bottom.parts[0])

    def atom(self):
        kind, text, _ = self.ahead()
        if kind not in ("number", "word", "symbol") or self.depth > MAX_DEPTH:
            raise NotMath(f"no value at {text!r}, depth {self.depth}")
        if kind == "word":
            self.cut(first_name(text))
        self.depth += 1
        tree = self.started(kind, self.take())
        self.depth -= 1
        return tree

    def started(self, kind, text):
        """The atom whose first token is `text`."""
        if kind == "number":
            return self.based(text)
        if text in CONSTANTS:
            return Node("constant", (CONSTANTS[text],))
        if text in FUNCTIONS or text[1:] in FUNCTIONS and text[0] == "\\":
            return self.function(text.strip("\\"))
        if text in ATOMS:
            return ATOMS[text](self, text)
        if text.startswith(r"\begin{"):
            return self.matrix(text)
        if kind == "word" or text in GREEK:
            return self.symbol(text)
        raise NotMath(f"unknown {text!r}")

    def based(self, digits):
        if not self.accept("_"):
            return number(decimal(digits))
        base = self.script()
        if base.kind != "number" or not digits.isdigit():
            raise NotMath(f"no base: {digits}")
        return Node("based", (digits, int(base.parts[0])))

    def symbol(self, name):
        """A variable with its index and primes; f(2) is one too, since f is not known."""
        if self.accept("_"):
            name += "_" + repr(self.script())
        while self.accept("'"):
            name += "'"
        called = [self.ahead(i).text for i in range(4)]
        if called[0] == "(" and (name[0] in "fgh" or called[2:] == [")", "="]):
            name += repr(self.atom())
        return Node("symbol", (name,))

    def function(self, name):
        r"""\sin^2 x, \log_2 8, sin(x): a bare argument ends before ( + - * / or a function."""
        power = self.script() if self.accept("^") else None
        base = self.script() if self.accept("_") else None
        if name == "sqrt":
            return self.root()
        if power == number(-1):
            name, power = "arc" + name, None
        tree = self.power() if self.peek() in ATOMS else self.argument()
        if name == "log":
            base = base or Node("symbol", ("base of log",))
            tree = times(Node("ln", (tree,)), inverse(Node("ln", (base,))))
        else:
            tree = Node(name, (tree,))
        return Node("pow", (tree, power)) if power else tree

    def argument(self):
        factors = [self.power()]
        while self.starts_factor() and self.peek() not in ("(", "[") and (
            self.peek().strip("\\") not in FUNCTIONS
        ):
            factors.append(self.power())
        return times(*factors)

    def root(self):
        index = self.bracket("[") if self.accept("[") else number(2)
        return Node("root", (self.atom(), index))

    def items(self, close):
        """Items with commas between them up to `close`, which may be one of several marks."""
        items = [self.relation()]
        while self.accept(","):
            items.append(self.relation())
        mark = self.peek()
        if mark not in close:
            raise NotMath(f"expected one of {close}, found {mark!r}")
        self.take()
        return items, mark

    def bracket(self, mark):
        items, close = self.items((")", "]"))
        if len(items) == 1 and mark + close in ("()", "[]"):
            return items[0]
        return Node("group", (mark, close, *items))

    def brace(self, _):
        items, close = self.items(("}", r"\over"))
        if close == r"\over":
            below, _ = self.items(("}",))
            return times(items[0], inverse(below[0]))
        return items[0] if len(items) == 1 else Node("set", tuple(items))

    def curly(self, _):
        return Node("set", () if self.accept(r"\}") else tuple(self.items((r"\}",))[0]))

    def pair(self, mark):
        r"""\frac or \binom with two arguments, braced or one character each."""
        self.cut(1)
        top = self.atom()
        self.cut(1)
        bottom = self.atom()
        return times(top, inverse(bottom)) if mark == r"\frac" else Node("binom", (top, bottom))

    def fenced(self, mark):
        close, kind = {"|": ("|", "abs"), r"\lfloor": (r"\rfloor", "floor"),
                       r"\lceil": (r"\rceil", "ceil")}[mark]  # fmt: skip
        self.bars += mark == "|"
        tree = self.sum()
        self.expect(close)
        self.bars -= mark == "|"
        return Node(kind, (tree,))

    def matrix(self, opening):
        """Rows of cells; round and square brackets mean the same, bars a determinant."""
        name = re.search(r"\{(\w+)", opening)[1]
        rows = [[self.relation()]]
        while not self.accept(rf"\end{{{name}}}"):
            if self.accept("&"):
                rows[-1].append(self.relation())
            else:
                self.expect(r"\\")
                if not self.peek().startswith(r"\end"):
                    rows.append([self.relation()])
        kind = "matrix" if name in ("pmatrix", "bmatrix", "matrix", "array") else name
        return Node(kind, tuple(Node("row", tuple(row)) for row in rows))


ATOMS = {
    "(": Parser.bracket, "[": Parser.bracket, "{": Parser.brace, r"\{": Parser.curly,
    r"\frac": Parser.pair, r"\binom": Parser.pair, "|": Parser.fenced, r"\lfloor": Parser.fenced,
    r"\lceil": Parser.fenced, r"\emptyset": lambda *_: Node("set", ()),
    r"\mathbb{R}": lambda *_: Node("reals", ()), r"\circ": lambda *_: Node("circle", ()),
}  # fmt: skip


def first_name(word):
    """Length of the first name in a run of letters: "xy" is x times y, AB or dx one name."""
    if word in CONSTANTS or word in FUNCTIONS or word.isupper() or len(word) == 1:
        return len(word)
    if len(word) <= 6 and word[:-1] in FUNCTIONS:
        return len(word) - 1
    return len(word) if len(word) > 3 or re.fullmatch("d[xyzt]", word) else 1


def readings(text):
    """The trees `text` may stand for: "100,200" is one number or, like "5, 200", a list."""
    trees = []
    for thousands in (True, False):
        try:
            trees.append(Parser(tokenize(text, thousands)).answer())
        except NotMath:
            continue
    return trees[:1] if trees[1:] == trees[:1] else trees


# ---------------------------------------------------------------- tree -> value


@cache
def context():
    """A private mpmath context, so that no other user's precision is touched."""
    from mpmath import MPContext

    return MPContext()


LOCK = threading.Lock()  # mpmath caches its constants without one


def walk(tree):
    yield tree
    for part in tree.parts:
        if isinstance(part, Node):
            yield from walk(part)


def names(*trees):
    return sorted({n.parts[0] for t in trees for n in walk(t) if n.kind == "symbol"})


def literals(*trees):
    return [n.parts[0] for t in trees for n in walk(t) if n.kind == "number"]


def contains(tree, constant):
    return any(n == Node("constant", (constant,)) for n in walk(tree))


def bits(value):
    return value.numerator.bit_length() + value.denominator.bit_length()


class Evaluator:
    """Values at one point: a Fraction as long as exact, else an mpmath number at `precision` bits.

    `magnitude` becomes the largest |log2| met, which tells if the precision was enough.
    """

    def __init__(self, precision, point, real, spend):
        self.mp, self.point, self.real, self.spend = context(), point, real, spend
        self.mp.prec = self.precision = precision
        self.magnitude = 0

    def value(self, tree):
        if tree.kind == "number":
            return tree.parts[0]
        if tree.kind == "symbol":
            return self.point[tree.parts[0]]
        if tree.kind == "constant":
            return self.checked(self.constant(*tree.parts))
        if tree.kind not in OPERATIONS and tree.kind not in FUNCTIONS:
            raise Undefined(f"no number: {tree.kind}")
        values = [self.value(part) for part in tree.parts]
        if tree.kind in OPERATIONS:
            return self.checked(OPERATIONS[tree.kind](self, *values))
        return self.checked(self.special(tree.kind.replace("arc", "a"), self.inexact(*values)))

    def checked(self, value):
        """`value`, its size noted; Undefined if too large or, where all is real, not real."""
        if isinstance(value, Fraction):
            self.spend(3 + bits(value) // 64)
            size = abs(value.numerator.bit_length() - value.denominator.bit_length())
            if bits(value) > MAX_BITS:
                raise Undefined("too many digits")
        else:
            self.spend(30 + self.precision**2 // 10_000)
            value = self.chopped(value)
            if not self.mp.isfinite(value) or (self.real and isinstance(value, self.mp.mpc)):
                raise Undefined("not a finite real")
            size = abs(self.mp.mag(value)) if value else 0
            if size > MAX_MAGNITUDE:
                raise Undefined("too large or too small")
        self.magnitude = max(self.magnitude, size)
        return value

    def inexact(self, value):
        exact = isinstance(value, Fraction)
        return self.mp.mpf(value.numerator) / value.denominator if exact else value

    def chopped(self, value):
        """`value` with parts that are rounding error set to 0."""
        tiny = self.mp.ldexp(1, -self.precision * 3 // 4)
        real, imaginary = (x if abs(x) > tiny else self.mp.zero for x in (value.real, value.imag))
        return self.mp.mpc(real, imaginary) if imaginary else real

    def constant(self, name):
        if name == "infinity":
            raise Undefined(name)
        return self.mp.mpc(0, 1) if name == "i" else +getattr(self.mp, name)

    def fold(self, combine, *values):
        total, *others = values
        for value in others:
            if not (isinstance(total, Fraction) and isinstance(value, Fraction)):
                total, value = self.inexact(total), self.inexact(value)
            total = self.checked(combine(total, value))
        return total

    def power(self, base, exponent):
        """base^exponent; of a negative base the real root, where there is one."""
        exact = isinstance(base, Fraction)
        rational = isinstance(exponent, Fraction)
        if not base:
            if rational and exponent > 0:
                return base
            raise Undefined("zero to a power that is not positive")
        if rational and exponent.denominator == 1:
            size = bits(base) if exact else abs(self.mp.mag(base)) + 1
            if size * abs(exponent) > (MAX_BITS if exact else MAX_MAGNITUDE):
                raise Undefined("power is too large")
            return base ** int(exponent)
        base = self.inexact(base)
        if rational and exponent.denominator % 2 and not base.imag and base.real < 0:
            return (-1) ** exponent.numerator * self.power(-base, exponent)
        return self.special("exp", self.inexact(exponent) * self.mp.log(base))

    def root(self, base, index):
        if not isinstance(index, Fraction) or index.denominator > 1 or not 2 <= index <= 1000:
            raise Undefined("root index")
        return self.power(base, 1 / index)

    def special(self, name, value):
        exponential = name in ("exp", "sinh", "cosh", "tanh") or isinstance(value, self.mp.mpc)
        if exponential and self.mp.mag(value) > MAX_MAGNITUDE.bit_length():
            raise Undefined("exponent is too large")
        return getattr(self.mp, name)(value)

    def floor(self, value):
        """Exact; a number within rounding error of an integer is that integer."""
        if isinstance(value, self.mp.mpc):
            raise Undefined("floor of a complex number")
        exact = isinstance(value, Fraction)
        nearest = Fraction(round(value) if exact else int(self.mp.nint(value)))
        return nearest - (self.chopped(self.inexact(nearest) - self.inexact(value)) > 0)

    def factorial(self, value):
        """n!, or gamma(n + 1) where n is no integer, so that (n + 1)! = (n + 1) n! holds."""
        whole = isinstance(value, Fraction) and value.denominator == 1
        if abs(value) > 1000 or (whole and value < 0) or self.precision > 1024 or value.imag:
            raise Undefined("factorial")
        self.spend(120)
        exact = whole and Fraction(math.factorial(int(value)))
        return exact or self.special("gamma", self.inexact(value) + 1)

    def binom(self, n, k):
        below = self.fold(mul, *map(self.factorial, (k, self.fold(sub, n, k))))
        return self.fold(truediv, self.factorial(n), below)


OPERATIONS = {
    "add": lambda e, *terms: e.fold(add, *terms), "mul": lambda e, *terms: e.fold(mul, *terms),
    "pow": Evaluator.power, "root": Evaluator.root, "factorial": Evaluator.factorial,
    "binom": Evaluator.binom, "degree": lambda e, x: e.inexact(x) * e.mp.pi / 180,
    "abs": lambda e, x: abs(x), "floor": Evaluator.floor, "ceil": lambda e, x: -e.floor(-x),
}  # fmt: skip

# ---------------------------------------------------------------- comparison


def sample_points(variables, seed, literals):
    """Values for the variables at many sizes and signs, also beside every number in the text."""
    dice = random.Random(seed)
    largest = max([1, *map(abs, literals)])
    for round_, signs in enumerate(["+", "+", "-", "+-"]):
        for size in (Fraction(1, 4), 1, 5, 40, 3 * largest):
            # Even denominators: where a negative base meets such an exponent, nothing is real.
            yield {v: Fraction(dice.choice(signs) + "1") * size * dice.randrange(51, 1024, 2)
                   / 1024 for v in variables}  # fmt: skip
    for literal in sorted(set(literals))[:8]:
        for sign in (1, -1):
            yield {v: sign * literal + Fraction(dice.randrange(-999, 999, 2), 1024)
                   for v in variables}  # fmt: skip


class Judge:
    """One comparison, with its budget of work."""

    def __init__(self, *trees):
        self.work = 0
        self.literal_bits = max([64, *map(bits, literals(*trees))])

    def spend(self, amount):
        self.work += amount
        if self.work > MAX_WORK:
            raise TooMuchWork

    def equal(self, a, b):
        self.spend(5)
        for kind, rule in self.RULES:
            for x, y in ((a, b), (b, a)):
                if x.kind == kind:
                    return rule(self, x, y)
        return self.same_value(a, b)

    # numbers and formulas

    def values(self, trees, point, real):
        """Values of `trees` with the evaluator whose precision suits the sizes met."""
        magnitude = self.literal_bits
        for _ in range(3):
            evaluator = Evaluator(256 + 4 * magnitude, point, real, self.spend)
            try:
                values = [evaluator.value(t) for t in trees]
            except (ArithmeticError, ValueError) as error:
                raise Undefined(error) from None
            if evaluator.magnitude <= magnitude or all(isinstance(v, Fraction) for v in values):
                return values, evaluator
            magnitude = evaluator.magnitude
        raise Undefined("sizes grow with the precision")

    def agree(self, a, b, point, real):
        """True or False, or None where one of the two is undefined."""
        try:
            (x, y), evaluator = self.values((a, b), point, real)
        except Undefined:
            return None
        if isinstance(x, Fraction) and isinstance(y, Fraction):
            return x == y
        return not evaluator.chopped(evaluator.inexact(x) - evaluator.inexact(y))

    def same_value(self, a, b):
        if a.kind == b.kind == "number" or contains(a, "infinity") or contains(b, "infinity"):
            return a == b
        self.spend(60)
        variables, seed = names(a, b), "".join(sorted((repr(a), repr(b))))
        complex_only = not variables or contains(a, "i") or contains(b, "i")
        for real in (False,) if complex_only else (True, False):
            agreed = 0
            for point in sample_points(variables, seed, literals(a, b)) if variables else [{}]:
                verdict = self.agree(a, b, point, real)
                if verdict is False:
                    return False
                agreed += verdict is True
            if agreed >= (4 if variables else 1):
                return True
        return False

    # equations and inequalities

    def proportional(self, f, g, positive):
        """True if f is a constant (positive) times g, neither being zero everywhere."""
        if not names(f) or self.same_value(f, number(0)) or self.same_value(g, number(0)):
            return False
        f_there, g_there = renamed(f), renamed(g)
        if not self.same_value(times(f, g_there), times(f_there, g)):
            return False
        sizes = [times(x, Node("abs", (y,))) for x, y in ((f, g), (g, f))]
        return not positive or self.same_value(*sizes)

    def same_comparison(self, a, b):
        (x, operator, y), (u, other, v) = a, b
        if operator != other:
            return False
        if self.equal(x, u) and self.equal(y, v):
            return True
        swaps = operator in ("=", r"\ne")
        if swaps and self.equal(x, v) and self.equal(y, u):
            return True
        f, g = Node("add", (x, negated(y))), Node("add", (u, negated(v)))
        return operator != r"\in" and self.proportional(f, g, positive=not swaps)

    def relation(self, a, b):
        if b.kind == "relation":
            return self.matched(pairs(a), pairs(b), self.same_comparison) or self.same_region(a, b)
        value = self.answered(a)
        return self.equal(value, b) if value else self.same_region(a, b)

    def answered(self, relation):
        """The value in "x = value", "x \\in set" or a true chain of numbers, else None."""
        sides, operators = relation.parts[::2], set(relation.parts[1::2])
        if operators == {r"\in"}:
            return sides[1] if is_label(sides[0]) else None
        if operators != {"="}:
            return None
        label = next((s for s in (sides[0], sides[-1]) if is_label(s)), None)
        values = [s for s in sides if s is not label]
        if label and set(names(label)) & set(names(*values)):
            return None
        return values[-1] if all(self.equal(v, values[-1]) for v in values[:-1]) else None

    # collections

    def matched(self, xs, ys, same):
        """True if the items pair off, in any order."""
        if len(xs) != len(ys):
            return False
        left = list(ys)
        for x in xs:
            found = next((i for i, y in enumerate(left) if same(x, y)), None)
            if found is None:
                return False
            del left[found]
        return True

    def unlabelled(self, tree):
        """ "x=1, x=2" and "x=1, 2" as the list "1, 2"; "x=1, y=2" as the tuple (1, 2)."""
        values = [self.answered(i) if i.kind == "relation" else i for i in tree.parts[1:]]
        labels = [i.parts[0] for i in tree.parts[1:] if i.kind == "relation"]
        if not labels or None in values:
            return tree
        if len(set(labels)) == 1:
            return Node("list", (",", *values))
        ordered = [Node("symbol", (n,)) for n in names(*labels)] == labels
        return Node("group", ("(", ")", *values)) if ordered else tree

    def bare_list(self, a, b):
        plain = self.unlabelled(a)
        if b.kind == "list":
            other = self.unlabelled(b)
            if (plain, other) == (a, b) or (plain != a and other != b):
                return self.matched(a.parts[1:], b.parts[1:], self.equal) or self.same_region(a, b)
            return self.equal(plain, other)
        if plain.kind != "list":
            return self.equal(plain, b)
        items = plain.parts[1:]
        if b.kind == "set":
            return self.matched(items, b.parts, self.equal)
        tuple_ = Node("group", ("(", ")", *items))
        return (b.kind == "group" and self.ordered(tuple_, b)) or self.same_region(a, b)

    def quantity(self, a, b):
        value, unit = a.parts
        if b.kind == "quantity":
            return unit == b.parts[1] and self.equal(value, b.parts[0])
        scale = {"%": number(Fraction(1, 100)), "degree": Node("degree", (number(1),))}.get(unit)
        return self.equal(value, b) or bool(scale) and self.equal(times(scale, value), b)

    def ordered(self, a, b):
        """Tuples, intervals, ratios and matrices: same brackets, same items in the same order."""
        if a.kind != b.kind:
            return self.same_region(a, b)
        return len(a.parts) == len(b.parts) and all(
            self.equal(x, y) if isinstance(x, Node) else x == y for x, y in zip(a.parts, b.parts)
        )

    def same_set(self, a, b):
        if b.kind != "set":
            return self.same_region(a, b)
        return all(any(self.equal(x, y) for y in v.parts)
                   for u, v in ((a, b), (b, a)) for x in u.parts)

    def based(self, a, b):
        """Equal bases and digits, or the same digits where one base is missing."""
        return a == b or b == number(int(a.parts[0]))

    def same_region(self, a, b):
        """True if two sets of reals have the same members.

        Only the order of the end points matters: each has an odd rank, each gap between them an
        even one, and one member per rank decides.
        """
        if not {a.kind, b.kind} <= REGIONS or len(names(a, b)) > 1:
            return False
        try:
            ends = [*end_points(a), *end_points(b)]
            ranks = self.ranks([e for e in ends if not contains(e, "infinity")])
        except Undefined:
            return False
        top = max(ranks.values(), default=-1) + 2
        ranks |= {INFINITY: top, negated(INFINITY): -1}
        if not set(ends) <= set(ranks) or any(is_empty(n, ranks) for n in (*walk(a), *walk(b))):
            return False
        return all(member(a, r, ranks) == member(b, r, ranks) for r in range(top))

    def ranks(self, ends):
        """1, 3, 5, ... for the end points in increasing order, equal ones sharing a rank."""
        ordered = []
        for end in dict.fromkeys(ends):
            (value,), evaluator = self.values((end,), {}, True)
            ordered.append((evaluator.inexact(value), end))
        ordered.sort(key=lambda pair: pair[0])
        ranks, rank, previous = {}, -1, None
        for _, end in ordered:
            if previous is None or not self.same_value(previous, end):
                rank += 2
            ranks[end], previous = rank, end
        return ranks

    RULES = (
        ("relation", relation), ("list", bare_list), ("quantity", quantity), ("based", based),
        ("union", same_region), ("reals", same_region), ("set", same_set), ("group", ordered),
        ("matrix", ordered), ("row", ordered),
    )


INFINITY = Node("constant", ("infinity",))
REGIONS = {"group", "set", "union", "reals", "relation", "list"}


def renamed(tree):
    """`tree` with other variables."""
    if tree.kind == "symbol":
        return Node("symbol", (tree.parts[0] + " there",))
    return Node(tree.kind, tuple(renamed(p) if isinstance(p, Node) else p for p in tree.parts))


def is_label(tree):
    if tree.kind == "group":
        return all(map(is_label, tree.parts[2:]))
    return tree.kind == "symbol"


def pairs(relation):
    """ "1 < x <= 3" as (left, operator, right) triples whose operators point one way."""
    parts = relation.parts
    triples = [parts[i : i + 3] for i in range(0, len(parts) - 2, 2)]
    flips = {">": "<", ">=": "<="}
    return [(z, flips[o], x) if o in flips else (x, o, z) for x, o, z in triples]


def is_empty(tree, ranks):
    """True for an interval such as (2, 1), surely meant as a pair."""
    low, high = (ranks[p] for p in tree.parts[2:]) if tree.kind == "group" else (0, 1)
    return low > high or (low == high and tree.parts[:2] != ("[", "]"))


def end_points(tree):
    """The numbers that bound a set of reals; Undefined if it is not one."""
    inner = [p for p in tree.parts if isinstance(p, Node)]
    if tree.kind == "union" or (tree.kind == "list" and tree.parts[0] != ","):
        for part in inner:
            yield from end_points(part)
    elif tree.kind == "relation" and names(tree):
        for left, operator, right in pairs(tree):
            if operator == r"\in" and left.kind == "symbol":
                yield from end_points(right)
            else:
                yield from (constant(s) for s in (left, right) if s.kind != "symbol")
    elif tree.kind == "set" or (tree.kind == "group" and len(inner) == 2 and tree.parts[0] != ":"):
        yield from map(constant, inner)
    elif tree.kind != "reals":
        raise Undefined(f"not a set of reals: {tree.kind}")


def constant(tree):
    if names(tree) or tree.kind in REGIONS:
        raise Undefined("not a constant number")
    return tree


def member(tree, rank, ranks):
    """True if the number of this rank lies in the set."""
    if tree.kind == "group":
        low, high = (ranks[p] for p in tree.parts[2:])
        return low < rank < high or (rank == low and tree.parts[0] == "[") or (
            rank == high and tree.parts[1] == "]")  # fmt: skip
    if tree.kind == "set":
        return any(ranks[p] == rank for p in tree.parts)
    if tree.kind == "union":
        x, y = (member(p, rank, ranks) for p in tree.parts[1:])
        return {r"\cup": x or y, r"\cap": x and y, r"\setminus": x and not y}[tree.parts[0]]
    if tree.kind == "list":
        quantifier = any if tree.parts[0] == "or" else all
        return quantifier(member(p, rank, ranks) for p in tree.parts[1:])
    return tree.kind == "reals" or all(holds(*pair, rank, ranks) for pair in pairs(tree))


def holds(left, operator, right, rank, ranks):
    if operator == r"\in":
        return member(right, rank, ranks)
    x, y = (rank if side.kind == "symbol" else ranks[side] for side in (left, right))
    return {"<": x < y, "<=": x <= y, "=": x == y, r"\ne": x != y}[operator]


# ---------------------------------------------------------------- public interface


def extract_boxed(text):
    r"""Content of the last \boxed{...} or \fbox{...} of `text`, also of "\boxed 5"; else None.

    None too if that box is never closed.  Escaped braces \{ \} do not count.
    """
    start = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
    match = re.compile(r"\\(?:boxed|fbox)(?:\s*(\{)|\s+([^\s$]+))").match(text, max(start, 0))
    if not match or not match[1]:
        return match and match[2]
    depth = 0
    for mark in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, match.start(1)):
        depth += (mark[0] == "{") - (mark[0] == "}")
        if depth == 0:
            return text[match.end(1) : mark.start()]
    return None


def answers_equal(prediction, gold):
    """True if two answers are equal under the conventions above; never raises, never hangs."""
    texts = [text.strip() for text in (prediction, gold)]
    if max(map(len, texts)) > MAX_LENGTH:
        return texts[0] == texts[1]
    texts = [clean(text) for text in texts]
    words = [spelled(tokenize(text)) for text in texts]
    if words[0] == words[1]:
        return any(c.isalnum() for word in words[0] for c in word)
    a, b = [readings(text) for text in texts]
    with LOCK:
        try:
            judge = Judge(*a, *b)
            return any(judge.equal(x, y) for x in a for y in b)
        except (TooMuchWork, RecursionError):
            return False
