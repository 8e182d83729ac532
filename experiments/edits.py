"""What single edits of the default path do to many questions, and which edit helped those nearest.

A search asks which path is correct for one question, and luck misleads it. Here every path with one
edit (a layer skipped or repeated) is asked of all questions alike. The effect of an edit is the
change of the log-probability of the correct answer.

    correct, logprobs = ask_edits(model, prompts, single_edit_paths(num_layers), AnswerCache(file))
"""
import torch

from answers import (batches, final_states, likeliest_option, option_positions, option_values,
                     score_options, tokens_at_once, what_answers_depend_on)
from cli import progress_bar
from model_llama import FixedRoute
from paths import EDITS, default_path, with_decision
from questions.schemas import LETTERS
from storage.answer_cache import source_hash

# N questions   K paths, the default path first   S numbers that describe a question

NEAREST = 32         # questions whose effects decide
STANDARD_ERRORS = 2  # subtracted from a mean effect, so that an uncertain edit is not chosen
LARGEST = 5.0        # nats; larger changes count as this, or single questions would decide


def single_edit_paths(num_layers):
    """The default path and every path with one edit, skips before repeats."""
    default = default_path(num_layers)
    return [default, *(with_decision(default, layer, code)
                       for code in EDITS for layer in range(num_layers))]


# ---- many paths asked of a batch of questions ----

@torch.inference_mode()
def ask_batch(model, prompts, paths):
    """(2, N, K): whether the answer along each path is correct, and the log-probability of the
    correct answer. paths[0] is the default path; every other path continues from its hidden states
    at the first edit."""
    sequences = [prompt.sequence for prompt in prompts]
    lengths = [len(prompt.ids) for prompt in prompts]
    positions = option_positions(model, prompts) if prompts[0].options else None
    default_states = [{} for _ in prompts]  # of each prompt, see answers.final_states
    of_paths = []
    for path in paths:
        shared_states = default_states
        if path != paths[0]:  # what it stores is not used again
            shared_states = [dict(states) for states in default_states]
        hidden, _ = final_states(model, sequences, lengths, FixedRoute(path), shared_states,
                                 positions)
        of_paths.append(grade_gold(model, prompts, hidden))
    return torch.stack(of_paths, dim=-1)


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
    with progress_bar(total=len(missing), desc="single edits", unit="question") as bar:
        for rows in batches([prompts[n] for n in missing], batch_size):
            batch = [missing[row] for row in rows]
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
