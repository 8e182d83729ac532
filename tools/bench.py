"""How fast, how large: every claim about speed is a ratio measured in one run of this command.

The sides of a comparison are timed in turn, A B A B, on random weights of a published shape; the
tables show medians over the repeats and, in brackets, the spread from the fastest to the slowest.
transformers is compared where it is installed (with the very same weights), and never needed.

    python -m tools.bench decoder --shape demo
    python -m tools.bench labels --model runs/real/SmolLM2-135M --data runs/real/label.jsonl
    python -m tools.bench all --shape 3b --device cuda --dtype bfloat16 --out bench.json
"""
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

import cli
from cli import aligned
from drllm import Routers
from checkpoint.config import Config, Llama3Rope, read_config
from label import search_all
from mcts import SearchConfig, is_legal
from model_llama import Llama, fixed, generate, load_model, load_tokenizer, prefill
from storage.files import mapped_zeros, write_json
from cli import progress_bar
from questions.loading import Question, load_all
from answers import Prompt, answer, judge, prepare
from train import TrainConfig, fit_routers

try:
    import transformers
except ImportError:
    transformers = None

SHAPES = {
    "demo": Config("llama", 56, 128, 256, 12, 4, 2, 32, 4096),
    "0.5b": Config("qwen2", 151936, 896, 4864, 24, 14, 2, 64, 32768, rope_theta=1e6,
                   qkv_bias=True, tie_embeddings=True),
    "3b": Config("llama", 128256, 3072, 8192, 28, 24, 8, 128, 131072, rope_theta=5e5,
                 tie_embeddings=True, rope_scaling=Llama3Rope(32.0, 1.0, 4.0, 8192)),
}
DECODED = 17  # tokens whose time, less that of one, is that of decoding along a path
SLOW_PATHS, QUESTION_TOKENS = 64, 64  # paths timed one at a time; tokens of a random question
EXAMPLES, TRAINED, STEPS = 4000, 256, 64  # of training: extrapolated to, trained on, steps timed


# ---- measuring ----

def seconds(run, device):
    """Wall time of run(), the device's work included."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - began


def interleaved(sides, repeats, device, name):
    """{side: [seconds, ...]} of callables, one warm-up each and then in turn, A B A B."""
    times = {side: [] for side in sides}
    for _ in progress_bar(range(repeats + 1), desc=name):
        for side, run in sides.items():
            times[side].append(seconds(run, device))
    return {side: took[1:] for side, took in times.items()}


def one_and_many(asks, many, bench, name):
    """[{side: [seconds, ...]} for one token, the same for many]: asks[side](n) answers n."""
    sides = {(side, n): partial(ask, n) for side, ask in asks.items() for n in (1, many)}
    times = interleaved(sides, bench.args.repeats, bench.device, name)
    return [{side: times[side, n] for side in asks} for n in (1, many)]


def less(above, below):
    return [a - b for a, b in zip(above, below)]


def paired(above, below):
    """'median [lowest, highest]' of the ratios of measurements taken side by side."""
    ratios = [a / b for a, b in zip(above, below)]
    return f"{median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]"


def peak_memory(run, device):
    """Megabytes that run() needed at its peak, beyond what was held before; None if unknown."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    if not Path("/proc/self/clear_refs").exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # memory freed earlier goes back, so that it counts again
    # resets the peak that Linux keeps
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(field):
    """Megabytes of this process, now (VmRSS) or at the peak (VmHWM)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split(field + ":")[1].split()[0]) * 1024 / 1e6


def read_bandwidth(device):
    """Bytes per second at which this machine reads memory: the best of two plain reductions."""
    numbers = torch.ones((2 ** 28 if device.type == "cuda" else 2 ** 26), device=device)
    sides = {"sum": numbers.sum, "dot": partial(torch.dot, numbers, numbers)}
    times = interleaved(sides, 7, device, "bandwidth")
    return numbers.numel() * 4 / min(map(median, times.values()))


# ---- random models, prompts and paths ----

def random_model(config, device, dtype):
    """A Llama of random weights, frozen."""
    with torch.device("meta"):
        model = Llama(config).to(dtype)
    model.to_empty(device=device)
    if config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        is_norm = name.endswith("norm.weight")
        parameter.data.normal_(1.0 if is_norm else 0.0, 0.0 if is_norm else 0.02)
    return model.eval().requires_grad_(False)


def size_of(weights):
    """Bytes of some tensors."""
    return sum(weight.numel() * weight.element_size() for weight in weights)


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
    theirs.load_state_dict({"lm_head.weight": weight.data} | model.named_weights(), assign=True)
    return theirs.eval().requires_grad_(False)


def random_prompts(config, rows, length):
    rng = random.Random(0)
    return [[rng.randrange(2, config.vocab_size) for _ in range(length)] for _ in range(rows)]


def random_path(layers, share, rng):
    """A legal path that skips (share below 0) or repeats this share of the layers."""
    path = [0 if share < 0 else 2] * round(abs(share) * layers)
    path += [1] * (layers - len(path))
    rng.shuffle(path)
    while not is_legal(path):
        rng.shuffle(path)
    return tuple(path)


def random_routers(bench):
    """Routers with a guard, which always execute: they cost what trained ones cost."""
    c, rng = bench.config, torch.Generator().manual_seed(0)
    built = Routers(c.num_layers, c.hidden_size)
    built.b2.data[..., 1] = 1e6
    built.set_guard(torch.randn(c.hidden_size, 32, generator=rng),
                    torch.randn(c.num_layers, 512, 32, generator=rng),
                    torch.full((c.num_layers,), 1e9))
    return built.to(bench.device).requires_grad_(False)


# ---- 1. the decoder beside transformers ----

def agreeing(ours, theirs):
    """How many leading tokens are the same."""
    return [*(a == b for a, b in zip(ours, theirs)), False].index(False)


def kernels_run(bench, batch):
    """A callable: one token's matrix products and attention, which no decoder in eager PyTorch can
    do without, and nothing else."""
    model, c = bench.model, bench.config
    zeros = partial(torch.zeros, device=bench.device, dtype=bench.dtype)
    hidden, inner = zeros(batch, 1, c.hidden_size), zeros(batch, 1, c.intermediate_size)
    mixed = zeros(batch, 1, c.num_heads * c.head_dim)
    queries = zeros(batch, c.num_kv_heads, c.num_heads // c.num_kv_heads, c.head_dim)
    keys = zeros(batch, c.num_kv_heads, bench.args.prompt, c.head_dim)

    @torch.inference_mode()
    def run():
        for block in model.layers:
            mixing, mlp = block.self_attn, block.mlp
            for product in (mixing.q_proj, mixing.k_proj, mixing.v_proj, mlp.gate_proj,
                            mlp.up_proj):
                product(hidden)
            torch.nn.functional.scaled_dot_product_attention(queries, keys, keys)
            mixing.o_proj(mixed)
            mlp.down_proj(inner)
        model.lm_head(hidden)
    return run


def decoder(bench):
    """Prefill and decode, by batch size; decode is the time of all tokens less that of one. limit:
    reading the weights once. kernels: the matrix products and the attention alone."""
    T, new, model, rows = bench.args.prompt, bench.args.new_tokens, bench.model, []
    read = {p for name, p in model.named_parameters() if name != "embed_tokens.weight"}
    read |= {model.lm_head.weight}  # the embedding table only where it is tied to the head
    limit = size_of(read) / read_bandwidth(bench.device)
    theirs = transformers_model(model) if transformers else None
    for batch in bench.args.batches:
        prompts = random_prompts(bench.config, batch, T)
        tokens = torch.tensor(prompts, device=bench.device)
        asks = {"ours": lambda n: generate(model, prompts, max_new_tokens=n).tokens}
        if theirs:
            asks["theirs"] = lambda n: theirs.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=n, min_new_tokens=n,
                do_sample=False)[:, T:].tolist()
        one, many = one_and_many(asks, new, bench, f"decoder, batch {batch}")
        step = {side: [t / (new - 1) for t in less(many[side], one[side])] for side in asks}
        for what, took in ((f"prefill, {T}", one), ("decode, 1", step)):
            rows.append({"what": f"{what} x {batch} tokens", "ours ms": 1e3 * median(took["ours"])})
            if theirs:
                rows[-1] |= {"transformers ms": 1e3 * median(took["theirs"]),
                             "times as fast": paired(took["theirs"], took["ours"])}
        kernels = interleaved({"": kernels_run(bench, batch)}, 10 * bench.args.repeats,
                              bench.device, "kernels")[""]
        rows[-1] |= {"kernels ms": 1e3 * median(kernels), "limit ms": 1e3 * limit,
                     "of limit": limit / median(step["ours"])}
        if theirs:
            same = agreeing(asks["ours"](new)[0], asks["theirs"](new)[0])
            rows[-1]["same tokens"] = f"{same}/{new}"
    return rows


# ---- 2. skips ----

def skips(bench):
    """Time of a path over that of the plain model, beside its share of the layers run; the time
    of the embedding and the head alone is taken off both."""
    rng, rows, L = random.Random(0), [], bench.config.num_layers
    for batch, apart in ((1, False), (8, False), (8, True)):
        prompts = random_prompts(bench.config, batch, bench.args.prompt)
        paths = {"plain": (1,) * L, "none": (0,) * L}
        for share in (-0.125, -0.25, -0.5, 0.25):
            some = [random_path(L, share, rng) for _ in range(batch)]
            paths[share] = some if apart else some[0]
        asks = {side: partial(generate, bench.model, prompts, fixed(path))
                for side, path in paths.items()}
        one, many = one_and_many(asks, DECODED, bench, f"skips, batch {batch}")
        step = {side: less(many[side], one[side]) for side in asks}
        for what, times in (("prefill", one), ("decode", step)):
            for share in list(paths)[2:]:
                layers = torch.tensor(paths[share]).float().sum(-1).mean().item()
                net = [less(times[side], times["none"]) for side in (share, "plain")]
                rows.append({"what": what, "rows": f"{batch}{', own paths' * apart}",
                             "layers": f"{layers:.0f}/{L}", "share of layers": layers / L,
                             "share of time": paired(*net),
                             "whole call": median(times[share]) / median(times["plain"])})
    return rows


# ---- 3. routers ----

def routers(bench):
    """Long answers with routers over the same path fixed in advance. The routers are asked on the
    prompt only, so the difference of two prefills over a whole generation is the sharper figure."""
    new, rows = bench.args.long, []
    routes = {"routed": random_routers(bench).route, "fixed": fixed((1,) * bench.config.num_layers)}
    for batch in (1, 8):
        prompts = random_prompts(bench.config, batch, bench.args.prompt)
        asks = {side: partial(generate, bench.model, prompts, route)
                for side, route in routes.items()}
        one, many = one_and_many(asks, new, bench, f"routers, batch {batch}")
        cost, whole = median(less(one["routed"], one["fixed"])), median(many["fixed"])
        rows.append({"what": f"batch {batch}", "prompt": bench.args.prompt, "tokens": new,
                     "fixed s": whole, "routed s": median(many["routed"]),
                     "routed over fixed": paired(many["routed"], many["fixed"]),
                     "routers ms": 1e3 * cost, "% of all": 100 * cost / whole})
    return rows


# ---- 4. right or wrong, and whole searches ----

class Numbers:
    """A tokenizer's stand-in where weights are random: token ids as words."""
    stop_ids = ()

    def decode(self, ids):
        return " ".join(f"t{i}" for i in ids)


def questions_to_label(bench):
    """(model, tokenizer, prompts): those given, or the demo's, or random ones with four tokens to
    answer, every other one of which the default path answers."""
    if bench.args.model or bench.args.shape == "demo":
        folder = bench.args.model or cli.DEMO_MODEL
        model = bench.model if bench.args.model else load_model(folder, bench.device, bench.dtype)
        tokenizer = load_tokenizer(folder)
        asked = load_all(bench.args.data)[:bench.args.questions]
        return model, tokenizer, prepare(asked, tokenizer, model)[0]
    tokenizer, ids = Numbers(), random_prompts(bench.config, bench.args.questions, QUESTION_TOKENS)
    made = generate(bench.model, ids, None, 4).tokens
    gold = [tokens if n % 2 else tokens[::-1] for n, tokens in enumerate(made)]
    question = lambda n: Question(f"q{n}", "random", 0, "", tokenizer.decode(gold[n]), (), "?", 4)
    return bench.model, tokenizer, [Prompt(question(n), tuple(ids[n]), tuple(gold[n]))
                                    for n in range(len(ids))]


def judging(bench):
    """Is the answer right along a path? One pass over prompt and gold answer, and a generation
    only where that leaves the grade open (answers.judge), over generating every answer."""
    model, tokenizer, prompts = questions_to_label(bench)
    L, rng, rows = model.config.num_layers, random.Random(0), []
    edited = [random_path(L, -0.125, rng) for _ in prompts]
    for what, paths in (("the default path", [(1,) * L] * len(prompts)), ("a path each", edited)):
        asked = (model, tokenizer, prompts, torch.tensor(paths))
        sides = {"generated": partial(answer, *asked), "judged": partial(judge, *asked)}
        times = interleaved(sides, bench.args.repeats, bench.device, what)
        same = int((sides["generated"]().right == sides["judged"]()[0]).sum())
        rows.append({"what": f"{what}, judged over generated",
                     **{f"{side}/s": len(prompts) / median(took) for side, took in times.items()},
                     "times as fast": paired(times["generated"], times["judged"]),
                     "same grades": f"{same}/{len(prompts)}"})
    return rows


@torch.inference_mode()
def without_cache(model, prompt, path, new, stop_ids=()):
    """The same greedy tokens the slow way: one question, everything computed again per token."""
    ids = list(prompt)
    while len(ids) < len(prompt) + new and ids[-1] not in stop_ids:
        tokens = torch.tensor([ids], device=model.embed_tokens.weight.device)
        ids.append(int(model(tokens, fixed(path))[0, -1].argmax()))
    return ids[len(prompt):]


def labels(bench):
    """Paths tried per second by whole searches: in lockstep, with and without the hidden states
    that paths share, over the same paths one at a time and computed anew for
    every token."""
    model, tokenizer, prompts = questions_to_label(bench)
    config, stops = SearchConfig(stop_when_repaired=False), tokenizer.stop_ids
    lockstep = lambda size, share: list(search_all(model, tokenizer, prompts, config, 0, size,
                                                   share=share))
    paths = [(prompt, path) for prompt, result, _ in lockstep(len(prompts), True)
             for path in result.rewards]
    few, slow = random.Random(0).sample(paths, min(len(paths), SLOW_PATHS)), "singly, no cache"
    sides = {slow: lambda: [without_cache(model, prompt.ids, path, prompt.question.budget, stops)
                            for prompt, path in few]}
    sides |= {f"{size} together, states {shared}": partial(lockstep, size, share)
              for size in bench.args.together if size <= len(prompts)
              for shared, share in (("not shared", False), ("shared", True))}
    together = list(sides)[-1]
    sides["matrix products alone"] = products_of(model, sides[together])
    if transformers:
        sides["transformers, singly"] = partial(theirs_singly, transformers_model(model),
                                                [prompt for prompt, _ in few])
    singly = {slow, "transformers, singly"}
    each = {side: [t / len(few if side in singly else paths) for t in took] for side, took
            in interleaved(sides, bench.args.repeats, bench.device, "labels").items()}
    rows = [{"what": side, "paths/s": 1 / median(took), "times as fast": paired(each[slow], took)}
            for side, took in each.items()]
    rows += [{"what": f"{together}, over {side}", "paths/s": 1 / median(each[together]),
              "times as fast": paired(each[side], each[together])} for side in each
             if side in ("matrix products alone", "transformers, singly")]
    return rows + (processes(bench) if bench.args.shape == "demo" and not bench.args.model else [])


def products_of(model, run):
    """A callable that does every matrix product of run() again, on rows of the same number, and
    nothing else: what no search can be faster than."""
    asked, note = [], lambda module, given: asked.append((module, given[0].shape))
    hooks = [module.register_forward_pre_hook(note) for module in model.modules()
             if isinstance(module, torch.nn.Linear)]
    run()
    for hook in hooks:
        hook.remove()
    weight = model.embed_tokens.weight
    given = {shape: torch.randn(shape).to(weight) for _, shape in asked}

    @torch.inference_mode()
    def again():
        for module, shape in asked:
            module(given[shape])
    return again


def theirs_singly(theirs, prompts):
    """The answers of transformers along the default path, whose length the searches' paths have on
    average: one question at a time, with its cache."""
    for prompt in prompts:
        ids = torch.tensor([prompt.ids], device=theirs.device)
        theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                        max_new_tokens=prompt.question.budget,
                        eos_token_id=list(prompt.stop_ids) or None)


def processes(bench):
    """label.py on the demo's questions by 1 and 2 processes of one thread, start-up included."""
    root, took = Path(__file__).parents[1], {1: [], 2: []}
    for number in list(took) * bench.args.repeats:
        with tempfile.TemporaryDirectory() as folder:
            command = ["-m", "torch.distributed.run", "--nproc-per-node", str(number),
                       "--master-port", str(29000 + os.getpid() % 1000), str(root / "label.py"),
                       "--limit", str(bench.args.questions), "--out", f"{folder}/labels.jsonl"]
            call = partial(subprocess.run, [sys.executable, *command], check=True,
                           capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
            took[number].append(seconds(call, torch.device("cpu")))
    paths = bench.args.questions * (SearchConfig().simulations + 1)
    return [{"what": f"label.py, processes: {number}", "paths/s": paths / median(times),
             "times as fast": paired(took[1], times)} for number, times in took.items()]


# ---- 5. router training ----

def training(bench):
    """Time per step on synthetic features, times the steps of 25 epochs: growing with examples
    and layers. The paper reports 4 GPU hours for all of it."""
    config, L, rows = TrainConfig(), bench.config.num_layers, []
    for examples, layers, where in ((TRAINED // 2, L, ""), (TRAINED, L, ""), (TRAINED, L // 2, ""),
                                    (TRAINED, L, ", on disk")):
        rng = torch.Generator().manual_seed(0)
        size = (examples, layers, config.windows, bench.config.hidden_size)
        pooled = mapped_zeros(size, Path(".")) if where else torch.zeros(size)
        pooled.normal_(generator=rng)
        counts = torch.full((examples,), config.windows)
        marks = torch.randint(0, 3, (examples, layers), generator=rng)
        short = replace(config, epochs=max(1, STEPS * config.batch // examples))
        steps = short.epochs * -(-examples // config.batch)
        run = partial(fit_routers, pooled, counts, marks, 0, short, bench.device)
        peak = peak_memory(run, bench.device)  # the warm-up
        took, full = seconds(run, bench.device) / steps, config.epochs * EXAMPLES / config.batch
        rows.append({"what": f"{examples} examples, {layers} layers{where}", "steps": steps,
                     "ms per step": 1e3 * took,
                     f"min for {EXAMPLES} x {config.epochs}": took * full / 60, "peak MB": peak,
                     "features GB": pooled[0].numel() * 4 * EXAMPLES / 1e9})
    return rows


# ---- 6. growth ----

def growth(bench):
    """How prefill grows with the prompt, the batch and the layers: the exponent is the slope of log
    time over log size, 1 where time is in proportion; its range over the repeats in brackets."""
    rows, shallow = [], replace(bench.config, num_layers=bench.config.num_layers * 2 // 5)
    small = random_model(shallow, bench.device, bench.dtype)
    for what, sides in (
            ("prompt, tokens", {T: (bench.model, 1, T) for T in (64, 128, 256, 512, 1024)}),
            ("batch of 64 tokens", {B: (bench.model, B, 64) for B in (1, 4, 16, 64)}),
            ("layers", {m.config.num_layers: (m, 1, 256) for m in (small, bench.model)})):
        calls = {}
        for size, (model, batch, length) in sides.items():
            tokens = torch.tensor(random_prompts(model.config, batch, length), device=bench.device)
            calls[size] = partial(prefilled, model, tokens)
        took = interleaved(calls, bench.args.repeats, bench.device, what)
        x = torch.tensor([float(size) for size in calls]).log()
        x = x - x.mean()
        slopes = [(x @ torch.tensor(times).log() / x.square().sum()).item()
                  for times in zip(*took.values())]
        rows.append({"what": what, "sizes": " ".join(map(str, calls)), "ms": " ".join(
            f"{1e3 * median(times):.1f}" for times in took.values()),
            "exponent": f"{median(slopes):.2f} [{min(slopes):.2f}, {max(slopes):.2f}]"})
    return rows


@torch.inference_mode()
def prefilled(model, tokens):
    return prefill(model, tokens)


# ---- 7. memory ----

def memory(bench):
    """Peak bytes beyond the weights: of generating 8 tokens, plain and with routers, and of
    searches in lockstep that share the states of their paths or not."""
    T, rows, full = bench.args.prompt, [], bench.model
    small = replace(bench.config, num_layers=bench.config.num_layers // 2)
    half = random_model(small, bench.device, bench.dtype)
    for what, model, batch, length, route in (
            ("as is", full, 1, T, None), ("with routers", full, 1, T, random_routers(bench).route),
            ("prompt x 2", full, 1, 2 * T, None), ("prompt x 4", full, 1, 4 * T, None),
            ("batch x 4", full, 4, T, None), ("batch x 8", full, 8, T, None),
            ("half the layers", half, 1, T, None)):
        c = model.config
        run = partial(generate, model, random_prompts(c, batch, length), route, 8)
        run()
        cache = 2 * c.num_layers * batch * (length + 8) * c.num_kv_heads * c.head_dim
        rows.append({"what": what, "tokens": f"{batch} x {length}",
                     "peak MB": peak_memory(run, bench.device),
                     "cache MB": cache * bench.dtype.itemsize / 1e6,
                     "weights MB": size_of(model.parameters()) / 1e6})
    model, tokenizer, prompts = questions_to_label(bench)
    for some in (prompts[:max(1, len(prompts) // 4)], prompts):
        for shared, share in (("not shared", False), ("shared", True)):
            run = lambda: list(search_all(model, tokenizer, some, SearchConfig(), 0, len(some),
                                          share=share))
            rows.append({"what": f"searches, states {shared}",
                         "tokens": f"{len(some)} x {max(len(p.ids) for p in some)} at most",
                         "peak MB": peak_memory(run, bench.device)})
    return rows


# ---- the command ----

SECTIONS = {"decoder": decoder, "skips": skips, "routers": routers, "judge": judging,
            "labels": labels, "training": training, "growth": growth, "memory": memory}


class Bench:
    """The model that is measured, where it runs, and the settings."""

    def __init__(self, args):
        self.args = args
        self.config = read_config(args.model) if args.model else SHAPES[args.shape]
        self.device, self.dtype = torch.device(args.device), cli.DTYPES[args.dtype]

    @cached_property
    def model(self):
        if self.args.model:
            return load_model(self.args.model, self.device, self.dtype)
        return random_model(self.config, self.device, self.dtype)

    def machine(self):
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else platform.processor()
        return {"device": name or platform.machine(), "threads": torch.get_num_threads(),
                "torch": torch.__version__, "date": datetime.date.today().isoformat(),
                "transformers": getattr(transformers, "__version__", None)}


def print_table(title, rows):
    show = lambda value: f"{value:.4g}" if isinstance(value, float) else str(value)
    cells = [{column: show(value) for column, value in row.items()} for row in rows]
    print(f"\n{title}", aligned(cells), sep="\n")


def parse_args(argv=None):
    parser = cli.Parser(__doc__, prog="python -m tools.bench")
    flag, count = parser.add_argument, cli.count
    flag("sections", nargs="*", metavar="SECTION", default=["all"],
         help=f"all, or some of: {', '.join(SECTIONS)}")
    flag("--shape", choices=SHAPES, default="demo", help="sizes of the random model")
    flag("--model", type=Path, metavar="DIR", help="a model's folder, instead of random weights")
    flag("--data", nargs="+", default=[cli.DEMO_LABEL], metavar="FILE",
         help="questions that are judged, or searched")
    flag("--device", default="cpu", help="torch device, e.g. cpu or cuda")
    flag("--dtype", choices=cli.DTYPES, default="float32", help="of the weights")
    flag("--repeats", type=count, default=3, help="measurements of every side")
    flag("--prompt", type=count, default=512, help="prompt length, tokens")
    flag("--batches", type=count, nargs="+", default=[1, 8], help="batch sizes of the decoder")
    flag("--new-tokens", type=cli.number(2, 10 ** 6, int), default=128,
         help="tokens the decoder writes per row")
    flag("--long", type=count, default=1000, help="tokens of an answer with routers")
    flag("--questions", type=count, default=64, help="questions judged or searched, at most")
    flag("--together", type=count, nargs="+", default=[1, 16, 64, 256],
         help="searches under way at once")
    flag("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args(argv)
    for name in sorted(set(args.sections) - {"all", *SECTIONS}):
        parser.error(f"no section {name}; there are all, {', '.join(SECTIONS)}")
    cli.check_device(args.device)
    return args


def main(argv=None):
    args = parse_args(argv)
    bench = Bench(args)
    result = {"command": " ".join(["python -m tools.bench", *(argv or sys.argv[1:])]),
              **bench.machine(), "shape": args.shape, "dtype": args.dtype, "sections": {}}
    print(" ".join(f"{key}={value}" for key, value in result.items() if key != "sections"))
    for name, section in SECTIONS.items():
        if name in args.sections or "all" in args.sections:
            began = time.perf_counter()
            rows = result["sections"][name] = section(bench)
            print_table(f"{name} ({time.perf_counter() - began:.0f} s): "
                        f"{' '.join(section.__doc__.split())}", rows)
            if args.out:
                write_json(args.out, result)


if __name__ == "__main__":
    cli.run(main)
