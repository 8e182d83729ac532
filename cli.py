"""What every command line of this project shares: refusals, whole files, devices.

A wrong input is the user's to mend, so it ends a command with one line on standard error
and exit code 2, never with a traceback. A file appears under its name only when complete.
"""
import json
import os
import sys
from pathlib import Path

import torch


class InputError(ValueError):
    """An input that cannot be used; the message names the file and both numbers."""


def run(main):
    """Calls main() as a command: bad input is exit code 2, Ctrl-C 130, a closed pipe 0."""
    try:
        main()
        sys.stdout.flush()
    except InputError as error:
        sys.exit(_say(f"error: {' '.join(str(error).split())}", 2))
    except KeyboardInterrupt:
        sys.exit(_say("\nstopped; the same command again goes on where it stopped", 130))
    except BrokenPipeError:  # `| head` closed our output: nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # unreadable file, full disk: the system's own words, and the file
        sys.exit(_say(f"error: {error.filename or 'output'}: {error.strerror}", 2))


def _say(line, code):
    print(line, file=sys.stderr)
    return code


def write_whole(path, write):
    """write(temporary path), then rename: the file is complete or it is not there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, value):
    write_whole(path, lambda part: part.write_text(json.dumps(value, indent=1) + "\n"))


def read_json(path):
    """The object in a JSON file; InputError if it is absent, not UTF-8 or not an object."""
    try:
        value = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def check_device(name):
    """InputError unless tensors can be made and read there."""
    try:
        torch.zeros(1, device=name).tolist()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).split("\n")[0].split(". ")[0][:150]
        raise InputError(f"--device {name}: not usable here: {reason}") from error


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add_model_flags(parser, model):
    """The flags that name a model and where it runs, the same in every command."""
    parser.add_argument("--model", type=Path, default=model, metavar="DIR",
                        help="Hugging Face folder of a Llama or Qwen2/3 model (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="torch device, e.g. cpu or cuda")
    parser.add_argument("--dtype", choices=DTYPES, default=None,
                        help="of the weights; default: the checkpoint's, float32 on a CPU")
