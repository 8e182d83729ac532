"""Test settings, the tests of one task of the course, and what the tests of several files share."""
import inspect
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, settings

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "demo")]

from exact import check_task  # noqa: E402 - it lies beside this file

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored
PASS_OR_FAIL = {"deadline": None, "derandomize": True, "phases": (Phase.explicit, Phase.generate)}
settings.register_profile("quick", max_examples=25, **PASS_OR_FAIL)
settings.register_profile("default", max_examples=40, deadline=None,
                          phases=[phase for phase in Phase if phase != Phase.explain])
settings.register_profile("grade", max_examples=200, **PASS_OR_FAIL)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


# ---- the course: tests of one task ----

GRADED_OTHERWISE = {"5.2": "run python course/ablation.py check", "6.5": "a person reads it"}


def pytest_addoption(parser):
    parser.addoption("--task", help="run only the tests of one task of the course, e.g. 4.3")


def pytest_configure(config):
    config.addinivalue_line("markers", "task(number): the task of the course it belongs to")
    if config.getoption("--task"):
        config.args = [name for name in config.args if not lacks_task(Path(name), config)]


def pytest_ignore_collect(collection_path, config):
    return lacks_task(collection_path, config) or None


def lacks_task(file, config):
    """Whether a file has no tests of the task wanted: it need not even be imported."""
    wanted = config.getoption("--task")
    return bool(wanted and file.suffix == ".py" and file.is_file()
                and f'task("{wanted}")' not in file.read_text("utf-8"))


def pytest_collection_modifyitems(session, config, items):
    wanted = config.getoption("--task")
    if wanted:
        items[:] = [item for item in items
                    if (mark := item.get_closest_marker("task")) and wanted in mark.args]
        if not items and not session.testsfailed:  # no file failed to import
            raise pytest.UsageError(f"--task {wanted}: {why_there_are_no_tests(wanted)}")


def why_there_are_no_tests(number):
    """What somebody should do who asks for the tests of a task without any."""
    file = ROOT / "tests" / f"test_properties_{number.split('.')[0]}.py"
    if file.exists() and f'task("{number}")' in file.read_text(encoding="utf-8"):
        return f"no tests; write tests/{file.name} first"
    if number in GRADED_OTHERWISE:
        return f"no tests; {GRADED_OTHERWISE[number]}"
    return "no such task; course/assignments.toml has them all"


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session):
    """A task's functions are called through the check of tests/exact.py."""
    wanted = session.config.getoption("--task")
    if wanted:
        check_task(wanted)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """What a test exists to catch stands below its failure, wherever the assertion stands."""
    report = yield
    if report.failed and item.function.__doc__:
        report.sections.append(("what it is there for", inspect.cleandoc(item.function.__doc__)))
    return report


# ---- fixtures ----


@pytest.fixture(scope="session")
def shared():
    """The folder of real inputs beside the project, where there is one."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: this test wants real inputs")
    return folder


@pytest.fixture(autouse=True)
def plain_torch():
    """Every test starts from the same random state, in float32, on one thread."""
    torch.default_generator.manual_seed(0)  # torch.manual_seed also describes the call to CUDA
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    torch.set_flush_denormal(False)  # a command tested before may have set it (cli.run)


def own_answers(folder, number, seed=0):
    """Rows of questions that the folder's model answers right along some path: its own greedy
    answer along the default path, or along a random one, is taken for gold."""
    import random

    from model_llama import FixedRoute, generate, load_model, load_tokenizer
    from tiny import WORDS
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    rng, rows = random.Random(seed), []
    for n in range(number):
        prompt = " ".join(rng.choice(WORDS[2:38]) for _ in range(rng.randint(3, 14)))
        path = [1, 1, 1] if n % 2 else [rng.randrange(3) for _ in range(3)]
        made = generate(model, [tokenizer.encode(prompt)], FixedRoute(path), 2, tokenizer.stop_ids)
        rows.append({"id": f"own-{n}", "task": "own", "level": n % 2, "prompt": prompt,
                     "answer": tokenizer.decode(made.tokens[0]) or "zz", "max_new_tokens": 2})
    return rows


@pytest.fixture(scope="session")
def own_folder(tmp_path_factory):
    """A tiny model in model/, and files of sixty questions that it answers right along some path:
    q.jsonl, and others in others.jsonl."""
    from tiny import save_tiny, tiny_model, write_lines
    folder = tmp_path_factory.mktemp("own")
    save_tiny(folder / "model", tiny_model(5, dtype=torch.float32))
    for seed, name in enumerate(("q.jsonl", "others.jsonl")):
        write_lines(folder / name, own_answers(folder / "model", 60, seed))
    return folder


def leaves(call, capsys):
    """(exit code, standard error) of a command that ends with an error."""
    import cli
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.run(call)
    return end.value.code, capsys.readouterr().err


@pytest.fixture
def tiny_questions(tmp_path):
    """(model, tokenizer, prompts) of eight questions a tiny model answers along some path."""
    from model_llama import load_model, load_tokenizer
    from questions.loading import read_row
    from answers import prepare
    from tiny import save_tiny, tiny_model
    folder = save_tiny(tmp_path / "model", tiny_model(5, dtype=torch.float32))
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    questions = [read_row(row) for row in own_answers(folder, 8)]
    return model, tokenizer, prepare(questions, tokenizer, model)[0]


@pytest.fixture
def command(tmp_path, tiny_questions):
    """(routers, the command line that evaluates them on the tiny questions)."""
    from drllm import Routers
    from tiny import edit_json, write_lines
    model, _, prompts = tiny_questions
    routers = Routers(3, 16)
    routers.metadata = {"model": model.fingerprint(), "tasks": ["own"]}
    routers.save(tmp_path / "routers.safetensors")
    rows = [{"id": p.question.id, "task": p.question.task, "prompt": p.question.prompt,
             "answer": p.question.answer, "max_new_tokens": 2} for p in prompts]
    write_lines(tmp_path / "q.jsonl", rows)
    fitted_on = [row | {"id": f"label-{n}", "prompt": f"c {row['prompt']}"}
                 for n, row in enumerate(rows)]
    write_lines(tmp_path / "label.jsonl", fitted_on)
    edit_json(tmp_path / "paths.json", key={"labels": {"model": model.fingerprint()}},
              frontier=[[2, [1, 0, 1]], [4, [1, 2, 1]]])
    return routers, ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "q.jsonl"),
                     "--out", str(tmp_path / "out"), "--routers",
                     str(tmp_path / "routers.safetensors")]
