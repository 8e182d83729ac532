"""Somebody's own model, without question files: arithmetic is made for it, once, the same in all
commands; and answers that --begin begins."""
import shutil
from dataclasses import replace

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

import answers
import base_check
import cli
import evaluate
import label
import train
from answers import prepare
from model_llama import FixedRoute, load_model, load_tokenizer
from questions import Question, grade
from questions.loading import load_all
from storage.files import InputError, read_json
from tiny import edit_json, read_lines, save_tiny, tiny_model, write_lines

CHARACTERS = ["<unk>", "<eos>", *"0123456789+-*/%= \n"]
ZERO_FITS = {"mul11", "mul31", "mod"}  # the kinds of which zero is sometimes the answer


@pytest.fixture(scope="module")
def zero(tmp_path_factory):
    """A folder of a model that reads single characters and answers every problem with 0."""
    folder = tmp_path_factory.mktemp("own") / "zero"
    model = tiny_model(3, dtype=torch.float32, vocab_size=len(CHARACTERS), hidden_size=32,
                       max_positions=256)
    place = {character: n for n, character in enumerate(CHARACTERS)}
    model.embed_tokens.weight.data = 10 * torch.eye(len(CHARACTERS), 32)
    model.lm_head.weight.data.zero_()
    model.lm_head.weight.data[place["0"], place["="]] = 1.0
    model.lm_head.weight.data[place["\n"], place["0"]] = 1.0
    save_tiny(folder, model)
    tokenizer = Tokenizer(models.WordLevel(place, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<unk>", "<eos>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def train_on(model, out, *more):
    train.main(["--model", str(model), "--out", str(out), "--problems", "40", "--simulations", "4",
                "--seeds", "1", "--clusters", "2", "--choose", "shortest", *more])


@pytest.fixture(scope="module")
def finished(zero, tmp_path_factory):
    """A finished run without --data."""
    out = tmp_path_factory.mktemp("own") / "run"
    train_on(zero, out)
    return out


# ---- which questions ----

def test_the_kinds_that_the_model_answers_sometimes_are_taken_and_recorded(finished):
    """Catches kinds without a correct answer, a held-out kind that is trained on, and a run that
    does not say what it asked."""
    made = read_json(finished / "config.json")["arithmetic"]
    assert set(made["shares"]) == ZERO_FITS and made["held_out"] == ["mul31"]
    assert all(0.1 <= share <= 0.9 for share in made["shares"].values())
    tasks = read_json(finished / "metrics.json")["tasks"]
    domains = {name: task["domain"] for name, task in tasks.items()}
    assert domains == {"mul11": "in", "mod": "in", "mul31": "out"}
    labelled = [row["task"] for row in read_lines(finished / "labels.jsonl")]
    assert set(labelled) == {"mul11", "mod"} and labelled.count("mod") == 40


def test_the_same_command_and_evaluate_take_the_recorded_kinds(
        zero, finished, tmp_path, monkeypatch, capsys):
    """Catches kinds that are measured anew, and so may differ from those that were trained on."""
    monkeypatch.setattr(base_check, "ask_every_kind", lambda *_: pytest.fail("asked again"))
    before = read_json(finished / "metrics.json")
    train_on(zero, finished)
    after = read_json(finished / "metrics.json")
    assert after["routes"] == before["routes"]
    capsys.readouterr()
    evaluate.main(["--model", str(zero), "--routers", str(finished / "routers.safetensors"),
                   "--problems", "40", "--out", str(tmp_path / "again"), "--seed", "7"])
    again = read_json(tmp_path / "again" / "metrics.json")
    assert again["routes"]["dr.llm"] == before["routes"]["dr.llm"]
    assert "Held out of training: mul31" in capsys.readouterr().out


def test_another_seed_asks_again_and_makes_other_problems(zero, finished, tmp_path, monkeypatch):
    """Catches the problems of one seed under the name of another."""
    asked = []
    monkeypatch.setattr(base_check, "ask_every_kind", lambda args, *_: asked.append(args.seed) or {
        "mod": 0.25})
    for seed in ("0", "5"):
        label.main(["--model", str(zero), "--out", str(finished / f"{seed}.jsonl"), "--problems",
                    "3", "--simulations", "1", "--seed", seed])
    assert asked == [5]
    first, other = ({row["id"] for row in read_lines(finished / f"{seed}.jsonl")} for seed in "05")
    assert first != other and {name.split(":")[0] for name in other} == {"mod"}
    monkeypatch.undo()
    label.main(["--model", str(zero), "--out", str(finished / "0.jsonl"), "--problems", "3",
                "--simulations", "1"])  # the record is as it was for the tests that follow


def test_the_base_model_alone_is_asked_arithmetic_too(zero, tmp_path, capsys):
    evaluate.main(["--model", str(zero), "--routes", "vanilla", "--problems", "5",
                   "--out", str(tmp_path)])
    assert set(read_json(tmp_path / "metrics.json")["tasks"]) == ZERO_FITS
    said = "of kinds that it answers 10% to 90% of (24 problems each): mul11 21%, "
    assert said in capsys.readouterr().out


def test_the_demos_model_is_asked_the_demos_questions():
    for folder in (cli.DEMO_MODEL, cli.DEMO_MODEL / ".." / "model"):
        args = train.parse_args(["--model", str(folder)])
        assert not cli.asks_arithmetic(args) and args.out.name == "demo"
    assert cli.asks_arithmetic(train.parse_args(["--model", "runs/demo"]))
    assert train.parse_args(["--model", "a/other/"]).out.name == "other"
    own = train.parse_args(["--model", "other", "--data", str(cli.DEMO_LABEL)])
    assert not cli.asks_arithmetic(own)


def test_a_record_of_other_kinds_is_removed_with_its_run(zero, finished, tmp_path):
    """Catches routers of --data that are evaluated on arithmetic that an older run recorded."""
    (tmp_path / "kinds.json").write_bytes((finished / "kinds.json").read_bytes())
    rows = [{"id": str(n), "prompt": f"{n} * 0 =", "answer": "0", "stop": "\n"} for n in range(40)]
    write_lines(tmp_path / "q.jsonl", rows)
    train_on(zero, tmp_path, "--data", str(tmp_path / "q.jsonl"))
    assert not (tmp_path / "kinds.json").exists()


# ---- what is refused ----

def test_a_model_that_no_kind_fits_is_told_of_data(zero, tmp_path, monkeypatch):
    monkeypatch.setattr(base_check, "grade_paths", lambda m, t, prompts, *_: (
        torch.zeros(len(prompts)), torch.zeros(len(prompts))))
    for command in (train, label, evaluate):
        with pytest.raises(InputError, match=r"10% to 90% of no kind .*add1 0%.* --data FILE"):
            command.main(["--model", str(zero), "--out", str(tmp_path / "out" / "x"),
                          *(["--routes", "vanilla"] if command is evaluate else [])])


def test_a_tokenizer_that_writes_no_digits_is_told_of_data(tmp_path):
    model = save_tiny(tmp_path / "words", tiny_model(dtype=torch.float32))
    with pytest.raises(InputError, match="tokenizer writes 0123456789 as '', .* --data FILE"):
        train_on(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags, reason", [
    (["--problems", "0"], "'0' is not a whole number from 1"),
    (["--test", "t.jsonl"], "--test FILE needs --data FILE")])
def test_flags_that_fit_no_arithmetic_are_refused_by_the_parser(flags, reason, capsys):
    with pytest.raises(SystemExit) as ended:
        train.parse_args(["--model", "other", *flags])
    assert ended.value.code == 2 and reason in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--begin", "Answer: "], ["--score", "likelihood"]])
def test_flags_of_questions_are_refused_for_arithmetic(zero, tmp_path, flags):
    with pytest.raises(InputError, match="--begin and --score are for questions of --data"):
        train_on(zero, tmp_path, *flags)


@pytest.mark.parametrize("damage", [
    {"kinds": {"seed": 0}}, {"kinds": {"shares": {}, "seed": "x"}}, {"kinds": 7},
    {"kinds": {"seed": 0, "shares": {"mod": None}}}])
def test_a_damaged_record_of_kinds_is_named(zero, finished, tmp_path, damage):
    (tmp_path / "kinds.json").write_bytes((finished / "kinds.json").read_bytes())
    edit_json(tmp_path / "kinds.json", **damage)
    with pytest.raises(InputError, match="kinds.json: not what a run wrote"):
        train_on(zero, tmp_path)


# ---- paths that change nothing ----

@pytest.mark.parametrize("command", [train, label])
def test_paths_that_are_not_applied_end_the_run_before_its_search(
        zero, tmp_path, monkeypatch, command):
    """Catches hours of search in a model that ignores its route."""
    monkeypatch.setattr(FixedRoute, "__call__", lambda route, layer, hidden, lengths: torch.ones(
        len(hidden), dtype=torch.long))
    monkeypatch.setattr(base_check, "ask_every_kind", lambda *_: {"mod": 0.25})
    with pytest.raises(InputError, match="same probability along the default path .* change noth"):
        command.main(["--model", str(zero), "--out", str(tmp_path / "o" / "x"), "--problems", "5"])


# ---- answers that --begin begins ----

OPEN = Question("o", "math", 0, "How many?", "5")
LETTER = Question("c", "arc", 0, "Which one?", "B", ("red", "green", "blue"))


@pytest.mark.parametrize("question, begin, written, reward", [
    (OPEN, "\\boxed{", "5}", 1.0), (OPEN, "\\boxed{", "5} or \\boxed{7}", 1.0),
    (OPEN, "\\boxed{", "7} or \\boxed{5}", 0.0), (OPEN, "\\boxed{", "5", 0.0),
    (OPEN, "It is $\\boxed{\\text{", "5}}$.", 1.0), (OPEN, "so \\boxed{", "\\frac{10}{2}} {", 1.0),
    (OPEN, "Answer: ", "\\boxed{5}", 1.0), (OPEN, "", "5}", 1.0), (OPEN, "Answer: ", "5", 0.0),
    (LETTER, "Answer: ", "B", 1.0), (LETTER, "\\boxed{", "B}", 1.0), (LETTER, "(", "B) green", 1.0),
    (LETTER, "Answer: (", "C)", 0.0), (LETTER, "\\boxed{", "A}", 0.0), (LETTER, "I say ", "B", 0)])
def test_what_was_begun_is_part_of_the_answer(question, begin, written, reward):
    """Catches a begun box that is no box, and a later box that counts in its place."""
    assert grade(written, replace(question, begin=begin)) == reward


def test_a_begun_box_is_as_one_that_a_base_prompt_opened():
    base = replace(OPEN, prompt="Answer: \\boxed{")
    for written in ("5}", "5", "", "}", "{5}}", "6} \\boxed{5}", "\\boxed{5}", "\\boxed{5}}"):
        assert grade(written, replace(OPEN, begin="\\boxed{")) == grade(written, base), written


@pytest.fixture
def chat(zero, tmp_path):
    """The model with a chat template that is the text itself, and a file of questions."""
    folder = tmp_path / "chat"
    shutil.copytree(zero, folder)
    edit_json(folder / "tokenizer_config.json", chat_template="{{ messages[0].content }}=")
    rows = [{"id": str(n), "question": f"{n} - {n}", "answer": "0"} for n in range(30)]
    write_lines(tmp_path / "q.jsonl", rows)
    return folder, tmp_path / "q.jsonl"


def test_the_beginning_is_in_the_prompt_and_in_what_answers_depend_on(chat):
    """Catches answers from the cache that another beginning, or none, was asked for."""
    folder, file = chat
    tokenizer, model = load_tokenizer(folder), load_model(folder)
    asked = lambda begin: prepare(load_all([file], begin=begin), tokenizer, model)[0][0]
    assert tokenizer.decode(asked("0 =").ids).endswith("=0 =")
    assert asked("0 =").ids == asked(None).ids + tuple(tokenizer.encode("0 ="))
    assert asked("").key() == asked(None).key() != asked("0 =").key()
    same_ids = replace(asked("0 ="), question=asked(None).question)
    assert same_ids.key() != asked("0 =").key()


def test_routers_are_evaluated_with_the_beginning_that_they_learned_with(
        chat, tmp_path, monkeypatch):
    folder, file = chat
    seen = []
    monkeypatch.setattr(train, "load_all", lambda *a, **k: seen.append(k["begin"]) or load_all(
        *a, **k))
    monkeypatch.setattr(evaluate, "load_all", lambda *a: seen.append(a[-1]) or load_all(*a))
    monkeypatch.setattr(answers, "grade", lambda text, question: float(text.startswith("0")))
    monkeypatch.setattr(answers, "grade_if_settled", lambda *_: None)
    train_on(folder, tmp_path / "out", "--data", str(file), "--begin", "so =")
    evaluate.main(["--model", str(folder), "--data", str(file), "--out", str(tmp_path / "again"),
                   "--routers", str(tmp_path / "out" / "routers.safetensors")])
    assert seen == ["so =", "so ="]


def test_the_run_names_begin_when_most_answers_have_no_box(chat, tmp_path, capsys):
    folder, file = chat
    with pytest.raises(InputError, match="0 questions with a correct path"):
        train_on(folder, tmp_path / "out", "--data", str(file))
    hint = "answers of the base model have no letter or no box; --begin 'Answer: ' or"
    assert hint in capsys.readouterr().out


def test_begin_is_refused_where_it_would_not_be_applied(chat, zero, tmp_path):
    """Catches a flag that changes nothing without a word."""
    folder, file = chat
    for model, data in ((zero, file), (folder, cli.DEMO_LABEL)):
        with pytest.raises(InputError, match="chat template"):
            train_on(model, tmp_path / "out", "--data", str(data), "--begin", "so")
