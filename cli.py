"""What every command line of this project shares: refusals, whole files, devices.

A wrong input is the user's to mend, so it ends a command with one line on standard error
and exit code 2, never with a traceback. A file appears under its name only when complete.
"""
import contextlib
import json
import os
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open


class InputError(ValueError):
    """An input that cannot be used; the message names the file and both numbers."""


def run(main):
    """Calls main() as a command: bad input is exit code 2, Ctrl-C 130, a closed pipe 0."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed before we began (`>&-`)
            setattr(sys, name, open(os.devnull, "w"))
    try:
        main()
        sys.stdout.flush()
    except InputError as error:
        sys.exit(_say(f"error: {' '.join(str(error).split())}", 2))
    except KeyboardInterrupt:
        sys.exit(_say("\nstopped; the same command again goes on where it stopped", 130))
    except (torch.OutOfMemoryError, MemoryError):
        sys.exit(_say("error: out of memory; a smaller --batch-size needs less", 2))
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
        with writing(path):
            write(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path):
    """A failure to write (a full disk) is an OSError that names this path, whoever wrote."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


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


@contextlib.contextmanager
def open_tensors(file):
    """A safetensors file, memory-mapped; InputError if it is none or may not be read."""
    try:
        with open(file, "rb"), safe_open(file, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise InputError(f"{file}: unreadable safetensors ({os.path.getsize(file)} bytes): "
                         f"{error}") from error
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}") from error


def check_device(name):
    """InputError unless tensors can be made and read there."""
    try:
        torch.zeros(1, device=name).tolist()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).split("\n")[0].split(". ")[0][:150]
        raise InputError(f"--device {name}: not usable here: {reason}") from error


def check_counts(parser, args, *names):
    """A usage error unless each of these flags, where given, is at least 1."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add_model_flags(parser, model):
    """The flags that name a model and where it runs, the same in every command."""
    parser.add_argument("--model", type=Path, default=model, metavar="DIR",
                        help="folder of a Llama or Qwen2/3 model (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="torch device, e.g. cpu or cuda")
    parser.add_argument("--dtype", choices=DTYPES, default=None,
                        help="of the weights; default: the checkpoint's, float32 on a CPU")
