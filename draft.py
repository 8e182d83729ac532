"""Lossless mode: a cheap path drafts tokens, the model confirms many of them in one pass.

Beyond the paper. A route that skips layers proposes the next k tokens one by one; the model reads
them all in a single pass, keeps those that it would have said itself, and adds one of its own.
The answer is the model's greedy answer, token for token; the draft only decides how fast. Each
side has a cache of its own, because skipping a layer changes all later keys. A cache owns its
lengths, so refused tokens are forgotten by setting these back: they are overwritten.

    generate(model, prompts, draft=routers.route, draft_tokens=4)
"""
import torch

from model_llama import Generation, Transcript, decode, pad, prefill, room_of

# B batch rows   k drafted tokens per round


def propose(model, first, cache, k):
    """(B, k + 1) tokens: the first (B,) of every row, and k that follow along the cache's path."""
    tokens = [first]
    for _ in range(k):
        hidden = decode(model, tokens[-1][:, None], cache)
        tokens.append(model.head(hidden[:, 0]).argmax(-1))
    return torch.stack(tokens, 1)


def agreements(proposed, own):
    """(B,) how many of the k drafts in proposed (B, k + 1) the model's own tokens (B, k + 1),
    each said after the proposed token beside it, confirm before the first difference."""
    return (proposed[:, 1:] == own[:, :-1]).long().cumprod(1).sum(1)


def begin(model, prompts, route, capacity):
    """(hidden states (B, D) of every prompt's last token, cache)."""
    tokens, lengths = pad(prompts, model.embed_tokens.weight.device)
    hidden, cache = prefill(model, tokens, route, lengths, capacity)
    return hidden[torch.arange(len(prompts)), torch.tensor(lengths) - 1], cache


def say(said, logits, agreed):
    """Writes down the first agreed (B,) + 1 of the likeliest tokens of every row that is going on,
    logits (B, n, V); returns all n of them."""
    logprobs, own = logits.float().log_softmax(-1).max(-1)
    for row, (tokens, sure) in enumerate(zip(own.tolist(), logprobs.tolist())):
        for token, logprob in list(zip(tokens, sure))[:agreed[row] + 1]:
            if said.going[row]:
                said.say(row, token, logprob)
    return own


@torch.inference_mode()
def generate_drafted(model, prompts, route, draft, k, max_new_tokens, stop_ids):
    """The Generation of generate(model, prompts, route, ...), drafted along another route.

    layers_executed and passes count both sides: those that draft and those that confirm.
    """
    if k < 1:
        raise ValueError(f"draft_tokens must be at least 1, got {k}")
    room = room_of(model, prompts, max_new_tokens)
    capacity = max(map(len, prompts)) + max(room) + k  # the last round may reach beyond the room
    last, cache = begin(model, prompts, route, capacity)
    _, drafts = begin(model, prompts, draft, capacity)
    said = Transcript(room, set(stop_ids))
    passes = torch.ones(2, len(prompts), dtype=torch.long)  # of the model and the draft; the prompt
    accepted = torch.zeros(len(prompts), dtype=torch.long)
    tokens = say(said, model.head(last)[:, None], 0 * accepted)[:, 0]
    while any(said.going):
        context, going = cache.lengths, torch.tensor(said.going)
        proposed = propose(model, tokens, drafts, k)
        logits = model.head(decode(model, proposed, cache))  # (B, k + 1, V)
        agreed = agreements(proposed, logits.argmax(-1)).cpu()
        unread = int(agreed.max() == k)  # a draft accepted whole was never read by its own side
        if unread:
            decode(model, proposed[:, -1:], drafts)
        passes += torch.tensor([[1], [k + unread]]) * going
        accepted += agreed * going
        own = say(said, logits, agreed)
        cache.lengths = [length + same + 1 if on else length for length, same, on
                         in zip(context, agreed.tolist(), said.going)]
        drafts.lengths = list(cache.lengths)
        tokens = own.gather(1, agreed[:, None].to(own.device))[:, 0]
    layers = passes[0] * cache.decisions.sum(1) + passes[1] * drafts.decisions.sum(1)
    return Generation(said.tokens, cache.decisions, layers, passes.sum(0), said.logprobs,
                      k * (passes[0] - 1), accepted)
