"""README.md for a run's routers, in the form that a model hub expects, written next to them.

It is made of the run's metrics.json and the metadata of routers.safetensors. Names of tasks are
escaped, so that they stay text; files and folders are not named.

    python -m tools.card runs/demo
    python -m tools.card runs/mine --license apache-2.0 --base-model OWNER/NAME
"""
import json
import re
from pathlib import Path

import cli
from cli import percent, with_interval
from storage.files import InputError, open_tensors, parse_json, write_whole
from storage.run_folder import read_metrics
from tools.explain import printable

CARD = """---
license: {license}
{base}tags: [dr-llm, layer-routing, dynamic-depth]
library_name: dr-llm-from-scratch
---

# Dr.LLM routers

A small network per layer reads the prompt and decides whether the frozen language model skips the
layer, executes it or repeats it. This repository has these networks, not the language model:
{num_layers} layers of {hidden_size}, fingerprint {model}; any other model is refused.

They learned from {labels} questions ({tasks}), labelled by the choice {choice}. The first of
{seeds} seeds is here; accuracies are means over all of them. {n} test questions, none of them
labelled or trained on; gains over the base model (vanilla) are paired, in points, with a 95%
interval; layers are per forward pass.

{routes}

If the interval of a gain includes 0, these questions could not tell it from chance.

{by_task}

```sh
python -m tools.ask --model DIR --routers routers.safetensors "What is 2 + 2?"
```

Method: Heakl, Gubri, Khan, Yun, Oh: *Dr.LLM: Dynamic Layer Routing in LLMs*, 2025,
[arXiv:2510.12773](https://arxiv.org/abs/2510.12773). Trained by *Dr.LLM from scratch*, an
independent implementation.
"""


def escaped(text):
    """Markdown that shows a text as it is, in a line or in a table's cell, and does no more."""
    return re.sub(r"([\\`*_\[\]<>&~$#!])", r"\\\1", printable(str(text))).replace("|", "&#124;")


def table(rows):
    """Markdown of rows [(first cells {column: text}, figures of a route)]."""
    cells = [first | {"correct %": percent(figures["accuracy"]),
                      "gain": with_interval(figures["gain"], figures["interval"]),
                      "layers": f"{figures['layers']:.2f}"} for first, figures in rows]
    lines = [cells[0], ["---"] * len(cells[0]), *(line.values() for line in cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def card(run, license="other", base_model=None):
    """The text of a finished run's README.md. InputError names the file that is missing, or the
    run if it is none of train.py's."""
    file = run / "routers.safetensors"
    for needed in (file, run / "metrics.json"):  # in the order in which train.py writes them
        if not needed.exists():
            raise InputError(f"{needed}: no such file, so {run} is no finished run of train.py")
    metrics = read_metrics(run)
    with open_tensors(file) as stored:
        metadata = parse_json((stored.metadata() or {}).get("drllm", "{}"), file)
    try:
        parts = {key: escaped(metadata[key])
                 for key in ("num_layers", "hidden_size", "model", "labels", "choice")}
        parts["tasks"] = ", ".join(map(escaped, metadata["tasks"]))
        parts["seeds"], parts["n"] = len(metrics["seeds"]), metrics["routes"]["vanilla"]["n"]
        parts["routes"] = table([({"route": escaped(name)}, figures)
                                 for name, figures in metrics["routes"].items()])
        parts["by_task"] = table([({"task": escaped(name), "domain": escaped(task["domain"])},
                                   task["routes"]["dr.llm"])
                                  for name, task in metrics["tasks"].items()])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{run}: not the files of a finished run: {error!r}") from error
    base = f"base_model: {json.dumps(base_model)}\n" if base_model else ""  # JSON is YAML too
    return CARD.format(license=json.dumps(license), base=base, **parts)


def main(argv=None):
    parser = cli.Parser(__doc__, prog="python -m tools.card")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished train.py")
    parser.add_argument("--license", default="other", metavar="NAME",
                        help="the hub's name of a licence, e.g. apache-2.0")
    parser.add_argument("--base-model", metavar="OWNER/NAME",
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
