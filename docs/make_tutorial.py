"""Puts the code, the table of `make` and the figures into the tutorial, and makes its notebook.

    .venv/bin/python docs/make_tutorial.py

docs/tutorial.md is written by hand, but for what is between <!-- code: FILE.FUNCTION --> and
<!-- /code -->, which is the source of these functions, and between <!-- table --> and
<!-- /table -->. Nothing there is edited by hand.
"""
import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS)]

import draw_tutorial  # noqa: E402
import make_notebook  # noqa: E402
from code_blocks import function_source, with_code  # noqa: E402
from make_results import first_table  # noqa: E402

from storage.files import write_whole  # noqa: E402

TABLE = re.compile(r"<!-- table -->\n.*?<!-- /table -->", re.DOTALL)


def source_of(name):
    """The lines of a function, FILE.FUNCTION."""
    return function_source(name, read)


def read(file):
    return (ROOT / file).read_text(encoding="utf-8")


def tutorial(text):
    """The page with its code blocks and its table made anew."""
    text = with_code(text, read)
    return TABLE.sub(lambda _: f"<!-- table -->\n{first_table()}\n<!-- /table -->", text)


def main():
    page = DOCS / "tutorial.md"
    text = tutorial(page.read_text(encoding="utf-8"))
    write_whole(page, lambda part: part.write_text(text, encoding="utf-8"))
    draw_tutorial.main()
    make_notebook.main()


if __name__ == "__main__":
    main()
