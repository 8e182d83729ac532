"""Claims about answers.judge: the grade that the whole answer would get, for less work.

Tiny random models speak PIECES, decoded byte by byte as by a real tokenizer, so that an answer has
many spellings, may break off inside a character, and often is a letter, a box or a stop. What a
model says along some path is taken for gold, so that correct and incorrect answers are common.
"""
import functools
import itertools
import random
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

import answers
from answers import (Prompt, answer, answer_beginning, final_states, grade_if_settled, grade_paths,
                     prepare, stop_ids)
from model_llama import FixedRoute, generate, load_tokenizer, pad, prefill
from paths import blocks
from questions.loading import OPENED, Question
from questions.prompts import gold_ids
from questions.reward import extract_answer, grade
from tiny import FAMILIES, WORDS, edit_json, save_tiny, tiny_model

PIECES = [OPENED, "Answer:", *"ABCD().\n#{}0123456/-", "5}", "12", "5}\n", "3#", "2 ", " ", "the",
          "cat", "é", "end", "stop"]
PATHS = [path for path in itertools.product((0, 1, 2), repeat=3) if any(path)]
ONCE = dict(derandomize=True)  # two tokens may be as likely as each other: the same cases every day
seeds = st.integers(0, 10**6)


# ---- a tokenizer, with a chat template and without ----

def tokenizer_of(folder, **settings):
    """Every piece is a token, and so are the two halves of the letter é."""
    to_text = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = lambda text: to_text.pre_tokenize_str(text)[0][0]
    names = ["<unk>", "<eos>", *map(spelled, PIECES), *spelled("é"), "so", "is", "it"]
    save_tiny(folder, tiny_model())
    vocabulary = {name: i for i, name in enumerate(names)}
    assert len(vocabulary) == len(WORDS)
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    pieces = "|".join(map(re.escape, sorted(PIECES, key=len, reverse=True)))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pieces + r"|[e-zE-Z,\"':;?$=+]+"), "isolated"), to_text])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<unk>", "<eos>"])
    made.save(str(folder / "tokenizer.json"))
    ends = [vocabulary[name] for name in ("<eos>", "end", "stop")]
    edit_json(folder / "generation_config.json", eos_token_id=ends)
    edit_json(folder / "tokenizer_config.json", **settings)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """{has a chat template: tokenizer}."""
    folder = tmp_path_factory.mktemp("tokenizers")
    chat = {"chat_template": "{{ messages[0]['content'] }}"}
    made = [tokenizer_of(folder / "plain"), tokenizer_of(folder / "chat", **chat)]
    assert [one.has_template for one in made] == [False, True]
    return made


# ---- questions of every kind ----

KINDS = ("letter", "letter asked", "box asked", "box begun", "whole text", "stopped text",
         "stopped box", "words in common", "words in common, boxed", "words in common, stopped")


def question_of(kind, rng, said, name="q"):
    """A question whose gold answer is mostly what `said`, a text, answers to it."""
    cut = rng.randrange(len(said) + 1)
    stop = said[cut:cut + rng.randint(1, 2)] or "\n"
    verbatim = "".join(rng.choices(PIECES[2:], k=rng.randint(1, 6)))
    boxed = kind in ("box begun", "stopped box")
    made = Question(
        name, "t", 0, "" if kind != "box asked" else verbatim, "?",
        tuple("wxyz") if "letter" in kind else (),
        None if "asked" in kind or kind.endswith("boxed") else verbatim + OPENED * boxed,
        rng.randint(1, 6), stop if "stopped" in kind else None,
        metric="f1" if "words" in kind else "exact")
    text = said.partition(stop)[0] if "stopped" in kind else said
    gold = extract_answer(text, made)
    if "letter" in kind:
        gold = gold if gold in tuple("ABCD") and rng.random() < 0.7 else rng.choice("ABCD")
    elif not (gold or "").strip() or rng.random() < 0.3:
        gold = rng.choice(["12", "5", "the cat", "3 2", "é", "(1", "-0", "unanswerable"])
    several = rng.random() < 0.2 and "letter" not in kind
    return replace(made, answer=gold, answers=(gold, "12", "cat é") if several else ())


# ---- settled: whatever follows ----

def whole_answer(kind, seed, tokenizer):
    """(ids, Prompt): what a generation may have ended with, and what it is an answer to."""
    rng = random.Random(seed)
    ids = [rng.randrange(2, len(WORDS)) for _ in range(rng.randint(1, 6))]
    if rng.random() < 0.5:  # another spelling of a likely answer
        text = rng.choice(["5}\n", "12#", "the cat", " A", "(B)", "A.", OPENED + "5}", "3 2}"])
        ids = tokenizer.encode(text) + ids
    question = question_of(kind, rng, tokenizer.decode(ids))
    ends = stop_ids(question.stop, tokenizer)
    ids = ids[:next((k + 1 for k, i in enumerate(ids) if i in ends), len(ids))]
    budget = len(ids) + (rng.randrange(3) if ids[-1] in ends else 0)
    question = replace(question, max_new_tokens=budget)
    return ids, Prompt(question, (2,), tuple(gold_ids(question, tokenizer)), ends)


def check_every_beginning(ids, prompt, tokenizer):
    """What an answer begins with has the grade of the whole answer, or none yet."""
    text = tokenizer.decode(ids[:-1] if ids[-1] in prompt.stop_ids else ids)
    correct = grade(text, prompt.question)
    for said in range(1, len(ids)):
        assert grade_if_settled(ids[:said], prompt, tokenizer) in (None, correct), ids[:said]
    assert grade_if_settled(ids, prompt, tokenizer) == correct


@given(st.sampled_from(KINDS), seeds, st.booleans())
@settings(max_examples=400)
def test_a_settled_grade_is_that_of_every_answer_that_begins_so(tokenizers, kind, seed, chat):
    """Catches a stop inside a token, a box that is still open, blanks that do not count, half of a
    character taken for an incorrect one, and words in common that are yet to be said."""
    ids, prompt = whole_answer(kind, seed, tokenizers[chat])
    check_every_beginning(ids, prompt, tokenizers[chat])


BEGINNINGS = (OPENED, "Answer: ", "The answer is", "(", "**", "so ", OPENED + "(", OPENED + "{")


@given(st.sampled_from([kind for kind in KINDS if "asked" in kind or kind.endswith("boxed")]),
       st.sampled_from(BEGINNINGS), seeds)
@settings(max_examples=300)
def test_a_settled_grade_is_that_of_every_answer_that_was_begun_so(tokenizers, kind, begin, seed):
    """Catches a beginning that counts in the whole answer and not in what settles its grade."""
    ids, prompt = whole_answer(kind, seed, tokenizers[True])
    begun = replace(prompt, question=replace(prompt.question, begin=begin))
    check_every_beginning(ids, begun, tokenizers[True])


VERBATIM = Question("q", "t", 0, "", "12", prompt="3 2", max_new_tokens=6)
STOPPED, BEGUN = replace(VERBATIM, stop="#"), replace(VERBATIM, prompt="3 2" + OPENED)
LETTER = replace(VERBATIM, answer="C", choices=tuple("wxyz"))
COMMON = replace(VERBATIM, answer="the cat", metric="f1")


@pytest.mark.parametrize("question, said, settled", [
    (VERBATIM, ["12"], None), (VERBATIM, ["5"], None), (VERBATIM, ["12", "end"], 1.0),
    (VERBATIM, ["5"] * 6, 0.0), (VERBATIM, ["12", " ", " ", " ", " ", " "], 1.0),
    (STOPPED, ["5"], 0.0), (STOPPED, ["3#"], 0.0), (STOPPED, ["1"], None), (STOPPED, [" "], None),
    (STOPPED, ["12"], None), (STOPPED, ["12", "#"], 1.0), (STOPPED, ["12", "3#"], 0.0),
    (replace(STOPPED, answer="é"), ["Ã"], None), (replace(STOPPED, answer="é"), ["©"], None),
    (replace(STOPPED, answer="5", answers=("5", "12")), ["1"], None),
    (replace(STOPPED, answer="1 2"), ["1", " ", " ", "2"], None),
    (BEGUN, ["12"], None), (BEGUN, ["12", "}"], 1.0), (BEGUN, ["5}"], 0.0), (BEGUN, ["{"], None),
    (BEGUN, ["{", "}"], None), (BEGUN, ["it", "end"], 0.0),
    (replace(BEGUN, stop="}#"), ["12", "}"], None),
    (replace(BEGUN, stop="."), ["12", "}", "."], 1.0),
    (LETTER, ["C"], None), (LETTER, ["D"], 0.0), (LETTER, ["A"], None), (LETTER, ["("], None),
    (LETTER, ["(", "B", ")"], 0.0), (LETTER, ["C", "end"], 1.0), (LETTER, ["C", "cat"], None),
    (COMMON, ["the", "cat"], None), (COMMON, ["3#"], None), (COMMON, ["cat", "end"], 1.0),
    (replace(COMMON, stop="#"), ["5"], None), (replace(COMMON, stop="#"), ["cat", "3#"], 0.0)])
def test_what_settles_a_grade_by_hand(tokenizers, question, said, settled):
    """Catches a judge that is right because it settles nothing, and generates every answer."""
    tokenizer = tokenizers[False]
    ids = [tokenizer.fast.token_to_id(piece.replace(" ", "\u0120")) for piece in said]
    prompt = Prompt(question, (2,), (), stop_ids(question.stop, tokenizer))
    assert grade_if_settled(ids, prompt, tokenizer) == settled


@given(st.integers(1, 5), st.integers(0, 6), seeds)
def test_said_first_by_a_loop(budget, gold, seed):
    """Catches a token too few, which settles nothing, and one too many, which was never said."""
    rng = random.Random(seed)
    gold = tuple(rng.choices((1, 5, 6, 7), k=min(gold, budget)))
    ids = [i if rng.random() < 0.7 else rng.randrange(1, 8) for i in gold] + [rng.randrange(1, 8)]
    prompt = Prompt(replace(VERBATIM, max_new_tokens=budget), (2,), gold, (1,))
    said = []
    while len(said) < budget and 1 not in said and said == list(gold[:len(said)]) and \
            len(said) < len(ids):
        said.append(ids[len(said)])
    assert answer_beginning(ids, prompt) == said


# ---- the judge ----

def asked_of(model, tokenizer, kind, rng, name):
    """(Prompt, path): a question of a kind, mostly answered right along the path."""
    path = rng.choice(PATHS)
    say = lambda prompt, budget: tokenizer.decode(generate(
        model, [prompt.ids], FixedRoute(path), budget, prompt.stop_ids).tokens[0])
    ask = lambda question: prepare([question], tokenizer, model)[0][0]
    probe = question_of(kind, rng, "".join(rng.choices(PIECES, k=rng.randint(1, 8))), name)
    question = replace(question_of(kind, rng, say(ask(probe), 6), name), prompt=probe.prompt,
                       question=probe.question)
    gold = extract_answer(say(ask(question), question.budget), question)
    if (gold or "").strip() and rng.random() < 0.8:
        question = replace(question, answer=gold)
    return ask(question), path


def case_of(seed, tokenizer, family="llama", dtype=torch.float64):
    """(model, prompts, paths (N, 3), rng): four questions, each asked along several paths."""
    rng = random.Random(seed)
    model = tiny_model(seed % 7, family, dtype, max_positions=256)
    likely = ("A", "B", "D", "}", "5}", "1", "#", "end")  # else hardly a box were ever closed
    model.lm_head.weight[[*map(tokenizer.fast.token_to_id, likely)]] *= 2
    asked = [asked_of(model, tokenizer, rng.choice(KINDS), rng, f"q{n}") for n in range(4)]
    rows = [(prompt, path if rng.random() < 0.7 else rng.choice(PATHS))
            for prompt, path in rng.choices(asked, k=10)]
    return model, [row[0] for row in rows], torch.tensor([row[1] for row in rows]), rng


def probabilities(model, prompt, path):
    """Of the whole answer, and of what one pass shows of it: the gold tokens that it begins with
    and one token more. Both are the same where that is all of the answer."""
    say = lambda budget: generate(model, [prompt.ids], FixedRoute(path), budget, prompt.stop_ids)
    whole = say(prompt.question.budget)
    agreed = next((k for k, (mine, gold) in enumerate(zip(whole.tokens[0], prompt.gold))
                   if mine != gold), min(len(whole.tokens[0]), len(prompt.gold)))
    return [made.logprobs.exp().item() for made in (whole, say(min(
        agreed + 1, prompt.question.budget)))]


@given(st.sampled_from(sorted(FAMILIES)), seeds, st.booleans(),
       st.sampled_from((torch.float64, torch.float32)))
@settings(max_examples=30, **ONCE)
def test_the_judge_says_what_the_answers_say(tokenizers, family, seed, chat, dtype):
    """Catches a grade settled too early, a row's answer given to another, states of another path,
    row or length, a batch that changes what is said, and a bar that passes its end."""
    tokenizer = tokenizers[chat]
    model, prompts, paths, rng = case_of(seed, tokenizer, family, dtype)
    made = answer(model, tokenizer, prompts, paths)
    sayings = functools.cache(lambda n: probabilities(model, prompts[n], paths[n]))
    shared_states = {prompt.question.id: {} for prompt in prompts}
    for _ in range(3):
        order = rng.sample(range(len(prompts)), rng.randint(1, len(prompts)))
        shared = rng.choice([None, [shared_states[prompts[n].question.id] for n in order]])
        batch_size, steps = rng.choice((1, 3, 512)), []
        correct, confidence = grade_paths(model, tokenizer, [prompts[n] for n in order],
                                          paths[order], batch_size, steps.append, shared)
        assert torch.equal(correct, made.correct[order])
        assert sum(steps) == len(order) and max(steps) <= batch_size
        for n, sure in zip(order, confidence.tolist()):
            assert any(sure == pytest.approx(one, rel=1e-3) for one in sayings(n)), sayings(n)


def test_the_cases_are_of_all_kinds_and_right_and_wrong(tokenizers):
    """The tests around this one would be empty if no answer were right, or none settled."""
    seen = {}
    for seed in range(40):
        model, prompts, paths, _ = case_of(seed, tokenizers[seed % 2])
        correct, _ = grade_paths(model, tokenizers[seed % 2], prompts, paths)
        for prompt, reward in zip(prompts, correct.tolist()):
            q = prompt.question
            kind = bool(q.choices), bool(q.stop), q.metric, q.asks_for_box, q.prompt is None
            seen.setdefault(kind, set()).add(reward > 0)
    assert len(seen) == len(KINDS) and all(len(rewards) == 2 for rewards in seen.values())


@pytest.mark.parametrize("seed", range(8))
def test_only_answers_that_one_pass_does_not_settle_are_generated(tokenizers, seed, monkeypatch):
    """Catches a judge that asks twice, and one that passes over what is not settled."""
    tokenizer = tokenizers[seed % 2]
    model, prompts, paths, _ = case_of(seed, tokenizer)
    wanted, entered = [], []
    for prompt, path in zip(prompts, paths):
        made = generate(model, [prompt.ids], FixedRoute(path), prompt.question.budget,
                        prompt.stop_ids)
        ids = made.tokens[0] + [prompt.stop_ids[0]] * (made.passes[0] > len(made.tokens[0]))
        agreed = next((k for k, pair in enumerate(zip(ids, prompt.gold)) if len(set(pair)) > 1),
                      len(prompt.gold))
        if grade_if_settled(ids[:agreed + 1], prompt, tokenizer) is None:
            wanted.append((prompt.ids, tuple(path.tolist())))
    asked = []
    monkeypatch.setattr(answers, "generate", lambda model, ids, route, *rest: asked.extend(
        zip(ids, map(tuple, route.decisions.tolist()))) or generate(model, ids, route, *rest))
    for block in model.layers:
        block.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0].shape[:2]))
    grade_paths(model, tokenizer, prompts, paths)
    assert sorted(asked) == sorted(wanted)
    rest = [n for n, row in enumerate(zip(prompts, paths.tolist()))
            if (row[0].ids, tuple(row[1])) not in asked]
    entered.clear()
    grade_paths(model, tokenizer, [prompts[n] for n in rest], paths[rest])
    assert sum(rows for rows, _ in entered) == int(blocks(paths[rest]).sum())
    assert all(T > 1 for _, T in entered)


def test_a_model_that_says_the_gold_answer_is_asked_once(tokenizers, monkeypatch):
    """The same for every question whose gold answer is, token by token, what the model says."""
    monkeypatch.setattr(answers, "generate", lambda *_: pytest.fail("an answer was generated"))
    for seed in range(12):
        model, prompts, paths, _ = case_of(seed, tokenizers[0])
        for prompt, path in zip(prompts, paths):
            made = generate(model, [prompt.ids], FixedRoute(path), 4, prompt.stop_ids)
            question = replace(prompt.question, max_new_tokens=int(made.passes[0]))
            gold = tuple(made.tokens[0])
            asked = replace(prompt, question=question, gold=gold)
            grade_paths(model, tokenizers[0], [asked], path[None])


def test_logits_of_a_wide_vocabulary_are_made_a_few_at_a_time(tokenizers, monkeypatch):
    """Catches logits of all gold tokens of a batch at once: with 256 questions and a vocabulary of
    152,000 they took 5 GB, far beyond --memory."""
    model, prompts, paths, _ = case_of(1, tokenizers[0])
    sizes = []
    model.lm_head.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    monkeypatch.setattr(answers, "generate", lambda *_: pytest.fail("an answer was generated"))
    monkeypatch.setattr(answers, "grade_if_settled", lambda *_: 1.0)
    monkeypatch.setattr(answers, "LOGITS_AT_ONCE", 3 * model.config.vocab_size + 1)
    grade_paths(model, tokenizers[0], prompts, paths)
    assert max(sizes) == 3 and len(sizes) > 1
    monkeypatch.setattr(answers, "LOGITS_AT_ONCE", 1)  # one token at least
    grade_paths(model, tokenizers[0], prompts, paths)
    assert min(sizes) == 1


# ---- states that paths share ----

class Counted:
    """How many rows entered each block of a model."""

    def __init__(self, model):
        self.rows = [0] * len(model.layers)
        for layer, block in enumerate(model.layers):
            block.register_forward_pre_hook(lambda _, inputs, layer=layer: self.add(
                layer, len(inputs[0])))

    def add(self, layer, rows):
        self.rows[layer] += rows


def asked_often(seed, L, number=6):
    """Calls of final_states: (rows of sequences, each with its id lists and its path)."""
    rng = random.Random(seed)
    sequences = [rng.choices(range(2, len(WORDS)), k=rng.randint(1, 9)) for _ in range(3)]
    calls = []
    for _ in range(number):
        rows = rng.sample(range(3), rng.randint(1, 3))
        calls.append([(row, sequences[row], tuple(rng.randrange(3) for _ in range(L)))
                      for row in rows])
    return calls


@given(st.sampled_from(sorted(FAMILIES)), st.integers(1, 5), seeds)
def test_shared_states_change_nothing_and_no_block_runs_twice_for_a_beginning(family, L, seed):
    """Catches a state of another path, row or layer, padding kept as a state, a beginning that is
    computed again, and a first pass of a repeat taken for both. Hidden states within 1e-10."""
    model, shared_states = tiny_model(seed % 7, family, num_layers=L), {0: {}, 1: {}, 2: {}}
    plain = tiny_model(seed % 7, family, num_layers=L)
    counted, wanted, met = Counted(model), [0] * L, {0: set(), 1: set(), 2: set()}
    for call in asked_often(seed, L):
        rows, sequences, paths = (list(part) for part in zip(*call))
        lengths = [max(1, len(ids) - 2) for ids in sequences]
        found, decisions = final_states(model, sequences, lengths, FixedRoute(paths),
                                          [shared_states[row] for row in rows])
        assert decisions.tolist() == [*map(list, paths)]
        tokens, ends = pad(sequences)
        hidden, _ = prefill(plain, tokens, FixedRoute(paths), ends)
        for n, end in enumerate(ends):
            torch.testing.assert_close(found[n, :end], hidden[n, :end], rtol=0, atol=1e-10)
        for row, path in zip(rows, paths):
            start = max((l for l in range(1, L) if path[:l] in met[row]), default=0)
            for layer in range(start, L):
                wanted[layer] += path[layer]
            met[row] |= {path[:l] for l in range(start + 1, L)}
        assert counted.rows == wanted
    assert {row: set(states) for row, states in shared_states.items()} == met
