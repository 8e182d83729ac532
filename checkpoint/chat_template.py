"""Somebody else's program, run in a process of its own that the system bounds in time and memory.

A chat template is a program that came with a model folder. It runs in jinja2's immutable sandbox,
which keeps it from files and from Python's classes but not from looping or growing, so this file
is started as a second process: it renders, it ends when its deadline or its memory does, and
the next template gets a new one.

    text, problem = render("Q: {{ x }}", {"x": 1})
"""
import contextlib
import functools
import json
import os
import resource
import signal
import subprocess
import sys
import threading

SECONDS, MEMORY, LARGEST = 2.0, 2 ** 29, 10 ** 6  # of work, bytes, characters: one rendering
FIXED_DATE = "26 Jul 2024"  # of the Llama 3 templates: labels made today must hold tomorrow
ALONE = threading.Lock()  # for one conversation at a time with the process that renders


def render(template, values):
    """(text, "") of a template, or ("", why not). values: {name: JSON value} for it to use."""
    with ALONE:
        child, answer = _child(os.getpid()), ""
        try:
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps([template, values, SECONDS]), file=child.stdin, flush=True)
                answer = child.stdout.readline()
        finally:
            if not answer:  # it died, or we stop here: its answer must not meet another question
                child.kill()
                child.wait()
                _child.cache_clear()
    return json.loads(answer or f'["", "ran over {SECONDS} s or out of memory"]')


@functools.lru_cache(maxsize=1)
def _child(parent):
    """The process that renders for this one; it ends when its input does, that is, with us."""
    return subprocess.Popen(
        [sys.executable, "-I", __file__, *sys.path], encoding="utf-8", start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def serve():
    """Renders for ever, as the other process: of a line [template, values, seconds] in JSON it
    makes a line [text, why not]. The system ends it after `seconds` of work on one line; waiting
    for a busy machine is no work."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def fail(message=""):
        raise TemplateError(message)
    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                            extensions=["jinja2.ext.loopcontrols"])
    sandbox.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent)
    sandbox.globals.update(raise_exception=fail, date_string=FIXED_DATE,
                           strftime_now=lambda form: FIXED_DATE)
    compiled = functools.lru_cache(maxsize=16)(sandbox.from_string)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        try:
            template, values, seconds = json.loads(line)
            signal.setitimer(signal.ITIMER_PROF, seconds)
            text, problem = compiled(template).render(values), ""
            if len(text) > LARGEST:
                text, problem = "", f"renders {len(text)} characters; the limit is {LARGEST}"
        except MemoryError:
            text, problem = "", f"takes over {MEMORY} bytes"
        except Exception as error:  # a stranger's program may fail in any way there is
            text, problem = "", f"{type(error).__name__}: {error}"[:500]
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps([text, problem]), flush=True)


if __name__ == "__main__":
    sys.path[:] = sys.argv[1:]
    serve()
