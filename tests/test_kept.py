"""Answers from the cache are those that were given, and never another question's or path's."""
import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import answers
import train
from conftest import leaves
from answers import answer, cached_answer, cached_grade_paths, grade_paths, route_key, tokenizer_key
from drllm import RouterRoute, Routers
from model_llama import FixedRoute
from storage.answer_cache import AnswerCache, source_hash
from storage.files import InputError, read_json
from tiny import WORDS


def same(answers, others):
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
               for a, b in zip(vars(answers).values(), vars(others).values()))


def refuse(*args, **how):
    raise AssertionError("asked again")


@pytest.fixture
def nothing_is_asked(monkeypatch):
    """Call it, and from then on whatever asks the model fails."""
    def forbid():
        monkeypatch.setattr(answers, "answer", refuse)
        monkeypatch.setattr(answers, "grade_paths", refuse)
    return forbid


@pytest.fixture(scope="module")
def tiny_run(own_folder):
    """The flags of a small run of train.py."""
    return ["--model", str(own_folder / "model"), "--data", str(own_folder / "q.jsonl"),
            "--simulations", "8", "--seeds", "2", "--clusters", "2", "--choose", "consensus",
            "--force"]


@pytest.fixture
def routers():
    torch.manual_seed(1)
    return Routers(3, 16, 4, windows=2)


# ---- the cache ----

def test_a_value_is_made_once_and_comes_back_as_it_was(tmp_path):
    """Catches a value that is made again, or changed by its way through the file."""
    file, value = tmp_path / "answers.jsonl", {"a": [0.1, 1e-300, None, True], "ü": "\ud800 \u2028"}
    assert AnswerCache(file).get(["x", 1], lambda: value) == value
    cache = AnswerCache(file)
    assert ["x", 1] in cache and ["x", 2] not in cache
    assert cache.get(["x", 1], refuse) == value
    assert cache.get(["x", 2], lambda: 5) == 5
    assert AnswerCache(file).get(["x", 2], refuse) == 5


def test_a_line_that_a_crash_left_unfinished_is_cut_off(tmp_path):
    file = tmp_path / "answers.jsonl"
    AnswerCache(file).get("whole", lambda: 1)
    whole = file.read_bytes()
    file.write_bytes(whole + b'["half a li')
    assert AnswerCache(file).get("whole", refuse) == 1 and file.read_bytes() == whole


@pytest.mark.parametrize("damage", [
    b"{}", b"3", b"null", b"[]", b'["key"]', b'["key", {}]', b'["key", {}, "0123456789abcdef"]',
    b"[[], 3, null]", b"{", b"\xff", b"[" * 50_000, b""])
def test_a_line_that_the_cache_did_not_write_is_refused_by_file_and_line(tmp_path, damage):
    """Catches a traceback, or a damaged line that is taken for a value."""
    file = tmp_path / "answers.jsonl"
    AnswerCache(file).get("first", lambda: {"right": [1.0, 0.0]})
    data = file.read_bytes() + damage + b"\n"
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"answers\.jsonl:2: "):
        AnswerCache(file)
    assert file.read_bytes() == data


@pytest.mark.parametrize("old, new", [
    (b"right", b"rihgt"), (b"1.0, 0.0", b"1.0"), (b"0.0", b"1.0"), (b'"first"', b'"second"')])
def test_a_value_that_was_edited_is_refused(tmp_path, old, new):
    """Catches a renamed field, a short row, another figure."""
    file = tmp_path / "answers.jsonl"
    AnswerCache(file).get("first", lambda: {"right": [1.0, 0.0], "texts": ["first"]})
    data = file.read_bytes()
    assert data.count(old) == 1
    file.write_bytes(data.replace(old, new))
    with pytest.raises(InputError, match=r"answers\.jsonl:1: .* Remove the file"):
        AnswerCache(file)


# ---- answers through the cache ----

def test_answers_and_grades_come_back_as_they_were(tiny_questions, tmp_path, nothing_is_asked):
    """Catches a rounded confidence, another type, a file that is not read."""
    model, tokenizer, prompts = tiny_questions
    paths = torch.tensor([[1, n % 2 + 1, 1] for n in range(len(prompts))])
    file = tmp_path / "answers.jsonl"
    answered = cached_answer(AnswerCache(file), model, tokenizer, prompts, None)
    graded = cached_grade_paths(AnswerCache(file), model, tokenizer, prompts, paths)
    assert same(answered, answer(model, tokenizer, prompts, None))
    assert all(map(torch.equal, graded, grade_paths(model, tokenizer, prompts, paths)))
    nothing_is_asked()
    cache, progress = AnswerCache(file), []
    again = cached_answer(cache, model, tokenizer, prompts, None, progress=progress.append)
    assert same(answered, again)
    again = cached_grade_paths(cache, model, tokenizer, prompts, paths, progress=progress.append)
    assert all(map(torch.equal, graded, again)) and progress == [len(prompts)] * 2
    assert len(file.read_text(encoding="utf-8").splitlines()) == 2


def changed_prompts(prompts):
    """{what differs: prompts that differ from these in it}."""
    change = lambda **fields: [replace(prompts[0], **fields), *prompts[1:]]
    first = prompts[0]
    return {"ids": change(ids=(*first.ids, 2)), "gold": change(gold=(*first.gold, 2)),
            "stop ids": change(stop_ids=(*first.stop_ids, 2)),
            "options": change(options=((2,), (3,)), scored=(1, 1)),
            "scored": change(options=((2, 4), (3, 4)), scored=(1, 1)),
            "scored otherwise": change(options=((2, 4), (3, 4)), scored=(2, 2)),
            "answer": change(question=replace(first.question, answer="another")),
            "budget": change(question=replace(first.question, max_new_tokens=1)),
            "order": prompts[::-1], "number": prompts[1:]}


def test_a_change_of_anything_that_answers_depend_on_is_asked_again(
        tiny_questions, tmp_path, nothing_is_asked):
    """Catches a key without the questions, their order, what ends an answer, what is correct, the
    path, or what is asked."""
    model, tokenizer, prompts = tiny_questions
    file, paths = tmp_path / "answers.jsonl", torch.ones(len(prompts), 3, dtype=torch.long)
    cached_answer(AnswerCache(file), model, tokenizer, prompts, paths)
    cached_grade_paths(AnswerCache(file), model, tokenizer, prompts, paths)
    nothing_is_asked()
    other_path = paths.clone()
    other_path[0, 0] = 2
    variants = changed_prompts(prompts)
    assert len({tuple(p.key() for p in changed) for changed in variants.values()}) == len(variants)
    for ask in (cached_answer, cached_grade_paths):
        for changed in [*variants.values(), prompts]:
            along = other_path if changed is prompts else paths[:len(changed)]
            with pytest.raises(AssertionError, match="asked again"):
                ask(AnswerCache(file), model, tokenizer, changed, along)


def other_configuration(model, name, value):
    model.config = replace(model.config, **{name: value})


@pytest.mark.parametrize("change", [
    lambda model, patch: patch.setattr(answers, "source_hash", lambda *files: "other code"),
    lambda model, patch: patch.setattr(torch, "__version__", "0.1"),
    lambda model, patch: model.to(torch.bfloat16),
    lambda model, patch: (model.layers[0].mlp.up_proj.weight.mul_(2),
                          vars(model).pop("_fingerprint")),  # as in another model, freshly loaded
    lambda model, patch: other_configuration(model, "rope_theta", 500.0),
    lambda model, patch: other_configuration(model, "rms_norm_eps", 0.5)],
    ids=["code", "torch", "dtype", "weights", "rotary angles", "epsilon"])
def test_answers_of_another_model_or_other_code_are_not_taken(
        tiny_questions, tmp_path, nothing_is_asked, monkeypatch, change):
    """Catches the table of yesterday's code below a changed line, float32's answers for bfloat16,
    and those of a model with the same weights and another config.json."""
    model, tokenizer, prompts = tiny_questions
    cached_answer(AnswerCache(tmp_path / "k"), model, tokenizer, prompts, None)
    nothing_is_asked()
    cached_answer(AnswerCache(tmp_path / "k"), model, tokenizer, prompts, None)
    change(model, monkeypatch)
    with pytest.raises(AssertionError, match="asked again"):
        cached_answer(AnswerCache(tmp_path / "k"), model, tokenizer, prompts, None)


def test_a_tokenizer_that_writes_the_same_ids_as_other_words_is_another_one(tiny_questions):
    """Catches texts and grades of another tokenizer.json whose prompts have the same ids."""
    from model_llama import load_tokenizer
    _, tokenizer, _ = tiny_questions
    file = tokenizer.folder / "tokenizer.json"
    words = read_json(file)
    words["model"]["vocab"] |= {WORDS[2]: 3, WORDS[3]: 2}
    file.write_text(json.dumps(words), encoding="utf-8")
    other = load_tokenizer(tokenizer.folder)
    assert tokenizer.decode([2]) != other.decode([2])
    assert tokenizer_key(tokenizer) != tokenizer_key(other)


def test_only_code_that_answers_depend_on_discards_them():
    """Catches an edit of a table or of the search that discards every answer, and a file of the
    decoder that is forgotten."""
    root = Path(answers.__file__).parent
    counted = {file.relative_to(root).as_posix() for pattern in answers.ANSWER_SOURCES
               for file in root.glob(pattern)}
    assert {"model_llama.py", "answers.py", "drllm.py", "paths.py", "questions/reward.py",
            "checkpoint/tokenizer.py"} <= counted
    assert not counted & {"evaluate.py", "train.py", "choose.py", "label.py", "mcts.py", "cli.py"}
    assert source_hash("paths.py") != source_hash("drllm.py")
    with pytest.raises(FileNotFoundError, match="renamed.py"):
        source_hash("renamed.py")


# ---- what tells a route from others ----

def test_the_key_of_a_route_is_all_that_it_does(routers):
    """Catches routers known by their file's name, and a tilt or guard that is left out."""
    routes = [RouterRoute(routers), RouterRoute(routers, depth_bias=0.5),
              RouterRoute(routers, guard=False), RouterRoute(routers, control=0.0)]
    keys = [json.dumps(route_key(route)) for route in routes]
    assert len(set(keys)) == len(routes)
    assert keys[0] == json.dumps(route_key(RouterRoute(routers)))
    routers.b2.data[0, 0] += 1
    assert json.dumps(route_key(routes[0])) not in keys
    routers.set_guard(torch.eye(16), torch.zeros(3, 3, 16), torch.ones(3))
    guarded = json.dumps(route_key(routes[0]))
    routers.guard_limits += 1
    assert json.dumps(route_key(routes[0])) != guarded and route_key(lambda *a: None) is None
    assert route_key(None) != route_key(FixedRoute((1, 1, 1)))
    paths = torch.tensor([[1, 0, 2], [1, 1, 1]])
    assert route_key(paths) == route_key(FixedRoute(paths)) != route_key(FixedRoute(paths.flip(0)))


def test_routers_of_other_windows_or_another_class_are_other_routers(routers):
    """Catches routers of two and of four windows that share the answers of equal weights, and a
    subclass that sees other features under the key of what it inherits."""
    class LastToken(RouterRoute):
        def pool(self, hidden, lengths):
            return super().pool(hidden[:, -1:], torch.ones_like(lengths))

    class Opposite(Routers):
        def forward(self, *args):
            return -super().forward(*args)

    class Backwards(FixedRoute):
        def __call__(self, layer, hidden, lengths):
            return super().__call__(self.num_layers - 1 - layer, hidden, lengths)

    more_windows, opposite = Routers(3, 16, 4, windows=4), Opposite(3, 16, 4, windows=2)
    for other in (more_windows, opposite):
        other.load_state_dict(routers.state_dict())
    assert route_key(more_windows.route) not in (None, route_key(routers.route))
    assert route_key(LastToken(routers)) is None and route_key(opposite.route) is None
    assert route_key(Backwards((1, 0, 2))) is None


def test_a_route_without_a_key_is_always_asked(tiny_questions):
    model, tokenizer, prompts = tiny_questions
    cache, layers = AnswerCache(), []

    def route(layer, hidden, lengths):
        layers.append(layer)
        return torch.ones(len(lengths), dtype=torch.long)
    for number in (1, 2):
        cached_answer(cache, model, tokenizer, prompts, route)
        assert layers == [0, 1, 2] * (len(layers) // 3) and layers.count(0) >= number
    assert cache.values == {}


def test_a_run_that_is_stopped_anywhere_goes_on_and_ends_alike(tmp_path, tiny_run, monkeypatch):
    """Catches a phase that begins anew, figures that depend on the stop."""
    def run(out):
        train.main([*tiny_run, "--choose", "safe", "--out", str(tmp_path / out)])
        metrics = (tmp_path / out / "metrics.json").read_text(encoding="utf-8")
        return json.loads(metrics)["routes"]

    made, most, get = Counter(), {}, AnswerCache.get

    def counting(cache, about, make):
        def counted():
            if made[about[0]] >= most.get(about[0], float("inf")):
                raise KeyboardInterrupt
            made[about[0]] += 1
            return make()
        return get(cache, about, counted)
    monkeypatch.setattr(AnswerCache, "get", counting)
    wanted, number = run("whole"), Counter(made)
    assert min(number["grades"], number["answer"]) > 3
    assert run("whole") == wanted and made == number  # a finished run has nothing left to ask
    made.clear()
    for what in ("grades", "answer"):
        most[what] = number[what] // 2
        with pytest.raises(KeyboardInterrupt):
            run("stopped")
        del most[what]
    assert run("stopped") == wanted and made == number


# ---- a run whose files were damaged ----

@pytest.fixture(scope="module")
def finished(tiny_run, tmp_path_factory):
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("finished") / "run"
    train.main([*tiny_run, "--out", str(out)])
    return out


def contents(folder):
    """{file: bytes} of all files; config.json without the folder's name, which is its `out`."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: re.sub(b'"out": .*', b"", path.read_bytes()) for path in files}


DAMAGED = {  # name: (file, what stands there, what is written in its place)
    "settings cut": ("config.json", b"}", b""),
    "a labels row of null": ("labels.jsonl", b"\n", b"\nnull\n"),
    "answers of a renamed field": ("answers.jsonl", b"confid", b"cofnid"),
    "paths without their rewards": ("paths.json", b'"correct"', b'"corrects"')}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_of_a_run_is_one_line_and_nothing_is_lost(name, finished, tiny_run, tmp_path,
                                                                  capsys):
    """Catches a traceback, a figure computed from half a file, and a file that is removed. What
    else the readers refuse is in test_run_folder.py, test_label.py, and above."""
    file, old, new = DAMAGED[name]
    out = shutil.copytree(finished, tmp_path / "run")
    data = (out / file).read_bytes()
    assert old in data
    (out / file).write_bytes(data.replace(old, new, 1))
    before = contents(out)
    code, said = leaves(lambda: train.main([*tiny_run, "--out", str(out)]), capsys)
    assert code == 2 and said.splitlines()[-1].startswith(f"error: {out / file}"), said
    assert contents(out) == before
