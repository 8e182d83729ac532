"""Answers that are kept are those that were given, and never another question's or path's."""
import json

import pytest
import torch

import storage.answer_cache
import train
from conftest import own_answers
from drllm import RouterRoute, Routers
from storage.answer_cache import Kept, name_of
from answers import answer, judge
from tiny import save_tiny, tiny_model


def same(one, other):
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
               for a, b in zip(vars(one).values(), vars(other).values()))


def refuse(*args, **how):
    raise AssertionError("asked again")


@pytest.fixture
def tiny_run(tmp_path):
    """The flags of a small run of train.py."""
    folder = save_tiny(tmp_path / "model", tiny_model(5, dtype=torch.float32))
    rows = own_answers(folder, 60)
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--model", str(folder), "--data", str(tmp_path / "q.jsonl"), "--simulations", "8",
            "--seeds", "2", "--clusters", "2"]


@pytest.fixture
def routers():
    torch.manual_seed(1)
    return Routers(3, 16, 4, windows=2)


def test_answers_and_verdicts_come_back_as_they_were(tiny_questions, tmp_path, monkeypatch):
    """Catches a rounded confidence, another type, a file that is not read."""
    model, tokenizer, prompts = tiny_questions
    paths = torch.tensor([[1, n % 2 + 1, 1] for n in range(len(prompts))])
    file = tmp_path / "kept.jsonl"
    kept = Kept(file, model)
    first = (kept.answer(model, tokenizer, prompts, None),
             kept.judge(model, tokenizer, prompts, paths))
    assert same(first[0], answer(model, tokenizer, prompts, None))
    assert all(map(torch.equal, first[1], judge(model, tokenizer, prompts, paths)))
    with open(file, "a") as torn:
        torn.write('["half a li')
    monkeypatch.setattr("storage.answer_cache.answer", refuse)
    monkeypatch.setattr("storage.answer_cache.judge", refuse)
    seen = []
    kept = Kept(file, model)
    assert same(first[0], kept.answer(model, tokenizer, prompts, None, progress=seen.append))
    again = kept.judge(model, tokenizer, prompts, paths, progress=seen.append)
    assert all(map(torch.equal, first[1], again)) and seen == [len(prompts)] * 2
    assert len(file.read_text().splitlines()) == 2


def test_nothing_is_taken_for_something_else(tiny_questions, tmp_path, monkeypatch):
    """Catches a key without the model, the questions, their order, the path or what is asked."""
    model, tokenizer, prompts = tiny_questions
    file, paths = tmp_path / "kept.jsonl", torch.ones(len(prompts), 3, dtype=torch.long)
    kept = Kept(file, model)
    kept.answer(model, tokenizer, prompts, paths)
    kept.judge(model, tokenizer, prompts, paths)
    monkeypatch.setattr("storage.answer_cache.answer", refuse)
    monkeypatch.setattr("storage.answer_cache.judge", refuse)
    other = paths.clone()
    other[0, 0] = 2
    for way in (kept.answer, kept.judge):
        for asked, along in ((prompts, other), (prompts[1:], paths[1:]), (prompts[::-1], paths)):
            with pytest.raises(AssertionError, match="asked again"):
                way(model, tokenizer, asked, along)
    with pytest.raises(AssertionError, match="asked again"):
        Kept(file, tiny_model(6)).judge(model, tokenizer, prompts, paths)


def test_answers_of_other_code_or_in_other_numbers_are_not_taken(tiny_questions, tmp_path,
                                                                  monkeypatch):
    """Catches the table of yesterday's code below a changed line, and float32's for bfloat16."""
    model, tokenizer, prompts = tiny_questions
    Kept(tmp_path / "k", model).answer(model, tokenizer, prompts, None)
    monkeypatch.setattr("storage.answer_cache.answer", refuse)
    Kept(tmp_path / "k", model).answer(model, tokenizer, prompts, None)
    for change in (lambda: monkeypatch.setattr("storage.answer_cache.code", lambda: "other"),
                   lambda: model.to(torch.bfloat16)):
        change()
        with pytest.raises(AssertionError, match="asked again"):
            Kept(tmp_path / "k", model).answer(model, tokenizer, prompts, None)
        monkeypatch.undo()
        monkeypatch.setattr("storage.answer_cache.answer", refuse)


def test_the_name_of_a_route_is_all_that_it_does(routers):
    """Catches routers known by their file's name, and a tilt or guard that is left out."""
    ways = [RouterRoute(routers), RouterRoute(routers, tilt=0.5), RouterRoute(routers, guard=False),
            RouterRoute(routers, control=0.0), RouterRoute(routers, allowed=(True, True, False))]
    names = [json.dumps(name_of(way)) for way in ways]
    assert len(set(names)) == len(ways) and names[0] == json.dumps(name_of(RouterRoute(routers)))
    routers.b2.data[0, 0] += 1
    assert json.dumps(name_of(ways[0])) not in names
    routers.set_guard(torch.eye(16), torch.zeros(3, 3, 16), torch.ones(3))
    guarded = json.dumps(name_of(ways[0]))
    routers.guard_limits += 1
    assert json.dumps(name_of(ways[0])) != guarded and name_of(lambda *a: None) is None


def test_a_route_without_a_name_is_always_asked(tiny_questions):
    model, tokenizer, prompts = tiny_questions
    kept, calls = Kept(), []

    def route(layer, hidden, lengths):
        calls.append(layer)
        return torch.ones(len(lengths), dtype=torch.long)
    for number in (1, 2):
        kept.answer(model, tokenizer, prompts, route)
        assert calls == [0, 1, 2] * (len(calls) // 3) and calls.count(0) >= number
    assert kept.found == {}


@pytest.mark.parametrize("where", ("judge", "answer"))
def test_a_run_that_is_stopped_anywhere_goes_on_and_ends_alike(where, tmp_path, tiny_run,
                                                               monkeypatch):
    """Catches a phase that begins anew, figures that depend on the stop."""
    def run(out):
        train.main([*tiny_run, "--out", str(tmp_path / out), "--force"])
        return json.loads((tmp_path / out / "metrics.json").read_text())["routes"]
    calls, real = [], getattr(storage.answer_cache, where)
    monkeypatch.setattr(f"storage.answer_cache.{where}", lambda *a: calls.append(0) or real(*a))
    wanted, number = run("whole"), len(calls)
    assert number > 3
    calls.clear()
    assert run("whole") == wanted and not calls  # a finished run has nothing left to ask

    def stops(*a):
        if len(calls) == number // 2:
            raise KeyboardInterrupt
        calls.append(0)
        return real(*a)
    monkeypatch.setattr(f"storage.answer_cache.{where}", stops)
    with pytest.raises(KeyboardInterrupt):
        run("stopped")
    monkeypatch.setattr(f"storage.answer_cache.{where}", lambda *a: calls.append(0) or real(*a))
    assert run("stopped") == wanted and len(calls) == number
