"""Makes tests/golden: tiny random model folders, and what transformers computes with them.

The oracle of a path is a model whose list of layers was rebuilt in path order; tokens are greedy,
without a cache. Needs transformers (5.23.0 made the files there); the tests do not.

    python tests/make_golden.py
"""
import json
import shutil
from copy import deepcopy
from itertools import count
from pathlib import Path

import torch
from torch.nn import ModuleList
from transformers import (LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config,
                          Qwen3ForCausalLM)

HERE = Path(__file__).resolve().parent / "golden"
SIZES = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
         "bos_token_id": 1, "eos_token_id": 2}
ROPE3 = {  # of four wavelengths one is left alone, one lies on the ramp, two are slowed
    "rope_type": "llama3", "rope_theta": 1000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
MODELS = {
    "llama_tied_rope3": (LlamaForCausalLM, LlamaConfig(
        **SIZES, tie_word_embeddings=True, rope_parameters=ROPE3, head_dim=8, rms_norm_eps=1e-5)),
    "llama_bias": (LlamaForCausalLM, LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES)),  # biases on queries, keys and values
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES, head_dim=10)),
}
PATHS = [(1, 1, 1, 1), (1, 0, 2, 1), (2, 2, 2, 2), (0, 0, 1, 2)]  # runs of each layer
LENGTH, NEW = 37, 20  # tokens of a prompt, and of an answer


def random_model(kind, config, seed):
    """A model whose every weight matters: large matrices, norms around 1, biases not 0."""
    model = kind(config).eval().requires_grad_(False)
    rng = torch.Generator().manual_seed(seed)
    for name, weight in sorted(model.named_parameters()):
        scale = 0.3 if weight.dim() == 1 else 1.2 * weight.shape[-1] ** -0.5
        centre = 1.0 if "norm" in name else 0.0
        weight.copy_(centre + scale * torch.randn(weight.shape, generator=rng))
    return model


def follow(model, layers, path):
    """Rebuilds the model's stack of layers in path order."""
    model.model.layers = ModuleList(layers[i] for i, runs in enumerate(path) for _ in range(runs))
    model.config.num_hidden_layers = len(model.model.layers)
    model.config.layer_types = ["full_attention"] * len(model.model.layers)


def greedy(model, tokens):
    """(answers (B, NEW), the smallest distance from a chosen logit to the next)."""
    margin = torch.inf
    for _ in range(NEW):
        best = model(tokens, use_cache=False).logits[:, -1].topk(2)
        margin = min(margin, (best.values[:, 0] - best.values[:, 1]).min().item())
        tokens = torch.cat((tokens, best.indices[:, :1]), dim=1)
    return tokens[:, -NEW:], margin


def numbers(model, tokens):
    """(the golden numbers, margin): logits at the last two prompt tokens, and greedy tokens."""
    layers, smallest = model.model.layers, torch.inf
    gold = {"tokens": tokens.tolist(), "paths": PATHS, "logits": [], "generated": []}
    for path in PATHS:
        follow(model, layers, path)
        logits = model(tokens, use_cache=False).logits[:, -2:]
        answers, margin = greedy(model, tokens)
        smallest = min(margin, smallest)
        gold["logits"].append([[[round(x, 5) for x in row] for row in rows]
                               for rows in logits.tolist()])
        gold["generated"].append(answers.tolist())
    follow(model, layers, PATHS[0])
    return gold, smallest


def old_spelling(file):
    """Rewrites a config.json with the keys that folders had before transformers 5."""
    config = json.loads(file.read_text(encoding="utf-8"))
    rope = config.pop("rope_parameters")
    del config["layer_types"]
    config["rope_theta"], config["torch_dtype"] = rope.pop("rope_theta"), config.pop("dtype")
    config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    file.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def without_ties(kind, config):
    """(model, golden numbers) of the first seed whose greedy tokens no rounding can change."""
    for seed in count():
        model = random_model(kind, deepcopy(config), seed)
        rng = torch.Generator().manual_seed(seed)
        gold, margin = numbers(model, torch.randint(3, SIZES["vocab_size"], (3, LENGTH),
                                                    generator=rng))
        if margin > 1e-3:
            return model, gold


def main():
    for name, (kind, config) in MODELS.items():
        shutil.rmtree(HERE / name, ignore_errors=True)
        model, gold = without_ties(kind, config)
        shards = {"max_shard_size": "30kB"} if name == "qwen3" else {}
        model.save_pretrained(HERE / name, **shards)
        if kind is LlamaForCausalLM:
            old_spelling(HERE / name / "config.json")
        (HERE / f"{name}.gold.json").write_text(json.dumps(gold) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
