"""Tiny random models and folders for tests: seconds on a CPU, every branch of the decoder.
And the tools to damage such a folder."""
import json

import torch
from safetensors.torch import load_file, save_file

from checkpoint.config import Config, Llama3Rope
from model_llama import Llama

WORDS = ["<unk>", "<eos>", *"0123456789abcdefghijklmnopqrstuvwxyz", "Question:", "Answer:"]
FAMILIES = {
    "llama": {},
    "llama-bias": {"qkv_bias": True, "o_bias": True, "mlp_bias": True},
    "llama3": {"rope_scaling": Llama3Rope(8.0, 1.0, 4.0, 16), "tie_embeddings": True},
    "qwen2": {"model_type": "qwen2", "qkv_bias": True},
    "qwen3": {"model_type": "qwen3", "qk_norm": True, "head_dim": 12},
}


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


def save_tiny(folder, model):
    """Writes a tiny Llama as a Hugging Face folder with a word-level tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    folder.mkdir(parents=True, exist_ok=True)
    c = model.config
    views = {name: view.float().contiguous() for name, view in model.named_weights().items()}
    save_file(views, folder / "model.safetensors")
    names = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
    config = {"architectures": [names[c.model_type]], "model_type": c.model_type,
              "vocab_size": c.vocab_size, "hidden_size": c.hidden_size,
              "intermediate_size": c.intermediate_size, "num_hidden_layers": c.num_layers,
              "num_attention_heads": c.num_heads, "num_key_value_heads": c.num_kv_heads,
              "head_dim": c.head_dim, "max_position_embeddings": c.max_positions,
              "rms_norm_eps": c.rms_norm_eps, "rope_theta": c.rope_theta, "eos_token_id": 1,
              "tie_word_embeddings": c.tie_embeddings, "attention_bias": c.o_bias,
              "mlp_bias": c.mlp_bias, "torch_dtype": "float32"}
    if c.rope_scaling:
        config["rope_scaling"] = {"rope_type": "llama3", **vars(c.rope_scaling)}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<unk>", "<eos>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}),
                                                  encoding="utf-8")
    return folder


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
