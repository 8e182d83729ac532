"""Writes docs/results.md and docs/real_models.md, the README's tables and its picture.

    .venv/bin/python docs/make_results.py

The results are in assets/: demo.json, bases.json and paper.json, which import_results.py writes,
real.json, which import_real.py writes, and measured.json, whose tables were copied by hand from
what a command printed, each with that command.
The words of a page are in its template, where $name is one of the tables.
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
NAMES = {"vanilla": "base model", "dr.llm": "Dr.LLM, {}", "dr.llm shortest": "Dr.LLM, the paper's",
         "shuffled": "shuffled"}
OF_ALL = ("figure5", "table6", "frontier")  # experiments shown for every base model
IN_THE_PAPER = {  # the reader's files, in the order of reading, and what of the paper is in them
    "paths": "§3.1", "model_llama": "§3.1", "mcts": "§3.2, Algorithm 1, Eq. 2",
    "drllm": "§3.1, §3.3", "answers": "Appendix A", "base_check": "ours",
    "label": "§3.2, Table 2", "choose": "§3.2; mostly ours", "evaluate": "Tables 3 and 4",
    "train": "§3.3"}
FILES = ("cli", *IN_THE_PAPER)  # of the top level
ROOMS = ("storage", "questions", "checkpoint", "experiments", "tools")


# ---- tables ----

signed = partial(percent, sign=True)


def with_layers(key):
    return lambda row: f"{signed(row[key])} ({row[f'{key} layers']:.2f})"


CELLS = {  # {column: its text, from a row of figures}
    "accuracy %": lambda row: percent(row["accuracy"]),
    "sd": lambda row: "" if row["sd"] is None else percent(row["sd"]),
    "gain": lambda row: with_interval(row["gain"], row["interval"]),
    "layers": lambda row: f"{row['layers']:.2f}",
    "blocks per answer": lambda row: f"{row['layers_executed']:.1f}",
    "s/e/r %": lambda row: "/".join(f"{100 * row[k]:.0f}" for k in ("skip", "execute", "repeat")),
    "over fixed paths": lambda row: with_interval(row["over_static"], row["over interval"]),
    "base model %": lambda row: percent(row["vanilla"]),
    "mean out of domain": lambda row: with_interval(row["out"], row["out interval"]),
    "out of domain": lambda row: signed(row["outside"]),
    "paper's labels": lambda row: signed(row["shortest"]),
    "guard, interval": lambda row: bounds(row["guard interval"]),
    "in domain": with_layers("in"), "near": with_layers("near"), "far": with_layers("far"),
    "without guard": with_layers("bare"), "guard": with_layers("guard"),
}


def table(head, rows):
    """Markdown. A column is one of CELLS, or the text that the rows have under its name."""
    cells = [[row[key] if isinstance(row.get(key), str) else CELLS[key](row) for key in head]
             for row in rows]
    return text_table(head, cells)


def text_table(head, rows):
    """Markdown of cells that are texts."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def titles(demo):
    """{route: what it is called in a table} of the run of `make`."""
    return {key: NAMES.get(key, f"fixed path, {row['layers']:.0f} layers").format(demo["choose"])
            for key, row in demo["metrics"]["routes"].items()}


def demo_tables(demo):
    """The tables of the run of `make`."""
    metrics, names = demo["metrics"], titles(demo)
    rows = [row | {"name": names[key]} for key, row in metrics["routes"].items()]
    by_level = {f"{task['domain']} {name} {level}".strip(): routes
                for name, task in metrics["tasks"].items()
                for level, routes in task.get("levels", {"": task["routes"]}).items()}
    tasks = [{"task": task, "n": str(routes["vanilla"]["n"])} | {
        names[key]: f"{CELLS['accuracy %'](row)} ({CELLS['layers'](row)})"
        for key, row in routes.items()} for task, routes in by_level.items()]
    fixed_paths = [point | {"name": f"fixed path, {point['layers']} layers"}
                   for point in metrics["fixed"]]
    return {"routes": table(["name", "accuracy %", "sd", "gain", "layers", "blocks per answer",
                             "s/e/r %"], rows),
            "tasks": table(list(tasks[0]), tasks),
            "fixed_paths": table(["name", "accuracy %"], fixed_paths),
            "search": table(list(demo["search"]), [demo["search"]]),
            "explained": "\n".join(["```text", *demo["explained"], "```"])}


def paper_tables(paper):
    """The tables of the paper's experiments; those of all base models have a column for each."""
    own, bases = paper[FIRST], {}
    for base, found in paper.items():
        for row in (row for key in OF_ALL for row in found[key]):
            bases.setdefault(row["name"], {"name": row["name"]})[base] = " @ ".join(
                CELLS[key](row) for key in ("over fixed paths", "layers"))

    def of_all(*keys):
        names = [row["name"] for key in keys for row in own[key]]
        rows = [bases[name] for name in names if not name.startswith("fixed")]
        return table(["name", *paper], rows)

    return {"methods": table(["name", "accuracy %", "layers", "gain", "over fixed paths"],
                             own["table5"]),
            "losses": table(["name", "accuracy %", "sd", "layers", "over fixed paths"],
                            own["figure7"]),
            "domains": table(["name", "in domain", "near", "far", "mean out of domain"],
                             [row for row in own["ood"] if "in" in row]),
            "families": table(["name", "without guard", "guard", "guard, interval"],
                              [row for row in own["ood"] if "bare" in row]),
            "shapes": of_all("figure5", "table6"), "frontier": of_all("frontier")}


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
    bases = table(["name", "base model %", "accuracy %", "gain", "layers", "out of domain",
                   "paper's labels"], read_json(ASSETS / "bases.json")["bases"])
    measured = {name: measured_table(t) for name, t in read_json(ASSETS / "measured.json").items()}
    return words.substitute(measured, **demo_tables(read_json(ASSETS / "demo.json")), bases=bases,
                            **paper_tables(paper))


PAPERS_SEARCH = {  # its Table 2 and Figure 9
    "layers saved if the default path is correct": "1.82 of 28 to 32",
    "incorrect ones corrected": "about 30%",
    "shortest labels, skip / execute / repeat": "7.6 / 90 / 2.3%"}


def runs_tables(runs):
    """The tables of the runs on independently pretrained models. runs: {model and questions: what
    import_real.py imported}."""
    search = []
    for label in next(iter(runs.values()))["search"]:
        columns = [run["search"][label] for run in runs.values()]
        search.append([label, *columns, PAPERS_SEARCH.get(label, "")])
    made = {
        "run_search": (["", *runs, "the paper, 3 to 8 billion weights"], search),
        "run_routes": (["run", "route", "accuracy %", "gain", "layers", "over fixed paths"],
                       rows_of_runs(runs, "routes")),
        "run_tasks": (["run", "kind", "n", "base model", "Dr.LLM, consensus",
                       "Dr.LLM, the paper's"], rows_of_runs(runs, "tasks"))}
    first, *others = [f"{run['command']}` ({run['note']})" for run in runs.values()]
    measured_by = "".join([first, *(f", `{other}" for other in others)])
    return {name: f"{text_table(head, rows)}\n\nMeasured by `{measured_by}."
            for name, (head, rows) in made.items()}


def rows_of_runs(runs, part):
    """The rows of one part of every run, after the run's name, which is not repeated."""
    return [[name if number == 0 else "", *row] for name, run in runs.items()
            for number, row in enumerate(run[part])]


def real_models():
    """The text of real_models.md."""
    words = string.Template((DOCS / "real_models.template.md").read_text(encoding="utf-8"))
    tables = read_json(ASSETS / "real.json")
    made = {"luck": "\n".join(tables.pop("luck"))} | runs_tables(tables.pop("runs"))
    tables |= {name: stored for name, stored in read_json(ASSETS / "measured.json").items()
               if name.startswith("real_")}
    return words.substitute(made | {name: measured_table(t) for name, t in tables.items()})


SUMMARY = ("model", "gain, our labels", "gain over fixed paths", "gain, the paper's labels")


def row_named(stored, name):
    """{column: text} of the first row of this name, of a table as in measured.json."""
    for row in stored["rows"]:
        if row[0] == name:
            return dict(zip(stored["head"], row))
    raise InputError(f"no row {name}")


def demo_line():
    """The README's cells on the demo."""
    routes = read_json(ASSETS / "demo.json")["metrics"]["routes"]
    choices = read_json(ASSETS / "measured.json")["choices"]

    ours, papers = [f"{CELLS['gain'](row)} at {CELLS['layers'](row)} layers"
                    for row in (routes["dr.llm"], routes["dr.llm shortest"])]
    over_fixed = row_named(choices, "consensus")["over fixed paths of the same depth"]
    return "the demo, 12 layers", ours, over_fixed, papers


def real_lines():
    """The README's cells on independently pretrained models, a line per model."""
    runs = read_json(ASSETS / "real.json")["runs"]
    on_arithmetic = [name for name in runs if name.endswith("arithmetic")]
    for name in on_arithmetic:
        rows = {route: figures for route, *figures in runs[name]["routes"]}
        _, ours, layers, over_fixed = rows["Dr.LLM, consensus"]
        _, papers, papers_layers, _ = rows["Dr.LLM, the paper's"]
        if "[" not in over_fixed:  # of a run before evaluate.py computed it
            over_fixed += " (no interval)"
        yield (name, f"{ours} at {layers} layers", over_fixed,
               f"{papers} at {papers_layers} layers")


def summary_table():
    """Does it work? Every model that was measured, in one table."""
    lines = [demo_line(), *real_lines()]
    return text_table(SUMMARY, lines)


def first_table():
    """The table that `make` prints first."""
    demo = read_json(ASSETS / "demo.json")
    names = titles(demo)
    rows = [total_row(names[key], row) for key, row in demo["metrics"]["routes"].items()]
    return f"```text\n{aligned(rows)}\n```"


def summary_of(file):
    """The first paragraph of a source file's docstring."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    return " ".join(text.split("\n\n")[0].split()).rstrip(".")


def file_table():
    """A row per file of the reader, and what it says of itself first."""
    head = ("file", "what it holds", "in the paper")
    rows = [(f"`{name}.py`", summary_of(ROOT / f"{name}.py"), place)
            for name, place in IN_THE_PAPER.items()]
    return table(head, [dict(zip(head, row)) for row in rows])


def room_table():
    """A row per room, and what it says of itself first."""
    head = ("folder", "what it holds")
    rows = [(f"`{room}/`", summary_of(ROOT / room / "__init__.py")) for room in ROOMS]
    return table(head, [dict(zip(head, row)) for row in rows])


def readme(text):
    """The README's text with its parts between <!-- NAME --> and <!-- /NAME --> made anew."""
    for name, made in (("summary", summary_table()), ("table", first_table()),
                       ("files", file_table()), ("rooms", room_table())):
        before, found, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not found or not end:
            raise InputError(f"README.md: <!-- {name} --> and <!-- /{name} --> are needed")
        text = f"{before}{found}{made}\n{end}{after}"
    return text


def main():
    picture = draw(read_json(ASSETS / "demo.json")["picture"])
    for file, text in ((ASSETS / "paths.svg", picture), (DOCS / "results.md", results()),
                       (DOCS / "real_models.md", real_models()),
                       (ROOT / "README.md", readme((ROOT / "README.md").read_text("utf-8")))):
        write_whole(file, lambda part, text=text: part.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    cli.run(main)
