"""How fast, how large: every claim about speed is a ratio measured in one run of this command.

The sides of a comparison are timed in turn, A B A B, on random weights of a published shape; the
tables show medians over the repeats and, in brackets, the spread from the fastest to the slowest.
transformers is compared where it is installed (the very same weights), and never needed.

    python -m extras.bench decoder --shape demo
    python -m extras.bench all --shape 3b --device cuda --dtype bfloat16 --out bench.json
"""
import argparse
import ctypes
import datetime
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

import cli
from answers import Prompt, prepare
from drllm import Routers
from hf_folder import Config, Llama3Rope
from label import DEMO_LABEL, DEMO_MODEL, search_all
from mcts import SearchConfig, edits
from model_llama import (Llama, checkpoint_views, decode, fixed, generate, load_model,
                         load_tokenizer, prefill)
from reuse import REUSE_BYTES, Prefixes
from tables import aligned
from tasks import Question, load_all
from train import DEMO_TEST, Recorder, TrainConfig, feature_store, train_routers

try:
    import transformers
except ImportError:
    transformers = None

SHAPES = {
    "demo": Config("llama", 56, 128, 256, 12, 4, 2, 32, 4096),
    "0.5b": Config("qwen2", 151936, 896, 4864, 24, 14, 2, 64, 32768, rope_theta=1e6,
                   qkv_bias=True, tie_embeddings=True),
    "1b": Config("llama", 128256, 2048, 8192, 16, 32, 8, 64, 131072, rope_theta=5e5,
                 tie_embeddings=True, rope_scaling=Llama3Rope(32.0, 1.0, 4.0, 8192)),
    "3b": Config("llama", 128256, 3072, 8192, 28, 24, 8, 128, 131072, rope_theta=5e5,
                 tie_embeddings=True, rope_scaling=Llama3Rope(32.0, 1.0, 4.0, 8192)),
}


# ---- measuring ----

def seconds(run, device):
    """Wall time of run(), the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def interleaved(sides, repeats, device, name):
    """{side: [seconds, ...]} of callables, one warm-up each and then in turn, A B A B."""
    times = {side: [] for side in sides}
    for repeat in tqdm(range(repeats + 1), desc=name, leave=False):
        for side, run in sides.items():
            took = seconds(run, device)
            if repeat:
                times[side].append(took)
    return times


def paired(above, below):
    """'median [lowest, highest]' of the ratios of measurements taken side by side."""
    ratios = [a / b for a, b in zip(above, below)]
    return f"{median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]"


def peak_memory(run, device):
    """Bytes that run() needed at its peak, beyond what was held before; None if unknown here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    if not Path("/proc/self/clear_refs").exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # memory freed earlier goes back, so that it counts again
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak that Linux keeps
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(field):
    """Bytes of this process, now (VmRSS) or at the peak (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(field + ":")[1].split()[0]) * 1024


def read_bandwidth(device):
    """Bytes per second at which this machine reads memory: the best of two plain reductions."""
    numbers = torch.ones((2 ** 28 if device.type == "cuda" else 2 ** 26), device=device)
    sides = {"sum": numbers.sum, "dot": partial(torch.dot, numbers, numbers)}
    times = interleaved(sides, 7, device, "bandwidth")
    return numbers.numel() * 4 / min(median(times[side]) for side in sides)


# ---- random models ----

def random_model(config, device, dtype, seed=0):
    """A Llama of random weights, frozen."""
    with torch.device("meta"):
        model = Llama(config).to(dtype)
    model.to_empty(device=device)
    if config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data.fill_(1.0)
        else:
            parameter.data.normal_(std=0.02)
    return model.eval().requires_grad_(False)


def transformers_model(model):
    """The same weights, not a copy of them, as the transformers library runs them."""
    c, settings = model.config, {}
    if c.rope_scaling:
        settings["rope_scaling"] = {"rope_type": "llama3", **vars(c.rope_scaling)}
    config = transformers.AutoConfig.for_model(
        c.model_type, vocab_size=c.vocab_size, hidden_size=c.hidden_size,
        intermediate_size=c.intermediate_size, num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads, num_key_value_heads=c.num_kv_heads, head_dim=c.head_dim,
        max_position_embeddings=c.max_positions, rms_norm_eps=c.rms_norm_eps,
        rope_theta=c.rope_theta, tie_word_embeddings=c.tie_embeddings, pad_token_id=0,
        bos_token_id=None, eos_token_id=None, **settings)
    weight = model.embed_tokens.weight
    with torch.device(weight.device):
        theirs = transformers.AutoModelForCausalLM.from_config(config, dtype=weight.dtype)
    views = checkpoint_views(model)
    views.setdefault("lm_head.weight", weight.data)
    theirs.load_state_dict(views, assign=True)
    return theirs.eval().requires_grad_(False)


def random_prompts(bench, rows, length):
    rng = random.Random(0)
    return [[rng.randrange(2, bench.config.vocab_size) for _ in range(length)]
            for _ in range(rows)]


def random_path(config, share, rng):
    """A legal path that skips (share below 0) or repeats this share of the layers."""
    path = (1,) * config.num_layers
    wanted, count = round(abs(share) * config.num_layers), 0 if share < 0 else 2
    while path.count(count) < wanted:
        choices = [p for p in edits(path) if p.count(count) > path.count(count)]
        if not choices:  # no legal edit is left: begin again
            path = (1,) * config.num_layers
            continue
        path = rng.choice(choices)
    return path


# ---- 1. the decoder beside transformers ----

def agreeing(ours, theirs):
    """How many leading tokens are the same."""
    different = [i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b]
    return different[0] if different else len(ours)


@torch.inference_mode()
def kernels_run(bench, batch):
    """A callable: one token's matrix products and attention, which no decoder in eager PyTorch can
    do without, and nothing else."""
    model, c = bench.model, bench.config
    zeros = partial(torch.zeros, device=bench.device, dtype=bench.weight.dtype)
    hidden, inner = zeros(batch, 1, c.hidden_size), zeros(batch, 1, c.intermediate_size)
    mixed = zeros(batch, 1, c.num_heads * c.head_dim)
    queries = zeros(batch, c.num_kv_heads, c.num_heads // c.num_kv_heads, c.head_dim)
    keys = zeros(batch, c.num_kv_heads, bench.args.prompt, c.head_dim)

    @torch.inference_mode()
    def run():
        for block in model.layers:
            block.qkv_proj(hidden)
            torch.nn.functional.scaled_dot_product_attention(queries, keys, keys)
            block.o_proj(mixed)
            block.gate_up_proj(hidden)
            block.down_proj(inner)
        model.lm_head(hidden)
    return run


def decoder(bench):
    """Prefill and decode, by batch size; decode is the time of all tokens less that of one. limit:
    reading the weights once. kernels: the matrix products and the attention alone."""
    T, new = bench.args.prompt, bench.args.new_tokens
    model, rows = bench.model, []
    limit = bench.token_bytes() / read_bandwidth(bench.device)
    theirs = transformers_model(model) if transformers else None
    for batch in bench.args.batches:
        prompts = random_prompts(bench, batch, T)
        tokens = torch.tensor(prompts, device=bench.device)
        ours = lambda n: generate(model, prompts, max_new_tokens=n).tokens
        other = lambda n: theirs.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=n, min_new_tokens=n,
            do_sample=False)[:, T:].tolist()
        sides = {("ours", 1): partial(ours, 1), ("ours", new): partial(ours, new)}
        if theirs:
            sides |= {("theirs", 1): partial(other, 1), ("theirs", new): partial(other, new)}
        times = interleaved(sides, bench.args.repeats, bench.device, f"decoder, batch {batch}")
        per_token = {who: [(b - a) / (new - 1) for a, b in zip(times[who, 1], times[who, new])]
                     for who, n in sides if n == 1}
        for what, ms in (("prefill", {who: times[who, 1] for who in per_token}),
                         ("decode", per_token)):
            row = {"what": f"{what}, {T if what == 'prefill' else 1} x {batch} tokens",
                   "ours ms": 1e3 * median(ms["ours"])}
            if theirs:
                row |= {"transformers ms": 1e3 * median(ms["theirs"]),
                        "times as fast": paired(ms["theirs"], ms["ours"])}
            if what == "decode":
                kernels = interleaved({"kernels": kernels_run(bench, batch)},
                                      10 * bench.args.repeats, bench.device, "kernels")
                row["kernels ms"] = 1e3 * median(kernels["kernels"])
                row |= {"limit ms": 1e3 * limit, "of limit": limit / median(ms["ours"])}
                if theirs:
                    row["same tokens"] = f"{agreeing(ours(new)[0], other(new)[0])}/{new}"
            rows.append(row)
    return rows


# ---- 2. skips ----

def skips(bench):
    """Time of a path over that of the plain model, beside its share of the layers run; the time
    of the embedding and the head alone is taken off both."""
    rng, rows = random.Random(0), []
    for batch, apart in ((1, False), (8, False), (8, True)):
        tokens = torch.tensor(random_prompts(bench, batch, bench.args.prompt), device=bench.device)
        L = bench.config.num_layers
        paths = {"plain": (1,) * L, "none": (0,) * L}
        for share in (-0.125, -0.25, -0.5, 0.25):
            some = [random_path(bench.config, share, rng) for _ in range(batch)]
            paths[share] = some if apart else some[0]
        for what, make in (("prefill", prefill_run), ("decode", decode_run)):
            sides = {name: make(bench, tokens, path) for name, path in paths.items()}
            name = f"{what} {batch}"
            times = interleaved(sides, bench.args.repeats, bench.device, name)
            for share in (s for s in paths if isinstance(s, float)):
                layers = torch.tensor(paths[share]).float().sum(-1).mean().item()
                net = [[b - a for a, b in zip(times["none"], times[side])]
                       for side in (share, "plain")]
                rows.append({"what": what, "rows": f"{batch}, own paths" if apart else str(batch),
                             "layers": f"{layers:.0f}/{L}", "share of layers": layers / L,
                             "share of time": paired(*net),
                             "whole call": median(times[share]) / median(times["plain"])})
    return rows


def prefill_run(bench, tokens, path):
    """A callable: the prompt along a path, and the logits of its last token."""
    model, route = bench.model, fixed(path)

    @torch.inference_mode()
    def run():
        hidden, _ = prefill(model, tokens, route, capacity=tokens.shape[1] + 1)
        return model.head(hidden[:, -1])
    return run


@torch.inference_mode()
def decode_run(bench, tokens, path, new=16):
    """A callable: `new` tokens after the prompt, from the same filled cache each time."""
    model, T = bench.model, tokens.shape[1]
    _, cache = prefill(model, tokens, fixed(path), capacity=T + new)

    @torch.inference_mode()
    def run():
        cache.lengths = [T] * len(tokens)
        for _ in range(new):
            model.head(decode(model, tokens[:, :1], cache)).argmax(-1)
    return run


# ---- 3. routers ----

def random_routers(bench):
    """Routers with a gate, which always execute: they cost what trained ones cost."""
    c, rng = bench.config, torch.Generator().manual_seed(0)
    built = Routers(c.num_layers, c.hidden_size)
    built.b2.data[..., 1] = 1e6
    built.set_gate(torch.randn(c.hidden_size, 32, generator=rng),
                   torch.randn(c.num_layers, 512, 32, generator=rng),
                   torch.full((c.num_layers,), 1e9))
    return built.to(bench.device).requires_grad_(False)


def routers(bench):
    """1,000 tokens with routers over the same path fixed in advance. The routers are asked on the
    prompt only, so the difference of two prefills over a whole generation is the sharper figure."""
    new, rows = bench.args.long, []
    route, path = random_routers(bench).route, fixed((1,) * bench.config.num_layers)
    for batch in (1, 8):
        prompts = random_prompts(bench, batch, bench.args.prompt)
        run = lambda route, n: generate(bench.model, prompts, route, n)
        once = {"routed": partial(run, route, 1), "fixed": partial(run, path, 1)}
        first = interleaved(once, 3 * bench.args.repeats, bench.device, f"routers, batch {batch}")
        many = {"routed": partial(run, route, new), "fixed": partial(run, path, new)}
        whole = interleaved(many, bench.args.repeats, bench.device, f"{new} tokens, batch {batch}")
        cost = median(a - b for a, b in zip(first["routed"], first["fixed"]))
        rows.append({"what": f"batch {batch}", "prompt": bench.args.prompt, "tokens": new,
                     "fixed s": median(whole["fixed"]), "routed s": median(whole["routed"]),
                     "routed over fixed": paired(whole["routed"], whole["fixed"]),
                     "routers ms": 1e3 * cost, "% of all": 100 * cost / median(whole["fixed"])})
    return rows


# ---- 4. labels ----

@torch.inference_mode()
def without_cache(model, prompt, path, new, stop_ids=()):
    """The same greedy tokens the slow way: one question, everything computed again per token."""
    ids = list(prompt)
    for _ in range(new):
        tokens = torch.tensor([ids], device=model.embed_tokens.weight.device)
        ids.append(int(model(tokens, fixed(path))[0, -1].argmax()))
        if ids[-1] in stop_ids:
            break
    return ids[len(prompt):]


class Numbers:
    """A tokenizer's stand-in where weights are random: token ids as words."""
    stop_ids = ()

    def decode(self, ids):
        return " ".join(f"t{i}" for i in ids)


def questions_to_label(bench):
    """(model, tokenizer, prompts): the demo's, or random ones with four tokens to answer, every
    other one of which the default path answers."""
    if bench.args.shape == "demo":
        model, tokenizer = load_model(DEMO_MODEL, bench.device), load_tokenizer(DEMO_MODEL)
        asked = load_all([DEMO_LABEL])[:bench.args.questions]
        return model, tokenizer, prepare(asked, tokenizer, model)[0]
    tokenizer = Numbers()
    ids = random_prompts(bench, bench.args.questions, bench.args.question_tokens)
    made = generate(bench.model, ids, None, 4).tokens
    gold = [tokens if n % 2 else tokens[::-1] for n, tokens in enumerate(made)]
    question = lambda n: Question(f"q{n}", "random", 0, "", tokenizer.decode(gold[n]), (), "?", 4)
    return bench.model, tokenizer, [Prompt(question(n), tuple(ids[n]), tuple(gold[n]))
                                    for n in range(len(ids))]


def labels(bench):
    """Paths tried per second by whole searches: in lockstep, with and without the states that paths
    share and the guessed answer, over the same paths one at a time, all computed anew per token.
    blocks: run on a prompt per path."""
    model, tokenizer, prompts = questions_to_label(bench)
    config = SearchConfig(stop_when_repaired=False)
    found, work = [], {}

    def lockstep(size, limit):
        prefixes = work[size, limit] = Prefixes(limit)
        found[:] = search_all(model, tokenizer, prompts, config, 0, size, None, prefixes)

    lockstep(len(prompts), REUSE_BYTES)
    paths = [(prompt, path) for prompt, result, _ in found for path in result.rewards]
    few = random.Random(0).sample(paths, min(len(paths), bench.args.slow_paths))
    sides = {"one at a time, no cache": lambda: [
        without_cache(model, prompt.ids, path, prompt.question.budget, tokenizer.stop_ids)
        for prompt, path in few]}
    sizes = [size for size in bench.args.together if size <= len(prompts)]
    sides |= {f"{size} together{', nothing shared' * (not limit)}": partial(lockstep, size, limit)
              for size in sizes for limit in (0, REUSE_BYTES)}
    times = interleaved(sides, bench.args.repeats, bench.device, "labels")
    slow = [took / len(few) for took in times["one at a time, no cache"]]
    rows = []
    for side, took in times.items():
        each = [t / (len(few) if side.startswith("one") else len(paths)) for t in took]
        rows.append({"what": side, "paths/s": 1 / median(each),
                     "times as fast": paired(slow, each)})
    for row, prefixes in zip(rows[1:], [work[size, limit] for size in sizes
                                        for limit in (0, REUSE_BYTES)]):
        row["blocks"] = prefixes.computed / len(paths)
        row["GB kept"] = prefixes.bytes / 1e9
    rows[0]["blocks"] = sum(sum(path) for _, path in paths) / len(paths)
    return rows + (processes(bench) if bench.args.shape == "demo" else [])


def processes(bench):
    """label.py on the demo's questions by 1 and 2 processes of one thread, start-up included."""
    root, rows, took = Path(__file__).parents[1], [], {1: [], 2: []}
    for _ in range(bench.args.repeats):
        for number in took:
            with tempfile.TemporaryDirectory() as folder:
                command = ["-m", "torch.distributed.run", "--nproc-per-node", str(number),
                           "--master-port", str(29000 + os.getpid() % 1000), str(root / "label.py"),
                           "--limit", str(bench.args.questions), "--out", f"{folder}/labels.jsonl"]
                call = partial(subprocess.run, [sys.executable, *command], check=True,
                               capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
                took[number].append(seconds(call, torch.device("cpu")))
    for number, times in took.items():
        paths = bench.args.questions * 51
        rows.append({"what": f"label.py, {number} process" + "es" * (number > 1),
                     "paths/s": paths / median(times), "times as fast": paired(took[1], times)})
    return rows


# ---- 5. router training ----

def training(bench):
    """Time per step on synthetic features, times the steps of 25 epochs: growing with examples
    and layers. The paper reports 4 GPU hours for all of it."""
    config, c, rows = TrainConfig(), bench.config, []
    few = bench.args.train_examples
    for examples, layers, mapped in ((few // 2, c.num_layers, False), (few, c.num_layers, False),
                                     (few, c.num_layers // 2, False), (few, c.num_layers, True)):
        rng = torch.Generator().manual_seed(0)
        pooled = feature_store((examples, layers, config.windows, c.hidden_size), Path("."),
                               1e-9 if mapped else 1e9).normal_(generator=rng)
        counts = torch.full((examples,), config.windows)
        marks = torch.randint(0, 3, (examples, layers), generator=rng)
        short = replace(config, epochs=max(1, bench.args.steps * config.batch // examples))
        steps = short.epochs * -(-examples // config.batch)
        run = lambda: train_routers(pooled, counts, marks, 0, short, bench.device)
        memory = peak_memory(run, bench.device)  # the warm-up
        took = seconds(run, bench.device)
        full = config.epochs * bench.args.examples / config.batch
        where = ", on disk" if mapped else ""
        rows.append({"what": f"{examples} examples, {layers} layers{where}", "steps": steps,
                     "ms per step": 1e3 * took / steps,
                     f"min for {bench.args.examples} x {config.epochs}": took / steps * full / 60,
                     "peak GB": memory and memory / 1e9,
                     "features GB": pooled.numel() * 4 * bench.args.examples / examples / 1e9})
    return rows


def features(bench):
    """The one pass that gives the features, in batches of 8 prompts, over the plain prefill."""
    c, windows = bench.config, TrainConfig().windows
    tokens = torch.tensor(random_prompts(bench, 8, bench.args.prompt), device=bench.device)
    out = torch.zeros(8, c.num_layers, windows, c.hidden_size)
    recorder = Recorder(torch.ones(8, c.num_layers, dtype=torch.long), windows, out)
    sides = {"recorded": partial(prefill, bench.model, tokens, recorder),
             "plain": partial(prefill, bench.model, tokens)}
    with torch.inference_mode():
        times = interleaved(sides, bench.args.repeats, bench.device, "features")
    each = median(times["recorded"]) / 8
    return [{"what": f"{bench.args.prompt} tokens", "ms per example": 1e3 * each,
             f"min for {bench.args.examples}": each * bench.args.examples / 60,
             "recorded over plain": paired(times["recorded"], times["plain"])}]


# ---- 6. the lossless mode ----

def draft(bench):
    """Greedy answers drafted along a path, over the plain ones, and how many drafts were accepted.
    Random weights say what drafting costs (along the model's own path everything is accepted) but
    not how often a skipping path is right; --routers shows that on the demo's test questions."""
    model, rng = bench.model, random.Random(0)
    prompts, stop_ids, new = random_prompts(bench, 1, bench.args.prompt), (), bench.args.new_tokens
    routes = {"its own path": fixed((1,) * bench.config.num_layers),
              "skipping a quarter": fixed(random_path(bench.config, -0.25, rng)),
              "skipping half": fixed(random_path(bench.config, -0.5, rng))}
    if bench.args.routers:
        tokenizer, model = load_tokenizer(DEMO_MODEL), load_model(DEMO_MODEL, bench.device)
        questions, _ = prepare(load_all(DEMO_TEST)[:bench.args.questions], tokenizer, model)
        prompts, stop_ids = [list(prompt.ids) for prompt in questions], tokenizer.stop_ids
        routes = {"routers": Routers.load(bench.args.routers, model).route}
    answer = lambda **how: [generate(model, [ids], None, new, stop_ids, **how) for ids in prompts]
    plain, rows = answer(), []
    for name, route in routes.items():
        sides = {k: partial(answer, draft=route, draft_tokens=k) for k in (1, 2, 4, 8)}
        times = interleaved({0: answer} | sides, bench.args.repeats, bench.device, name)
        for k, side in sides.items():
            made = side()
            drafted = sum(int(one.drafted) for one in made)
            rows.append({"what": name, "k": k, "times as fast": paired(times[0], times[k]),
                         "accepted": sum(int(one.accepted) for one in made) / max(1, drafted),
                         "layers, of plain": sum(int(one.layers_executed) for one in made)
                         / sum(int(one.layers_executed) for one in plain),
                         "same answers": f"{sum(a.tokens == b.tokens for a, b in zip(made, plain))}"
                                         f"/{len(made)}"})
    return rows


# ---- 7. memory ----

def memory(bench):
    """Peak bytes beyond the weights: of generating 8 tokens, plain, with routers and drafted, and
    of searches in lockstep that share the states of their paths or not."""
    T, rows = bench.args.prompt, []
    small = replace(bench.config, num_layers=bench.config.num_layers // 2)
    half = Llama.__new__(Llama)  # the first half of the same layers
    torch.nn.Module.__init__(half)
    half.config, half.layers = small, bench.model.layers[:small.num_layers]
    for name in ("embed_tokens", "norm", "lm_head"):
        setattr(half, name, getattr(bench.model, name))
    for what, model, batch, length in (
            ("as is", bench.model, 1, T), ("prompt x 2", bench.model, 1, 2 * T),
            ("prompt x 4", bench.model, 1, 4 * T), ("batch x 4", bench.model, 4, T),
            ("batch x 8", bench.model, 8, T), ("half the layers", half, 1, T)):
        prompts = random_prompts(bench, batch, length)
        run = lambda: generate(model, prompts, max_new_tokens=8)
        run()
        peak = peak_memory(run, bench.device)
        c = model.config
        cache = 2 * c.num_layers * batch * (length + 8) * c.num_kv_heads * c.head_dim
        rows.append({"what": what, "tokens": f"{batch} x {length}",
                     "peak MB": peak and peak / 1e6,
                     "cache MB": cache * bench.weight.element_size() / 1e6,
                     "weights MB": sum(p.numel() * p.element_size()
                                       for p in model.parameters()) / 1e6})
    prompts, full = random_prompts(bench, 1, T), fixed((1,) * bench.config.num_layers)
    for what, how in (("routers", {"route": random_routers(bench).route}),
                      ("drafted", {"draft": full})):
        run = partial(generate, bench.model, prompts, max_new_tokens=8, **how)
        run()
        peak = peak_memory(run, bench.device)
        rows.append({"what": what, "tokens": f"1 x {T}", "peak MB": peak and peak / 1e6})
    return rows + memory_of_searches(bench)


def memory_of_searches(bench):
    """Rows of a quarter and of all of the questions searched together."""
    model, tokenizer, prompts = questions_to_label(bench)
    longest, config, rows = max(len(p.ids) for p in prompts), SearchConfig(), []
    for some in (prompts[:max(1, len(prompts) // 4)], prompts):
        for limit in (0, REUSE_BYTES):
            run = lambda: list(search_all(model, tokenizer, some, config, 0, len(some), None,
                                          Prefixes(limit)))
            peak = peak_memory(run, bench.device)
            rows.append({"what": f"searches, states {'shared' if limit else 'not shared'}",
                         "tokens": f"{len(some)} x {longest} at most",
                         "peak MB": peak and peak / 1e6})
    return rows


# ---- the command ----

SECTIONS = {"decoder": decoder, "skips": skips, "routers": routers, "labels": labels,
            "features": features, "training": training, "draft": draft, "memory": memory}


class Bench:
    """The model that is measured, where it runs, and the settings."""

    def __init__(self, args):
        self.args, self.config = args, SHAPES[args.shape]
        self.device = torch.device(args.device)

    @cached_property
    def model(self):
        return random_model(self.config, self.device, cli.DTYPES[self.args.dtype])

    @property
    def weight(self):
        return self.model.embed_tokens.weight

    def token_bytes(self):
        """Bytes of weights that one decoded token reads: all but an embedding table of its own."""
        everything = sum(p.numel() * p.element_size() for p in self.model.parameters())
        apart = self.model.lm_head.weight is not self.weight
        return everything - apart * self.weight.numel() * self.weight.element_size()

    def machine(self):
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else platform.processor()
        return {"device": name or platform.machine(), "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "transformers": getattr(transformers, "__version__", None),
                "date": datetime.date.today().isoformat()}


def print_table(title, rows):
    show = lambda value: "" if value is None else (
        f"{value:.4g}" if isinstance(value, float) else str(value))
    cells = [{key: show(value) for key, value in row.items()} for row in rows]
    print("\n".join([f"\n{title}", *aligned(cells)]))


def parse_args(argv=None):
    parser = argparse.ArgumentParser(prog="python -m extras.bench",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", default=["all"],
                        help=f"all, or some of: {', '.join(SECTIONS)}")
    parser.add_argument("--shape", choices=SHAPES, default="demo", help="sizes of the random model")
    parser.add_argument("--device", default="cpu", help="torch device, e.g. cpu or cuda")
    parser.add_argument("--dtype", choices=cli.DTYPES, default="float32", help="of the weights")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of every side")
    parser.add_argument("--prompt", type=int, default=512, help="prompt length, tokens")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8],
                        help="batch sizes of the decoder section")
    parser.add_argument("--new-tokens", type=int, default=128, help="decoded tokens per row")
    parser.add_argument("--long", type=int, default=1000, help="tokens of the routers' generation")
    parser.add_argument("--questions", type=int, default=64, help="questions of the labels section")
    parser.add_argument("--together", type=int, nargs="+", default=[1, 16, 64, 256],
                        help="searches under way at once in the labels section")
    parser.add_argument("--slow-paths", type=int, default=64,
                        help="paths timed one at a time in the labels section")
    parser.add_argument("--question-tokens", type=int, default=64, help="their length, tokens")
    parser.add_argument("--examples", type=int, default=4000, help="examples to extrapolate to")
    parser.add_argument("--train-examples", type=int, default=256, help="examples trained on")
    parser.add_argument("--steps", type=int, default=64, help="training steps measured, about")
    parser.add_argument("--routers", type=Path, help="routers of the demo model, for draft")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args(argv)
    for name in set(args.sections) - {"all", *SECTIONS}:
        parser.error(f"no section {name}; there are all, {', '.join(SECTIONS)}")
    return args


def main(argv=None):
    args = parse_args(argv)
    bench = Bench(args)
    result = {"command": " ".join(["python -m extras.bench", *(argv or sys.argv[1:])]),
              **bench.machine(), "shape": args.shape, "dtype": args.dtype, "sections": {}}
    print(" ".join(f"{key}={value}" for key, value in result.items() if key != "sections"))
    for name, section in SECTIONS.items():
        if name in args.sections or "all" in args.sections:
            began = time.perf_counter()
            rows = result["sections"][name] = section(bench)
            print_table(f"{name} ({time.perf_counter() - began:.0f} s): "
                        f"{' '.join(section.__doc__.split())}", rows)
            if args.out:
                cli.write_json(args.out, result)


if __name__ == "__main__":
    cli.run(main)
