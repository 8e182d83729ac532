"""labels.jsonl, read strictly: a row that no search can have made is refused by file and line.

Two runs cannot write one file. Under torchrun every process appends to a part of its own,
labels.part-N.jsonl; the first process puts the rows of all parts into the one file.

    read_rows(Path("runs/demo/labels.jsonl"), num_layers=12)
"""
import contextlib
import glob
import json
import os
from datetime import timedelta

import torch

from storage.files import (InputError, locked, parse_json, read_json, whole_lines, write_json,
                         write_whole)

ROW = {"id": str, "task": str, "level": int, "content": str, "default_correct": bool, "length": int,
       "simulations": int, "correct": list, "wrong": list, "decisions": list}


def check_header(file, wanted):
    """Writes the header beside a new labels file; refuses a file made under another one."""
    side = file.with_suffix(".meta.json")
    if not file.exists() and not part_files(file):
        return write_json(side, wanted)
    found = read_json(side)
    flat = lambda header: {**header, **header.get("search", {})}
    for key, here in flat(wanted).items():
        if key != "search" and (there := flat(found).get(key)) != here:
            raise InputError(f"{file}: made with {key} {there}; this run has {key} {here}. Choose "
                             "another --out, or remove the file")


def read_rows(file, num_layers, mend=False):
    """{id: row} of a labels file, paths as tuples; InputError naming the line that is no row of a
    model with so many layers. A question that was edited and searched again has its last row.
    mend: a last line that a crash left unfinished is cut off the file."""
    rows = {}
    for number, line in enumerate(whole_lines(file, mend), 1):
        try:
            row = checked(parse_json(line, "the line"), num_layers)
            if row["content"] == rows.get(row["id"], {}).get("content"):
                raise ValueError(f"id {row['id']!r} stands there twice")
        except (ValueError, KeyError, TypeError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else error
            raise InputError(f"{file}:{number}: not a labels row: {reason}") from error
        rows[row["id"]] = row
    return rows


def checked(row, num_layers):
    """A labels row, paths as tuples; KeyError, TypeError or ValueError if it is none."""
    for key, kind in ROW.items():
        if type(row[key]) is not kind:
            raise ValueError(f"{key} must be of type {kind.__name__}, got {row[key]!r}")
    row["correct"] = [(tuple(path), sure) for path, sure in row["correct"]]
    row["wrong"], row["decisions"] = [*map(tuple, row["wrong"])], tuple(row["decisions"])
    for path in [row["decisions"], *(path for path, _ in row["correct"]), *row["wrong"]]:
        if len(path) != num_layers or any(type(n) is not int or not 0 <= n <= 2 for n in path):
            raise ValueError(f"path {list(path)} of {len(path)} layers; the model has "
                             f"{num_layers}, each run 0, 1 or 2 times")
    for path, sure in row["correct"]:
        if type(sure) is not float or not 0 <= sure <= 1:
            raise ValueError(f"the probability of path {list(path)} is {sure!r}, not in 0..1")
    if row["correct"] and row["decisions"] not in dict(row["correct"]):
        raise ValueError(f"decisions {list(row['decisions'])} are no right path")
    if row["length"] != sum(row["decisions"]):
        raise ValueError(f"length {row['length']} of a path of {sum(row['decisions'])} layers")
    return row


def part_files(file, form="{}"):
    """What several processes wrote of a labels file, one part each; ".{}.lock": their locks."""
    names = f"{glob.escape(file.stem)}.part-*{glob.escape(file.suffix)}"
    return sorted(file.parent.glob(form.format(names)))


def read_all(file, num_layers, mine):
    """{id: row} of a labels file and its parts; only the file written by this process is mended."""
    rows = {}
    for one in [file, *part_files(file)]:
        rows |= read_rows(one, num_layers, mend=one == mine)
    return rows


def merge(file, num_layers, questions):
    """Puts the rows of a finished labels file and its parts in the questions' order, whatever
    process wrote them and when; rows of other questions follow."""
    rows = read_all(file, num_layers, file)
    order = {q.id: n for n, q in enumerate(questions)}
    ids = sorted(rows, key=lambda name: (order.get(name, len(order)), name))
    text = "".join(json.dumps(rows[name]) + "\n" for name in ids)
    if not file.exists() or file.read_text() != text:
        write_whole(file, lambda part: part.write_text(text))
    for part in part_files(file):
        part.unlink()
    for lock in part_files(file, ".{}.lock"):
        with contextlib.suppress(InputError), locked(lock.with_name(lock.name[1:-5])):
            pass  # left by a killed process: to take it and lift it removes it


def process():
    """(number of this process, how many there are) under torchrun; (0, 1) alone."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


@contextlib.contextmanager
def opened(file, wanted, num_layers, questions):
    """(file this process alone may append rows to, {id: row} so far). At the end all rows stand in
    the labels file, in the questions' order. InputError if it was made under another header."""
    rank, world = process()
    mine = file if world == 1 else file.with_name(f"{file.stem}.part-{rank}{file.suffix}")
    with locked(mine if rank else file):
        for part in part_files(file) if world == 1 else ():  # one of torchrun's may be at work yet
            with locked(part):
                pass
        check_header(file, wanted)
        yield mine, read_all(file, num_layers, mine)
        if world > 1:
            torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))
            torch.distributed.barrier()  # every part is complete, however far apart they finish
        if rank == 0:
            merge(file, num_layers, questions)
        if world > 1:
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
