"""All tests, in two halves side by side: most machines have two cores.

Each half is a pytest of its own. What the first one prints is shown at once, what the second one
printed when both have ended; then the sum. Arguments are passed on to both.

    python tests/side_by_side.py
"""
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent
# They take as long as all other files together. The grader of the course runs two tests at once: at
# the end, so that it has both cores when the other half is done.
FIRST_HALF = ("test_label.py", "test_methods.py", "test_processes.py", "test_course.py")
PATIENCE = 10  # seconds that a half has to end itself after Ctrl-C, which it was told, too
COUNT = re.compile(r"(\d+) (passed|failed|skipped|errors?)\b")


def halves():
    """[files of one pytest, files of the other]."""
    files = sorted(TESTS.glob("test_*.py"))
    first = [TESTS / name for name in FIRST_HALF if (TESTS / name).exists()]
    return [half for half in (first, [file for file in files if file not in first]) if half]


def start(files, arguments, stdout):
    """A pytest of these files. It has one thread, since the other half has the other core."""
    color = "yes" if sys.stdout.isatty() else "no"
    command = [sys.executable, "-m", "pytest", "-q", f"--color={color}", *arguments]
    return subprocess.Popen([*command, *map(str, files)], cwd=TESTS.parent, stdout=stdout,
                            stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"})


def show(process):
    """Prints what a process prints, as it comes, and returns it."""
    printed = b""
    while text := process.stdout.read1():
        sys.stdout.buffer.write(text)
        sys.stdout.flush()
        printed += text
    return printed.decode(errors="replace")


def counts(printed):
    """{"passed": 12, ...} of the last line that a pytest printed."""
    last = re.sub(r"\x1b\[\d*(;\d+)*m", "", printed).rstrip().rpartition("\n")[2]
    return {kind: int(number) for number, kind in COUNT.findall(last)}


def main(arguments):
    """The exit code: that of the first half which fails, else 0."""
    shown, *behind = halves()
    with tempfile.TemporaryFile() as kept:
        running = [start(shown, arguments, subprocess.PIPE),
                   *(start(files, arguments, kept) for files in behind)]
        try:
            printed = [show(running[0])]
            codes = [half.wait() for half in running]
        except KeyboardInterrupt:
            for half in running:
                stop(half)
            return 130
        kept.seek(0)
        printed.append(kept.read().decode(errors="replace"))
    print(printed[1], end="")
    total = {}
    for text in printed:
        for kind, number in counts(text).items():
            total[kind] = total.get(kind, 0) + number
    print("both halves:", ", ".join(f"{number} {kind}" for kind, number in total.items()))
    return next((code for code in codes if code), 0)


def stop(half):
    """Waits for a half that is about to end, and ends it if it does not."""
    try:
        half.wait(PATIENCE)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        half.terminate()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
