"""Multiple choice by likelihood: one packed pass against a pass per option."""
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import answers as likelihood
import evaluate
import label
import train
from answers import Prompt, answer, answers_by_likelihood, final_states, grade_paths, prepare
from model_llama import FixedRoute, load_tokenizer
from paths import blocks
from questions.loading import Question, load_all
from storage.files import InputError, read_json
from storage.label_file import read_rows
from tiny import WORDS, save_tiny, tiny_model, write_lines

MODEL = tiny_model(num_layers=4)
IDS = st.lists(st.integers(2, len(WORDS) - 1), min_size=1, max_size=5).map(tuple)
QUESTION = Question("q", "t", 0, "a b", "B", ("c d", "e", "f g h"), metric="likelihood")


@st.composite
def prompts(draw):
    """One to three prompts with two to four options each, some tokens of which may not count."""
    made = []
    for n in range(draw(st.integers(1, 3))):
        options = tuple(draw(st.lists(IDS, min_size=2, max_size=4)))
        scored = tuple(draw(st.integers(1, len(option))) for option in options)
        made.append(Prompt(replace(QUESTION, id=str(n)), draw(IDS), options=options, scored=scored))
    return made


def option_by_option(prompt, path):
    """[(log-probability, is likeliest)] the plain way: each option in its own sequence."""
    found = []
    for option, scored in zip(prompt.options, prompt.scored):
        ids = torch.tensor([prompt.ids + option])
        logprobs = MODEL(ids, FixedRoute(path))[0].float().log_softmax(-1)
        places = range(ids.shape[1] - scored, ids.shape[1])
        found.append((sum(logprobs[at - 1, ids[0, at]].item() for at in places),
                      all(logprobs[at - 1].argmax() == ids[0, at] for at in places)))
    return found


@given(prompts(), st.lists(st.lists(st.sampled_from([0, 1, 1, 2]), min_size=4, max_size=4),
                           min_size=6, max_size=6))
def test_one_pass_scores_options_as_a_pass_per_option(some, paths):
    """Catches options that see each other, positions that run on from option to option, scores
    that begin a token late, shared states of another path."""
    lengths, shared_states = [len(p.ids) for p in some], [{} for _ in some]
    for turn in (0, 3):  # the second turn continues from what the first left
        here = [paths[turn + row] for row in range(len(some))]
        for shared in (None, shared_states):
            hidden, decisions = final_states(
                MODEL, [p.sequence for p in some], lengths, FixedRoute(here), shared,
                likelihood.option_positions(MODEL, some))
            assert decisions.tolist() == here
            for row, (prompt, path) in enumerate(zip(some, here)):
                got = likelihood.score_options(MODEL, hidden[row], prompt)
                wanted = option_by_option(prompt, path)
                assert [greedy for _, greedy in got] == [greedy for _, greedy in wanted]
                assert [s for s, _ in got] == pytest.approx([s for s, _ in wanted], abs=1e-4)


@given(prompts())
def test_the_route_sees_the_prompt_alone(some):
    """Catches routing by the options, which a model does not know before it answers."""
    seen = []

    def route(layer, hidden, lengths):
        assert hidden.shape[1] == max(len(prompt.ids) for prompt in some)
        seen.append([hidden[row, :n].clone() for row, n in enumerate(lengths.tolist())])
        assert not any(hidden[row, n:].any() for row, n in enumerate(lengths.tolist()))
        return torch.ones(len(hidden), dtype=torch.long)
    answers_by_likelihood(MODEL, some, route)
    for row, prompt in enumerate(some):
        alone = MODEL.embed_tokens(torch.tensor(prompt.ids))
        assert len(seen[0][row]) == len(prompt.ids) and torch.equal(seen[0][row], alone)


def test_the_metric_decides_what_is_compared():
    """Catches a division by tokens, or none; bytes are those of the option's own text."""
    scores = [(-6.0, False), (-4.0, False), (-7.0, True)]
    assert likelihood.likeliest_option(QUESTION, scores)[0] == 1
    per_byte = replace(QUESTION, metric="likelihood-per-byte")  # -2, -4, -1.4
    assert likelihood.likeliest_option(per_byte, scores)[0] == 2
    wide = replace(per_byte, choices=("é" * 4, "e", "f"))  # -0.75, -4, -7
    assert likelihood.likeliest_option(wide, scores)[0] == 0
    same = replace(per_byte, continuation=" and so on")
    assert likelihood.likeliest_option(same, scores)[0] == 1
    equal = [(0.0, True), (0.0, True)]
    assert likelihood.likeliest_option(QUESTION, equal)[1] == pytest.approx(0.5)


def test_an_option_without_a_finite_probability_is_no_answer():
    """Catches nan taken for the largest value: option A would be correct in a quarter of cases."""
    nan = float("nan")
    assert likelihood.likeliest_option(QUESTION, [(nan, False), (-4.0, False)]) == (1, 1.0)
    assert likelihood.likeliest_option(QUESTION, [(nan, False), (-math.inf, False)]) == (None, 0.0)
    model = tiny_model(num_layers=2)
    model.norm.weight.fill_(nan)
    asked = Prompt(replace(QUESTION, answer="A"), (2, 3), options=((4,), (5,)), scored=(1, 1))
    rewards, confidence = grade_paths(model, None, [asked], torch.ones(1, 2, dtype=torch.long))
    assert rewards.tolist() == confidence.tolist() == [0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_tiny(folder, tiny_model(num_layers=4))
    return folder


def test_texts_are_encoded_as_the_harness_does(folder):
    """Catches the space before an option lost or doubled, an unfinished text wrapped in a form, a
    continuation scored together with its option."""
    tokenizer = load_tokenizer(folder)
    text = lambda ids: tokenizer.decode(ids)
    encoded = lambda question: likelihood.option_ids(question, tokenizer)
    ids, options, scored = encoded(QUESTION)
    assert text(ids) == "Question: a b Answer:" and [*map(text, options)] == ["c d", "e", "f g h"]
    assert scored == (2, 1, 3)
    ids, options, scored = encoded(replace(QUESTION, unfinished=True))
    assert text(ids) == "a b" and scored == (2, 1, 3)
    gap = replace(QUESTION, choices=("a b c", "a b d e"), continuation=" f g")
    ids, options, scored = encoded(gap)
    assert text(ids) == "a b" and [*map(text, options)] == ["c f g", "d e f g"]
    assert scored == (2, 2)
    with pytest.raises(InputError, match="share 0 tokens"):
        encoded(replace(gap, choices=("c", "d")))


def test_a_token_across_the_end_of_the_text_is_cut_as_the_harness_does():
    """The text alone ends in 1 2; with an option, 2 and its first token become 9. Catches a prompt
    that ends before the token that the harness gives all options to continue."""
    ids = {"q:": [0, 1, 2], "q: a": [0, 1, 9, 4], "q: b": [0, 1, 9, 5, 6]}
    question = replace(QUESTION, question="q:", unfinished=True, choices=("a", "b"))
    tokenizer = SimpleNamespace(encode=ids.__getitem__, folder="folder")
    assert likelihood.option_ids(question, tokenizer) == ([0, 1, 2], ((4,), (5, 6)), (1, 2))


def questions_file(folder, rows):
    file = folder / "q.jsonl"
    write_lines(file, rows)
    return file


def rows_of_letters(number=40):
    """Questions whose correct option the tiny model finds likeliest about every third time."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [{"id": f"n{n}", "question": f"{letters[n % 26]} {letters[n * 7 % 26]} {n % 10}",
             "choices": [letters[(n * k + k) % 26] + f" {k}" for k in (3, 5, 11)],
             "answer": "ABC"[n % 3]} for n in range(number)]


@pytest.mark.parametrize("score", ["likelihood", "likelihood-per-byte"])
def test_judge_and_answer_agree(folder, tmp_path, score):
    """Catches two ways to score that drift apart; an answer by likelihood is one forward pass."""
    tokenizer = load_tokenizer(folder)
    questions = load_all([questions_file(tmp_path, rows_of_letters())], score=score)
    some, _ = prepare(questions, tokenizer, MODEL)
    paths = torch.randint(0, 3, (len(some), 4), generator=torch.Generator().manual_seed(1))
    made = answer(MODEL, tokenizer, some, paths, batch_size=7)
    correct, confidence = grade_paths(MODEL, tokenizer, some, paths, batch_size=16)
    assert torch.equal(made.correct, correct) and 0 < correct.mean() < 1
    torch.testing.assert_close(made.confidence, confidence)
    assert torch.equal(made.decisions, paths) and torch.equal(made.blocks_run, blocks(paths))
    assert set(made.passes.tolist()) == {1} and set(made.texts) == {"A", "B", "C"}


def test_files_that_cannot_be_scored_so(tmp_path):
    """Catches options that are equal, and questions without any."""
    row = {"id": "x", "question": "a", "choices": ["b", "c", "b"], "answer": "B"}
    with pytest.raises(InputError, match="q.jsonl: question x has 3 choices, 2 of them different"):
        load_all([questions_file(tmp_path, [row])], score="likelihood")
    row = {"id": "x", "question": "a", "answer": "b"}
    with pytest.raises(InputError, match="question x has 0 choices"):
        load_all([questions_file(tmp_path, [row])], score="likelihood-per-byte")
    assert load_all([questions_file(tmp_path, [row])])[0].metric == "exact"


def test_the_commands_take_it(folder, tmp_path, capsys):
    """Catches a command that drops the flag, and letters scored in the place of options."""
    file = questions_file(tmp_path, rows_of_letters())
    common = ["--model", str(folder), "--data", str(file), "--score", "likelihood"]
    labels = tmp_path / "labels.jsonl"
    label.main([*common, "--simulations", "3", "--out", str(labels)])
    rows = read_rows(labels, 4)
    assert len(rows) == 40 and 0 < sum(row["default_correct"] for row in rows.values()) < 40
    run = tmp_path / "run"
    train.main([*common, "--simulations", "6", "--seeds", "1", "--choose", "shortest",
                "--force", "--out", str(run)])
    evaluate.main([*common, "--routers", str(run / "routers.safetensors"), "--out",
                   str(tmp_path / "again")])
    metrics = [read_json(one / "metrics.json")
               for one in (run, tmp_path / "again")]
    assert all(m["routes"]["vanilla"]["layers_executed"] == 4 for m in metrics)
