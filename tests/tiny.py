"""Tiny random models and folders for tests: seconds on a CPU, every branch of the decoder.
And the tools to damage such a folder."""
import csv
import json

import torch
from safetensors.torch import load_file, save_file

from checkpoint import config as checkpoint_config
from checkpoint.config import Config, Llama3Rope
from model_llama import Llama

WORDS = ["<unk>", "<eos>", *"0123456789abcdefghijklmnopqrstuvwxyz", "Question:", "Answer:"]
# Every model family as its record says, and further settings that a family may have. A new record
# in checkpoint/config.py is a new row here, and so a case of every test that goes through FAMILIES.
FAMILIES = {
    name: {"model_type": name, "qkv_bias": family.qkv_bias, "qk_norm": family.qk_norm}
    for name, family in checkpoint_config.FAMILIES.items()}
FAMILIES["llama-bias"] = {"qkv_bias": True, "o_bias": True, "mlp_bias": True}
FAMILIES["llama3"] = {"rope_scaling": Llama3Rope(8.0, 1.0, 4.0, 16), "tie_embeddings": True}
FAMILIES["qwen3"]["head_dim"] = 12  # not the hidden size divided by the heads


def tiny_config(family="llama", **changes):
    sizes = {"model_type": "llama", "vocab_size": len(WORDS), "hidden_size": 16,
             "intermediate_size": 24, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2,
             "head_dim": 4, "max_positions": 64}
    return Config(**{**sizes, **FAMILIES[family], **changes})


def tiny_model(seed=0, family="llama", dtype=torch.float64, **changes):
    """A random frozen Llama; weights large enough that every layer matters."""
    model = Llama(tiny_config(family, **changes)).to(dtype)
    rng = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        scale = 0.1 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5
        centre = 1.0 if name.endswith("norm.weight") else 0.0
        parameter.data = centre + scale * torch.randn(
            parameter.shape, generator=rng, dtype=torch.float64).to(dtype)
    if model.config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    return model.eval().requires_grad_(False)


def cos_sin(angles):
    """What rotate() takes for angles (..., T, E/2): (..., T, E) each."""
    both = torch.cat((angles, angles), dim=-1)
    return both.cos(), both.sin()


def save_tiny(folder, model):
    """Writes a tiny Llama as a Hugging Face folder with a word-level tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    views = {name: view.float().contiguous() for name, view in model.named_weights().items()}
    save_file(views, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(hf_settings(model.config)), encoding="utf-8")
    save_tokenizer(folder)
    return folder


def hf_settings(config):
    """What config.json says of a Config."""
    family = checkpoint_config.FAMILIES[config.model_type]
    settings = {
        "architectures": [family.architecture], "model_type": config.model_type,
        "vocab_size": config.vocab_size, "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size, "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads, "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim, "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_norm_eps, "rope_theta": config.rope_theta, "eos_token_id": 1,
        "tie_word_embeddings": config.tie_embeddings, "attention_bias": config.o_bias,
        "mlp_bias": config.mlp_bias, "torch_dtype": "float32", "sliding_window": None}
    if config.rope_scaling:
        settings["rope_scaling"] = {"rope_type": "llama3", **vars(config.rope_scaling)}
    return settings


def save_tokenizer(folder):
    """Writes a tokenizer of the WORDS between blanks."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    number = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(number, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<unk>", "<eos>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}),
                                                  encoding="utf-8")


def write_lines(file, rows):
    """Writes rows as JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_questions(folder, rows, name="q.jsonl"):
    """A file of question rows: JSON lines, or CSV if the name says so. Text and bytes are written
    as they are."""
    file = folder / name
    if isinstance(rows, str | bytes):
        file.write_bytes(rows if isinstance(rows, bytes) else rows.encode())
    elif name.endswith(".csv"):
        with open(file, "w", newline="", encoding="utf-8") as out:
            table = csv.DictWriter(out, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    else:
        write_lines(file, rows)
    return file


def read_lines(file):
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


ABSENT = type("Absent", (), {"__repr__": lambda self: "absent"})()  # deletes the key


def edit_json(file, **changes):
    value = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    value.update(changes)
    file.write_text(json.dumps({k: v for k, v in value.items() if v is not ABSENT}),
                    encoding="utf-8")


def edit_tensors(folder, **changes):
    """Replaces tensors (dots spelt __); ABSENT removes one."""
    tensors = {**load_file(folder / "model.safetensors"),
               **{name.replace("__", "."): value for name, value in changes.items()}}
    save_file({k: v for k, v in tensors.items() if v is not ABSENT}, folder / "model.safetensors")


def shard(folder, shards):
    """Splits model.safetensors: shards maps a file name to the tensor names it holds."""
    tensors = load_file(folder / "model.safetensors")
    for file, names in shards.items():
        save_file({name: tensors[name] for name in names}, folder / file)
    (folder / "model.safetensors").unlink()
    weight_map = {name: file for file, names in shards.items() for name in names}
    edit_json(folder / "model.safetensors.index.json", weight_map=weight_map)
