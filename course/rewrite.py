"""What a source file means, whatever its text: other texts of one meaning, and what was changed.

    same_meaning("def f(x):\\n    y = x\\n    return y\\n")    # def f(x): name_3f2a = x ...
"""
import ast
import builtins
import itertools
import secrets


class Rename(ast.NodeTransformer):
    """Gives variables other names."""

    def __init__(self, names):
        self.names = names

    def visit_Name(self, node):  # noqa: N802 - ast's own name
        return ast.copy_location(ast.Name(self.names.get(node.id, node.id), node.ctx), node)


def local_names(function, taken):
    """The names that only a function assigns to, its arguments aside."""
    nodes = list(ast.walk(function))
    if any(isinstance(node, (ast.ClassDef, ast.Global, ast.Nonlocal)) for node in nodes):
        return set()
    stored = {node.id for node in nodes
              if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    arguments = {node.arg for node in nodes if isinstance(node, ast.arg)}
    return stored - arguments - taken


def same_meaning(source):
    """The source written differently: without comments and layout, with other names for local
    variables, and in every function a line that does nothing."""
    tree = ast.parse(source)
    taken = {*vars(builtins), *(node.name for node in ast.walk(tree) if hasattr(node, "name")),
             *(node.id for node in names_assigned_at_the_top(tree))}
    places = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]
    for place in places:
        for n, node in enumerate(place.body):
            if isinstance(node, ast.FunctionDef):
                names = {name: f"name_{secrets.token_hex(4)}"
                         for name in sorted(local_names(node, taken))}
                place.body[n] = Rename(names).visit(node)
                idle = ast.parse(f"idle_{secrets.token_hex(4)} = {secrets.randbits(16)}").body
                after = 1 if ast.get_docstring(node) is not None else 0
                place.body[n].body[after:after] = idle
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def names_assigned_at_the_top(tree):
    """The variables of a module, and the names it imports."""
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (ast.Name((alias.asname or alias.name).split(".")[0])
                        for alias in node.names)
        elif not hasattr(node, "name"):
            yield from (inner for inner in ast.walk(node) if isinstance(inner, ast.Name))


# ---- what a student may change ----

UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)  # no Python, or nested too deep
RUNS = ("code that runs when the file is imported; only functions, classes, imports and new names "
        "may be added")


def changed_beside(source, original, own):
    """What differs in a student's file besides the functions in `own`, in words. Helpers and
    imports may be added; what the file had stays, and nothing else is done when it loads."""
    try:
        theirs, ours = ast.parse(source), ast.parse(original)
    except UNREADABLE:
        return []  # it will not load either
    try:
        changed = list(differences(theirs.body, ours.body, own))
        before = {ast.unparse(node) for node in ours.body}
        taken = {node.id for node in names_assigned_at_the_top(ours)}
        lines = [f"line {node.lineno}" for node in theirs.body
                 if ast.unparse(node) not in before and not is_helper(node, taken)]
    except RecursionError:
        return ["an expression is nested too deep to be compared"]
    return changed + ([f"{', '.join(lines)}: {RUNS}"] if lines else [])


def is_helper(node, taken):
    """Whether a line at the top may be added: it only gives a new name to something, or never
    runs here."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "__name__ == '__main__'" and not node.orelse
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        several = [getattr(target, "elts", [target]) for target in targets]  # A, B = 1, 2
        return all(isinstance(target, ast.Name) and target.id not in taken
                   for target in itertools.chain(*several))
    comment = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return comment or isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef))


def differences(theirs, ours, own, prefix=""):
    """The names of definitions that are not as they were."""
    defined = {node.name: node for node in theirs if hasattr(node, "name")}
    for node in ours:
        if not hasattr(node, "name") or prefix + node.name in own:
            continue
        other, name = defined.get(node.name), prefix + node.name
        inner = [path for path in own if path.startswith(f"{name}.")]
        if other is None:
            continue  # what is missing is told by the tests
        if isinstance(node, ast.ClassDef) and isinstance(other, ast.ClassDef) and inner:
            yield from differences(other.body, node.body, own, f"{name}.")
            added = {n.name for n in other.body if hasattr(n, "name")}
            had = {n.name for n in node.body if hasattr(n, "name")}
            yield from (f"{name}.{more}" for more in sorted(added - had) if more.startswith("__"))
        elif meaning(other) != meaning(node):
            yield name


def meaning(node):
    """A definition's text without its docstring and comments."""
    node = ast.parse(ast.unparse(node)).body[0]
    if ast.get_docstring(node) is not None:
        node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(node)
