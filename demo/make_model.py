"""Trains the demo's base model: a 12-block Llama folder, from random weights.

    python demo/make_model.py --seed 1     about 20 minutes on one core; see model/training.json

Four things make such a small model answer like a large one, mixed and improvable:
1. Stochastic depth: most steps run a random path (skips and repeats, the same for the batch,
   never depending on the question). It stands in for the redundancy that large models
   have between their layers; without it every skip is ruinous and routing has nothing to choose.
2. A curriculum: few operations first.
3. Hints: at some prompt positions the model is also asked for the running value. Training only.
4. It is trained on 2, 3, 4, 6 and 8 serial operations and evaluated on up to 11: the hard levels
   lie beyond its depth, and repeated layers supply the computation they lack.

Muon for the matrices, AdamW for the rest; constant, then linear to zero over the second half.
"""
import argparse
import json
import random
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import make_questions as questions  # noqa: E402

import model_llama  # noqa: E402
from checkpoint.config import Config  # noqa: E402
from storage.files import write_whole  # noqa: E402

IDS = {word: i for i, word in enumerate(questions.WORDS)}
EOS, IGNORE = IDS["<eos>"], -100
CONFIG = Config(model_type="llama", vocab_size=len(IDS), hidden_size=128, intermediate_size=256,
                num_layers=12, num_heads=4, num_kv_heads=2, head_dim=32, max_positions=128)
TRAINED = (2, 3, 4, 6, 8)     # serial operations seen in training
SHORT, LONG = 16, 24          # two batch shapes, so that compiled blocks keep their shapes


# ---- the training stream ----

def stream(seed, steps):
    """Yields (short drafts, long drafts) per step; none is held out for questions."""
    rng = random.Random(seed)
    fresh = lambda make: next(d for d in iter(make, None) if not questions.held_out(d.prompt))
    for step in range(steps):
        hard = min(1.0, step / steps / 0.45)  # curriculum: the share of hard questions grows
        ramp = lambda n: [2.718 ** (-2 * i * (1 - hard)) for i in range(n)]
        sums = rng.choices(TRAINED[:3], ramp(3), k=52)
        mixed = rng.choices(questions.FAR, (1, 1, 1.5, 1.5), k=44) + rng.choices(
            ("same", "largest", "second", "biggest", "smallest"), k=44)
        short = ([fresh(lambda: arithmetic(rng, n)) for n in sums]
                 + [fresh(lambda: other(rng, task)) for task in mixed])
        sums = rng.choices(TRAINED[3:], ramp(2), k=56)
        kinds = rng.choices(("sum1", "sum2", "sum3"), (1, 1.5, 1.5), k=56)
        long = ([fresh(lambda: arithmetic(rng, n)) for n in sums]
                + [fresh(lambda: questions.multiple_choice(rng, kind, kind)) for kind in kinds])
        yield short, long


def arithmetic(rng, operations):
    words = ("compute",) if rng.random() < 0.2 else ()
    return questions.math(rng, 0, operations, words)


def other(rng, task):
    is_far = task in questions.FAR
    return questions.far(rng, task) if is_far else questions.multiple_choice(rng, task, task)


def batch(drafts, length):
    """(tokens, targets, hint targets), each (B, length); IGNORE where nothing is asked."""
    tokens = torch.zeros(len(drafts), length, dtype=torch.long)
    targets, hints = torch.full_like(tokens, IGNORE), torch.full_like(tokens, IGNORE)
    for i, draft in enumerate(drafts):
        ids = [IDS[word] for word in draft.prompt + draft.reply] + [EOS]
        start = len(draft.prompt) - 1
        tokens[i, :len(ids) - 1] = torch.tensor(ids[:-1])
        targets[i, start:len(ids) - 1] = torch.tensor(ids[start + 1:])
        for position, word in draft.hints:
            if position < start:  # the last prompt position already asks for the answer
                hints[i, position] = IDS[word]
    return tokens, targets, hints


def stochastic_path(rng, layers, progress, skips=0.2, repeats=0.4):
    """Decisions (L,) of one step: off for the first 30% of training, in full from 50%."""
    strength = min(1.0, max(0.0, (progress - 0.3) / 0.2))
    skip, repeat = strength * skips * rng.random(), strength * repeats * rng.random()
    return rng.choices((0, 1, 2), (skip, 1 - skip - repeat, repeat), k=layers)


# ---- optimisation ----

def dense_attention(queries, keys, values, mask):
    """model_llama.attention with a fast CPU gradient: short prompts fit in one small matrix."""
    N, H, T, E = queries.shape
    K = keys.shape[1]
    queries = queries.reshape(N, K, H // K * T, E)
    scores = (queries @ keys.mT).float().view(N, H, T, T) * E ** -0.5
    scores = scores + torch.full((T, T), float("-inf"), device=scores.device).triu(1)
    weights = scores.softmax(-1).to(values.dtype)
    return (weights.view(N, K, H // K * T, T) @ values).view(N, H, T, E)


class Muon:
    """Momentum whose update is orthogonalised (Newton-Schulz), for same-shaped matrices at once."""

    def __init__(self, groups, lr):
        self.groups, self.lr = groups, lr
        self.momentum = [torch.zeros(len(group), *group[0].shape, device=group[0].device)
                         for group in groups]

    @torch.no_grad()
    def step(self, scale, decay=0.02):
        for group, momentum in zip(self.groups, self.momentum):
            gradient = torch.stack([torch.zeros_like(p) if p.grad is None else p.grad
                                    for p in group])
            momentum.mul_(0.95).add_(gradient)
            update = orthogonal(gradient + 0.95 * momentum)
            rows, columns = update.shape[1:]
            rate = self.lr * scale
            for parameter, direction in zip(group, update):
                parameter.mul_(1 - rate * decay)
                parameter.add_(direction, alpha=-rate * max(1, rows / columns) ** 0.5)
                parameter.grad = None


def orthogonal(X):
    """Five Newton-Schulz steps towards the nearest orthogonal matrices, (N, rows, columns)."""
    tall = X.shape[1] > X.shape[2]
    X = X.mT if tall else X
    X = (X / (X.flatten(1).norm(dim=1)[:, None, None] + 1e-7)).bfloat16()
    for _ in range(5):
        A = X @ X.mT
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return (X.mT if tall else X).float()


def new_model(seed):
    torch.manual_seed(seed)
    model = model_llama.Llama(CONFIG)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            is_table = name.startswith(("embed", "lm_head"))
            std = 0.02 if is_table else parameter.shape[1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std *= (2 * CONFIG.num_layers) ** -0.5
            torch.nn.init.normal_(parameter, 0, std)
    return model


def optimizers(model):
    blocks = [p for p in model.layers.parameters() if p.dim() == 2]
    shapes = {}
    for parameter in blocks:
        shapes.setdefault(tuple(parameter.shape), []).append(parameter)
    rest = [p for p in model.parameters() if not any(p is q for q in blocks)]
    return Muon(list(shapes.values()), 0.02), torch.optim.AdamW(rest, 3e-3, (0.9, 0.98),
                                                                weight_decay=0.01)


def loss_of(model, drafts, length, path, hint_weight=0.7):
    """Summed loss of a batch: every question counts once, and its hints 0.7 of once."""
    device = model.embed_tokens.weight.device
    tokens, targets, hints = (part.to(device) for part in batch(drafts, length))
    with torch.autocast(device.type, torch.bfloat16):
        hidden, _ = model_llama.prefill(model, tokens, model_llama.FixedRoute(path))
    is_answer = targets != IGNORE
    asked = torch.where(is_answer, targets, hints)
    row, column = (asked != IGNORE).nonzero(as_tuple=True)
    losses = F.cross_entropy(model.head(hidden[row, column]), asked[row, column], reduction="none")
    share = torch.where(is_answer[row, column], 1 / is_answer.sum(1)[row],
                        hint_weight / (hints != IGNORE).sum(1).clamp(min=1)[row])
    return (losses * share).sum()


def train(model, steps, seed, log, compile_blocks=True):
    model_llama.attention = dense_attention
    if compile_blocks:
        torch._dynamo.config.recompile_limit = 64
        for block in model.layers:
            block.compile(dynamic=False)
    muon, adamw = optimizers(model)
    rng, began, recent = random.Random(seed + 1), time.time(), []
    for step, (short, long) in enumerate(stream(seed, steps)):
        progress = step / steps
        scale = min(1, (step + 1) / 100) * min(1.0, 2 * (1 - progress))
        path = stochastic_path(rng, CONFIG.num_layers, progress)
        count = len(short) + len(long)
        for drafts, length in ((short, SHORT), (long, LONG)):
            loss = loss_of(model, drafts, length, path) / count
            loss.backward()
            recent.append(loss.item())
        torch.nn.utils.clip_grad_norm_(adamw.param_groups[0]["params"], 1.0)
        adamw.param_groups[0]["lr"] = 3e-3 * scale
        muon.step(scale)
        adamw.step()
        adamw.zero_grad()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            scores = " ".join(f"{k} {v:.2f}" for k, v in accuracies(model).items())
            log(f"step {step + 1}/{steps}  {time.time() - began:.0f} s  "
                f"loss {2 * sum(recent) / len(recent):.3f}  {scores}")
            recent.clear()


@torch.no_grad()
def accuracies(model, each=100):
    """Share of fresh questions answered correctly, by number of operations or task."""
    rng, scores = random.Random(99), {}
    makers = {f"{n}ops": (lambda n=n: questions.math(rng, 0, n)) for n in (3, 6, 9, 11)}
    makers |= {kind: (lambda kind=kind: questions.multiple_choice(rng, kind, kind))
               for kind in ("second", "smallest", "sum1", "sum3", "sum5", "sum7")}
    makers |= {task: (lambda task=task: questions.far(rng, task)) for task in questions.FAR}
    for name, make in makers.items():
        tokens, targets, _ = (part.to(model.embed_tokens.weight.device)
                              for part in batch([make() for _ in range(each)], 40))
        correct = (model(tokens).argmax(-1) == targets) | (targets == IGNORE)
        scores[name] = correct.all(1).float().mean().item()
    return scores


# ---- the folder ----

def save_folder(model, folder, record):
    """A Hugging Face Llama folder: config.json, model.safetensors, tokenizer.json and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: weight.cpu() for name, weight in model.named_weights().items()}
    write_whole(folder / "model.safetensors",
                lambda part: save_file(tensors, part, {"format": "pt"}))
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
              "vocab_size": CONFIG.vocab_size, "hidden_size": CONFIG.hidden_size,
              "intermediate_size": CONFIG.intermediate_size, "head_dim": CONFIG.head_dim,
              "num_hidden_layers": CONFIG.num_layers, "num_attention_heads": CONFIG.num_heads,
              "num_key_value_heads": CONFIG.num_kv_heads, "rms_norm_eps": CONFIG.rms_norm_eps,
              "rope_theta": CONFIG.rope_theta, "max_position_embeddings": CONFIG.max_positions,
              "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
              "bos_token_id": None, "eos_token_id": EOS, "torch_dtype": "float32"}
    write = lambda name, value: (folder / name).write_text(json.dumps(value, indent=1) + "\n",
                                                           encoding="utf-8")
    write("config.json", config)
    write("generation_config.json", {"eos_token_id": EOS})
    write("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast",
                                    "eos_token": "<eos>", "unk_token": "<unk>"})
    write("training.json", record)
    tokenizer = Tokenizer(models.WordLevel(IDS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<unk>", "<eos>"])
    tokenizer.save(str(folder / "tokenizer.json"))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE / "model")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="torch device, cpu or cuda")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true", help="slower; needs no C++ compiler")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    began, lines = time.time(), []

    def log(line):
        lines.append(line)
        print(line, flush=True)
    model = new_model(args.seed).to(args.device)
    log(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    train(model, args.steps, args.seed, log, not args.no_compile)
    record = {"command": f"python demo/make_model.py --seed {args.seed} --steps {args.steps} "
                         f"--threads {args.threads} --device {args.device}",
              "seconds": round(time.time() - began), "torch": torch.__version__, "log": lines}
    save_folder(model.eval(), args.out, record)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
