"""extras/bench.py runs, measures what it says and needs no transformers; no figure is asserted."""
import json
import random
from pathlib import Path

import pytest
import torch

from extras import bench
from mcts import is_legal
from tiny import tiny_config

SMALL = ("--prompt 6 --new-tokens 3 --long 3 --questions 4 --question-tokens 5 --repeats 1 "
         "--slow-paths 3 --train-examples 16 --steps 2 --examples 16").split()


@pytest.fixture
def tiny_shape(monkeypatch):
    """The 1b shape replaced by a tiny one, and no transformers."""
    monkeypatch.setitem(bench.SHAPES, "1b", tiny_config(num_layers=8))
    monkeypatch.setattr(bench, "transformers", None)
    monkeypatch.setattr(bench, "read_bandwidth", lambda device: 1e9)


@pytest.mark.parametrize("section", bench.SECTIONS)
def test_every_section_writes_rows(section, tiny_shape, tmp_path, capsys):
    out = tmp_path / "bench.json"
    bench.main([section, "--shape", "1b", "--out", str(out), *SMALL])
    result = json.loads(out.read_text())
    assert list(result["sections"]) == [section] and result["sections"][section]
    assert result["command"].startswith(f"python -m extras.bench {section}")
    assert section in capsys.readouterr().out


def test_drafted_answers_are_the_plain_ones(tiny_shape):
    args = bench.parse_args(["draft", "--shape", "1b", *SMALL])
    rows = bench.draft(bench.Bench(args))
    assert all(row["same answers"] == "1/1" for row in rows)
    assert all(row["accepted"] == 1 for row in rows if row["what"] == "its own path")


@pytest.mark.parametrize("share, count", [(-0.5, 0), (-0.25, 0), (0.25, 2), (0.0, 2)])
def test_random_paths_are_legal_and_change_the_share_asked_for(share, count):
    config = tiny_config(num_layers=8)
    paths = [bench.random_path(config, share, random.Random(seed)) for seed in range(20)]
    assert all(is_legal(path) and path.count(count) == abs(share) * 8 for path in paths)


def test_agreeing_counts_the_tokens_before_the_first_difference():
    assert bench.agreeing([1, 2, 3], [1, 2, 4]) == 2 and bench.agreeing([1, 2], [1, 2]) == 2


def test_a_ratio_pairs_what_was_measured_side_by_side():
    assert bench.paired([2.0, 4.0, 9.0], [1.0, 2.0, 3.0]) == "2.000 [2.000, 3.000]"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts the peak")
def test_peak_memory_sees_what_is_freed_before_the_end():
    wanted = 200e6
    peak = bench.peak_memory(lambda: torch.ones(int(wanted) // 4).sum(), torch.device("cpu"))
    assert 0.9 * wanted < peak < 1.5 * wanted
