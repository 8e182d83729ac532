"""The folder of a run: never overwritten without a word, and its files read strictly again.

    config.json     all settings, written when the searches are done
    kinds.json      without --data: the kinds of arithmetic, and how often the model is correct
    paths.json      candidate paths, and which question each of them answers
    chosen.json     the label of each training question
    metrics.json    what the evaluation found

What cannot be a file of a run raises InputError with the file's name: nothing is guessed, and
nothing is removed.
"""
import contextlib
import math
import shutil

from storage.files import (PASSES, InputError, checked_path, locked, read_file, read_json,
                           write_json)
from storage.processes import is_first, wait

NO_MATTER = {"out", "threads", "batch_size", "memory", "device", "torch", "force", "overwrite"}
OF_ONE_RUN = ("metrics.json", "chosen.json", "paths.json", "routers.safetensors", "routers",
              "README.md")
CARD = "library_name: dr-llm-from-scratch"  # is in a README.md that tools/card.py wrote


# ---- the folder ----

def is_run(folder):
    """True if the folder holds a run of train.py, also one that made routers without a search, or
    labels from which a stopped run may still continue."""
    return (folder / "config.json").exists() or (folder / "labels.jsonl").exists()


def flat(settings):
    """Settings with those that are in an object of their own next to the others."""
    objects = [settings, *(value for value in settings.values() if isinstance(value, dict))]
    pairs = [pair for values in objects for pair in values.items()]
    return {key: value for key, value in pairs if not isinstance(value, dict)}


def differing(folder, settings):
    """[(key, its value in the folder's finished run, its value now)] of settings that matter, by
    key; [] if no finished run is there."""
    config = folder / "config.json"
    if not config.exists() or not (folder / "metrics.json").exists():
        return []
    before, now = flat(read_json(config)), flat(settings)
    keys = sorted({*before, *now} - NO_MATTER)
    return [(key, before.get(key), now.get(key)) for key in keys
            if before.get(key) != now.get(key)]


def refuse_other_run(folder, settings, overwrite):
    """InputError, naming the first setting that differs, if the folder has a finished run of other
    settings and may not be overwritten."""
    differences, metrics = differing(folder, settings), folder / "metrics.json"
    if overwrite:
        return
    if metrics.exists() and not (folder / "config.json").exists():
        raise InputError(f"{metrics}: of an evaluation. Choose another --out, or let --overwrite "
                         "replace it")
    if differences:
        key, before, now = differences[0]
        raise InputError(f"{folder / 'config.json'}: a finished run with {key} {before}; this run "
                         f"has {key} {now}. Choose another --out, or let --overwrite remove that "
                         "run's routers, metrics and card")


def replace_other_run(folder, settings):
    """Removes what belongs to a finished run of other settings, and writes these. It is called when
    the labels of this run are there, so that their refusal does not cost the other run. Labels and
    answers stay, since they are checked when they are read."""
    if differing(folder, settings):
        for file in map(folder.joinpath, OF_ONE_RUN):
            if file.is_dir():
                shutil.rmtree(file)
            elif file.name != "README.md" or is_card(file):  # a person's own README.md stays
                file.unlink(missing_ok=True)
    write_json(folder / "config.json", settings)


def is_card(file):
    """True if a README.md is there and tools/card.py wrote it; it may be in any encoding."""
    return file.exists() and CARD.encode() in read_file(file)


def make_folder(folder):
    """Makes a folder for results; InputError for a run, whose metrics they would replace."""
    if is_run(folder):
        raise InputError(f"{folder}: a folder of train.py or label.py; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def kept_to_one_run(folder):
    """While it lasts, no other run may write into the folder. Under torchrun, the first process
    holds the folder for all of its run."""
    with locked(folder) if is_first() else contextlib.nullcontext():
        wait()
        yield


def folder_of(routers):
    """The run folder of router files: the first file's, or the folder above its routers/; None
    without files."""
    if not routers:
        return None
    folder = routers[0] if routers[0].is_dir() else routers[0].parent
    is_inner = folder.resolve().name == "routers" and not is_run(folder)
    return folder.resolve().parent if is_inner else folder


# ---- its files, read again ----

def refusal(file, error):
    """The InputError for a file whose contents raised this error."""
    reason = f"no field {error}" if isinstance(error, KeyError) else error
    return InputError(f"{file}: not what a run wrote, or damaged since: {reason}")


SETTINGS = {  # types of those settings that are read again; "none": of a flag that was not given
    "fingerprint": (str,), "choose": (str,), "score": (str,), "seed": (int,), "seeds": (int,),
    "simulations": (int,), "clusters": (int,), "data": (list,), "test": (list, type(None)),
    "limit": (int, type(None)), "cost_per_layer": (int, float, type(None)), "no_guard": (bool,),
    "skip_bad_rows": (bool,), "search": (dict,), "train": (dict,)}


def read_config(folder):
    """The settings {name: value} of a run; a setting that is there is of its type."""
    file = folder / "config.json"
    settings = read_json(file)
    for key in SETTINGS.keys() & settings.keys():
        if type(settings[key]) not in SETTINGS[key]:
            raise refusal(file, ValueError(f"{key} is {settings[key]!r}"))
    return settings


def write_kinds(folder, fingerprint, kinds):
    """Records the kinds of arithmetic that this model is asked, as read_kinds returns them; None: a
    record of another run is removed."""
    file = folder / "kinds.json"
    if kinds is None:
        file.unlink(missing_ok=True)
    else:
        write_json(file, {"key": fingerprint, "kinds": kinds})


def read_kinds(folder, fingerprint, known):
    """{"seed": of the problems, "shares": {kind: share of correct answers}} of this model, as far
    as the kinds are known ones; None if the folder has no record of it."""
    file = folder / "kinds.json"
    stored = read_result(file, fingerprint, "kinds")
    if stored is None:
        return None
    try:
        shares = {kind: float(stored["shares"][kind]) for kind in known if kind in stored["shares"]}
        return {"seed": int(stored["seed"]), "shares": shares}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise refusal(file, error) from error


def read_metrics(folder):
    """What the evaluation of a run found: routes, and routes per task."""
    file = folder / "metrics.json"
    metrics = read_json(file)
    try:
        groups = {"all questions": metrics["routes"]}
        for name, task in metrics["tasks"].items():
            if task["domain"] not in ("in", "out"):
                raise ValueError(f"domain of {name} is {task['domain']!r}")
            groups[name] = task["routes"]
        for group, routes in groups.items():
            for route, figures in routes.items():
                check_figures(figures, f"{group}, {route}")
        if not isinstance(metrics.get("seeds", []), list):
            raise ValueError(f"seeds are {metrics['seeds']!r}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise refusal(file, error) from error
    return metrics


def check_figures(figures, place):
    """ValueError, KeyError or TypeError unless these are the figures of one route."""
    low, high = figures["interval"]
    numbers = [figures["accuracy"], figures["gain"], figures["layers"], low, high]
    if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
        raise ValueError(f"a figure of {place} is no number: {numbers}")
    if type(figures["n"]) is not int:
        raise ValueError(f"n of {place} is {figures['n']!r}")


def read_chosen(folder, num_layers):
    """{question id: its label} in a folder's chosen.json; {} if there is none."""
    file = folder / "chosen.json"
    if not file.exists():
        return {}
    labels = {}
    for name, path in read_json(file).items():
        try:
            labels[name] = checked_path(path, num_layers)
        except ValueError as error:
            raise refusal(file, f"question {name}: {error}") from error
    return labels


def write_candidate_paths(file, key, paths, correct, frontier):
    """Writes paths.json. key: what it was made of. correct: a list of booleans per question, one
    per path, of which each line in the file has the digits. frontier: [(length, path)]."""
    lines = ["".join("1" if is_correct else "0" for is_correct in row) for row in correct]
    write_json(file, {"key": key, "paths": paths, "correct": lines, "frontier": frontier})


def read_candidate_paths(file, key, num_layers, number):
    """(paths, for each of so many questions whether each path is correct) of a paths.json; None if
    there is none, or one that was made of something else."""
    if not file.exists():
        return None
    stored = read_json(file)
    try:
        if stored["key"] != key:
            return None
        paths = [checked_path(path, num_layers) for path in stored["paths"]]
        lines = stored["correct"]
        if not isinstance(lines, list) or len(lines) != number:
            raise ValueError(f"correct must be a list of {number} lines, one per question")
        for line in lines:
            if not isinstance(line, str) or len(line) != len(paths) or {*line} - {*"01"}:
                raise ValueError(f"line {str(line)[:60]!r} of correct is not {len(paths)} digits "
                                 "of 0 and 1, one per path")
        if not paths:
            raise ValueError("paths is empty")
    except (KeyError, TypeError, ValueError) as error:
        raise candidates_refusal(file, error) from error
    return paths, [[digit == "1" for digit in line] for line in lines]


def candidates_refusal(file, error):
    """The InputError for a damaged paths.json, with the way out: it costs no search."""
    return InputError(f"{refusal(file, error)}. Remove the file, and train.py makes it anew")


def read_fixed_paths(file, fingerprint, num_layers, wanted=True):
    """[(length, path)] of the best fixed paths of a model in a paths.json; [] if they are not
    wanted or, which is printed, not there."""
    if not wanted:
        return []
    if not file.exists():
        print(f"no {file}: the fixed paths are left out")
        return []
    stored = read_json(file)
    try:
        model = stored["key"]["labels"]["model"]
        if model != fingerprint:
            print(f"{file}: of model {model}; this one is {fingerprint}: the fixed paths are left "
                  "out")
            return []
        fixed_paths = []
        for length, path in stored["frontier"]:
            path = checked_path(path, num_layers)
            if length != sum(PASSES[code] for code in path):
                raise ValueError(f"path {list(path)} has the length {length}")
            fixed_paths.append((length, path))
    except (KeyError, TypeError, ValueError) as error:
        raise candidates_refusal(file, f"no frontier of fixed paths ({error!r})") from error
    return fixed_paths


def read_result(file, key, field):
    """A field of a result that was made under this key; None if there is no file, or one that was
    made under another key."""
    if not file.exists():
        return None
    stored = read_json(file)
    try:
        return stored[field] if stored["key"] == key else None
    except KeyError as error:
        raise InputError(f"{refusal(file, error)}. Remove the file to make it anew") from error
