"""A soak: label.py and train.py under kills, full disks, second writers and several processes.

A command is disturbed in random ways and started again until it finishes. Then its files must be
those of a run that nothing disturbed, byte for byte, and no other file may be beside them. It
takes as long as it is given, so pytest does not collect it:

    python -m tests.soak --minutes 10
"""
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import cli  # noqa: E402
from conftest import own_answers  # noqa: E402
from tiny import save_tiny, tiny_model, write_lines  # noqa: E402

KILLS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
LONGEST = 300  # seconds that a run may take, on a busy machine too


class Difference(Exception):
    """What the soak looks for, in a line."""


@dataclass
class Job:
    """A command, and what it does when nothing disturbs it."""
    command: list
    out: Path            # the file or folder that it locks
    processes: tuple     # how many there may be
    work: float = 1.0    # seconds from taking the lock to the end
    files: dict = field(default_factory=dict)

    def start(self, rank, size, port, more=()):
        """Process `rank` of `size`, as torchrun would start it; errors: its standard error."""
        group = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        extra = {"OMP_NUM_THREADS": "1", **{key: str(group[key]) for key in group if size > 1}}
        errors = tempfile.TemporaryFile("a+", encoding="utf-8")
        child = subprocess.Popen([sys.executable, *map(str, self.command), *more], stderr=errors,
                                 stdout=subprocess.DEVNULL, cwd=ROOT, env=os.environ | extra)
        child.errors, child.out = errors, self.out
        if rank:
            child.out = self.out.with_name(f"{self.out.stem}.part-{rank}{self.out.suffix}")
        return child


@contextlib.contextmanager
def running(job, size=1, more=(), ranks=None):
    """The processes of one run; those alive at the end of the block are ended."""
    children, port = [], random.randrange(20000, 32000)  # the system itself hands out later ones
    try:
        for rank in range(size) if ranks is None else ranks:
            children.append(job.start(rank, size, port, more))
        yield children
    finally:
        for child in children:
            child.kill()
            child.wait()
            child.errors.close()


def lines(child):
    child.errors.seek(0)
    return child.errors.read().splitlines()


def wait(children):
    """Exit codes, None for the living, once all have ended or one badly, when torchrun would end
    the others."""
    while None in (codes := [child.poll() for child in children]) and not any(codes):
        time.sleep(0.02)
    return [child.poll() for child in children]


def finish(children):
    """Waits for processes that have no reason to fail."""
    for child, code in zip(children, wait(children)):
        if code:
            raise Difference(f"exit code {code} though undisturbed: {lines(child)[-1:]}")


def at_work(child):
    """Whether the lock of what the process writes names it."""
    lock = child.out.with_name(f".{child.out.name}.lock")
    return lock.exists() and lock.read_text(encoding="utf-8") == str(child.pid)


def begin(child):
    """Waits until the process is at work or has ended; whether it lives."""
    while child.poll() is None and not at_work(child):
        time.sleep(0.01)
    return child.poll() is None


# ---- disturbances ----

def pause(job, children, rng):
    """Waits for a random moment, mostly of the work; whether the work had begun before."""
    begun = rng.random() < 0.8 and begin(rng.choice(children))
    time.sleep(rng.uniform(0, 1.1 * job.work / len(children)))
    return begun


def kill(job, children, rng, counts, disk):
    """Some of the processes are killed; the others live a little longer."""
    begun, how = pause(job, children, rng), rng.choice(KILLS)
    for child in rng.sample(children, rng.randint(1, len(children))):
        if child.poll() is None:
            child.send_signal(how)
            counts[how.name] += 1
    if len(children) > 1:
        return time.sleep(rng.random())
    code, = wait(children)
    quiet = code == 0 or "Traceback" not in "".join(lines(children[0]))
    if begun and how == signal.SIGINT and not (quiet and code in (0, 130, -how)):  # -2: at its exit
        raise Difference(f"Ctrl-C ends with exit code {code}: {lines(children[0])[-1:]}")


def fill(job, children, rng, counts, disk):
    """The disk fills up while they run; one of them says what it could not write."""
    pause(job, children, rng)
    state = os.statvfs(disk)
    blocks = max(1, state.f_bavail - rng.randrange(2))
    with open(disk / "ballast", "wb") as ballast:
        os.posix_fallocate(ballast.fileno(), 0, blocks * state.f_frsize)
    codes = wait(children)
    (disk / "ballast").unlink()
    if any(codes):
        last = [lines(child)[-1] for child, code in zip(children, codes) if code == 2]
        if not any(line.startswith(f"error: {disk}") and "No space left" in line for line in last):
            raise Difference(f"exit codes {codes} on a full disk: {last}")
        counts["full"] += 1


def intrude(job, children, rng, counts, disk):
    """The same command, with fewer questions, while one of them writes: it must be refused."""
    pause(job, children, rng)
    rank = rng.randrange(len(children))
    child = children[rank]
    if begin(child):
        os.kill(child.pid, signal.SIGSTOP)  # so that it cannot finish first
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if at_work(child):
            with running(job, len(children), ["--limit", "5"], [rank]) as (second,):
                wanted = f"error: {child.out}: process {child.pid} is at work on it"
                if wait([second]) != [2] or lines(second) != [wanted]:
                    raise Difference(f"a second writer: {second.returncode}, {lines(second)[-1:]}")
            counts["second"] += 1
        os.kill(child.pid, signal.SIGCONT)
    finish(children)


# ---- rounds ----

def contents(folder):
    """{name: bytes} of all files, without what a clock says."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    data = {str(file.relative_to(folder)): file.read_bytes() for file in files}
    return {name: {**json.loads(text), "seconds": None} if name.endswith("metrics.json") else text
            for name, text in data.items()}


def compare(made, wanted):
    """Difference if the files made are not those that are wanted."""
    for name in sorted({*made, *wanted}):
        if made.get(name) == wanted.get(name):
            continue
        how = "changed"
        if name not in wanted:
            how = "left over"
        elif name not in made:
            how = "missing"
        raise Difference(f"{name} is {how}, compared with an undisturbed run")


def clear(folder):
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def calm(job, disk):
    """Notes what the job leaves, and how long it works, when nothing disturbs it."""
    clear(disk)
    with running(job) as children:
        begin(children[0])
        began = time.monotonic()
        finish(children)
    job.work, job.files = time.monotonic() - began, contents(disk)
    return job


def play(job, rng, counts, disk, ways):
    """A round: the job, disturbed up to four times, then until it finishes; compares its files."""
    clear(disk)
    sizes = []
    for disturb in [*rng.choices(ways, k=rng.randint(1, 4)), None]:
        sizes.append(rng.choice(job.processes))
        signal.alarm(LONGEST)
        with running(job, sizes[-1]) as children:
            if disturb:
                disturb(job, children, rng, counts, disk)
            else:
                finish(children)
            if {child.returncode for child in children} == {0}:
                break
    compare(contents(disk), job.files)
    counts["rounds"] += 1
    counts["several"] += max(sizes) > 1


def jobs(base, disk, rng):
    """Labels, and a whole training, of a new random model and questions that it can answer."""
    number, seed, name = rng.randint(24, 48), rng.randrange(10 ** 6), rng.randrange(10 ** 6)
    model = save_tiny(base / "model", tiny_model(seed))
    rows = [row | {"id": f"{name}-{row['id']}"} for row in own_answers(model, number + 10, seed)]
    for file, some in (("q.jsonl", rows[:number]), ("t.jsonl", rows[number:])):
        write_lines(base / file, some)
    # one search at a time: float32 sums then do not depend on what is searched beside it
    same = ["--model", model, "--data", base / "q.jsonl", "--batch-size", 1, "--simulations",
            rng.randint(6, 16)]
    run, file = disk / "run", disk / "run" / "labels.jsonl"
    labels = calm(Job(["label.py", *same, "--out", file], file, (1, 1, 2, 3)), disk)
    training = calm(Job(["train.py", *same, "--out", run, "--test", base / "t.jsonl", "--seeds", 2,
                         "--clusters", 2], run, (1,)), disk)
    compare({name: training.files.get(name) for name in labels.files}, labels.files)
    return labels, training


def soak(minutes, rng, counts, base):
    """Plays rounds until the time is up, on a small disk where one can be mounted."""
    until, disk, ways = time.monotonic() + 60 * minutes, base / "disk", (kill, kill, intrude)
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk]
    mounted = not os.geteuid() and not subprocess.run(mount, stderr=subprocess.DEVNULL).returncode
    if not mounted:
        print("no small disk can be mounted here (that takes root), so no disk will be full")
    try:
        while time.monotonic() < until:
            labels, training = jobs(base, disk, rng)
            for job in (labels, training, labels):
                if time.monotonic() < until:
                    play(job, rng, counts, disk, ways + (fill,) * mounted)
    except Difference as error:
        kept = shutil.copytree(disk, tempfile.mkdtemp(prefix="soak-"), dirs_exist_ok=True)
        sys.exit(f"soak: round {counts['rounds'] + 1}: {error}; the files are kept in {kept}")
    finally:
        if mounted:
            subprocess.run(["umount", disk], check=True)


def too_long(*_):
    raise Difference(f"a run took more than {LONGEST} s")


def main(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_argument("--minutes", type=cli.number(0, 10 ** 4), default=10.0,
                        help="no round begins after so many")
    parser.add_argument("--seed", type=cli.count, default=1, help="of all but the clock")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it, and so
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))   # would the children; they end first
    signal.signal(signal.SIGALRM, too_long)
    counts = Counter()
    with tempfile.TemporaryDirectory() as base:
        soak(args.minutes, random.Random(args.seed), counts, Path(base))
    print(f"soak: {args.minutes:g} min, {counts['rounds']} rounds, "
          f"{sum(counts[how.name] for how in KILLS)} kills "
          f"({', '.join(f'{how.name} {counts[how.name]}' for how in KILLS)}), {counts['full']} "
          f"full disks, {counts['second']} second writers refused, {counts['several']} rounds of 2 "
          "or 3 processes: all files as undisturbed, no stray file")


if __name__ == "__main__":
    cli.run(main)
