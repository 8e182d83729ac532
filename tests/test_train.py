"""Training on a tiny model: what is learnt, what is left alone, and what a run leaves behind."""
import os
import random
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import evaluate
import train
from storage import files
from questions.loading import load_questions, split
from choose import CHOICES, Choice
from drllm import GUARD, Routers, pool_windows
from mcts import edits
from model_llama import FixedRoute, generate, load_model, load_tokenizer
from storage.answer_cache import digest
from storage.files import InputError, locked, read_json, write_json
from answers import Prompt
from questions.loading import Question
from tiny import WORDS, read_lines, save_tiny, tiny_model, write_lines


def test_features_are_what_the_routers_see_along_the_labelled_path():
    """Teacher forcing: windows pooled along another path, or in another order, train on nothing."""
    model = tiny_model(dtype=torch.float32)
    rng = torch.Generator().manual_seed(1)
    prompts = [Prompt(Question(str(n), "t", 0, "q", "a"), tuple(range(2, 2 + n)))
               for n in (5, 9, 12, 3)]
    decisions = torch.randint(3, (4, 3), generator=rng)
    pooled, counts = train.features(model, prompts, decisions, windows=4, batch_size=2)
    for n, prompt in enumerate(prompts):
        seen = []

        def watch(layer, hidden, lengths, n=n, seen=seen):
            seen.append(pool_windows(hidden, lengths, 4)[0])
            return decisions[n, layer][None]
        generate(model, [prompt.ids], watch, 1)
        used = int(counts[n])
        assert used == min(4, len(prompt.ids))
        for layer in range(3):
            assert torch.allclose(pooled[n, layer, :used], seen[layer], atol=1e-5)
            assert not pooled[n, layer, used:].any()


def test_a_disk_too_full_for_the_features_is_named_and_nothing_stays(tmp_path, monkeypatch):
    """Catches "error: output: No space left on device", which the soak met."""
    def disk_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "posix_fallocate", disk_full)
    with pytest.raises(OSError) as error:
        files.mapped_zeros((2, 3), tmp_path)
    assert error.value.filename == str(tmp_path) and list(tmp_path.iterdir()) == []


def test_features_in_a_folder_are_the_features_in_memory_and_leave_no_file(tmp_path):
    """Catches a mapped file that loses what is written, and one that stays behind."""
    model, rng = tiny_model(dtype=torch.float32), torch.Generator().manual_seed(1)
    prompts = [Prompt(Question(str(n), "t", 0, "q", "a"), tuple(range(2, 2 + n))) for n in (5, 9)]
    decisions = torch.randint(3, (2, 3), generator=rng)
    made = [train.features(model, prompts, decisions, folder=folder)[0]
            for folder in (None, tmp_path / "run")]
    assert torch.equal(*made) and made[0].any()
    assert (tmp_path / "run").is_dir() and not any((tmp_path / "run").iterdir())


def test_labels_that_execute_every_layer_train_routers_that_do_so_for_any_prompt(monkeypatch):
    """Catches logits that are equal, of which the first, skip, is taken: where the first weights
    execute for sure on all examples, no gradient is left that moves the biases from zero. And
    training for what needs none; seeds still differ, since evaluate.py refuses two that do not."""
    monkeypatch.setattr(train, "fit_routers", None)
    model = tiny_model(dtype=torch.float32)
    prompts = [Prompt(Question(str(n), "t", 0, "q", "a"), (2 + n, 3, 4)) for n in range(9)]
    other, routers = train.train_routers(model, prompts, [(1, 1, 1)] * 9, seeds=(0, 1))
    assert other.key() != routers.key() and routers.metadata == {"seed": 1}
    logits = routers(1e3 * torch.randn(5, 3, 8, 16), torch.full((5,), 8))
    assert (logits.argmax(-1) == 1).all() and routers.guard_points is not None


def test_routers_answer_alike_before_and_after_they_are_loaded(tmp_path):
    """Catches a guard whose numbers lie otherwise in memory: products of a few rows then differ in
    their last digits. Prompts without a label are left out, and seeds tell their routers."""
    model = tiny_model(dtype=torch.float32)
    rng = random.Random(0)
    prompts = [Prompt(Question(str(n), "t", 0, "q", "a"),
                      tuple(rng.randrange(2, 38) for _ in range(3 + n))) for n in range(20)]
    labels = [tuple(rng.randrange(3) for _ in range(3)) for _ in prompts]
    gaps = [path if n % 2 else None for n, path in enumerate(labels)]
    config = train.TrainConfig(epochs=2, width=4, windows=2)
    some = list(train.train_routers(model, prompts, gaps, config, [3, 5]))
    alone = list(train.train_routers(model, prompts[1::2], labels[1::2], config, [3, 5]))
    assert [routers.metadata["seed"] for routers in some] == [3, 5]
    for routers, same in zip(some, alone):
        routers.metadata["model"] = model.fingerprint()
        routers.save(tmp_path / "routers.safetensors")
        loaded = Routers.load(tmp_path / "routers.safetensors", model)
        for name, tensor in routers.state_dict().items():
            for other in (loaded, same):
                assert torch.equal(tensor, other.state_dict()[name])
                assert tensor.stride() == other.state_dict()[name].stride()


@pytest.mark.parametrize("gains, layers, pays", [
    ([1.0] * 20, [5.0] * 20, True),                  # more correct answers, whatever they cost
    ([0.0] * 20, [3.8] * 20, True),                  # nothing lost, and layers are saved
    ([0.0] * 20, [3.9] * 20, False),                 # fewer than 3% of four layers are
    ([0.0] * 20, [4.0] * 20, False),
    ([-0.004] * 20, [3.0] * 20, True),               # less than half a point is lost
    ([-0.006] * 20, [3.0] * 20, False),
    ([1.0, -1.0] * 10, [3.0] * 20, False)])          # nobody knows
def test_routing_pays_by_accuracy_or_by_layers(gains, layers, pays):
    assert train.routing_pays(torch.tensor(gains), torch.tensor(layers), 4) is pays
    sentence = train.expectation(torch.tensor(gains), torch.tensor(layers), 4, pays)
    assert ("is not expected to pay" in sentence) == (not pays)
    assert f"at {layers[0]:.2f} of 4 layers" in sentence and "on 20 training questions" in sentence


def test_a_busy_machine_is_said_once_and_only_if_threads_were_not_chosen(monkeypatch, capsys):
    """Two processes of two threads on two cores run many times slower, and nobody knew why."""
    def printed(load, threads):
        monkeypatch.setattr(train.os, "getloadavg", lambda: (load, 0, 0))
        train.print_warnings(SimpleNamespace(threads=threads), 100)
        return capsys.readouterr().out.splitlines()

    busy, = printed(99, None)
    assert "--threads 1" in busy
    assert not printed(0.0, None) and not printed(99, 1)


def test_a_warning_of_wide_intervals_stops_at_a_hundred_test_questions(capsys):
    """Catches a table over a few questions that looks as sure as one over many."""
    train.print_warnings(SimpleNamespace(threads=1), 99)
    said = capsys.readouterr().out
    assert said.startswith("99 test questions: a 95% interval will reach about 10 points")
    train.print_warnings(SimpleNamespace(threads=1), 100)
    assert not capsys.readouterr().out


def test_split_depends_on_the_words_alone_and_shares_nothing():
    """Catches one question under two ids, labelled and tested."""
    questions = [Question(str(n), "t", 0, f"{n}?", "a") for n in range(400)]
    some, test = split(questions)
    assert {q.id for q in some} | {q.id for q in test} == {q.id for q in questions}
    assert not {q.id for q in some} & {q.id for q in test}
    assert 40 < len(test) < 120
    assert split(questions[::2])[1] == [q for q in test if int(q.id) % 2 == 0]
    renamed = [replace(q, id=f"x{q.id}", task="u", metric="likelihood") for q in questions]
    assert [q.question for q in split(renamed)[1]] == [q.question for q in test]


# ---- whole runs ----

@pytest.fixture(scope="module")
def folder(own_folder, tmp_path_factory):
    """A tiny model, files of its questions, and room for runs."""
    return shutil.copytree(own_folder, tmp_path_factory.mktemp("train") / "own")


ARGS = ["--simulations", "8", "--seeds", "2", "--clusters", "2"]


def run(folder, *more):
    train.main(["--model", str(folder / "model"), "--data", str(folder / "q.jsonl"),
                "--out", str(folder / "out"), *ARGS, *more])


def test_a_run_leaves_the_documented_files_and_never_touches_the_model(folder, capsys):
    before = (folder / "model" / "model.safetensors").read_bytes()
    run(folder)
    assert (folder / "model" / "model.safetensors").read_bytes() == before
    metrics = read_json(folder / "out" / "metrics.json")
    assert {"routes", "tasks", "seeds"} <= metrics.keys() and len(metrics["seeds"]) == 2
    for route in ("vanilla", "dr.llm", "dr.llm shortest", "shuffled"):
        assert {"accuracy", "layers", "n", "interval"} <= metrics["routes"][route].keys()
    assert metrics["routes"]["vanilla"]["layers"] == 3.0 and metrics["fixed"]
    config = read_json(folder / "out" / "config.json")
    assert config["simulations"] == 8 and "fingerprint" in config
    printed = capsys.readouterr().out
    assert "In domain, 11 questions" in printed and "\nin own 0" in printed

    model = load_model(folder / "model")
    routers = Routers.load(folder / "out" / "routers.safetensors", model)
    assert routers.metadata["choice"] == "safe" and routers.metadata["tasks"] == ["own"]
    assert routers.metadata["seed"] == 0
    assert routers.metadata["score"] is None  # there is no multiple choice among them
    training, _ = split(load_questions(folder / "q.jsonl"))
    assert routers.metadata["questions"] == sorted(q.wording for q in training)
    evaluate.main(["--model", str(folder / "model"), "--data", str(folder / "q.jsonl"), "--limit",
                   "5", "--routers", str(folder / "out"), "--out", str(folder / "again")])
    again = read_json(folder / "again" / "metrics.json")["routes"]
    assert again["vanilla"]["n"] == 5  # of the eleven kept for the test, not of the first five
    names = set(load_file(folder / "out" / "routers.safetensors"))
    assert names == {"w1", "b1", "w2", "b2", *GUARD}    # nothing of the base model is stored

    labelled = {row["id"] for row in read_lines(folder / "out" / "labels.jsonl")}
    chosen = read_json(folder / "out" / "chosen.json")
    assert len(chosen) == routers.metadata["labels"] and chosen.keys() <= labelled


def test_other_settings_on_the_same_folder_are_refused_before_anything_is_written(folder):
    run(folder)
    config = (folder / "out" / "config.json").read_bytes()
    with pytest.raises(InputError, match="simulations 8; this run has simulations 9"):
        run(folder, "--simulations", "9")
    assert (folder / "out" / "config.json").read_bytes() == config


def test_routers_just_trained_are_handed_on_and_found_ones_are_not_trained_again(
        folder, tmp_path, monkeypatch):
    """Catches files that are written and read back, and features that are computed for nothing."""
    out, load = ["--out", str(tmp_path / "out")], Routers.load
    with monkeypatch.context() as patch:
        patch.setattr(Routers, "load", lambda *_: pytest.fail("read back"))
        run(folder, *out)
    loaded, trained = [], []
    monkeypatch.setattr(Routers, "load", lambda file, model: loaded.append(file.stem) or load(
        file, model))
    train_routers = train.train_routers
    monkeypatch.setattr(train, "train_routers", lambda model, prompts, labels, config, seeds, *more:
                        trained.append(list(seeds)) or train_routers(
                            model, prompts, labels, config, seeds, *more))
    run(folder, *out)
    assert loaded == ["safe-0", "safe-1", "shortest-0", "shortest-1"] and not trained
    (tmp_path / "out" / "routers" / "safe-0.safetensors").unlink()
    run(folder, *out)
    assert trained == [[0]]
    file = tmp_path / "out" / "routers" / "shortest-1.safetensors"
    stale = load(file, load_model(folder / "model"))
    stale.metadata["label_hash"] = "of other labels"
    stale.save(file)
    run(folder, *out)
    assert trained == [[0], [1]]
    monkeypatch.setattr(train, "source_hash", lambda *files: "other code")
    run(folder, *out)
    assert trained[-2:] == [[0, 1], [0, 1]]  # of both choices
    trained.clear()
    run(folder, *out)
    assert not trained


def test_other_code_looks_for_candidate_paths_again(folder, tmp_path, monkeypatch):
    """Catches an exercise in choose.py whose result is that of yesterday's code."""
    out, looked, candidate_paths = ["--out", str(tmp_path / "out")], [], train.candidate_paths
    monkeypatch.setattr(train, "candidate_paths", lambda *given, **more: looked.append(1) or
                        candidate_paths(*given, **more))
    for code, times in (("a", 1), ("a", 1), ("b", 2)):
        monkeypatch.setattr(train, "source_hash", lambda *files: code)
        run(folder, *out)
        assert len(looked) == times


@pytest.mark.parametrize("share, gain", [(0.5, 0.0), (0.0, -1.0)])
def test_the_expected_gain_counts_a_partly_correct_answer_as_the_default_path_s_does(
        monkeypatch, share, gain):
    """Catches f1 minus a boolean (-50 points for equal answers), and a fold without questions,
    which ended in a traceback."""
    names = [str(n) for n in range(99) if int(digest(str(n), "fold"), 16) % train.FOLDS][:9]
    prompts = [SimpleNamespace(question=SimpleNamespace(id=name)) for name in names]
    evidence = SimpleNamespace(prompts=prompts, num_layers=2, consensus=lambda others: ([], 0.0),
                               candidates=([(1, 1)], torch.ones(9, 1).bool()))

    def answers(evidence, fold, fold_of, labels):
        number = int((fold_of == fold).sum())
        assert number
        return SimpleNamespace(correct=torch.full((number,), share),
                               decisions=torch.ones(number, 2, dtype=torch.long))

    monkeypatch.setattr(train, "answers_of_fold", answers)
    monkeypatch.setattr(train, "SMALLEST_GROUP", 2)
    gains, layers = train.cross_validate(evidence)
    assert gains.tolist() == [gain] * 9 and layers.tolist() == [2.0] * 9


def test_a_choice_that_needs_no_search_runs_none(folder, tmp_path, monkeypatch, capsys):
    """Catches hours of search whose result nobody reads. The paper's labels come from searches, so
    its row is missing too."""
    def last_layer_twice(evidence):
        assert evidence.records is None and evidence.space.shape[0] == len(evidence.prompts)
        return [(1, 1, 2)] * (len(evidence.prompts) - 1) + [None]

    monkeypatch.setitem(CHOICES, "deep", Choice(last_layer_twice, needs_search=False))
    monkeypatch.setattr(train, "label", lambda *_: pytest.fail("searched"))
    monkeypatch.setattr(train, "candidate_paths", lambda *_, **__: pytest.fail("looked for paths"))
    run(folder, "--choose", "deep", "--no-guard", "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out" / "labels.jsonl").exists()
    metrics = read_json(tmp_path / "out" / "metrics.json")
    assert metrics["routes"]["dr.llm"]["layers"] > 3.9
    assert "dr.llm shortest" not in metrics["routes"] and metrics["fixed"] == []
    labels = read_json(tmp_path / "out" / "chosen.json")
    assert len(labels) == 48 and set(map(tuple, labels.values())) == {(1, 1, 2)}
    printed = capsys.readouterr().out
    assert "paths.json" not in printed
    assert "49 training questions, 11 test questions" in printed
    assert "out: config.json routers.safetensors metrics.json (" in printed


def test_test_questions_beyond_the_context_are_named_and_counted(folder, tmp_path, capsys):
    """Catches a table over fewer questions than were given, without a word."""
    rows = read_lines(folder / "others.jsonl")
    rows = [row | {"id": f"test-{row['id']}"} for row in rows]
    for n, row in enumerate(rows[10:15]):
        row["prompt"] = " ".join(WORDS[2:38] * 2)[2 * n:]
    write_lines(tmp_path / "test.jsonl", rows[:20])
    run(folder, "--out", str(tmp_path / "out"), "--choose", "shortest", "--test",
        str(tmp_path / "test.jsonl"))
    printed = capsys.readouterr().out
    assert "5 of 20 test questions exceed the context (64 tokens)" in printed
    metrics = read_json(tmp_path / "out" / "metrics.json")
    assert metrics["too_long"] == 5 and metrics["routes"]["vanilla"]["n"] == 15


def test_a_model_at_chance_is_refused_before_the_search_unless_forced(tmp_path):
    """Catches hours of search for paths that are correct by luck."""
    model = save_tiny(tmp_path / "model", tiny_model(2, dtype=torch.float32))
    rows = [{"id": str(n), "question": f"{n}?", "choices": ["a", "b"], "answer": "AB"[n % 2]}
            for n in range(40)]
    write_lines(tmp_path / "q.jsonl", rows)
    command = ["--model", str(model), "--data", str(tmp_path / "q.jsonl"), "--out",
               str(tmp_path / "run"), "--simulations", "2", "--seeds", "1"]
    with pytest.raises(InputError, match="chance 50.0% ± .* --force continues"):
        train.main(command)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="0 questions with a correct path"):
        train.main([*command, "--force"])  # a tiny model writes no letter


def test_a_model_that_answers_nothing_ends_with_a_clear_statement(folder, tmp_path):
    rows = [{"id": str(n), "prompt": "a b c", "answer": "zz", "max_new_tokens": 2}
            for n in range(5)]
    rows = [row | {"prompt": f"a b {n}"} for n, row in enumerate(rows)]
    write_lines(tmp_path / "none.jsonl", rows)
    command = ["--model", str(folder / "model"), "--data", str(tmp_path / "none.jsonl"),
               "--out", str(tmp_path / "o"), *ARGS]
    with pytest.raises(InputError, match="jsonl: 0 questions with a correct path; routers need 8"):
        train.main(command + ["--test", str(folder / "q.jsonl")])
    finished = tmp_path / "o" / "metrics.json"  # of another run, which a refusal must not cost
    write_json(finished, {})
    write_json(tmp_path / "o" / "config.json", {"seed": 7})
    with pytest.raises(InputError, match="0 questions with a correct path"):
        train.main(command + ["--test", str(folder / "q.jsonl"), "--overwrite"])
    assert finished.exists()


def test_seven_questions_with_a_right_path_are_refused(folder, tmp_path, capsys):
    """Catches routers, and an expected gain, that come from nothing but a few questions' luck. That
    eight are enough is tested below."""
    file = own_questions(folder, tmp_path / "mine.jsonl")
    with pytest.raises(InputError, match="jsonl: 7 questions with a correct path; routers need 8"):
        train_on(folder, tmp_path / "out", file, "safe", 7)
    assert "7 test questions: a 95% interval will reach about 37 points" in capsys.readouterr().out


def test_tasks_are_known_whatever_the_limit_leaves_of_the_label_questions(folder, tmp_path):
    """Catches a test question out of domain because its task comes late in the file."""
    file = own_questions(folder, tmp_path / "mine.jsonl", task="early")
    late = read_lines(folder / "others.jsonl")[0] | {"id": "late"}
    write_lines(file, [*read_lines(file), late])
    metrics = train_on(folder, tmp_path / "out", file, "shortest", 9)
    assert metrics["tasks"]["own"]["domain"] == "in"


@pytest.fixture(scope="module")
def far(folder):
    """Questions that the model answers right along no path near the default: a menu of paths, all
    of about its depth, answers none of them."""
    model, tokenizer = load_model(folder / "model"), load_tokenizer(folder / "model")
    rng, rows = random.Random(0), []
    near = [(1, 1, 1)] + edits((1, 1, 1))
    while len(rows) < 12:
        prompt = " ".join(rng.choice(WORDS[2:38]) for _ in range(rng.randint(3, 14)))
        say = lambda path: tokenizer.decode(generate(
            model, [tokenizer.encode(prompt)], FixedRoute(path), 2, tokenizer.stop_ids).tokens[0])
        gold = say((0, 0, 1))
        if gold.strip() and gold not in map(say, near):
            rows.append({"prompt": prompt, "answer": gold, "max_new_tokens": 2, "task": "own"})
    write_lines(folder / "far.jsonl", rows)
    return folder / "far.jsonl"


def own_questions(folder, file, **changes):
    """A file of thirty questions that the model answers right on the default path."""
    rows = read_lines(folder / "others.jsonl")[1::2]
    write_lines(file, [row | {"id": f"mine-{row['id']}"} | changes for row in rows])
    return file


def train_on(folder, out, file, choice, number):
    """The metrics of a run on the first so many questions of a file."""
    train.main(["--model", str(folder / "model"), "--data", str(file), "--test",
                str(folder / "q.jsonl"), "--out", str(out), "--simulations", "26",
                "--seeds", "1", "--clusters", "2", "--choose", choice, "--limit", str(number)])
    return read_json(out / "metrics.json")


@pytest.mark.parametrize("number", [8, 12])
@pytest.mark.parametrize("choice", [name for name in CHOICES if name != "consensus"])
def test_questions_that_no_usual_path_answers_train_routers_all_the_same(
        folder, far, tmp_path, choice, number):
    """Catches a fold without a label, and one without a question."""
    metrics = train_on(folder, tmp_path / "out", far, choice, number)
    if choice == "safe":
        assert metrics["routes"]["dr.llm"]["layers"] == 3.0


def test_consensus_that_labels_no_question_says_so(folder, far, tmp_path):
    """Catches a traceback from training on nothing."""
    with pytest.raises(InputError, match="out: 0 questions with a label .* need 8.* --choose"):
        train_on(folder, tmp_path / "out", far, "consensus", 12)


@pytest.mark.parametrize("number", [8, 11])
@pytest.mark.parametrize("choice", ["safe", "consensus"])
def test_a_handful_of_questions_is_enough(folder, tmp_path, choice, number):
    """Catches statistics of folds that are small or empty."""
    file = own_questions(folder, tmp_path / "mine.jsonl")
    metrics = train_on(folder, tmp_path / "out", file, choice, number)
    assert metrics["routes"]["dr.llm"]["n"] == number and len(metrics["seeds"]) == 1


# ---- one run at a time ----

def test_a_folder_or_labels_that_another_run_has_are_refused(folder, tmp_path):
    """Catches two runs that write one folder, and train.py beside label.py."""
    command = ["--model", str(folder / "model"), "--data", str(folder / "q.jsonl"), *ARGS, "--out"]
    for taken in (tmp_path / "out", tmp_path / "out" / "labels.jsonl"):
        with locked(taken), pytest.raises(InputError, match=f"{taken}: process {os.getpid()} "):
            train.main([*command, str(tmp_path / "out")])
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_the_folder_one_is_in_may_be_the_runs(folder, tmp_path, monkeypatch):
    """Catches a lock beside a folder without a name: `--out .` ended with a traceback."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with locked(tmp_path / "here"), pytest.raises(InputError, match="at work"):
        run(folder, "--out", ".")
    run(folder, "--out", ".")
    assert (tmp_path / "here" / "metrics.json").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["here"]


def test_label_questions_in_the_words_of_a_test_question_are_left_out(folder, tmp_path, capsys):
    """Catches one question under two ids, on both sides."""
    rows = read_lines(folder / "others.jsonl")[:30] + read_lines(folder / "q.jsonl")[:30]
    rows = [row | {"id": f"r{n}", "task": "renamed"} for n, row in enumerate(rows)]
    write_lines(tmp_path / "both.jsonl", rows)
    args = train.parse_args(["--data", str(tmp_path / "both.jsonl"),
                             "--test", str(folder / "q.jsonl")])
    training, test = train.load_data(args)
    assert [q.id for q in training] == [f"r{n}" for n in range(30)] and len(test) == 60
    assert "--data: 30 of 60 questions are also in" in capsys.readouterr().out


def test_test_questions_that_are_also_labelled_are_refused(folder, tmp_path):
    """A gain on questions that were trained on is no gain."""
    with pytest.raises(InputError, match="60 of 60 questions are also in --data"):
        run(folder, "--test", str(folder / "q.jsonl"))
