"""The weights of a Hugging Face folder, from safetensors files only: a pickle is a program.

    list_tensors("demo/model")["model.norm.weight"]
"""
from pathlib import Path

import torch

from storage.files import open_tensors, read_json, require

FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names of the dtypes that weights may have
HEAD = "lm_head.weight"
TABLES = {HEAD, "model.embed_tokens.weight"}  # which some folders tie: one tensor for both


def tensor_files(folder):
    """The safetensors files of a folder, shards in order."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    require(index.exists(), f"{folder}: no {single.name} and no {index.name}")
    shards = read_json(index).get("weight_map")
    require(isinstance(shards, dict) and shards, f"{index}: no weight_map")
    for name in shards.values():
        require(isinstance(name, str) and Path(name).name == name,
                 f"{index}: shard {name!r} lies outside the folder")
    return [folder / name for name in sorted(set(shards.values()))]


def list_tensors(folder):
    """{name: (file, shape)} of every tensor of a folder; only the files' headers are read."""
    found = {}
    for file in tensor_files(Path(folder)):
        with open_tensors(file) as tensors:
            for name in tensors.keys():
                if name.endswith("rotary_emb.inv_freq"):  # a constant that old exports store
                    continue
                piece = tensors.get_slice(name)
                require(piece.get_dtype() in FLOATS, f"{file}: {name} has dtype "
                         f"{piece.get_dtype()}; weights are one of {', '.join(FLOATS)}")
                require(name not in found,
                         f"{file}: {name} also stands in {found.get(name, [0])[0]}")
                found[name] = file, tuple(piece.get_shape())
    return found


def read_weights(folder, config, shapes, device, dtype):
    """The model's state dict from a folder: names as stored, without a leading "model.".

    shapes: {name: shape} that the model wants. InputError names what is missing, unexpected or
    mis-shaped, before a tensor is read, and then what is not finite. Where config ties the two
    tables and one is absent, or both are equal, they are the same tensor."""
    wanted = {name if name == HEAD else f"model.{name}": tuple(shapes[name]) for name in shapes}
    found, weights = list_tensors(folder), {}
    spare = TABLES if config.tie_embeddings and found.keys() & TABLES else set()
    missing, extra = sorted(wanted.keys() - found - spare), sorted(found.keys() - wanted)
    require(not missing and not extra, f"{folder}: {len(missing)} tensors missing {missing[:3]}, "
             f"{len(extra)} unexpected {extra[:3]}")
    for name, (file, shape) in found.items():
        require(shape == wanted[name],
                 f"{file}: {name} has shape {shape}; config.json says {wanted[name]}")
    for name, (file, _) in found.items():
        with open_tensors(file) as tensors:  # one at a time: what is mapped counts as memory
            weights[name] = tensors.get_tensor(name).to(device, dtype, copy=True)
        require(weights[name].isfinite().all(), f"{file}: {name} holds NaN or infinite values")
    tables = [weights[name] for name in TABLES if name in weights]
    if config.tie_embeddings and (len(tables) == 1 or torch.equal(*tables)):
        weights |= dict.fromkeys(TABLES, tables[0])
    return {name.removeprefix("model."): tensor for name, tensor in weights.items()}
