"""Watch a question travel the stack: what every router thought, what was run, what came of it.

In the terminal, one question: per layer the three probabilities (paper §3.1), whether the guard
stepped in, the decision; then the answer beside the plain model's. With --html, a page of its own
for a whole evaluation: the heat map of layers by questions, to sort, filter and open, and below it
some of the searches that the routers' labels came from, path by path.

Questions are asked through answers.answer, as everywhere; a WitnessRoute around the routers' route
only looks on. Searches are done again from the label file, without the model. The page needs no
network and no server, runs no script but its own, and treats questions and answers as text,
whatever they say.

    python -m tools.explain --question "7 * 3 + 2 - 5 * 2 - 8 + 6 * 3 - 4 ="
    python -m tools.explain --html runs/demo/explain.html
"""
import base64
import contextlib
import hashlib
import json
import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import torch

import cli
from cli import percent
from drllm import RouterRoute, Routers
from tools.replay import digits, told_search
from label import content_hash
from model_llama import load_model, load_tokenizer
from storage.files import InputError, read_json, write_whole
from storage.label_file import read_rows
from cli import progress_bar
from questions.loading import Question, load_all
from storage.run_folder import folder_of
from questions.schemas import LETTERS
from answers import Answers, answer, batches, prepare

# N questions   L layers   B rows of a batch   the last axis of 3 is skip, execute, repeat

DECISIONS = ("skip", "execute", "repeat")
MARKS = ("·", "▪", "▪▪")               # a block per pass
FILLS = ("░", "▒", "█")                # of the bars, told apart without colour
COLOURS = ("2", "34", "33")            # dim, blue, yellow: ANSI codes
BAR = 30                               # characters
LONGEST = 1000                         # characters of a question or answer that the page shows
REPAIRED, OTHERS = 30, 10              # searches on the page: where the default was wrong, or right
DEMO_ROUTERS = Path("runs/demo/routers.safetensors")
TEMPLATE = Path(__file__).with_suffix(".html")


# ---- looking on ----

class WitnessRoute:
    """A Route that decides as a RouterRoute does and keeps what led to every decision.

    probabilities: per batch and layer (B, 3), in the order asked. guarded: (B,) bool each, where
    the guard finds the prompt strange, so that the layer is executed whatever its router says.
    """

    def __init__(self, route):
        self.route, self.num_layers = route, route.num_layers
        self.probabilities, self.guarded = [], []

    def __call__(self, layer, hidden, lengths):
        pooled, counts = self.route.pool(hidden, lengths)
        strange = self.route.routers.is_strange(layer, pooled, counts)
        self.probabilities.append(self.route.logits(layer, pooled, counts).softmax(-1).cpu())
        self.guarded.append(strange.cpu() & self.route.guard)
        return self.route(layer, hidden, lengths)

    def by_question(self, order):
        """(probabilities (N, L, 3), guarded (N, L)); order: the question in each row seen."""
        L, back = self.num_layers, torch.tensor(order).argsort()
        whole = lambda seen: torch.cat([torch.stack(seen[start:start + L], 1)
                                        for start in range(0, len(seen), L)])[back]
        return whole(self.probabilities), whole(self.guarded)


@dataclass
class Evaluation:
    """N questions asked twice. plain, routed: their Answers. probabilities: (N, L, 3), of the
    routers with their tilt. guarded: (N, L) bool, where the guard stepped in."""
    prompts: list
    plain: Answers
    routed: Answers
    probabilities: torch.Tensor
    guarded: torch.Tensor


def watch(model, tokenizer, prompts, route, batch_size=512):
    """The Evaluation of prompts by the plain model and by a RouterRoute."""
    witness = WitnessRoute(route)
    order = [i for rows in batches(prompts, batch_size) for i in rows]
    few = len(prompts) < 2
    with progress_bar(total=2 * len(prompts), desc="asking", unit="answer", disable=few) as bar:
        plain, routed = (answer(model, tokenizer, prompts, way, batch_size, bar.update)
                         for way in (None, witness))
    probabilities, guarded = witness.by_question(order)
    finite = probabilities.isfinite().all((1, 2)) & plain.confidence.isfinite() \
        & routed.confidence.isfinite()
    if not finite.all():
        worst = prompts[int(finite.long().argmin())].question.id
        raise InputError(f"question {worst!r}: the model's numbers overflow, as on "
                         f"{int((~finite).sum())} of {len(prompts)} questions; try --dtype float32")
    return Evaluation(prompts, plain, routed, probabilities, guarded)


# ---- what is told of a question, in the terminal and on the page ----

def percents(probabilities):
    """[skip, execute, repeat] in whole percent that sum to 100; 0.004, 0.9, 0.096: [0, 90, 10]."""
    skip, _, repeat = (round(100 * p) for p in probabilities)
    return [skip, 100 - skip - repeat, repeat]


def told(answers, n, question):
    """Answer n as an object; `right`, the reward, is None where no gold answer is known."""
    return {"answer": answers.texts[n],
            "right": round(answers.right[n].item(), 3) if question.answer else None,
            "confidence": round(answers.confidence[n].item(), 3),
            "layers": int(answers.decisions[n].sum()), "passes": int(answers.passes[n])}


def text_of(question):
    """A question as a reader sees it, without the instructions of the paper's prompts."""
    if question.prompt is not None:
        return question.prompt
    options = [f"({letter}) {text}" for letter, text in zip(LETTERS, question.choices)]
    return "\n".join([question.question, *options])


def records(evaluation):
    """One object per question, ready for JSON.

    decisions: L digits, how often each layer ran. routers: what its router alone would have done.
    guarded: L digits, 1 where the guard stepped in. percents: L of [skip, execute, repeat].
    options: how many answers there are to choose from, 0 for an open question.
    """
    return [{"id": p.question.id, "task": p.question.task, "level": p.question.level,
             "question": text_of(p.question), "gold": p.question.answer or None,
             "options": len(p.question.choices),
             "plain": told(evaluation.plain, n, p.question),
             "routed": told(evaluation.routed, n, p.question),
             "decisions": digits(evaluation.routed.decisions[n]),
             "routers": digits(evaluation.probabilities[n].argmax(-1)),
             "guarded": digits(evaluation.guarded[n]),
             "percents": [percents(layer) for layer in evaluation.probabilities[n].tolist()]}
            for n, p in enumerate(evaluation.prompts)]


# ---- searches, from the rows of a label file ----

def spread(rows, most):
    """At most so many of the rows, evenly from first to last: of 0..9, four are 0, 2, 5, 7."""
    return [rows[n * len(rows) // most] for n in range(most)] if len(rows) > most else rows


def some_searches(rows, file, tokenizer, model):
    """Searches for the page, repaired questions first, with the question's text where the files
    that the run's config.json names still hold it."""
    wrong = [row for row in rows if not row["default_correct"]]
    shown = (spread([row for row in wrong if row["correct"]], REPAIRED)
             + spread([row for row in rows if row["default_correct"]], OTHERS))
    shown = shown or spread(wrong, OTHERS)
    ids, texts = {row["id"] for row in shown}, {}
    with contextlib.suppress(InputError, KeyError, TypeError):
        made_of = read_json(file.with_name("config.json"))
        asked = load_all(made_of["data"], made_of["skip_bad_rows"], made_of["score"])
        prompts, _ = prepare([q for q in asked if q.id in ids], tokenizer, model)
        texts = {content_hash(prompt): text_of(prompt.question) for prompt in prompts}
    header = file.with_suffix(".meta.json")
    header = read_json(header) if header.exists() else {}
    return [told_search(row, header, texts.get(row["content"])) for row in shown]


# ---- the terminal ----

def printable(text):
    """Text without what a terminal would obey: an escape is shown as \\x1b, a newline as \\n."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def painter(colour):
    """paint(text, ANSI code) -> text, coloured or not."""
    return lambda text, code: f"\x1b[{code}m{text}\x1b[0m" if colour else text


def bar_widths(shares, width=BAR):
    """Characters per share of 100, summing to width: [50, 25, 25] of 8 are [4, 2, 2]."""
    ends = [round(width * sum(shares[:n + 1]) / 100) for n in range(len(shares))]
    return [end - start for start, end in zip([0, *ends], ends)]


def layer_line(layer, record, paint):
    """`7  repeat  ▪▪  ░░▒▒▒▒██████  10  30  60`, and what the guard did."""
    shares = record["percents"][layer]
    decision, said = int(record["decisions"][layer]), int(record["routers"][layer])
    bar = "".join(paint(fill * width, colour)
                  for fill, colour, width in zip(FILLS, COLOURS, bar_widths(shares)))
    guard = " guard" if said == decision else f" guard, no {DECISIONS[said]}"
    word = paint(f"{DECISIONS[decision]:<7} {MARKS[decision]:<2}", COLOURS[decision])
    numbers = f"{shares[0]:>3} {shares[1]:>4} {shares[2]:>3}"
    guard = guard if record["guarded"][layer] == "1" else ""
    return f"{layer:>5}  {word}  {bar}  {numbers}{guard}"


def wrapped(text, name=""):
    """The lines of a whole text, each behind the margin of names; the name stands on the first."""
    lines = [part for line in text.splitlines() for part in textwrap.wrap(printable(line), 65)]
    return [f"  {name:<12} {line}" for name, line in zip([name, *[""] * len(lines)], lines)]


def answer_lines(name, told, paint):
    """`Dr.LLM  4 }  right  0.970  11 x 3`: what was answered, and the layers and passes it took. An
    answer that has no room in the line follows below it, whole."""
    text = printable(told["answer"])
    short = len(text) <= 26
    mark = "" if told["right"] is None else "right" if told["right"] else "wrong"
    mark = paint(f"{mark:<5}", "32" if told["right"] else "31")
    layers = f"{told['layers']} x {told['passes']}"
    figures = f"{told['confidence']:>10.3f} {layers:>16}"
    line = f"  {name:<12} {text if short else '(below)':<26} {mark} {figures}"
    return [line, *([] if short else wrapped(told["answer"]))]


def explained(record, colour=False):
    """The lines a terminal shows for a record, 80 columns wide: question, layers, answers."""
    paint = painter(colour)
    title = f"{record['id']} ({record['task']}, level {record['level']})"
    lines = textwrap.wrap(printable(title), 80)
    for line in record["question"].splitlines():
        lines += textwrap.wrap(printable(line), 80, initial_indent="  ", subsequent_indent="  ")
    legend = "  ".join(f"{fill} {name}" for fill, name in zip(FILLS, DECISIONS))
    lines += ["", f"layer  {'decision':<10}  {legend:<{BAR}}  skip exec rep %"]
    lines += [layer_line(layer, record, paint) for layer in range(len(record["percents"]))]
    lines += ["", f"  {'':<12} {'answer':<26} {'':<5} {'confidence':>10} {'layers x passes':>16}",
              *answer_lines("plain model", record["plain"], paint),
              *answer_lines("Dr.LLM", record["routed"], paint)]
    return lines + wrapped(record["gold"] or "", "gold")


# ---- the page ----

def safe_json(value):
    """JSON that may stand inside a <script>: no character in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda found: f"\\u{ord(found.group()):04x}", text)


def shortened(value):
    """The value with the middle of every text in it cut out beyond LONGEST characters, saying how
    many are missing: beginnings are often alike, and ends hold what is asked."""
    if isinstance(value, dict):
        return {key: shortened(inner) for key, inner in value.items()}
    if isinstance(value, str) and len(value) > LONGEST:
        half = LONGEST // 2
        return f"{value[:half]}… ({len(value) - 2 * half} characters more) …{value[-half:]}"
    return value


def policy(template):
    """The Content-Security-Policy that allows the template's own script and style, nothing else."""
    hashed = []
    for tag in ("script", "style"):
        text = re.search(f"<{tag}>(.*?)</{tag}>", template, re.DOTALL).group(1)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashed.append(f"{tag}-src 'sha256-{digest}'")
    return "; ".join(["default-src 'none'", *hashed, "base-uri 'none'", "form-action 'none'"])


def page(about, rows, known=None, searches=()):
    """The whole page as text. about: {name: text} told under the heading; rows: records. known: the
    tasks that the routers' labels had, None if nobody knows; searches: of told_search."""
    template = TEMPLATE.read_text(encoding="utf-8")
    data = safe_json({"about": about, "known": known,
                      "questions": [shortened(row) for row in rows],
                      "searches": [shortened(one) for one in searches]})
    before, after = template.replace("{{policy}}", policy(template)).split("{{data}}")
    return before + data + after


# ---- the command ----

def demo_prompt(text):
    """A typed question in the one form that the demo's model was trained on."""
    return f"Question: {text} Answer:" + ("" if "Options:" in text else " \\boxed{")


def asked(args, tokenizer):
    """The Question of --question. Text with "Answer:" in it goes to the model as it stands."""
    text = args.question.strip()
    if not text:
        raise InputError("--question: the question is empty")
    is_demo = args.model.resolve() == cli.DEMO_MODEL
    prompt = text if "Answer:" in text else demo_prompt(text) if is_demo else None
    unknown = getattr(tokenizer.fast.model, "unk_token", None)
    strange = [word for word in text.split()
               if unknown and tokenizer.fast.token_to_id(unknown) in tokenizer.encode(word)]
    if strange:
        print(f"note: this model does not know {len(strange)} of {len(text.split())} words: "
              f"{printable(' '.join(strange))[:60]}", file=sys.stderr)
    return Question("asked", "asked", 0, text, args.answer or "", prompt=prompt)


def chosen_questions(args, tokenizer):
    """What the flags ask about: one question, or for a page all of --data."""
    if args.question is not None:
        return [asked(args, tokenizer)]
    questions = load_all(args.data, args.skip_bad_rows, args.score)
    if args.id is not None:
        found = [question for question in questions if question.id == args.id]
        if not found:
            raise InputError(f"{args.data[0]}: none of the {len(questions)} questions of --data "
                             f"has id {args.id!r}; the first is {questions[0].id!r}")
        return found
    return questions[:args.limit] if args.html else questions[:1]


def parse_args(argv=None):
    parser = cli.Parser(__doc__, prog="python -m tools.explain")
    cli.add_model_flags(parser)
    cli.add_data_flags(parser, cli.DEMO_TEST, batch_size=512)
    parser.add_argument("--routers", type=Path, default=DEMO_ROUTERS, metavar="FILE",
                        help="router file")
    parser.add_argument("--question", metavar="TEXT", help="a question of your own")
    parser.add_argument("--answer", metavar="TEXT", help="its right answer, if you know it")
    parser.add_argument("--id", help="the question of --data to explain; without it the first")
    parser.add_argument("--html", type=Path, metavar="OUT", help="write a page of all questions")
    parser.add_argument("--labels", type=Path, metavar="FILE",
                        help="label file whose searches the page replays; without it the "
                             "labels.jsonl beside the routers, if there is one")
    parser.add_argument("--tilt", type=cli.number(-1e6, 1e6), default=0.0,
                        help="times (0, 1, 2) is added to the logits of skip, execute, repeat")
    parser.add_argument("--no-guard", action="store_true",
                        help="trust the routers on any prompt, as the paper does")
    return parser.parse_args(argv)


def short_name(path):
    """The last two parts of a path: enough to know it by, without the folders of this machine."""
    return "/".join(Path(path).parts[-2:])


def of_all_seeds(routers, rows, known):
    """{what: text} of a run's metrics over all router seeds, if these routers are the run's own and
    its metrics of the same questions: the page shows one seed."""
    file = (routers if routers.is_dir() else routers.parent) / "metrics.json"
    inside = [row for row in rows if row["task"] in (known or ())]
    with contextlib.suppress(InputError, KeyError, TypeError):
        metrics = read_json(file)
        plain, routed = (metrics["routes"][name] for name in ("vanilla", "dr.llm"))
        right = sum(row["plain"]["right"] for row in inside) / len(inside) if inside else None
        if plain["n"] == len(inside) and abs(plain["accuracy"] - right) < 5e-4:
            return {f"mean of {len(metrics['seeds'])} router seeds": (
                f"{percent(routed['accuracy'])}% right in domain, "
                f"{percent(routed['gain'], True)} points; shown: one of them")}
    return {}


def labels_of(args, num_layers):
    """(file, its rows in order): of --labels, else of the labels.jsonl beside the routers."""
    file = args.labels or folder_of([args.routers]) / "labels.jsonl"
    if args.labels and not file.exists():
        raise InputError(f"{file}: no such label file")
    return file, list(read_rows(file, num_layers).values())


def main(argv=None):
    args = parse_args(argv)
    sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character shows another
    if not args.routers.exists():
        hint = "run `make` first, which trains the demo's" if args.routers == DEMO_ROUTERS else \
            "train.py writes one"
        raise InputError(f"{args.routers}: no such router file; {hint}")
    cli.use_device(args)
    tokenizer = load_tokenizer(args.model)
    model = load_model(args.model, args.device, cli.DTYPES.get(args.dtype))
    route = RouterRoute(Routers.load(args.routers, model), args.tilt, guard=not args.no_guard)
    prompts, too_long = prepare(chosen_questions(args, tokenizer), tokenizer, model)
    if not prompts:
        raise InputError(f"question {too_long[0].id!r}: it and its answer exceed the context of "
                         f"{model.config.max_positions} tokens")
    learned = route.routers.notes.get("questions", ())
    labelled_here = sum(prompt.question.wording in learned for prompt in prompts)
    rows = records(watch(model, tokenizer, prompts, route, args.batch_size))
    if args.html is None:
        print("\n".join(explained(rows[0], sys.stdout.isatty())))
        if labelled_here:
            print("note: these routers learned from this question")
        return
    about = {"model": short_name(args.model), "routers": short_name(args.routers),
             "questions": "typed" if args.question else ", ".join(map(short_name, args.data)),
             "labelled for these routers": str(labelled_here) if learned else "not known",
             "tilt": f"{args.tilt:+g}", "guard": "off" if args.no_guard else "on",
             "too long for the context": str(len(too_long))}
    file, labelled = labels_of(args, model.config.num_layers)
    known = route.routers.notes["tasks"] or sorted({row["task"] for row in labelled}) or None
    searches = some_searches(labelled, file, tokenizer, model)
    if not args.tilt and not args.no_guard:
        about |= of_all_seeds(args.routers, rows, known)
    text = page(about, rows, known, searches).encode("utf-8", "replace")
    write_whole(args.html, lambda part: part.write_bytes(text))
    print(f"{args.html}: {len(rows)} questions, {len(searches)} searches, "
          f"{len(text) / 1e6:.2f} MB")


if __name__ == "__main__":
    cli.run(main)
