"""Puts the code, the table of `make` and the figures into the tutorial, and makes its notebook.

    .venv/bin/python docs/make_tutorial.py

docs/tutorial.md is written by hand, but for what is between <!-- code: FILE.FUNCTION --> and
<!-- /code -->, which is the source of these functions, and between <!-- table --> and
<!-- /table -->. Nothing there is edited by hand.
"""
import ast
import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS)]

import draw_tutorial  # noqa: E402
import make_notebook  # noqa: E402
from make_results import first_table  # noqa: E402

from storage.files import InputError, write_whole  # noqa: E402

CODE = re.compile(r"<!-- code: (.*?) -->\n.*?<!-- /code -->", re.DOTALL)
TABLE = re.compile(r"<!-- table -->\n.*?<!-- /table -->", re.DOTALL)


def source_of(name):
    """The lines of a function, FILE.FUNCTION, with its docstring and comments."""
    file, _, function = name.partition(".")
    text = (ROOT / f"{file}.py").read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return "\n".join(text.splitlines()[node.lineno - 1:node.end_lineno])
    raise InputError(f"docs/tutorial.md: {file}.py has no function {function}")


def code_block(match):
    names = match[1].split(", ")
    code = "\n\n\n".join(source_of(name) for name in names)
    return f"<!-- code: {match[1]} -->\n```py\n{code}\n```\n<!-- /code -->"


def tutorial(text):
    """The page with its code blocks and its table made anew."""
    text = CODE.sub(code_block, text)
    return TABLE.sub(lambda _: f"<!-- table -->\n{first_table()}\n<!-- /table -->", text)


def main():
    page = DOCS / "tutorial.md"
    text = tutorial(page.read_text(encoding="utf-8"))
    write_whole(page, lambda part: part.write_text(text, encoding="utf-8"))
    draw_tutorial.main()
    make_notebook.main()


if __name__ == "__main__":
    main()
