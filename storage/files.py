"""Files: read only if they are what they should be, written whole or not at all, one writer each.

Everything that comes from outside is read through here. What cannot be used raises InputError,
which ends a command with its one line (cli.run); a failure to write names the file.
"""
import contextlib
import fcntl
import glob
import json
import math
import os
import stat
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

MOST_BYTES, MOST_JSON = 2 ** 32, 2 ** 24  # of a file that is read whole; of a folder's settings
# How often each decision of a path (0, 1, 2 in files) runs its layer. This is a copy of
# paths.DECISIONS, as files are read without the model's code; tests/test_label.py compares them.
PASSES = (0, 1, 2)


class InputError(ValueError):
    """An input that cannot be used; the message names the file and both numbers."""


def require(holds, otherwise):
    """InputError(otherwise) unless it holds."""
    if not holds:
        raise InputError(otherwise)


# ---- reading ----

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


def whole_lines(path, cut_unfinished=False):
    """The lines of a file, as bytes, that end in a newline; [] if there is none. cut_unfinished:
    what a crash left of a last line is cut off the file."""
    data = read_file(path) if path.exists() else b""
    end = data.rfind(b"\n") + 1
    if cut_unfinished and end < len(data):
        os.truncate(path, end)
    return data[:end].splitlines()


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


def checked_path(value, num_layers):
    """A path of a file as a tuple; ValueError unless it has a decision for each layer."""
    codes = range(len(PASSES))
    if not isinstance(value, list | tuple):
        raise ValueError(f"a path must be a list of {num_layers} numbers, got {str(value)[:60]}")
    if len(value) != num_layers or any(type(code) is not int or code not in codes
                                       for code in value):
        raise ValueError(f"path {list(value)} of {len(value)} layers; the model has {num_layers}, "
                         "each run 0, 1 or 2 times")
    return tuple(value)


@contextlib.contextmanager
def open_tensors(path):
    """A safetensors file, memory-mapped; InputError if it is none or may not be read."""
    try:
        with open_file(path), safe_open(path, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise InputError(f"{path}: unreadable safetensors ({os.path.getsize(path)} bytes): "
                         f"{error}") from error


# ---- writing ----

def write_whole(path, write):
    """write(temporary path), then rename: the file is complete or it is not there. Its permissions
    are those of any new file of this process, whatever the writer thinks of them."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_parts_of_killed_processes(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with writing(path):
            temporary.touch()  # the umask can be read only by setting it, or off a new file
            permissions = stat.S_IMODE(temporary.stat().st_mode)
            write(temporary)
            os.chmod(temporary, permissions)  # safetensors gives 0600
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_parts_of_killed_processes(path):
    """Removes unfinished files of this path whose writer is not alive any more."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        # a name without a number, or a process of another user, is not ours to remove
        with contextlib.suppress(ValueError, OverflowError, PermissionError):
            try:
                os.kill(int(part.name.split(".")[-2]), 0)  # signal 0 only asks who is alive
            except ProcessLookupError:
                part.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path):
    """A failure to write (a full disk) is an OSError that names this path, whoever wrote."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_json(path, value):
    text = json.dumps(value, indent=1) + "\n"
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


@contextlib.contextmanager
def locked(path):
    """Keeps a file or folder to one process at a time; InputError naming the one that has it. The
    lock is a file next to it; the system lifts it however its process ends."""
    side = Path(path).resolve()  # "." has no name to put a lock next to
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


def mapped_zeros(size, folder):
    """float32 zeros of this size in a nameless file of the folder: the system keeps in memory what
    there is room for, and all of it is gone with the process."""
    numbers = math.prod(size)
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder), tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, 4 * numbers)  # a full disk is met here, not later
        return torch.from_file(f"/dev/fd/{file.fileno()}", shared=True, size=numbers).view(size)
