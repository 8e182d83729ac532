"""Writes docs/results.md and docs/real_model.md, the README's tables and its picture.

    .venv/bin/python docs/make_results.py

The results lie in assets/: demo.json, bases.json and paper.json, which import_results.py writes,
real.json, which import_real.py writes, and measured.json, whose tables were copied by hand from what
a command printed, each with that command. The words of a page stand in its template, where $name
is one of the tables.
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
from cli import aligned, percent  # noqa: E402
from evaluate import total_row  # noqa: E402
from storage.files import InputError, read_json, write_whole  # noqa: E402

FIRST = "the demo"  # among the base models
NAMES = {"vanilla": "vanilla", "dr.llm": "Dr.LLM, {}", "dr.llm shortest": "Dr.LLM, the paper's",
         "shuffled": "shuffled"}
OF_ALL = ("figure5", "table6", "frontier")  # experiments shown for every base model
FILES = ("storage/files storage/answer_cache storage/run_folder storage/router_file storage/label_file cli "
         "checkpoint/chat_template checkpoint/config checkpoint/weights checkpoint/tokenizer "
         "questions/grading questions/schemas questions/loading questions/prompts "
         "questions/reward paths model_llama mcts drllm answers label choose "
         "evaluate train").split()
FIRST_SEVEN = ("model_llama", "mcts", "drllm", "label", "choose", "evaluate", "train")


# ---- tables ----

signed = partial(percent, sign=True)


def ends(interval):
    return "[{}, {}]".format(*map(signed, interval))


def with_layers(key):
    return lambda row: f"{signed(row[key])} ({row[f'{key} layers']:.2f})"


CELLS = {  # what stands in a column, from a row of figures
    "right": lambda row: percent(row["accuracy"]),
    "sd": lambda row: "" if row["sd"] is None else percent(row["sd"]),
    "gain": lambda row: f"{signed(row['gain'])} {ends(row['interval'])}",
    "layers": lambda row: f"{row['layers']:.2f}",
    "summed": lambda row: f"{row['layers_executed']:.1f}",
    "s/e/r %": lambda row: "/".join(f"{100 * row[k]:.0f}" for k in ("skip", "execute", "repeat")),
    "over static": lambda row: f"{signed(row['over_static'])} {ends(row['over interval'])}",
    "vanilla": lambda row: percent(row["vanilla"]),
    "mean out of domain": lambda row: f"{signed(row['out'])} {ends(row['out interval'])}",
    "out of domain": lambda row: signed(row["outside"]),
    "paper's labels": lambda row: signed(row["shortest"]),
    "guard, interval": lambda row: ends(row["guard interval"]),
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
    statics = [point | {"name": f"static, {point['layers']} layers"} for point in metrics["static"]]
    return {"routes": table(["name", "right", "sd", "gain", "layers", "summed", "s/e/r %"],
                            rows), "tasks": table(list(tasks[0]), tasks),
            "statics": table(["name", "right"], statics),
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
        if not row["name"].startswith("static")])
    return {"methods": table(["name", "right", "layers", "gain", "over static"], own["table5"]),
            "losses": table(["name", "right", "sd", "layers", "over static"], own["figure7"]),
            "domains": table(["name", "in domain", "near", "far", "mean out of domain"],
                             [row for row in own["ood"] if "in" in row]),
            "families": table(["name", "bare", "guard", "guard, interval"],
                              [row for row in own["ood"] if "bare" in row]),
            "shapes": both("figure5", "table6"), "frontier": both("frontier")}


def measured_table(found):
    """A table of measured.json, and the command that printed its figures."""
    made = table(found["head"], [dict(zip(found["head"], row)) for row in found["rows"]])
    note = f" ({found['note']})" if found["note"] else ""
    return f"{made}\n\nMeasured by `{found['command']}`{note}." if found["command"] else made


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
    found = read_json(ASSETS / "real.json")
    luck = "\n".join(found.pop("luck"))
    made = {name: measured_table(t) for name, t in found.items()} | {"luck": luck}
    made |= {name: measured_table(t) for name, t in read_json(ASSETS / "measured.json").items()
             if name.startswith(("real_", "rules"))}
    tried = found["search"]["rows"][-1][2].split(" / ")[1]  # of ARC, where the default was wrong
    return words.substitute(made, tried=tried)


def first_table():
    """The table that `make` prints first."""
    demo = read_json(ASSETS / "demo.json")
    names = titles(demo)
    rows = [total_row(names[key], row) for key, row in demo["metrics"]["routes"].items()]
    return f"```text\n{aligned(rows)}\n```"


def file_table():
    """A row per file of the core: its lines, and what it says of itself first."""
    texts = {name: (ROOT / f"{name}.py").read_text(encoding="utf-8") for name in FILES}
    return table(["file", "lines", "what it holds"], [{
        "file": f"`{name}.py`" + " **R**" * (name in FIRST_SEVEN),
        "lines": str(len(text.splitlines())), "what it holds": " ".join(
            ast.get_docstring(ast.parse(text)).split("\n\n")[0].split()).rstrip(".")}
        for name, text in texts.items()])


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
