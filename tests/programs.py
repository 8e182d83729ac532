"""Runs the project's programs in processes of their own, without importing torch each time.

A server process imports torch once. Every program is a child that the server forks, which takes
milliseconds in place of seconds. The child imports the project itself, anew. It has its own
process number, environment, folder, standard streams and exit code.

What only the start or the end of Python shows needs a real `python` (subprocess): warnings on
import, and errors as it exits.
"""
import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "torch.optim", "torch.distributed", "torch._dynamo",
                              "tokenizers", "safetensors.torch", "numpy.random", "sympy", "tqdm",
                              "jinja2.sandbox", "pytest", "hypothesis"])
INSTALLED = (sys.prefix, sys.base_prefix)


def run_in_child(arguments, folder, environment, streams):
    """What the child does: `python *arguments`. streams: the files of standard input, output and
    error."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate(streams):
        os.dup2(os.open(file, os.O_RDWR | os.O_APPEND), number)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = open(number, "w" if number else "r", encoding="utf-8", closefd=False)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    packages = [path for path in sys.path if path.startswith(INSTALLED)]
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    name, *rest = arguments
    if name == "-m":
        sys.path, sys.argv = [str(folder), *packages], rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif name == "-c":
        sys.path, sys.argv = [str(folder), *packages], ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path, sys.argv = [str((Path(folder) / name).parent), *packages], arguments
        runpy.run_path(name, run_name="__main__")


class Program:
    """A program that runs: `python *arguments` in a folder. more: of the environment."""

    def __init__(self, *arguments, folder=ROOT, given=b"", **more):
        self.place = tempfile.TemporaryDirectory()
        self.streams = [Path(self.place.name) / name for name in ("in", "out", "error")]
        for file, content in zip(self.streams, (given, b"", b"")):
            file.write_bytes(content)
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | more
        self.process = FORKS.Process(target=run_in_child, args=(
            [*map(str, arguments)], str(folder), dict(environment), [*map(str, self.streams)]))
        self.process.start()
        self.pid, self.kill = self.process.pid, self.process.kill

    @property
    def stdout(self):
        """What it has printed so far."""
        return self.streams[1].read_text(encoding="utf-8")

    @property
    def stderr(self):
        return self.streams[2].read_text(encoding="utf-8")

    @property
    def returncode(self):
        """None while it runs."""
        return self.process.exitcode

    def wait_for(self, text, timeout=60):
        """Returns when it has printed the text."""
        end = time.monotonic() + timeout
        while text not in self.stdout:
            assert self.returncode is None and time.monotonic() < end, self.stderr[-3000:]
            time.sleep(0.01)

    def wait(self, timeout=300):
        """Waits for its end; returns it."""
        self.process.join(timeout)
        assert self.returncode is not None, f"no end after {timeout} s: {self.stderr[-3000:]}"
        return self


def run_program(*arguments, **how):
    """A program that has ended."""
    return Program(*arguments, **how).wait()


def run_distributed(size, *arguments):
    """A program in so many processes that work together, as torchrun starts them; all have ended.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = [Program(*arguments, **environment_of(rank, size, port)) for rank in range(size)]
    return [program.wait() for program in running]


def environment_of(rank, size, port):
    """What torchrun tells a process, as far as the project reads it."""
    return {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
