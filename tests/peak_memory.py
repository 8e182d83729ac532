"""How much memory loading takes, as a multiple of the weights, at the shape of a config.json.

Random bfloat16 weights of that shape are written to a temporary folder and loaded by a fresh
process; its peak resident memory, less what it held before loading, is set against the weights.

    python tests/peak_memory.py path/to/Qwen2.5-0.5B-Instruct bfloat16
"""
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from cli import DTYPES  # noqa: E402
from checkpoint.config import read_config  # noqa: E402
from model_llama import Llama, load_model  # noqa: E402


def random_folder(source, folder):
    """A folder with the config of another and random bfloat16 weights."""
    shutil.copy(Path(source) / "config.json", folder)
    with torch.device("meta"):
        model = Llama(read_config(source)).bfloat16()
    model.to_empty(device="cpu")
    if model.config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    for parameter in model.parameters():
        parameter.data.uniform_(-0.05, 0.05)
    save_file(model.named_weights(), folder / "model.safetensors")


def resident(peak=False):
    """Memory of this process, bytes, now or at its highest (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(re.search(rf"Vm{'HWM' if peak else 'RSS'}:\s+(\d+)", status)[1])


def measure(folder, dtype):
    """Prints weights and peak, both in bytes."""
    before = resident()
    model = load_model(folder, dtype=DTYPES[dtype])
    weights = {p.data_ptr(): p.numel() * p.element_size() for p in model.parameters()}
    print(json.dumps([sum(weights.values()), resident(peak=True) - before]))


def main(source, dtype):
    with tempfile.TemporaryDirectory() as name:
        random_folder(source, Path(name))
        made = subprocess.run([sys.executable, __file__, "--load", name, dtype],
                              stdout=subprocess.PIPE, encoding="utf-8", check=True)
    weights, peak = json.loads(made.stdout)
    print(f"{dtype}: weights {weights / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB, "
          f"{peak / weights:.2f} times")


if __name__ == "__main__":
    measure(*sys.argv[2:]) if sys.argv[1] == "--load" else main(*sys.argv[1:])
