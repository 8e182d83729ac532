"""Functions of the source on a page, between <!-- code: FILE.FUNCTION --> and <!-- /code -->.

    with_code(text, source)     # source(file): the text of a file of the project
"""
import ast
import re

CODE = re.compile(r"<!-- code: (.*?) -->\n.*?<!-- /code -->", re.DOTALL)


def function_source(name, source):
    """The lines of a function, FILE.FUNCTION, with its docstring and comments."""
    file, _, function = name.partition(".")
    text = source(f"{file}.py")
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return "\n".join(text.splitlines()[node.lineno - 1:node.end_lineno])
    raise ValueError(f"{file}.py has no function {function}")


def with_code(text, source):
    """The page with all its code blocks made anew. The page names one or more functions each."""
    def block(match):
        functions = [function_source(name, source) for name in match[1].split(", ")]
        code = "\n\n\n".join(functions)
        return f"<!-- code: {match[1]} -->\n```py\n{code}\n```\n<!-- /code -->"
    return CODE.sub(block, text)
