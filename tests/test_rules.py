"""Labels without a search: every edit is asked truly, and a label needs more than luck."""
from dataclasses import replace

import pytest
import torch

import answers
from answers import Prompt, final_states, grade_paths, option_positions
from conftest import own_answers
from experiments import edits, rules
from experiments.edits import ask_batch, ask_edits, lower_bounds, single_edit_paths
from experiments.rules import cross_validated, labels_of_nearest
from model_llama import FixedRoute
from storage.answer_cache import AnswerCache
from storage.files import read_json
from tiny import read_lines, save_tiny, tiny_model, write_lines


def test_edits_are_asked_as_paths_are_whatever_they_share(tiny_questions):
    """Catches a state that is taken from behind the edit."""
    model, tokenizer, prompts = tiny_questions
    paths = single_edit_paths(3)
    assert paths == [(1, 1, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0), (2, 1, 1), (1, 2, 1), (1, 1, 2)]
    correct, logprobs = ask_batch(model, prompts, paths)
    assert correct.shape == logprobs.shape == (len(prompts), 7)
    for k, path in enumerate(paths):
        judged, _ = grade_paths(model, tokenizer, prompts, torch.tensor([path] * len(prompts)))
        assert torch.equal(correct[:, k], judged)
        for n, prompt in enumerate(prompts):
            _, alone = ask_batch(model, [prompt], [paths[0], path])
            torch.testing.assert_close(logprobs[n, k], alone[0, 1])


@pytest.mark.parametrize("shared", [0, 1, 3])
def test_tokens_that_all_prompts_begin_with_change_nothing(tiny_questions, shared):
    """Catches positions or keys of the shared tokens that are not those of the row alone, also of
    options that are compared by likelihood, and prompts that share no token."""
    model, _, prompts = tiny_questions
    paths = [*single_edit_paths(3), (0, 2, 1), (2, 1, 0)]
    begun = tuple(range(7, 7 + shared))
    for options in ((), ((3, 4), (5,), (9, 2, 6))):
        question = replace(prompts[0].question, choices=("x", "y", "z")[:len(options)], answer="B",
                           metric="likelihood" if options else "exact")
        asked = [Prompt(question, begun + prompt.ids, () if options else (4, 8, 3), options=options,
                        scored=tuple(map(len, options))) for prompt in prompts]
        together = ask_batch(model, asked, paths)
        for n, prompt in enumerate(asked):
            for k, path in enumerate(paths):
                whole = Prompt(question, prompt.ids, prompt.gold, options=options,
                               scored=prompt.scored)
                positions = option_positions(model, [whole]) if options else None
                hidden, _ = final_states(model, [whole.sequence], [len(whole.ids)],
                                         FixedRoute(path), positions=positions)
                expected = edits.grade_gold(model, [whole], hidden)
                torch.testing.assert_close(together[:, n, k], expected[:, 0])


def test_logits_of_a_wide_vocabulary_are_made_a_few_at_a_time(tiny_questions, monkeypatch):
    """Catches logits of all gold tokens of a batch at once, which fill the memory of a real model;
    and parts that are put together in another order."""
    model, _, prompts = tiny_questions
    paths, sizes = single_edit_paths(3), []
    expected = ask_batch(model, prompts, paths)
    monkeypatch.setattr(answers, "LOGITS_AT_ONCE", 3 * model.config.vocab_size + 1)
    counted = model.lm_head.register_forward_pre_hook(
        lambda _, inputs: sizes.append(len(inputs[0])))
    made = ask_batch(model, prompts, paths)
    counted.remove()
    assert max(sizes) == 3 and len(sizes) > len(paths)
    torch.testing.assert_close(made, expected)


def test_only_questions_that_the_cache_lacks_are_asked(tiny_questions, tmp_path):
    """Catches a value stored for another question, and a cache of whole batches, which a further
    question would empty."""
    model, _, prompts = tiny_questions
    paths, cache = single_edit_paths(3), AnswerCache(tmp_path / "answers.jsonl")
    some = ask_edits(model, prompts[2:5], paths, cache, batch_size=2)
    everything = ask_edits(model, prompts, paths, cache, batch_size=3)
    assert torch.equal(everything[:, 2:5], some)
    torch.testing.assert_close(everything, ask_batch(model, prompts, paths))
    assert len(cache.values) == len(prompts)


def test_cross_validation_credits_an_edit_that_helps_others_and_no_luck():
    """Edit 1 always corrects; then it corrects single questions only, which their own effect would
    have told."""
    space = torch.zeros(80, 2)
    correct, logprobs = torch.zeros(80, 7), torch.zeros(80, 7)
    correct[:, 1] = logprobs[:, 1] = 1
    default = lambda _: 0
    assert cross_validated(space, correct, logprobs, correct, default).eq(1).all()
    of_no_use = lambda _: 1  # the edit is already the reference
    assert cross_validated(space, correct, logprobs, correct, of_no_use).eq(0).all()
    alone = torch.arange(80) == 7
    correct[:, 1] = alone.float()
    logprobs[:, 1] = torch.where(alone, 4.0, -0.01)
    assert cross_validated(space, correct, logprobs, correct, default).eq(0).all()


def test_standard_errors_count_against_edits_and_never_against_doing_nothing():
    """Two questions, an edit worth 1 and 3: mean 2, standard error 1, twice subtracted 0."""
    effects = torch.tensor([[[0.0, 1.0, 4.0], [0.0, 3.0, 4.0]]])
    assert lower_bounds(effects).tolist() == [pytest.approx([0.0, 0.0, 4.0])]


def test_one_question_decides_nothing():
    """Catches the spread of one question, which is no number, taken for the largest gain."""
    assert lower_bounds(torch.tensor([[[0.0, 3.0, -1.0]]])).argmax(1).tolist() == [0]


@pytest.mark.parametrize("number", [1, 2, 80])
def test_labels_follow_an_edit_that_always_helps_and_no_other(number):
    """Edit 2 helps on one side of the space and harms on the other."""
    paths = single_edit_paths(3)
    space = torch.randn(number, 5, generator=torch.Generator().manual_seed(0))
    space[:, 0] = torch.where(torch.arange(number) % 2 == 0, 100.0, -100.0)
    logprobs = torch.zeros(number, 7)
    logprobs[:, 2] = space[:, 0].sign()
    labels = labels_of_nearest(space, logprobs, paths)
    helped = paths[2] if number == 80 else paths[0]  # of two questions one was harmed
    assert labels == [helped if n % 2 == 0 else paths[0] for n in range(number)]


def test_a_single_huge_change_does_not_decide():
    """Catches effects that are not bounded."""
    logprobs = torch.zeros(40, 7)
    logprobs[:, 1], logprobs[0, 1] = -0.5, 1e6
    assert set(labels_of_nearest(torch.zeros(40, 2), logprobs, single_edit_paths(3))) == {(1, 1, 1)}


def test_the_command_labels_trains_and_evaluates_and_goes_on(tmp_path, capsys, monkeypatch):
    """Catches questions of the test among those that choose, and edits that are asked again."""
    folder = save_tiny(tmp_path / "model", tiny_model(5, dtype=torch.float32))
    for name, seed in ("label", 0), ("test", 1):
        rows = [row | {"id": f"{name}{row['id']}"} for row in own_answers(folder, 40, seed)]
        write_lines(tmp_path / name, rows)
    command = ["--model", str(folder), "--data", str(tmp_path / "label"), "--test",
               str(tmp_path / "test"), "--out", str(tmp_path / "out"), "--seeds", "2"]
    asked, real = [], edits.ask_batch
    monkeypatch.setattr(edits, "ask_batch", lambda model, prompts, paths: (
        asked.extend(p.question.id for p in prompts), real(model, prompts, paths))[1])
    rules.main(command)
    printed = capsys.readouterr().out
    assert sorted(asked) == sorted(row["id"] for row in read_lines(tmp_path / "label"))
    assert "40 training questions, " in printed
    metrics = read_json(tmp_path / "out/metrics.json")
    assert metrics["routes"]["dr.llm"]["n"] == 40 and len(metrics["seeds"]) == 2
    assert {"vanilla", "dr.llm", "fixed below", "shuffled"} <= metrics["routes"].keys()
    monkeypatch.setattr(edits, "ask_batch", None)  # all of it is kept
    rules.main(command)
    assert capsys.readouterr().out == printed
