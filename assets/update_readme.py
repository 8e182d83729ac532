"""Writes what a run measured into the README: its tables, its figures, its picture.

    python train.py 2>/dev/null | tee demo.log
    python assets/update_readme.py --run runs/demo --log demo.log     takes in the demo's run
    python assets/update_readme.py --base "seed 0" runs/seed0         a row of the base models
    python assets/update_readme.py --paper "the demo" runs/demo/paper its experiments and pictures
    python assets/update_readme.py                                    writes the README again

What is taken in stands in demo.json, bases.json and paper.json beside this file (SHOWN of the
demo's experiments, OF_ALL of other base models'); tests/test_readme.py checks that the README
agrees with them. A table stands between `<!-- generated: NAME -->` and
`<!-- end -->`. A sentence of FIGURES stands in the README once, each {name} there a number.
"""
import argparse
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ASSETS = Path(__file__).resolve().parent
README = ASSETS.parent / "README.md"
DEMO, BASES, PICTURE = ASSETS / "demo.json", ASSETS / "bases.json", ASSETS / "paths.svg"
PAPER = ASSETS / "paper.json"
FIRST = "the demo"  # among the base models
PICTURES = ("figure1.png", "figure4.png")  # of those experiments
OF_ALL = ("figure5", "table6", "frontier")  # experiments shown for every base model
NOT_SHOWN = ("layers_executed", "n", "p", "skip", "execute", "repeat", "seconds", "note", "tasks")
SHOWN = ("table5", "figure7", "ood", *OF_ALL)
sys.path[:0] = [str(ASSETS.parent), str(ASSETS)]

import choose  # noqa: E402
import cli  # noqa: E402
import drllm  # noqa: E402
import train  # noqa: E402
from answers import answer, prepare  # noqa: E402
from cli import InputError, read_json, write_json, write_whole  # noqa: E402
from draw import draw  # noqa: E402
from label import DEMO_MODEL  # noqa: E402
from model_llama import load_model, load_tokenizer  # noqa: E402
from tables import percent  # noqa: E402
from tasks import load_questions  # noqa: E402

NUMBER = r"(?<![\w.+-])[-+]?\d+(?:,\d{3})*(?:\.\d+)?"
FIGURES = (  # sentences of the README whose numbers are measured or defaults
    "none of {n} test questions",
    "answer {dr_llm}% right instead of {vanilla}%: {gain} points, 95% interval {low} to {high}, "
    "running {layers} blocks per forward pass instead of {all_layers} ({saved}% fewer)",
    "trained on them lose {shortest_loss} points",
    "the deepest of them {static}% right at {static_layers} layers",
    "{over} points [{over_low}, {over_high}] over static paths at the routers' own depth",
    "A search meets {right_paths} right paths per question on average",
    "We can try {simulations} per question", "Try {simulations} ways through the layers",
    "In {random_child}% of the steps a random child is taken", "asks the model {asked} times",
    "makes this project into {tasks} tasks",
    "graded by which of {mutants} planted mistakes", "bodies taken out: {points} points",
    "visited v times may have v^{widening} children as good",
    "averaged in {windows} windows", "in {gate_dimensions} random directions",
    "than {gate_quantile}% of those lie from each other", "{epochs} epochs are then",
    "N(q) are the {neighbours} nearest questions", "routers for each of {seeds} seeds",
    "(`--batch-size`, {batch_size})",
    "skipping (tilt {tilt}) gives {tilt_gain} points with {tilt_saved}% fewer blocks",
)


# ---- taking a run in ----

def printed(log):
    """The report in the log of a run: what follows the settings, without progress bars."""
    lines = [line.rpartition("\r")[2].rstrip() for line in Path(log).read_text().splitlines()]
    lines = [line for line in lines if not re.search(r"%\|.*\||/s[],]|\?]$", line)]
    starts = [n for n, line in enumerate(lines) if line.startswith("labels: ")]
    if not starts:
        raise InputError(f"{log}: no line of it starts with 'labels: '; is it the log of a run?")
    return [line for line in lines[starts[-1]:] if line and "metrics.json (" not in line]


def pictured(run, number=200):
    """Three rows for the picture, of the first test questions: one that the routers repair with
    both skips and repeats, along the plain path and along theirs, and the one of fewest layers."""
    model, tokenizer = load_model(DEMO_MODEL), load_tokenizer(DEMO_MODEL)
    routers = drllm.Routers.load(Path(run) / "routers.safetensors", model)
    questions = load_questions(train.DEMO_TEST[0])[:number]
    prompts, _ = prepare(questions, tokenizer, model)
    plain, routed = (answer(model, tokenizer, prompts, route) for route in (None, routers.route))
    depth = routed.decisions.sum(1).tolist()
    repaired = [n for n, path in enumerate(routed.decisions.tolist()) if routed.right[n]
                and not plain.right[n] and 0 in path and 2 in path and not questions[n].choices]
    if not repaired:
        raise InputError(f"{run}: no sum of {number} questions is repaired with skips and repeats")
    hard = min(repaired, key=lambda n: (depth[n], -routed.confidence[n]))
    easy = min((n for n in range(len(prompts)) if routed.right[n]), key=depth.__getitem__)
    shown = (("Plain model", plain, hard), ("Dr.LLM", routed, hard), ("Dr.LLM", routed, easy))
    asked = [re.search("Question: (.*) Answer:", q.prompt)[1] for q in questions]
    return [{"id": questions[n].id, "title": title, "prompt": asked[n],
             "decisions": found.decisions[n].tolist(), "right": bool(found.right[n]),
             "answer": found.texts[n].strip(" }")} for title, found, n in shown]


def explained(run, name):
    """The lines of a session with extras.explain on one test question."""
    command = ["-m", "extras.explain", "--id", name]
    routers = ["--routers", str((Path(run) / "routers.safetensors").resolve())]
    said = subprocess.run([sys.executable, *command, *routers], cwd=ASSETS.parent, text=True,
                          stdout=subprocess.PIPE, check=True).stdout
    return [" ".join(("$ python", *command)), *said.rstrip().splitlines()]


def right_paths(run):
    """Right paths that a search met, the mean over the questions."""
    rows = [json.loads(line) for line in (Path(run) / "labels.jsonl").read_text().splitlines()]
    return sum(len(row["correct"]) for row in rows) / len(rows)


def brief(name, metrics):
    """A row of the base models' table, from a run's metrics."""
    routes = metrics["routes"]
    outside = [t for t in metrics["tasks"].values() if t["domain"] == "out"]
    own = next(point for point in metrics["frontier"] if not point["tilt"])
    drop = sum(task["routes"]["dr.llm"]["gain"] for task in outside) / len(outside)
    main = routes["dr.llm"]
    return {"name": name, "vanilla": routes["vanilla"]["accuracy"], "accuracy": main["accuracy"],
            "gain": main["gain"], "interval": main["interval"], "layers": main["layers"],
            "over_static": own["over_static"], "over_interval": own["interval"],
            "outside": drop, "shortest": routes["dr.llm shortest"]["gain"]}


def experiments(folder, names):
    """{name: rows} of finished experiments of extras/paper.py, without what no table shows."""
    shown = lambda row: {key: value for key, value in row.items() if key not in NOT_SHOWN}
    return {name: [shown(row) for row in read_json(Path(folder) / f"{name}.json")["result"]["rows"]]
            for name in names}


# ---- writing the README ----

def ends(interval):
    """'[+0.1, +2.3]', percentage points."""
    return "[{}, {}]".format(*(percent(end, sign=True) for end in interval))


def signed(value, interval):
    """'+1.2 [+0.1, +2.3]', percentage points."""
    return f"{percent(value, sign=True)} {ends(interval)}"


def with_layers(row, key):
    """'+1.2 (11.50)': points gained, and the layers run for it."""
    return f"{percent(row[key], sign=True)} ({row[key + ' layers']:.2f})"


def markdown(head, rows):
    """A table of rows of cells."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def base_table(bases):
    """Markdown of the base models' table."""
    head = ["base model", "vanilla", "Dr.LLM, 95% interval of the gain", "layers",
            "over static at the same depth", "out of domain", "the paper's labels"]
    return markdown(head, [
        [b["name"], percent(b["vanilla"]),
         f"{percent(b['accuracy'])}, {signed(b['gain'], b['interval'])}", f"{b['layers']:.2f}",
         signed(b["over_static"], b["over_interval"]), percent(b["outside"], sign=True),
         percent(b["shortest"], sign=True)] for b in bases])


def methods_table(found):
    """Table 5: the methods at one depth, or at their own."""
    return markdown(["method", "right", "layers", "gain", "over static at the same depth"], [
        [row["name"], percent(row["accuracy"]), f"{row['layers']:.2f}",
         signed(row["gain"], row["interval"]), signed(row["over_static"], row["over interval"])]
        for row in found["table5"]])


def losses_table(found):
    """Figure 7: one thing changed at a time in what the routers learn."""
    return markdown(["routers", "right", "sd", "layers", "over static at the same depth"], [
        [row["name"], percent(row["accuracy"]), percent(row["sd"]), f"{row['layers']:.2f}",
         signed(row["over_static"], row["over interval"])] for row in found["figure7"]])


def domains_table(found):
    """The study of unknown tasks: points gained, layers in brackets."""
    head = ["labels and protection", "in domain", "near", "far", "mean out of domain"]
    rows = [[row["name"], *(with_layers(row, where) for where in ("in", "near", "far")),
             signed(row["out"], row["out interval"])] for row in found["ood"] if "in" in row]
    return markdown(head, rows)


def families_table(found):
    """Labelled tasks that the routers never saw, asked about."""
    return markdown(["labels of one task left out", "bare", "gate", "gate, interval"], [
        [row["name"], with_layers(row, "bare"), with_layers(row, "gate"),
         ends(row["gate interval"])]
        for row in found["ood"] if "bare" in row])


def bases_table(paper, *experiments):
    """Gain over static paths of the same depth, for every routed row and base model."""
    by_name = {base: {row["name"]: row for name in experiments for row in found[name]}
               for base, found in paper.items()}
    names = [name for name in next(iter(by_name.values())) if not name.startswith("static")]
    cell = lambda row: f"{signed(row['over_static'], row['over interval'])} @ {row['layers']:.2f}"
    return markdown(["routing", *by_name],
                    [[name, *(cell(rows[name]) for rows in by_name.values())] for name in names])


def fenced(lines):
    return "```text\n" + "\n".join(lines) + "\n```\n"


def blocks(demo, bases, paper):
    """{name: text} of the generated blocks."""
    lines, own = demo["printed"], paper[FIRST]
    cut, end = (next(n for n, line in enumerate(lines) if line.startswith(words))
                for words in ("right % (layers)", "How often "))
    return {"routes": fenced(lines[:cut]), "details": fenced(lines[cut:end]),
            "explained": fenced(demo["explained"]), "bases": base_table(bases),
            "methods": methods_table(own), "losses": losses_table(own),
            "domains": domains_table(own), "families": families_table(own),
            "shapes": bases_table(paper, "figure5", "table6"),
            "frontier": bases_table(paper, "frontier")}


def figures(demo):
    """{name: text} of the numbers in FIGURES."""
    metrics = demo["metrics"]
    routes, points = metrics["routes"], metrics["frontier"]
    main, plain, deepest = routes["dr.llm"], routes["vanilla"], metrics["static"][-1]
    own = next(point for point in points if not point["tilt"])
    fewest = min(points, key=lambda point: point["tilt"])
    saved = lambda layers: percent(1 - layers / plain["layers"])
    return {"n": f"{plain['n']:,}", "right_paths": f"{demo['right_paths']:.0f}",
            "dr_llm": percent(main["accuracy"]), "vanilla": percent(plain["accuracy"]),
            "gain": percent(main["gain"], sign=True),
            "low": percent(main["interval"][0], sign=True),
            "high": percent(main["interval"][1], sign=True),
            "layers": f"{main['layers']:.2f}", "all_layers": f"{plain['layers']:.0f}",
            "saved": saved(main["layers"]), "static": percent(deepest["accuracy"]),
            "static_layers": str(deepest["layers"]),
            "shortest_loss": percent(-routes["dr.llm shortest"]["gain"]),
            "over": percent(own["over_static"], sign=True),
            "over_low": percent(own["interval"][0], sign=True),
            "over_high": percent(own["interval"][1], sign=True), "tilt": f"{fewest['tilt']:+.1f}",
            "tilt_gain": percent(fewest["accuracy"] - plain["accuracy"], sign=True),
            "tilt_saved": saved(fewest["layers"])}


def constants():
    """{name: text} of the numbers in FIGURES that are defaults of the code."""
    default = lambda function, name: inspect.signature(function).parameters[name].default
    args, config = train.parse_args([]), train.TrainConfig()
    search = train.SearchConfig(simulations=args.simulations)
    course = ASSETS.parent / "course"
    points = re.findall(r"^points = (\d+)", (course / "tasks.toml").read_text(), re.MULTILINE)
    return {"simulations": str(search.simulations), "asked": str(search.simulations + 1),
            "widening": str(search.widening), "windows": str(config.windows),
            "random_child": f"{100 * search.random_child:.0f}",
            "epochs": str(config.epochs), "seeds": str(args.seeds),
            "batch_size": str(args.batch_size),
            "gate_dimensions": str(default(drllm.fit_gate, "dimensions")),
            "gate_quantile": f"{100 * default(drllm.fit_gate, 'quantile'):.0f}",
            "tasks": str(len(points)), "points": str(sum(map(int, points))),
            "mutants": str(len(list(course.glob("mutants/*.toml")))),
            "neighbours": str(default(choose.neighbours, "number"))}


def sentence(template):
    """The pattern of a sentence of FIGURES, its numbers as groups, wrapped anywhere."""
    number = lambda _: f"({NUMBER})"
    words = [re.sub(r"\\\{\w+\\\}", number, re.escape(word)) for word in template.split()]
    return re.compile(r"\s+".join(words))


def with_figures(text, values):
    """The README's text with the numbers of every sentence of FIGURES."""
    for template in FIGURES:
        names, found = re.findall(r"\{(\w+)\}", template), list(sentence(template).finditer(text))
        if len(found) != 1:
            raise InputError(f"{README.name}: found {len(found)} times, not once: {template}")
        for group, name in reversed(list(enumerate(names, 1))):
            start, end = found[0].span(group)
            text = text[:start] + values[name] + text[end:]
    return text


def with_blocks(text, made):
    """The README's text with every generated block."""
    for name, block in made.items():
        pattern = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise InputError(f"{README.name}: one block '<!-- generated: {name} -->' is needed")
        text = pattern.sub(lambda found: found[1] + block + found[2], text)
    return text


def rewritten(text):
    """The README's text as demo.json, bases.json and paper.json say it should be."""
    demo, bases = read_json(DEMO), read_json(BASES)["bases"]
    made = blocks(demo, bases, read_json(PAPER))
    return with_blocks(with_figures(text, figures(demo) | constants()), made)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, help="finished run folder of the demo; needs --log")
    parser.add_argument("--log", type=Path, help="what that run printed")
    parser.add_argument("--base", nargs=2, action="append", default=[], metavar=("NAME", "RUN"),
                        help="finished run of another base model, and its name in the table")
    parser.add_argument("--paper", nargs=2, action="append", default=[], metavar=("NAME", "DIR"),
                        help="finished experiments of extras/paper.py, and their base model's name")
    args = parser.parse_args(argv)
    if bool(args.run) != bool(args.log):
        parser.error("--run and --log are given together")
    bases = {b["name"]: b for b in read_json(BASES)["bases"]} if BASES.exists() else {}
    if args.run:
        metrics = {key: value for key, value in read_json(args.run / "metrics.json").items()
                   if key != "command"}
        picture = pictured(args.run)
        write_json(DEMO, {"printed": printed(args.log), "picture": picture,
                          "explained": explained(args.run, picture[1]["id"]),
                          "right_paths": right_paths(args.run),
                          "metrics": metrics})
    runs = [(FIRST, args.run)] if args.run else []
    for name, run in runs + args.base:
        bases[name] = brief(name, read_json(Path(run) / "metrics.json"))
    write_json(BASES, {"bases": list(bases.values())})
    paper = read_json(PAPER) if PAPER.exists() else {}
    for name, folder in args.paper:
        paper[name] = experiments(folder, SHOWN if name == FIRST else OF_ALL)
        for picture in PICTURES if name == FIRST else ():
            shutil.copy(Path(folder) / picture, ASSETS / picture)
    write_json(PAPER, paper)
    write_whole(PICTURE, lambda part: part.write_text(draw(read_json(DEMO)["picture"])))
    text = rewritten(README.read_text(encoding="utf-8"))
    write_whole(README, lambda part: part.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    cli.run(main)
