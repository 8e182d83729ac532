"""The embedded default: right answers, nothing leaked, a folder any Llama can load."""
import random
import re

import make_model
import make_questions
import pytest

import model_llama
from cli import DEMO
from model_llama import load_model, load_tokenizer
from questions.loading import load_questions
from storage.files import read_json
from tiny import read_lines

FILES = {name: DEMO / "questions" / f"{name}.jsonl" for name in ("label", "test", "ood")}


def rows(name):
    return read_lines(FILES[name])


def solve(prompt):
    """The answer of a prompt, worked out from its text alone."""
    words = prompt.split()[1:]
    question = words[:words.index("Options:")] if "Options:" in words else words[:-2]
    options = dict(re.findall(r"\(([A-D])\) (\w)", prompt))
    kind = question[0]
    rank = {"largest": -1, "biggest": -1, "second": -2, "smallest": 0}
    if kind in rank:
        value = sorted(options.values())[rank[kind]]
    elif kind == "same":
        value = question[1]
    elif kind in ("reverse", "sort"):
        return " ".join(question[:0:-1] if kind == "reverse" else sorted(question[1:]))
    elif kind == "next":
        letters = "abcdefghijklmnop"
        return " ".join(letters[(letters.index(c) + 1) % 16] for c in question[1:])
    elif kind == "count":
        return str(question[3:].count(question[1]))
    else:
        sums = [w for w in question if w not in ("compute", "=")]
        total = int(sums[0])
        for sign, operand in zip(sums[1::2], sums[2::2]):
            total = {"+": total + int(operand), "-": total - int(operand),
                     "*": total * int(operand)}[sign]
        value = str(total % 10)
    return next(c for c, text in options.items() if text == value) if options else value


@pytest.mark.parametrize("name", FILES)
def test_every_answer_is_right(name):
    """An answer key that is wrong now and then looks like a hard task."""
    assert all(solve(row["prompt"]) == row["answer"] for row in rows(name))


def test_no_prompt_stands_in_two_places():
    prompts = [row["prompt"] for name in FILES for row in rows(name)]
    assert len(set(prompts)) == len(prompts)


def test_shipped_questions_are_what_the_script_makes():
    made = make_questions.make(seed=0)
    assert all(made[f"{name}.jsonl"] == rows(name) for name in FILES)


def test_base_model_never_trained_on_a_shipped_question():
    """The training stream is drawn again: it must miss the questions' share of the hash."""
    shipped = {row["prompt"] for name in FILES for row in rows(name)}
    assert all(make_questions.held_out(prompt.split()) for prompt in shipped)
    drawn = [draft.prompt for short, long in make_model.stream(0, 60) for draft in short + long]
    assert not any(make_questions.held_out(prompt) for prompt in drawn)
    assert not {" ".join(prompt) for prompt in drawn} & shipped


def test_domains_share_no_task():
    labelled = {row["task"] for row in rows("label")}
    assert labelled == {row["task"] for row in rows("test")} == {"math", "easy", "challenge"}
    assert len({row["task"] for row in rows("ood")} - labelled) >= 4


def test_model_folder_is_complete_small_and_speaks_the_questions_words():
    folder = DEMO / "model"
    assert (folder / "model.safetensors").stat().st_size <= 8_000_000
    assert load_model(folder).config.num_layers >= 12
    tokenizer = load_tokenizer(folder)
    for name in FILES:
        for question in load_questions(FILES[name])[::50]:
            ids = tokenizer.encode(question.prompt)
            assert tokenizer.decode(ids) == question.prompt and 0 not in ids
    record = read_json(folder / "training.json")
    assert record["command"].startswith("python demo/make_model.py") and record["log"]


def test_hints_are_true_intermediate_values():
    """A wrong hint would teach the base model nonsense at prompt positions."""
    rng = random.Random(0)
    for _ in range(50):
        draft = make_questions.math(rng, 3)
        for position, value in draft.hints:
            prefix = " ".join(draft.prompt[:position + 1]) + " = Answer: \\boxed{"
            assert solve(prefix) == value


def test_a_step_of_training_changes_every_weight_of_a_folder_that_loads(tmp_path, monkeypatch):
    """Catches weights that no optimizer is given, and a folder without some of them."""
    monkeypatch.setattr(model_llama, "attention", model_llama.attention)  # training puts its own
    monkeypatch.setattr(make_model, "accuracies", lambda model: {})
    stream = make_model.stream
    monkeypatch.setattr(make_model, "stream", lambda seed, steps: (
        (short[:8], long[:8]) for short, long in stream(seed, steps)))
    make_model.main(["--out", str(tmp_path), "--steps", "1", "--no-compile"])
    before, after = make_model.new_model(0).named_weights(), load_model(tmp_path).named_weights()
    assert before.keys() == after.keys() == load_model(DEMO / "model").named_weights().keys()
    assert not [name for name in before if before[name].equal(after[name])]
