"""routers.safetensors, read strictly: routers of another model are refused, never mis-routed.

The tensors are the routers' weights and, if they have one, their guard; the metadata names their
sizes, the model they belong to, the tasks and questions they learned from, and their training.

    tensors, metadata = read(Path("runs/demo/routers.safetensors"), model.fingerprint(), 12, 256)
"""
import json
from pathlib import Path

import safetensors.torch
import torch

from storage.files import PASSES, InputError, open_tensors, write_whole

SIZES = ("num_layers", "hidden_size", "width", "windows")
GUARD = ("guard_projection", "guard_points", "guard_limits")
# types of the other entries of the metadata, all of which may be absent
METADATA = {"model": (str,), "tasks": (list,), "questions": (list,), "choice": (str,),
            "train": (dict,), "score": (str, type(None)),
            "begin": (str, type(None)), "seed": (int,), "labels": (int,), "label_hash": (str,),
            "source": (str,)}
LARGEST = 2 ** 16  # width or windows
NEAREST = 3  # the guard measures the distance to the third nearest of its points


def write(file, tensors, metadata):
    """Writes tensors {name: tensor} and metadata (an object) as one safetensors file."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(tensors, {"drllm": json.dumps(metadata)})
    write_whole(file, lambda part: part.write_bytes(data))


def read(file, fingerprint, num_layers, hidden_size):
    """({name: tensor}, metadata) of a router file, or of the one in a folder, for a model of this
    fingerprint and these sizes."""
    file = Path(file)
    if file.is_dir():
        file = file / "routers.safetensors"
    with open_tensors(file) as stored:
        entries = stored.metadata() or {}
        text = entries.get("drllm", "{}")
        # before tensors are read: sizes that somebody made up may ask for any amount of memory
        metadata = checked_metadata(file, text, fingerprint, [num_layers, hidden_size])
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}
    check_shapes(file, tensors, metadata)
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not tensor.isfinite().all():
            raise InputError(f"{file}: {name} ({tensor.dtype}) is not all finite float32")
    return tensors, metadata


def check_shapes(file, tensors, metadata):
    """InputError unless the tensors have the shapes that the sizes in the metadata ask for."""
    L, D = metadata["num_layers"], metadata["hidden_size"]
    R, C = metadata["width"], len(PASSES)  # a class for each decision
    wanted = {"w1": (L, D, R), "b1": (L, 1, R),
              "w2": (L, R, C), "b2": (L, 1, C)}
    if "guard_points" in tensors:
        wanted |= guard_shapes(file, tensors["guard_points"], L, D)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != wanted:
        have = sorted(shapes.items() - wanted.items())
        need = sorted(wanted.items() - shapes.items())
        raise InputError(f"{file}: its tensors do not fit the sizes in its metadata: {have} "
                         f"should be {need}")


def guard_shapes(file, points, L, D):
    """{name: shape} of a guard's tensors. Only its points (L, M, G) say how many points and
    dimensions it has; of points in another form these are 0, which no tensor will fit."""
    M, G = points.shape[1:] if points.dim() == 3 else (0, 0)
    if M < NEAREST:
        raise InputError(f"{file}: a guard of {M} points; {NEAREST} are the least")
    return {"guard_projection": (D, G), "guard_points": (L, M, G), "guard_limits": (L,)}


def checked_metadata(file, text, fingerprint, wanted):
    """What a router file's metadata says; InputError unless it is of routers for the model of this
    fingerprint and the wanted [layers, hidden size]."""
    try:
        metadata = json.loads(text)
        sizes = [metadata.get(name) for name in SIZES]
    except (ValueError, RecursionError, AttributeError) as error:
        raise InputError(f"{file}: not a router file: {error}") from error
    if not all(type(size) is int and 0 < size <= LARGEST for size in sizes):
        raise InputError(f"{file}: not a router file (sizes {sizes} in its metadata)")
    model = metadata.get("model")
    if model != fingerprint or sizes[:2] != wanted:
        raise InputError(f"{file}: these routers belong to model {model}, "
                         f"{sizes[0]} layers of {sizes[1]}; the model given is {fingerprint}, "
                         f"{wanted[0]} layers of {wanted[1]}")
    for key in METADATA.keys() & metadata.keys():
        value = metadata[key]
        if type(value) not in METADATA[key]:
            raise InputError(f"{file}: {key} in its metadata is {str(value)[:60]}")
    for key in ("tasks", "questions"):  # the latter by Question.wording
        if not all(isinstance(name, str) for name in metadata.get(key, [])):
            raise InputError(f"{file}: its metadata must list its {key} as text")
    metadata.setdefault("tasks", [])  # the order stays: saved again, the file is the same
    return metadata
