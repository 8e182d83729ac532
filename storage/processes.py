"""The processes that torchrun started: which of them this is, and how they share work.

    process()                       # (number of this process, how many there are)
    shared_map(len, ["ab", "c"])    # [2, 1]: each process makes some of it, and all get all
"""
import contextlib
import glob
import os
from datetime import timedelta

import torch

from storage.files import InputError


def process():
    """(number of this process, how many there are) under torchrun; (0, 1) alone."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def is_first():
    """True for the process that prints, and that writes what all of them found."""
    return process()[0] == 0


@contextlib.contextmanager
def connected():
    """What is done together with the other processes. They may be far apart in their work; one that
    ended ends all."""
    try:
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))
        yield
    except RuntimeError as error:
        raise InputError("another process ended, and so does this one; the same command again goes "
                         "on where it stopped") from error


def wait():
    """Returns when all processes have come here."""
    if process()[1] > 1:
        with connected():
            torch.distributed.barrier()


def shared_map(make, items, progress=None):
    """[make(item) for item in items], where each item is made by one process. All processes must
    come here with the same items, and all get all results. progress: called after each item."""
    (rank, world), items = process(), list(items)
    mine = []
    for item in items[rank::world]:
        mine.append(make(item))
        if progress:
            progress()
    if world == 1:
        return mine
    parts = [None] * world
    with connected():
        torch.distributed.all_gather_object(parts, mine)
    return [parts[n % world][n // world] for n in range(len(items))]


# ---- a file to which several processes append: each has a part of its own ----

def own_part(file):
    """The file that this process may append to: the file itself, or its part under torchrun."""
    rank, world = process()
    return file if world == 1 else file.with_name(f"{file.stem}.part-{rank}{file.suffix}")


def part_files(file, form="{}"):
    """What several processes wrote of a file, one part each; ".{}.lock": the locks of the parts."""
    names = f"{glob.escape(file.stem)}.part-*{glob.escape(file.suffix)}"
    return sorted(file.parent.glob(form.format(names)))
