"""The paper's experiments on a tiny run: all of them answer, resume and refuse."""
import json
import random
import shutil
import string
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import train
from drllm import pool_windows
from experiments import tables, paper, pictures
from experiments.lab import FinishedRun, Lab, cells, same_of_each_task
from model_llama import FixedRoute, generate, load_model, load_tokenizer
from storage.files import InputError, read_json
from answers import Prompt
from questions.loading import Question
from tiny import save_tiny, tiny_model, write_lines

PATH_OF = {"one": (1, 1, 2), "two": (1, 1, 1), "compute": (1, 1, 2), "far": (1, 1, 1)}


def questions_of(folder, number):
    """Rows of four tasks, of digits or of letters; right is what the model says along the task's
    path, so that routing by what stands in the prompt pays."""
    model, tokenizer, rng = load_model(folder), load_tokenizer(folder), random.Random(0)
    for n in range(number):
        task = list(PATH_OF)[n % 4]
        words = string.digits if PATH_OF[task] == (1, 1, 2) else string.ascii_lowercase
        prompt = " ".join(rng.choice(words) for _ in range(rng.randint(3, 14)))
        made = generate(model, [tokenizer.encode(prompt)], FixedRoute(PATH_OF[task]), 2,
                        tokenizer.stop_ids)
        yield {"id": f"own-{n}", "task": task, "level": 0, "prompt": prompt,
               "answer": tokenizer.decode(made.tokens[0]) or "zz", "max_new_tokens": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished tiny run with two labelled tasks and two that no label shows."""
    base = tmp_path_factory.mktemp("paper")
    save_tiny(base / "model", tiny_model(2, dtype=torch.float32))
    rows = list(questions_of(base / "model", 96))
    labelled = [n for n in range(96) if n % 4 < 2 and n < 64]
    write_lines(base / "label.jsonl", [rows[n] for n in labelled])
    write_lines(base / "test.jsonl", [rows[n] for n in range(96) if n not in labelled])
    train.main([*files(base), "--out", str(base / "run"), "--simulations", "8", "--seeds", "2",
                "--clusters", "2", "--choose", "consensus"])
    return base


def files(base):
    return ["--model", str(base / "model"), "--data", str(base / "label.jsonl"),
            "--test", str(base / "test.jsonl")]


def command(base, *names, **changes):
    """The command line of these experiments. changes: the values of further flags."""
    flags = {"run": base / "run", "seeds": 2, "limit": 40} | changes
    more = [part for flag, value in flags.items() for part in (f"--{flag}", str(value))]
    return [*names, *files(base), *more]


def lab_of(base, *names, **changes):
    return Lab(paper.parse_args(command(base, *names, **changes)))


@pytest.mark.parametrize("score", ["letter", "likelihood-per-byte"])
def test_a_run_is_opened_again_with_the_score_it_was_made_with(tmp_path, monkeypatch, score):
    """Catches a run whose options were scored by likelihood, asked for letters."""
    (tmp_path / "config.json").write_text(json.dumps({"score": score, "fingerprint": "f"}),
                                          encoding="utf-8")
    model = SimpleNamespace(fingerprint=lambda: "f")
    monkeypatch.setattr(train, "Run", lambda flags: SimpleNamespace(args=flags, model=model))
    again = FinishedRun(tmp_path).reopened(paper.parse_args(["table3"]))
    assert again.args.score == score and again.args.out == tmp_path


@pytest.fixture(scope="module")
def everything(run):
    """The folder after all experiments."""
    paper.main(command(run, "all"))
    return run / "run" / "paper"


@pytest.mark.parametrize("name", tables.EXPERIMENTS)
def test_every_experiment_leaves_rows_command_seeds_model_and_versions(everything, name):
    stored = read_json(everything / f"{name}.json")
    assert stored["result"]["rows"] and stored["result"]["title"]
    assert stored["key"]["seeds"] == [0, 1] and len(stored["key"]["model"]) == 16
    assert {"command", "versions", "seconds"} <= stored.keys()
    assert "NaN" not in json.dumps(stored)


def test_a_finished_table_is_not_computed_again_and_an_unfinished_one_keeps_its_rows(
        everything, run, monkeypatch, capsys):
    before = (everything / "table6.json").stat().st_mtime_ns
    monkeypatch.setattr(train, "fit_routers", lambda *a, **k: pytest.fail("trained again"))
    paper.main(command(run, "table6"))
    assert (everything / "table6.json").stat().st_mtime_ns == before
    assert "embeddings only" in capsys.readouterr().out
    (everything / "table6.json").unlink()
    paper.main(command(run, "table6"))    # from its rows
    assert (everything / "table6.json").exists()


def test_other_questions_are_another_table(everything, run):
    before = read_json(everything / "table2.json")
    paper.main(command(run, "table2", limit=5))
    after = read_json(everything / "table2.json")
    assert before["key"] != after["key"]


def rows_of(folder, name):
    rows = read_json(folder / f"{name}.json")["result"]["rows"]
    return {row["name"].split(" @")[0]: row for row in rows}


def test_tables_report_what_the_comparison_measured(everything):
    rows = rows_of(everything, "table3")
    assert rows["base model: all"]["gain"] == 0.0 and rows["base model: all"]["layers"] == 3.0
    for task in ("one", "two", "all"):
        forced = rows[f"forced to execute: {task}"]
        assert forced["accuracy"] == rows[f"base model: {task}"]["accuracy"]
    assert sum(name.startswith("fixed path, ") for name in rows) in (1, 2)
    assert list(rows)[-3:] == ["shuffled", "random", "swapped"]
    methods = rows_of(everything, "table5")
    routed = rows["Dr.LLM, consensus: all"]["accuracy"]
    assert methods["Dr.LLM"]["accuracy"] == pytest.approx(routed)
    assert methods["CoLa (oracle)"]["accuracy"] >= methods["base model"]["accuracy"]


def test_rows_have_the_names_and_figures_that_the_documents_show(everything):
    """docs/make_results.py makes its tables of these."""
    assert list(rows_of(everything, "table5")) == [
        "base model", "Dr.LLM", "ShortGPT", "LLM-Pruner score", "LayerSkip, early exit", "MindSkip",
        "FlexiDepth", "MoD, top-k tokens", "UT, halting", "MoR, shared cache", "PoLar-like",
        "random", "shuffled", "CoLa (oracle)"]
    figures = {"accuracy", "sd", "layers", "gain", "interval", "over_static", "over interval"}
    for name in ("table5", "table6", "figure5", "figure7", "frontier"):
        assert all(row.keys() >= figures for row in rows_of(everything, name).values()), name
    ood = rows_of(everything, "ood")
    assert list(ood) == ["consensus, without guard", "consensus, with guard",
                         "shortest, without guard", "shortest, with guard", "without one",
                         "without two"]
    for name, row in ood.items():
        assert row.keys() >= ({"bare", "bare layers", "guard", "guard layers", "guard interval"}
                              if name.startswith("without") else
                              {"in", "in layers", "near", "near layers", "far", "far layers",
                               "out", "out layers", "out interval", "tasks"}), name


def test_domains_are_means_over_their_tasks(everything):
    for row in rows_of(everything, "ood").values():
        if "tasks" in row:
            (near, near_layers), (far, far_layers) = row["tasks"]["compute"], row["tasks"]["far"]
            assert (row["near"], row["near layers"]) == (near, near_layers)
            assert (row["far"], row["far layers"]) == (far, far_layers)
            assert row["out"] == pytest.approx((near + far) / 2)
            assert row["out layers"] == pytest.approx((near_layers + far_layers) / 2)


def test_rows_of_default_settings_are_those_of_the_runs_own_routers(everything):
    own = rows_of(everything, "table5")["Dr.LLM"]
    for table, name in (("figure5", "width 128"), ("figure5", "8 windows"),
                        ("figure7", "focal loss"), ("table6", "hidden states")):
        row = rows_of(everything, table)[name]
        assert all(row[key] == own[key] for key in ("accuracy", "layers", "over_static")), name
    assert rows_of(everything, "frontier")["depth bias +0.0"]["accuracy"] == own["accuracy"]


def test_fixed_paths_are_at_least_as_good_as_any_that_training_tried(everything, run):
    """The control must not be weaker than it could be: best per length, on label questions."""
    lab = lab_of(run, "frontier")
    paths, correct = lab.candidate_paths
    tried = list(zip(correct.float().mean(0).tolist(), map(tuple, paths)))
    assert set(lab.best_of_length) >= {sum(path) for _, path in tried if 3 <= sum(path) <= 4}
    for length, (share, path) in lab.best_of_length.items():
        assert sum(path) == length and set(path) <= {0, 1, 2}
        assert share == pytest.approx(lab.answered_by([path], lab.labelled)[0])
        assert share >= max([s for s, p in tried if sum(p) == length], default=0)
    found = rows_of(everything, "frontier")
    lengths = [n for n, _ in lab.fixed_points]
    assert all(found[f"fixed path, {n} layers"]["over_static"] == 0 for n in lengths)


def test_interpolation_ends_where_the_paper_says(everything):
    rows = read_json(everything / "figure6.json")["result"]["rows"]
    layers = {r["name"]: r["layers"] for r in rows}
    assert (layers["p -1.00"], layers["p +0.50"], layers["p +1.00"]) == (0.0, 3.0, 6.0)
    executed = [row["execute"] for row in rows]    # most at +0.5, and towards it ever more
    assert executed[2:7] == sorted(executed[2:7]) and executed[6] == 1.0 and rows[6]["gain"] == 0.0


def test_a_run_of_another_model_is_refused(run, tmp_path):
    other = save_tiny(tmp_path / "other", tiny_model(6, dtype=torch.float32))
    with pytest.raises(InputError, match="a run of model"):
        paper.main(command(run, "table2", model=other))


def test_the_runs_own_routers_are_taken_whatever_seed_it_began_with(run, tmp_path, monkeypatch):
    shutil.copytree(run / "run", tmp_path / "run")
    for old, new in ((1, 2), (0, 1)):
        for file in (tmp_path / "run" / "routers").glob(f"*-{old}.safetensors"):
            file.rename(file.with_name(file.name.replace(f"-{old}.", f"-{new}.")))
    settings = read_json(run / "run" / "config.json") | {"seed": 1}
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    lab = lab_of(run, "table3", run=tmp_path / "run")
    monkeypatch.setattr(train, "fit_routers", lambda *a, **k: pytest.fail("trained again"))
    assert lab.seeds == [1, 2] and len(lab.routers()) == 2


def test_seeds_that_the_run_lacks_are_trained_beside_its_own(run, tmp_path):
    shutil.copytree(run / "run", tmp_path / "run")
    folder = tmp_path / "run" / "routers"
    before = {file.name: file.stat().st_mtime_ns for file in folder.glob("consensus-*")}
    lab = lab_of(run, "table3", run=tmp_path / "run", seeds=3)
    assert len(lab.routers()) == 3 and len(before) == 2
    after = {file.name: file.stat().st_mtime_ns for file in folder.glob("consensus-*")}
    assert len(after) == 3 and after.items() >= before.items()


def test_other_labels_settings_or_numbers_are_another_table(run):
    lab = lab_of(run, "table3")
    key = lab.key
    lab.records = lab.records[::-1]
    assert lab.key != key
    assert lab_of(run, "table3", dtype="bfloat16").key != key


def test_a_run_without_labels_is_refused(run, tmp_path):
    (tmp_path / "config.json").write_text((run / "run" / "config.json").read_text("utf-8"),
                                          encoding="utf-8")
    with pytest.raises(InputError, match="has no search of 32 of 32 training questions"):
        paper.main(command(run, "table2", run=tmp_path))


def test_a_run_of_another_choice_has_every_label_all_the_same(run, tmp_path):
    """Its training tried no candidate paths; the Lab tries them if an experiment wants it."""
    train.main([*files(run), "--out", str(tmp_path), "--simulations", "8", "--seeds", "1",
                "--clusters", "2", "--choose", "shortest"])
    assert not (tmp_path / "paths.json").exists()
    here, other = lab_of(run, "table5", run=tmp_path), lab_of(run, "table5")
    assert here.labels() == here.labels("shortest") != here.labels("consensus")
    for name in ("consensus", "confident", "shortest"):
        assert here.labels(name) == other.labels(name)
    assert here.labels("safe") in (here.labels("consensus"), [(1, 1, 1)] * 32)
    assert here.fixed_paths == other.fixed_paths
    # the paper's own figures are to be had of it
    paper.main(command(run, "figure9", "table5", run=tmp_path))


# ---- parts ----

def test_search_statistics_by_hand():
    row = lambda default, length, correct: {"default_correct": default, "decisions": [1] * 4,
                                          "length": length, "correct": correct}
    found = tables.search_statistics("x", [row(True, 2, [1, 2]), row(True, 4, [1]),
                                                row(False, 5, [1]), row(False, 4, [])])
    assert found["saved, correct ones"] == 1.0 and found["with a shorter path %"] == 50.0
    assert found["corrected %"] == 50.0 and found["layers added, corrected"] == 1.0
    assert found["correct before %"] == 50.0 and found["correct after %"] == 75.0


@pytest.mark.parametrize("kind", [tables.LinearRouters, tables.DeepRouters])
def test_other_router_shapes_are_per_prompt_and_learn(kind):
    """Windows that are not in use, or another layer's weights, must not matter."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (96, 2), generator=rng)
    pooled = 0.1 * torch.randn(96, 2, 8, 6, generator=rng)
    pooled[..., :3] += torch.nn.functional.one_hot(labels, 3)[:, :, None]
    config = train.TrainConfig(epochs=30, width=16, learning_rate=1e-2)
    counts = torch.full((96,), 8)
    routers = train.fit_routers(pooled, counts, labels, 0, config, kind=kind)
    assert (routers(pooled, counts).argmax(-1) == labels).float().mean() > 0.95
    pooled[:, :, 3:] = 0
    half = torch.full((96,), 3)
    alone = torch.cat([routers(pooled[:, layer:layer + 1, :3], half, slice(layer, layer + 1))
                       for layer in (0, 1)], dim=1)
    assert torch.allclose(routers(pooled, half), alone, atol=1e-5)


def test_embedding_route_shows_every_layer_the_embeddings():
    model, seen = tiny_model(dtype=torch.float32), []
    routers = tables.Routers(3, 16).requires_grad_(False)
    execute = torch.tensor([[[0.0, 1.0, 0.0]]])    # the states change from layer to layer
    routers.forward = lambda pooled, counts, layers: seen.append(pooled) or execute
    generate(model, [[5, 6, 7]], tables.EmbeddingRoute(routers), 1)
    states = pool_windows(model.embed_tokens(torch.tensor([[5, 6, 7]])), torch.tensor([3]), 8)
    assert len(seen) == 3 and all(torch.equal(pooled[:, 0], states) for pooled in seen)


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 20))
def test_some_of_each_takes_as_many_of_every_task_in_order(tasks, limit):
    prompts = [Prompt(Question(str(n), task, 0, "q", "a"), (1,)) for n, task in enumerate(tasks)]
    taken = same_of_each_task(prompts, limit)
    assert taken == [p for p in prompts if p in taken]
    most = max(1, limit // max(1, len(set(tasks))))
    for task in set(tasks):
        assert [p for p in taken if p.question.task == task] == [
            p for p in prompts if p.question.task == task][:most]


def test_curves_have_their_points(everything):
    """Catches a curve whose name is not the beginning of its rows' names."""
    stored = read_json(everything / "figure1.json")["result"]
    assert all(stored["curves"].values()) and "fixed path" in stored["curves"]


def test_figures_are_written_by_their_kind():
    row = {"name": "x", "accuracy": 0.5, "gain": 0.012, "interval": [0.003, 0.021], "layers": 3.0,
           "n": 7, "95% interval": [0.25, 1.0], "p": 0.0001, "sd": None, "per layer": [1.0]}
    assert cells(row) == {"name": "x", "accuracy %": "50.0", "gain": "+1.2",
                          "interval": "[+0.3, +2.1]", "layers": "3.00", "n": "7",
                          "95% interval": "[25.0, 100.0]", "p": "0.0001", "sd %": ""}


def test_heat_by_hand():
    assert tables.heat([0.0, 0.34, 1.0, 1.5, 2.0]) == "▁▂▄▆█"


def test_pictures_are_left_out_in_one_line_without_matplotlib(monkeypatch, tmp_path, capsys):
    pictures.available.cache_clear()
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda name: None)
    for _ in range(2):
        pictures.draw("figure6", {"rows": [], "curves": {"a": [[1, 2]]}}, tmp_path / "x.png")
    assert capsys.readouterr().out.count("not installed") == 1 and not (tmp_path / "x.png").exists()
    pictures.available.cache_clear()
