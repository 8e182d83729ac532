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


def whole_lines(path, mend=False):
    """The lines of a file, as bytes, that end in a newline; [] if there is none. mend: what a crash
    left of a last line is cut off the file."""
    data = read_file(path) if path.exists() else b""
    end = data.rfind(b"\n") + 1
    if mend and end < len(data):
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


def mapped_zeros(size, folder):
    """float32 zeros of this size in a nameless file of the folder: the system keeps in memory what
    there is room for, and all of it is gone with the process."""
    numbers = math.prod(size)
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder), tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, 4 * numbers)  # a full disk is met here, not later
        return torch.from_file(f"/dev/fd/{file.fileno()}", shared=True, size=numbers).view(size)
