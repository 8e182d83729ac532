"""The answer to a typed question is generate()'s, in whole characters that no terminal obeys."""
import io
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cli
from programs import run_program
from drllm import Routers
from tools import ask
from model_llama import FixedRoute, generate, load_model, load_tokenizer
from storage.files import InputError
from tiny import edit_json, save_tiny, tiny_model

TEMPLATE = ("{% for m in messages %}{{ 0 if m.role == 'user' else 1 }} {{ m.content }} {% endfor %}"
            "Answer:")


@pytest.fixture
def folders(tmp_path):
    """(model folder with a chat template, run folder with routers that decide variously)."""
    folder = save_tiny(tmp_path / "model", tiny_model(5, dtype=torch.float32))
    edit_json(folder / "tokenizer_config.json", chat_template=TEMPLATE)
    routers = Routers(3, 16)
    routers.b2.data = torch.randn(3, 1, 3)
    routers.metadata = {"model": load_model(folder).fingerprint(), "tasks": ["own"]}
    routers.save(tmp_path / "run" / "routers.safetensors")
    return folder, tmp_path / "run"


def run(folders, *more):
    ask.main(["--model", str(folders[0]), "--routers", str(folders[1]), "--max-new-tokens", "5",
              *more])


@pytest.fixture
def typed(monkeypatch):
    return lambda text: monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))


@pytest.fixture
def prompts(folders, monkeypatch):
    """The prompts that are answered, as text, and None in place of the base model's route."""
    tokenizer, seen = load_tokenizer(folders[0]), []
    real = ask.passes

    def watched(model, ids, route, *rest):
        seen.append(tokenizer.decode(ids) if route else None)
        return real(model, ids, route, *rest)
    monkeypatch.setattr(ask, "passes", watched)
    return seen


# ---- one answer ----

@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 70), st.integers(0, 3),
       st.lists(st.integers(0, 2), min_size=3, max_size=3))
def test_the_answer_is_that_of_generate(seed, length, most, stops, path):
    """Catches a second decoder that drifts: a pass too many, a stop id in the answer, an answer
    beyond the model's context (64)."""
    model, rng = tiny_model(seed % 5), torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 40, (length,), generator=rng).tolist()
    free = generate(model, [ids], FixedRoute(path), most).tokens[0]
    stop_ids = tuple(free[-stops:]) if stops else ()  # some that the answer meets
    made = generate(model, [ids], FixedRoute(path), most, stop_ids)
    seen = [(list(said), decisions.tolist())
            for said, decisions in ask.passes(model, ids, FixedRoute(path), most, stop_ids)]
    assert seen[-1] == (made.tokens[0], path)
    assert len(seen) == made.passes and len(seen) * sum(path) == made.layers_executed
    assert [said for said, _ in seen[:-1]] == [free[:n] for n in range(1, len(seen))]


def test_routers_decide_as_in_generate(folders):
    model = load_model(folders[0])
    route = Routers.load(folders[1], model).route
    made = generate(model, [[5, 6, 7, 8]], route, 6)
    *_, (said, decisions) = ask.passes(model, [5, 6, 7, 8], route, 6, ())
    assert (said, decisions.tolist()) == (made.tokens[0], made.decisions[0].tolist())
    assert set(decisions.tolist()) != {1}


class Bytes:
    """A tokenizer whose tokens are bytes, as those of byte-level BPE can be."""
    stop_ids = ()

    def decode(self, ids):
        return bytes(ids).decode("utf-8", "replace")


def shown(monkeypatch, capsys, data):
    """What is printed after each pass, for an answer of these bytes; the last also has the cost."""
    pieces = []

    def passes(*_):
        for n in range(1, len(data) + 1):
            yield list(data[:n]), torch.tensor([1, 0, 2])
            pieces.append(capsys.readouterr().out)
    monkeypatch.setattr(ask, "passes", passes)
    text = ask.show(None, Bytes(), [1], None, 9)
    assert text == data.decode("utf-8", "replace")
    return [*pieces, capsys.readouterr().out.rpartition("\n[")[0]]


def test_a_character_of_several_bytes_comes_out_whole(monkeypatch, capsys):
    """Catches a replacement character on the way, and an answer held back to its end."""
    assert shown(monkeypatch, capsys, "a é 😀".encode()) == [
        "a", " ", "", "é", " ", "", "", "", "😀", ""]


def test_bytes_that_are_no_character_are_shown_once(monkeypatch, capsys):
    assert shown(monkeypatch, capsys, b"a\xff\xffb\xe4\xbd") == ["a", "", "", "��b", "", "", "�"]


@pytest.mark.parametrize("text", ["\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "wrong\rright",
                                  "\x9b2J", "a\b\b", "\u202egnihton", "\x00\x7f\u2028\ufeff"])
def test_a_terminal_obeys_nothing_that_a_model_says(monkeypatch, capsys, text):
    """Catches an answer that paints, erases, or renames the window."""
    out = "".join(shown(monkeypatch, capsys, f"é{text}\n\tb".encode()))
    assert out.replace("\n\t", "").isprintable() and out.startswith("é") and out.endswith("\n\tb")
    assert ask.visible("\x1b[1mé\n\r") == "\\x1b[1mé\n\\r"


def test_the_line_under_an_answer_counts_layers():
    """Decisions 0 1 2 2 1 1 run 7 layers a pass, of 6."""
    assert ask.cost(torch.tensor([0, 1, 2, 2, 1, 1]), 4) == (
        "[layers per pass: 7 run, 1 skipped, 2 repeated; base model: 6 of 6. Over 4 passes: 28; "
        "base model: 24]")


# ---- the conversation ----

def test_a_conversation_keeps_its_turns_and_ends_at_a_blank_line(folders, typed, prompts, capsys):
    typed("a b\nc\n\nd\n")
    run(folders)
    out, err = capsys.readouterr()
    first = out.partition("\n[layers")[0]
    assert first and prompts == ["0 a b Answer:", f"0 a b 1 {first} 0 c Answer:"]
    assert ">" not in out  # a prompt mark is for a terminal
    assert err.startswith("note: these routers learned from own; ") and err.count("\n") == 1


def test_a_conversation_ends_with_its_input(folders, typed, prompts, monkeypatch):
    typed("a b\nc")
    run(folders)
    assert len(prompts) == 2
    monkeypatch.setattr(sys, "stdin", None)  # `<&-`
    run(folders)
    assert len(prompts) == 2


def test_without_a_template_every_question_stands_alone(folders, typed, prompts, capsys):
    """Catches a note per question, and turns glued together without a form."""
    long = " ".join("a" * 62)  # fills the context alone, so there is nothing to forget
    typed(f"a b\nc\n{long}\n")
    run(folders, "--verbatim")
    assert prompts == ["a b", "c", long] and capsys.readouterr().err.count("note:") == 1
    edit_json(folders[0] / "tokenizer_config.json", chat_template=None)
    typed("a b\nc\n")
    run(folders)
    assert prompts[3:] == ["a b", "c"]
    assert capsys.readouterr().err.count("no chat template") == 1


def test_a_full_context_forgets_the_earliest_turns(capsys):
    """Of turns of ten tokens, a context of 64 has room for five and an answer of 14, and, since a
    question goes with its answer, for three and one of 15."""
    turns = [{"role": "user", "content": str(n)} for n in range(9)]
    encode = lambda turns: [1] * 10 * len(turns)
    config = tiny_model().config
    assert len(ask.prompt_ids(None, config, turns, encode, 14)) == 50
    assert [turn["content"] for turn in turns] == list("45678")
    assert capsys.readouterr().err.count("left out") == 2
    assert len(ask.prompt_ids(None, config, turns, encode, 14)) == 50  # it fits: nothing is said
    assert not capsys.readouterr().err
    assert len(ask.prompt_ids(None, config, turns, encode, 15)) == 30
    assert [turn["content"] for turn in turns] == list("678")


def test_plain_shows_both_answers(folders, prompts, capsys):
    run(folders, "--plain", "a b c")
    out = capsys.readouterr().out
    assert prompts == ["0 a b c Answer:", None]
    routed, plain = out.split("base model:\n")
    assert "0 skipped, 0 repeated" in plain and "0 skipped, 0 repeated" not in routed
    model, tokenizer = load_model(folders[0]), load_tokenizer(folders[0])
    made = generate(model, [tokenizer.encode("0 a b c Answer:")], None, 5, tokenizer.stop_ids)
    assert plain.startswith(tokenizer.decode(made.tokens[0]) + "\n[layers per pass: 3 run")


# ---- without routers ----

def base(folders, *more):
    """run() without --routers."""
    ask.main(["--model", str(folders[0]), "--max-new-tokens", "5", *more])


def test_plain_needs_no_routers(folders, prompts, capsys, monkeypatch, tmp_path):
    """Catches "runs/demo: No such file" for a user who has no routers yet, and the demo's routers
    asked for another model."""
    monkeypatch.chdir(tmp_path)
    for there in (False, True):
        if there:
            Routers(3, 16).save(tmp_path / ask.DEMO_ROUTERS)
        base(folders, "--plain", "a b c")
        out, err = capsys.readouterr()
        model, tokenizer = load_model(folders[0]), load_tokenizer(folders[0])
        made = generate(model, [tokenizer.encode("0 a b c Answer:")], None, 5, tokenizer.stop_ids)
        assert out.startswith(tokenizer.decode(made.tokens[0]) + "\n[layers per pass: 3 run")
        assert prompts.pop() is None and not prompts and "base model:\n" not in out
        assert err == "note: no routers, so the base model answers alone\n"


def test_a_conversation_with_the_base_model_keeps_its_turns(folders, typed, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    typed("a b\nc\n")
    seen = []
    monkeypatch.setattr(ask, "show", lambda model, tokenizer, ids, route, most: (
        seen.append((tokenizer.decode(ids), route)) or "7"))
    base(folders, "--plain")
    assert seen == [("0 a b Answer:", None), ("0 a b 1 7 0 c Answer:", None)]


@pytest.mark.parametrize("flags, words", [
    ([], "no --routers FILE was given. `python train.py --model .*model --data FILE --out DIR` "
         "makes routers; --plain without --routers"),
    (["--routers", "nowhere"], "nowhere: No such file. `python train.py"),
    (["--routers", "nowhere", "--plain"], "nowhere: No such file. `python train.py"),
    (["--routers", "."], "routers.safetensors: No such file. `python train.py")])
def test_missing_routers_are_named_with_the_way_to_make_them(folders, flags, words, monkeypatch,
                                                             tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        base(folders, *flags, "a")


def test_the_demo_s_routers_are_made_by_a_command_without_flags(folders, monkeypatch, tmp_path):
    """Catches a wrong hint, and runs/demo that is looked for under the model's other name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "DEMO_MODEL", folders[0].resolve())
    (tmp_path / "link").symlink_to(folders[0])
    with pytest.raises(InputError, match="runs/demo/routers.safetensors: No such file. `python "
                                         "train.py` makes routers"):
        base([tmp_path / "link"], "a")


# ---- bad input ----

def test_what_cannot_be_asked_is_refused(folders, tmp_path):
    with pytest.raises(InputError, match="a prompt of 64 tokens; the model takes 1 to 63"):
        run(folders, "--verbatim", "a " * 64)
    run(folders, "--verbatim", "a " * 63)
    with pytest.raises(InputError, match="a prompt of 0 tokens"):
        run(folders, "--verbatim", "")
    edit_json(folders[0] / "config.json", vocab_size=30)
    with pytest.raises(InputError):
        run(folders, "z")
    with pytest.raises(InputError, match="routers belong to model"):
        run((save_tiny(tmp_path / "other", tiny_model(6)), folders[1]), "a")


def test_ids_that_the_model_does_not_know_are_refused(folders):
    tokenizer, config = load_tokenizer(folders[0]), tiny_model().config
    with pytest.raises(InputError, match="gives id 40; the model knows 0 to 39"):
        ask.prompt_ids(tokenizer, config, [], lambda turns: [3, config.vocab_size], 1)


def test_the_command_answers_what_it_reads_whatever_bytes_it_gets(folders):
    made = run_program("-m", "tools.ask", "--model", folders[0], "--routers", folders[1],
                       given=b"a b\n\xff c\n")
    assert made.returncode == 0 and made.stdout.count("[layers per pass") == 2, made.stderr
