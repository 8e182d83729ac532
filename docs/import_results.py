"""Takes a finished run into assets/, from where make_results.py writes the tables.

    .venv/bin/python docs/import_results.py --demo runs/demo                          the run of `make`
    .venv/bin/python docs/import_results.py --base "seed 0" runs/seed0                another base model's
    .venv/bin/python docs/import_results.py --paper "the demo" runs/demo/paper        its experiments
"""
import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import make_results  # puts the repository's root on the path
from make_results import ASSETS, FIRST, OF_ALL, ROOT

import cli
from cli import DEMO_MODEL
from drllm import Routers
from label import summary
from model_llama import load_model, load_tokenizer
from storage.files import InputError, read_json, write_json
from answers import answer, prepare
from questions.loading import load_questions

OF_ONE = ("table5", "figure7", "ood", *OF_ALL)  # experiments shown for the demo
NOT_SHOWN = ("layers_executed", "n", "p", "skip", "execute", "repeat", "seconds", "note", "tasks")
PICTURES = ("figure1.png", "figure4.png")


def pictured(run, number=200):
    """Rows of the picture: of the first test sums, one that the routers repair with both skips and
    repeats, along the plain path and along theirs, and the right answer of fewest layers."""
    model, tokenizer = load_model(DEMO_MODEL), load_tokenizer(DEMO_MODEL)
    route = Routers.load(run / "routers.safetensors", model).route
    questions = load_questions(ROOT / "demo/questions/test.jsonl")[:number]
    prompts, _ = prepare(questions, tokenizer, model)
    plain, routed = (answer(model, tokenizer, prompts, way) for way in (None, route))
    paths = routed.decisions.tolist()
    repaired = [n for n, path in enumerate(paths) if routed.right[n] and not plain.right[n]
                and 0 in path and 2 in path and not questions[n].choices]
    if not repaired:
        raise InputError(f"{run}: no sum of {number} questions is repaired with skips and repeats")
    hard = min(repaired, key=lambda n: (sum(paths[n]), -routed.confidence[n]))
    easy = min((n for n in range(len(paths)) if routed.right[n]), key=lambda n: sum(paths[n]))
    shown = (("Plain model", plain, hard), ("Dr.LLM", routed, hard), ("Dr.LLM", routed, easy))
    words = [q.prompt.removeprefix("Question: ").partition(" Answer:")[0] for q in questions]
    return [{"id": questions[n].id, "title": title, "prompt": words[n],
             "decisions": found.decisions[n].tolist(), "right": bool(found.right[n]),
             "answer": found.texts[n].strip(" }")} for title, found, n in shown]


def explained(run, name):
    """What tools.explain prints of one test question."""
    command = ["-m", "tools.explain", "--id", name]
    routers = ["--routers", str((run / "routers.safetensors").resolve())]
    said = subprocess.run([sys.executable, *command, *routers], cwd=ROOT, encoding="utf-8",
                          stdout=subprocess.PIPE, check=True).stdout
    return [" ".join(("$ .venv/bin/python", *command)), *said.rstrip().splitlines()]


def taken_in(run):
    """demo.json of a finished run of `make`."""
    rows = [json.loads(line) for line in (run / "labels.jsonl").read_text("utf-8").splitlines()]
    right = sum(len(row["correct"]) for row in rows) / len(rows)
    picture = pictured(run)
    tried = len(read_json(run / "paths.json")["paths"])
    return {"metrics": read_json(run / "metrics.json") | {"command": "make"}, "picture": picture,
            "choose": read_json(run / "config.json")["choose"],
            "explained": explained(run, picture[1]["id"]),
            "search": {"label questions": f"{len(rows):,}", "searches": summary(rows),
                       "right paths met per question": f"{right:.0f}",
                       "paths then tried on all questions": str(tried)}}


def brief(name, metrics):
    """A row of the base models' table, from a run's metrics."""
    routes = metrics["routes"]
    outside = [task["routes"]["dr.llm"]["gain"] for task in metrics["tasks"].values()
               if task["domain"] == "out"]
    kept = {key: routes["dr.llm"][key] for key in ("accuracy", "gain", "interval", "layers")}
    return kept | {"name": name, "vanilla": routes["vanilla"]["accuracy"],
                   "outside": sum(outside) / max(1, len(outside)),
                   "shortest": routes["dr.llm shortest"]["gain"]}


def experiments(folder, names):
    """{name: rows} of finished experiments of experiments/paper.py, without what no table shows."""
    shown = lambda row: {key: value for key, value in row.items() if key not in NOT_SHOWN}
    return {name: [shown(row) for row in read_json(folder / f"{name}.json")["result"]["rows"]]
            for name in names}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--demo", type=Path, metavar="RUN", help="finished run folder of `make`")
    for flag, kind in (("--base", "RUN"), ("--paper", "DIR")):
        parser.add_argument(flag, nargs=2, action="append", default=[], metavar=("NAME", kind),
                            help="a base model's name in the tables, and what was measured on it")
    args = parser.parse_args(argv)
    if args.demo:
        write_json(ASSETS / "demo.json", taken_in(args.demo))
        args.base.insert(0, (FIRST, args.demo))
    bases = {base["name"]: base for base in read_json(ASSETS / "bases.json")["bases"]}
    bases |= {name: brief(name, read_json(Path(run) / "metrics.json")) for name, run in args.base}
    write_json(ASSETS / "bases.json", {"bases": list(bases.values())})
    paper = read_json(ASSETS / "paper.json")
    for name, folder in args.paper:
        paper[name] = experiments(Path(folder), OF_ONE if name == FIRST else OF_ALL)
        for picture in PICTURES if name == FIRST else ():
            shutil.copy(Path(folder) / picture, ASSETS / picture)
    write_json(ASSETS / "paper.json", paper)
    make_results.main()


if __name__ == "__main__":
    cli.run(main)
