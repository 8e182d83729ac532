"""Writes docs/tutorial.ipynb, the tutorial as a notebook, from docs/tutorial.md.

    .venv/bin/python docs/make_notebook.py

Words become cells of Markdown, examples cells of code. A cell ends where an example prints
something, so that a notebook shows what the page shows.
"""
import doctest
import json
import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from storage.files import write_whole  # noqa: E402

FENCE = re.compile(r"^```python\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
SETUP = ("import os, sys\n"
         'os.chdir(".." if os.path.basename(os.getcwd()) == "docs" else ".")  # the root\n'
         "sys.path.insert(0, os.getcwd())")


def cell(kind, text, shown=""):
    """A cell of a notebook; shown: what its last line prints."""
    more = {} if kind == "markdown" else {"execution_count": None, "outputs": [
        {"output_type": "stream", "name": "stdout", "text": shown.splitlines(keepends=True)}
    ] if shown else []}
    return {"cell_type": kind, "metadata": {}, "source": text.splitlines(keepends=True)} | more


def cells_of(text):
    """The cells of a page. Its python blocks are examples as doctest knows them."""
    made = []
    for n, part in enumerate(FENCE.split(text)):
        if n % 2 == 0:
            made += [cell("markdown", part.strip())] if part.strip() else []
            continue
        lines = []
        for example in doctest.DocTestParser().get_examples(part):
            lines.append(example.source.rstrip())
            if example.want:
                made.append(cell("code", "\n".join(lines), example.want))
                lines = []
        made += [cell("code", "\n".join(lines))] if lines else []
    first = [part["cell_type"] for part in made].index("code")
    return [*made[:first], cell("code", SETUP), *made[first:]]


def notebook(text):
    """The notebook of a page, as JSON text."""
    cells = [part | {"id": f"cell-{n}"} for n, part in enumerate(cells_of(text))]
    return json.dumps({"cells": cells, "nbformat": 4, "nbformat_minor": 5, "metadata": {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"}}}, indent=1, ensure_ascii=False) + "\n"


def main():
    made = notebook((DOCS / "tutorial.md").read_text(encoding="utf-8"))
    write_whole(DOCS / "tutorial.ipynb", lambda part: part.write_text(made, encoding="utf-8"))


if __name__ == "__main__":
    main()
