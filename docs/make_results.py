"""Writes docs/results.md and docs/real_model.md, the README's tables and its picture.

    .venv/bin/python docs/make_results.py

The results are in assets/: demo.json, bases.json and paper.json, which import_results.py writes,
real.json, which import_real.py writes, and measured.json, whose tables were copied by hand from
what a command printed, each with that command. The words of a page are in its template, where
$name is one of the tables.
"""
import ast
import string
import sys
from functools import partial
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT, ASSETS = DOCS.parent, DOCS.parent / "assets"
sys.path[:0] = [str(ROOT), str(DOCS)]

from draw import draw  # noqa: E402

import cli  # noqa: E402
from cli import aligned, bounds, percent, with_interval  # noqa: E402
from evaluate import total_row  # noqa: E402
from storage.files import InputError, read_json, write_whole  # noqa: E402

FIRST = "the demo"  # among the base models
NAMES = {"vanilla": "vanilla", "dr.llm": "Dr.LLM, {}", "dr.llm shortest": "Dr.LLM, the paper's",
         "shuffled": "shuffled"}
OF_ALL = ("figure5", "table6", "frontier")  # experiments shown for every base model
READER = ("model_llama", "mcts", "drllm", "answers", "label", "choose", "evaluate", "train")
FILES = ("cli", "paths", *READER)  # of the top level
ROOMS = ("storage", "questions", "checkpoint", "experiments", "tools")


# ---- tables ----

signed = partial(percent, sign=True)


def with_layers(key):
    return lambda row: f"{signed(row[key])} ({row[f'{key} layers']:.2f})"


CELLS = {  # what stands in a column, from a row of figures
    "right": lambda row: percent(row["accuracy"]),
    "sd": lambda row: "" if row["sd"] is None else percent(row["sd"]),
    "gain": lambda row: with_interval(row["gain"], row["interval"]),
    "layers": lambda row: f"{row['layers']:.2f}",
    "summed": lambda row: f"{row['layers_executed']:.1f}",
    "s/e/r %": lambda row: "/".join(f"{100 * row[k]:.0f}" for k in ("skip", "execute", "repeat")),
    "over static": lambda row: with_interval(row["over_static"], row["over interval"]),
    "vanilla": lambda row: percent(row["vanilla"]),
    "mean out of domain": lambda row: with_interval(row["out"], row["out interval"]),
    "out of domain": lambda row: signed(row["outside"]),
    "paper's labels": lambda row: signed(row["shortest"]),
    "guard, interval": lambda row: bounds(row["guard interval"]),
    "in domain": with_layers("in"), "near": with_layers("near"), "far": with_layers("far"),
    "bare": with_layers("bare"), "guard": with_layers("guard"),
}


def table(head, rows):
    """Markdown. A column is one of CELLS, or the text that the rows have under its name."""
    cells = [[row[key] if isinstance(row.get(key), str) else CELLS[key](row) for key in head]
             for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *cells))


def titles(demo):
    """{route: what it is called in a table} of the run of `make`."""
    return {key: NAMES.get(key, f"static, {row['layers']:.0f} layers").format(demo["choose"])
            for key, row in demo["metrics"]["routes"].items()}


def demo_tables(demo):
    """The tables of the run of `make`."""
    metrics, names = demo["metrics"], titles(demo)
    rows = [row | {"name": names[key]} for key, row in metrics["routes"].items()]
    by_level = {f"{task['domain']} {name} {level}".strip(): routes
                for name, task in metrics["tasks"].items()
                for level, routes in task.get("levels", {"": task["routes"]}).items()}
    tasks = [{"task": task, "n": str(routes["vanilla"]["n"])} | {
        names[key]: f"{CELLS['right'](row)} ({CELLS['layers'](row)})"
        for key, row in routes.items()} for task, routes in by_level.items()]
    fixed_paths = [point | {"name": f"fixed path, {point['layers']} layers"}
                   for point in metrics["fixed"]]
    return {"routes": table(["name", "right", "sd", "gain", "layers", "summed", "s/e/r %"],
                            rows), "tasks": table(list(tasks[0]), tasks),
            "statics": table(["name", "right"], fixed_paths),
            "search": table(list(demo["search"]), [demo["search"]]),
            "explained": "\n".join(["```text", *demo["explained"], "```"])}


def paper_tables(paper):
    """The tables of the paper's experiments; those of all base models have a column for each."""
    own, bases = paper[FIRST], {}
    for base, found in paper.items():
        for row in (row for key in OF_ALL for row in found[key]):
            bases.setdefault(row["name"], {"name": row["name"]})[base] = " @ ".join(
                CELLS[key](row) for key in ("over static", "layers"))
    both = lambda *keys: table(["name", *paper], [
        bases[row["name"]] for key in keys for row in own[key]
        if not row["name"].startswith("fixed")])
    return {"methods": table(["name", "right", "layers", "gain", "over static"], own["table5"]),
            "losses": table(["name", "right", "sd", "layers", "over static"], own["figure7"]),
            "domains": table(["name", "in domain", "near", "far", "mean out of domain"],
                             [row for row in own["ood"] if "in" in row]),
            "families": table(["name", "bare", "guard", "guard, interval"],
                              [row for row in own["ood"] if "bare" in row]),
            "shapes": both("figure5", "table6"), "frontier": both("frontier")}


def measured_table(stored):
    """A table of measured.json, and the command that printed its figures."""
    made = table(stored["head"], [dict(zip(stored["head"], row)) for row in stored["rows"]])
    note = f" ({stored['note']})" if stored["note"] else ""
    return f"{made}\n\nMeasured by `{stored['command']}`{note}." if stored["command"] else made


# ---- the pages ----

def results():
    """The text of results.md."""
    words = string.Template((DOCS / "results.template.md").read_text(encoding="utf-8"))
    paper = read_json(ASSETS / "paper.json")
    bases = table(["name", "vanilla", "right", "gain", "layers", "out of domain", "paper's labels"],
                  read_json(ASSETS / "bases.json")["bases"])
    measured = {name: measured_table(t) for name, t in read_json(ASSETS / "measured.json").items()}
    return words.substitute(measured, **demo_tables(read_json(ASSETS / "demo.json")), bases=bases,
                            **paper_tables(paper))


def real_model():
    """The text of real_model.md."""
    words = string.Template((DOCS / "real_model.template.md").read_text(encoding="utf-8"))
    tables = read_json(ASSETS / "real.json")
    luck = "\n".join(tables.pop("luck"))
    made = {name: measured_table(t) for name, t in tables.items()} | {"luck": luck}
    made |= {name: measured_table(t) for name, t in read_json(ASSETS / "measured.json").items()
             if name.startswith(("real_", "rules"))}
    tried = tables["search"]["rows"][-1][2].split(" / ")[1]  # of ARC, if the default was incorrect
    return words.substitute(made, tried=tried)


def first_table():
    """The table that `make` prints first."""
    demo = read_json(ASSETS / "demo.json")
    names = titles(demo)
    rows = [total_row(names[key], row) for key, row in demo["metrics"]["routes"].items()]
    return f"```text\n{aligned(rows)}\n```"


def summary_of(file):
    """(number of lines, the first paragraph of the docstring) of a source file."""
    text = file.read_text(encoding="utf-8")
    first = ast.get_docstring(ast.parse(text)).split("\n\n")[0]
    return len(text.splitlines()), " ".join(first.split()).rstrip(".")


def file_table():
    """A row per file of the top level and per room: its lines, and what it says of itself first."""
    rows = []
    for name in FILES[1:]:
        lines, story = summary_of(ROOT / f"{name}.py")
        mark = " **R**" if name in READER else ""
        rows.append((f"`{name}.py`{mark}", lines, story))
    lines, story = summary_of(ROOT / "cli.py")
    rows.append(("`cli.py`", lines, story))
    for room in ROOMS:
        _, story = summary_of(ROOT / room / "__init__.py")
        files = [summary_of(file)[0] for file in (ROOT / room).glob("*.py")
                 if file.name != "__init__.py"]
        rows.append((f"`{room}/`", sum(files), story))
    head = ("file", "lines", "what it holds")
    return table(head, [dict(zip(head, map(str, row))) for row in rows])


def readme(text):
    """The README's text with its parts between <!-- NAME --> and <!-- /NAME --> made anew."""
    for name, made in (("table", first_table()), ("files", file_table())):
        before, found, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not found or not end:
            raise InputError(f"README.md: <!-- {name} --> and <!-- /{name} --> are needed")
        text = f"{before}{found}{made}\n{end}{after}"
    return text


def main():
    picture = draw(read_json(ASSETS / "demo.json")["picture"])
    for file, text in ((ASSETS / "paths.svg", picture), (DOCS / "results.md", results()),
                       (DOCS / "real_model.md", real_model()),
                       (ROOT / "README.md", readme((ROOT / "README.md").read_text("utf-8")))):
        write_whole(file, lambda part, text=text: part.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    cli.run(main)
