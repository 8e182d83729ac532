"""Answers that a run has had already, so that the same command continues where it stopped.

A cache of plain values, as JSON has them, by what they are about. It knows no model: whoever asks
names everything that the values depend on (answers.py does it for a model's answers).

    cache = AnswerCache(Path("runs/demo/answers.jsonl"))
    cache.get(["sum", 2, 3], lambda: 5)    # calls it once, in this run and in all later ones
"""
import functools
import hashlib
import json
from pathlib import Path

from storage.files import InputError, parse_json, whole_lines, writing
from storage.processes import is_first, own_part, part_files, wait

ROOT = Path(__file__).resolve().parents[1]


def digest(*values):
    """16 hex digits that name plain values, the same on every machine."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


@functools.cache
def source_hash(*patterns):
    """16 hex digits that name the contents of this project's files of these patterns."""
    contents = []
    for pattern in patterns:
        files = sorted(ROOT.glob(pattern))
        if not files:  # a renamed file would silently count no more
            raise FileNotFoundError(f"{ROOT / pattern}: no such file")
        contents += [[file.name, file.read_text(encoding="utf-8")] for file in files]
    return digest(contents)


class AnswerCache:
    """values: {key: value} of what was made so far, also by earlier runs if there is a file. Each
    process of torchrun appends to a part of its own (processes.py). Nothing is written before
    start_writing(), if writes=False."""

    def __init__(self, file=None, writes=True):
        self.whole, self.values = file, {}
        self.file = own_part(file) if file else None
        self.writes, self.unwritten = writes, []
        for written in [file, *part_files(file)] if file else []:
            # a last line that a crash left unfinished is cut off, if no other process writes it
            lines = whole_lines(written, cut_unfinished=written == self.file)
            for number, line in enumerate(lines, 1):
                key, value = checked_line(line, f"{written}:{number}")
                self.values[key] = value

    def start_writing(self):
        """Writes what was made so far; from now on, every value is written when it is made."""
        self.writes = True
        for key in self.unwritten:
            self.write(key)
        self.unwritten = []

    def write(self, key):
        """Appends a line for the value of this key."""
        value = self.values[key]
        line = json.dumps([key, value, digest(key, value)])
        with writing(self.file), open(self.file, "a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def merge(self):
        """Moves the lines of all parts to the one file, when no process writes any more."""
        wait()
        for part in part_files(self.whole) if is_first() else []:
            with writing(self.whole), open(self.whole, "ab") as stream:
                stream.writelines(line + b"\n" for line in whole_lines(part))
            part.unlink()

    def __contains__(self, about):
        return digest(about) in self.values

    def get(self, about, make):
        """The value that make() returns, or returned before for the same `about`. Both are plain
        values."""
        key = digest(about)
        if key not in self.values:
            self.values[key] = make()
            if not self.writes:
                self.unwritten.append(key)
            elif self.file:
                self.write(key)
        return self.values[key]


def checked_line(line, where):
    """(key, value) of a line of the file. Its third entry is a digest of both, so that no value
    that was damaged or edited is taken for an answer."""
    entries = parse_json(line, where)
    is_entry = isinstance(entries, list) and len(entries) == 3
    if not is_entry or entries[2] != digest(*entries[:2]):
        raise InputError(f"{where}: not a line that the answer cache wrote, or damaged since. "
                         "Remove the file, and the same command answers anew")
    key, value, _ = entries
    if not isinstance(key, str):
        raise InputError(f"{where}: its key is {key!r}, not text")
    return key, value
