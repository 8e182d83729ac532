"""A routed model in the lm-evaluation-harness, so that numbers come from its own evaluator.

A prompt is routed once, from its context alone; the choices of a question share one pass with it.
The decisions, counted per task, are in the results' config under "drllm" and on the command's last
lines.

Without routers the scores are those of the harness's `hf`, with these differences: log-softmax in
float32; chat templates with a fixed date, without thinking; greedy generation, which only special
tokens end early (other stop strings are cut off afterwards). A rolling window is routed by the
tokens before the first one that is scored, mostly one. Left out: finding a batch size, several
processes.

    python -m tools.lm_eval_drllm --model drllm --tasks arc_easy --batch_size 32 \\
        --model_args model=demo/model,routers=runs/demo/routers.safetensors
"""
import inspect
import sys
from functools import wraps
from importlib.util import find_spec
from pathlib import Path

import torch

import cli
from answers import Prompt, option_scores
from cli import DTYPES
from drllm import RouterRoute, Routers
from model_llama import generate, load_model, load_tokenizer
from paths import DECISIONS
from storage.files import InputError

if __name__ == "__main__":
    if find_spec("lm_eval") is None:
        cli.leave("error: the lm-evaluation-harness is missing: pip install lm-eval")
    # some tasks import the package `evaluate`: it must be found before our evaluate.py
    sys.path.sort(key=lambda entry: Path(entry).resolve() == Path(cli.__file__).parent)

from lm_eval.api.model import TemplateLM  # noqa: E402
from lm_eval.api.registry import register_model  # noqa: E402
from lm_eval.models import utils as requested  # noqa: E402
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # noqa: E402
from tqdm import tqdm  # noqa: E402

# B contexts   L layers

GREEDY = {"until", "do_sample", "temperature", "top_p", "top_k", "min_p", "max_gen_toks"}


def score(model, contexts, continuations, route=None):
    """(answers, decisions (B, L)): answers[b][k] is (log-probability, is greedy) of context b's
    k-th continuation. A context and its continuations are one sequence (answers.py)."""
    prompts = []
    for ids, options in zip(contexts, continuations):
        prompts.append(Prompt(None, tuple(ids), options=tuple(map(tuple, options)),
                              scored=tuple(map(len, options))))
    return option_scores(model, prompts, route)


def kind_of(request):
    """(task, generation settings) of a request: what those that are answered together share."""
    settings = str(request.args[1]) if request.request_type == "generate_until" else None
    return request.task_name, settings


def by_kind(method):
    """The method, called with requests of one kind at a time: generation needs one limit, and the
    counts of decisions are per task."""
    @wraps(method)
    def each(self, requests, disable_tqdm=False):
        numbers_of = {}
        for n, request in enumerate(requests):
            numbers_of.setdefault(kind_of(request), []).append(n)
        answers = [None] * len(requests)
        for (task, _), numbers in numbers_of.items():
            self.task = task
            of_kind = method(self, [requests[n] for n in numbers])
            for n, answer in zip(numbers, of_kind):
                answers[n] = answer
        return answers
    return each


@register_model("drllm")
class DrLLM(TemplateLM):
    """A folder's model with the routers of a file, or without; the arguments are model_args."""
    latest = None  # the instance made last, for the command's last lines
    max_gen_toks = 256  # the harness's own default
    tokenizer_name = eot_token_id = prefix_token_id = None  # properties of the base class

    def __init__(self, model, routers=None, control=-0.5, depth_bias=0.0, guard=True, device="cpu",
                 dtype=None, batch_size=1, max_batch_size=32, max_length=None):
        super().__init__()
        if dtype not in (None, "auto", *DTYPES) or not -1 <= float(control) <= 1:
            raise InputError(f"dtype {dtype}, control {control}: dtype is one of "
                             f"{', '.join(DTYPES)}, control is in [-1, 1]")
        if not torch.cuda.is_available() and str(device).startswith("cuda"):
            device = "cpu"  # the harness asks for cuda:0 wherever it runs
        self.model = load_model(model, device, DTYPES.get(dtype))
        self.route = None
        if routers:
            self.route = RouterRoute(Routers.load(routers, self.model), float(depth_bias),
                                     float(control), guard)
        self.tokenizer = load_tokenizer(model)
        self.tokenizer_name = str(model)
        special, context = self.tokenizer.special, self.model.config.max_positions
        texts = [special[name] for name in ("bos_token", "eos_token") if name in special]
        self.max_length = int(max_length or context)
        if not texts or not 0 < self.max_length <= context:
            raise InputError(f"{model}: no BOS and no EOS token, or max_length {self.max_length} "
                             f"exceeds the context, {context}")
        self.prefix, self.end = texts[0], texts[-1]
        self.prefix_token_id, self.eot_token_id = map(self.tokenizer.fast.token_to_id,
                                                      (self.prefix, self.end))
        automatic = str(batch_size).startswith("auto")  # the command gives a string
        self.batch_size = int(max_batch_size if automatic else batch_size)
        self.task = None  # of the requests that are being answered
        self.counts = {}  # {task: (3,) how often each decision was made}
        DrLLM.latest = self

    @classmethod
    def create_from_arg_obj(cls, arg_dict, additional_config=None):
        """From model_args and the command's flags; where both name an option, model_args win."""
        flags = {key: value for key, value in (additional_config or {}).items()
                 if value is not None}
        try:
            options = inspect.signature(cls).bind(**flags | arg_dict).arguments
        except TypeError as error:
            raise InputError(f"model_args: {error}; known: {inspect.signature(cls)}") from error
        return cls(**options)

    def tok_encode(self, string, add_special_tokens=None, **_):
        if add_special_tokens is None:  # a rendered chat template prints BOS itself
            add_special_tokens = not string.startswith(self.prefix)
        return self.tokenizer.encode(string, add_special_tokens)

    def chat_template(self, chat_template=False):
        return self.tokenizer.template if chat_template else None

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        """The text of a conversation; it waits for an answer, or ends inside its last message."""
        text = self.tokenizer.render(chat_history, add_generation_prompt)
        last = chat_history[-1]["content"].strip()
        return text if add_generation_prompt else text[:text.rindex(last) + len(last)]

    def ask(self, numbers_of, reply):
        """Answers in the order of requests. numbers_of: {context ids: request numbers};
        reply(contexts) gives the answers to every context's requests, and the decisions (B, L)."""
        answers = {}  # by request number
        order = sorted(numbers_of, key=len, reverse=True)
        for start in tqdm(range(0, len(order), self.batch_size), desc=str(self.task)):
            contexts = order[start:start + self.batch_size]
            replies, decisions = reply(contexts)
            counts = torch.bincount(decisions.flatten().cpu(), minlength=len(DECISIONS))
            self.counts[self.task] = self.counts.get(self.task, 0) + counts
            for ids, of_context in zip(contexts, replies):
                answers |= zip(numbers_of[ids], of_context)
        return [answers[n] for n in sorted(answers)]

    loglikelihood = by_kind(TemplateLM.loglikelihood)

    def _loglikelihood_tokens(self, requests, **_):
        """[(log-probability, is greedy)] of (texts, context ids, continuation ids)."""
        numbers_of = {}
        for n, (_, context, continuation) in enumerate(requests):
            most = self.max_length + 1 - len(continuation)  # the last token need not run
            if not continuation or most < 1:
                raise InputError(f"a continuation of {len(continuation)} tokens; the model can "
                                 f"score 1..{self.max_length}")
            ids = tuple(context[-most:]) or (self.prefix_token_id,)
            numbers_of.setdefault(ids, []).append(n)

        def reply(contexts):
            continuations = [[requests[n][2] for n in numbers_of[ids]] for ids in contexts]
            return score(self.model, contexts, continuations, self.route)
        return self.ask(numbers_of, reply)

    @by_kind
    def loglikelihood_rolling(self, requests):
        """[log-probability of the whole string], over windows of max_length tokens."""
        windows_of = [self.rolling_windows(request.args[0]) for request in requests]
        scores = iter(self._loglikelihood_tokens(sum(windows_of, [])))
        return [sum(next(scores)[0] for _ in windows) for windows in windows_of]

    def rolling_windows(self, string):
        """[(None, context ids, ids to score)] of a string, whose tokens are scored once each."""
        pairs = get_rolling_token_windows(self.tok_encode(string), self.prefix_token_id,
                                          self.max_length, 1)
        return [(None, *make_disjoint_window(pair)) for pair in pairs]

    @by_kind
    def generate_until(self, requests):
        """[greedy text up to the first stop string]."""
        settings = requested.normalize_gen_kwargs(requests[0].args[1], self.max_gen_toks)
        limit, unknown = settings["max_gen_toks"], sorted(set(settings) - GREEDY)
        if unknown or settings["do_sample"] or not 0 < limit < self.max_length:
            raise InputError(f"{settings}: generation is greedy, without {unknown or 'sampling'}, "
                             f"and shorter than max_length, {self.max_length}")
        until = requested.handle_stop_sequences(settings["until"], self.end)
        numbers_of = {}
        for n, request in enumerate(requests):
            ids = tuple(self.tok_encode(request.args[0])[limit - self.max_length:])
            numbers_of.setdefault(ids or (self.prefix_token_id,), []).append(n)

        def reply(contexts):
            texts, decisions = self.write(contexts, limit, until)
            return [[text] * len(numbers_of[ids])
                    for ids, text in zip(contexts, texts)], decisions
        return self.ask(numbers_of, reply)

    def write(self, contexts, limit, until):
        """(greedy text after each context, decisions (B, L)). Texts end before a string of
        until."""
        stop_ids = set(self.tokenizer.stop_ids)
        for i, token in self.tokenizer.fast.get_added_tokens_decoder().items():
            if token.content in until:
                stop_ids.add(i)
        made = generate(self.model, contexts, self.route, limit, stop_ids)
        texts = [requested.postprocess_generated_text(self.tokenizer.decode(ids), until, None)
                 for ids in made.tokens]
        return texts, made.decisions

    def stats(self):
        """Per task since the start: prompts routed, mean layers per pass, shares of decisions."""
        layers, stats = self.model.config.num_layers, {}
        for task, counts in self.counts.items():
            skip, execute, repeat = (counts.double() / counts.sum()).tolist()
            stats[task] = {"prompts": counts.sum().item() // layers, "skip": skip,
                           "execute": execute, "repeat": repeat, "of_layers": layers,
                           "layers": layers * (execute + 2 * repeat)}
        return stats

    def get_model_info(self):
        """What the harness adds to the config in its results, and to the file it saves."""
        return {"drllm": self.stats()}


def main():
    from lm_eval.__main__ import cli_evaluate
    cli_evaluate()
    if DrLLM.latest is None:
        return
    for task, figures in DrLLM.latest.stats().items():
        print("drllm {}: {prompts} prompts, {layers:.2f} of {of_layers} layers, skip {skip:.3f}, "
              "execute {execute:.3f}, repeat {repeat:.3f}".format(task, **figures))


if __name__ == "__main__":
    cli.run(main)
