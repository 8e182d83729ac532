"""How fast is the decoder, and how fast are the searches? Ratios measured in one run.

The sides of a comparison are timed in turn, A B A B. The tables show medians over the repeats and,
in brackets, the spread from the fastest to the slowest. If transformers is installed, it is timed
with the very same weights.

    python -m tools.bench decoder
    python -m tools.bench labels --model runs/real/SmolLM2-135M --data runs/real/label.jsonl
    python -m tools.bench all --device cuda --dtype bfloat16 --out runs/bench.json
"""
import datetime
import platform
import random
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch

import cli
from answers import prompts_that_fit
from cli import aligned, progress_bar
from label import search_all
from mcts import SearchConfig
from model_llama import FixedRoute, generate, load
from questions.loading import load_all
from storage.files import write_json

try:
    import transformers
except ImportError:
    transformers = None

SLOW_PATHS = 64  # paths that are timed one at a time, which takes long


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
    return {side: side_times[1:] for side, side_times in times.items()}


def paired(above, below):
    """'median [lowest, highest]' of the ratios of measurements taken side by side."""
    ratios = [a / b for a, b in zip(above, below)]
    return f"{median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]"


# ---- the decoder beside transformers ----

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


def random_prompts(config, number, length):
    """`number` lists of `length` token ids."""
    rng = random.Random(0)
    return [[rng.randrange(2, config.vocab_size) for _ in range(length)] for _ in range(number)]


def same_beginning(ours, theirs):
    """How many leading tokens are the same."""
    differs = [a != b for a, b in zip(ours, theirs)]
    return differs.index(True) if True in differs else len(differs)


def generators(model):
    """{side: generate(prompts, number of tokens) -> token lists}: ours, and theirs if any."""
    def ours(prompts, number):
        return generate(model, prompts, max_new_tokens=number).tokens

    def theirs(prompts, number):
        tokens = torch.tensor(prompts, device=model.embed_tokens.weight.device)
        made = rival.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False,
                              max_new_tokens=number, min_new_tokens=number)
        return made[:, tokens.shape[1]:].tolist()

    if not transformers:
        return {"ours": ours}
    rival = transformers_model(model)
    return {"ours": ours, "theirs": theirs}


def decoder(args, tokenizer, model):
    """Prefill and decode, by batch size; a decoded token is the time of all tokens less that of
    one."""
    rng, new, rows = random.Random(0), args.new_tokens, []
    sides = generators(model)
    for batch in args.batches:
        prompts = [rng.choices(range(2, model.config.vocab_size), k=args.prompt)
                   for _ in range(batch)]
        runs = {}
        for side, write in sides.items():
            for number in (1, new):
                runs[side, number] = partial(write, prompts, number)
        times = interleaved(runs, args.repeats, model.embed_tokens.weight.device,
                            f"decoder, batch {batch}")
        prefills, steps = {}, {}  # {side: [seconds, ...]}
        for side in sides:
            prefills[side] = times[side, 1]
            steps[side] = [(whole - first) / (new - 1)
                           for whole, first in zip(times[side, new], times[side, 1])]
        rows += [decoder_row(f"prefill, {args.prompt} x {batch} tokens", prefills),
                 decoder_row(f"decode, 1 x {batch} tokens", steps)]
        if "theirs" in sides:
            ours, theirs = (write(prompts, new)[0] for write in sides.values())
            rows[-1]["same tokens"] = f"{same_beginning(ours, theirs)}/{new}"
    return rows


def decoder_row(name, times):
    """A line of the decoder's table; times: {side: [seconds, ...]}."""
    row = {"work": name, "ours ms": 1e3 * median(times["ours"])}
    if "theirs" in times:
        row["transformers ms"] = 1e3 * median(times["theirs"])
        row["times as fast"] = paired(times["theirs"], times["ours"])
    return row


# ---- whole searches ----

@torch.inference_mode()
def answer_without_cache(model, prompt, path, stop_ids=()):
    """Greedy tokens of one question, with everything computed again for each token."""
    ids, end = list(prompt.ids), len(prompt.ids) + prompt.question.budget
    while len(ids) < end and ids[-1] not in stop_ids:
        tokens = torch.tensor([ids], device=model.embed_tokens.weight.device)
        ids.append(int(model(tokens, FixedRoute(path))[0, -1].argmax()))
    return ids[len(prompt.ids):]


def labels(args, tokenizer, model):
    """Paths tried per second by whole searches: in lockstep, with and without the hidden states
    that paths share, and the same paths one at a time."""
    questions = load_all(args.data)[:args.questions]
    prompts, _ = prompts_that_fit(questions, tokenizer, model, "questions")
    config = SearchConfig(stop_when_repaired=False)

    def search_together(size, share):
        return list(search_all(model, tokenizer, prompts, config, 0, size, share=share))

    tried = [(prompt, path) for prompt, result, _ in search_together(len(prompts), True)
             for path in result.rewards]
    few = random.Random(0).sample(tried, min(len(tried), SLOW_PATHS))
    slow = "one at a time, no cache"
    sides = {slow: lambda: [answer_without_cache(model, prompt, path, tokenizer.stop_ids)
                            for prompt, path in few]}
    for size in args.together:
        if size <= len(prompts):
            sides[f"{size} together, nothing shared"] = partial(search_together, size, False)
            sides[f"{size} together, states shared"] = partial(search_together, size, True)
    times = interleaved(sides, args.repeats, model.embed_tokens.weight.device, "labels")
    per_path = {}  # {side: [seconds per path, ...]}
    for side in sides:
        number = len(few) if side == slow else len(tried)
        per_path[side] = [took / number for took in times[side]]
    return [{"work": side, "paths/s": 1 / median(took),
             "times as fast": paired(per_path[slow], took)} for side, took in per_path.items()]


# ---- the command ----

SECTIONS = {"decoder": decoder, "labels": labels}


def print_table(title, rows):
    """Prints a title and rows {column: number or text} in columns."""
    show = lambda value: f"{value:.4g}" if isinstance(value, float) else str(value)
    cells = [{column: show(value) for column, value in row.items()} for row in rows]
    print(f"\n{title}", aligned(cells), sep="\n")


def parse_args(argv=None):
    parser = cli.Parser(__doc__, prog="python -m tools.bench")
    flag, count = parser.add_argument, cli.count
    flag("sections", nargs="*", metavar="SECTION", default=["all"],
         help=f"all, or some of: {', '.join(SECTIONS)}")
    cli.add_model_flags(parser)
    parser.set_defaults(dtype="float32")
    flag("--data", nargs="+", default=[cli.DEMO_LABEL], metavar="FILE",
         help="questions that are searched")
    flag("--repeats", type=count, default=3, help="measurements of every side")
    flag("--prompt", type=count, default=512, help="prompt length, tokens")
    flag("--batches", type=count, nargs="+", default=[1, 8], help="batch sizes of the decoder")
    flag("--new-tokens", type=cli.number(2, 10 ** 6, int), default=128,
         help="tokens the decoder writes per row")
    flag("--questions", type=count, default=64, help="questions searched, at most")
    flag("--together", type=count, nargs="+", default=[1, 16, 64, 256],
         help="searches under way at once")
    flag("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args(argv)
    for name in sorted(set(args.sections) - {"all", *SECTIONS}):
        parser.error(f"no section {name}; there are all, {', '.join(SECTIONS)}")
    return args


def main(argv=None):
    args = parse_args(argv)
    tokenizer, model = load(args)
    result = {"command": " ".join(["python -m tools.bench", *(argv or sys.argv[1:])]),
              "machine": platform.platform(), "threads": torch.get_num_threads(),
              "torch": torch.__version__, "date": datetime.date.today().isoformat(),
              "transformers": getattr(transformers, "__version__", None), "sections": {}}
    print(" ".join(f"{key}={value}" for key, value in result.items() if key != "sections"))
    for name, section in SECTIONS.items():
        if name in args.sections or "all" in args.sections:
            began = time.perf_counter()
            rows = result["sections"][name] = section(args, tokenizer, model)
            took = f"{time.perf_counter() - began:.0f} s"
            print_table(f"{name} ({took}): {' '.join(section.__doc__.split())}", rows)
            if args.out:
                write_json(args.out, result)


if __name__ == "__main__":
    cli.run(main)
