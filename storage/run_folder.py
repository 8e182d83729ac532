"""The folder of a run: never overwritten without a word, and what others look for in it."""
import shutil

from storage.files import InputError, read_json, write_json

NO_MATTER = {"out", "threads", "batch_size", "device", "torch", "force", "overwrite"}
OF_ONE_RUN = ("metrics.json", "chosen.json", "routers.safetensors", "routers", "README.md")
CARD = "library_name: dr-llm-from-scratch"  # stands in a README.md of tools/card.py


def flat(settings):
    """Settings with those that stand in an object of their own beside the others."""
    inner = [value for value in settings.values() if isinstance(value, dict)]
    return {key: value for one in (settings, *inner) for key, value in one.items()
            if not isinstance(value, dict)}


def differing(folder, settings):
    """[(key, its value in the folder's finished run, here)] of settings that matter; [] if none."""
    config = folder / "config.json"
    if not config.exists() or not (folder / "metrics.json").exists():
        return []
    there, here = flat(read_json(config)), flat(settings)
    return sorted(((key, there.get(key), here.get(key)) for key in {*there, *here} - NO_MATTER
                   if there.get(key) != here.get(key)), key=lambda found: found[0])


def claim(folder, settings, overwrite):
    """Makes sure that the folder has no finished run of other settings, or that it is to be
    overwritten: InputError naming the first setting that differs."""
    differ, metrics = differing(folder, settings), folder / "metrics.json"
    if metrics.exists() and not (folder / "config.json").exists() and not overwrite:
        raise InputError(f"{metrics}: of an evaluation. Choose another --out, or let --overwrite "
                         "replace it")
    if differ and not overwrite:
        key, there, here = differ[0]
        raise InputError(f"{folder / 'config.json'}: a finished run with {key} {there}; this run "
                         f"has {key} {here}. Choose another --out, or let --overwrite remove that "
                         "run's routers, metrics and card")


def take(folder, settings):
    """Removes what belongs to a finished run of other settings, and writes these: when the labels
    of this run are there, so that their refusal does not cost the other run. Labels and menus stay,
    since they are checked where they are read."""
    for file in map(folder.joinpath, OF_ONE_RUN) if differing(folder, settings) else ():
        if file.name != "README.md" or file.exists() and CARD in file.read_text():
            shutil.rmtree(file) if file.is_dir() else file.unlink(True)
    write_json(folder / "config.json", settings)


def make_folder(folder):
    """Makes a folder for results; InputError for a run, whose metrics they would replace."""
    if (folder / "labels.jsonl").exists():
        raise InputError(f"{folder}: a folder of train.py or label.py; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)


def folder_of(routers):
    """The run folder of router files: where the first of them lies, or the folder above its
    routers/; None without files."""
    for file in routers:
        folder = file if file.is_dir() else file.parent
        inner = folder.resolve().name == "routers" and not (folder / "labels.jsonl").exists()
        return folder.resolve().parent if inner else folder


def read_chosen(folder):
    """{question id: its label} in a folder's chosen.json; {} if there is none."""
    file = folder / "chosen.json"
    return read_json(file) if file.exists() else {}


def read_statics(file, num_layers, wanted=True):
    """[(length, path)] of the frontier in a paths.json; [] if it is not wanted or, which is said,
    not there."""
    if not wanted:
        return []
    if not file.exists():
        print(f"no {file}: the static paths are left out")
        return []
    try:
        statics = [(sum(path), tuple(path)) for _, path in read_json(file)["frontier"]]
        for _, path in statics:
            if len(path) != num_layers or not set(path) <= {0, 1, 2}:
                raise ValueError(f"{path} has {len(path)} layers, the model {num_layers}")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file}: no frontier of static paths ({error!r})") from error
    return statics
