"""labels.jsonl, read strictly: a row that no search can have made is refused by file and line.

Two runs cannot write one file. Under torchrun every process appends to its own part,
labels.part-N.jsonl; the first process puts the rows of all parts into the one file.

    read_rows(Path("runs/demo/labels.jsonl"), num_layers=12)
"""
import contextlib
import json

from storage.files import (PASSES, InputError, checked_path, locked, parse_json, read_json,
                           whole_lines, write_json, write_whole)
from storage.processes import own_part, part_files, process, wait

ROW = {"id": str, "task": str, "level": int, "content": str, "default_correct": bool, "length": int,
       "simulations": int, "correct": list, "wrong": list, "decisions": list}


def check_header(file, header, defaults):
    """Writes the header next to a new labels file; refuses a file made under another one. defaults:
    of the search's settings, for those that a file does not name since it is older than they. Rows
    that other code searched are kept, since they took hours, and that is printed."""
    side = file.with_suffix(".meta.json")
    if not file.exists() and not part_files(file):
        return write_json(side, header)
    if not side.exists():  # somebody's file of another kind, or labels of nobody knows which search
        raise InputError(f"{file}: not a labels file, or without its {side.name}, which says how "
                         "it was made. Choose another --out")
    ours, theirs = flat_header(header), {**flat_header(defaults), **flat_header(read_header(side))}
    source, source_of_file = ours.pop("source", None), theirs.pop("source", None)
    if source_of_file not in (None, source):
        print(f"{file}: searched before the search's code changed; remove the file to search again")
    for key in [*ours, *sorted(theirs.keys() - ours.keys())]:
        if ours.get(key) != theirs.get(key):
            raise InputError(f"{file}: made with {key} {theirs.get(key)}; this run has {key} "
                             f"{ours.get(key)}. Choose another --out, or remove the file")


def read_header(side):
    """The header of a labels file, whose settings of the search are an object of their own."""
    header = read_json(side)
    settings = header.get("search")
    if not isinstance(settings, dict):
        raise InputError(f"{side}: search must be an object, got {settings!r}. Remove it and the "
                         "labels file to search anew")
    return header


def flat_header(header):
    """A header with the settings of its search next to the other entries."""
    rest = {key: value for key, value in header.items() if key != "search"}
    return rest | header["search"]


def read_rows(file, num_layers, cut_unfinished=False):
    """{id: row} of a labels file, paths as tuples; InputError naming the line that is no row of a
    model with so many layers. A question that was edited and searched again has several rows, of
    which the last counts. cut_unfinished: what a crash left of a last line is cut off the file."""
    rows = {}
    for number, line in enumerate(whole_lines(file, cut_unfinished), 1):
        try:
            row = checked(parse_json(line, "the line"), num_layers)
            if row["id"] in rows and rows[row["id"]]["content"] == row["content"]:
                raise ValueError(f"id {row['id']!r} is there twice")
        except (ValueError, KeyError, TypeError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else error
            raise InputError(f"{file}:{number}: not a labels row: {reason}") from error
        rows[row["id"]] = row
    return rows


def checked(row, num_layers):
    """A labels row, paths as tuples; KeyError, TypeError or ValueError if it is none."""
    if not isinstance(row, dict):
        raise TypeError(f"it is no object: {str(row)[:60]}")
    for key, kind in ROW.items():
        if type(row[key]) is not kind:
            raise ValueError(f"{key} must be of type {kind.__name__}, got {row[key]!r}")
    row["decisions"] = checked_path(row["decisions"], num_layers)
    row["correct"] = [(checked_path(path, num_layers), sure) for path, sure in row["correct"]]
    row["wrong"] = [checked_path(path, num_layers) for path in row["wrong"]]
    for path, sure in row["correct"]:
        if type(sure) is not float or not 0 <= sure <= 1:
            raise ValueError(f"the probability of path {list(path)} is {sure!r}, not in 0..1")
    # a question that no path answers has the default path for its label; any other a correct one
    if row["correct"] and row["decisions"] not in dict(row["correct"]):
        raise ValueError(f"decisions {list(row['decisions'])} are no correct path")
    default = tuple(PASSES.index(1) for _ in range(num_layers))
    if row["default_correct"] != (default in dict(row["correct"])):
        raise ValueError(f"default_correct is {row['default_correct']}; its correct paths say "
                         f"{not row['default_correct']}")
    length = sum(PASSES[code] for code in row["decisions"])
    if row["length"] != length:
        raise ValueError(f"length {row['length']} of a path of {length} layers")
    return row


def read_all(file, num_layers, mine):
    """{id: row} of a labels file and its parts. Only the file that this process writes has its
    unfinished last line cut off: another process may still be writing its file."""
    rows = {}
    for written in [file, *part_files(file)]:
        rows |= read_rows(written, num_layers, cut_unfinished=written == mine)
    return rows


def merge(file, rows, ids):
    """Writes the rows {id: row} of a finished labels file in the order of the ids, whatever process
    made them and when; rows of other questions follow. The parts are removed."""
    others = sorted(rows.keys() - {*ids})
    in_order = [name for name in dict.fromkeys([*ids, *others]) if name in rows]
    data = "".join(json.dumps(rows[name]) + "\n" for name in in_order).encode()
    if not file.exists() or file.read_bytes() != data:
        write_whole(file, lambda part: part.write_bytes(data))
    for part in part_files(file):
        part.unlink()
    for lock in part_files(file, ".{}.lock"):
        part = lock.with_name(lock.name.removeprefix(".").removesuffix(".lock"))
        # a lock that a killed process left is removed by taking and lifting it; a living one stays
        with contextlib.suppress(InputError), locked(part):
            pass


@contextlib.contextmanager
def opened(file, header, num_layers, ids, defaults):
    """(file this process alone may append rows to, {id: row} so far), to which the caller adds the
    rows that it makes. At the end the rows of all processes are in both, in the order of the ids.
    InputError if the file was made under another header."""
    rank, world = process()
    mine = own_part(file)
    # the first process also keeps others from the file that all parts will be merged into
    with locked(mine if rank else file):
        if world == 1:
            for part in part_files(file):  # refused if a process of a torchrun is still at work
                with locked(part):
                    pass
        check_header(file, header, defaults)
        rows = read_all(file, num_layers, mine)
        yield mine, rows
        if world == 1:
            merge(file, rows, ids)
            return
        wait()  # every part is complete
        if rank == 0:
            rows |= read_all(file, num_layers, mine)
            merge(file, rows, ids)
        wait()  # the file is complete
        if rank:
            rows |= read_rows(file, num_layers)
