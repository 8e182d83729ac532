"""What the functions of the course's tasks return: exact types and shapes, before any value.

An object that says yes to every comparison would pass every test, so `pytest --task K` calls the
functions of task K through a check that is made here, for every task alike. What comes back must
be exactly an int, a float, a tuple, a tensor, ... of the right shape, and whatever the function
put into its arguments must be as plain.

    checked(mcts.ucb_score, float)(child, config)    # TypeError unless it is exactly a float
"""
import functools
import inspect
import sys
from collections.abc import Generator
from dataclasses import dataclass
from types import GeneratorType, SimpleNamespace, UnionType
from typing import Any, get_args, get_origin

from torch import Tensor, bool as boolean, nn, strided

# tasks whose functions are there to change the objects that they are given, but no tensor
CHANGE_ARGUMENTS = ("1.4", "1.5", "2.4", "2.5", "2.6")
# a student's function that raises one of their exceptions would end a test without a failure
SKIP_TESTS = ("hypothesis", "_pytest", "pytest", "unittest")
SIMPLE = {type(None), bool, int, float, str}  # nothing in them can be changed
PLAIN = (*SIMPLE, tuple, list, dict, Tensor)
OWN = ("Slot", "KVCache", "Positions", "Node", "SearchResult")  # classes that functions make
FOREIGN = (type, nn.Module, GeneratorType, type(sys))  # not looked into
Path = tuple[int, ...]
RESULT = "SearchResult"  # a class of the function's own file
NODE = "a node of the tree"


@dataclass(frozen=True)
class Shaped:
    """A plain tensor. shape: a function of the arguments. dtype: one, or a function of the
    arguments that gives one; None is any floating type."""
    shape: Any
    dtype: Any = None

    def __repr__(self):
        return "Tensor"


def same_as(position):
    """Shape and dtype of an argument."""
    return Shaped(lambda *given: given[position].shape, lambda *given: given[position].dtype)


def stored(slot, keys, values, span):
    """The shape of all columns so far."""
    new = keys.shape[2]
    columns = span.start + new if slot.capacity else new
    return (*keys.shape[:2], columns, keys.shape[3])


COLUMNS = Shaped(stored, lambda slot, keys, *_: keys.dtype)

RETURNS = {
    "1.1": {"model_llama.RMSNorm.forward": same_as(1)},
    "1.2": {"model_llama.rotate": same_as(0)},
    "1.3": {"model_llama.attention": same_as(0)},
    "1.4": {"model_llama.Slot.write": tuple[COLUMNS, COLUMNS]},
    "1.5": {"model_llama.run_blocks": same_as(1)},
    "2.1": {"paths.path_of": Path, "paths.decisions_of": Path},
    "2.2": {"paths.is_legal": bool, "paths.edits": list[Path]},
    "2.3": {"mcts.ucb_score": float},
    "2.4": {"mcts.select_node_to_expand": NODE},
    "2.5": {"mcts.backpropagate": type(None)},
    "2.6": {"mcts.search": Generator[Path, float, RESULT]},
    "3.1": {"questions/reward.extract_answer": str | None},
    "3.2": {"choose.confident": list[Path | None]},
    "3.3": {"choose.neighbours": Shaped(lambda space, correct, *_: correct.shape)},
    "3.4": {"choose.consensus": list[Path | None]},
    "4.1": {"drllm.window_matrix": Shaped(
        lambda lengths, T, windows: (len(lengths), min(windows, T), T))},
    "4.2": {"drllm.class_weights": Shaped(lambda counts, *_: (len(counts),))},
    "4.3": {"drllm.focal_loss": Shaped(lambda *_: ())},
    "4.4": {"drllm.interpolate": same_as(0)},
    "4.5": {"drllm.Routers.forward": Shaped(lambda routers, pooled, *_: (*pooled.shape[:2], 3))},
    "4.6": {"drllm.nearest_distance": Shaped(lambda states, points: states.shape[:-1]),
            "drllm.Routers.is_ood": Shaped(lambda routers, layer, pooled, counts: counts.shape,
                                               boolean)},
    "5.1": {"evaluate.fixed_paths_at": Shaped(
        lambda layers, fixed_paths: fixed_paths[0][1].shape)},
    "6.1": {"evaluate.interval": tuple[float, float]},
    "6.2": {"evaluate.shuffled": same_as(0)},
    "6.3": {"course/luck.lucky_corrections": tuple[float, float]},
}


# ---- one value ----

def mismatch(value, wanted, given, module):
    """What is wrong with a value, None if nothing is. given: the arguments; module: of the
    function, where a class that is named lives."""
    if wanted == NODE:
        nodes = [given[0]]
        for node in nodes:
            nodes.extend(node.children)
        known = value is None or any(value is node for node in nodes)
        return None if known else f"a {type(value).__name__}, no node of the tree"
    if isinstance(wanted, str):
        wanted = getattr(module, wanted)
    if isinstance(wanted, UnionType):
        wrong = [mismatch(value, option, given, module) for option in get_args(wanted)]
        return None if None in wrong else wrong[0]
    if isinstance(wanted, Shaped):
        return tensor_mismatch(value, wanted, given)
    if type(value) is not (get_origin(wanted) or wanted):
        return f"a {type(value).__name__}"
    if get_origin(wanted) is None:
        return None
    options = types_of_items(value, wanted)
    if len(options) != len(value):
        return f"{len(value)} values"
    for item, option in zip(value, options):
        if wrong := mismatch(item, option, given, module):
            return f"{wrong} in a {type(value).__name__}"
    return None


def types_of_items(value, wanted):
    """The type that each item of a tuple or list should have."""
    types = get_args(wanted)
    if get_origin(wanted) is list or types[1:] == (...,):
        return types[:1] * len(value)
    return types


def tensor_mismatch(value, wanted, given):
    if type(value) is not Tensor or vars(value):
        return f"a {type(value).__name__}" + " with attributes" * (type(value) is Tensor)
    if value.is_meta or value.layout is not strided:  # assert_close compares no values of these
        return f"a tensor without plain values ({value.device.type}, {value.layout})"
    shape, dtype = tuple(wanted.shape(*given)), wanted.dtype
    if value.shape != shape:
        return f"a tensor of shape {tuple(value.shape)}, wanted {shape}"
    if dtype is None:
        return None if value.is_floating_point() else f"a tensor of {value.dtype}"
    dtype = dtype(*given) if callable(dtype) else dtype
    return None if value.dtype == dtype else f"a tensor of {value.dtype}, wanted {dtype}"


def parts_of(value):
    """What an object is made of, as far as a function may have put it there."""
    if type(value) in (tuple, list):
        return value
    if type(value) is dict:
        return [*value, *value.values()]
    if isinstance(value, FOREIGN) or type(value) in PLAIN:
        return []
    return list(getattr(value, "__dict__", {}).values())


def everything_in(*values):
    """{id: object} of all that is reached from some values, numbers and texts aside."""
    reached, waiting = {}, list(values)
    while waiting:
        value = waiting.pop()
        if type(value) not in SIMPLE and id(value) not in reached:
            reached[id(value)] = value
            waiting.extend(parts_of(value))
    return reached


def contents(value):
    """What could be changed in an object without exchanging it."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, nn.Module):
        return [weight.detach().clone() for weight in value.state_dict().values()]
    return [id(part) for part in parts_of(value)]


def same_contents(now, before):
    if isinstance(before, Tensor):
        if now.shape != before.shape:
            return False
        both_nan = (now != now) & (before != before)
        return bool(((now == before) | both_nan).all())
    if before and isinstance(before[0], Tensor):
        return all(map(same_contents, now, before))
    return now == before


def not_plain(value, module):
    """Whether an object may answer comparisons in its own way."""
    if type(value) is Tensor:
        return bool(vars(value))
    name = type(value).__name__
    own = name in OWN and vars(module).get(name) is type(value)
    return type(value) not in PLAIN and type(value) is not SimpleNamespace and not own


# ---- a function ----

class Contract:
    """What a function returns, and that nothing but plain things comes from it."""

    def __init__(self, function, wanted):
        self.name, self.wanted = function.__name__, wanted
        self.module = sys.modules[function.__module__]
        self.signature = inspect.signature(function)

    def check(self, value, wanted, given, verb="returned"):
        __tracebackhide__ = True  # a failure is shown where a test calls the function
        wrong = mismatch(value, wanted, given, self.module)
        if wrong and "wanted" not in wrong:
            wrong += f", wanted {wanted.__name__ if type(wanted) is type else wanted}"
        if wrong:
            raise TypeError(f"{self.name} {verb} {wrong}")

    def run(self, function, *given, **named):
        """What a function returns. It may not end a test by an exception that skips it."""
        __tracebackhide__ = True
        try:
            return function(*given, **named)
        except BaseException as error:
            origins = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
            if not origins & {*SKIP_TESTS}:
                raise
            kind = type(error).__name__
        raise TypeError(f"{self.name} raised {kind}, which ends a test before it can fail")

    def check_unchanged(self, reached, before):
        """What was reached from the arguments must be as it was."""
        __tracebackhide__ = True
        for key, value in reached.items():
            if not same_contents(contents(value), before[key]):
                kind = type(value).__name__
                raise TypeError(f"{self.name} changed its arguments: the contents of a {kind}")

    def check_plain(self, values, before, place):
        """What is in the values, and was not there before, must not compare in its own way."""
        __tracebackhide__ = True
        for key, value in everything_in(*values).items():
            if key not in before and not_plain(value, self.module):
                kind = type(value).__name__
                raise TypeError(f"{self.name} put a {kind} into its {place}")

    def steps(self, generator, given):
        """A generator whose every step is checked."""
        __tracebackhide__ = True
        yielded, _, returned = get_args(self.wanted)
        reward = None
        while True:
            try:
                value = self.run(generator.send, reward)
            except StopIteration as end:
                self.check(end.value, returned, given)
                self.check_plain([end.value], {}, "result")
                return end.value
            self.check(value, yielded, given, "yielded")
            reward = yield value


def checked(function, wanted, changes_arguments=False):
    """The function, whose results must be exactly of the type and shape that are wanted, and which
    leaves its arguments as they are, unless it is there to change them."""
    contract = Contract(function, wanted)

    @functools.wraps(function)
    def call(*given, **named):
        __tracebackhide__ = True
        reached = everything_in(*given, *named.values())
        watched = reached
        if changes_arguments:  # but no tensor that it is given
            watched = {id(value): value for value in given if type(value) is Tensor}
        before = {key: contents(value) for key, value in watched.items()}
        value = contract.run(function, *given, **named)
        contract.check_unchanged(watched, before)
        given = tuple(contract.signature.bind(*given, **named).arguments.values())
        if get_origin(wanted) is Generator:
            contract.check(value, GeneratorType, given)
            return contract.steps(value, given)
        contract.check(value, wanted, given)
        contract.check_plain(given, reached, "arguments")
        return value

    del call.__wrapped__
    return call


def check_task(number):
    """Puts the check around a task's functions, wherever a module holds them."""
    for path, wanted in RETURNS.get(number, {}).items():
        file, name = path.split(".", 1)
        module = sys.modules.get(file.replace("/", "."))
        if module is None:
            continue
        place, _, name = name.rpartition(".")
        place = getattr(module, place) if place else module
        function = vars(place)[name]
        setattr(place, name, checked(function, wanted, number in CHANGE_ARGUMENTS))
        for other in list(sys.modules.values()):
            if getattr(other, "__dict__", {}).get(name) is function:
                setattr(other, name, vars(place)[name])
