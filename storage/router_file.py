"""routers.safetensors, read strictly: routers of another model are refused, never mis-routed.

The tensors are the routers' weights and, if they have one, their guard; the metadata names their
sizes, the model they belong to, the tasks and questions they learned from, and their training.

    tensors, notes = read(Path("runs/demo/routers.safetensors"), fingerprint, 12, 256)
"""
import json
from pathlib import Path

import safetensors.torch
import torch

from storage.files import InputError, open_tensors, write_whole

SIZES = ("num_layers", "hidden_size", "width", "windows")
GUARD = ("guard_projection", "guard_points", "guard_limits")
LARGEST = 2 ** 16  # width or windows
NEAREST = 3  # the guard measures the distance to the third nearest of its points


def write(file, tensors, notes):
    """Writes tensors {name: tensor} and notes as one safetensors file."""
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()},
                                  {"drllm": json.dumps(notes)})
    write_whole(file, lambda part: part.write_bytes(data))


def read(file, fingerprint, num_layers, hidden_size):
    """({name: tensor}, metadata) of a router file, or of the one in a folder, for a model of this
    fingerprint and these sizes."""
    file = Path(file)
    file = file / "routers.safetensors" if file.is_dir() else file
    with open_tensors(file) as stored:
        text = (stored.metadata() or {}).get("drllm", "{}")
        notes = checked(file, text, fingerprint, [num_layers, hidden_size])
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}
    L, D, width, _ = (notes[name] for name in SIZES)
    wanted = {"w1": (L, D, width), "b1": (L, 1, width), "w2": (L, width, 3), "b2": (L, 1, 3)}
    if GUARD[1] in tensors:
        M, G = (*tensors[GUARD[1]].shape, 0, 0)[1:3]
        wanted |= dict(zip(GUARD, [(D, G), (L, M, G), (L,)]))
        if M < NEAREST:
            raise InputError(f"{file}: a guard of {M} points; {NEAREST} are the least")
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != wanted:
        raise InputError(f"{file}: its tensors do not fit the sizes in its metadata: "
                         f"{sorted(found.items() - wanted.items())} should be "
                         f"{sorted(wanted.items() - found.items())}")
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not tensor.isfinite().all():
            raise InputError(f"{file}: {name} ({tensor.dtype}) is not all finite float32")
    return tensors, notes


def checked(file, text, fingerprint, wanted):
    """What a router file's metadata says; InputError unless it is of routers for this model, which
    is known before anything of the sizes that it names is made."""
    try:
        notes = json.loads(text)
        sizes = [notes.get(name) for name in SIZES]
    except (ValueError, RecursionError, AttributeError) as error:
        raise InputError(f"{file}: not a router file: {error}") from error
    if not all(type(size) is int and 0 < size <= LARGEST for size in sizes):
        raise InputError(f"{file}: not a router file (sizes {sizes} in its metadata)")
    if notes.get("model") != fingerprint or sizes[:2] != wanted:
        raise InputError(f"{file}: these routers belong to model {notes.get('model')}, {sizes[0]} "
                         f"layers of {sizes[1]}; the model given is {fingerprint}, "
                         f"{wanted[0]} layers of {wanted[1]}")
    for key in ("tasks", "questions"):  # the latter by Question.wording
        names = notes.get(key, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{file}: its metadata must list its {key}, got {str(names)[:60]}")
    return {"tasks": []} | notes
