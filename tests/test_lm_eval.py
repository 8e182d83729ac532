"""The lm-evaluation-harness adapter against slow recomputation, and through the harness itself.

Skipped, aloud, where the harness (pip install lm-eval) is not installed; the comparison with
its own `hf` model wants transformers too. Nothing here reaches the network.
"""
import json
import os
import random
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from conftest import ROOT
from programs import run_program
from drllm import RouterRoute, Routers
from model_llama import FixedRoute, generate, load_model, load_tokenizer, prefill
from storage.files import InputError, read_json
from answers import answer, prepare
from questions.loading import load_all
from tiny import WORDS, save_tiny, tiny_model

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
harness = pytest.mark.skipif(find_spec("lm_eval") is None,
                             reason="the harness is not installed: pip install lm-eval")
if find_spec("lm_eval"):
    os.environ.update(OFFLINE)  # before the harness's libraries are imported
    from lm_eval import simple_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.tasks import TaskManager

    from tools.lm_eval_drllm import DrLLM


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model with a chat template and BOS, and routers that belong to it."""
    path = save_tiny(tmp_path_factory.mktemp("lm") / "model", tiny_model(3, dtype=torch.float32))
    template = ("{{ bos_token }}{% for m in messages %}{{ m.role[0] }} {{ m.content }} {% endfor %}"
                "{% if add_generation_prompt %}Answer: {% endif %}")
    settings = {"eos_token": "<eos>", "bos_token": "<unk>", "chat_template": template,
                "tokenizer_class": "PreTrainedTokenizerFast"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def routers(folder):
    """Random routers whose decisions differ from prompt to prompt."""
    torch.manual_seed(2)
    made = Routers(3, 16, width=8, windows=4)
    with torch.no_grad():
        made.w2 *= 4
    made.metadata = {"model": load_model(folder).fingerprint()}
    file = folder.parent / "routers.safetensors"
    made.save(file)
    return file


def text(rng, low, high):
    return " ".join(rng.choice(WORDS[2:38]) for _ in range(rng.randint(low, high)))


def ask(kind, arguments, task="t"):
    return [Instance(kind, {}, each, n, (task, n, 1)) for n, each in enumerate(arguments)]


def choices(seed=0, questions=6):
    """(context, continuation) pairs: shared contexts, none, too long ones, ragged choices."""
    rng = random.Random(seed)
    contexts = [text(rng, 1, 20) for _ in range(questions)] + ["", text(rng, 70, 80), " "]
    pairs = [(context, " " + text(rng, 1, 5)) for context in contexts
             for _ in range(rng.randint(1, 4))]
    rng.shuffle(pairs)
    return pairs


def plainly(lm, context, continuation):
    """(log-probability, is greedy) of one request: the route from the context alone, then one
    forward pass over everything along that path, without a cache."""
    encode = lm.tokenizer.encode
    whole = encode(context.rstrip() + " " + continuation.strip(), False)
    rest = encode(continuation, False)
    ids = whole[:len(whole) - len(rest)] or [lm.prefix_token_id]
    ids = ids[-(lm.max_length + 1 - len(rest)):]
    decided = prefill(lm.model, torch.tensor([ids]), lm.route)[1].decisions
    logits = lm.model(torch.tensor([ids + rest]), FixedRoute(decided))[0, len(ids) - 1:-1]
    picked = logits.log_softmax(-1)[torch.arange(len(rest)), rest]
    return picked.sum().item(), logits.argmax(-1).tolist() == rest


# ---- scores ----

@harness
@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_every_score_equals_a_recomputation_one_by_one(folder, routers, routed, batch_size):
    """Padding, shared contexts, rewound caches and left truncation change no score."""
    lm = DrLLM(folder, routers if routed else None, batch_size=batch_size)
    pairs = choices()
    assert any(len(context.split()) > lm.max_length for context, _ in pairs)
    for pair, (p, top) in zip(pairs, lm.loglikelihood(ask("loglikelihood", pairs), True)):
        wanted, is_greedy = plainly(lm, *pair)
        assert p == pytest.approx(wanted, abs=1e-4) and top is is_greedy, pair
    if routed:
        stats = lm.stats()["t"]
        assert stats["skip"] > 0 and stats["repeat"] > 0, "these routers test nothing"


@harness
def test_a_greedy_continuation_is_called_greedy(folder, routers):
    lm = DrLLM(folder, routers, batch_size=4)
    contexts = [f"a {n} b" for n in range(10)]
    made = generate(lm.model, [lm.tokenizer.encode(c) for c in contexts], lm.route, 4)
    pairs = [(c, " " + " ".join(WORDS[i] for i in ids)) for c, ids in zip(contexts, made.tokens)]
    answers = lm.loglikelihood(ask("loglikelihood", pairs), True)
    assert all(top for _, top in answers)
    assert [p for p, _ in answers] == pytest.approx(made.logprobs.tolist(), abs=1e-4)


@harness
def test_routes_see_every_context_once_and_no_continuation(folder):
    """A route that saw the choices would cheat; one asked for each of four costs four times."""
    lm, seen = DrLLM(folder, batch_size=4), []

    def watch(layer, hidden, lengths):
        if layer == 0:
            embedded = lm.model.embed_tokens.weight
            for row, length in zip(hidden, lengths.tolist()):
                assert len(row) <= longest
                seen.append(torch.cdist(row[:length], embedded).argmin(-1).tolist())
        return torch.ones(len(hidden), dtype=torch.long)
    lm.route = watch
    pairs = [(f"a b {n}", f" x y {m}") for n in range(5) for m in range(4)] + [("", " z 1")]
    longest = 3
    lm.loglikelihood(ask("loglikelihood", pairs), True)
    wanted = [lm.tokenizer.encode(f"a b {n}") for n in range(5)] + [[lm.prefix_token_id]]
    assert sorted(seen) == sorted(wanted)
    assert lm.stats()["t"]["prompts"] == 6


@harness
def test_rolling_scores_every_token_once(folder):
    """Windows of 8: the first from the prefix, the others from the token before them."""
    lm, rng = DrLLM(folder, batch_size=3, max_length=8), random.Random(4)
    strings = [text(rng, n, n) for n in (1, 7, 8, 9, 16, 21)]
    answers = lm.loglikelihood_rolling(ask("loglikelihood_rolling", [(s,) for s in strings]), True)
    for string, logprob in zip(strings, answers):
        ids, total = [lm.prefix_token_id, *lm.tokenizer.encode(string)], 0.0
        for end in range(9, len(ids) + 8, 8):  # at most 8 tokens are scored by each window
            window = ids[:end][-9:] if end < len(ids) else ids[-9:]
            new = len(ids[:end]) - (end - 8)
            logs = lm.model(torch.tensor([window[:-1]]))[0].log_softmax(-1)
            picked = logs[torch.arange(len(window) - 1), window[1:]]
            total += picked[-new:].sum().item()
        assert logprob == pytest.approx(total, abs=1e-4), string


@harness
def test_a_continuation_that_cannot_be_scored_is_refused(folder):
    lm = DrLLM(folder, max_length=4)
    assert lm.loglikelihood(ask("loglikelihood", [("a b", " 1 2 3 4")]), True)
    for continuation in (" 1 2 3 4 5", " "):
        with pytest.raises(InputError, match="tokens"):
            lm.loglikelihood(ask("loglikelihood", [("a", continuation)]), True)


# ---- generation and chat ----

@harness
def test_generation_is_greedy_and_cut_at_the_first_stop_string(folder, routers):
    lm = DrLLM(folder, routers, batch_size=4)
    contexts = [f"a {n} {m} b" for n in range(4) for m in range(2)]
    requests = [(c, {"until": [stop], "max_gen_toks": limit}) for c, stop, limit
                in zip(contexts, ["7", "never", "a", "k"] * 2, [12, 5] * 4)]
    answers = lm.generate_until(ask("generate_until", requests))
    for (context, options), said in zip(requests, answers):
        ids = lm.tokenizer.encode(context)
        made = generate(lm.model, [ids], lm.route, options["max_gen_toks"], lm.tokenizer.stop_ids)
        assert said == lm.tokenizer.decode(made.tokens[0]).split(options["until"][0])[0]


@harness
def test_generation_cuts_long_prompts_from_the_left_and_refuses_sampling(folder):
    lm = DrLLM(folder, max_length=12)
    long, short = "1 2 3 4 5 6 7 8 9 a b c d", "6 7 8 9 a b c d"
    asked = [(c, {"max_gen_toks": 4, "until": []}) for c in (long, short)]
    assert len(set(lm.generate_until(ask("generate_until", asked)))) == 1
    for options in ({"do_sample": True, "temperature": 1.0}, {"num_beams": 2},
                    {"max_gen_toks": 12}):
        with pytest.raises(InputError, match="greedy"):
            lm.generate_until(ask("generate_until", [("a", {"max_gen_toks": 2, **options})]))


@harness
def test_chat_template_is_rendered_and_bos_is_not_doubled(folder):
    lm = DrLLM(folder)
    history = [{"role": "user", "content": "1 2"}]
    assert lm.apply_chat_template(history) == "<unk>u 1 2 Answer: "
    assert lm.chat_template(True) == lm.tokenizer.template and lm.chat_template(False) is None
    history.append({"role": "assistant", "content": "3 "})
    assert lm.apply_chat_template(history, add_generation_prompt=False) == "<unk>u 1 2 a 3"
    flags = []
    lm.tokenizer = SimpleNamespace(encode=lambda string, special: flags.append(special) or [])
    for string in ("<unk>u 1", "u 1"):
        lm.tok_encode(string)
    assert flags == [False, True]


@harness
@pytest.mark.parametrize("options, message", [
    ({"model": "nowhere"}, "nowhere/config.json"), ({}, "missing a required argument"),
    ({"pretrained": "x"}, "pretrained"), ({"dtype": "int8"}, "dtype"), ({"control": 2}, "control"),
    ({"max_length": 65}, "65"), ({"routers": "none.safetensors"}, "none.safetensors")])
def test_bad_model_args_are_named(folder, options, message):
    options = options if not options or "model" in options else {"model": str(folder), **options}
    with pytest.raises(InputError, match=message):
        DrLLM.create_from_arg_obj(options, {"batch_size": "1", "device": "cuda:0"})


@harness
def test_options_reach_the_route_and_model_args_win_over_flags(folder, routers):
    args = {"model": str(folder), "routers": str(routers), "control": 0.25, "depth_bias": 1,
            "guard": False, "batch_size": 7}
    lm = DrLLM.create_from_arg_obj(args, {"batch_size": "1", "device": None})
    assert isinstance(lm.route, RouterRoute) and lm.batch_size == 7
    assert (lm.route.control, lm.route.depth_bias, lm.route.guard) == (0.25, 1.0, False)
    assert DrLLM(folder, batch_size="auto:4", max_batch_size=3).batch_size == 3


# ---- through the harness's own evaluator ----

def write_tasks(path):
    """A folder with a multiple-choice and a generation task; the latter also imports `evaluate`."""
    rng, rows = random.Random(6), []
    for _ in range(8):
        rows.append({"question": text(rng, 3, 9), "choices": [text(rng, 1, 3) for _ in range(4)],
                     "gold": rng.randrange(4), "answer": text(rng, 1, 1)})
    (path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = f"{{data_files: {{test: {path}/rows.jsonl}}}}"
    common = (f"dataset_path: json\ndataset_kwargs: {data}\n"
              "test_split: test\ndoc_to_text: 'Question: {{question}} Answer:'\n")
    (path / "pick.yaml").write_text(
        f"task: tiny_pick\noutput_type: multiple_choice\n{common}doc_to_choice: choices\n"
        "doc_to_target: gold\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n", encoding="utf-8")
    (path / "write.yaml").write_text(
        f"task: tiny_write\noutput_type: generate_until\n{common}doc_to_target: answer\n"
        "process_docs: !function words.same\ngeneration_kwargs: {until: ['7'], max_gen_toks: 6}\n"
        "metric_list: [{metric: exact_match}]\n", encoding="utf-8")
    (path / "words.py").write_text(
        "import os\n\ndef same(docs):\n    import evaluate\n"
        "    assert hasattr(evaluate, 'load') or not os.environ.get('REAL'), evaluate.__file__\n"
        "    return docs\n", encoding="utf-8")
    return path


@pytest.fixture
def local(tmp_path, monkeypatch):
    """(folder of tasks, environment of a command that stays offline and out of the home folder)."""
    env = {**os.environ, **OFFLINE, "HF_HOME": str(tmp_path / "home"), "REAL": "1",
           "OMP_NUM_THREADS": "1"}
    if find_spec("datasets"):
        import datasets
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "tasks").mkdir()
    return write_tasks(tmp_path / "tasks"), env


def evaluate_tasks(model, tasks, **options):
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return simple_evaluate(model=model, tasks=["tiny_pick", "tiny_write"], task_manager=manager,
                           bootstrap_iters=0, **options)


@harness
def test_local_tasks_run_through_the_harness(folder, routers, local):
    """Metrics are the harness's; what the routes did stands beside them, and adds up."""
    lm = DrLLM(folder, routers, batch_size=3)
    results = evaluate_tasks(lm, local[0])
    assert 0 <= results["results"]["tiny_pick"]["acc_norm,none"] <= 1
    assert "exact_match,none" in results["results"]["tiny_write"]
    for sample in results["samples"]["tiny_pick"]:
        for (pair, resps) in zip(sample["arguments"], sample["filtered_resps"]):
            assert resps[0] == pytest.approx(plainly(lm, *pair)[0], abs=1e-4)
    assert set(results["config"]["drllm"]) == {"tiny_pick", "tiny_write"}
    for seen in results["config"]["drllm"].values():
        assert seen["prompts"] == 8
        assert seen["skip"] + seen["execute"] + seen["repeat"] == pytest.approx(1)
        assert seen["layers"] == pytest.approx(3 * (seen["execute"] + 2 * seen["repeat"]))
    chat = evaluate_tasks(lm, local[0], apply_chat_template=True)
    assert chat["samples"]["tiny_pick"][0]["arguments"][0][0].startswith("<unk>u Question:")


def command(*arguments, env):
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, env=env,
                          capture_output=True, encoding="utf-8", timeout=300)


@harness
def test_the_command_prints_and_saves_what_the_routes_did(folder, routers, local, tmp_path):
    tasks, env = local
    done = command("-m", "tools.lm_eval_drllm", "--model", "drllm",
                   "--tasks", "tiny_pick,tiny_write", "--model_args",
                   f"model={folder},routers={routers},control=-0.5",
                   "--include_path", tasks, "--output_path", tmp_path / "out", "--batch_size", "4",
                   env=env)
    assert done.returncode == 0, done.stderr
    assert "acc_norm" in done.stdout and "exact_match" in done.stdout
    last = done.stdout.splitlines()[-2:]
    assert last[0].startswith("drllm tiny_pick") and last[1].startswith("drllm tiny_write")
    saved, = (tmp_path / "out").rglob("results_*.json")
    seen = read_json(saved)["config"]["drllm"]
    direct = evaluate_tasks(DrLLM(folder, routers, batch_size=2), tasks)["config"]["drllm"]
    assert seen == direct


@harness
def test_the_command_refuses_bad_input_in_one_line(local):
    done = command("-m", "tools.lm_eval_drllm", "--model", "drllm", "--tasks", "tiny_pick",
                   "--model_args", "model=nowhere", "--include_path", local[0], env=local[1])
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: nowhere")
    assert "Traceback" not in done.stderr


def test_without_the_harness_the_command_says_so_in_one_line():
    hide = ("import runpy, sys; sys.modules['lm_eval'] = None;"
            "runpy.run_module('tools.lm_eval_drllm', run_name='__main__')")
    done = run_program("-c", hide)
    assert done.returncode == 2 and "pip install lm-eval" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not done.stdout


@harness
@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
def test_scores_without_routers_equal_the_hf_model(folder, local):
    from lm_eval.models.huggingface import HFLM
    options = {"device": "cpu", "dtype": "float32", "batch_size": 4}
    theirs, ours = HFLM(pretrained=str(folder), **options), DrLLM(folder, **options)
    pairs = [pair for pair in choices(2, 20) if pair[0] != " "]  # which theirs refuses
    asked = {"loglikelihood": pairs, "loglikelihood_rolling": [(c + " a",) for c, _ in pairs]}
    for kind, arguments in asked.items():
        answers = [getattr(lm, kind)(ask(kind, arguments), True) for lm in (theirs, ours)]
        values, greedy = [], []
        for some in answers:
            some = [each if isinstance(each, tuple) else (each, None) for each in some]
            values.append(torch.tensor([p for p, _ in some]))
            greedy.append([top for _, top in some])
        print(f"{kind}: {len(arguments)} requests, largest difference "
              f"{(values[0] - values[1]).abs().max():.2e}")
        assert torch.allclose(*values, rtol=0, atol=1e-4) and greedy[0] == greedy[1]
    asked = [(c, {"until": ["7"], "max_gen_toks": 8}) for c, _ in pairs if c]
    texts = [lm.generate_until(ask("generate_until", asked)) for lm in (theirs, ours)]
    assert texts[0] == texts[1]
    results = [evaluate_tasks(lm, local[0])["results"] for lm in (theirs, ours)]
    assert results[0] == results[1]


@harness
def test_arc_is_answered_alike_question_by_question(shared, tmp_path, monkeypatch):
    """By both scores the harness's own arithmetic, on log-likelihoods through the adapter, counts
    right exactly what evaluate.py does. MODEL=folder QUESTIONS=number ask another model, and more.
    """
    import datasets
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = os.environ.get("MODEL", shared / "models/TinyStories-656K")
    number = int(os.environ.get("QUESTIONS", 40))
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    files, correct = sorted((shared / "data/arc").glob("ARC-*-Dev.jsonl")), {}
    for score in ("likelihood", "likelihood-per-byte"):
        questions = [q for file in files for q in load_all([file], score=score)[:number]]
        prompts, too_long = prepare(questions, tokenizer, model)
        assert not too_long
        correct[score] = answer(model, tokenizer, prompts, None, 32).correct.tolist()
    rows = [{"question": q.question, "choices": q.choices, "gold": "ABCDE".index(q.answer)}
            for q in questions]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "arc.yaml").write_text(
        "task: arc_local\ndataset_path: json\ntest_split: test\noutput_type: multiple_choice\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\n"
        'doc_to_text: "Question: {{question}}\\nAnswer:"\ndoc_to_choice: choices\n'
        "doc_to_target: gold\nmetric_list: [{metric: acc}, {metric: acc_bytes}]\n",
        encoding="utf-8")
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = simple_evaluate(model=DrLLM(folder, batch_size=32), tasks=["arc_local"],
                            task_manager=manager, bootstrap_iters=0)["samples"]["arc_local"]
    found = sorted(found, key=lambda sample: sample["doc_id"])
    assert len(found) == len(questions) > 0
    for score, metric in (("likelihood", "acc"), ("likelihood-per-byte", "acc_bytes")):
        theirs = [float(sample[metric]) for sample in found]
        assert theirs == correct[score], score
        print(f"{score}: {len(theirs)} questions, {100 * sum(theirs) / len(theirs):.1f}% right, "
              "the same ones")
