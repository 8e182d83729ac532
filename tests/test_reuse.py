"""Reuse and guesses change nothing but the time: same tokens, same caches, within the memory."""
import random
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILIES, WORDS, tiny_model

from model_llama import decode, fixed, generate, pad, prefill
from reuse import Prefixes, copy_rows

PATHS = [path for path in product((0, 1, 2), repeat=3) if any(path)]  # all but three skips
LARGE = 2 ** 30


def draw(rng, most=5):
    """(names, prompts, paths) of one call; a name always has the same prompt."""
    prompts = {name: [random.Random(f"{name}").randrange(2, len(WORDS))
                      for _ in range(1 + 3 * name)] for name in range(4)}
    names = [rng.randrange(4) for _ in range(rng.randint(1, most))]
    return names, [prompts[name] for name in names], [rng.choice(PATHS) for _ in names]


def same(made, plain):
    assert made.tokens == plain.tokens
    for field in ("decisions", "layers_executed", "passes"):
        assert torch.equal(getattr(made, field), getattr(plain, field)), field
    assert torch.allclose(made.logprobs, plain.logprobs, atol=1e-5)


@given(st.sampled_from(sorted(FAMILIES)), st.integers(0, 10 ** 6),
       st.sampled_from([0, 2000, 20_000, LARGE]))
@settings(max_examples=40)
def test_calls_that_share_work_answer_as_calls_that_do_not(family, seed, limit):
    """Catches a state of another row, path, layer or pass, and one that was written over."""
    rng, model, prefixes = random.Random(seed), tiny_model(seed % 5, family), Prefixes(limit)
    for _ in range(6):
        names, prompts, paths = draw(rng)
        plain = generate(model, prompts, fixed(paths), 4, (1,))
        same(generate(model, prompts, fixed(paths), 4, (1,), run_prompt=prefixes.of(names)), plain)
        assert prefixes.bytes <= limit


@given(st.sampled_from(sorted(FAMILIES)), st.integers(0, 10 ** 6), st.integers(1, 6))
@settings(max_examples=40)
def test_a_guess_changes_no_answer(family, seed, budget):
    """Catches a guess taken for an answer, kept keys of a wrong guess, one followed too far."""
    rng, model = random.Random(seed), tiny_model(seed % 5, family)
    names, prompts, paths = draw(rng)
    stops = tuple(rng.sample(range(len(WORDS)), rng.randint(0, 8)))
    plain = generate(model, prompts, fixed(paths), budget, stops)
    guesses = [tokens[:rng.randint(0, 6)] + rng.choices(range(len(WORDS)), k=rng.randint(0, 3))
               for tokens in plain.tokens]
    same(generate(model, prompts, fixed(paths), budget, stops, guesses), plain)
    prefixes = Prefixes(LARGE)
    fixed_guess = dict(zip(names, guesses))  # states are a question's own: so is its guess
    for _ in range(3):
        paths = [rng.choice(PATHS) for _ in names]
        same(generate(model, prompts, fixed(paths), budget, stops, [fixed_guess[n] for n in names],
                      prefixes.of(names)), generate(model, prompts, fixed(paths), budget, stops))


def test_a_right_guess_saves_every_decoding_pass(monkeypatch):
    """Catches guesses that are ignored."""
    import model_llama
    model = tiny_model(2)
    plain = generate(model, [[5, 6, 7]], None, 5)
    steps = []
    monkeypatch.setattr(model_llama, "decode", lambda *a: steps.append(1) or decode(*a))
    same(generate(model, [[5, 6, 7]], None, 5, guesses=plain.tokens), plain)
    assert not steps
    generate(model, [[5, 6, 7]], None, 5, guesses=[plain.tokens[0][:2]])
    assert len(steps) == 2  # the third answer token comes with the guess; two more are decoded


def test_work_is_counted_and_only_what_differs_is_computed():
    """By hand: three layers, paths (1,1,1), (1,1,2) and (0,1,1) share two, then no layers."""
    model, prefixes = tiny_model(0), Prefixes(LARGE)
    counts = []
    for path in [(1, 1, 1), (1, 1, 2), (0, 1, 1), (0, 2, 1), (1, 1, 0)]:
        generate(model, [[4, 5]], fixed([path]), 1, run_prompt=prefixes.of(["q"]))
        counts.append((prefixes.asked, prefixes.computed))
    assert counts == [(3, 3), (7, 5), (9, 7), (12, 10), (14, 10)]


def test_without_memory_everything_is_computed_and_nothing_kept():
    model, prefixes = tiny_model(0), Prefixes(0)
    for _ in range(2):
        generate(model, [[4, 5]], fixed([(1, 1, 1)]), 1, run_prompt=prefixes.of(["q"]))
    assert prefixes.computed == prefixes.asked == 6 and not prefixes.known and not prefixes.pages


def test_another_question_shares_nothing():
    """Catches states looked up by path alone."""
    model, prefixes = tiny_model(0), Prefixes(LARGE)
    for name in ("a", "b"):
        generate(model, [[4, 5]], fixed([(1, 1, 1)]), 1, run_prompt=prefixes.of([name]))
    assert prefixes.computed == prefixes.asked == 6


def test_least_recently_used_page_goes_first():
    """Catches a limit that empties everything, and one that drops the default path's states."""
    model, prefixes = tiny_model(0), Prefixes(LARGE)
    ask = lambda name, path: generate(model, [[4, 5]], fixed([path]), 1,
                                      run_prompt=prefixes.of([name]))
    ask("a", (1, 1, 1)), ask("b", (1, 1, 1))
    prefixes.limit = prefixes.bytes
    ask("a", (1, 1, 2))       # uses a's page, stores nothing that is longer than two layers
    ask("c", (1, 1, 1))       # needs room
    assert {name for name, _ in prefixes.known} == {"a", "c"}
    assert prefixes.bytes <= prefixes.limit


@given(st.integers(0, 10 ** 6))
@settings(max_examples=25)
def test_the_completed_cache_decodes_as_a_whole_prompts_cache(seed):
    """Catches a layer before a row's start whose keys were forgotten."""
    rng, model, prefixes = random.Random(seed), tiny_model(seed % 5), Prefixes(LARGE)
    names, prompts, _ = draw(rng)
    tokens, lengths = pad(prompts)
    nxt = torch.full((len(names), 2), 7)
    for _ in range(3):
        route = fixed([rng.choice(PATHS) for _ in names])
        hidden, cache = prefixes.prefill(names, model, tokens, route, lengths, tokens.shape[1] + 2)
        want, plain = prefill(model, tokens, route, lengths, tokens.shape[1] + 2)
        ends = torch.tensor(lengths) - 1
        rows = torch.arange(len(names))
        assert torch.allclose(hidden[rows, ends], want[rows, ends], atol=1e-9)
        assert torch.equal(cache.decisions, plain.decisions) and cache.bytes == plain.bytes
        assert torch.allclose(decode(model, nxt, cache), decode(model, nxt, plain), atol=1e-9)


def test_copy_rows_by_hand():
    """Two sources, one shorter than the target: what it does not have stays."""
    target = torch.zeros(3, 2, 1)
    copy_rows(target, [(0, torch.full((2, 1, 1), 5.0), 1), (2, torch.full((1, 4, 1), 7.0), 0)])
    assert target[:, :, 0].tolist() == [[5, 0], [0, 0], [7, 7]]


@pytest.mark.parametrize("limit", [0, LARGE])
def test_every_row_of_a_call_may_be_the_same_question(limit):
    """Catches two rows that store under one name."""
    model, prefixes = tiny_model(1), Prefixes(limit)
    paths = PATHS[:6]
    for _ in range(2):
        made = generate(model, [[4, 5, 6]] * 6, fixed(paths), 3,
                        run_prompt=prefixes.of(["q"] * 6))
        same(made, generate(model, [[4, 5, 6]] * 6, fixed(paths), 3))
