"""The controls that tell luck from routing, each against a count by hand: what a path answers is
said by a rule instead of a model. And the whole command on a tiny run."""
import re
from types import SimpleNamespace

import pytest
import torch

import train
from choose import edit_effects
from conftest import own_answers
from experiments import luck
from mcts import is_legal
from answers import Prompt
from questions.loading import Question
from storage.files import InputError, read_json
from tiny import save_tiny, tiny_model, write_lines

DEFAULT = (1, 1, 1, 1)


def asks(name, answer="A", choices=("x", "y", "z", "w"), prompt=None, options=()):
    return Prompt(Question(name, "t", 0, "?", answer, choices, prompt), (2, 3), options=options)


def row(default, correct, wrong=(), label=None):
    """A labels row; the default path comes first, as in a search."""
    correct, wrong = list(correct), list(wrong)
    (correct if default else wrong).insert(0, DEFAULT)
    return {"default_correct": default, "correct": [(path, 0.5) for path in correct],
            "wrong": wrong, "decisions": label or (correct[0] if correct else DEFAULT)}


@pytest.fixture
def lab_of(monkeypatch):
    """Makes a lab whose answers are said by rule(question, path, dtype, batch size)."""
    def make(pairs, rule=lambda *asked: False, inside=(), limit=1000):
        def grade_paths(model, tokenizer, prompts, paths, batch_size, progress):
            progress(len(prompts))
            correct = [rule(p.question, tuple(path), model, batch_size)
                     for p, path in zip(prompts, paths.tolist())]
            return torch.tensor(correct, dtype=torch.float32), None

        def confidence_if_correct(model, tokenizer, prompts, paths, batch_size, progress):
            progress(len(prompts) * len(paths))
            return torch.tensor([[float(rule(p.question, path, model, batch_size))
                                  for path in paths] for p in prompts])
        monkeypatch.setattr(luck, "grade_paths", grade_paths)
        monkeypatch.setattr(luck, "confidence_if_correct", confidence_if_correct)
        monkeypatch.setattr(luck, "load_model", lambda folder, device, dtype: dtype)
        monkeypatch.setattr(luck, "prompts_that_fit", lambda questions, tokenizer, model, kind: (
            [Prompt(question, (2, 3)) for question in questions], 0))
        args = SimpleNamespace(model="m", device="cpu", limit=limit, seed=0, batch_size=64)
        return SimpleNamespace(model="own", tokenizer=None, args=args, L=4, inside=list(inside),
                               labelled=[p for p, _ in pairs], records=[r for _, r in pairs])
    return make


# ---- counting ----

def test_counts_by_hand():
    found = luck.count_hits([("a", True), ("a", False), ("b", True), ("b", True)], "kept")
    assert found == {"questions": 2, "asked": 4, "kept": 3, "share": 0.75,
                     luck.CI: [0.5, 1.0]}  # two questions, 50% and 100%
    assert luck.in_words(found, "kept") == "3 of 4 (75.0%)"
    assert luck.in_words(luck.count_hits([])) == "0 of 0 (0.0%)"


def test_many_tries_at_one_question_are_one_draw():
    """Catches an interval over tries, which would be too sure."""
    few = luck.count_hits([(name, name == "a") for name in "ab" for _ in range(100)])
    many = luck.count_hits([(n, n % 2) for n in range(200)])
    assert few["share"] == many["share"] == 0.5
    assert few[luck.CI] == [0.0, 1.0] and 0.4 < many[luck.CI][0] < many[luck.CI][1] < 0.6


@pytest.mark.parametrize("hits, share, wanted", [
    ([(n, False) for n in range(30)], 0.0, [0.0, 0.1]),
    ([(n, True) for n in range(30)], 1.0, [0.9, 1.0]),
    ([("a", True), ("a", False)], 0.5, [0.0, 1.0]),
    ([], None, [0.0, 1.0]),
    ([("a", True)] * 9 + [("b", False)], 0.9, [0.72, 1.0])])
def test_intervals_of_shares_by_hand(hits, share, wanted):
    """Catches no doubt where none or all hit, a question alone that speaks for others, and tries
    that do not count: in the last case, nine hits of nine and none of one, the share moves by what
    each question adds to it, that is (9 - 0.9 * 9) / 5 = 0.18 up and 0.18 down."""
    found = luck.count_hits(hits)
    assert (found["share"], found["asked"]) == (share, len(hits))
    assert found[luck.CI] == pytest.approx(wanted)


@pytest.mark.parametrize("mine, other, wanted", [
    ((0.2, 0.3), 0.1, "significantly more"), ((0.2, 0.3), (0.31, 0.4), "significantly less"),
    ((0.2, 0.3), 0.25, "not significantly more or less"),
    ((0.2, 0.3), [0.3, 0.4], "not significantly more or less")])
def test_intervals_are_compared_in_words(mine, other, wanted):
    assert luck.versus(mine, other) == wanted


# ---- the controls ----

def test_right_paths_asked_again_by_hand(lab_of):
    """r: right by default and along E; w: corrected along F and G, of which bfloat16 keeps none and
    a batch loses F; alone, the default path of r is lost."""
    E, F, G = (0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 0, 1)

    def rule(question, path, dtype, size):
        if size == 1:
            return path != DEFAULT
        return path != F if dtype == torch.float32 else question.id == "r"
    lab = lab_of([(asks("r"), row(True, [E])), (asks("w"), row(False, [F, G])),
                  (asks("no"), row(False, []))], rule)
    _, rows, meaning = luck.asked_again(lab)
    assert [(r["asked again"].split(",")[0], "alone" in r["asked again"], r["default path"],
             r["asked"], r["flipped"]) for r in rows] == [
        ("float32", True, "correct", 2, 1), ("float32", True, "incorrect", 2, 0),
        ("float32", False, "correct", 2, 0), ("float32", False, "incorrect", 2, 1),
        ("bfloat16", True, "correct", 2, 1), ("bfloat16", True, "incorrect", 2, 0),
        ("bfloat16", False, "correct", 2, 0), ("bfloat16", False, "incorrect", 2, 2)]
    assert "In float32 0 of 2 (0.0%) flip if the default path was correct; if it" in meaning
    assert meaning.endswith("was incorrect 2 of 2 (100.0%), not significantly more or less.")


def test_only_a_sample_is_asked_alone_and_only_of_the_first_questions(lab_of, monkeypatch):
    monkeypatch.setattr(luck, "ALONE", 3)
    lab = lab_of([(asks(str(n)), row(True, [])) for n in range(9)], lambda *a: True, limit=5)
    rows = luck.asked_again(lab)[1]
    assert [r["asked"] for r in rows] == [3, 0, 5, 0] * 2


def test_share_of_correct_paths_by_hand(lab_of):
    """Of six other paths that were tried where two choices of four were wrong, one is right. Luck
    makes a quarter right, and 2 (1 - 0.75 ** 3) = 1.16 questions."""
    A, B, C = (0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 0, 1)
    lab = lab_of([(asks("w1"), row(False, [A], [B, C])), (asks("w2"), row(False, [], [A, B, C])),
                  (asks("r"), row(True, [A, B], [C])),
                  (asks("t", "7", ()), row(False, [A, B], [C]))])
    _, (correct, wrong, written), meaning = luck.share_of_correct(lab)
    assert (correct["asked"], correct["correct"], correct["by luck"]) == (3, 2, 0.25)
    assert (wrong["questions"], wrong["asked"], wrong["correct"]) == (2, 6, 1)
    assert wrong[luck.CI] == pytest.approx([0, 1 / 3]) and wrong["share"] == pytest.approx(1 / 6)
    assert (wrong["by luck"], wrong["corrected"], wrong["luck corrects"]) == (0.25, 1, 1)
    assert (written["answer"], written["asked"], written["correct"]) == ("written", 3, 2)
    assert written["corrected"] == 1 and not {"by luck", "luck corrects"} & written.keys()
    assert "1 of 6 (16.7%) other paths are correct; they correct 1 of 2 questions" in meaning
    assert "By luck 25.0% are correct and correct 1: the share is not significantly m" in meaning


def test_options_move_and_the_right_letter_with_them():
    told = "Question: 5 Options: (A) 1 (B) 10 (C) 3 Answer:"
    question = asks("q", "B", ("1", "10", "3"), told).question
    new = luck.moved(question, 1)
    assert (new.choices, new.answer) == (("3", "1", "10"), "C")
    assert new.prompt == "Question: 5 Options: (A) 3 (B) 1 (C) 10 Answer:"
    assert luck.moved(question, 2).answer == "A"
    plain = asks("q", "B").question
    assert luck.moved(plain, 3).choices == ("y", "z", "w", "x")
    assert luck.moved(plain, 3).answer == "A" and luck.moved(plain, 3).prompt is None
    assert luck.moved(asks("q", "A", prompt="x, y, z or w?").question, 1) is None


def test_moved_options_by_hand(lab_of):
    """The label path says A whatever the question: of the three other orders of a question with A
    none is right, of one with B, the order that moves it from B over D to A."""
    P = (0, 1, 1, 1)

    def rule(question, path, *_):
        return question.answer == "A" if path == P else question.id[0] == "r"
    lab = lab_of([(asks("r", "B"), row(True, [])), (asks("w1", "A"), row(False, [P])),
                  (asks("w2", "B"), row(False, [P])), (asks("no"), row(False, [])),
                  (asks("written", "7", ()), row(False, [P])),
                  (asks("scored", options=((1,), (2,))), row(False, [P]))], rule)
    _, (correct, along_label, plain), meaning = luck.options_moved(lab)
    assert (correct["questions"], correct["asked"], correct["correct"]) == (1, 3, 3)
    assert (along_label["questions"], along_label["asked"], along_label["correct"]) == (2, 6, 1)
    assert (plain["asked"], plain["correct"], plain["by luck"]) == (6, 0, 0.25)
    assert "3 of 3 (100.0%) stay correct; of corrected questions 1 of 6 (16.7%). That is" in meaning


def test_no_multiple_choice_means_no_moved_options(lab_of):
    _, rows, meaning = luck.options_moved(lab_of([(asks("t", "7", ()), row(True, []))]))
    assert not rows and "Too few" in meaning


def test_undone_edits_by_hand(lab_of):
    """Only the skip of layer 1 matters: of P's three edits two can be undone, of Q's two one. S has
    a single edit."""
    P, Q, S, T = (2, 0, 1, 2), (1, 0, 0, 1), (0, 1, 1, 1), (1, 1, 2, 2)
    lab = lab_of([(asks("w1"), row(False, [P], [T, S])), (asks("w2"), row(False, [Q])),
                  (asks("s"), row(False, [S], [T])), (asks("r"), row(True, [P], label=P))],
                 lambda question, path, *_: path[1] == 0)
    _, (undone, other), meaning = luck.edit_undone(lab)
    assert (undone["questions"], undone["asked"], undone["correct"]) == (2, 5, 3)
    assert undone["if one did it all"] == pytest.approx(3 / 5)
    assert (other["asked"], other["correct"]) == (2, 0)
    assert "3 of 5 (60.0%) are still correct" in meaning and "(0 of 2 (0.0%))" in meaning


def test_single_edits_leave_nothing_to_undo(lab_of):
    _, rows, meaning = luck.edit_undone(lab_of([(asks("s"), row(False, [(0, 1, 1, 1)]))]))
    assert not rows and "nothing to undo" in meaning


@pytest.mark.parametrize("layers, edits, number", [(12, 2.5, 50), (1, 3.0, 2), (2, 0.0, 4),
                                                   (4, 4.0, 13)])  # 16 but three with 3 skips
def test_random_paths_are_legal_different_and_edited_as_often_as_asked(layers, edits, number):
    paths = luck.random_paths(layers, edits, 50, luck.random.Random(0))
    assert len(paths) == len(set(paths)) == number
    assert all(is_legal(path) and set(path) != {1} for path in paths)
    counts = [sum(n != 1 for n in path) for path in paths]
    assert set(counts) == {12: {2, 3}, 1: {1}, 2: {1}, 4: {4}}[layers]


def test_lucky_candidate_paths_by_hand(lab_of, monkeypatch):
    """Path k is right for question k alone. With the gold answer, all eight are corrected; the best
    path of each half corrects one question there, and none of the other half."""
    paths = [tuple(1 + (k >> b) % 2 for b in range(4)) for k in range(1, 9)]
    monkeypatch.setattr(luck, "random_paths", lambda *_: paths)
    rule = lambda question, path, *_: path == paths[int(question.id)]
    pairs = [(asks(str(n)), row(False, [(0, 1, 1, 1)] if n < 3 else [])) for n in range(8)]
    _, rows, meaning = luck.random_candidates(lab_of(pairs, rule))
    assert [(r["incorrect"], r["corrected"], r["lost"], r["gain"]) for r in rows] == [
        (8, 3, 0, 0.375), (8, 8, 0, 1.0), (8, 2, 0, 0.25), (8, 0, 0, 0.0)]
    assert "the search corrects 3 and random paths 8 of 8 incorrect questions" in meaning
    assert "gains +25.0 points on the half that chose it and +0.0 on the other" in meaning
    pairs = [(asks(str(n)), row(True, [])) for n in range(8)]
    rows = luck.random_candidates(lab_of(pairs, rule))[1]
    assert [(r["corrected"], r["lost"], r["gain"]) for r in rows] == [
        (0, 0, 0.0), (0, 0, 0.0), (0, 6, -0.75), (0, 8, -1.0)]


def test_a_path_that_helps_everywhere_also_helps_where_it_was_not_chosen(lab_of, monkeypatch):
    good, bad = (2, 1, 1, 1), (0, 1, 1, 1)
    monkeypatch.setattr(luck, "random_paths", lambda *_: [bad, good])
    pairs = [(asks(str(n)), row(n % 2, [])) for n in range(9)]
    rows = luck.random_candidates(lab_of(pairs, lambda question, path, *_: path == good))[1]
    assert rows[2]["gain"] == rows[3]["gain"] == pytest.approx(5 / 9)


def test_candidate_paths_of_one_question_are_no_crash(lab_of):
    rows = luck.random_candidates(lab_of([(asks("0"), row(False, []))], lambda *a: True))[1]
    assert rows[1]["corrected"] == 1


def test_with_the_answer_at_hand_the_default_path_is_never_lost(lab_of):
    rows = luck.random_candidates(lab_of([(asks(str(n)), row(True, [])) for n in range(4)]))[1]
    assert [r["lost"] for r in rows] == [0, 0, 4, 4]


def test_single_edits_by_hand(lab_of):
    """In the searches skipping layer 1 is right and everything else is wrong; of four test
    questions it spoils three, and skipping layer 0 all."""
    skip, others = (1, 0, 1, 1), [(0, 1, 1, 1), (1, 1, 0, 1), (2, 1, 1, 1)]
    pairs = [(asks(str(n)), row(False, [skip], others)) for n in range(40)]
    rule = lambda question, path, *_: path[0] and (path[1] or question.id == "t0")
    tests = [asks(f"t{n}") for n in range(4)]
    _, rows, meaning = luck.single_edits(lab_of(pairs, rule, tests))
    assert len(rows) == 8 and rows[0]["edit"] == "skip 1" and rows[0]["questions"] == 4
    assert rows[0]["effect"] == edit_effects([r for _, r in pairs])[1, 0].item() > 0.5
    gains = {r["edit"]: r["gain"] for r in rows}
    assert gains.pop("skip 1") == -0.75 and gains.pop("skip 0") == -1.0
    assert set(gains.values()) == {0.0}
    assert [abs(r["effect"]) for r in rows] == sorted(abs(r["effect"]) for r in rows)[::-1]
    assert f"help by the searches' data (1) promise {100 * rows[0]['effect']:+.1f} po" in meaning
    assert "they gain -75.0 [-100.0, -25.0]" in meaning
    assert meaning.endswith(": significantly less than 0, significantly less than promised.")


def test_edits_that_hold_on_fresh_questions_are_told_so(lab_of):
    skip, others = (1, 0, 1, 1), [(0, 1, 1, 1), (1, 1, 0, 1), (2, 1, 1, 1)]
    pairs = [(asks(str(n)), row(False, [skip], others)) for n in range(40)]
    tests = [asks(f"t{n}") for n in range(40)]
    lab = lab_of(pairs, lambda question, path, *_: path == skip, tests)
    meaning = luck.single_edits(lab)[2]
    assert ": significantly more than 0, significantly more than promised." in meaning


def test_edits_that_only_harm_promise_nothing(lab_of):
    pairs = [(asks(str(n)), row(True, [], [(0, 1, 1, 1), (1, 0, 1, 1)])) for n in range(40)]
    lab = lab_of(pairs, lambda *a: True, [asks("t")])
    assert luck.single_edits(lab)[2] == "By the searches' data none of these edits helps."


# ---- the command ----

@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished tiny run."""
    base = tmp_path_factory.mktemp("luck")
    rows = own_answers(save_tiny(base / "model", tiny_model(2, dtype=torch.float32)), 24)
    for name, some in (("label", rows[:16]), ("test", rows[16:])):
        write_lines(base / f"{name}.jsonl", some)
    train.main([*flags(base)[2:], "--out", str(base / "run"), "--simulations", "6", "--seeds", "1",
                "--clusters", "1", "--choose", "shortest"])
    return base


def flags(base):
    return ["--run", str(base / "run"), "--model", str(base / "model"), "--data",
            str(base / "label.jsonl"), "--test", str(base / "test.jsonl")]


def test_command_prints_every_table_with_its_meaning_and_keeps_them(run, capsys):
    luck.main([*flags(run), "--limit", "12"])
    printed = capsys.readouterr().out
    stored = read_json(run / "run" / "luck.json")
    assert list(stored["controls"]) == [control.__name__ for control in luck.CONTROLS]
    assert re.findall(r"^(\d)\. ", printed, re.MULTILINE) == list("123456")
    for control in stored["controls"].values():
        assert control["title"] in printed and control["meaning"] in " ".join(printed.split())
    assert "nan" not in re.findall(r"\w+", str(stored)) and stored["limit"] == 12
    tested = stored["controls"]["single_edits"]["rows"]
    assert len(tested) == 6 and {r["questions"] for r in tested} == {8}


def test_a_path_that_never_was_right_is_found_when_it_is_asked_again(run, tmp_path):
    """Through the real model: as the labels stand nothing flips in float32; with a wrong path among
    the right ones of two questions, two do, each in its group."""
    lab = luck.Lab(luck.parse_args(flags(run)))
    flipped = lambda: [r["flipped"] for r in luck.asked_again(lab)[1][:4]]
    assert flipped() == [0, 0, 0, 0]
    for default in (True, False):
        changed = next(r for r in lab.records if r["default_correct"] == default and r["wrong"])
        changed["correct"].append((changed["wrong"][0], 0.5))
    assert flipped() == [1, 1, 1, 1]


def test_a_folder_that_is_no_run_is_refused(run, tmp_path):
    with pytest.raises(InputError, match="config.json: no such file; --run is the folder of a fin"):
        luck.main([*flags(run)[2:], "--run", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()
