"""Test settings: Hypothesis profiles, one thread, and the optional folder of real inputs."""
import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "demo")]

settings.register_profile("quick", max_examples=25, deadline=None)
settings.register_profile("default", max_examples=60, deadline=None)
settings.register_profile("grade", max_examples=200, deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


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
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
