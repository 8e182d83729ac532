"""tools/bench.py runs, measures what it says and needs no transformers; no figure is asserted."""
import json
import random
from pathlib import Path

import pytest
import torch

from tools import bench
from mcts import is_legal
from tiny import tiny_config

SMALL = "--prompt 6 --new-tokens 3 --long 3 --questions 4 --repeats 1".split()


@pytest.fixture
def tiny_shape(monkeypatch):
    """The 3b shape replaced by a tiny one, less to do, and no transformers."""
    monkeypatch.setitem(bench.SHAPES, "3b", tiny_config(num_layers=8))
    monkeypatch.setattr(bench, "transformers", None)
    monkeypatch.setattr(bench, "read_bandwidth", lambda device: 1e9)
    for name, value in (("SLOW_PATHS", 3), ("QUESTION_TOKENS", 5), ("TRAINED", 16), ("STEPS", 2)):
        monkeypatch.setattr(bench, name, value)


@pytest.mark.parametrize("section", bench.SECTIONS)
def test_every_section_writes_rows(section, tiny_shape, tmp_path, capsys):
    out = tmp_path / "bench.json"
    bench.main([section, "--shape", "3b", "--out", str(out), *SMALL])
    result = json.loads(out.read_text(encoding="utf-8"))
    assert list(result["sections"]) == [section] and result["sections"][section]
    assert result["command"].startswith(f"python -m tools.bench {section}")
    assert section in capsys.readouterr().out


def test_answers_are_judged_as_they_are_when_generated(tiny_shape):
    """Catches a fast side that does another job than the slow one."""
    rows = bench.judging(bench.Bench(bench.parse_args(["judge", "--shape", "3b", *SMALL])))
    assert [row["same grades"] for row in rows] == ["4/4", "4/4"]


def test_sides_are_timed_in_turn_and_the_warm_up_is_left_out(monkeypatch):
    """Catches A A B B, where a machine that slows down looks like a difference."""
    ran = []
    monkeypatch.setattr(bench, "seconds", lambda run, device: run())
    sides = {"a": lambda: ran.append("a") or len(ran), "b": lambda: ran.append("b") or len(ran)}
    times = bench.interleaved(sides, 2, torch.device("cpu"), "test")
    assert "".join(ran) == "ababab" and times == {"a": [3, 5], "b": [4, 6]}


@pytest.mark.parametrize("share, count", [(-0.5, 0), (-0.25, 0), (0.25, 2), (0.0, 2)])
def test_random_paths_are_legal_and_change_the_share_asked_for(share, count):
    paths = [bench.random_path(8, share, random.Random(seed)) for seed in range(20)]
    assert all(is_legal(path) and path.count(count) == abs(share) * 8 for path in paths)


def test_agreeing_counts_the_tokens_before_the_first_difference():
    assert bench.agreeing([1, 2, 3], [1, 2, 4]) == 2 and bench.agreeing([1, 2], [1, 2]) == 2


def test_a_ratio_pairs_what_was_measured_side_by_side():
    assert bench.paired([2.0, 4.0, 9.0], [1.0, 2.0, 3.0]) == "2.000 [2.000, 3.000]"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts the peak")
def test_peak_memory_sees_what_is_freed_before_the_end():
    peak = bench.peak_memory(lambda: torch.ones(50_000_000).sum(), torch.device("cpu"))
    assert 180 < peak < 300  # megabytes: fifty million numbers of four bytes are 200
