"""What each table and figure of the paper asks, as a function of a Lab.

Every function returns {"title", "rows"} of plain numbers, "notes" in words, and one of
pictures.DRAWN if there is something to draw. Rows are computed once (lab.row).

    python -m experiments.paper all --run runs/demo
"""
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from choose import confident
from cli import percent
from drllm import RouterRoute, Routers
from evaluate import ACTIONS, add_fixed_paths, shuffled, summarise
from experiments import methods
from experiments.pictures import BOX
from experiments.statistics import (is_corrected, layers_saved, share_of_actions,
                                    split_by_default)
from experiments.studies import frontier, ood, point

FORCED = ("executed-only", "no-skip", "no-repeat")
CONTROLS = ("random", "swapped")
AT_DEPTH = ("shortgpt", "pruner", "early-exit", "mindskip", "flexidepth", "mod")
AS_THEY_ARE = ("halting", "recursions", "polar", "random")  # cannot be matched to a depth
SHALLOWER = (0.8, 0.9)  # of the model's layers: further depths of figure1
BARS = "▁▂▃▄▅▆▇█"
PAPER = {  # its claims, which are printed below our figures
    "table2": "search saved 1.82 of 28-32 layers on questions answered correctly",
    "table3": "+0.9 to +4.0 points in domain, 3 to 11 layers saved per answer",
    "table4": "-0.85 points out of domain on average",
    "table6": "hidden states beat embeddings",
    "figure5": "W = 8 is best; a width of 128 is enough; 2 linear layers",
    "figure7": "focal loss is best",
}


def beside_paper(name, title, rows):
    """A result with what the paper claims as its note."""
    return {"title": title, "rows": rows, "notes": [f"The paper: {PAPER[name]}."]}


def masks_of_tasks(table):
    """{task: (N,) bool of a Comparison's questions that are of it}."""
    tasks = np.array(table.tasks)
    return {task: torch.from_numpy(tasks == task) for task in dict.fromkeys(table.tasks)}


def heat(counts):
    """A character per mean count, from 0 (empty) over 1 (half) to 2 (full)."""
    heights = np.interp(counts, (0, 1, 2), (0, 3, 7))
    return "".join(BARS[round(height)] for height in heights)


# ---- what the search found ----

def groups_of(records):
    """{task and level: search records}, all of them last."""
    groups = {}
    for record in records:
        level = record["level"] or ""
        groups.setdefault(f"{record['task']} {level}".strip(), []).append(record)
    return dict(sorted(groups.items())) | {"all": records}


def mean(values):
    """None if there are no values."""
    return float(np.mean(values)) if len(values) else None


def search_statistics(name, records):
    """One row of Table 2. saved: layers the shortest correct path has less than the default."""
    correct, incorrect = split_by_default(records)
    corrected = [record for record in incorrect if is_corrected(record)]
    saved = np.array([layers_saved(record) for record in correct], float)
    added = np.array([-layers_saved(record) for record in corrected], float)
    return {"name": name, "n": len(records),
            "correct before %": 100 * len(correct) / len(records),
            "correct after %": 100 * (len(correct) + len(corrected)) / len(records),
            "saved, correct ones": mean(saved), "with a shorter path %": mean(100 * (saved > 0)),
            "corrected %": mean([100 * is_corrected(record) for record in incorrect]),
            "layers added, corrected": mean(added),
            "correct paths met": mean([len(record["correct"]) for record in records])}


def table2(lab):
    """What the searches found, by task and level."""
    rows = [search_statistics(*group) for group in groups_of(lab.records).items()]
    return beside_paper("table2", f"what {lab.run.args.simulations} simulations per question found",
                        rows)


def figure9(lab):
    """Skip, execute and repeat among the labels, per layer: the run's choice and the paper's."""
    rows = []
    for choice in dict.fromkeys((lab.choice, "shortest")):
        labels = torch.tensor([path for path in lab.labels(choice) if path is not None])
        share = share_of_actions(labels)  # (L, 3)
        row = {"name": choice, "labels": len(labels)}
        for action, part in zip(ACTIONS, share.mean(0).tolist()):
            row[f"{action} %"] = 100 * part
        rows.append(row | {"mean count per layer": heat(labels.float().mean(0).tolist())})
    return {"title": "the labels, per layer", "rows": rows}


# ---- accuracy in and out of domain ----

def domain_rows(lab, table):
    """The base model, Dr.LLM, the paper's recipe (no guard) and Dr.LLM with forbidden actions by
    task, then the fixed paths and the controls on all questions."""
    own = lab.own(table)
    table.add("paper", lab.routes("shortest", guard=False), "the paper's recipe")
    add_fixed_paths(table, "dr.llm", lab.fixed_paths)
    table.add("shuffled", [shuffled(own.decisions[0])])
    methods.add(table, (*FORCED, *CONTROLS), lab.routers(), own, lab.labelled, lab.label_of)
    outcomes, everything = table.outcomes, torch.ones(len(table.prompts)).bool()
    rows = []
    for name in ("vanilla", "dr.llm", "paper", *FORCED):
        for task, mask in (masks_of_tasks(table) | {"all": everything}).items():
            figures = summarise(outcomes[name], outcomes["vanilla"], mask)
            rows.append({"name": f"{outcomes[name].name}: {task}"} | figures)
    for name in ("fixed below", "fixed above", "shuffled", *CONTROLS):
        if name in outcomes:
            figures = summarise(outcomes[name], outcomes["vanilla"], everything)
            rows.append({"name": outcomes[name].name} | figures)
    return rows


def table3(lab):
    """Accuracy in domain."""
    title = f"in domain, {len(lab.inside)} questions, {len(lab.seeds)} router seeds"
    return beside_paper("table3", title, domain_rows(lab, lab.table))


def table4(lab):
    """Accuracy out of domain."""
    title = f"out of domain, {len(lab.outside)} questions, {len(lab.seeds)} router seeds"
    return beside_paper("table4", title, domain_rows(lab, lab.far_table))


# ---- other methods ----

def table5(lab):
    """Every method that can be matched to a mean depth, at Dr.LLM's; the others as they are."""
    depth = own_depth(lab)
    rows = [base_row(lab), lab.row("Dr.LLM", lab.own_figures)]
    rows += [lab.method(name, depth) for name in AT_DEPTH]
    rows += [*as_they_are(lab), lab.method("cola")]
    return {"title": f"methods at {depth:.2f} layers", "rows": rows,
            "notes": ["oracle: the gold answer chooses the path; frozen retrofit: the method's own "
                      "training of the base model is left out"]}


def own_depth(lab):
    """The mean layers per forward pass of the run's own routers in domain."""
    return lab.own(lab.table).layers.mean().item()


def base_row(lab):
    """The row of the base model."""
    return lab.row("base model", lambda: lab.figures([None]))


def as_they_are(lab):
    """Rows of methods that cannot be matched to a depth."""
    def shuffled_decisions():
        figures = lab.figures([shuffled(lab.own(lab.table).decisions[0])])
        return {"note": "control: each question's own decisions in random layers", **figures}
    return [*map(lab.method, AS_THEY_ARE), lab.row("shuffled", shuffled_decisions)]


# ---- ablations of the router ----

class EmbeddingRoute(RouterRoute):
    """Every layer's router sees the prompt's embeddings instead of the layer's input."""

    def pool(self, hidden, lengths):
        return self.embedded

    def __call__(self, layer, hidden, lengths):
        if layer == 0:
            self.embedded = super().pool(hidden, lengths)
        return super().__call__(layer, hidden, lengths)


class LinearRouters(Routers):
    """One linear layer instead of two."""

    def __init__(self, num_layers, hidden_size, width=128, windows=8):
        super().__init__(num_layers, hidden_size, 1, windows)
        self.only = nn.Parameter(0.01 * torch.randn(num_layers, hidden_size, 3))

    def forward(self, pooled, counts, layers=slice(None)):
        """Linear in the windows, so their mean may be taken first."""
        mean = (pooled.sum(2) / counts[:, None, None]).transpose(0, 1)  # (l, N, D)
        return torch.baddbmm(self.b2[layers], mean, self.only[layers]).transpose(0, 1)


class DeepRouters(Routers):
    """Three linear layers instead of two."""

    def __init__(self, num_layers, hidden_size, width=128, windows=8):
        super().__init__(num_layers, hidden_size, width, windows)
        self.middle = nn.Parameter(torch.randn(num_layers, width, width) * width ** -0.5)

    def forward(self, pooled, counts, layers=slice(None)):
        N, l, W, D = pooled.shape
        windows = pooled.transpose(0, 1).reshape(l, N * W, D)
        inner = F.gelu(torch.baddbmm(self.b1[layers], windows, self.w1[layers]))
        inner = F.gelu(torch.bmm(inner, self.middle[layers]))
        logits = torch.baddbmm(self.b2[layers], inner, self.w2[layers]).view(l, N, W, 3)
        in_use = torch.arange(W, device=counts.device) < counts[:, None]
        return ((logits * in_use[..., None]).sum(2) / counts[:, None]).transpose(0, 1)


def variant(lab, name, labels=None, kind=Routers, **changes):
    """The in-domain row of routers trained with other settings, or of the run's own."""
    def make():
        config = replace(lab.run.config, **changes)
        if (labels, kind, config) == (None, Routers, lab.run.config):
            return lab.own_figures()
        examples = lab.examples(labels or lab.labels(), config.windows)
        routers = lab.trained(*examples, config, kind=kind)
        return lab.figures([RouterRoute(of_seed) for of_seed in routers])
    return lab.row(name, make)


def table6(lab):
    """Routers that see hidden states alongside routers that see embeddings."""
    def embedded():
        pooled, counts, decisions = lab.examples(lab.labels())
        pooled = pooled[:, :1].expand_as(pooled)
        routers = lab.trained(pooled, counts, decisions)
        return lab.figures([EmbeddingRoute(of_seed) for of_seed in routers])
    return beside_paper("table6", "what the routers see", [
        variant(lab, "hidden states"), lab.row("embeddings only", embedded)])


def figure5(lab):
    """Width, number of linear layers and number of windows; figure 8 shows the same."""
    rows = [variant(lab, f"width {width}", width=width) for width in (16, 64, 128, 256)]
    rows += [variant(lab, "1 linear layer", kind=LinearRouters),
             variant(lab, "3 linear layers", kind=DeepRouters)]
    rows += [variant(lab, "1 window", windows=1)]
    rows += [variant(lab, f"{windows} windows", windows=windows) for windows in (2, 4, 8, 16)]
    return beside_paper("figure5", "the routers' shape (default: width 128, 2 linear layers, 8 "
                                   "windows)", rows)


def figure7(lab):
    """The loss, its constants, and the number and choice of labels."""
    rows = [variant(lab, "focal loss"), variant(lab, "weighted cross-entropy", gamma=0.0),
            variant(lab, "cross-entropy", gamma=0.0, beta=0.0)]
    rows += [variant(lab, f"gamma {gamma:g}", gamma=gamma) for gamma in (1.0, 4.0)]
    rows += [variant(lab, f"beta {beta:g}", beta=beta) for beta in (0.0, 0.9999)]
    for share in (4, 2):
        labels = lab.labels()[:len(lab.labels()) // share]
        rows.append(variant(lab, f"{len(labels)} training questions", labels))
    rows += [lab.row("shortest labels", lambda: lab.figures(lab.routes("shortest"))),
             variant(lab, "confident labels", confident(lab.records))]
    return beside_paper("figure7", "the loss and the labels (default: gamma 2, beta 0.999, "
                                   f"{len(lab.labelled)} {lab.choice} labels)", rows)


# ---- pictures of decisions ----

def figure1(lab):
    """Accuracy against layers: the frontier's lines and the other methods', those that can be
    matched to a depth at three of them."""
    lines = frontier(lab)
    depths = [*(share * lab.L for share in SHALLOWER), own_depth(lab)]
    others = {"base model": [base_row(lab)]}
    for name in AT_DEPTH:
        others[methods.METHODS[name].title] = [lab.method(name, depth) for depth in depths]
    others |= {row["name"]: [row] for row in as_they_are(lab)}
    curves, points = dict(lines["curves"]), []
    for title, rows in others.items():
        curves[title] = [[row["layers"], row["accuracy"]] for row in rows]
        points += map(point, rows)
    return {"title": "accuracy against layers", "curves": curves, "rows": lines["rows"] + points}


def figure4(lab):
    """Mean count per layer and task, and quartiles of the layers run; figure 10 shows the same."""
    rows, heat_map, tables = [], {}, {"in": lab.table}
    if lab.outside:
        tables["out"] = lab.far_table
    for where, table in tables.items():
        decisions = lab.own(table).decisions.float().mean(0)  # (N, L)
        for task, mask in masks_of_tasks(table).items():
            per_layer = decisions[mask].mean(0).tolist()
            layers = decisions[mask].sum(1)
            spread = layers.quantile(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])).tolist()
            heat_map[f"{where} {task}"] = per_layer
            rows.append({"name": f"{where} {task}", "per layer": heat(per_layer),
                         "layers": layers.mean().item(), **dict(zip(BOX, spread))})
    return {"title": "how often each layer runs", "rows": rows, "heat": heat_map,
            "notes": ["per layer: ▁ never, ▄ once, █ twice"]}


def figure6(lab, steps=9):
    """The paper's interpolation p, from always skip to always repeat; without the guard, which
    would execute what it skips."""
    values = np.linspace(-1, 1, steps).tolist()
    rows = [lab.row(f"p {p:+.2f}", lambda: lab.figures(lab.routes(control=p, guard=False)[:1]))
            for p in values]
    best = max(row["accuracy"] for row in rows)
    return {"title": "the interpolation parameter p (-0.5: the router itself), one seed, no guard",
            "rows": rows, "notes": [f"best accuracy {percent(best)}"]}


EXPERIMENTS = {"table2": table2, "figure9": figure9, "table3": table3, "table4": table4,
               "table5": table5, "table6": table6, "figure4": figure4, "figure5": figure5,
               "figure6": figure6, "figure7": figure7, "ood": ood, "frontier": frontier,
               "figure1": figure1}
