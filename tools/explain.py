"""What every router decided about a question, what was run, and what came of it.

In the terminal, one question: per layer the three probabilities (paper §3.1), whether the OOD guard
intervened, the decision; then the answer next to the base model's. With --html, a page of a whole
evaluation: a heat map of layers by questions, to sort, filter and open.

Questions are asked through answers.answer, as everywhere; a WitnessRoute around the routers' route
records what led to each decision and changes nothing. The page needs no network and no server, runs
no script but its own, and shows questions and answers as text.

    python -m tools.explain --question "7 * 3 + 2 - 5 * 2 - 8 + 6 * 3 - 4 ="
    python -m tools.explain --html runs/demo/explain.html
"""
import base64
import hashlib
import json
import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import torch

import cli
from answers import Answers, answer, batches, prepare
from cli import progress_bar
from drllm import RouterRoute, Routers
from model_llama import load
from paths import DECISIONS, blocks
from questions.loading import Question, load_all
from questions.schemas import LETTERS
from storage.files import InputError, write_whole

# N questions   L layers   B rows of a batch   the last axis of 3 is skip, execute, repeat

MARKS = ("·", "▪", "▪▪")  # a square per pass
FILLS = ("░", "▒", "█")   # of the bars, which differ without colour, too
BAR = 30                  # characters
SHORT = 26                # characters of an answer next to its figures
LONGEST = 1000            # characters of a question or answer that the page shows
DEMO_ROUTERS = Path("runs/demo/routers.safetensors")
TEMPLATE = Path(__file__).with_suffix(".html")


# ---- what led to each decision ----

class WitnessRoute:
    """A Route that decides as a RouterRoute does and keeps what led to every decision.

    probabilities: per batch and layer (B, 3), in the order asked. guarded: (B,) bool each, whether
    the guard finds the prompt out of distribution, so that the layer is executed.
    """

    def __init__(self, route):
        self.route, self.num_layers = route, route.num_layers
        self.probabilities, self.guarded = [], []

    def __call__(self, layer, hidden, lengths):
        pooled, counts = self.route.pool(hidden, lengths)
        is_ood = self.route.routers.is_ood(layer, pooled, counts)
        self.probabilities.append(self.route.logits(layer, pooled, counts).softmax(-1).cpu())
        self.guarded.append(is_ood.cpu() & self.route.guard)
        return self.route(layer, hidden, lengths)

    def by_question(self, order):
        """(probabilities (N, L, 3), guarded (N, L)); order: the question in each row seen."""
        back = torch.tensor(order).argsort()
        return self.joined(self.probabilities)[back], self.joined(self.guarded)[back]

    def joined(self, seen):
        """(N, L, ...) of what was seen per batch and layer."""
        of_batch = []
        for start in range(0, len(seen), self.num_layers):
            of_batch.append(torch.stack(seen[start:start + self.num_layers], 1))
        return torch.cat(of_batch)


@dataclass
class Evaluation:
    """N questions asked twice. plain, routed: their Answers. probabilities: (N, L, 3), of the
    routers with their depth bias. guarded: (N, L) bool, whether the guard intervened."""
    prompts: list
    plain: Answers
    routed: Answers
    probabilities: torch.Tensor
    guarded: torch.Tensor


def watch(model, tokenizer, prompts, route, batch_size=512):
    """The Evaluation of prompts by the base model and by a RouterRoute."""
    witness = WitnessRoute(route)
    order = [n for batch_rows in batches(prompts, batch_size) for n in batch_rows]
    with progress_bar(total=2 * len(prompts), desc="asking", unit="answer",
                      disable=len(prompts) < 2) as bar:
        plain = answer(model, tokenizer, prompts, None, batch_size, bar.update)
        routed = answer(model, tokenizer, prompts, witness, batch_size, bar.update)
    probabilities, guarded = witness.by_question(order)
    finite = probabilities.isfinite().all((1, 2))
    finite &= plain.confidence.isfinite() & routed.confidence.isfinite()
    if not finite.all():
        worst = prompts[int(finite.long().argmin())].question.id
        raise InputError(f"question {worst!r}: the model's numbers overflow, as on "
                         f"{int((~finite).sum())} of {len(prompts)} questions; try --dtype float32")
    return Evaluation(prompts, plain, routed, probabilities, guarded)


# ---- a question as a record, for the terminal and the page ----

def percents(probabilities):
    """[skip, execute, repeat] in whole percent that sum to 100; 0.004, 0.9, 0.096: [0, 90, 10]."""
    skip, _, repeat = (round(100 * p) for p in probabilities)
    return [skip, 100 - skip - repeat, repeat]


def digits(row):
    """Small whole numbers as one text: (1, 0, 2) gives "102"."""
    return "".join(str(int(value)) for value in row)


def answer_record(answers, n, question):
    """Answer n; correct: its reward, None if no gold answer is known."""
    return {"answer": answers.texts[n],
            "correct": round(answers.correct[n].item(), 3) if question.answer else None,
            "confidence": round(answers.confidence[n].item(), 3),
            "layers": int(blocks(answers.decisions[n])), "passes": int(answers.passes[n])}


def text_of(question):
    """A question as a reader sees it, without the instructions of the paper's prompts."""
    if question.prompt is not None:
        return question.prompt
    options = [f"({letter}) {text}" for letter, text in zip(LETTERS, question.choices)]
    return "\n".join([question.question, *options])


def records(evaluation):
    """One object per question, ready for JSON.

    decisions: L digits. routers: what its router alone would have decided. guarded: L digits, 1
    if the guard intervened. percents: L of [skip, execute, repeat]. options: how many answers
    there are to choose from, 0 for an open question.
    """
    return [{"id": p.question.id, "task": p.question.task, "level": p.question.level,
             "question": text_of(p.question), "gold": p.question.answer or None,
             "options": len(p.question.choices),
             "plain": answer_record(evaluation.plain, n, p.question),
             "routed": answer_record(evaluation.routed, n, p.question),
             "decisions": digits(evaluation.routed.decisions[n]),
             "routers": digits(evaluation.probabilities[n].argmax(-1)),
             "guarded": digits(evaluation.guarded[n]),
             "percents": [percents(layer) for layer in evaluation.probabilities[n].tolist()]}
            for n, p in enumerate(evaluation.prompts)]


# ---- the terminal ----

def printable(text):
    """Text without what a terminal would obey: an escape is shown as \\x1b, a newline as \\n."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def bar_widths(shares, width=BAR):
    """Characters per share of 100, summing to width: [50, 25, 25] of 8 are [4, 2, 2]."""
    ends = [round(width * sum(shares[:n + 1]) / 100) for n in range(len(shares))]
    return [end - start for start, end in zip([0, *ends], ends)]


def layer_line(layer, record):
    """`7  repeat  ▪▪  ░░▒▒▒▒██████  10  30  60`, and what the guard did."""
    skip, execute, repeat = record["percents"][layer]
    decision, router = int(record["decisions"][layer]), int(record["routers"][layer])
    bar = "".join(fill * width for fill, width in zip(FILLS, bar_widths([skip, execute, repeat])))
    guard = ""
    if record["guarded"][layer] == "1":
        guard = " guard" if router == decision else f" guard, no {DECISIONS[router].name}"
    return (f"{layer:>5}  {DECISIONS[decision].name:<7} {MARKS[decision]:<2}  {bar}  "
            f"{skip:>3} {execute:>4} {repeat:>3}{guard}")


def wrapped(text, name=""):
    """The lines of a whole text, each behind the margin of names; the first has the name."""
    lines = [part for line in text.splitlines() for part in textwrap.wrap(printable(line), 65)]
    return [f"  {name:<12} {line}" for name, line in zip([name, *[""] * len(lines)], lines)]


def answer_lines(name, record):
    """`Dr.LLM  4 }  correct  0.970  11 x 3`: the answer, and the layers and passes it took. An
    answer that is too long for the line follows below it, whole."""
    text, rest = printable(record["answer"]), []
    if len(text) > SHORT:
        text, rest = "(below)", wrapped(record["answer"])
    verdict = ""
    if record["correct"] is not None:
        verdict = "correct" if record["correct"] else "incorrect"
    layers = f"{record['layers']} x {record['passes']}"
    return [f"  {name:<12} {text:<{SHORT}} {verdict:<9} {record['confidence']:>10.3f} "
            f"{layers:>16}", *rest]


def explained(record):
    """The lines a terminal shows for a record, 80 columns wide: question, layers, answers."""
    lines = textwrap.wrap(
        printable(f"{record['id']} ({record['task']}, level {record['level']})"), 80)
    for line in record["question"].splitlines():
        lines += textwrap.wrap(printable(line), 80, initial_indent="  ", subsequent_indent="  ")
    legend = "  ".join(f"{fill} {decision.name}" for fill, decision in zip(FILLS, DECISIONS))
    return [*lines, "", f"layer  {'decision':<10}  {legend:<{BAR}}  skip exec rep %",
            *(layer_line(layer, record) for layer in range(len(record["percents"]))),
            "", f"  {'':<12} {'answer':<{SHORT}} {'':<9} confidence  layers x passes",
            *answer_lines("base model", record["plain"]),
            *answer_lines("Dr.LLM", record["routed"]), *wrapped(record["gold"] or "", "gold")]


# ---- the page ----

def safe_json(value):
    """JSON for the inside of a <script>: no character in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda match: f"\\u{ord(match.group()):04x}", text)


def shortened(value):
    """The value with the middle of every long text in it cut out, and the number of characters left
    out: beginnings are often alike, and the question itself is at the end."""
    if isinstance(value, dict):
        return {key: shortened(inner) for key, inner in value.items()}
    if isinstance(value, str) and len(value) > LONGEST:
        half = LONGEST // 2
        return f"{value[:half]}… ({len(value) - 2 * half} characters more) …{value[-half:]}"
    return value


def policy(template):
    """The Content-Security-Policy that allows the template's own script and style, nothing else."""
    rules = ["default-src 'none'", "base-uri 'none'", "form-action 'none'"]
    for tag in ("script", "style"):
        text = re.search(f"<{tag}>(.*?)</{tag}>", template, re.DOTALL).group(1)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        rules.append(f"{tag}-src 'sha256-{digest}'")
    return "; ".join(rules)


def page(about, rows, known=None):
    """The whole page as text. about: {name: text} below the heading; rows: records. known: the
    tasks of the routers' labels, None if they are not known."""
    template = TEMPLATE.read_text(encoding="utf-8")
    data = safe_json({"about": about, "known": known,
                      "questions": [shortened(row) for row in rows]})
    before, after = template.replace("{{policy}}", policy(template)).split("{{data}}")
    return before + data + after


# ---- the command ----

def typed_question(args, tokenizer):
    """The Question of --question. Text with "Answer:" in it goes to the model as it is; the demo's
    model was trained on prompts of one form, which other text is given."""
    text, prompt = args.question.strip(), None
    if not text:
        raise InputError("--question: the question is empty")
    if "Answer:" in text:
        prompt = text
    elif args.model.resolve() == cli.DEMO_MODEL:
        prompt = f"Question: {text} Answer:" + ("" if "Options:" in text else " \\boxed{")
    print_unknown_words(text.split(), tokenizer)
    return Question("typed", "typed", 0, text, args.answer or "", prompt=prompt)


def print_unknown_words(words, tokenizer):
    """Notes the words for which the tokenizer has its unknown token only, if it has one."""
    token = getattr(tokenizer.fast.model, "unk_token", None)
    if token is None:
        return
    unknown_id = tokenizer.fast.token_to_id(token)
    unknown = [word for word in words if unknown_id in tokenizer.encode(word)]
    if unknown:
        print(f"note: this model does not know {len(unknown)} of {len(words)} words: "
              f"{printable(' '.join(unknown))[:60]}", file=sys.stderr)


def chosen_questions(args, tokenizer):
    """What the flags ask about: one question, or for a page all of --data."""
    if args.question is not None:
        return [typed_question(args, tokenizer)]
    questions = load_all(args.data, args.skip_bad_rows, args.score)
    if args.id is not None:
        named = [question for question in questions if question.id == args.id]
        if not named:
            raise InputError(f"{args.data[0]}: none of the {len(questions)} questions of --data "
                             f"has id {args.id!r}; the first is {questions[0].id!r}")
        return named
    return questions[:args.limit] if args.html else questions[:1]


def parse_args(argv=None):
    parser = cli.Parser(__doc__, prog="python -m tools.explain")
    cli.add_model_flags(parser)
    cli.add_data_flags(parser, cli.DEMO_TEST, batch_size=512)
    parser.add_argument("--routers", type=Path, default=DEMO_ROUTERS, metavar="FILE",
                        help="router file")
    parser.add_argument("--question", metavar="TEXT", help="a question of your own")
    parser.add_argument("--answer", metavar="TEXT", help="its correct answer, if you know it")
    parser.add_argument("--id", help="the question of --data to explain; without it the first")
    parser.add_argument("--html", type=Path, metavar="OUT", help="write a page of all questions")
    parser.add_argument("--depth-bias", type=cli.number(-1e6, 1e6), default=0.0,
                        help="times (0, 1, 2) is added to the logits of skip, execute, repeat")
    parser.add_argument("--no-guard", action="store_true",
                        help="trust the routers on any prompt, as the paper does")
    return parser.parse_args(argv)


def short_name(path):
    """The last two parts of a file's path, without the folders of this machine."""
    return "/".join(Path(path).parts[-2:])


def write_page(args, evaluation, route, about):
    """The page of an evaluation. about: {name: text} for its heading, besides the flags."""
    tasks = route.routers.metadata["tasks"] or None  # None: not known
    source = "typed" if args.question else ", ".join(map(short_name, args.data))
    about = {"model": short_name(args.model), "routers": short_name(args.routers),
             "questions": source, "depth bias": f"{args.depth_bias:+g}",
             "guard": "off" if args.no_guard else "on", **about}
    rows = records(evaluation)
    text = page(about, rows, tasks).encode("utf-8", "replace")
    write_whole(args.html, lambda part: part.write_bytes(text))
    print(f"{args.html}: {len(rows)} questions, {len(text) / 1e6:.2f} MB")


def main(argv=None):
    args = parse_args(argv)
    sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character shows another
    if not args.routers.exists():
        hint = "train.py writes one"
        if args.routers == DEMO_ROUTERS:
            hint = "run `make` first, which trains the demo's"
        raise InputError(f"{args.routers}: no such router file; {hint}")
    tokenizer, model = load(args)
    route = RouterRoute(Routers.load(args.routers, model), args.depth_bias, guard=not args.no_guard)
    prompts, too_long = prepare(chosen_questions(args, tokenizer), tokenizer, model)
    learned = route.routers.metadata.get("questions", ())
    trained_on = sum(prompt.question.wording in learned for prompt in prompts)
    evaluation = watch(model, tokenizer, prompts, route, args.batch_size)
    if args.html:
        number = str(trained_on) if learned else "not known"
        write_page(args, evaluation, route, {"training questions of these routers": number,
                                             "too long for the context": str(len(too_long))})
        return
    print("\n".join(explained(records(evaluation)[0])))
    if trained_on:
        print("note: these routers were trained on this question")


if __name__ == "__main__":
    cli.run(main)
