"""The weights of a Hugging Face folder, from safetensors files only: a pickle is a program.

    list_tensors("demo/model")["model.norm.weight"]
"""
import os
from pathlib import Path

import torch

from storage.files import InputError, open_tensors, read_json, require

FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names of the dtypes that weights may have
HEAD = "lm_head.weight"
TABLES = {HEAD, "model.embed_tokens.weight"}  # which some folders tie: one tensor for both
ROTARY_CONSTANT = "rotary_emb.inv_freq"  # old exports store it in every layer


def tensor_files(folder):
    """The safetensors files of a folder, shards in order."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    require(index.exists(), f"{folder}: no {single.name} and no {index.name}")
    shards = read_json(index).get("weight_map")
    require(isinstance(shards, dict) and shards, f"{index}: no weight_map")
    names = set()
    for shard in shards.values():
        require(isinstance(shard, str) and shard, f"{index}: shard {shard!r} is no file name")
        # by its text alone: a hub's cache has links in the folder, which lead out of it
        name = os.path.normpath(shard)
        require(not os.path.isabs(name) and Path(name).parts[:1] != ("..",),
                f"{index}: shard {shard!r} lies outside the folder")
        names.add(name)
    return [folder / name for name in sorted(names)]


def list_tensors(folder):
    """{name: (file, shape)} of every tensor of a folder; only the files' headers are read."""
    places = {}
    for file in tensor_files(Path(folder)):
        with open_tensors(file) as tensors:
            for name in tensors.keys():
                if name.endswith(ROTARY_CONSTANT):
                    continue
                header = tensors.get_slice(name)
                dtype = header.get_dtype()
                require(dtype in FLOATS, f"{file}: {name} has dtype {dtype}; weights are one of "
                        f"{', '.join(FLOATS)}")
                if name in places:
                    raise InputError(f"{file}: {name} is also in {places[name][0]}")
                places[name] = file, tuple(header.get_shape())
    return places


def read_weights(folder, config, shapes, device, dtype):
    """The model's state dict from a folder: names as stored, without a leading "model.".

    shapes: {name: shape} that the model wants. InputError names what is missing, unexpected or
    mis-shaped, before a tensor is read, and then what is not finite. If config ties the two
    tables and one is absent, or both are equal, they are the same tensor."""
    places = list_tensors(folder)
    _check_names(folder, config, places, shapes)
    weights = {}
    for stored_name, (file, _) in places.items():
        with open_tensors(file) as tensors:  # one at a time: a mapped file counts as memory
            weight = tensors.get_tensor(stored_name).to(device, dtype, copy=True)
        require(weight.isfinite().all(), f"{file}: {stored_name} holds NaN or infinite values")
        weights[stored_name] = weight
    tables = [weights[name] for name in TABLES if name in weights]
    if config.tie_embeddings and (len(tables) == 1 or torch.equal(*tables)):
        weights |= dict.fromkeys(TABLES, tables[0])
    return {name.removeprefix("model."): tensor for name, tensor in weights.items()}


def _check_names(folder, config, places, shapes):
    """InputError unless the folder has the tensors that the model wants, and no others."""
    wanted = {}
    for name, shape in shapes.items():
        stored_name = name if name == HEAD else f"model.{name}"
        wanted[stored_name] = tuple(shape)
    missing = wanted.keys() - places.keys()
    if config.tie_embeddings and len(missing & TABLES) == 1:
        missing -= TABLES  # the other table is there, for both
    unexpected = sorted(places.keys() - wanted.keys())
    require(not missing and not unexpected,
            f"{folder}: {len(missing)} tensors missing {sorted(missing)[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}")
    for name, (file, shape) in places.items():
        require(shape == wanted[name],
                f"{file}: {name} has shape {shape}; config.json says {wanted[name]}")
