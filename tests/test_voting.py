"""Voting: the right answer wins, letters are options, and the command runs."""
import json

import pytest
import torch

import cli
from answers import Answers, Prompt
from experiments import voting
from experiments.voting import Ballot, meaning, tables, winner
from questions.loading import Question

SUM = Question("1", "add", 0, "", "41", prompt="27 + 14 =", stop="\n")


def test_a_letter_stands_for_its_option_and_text_ends_at_the_stop():
    """Catches votes for a letter that is another option in another form."""
    question = Question("1", "t", 0, "q", "B", ("red", "green"))
    assert meaning("B", question) == "green" and meaning("(A) red", question) == "red"
    assert meaning("C", question) is None and meaning("I think", question) is None
    assert meaning(" 41\n5 + 5 =", SUM) == "41"


@pytest.mark.parametrize("meanings, probabilities, wins", [
    (["4", "5", "5"], [0.9, 0.1, 0.1], 1),
    (["4", "5"], [0.2, 0.3], 1),
    (["4", "5"], [0.3, 0.3], 0),
    ([None, None, "5"], [0.9, 0.9, 0.1], 2),
    ([None, None], [0.9, 0.9], 0),
])
def test_the_most_votes_win_and_then_the_greater_probability(meanings, probabilities, wins):
    """Catches "no answer" that wins an election."""
    assert winner(meanings, probabilities) == wins


def ballot(texts):
    """The Ballot of voters whose answers to two problems are given; each ran 30 blocks."""
    answers = [Answers(torch.tensor([float(text == " 41\n") for text in voter]), torch.tensor(
        [0.5, 0.4]), None, torch.tensor([30, 30]), None, voter) for voter in texts]
    return Ballot([[Prompt(SUM, (1,))] * 2] * len(texts), answers)


def test_a_ballot_counts_votes_blocks_and_agreement():
    made = ballot([[" 5\n", " 41\n"], [" 41\n", " 41\n"], [" 41\n", " 7\n"]])
    assert made.vote.tolist() == [1.0, 1.0]
    assert made.blocks.tolist() == [90.0, 90.0]
    assert made.agreement.tolist() == [0.0, 0.5]
    assert made.base_confidence.tolist() == [0.5, pytest.approx(0.4)]
    votes, confidence = tables(made, made)
    by_name = {row[""]: row for row in votes}
    assert by_name["base model"]["accuracy %"] == "50.0"
    assert by_name["vote of 8 paths"]["gain"].startswith("+50.0")
    assert by_name["vote of paths over that of forms"]["gain"] == "+0.0 [+0.0, +0.0]"
    assert confidence[0]["AUROC"].startswith("0.000")
    assert confidence[1]["above its own"].startswith("+100.0")


def test_the_command_votes_on_the_demo(tmp_path, capsys, monkeypatch):
    """Catches voters that chose the paths, and answers that are asked again."""
    command = ["--limit", "32", "--out", str(tmp_path)]
    asked, real = [], voting.best_paths
    monkeypatch.setattr(voting, "best_paths", lambda model, prompts, *rest: (
        asked.extend(p.question.id for p in prompts), real(model, prompts, *rest))[1])
    voted, count = [], Ballot.__init__
    monkeypatch.setattr(Ballot, "__init__", lambda self, prompts_of, answers: (
        voted.extend(p.question.id for p in prompts_of[0]), count(self, prompts_of, answers))[1])
    voting.main(command)
    printed = capsys.readouterr().out
    assert len(set(asked)) == 16 and not set(asked) & set(voted)
    made = json.loads((tmp_path / "voting.json").read_text(encoding="utf-8"))
    assert made["questions"] == 16 and len(made["paths"]) == 8
    monkeypatch.setattr("answers.generate", None)
    voting.main(command)
    assert capsys.readouterr().out == printed


def test_questions_in_one_form_only_are_refused(tmp_path, capsys):
    file = tmp_path / "open.jsonl"
    file.write_text('{"question": "What is 2 + 3?", "answer": "5"}\n', encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: voting.main(["--data", str(file), "--out", str(tmp_path)]))
    assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1
