"""What every command line of this project shares: refusals, whole files, locks and flags.

A wrong input is the user's to mend, so it ends a command with one line on standard error
and exit code 2, never with a traceback. A file appears under its name only when complete.
"""
import argparse
import contextlib
import fcntl
import glob
import json
import os
import stat
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEMO = Path(__file__).resolve().parent / "demo"
DEMO_MODEL, DEMO_LABEL = DEMO / "model", DEMO / "questions" / "label.jsonl"
DEMO_TEST = [DEMO / "questions" / "test.jsonl", DEMO / "questions" / "ood.jsonl"]
SCORES = ("letter", "likelihood", "likelihood-per-byte")
MOST_BYTES, MOST_JSON = 2 ** 32, 2 ** 24  # of a file that is read whole; of a folder's settings


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
        leave(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        leave("\nstopped; the same command again goes on where it stopped", 130)
    except (torch.OutOfMemoryError, MemoryError):
        leave("error: out of memory; a smaller --batch-size needs less")
    except BrokenPipeError:  # `| head` closed our output: nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # unreadable file, full disk: the system's own words, and the file
        leave(f"error: {error.filename or 'output'}: {error.strerror}")


def leave(line, code=2):
    """Ends the process with a line on standard error."""
    print(line, file=sys.stderr)
    sys.exit(code)


# ---- files ----

@contextlib.contextmanager
def open_file(path):
    """A regular file, open to read bytes; InputError for a pipe, which hangs, or a device."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InputError(f"{path}: a directory, a pipe or a device, not a file")
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error


def read_file(path, most=MOST_BYTES):
    """The bytes of a regular file; InputError if there are more than `most`."""
    with open_file(path) as file:
        if (size := os.path.getsize(path)) > most:
            raise InputError(f"{path}: {size} bytes; the limit is {most}")
        return file.read(most)


def parse_json(data, where):
    """The value that JSON text (or bytes) spells; InputError naming `where` it stands if none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # the library's own words are for programmers
        place = f" at line {error.lineno}, column {error.colno}" if hasattr(error, "lineno") else ""
        raise InputError(f"{where}: not valid JSON{place}") from error


def read_json(path):
    """The object in a JSON file; InputError if it is absent, not JSON or not an object."""
    value = parse_json(read_file(path, MOST_JSON), path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


@contextlib.contextmanager
def open_tensors(path):
    """A safetensors file, memory-mapped; InputError if it is none or may not be read."""
    try:
        with open_file(path), safe_open(path, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise InputError(f"{path}: unreadable safetensors ({os.path.getsize(path)} bytes): "
                         f"{error}") from error


def write_whole(path, write):
    """write(temporary path), then rename: the file is complete or it is not there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):  # left by a killed process?
        with contextlib.suppress(ValueError, OverflowError, PermissionError):  # not ours to remove
            try:
                os.kill(int(part.name.split(".")[-2]), 0)  # signal 0 only asks who is alive
            except ProcessLookupError:
                part.unlink(missing_ok=True)
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


@contextlib.contextmanager
def locked(path):
    """Keeps a file or folder to one process at a time; InputError naming the one that has it. The
    lock lies beside it; the system lifts it however its process ends."""
    side = Path(path).resolve()  # "." has no name of its own
    side = side.with_name(f".{side.name}.lock")
    with writing(path):
        side.parent.mkdir(parents=True, exist_ok=True)
        lock = open(side, "a+b", buffering=0)
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = os.fstat(lock.fileno()).st_nlink  # 0: its owner left between our two steps
        except BlockingIOError:
            free = 0
        if not free:
            lock.seek(0)
            raise InputError(f"{path}: process {lock.read().decode()} is at work on it")
        try:
            with writing(path):
                lock.truncate(0)
                lock.write(b"%d" % os.getpid())
            yield
        finally:
            side.unlink(missing_ok=True)


# ---- flags ----

class _Help(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action):
        plain = action.default is None or action.nargs == 0  # no default, or a switch
        return action.help if plain else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line and whose help shows every default."""

    def __init__(self, **options):
        super().__init__(formatter_class=_Help, **options)

    def error(self, message):
        self.exit(2, f"error: {' '.join(message.split())}\n")


def number(low, high, kind=float):
    """The type of a flag that takes a number from low to high; nan and infinity are none."""
    def convert(text):
        with contextlib.suppress(ValueError):
            if low <= kind(text) <= high:
                return kind(text)
        name = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{text!r} is not {name} from {low} to {high}")
    return convert


count = number(1, 10 ** 9, int)


def add_model_flags(parser, model=DEMO_MODEL):
    """The flags that name a model and where it runs, the same in every command."""
    parser.add_argument("--model", type=Path, default=model, metavar="DIR",
                        help="folder of a Llama or Qwen2/3 model")
    parser.add_argument("--device", default="cpu", help="torch device, e.g. cpu or cuda")
    parser.add_argument("--dtype", choices=DTYPES,
                        help="of the weights; default: the checkpoint's, float32 on a CPU")
    parser.add_argument("--threads", type=number(1, 1024, int), metavar="N",
                        help="of the CPU; default: as many as torch takes")


def add_data_flags(parser, data, batch_size):
    """The flags that name questions and how many are taken, the same in every command."""
    parser.add_argument("--data", nargs="+", default=data, metavar="FILE",
                        help="question files, FILE or TASK=FILE")
    parser.add_argument("--score", choices=SCORES, default=SCORES[0],
                        help="how multiple choice is answered: by the letter written, or by the "
                             "option found likeliest, its log-probability summed or per byte")
    parser.add_argument("--limit", type=count, metavar="N", help="take only the first N questions")
    parser.add_argument("--seed", type=number(0, 2 ** 63 - 1, int), default=0, metavar="N",
                        help="of every random choice: searches, routers, controls")
    parser.add_argument("--skip-bad-rows", action="store_true",
                        help="leave out question rows that cannot be used, instead of stopping")
    parser.add_argument("--batch-size", type=count, default=batch_size, metavar="N",
                        help="questions under way at once")


def use_device(args):
    """Sets --threads and checks --device; of several GPUs each process of torchrun has its own."""
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == "cuda" and "LOCAL_RANK" in os.environ:
        args.device = f"cuda:{os.environ['LOCAL_RANK']}"
    check_device(args.device)


def check_device(name):
    """InputError unless tensors can be made and read there."""
    try:
        torch.zeros(1, device=name).tolist()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).split("\n")[0].split(". ")[0][:150]
        raise InputError(f"--device {name}: not usable here: {reason}") from error
