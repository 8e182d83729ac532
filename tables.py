"""What a person reads: comparisons, frontiers and heat maps as lines of text.

    percent(0.123, sign=True)    # +12.3
"""
import numpy as np

BARS = "▁▂▃▄▅▆▇█"
MOST_COLUMNS = 6  # of the table per task and level; metrics.json has all


def percent(value, sign=False):
    return f"{100 * value:{'+' if sign else ''}.1f}"


def aligned(rows, left=None):
    """Lines of text: rows of {column: text} below a header; columns in the order in which they
    first appear. left: those set flush left, the others are set flush right; None: all are."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [{column: column for column in columns}, *rows]
    widths = {column: max(len(row.get(column, "")) for row in lines) for column in columns}
    place = lambda row, column: format(row.get(column, ""), (
        "<" if left is None or column in left else ">") + str(widths[column]))
    return ["  ".join(place(row, column) for column in columns).rstrip() for row in lines]


def row_text(name, figures, seconds):
    """A line of the main table."""
    low, high = figures["interval"]
    shares = "/".join(f"{100 * figures[key]:.0f}" for key in ("skip", "execute", "repeat"))
    sd = "" if figures["sd"] is None else percent(figures["sd"])
    return (f"{name[:21]:<22}{percent(figures['accuracy']):>6} {sd:>4}  "
            f"{percent(figures['gain'], True):>6} [{percent(low, True):>5}, "
            f"{percent(high, True):>5}] {figures['p']:>7.1g}  {figures['layers']:>6.2f} "
            f"{figures['layers_executed']:>7.1f}  {shares:>9} {seconds:>5.1f} s")


HEAD = (f"{'route':<22}{'right':>6} {'sd':>4}  {'gain':>6} {'95% interval':>14} {'p':>7}  "
        f"{'layers':>6} {'summed':>7}  {'s/e/r %':>9} {'time':>7}")


def print_tables(metrics, names):
    """The comparison per task and level, and over the tasks the labels knew."""
    inside = {n: t for n, t in metrics["tasks"].items() if t["domain"] == "in"}
    total = next(iter(metrics["routes"].values()))["n"]
    print(f"\n{'In' if inside else 'Out of'} domain, {total} questions, none of them labelled or "
          f"trained on\n{HEAD}")
    for name, figures in metrics["routes"].items():
        print(row_text(names.get(name, name), figures, metrics["seconds"][name]))
    print("\nright % (layers) by task and level")
    columns = [name for name in metrics["routes"] if name != "shuffled"][:MOST_COLUMNS]
    print(f"{'':<18}{'n':>5} " + "".join(f"{names.get(c, c)[:17]:>18}" for c in columns))
    for domain in ("in", "out"):
        for task, figures in metrics["tasks"].items():
            if figures["domain"] != domain:
                continue
            lines = {f"{task} {level}": f for level, f in figures.get("levels", {}).items()}
            for label, routes in (lines or {task: figures["routes"]}).items():
                cells = (f"{percent(routes[c]['accuracy'])} ({routes[c]['layers']:.2f})"
                         for c in columns)
                print(f"{domain + ' ' + label:<18}{routes[columns[0]]['n']:>5} "
                      + "".join(f"{cell:>18}" for cell in cells))
    outside = [t for t in metrics["tasks"].values() if t["domain"] == "out"]
    if outside and inside:
        drops = {c: np.mean([t["routes"][c]["gain"] for t in outside]) for c in columns[1:]}
        print("mean out-of-domain change: "
              + ", ".join(f"{names.get(c, c)} {percent(d, True)}" for c, d in drops.items()))


def print_frontier(points, statics):
    """The routers at several tilts, and the static paths, [(length, right (N,))]."""
    print("\nThe frontier: routers with a constant t * (0, 1, 2) added to their logits, "
          "over static paths of the same mean depth")
    for point in points:
        low, high = point["interval"]
        print(f"  tilt {point['tilt']:+.1f}  layers {point['layers']:5.2f}  right "
              f"{percent(point['accuracy']):>5}  over static "
              f"{percent(point['over_static'], True):>5} "
              f"[{percent(low, True)}, {percent(high, True)}]")
    print("  static paths: "
          + "  ".join(f"{n} layers {percent(r.mean().item())}" for n, r in statics))


def heat(values):
    """A bar of mean counts, 0 (empty) over 1 (half) to 2 (full), one character each."""
    return "".join(BARS[round(min(7.0, mean * 3 if mean < 1 else 3 + 4 * (mean - 1)))]
                   for mean in values)


def print_heat_map(table, name):
    """How often each layer runs, by task and level."""
    runs = table.outcomes[name].decisions.float().mean(0)  # (N, L)
    groups = {}
    for n, prompt in enumerate(table.prompts):
        key = (not table.inside[n], prompt.question.task, prompt.question.level)
        groups.setdefault(key, []).append(n)
    print(f"\nHow often {name} runs each layer ({BARS[0]} never, {BARS[3]} once, {BARS[7]} twice), "
          f"layers 0 to {runs.shape[1] - 1}")
    for (out, task, level), rows in sorted(groups.items()):
        print(f"  {'out' if out else 'in '} {task + (f' {level}' if level else ''):<14} "
              f"{heat(runs[rows].mean(0).tolist())}  {runs[rows].sum(1).mean():.2f}")
