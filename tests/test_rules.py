"""Rules that choose an edit: the menu is asked truly, and no question chooses for itself."""
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import own_answers
from experiments import rules
from experiments.rules import RULES, Damped, Group, asked, careful, cross_validated, menu
from answers import judge
from tiny import save_tiny, tiny_model


def test_edits_are_asked_as_paths_are_whatever_they_share(tiny_questions):
    """Catches a state that is taken from behind the edit, and a block that stays damped."""
    model, tokenizer, prompts = tiny_questions
    edits, before = menu(3), list(model.layers)
    right, logprob = asked(model, prompts, edits)
    assert list(model.layers) == before and right.shape == (len(prompts), 10)
    for k, (what, layer) in enumerate(edits):
        paths = torch.ones(len(prompts), 3, dtype=torch.long)
        paths[:, layer] = {"skip": 0, "repeat": 2}.get(what, 1)
        if what == "damped":
            model.layers[layer] = Damped(before[layer])
        alone, sure = asked(model, prompts, [("execute", 0)]) if what == "damped" else (
            judge(model, tokenizer, prompts, paths)[0][:, None], None)
        model.layers[layer] = before[layer]
        assert torch.equal(right[:, k], alone[:, 0])
        if what == "damped":
            torch.testing.assert_close(logprob[:, k], sure[:, 0])


def test_a_damped_repeat_goes_half_the_way():
    block = torch.nn.Linear(4, 4)
    x = torch.randn(2, 4)
    torch.testing.assert_close(Damped(block)(x), (block(x) + block(block(x))) / 2)


def test_doubt_counts_against_edits_and_never_against_doing_nothing():
    """Two questions, an edit worth 1 and 3: mean 2, standard error 1."""
    values = torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    for doubt, wanted in (0, 2.0), (1, 1.0), (3, -1.0):
        assert careful(values, doubt).tolist() == pytest.approx([0.0, wanted])


@pytest.mark.parametrize("name", RULES)
def test_a_rule_finds_what_is_sure_and_leaves_what_is_not(name):
    """Edit 2 always helps, then never: whatever a rule looks at, it must see that."""
    group = Group(["a", "b"] * 40, torch.randn(80, 5))
    good = torch.zeros(80, 4)
    good[:, 2] = 1.0
    picks = RULES[name](good + 0.01 * torch.randn(80, 4), 1, group, group[torch.arange(10)])
    assert picks.tolist() == [2] * 10
    picks = RULES[name](-1 + 0.01 * torch.randn(80, 4), 1, group, group[torch.arange(10)])
    assert picks.tolist() == [0] * 10


@pytest.mark.parametrize("doubt", rules.DOUBTS)
@pytest.mark.parametrize("name", RULES)
def test_few_questions_choose_nothing_that_did_harm(name, doubt):
    """Catches the spread of one question, which is no number, taken for the largest gain."""
    group, harm = Group(["a"] * 10 + ["b"], torch.randn(11, 5)), torch.full((11, 4), -1.0)
    harm[:, 0] = 0
    assert RULES[name](harm, doubt, group, group).tolist() == [0] * 11


@given(st.integers(0, 79))
def test_no_question_chooses_its_own_edit(n):
    """Catches folds that leak: what edits did to question n may not change what is picked for n."""
    rng = torch.Generator().manual_seed(n)
    group, values = Group(["a"] * 80, torch.randn(80, 3, generator=rng)), torch.randn(
        80, 5, generator=rng)
    other = values.clone()
    other[n] = 100 * torch.randn(5, generator=rng)
    columns = torch.tensor([0, 2, 4])
    for rule in RULES.values():
        one, two = (cross_validated(rule, v, 1, group, columns) for v in (values, other))
        assert torch.equal(one[:, n], two[:, n]) and set(one.flatten().tolist()) <= {0, 2, 4}


def test_the_command_writes_every_rule_and_goes_on(tmp_path, capsys, monkeypatch):
    folder = save_tiny(tmp_path / "model", tiny_model(5, dtype=torch.float32))
    for name, seed in ("label", 0), ("test", 1):
        rows = [row | {"id": f"{name}{row['id']}"} for row in own_answers(folder, 40, seed)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["--model", str(folder), "--data", str(tmp_path / "label"), "--test",
               str(tmp_path / "test"), "--out", str(tmp_path / "out")]
    rules.main(command)
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "out/rules.json").read_text())["rows"]
    assert len(found) == 2 * 2 * 3 * 4 and "40 label and 40 test questions" in said
    monkeypatch.setattr(rules, "asked", None)  # all of it is kept
    rules.main(command)
    assert capsys.readouterr().out == said


def test_routers_learn_what_a_rule_picks(tmp_path, monkeypatch):
    """Catches labels of another rule, score or doubt, a damped repeat that no path can be, and
    questions of the test among the labels."""
    folder, seen = save_tiny(tmp_path / "model", tiny_model(5, dtype=torch.float32)), {}
    for name, seed in ("label", 0), ("test", 1):
        rows = [row | {"id": f"{name}{row['id']}"} for row in own_answers(folder, 40, seed)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    real = rules.train_routers
    monkeypatch.setattr(rules, "train_routers", lambda model, prompts, labels, *more: seen.update(
        prompts=prompts, labels=labels) or real(model, prompts, labels, *more))
    monkeypatch.setitem(RULES, "all", lambda values, doubt, known, new: seen.update(
        values=values, doubt=doubt) or torch.arange(len(new.kinds)) % values.shape[1])
    rules.main(["--model", str(folder), "--data", str(tmp_path / "label"), "--test",
                str(tmp_path / "test"), "--out", str(tmp_path / "out"), "--train", "all",
                "--counts", "log-probability", "--doubt", "2", "--seeds", "2"])
    edits = [edit for edit in menu(3) if edit[0] != "damped"]
    assert seen["doubt"] == 2 and seen["labels"] == [
        rules.decisions_with(edits[n % len(edits)], 3) for n in range(40)]
    assert {p.question.id[:5] for p in seen["prompts"]} == {"label"}
    _, logprob = asked(rules.load_model(folder), seen["prompts"], edits)
    torch.testing.assert_close(seen["values"], (logprob - logprob[:, :1]).clamp(-5, 5))
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["routes"]["dr.llm"]["n"] == 40 and len(metrics["seeds"]) == 2
