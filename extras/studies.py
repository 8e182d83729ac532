"""Three studies the paper leaves open: how good the decisions are, what happens out of domain, and
whether routing lies above static paths at every depth. Functions of a Lab, as in experiments.py.

    python -m extras.paper router ood frontier --run runs/demo
"""
import functools
import random

import numpy as np
import torch

from answers import answer
from baselines import BASELINES, Setting
from choose import (along_each, consensus, half_gain_price, neighbours, shortest,
                    similarity_space, upper_hull)
from diagnostics import agreement, class_report, interval, share_of_actions
from drllm import RouterRoute, fit_gate
from evaluate import static_at
from label import row_of, search_all
from train import features

ANCHORS = 300       # random-token prompts labelled with the default path
NEAR = ("biggest", "smallest", "compute")  # the demo's: other words or lengths, known skills
QUANTILES = (0.5, 0.8, 0.9, 0.95, 0.99, 0.999)
TILTS = (-1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0)
CONTROLS = (-0.45, -0.4, -0.25, 0.0)  # of the knob; below -0.5 everything is skipped
PRICES = (0.01, 0.03, 0.08)
SEARCHED = 250  # test questions of a domain that are searched for the sake of comparison
SCREEN, FINAL = 100, 400  # label questions that static paths are screened and compared on


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
    price = lab.run.args.price or half_gain_price(right, share, paths)
    return {"consensus": consensus(right, share, paths, price), "shortest": shortest(rows)}


def decision_quality(lab, where, choice, prompts, labels):
    """Rows of one domain and choice: per class, and agreement beside always executing."""
    kept = [n for n, path in enumerate(labels) if path is not None]
    wanted = torch.tensor([labels[n] for n in kept])
    routes = [RouterRoute(r, gate=choice != "shortest") for r in lab.routers(choice)]
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
    """{in, near, far, worst: accuracy change; layers of each} of routes, a seed each."""
    inside = lab.figures(routes)
    table, tasks = lab.far_table, np.array(lab.far_table.tasks)
    outcome = table.ask("out of domain", routes)
    gain = (outcome.right - table.outcomes["vanilla"].right).numpy()
    layers = outcome.layers.numpy()
    mean = lambda values, names: float(np.mean([values[tasks == t].mean() for t in names]))
    every = list(dict.fromkeys(table.tasks))
    near = [t for t in every if t in NEAR]
    far = [t for t in every if t not in NEAR]
    row = {"in": 100 * inside["gain"], "in layers": inside["layers"]}
    for name, members in (("near", near), ("far", far), ("out", every)):
        if members:
            row |= {name: 100 * mean(gain, members), f"{name} layers": mean(layers, members)}
    low, high = interval(gain)
    return row | {"out interval": [low, high],
                  "tasks": {t: [float(gain[tasks == t].mean()), float(layers[tasks == t].mean())]
                            for t in every}}


def protections(lab, choice):
    """Rows of neither, gate, anchors and both, for one choice of label."""
    for anchors in (False, True):
        trained = lazily(lambda: anchored(lab, choice, anchors))
        for gate in (False, True):
            words = [word for word, on in (("gate", gate), ("anchors", anchors)) if on]
            yield lab.row(f"{choice}, {' and '.join(words) or 'bare'}", lambda: domains(
                lab, [RouterRoute(r, gate=gate) for r in trained()]))


def anchored(lab, choice, anchors):
    """Routers of every seed, with anchors among their examples or without."""
    if not anchors:
        return lab.train(*lab.examples(lab.labels(choice)))
    data, own = with_anchors(lab, lab.labels(choice))
    return lab.train(*data, gate_on=own)


def lazily(make):
    """A function that calls make() at most once: finished rows need no routers."""
    return functools.cache(make)


def thresholds(lab):
    """Rows of the run's choice with gates that let more or less pass."""
    examples = lazily(lambda: lab.examples(lab.labels()))
    trained = lazily(lambda: lab.train(*examples()))
    for quantile in QUANTILES:
        yield lab.row(f"gate at {quantile}", lambda: domains(
            lab, [regated(routers, examples(), seed, quantile)
                  for seed, routers in zip(lab.seeds, trained())]))


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
    return {"bare": 100 * bare["gain"], "bare layers": bare["layers"],
            "gate": 100 * gated["gain"], "gate layers": gated["layers"],
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

def score_paths(lab, paths, prompts):
    """(K,) share of the prompts that each path answers."""
    right = along_each(lab.model, lab.tokenizer, prompts, paths, lab.args.batch_size) > 0
    return right.float().mean(0)


def refined(lab, length, known):
    """The best static path of a length: the known ones and their one-edit neighbours are screened
    on some label questions, the best of them compared on more."""
    candidates = [path for path in known if sum(path) == length]
    for path in [p for p in known if abs(sum(p) - length) == 1][:2]:
        step = length - sum(path)
        candidates += [path[:l] + (n + step,) + path[l + 1:] for l, n in enumerate(path)
                       if 0 <= n + step <= 2]
    candidates = list(dict.fromkeys(candidates))
    if not candidates:
        return None
    order = score_paths(lab, candidates, lab.labelled[:SCREEN]).argsort(descending=True).tolist()
    kept = list(dict.fromkeys([candidates[k] for k in order[:3]] + candidates[:1]))
    return kept[score_paths(lab, kept, lab.labelled[:FINAL]).argmax()]


def static_paths(lab):
    """{length: path} for every depth from 0.7 L to 1.4 L, chosen on label questions only."""
    paths, right = lab.measured_paths
    share = right.float().mean(0).tolist()
    known = [path for _, path in sorted(zip(share, map(tuple, paths)), reverse=True)]
    lengths = range(int(np.ceil(0.7 * lab.L)), int(1.4 * lab.L) + 1)
    found = {n: lab.row(f"static path {n}", lambda: {"path": refined(lab, n, known)})["path"]
             for n in lengths}
    return {n: tuple(path) for n, path in found.items() if path}


class Curve:
    """The static paths of a Lab, asked of the test questions when a row first needs them."""

    def __init__(self, lab):
        self.lab, self.paths = lab, static_paths(lab)

    def route(self, length):
        return [torch.tensor(self.paths[length]).expand(len(self.lab.inside), -1)]

    @functools.cached_property
    def hull(self):
        """[(length, right (N,))] of the lengths that no mix beats, on label questions."""
        chosen = score_paths(self.lab, list(self.paths.values()), self.lab.labelled[:FINAL])
        return [(n, self.lab.table.ask(f"static {n}", self.route(n)).right)
                for n, _ in upper_hull(list(zip(self.paths, chosen.tolist())))]

    def over(self, routes, name=""):
        """The row of routes, with the gain over the mix of static paths of the same mean depth."""
        outcome = self.lab.table.ask(name, routes)
        layers = outcome.layers.mean().item()
        gain = outcome.right - self.lab.table.outcomes["vanilla"].right
        over = outcome.right - static_at(layers, self.hull)
        return {"layers": layers, "accuracy": outcome.right.mean().item(),
                "gain": gain.mean().item(), "interval": list(interval(gain)),
                "over_static": over.mean().item(), "over interval": list(interval(over))}


def frontier(lab):
    """Accuracy against mean layers: tilt, price per layer, the knob p, static paths, the oracle."""
    curve, rows = Curve(lab), []
    rows += [lab.row(f"static, {n} layers", lambda: curve.over(curve.route(n)))
             for n in curve.paths]
    rows += [lab.row(f"tilt {tilt:+.1f}", lambda: curve.over(
        [RouterRoute(r, tilt) for r in lab.routers()])) for tilt in TILTS]
    rows += [lab.row(f"control {p:+.2f}", lambda: curve.over(
        [RouterRoute(r, 0.0, p, gate=False) for r in lab.routers()])) for p in CONTROLS]
    rows += [lab.row(f"price {price}", lambda: curve.over(priced(lab, price))) for price in PRICES]
    rows.append(lab.row("oracle", lambda: curve.over(oracle(lab))))
    kinds = ("static", "tilt", "control", "price", "oracle")
    return {"title": "accuracy against mean layers, over the mix of static paths of the same depth",
            "rows": rows, "notes": [verdict(lab, rows)],
            "curves": {kind: [[r["layers"], r["accuracy"]] for r in rows
                              if r["name"].startswith(kind)] for kind in kinds}}


def verdict(lab, rows):
    """Whether routing lies above static paths from 0.9 L to 1.3 L, in a sentence."""
    low, high = 0.9 * lab.L, 1.3 * lab.L
    inside = [r for r in rows if r["name"].startswith(("tilt", "price"))
              and low <= r["layers"] <= high]
    unsure = [r["name"] for r in inside if r["over interval"][0] <= 0]
    sure = len(inside) - len(unsure)
    return (f"from {low:.1f} to {high:.1f} layers: {sure} of {len(inside)} points surely above "
            "static" + (f"; not {', '.join(unsure)}" if unsure else ""))


def oracle(lab):
    """The paths a search with the gold answers finds on the test questions."""
    return BASELINES["cola"].make(Setting(lab.model, lab.tokenizer, lab.inside, [], None, 0.0,
                                          batch_size=lab.args.batch_size)).routes


def priced(lab, price):
    """Routes of routers on consensus labels chosen at another price of a layer."""
    paths, right = lab.measured_paths
    labels = consensus(right, neighbours(lab.space, right), paths, price)
    return [RouterRoute(r) for r in lab.train(*lab.examples(labels))]
