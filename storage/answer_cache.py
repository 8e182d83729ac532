"""Answers that a run has had already, so that the same command goes on where it was stopped.

They are kept by the questions, the path or routers, the model and this project's own code, since
a changed line may change any answer: a line of kept.jsonl in the run's folder as soon as they are
there.

    kept = Kept(Path("runs/demo/kept.jsonl"), model)
    answers = kept.answer(model, tokenizer, prompts, route)
"""
import functools
import hashlib
import json
from pathlib import Path

import torch

from drllm import RouterRoute
from label import content_hash, digest
from storage.files import parse_json, whole_lines, writing
from answers import Answers, answer, judge


def name_of(route):
    """What tells a route from all others, as plain values; None where this file cannot tell."""
    if route is None:
        return "the default path"
    if isinstance(route, torch.Tensor):
        return route.tolist()
    if isinstance(route, RouterRoute):
        weights = (w.float().cpu().numpy().tobytes() for w in route.routers.state_dict().values())
        return [hashlib.sha256(b"".join(weights)).hexdigest(), route.tilt, route.control,
                route.guard, route.forbidden.tolist()]


@functools.cache
def code():
    """Names the source files that answers come from."""
    root = Path(__file__).resolve().parents[1]
    return digest(*(file.read_text() for folder in (root, root / "questions", root / "checkpoint")
                    for file in sorted(folder.glob("*.py"))))


class Kept:
    """found: {key: values}, also those in the file, if there is one. of: further plain values that
    all keys depend on. A last line that a crash left unfinished is cut."""

    def __init__(self, file=None, model=None, *of):
        weight = model and model.embed_tokens.weight
        self.file, self.found = file, {}
        self.of = model and (code(), model.fingerprint(), str(weight.dtype),
                             weight.device.type, *of)
        for number, line in enumerate(whole_lines(file, mend=True) if file else (), 1):
            key, values = parse_json(line, f"{file}:{number}")
            self.found[key] = values

    def lists(self, about, make, skipped=lambda: None):
        """The lists that make() returns, or returned before, about these plain values. skipped: is
        called in place of make where they were there."""
        key = digest(self.of, *about)
        if key in self.found:
            skipped()
        else:
            self.found[key] = make()
            if self.file:
                with writing(self.file), open(self.file, "a", encoding="utf-8") as file:
                    file.write(json.dumps([key, self.found[key]]) + "\n")
        return self.found[key]

    def answers(self, about, make, skipped=lambda: None):
        """The Answers that make() returns, or returned before."""
        plain = lambda value: value.tolist() if isinstance(value, torch.Tensor) else value
        found = self.lists(about, lambda: {k: plain(v) for k, v in vars(make()).items()},
                           skipped)
        return Answers(**{k: v if k == "texts" else torch.tensor(v) for k, v in found.items()})

    def answer(self, model, tokenizer, prompts, route, batch_size=512, progress=None):
        """answers.answer, kept where the route has a name."""
        make = lambda: answer(model, tokenizer, prompts, route, batch_size, progress)
        about = ["answer", name := name_of(route), *map(content_hash, prompts)]
        skipped = lambda: progress and progress(len(prompts))
        return self.answers(about, make, skipped) if name else make()

    def judge(self, model, tokenizer, prompts, paths, batch_size=256, progress=None, known=None):
        """answers.judge, kept."""
        return tuple(map(torch.tensor, self.lists(
            ["judge", paths.tolist(), *map(content_hash, prompts)],
            lambda: [values.tolist() for values in
                     judge(model, tokenizer, prompts, paths, batch_size, progress, known)],
            lambda: progress and progress(len(prompts)))))
