"""Multiple choice by likelihood: the option whose text the model finds likeliest is its answer.

Small and base models often know an answer that they cannot give as a letter. As in the
lm-evaluation-harness, whose acc and acc_bytes these are (its acc_norm counts characters), the score
of an option is the sum of its tokens' log-probabilities after the question, or that per byte. All
options of a question ride in one sequence with it: one pass through the layers scores them all.

    --score likelihood, or --score likelihood-per-byte, of label.py, train.py and evaluate.py
"""
import os

import torch

from model_llama import Span, pad
from parts.files import InputError
from parts.schemas import LETTERS
from parts.sharing import through_layers

FORM = """Question: {question}
Answer:"""

# B prompts   T tokens of a prompt and its options   D hidden size   V vocabulary


def option_ids(question, tokenizer):
    """(ids, options, scored) for scoring by likelihood: what all options begin with, how each goes
    on, and how many last tokens of each are its score.

    The text before the options is a base prompt, as in the lm-evaluation-harness, whatever chat
    template the folder has. As there, a text and its option are encoded together, and what is
    longer than the text encoded alone is the option, also where a token spans the two."""
    if question.continuation:
        pairs = [(begun, begun + question.continuation) for begun in question.choices]
    else:
        form = "{question}" if question.unfinished else FORM
        text = question.prompt or form.format(question=question.question)
        space = "" if text[-1].isspace() else " "
        pairs = [(text.rstrip(), text + space + choice) for choice in question.choices]
    contexts = [tokenizer.encode(text) for text, _ in pairs]
    added = [tokenizer.encode(whole)[len(ids):] for ids, (_, whole) in zip(contexts, pairs)]
    shared = len(os.path.commonprefix(contexts))  # which compares any sequences
    scored = tuple(map(len, added))
    if not shared or min(scored) < 1:
        raise InputError(f"{tokenizer.folder}: question {question.id}: its options share {shared} "
                         f"tokens and add {min(scored)} at least; --score likelihood needs 1 each")
    options = tuple(tuple(ids[shared:] + more) for ids, more in zip(contexts, added))
    return contexts[0][:shared], options, scored


def span_of(model, prompts):
    """The Span of B sequences, each a prompt and its options one after the other: the tokens of an
    option see the prompt and themselves, and their positions go on from the prompt's."""
    device = model.embed_tokens.weight.device
    member, places = [], []  # of each token: 0 for the prompt, k for option k; its position
    for prompt in prompts:
        start = len(prompt.ids)
        member.append([0] * start)
        places.append([*range(start)])
        for k, option in enumerate(prompt.options, 1):
            member[-1] += [k] * len(option)
            places[-1] += range(start, start + len(option))
    (member, _), (places, _) = pad(member, device), pad(places, device)
    visible = (member[:, None] == 0) | (member[:, None] == member[..., None])  # (B, T, T)
    cos, sin = model.empty_cache([1], int(places.max()) + 1).angles
    return Span(0, cos[places][:, None], sin[places][:, None], visible.tril()[:, None])


def scores_of(model, hidden, prompt):
    """[(log-probability, whether its tokens are the likeliest)] of every option of a prompt, from
    the hidden states (T, D) that come out of the last layer. Each prompt has a call of its own,
    since logits are as wide as the vocabulary."""
    start, scores = len(prompt.ids), []
    for option, scored in zip(prompt.options, prompt.scored):
        before = [len(prompt.ids) - 1, *range(start, start + len(option) - 1)][-scored:]
        logprobs = model.head(hidden[before]).float().log_softmax(-1)  # (scored, V)
        wanted = torch.tensor(option[-scored:], device=hidden.device)
        scores.append((logprobs.gather(1, wanted[:, None]).sum().item(),
                       logprobs.argmax(-1).equal(wanted)))
        start += len(option)
    return scores


def pick(question, scores):
    """(number of the likeliest option, softmax of what was compared at that option)."""
    worth = torch.tensor([logprob for logprob, _ in scores])
    if question.metric == "likelihood-per-byte":
        texts = [question.continuation or choice for choice in question.choices]
        worth = worth / torch.tensor([len(text.encode()) for text in texts])
    return int(worth.argmax()), worth.softmax(0).max().item()


def likeliest(model, prompts, route, known=None):
    """(letters, confidence (B,), decisions (B, L)) of the options that a model finds likeliest."""
    scores, decisions = option_scores(model, prompts, route, known)
    options, confidence = zip(*(pick(p.question, one) for p, one in zip(prompts, scores)))
    return [LETTERS[option] for option in options], torch.tensor(confidence), decisions


@torch.inference_mode()
def option_scores(model, prompts, route, known=None):
    """(what scores_of gives of each, decisions (B, L)) of prompts with options. The route sees the
    text before the options. known: see sharing.through_layers."""
    hidden, decisions = through_layers(
        model, [p.sequence for p in prompts], [len(p.ids) for p in prompts], route, known,
        span_of(model, prompts))
    scores = [scores_of(model, states, p) for p, states in zip(prompts, hidden)]
    return scores, decisions
