"""Labels without a search: every edit is asked truly, and a label needs more than luck."""
import pytest
import torch

from answers import grade_paths
from conftest import own_answers
from experiments import rules
from experiments.rules import ask_batch, labels_of_nearest, lower_bounds, single_edit_paths
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
        _, alone = ask_batch(model, prompts, [path])
        torch.testing.assert_close(logprobs[:, k], alone[:, 0])


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
    asked, real = [], rules.ask_batch
    monkeypatch.setattr(rules, "ask_batch", lambda model, prompts, paths: (
        asked.extend(p.question.id for p in prompts), real(model, prompts, paths))[1])
    rules.main(command)
    printed = capsys.readouterr().out
    assert sorted(asked) == sorted(row["id"] for row in read_lines(tmp_path / "label"))
    assert "40 training questions, " in printed
    metrics = read_json(tmp_path / "out/metrics.json")
    assert metrics["routes"]["dr.llm"]["n"] == 40 and len(metrics["seeds"]) == 2
    assert {"vanilla", "dr.llm", "fixed below", "shuffled"} <= metrics["routes"].keys()
    monkeypatch.setattr(rules, "ask_batch", None)  # all of it is kept
    rules.main(command)
    assert capsys.readouterr().out == printed
