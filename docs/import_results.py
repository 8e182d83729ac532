"""Imports a finished run into assets/, from where make_results.py writes the tables: the run of
`make`, another base model's run, or its experiments.

    .venv/bin/python docs/import_results.py --demo runs/demo
    .venv/bin/python docs/import_results.py --base "seed 0" runs/seed0
    .venv/bin/python docs/import_results.py --paper "the demo" runs/demo/paper
"""
import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import make_results  # puts the repository's root on the path
from make_results import ASSETS, FIRST, OF_ALL, ROOT

import cli
from answers import answer, prepare
from cli import DEMO_MODEL
from drllm import Routers
from experiments.lab import FinishedRun
from label import summary
from model_llama import load_model, load_tokenizer
from paths import REPEAT, SKIP, blocks
from questions.loading import load_questions
from storage.files import InputError, read_json, write_json

OF_ONE = ("table5", "figure7", "ood", *OF_ALL)  # experiments shown for the demo
NOT_SHOWN = ("layers_executed", "n", "p", "skip", "execute", "repeat", "seconds", "note", "tasks")
PICTURES = ("figure1.png", "figure4.png")


def pictured(run, number=200):
    """Rows of the picture: of the first test sums, one that the routers correct with both skips and
    repeats, along the default path and along theirs, and the correct answer of fewest layers."""
    model, tokenizer = load_model(DEMO_MODEL), load_tokenizer(DEMO_MODEL)
    route = Routers.load(run.folder / "routers.safetensors", model).route
    questions = load_questions(ROOT / "demo/questions/test.jsonl")[:number]
    prompts, _ = prepare(questions, tokenizer, model)
    plain = answer(model, tokenizer, prompts, None)
    routed = answer(model, tokenizer, prompts, route)
    paths = routed.decisions.tolist()
    corrected = [n for n, path in enumerate(paths) if routed.correct[n] and not plain.correct[n]
                 and SKIP in path and REPEAT in path and not questions[n].choices]
    if not corrected:
        raise InputError(f"{run.folder}: no sum of {number} questions is corrected with skips and "
                         "repeats")
    hard = min(corrected, key=lambda n: (blocks(paths[n]), -routed.confidence[n]))
    correct = [n for n in range(len(paths)) if routed.correct[n]]
    easy = min(correct, key=lambda n: blocks(paths[n]))
    shown = (("Base model", plain, hard), ("Dr.LLM", routed, hard), ("Dr.LLM", routed, easy))
    words = [q.prompt.removeprefix("Question: ").partition(" Answer:")[0] for q in questions]
    return [{"id": questions[n].id, "title": title, "prompt": words[n],
             "decisions": answers.decisions[n].tolist(), "right": bool(answers.correct[n]),
             "answer": answers.texts[n].strip(" }")} for title, answers, n in shown]


def explained(run, name):
    """What tools.explain prints of one test question."""
    command = ["-m", "tools.explain", "--id", name]
    routers = ["--routers", str((run.folder / "routers.safetensors").resolve())]
    printed = subprocess.run([sys.executable, *command, *routers], cwd=ROOT, encoding="utf-8",
                             stdout=subprocess.PIPE, check=True).stdout
    return [" ".join(("$ .venv/bin/python", *command)), *printed.rstrip().splitlines()]


def imported(run):
    """demo.json of a finished run of `make`."""
    picture = pictured(run)
    num_layers = len(picture[0]["decisions"])
    records = list(run.searches(num_layers).values())
    correct = sum(len(record["correct"]) for record in records) / len(records)
    return {"metrics": run.metrics | {"command": "make"}, "picture": picture,
            "choose": run.settings["choose"], "explained": explained(run, picture[1]["id"]),
            "search": {"training questions": f"{len(records):,}", "searches": summary(records),
                       "correct paths met per question": f"{correct:.0f}",
                       "paths then tried on all questions": str(len(run.candidate_paths))}}


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
        write_json(ASSETS / "demo.json", imported(FinishedRun(args.demo)))
        args.base.insert(0, (FIRST, args.demo))
    bases = {base["name"]: base for base in read_json(ASSETS / "bases.json")["bases"]}
    bases |= {name: brief(name, FinishedRun(Path(run)).metrics) for name, run in args.base}
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
