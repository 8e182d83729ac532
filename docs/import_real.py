"""Takes a finished folder of tools/real.py into assets/real.json, from where make_results.py
writes docs/real_model.md. What the folder lacks (ARC, other tasks, what experiments/luck.py printed into
luck.txt, experiments of experiments/paper.py, and in rules/ what experiments/rules.py left: the rules.json of
three runs as rules, again and last, the metrics.json of two as kind and nearest) is left as it was.

    .venv/bin/python docs/import_real.py runs/real
"""
import argparse
from pathlib import Path

import make_results  # puts the repository's root on the path
from make_results import ASSETS, CELLS

import cli
from evaluate import ACTIONS
from storage.files import read_json, write_json
from storage.label_file import read_rows

RUNS = {"arithmetic": "arithmetic", "choices": "ARC, by likelihood"}
MAKE = "make real"
CHOICES = (".venv/bin/python -m tools.real --choices arc_easy=E.jsonl arc_challenge=C.jsonl "
           "--choices-test arc_easy=F.jsonl arc_challenge=G.jsonl --outside openbook_qa=O.jsonl "
           "piqa=P.jsonl winogrande=W.jsonl commonsense_qa=Q.jsonl copa=A.jsonl")
FILES = ("E and C are the first 150 lines of ARC-Easy-Train.jsonl and ARC-Challenge-Train.jsonl, F "
         "and G the first 200 of ARC-Easy-Dev.jsonl and ARC-Challenge-Dev.jsonl; the others are "
         "the first 200 questions of validation sets, 100 of COPA")
RULES = {name: ".venv/bin/python -m experiments.rules --model runs/real/SmolLM2-135M --dtype bfloat16 "
               f"--data runs/fresh/label.jsonl --test runs/fresh/{test}.jsonl --out runs/real/rules"
         for name, test in (("rules_chosen", "test"), ("rules_fresh", "test"),
                            ("rules_again", "further"), ("rules_last", "last"))}
RULES |= {name: RULES["rules_chosen"].replace("rules --model", f"rules --train {how} --model")
          .replace("fresh/test.jsonl", f"fresh/{tests}") for name, how, tests in (
              ("rules_routers", "kind", "last.jsonl runs/fresh/small.jsonl"),
              ("rules_learned", "nearest --counts log-probability --doubt 2",
               "newest.jsonl"))}
MADE = {"rules_chosen": "37 minutes, one thread, both tables; after `.venv/bin/python "
        "demo/make_arithmetic.py runs/fresh --seed 1 --label 160 --test 120`",
        "rules_fresh": "the same run",
        "rules_again": "14 minutes, two threads; `further`: those that `--test 320` makes beside "
        "the 120 of each kind",
        "rules_last": "`last`: those that `--test 460` makes beside the others",
        "rules_routers": "2 minutes where the edits are known, two threads; five router seeds; "
        "`small`: the 132 questions of the three small kinds, which stand among the 732 above",
        "rules_learned": "`newest`: the 754 that `--test 700` makes beside all others, of four "
        "kinds; they chose nothing"}
NAMES = {"dr.llm": "Dr.LLM, consensus", "dr.llm shortest": "Dr.LLM, the paper's"}


def figures(row, *columns):
    return [CELLS[column](row) for column in columns]


def score(row):
    return "{} ({})".format(*figures(row, "right", "layers"))


def domain(folder, run):
    """Rows of every route in domain: safe's routers, then all that the run of consensus asked."""
    shown = ("right", "gain", "layers")
    safe, all_of = (read_json(folder / f"{run}-{choice}" / "metrics.json")
                    for choice in ("safe", "consensus"))
    yield ["Dr.LLM, safe (the default)", *figures(safe["routes"]["dr.llm"], *shown)]
    for name, row in all_of["routes"].items():
        yield [NAMES.get(name, f"static, {row['layers']:.0f} layers" if "static" in name else name),
               *figures(row, *shown)]


def by_task(folder, run):
    """Rows of every task in domain: right (layers) along the main routes."""
    metrics = read_json(folder / f"{run}-consensus" / "metrics.json")
    for task, found in sorted(metrics["tasks"].items()):
        yield [task, str(found["routes"]["vanilla"]["n"]), *(
            score(found["routes"][route]) for route in ("vanilla", *NAMES))]


def outside(folder, run):
    """Rows of every task that the routers of a run had not seen."""
    consensus, paper = (read_json(folder / f"{run}-{choice}-outside" / "metrics.json")
                        for choice in ("consensus", "shortest"))
    rows = [(name, found["routes"], paper["tasks"][name]["routes"])
            for name, found in consensus["tasks"].items()]
    for name, ours, theirs in [*rows, ("all", consensus["routes"], paper["routes"])]:
        yield [name, str(ours["vanilla"]["n"]), CELLS["right"](ours["vanilla"]), *(
            " @ ".join(figures(one["dr.llm"], "gain", "layers")) for one in (ours, theirs))]


def searched(folder, run):
    """A column of Table 2 and Figure 9: what the searches of a run found."""
    file = folder / f"{run}-consensus" / "labels.jsonl"
    num_layers = len(read_json(folder / f"{run}-consensus" / "paths.json")["paths"][0])
    rows = list(read_rows(file, num_layers).values())
    right, wrong = ([row for row in rows if row["default_correct"] == value]
                    for value in (True, False))
    labels = [row["decisions"] for row in rows if row["correct"]]
    share = lambda some: 100 * sum(some) / max(1, len(some))
    among = lambda some: 100 * (sum(len(row["correct"]) for row in some)
                                / max(1, sum(row["simulations"] + 1 for row in some)))
    of_labels = [share([n == count for path in labels for n in path]) for count in range(3)]
    return {"label questions": str(len(rows)),
            "layers saved where the default path is right":
                f"{sum(num_layers - row['length'] for row in right) / len(right):.2f} "
                f"of {num_layers}",
            "right ones with a shorter right path":
                f"{share([row['length'] < num_layers for row in right]):.1f}%",
            "wrong ones repaired":
                f"{share([bool(row['correct']) for row in wrong]):.1f}% of {len(wrong)}",
            f"shortest labels, {' / '.join(ACTIONS)}":
                " / ".join(f"{one:.1f}" for one in of_labels) + "%",
            "right among the paths tried, default right / wrong":
                f"{among(right):.1f}% / {among(wrong):.1f}%"}


NUMBERED = [f"{number}." for number in range(1, 7)]
PAPER = {"layers saved where the default path is right": "1.82 of 28 to 32",
         "wrong ones repaired": "about 30%",
         f"shortest labels, {' / '.join(ACTIONS)}": "7.6 / 90 / 2.3%"}


SHOWN = {"table5": ["right", "gain", "layers", "over static"],
         "table6": ["right", "gain", "layers", "over static"],
         "figure6": ["right", "gain", "layers", "s/e/r %"], "figure4": ["layers", "per layer"],
         "figure1": ["right", "layers", "over static"]}
IN_THE_PICTURE = ("static", "price", "control")  # of figure1's rows: too many for a table
PAPERS = ("--model runs/real/SmolLM2-135M --dtype bfloat16 --data runs/real/label.jsonl --test "
          "runs/real/test.jsonl --run runs/real/arithmetic-consensus --seeds 5")


def experiments(folder):
    """{name: a table} of what experiments/paper.py measured on the arithmetic run; a row of one table is
    not shown again in a later one."""
    shown = set()
    for name, columns in SHOWN.items():
        file = folder / "arithmetic-consensus" / "paper" / f"{name}.json"
        if file.exists():
            found = read_json(file)
            rows = [[row["name"], *(row[c] if c == "per layer" else CELLS[c](row)
                                    for c in columns)] for row in found["result"]["rows"]
                    if not row["name"].startswith(IN_THE_PICTURE) and row["name"] not in shown]
            shown |= {row[0] for row in rows}
            yield name, {"head": ["", *columns], "rows": rows,
                         "command": f".venv/bin/python -m experiments.paper {name} {PAPERS}",
                         "note": f"{found['seconds'] / 60:.0f} minutes, one thread"}


def rules(folder):
    """{name: a table} of what experiments/rules.py found on its label questions, on test questions, and
    on further ones."""
    title = {"skip, repeat": "skips and repeats", "damped": "damped repeats"}
    for name, file, column in (("rules_chosen", "rules.json", "cross-validated"),
                               ("rules_fresh", "rules.json", "test"),
                               ("rules_again", "again.json", "test"),
                               ("rules_last", "last.json", "test")):
        found, cells = read_json(folder / file), {}
        for row in found["rows"]:
            about = "; ".join((title[row["menu"]], row["counts"], row["doubt"]))
            cells.setdefault(about, {})[row["rule"]] = row[column]
        number = found["label" if name == "rules_chosen" else "test"]
        yield name, {"head": [f"menu; what counts; doubt ({number:,} questions)",
                              *next(iter(cells.values()))],
                     "rows": [[about, *row.values()] for about, row in cells.items()],
                     "command": RULES[name], "note": MADE[name]}
    columns = ("right", "gain", "layers")
    for name, file, title in (("rules_routers", "kind.json", "one edit per kind"),
                              ("rules_learned", "nearest.json", "of the nearest")):
        yield name, {"head": ["route", *columns], "rows": [
            [{"dr.llm": f"Dr.LLM, {title}"}.get(route, route), *figures(row, *columns)]
            for route, row in read_json(folder / file)["routes"].items()],
            "command": RULES[name], "note": MADE[name]}


def printed(file):
    """What experiments.luck printed into a file, its sections apart."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return [one for line in lines for one in ([""] if line[:2] in NUMBERED else []) + [line]][1:]


def taken_in(folder):
    """{name: a table as in measured.json} of all that stands in the folder."""
    made = lambda head, rows, command, note="": {
        "head": head, "rows": [*map(list, rows)], "command": command, "note": note}
    found = {}
    runs = {run: title for run, title in RUNS.items()
            if (folder / f"{run}-consensus" / "metrics.json").exists()}
    columns = {title: searched(folder, run) for run, title in runs.items()}
    found["search"] = made(
        ["", *columns, "the paper, 3 to 8 billion weights"],
        [[key, *(column[key] for column in columns.values()), PAPER.get(key, "")]
         for key in next(iter(columns.values()))], MAKE, f"the second column by `{CHOICES}`")
    for run in runs:
        command, note = (MAKE, "") if run == "arithmetic" else (CHOICES, FILES)
        found[f"{run}_routes"] = made(["route", "right", "gain", "layers of 30"],
                                      domain(folder, run), command, note)
        found[f"{run}_tasks"] = made(["task", "n", "vanilla", *NAMES.values()],
                                     by_task(folder, run), command, note)
        if (folder / f"{run}-shortest-outside" / "metrics.json").exists():
            found[f"{run}_outside"] = made(
                ["task", "n", "vanilla", "gain, consensus @ layers", "gain, the paper's @ layers"],
                outside(folder, run), CHOICES, FILES)
    if (folder / "luck.txt").exists():
        found["luck"] = printed(folder / "luck.txt")
    if (folder / "rules").exists():
        found |= dict(rules(folder / "rules"))
    return found | dict(experiments(folder))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="finished folder of tools/real.py")
    args, file = parser.parse_args(argv), ASSETS / "real.json"
    write_json(file, (read_json(file) if file.exists() else {}) | taken_in(args.folder))
    make_results.main()


if __name__ == "__main__":
    cli.run(main)
