"""Ask a model along its trained routers: the answer as it is written, then the layers it took.

A folder with a chat template holds a conversation, in which earlier turns are kept; a folder
without one, or --verbatim, goes on with the text as it stands. A model may write anything, so
what a terminal would obey is shown instead of sent.

    python -m tools.ask --routers runs/demo "3 + 4 * 2 ="
    python -m tools.ask --model DIR --routers DIR --plain       a conversation, until a blank line
"""
import contextlib
import os
import sys
from pathlib import Path

import torch

import cli
from drllm import Routers
from tools.explain import printable
from mcts import REPEAT, SKIP
from model_llama import decode, load_model, load_tokenizer, prefill
from storage.files import InputError

# ---- one answer ----


@torch.inference_mode()
def passes(model, ids, route, max_new_tokens, stop_ids):
    """generate() for one prompt, shown as it works: after every forward pass, the (answer's ids so
    far, decisions (L,)). The stop id is no part of the answer; its pass is."""
    room = min(max_new_tokens, model.config.max_positions - len(ids))
    tokens, said = torch.tensor([ids], device=model.embed_tokens.weight.device), []
    hidden, cache = prefill(model, tokens, route, capacity=len(ids) + room)
    for left in reversed(range(room)):
        chosen = model.head(hidden[:, -1]).float().log_softmax(-1).max(-1).indices  # (1,)
        ended = chosen.item() in stop_ids
        said += [] if ended else [chosen.item()]
        yield said, cache.decisions[0]
        if ended or not left:
            return
        hidden = decode(model, chosen[:, None], cache)


def cost(decisions, number):
    """The line under an answer of a number of passes along decisions (L,)."""
    L, run = len(decisions), int(decisions.sum())
    skipped, repeated = (int((decisions == kind).sum()) for kind in (SKIP, REPEAT))
    return (f"[layers per pass: {run} run, {skipped} skipped, {repeated} repeated; plain model: "
            f"{L} of {L}. Over {number} passes: {run * number}; plain model: {L * number}]")


def visible(text):
    """Text of which a terminal obeys nothing but line breaks and tabs."""
    return "".join(c if c in "\n\t" else printable(c) for c in text)


def show(model, tokenizer, ids, route, max_new_tokens):
    """Prints an answer while it is written, and its cost; returns its text."""
    shown, along = 0, passes(model, ids, route, max_new_tokens, tokenizer.stop_ids)
    for number, (said, decisions) in enumerate(along, 1):
        text, took = tokenizer.decode(said), cost(decisions, number)
        whole = text.rstrip("\ufffd")  # a character waits until all of its bytes are there
        print(visible(whole[shown:]), end="", flush=True)
        shown = max(shown, len(whole))
    print(visible(text[shown:]) + "\n" + took, flush=True)
    return text


# ---- the conversation ----

def prompt_ids(tokenizer, config, turns, encode, room):
    """Ids of the turns [{role, content}]. The earliest are dropped, for good, where the model's
    context does not hold them and an answer of `room` tokens."""
    while len(ids := encode(turns)) + room > config.max_positions and turns[2:]:
        del turns[:2]
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
    with contextlib.suppress(EOFError):
        yield from iter(lambda: input("> " if sys.stdin.isatty() else "").strip(), "")


def parse_args(argv=None):
    parser = cli.Parser(__doc__, prog="python -m tools.ask")
    cli.add_model_flags(parser)
    parser.add_argument("question", nargs="?", help="without one: a conversation")
    parser.add_argument("--routers", type=Path, default=Path("runs/demo"), metavar="FILE",
                        help="router file, or a folder with routers.safetensors")
    parser.add_argument("--plain", action="store_true", help="the plain model's answer, too")
    parser.add_argument("--max-new-tokens", type=cli.count, default=256,
                        help="of an answer, at most")
    parser.add_argument("--verbatim", action="store_true",
                        help="no chat template: the model goes on with the question's own text")
    return parser.parse_args(argv)


def main(argv=None):
    args, turns = parse_args(argv), []
    sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character shows another
    cli.use_device(args)
    tokenizer = load_tokenizer(args.model)
    model = load_model(args.model, args.device, cli.DTYPES.get(args.dtype))
    routers = Routers.load(args.routers, model)
    route, notes = routers.route, routers.notes
    how = f", multiple choice by {notes['score']}" if notes.get("score") else ""
    print(f"note: these routers learned from {', '.join(map(printable, notes['tasks']))}{how}; "
          "what they do to other questions nobody measured (--plain shows both answers)",
          file=sys.stderr)
    is_chat = tokenizer.has_template and not args.verbatim
    encode = tokenizer.chat if is_chat else lambda turns: tokenizer.encode(turns[-1]["content"])
    if not (is_chat or args.verbatim):
        print("note: this folder has no chat template; every question goes to the model as it "
              "stands, without earlier turns", file=sys.stderr)
    for question in typed() if args.question is None else [args.question]:
        turns = (turns if is_chat else []) + [{"role": "user", "content": question}]
        ids = prompt_ids(tokenizer, model.config, turns, encode, args.max_new_tokens)
        answer = show(model, tokenizer, ids, route, args.max_new_tokens)
        turns.append({"role": "assistant", "content": answer})
        if args.plain:
            print("plain model:")
            show(model, tokenizer, ids, None, args.max_new_tokens)


if __name__ == "__main__":
    cli.run(main)
