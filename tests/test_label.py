"""Labels: the same whatever runs beside them, wherever a run is cut, however many processes."""
import json
import random
import re
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import answers
import base_check
import cli
import label as labelling
from base_check import describe_base_score, margin
from conftest import leaves
from programs import Program, run_distributed
from label import label, search_all, search_record
from mcts import SearchConfig, is_legal
from model_llama import FixedRoute, Llama, generate, load_model, load_tokenizer
from paths import DECISIONS
from storage import label_file
from storage.answer_cache import AnswerCache
from storage.files import PASSES, InputError, read_json, write_json
from storage.label_file import read_rows
from answers import Prompt, answer, batches, grade_paths, prepare
from questions.loading import Question, load_all
from questions.reward import extract_answer, grade
from tiny import ABSENT, WORDS, save_tiny, tiny_config, tiny_model

ROOT = Path(__file__).resolve().parents[1]
LETTERS = [form.format(letter) for letter in "ABCD" for form in ("{}", "({})", "{}.", "{})")]
VOCABULARY = ["<unk>", "<eos>", *LETTERS, *(f"{digit}}}" for digit in range(10)), *"0123456789",
              "Answer:", "\\boxed{"]  # as many words as tiny.WORDS, most of them an answer
PATHS = [path for path in product((0, 1, 2), repeat=3) if any(path)]  # all but three skips
DEFAULT = (1, 1, 1)
CONFIG = SearchConfig(simulations=6, stop_when_repaired=False)
COUNT = 9


# ---- a tiny model, and questions it answers along some of its paths ----

def draft(rng, name):
    """A question without its answer: digits, then options to choose from or a box to fill."""
    words = rng.choices("0123456789", k=rng.randint(2, 8))
    if rng.random() < 0.5:
        prompt, choices = [*words, "Answer:"], tuple("wxyz")
    else:
        prompt, choices = [*words, "Answer:", "\\boxed{"], ()
    task, level = rng.choice([("easy", 0), ("math", 2)])
    return Question(name, task, level, "", "?", choices, " ".join(prompt), rng.randint(1, 3))


def sayings(model, tokenizer, question):
    """{path: what the model answers along it}."""
    ids = tokenizer.encode(question.prompt)
    made = generate(model, [ids] * len(PATHS), FixedRoute(PATHS), question.budget,
                    tokenizer.stop_ids)
    return {path: extract_answer(tokenizer.decode(tokens), question)
            for path, tokens in zip(PATHS, made.tokens)}


def make_questions(model, tokenizer, count, seed=0):
    """Questions by turns right on the default path, on others only, and on none."""
    rng, found = random.Random(seed), []
    while len(found) < count:
        question = draft(rng, f"n{len(found)}")
        said = sayings(model, tokenizer, question)
        others = sorted({text for text in said.values() if text} - {said[DEFAULT]})
        never = [letter for letter in "ABCD" if letter not in said.values()] or [None]
        golds = [[said[DEFAULT]], others, never if question.choices else ["12345"]]
        gold = rng.choice(golds[len(found) % 3] or [None])
        if gold and len(others) > 1:
            found.append(replace(question, answer=gold))
    return found


def row_text(question):
    row = {key: value for key, value in vars(question).items() if value not in ((), None, "")}
    return json.dumps(row) + "\n"


class World(SimpleNamespace):
    """What the tests share; shown by name where a test fails."""

    def __repr__(self):
        return "world"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny float64 model (and its folder), a tokenizer, questions, prompts, finished labels."""
    assert len(VOCABULARY) == len(WORDS)
    folder = save_tiny(tmp_path_factory.mktemp("tiny") / "model", tiny_model(seed=3))
    words = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    words["model"]["vocab"] = {word: i for i, word in enumerate(VOCABULARY)}
    (folder / "tokenizer.json").write_text(json.dumps(words), encoding="utf-8")
    model, tokenizer = tiny_model(seed=3), load_tokenizer(folder)
    questions = make_questions(model, tokenizer, COUNT, seed=1)
    file = folder.parent / "questions.jsonl"
    file.write_text("".join(map(row_text, questions)), encoding="utf-8")
    prompts, _ = prepare(questions, tokenizer, model)
    out = folder.parent / "labels.jsonl"
    rows = label(model, tokenizer, prompts, out, CONFIG, batch_size=4)
    return World(folder=folder, model=model, tokenizer=tokenizer, questions=questions, file=file,
                 prompts=prompts, rows=rows, bytes=out.read_bytes(),
                 header=(folder.parent / "labels.meta.json").read_bytes())


def run_label(world, file, questions=None, config=CONFIG, seed=0, batch_size=4, model=None):
    model = model or world.model
    prompts, _ = prepare(questions or world.questions, world.tokenizer, model)
    return label(model, world.tokenizer, prompts, file, config, seed, batch_size)


def alone(world, prompt, route):
    """One prompt answered by itself along one route."""
    route = torch.tensor([route]) if isinstance(route, tuple) else route
    return answer(world.model, world.tokenizer, [prompt], route, 1)


def test_the_questions_of_these_tests_are_right_on_some_paths(world):
    """Catches tests that pass because every reward is the same."""
    assert [row["default_correct"] for row in world.rows] == [True, False, False] * 3
    assert any(row["correct"] for row in world.rows[1::3])
    assert not any(row["correct"] for row in world.rows[2::3])
    assert any(0 < len(row["correct"]) < 7 for row in world.rows)
    assert {bool(q.choices) for q in world.questions} == {True, False}


# ---- searching ----

def searched(world, prompts, batch_size, seed=0):
    found = search_all(world.model, world.tokenizer, prompts, CONFIG, seed, batch_size)
    return {prompt.question.id: (result, list(result.rewards), sure)
            for prompt, result, sure in found}


@pytest.fixture(scope="module")
def plain(world):
    """What searched() gives for all prompts."""
    return searched(world, world.prompts, 4)


def assert_same_searches(found, plain):
    assert found.keys() == plain.keys()
    for name, (result, order, sure) in found.items():
        assert (result, order, list(sure)) == (*plain[name][:2], list(plain[name][2])), name
        assert sure == pytest.approx(plain[name][2], abs=1e-6)


@given(st.permutations(range(COUNT)), st.sampled_from([1, 3, 100]))
@settings(max_examples=8)
def test_search_does_not_depend_on_what_is_searched_beside_it(world, plain, order, batch_size):
    """Catches a random source seeded by position, and rewards given to the wrong question."""
    assert_same_searches(searched(world, [world.prompts[i] for i in order], batch_size), plain)
    few = [world.prompts[i] for i in order[:2]]
    assert_same_searches(searched(world, few, batch_size),
                         {p.question.id: plain[p.question.id] for p in few})


def test_labels_of_the_demo_in_float32_are_those_of_each_question_alone(monkeypatch):
    """Catches rounding that is large enough to change an answer, and reuse that does."""
    model, tokenizer = load_model(cli.DEMO_MODEL), load_tokenizer(cli.DEMO_MODEL)
    prompts, _ = prepare(load_all([cli.DEMO_LABEL])[:24:3], tokenizer, model)
    config = SearchConfig(simulations=8, stop_when_repaired=False)
    searched = lambda some, size: {
        prompt.question.id: result for prompt, result, _ in
        search_all(model, tokenizer, some, config, 0, size)}
    together = searched(prompts, 5)

    def without_shared_states(*asked, shared_states):
        return grade_paths(*asked)

    monkeypatch.setattr(labelling, "grade_paths", without_shared_states)
    assert together == {name: result for prompt in prompts
                        for name, result in searched([prompt], 1).items()}
    assert len({result.paper_label for result in together.values()}) > 3


def test_another_seed_searches_other_paths(world, plain):
    """Catches a seed that is ignored."""
    other = searched(world, world.prompts, 100, seed=1)
    assert any(plain[name][1] != other[name][1] for name in plain)


def test_questions_of_one_file_search_different_trees(plain):
    """Catches one random source for all questions: their trees would be copies."""
    orders = {tuple(result.rewards) for result, *_ in plain.values()}
    assert len(orders) > 3


def watched(world, monkeypatch, **how):
    """(searches as searched() gives them, prompts per call, bytes of shared states after each call,
    blocks run) of a search of all questions."""
    rows, stored, counted = [], [], []

    def weighing(model, tokenizer, prompts, *rest, shared_states):
        made = grade_paths(model, tokenizer, prompts, *rest, shared_states=shared_states)
        rows.append(len(prompts))
        stored.append(sum(state.nbytes for states in shared_states or ()
                          for state in states.values()))
        return made
    hooks = [block.register_forward_pre_hook(lambda _, inputs: counted.append(len(inputs[0])))
             for block in world.model.layers]
    with monkeypatch.context() as patch:
        patch.setattr(labelling, "grade_paths", weighing)
        found = {prompt.question.id: (result, list(result.rewards), sure) for prompt, result, sure
                 in search_all(world.model, world.tokenizer, world.prompts, CONFIG, 0, **how)}
    for hook in hooks:
        hook.remove()
    return found, rows, stored, sum(counted)


@pytest.fixture(scope="module")
def one_path(world):
    """Bytes of the states of one path of the longest prompt: float64, entering 3 layers."""
    return max(len(p.ids) + len(p.gold) for p in world.prompts) * 16 * 8 * 3


@pytest.mark.parametrize("searches", [1, 3, 100])
def test_as_many_searches_run_as_fit_into_the_memory(world, plain, monkeypatch, one_path, searches):
    """Catches states of finished searches that stay, and a limit that counts the wrong bytes."""
    memory = searches * one_path * (CONFIG.simulations + 1)
    found, rows, stored, _ = watched(world, monkeypatch, batch_size=100, memory=memory)
    assert_same_searches(found, plain)
    assert max(rows) == min(searches, COUNT)
    assert 0 < max(stored) <= memory


@given(budget=st.integers(0, 8_000_000), batch_size=st.sampled_from([1, 2, 5, 100]))
@settings(max_examples=10)
def test_no_search_depends_on_the_memory(world, plain, one_path, budget, batch_size):
    """Catches a state that was dropped and is taken for another, and more states than may be."""
    memory = one_path + budget % (60 * one_path)
    with pytest.MonkeyPatch.context() as patch:
        found, _, stored, _ = watched(world, patch, batch_size=batch_size, memory=memory)
    for prompt in world.prompts:
        name = prompt.question.id
        made, wanted = (search_record(prompt, one[name][0], one[name][2]) for one in (found, plain))
        assert json.dumps(made) == json.dumps(wanted)
    assert max(stored) <= memory


def test_what_was_dropped_is_computed_again_and_plenty_drops_nothing(world, monkeypatch, one_path):
    """Catches a cache that is smaller than its memory: blocks run, from none kept to all kept."""
    def blocks_run(paths):
        return watched(world, monkeypatch, batch_size=1, memory=paths * one_path)[-1]
    one, two, all_ = (blocks_run(paths) for paths in (1, 2, CONFIG.simulations + 1))
    assert blocks_run(10 ** 6) == all_ < two < one


def test_the_shortest_beginnings_are_kept_and_of_equals_the_newest():
    states = {(1,): "a", (1, 1): "b", (2,): "c", (1, 2): "d", (1, 1, 2): "e"}
    for number, left in (5, "abcde"), (4, "abcd"), (3, "acd"), (1, "c"), (0, ""):
        kept = dict(states)
        answers.drop_deepest(kept, number)
        assert "".join(kept.values()) == left


@pytest.mark.parametrize("gigabytes, least", [(80, 64), (16, 8)])
def test_the_papers_model_has_many_searches_under_way(gigabytes, least, monkeypatch):
    """Llama-3.2-3B's shape in bfloat16 beside its weights, 200 tokens: the docstring's figures."""
    config = tiny_config(vocab_size=128256, hidden_size=3072, intermediate_size=8192, num_layers=28,
                         num_heads=24, num_kv_heads=8, head_dim=128, tie_embeddings=True)
    with torch.device("meta"):
        model = Llama(config).to(torch.bfloat16)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    monkeypatch.setattr(cli, "free_memory", lambda device: gigabytes * 10 ** 9 - weights)
    prompt, config = SimpleNamespace(sequence=range(200)), SearchConfig()
    fit = labelling.searches_that_fit(model, [prompt] * 999, config, 256,
                                      labelling.shared_memory(model))
    told = labelling.search_bytes.__doc__
    assert fit >= least and f"{fit} " in told and f"{weights / 1e9:.1f} GB of weights" in told
    each = f"{labelling.search_bytes(model, prompt, config) / 1e6:.0f} MB"
    page = (ROOT / "docs" / "your_model.md").read_text(encoding="utf-8")
    table = dict(zip((16, 80), re.search(f"of {each} each \\| (\\d+) \\| (\\d+)", page).groups()))
    assert each in " ".join(told.split()) and int(table[gigabytes]) == fit
    assert f" {labelling.shared_memory(model) / 1e9:.1f} GB |" in page


def test_memory_is_what_is_free_and_processes_share_it(monkeypatch):
    alone = cli.free_memory("cpu")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert 2 ** 20 < alone < 2 ** 50 and cli.free_memory("cpu") < alone / 100


def test_without_questions_nothing_is_searched(world):
    """Catches a longest question that is looked for among none."""
    assert not list(search_all(world.model, world.tokenizer, [], CONFIG, 0))


def test_progress_counts_every_path_asked(world):
    """Catches a progress bar that ends early."""
    steps = []
    found = list(search_all(world.model, world.tokenizer, world.prompts, CONFIG, 0, 4,
                            steps.append))
    assert sum(steps) == sum(len(result.rewards) for _, result, _ in found)
    assert max(steps) <= 4


def test_a_search_advances_by_its_rewards_to_its_result(world):
    """Catches a path that is asked twice, and a result that is lost at the end of the search."""
    search = labelling.Search(world.prompts[0], world.model, CONFIG, seed=0)
    assert search.path == DEFAULT
    paths, result = [], None
    while result is None:
        paths.append(search.path)
        result = search.advance(0.0, 0.5)
    assert list(result.rewards) == paths and len({*paths}) == len(paths) == 7


# ---- rows ----

def test_row_is_complete_and_survives_json(world):
    """Catches a tensor in a row, and a field that later steps miss."""
    for question, row in zip(world.questions, world.rows):
        assert list(row) == ["id", "task", "level", "content", "default_correct", "decisions",
                             "length", "correct", "wrong", "simulations"]
        assert [row["id"], row["task"], row["level"]] == [
            question.id, question.task, question.level]
        assert row["simulations"] == CONFIG.simulations
        assert row["length"] == sum(row["decisions"]) and len(row["decisions"]) == 3
    written = [json.loads(line) for line in world.bytes.splitlines()]
    assert written == json.loads(json.dumps(world.rows))


def test_right_paths_of_a_row_give_a_right_answer_alone(world):
    """Catches rewards or confidences of one question written beside another."""
    for prompt, row in zip(world.prompts, world.rows):
        for path, sure in row["correct"]:
            found = alone(world, prompt, path)
            assert found.correct.item() == 1.0 and is_legal(path)
            if not prompt.question.choices:  # what follows a closed box says nothing of the answer
                seen = min(prompt.question.budget, len(prompt.gold) + 1)
                cut = replace(prompt, question=replace(prompt.question, max_new_tokens=seen))
                found = alone(world, cut, path)
            assert found.confidence.item() == pytest.approx(sure, abs=2e-6)
        assert row["default_correct"] == bool(alone(world, prompt, DEFAULT).correct.item())
        assert row["default_correct"] == (DEFAULT in dict(row["correct"]))


def test_paths_missing_from_a_row_were_not_asked_or_are_wrong(world):
    """Catches right paths that are dropped."""
    for prompt, result, sure in search_all(world.model, world.tokenizer, world.prompts, CONFIG, 0):
        row = search_record(prompt, result, sure)
        correct = [path for path in result.rewards if alone(world, prompt, path).correct.item()]
        assert [tuple(path) for path, _ in row["correct"]] == correct


def test_label_is_the_papers_choice_among_right_paths(world):
    """Catches the shortest path taken where the first is asked for, and a missing fallback."""
    for row in world.rows:
        correct = [path for path, _ in row["correct"]]
        first = min(correct, key=sum) if row["default_correct"] else [*correct, DEFAULT][0]
        assert row["decisions"] == first
    assert any(row["decisions"] not in (DEFAULT, row["correct"][0][0]) for row in world.rows[::3])
    assert any(row["decisions"] != DEFAULT for row in world.rows[1::3])


# ---- cut runs ----

def labels_file(world, folder, data):
    """A labels file that a run left in this state."""
    file = Path(folder) / "labels.jsonl"
    file.write_bytes(data)
    file.with_suffix(".meta.json").write_bytes(world.header)
    return file


def check_resumes(world, data):
    with tempfile.TemporaryDirectory() as folder:
        file = labels_file(world, folder, data)
        rows = run_label(world, file)
        assert file.read_bytes() == world.bytes
        assert rows == world.rows
        assert sorted(path.name for path in Path(folder).iterdir()) == [
            "labels.jsonl", "labels.meta.json"]


@given(st.data())
@settings(max_examples=15)
def test_run_killed_at_any_byte_goes_on_to_the_same_file(world, data):
    """Catches a half-written line glued to the next, a row lost, and a row made twice."""
    ends = [i + 1 for i, byte in enumerate(world.bytes) if byte == ord("\n")]
    near = st.sampled_from(ends).flatmap(lambda end: st.sampled_from([end - 1, end, end + 1]))
    end = data.draw(st.one_of(st.integers(0, len(world.bytes)), near))
    check_resumes(world, world.bytes[:end])


@given(st.permutations(range(COUNT)), st.integers(0, COUNT - 1))
@settings(max_examples=5)
def test_rows_in_any_order_are_kept_and_put_in_the_questions_order(world, order, kept):
    """Catches the order of finishing, which depends on the batch, left in the file."""
    lines = world.bytes.splitlines(keepends=True)
    check_resumes(world, b"".join(lines[i] for i in order[:kept]))


def test_run_killed_between_its_last_row_and_the_merge_goes_on_to_the_same_file(world):
    """Catches a complete file left in the order of finishing because no row is missing."""
    check_resumes(world, b"".join(world.bytes.splitlines(keepends=True)[::-1]))


def note_asked(monkeypatch):
    """The set of ids of the questions that are answered from now on."""
    asked = set()

    def noting(model, tokenizer, prompts, *rest, **options):
        asked.update(prompt.question.id for prompt in prompts)
        return grade_paths(model, tokenizer, prompts, *rest, **options)
    monkeypatch.setattr(labelling, "grade_paths", noting)
    return asked


@pytest.mark.parametrize("calls", [0, 1, 5, 9, 14])
def test_ctrl_c_keeps_finished_rows_and_resuming_equals_one_run(
        world, tmp_path, monkeypatch, calls):
    """Catches rows that wait in a buffer, or for all others, until they are written."""
    file, left = tmp_path / "labels.jsonl", calls
    finished = []

    def interrupted(*arguments, **options):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        finished.append(file.read_bytes().count(b"\n"))
        return grade_paths(*arguments, **options)
    with monkeypatch.context() as patch:
        patch.setattr(labelling, "grade_paths", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_label(world, file, batch_size=2)
    kept = file.read_bytes()
    done = lambda call: call // 7 + max(0, call - 1) // 7  # two searches of 7 paths, one call apart
    assert kept.count(b"\n") == done(calls) and kept.endswith(b"\n") == (calls >= 7)
    assert finished == [done(call) for call in range(calls)]
    asked = note_asked(monkeypatch)
    run_label(world, file)
    assert file.read_bytes() == world.bytes
    assert not asked & {json.loads(line)["id"] for line in kept.splitlines()}


@pytest.mark.parametrize("size", [1, 2])
def test_an_edited_question_is_searched_again(world, tmp_path, monkeypatch, size):
    """Catches the label of a question that was asked otherwise under the same id."""
    file = labels_file(world, tmp_path, world.bytes)
    edited = [*world.questions]
    edited[4] = replace(edited[4], answer=edited[7].answer, choices=edited[7].choices,
                        prompt=edited[7].prompt)
    asked = note_asked(monkeypatch)
    for rank in range(size)[::-1]:
        rows = run_rank(world, file, rank, size, monkeypatch, edited)
    assert asked == {"n4"} and len(rows) == COUNT
    assert rows[4]["correct"] != world.rows[4]["correct"]
    assert rows[:4] + rows[5:] == world.rows[:4] + world.rows[5:]
    assert len(file.read_bytes().splitlines()) == COUNT


def test_finished_file_is_read_and_nothing_is_asked(world, tmp_path, monkeypatch):
    """Catches labels made again."""
    file = labels_file(world, tmp_path, world.bytes)
    monkeypatch.delattr(labelling, "grade_paths")
    assert run_label(world, file) == world.rows
    assert file.read_bytes() == world.bytes


def test_labels_of_several_machines_are_joined_by_cat(world, tmp_path):
    """Catches labels that depend on which questions a machine was given (docs/your_model.md,
    Several machines), and label files that cannot be joined."""
    joined = b""
    for machine in range(3):  # every third question, in a folder of its own
        part = tmp_path / f"part-{machine}" / "labels.jsonl"
        part.parent.mkdir()
        run_label(world, part, world.questions[machine::3])
        joined += part.read_bytes()
    file = tmp_path / "labels.jsonl"
    file.write_bytes(joined)
    header = part.with_name("labels.meta.json").read_bytes()
    file.with_name("labels.meta.json").write_bytes(header)

    assert run_label(world, file) == world.rows
    assert file.read_bytes() == world.bytes


def test_changed_limit_reuses_rows(world, tmp_path):
    """Catches rows thrown away because they are not asked for now, and rows returned unasked."""
    file = tmp_path / "labels.jsonl"
    assert run_label(world, file, world.questions[4:7]) == world.rows[4:7]
    few = file.read_bytes()
    assert run_label(world, file, world.questions[:6]) == world.rows[:6]
    assert sorted(file.read_bytes().splitlines())[4:] == sorted(few.splitlines())
    assert run_label(world, file, world.questions[:2]) == world.rows[:2]
    assert len(read_rows(file, 3)) == 7
    run_label(world, file)
    assert file.read_bytes() == world.bytes


# ---- files made otherwise ----

@pytest.mark.parametrize("change, words", [
    ({"config": replace(CONFIG, simulations=7)}, ("simulations", "6", "7")),
    ({"config": replace(CONFIG, exploration=0.5)}, ("exploration", "1.8", "0.5")),
    ({"seed": 5}, ("seed", "0", "5")),
    ({"model": tiny_model(seed=4)}, ("model", tiny_model(seed=4).fingerprint())),
    ({"model": tiny_model(seed=3, dtype=torch.float32)}, ("dtype", "float64", "float32"))],
    ids=["simulations", "exploration", "seed", "model", "dtype"])
def test_labels_made_otherwise_are_refused_with_both_values(world, tmp_path, change, words):
    """Catches labels of two models or searches mixed in one file."""
    file = labels_file(world, tmp_path, world.bytes)
    with pytest.raises(InputError) as refusal:
        run_label(world, file, **change)
    assert all(word in str(refusal.value) for word in ("labels.jsonl", *words))
    assert file.read_bytes() == world.bytes


def test_labels_of_the_same_weights_in_another_configuration_are_refused(world, tmp_path):
    """Catches labels that stay when rotary angles change: the fingerprint is of the weights."""
    file = labels_file(world, tmp_path, world.bytes)
    turned = tiny_model(seed=3, rope_theta=500.0)
    assert turned.fingerprint() == world.model.fingerprint()
    with pytest.raises(InputError, match=r"labels\.jsonl: made with config "):
        run_label(world, file, model=turned)


def edited_header(world, **changes):
    header = json.loads(world.header)
    header["search"] |= changes
    return {**header, "search": {k: v for k, v in header["search"].items() if v is not None}}


def test_a_setting_of_the_search_that_came_later_has_its_default_in_older_files(world, tmp_path):
    """Catches finished labels that a new version refuses although they are of the same search, and
    a version that overlooks a setting it does not know."""
    file = labels_file(world, tmp_path, world.bytes)
    side = file.with_suffix(".meta.json")
    write_json(side, edited_header(world, widening=None))
    assert run_label(world, file) == world.rows
    with pytest.raises(InputError, match="made with widening 0.5; this run has widening 0.7"):
        run_label(world, file, config=replace(CONFIG, widening=0.7))
    write_json(side, edited_header(world, temperature=2))
    with pytest.raises(InputError, match="made with temperature 2; this run has temperature None"):
        run_label(world, file)


def test_labels_that_other_code_searched_are_kept_and_that_is_printed(world, tmp_path, capsys,
                                                                      monkeypatch):
    """Catches an exercise in mcts.py that seems to change nothing: its labels are yesterday's."""
    file = labels_file(world, tmp_path, world.bytes)
    assert run_label(world, file) == world.rows and not capsys.readouterr().out
    monkeypatch.setattr(labelling, "source_hash", lambda *files: "other code")
    assert run_label(world, file) == world.rows
    assert "searched before the search's code changed" in capsys.readouterr().out


@pytest.mark.parametrize("text", [
    "null", "3", "[]", "{", "", '{"search": null}', '{"search": [1]}', '{"search": 3}', "{}"])
def test_a_damaged_header_is_refused_by_name(world, tmp_path, text):
    """Catches a traceback, and labels that are taken for another run's."""
    file = labels_file(world, tmp_path, world.bytes)
    file.with_suffix(".meta.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"labels\.(meta\.json|jsonl): "):
        run_label(world, file)
    assert file.read_bytes() == world.bytes


def test_files_know_the_decisions_that_the_decoder_knows():
    """Catches a decision that the decoder runs and that no file may hold, and the other way."""
    assert PASSES == tuple(decision.passes for decision in DECISIONS)


EDITED = [  # changes to a row of a labels file, and what must be said of them
    ({"id": 3}, ["id", 3]), ({"level": 1.5}, ["level", 1.5]), ({"level": True}, ["level", True]),
    ({"level": "2"}, ["level", "2"]), ({"content": ABSENT}, ["content"]),
    ({"default_correct": "maybe"}, ["maybe"]), ({"default_correct": 1}, ["default_correct", 1]),
    ({"default_correct": False, "correct": [[[1, 1, 1], 0.5]], "decisions": [1] * 3, "length": 3},
     ["default_correct", False, True]),
    ({"decisions": [1, 1]}, [2, 3]), ({"decisions": [1] * 4, "length": 4}, [4, 3]),
    ({"decisions": [1.0, True, 1]}, ["[1.0, True, 1]"]), ({"decisions": [1, 1, [1]]}, []),
    ({"decisions": "111"}, ["decisions", "111"]), ({"decisions": [1, 3, 1], "length": 5}, [3]),
    ({"decisions": ABSENT}, ["decisions"]), ({"length": 9}, ["length 9", 3]),
    ({"correct": [3]}, []), ({"correct": [[1, 1, 1]]}, []), ({"correct": [[[1, 1, 1]]]}, []),
    ({"correct": [[None, 0.5]]}, []), ({"correct": [[[1, 3, 1], 0.5]]}, [3]),
    ({"correct": [[[1, 1, 1], "0.5"]]}, ["0.5"]), ({"correct": [[[1, 1, 1], 2.0]]}, [2.0]),
    ({"correct": [[[1, 1, 1], float("nan")]]}, ["nan"]),
    ({"correct": [[[1, 1, 2], 0.5]], "decisions": [1, 1, 1]}, ["[1, 1, 1]"]),
    ({"wrong": [3]}, []), ({"wrong": [[1, 1]]}, [2, 3]), ({"wrong": [[1, 1, 9]]}, [9])]


@pytest.mark.parametrize("changes, words", EDITED, ids=str)
def test_a_row_that_names_no_search_of_a_model_is_refused(world, tmp_path, changes, words):
    """Catches a field with a value of another kind that a later step stumbles over."""
    row = json.loads(world.bytes.splitlines()[0]) | changes
    row = {key: value for key, value in row.items() if value is not ABSENT}
    file = labels_file(world, tmp_path, json.dumps(row).encode() + b"\n")
    with pytest.raises(InputError, match=r"labels\.jsonl:1: not a labels row: ") as error:
        read_rows(file, 3)
    assert all(str(word) in str(error.value).partition("row: ")[2] for word in words)


def test_a_row_that_is_there_twice_is_refused(world, tmp_path):
    file = labels_file(world, tmp_path, 2 * world.bytes.splitlines(keepends=True)[0])
    with pytest.raises(InputError, match=r"labels\.jsonl:2: .*id 'n0' is there twice"):
        read_rows(file, 3)


def test_labels_just_made_are_handed_on_and_not_read_again(world, tmp_path, monkeypatch):
    """Catches a file that is parsed a second time by the process that wrote it."""
    file, reads, real = tmp_path / "labels.jsonl", [], label_file.read_rows
    monkeypatch.setattr(label_file, "read_rows", lambda *args, **how: reads.append(
        file.exists()) or real(*args, **how))
    assert run_label(world, file) == world.rows == list(real(file, 3).values())
    assert reads == [False]


def test_header_refuses_another_run_where_only_parts_stand_beside_it(world, tmp_path):
    """Catches a header that counts only once the merged file is there: parts hold rows too."""
    file = labels_file(world, tmp_path, world.bytes)
    file.rename(tmp_path / "labels.part-0.jsonl")
    with pytest.raises(InputError, match="seed 0; .* seed 5"):
        run_label(world, file, seed=5)


def test_removing_the_file_as_advised_makes_room_for_another_run(world, tmp_path):
    """Catches advice that does not help: the header beside a removed file still refuses."""
    file = labels_file(world, tmp_path, world.bytes)
    with pytest.raises(InputError, match="remove the file"):
        run_label(world, file, world.questions[:1], seed=5)
    file.unlink()
    assert len(run_label(world, file, world.questions[:1], seed=5)) == 1


@pytest.mark.parametrize("line", [b"17", b"{}", b"{'id': 1}", b"\xff", b'{"id": "n0"}', b"null"])
def test_line_that_is_no_row_is_refused_by_file_and_line(world, tmp_path, line):
    """Catches a foreign file being appended to, or a traceback."""
    first = world.bytes.splitlines(keepends=True)[0]
    file = labels_file(world, tmp_path, first + line + b"\n")
    with pytest.raises(InputError, match=r"labels\.jsonl:2: "):
        run_label(world, file)


def test_too_long_questions_are_named_and_left_out(world, tmp_path, capsys):
    """Catches an answer cut short by the context, and a prompt that just fits being refused."""
    limit = world.model.config.max_positions
    fits = Question("fits", "t", 0, "", "5", prompt=" ".join("1" * (limit - 3)), max_new_tokens=3)
    long = replace(fits, id="long", max_new_tokens=4)
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(map(row_text, [long, world.questions[0], fits])), encoding="utf-8")
    world_ = World(folder=world.folder, file=file)
    labelling.main(command(world_, tmp_path / "labels.jsonl"))
    assert ids_of(tmp_path / "labels.jsonl") == ["n0", "fits"]
    said = capsys.readouterr().out
    assert "1 of 3 questions" in said and f"{limit}" in said
    assert "long" in said and "fits" not in said


# ---- several processes ----

class Waiting(Exception):
    """A process that has finished its part and waits for the others."""


def run_rank(world, file, rank, size, monkeypatch, questions=None):
    """Runs one process of several. Ranks above 0 stop at the barrier; 0 merges, so it goes last."""
    def barrier():
        if rank:
            raise Waiting
    with monkeypatch.context() as patch:
        patch.setenv("RANK", str(rank))
        patch.setenv("WORLD_SIZE", str(size))
        patch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
        patch.setattr(torch.distributed, "destroy_process_group", lambda: None)
        patch.setattr(torch.distributed, "barrier", barrier)
        try:
            return run_label(world, file, questions)
        except Waiting:
            return None


def part(file, rank):
    return file.with_name(f"{file.stem}.part-{rank}{file.suffix}")


def ids_of(file):
    return [json.loads(line)["id"] for line in file.read_bytes().splitlines()]


@pytest.mark.parametrize("size", [2, 3])
def test_parts_of_any_number_of_processes_merge_to_the_single_process_file(
        world, tmp_path, monkeypatch, size):
    """Catches a question labelled by two ranks or by none, and parts left behind."""
    file = tmp_path / "labels.jsonl"
    for rank in range(1, size):
        assert run_rank(world, file, rank, size, monkeypatch) is None
    mine = [name for rank in range(1, size) for name in ids_of(part(file, rank))]
    assert len(mine) == len(set(mine)) and 0 < len(mine) < COUNT
    rows = run_rank(world, file, 0, size, monkeypatch)
    assert rows == world.rows and file.read_bytes() == world.bytes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.jsonl", "labels.meta.json"]


@pytest.mark.parametrize("size, name", [
    (1, "labels.jsonl"), (2, "la[b]els.v2.jsonl"), (1, "labels")])
def test_parts_of_another_number_of_processes_are_picked_up(
        world, tmp_path, monkeypatch, size, name):
    """Catches work of a killed run that is lost, done again, or never tidied away."""
    file = tmp_path / name
    for rank in (1, 2):
        run_rank(world, file, rank, 3, monkeypatch)
    stale = part(file, 2)
    stale.write_bytes(stale.read_bytes()[:-5])  # killed in its last line
    done = {*ids_of(part(file, 1)), *(json.loads(line)["id"] for line in
                                      stale.read_bytes().splitlines()[:-1])}
    asked = note_asked(monkeypatch)
    for rank in range(size)[::-1]:
        rows = run_rank(world, file, rank, size, monkeypatch)
    assert rows == world.rows and file.read_bytes() == world.bytes
    assert not asked & done
    assert not list(tmp_path.glob("*.part*"))


def test_torn_part_is_mended_by_its_own_rank_only(world, tmp_path, monkeypatch):
    """Catches a rank that cuts the line another rank is writing, or glues its own to a torn one."""
    file = tmp_path / "labels.jsonl"
    run_rank(world, file, 1, 3, monkeypatch)
    whole = part(file, 1).read_bytes()
    part(file, 1).write_bytes(whole[:-5])
    run_rank(world, file, 2, 3, monkeypatch)
    assert part(file, 1).read_bytes() == whole[:-5]
    run_rank(world, file, 1, 3, monkeypatch)
    assert sorted(part(file, 1).read_bytes().splitlines()) == sorted(whole.splitlines())


def test_merging_keeps_rows_of_other_questions(world, tmp_path, monkeypatch):
    """Catches a merge under a smaller limit that throws finished rows away."""
    file = tmp_path / "labels.jsonl"
    run_label(world, file, world.questions[5:])
    for rank in (1, 0):
        rows = run_rank(world, file, rank, 2, monkeypatch, world.questions[:3])
    assert rows == world.rows[:3]
    assert ids_of(file) == [q.id for q in world.questions[:3] + world.questions[5:]]


def command(world, out, *more):
    """Arguments of a small run. One search at a time: float32 sums do not depend on the batch."""
    return ["--model", str(world.folder), "--data", str(world.file), "--out", str(out),
            "--simulations", "3", "--batch-size", "1", *more]


def test_two_processes_write_the_file_of_one(world, tmp_path):
    """Catches anything that only a real process group shows."""
    labelling.main(command(world, tmp_path / "one.jsonl"))
    made = run_distributed(2, "label.py", *command(world, tmp_path / "two" / "two.jsonl"))
    assert [one.returncode for one in made] == [0, 0], made[0].stderr + made[1].stderr
    assert (tmp_path / "two" / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert len(list((tmp_path / "two").iterdir())) == 2
    assert [one.stdout.count("9 questions") for one in made] == [1, 0]


# ---- two runs at once ----

HELD = """
import os, sys, time
import cli, label
grade_paths, left = label.grade_paths, 9  # three of them for what the base model answers
def held(*arguments, **options):
    global left
    left -= 1
    if not left:
        print("held", file=sys.__stdout__, flush=True)
    while left <= 0 and not os.path.exists(sys.argv[1]):
        time.sleep(0.02)
    return grade_paths(*arguments, **options)
label.grade_paths = held
cli.run(lambda: label.main(sys.argv[2:]))
"""


@pytest.fixture
def other_run(world, tmp_path):
    """start(out, RANK=..): a run in a process of its own that stops after its first row or two,
    until go() is called. It is killed in the end, if it is still there."""
    running = []

    def start(out, **environment):
        made = Program("-c", HELD, tmp_path / "go", *command(world, out), **environment)
        running.append(made)
        made.wait_for("held\n")  # after what the base model answers
        made.go = (tmp_path / "go").touch
        return made
    yield start
    for made in running:
        made.kill()
        made.wait()


def refused_for(process, arguments, out, capsys, monkeypatch, **environment):
    """Whether a run is refused in one line that names the file and the process that has it."""
    capsys.readouterr()
    with monkeypatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        code, said = leaves(lambda: labelling.main(arguments), capsys)
    return (code, said) == (2, f"error: {out}: process {process.pid} is at work on it\n")


def test_a_second_run_into_one_file_is_refused_and_the_first_loses_nothing(
        world, tmp_path, other_run, capsys, monkeypatch):
    """Catches a file that is renamed under a run that still writes: its later rows were gone. With
    the same questions, others, fewer, and as the first process of a torchrun."""
    out, alone_ = tmp_path / "labels.jsonl", tmp_path / "alone.jsonl"
    labelling.main(command(world, alone_))
    others = tmp_path / "others.jsonl"
    others.write_text("".join(row_text(replace(question, id=f"other-{question.id}"))
                              for question in world.questions), encoding="utf-8")
    first = other_run(out)
    rows = out.read_bytes()
    assert 0 < rows.count(b"\n") < COUNT
    same = command(world, out)
    for arguments, environment in [(same, {}), (same + ["--data", str(others)], {}),
                                   (same + ["--limit", "1"], {}),
                                   (same, {"RANK": "0", "WORLD_SIZE": "2"})]:
        assert refused_for(first, arguments, out, capsys, monkeypatch, **environment)
        assert out.read_bytes() == rows
    first.go()
    assert first.wait().returncode == 0
    assert out.read_bytes() == alone_.read_bytes()
    labelling.main(same + ["--data", str(others)])  # now it is free, and both stand in it
    assert {json.loads(line)["id"] for line in out.read_bytes().splitlines()} == {
        name + q.id for q in world.questions for name in ("", "other-")}
    assert {file.name for file in tmp_path.glob("*labels*")} == {"labels.jsonl", "labels.meta.json"}


def test_a_part_that_a_process_still_writes_is_taken_by_no_other_run(
        world, tmp_path, other_run, capsys, monkeypatch):
    """Catches a part that two processes append to, and one that is merged and removed under a
    process that outlived its torchrun."""
    out, alone_ = tmp_path / "labels.jsonl", tmp_path / "alone.jsonl"
    labelling.main(command(world, alone_))
    orphan, mine = other_run(out, RANK="1", WORLD_SIZE="2"), part(out, 1)
    rows = mine.read_bytes()
    assert rows.count(b"\n") >= 1
    for size in ("2", "3"):
        assert refused_for(orphan, command(world, out), mine, capsys, monkeypatch, RANK="1",
                           WORLD_SIZE=size)
    assert refused_for(orphan, command(world, out), mine, capsys, monkeypatch)
    assert mine.read_bytes() == rows and not out.exists()
    orphan.kill()
    orphan.wait()
    labelling.main(command(world, out))
    assert out.read_bytes() == alone_.read_bytes()
    assert {file.name for file in tmp_path.glob("*labels*")} == {"labels.jsonl", "labels.meta.json"}


def test_of_runs_that_begin_together_all_are_served_or_refused_and_no_row_is_lost(world, tmp_path):
    """Catches the moment between the lock's making and its taking."""
    labelling.main(command(world, tmp_path / "alone.jsonl"))
    out = tmp_path / "labels.jsonl"
    made = [Program("label.py", *command(world, out)) for _ in range(2)]
    assert {one.wait().returncode for one in made} <= {0, 2} and 0 in {
        one.returncode for one in made}
    for one in made:
        if one.returncode:
            pid = re.fullmatch(f"error: {out}: process (\\d*) is at work on it\n", one.stderr)[1]
            assert pid in {"", *(str(other.pid) for other in made)} - {str(one.pid)}  # "": just now
    assert out.read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
    assert {file.name for file in tmp_path.glob("*labels*")} == {"labels.jsonl", "labels.meta.json"}


# ---- the command line ----

def test_main_writes_the_file_and_says_what_it_found(world, tmp_path, capsys):
    """Catches flags that do not arrive."""
    out = tmp_path / "new" / "labels.jsonl"
    labelling.main(command(world, out, "--limit", "4", "--seed", "7"))
    assert ids_of(out) == ["n0", "n1", "n2", "n3"]
    assert all(row["simulations"] == 3 for row in read_rows(out, 3).values())
    made = read_json(out.with_suffix(".meta.json"))
    assert (made["seed"], made["dtype"], made["search"]["simulations"]) == (7, "float32", 3)
    assert made["search"]["stop_when_repaired"] is False
    chance, *_, said = capsys.readouterr().out.splitlines()
    assert "of 2 multiple-choice questions, chance 25.0%" in chance
    assert said.startswith(f"{out}: 4 questions; saved ")


def test_memory_that_fits_no_search_is_one_line(world, tmp_path, monkeypatch):
    """Catches a search that begins all the same, and no memory taken for no limit."""
    for memory in "1e-9", "0":
        with pytest.raises(InputError, match=r"--memory: .* GB fit no search; .* at least"):
            labelling.main(command(world, tmp_path / "out.jsonl", "--memory", memory))
    monkeypatch.setattr(cli, "free_memory", lambda device: 1000)
    with pytest.raises(InputError, match="fit no search"):
        labelling.main(command(world, tmp_path / "out.jsonl"))
    assert not list(tmp_path.iterdir())


def test_memory_is_said_with_the_searches_that_fit(world, tmp_path, capsys):
    labelling.main(command(world, tmp_path / "out.jsonl", "--memory", "2"))
    assert ("1 searches at once, whose paths share hidden states in 2 GB (--memory)"
            in capsys.readouterr().out)


def test_main_skips_bad_rows_only_when_told(world, tmp_path):
    """Catches a flag that is read and not passed on."""
    world_ = World(folder=world.folder, file=tmp_path / "q.jsonl")
    world_.file.write_text("{}\n" + row_text(world.questions[0]), encoding="utf-8")
    with pytest.raises(InputError, match="q.jsonl:1"):
        labelling.main(command(world_, tmp_path / "labels.jsonl"))
    labelling.main(command(world_, tmp_path / "labels.jsonl", "--skip-bad-rows"))
    assert ids_of(tmp_path / "labels.jsonl") == ["n0"]


# ---- batches ----

def bare(length, budget):
    return Prompt(Question("q", "t", 0, "q", "5", max_new_tokens=budget), (2,) * length)


@given(st.lists(st.tuples(st.integers(1, 9000), st.integers(1, 3)), max_size=30), st.integers(1, 8))
@settings(max_examples=40)
def test_batches_hold_every_prompt_once_within_the_bounds(sizes, batch_size):
    """Catches a lost last batch, mixed budgets, too many rows, and too many padded tokens."""
    prompts = [bare(*size) for size in sizes]
    made = list(batches(prompts, batch_size))
    assert sorted(i for rows in made for i in rows) == list(range(len(prompts)))
    for rows in made:
        assert len({prompts[i].question.budget for i in rows}) == 1
        assert 1 <= len(rows) <= batch_size
        longest = max(len(prompts[i].ids) for i in rows)
        assert len(rows) == 1 or len(rows) * longest <= answers.BATCH_TOKENS


def test_batches_are_as_full_as_they_may_be():
    """Catches a batch per prompt, which keeps every bound and takes a hundred times as long."""
    assert [len(rows) for rows in batches([bare(5, 2)] * 10, 4)] == [4, 4, 2]
    assert [len(rows) for rows in batches([bare(8192, 2)] * 5, 512)] == [2, 2, 1]
    lengths = [30, 10, 20, 40]
    assert list(batches([bare(n, 2) for n in lengths], 2)) == [[3, 0], [2, 1]]


def by_first_token(layer, hidden, lengths):
    """A Route that differs from row to row and from layer to layer."""
    counts = (hidden[:, 0, layer] > 0).long()
    return counts if layer == 1 else counts + (hidden[:, 0, -1] > 0).long()


def same_answers(together, place, single):
    for field in ("correct", "decisions", "blocks_run", "passes"):
        assert torch.equal(getattr(together, field)[place], getattr(single, field)[0]), field
    assert together.texts[place] == single.texts[0]
    assert together.confidence[place].item() == pytest.approx(single.confidence.item(), abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4, 512])
@pytest.mark.parametrize("route", ["paths", "route", "none"])
def test_answers_together_equal_answers_alone(world, batch_size, route):
    """Catches results put back in the batch's order, and a path or a budget of another row."""
    rng = random.Random(1)
    prompts = rng.choices(world.prompts, k=14)
    paths = [rng.choice(PATHS) for _ in prompts]
    given_ = {"paths": torch.tensor(paths), "route": by_first_token, "none": None}[route]
    counted = []
    found = answer(world.model, world.tokenizer, prompts, given_, batch_size, counted.append)
    assert sum(counted) == len(prompts) and max(counted) <= batch_size
    for place, prompt in enumerate(prompts):
        path = paths[place] if route == "paths" else given_
        same_answers(found, place, alone(world, prompt, path))
    assert len({*found.texts}) > 3
    if route != "none":
        assert len({*map(tuple, found.decisions.tolist())}) > 2


def test_answer_fields_are_what_they_say(world):
    """Catches a grade of another text, and layers counted once instead of per pass."""
    found = answer(world.model, world.tokenizer, world.prompts, None)
    for prompt, text, correct in zip(world.prompts, found.texts, found.correct.tolist()):
        assert correct == grade(text, prompt.question)
    assert torch.equal(found.blocks_run, found.passes * 3)
    assert torch.equal(found.decisions, torch.ones(COUNT, 3, dtype=torch.long))
    assert all(1 <= n <= p.question.budget for n, p in zip(found.passes.tolist(), world.prompts))
    assert all(0 < sure <= 1 for sure in found.confidence.tolist())


def test_no_prompts_give_no_answers(world):
    """Catches a crash where every question was too long."""
    found = answer(world.model, world.tokenizer, [], None)
    assert len(found.correct) == 0 and found.texts == []


# ---- what is said of the base model before a search ----

def test_chance_is_said_with_its_interval_and_what_luck_makes_right():
    correct = torch.tensor([1.0] * 30 + [0.0] * 70)
    said, lucky = describe_base_score(correct, torch.full((100,), 4), 51)
    assert said == ("the base model answers 30.0% of 100 multiple-choice questions, chance 25.0% "
                    "± 8.5; of 51 paths per question luck alone makes 13 correct")
    assert lucky and margin(0.25, 100) == pytest.approx(0.0849, abs=1e-4)


@pytest.mark.parametrize("share, options, lucky", [
    (0.34, 4, False), (0.33, 4, True), (0.10, 4, True), (0.50, 2, True), (0.61, 2, False),
    (0.0, 0, False)])
def test_a_model_is_at_chance_within_the_error_of_chance_and_an_open_question_has_none(
        share, options, lucky):
    correct = (torch.arange(100) < 100 * share).float()
    assert describe_base_score(correct, torch.full((100,), options), 51)[1] == lucky


def of_task(task, options, number):
    choices = tuple("abcd"[:options])
    return [Prompt(Question(f"{task}{n}", task, 0, "q", "a", choices), ()) for n in range(number)]


def test_no_open_question_right_is_said_to_be_perhaps_a_matter_of_form():
    said, lucky = describe_base_score(torch.zeros(7), torch.zeros(7), 51)
    assert said.startswith("the base model answers 0.0% of 7 open questions. Does it answer in")
    assert not lucky and "form" not in describe_base_score(torch.ones(7), torch.zeros(7), 51)[0]


def test_advice_is_not_what_was_done_already(world):
    """Catches "use --score likelihood" under --score likelihood, and a sentence said twice."""
    model, prompts = tiny_model(2), of_task("x", 4, 40)
    for score in "letter", "likelihood":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(base_check, "cached_grade_paths",
                          lambda *_: (torch.zeros(40), torch.rand(40)))
            patch.setattr(base_check, "check_form", lambda *_: None)
            args = SimpleNamespace(model="m", batch_size=1, simulations=50, score=score)
            with pytest.raises(InputError, match="m: .*luck then.*; --force") as error:
                base_check.check_base_model(model, world.tokenizer, prompts, args, AnswerCache(),
                                            refuse=True)
        assert ("--score likelihood" in str(error.value)) == (score == "letter")
