"""What single edits of the default path do to many questions, and which edit helped those nearest.

A search asks which path is correct for one question, and luck misleads it. Here every path with one
edit (a layer skipped or repeated) is asked of all questions alike. The effect of an edit is the
change of the log-probability of the correct answer.

    correct, logprobs = ask_edits(model, prompts, single_edit_paths(num_layers), AnswerCache(file))
"""
import os
from dataclasses import replace

import torch

from answers import (batches, likeliest_option, option_positions, option_values, score_options,
                     tokens_at_once, what_answers_depend_on)
from cli import progress_bar
from model_llama import FixedRoute, KVCache, Positions, pad, prefill, run_blocks
from paths import EDITS, SKIP, default_path, with_decision
from questions.schemas import LETTERS
from storage.answer_cache import source_hash

# N questions   K paths, the default path first   T tokens   S numbers that describe a question

NEAREST = 32         # questions whose effects decide
STANDARD_ERRORS = 2  # subtracted from a mean effect, so that an uncertain edit is not chosen
LARGEST = 5.0        # nats; larger changes count as this, or single questions would decide


def single_edit_paths(num_layers):
    """The default path and every path with one edit, skips before repeats."""
    default = default_path(num_layers)
    return [default, *(with_decision(default, layer, code)
                       for code in EDITS for layer in range(num_layers))]


# ---- many paths asked of a batch of questions ----

class ContinuedCache(KVCache):
    """A KVCache of `number` rows that begin with the same tokens. beginning: the KVCache of these
    tokens, one row; each layer's keys and values are copied when the layer is run."""

    def __init__(self, beginning, number, new_tokens):
        length = beginning.lengths[0]
        super().__init__([length] * number, len(beginning.slots), length + new_tokens,
                         beginning.angles)
        self.beginning = beginning

    def admit(self, layer, decisions):
        super().admit(layer, decisions)
        for slot, begun in zip(self.slots[layer], self.beginning.slots[layer]):
            keys = begun.keys.expand(len(decisions), -1, -1, -1)
            values = begun.values.expand(len(decisions), -1, -1, -1)
            slot.write(keys, values, Positions(0, cos=None, sin=None))


@torch.inference_mode()
def ask_batch(model, prompts, paths):
    """(2, N, K): whether the answer along each path is correct, and the log-probability of the
    correct answer. paths[0] is the default path.

    Two things are run once instead of N and K times: the tokens that all prompts begin with, such
    as worked examples, as a single row along each path; and what comes before a path's first edit,
    which is the default path's."""
    # the last token of each prompt is not shared: what follows it is to be predicted
    shared = os.path.commonprefix([prompt.ids[:-1] for prompt in prompts])
    rests = [replace(prompt, ids=prompt.ids[len(shared):]) for prompt in prompts]
    tokens, _ = pad([prompt.sequence for prompt in rests], model.embed_tokens.weight.device)
    default_states = {0: model.embed_tokens(tokens)}  # {layer: (N, T, D) that enter it}
    of_paths = []
    for path in paths:
        cache = cache_after(model, shared, path, *tokens.shape)
        positions = positions_after(model, prompts, cache, len(shared), tokens.shape[1])
        is_default = path == paths[0]
        first_edit = 0 if is_default else [a != b for a, b in zip(path, paths[0])].index(True)

        def decide(layer, entering, lengths):
            if is_default:
                default_states[layer] = entering
            code = path[layer] if layer >= first_edit else SKIP  # skipped, since it has been run
            return torch.full((len(entering),), code, device=entering.device)

        hidden = run_blocks(model, default_states[first_edit], positions, cache, decide)
        of_paths.append(grade_gold(model, rests, hidden))
    return torch.stack(of_paths, dim=-1)


def cache_after(model, shared, path, number, new_tokens):
    """The KVCache of `number` rows that have read the shared tokens along a path."""
    if not shared:
        return model.empty_cache([new_tokens] * number, new_tokens)
    tokens = torch.tensor([shared], device=model.embed_tokens.weight.device)
    _, beginning = prefill(model, tokens, FixedRoute(path), capacity=len(shared))
    beginning.angles = model.empty_cache([1], len(shared) + new_tokens).angles
    return ContinuedCache(beginning, number, new_tokens)


def positions_after(model, prompts, cache, start, T):
    """The Positions of the T tokens that follow the first `start` tokens of the prompts."""
    if not prompts[0].options:
        return model.positions(cache, start, T)
    whole = option_positions(model, prompts)
    return Positions(start, whole.cos[:, :, start:], whole.sin[:, :, start:],
                     whole.mask[:, :, start:])


def grade_gold(model, prompts, hidden):
    """(2, N): whether the greedy answer is the correct one, and the correct one's log-probability.
    hidden (N, T, D): after the last layer, of the prompts and what follows them."""
    if prompts[0].options:
        return grade_options(model, prompts, hidden)
    before_gold = [states[len(prompt.ids) - 1:len(prompt.sequence) - 1]
                   for states, prompt in zip(hidden, prompts)]
    gold = torch.tensor([token for prompt in prompts for token in prompt.gold],
                        device=hidden.device)
    is_greedy, of_gold, size = [], [], tokens_at_once(model)
    for states, wanted in zip(torch.cat(before_gold).split(size), gold.split(size)):
        logprobs = model.head(states).float().log_softmax(-1)  # (tokens, V)
        is_greedy.append(logprobs.argmax(-1) == wanted)
        of_gold.append(logprobs.gather(1, wanted[:, None])[:, 0])
    sizes = [len(prompt.gold) for prompt in prompts]
    return torch.tensor([[float(tokens.all()) for tokens in torch.cat(is_greedy).split(sizes)],
                         [tokens.sum().item() for tokens in torch.cat(of_gold).split(sizes)]])


def grade_options(model, prompts, hidden):
    """grade_gold of options that are compared by likelihood: their probabilities sum to one."""
    correct, logprobs = [], []
    for prompt, states in zip(prompts, hidden):
        scores = score_options(model, states, prompt)
        gold = LETTERS.index(prompt.question.answer)
        correct.append(float(likeliest_option(prompt.question, scores)[0] == gold))
        logprobs.append(option_values(prompt.question, scores).log_softmax(0)[gold].item())
    return torch.tensor([correct, logprobs])


def ask_edits(model, prompts, paths, cache, batch_size=128):
    """ask_batch of all prompts, of which only those are asked that the cache lacks."""
    depends = ["edits", paths, source_hash("experiments/edits.py"), *what_answers_depend_on(model)]
    about = [[*depends, prompt.key()] for prompt in prompts]
    missing = [n for n in range(len(prompts)) if about[n] not in cache]
    numbers_of = {}  # {task: its questions}, which may begin with the same tokens
    for n in missing:
        numbers_of.setdefault(prompts[n].question.task, []).append(n)
    with progress_bar(total=len(missing), desc="single edits", unit="question") as bar:
        for numbers in numbers_of.values():
            for rows in batches([prompts[n] for n in numbers], batch_size):
                batch = [numbers[row] for row in rows]
                asked = ask_batch(model, [prompts[n] for n in batch], paths)
                for n, values in zip(batch, asked.transpose(0, 1).tolist()):
                    cache.get(about[n], lambda: values)
                bar.update(len(batch))
    return torch.tensor([cache.get(key, None) for key in about]).transpose(0, 1)


# ---- which edit helped the nearest questions? ----

def effects_of(logprobs, reference=0):
    """(N, K) effects of paths: changes of the log-probability against a reference path."""
    return (logprobs - logprobs[:, [reference]]).clamp(-LARGEST, LARGEST)


def lower_bounds(effects):
    """(N, K) mean effects less their standard errors, of effects (N, m, K) on m questions each. The
    bound of a path without any effect, such as the reference path, is exactly 0."""
    means, number = effects.mean(1), effects.shape[1]
    if number < 2:  # one question says nothing of others
        return torch.where(means == 0, 0.0, -torch.inf)
    return means - STANDARD_ERRORS * effects.std(1) / number ** 0.5


def best_for_nearest(space, known_space, effects):
    """(N,) the path with the best lower bound on the NEAREST known questions, whose effects (M, K)
    are given. space (N, S), known_space (M, S): see choose.similarity_space."""
    number = min(NEAREST, len(known_space))
    near = torch.cdist(space, known_space).topk(number, largest=False).indices  # (N, number)
    return lower_bounds(effects[near]).argmax(1)
