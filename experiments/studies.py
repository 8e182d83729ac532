"""Three studies the paper leaves open: how good the decisions are, what happens out of domain, and
whether routing lies above static paths at every depth. Functions of a Lab, as in experiments.py.

    python -m experiments.paper router ood frontier --run runs/demo
"""
import functools
import random

import numpy as np
import torch

from choose import along_each, confident, consensus_of_neighbours, shortest, similarity_space
from drllm import RouterRoute, fit_guard
from evaluate import ACTIONS, interval
from experiments.methods import BASELINES
from experiments.statistics import class_report, share_of_actions
from label import row_of, search_all
from model_llama import fixed
from answers import Prompt, answer
from train import features

ANCHORS = 300       # random-token prompts labelled with the default path
NEAR = ("biggest", "smallest", "compute")  # the demo's: other words or lengths, known skills
QUANTILES = (0.5, 0.8, 0.95, 0.99, 0.999)
TILTS = (-1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0)
CONTROLS = (-0.45, -0.4, -0.25, 0.0)  # of the knob; below -0.5 everything is skipped
PRICES = (0.0, 0.01, 0.03, 0.08)  # of a layer, in reward
PRICED_TILTS = (-0.5, 0.0, 1.0, 3.0)
SEARCHED = 250  # test questions of a domain, about, that are searched for comparison


# ---- how good are the decisions? ----

def held_out_labels(lab, prompts):
    """{choice: label or None per prompt}: test questions searched and labelled like the others, by
    the run's choice (that of consensus, if it is safe) and by the paper's."""
    found = {p.question.id: row_of(p, result, sure) for p, result, sure in
             search_all(lab.model, lab.tokenizer, prompts, lab.run.search, lab.run.args.seed,
                        lab.args.batch_size)}
    rows, price = [found[p.question.id] for p in prompts], lab.run.args.price
    labels = {"shortest": shortest(rows)}
    if lab.choice == "confident":
        labels["confident"] = confident(rows, 0.001 if price is None else price)
    elif lab.choice != "shortest":
        paths = lab.menu[0]
        right = along_each(lab.model, lab.tokenizer, prompts, paths, lab.args.batch_size) > 0
        default = torch.ones(len(prompts), lab.L, dtype=torch.long)
        space = similarity_space(*features(lab.model, prompts, default))
        labels[lab.choice], _ = consensus_of_neighbours(space, right, paths, price)
    return labels


def decision_quality(lab, where, choice, prompts, labels):
    """The row of one domain and choice: per class, and agreement beside always executing."""
    pairs = [pair for pair in zip(prompts, labels) if pair[1] is not None]
    prompts, wanted = [prompt for prompt, _ in pairs], torch.tensor([path for _, path in pairs])
    seeds = [answer(lab.model, lab.tokenizer, prompts, route, lab.args.batch_size).decisions
             for route in lab.routes(choice, guard=choice != "shortest")]
    reports = [class_report(decided, wanted) for decided in seeds]
    mean = lambda pick: float(np.mean([pick(report) for report in reports]))
    row = {"name": f"{where}, {choice}", "n": len(prompts)}
    for action in ACTIONS:
        for key in ("precision", "recall", "f1"):
            row[f"{action} {key[:4]}"] = mean(lambda r: r[action][key])
    return row | {"macro f1": mean(lambda r: r["macro_f1"]),
                  "agree %": 100 * mean(lambda r: r["accuracy"]),
                  "executing %": 100 * mean(lambda r: r["always_execute"]),
                  "per_layer": np.mean([r["per_layer"] for r in reports], axis=0).tolist(),
                  "actions": torch.stack([share_of_actions(d) for d in seeds]).mean(0).tolist()}


def router(lab):
    """Decisions against searched labels of questions nobody trained on."""
    rows = []
    some = lab.outside[::max(1, len(lab.outside) // SEARCHED)]
    for where, prompts in (("in", lab.inside[:SEARCHED]), ("out", some)):
        if prompts:
            found = lab.row(f"labels {where}", lambda: held_out_labels(lab, prompts))
            rows += [lab.row(f"quality {where} {choice}", lambda: decision_quality(
                lab, where, choice, prompts, found[choice]))
                for choice in dict.fromkeys((lab.choice, "shortest"))]
    bars = {row["name"]: np.transpose(row["actions"]).tolist() for row in rows}
    return {"title": "decisions against searched labels", "rows": rows, "bars": bars,
            "notes": ["agree %: decisions equal to the label's; executing %: what a router that "
                      "always executes would reach"]}


# ---- out of domain ----

def anchor_prompts(lab, number=ANCHORS, seed=0):
    """Prompts of random tokens (no question at all), as long as label prompts are."""
    rng = random.Random(seed)
    known = sorted({token for p in lab.labelled for token in p.ids})
    lengths = [len(p.ids) for p in lab.labelled]
    return [Prompt(lab.labelled[0].question,
                   tuple(rng.choice(known) for _ in range(rng.choice(lengths))))
            for _ in range(number)]


def anchored(lab, choice, anchors):
    """Routers of every seed; with anchors, prompts that say execute are among their examples."""
    if not anchors:
        return lab.routers(choice)
    pooled, counts, decisions = lab.examples(lab.labels(choice))
    prompts = anchor_prompts(lab)
    default = torch.ones(len(prompts), lab.L, dtype=torch.long)
    more, more_counts = features(lab.model, prompts, default)
    return lab.trained(torch.cat([pooled, more]), torch.cat([counts, more_counts]),
                     torch.cat([decisions, default]), guard_on=len(pooled))


def domains(lab, routes):
    """{in, near, far, out: accuracy change; layers of each} of routes, a seed each."""
    inside, table = lab.figures(routes), lab.far_table
    outcome, tasks = table.ask("out of domain", routes), np.array(table.tasks)
    gain = (outcome.right - table.outcomes["vanilla"].right).numpy()
    layers = outcome.layers.numpy()
    every = {task: (float(gain[tasks == task].mean()), float(layers[tasks == task].mean()))
             for task in dict.fromkeys(table.tasks)}
    row = {"in": inside["gain"], "in layers": inside["layers"]}
    for name, members in (("near", set(NEAR)), ("far", every.keys() - NEAR), ("out", every.keys())):
        if found := [pair for task, pair in every.items() if task in members]:
            row[name], row[f"{name} layers"] = np.mean(found, axis=0).tolist()
    return row | {"out interval": list(interval(gain)), "tasks": every}


def protections(lab, choice):
    """Rows of neither, guard, anchors and both, for one choice of label."""
    for anchors in (False, True):
        trained = functools.cache(lambda: anchored(lab, choice, anchors))
        for guard in (False, True):
            words = [word for word, on in (("guard", guard), ("anchors", anchors)) if on]
            yield lab.row(f"{choice}, {' and '.join(words) or 'bare'}", lambda: domains(
                lab, [RouterRoute(r, guard=guard) for r in trained()]))


def thresholds(lab):
    """Rows of the run's choice with guards that let more or less pass."""
    examples = functools.cache(lambda: lab.examples(lab.labels())[:2])

    def guarded(quantile):
        for seed, routers in zip(lab.seeds, lab.routers()):
            routers.set_guard(*fit_guard(*examples(), seed, quantile=quantile))
            yield RouterRoute(routers)
    return [lab.row(f"guard at {quantile}", lambda: domains(lab, list(guarded(quantile))))
            for quantile in QUANTILES]


def left_out(lab, family):
    """Routers that never saw one labelled task, asked about it, with the guard and without."""
    labels = [path if p.question.task != family else None
              for p, path in zip(lab.labelled, lab.labels())]
    trained = lab.trained(*lab.examples(labels))
    table = lab.comparison([p for p in lab.inside if p.question.task == family])
    bare = lab.figures([RouterRoute(r, guard=False) for r in trained], table)
    guarded = lab.figures([RouterRoute(r) for r in trained], table)
    return {"bare": bare["gain"], "bare layers": bare["layers"],
            "guard": guarded["gain"], "guard layers": guarded["layers"],
            "guard interval": guarded["interval"]}


def ood(lab):
    """Accuracy change in points and layers, in domain and on tasks no label shows."""
    choices = dict.fromkeys((lab.choice, "shortest"))
    rows = [row for choice in choices for row in protections(lab, choice)]
    rows += thresholds(lab)
    known = {p.question.task for p, path in zip(lab.labelled, lab.labels()) if path}
    rows += [lab.row(f"without {family}", lambda: left_out(lab, family))
             for family in sorted({p.question.task for p in lab.inside}) if known - {family}]
    return {"title": f"out of domain: points gained and layers ({len(lab.seeds)} seeds); near: "
                     f"{', '.join(NEAR)}", "rows": rows,
            "changes": {row["name"]: {key: row[key] for key in ("in", "near", "far") if key in row}
                        for row in rows if "in" in row},
            "notes": ["out: mean over the tasks; without TASK: routers and guard that never saw "
                      "it, asked about it"]}


# ---- the frontier ----

POINT = ("name", "layers", "accuracy", "sd", "gain", "interval", "over_static", "over interval")


def point(row):
    """What the frontier shows of a row."""
    return {key: row[key] for key in POINT if key in row}


def priced(lab, price):
    """Rows of routers on consensus labels chosen at another price of a layer, by tilt."""
    @functools.cache
    def trained():
        paths, right = lab.menu
        labels, _ = consensus_of_neighbours(lab.evidence.space, right, paths, price)
        return lab.trained(*lab.examples(labels))
    return [lab.row(f"price {price}, tilt {tilt:+.1f}", lambda: lab.figures(
        [RouterRoute(routers, tilt) for routers in trained()])) for tilt in PRICED_TILTS]


def frontier(lab):
    """Accuracy against mean layers: tilt, price per layer, the knob p, static paths, the oracle."""
    rows = [lab.row(f"static, {n} layers", lambda: lab.figures([fixed(path)]))
            for n, (_, path) in lab.static_paths.items()]
    rows += [lab.row(f"tilt {tilt:+.1f}", lambda: lab.figures(lab.routes(tilt=tilt)))
             for tilt in TILTS]
    rows += [lab.row(f"control {p:+.2f}", lambda: lab.figures(lab.routes(control=p, guard=False)))
             for p in CONTROLS]
    rows += [row for price in PRICES for row in priced(lab, price)]
    rows.append(lab.method("cola"))
    kinds = ("static", "tilt", "control", "price", BASELINES["cola"].title)
    return {"title": "accuracy against mean layers, over the mix of static paths of the same depth",
            "rows": [point(row) for row in rows], "notes": [verdict(lab, rows)],
            "curves": {kind: [[r["layers"], r["accuracy"]] for r in rows
                              if r["name"].startswith(kind)] for kind in kinds}}


def verdict(lab, rows):
    """Whether routing lies above static paths from 0.9 L to 1.3 L, in a sentence."""
    low, high = 0.9 * lab.L, 1.3 * lab.L
    inside = [r for r in rows if r["name"].startswith(("tilt", "price"))
              and low <= r["layers"] <= high]
    unsure = [f"{r['name']} ({r['layers']:.2f})" for r in inside if r["over interval"][0] <= 0]
    return (f"from {low:.1f} to {high:.1f} layers: {len(inside) - len(unsure)} of {len(inside)} "
            "points surely above static" + (f"; not {'; '.join(unsure)}" if unsure else ""))
