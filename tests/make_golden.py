"""Makes tests/golden: tiny random model folders, and what transformers computes with them.

The oracle of a path is a model whose list of layers was rebuilt in path order; tokens are greedy,
without a cache. Needs transformers (5.23.0 made the files there); the tests do not.

    python tests/make_golden.py              # every folder
    python tests/make_golden.py qwen3        # this one alone
"""
import argparse
import json
import shutil
from copy import deepcopy
from itertools import count
from pathlib import Path

import torch
from torch.nn import ModuleList
from transformers import AutoConfig, AutoModelForCausalLM

HERE = Path(__file__).resolve().parent / "golden"
SIZES = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
         "bos_token_id": 1, "eos_token_id": 2}
ROPE3 = {  # of four wavelengths one is left alone, one is on the ramp, two are slowed
    "rope_type": "llama3", "rope_theta": 1000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
MODELS = {  # name of the folder: (model_type, further keys of its config.json)
    "llama_tied_rope3": ("llama", {"tie_word_embeddings": True, "rope_parameters": ROPE3,
                                   "head_dim": 8, "rms_norm_eps": 1e-5}),
    "llama_bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen2": ("qwen2", {}),  # biases on queries, keys and values
    "qwen3": ("qwen3", {"head_dim": 10})}
OLD_SPELLING = {"llama_tied_rope3", "llama_bias"}  # config.json as before transformers 5
SHARDS = {"qwen3": "30kB"}  # the largest file of a folder that is to be in several
PATHS = [(1, 1, 1, 1), (1, 0, 2, 1), (2, 2, 2, 2), (0, 0, 1, 2)]  # runs of each layer
LENGTH, NEW = 37, 20  # tokens of a prompt, and of an answer
CLEAR_MARGIN = 1e-3  # between the two largest logits: a thousand times float32's noise here


def random_model(config, seed):
    """A model whose every weight matters: large matrices, norms around 1, biases not 0."""
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    rng = torch.Generator().manual_seed(seed)
    for name, weight in sorted(model.named_parameters()):
        scale = 0.3 if weight.dim() == 1 else 1.2 * weight.shape[-1] ** -0.5
        centre = 1.0 if "norm" in name else 0.0
        weight.copy_(centre + scale * torch.randn(weight.shape, generator=rng))
    return model


def follow(model, layers, path):
    """Rebuilds the model's stack of layers in path order."""
    stack = [layers[i] for i, runs in enumerate(path) for _ in range(runs)]
    model.model.layers = ModuleList(stack)
    model.config.num_hidden_layers = len(stack)
    model.config.layer_types = ["full_attention"] * len(stack)


def greedy(model, tokens):
    """(answers (B, NEW), the smallest distance from a chosen logit to the next)."""
    margin = torch.inf
    for _ in range(NEW):
        best = model(tokens, use_cache=False).logits[:, -1].topk(2)
        margin = min(margin, (best.values[:, 0] - best.values[:, 1]).min().item())
        tokens = torch.cat((tokens, best.indices[:, :1]), dim=1)
    return tokens[:, -NEW:], margin


def golden_numbers(model, tokens):
    """({key: numbers}, margin): logits at the last two prompt tokens, and greedy tokens."""
    layers, smallest = model.model.layers, torch.inf
    gold = {"tokens": tokens.tolist(), "paths": PATHS, "logits": [], "generated": []}
    for path in PATHS:
        follow(model, layers, path)
        logits = model(tokens, use_cache=False).logits[:, -2:].double()
        answers, margin = greedy(model, tokens)
        smallest = min(margin, smallest)
        gold["logits"].append(logits.round(decimals=5).tolist())
        gold["generated"].append(answers.tolist())
    follow(model, layers, PATHS[0])
    return gold, smallest


def without_ties(config):
    """(model, golden numbers) of the first seed whose greedy tokens no rounding can change."""
    for seed in count():
        model = random_model(deepcopy(config), seed)
        rng = torch.Generator().manual_seed(seed)
        tokens = torch.randint(3, SIZES["vocab_size"], (3, LENGTH), generator=rng)
        gold, margin = golden_numbers(model, tokens)
        if margin > CLEAR_MARGIN:
            return model, gold


def use_old_spelling(file):
    """Rewrites a config.json with the keys that folders had before transformers 5."""
    config = json.loads(file.read_text(encoding="utf-8"))
    rope = config.pop("rope_parameters")
    config.pop("layer_types", None)
    config["rope_theta"] = rope.pop("rope_theta")
    config["torch_dtype"] = config.pop("dtype")
    config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    file.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def make(name):
    """Writes one folder and its golden numbers."""
    model_type, keys = MODELS[name]
    model, gold = without_ties(AutoConfig.for_model(model_type, **SIZES, **keys))
    shutil.rmtree(HERE / name, ignore_errors=True)
    model.save_pretrained(HERE / name, max_shard_size=SHARDS.get(name, "1GB"))
    if name in OLD_SPELLING:
        use_old_spelling(HERE / name / "config.json")
    (HERE / f"{name}.gold.json").write_text(json.dumps(gold) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MODELS))
    names = parser.parse_args().names or list(MODELS)
    if unknown := set(names) - set(MODELS):
        parser.error(f"unknown {', '.join(sorted(unknown))}; known are {', '.join(MODELS)}")
    for name in names:
        make(name)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
