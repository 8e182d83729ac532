"""Plants the mistakes of course/mutants/ in your tree, one by one: do your property tests notice?

    python course/try_mutants.py 2      # those of part 2

They stand in code that is not yours to write. The mistakes you are graded by are others.
"""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10, where pytest brings the same reader along
    import tomli as tomllib

COURSE = Path(__file__).resolve().parent
ROOT = COURSE.parent
sys.path.insert(0, str(ROOT))

import cli  # noqa: E402 - it lies one folder up
from storage.files import InputError  # noqa: E402


@dataclass(frozen=True)
class Mutant:
    """A planted mistake: in file, the text old, which stands there once, becomes new."""
    name: str
    part: str
    mistake: str
    file: str
    old: str
    new: str

    def apply(self, source):
        if source.count(self.old) != 1:
            raise InputError(f"course/mutants/{self.name}.toml: its old text stands "
                             f"{source.count(self.old)} times in {self.file}, wanted 1")
        return source.replace(self.old, self.new)


def read_mutants(texts=None):
    """All mutants, by name. The part they belong to is the first word of their file's name.
    texts: {path: text} to read instead of the files."""
    files = {file.stem: file.read_text("utf-8") for file in (COURSE / "mutants").glob("*.toml")}
    if texts is not None:
        files = {Path(path).stem: text for path, text in texts.items()
                 if path.startswith("course/mutants/")}
    return [Mutant(name, name.split("-")[0], **tomllib.loads(text))
            for name, text in sorted(files.items())]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", help="of the course, e.g. 2")
    part = parser.parse_args(argv).part
    mutants = [m for m in read_mutants() if m.part == part]
    file = f"tests/test_properties_{part}.py"
    if not mutants:
        raise InputError(f"course/mutants: no mistake of part {part}")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "runs", "__pycache__"))
        noticed = 0
        for mutant in (None, *mutants):
            if mutant:
                correct = (ROOT / mutant.file).read_text(encoding="utf-8")
                (tree / mutant.file).write_text(mutant.apply(correct), encoding="utf-8")
            done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
                                   file], cwd=tree, capture_output=True, encoding="utf-8",
                                  env={**os.environ, "HYPOTHESIS_PROFILE": "grade"})
            failed = done.returncode != 0
            if not mutant:
                if failed:
                    last_line = done.stdout.rstrip().rpartition("\n")[2]
                    raise InputError(f"{file}: before anything is planted: {last_line}; "
                                     f"HYPOTHESIS_PROFILE=grade python -m pytest {file} shows more")
                continue
            noticed += failed
            print(f"{'noticed' if failed else 'ALIVE  '}  {mutant.name}: {mutant.mistake}")
            (tree / mutant.file).write_text(correct, encoding="utf-8")
    print(f"{noticed} of {len(mutants)} noticed. You are graded by others: go through the list of "
          "places in the handout, one mistake each.")


if __name__ == "__main__":
    cli.run(main)
