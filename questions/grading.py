r"""Are two written answers mathematically equal?  Text -> tokens -> numbers of sympy -> comparison.

Nothing is solved or simplified.  A variable stands for random rationals, one per sample point, and
the parser calculates with them while it reads: exactly as long as + - * / and whole powers suffice,
else with DIGITS digits.  Formulas are equal if their values are, at every point where both are
defined.  Text that is no mathematics is compared word by word.

Conventions
  numbers    Nothing is rounded: 3.14 is not \pi.  Number bases are left out.
  units      A unit, percent or degree sign may be missing on one side; two different units differ.
  equations  "x = 5" answers "5", not "y = 5"; an equation may be multiplied by a constant, an
             inequality by a positive one.
  lists      A list "1, 2" is unordered; it equals {1, 2} and, in this order, the pair (1, 2).  One
             side may repeat elements.  A set of one element is as good as its element.
  intervals  The pair (1, 2) is an interval if the other side is a set of reals.
  notation   \pm gives both values, 1/2x is x/2, \log has an unknown base.

Run: python -c "import questions; print(questions.answers_equal(r'\frac12', '0.5'))"   # True
"""
import random
import re
import threading
from fractions import Fraction
from operator import add, mul, neg, sub, truediv
from typing import NamedTuple

import sympy
from sympy import FiniteSet, Integer, Interval, Rational, nan, oo

# ---- limits: model output is hostile text ----

MAX_LENGTH = 1000  # characters of one answer
MAX_DEPTH = 24  # brackets, powers and arguments inside each other
MAX_BITS = 3000  # of a power of a rational, and of a denominator
MAX_WORK = 60_000  # of one comparison, very roughly in microseconds
MAX_ITEMS = 50  # of lists that are matched in any order
DIGITS = 400  # of an inexact number
TINY = Rational(1, 10**250)  # a smaller difference is a rounding error
HUGE = Integer(10) ** 100  # numbers of this size count as undefined
LOCK = threading.Lock()  # sympy's precision and constants are shared by all threads

# ---- vocabulary: constants, functions, units ----

GREEK = "alpha beta gamma delta epsilon theta lambda mu rho sigma phi psi omega Delta ell".split()
CONSTANTS = {
    "pi": sympy.pi.evalf(DIGITS), "e": sympy.E.evalf(DIGITS), "i": sympy.I,
    "infty": oo, r"-\infty": -oo,
    "%": Rational(1, 100), "°": sympy.pi.evalf(DIGITS) / 180,
}
TEMPERATURES = ("celsius", "fahrenheit")  # a degree sign that is no angle


def of_reals(function):
    """A function of sympy that is worked out with DIGITS digits, and undefined off the reals."""
    return lambda x: nan if x.has(sympy.I) else function(x.evalf(DIGITS))


ELEMENTARY = "sin cos tan cot sec csc arcsin arccos arctan ln log exp".split()
FUNCTIONS = {name: of_reals(getattr(sympy, name.replace("arc", "a"))) for name in ELEMENTARY}
FUNCTIONS["abs"] = sympy.Abs
# A whole number that is worked out may come out a rounding error too low, or too high.
FUNCTIONS["floor"] = of_reals(lambda x: sympy.floor(x + TINY))
FUNCTIONS["ceil"] = of_reals(lambda x: sympy.ceiling(x - TINY))
NAMES = "|".join([*FUNCTIONS, "pi", "infinity"])


def synonyms(table):
    """{spelling: name} of rows "name spelling spelling ...;"."""
    rows = [row.split() for row in table.split(";")]
    return {spelling: name for name, *spellings in rows for spelling in spellings}


UNITS = synonyms("""second s sec; minute min; hour h hr; year yr; meter m metre; centimeter cm
    centimetre; millimeter mm millimetre; kilometer km kilometre; inch in inche; foot ft feet;
    yard yd; mile mi; gram g gm; kilogram kg; milligram mg; pound lb; ounce oz; liter l litre;
    milliliter ml; mile/hour mph; kilometer/hour kph kmh; / per; square sq; cubic cu""")
# Units of up to three letters, which are variables unless they follow a number: 2 ft is no product.
SHORT_UNIT = r"""(?:(?:sq|cu)\.?\ (?:in|ft|yd|mi|m|[mck]m)|(?:km|mi|ft|m)/(?:hr?|sec|s)|[mck]m
    |m[glL]|[kM]?Hz|rpm|kg|ft|yd|oz|lbs?|mph|kph|hrs?|mins?|yrs?|days?)\b|\ (?:in|mi)\b
    |secs?\b(?!\ ?[\\(\w^])"""  # before an argument, sec is the secant
# After a number these change its value or meaning, so they are no unit.
NOT_UNIT = re.compile(r"""\b([mbtr]+illions?|(hundred|thousand|ten)(th)?s?|dozens?|hal(f|ves)|times
    |thirds?|quarters?|(four|fif|six|seven|eigh|nin)ths?|not|only|if|when|where|for|more|less|least
    |most|than|plus|minus|over|squared|cubed|factorial|choose|mod\w*|remainder|to|from|with\w*|root
    |between|through|base|negative|or|and|is|are|by|pi|infinity|[ie]|theta)\b""", re.VERBOSE)

# ---- text -> tokens ----

# Many spellings become one. Each row works on what the rows before it have left.
REWRITINGS = [(re.compile(pattern), new) for pattern, new in [
    # spacing and sizes
    (r"\\\\ ?\[ ?[\d.]+ ?(pt|em|ex|mm|cm) ?\]", r"\\\\ "),
    (r"(?<=\d) ?(, ?\\!|\{,\}) ?(?=\d{3})", ""),
    (r"(?<!\\)\\(left|right)(?![a-z]) ?", ""),
    (r"(?<!\\)\\((display|text)style|limits|[bB]ig[lr]?|q?quad)(?![a-z])", " "),
    (r"(?<!\\)(\\[,;:>!()\[\] ]|\$)|~", " "),
    # money, and "about"
    (r"\\\$(.*)", r"\1 dollars"),
    (r"^ *\\approx", ""),
    # matrices; a row mark before the end opens no row
    (r"\\begin ?\{array\} ?\{[lcr ]*\}", r"\\begin{matrix}"),
    (r"\\end ?\{array\}", r"\\end{matrix}"),
    (r"(\\\\ ?)?\\(begin|end)\{([pb]|small)?matrix\}", r"\\\2 "),
    # percent and degrees
    (r" ?\bper ?cent\b| ?(?<![A-Za-z])pct\b|\\%", "%"),
    (r"\^ ?(\{ ?\\circ ?\}|\\circ)| ?(?<!\\)\bdeg(?:rees?)?\b|\\(text)?degree(?![a-z])", "°"),
    (r"° ?(\\(?:text|math|mbox)[a-z]* ?\{ ?)?(?:C|[Cc]elsius)\b(?(1) ?\})", " celsius "),
    (r"° ?(\\(?:text|math|mbox)[a-z]* ?\{ ?)?(?:F|[Ff]ahrenheit)\b(?(1) ?\})", " fahrenheit "),
    # sets and infinity; {x | x > 1} says no more than x > 1
    (r"^ ?\\\{ ?([a-z]) ?(?:\\mid(?![a-z])|[|:])(?=.*(?<![a-zA-Z\\])\1(?![a-zA-Z]))"
     r"([^{}]*(?:[<>=≤≥]|\\[lg]eq?(?![a-z]))[^{}]*)\\\} ?$", r"\2"),
    (r"\\mathbb ?(\{ ?)?R(?![A-Za-z])(?(1) ?\})|ℝ", r"(-\\infty,\\infty)"),
    (r"- ?(\\infty|∞)", r"-\\infty "),
    (r"\\\{ ?\\\}|\\varnothing|∅", r"\\emptyset"),
    # functions, roots and logarithms
    (r"\\(sin|cos|tan) ?\^ ?\{-1\}", r"\\arc\1"),
    (r"([_^]) ?\{ ?(\w) ?\}", r"\1\2 "),
    (r"\\[lr]?vert", "|"),
    (r"\|([^|]*)\|", r"\\abs(\1)"),
    (r"\\l(floor|ceil)", r"\\\1("),
    (r"\\r(floor|ceil)", ")"),
    (r"√|\\sqrt|(?<![A-Za-z\\])sqrt", r"\\sqrt"),
    (r"\\sqrt ?\[(\w+)\]", r"\\root{\1}"),
    (r"\\sqrt", r"\\root{2}"),
    (r"(\\|(?<![A-Za-z\\]))log(?! ?_)", r"\\log_\\ell "),
    # one \pm gives two values; several would give pairs that nobody means
    (r"\\pm(?![a-z])", "±"),
    (r"^([^±]*)±([^±]*)$", r"\1+\2,\1-\2"),
    # fractions, binomials and mixed numbers
    (r"\{([^{}]*)\\over(?![a-z])([^{}]*)\}", r"\\frac{\1}{\2}"),
    (r"(?<=\d) choose (?=\d)", r"\\choose "),
    (r"\\[dtc]?(frac|binom)", r"\\\1"),
    (r"(\\frac|\\binom) ?(\d)", r"\1{\2}"),
    (r"(\\frac|\\binom) ?(\{[^{}]*\}) ?(\d)", r"\1\2{\3}"),
    (r"(?<![\d.^_])(\d+) ?\\frac ?(\{ ?\d+ ?\}) ?(\{ ?\d+ ?\})", r"\\mixed{\1}\2\3"),
    (r"(?<![\d.^_])(\d+) (\d+) ?/ ?(\d+)", r"\\mixed{\1}{\2}{\3}"),
]]
ALIASES = synonyms(r"""<= \le \leq \leqslant ≤; < \lt; >= \ge \geq \geqslant ≥; > \gt;
    \ne \neq != ≠; = \in ∈; * \times \cdot \ast × ·; / \div ÷; ^ **; - − –;
    ( \langle; ) \rangle; \{ \lbrace; \} \rbrace; \cup ∪; infty ∞ infinity; pi π;
    \and and \land \wedge ∧ \&; \or or \lor \vee ∨""")
ALIASES |= {rf"\{name}": name for name in [*CONSTANTS, *FUNCTIONS, *GREEK]}
NUMBER = re.compile(r"\d*\.\d*\\(?:overline|bar)\ ?\{\d+\}"
                    r"|(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3}(?!\d))?", re.ASCII)
TOKEN = re.compile(rf"""{NUMBER.pattern} | "[^"]*" | -\\infty | \\[a-zA-Z]+ | \\. | \*\* | [<>!]=
    | (?:and|or)\b | (?:{NAMES})(?![a-z]{{2}}) | [fgh]\(\w\) | [A-Z]\(\w\)(?=\ ?=) | d[xyzt]\b
    | (?:[A-Z]{{2,}}|[A-Za-z])(?:_\w|_\{{\w+\}})? | \S""", re.VERBOSE | re.ASCII)
# Words and units, to be put in quotes; of \text{...} only those with two letters or more.
WORD = re.compile(rf"""
    \\(?:text[a-z]*|math(?:rm|bf|it|sf|tt|normal)|[mh]box|operatorname)\ ?\{{([^{{}}]*)\}}
    | (?<=\d)\ ?(?:{SHORT_UNIT}) | (?<![\\A-Za-z])per\ [a-z]+\b
    | \b(?:[Yy]es|[Nn]o|[A-Z][a-z]{{2}})\b
    | (?<![\\A-Za-z])(?!(?:{NAMES})[a-z]?\b)[A-Za-z][a-z]{{3,}}""", re.VERBOSE)
ONE_LETTER_UNIT = r"^[mshgL]\b"
DIGIT_GROUPS = re.compile(r"(?<![\d.,^_])\d{1,3}([, ]\d{3})+(?!,?\d| ?/)")


def tokenize(text):
    r"""Tokens without \boxed, spacing and marks that group digits; words and units in quotes."""
    boxed = extract_boxes(text)
    if boxed is not None:
        text = boxed
    text = " ".join(text.replace('"', " ").split()).rstrip(" .,;\\$")
    for pattern, new in REWRITINGS:
        text = pattern.sub(new, text)
    if not re.search(r"[(\[]|\\\{", text):  # in brackets, a comma is between two items
        text = DIGIT_GROUPS.sub(lambda match: re.sub("[, ]", "", match[0]), text)
    return [ALIASES.get(token, token) for token in TOKEN.findall(WORD.sub(quoted, text))]


def quoted(match):
    r"""A match of WORD in quotes, or bare if it holds no word: \text{A}, \text{2 and 3}."""
    if match[1] is None:
        return f' "{match[0].strip()}" '
    body = match[1].strip(" ,;").rstrip(".")
    without_joints = re.sub(r"\b(and|or)\b", "", body)
    has_words = re.search(rf"[A-Za-z]{{2}}|{ONE_LETTER_UNIT}", without_joints)
    if has_words and body not in FUNCTIONS and not body.isupper():
        return f' "{body}" '
    return f" {body} "


# ---- numbers ----

class Reading(NamedTuple):
    """What an answer, or a part of it, says."""
    kind: str  # number, relation, list, group (in brackets), set or union
    items: tuple  # of a number its values, of a relation triples (left, sign, right), else readings
    marks: tuple = ()  # the signs between the items and around them
    unit: str = ""
    label: str = ""  # the name of a lone variable, or of one that occurs once in a relation


def decimal(token):
    r"""The rational written as "12", ".5", "1.5e3" or "0.1\overline{6}"."""
    head, _, tail = token.partition("\\")
    value = Fraction(f"0{head}")
    if period := re.sub(r"\D", "", tail):
        place = Fraction(1, 10 ** len(head.partition(".")[2]))  # of the last digit before it
        value += place * int(period) / (10 ** len(period) - 1)
    return Rational(value)


def power(base, exponent):
    """base^exponent; of a negative base the real root, where there is one."""
    if base == 0 or exponent.is_Integer:
        bits = (base.p * base.q).bit_length() if base.is_Rational else 1
        is_undefined = base == exponent == 0
        return nan if is_undefined or bits * abs(exponent) > MAX_BITS else base**exponent
    base = base.evalf(DIGITS)
    if base.is_Float and base < 0 and exponent.is_Rational and exponent.q % 2:
        return (-1) ** exponent.p * (-base) ** exponent
    return base**exponent


def factorial(n):
    return sympy.factorial(n) if n.is_Integer and 0 <= n <= 1000 else nan


def binomial(n, k):
    return factorial(n) / factorial(k) / factorial(n - k)


def mixed_number(whole, top, bottom):
    """1 2/3 is 5/3; an improper one is ambiguous."""
    return whole + top / bottom if 0 < top < bottom else nan


SIGNS = {"+": add, "-": sub, "*": mul, "/": truediv}
COMPARISONS = ("=", "<", ">", "<=", ">=", r"\ne")
COMMANDS = {  # and the number of their arguments
    r"\frac": (truediv, 2), r"\mixed": (mixed_number, 3), r"\binom": (binomial, 2),
    r"\root": (lambda n, x: power(x, 1 / n), 2),
}
BETWEEN = {r"\over": truediv, r"\choose": binomial}  # TeX's: all of a group is an argument


def marks_of_tuple(items):
    return ("(", *"," * (len(items) - 1), ")")


def unit_name(text):
    """The name of a unit: "ft" and "feet" are one, and so are "sq ft" and "ft^2"."""
    name = ""
    for word in re.findall(r'[a-z]+|[^a-z\s."]', text):
        singular = re.sub(r"(?<=[a-z][a-tv-z])s$", "", word)  # but "celsius"
        name += UNITS.get(singular, singular)
    name = re.sub(r"square([a-z]+)", r"\1^2", name)
    return re.sub(r"cubic([a-z]+)", r"\1^3", name)


# ---- tokens -> reading ----

class Parser:
    """Recursive descent over one answer; its methods go from the whole to the smallest part."""
    CLOSING = {"(": ")]", "[": ")]", "{": "}", r"\{": [r"\}"], r"\begin": [r"\end"]}
    FACTORS = {*CLOSING, *COMMANDS, "%", "°"}  # no sign is needed between a number and these

    def __init__(self, tokens, comparison):
        self.tokens = ["", *reversed(tokens)]  # the next one is the last; "" is the end
        self.last_atom = ""
        self.names = []  # of the variables, in order of appearance
        self.comparison = comparison
        self.compute = comparison.compute
        self.depth = 0

    def accept(self, *wanted):
        """The next token, taken, if it is one of these; else ""."""
        return self.tokens.pop() if self.tokens[-1] in wanted else ""

    def answer(self):
        """Everything; equations with different left sides are a tuple in alphabetical order."""
        items, marks = self.items([""])
        if len(items) == 1:
            return items[0]
        labels = {item.label if item.kind == "relation" else "": item for item in items}
        if "" not in labels and len(labels) == len(items):
            in_order = tuple(labels[label] for label in sorted(labels))
            return Reading("group", in_order, marks_of_tuple(items))
        label = items[0].label if len(labels) == 1 else ""
        return Reading("list", items, marks, label=label)

    def items(self, close):
        """Items up to one of `close`, and the marks between and behind them."""
        items, marks = [self.relation()], []
        while mark := self.accept(",", ";", "&", r"\\", r"\and", r"\or"):
            word = self.accept(r"\and", r"\or")  # as in "2, and 3"
            marks.append(word if word else mark)
            items.append(self.relation())
        if self.tokens[-1] not in close:
            raise ValueError(f"{self.tokens[-1]!r} instead of {close}")
        return tuple(items), (*marks, self.accept(*close))

    def relation(self):
        """A quantity, or comparisons such as 1 < x < 3."""
        start = len(self.names)
        left, comparisons = self.quantity(), []
        while sign := self.accept(*COMPARISONS):
            right = self.quantity()
            if sign[0] == ">":  # 3 > x is read as x < 3
                comparisons.append((right, "<" + sign[1:], left))
            else:
                comparisons.append((left, sign, right))
            left = right
        if not comparisons:
            return left
        sides = [side for x, _, y in comparisons for side in (x, y)]
        label = next((side.label for side in sides if side.label), "")
        if self.names[start:].count(label) > 1:  # x = 2x + 1 does not say what x is
            label = ""
        return Reading("relation", tuple(comparisons), label=label)

    def quantity(self):
        r"""A sum with its unit, which covers all of it: 3 + \sqrt2 feet."""
        reading = self.sum()
        if mark := self.accept(*BETWEEN):
            reading = self.compute(BETWEEN[mark], reading, self.sum())
        unit = self.last_atom if self.last_atom in ("%", "°") else ""
        while self.tokens[-1][:1] == '"' or (unit and self.tokens[-1] in ("^", "/", "2", "3")):
            unit += self.tokens.pop().lower()
        if NOT_UNIT.search(unit):
            raise ValueError(f"{unit!r} is no unit")
        return reading._replace(unit=unit_name(unit))

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
        is_negative = False
        while mark := self.accept("+", "-"):
            is_negative ^= mark == "-"
        return self.compute(neg, read()) if is_negative else read()

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
        """A number, a variable, or the content of brackets, or of a function with its argument."""
        token = self.last_atom = self.tokens.pop()
        if token in CONSTANTS:
            return Reading("number", (CONSTANTS[token],))
        if NUMBER.fullmatch(token):
            return Reading("number", (decimal(token),))
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
        return self.comparison.variable(token)

    def bracket(self, opening):
        items, marks = self.items(self.CLOSING[opening])
        if opening + marks[-1] in ("()", "[]", "{}") and len(items) == 1:
            return items[0]._replace(label="")  # brackets around a number mean nothing
        labels = [item.label for item in items]
        label = ",".join(labels) if all(labels) else ""
        kind = "set" if "{" in opening else "group"
        return Reading(kind, items, (opening, *marks), label=label)

    def function(self, name):
        r"""\sin^2 x, \log_2 8, sin(x): a bare argument ends before ( + - * / or a function."""
        exponent = self.signed(self.atom) if self.accept("^") else None
        base = self.atom() if self.accept("_") else None
        if self.tokens[-1] in ("(", "{"):
            argument = self.atom()
        else:
            argument = self.product(stop=("*", "/", "(", "[", *FUNCTIONS))
        self.comparison.spend(300 * len(argument.items))
        result = self.compute(FUNCTIONS[name], argument)
        if base:
            result = self.compute(lambda x, b: x / FUNCTIONS["ln"](b), result, base)
        return self.compute(power, result, exponent) if exponent else result


# ---- reading -> verdict ----

class Comparison:
    """One comparison: its sample points, its budget of work, and what equality means."""
    def __init__(self, tokens):
        self.work = 0
        self.is_real = "i" not in tokens  # then complex values do not count
        # Sample points are drawn from c - r ... c + r: beyond, or near, the numbers in the text.
        literals = sorted({decimal(token) for token in tokens if NUMBER.fullmatch(token)} | {1})
        top = literals[-1] + 1
        self.ranges = [(5, 5), (-9, 9)]
        if self.is_real:
            self.ranges += [(0, 1), (top, 1), (-top, 1), (0, 40), (0, 9)]
        if {"abs", "floor", "ceil"} & set(tokens):  # these may differ only next to a number
            for n in literals[-4:]:
                self.ranges += [(n + 1, 1), (n - 1, 1), (1 - n, 1), (-1 - n, 1)]

    def spend(self, work):
        self.work += work
        if self.work > MAX_WORK:
            raise ValueError("too much work")

    # -- calculation, at all sample points at once --

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
        n = max(len(reading.items) for reading in readings)  # sample points; 1 of a constant
        columns = [reading.items * n if len(reading.items) == 1 else reading.items
                   for reading in readings]
        must_be_real = self.is_real and n > 1
        values = [self.value(function, point, must_be_real) for point in zip(*columns)]
        return Reading("number", tuple(values))

    def value(self, function, arguments, must_be_real):
        try:
            if not all(map(can_be_computed_with, arguments)):
                return nan
            value = function(*arguments)
            if not value.is_Rational:
                value = value.evalf(DIGITS, chop=TINY)
        except (ArithmeticError, TypeError):
            return nan
        self.spend(50 if value.is_Rational else 150 if value.is_Float else 1000)
        return nan if must_be_real and not (value.is_Rational or value.is_Float) else value

    # -- equality --

    def same_answer(self, a, b):
        """True if two whole answers say the same."""
        return self.equal(a, b) or self.same_element(a, b)

    def equal(self, a, b):
        """True if two readings say the same."""
        # From here on a is the relation if there is one, and has a unit if one of them has.
        b, a = sorted((a, b), key=lambda reading: (reading.kind == "relation", reading.unit))
        if a.kind == b.kind == "number":
            return self.same_number(a, b)
        if a.unit and b.unit and a.unit != b.unit:
            return False
        return self.same_items(a, b) or self.same_region(a, b)

    def same_number(self, a, b):
        """True if two numbers are equal; a unit, percent or degree sign may be missing in b."""
        if a.unit == b.unit:
            return self.agree(a, b)
        if not b.unit:
            return self.agree(a, b) or (
                a.unit in CONSTANTS and self.agree(a, b, CONSTANTS[a.unit]))
        is_temperature = a.unit == "°" and b.unit in TEMPERATURES
        return is_temperature and self.agree(a, b, CONSTANTS["°"])

    def agree(self, a, b, scale=1):
        """True if a = scale * b wherever both are defined, which is at 3 points or more."""
        if len(a.items) == 1 and a.items[0] in (oo, -oo):
            return a.items == b.items
        differences = self.compute(lambda x, y: x - scale * y, a, b).items
        defined = [difference for difference in differences if difference != nan]
        return not any(defined) and len(defined) >= min(3, len(differences))

    def same_items(self, a, b):
        """True if two readings that are not both numbers have the same parts."""
        kinds = {a.kind, b.kind}
        if kinds == {"relation"}:
            return self.matched(a.items, b.items, self.same_comparison)
        if "relation" in kinds:
            return self.answers(a, b)
        if kinds <= {"list", "set"}:
            return self.matched(a.items, b.items, self.equal) or self.repeats(a.items, b.items)
        if not kinds < {"group", "list", "union"}:
            return False
        # A list is as good as a tuple in this order, but not as an interval: [1, 2] is not 1, 2.
        marks = {marks_of_tuple(r.items) if r.kind == "list" else r.marks for r in (a, b)}
        return len(marks) == 1 and all(map(self.equal, a.items, b.items))

    def matched(self, xs, ys, same):
        """True if the items, fewer than MAX_ITEMS, pair off in some order."""
        if not 0 < len(xs) < MAX_ITEMS:
            return xs == ys
        return any(same(xs[0], y) and self.matched(xs[1:], ys[:n] + ys[n + 1:], same)
                   for n, y in enumerate(ys))

    def repeats(self, xs, ys):
        """True if the longer of two lists has the items of the other, some of them repeatedly.
        If both repeat items, their numbers may matter: 1, 1, 2 is not 1, 2, 2."""
        shorter, longer = sorted((xs, ys), key=len)
        if len(shorter) == len(longer):
            return False
        return self.matched(self.distinct(longer), shorter, self.equal)

    def distinct(self, items):
        """The items, fewer than MAX_ITEMS, without those that equal an earlier one."""
        if len(items) >= MAX_ITEMS:
            return items
        different = ()
        for item in items:
            if not any(self.equal(item, earlier) for earlier in different):
                different += (item,)
        return different

    def same_element(self, a, b):
        """True if one is a set, or a list that repeats one item, and the other is its element."""
        several, element = (a, b) if a.kind in ("list", "set") else (b, a)
        if several.kind not in ("list", "set") or element.kind in ("list", "set", "union"):
            return False
        only, *others = self.distinct(several.items)
        # A set that holds an interval is not the interval.
        is_interval = only.kind == "group" and only.marks != marks_of_tuple(only.items)
        if others or is_interval or only.kind in ("list", "set", "union"):
            return False
        if only.kind == "group":
            return element.kind == "group" and self.same_items(only, element)
        return element.kind != "group" and self.equal(only, element)

    def answers(self, relation, other):
        """True if the relation is "x = other", or a chain of numbers equal to the other."""
        if other.kind in ("list", "set") and relation.label:
            names = {item.label for item in other.items if item.kind == "relation"}
            if names - {"", relation.label}:  # y = 1 or y = 2 does not say what x is
                return False
        lefts, signs, rights = zip(*relation.items)
        sides = [lefts[0], *rights]
        if relation.label:
            sides.pop(0 if sides[0].label else -1)
        return set(signs) == {"="} and all(self.same_answer(side, other) for side in sides)

    def same_comparison(self, a, b):
        """True if two comparisons are the same up to a constant (positive) factor."""
        (x, sign, y), (u, other_sign, v) = a, b
        if sign != other_sign:
            return False
        if {reading.kind for reading in (x, y, u, v)} != {"number"}:
            return self.equal(x, u) and self.same_answer(y, v)  # x \in \{5\} is x = 5
        ratio = self.compute(truediv, self.compute(sub, x, y), self.compute(sub, u, v))
        factor = next((value for value in ratio.items if value != nan), Integer(0))
        fits = factor.is_positive if sign[0] == "<" else factor != 0
        return fits and len(ratio.items) > 1 and self.agree(ratio, Reading("number", (factor,)))

    # -- sets of reals --

    def same_region(self, a, b):
        """True if both are the same set of reals, of the same variable if both name one."""
        if a.label and b.label and a.label != b.label:
            return False
        try:
            return self.region(a) == self.region(b)
        except ValueError:
            return False

    def region(self, reading):
        """The set of reals in intervals, finite sets, inequalities in one variable, and unions."""
        kind, items, marks, _, label = reading
        self.spend(2000)
        region = sympy.EmptySet
        if kind == "relation" and label and len(items) < 3:
            region = sympy.Intersection(*(self.solutions(*comparison) for comparison in items))
        elif kind == "union" or (kind == "list" and label and r"\or" in marks):
            region = sympy.Union(*map(self.region, items))
        elif kind == "set":
            region = FiniteSet(*map(end_point, items))
        elif kind == "group" and len(items) == 2 and set(marks) <= set("()[],"):
            region = Interval(*map(end_point, items), marks[0] == "(", marks[-1] == ")")
        if region == sympy.EmptySet:  # an interval with its ends swapped is a pair
            raise ValueError("no set of reals")
        return region

    def solutions(self, left, sign, right):
        """The set of reals for which a comparison with a variable holds."""
        if sign == "=" and left.kind == "number" and right.kind in ("group", "union"):
            return self.region(right)  # x \in (1, 2)
        end = end_point(right if left.label else left)
        ends = (-oo, end) if left.label else (end, oo)
        return {"=": FiniteSet(end), "<": Interval.open(*ends), "<=": Interval(*ends),
                r"\ne": sympy.Reals - FiniteSet(end)}[sign]


def can_be_computed_with(x):
    """Whether x is neither too large nor too close to 0: what comes of it would be undefined."""
    size = abs(float(x) if x.is_Rational or x.is_Float else complex(x))
    if x and not 1 / HUGE < size < HUGE:  # nan, too
        return False
    return getattr(x, "q", 1).bit_length() <= MAX_BITS


def end_point(reading):
    """A real constant, rounded so that equal ones are equal for sympy too."""
    is_constant = reading.kind == "number" and len(reading.items) == 1
    if not is_constant or not reading.items[0].is_extended_real:
        raise ValueError("no real constant")
    return sympy.floor(reading.items[0] / TINY + Rational(1, 2)) * TINY


# ---- boxes ----

BOX = re.compile(r"\\(?:boxed|fbox)(?:\s*(\{)|\s+([^\s$]+))")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # behind a backslash a brace is text
NOT_BETWEEN_BOXES = re.compile(r"\\[,;:! ()\[\]]|\\q?quad|\\(?:text|mbox)[a-z]*|[\s${}]")


def extract_boxed(text):
    r"""Content of the last \boxed{...} or \fbox{...}, or of "\boxed 5"; None if not closed."""
    box = box_at(text, max(text.rfind(r"\boxed"), text.rfind(r"\fbox")))
    return box[0] if box else None


def extract_boxes(text):
    r"""As extract_boxed, but "2 and 3" of \boxed{2} and \boxed{3}: the last boxes are one answer
    if nothing but a comma, "and" or "or" is between them."""
    contents, following = [], len(text)
    while True:
        start = max(text.rfind(r"\boxed", 0, following), text.rfind(r"\fbox", 0, following))
        box = box_at(text, start)
        if not box:
            break
        content, end = box
        between = NOT_BETWEEN_BOXES.sub("", text[end:following])
        if contents and not re.fullmatch(r"(?:[,;]|\\?&|and|or)+", between):
            break
        contents.append(content)
        following = start
    return " and ".join(reversed(contents)) if contents else None


def box_at(text, start):
    """(content, where it ends) of the box that begins at a place of the text; None if none does."""
    match = BOX.match(text, max(start, 0))
    if not match:
        return None
    if not match[1]:  # without braces, up to a blank
        return match[2], match.end()
    depth = 0
    for brace in BRACE.finditer(text, match.start(1)):
        depth += (brace[0] == "{") - (brace[0] == "}")
        if depth == 0:
            return text[match.end(1):brace.start()], brace.end()
    return None


# ---- the verdict ----

def answers_equal(prediction, gold):
    """True if two answers are equal under the conventions above; never raises, never hangs."""
    if max(len(prediction), len(gold)) > MAX_LENGTH:
        return prediction.strip() == gold.strip()
    first, second = sorted(tokenize(text) for text in (prediction, gold))  # one order, one verdict
    wording = as_words(first)
    if wording == as_words(second):
        return any(map(str.isalnum, wording))
    try:
        with LOCK:
            comparison = Comparison(first + second)
            readings = [Parser(tokens, comparison).answer() for tokens in (first, second)]
            return bool(comparison.same_answer(*readings))
    except (ValueError, RecursionError):
        return False


def as_words(tokens):
    """An answer as text: quoted words in small letters, and single letters put together again."""
    text = " ".join(token.lower() if token[0] == '"' else token for token in tokens)
    return re.sub(r'"|(?<=(?<!\\)\b[A-Za-z]) (?=[A-Za-z]\b)', "", text)
