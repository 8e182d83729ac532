"""Claims about work that several processes share, and about work that is done once."""
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import answers
import choose
import evaluate
import label
import model_llama
import train
from answers import cached_answer, prepare
from checkpoint.tokenizer import Tokenizer
from model_llama import load_model, load_tokenizer
from questions.loading import Question
from storage.answer_cache import AnswerCache
from storage.files import InputError, read_json
from storage.processes import shared_map
from programs import environment_of, run_distributed
from tiny import tiny_model


class World:
    """Processes of torchrun, one after the other, in this one: what a process hands to the others
    is kept, and the last one gets all of it."""

    def __init__(self, monkeypatch, size):
        self.patch, self.size, self.parts = monkeypatch, size, {}
        distributed = torch.distributed
        monkeypatch.setattr(distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(distributed, "barrier", lambda: None)
        monkeypatch.setattr(distributed, "all_gather_object", self.gather)

    def gather(self, parts, mine):
        self.parts[int(os.environ["RANK"])] = mine
        if len(self.parts) < self.size:
            raise RuntimeError("Connection closed by peer")
        parts[:] = [self.parts[rank] for rank in range(self.size)]

    def run(self, rank, what):
        with self.patch.context() as patch:
            patch.setenv("RANK", str(rank))
            patch.setenv("WORLD_SIZE", str(self.size))
            return what()


@pytest.mark.parametrize("items, size", [(0, 2), (1, 3), (5, 2), (6, 3), (2, 5)])
def test_every_item_is_made_once_and_all_come_in_their_order(items, size, monkeypatch):
    """Catches an item of no process, and results put together rank by rank."""
    world, made = World(monkeypatch, size), []
    run = lambda: shared_map(lambda n: made.append(n) or 10 * n, range(items))
    for rank in range(1, size):
        with pytest.raises(InputError, match="another process ended"):  # it would have waited
            world.run(rank, run)
    assert world.run(0, run) == [10 * n for n in range(items)]
    assert sorted(made) == [*range(items)] and shared_map(str, range(2)) == ["0", "1"]


def test_answers_of_several_processes_are_those_of_one_to_the_bit(
        tiny_questions, tmp_path, monkeypatch):
    """In float32. Catches batches that another number of processes would put together otherwise, a
    killed process whose answers are lost, and parts that stay."""
    model, tokenizer, prompts = tiny_questions
    paths = torch.tensor([[1, n % 3, 1] for n in range(len(prompts))])
    file, asked, answer = tmp_path / "answers.jsonl", [], answers.answer

    def counting(model, tokenizer, batch, *rest):
        asked.extend(prompt.question.id for prompt in batch)
        return answer(model, tokenizer, batch, *rest)
    monkeypatch.setattr(answers, "answer", counting)
    run = lambda: cached_answer(AnswerCache(file), model, tokenizer, prompts, paths, 3)
    one = cached_answer(AnswerCache(), model, tokenizer, prompts, paths, 3)
    whole = answer(model, tokenizer, prompts, paths, 3)
    asked.clear()
    world = World(monkeypatch, 2)
    with pytest.raises(InputError):
        world.run(1, run)  # its answers are in its part when the other process dies
    assert 0 < len(asked) < len(prompts)
    two = world.run(0, run)
    assert sorted(asked) == sorted(prompt.question.id for prompt in prompts)
    again = run()  # one process knows the answers of two
    assert len(asked) == len(prompts)
    for field in vars(one):
        for made in (whole, two, again):
            first, second = getattr(one, field), getattr(made, field)
            assert first == second if field == "texts" else torch.equal(first, second), field
    AnswerCache(file).merge()
    assert [path.name for path in tmp_path.glob("*answers*")] == ["answers.jsonl"]
    run()
    assert len(asked) == len(prompts)


@pytest.fixture
def flags(own_folder):
    """The flags that name a model and its questions."""
    return ["--model", str(own_folder / "model"), "--data", str(own_folder / "q.jsonl")]


TRAIN = ["--simulations", "6", "--seeds", "2", "--clusters", "2", "--force", "--batch-size", "1"]


def test_processes_train_and_evaluate_as_one_does(flags, tmp_path):
    """Catches anything that only real processes show: a file that two of them write, one that waits
    for ever, a line that all of them print."""
    one, two = tmp_path / "one", tmp_path / "two"
    train.main([*flags, *TRAIN, "--out", str(one)])
    made = run_distributed(2, "train.py", *flags, *TRAIN, "--out", two)
    assert [one.returncode for one in made] == [0, 0], made[0].stderr + made[1].stderr
    assert [one.stdout.count("Accuracy % (layers)") for one in made] == [1, 0]
    names = {path.relative_to(one) for path in one.rglob("*")}
    assert {path.relative_to(two) for path in two.rglob("*")} == names
    for name in ("labels.jsonl", "paths.json", "chosen.json", "routers.safetensors"):
        assert (two / name).read_bytes() == (one / name).read_bytes(), name
    figures = [read_json(out / "metrics.json") for out in (one, two)]
    assert all(figures[0][key] == figures[1][key] for key in ("routes", "tasks", "seeds", "fixed"))
    again = ["--routers", str(one), "--batch-size", "2"]
    evaluate.main([*flags, *again, "--out", str(tmp_path / "1")])
    made = run_distributed(2, "evaluate.py", *flags, *again, "--out", tmp_path / "2")
    assert [one.returncode for one in made] == [0, 0], made[0].stderr + made[1].stderr
    metrics = [(tmp_path / out / "metrics.json").read_bytes() for out in "12"]
    assert metrics[0] == metrics[1]
    assert [one.stdout.count("metrics.json") for one in made] == [1, 0]
    names = {path.name for path in (tmp_path / "2").iterdir()}
    assert names == {"answers.jsonl", "metrics.json"}


def test_torchrun_tells_its_processes_what_the_tests_tell_them(tmp_path):
    """Catches tests of several processes that run in another environment than torchrun's."""
    show = 'env > "$0/$RANK"'
    made = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone",
                           "--nproc-per-node", "2", "--no-python", "sh", "-c", show, tmp_path],
                          capture_output=True, encoding="utf-8", timeout=300)
    assert made.returncode == 0, made.stderr[-3000:]
    for rank in (0, 1):
        lines = (tmp_path / str(rank)).read_text(encoding="utf-8").splitlines()
        told = dict(line.split("=", 1) for line in lines if "=" in line)
        wanted = environment_of(rank, 2, told["MASTER_PORT"])
        assert {name: told[name] for name in wanted} == wanted | {
            "MASTER_ADDR": told["MASTER_ADDR"]}


# ---- nothing twice ----

def counted_calls(monkeypatch, module, name):
    """The list that gets an entry with every call of a module's function."""
    calls, function = [], getattr(module, name)

    def counting(*args, **how):
        calls.append(args)
        return function(*args, **how)
    monkeypatch.setattr(module, name, counting)
    return calls


def test_processes_share_the_features_along_the_default_path(
        tiny_questions, tmp_path, monkeypatch):
    """Catches features that each process computes for itself, and numbers that depend on how many
    processes there are."""
    model, tokenizer, prompts = tiny_questions
    monkeypatch.setattr(train, "FEATURE_BATCH", 3)
    run = SimpleNamespace(model=model, tokenizer=tokenizer, out=tmp_path,
                          args=SimpleNamespace(cost_per_layer=None))
    space = lambda: train.Evidence(run, prompts, None).space
    default = torch.ones(len(prompts), model.config.num_layers, dtype=torch.long)
    whole = choose.similarity_space(*train.features(model, prompts, default, batch_size=3))
    calls = counted_calls(monkeypatch, train, "features")
    assert torch.equal(space(), whole)
    asked = sorted(prompt.question.id for _, batch, _ in calls for prompt in batch)
    assert asked == sorted(prompt.question.id for prompt in prompts)
    calls.clear()
    world = World(monkeypatch, 2)
    with pytest.raises(InputError):
        world.run(1, space)
    assert 0 < sum(len(batch) for _, batch, _ in calls) < len(prompts)
    assert torch.equal(world.run(0, space), whole)
    assert asked == sorted(prompt.question.id for _, batch, _ in calls for prompt in batch)


def test_a_run_reads_each_prompt_once_and_a_finished_one_asks_nothing(
        flags, tmp_path, monkeypatch):
    """Catches prompts that are encoded again, and a base model that is asked again by a run that
    has all answers."""
    encoded, encode = [], Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text, *rest, **how:
                        encoded.append(text) or encode(self, text, *rest, **how))
    command = [*flags, *TRAIN, "--choose", "safe", "--out", str(tmp_path / "run")]
    train.main(command)
    prompts = [text for text in encoded if len(text.split()) > 2]  # the others are gold answers
    assert len(prompts) == len(set(prompts)) == 60

    features = counted_calls(monkeypatch, train, "features")
    blocks = [counted_calls(monkeypatch, module, "run_blocks") for module in (model_llama, answers)]
    metrics = (tmp_path / "run" / "metrics.json").read_bytes()
    train.main(command)
    assert (tmp_path / "run" / "metrics.json").read_bytes() == metrics
    assert not features and not any(blocks)


def test_a_finished_labels_file_asks_no_base_model(flags, tmp_path, monkeypatch, capsys):
    command = [*flags, "--simulations", "3", "--out", str(tmp_path / "labels.jsonl")]
    label.main(command)
    assert "open questions" in capsys.readouterr().out
    monkeypatch.setattr(label, "grade_paths", lambda *args: pytest.fail("asked again"))
    label.main(command)
    assert "60 questions; saved" in capsys.readouterr().out


def test_a_fingerprint_is_computed_once_per_model(flags, monkeypatch):
    """Catches a sample of all weights that is read again at every question about the model."""
    model = load_model(flags[1])
    calls = counted_calls(monkeypatch, model_llama.hashlib, "sha256")
    assert model.fingerprint() == model.fingerprint() and len(calls) == 1
    assert model.fingerprint() == load_model(flags[1]).fingerprint() and len(calls) == 2


def test_a_chat_template_is_rendered_once_per_message(flags, monkeypatch):
    tokenizer, rendered = load_tokenizer(flags[1]), []
    tokenizer.has_template = True
    monkeypatch.setattr(tokenizer, "chat",
                        lambda messages, begin: rendered.append(messages) or [2, 3])
    questions = [Question(str(n), "t", 0, f"what {n % 1500}", "1", (), None, 1)
                 for n in range(3000)]
    prompts, _ = prepare(questions, tokenizer, tiny_model())
    assert len(rendered) == 1500 and [prompt.ids for prompt in prompts] == [(2, 3)] * 3000


def test_the_text_before_the_options_is_encoded_once(flags, monkeypatch):
    tokenizer, encoded = load_tokenizer(flags[1]), []
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda text: encoded.append(text) or encode(text))
    question = Question("q", "t", 0, "1 2", "B", ("3", "4", "5"), metric="likelihood")
    prepare([question], tokenizer, tiny_model())
    text = "Question: 1 2\nAnswer:"
    assert sorted(encoded) == [text, *(f"{text} {option}" for option in "345")]
