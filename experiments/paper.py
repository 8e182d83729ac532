"""The paper's tables and figures on your own run, one command each, and two further studies.

    table2  search statistics         figure1  accuracy against layers    figure7  losses
    table3  in domain                 figure4  layers used, by task       figure9  labels
    table4  out of domain             figure5  width, depth, windows      ood      guard or not
    table5  other methods             figure6  interpolation p            frontier, fixed paths
    table6  states or embeddings

table2 and figure9 only read labels; table3, table4 and figure4 ask a few routes; the others train
routers or fit methods, row by row. All take some 15 minutes on the demo and two cores. On
SmolLM2-135M and one thread table6 took 22, figure6 9 minutes.

Each prints a table and leaves NAME.json (command, seeds, model, versions) and, if matplotlib is
installed, NAME.png in the output folder. A finished table, or a finished row of one, is not
computed again. figure10 and figure8 are part of figure4 and figure5.

    python -m experiments.paper table3 --run runs/demo
"""
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch

import cli
from cli import aligned, progress_bar
from experiments import pictures
from experiments.lab import Lab, add_run_flags, cells
from experiments.tables import EXPERIMENTS
from storage.files import write_json
from storage.run_folder import read_result

ALIASES = {"figure8": "figure5", "figure10": "figure4"}  # two sides of one experiment


# ---- the commands ----

def print_result(name, result):
    """Title, rows in columns, and the notes of one experiment."""
    print(f"\n{name}: {result['title']}")
    print("\n".join([aligned([cells(row) for row in result["rows"]]), *result.get("notes", [])]))


def perform(lab, name):
    """The result of one experiment, computed or found; prints it and writes JSON and picture."""
    file, began = lab.out / f"{name}.json", time.time()
    result = read_result(file, lab.key, "result")
    if result is None:
        result = EXPERIMENTS[name](lab)
        versions = {"python": platform.python_version(), "torch": torch.__version__,
                    "numpy": np.__version__}
        write_json(file, {"key": lab.key, "command": " ".join(sys.argv), "versions": versions,
                          "seconds": round(time.time() - began, 1), "result": result})
        result = read_result(file, lab.key, "result")  # as another run of the command finds it
    print_result(name, result)
    picture = lab.out / f"{name}.png"
    if not picture.exists() or picture.stat().st_mtime < file.stat().st_mtime:
        pictures.draw(name, result, picture)


def parse_args(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_argument("names", nargs="+", choices=[*EXPERIMENTS, *ALIASES, "all"], metavar="NAME",
                        help=f"{', '.join(EXPERIMENTS)}, or all")
    add_run_flags(parser, batch_size=512)
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: DIR/paper of --run")
    parser.add_argument("--seeds", type=cli.count, default=3, help="routers trained per row")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    cli.use_device(args)
    lab = Lab(args)
    names = EXPERIMENTS if "all" in args.names else [ALIASES.get(n, n) for n in args.names]
    for name in progress_bar(names, unit="table", disable=len(names) == 1):
        perform(lab, name)
    print(f"\n{lab.out}: " + " ".join(f"{name}.json" for name in names))


if __name__ == "__main__":
    cli.run(main)
