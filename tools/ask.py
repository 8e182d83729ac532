"""Ask a model along its trained routers: the answer as it is written, then the layers it took.

If the model's folder has a chat template, this is a conversation, in which earlier turns are part
of the prompt. Without one, or with --verbatim, the model continues the text as it is. A model may
write anything, so control characters are shown instead of sent to the terminal.

    python -m tools.ask --routers runs/demo "3 + 4 * 2 ="
    python -m tools.ask --model DIR --routers DIR       a conversation, until a blank line
    python -m tools.ask --model DIR --plain "3 + 4 ="   the base model, which needs no routers
"""
import contextlib
import os
import sys
from pathlib import Path

import torch

import cli
from drllm import Routers
from model_llama import decode, load, prefill
from paths import REPEAT, SKIP, blocks
from storage.files import InputError
from tools.explain import printable

DEMO_ROUTERS = Path("runs/demo/routers.safetensors")  # where train.py leaves them

# L layers


# ---- one answer ----

@torch.inference_mode()
def passes(model, ids, route, max_new_tokens, stop_ids):
    """generate() for one prompt, step by step: yields after every forward pass the (answer's ids so
    far, decisions (L,)). The stop id is not in the answer; its pass is counted."""
    most = min(max_new_tokens, model.config.max_positions - len(ids))
    tokens = torch.tensor([ids], device=model.embed_tokens.weight.device)
    hidden, cache = prefill(model, tokens, route, capacity=len(ids) + most)
    answer_ids = []
    for left in reversed(range(most)):
        next_id = model.head(hidden[:, -1]).float().log_softmax(-1).max(-1).indices  # (1,)
        ended = next_id.item() in stop_ids
        if not ended:
            answer_ids.append(next_id.item())
        yield answer_ids, cache.decisions[0]
        if ended or not left:
            return
        hidden = decode(model, next_id[:, None], cache)


def cost(decisions, number):
    """The line under an answer that took a number of passes along decisions (L,)."""
    L, run = len(decisions), int(blocks(decisions))
    skipped = int((decisions == SKIP).sum())
    repeated = int((decisions == REPEAT).sum())
    return (f"[layers per pass: {run} run, {skipped} skipped, {repeated} repeated; base model: "
            f"{L} of {L}. Over {number} passes: {run * number}; base model: {L * number}]")


def visible(text):
    """Text without control characters, except for line breaks and tabs."""
    return "".join(c if c in "\n\t" else printable(c) for c in text)


def show(model, tokenizer, ids, route, max_new_tokens):
    """Prints an answer while it is written, and its cost; returns its text."""
    shown = 0  # characters
    growing = passes(model, ids, route, max_new_tokens, tokenizer.stop_ids)
    for number, (answer_ids, decisions) in enumerate(growing, 1):
        text = tokenizer.decode(answer_ids)
        last_line = cost(decisions, number)
        whole = text.rstrip("\ufffd")  # a character waits until all of its bytes are there
        print(visible(whole[shown:]), end="", flush=True)
        shown = max(shown, len(whole))
    print(f"{visible(text[shown:])}\n{last_line}", flush=True)
    return text


# ---- the conversation ----

def prompt_ids(tokenizer, config, turns, encode, max_new_tokens):
    """Ids of the turns [{role, content}]. The earliest are dropped, for good, when the model's
    context does not hold them and an answer of max_new_tokens."""
    while len(ids := encode(turns)) + max_new_tokens > config.max_positions and turns[2:]:
        del turns[:2]  # a question goes with its answer
        print("note: the context is full; the earliest turn is left out", file=sys.stderr)
    if not 0 < len(ids) < config.max_positions:
        raise InputError(f"a prompt of {len(ids)} tokens; the model takes 1 to "
                         f"{config.max_positions - 1}")
    if max(ids) >= config.vocab_size:
        raise InputError(f"{tokenizer.folder}: tokenizer.json gives id {max(ids)}; the model knows "
                         f"0 to {config.vocab_size - 1}")
    return ids


def typed():
    """The questions on standard input, a line each, until a blank line or its end."""
    if sys.stdin is None:  # closed before we began (`<&-`): nothing to read
        sys.stdin = open(os.devnull, encoding="utf-8")
    sys.stdin.reconfigure(errors="replace")
    mark = "> " if sys.stdin.isatty() else ""
    with contextlib.suppress(EOFError):
        while question := input(mark).strip():
            yield question


# ---- the command ----

def load_routers(args, model):
    """The Routers of --routers, or of the demo for the demo's model; None when --plain asks a
    model that has none. InputError says how routers are made."""
    file, make = args.routers, f"python train.py --model {args.model} --data FILE --out DIR"
    if args.model.resolve() == cli.DEMO_MODEL:
        make = "python train.py"
        file = file or DEMO_ROUTERS
    if file is not None and file.is_dir():
        file = file / "routers.safetensors"
    if file is not None and file.exists():
        return Routers.load(file, model)
    if args.plain and args.routers is None:
        print("note: no routers, so the base model answers alone", file=sys.stderr)
        return None
    missing = "no --routers FILE was given" if file is None else f"{file}: No such file"
    raise InputError(f"{missing}. `{make}` makes routers; --plain without --routers asks the base "
                     "model alone")


def note_on(routers):
    """A line on what the routers learned from."""
    tasks = ", ".join(map(printable, routers.metadata["tasks"]))
    score = routers.metadata.get("score")
    how = f", multiple choice by {score}" if score else ""
    return (f"note: these routers learned from {tasks}{how}; on other questions they were "
            "not measured (--plain shows both answers)")


def parse_args(argv=None):
    parser = cli.Parser(__doc__, prog="python -m tools.ask")
    cli.add_model_flags(parser)
    parser.add_argument("question", nargs="?", help="without one: a conversation")
    parser.add_argument("--routers", type=Path, metavar="FILE",
                        help="router file, or a folder with routers.safetensors; default for the "
                             f"demo's model: {DEMO_ROUTERS}")
    parser.add_argument("--plain", action="store_true",
                        help="the base model's answer, too; without routers, alone")
    parser.add_argument("--max-new-tokens", type=cli.count, default=256,
                        help="of an answer, at most")
    parser.add_argument("--verbatim", action="store_true",
                        help="no chat template: the model continues the question's own text")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character shows another
    tokenizer, model = load(args)
    routers = load_routers(args, model)
    routes = []
    if routers:
        routes.append(routers.route)
        print(note_on(routers), file=sys.stderr)
    if args.plain:
        routes.append(None)
    is_chat = tokenizer.has_template and not args.verbatim
    if not (is_chat or args.verbatim):
        print("note: this folder has no chat template; every question goes to the model as it is, "
              "without earlier turns", file=sys.stderr)

    def encode(turns):
        return tokenizer.chat(turns) if is_chat else tokenizer.encode(turns[-1]["content"])
    turns = []
    for question in typed() if args.question is None else [args.question]:
        if not is_chat:
            turns = []
        turns.append({"role": "user", "content": question})
        ids = prompt_ids(tokenizer, model.config, turns, encode, args.max_new_tokens)
        answers = []
        for route in routes:
            if answers:
                print("base model:")
            answers.append(show(model, tokenizer, ids, route, args.max_new_tokens))
        turns.append({"role": "assistant", "content": answers[0]})


if __name__ == "__main__":
    cli.run(main)
