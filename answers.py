"""From questions to graded answers: one model, many prompts, any route.

Searching, choosing labels and evaluating all ask the same thing, "is the greedy answer right
along this route?", so it is asked in one place: prompts of similar length are batched, each
batch is one call of generate() with a path per row, and every answer is graded.

    answers = answer(model, tokenizer, prepare(questions, tokenizer, model), None)
"""
from dataclasses import dataclass

import torch

from model_llama import fixed, generate
from tasks import Question, gold_ids, grade, prompt_ids

BATCH_TOKENS = 16384  # prompt tokens in one call, whatever the number of rows


@dataclass(frozen=True)
class Prompt:
    """A question as one model's token ids. gold: the right answer as the model may write it."""
    question: Question
    ids: tuple
    gold: tuple = ()


@dataclass
class Answers:
    """Row n belongs to prompt n. right: (N,) reward in [0, 1]. confidence: (N,) probability
    the model gave its own answer. decisions: (N, L). layers: (N,) blocks run over all forward
    passes. passes: (N,) forward passes. texts: N strings."""
    right: torch.Tensor
    confidence: torch.Tensor
    decisions: torch.Tensor
    layers: torch.Tensor
    passes: torch.Tensor
    texts: list


def prepare(questions, tokenizer, model):
    """(prompts, too long): questions whose prompt and answer exceed the context are set apart."""
    prompts = [Prompt(q, tuple(prompt_ids(q, tokenizer)), tuple(gold_ids(q, tokenizer)))
               for q in questions]
    limit = model.config.max_positions
    fits = [len(p.ids) + p.question.budget <= limit for p in prompts]
    return ([p for p, fit in zip(prompts, fits) if fit],
            [p.question for p, fit in zip(prompts, fits) if not fit])


def batches(prompts, batch_size):
    """Lists of prompt indices of like answer budget and length, longest first."""
    order = sorted(range(len(prompts)), reverse=True,
                   key=lambda i: (prompts[i].question.budget, len(prompts[i].ids)))
    current = []
    for i in order:
        if current:
            first = prompts[current[0]]
            full = len(current) == batch_size or (len(current) + 1) * len(first.ids) > BATCH_TOKENS
            if full or prompts[i].question.budget != first.question.budget:
                yield current
                current = []
        current.append(i)
    if current:
        yield current


def answer(model, tokenizer, prompts, route, batch_size=512, progress=None, prefixes=None):
    """The Answers of every prompt. route: a Route, None, or decisions (N, L), a path per prompt.

    progress: called with the number of prompts answered by each batch. prefixes: a
    reuse.Prefixes for decisions; each answer then also begins with a guess, the gold answer, so
    that "is it right?" mostly takes a single pass. The Answers are the same.
    """
    N, L = len(prompts), model.config.num_layers
    result = Answers(torch.zeros(N), torch.zeros(N), torch.ones(N, L, dtype=torch.long),
                     torch.zeros(N, dtype=torch.long), torch.zeros(N, dtype=torch.long), [""] * N)
    for rows in batches(prompts, batch_size):
        here = fixed(route[rows]) if isinstance(route, torch.Tensor) else route
        shortcuts = {} if prefixes is None else {
            "guesses": [prompts[i].gold for i in rows],
            "run_prompt": prefixes.of([prompts[i].question.id for i in rows])}
        made = generate(model, [prompts[i].ids for i in rows], here,
                        prompts[rows[0]].question.budget, tokenizer.stop_ids, **shortcuts)
        result.decisions[rows], result.layers[rows] = made.decisions, made.layers_executed
        result.passes[rows] = made.passes
        result.confidence[rows] = made.logprobs.exp()
        for i, ids in zip(rows, made.tokens):
            result.texts[i] = tokenizer.decode(ids)
            result.right[i] = grade(result.texts[i], prompts[i].question)
        if progress:
            progress(len(rows))
    return result
