"""tools/bench.py measures what it says; no figure is asserted."""
import torch

from answers import answer
from conftest import own_answers
from model_llama import Linear
from storage.files import read_json
from tiny import save_tiny, tiny_model, write_lines
from tools import bench


def test_every_side_has_a_row(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "SLOW_PATHS", 3)
    folder = save_tiny(tmp_path / "model", tiny_model(dtype=torch.float32))
    questions, out = tmp_path / "q.jsonl", tmp_path / "bench.json"
    write_lines(questions, own_answers(folder, 4))
    bench.main(["--model", str(folder), "--data", str(questions), "--out", str(out),
                "--questions", "4", "--repeats", "1", "--together", "1", "4", "9"])
    result = read_json(out)
    sides = [bench.SLOW, "1 together", "1 together, products alone",
             "4 together", "4 together, products alone"]
    assert [row["searches"] for row in result["rows"]] == sides
    assert [bool(row["of its products"]) for row in result["rows"]] == [0, 1, 0, 1, 0]
    assert result["command"].startswith("python -m tools.bench --model")
    assert sides[-1] in capsys.readouterr().out


def test_the_slow_side_writes_the_same_answers(tiny_questions):
    """Catches a slow side that does another job than the fast one."""
    model, tokenizer, prompts = tiny_questions
    texts = answer(model, tokenizer, prompts, None).texts
    ends = tuple(tokenizer.stop_ids)
    for prompt, text in zip(prompts, texts):
        ids = bench.answer_without_cache(model, prompt, (1, 1, 1), ends)
        assert tokenizer.decode([i for i in ids if i not in ends]) == text


def test_the_products_alone_are_those_of_the_run(tiny_questions):
    """Catches products left out or of other sizes, and hooks that stay on the model."""
    model, tokenizer, prompts = tiny_questions
    sizes = []

    def note(layer, inputs):
        sizes.append((layer.in_features, layer.out_features, inputs[0].numel()))

    def run():
        answer(model, tokenizer, prompts, None)

    products = bench.matrix_products(model, run)
    layers = [layer for layer in model.modules() if isinstance(layer, Linear)]
    assert not any(layer._forward_pre_hooks for layer in layers)
    for layer in layers:
        layer.register_forward_pre_hook(note)
    run()
    wanted = sizes.copy()
    sizes.clear()
    products()
    assert sizes == wanted


def test_sides_are_timed_in_turn_and_the_warm_up_is_left_out(monkeypatch):
    """Catches A A B B, where a machine that slows down looks like a difference."""
    ran = []
    monkeypatch.setattr(bench, "seconds", lambda run, device: run())
    sides = {"a": lambda: ran.append("a") or len(ran), "b": lambda: ran.append("b") or len(ran)}
    times = bench.interleaved(sides, 2, torch.device("cpu"))
    assert "".join(ran) == "ababab" and times == {"a": [3, 5], "b": [4, 6]}


def test_a_ratio_pairs_what_was_measured_side_by_side():
    assert bench.paired([2.0, 4.0, 9.0], [1.0, 2.0, 3.0]) == "2.000 [2.000, 3.000]"
