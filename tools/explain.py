"""What every router decided about a question, what was run, and what came of it.

In the terminal, one question: per layer the three probabilities (paper §3.1), whether the OOD guard
intervened, the decision; then the answer beside the base model's. With --html, a page of a whole
evaluation: a heat map of layers by questions, to sort, filter and open, and below it some of the
searches that the routers' labels came from, path by path.

Questions are asked through answers.answer, as everywhere; a WitnessRoute around the routers' route
only looks on. Searches are done again from their records, without the model. The page needs no
network and no server, runs no script but its own, and shows questions and answers as text.

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
from answers import Answers, answer, batches, prepare
from cli import progress_bar
from drllm import RouterRoute, Routers
from label import content_hash, question_rng
from mcts import SearchConfig, search, select_node_to_expand
from model_llama import load_model, load_tokenizer
from paths import DECISIONS
from questions.arithmetic import arithmetic_questions
from questions.loading import Question, load_all
from questions.schemas import LETTERS
from storage.files import InputError, read_json, write_whole
from storage.label_file import read_rows
from storage.run_folder import folder_of, read_config

# N questions   L layers   B rows of a batch   the last axis of 3 is skip, execute, repeat

MARKS = ("·", "▪", "▪▪")               # a square per pass
FILLS = ("░", "▒", "█")                # of the bars, told apart without colour
BAR = 30                               # characters
SHORT = 26                             # characters of an answer beside its figures
LONGEST = 1000                         # characters of a question or answer that the page shows
CORRECTED, OTHERS = 30, 10             # searches on the page
DEMO_ROUTERS = Path("runs/demo/routers.safetensors")
TEMPLATE = Path(__file__).with_suffix(".html")


# ---- looking on ----

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
        starts = range(0, len(seen), self.num_layers)
        return torch.cat([torch.stack(seen[n:n + self.num_layers], 1) for n in starts])


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
    """Answer n; right: its reward, None if nobody knows the gold answer."""
    return {"answer": answers.texts[n],
            "right": round(answers.correct[n].item(), 3) if question.answer else None,
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


# ---- searches, done again from their records ----

def replay(record, config, seed):
    """[(path, number of its parent)] in the order asked, of a search done again with the rewards of
    its record. A search is random only by its question's id, so the same tree grows. None if it
    does not: then the record was made by another search."""
    confidence, parents, reward = dict(record["correct"]), [], None
    tried_before = {*confidence, *record["wrong"]}

    def noting_select(*state):
        node = select_node_to_expand(*state)
        parents.append(node and node.decisions)
        return node

    steps = search(len(record["decisions"]), config, question_rng(record["id"], seed),
                   noting_select)
    try:
        while True:
            path = steps.send(reward)
            if path not in tried_before:
                return None
            reward = float(path in confidence)
    except StopIteration as end:
        tried = list(end.value.rewards)
    correct = [path for path in tried if path in confidence]
    incorrect = [path for path in tried if path not in confidence]
    if correct != list(confidence) or incorrect != record["wrong"]:
        return None
    return [(tried[0], None), *((path, tried.index(parent))
                                for path, parent in zip(tried[1:], parents))]


def search_object(record, header, text):
    """A search as an object for the page, or None if it cannot be done again. steps: [path,
    probability of its answer or None if incorrect, number of its parent] in order. scores: the
    constants of Eq. 2. header: of the label file; text: of the question, or None."""
    try:
        config, seed = SearchConfig(**header["search"]), header["seed"]
    except (KeyError, TypeError):  # of another version of the search
        return None
    steps, confidence = replay(record, config, seed), dict(record["correct"])
    return steps and {
        "id": record["id"], "task": record["task"], "level": record["level"], "question": text,
        "label": digits(record["decisions"]) if confidence else None,
        "scores": {"exploration": config.exploration, "length": config.length_penalty},
        "steps": [[digits(path), confidence.get(path), parent] for path, parent in steps]}


def spread(rows, most):
    """At most so many of the rows, evenly from first to last: of 0..9, four are 0, 2, 5, 7."""
    return [rows[n * len(rows) // most] for n in range(most)] if len(rows) > most else rows


def searches_for_page(run, records, tokenizer, model):
    """Objects of some of a run's searches, corrected questions first, with a question's text if the
    files that the run's config.json names still hold it."""
    incorrect = [record for record in records if not record["default_correct"]]
    shown = spread([record for record in incorrect if record["correct"]], CORRECTED)
    shown += spread([record for record in records if record["default_correct"]], OTHERS)
    shown = shown or spread(incorrect, OTHERS)
    ids, texts = {record["id"] for record in shown}, {}
    with contextlib.suppress(InputError, KeyError, TypeError):
        config = read_config(run)
        questions = load_all(config["data"], config["skip_bad_rows"], config["score"],
                             config.get("begin"))
        if "arithmetic" in config:  # was made for the model
            kinds = list(config["arithmetic"]["shares"])
            questions, _ = arithmetic_questions(kinds, config["problems"], config["seed"])
        prompts, _ = prepare([q for q in questions if q.id in ids], tokenizer, model)
        texts = {content_hash(prompt): text_of(prompt.question) for prompt in prompts}
    header_file = run / "labels.meta.json"
    header = read_json(header_file) if header_file.exists() else {}
    objects = [search_object(record, header, texts.get(record["content"])) for record in shown]
    return [made for made in objects if made]


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


def answer_lines(name, told):
    """`Dr.LLM  4 }  correct  0.970  11 x 3`: the answer, and the layers and passes it took. An
    answer that is too long for the line follows below it, whole."""
    text, mark = printable(told["answer"]), ""
    if told["right"] is not None:
        mark = "correct" if told["right"] else "incorrect"
    is_short, layers = len(text) <= SHORT, f"{told['layers']} x {told['passes']}"
    line = (f"  {name:<12} {text if is_short else '(below)':<{SHORT}} {mark:<9} "
            f"{told['confidence']:>10.3f} {layers:>16}")
    return [line] if is_short else [line, *wrapped(told["answer"])]


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
    """JSON that may stand inside a <script>: no character in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda match: f"\\u{ord(match.group()):04x}", text)


def shortened(value):
    """The value with the middle of every long text in it cut out, saying how many characters are
    missing: beginnings are often alike, and ends hold what is asked."""
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


def page(about, rows, known=None, searches=()):
    """The whole page as text. about: {name: text} told under the heading; rows: records. known: the
    tasks that the routers' labels had, None if nobody knows; searches: of search_object."""
    template = TEMPLATE.read_text(encoding="utf-8")
    data = safe_json({"about": about, "known": known,
                      "questions": [shortened(row) for row in rows],
                      "searches": [shortened(made) for made in searches]})
    before, after = template.replace("{{policy}}", policy(template)).split("{{data}}")
    return before + data + after


# ---- the command ----

def typed_question(args, tokenizer):
    """The Question of --question. Text with "Answer:" in it goes to the model as it is; the demo's
    model was trained on one form, which other text is brought into."""
    text, prompt = args.question.strip(), None
    if not text:
        raise InputError("--question: the question is empty")
    if "Answer:" in text:
        prompt = text
    elif args.model.resolve() == cli.DEMO_MODEL:
        prompt = f"Question: {text} Answer:" + ("" if "Options:" in text else " \\boxed{")
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
    """The last two parts of a path: enough to know it by, without the folders of this machine."""
    return "/".join(Path(path).parts[-2:])


def write_page(args, rows, route, about, tokenizer, model):
    """The page of the records, with the searches of the run that the routers lie in."""
    run = folder_of([args.routers])
    labelled = list(read_rows(run / "labels.jsonl", model.config.num_layers).values())
    known = route.routers.metadata["tasks"] or sorted({row["task"] for row in labelled}) or None
    searches = searches_for_page(run, labelled, tokenizer, model)
    about = {"model": short_name(args.model), "routers": short_name(args.routers),
             "questions": "typed" if args.question else ", ".join(map(short_name, args.data)),
             "depth_bias": f"{args.depth_bias:+g}",
             "guard": "off" if args.no_guard else "on", **about}
    text = page(about, rows, known, searches).encode("utf-8", "replace")
    write_whole(args.html, lambda part: part.write_bytes(text))
    print(f"{args.html}: {len(rows)} questions, {len(searches)} searches, "
          f"{len(text) / 1e6:.2f} MB")


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
    route = RouterRoute(Routers.load(args.routers, model), args.depth_bias, guard=not args.no_guard)
    prompts, too_long = prepare(chosen_questions(args, tokenizer), tokenizer, model)
    if not prompts:
        raise InputError(f"question {too_long[0].id!r}: it and its answer exceed the context of "
                         f"{model.config.max_positions} tokens")
    learned = route.routers.metadata.get("questions", ())
    trained_on = sum(prompt.question.wording in learned for prompt in prompts)
    rows = records(watch(model, tokenizer, prompts, route, args.batch_size))
    if args.html:
        about = {"training questions of these routers": str(trained_on) if learned else "not known",
                 "too long for the context": str(len(too_long))}
        return write_page(args, rows, route, about, tokenizer, model)
    print("\n".join(explained(rows[0])))
    if trained_on:
        print("note: these routers were trained on this question")


if __name__ == "__main__":
    cli.run(main)
