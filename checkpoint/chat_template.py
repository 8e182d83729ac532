"""Renders a chat template in a separate process, whose time and memory the system limits.

A chat template is an unknown program that comes with a model folder. It runs in jinja2's
immutable sandbox, which keeps it from files and from Python's classes but not from looping or
growing. So this file is started as a second process: it renders, it ends when its deadline or its
memory does, and the next template gets a new one.

    text, problem = render("Q: {{ x }}", {"x": 1})

What a template can use is what transformers gives it, and nothing else:
- values, which tokenizer.py collects: `messages`, without what is None in them,
  `add_generation_prompt`, `tools` and `documents` (always None here), and the folder's special
  tokens by name;
- functions: `raise_exception`, `strftime_now`, the filter `tojson`, and jinja2's own;
- statements: `{% break %}`, `{% continue %}`, and `{% generation %}`, which marks what a model has
  written and prints its contents.
Two things differ on purpose. `strftime_now` always knows the same day, that of the Llama 3
templates, so that labels made today still fit the prompts of tomorrow. And `enable_thinking` is
false, so that Qwen3 answers without a chain of thought, which nobody would grade.
"""
import contextlib
import datetime
import functools
import json
import os
import resource
import signal
import subprocess
import sys
import threading

SECONDS = 2.0  # of work for one rendering
MEMORY = 2 ** 29  # bytes
LARGEST = 10 ** 6  # characters of a rendered prompt
FIXED_DAY = datetime.datetime(2024, 7, 26)
FIXED_DATE = FIXED_DAY.strftime("%d %b %Y")  # as the Llama 3 templates print it
ALONE = threading.Lock()  # for one conversation at a time with the process that renders


def render(template, values):
    """(text, "") of a template, or ("", why not). values: {name: JSON value} for it to use."""
    answer = ""
    with ALONE:
        child = _child(os.getpid())
        try:
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps([template, values, SECONDS]), file=child.stdin, flush=True)
                answer = child.stdout.readline()
        finally:
            if not answer:  # it died, or we stop here: its answer must not meet another question
                child.kill()
                child.wait()
                _child.cache_clear()
    if not answer:
        return "", f"ran over {SECONDS} s or out of memory"
    return json.loads(answer)


@functools.lru_cache(maxsize=1)
def _child(parent):
    """The process that renders for this one; it ends when its input does, that is, with us."""
    return subprocess.Popen(
        [sys.executable, "-I", __file__, *sys.path], encoding="utf-8", start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


# ---- in the other process ----

def make_sandbox():
    """The jinja2 environment with the functions and statements that templates expect."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.Scope(body, lineno=line)  # what is set inside stays inside

    def raise_exception(message):
        raise TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)  # jinja2's own writes < and & as in HTML

    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
    sandbox.filters["tojson"] = tojson
    sandbox.globals["raise_exception"] = raise_exception
    sandbox.globals["strftime_now"] = FIXED_DAY.strftime
    return sandbox


def serve():
    """Renders until its input ends: a line [template, values, seconds] in JSON gives a line
    [text, why not]. The system ends the process after `seconds` of work on one line; waiting for a
    busy machine is no work."""
    sandbox = make_sandbox()
    compiled = functools.lru_cache(maxsize=16)(sandbox.from_string)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        text, problem = "", ""
        try:
            template, values, seconds = json.loads(line)
            signal.setitimer(signal.ITIMER_PROF, seconds)
            text = compiled(template).render(values)
            if len(text) > LARGEST:
                problem = f"renders {len(text)} characters; the limit is {LARGEST}"
        except MemoryError:
            problem = f"takes over {MEMORY} bytes"
        except Exception as error:  # a stranger's program may fail in any way there is
            problem = f"{type(error).__name__}: {error}"[:500]
        signal.setitimer(signal.ITIMER_PROF, 0)
        if problem:
            text = ""
        print(json.dumps([text, problem]), flush=True)


if __name__ == "__main__":
    sys.path[:] = sys.argv[1:]
    serve()
