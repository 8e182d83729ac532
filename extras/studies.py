"""Three studies the paper leaves open: how good the decisions are, what happens out of domain, and
whether routing lies above static paths at every depth. Functions of a Lab, as in experiments.py.

    python -m extras.paper router ood frontier --run runs/demo
"""
import functools
import random

import numpy as np
import torch

from answers import answer
from baselines import BASELINES
from choose import (along_each, consensus, half_gain_price, neighbours, shortest,
                    similarity_space)
from diagnostics import agreement, class_report, interval, share_of_actions
from drllm import RouterRoute, fit_gate
from label import row_of, search_all
from model_llama import fixed
from train import features

ANCHORS = 300       # random-token prompts labelled with the default path
NEAR = ("biggest", "smallest", "compute")  # the demo's: other words or lengths, known skills
QUANTILES = (0.5, 0.8, 0.95, 0.99, 0.999)
TILTS = (-1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0)
CONTROLS = (-0.45, -0.4, -0.25, 0.0)  # of the knob; below -0.5 everything is skipped
PRICES = (0.0, 0.01, 0.03, 0.08)  # of a layer, in reward
PRICED_TILTS = (-0.5, 0.0, 1.0, 3.0)
SEARCHED = 250  # test questions of a domain, about, that are searched for comparison
SCREEN = 100    # label questions that candidates for static paths are screened on


# ---- how good are the decisions? ----

def held_out_labels(lab, prompts):
    """{choice: label or None per prompt}: test questions searched and labelled like the others."""
    rows = {p.question.id: row_of(p, result, sure) for p, result, sure in
            search_all(lab.model, lab.tokenizer, prompts, lab.run.search, lab.run.args.seed,
                       lab.args.batch_size)}
    rows = [rows[p.question.id] for p in prompts]
    paths = lab.measured_paths[0]
    right = along_each(lab.model, lab.tokenizer, prompts, paths, lab.args.batch_size) > 0
    default = torch.ones(len(prompts), lab.L, dtype=torch.long)
    space = similarity_space(*features(lab.model, prompts, default))
    share = neighbours(space, right)
    price = lab.run.args.price
    if price is None:
        price = half_gain_price(right, share, paths)
    return {"consensus": consensus(right, share, paths, price), "shortest": shortest(rows)}


def decision_quality(lab, where, choice, prompts, labels):
    """Rows of one domain and choice: per class, and agreement beside always executing."""
    kept = [n for n, path in enumerate(labels) if path is not None]
    wanted = torch.tensor([labels[n] for n in kept])
    routes = lab.routes(choice, gate=choice != "shortest")
    seeds = [answer(lab.model, lab.tokenizer, [prompts[n] for n in kept], route,
                    lab.args.batch_size).decisions for route in routes]
    reports = [class_report(decided, wanted) for decided in seeds]
    mean = lambda pick: float(np.mean([pick(report) for report in reports]))
    same = [agreement(decided, wanted) for decided in seeds]
    row = {"name": f"{where}, {choice}", "n": len(kept)}
    for action in ("skip", "execute", "repeat"):
        for key in ("precision", "recall", "f1"):
            row[f"{action} {key[:4]}"] = mean(lambda r: r[action][key])
    return row | {"macro f1": mean(lambda r: r["macro_f1"]),
                  "agree %": 100 * float(np.mean([s["agreement"] for s in same])),
                  "executing %": 100 * same[0]["always_execute"],
                  "per_layer": np.mean([r["per_layer"] for r in reports], axis=0).tolist(),
                  "actions": torch.stack([share_of_actions(d) for d in seeds]).mean(0).tolist()}


def router(lab):
    """Decisions against searched labels of questions nobody trained on."""
    rows = []
    some = lab.outside[::max(1, len(lab.outside) // SEARCHED)]
    for where, prompts in (("in", lab.inside[:SEARCHED]), ("out", some)):
        if prompts:
            found = lab.row(f"labels {where}", lambda: held_out_labels(lab, prompts))
            choices = [c for c in ("consensus", "shortest")
                       if c in (lab.run.args.choose, "shortest")]
            rows += [lab.row(f"quality {where} {choice}", lambda: decision_quality(
                lab, where, choice, prompts, found[choice])) for choice in choices]
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
    like = lab.labelled[0]
    return [type(like)(like.question, tuple(rng.choice(known) for _ in range(rng.choice(lengths))))
            for _ in range(number)]


def with_anchors(lab, labels):
    """Training examples of labels, then anchors that say execute; and how many are no anchors."""
    pooled, counts, decisions = lab.examples(labels)
    prompts = anchor_prompts(lab)
    default = torch.ones(len(prompts), lab.L, dtype=torch.long)
    more, more_counts = features(lab.model, prompts, default)
    return (torch.cat([pooled, more]), torch.cat([counts, more_counts]),
            torch.cat([decisions, default])), len(pooled)


def domains(lab, routes):
    """{in, near, far, out: accuracy change; layers of each} of routes, a seed each."""
    inside = lab.figures(routes)
    table, tasks = lab.far_table, np.array(lab.far_table.tasks)
    outcome = table.ask("out of domain", routes)
    gain = (outcome.right - table.outcomes["vanilla"].right).numpy()
    layers = outcome.layers.numpy()
    mean = lambda values, names: float(np.mean([values[tasks == t].mean() for t in names]))
    every = list(dict.fromkeys(table.tasks))
    near = [t for t in every if t in NEAR]
    far = [t for t in every if t not in NEAR]
    row = {"in": inside["gain"], "in layers": inside["layers"]}
    for name, members in (("near", near), ("far", far), ("out", every)):
        if members:
            row |= {name: mean(gain, members), f"{name} layers": mean(layers, members)}
    low, high = interval(gain)
    return row | {"out interval": [low, high],
                  "tasks": {t: [float(gain[tasks == t].mean()), float(layers[tasks == t].mean())]
                            for t in every}}


def protections(lab, choice):
    """Rows of neither, gate, anchors and both, for one choice of label."""
    for anchors in (False, True):
        trained = functools.cache(lambda: anchored(lab, choice, anchors))
        for gate in (False, True):
            words = [word for word, on in (("gate", gate), ("anchors", anchors)) if on]
            yield lab.row(f"{choice}, {' and '.join(words) or 'bare'}", lambda: domains(
                lab, [RouterRoute(r, gate=gate) for r in trained()]))


def anchored(lab, choice, anchors):
    """Routers of every seed, with anchors among their examples or without."""
    if not anchors:
        return lab.routers(choice)
    data, own = with_anchors(lab, lab.labels(choice))
    return lab.train(*data, gate_on=own)


def thresholds(lab):
    """Rows of the run's choice with gates that let more or less pass."""
    examples = functools.cache(lambda: lab.examples(lab.labels()))
    for quantile in QUANTILES:
        yield lab.row(f"gate at {quantile}", lambda: domains(
            lab, [regated(routers, examples(), seed, quantile)
                  for seed, routers in zip(lab.seeds, lab.routers())]))


def regated(routers, examples, seed, quantile):
    """A route of the routers with a gate at another quantile."""
    routers.set_gate(*fit_gate(*examples[:2], seed, quantile=quantile))
    return RouterRoute(routers)


def left_out(lab, family):
    """Routers that never saw one labelled task, asked about it, with the gate and without."""
    labels = [path if p.question.task != family else None
              for p, path in zip(lab.labelled, lab.labels())]
    trained = lab.train(*lab.examples(labels))
    table = lab.comparison([p for p in lab.inside if p.question.task == family])
    bare = lab.figures([RouterRoute(r, gate=False) for r in trained], table)
    gated = lab.figures([RouterRoute(r) for r in trained], table)
    return {"bare": bare["gain"], "bare layers": bare["layers"],
            "gate": gated["gain"], "gate layers": gated["layers"],
            "gate interval": gated["interval"]}


def ood(lab):
    """Accuracy change in points and layers, in domain and on tasks no label shows."""
    choices = dict.fromkeys((lab.run.args.choose, "shortest"))
    rows = [row for choice in choices for row in protections(lab, choice)]
    rows += thresholds(lab)
    if len(lab.tasks) > 1:
        rows += [lab.row(f"without {family}", lambda: left_out(lab, family))
                 for family in sorted(lab.tasks)]
    return {"title": f"out of domain: points gained and layers ({len(lab.seeds)} seeds); near: "
                     f"{', '.join(NEAR)}", "rows": rows,
            "changes": {row["name"]: {key: row[key] for key in ("in", "near", "far") if key in row}
                        for row in rows if "in" in row},
            "notes": ["out: mean over the tasks; without TASK: routers and gate that never saw it, "
                      "asked about it"]}


# ---- the frontier ----

def answered_by(lab, paths, prompts):
    """(K,) share of the prompts that each path answers."""
    right = along_each(lab.model, lab.tokenizer, prompts, paths, lab.args.batch_size) > 0
    return right.float().mean(0).tolist()


def best_static(lab, length, known):
    """(share of the label questions answered, path): the best static path of a length, or None.

    known: [(share, path)] that training tried on all label questions, best first. Edits of the two
    best that are a layer longer or shorter are screened on some questions, the best two asked of
    all.
    """
    found = [pair for pair in known if sum(pair[1]) == length]
    near = [path for _, path in known if abs(sum(path) - length) == 1][:2]
    edited = {path[:l] + (n + length - sum(path),) + path[l + 1:]: None
              for path in near for l, n in enumerate(path) if 0 <= n + length - sum(path) <= 2}
    edited = [path for path in edited if path not in [tried for _, tried in found]]
    if edited:
        screened = sorted(zip(answered_by(lab, edited, lab.labelled[:SCREEN]), edited))[-2:]
        best = [path for _, path in screened]
        found += zip(answered_by(lab, best, lab.labelled), best)
    return max(found, default=None)


def static_paths(lab):
    """{length: (share of the label questions answered, path)} for every depth from 0.7 L to
    1.4 L."""
    paths, right = lab.measured_paths
    known = sorted(zip(right.float().mean(0).tolist(), map(tuple, paths)), reverse=True)
    lengths = range(int(np.ceil(0.7 * lab.L)), int(1.4 * lab.L) + 1)
    found = {n: lab.row(f"static path {n}", lambda: {"best": best_static(lab, n, known)})["best"]
             for n in lengths}
    return {n: (best[0], tuple(best[1])) for n, best in found.items() if best}


POINT = ("name", "layers", "accuracy", "sd", "gain", "interval", "over_static", "over interval")


def point(row):
    """What the frontier shows of a row."""
    return {key: row[key] for key in POINT if key in row}


def frontier(lab):
    """Accuracy against mean layers: tilt, price per layer, the knob p, static paths, the oracle."""
    rows = [lab.row(f"static, {n} layers", lambda: lab.figures([fixed(path)]))
            for n, (_, path) in lab.static_paths.items()]
    rows += [lab.row(f"tilt {tilt:+.1f}", lambda: lab.figures(lab.routes(tilt=tilt)))
             for tilt in TILTS]
    rows += [lab.row(f"control {p:+.2f}", lambda: lab.figures(lab.routes(control=p, gate=False)))
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
    sure = len(inside) - len(unsure)
    return (f"from {low:.1f} to {high:.1f} layers: {sure} of {len(inside)} points surely above "
            "static" + (f"; not {'; '.join(unsure)}" if unsure else ""))


def priced(lab, price):
    """Rows of routers on consensus labels chosen at another price of a layer, by tilt."""
    @functools.cache
    def trained():
        paths, right = lab.measured_paths
        labels = consensus(right, neighbours(lab.space, right), paths, price)
        return lab.train(*lab.examples(labels))
    return [lab.row(f"price {price}, tilt {tilt:+.1f}", lambda: lab.figures(
        [RouterRoute(routers, tilt) for routers in trained()])) for tilt in PRICED_TILTS]
