"""Two studies the paper leaves open: what happens out of domain, and whether routing beats fixed
paths at every depth. Functions of a Lab, as in experiments/tables.py.

    python -m experiments.paper ood frontier --run runs/demo
"""
import numpy as np

from drllm import RouterRoute
from evaluate import interval
from experiments.methods import METHODS
from model_llama import FixedRoute

NEAR = ("biggest", "smallest", "compute")  # the demo's: other words or lengths, known skills
DEPTH_BIASES = (-1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0)
INTERPOLATIONS = (-0.45, -0.4, -0.25, 0.0)  # of p; below -0.5 everything is skipped


# ---- out of domain ----

def domains(lab, routes):
    """{in, near, far, out: accuracy change; layers of each} of routes, a seed each."""
    inside, table = lab.figures(routes), lab.far_table
    outcome, tasks = table.ask("out of domain", routes), np.array(table.tasks)
    gain = (outcome.correct - table.outcomes["vanilla"].correct).numpy()
    layers = outcome.layers.numpy()
    of_task = {}
    for task in dict.fromkeys(table.tasks):
        chosen = tasks == task
        of_task[task] = float(gain[chosen].mean()), float(layers[chosen].mean())
    row = {"in": inside["gain"], "in layers": inside["layers"]}
    for name, members in (("near", NEAR), ("far", of_task.keys() - NEAR), ("out", of_task)):
        pairs = [pair for task, pair in of_task.items() if task in members]
        if pairs:
            row[name], row[f"{name} layers"] = np.mean(pairs, axis=0).tolist()
    return row | {"out interval": list(interval(gain)), "tasks": of_task}


def left_out(lab, task):
    """Routers that never saw one training task, asked about it, with the guard and without."""
    labels = [None if prompt.question.task == task else path
              for prompt, path in zip(lab.labelled, lab.labels())]
    trained = lab.trained(*lab.examples(labels))
    table = lab.comparison([p for p in lab.inside if p.question.task == task])
    bare = lab.figures([RouterRoute(r, guard=False) for r in trained], table)
    guarded = lab.figures([RouterRoute(r) for r in trained], table)
    return {"bare": bare["gain"], "bare layers": bare["layers"],
            "guard": guarded["gain"], "guard layers": guarded["layers"],
            "guard interval": guarded["interval"]}


def ood(lab):
    """Accuracy change in points and layers, in domain and on tasks that training did not see."""
    rows = [lab.row(f"{choice}, {name}", lambda: domains(lab, lab.routes(choice, guard=guard)))
            for choice in dict.fromkeys((lab.choice, "shortest"))
            for name, guard in (("without guard", False), ("with guard", True))]
    labelled = {p.question.task for p, path in zip(lab.labelled, lab.labels()) if path}
    rows += [lab.row(f"without {task}", lambda: left_out(lab, task))
             for task in sorted({p.question.task for p in lab.inside}) if labelled - {task}]
    return {"title": f"out of domain: points gained and layers ({len(lab.seeds)} seeds); near: "
                     f"{', '.join(NEAR)}", "rows": rows,
            "notes": ["out: mean over the tasks; without TASK: routers and guard that never saw "
                      "it, asked about it"]}


# ---- accuracy against depth ----

POINT = ("name", "layers", "accuracy", "sd", "gain", "interval", "over_static", "over interval")


def point(row):
    """The figures of a row that the frontier shows."""
    return {key: row[key] for key in POINT if key in row}


def frontier(lab):
    """Accuracy against mean layers: fixed paths, depth bias, interpolation, the oracle."""
    rows = [lab.row(f"fixed path, {n} layers", lambda: lab.figures([FixedRoute(path)]))
            for n, (_, path) in lab.best_of_length.items()]
    for depth_bias in DEPTH_BIASES:
        rows.append(lab.row(f"depth bias {depth_bias:+.1f}",
                            lambda: lab.figures(lab.routes(depth_bias=depth_bias))))
    for p in INTERPOLATIONS:
        rows.append(lab.row(f"interpolation {p:+.2f}",
                            lambda: lab.figures(lab.routes(control=p, guard=False))))
    rows.append(lab.method("cola"))
    curves = {}  # {the beginning of the rows' names: [[layers, accuracy]]}
    for kind in ("fixed path", "depth bias", "interpolation", METHODS["cola"].title):
        curves[kind] = [[row["layers"], row["accuracy"]] for row in rows
                        if row["name"].startswith(kind)]
    return {"title": "accuracy against mean layers, over the mix of fixed paths of the same depth",
            "rows": [point(row) for row in rows], "curves": curves}
