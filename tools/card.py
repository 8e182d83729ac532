"""README.md for a run's routers, in the form that a model hub expects, written beside them.

All of it comes from the run's config.json, metrics.json and the metadata of routers.safetensors.
Names of tasks and files are escaped, so that they stay text; folders are not named at all.

    python -m tools.card runs/demo
    python -m tools.card runs/mine --license apache-2.0 --base-model OWNER/NAME
"""
import argparse
import re
from pathlib import Path

import cli
from cli import percent
from questions.loading import task_and_file
from tools.explain import printable
from storage.files import InputError, open_tensors, parse_json, read_json, write_whole

NOTES = ("num_layers", "hidden_size", "model", "labels", "choice", "seed")  # of the routers
CARD = """---
license: "{license}"
{base}tags: [dr-llm, layer-routing, dynamic-depth]
library_name: dr-llm-from-scratch
---

# Dr.LLM routers

A small network per layer reads the prompt and says whether the frozen language model skips the
layer, executes it or repeats it. Here are these networks, not the language model.

- **Model:** {num_layers} layers of {hidden_size}, fingerprint {model}; any other is refused.
- **Labels:** {labels} questions ({names}) from {files}, {simulations} paths tried on each.
- **Choice of label:** {choice}. **Seed:** {seed}; the figures are means over {seeds} seeds.

## Results

{n} test questions, none of them labelled or trained on; `vanilla` is the model as it is, `dr.llm`
these routers. Gains are paired, in points, with a 95% interval; layers are per forward pass.

{routes}

## Limits

{verdict}

{by_task}

## Use

With *Dr.LLM from scratch*, DIR being a folder of the model above:

```sh
python -m tools.ask --model DIR --routers routers.safetensors "What is 2 + 2?"
python evaluate.py --model DIR --routers routers.safetensors --data questions.jsonl --out again
```

## Citation

Heakl, Gubri, Khan, Yun, Oh: *Dr.LLM: Dynamic Layer Routing in LLMs*, 2025,
[arXiv:2510.12773](https://arxiv.org/abs/2510.12773). Trained by an independent implementation.
"""


def safe(text):
    """Markdown that shows a text as it is, in a line or in a table's cell, and does no more."""
    return re.sub(r"([\\`*_\[\]<>&~$#!])", r"\\\1", printable(str(text))).replace("|", "&#124;")


def gain(figures):
    low, high = (percent(end, sign=True) for end in figures["interval"])
    return f"{percent(figures['gain'], sign=True)} [{low}, {high}]"


def row(figures, **first):
    """The cells {column: text} of a route's figures, after those given."""
    return first | {"right %": percent(figures["accuracy"]), "gain": gain(figures),
                    "layers": f"{figures['layers']:.2f}"}


def markdown(rows):
    """A table of rows {column: text}, which have the same columns."""
    lines = [rows[0], ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def verdict(metrics):
    """What may be claimed, in and out of the domain of the labels, with the figures."""
    main = metrics["routes"]["dr.llm"]
    low, high = main["interval"]
    words = [f"The gain over these questions is {gain(main)}: " + (
        "more right answers than the model as it is." if low > 0 else
        "fewer right answers than the model as it is." if high < 0 else
        "none, as these routers execute every layer." if main["execute"] == 1 else
        "none that these questions could tell from chance.")]
    for domain, name in (("in", "In domain"), ("out", "Out of domain (tasks without labels)")):
        gains = [task["routes"]["dr.llm"]["gain"] for task in metrics["tasks"].values()
                 if task["domain"] == domain]
        words.append(f"{name}, by task, it is " + (
            f"{percent(min(gains), True)} to {percent(max(gains), True)}." if gains else
            "unknown: nothing was asked."))
    return " ".join(words)


def card(run, license="other", base_model=None):
    """The text of a finished run's README.md. InputError names the file that is missing, belongs to
    another model or is none of train.py's."""
    file = run / "routers.safetensors"
    for needed in (run / "config.json", file, run / "metrics.json"):  # in the order of their making
        if not needed.exists():
            raise InputError(f"{needed}: no such file, so {run} is no finished run of train.py")
    config, metrics = read_json(run / "config.json"), read_json(run / "metrics.json")
    with open_tensors(file) as stored:
        notes = parse_json((stored.metadata() or {}).get("drllm", "{}"), file)
    try:
        mine, other = config["fingerprint"], notes["model"]
        files = [Path(task_and_file(name)[1]).name for name in config["data"]]
        told = {key: safe(notes[key]) for key in NOTES}
        told |= {"names": ", ".join(map(safe, notes["tasks"])), "seeds": len(metrics["seeds"]),
                 "files": ", ".join(map(safe, files)), "simulations": safe(config["simulations"]),
                 "n": metrics["routes"]["vanilla"]["n"], "verdict": verdict(metrics)}
        routes = [row(one, route=safe(name)) for name, one in metrics["routes"].items()]
        tasks = [row(task["routes"]["dr.llm"], task=safe(name), domain=safe(task["domain"]),
                     n=safe(task["routes"]["dr.llm"]["n"]))
                 for name, task in metrics["tasks"].items()]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{run}: not the files of a finished run: {error!r}") from error
    if mine != other:
        raise InputError(f"{file}: routers of model {other}; {run / 'config.json'} is of {mine}")
    base = f'base_model: "{base_model}"\n' if base_model else ""
    return CARD.format(license=license, base=base, routes=markdown(routes),
                       by_task=markdown(tasks), **told)


def hub_name(text):
    """The type of a flag that goes into the front matter: NAME or OWNER/NAME."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is no name that a hub knows")
    return text


def main(argv=None):
    parser = cli.Parser(__doc__, prog="python -m tools.card")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished train.py")
    parser.add_argument("--license", type=hub_name, default="other", metavar="NAME",
                        help="the hub's name of a licence, e.g. apache-2.0")
    parser.add_argument("--base-model", type=hub_name, metavar="OWNER/NAME",
                        help="the hub's name of the language model")
    parser.add_argument("--overwrite", action="store_true", help="replace a README.md")
    args = parser.parse_args(argv)
    file, text = args.run / "README.md", card(args.run, args.license, args.base_model)
    if file.exists() and not args.overwrite:
        raise InputError(f"{file}: exists; --overwrite replaces it")
    write_whole(file, lambda part: part.write_text(text, encoding="utf-8"))
    print(file)


if __name__ == "__main__":
    cli.run(main)
