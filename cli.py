"""What every command line of this project shares: how it ends, what it prints, and its flags.

Wrong input ends a command with one line on standard error and exit code 2, never with a traceback.
"""
import argparse
import contextlib
import os
import re
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from storage.files import InputError
from storage.processes import is_first

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEMO = Path(__file__).resolve().parent / "demo"
DEMO_MODEL, DEMO_LABEL = DEMO / "model", DEMO / "questions" / "label.jsonl"
DEMO_TEST = [DEMO / "questions" / "test.jsonl", DEMO / "questions" / "ood.jsonl"]
SCORES = ("letter", "likelihood", "likelihood-per-byte")


def run(main):
    """Calls main() as a command: bad input is exit code 2, Ctrl-C 130, a closed pipe 0."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed before we began (`>&-`)
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        if hasattr(getattr(sys, name), "reconfigure"):  # what the terminal lacks is shown as \xb1
            getattr(sys, name).reconfigure(errors="backslashreplace")
    # numbers below 1e-38 count as zero: on some processors they make training six times slower
    torch.set_flush_denormal(True)
    if not is_first():  # one process of several speaks
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    try:
        main()
        sys.stdout.flush()
    except InputError as error:
        leave(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        leave("\nstopped; the same command again continues where it stopped", 130)
    except (RuntimeError, MemoryError) as error:
        if not is_lack_of_memory(error):
            raise
        leave("error: out of memory; a smaller --batch-size needs less")
    except BrokenPipeError:  # `| head` closed our output: nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # unreadable file, full disk: the system's own words, and the file
        leave(f"error: {error.filename or 'output'}: {error.strerror or error}")


def is_lack_of_memory(error):
    """torch has an error class for a GPU's memory; for the computer's it raises a RuntimeError."""
    has_own_class = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return has_own_class or "can't allocate memory" in str(error)


def leave(line, code=2):
    """Ends the process with a line on standard error."""
    print(line, file=sys.stderr)
    sys.exit(code)


# ---- text: numbers, tables, progress ----

def percent(value, sign=False):
    """percent(0.123, sign=True) is "+12.3"."""
    return f"{100 * value:{'+' if sign else ''}.1f}"


def bounds(interval, sign=True):
    """bounds((0.003, 0.021)) is "[+0.3, +2.1]", in points."""
    low, high = interval
    return f"[{percent(low, sign)}, {percent(high, sign)}]"


def with_interval(gain, interval):
    """with_interval(0.012, (0.003, 0.021)) is "+1.2 [+0.3, +2.1]", in points."""
    return f"{percent(gain, sign=True)} {bounds(interval)}"


def aligned(rows):
    """A table as text: rows {column: text} below a header, the first column flush left."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns]
    for row in rows:
        lines.append([row.get(column, "") for column in columns])
    first_width, *widths = [max(map(len, cells)) for cells in zip(*lines)]
    padded = []
    for name, *figures in lines:
        cells = [name.ljust(first_width), *map(str.rjust, figures, widths)]
        padded.append("  ".join(cells).rstrip())
    return "\n".join(padded)


EVERY = 30  # seconds between two lines of progress in a log file


class Lines:
    """A file for tqdm that makes a line of each of its states, without padding."""

    def write(self, text):
        if text := text.strip():  # tqdm begins with \r, and clears with blanks
            print(text, file=sys.stderr)

    def flush(self):
        sys.stderr.flush()


def progress_bar(*args, leave=False, **options):
    """tqdm(*args, **options): a bar on a terminal, a line every EVERY seconds elsewhere, where work
    that is done before the first line is due shows nothing."""
    if sys.stderr.isatty():
        return tqdm(*args, leave=leave, **options)
    return tqdm(*args, **options, file=Lines(), mininterval=EVERY, delay=EVERY, leave=False)


# ---- flags ----

# A value, not a flag: argparse itself takes "-1e-3" and "-inf" for flags.
NEGATIVE_NUMBER = re.compile(r"-(\.?\d|inf|nan)", re.IGNORECASE)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows each default as one would type it, where there is one."""

    def _get_help_string(self, action):
        default = action.default
        is_switch = action.nargs == 0
        if is_switch or default in (None, "", []):
            return action.help
        if isinstance(default, list):
            typed = " ".join(map(str, default)).replace("%", "%%")
            return f"{action.help} (default: {typed})"
        return super()._get_help_string(action)

    def _get_default_metavar_for_optional(self, action):
        if action.type is count:
            return "N"
        return super()._get_default_metavar_for_optional(action)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line. Its help shows every default, and of a file's docstring
    the first line and the examples, which are indented."""

    def __init__(self, doc="", **options):
        first, *rest = doc.split("\n")
        examples = "\n".join(line for line in rest if line.startswith("    "))
        super().__init__(description=first, epilog=examples, formatter_class=_Help, **options)
        self.register("type", Path, file_or_folder)  # what type=Path stands for in every command
        self._negative_number_matcher = NEGATIVE_NUMBER

    def error(self, message):
        self.exit(2, f"error: {' '.join(message.split())}\n")


def number(low, high, kind=float):
    """The type of a flag that takes a number from low to high; nan and infinity are none."""
    def convert(text):
        with contextlib.suppress(ValueError):
            value = kind(text)
            if low <= value <= high:
                return value
        name = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{text!r} is not {name} from {low} to {high}")
    return convert


count = number(1, 10 ** 9, int)


def gigabytes(text):
    """The type of a flag that takes GB: bytes."""
    return int(1e9 * number(0, 1e6)(text))


def file_or_folder(text):
    """The type of a flag that names one. Path("") would be the current folder, which an unset
    variable of a shell script does not mean."""
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty name; the current folder is .")
    return Path(text)


def names(text):
    """The type of a flag that takes names between commas: each of them once, without blanks."""
    parts = [part.strip() for part in text.split(",")]
    if not any(parts):
        raise argparse.ArgumentTypeError(f"{text!r} has no name in it")
    return list(dict.fromkeys(filter(None, parts)))


class Gather(argparse.Action):
    """Takes the values of a flag that is given several times together; argparse keeps the last
    ones only."""

    def __call__(self, parser, namespace, values, option_string=None):
        so_far = getattr(namespace, self.dest)
        if so_far is self.default:
            so_far = []
        setattr(namespace, self.dest, [*so_far, *values])


def add_model_flags(parser, model=DEMO_MODEL):
    """The flags that name a model and where it runs, the same in every command."""
    parser.add_argument("--model", type=Path, default=model, metavar="DIR",
                        help="folder of a Llama or Qwen2/3 model")
    parser.add_argument("--device", default="cpu", help="torch device, e.g. cpu or cuda")
    parser.add_argument("--dtype", choices=DTYPES,
                        help="of the weights; default: the checkpoint's, float32 on a CPU")
    parser.add_argument("--threads", type=number(1, 1024, int), metavar="N",
                        help="of the CPU; default: as many as torch takes")


def add_memory_flag(parser):
    """The flag of the commands that search."""
    parser.add_argument("--memory", type=gigabytes, metavar="GB",
                        help="for hidden states that the paths of a question share; default: half "
                             "of the device's free memory")


def add_data_flags(parser, data, batch_size):
    """The flags that name questions and how many are taken, the same in every command."""
    parser.add_argument("--data", nargs="+", action=Gather, default=data, metavar="FILE",
                        help="question files, FILE or TASK=FILE")
    parser.add_argument("--score", choices=SCORES, default=SCORES[0],
                        help="how multiple choice is answered: by the letter written, or by the "
                             "option found likeliest, its log-probability summed or per byte")
    parser.add_argument("--limit", type=count, help="take only the first N questions")
    parser.add_argument("--seed", type=number(0, 2 ** 63 - 1, int), default=0, metavar="N",
                        help="of every random choice: searches, routers, controls")
    parser.add_argument("--skip-bad-rows", action="store_true",
                        help="leave out question rows that cannot be used, instead of stopping")
    parser.add_argument("--batch-size", type=count, default=batch_size,
                        help="questions under way at once")


def add_own_model_flags(parser):
    """The flags that somebody's own model may need, the same in every command that asks it."""
    parser.add_argument("--problems", type=count, default=50,
                        help="without --data: arithmetic problems per kind, for training and for "
                             "the test each")
    parser.add_argument("--begin", metavar="TEXT",
                        help="text that begins every answer, after the chat template, e.g. "
                             "'\\boxed{' or 'Answer: '")


def asks_arithmetic(args):
    """Whether arithmetic is made for the model: no --data is given, and it is not the demo's."""
    # files that are given are text and the defaults are Paths, so that they are never equal
    no_data = args.data in ([DEMO_LABEL], DEMO_TEST)
    return no_data and args.model.resolve() != DEMO_MODEL


def free_memory(device):
    """Bytes of memory that a device has free: of a GPU, or of the machine, in which processes of
    torchrun have an equal part each."""
    if torch.device(device).type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    free = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with contextlib.suppress(OSError, ValueError, TypeError):  # Linux knows it better
        found = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text("ascii"))
        free.append(int(found[1]) * 1024)
    with contextlib.suppress(OSError, ValueError, TypeError):  # a container may have less
        most, used, kinds = (Path(f"/sys/fs/cgroup/memory.{name}").read_text("ascii")
                             for name in ("max", "current", "stat"))
        read_files = re.search(r"inactive_file (\d+)", kinds)[1]  # which give way to programs
        free.append(max(0, int(most) - int(used) + int(read_files)))
    return min(free) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def use_device(args):
    """Sets --threads and checks --device. Processes of torchrun share the cores of the CPU, and of
    several GPUs each has its own."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    threads = args.threads
    if threads is None and processes > 1:
        threads = max(1, (os.cpu_count() or 1) // processes)
    if threads is not None:
        torch.set_num_threads(threads)
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
