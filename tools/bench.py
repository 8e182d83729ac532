"""How fast is the decoder, and how fast are the searches? Ratios measured in one run.

The sides of a comparison are timed in turn, A B A B. The tables show medians over the repeats and,
in brackets, the spread from the fastest to the slowest. transformers is compared if it is
installed, with the very same weights; it is never needed.

    python -m tools.bench decoder
    python -m tools.bench labels --model runs/real/SmolLM2-135M --data runs/real/label.jsonl
    python -m tools.bench all --shape 3b --device cuda --dtype bfloat16 --out bench.json
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
from answers import Prompt, prepare
from checkpoint.config import Config, Llama3Rope
from cli import aligned, progress_bar
from label import search_all
from mcts import SearchConfig
from model_llama import Llama, fixed, generate, load_model, load_tokenizer
from questions.loading import Question, load_all
from storage.files import write_json

try:
    import transformers
except ImportError:
    transformers = None

SHAPES = {  # of Qwen2.5-0.5B and Llama-3.2-3B
    "0.5b": Config("qwen2", 151936, 896, 4864, 24, 14, 2, 64, 32768, rope_theta=1e6,
                   qkv_bias=True, tie_embeddings=True),
    "3b": Config("llama", 128256, 3072, 8192, 28, 24, 8, 128, 131072, rope_theta=5e5,
                 tie_embeddings=True, rope_scaling=Llama3Rope(32.0, 1.0, 4.0, 8192)),
}
SLOW_PATHS = 64      # paths that are timed one at a time, which takes long
QUESTION_TOKENS = 64  # of a random question


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


# ---- random models and prompts ----

def random_model(config, device, dtype):
    """A Llama of random weights, frozen."""
    with torch.device("meta"):
        model = Llama(config).to(dtype)
    model.to_empty(device=device)
    if config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data.fill_(1.0)
        else:
            parameter.data.normal_(0.0, 0.02)
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
    theirs.load_state_dict({"lm_head.weight": weight.data} | model.named_weights(), assign=True)
    return theirs.eval().requires_grad_(False)


def random_prompts(config, number, length):
    """`number` lists of `length` token ids."""
    rng = random.Random(0)
    return [[rng.randrange(2, config.vocab_size) for _ in range(length)] for _ in range(number)]


# ---- the decoder beside transformers ----

def same_beginning(ours, theirs):
    """How many leading tokens are the same."""
    differs = [a != b for a, b in zip(ours, theirs)]
    return differs.index(True) if True in differs else len(differs)


def decoder(args, model):
    """Prefill and decode, by batch size; a decoded token is the time of all tokens less that of
    one."""
    T, new, rows = args.prompt, args.new_tokens, []
    theirs = transformers_model(model) if transformers else None
    device = model.embed_tokens.weight.device

    def ours_generate(prompts, number):
        return generate(model, prompts, max_new_tokens=number).tokens

    def theirs_generate(prompts, number):
        tokens = torch.tensor(prompts, device=device)
        made = theirs.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False,
                               max_new_tokens=number, min_new_tokens=number)
        return made[:, T:].tolist()

    askers = {"ours": ours_generate} | ({"theirs": theirs_generate} if theirs else {})
    for batch in args.batches:
        prompts = random_prompts(model.config, batch, T)
        sides = {(side, number): partial(ask, prompts, number)
                 for side, ask in askers.items() for number in (1, new)}
        times = interleaved(sides, args.repeats, device, f"decoder, batch {batch}")
        prefills = {side: times[side, 1] for side in askers}
        steps = {side: [(all_tokens - first) / (new - 1) for all_tokens, first
                        in zip(times[side, new], times[side, 1])] for side in askers}
        for what, took in ((f"prefill, {T}", prefills), ("decode, 1", steps)):
            row = {"what": f"{what} x {batch} tokens", "ours ms": 1e3 * median(took["ours"])}
            if theirs:
                row["transformers ms"] = 1e3 * median(took["theirs"])
                row["times as fast"] = paired(took["theirs"], took["ours"])
            rows.append(row)
        if theirs:
            same = same_beginning(ours_generate(prompts, new)[0], theirs_generate(prompts, new)[0])
            rows[-1]["same tokens"] = f"{same}/{new}"
    return rows


# ---- whole searches ----

class Numbers:
    """Stands in for a tokenizer if the weights are random: token ids as words."""
    stop_ids = ()

    def decode(self, ids):
        return " ".join(f"t{i}" for i in ids)


def searched_questions(args, model):
    """(tokenizer, prompts): those of --data, or random ones with four tokens to answer if the
    weights are random. The default path answers every other random one."""
    if not args.shape:
        tokenizer = load_tokenizer(args.model)
        questions = load_all(args.data)[:args.questions]
        return tokenizer, prepare(questions, tokenizer, model)[0]
    tokenizer = Numbers()
    ids = random_prompts(model.config, args.questions, QUESTION_TOKENS)
    answers, prompts = generate(model, ids, None, 4).tokens, []
    for n, tokens in enumerate(answers):
        gold = tokens if n % 2 else tokens[::-1]
        question = Question(f"q{n}", "random", 0, "", tokenizer.decode(gold), (), "?", 4)
        prompts.append(Prompt(question, tuple(ids[n]), tuple(gold)))
    return tokenizer, prompts


@torch.inference_mode()
def answer_without_cache(model, prompt, path, stop_ids=()):
    """Greedy tokens the slow way: one question, everything computed again for each token."""
    ids, end = list(prompt.ids), len(prompt.ids) + prompt.question.budget
    while len(ids) < end and ids[-1] not in stop_ids:
        tokens = torch.tensor([ids], device=model.embed_tokens.weight.device)
        ids.append(int(model(tokens, fixed(path))[0, -1].argmax()))
    return ids[len(prompt.ids):]


def answer_by_transformers(theirs, prompts):
    """The answers along the default path, one question at a time, with its cache. The paths of the
    searches have the same length on average."""
    for prompt in prompts:
        ids = torch.tensor([prompt.ids], device=theirs.device)
        theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                        max_new_tokens=prompt.question.budget,
                        eos_token_id=list(prompt.stop_ids) or None)


def labels(args, model):
    """Paths tried per second by whole searches: in lockstep, with and without the hidden states
    that paths share, and the same paths one at a time."""
    tokenizer, prompts = searched_questions(args, model)
    config = SearchConfig(stop_when_repaired=False)

    def search_together(size, share):
        return list(search_all(model, tokenizer, prompts, config, 0, size, share=share))

    tried = [(prompt, path) for prompt, result, _ in search_together(len(prompts), True)
             for path in result.rewards]
    few = random.Random(0).sample(tried, min(len(tried), SLOW_PATHS))
    slow, rival = "one at a time, no cache", "transformers, one at a time"
    sides = {slow: lambda: [answer_without_cache(model, prompt, path, tokenizer.stop_ids)
                            for prompt, path in few]}
    if transformers:
        sides[rival] = partial(answer_by_transformers, transformers_model(model),
                               [prompt for prompt, _ in few])
    for size in (size for size in args.together if size <= len(prompts)):
        sides[f"{size} together, nothing shared"] = partial(search_together, size, False)
        sides[f"{size} together, states shared"] = partial(search_together, size, True)
    times = interleaved(sides, args.repeats, model.embed_tokens.weight.device, "labels")
    paths_of = {side: len(few) if side in (slow, rival) else len(tried) for side in sides}
    per_path = {side: [t / paths_of[side] for t in times[side]] for side in sides}
    return [{"what": side, "paths/s": 1 / median(took),
             "times as fast": paired(per_path[slow], took)} for side, took in per_path.items()]


# ---- the command ----

SECTIONS = {"decoder": decoder, "labels": labels}


def machine(device):
    """Where the figures were measured."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    return {"device": name or platform.machine(), "threads": torch.get_num_threads(),
            "torch": torch.__version__, "date": datetime.date.today().isoformat(),
            "transformers": getattr(transformers, "__version__", None)}


def print_table(title, rows):
    """A title and rows {column: number or text} in columns."""
    show = lambda value: f"{value:.4g}" if isinstance(value, float) else str(value)
    cells = [{column: show(value) for column, value in row.items()} for row in rows]
    print(f"\n{title}", aligned(cells), sep="\n")


def parse_args(argv=None):
    parser = cli.Parser(__doc__, prog="python -m tools.bench")
    flag, count = parser.add_argument, cli.count
    flag("sections", nargs="*", metavar="SECTION", default=["all"],
         help=f"all, or some of: {', '.join(SECTIONS)}")
    flag("--model", type=Path, metavar="DIR", default=cli.DEMO_MODEL, help="a model's folder")
    flag("--shape", choices=SHAPES, help="random weights of this shape, instead of --model")
    flag("--data", nargs="+", default=[cli.DEMO_LABEL], metavar="FILE",
         help="questions that are searched")
    flag("--device", default="cpu", help="torch device, e.g. cpu or cuda")
    flag("--dtype", choices=cli.DTYPES, default="float32", help="of the weights")
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
    cli.check_device(args.device)
    return args


def main(argv=None):
    args = parse_args(argv)
    device, dtype = torch.device(args.device), cli.DTYPES[args.dtype]
    if args.shape:
        model = random_model(SHAPES[args.shape], device, dtype)
    else:
        model = load_model(args.model, device, dtype)
    result = {"command": " ".join(["python -m tools.bench", *(argv or sys.argv[1:])]),
              **machine(device), "dtype": args.dtype, "sections": {}}
    print(" ".join(f"{key}={value}" for key, value in result.items() if key != "sections"))
    for name, section in SECTIONS.items():
        if name in args.sections or "all" in args.sections:
            began = time.perf_counter()
            rows = result["sections"][name] = section(args, model)
            took = f"{time.perf_counter() - began:.0f} s"
            print_table(f"{name} ({took}): {' '.join(section.__doc__.split())}", rows)
            if args.out:
                write_json(args.out, result)


if __name__ == "__main__":
    cli.run(main)
