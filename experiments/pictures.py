"""PNG of an experiment's numbers, where matplotlib is installed (it is no requirement).

    draw("figure6", result, "figure6.png")
"""
import functools
import importlib.util
import itertools

ACTIONS = (("skip", "#d1495b"), ("execute", "#c9cdd2"), ("repeat", "#30638e"))
DRAWN = ("heat", "bars", "curves", "interpolation")  # the parts of a result that have a picture
BOX = ("least", "quarter", "median", "three quarters", "most")


@functools.cache
def available():
    """True if matplotlib can be imported; says so once if it cannot."""
    is_there = importlib.util.find_spec("matplotlib") is not None
    if not is_there:
        print("matplotlib is not installed: no pictures (pip install matplotlib)")
    return is_there


def draw(name, result, file):
    """Writes the picture that fits what the result has; none if nothing fits."""
    kind = next((key for key in DRAWN if result.get(key)), None)
    if kind is None or not available():
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    drawing = {"heat": heat, "bars": bars, "curves": curves, "interpolation": interpolation}[kind]
    drawing(figure, result)
    figure.suptitle(f"{name}: {result['title']}", fontsize=9, wrap=True)
    figure.savefig(file, dpi=90)


def plain(axes, xlabel, ylabel=""):
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)


def legend(figure, axes, place, **how):
    figure.legend(*axes.get_legend_handles_labels(), loc=f"outside {place}", fontsize=8, **how)


def heat(figure, result):
    """Mean count per task and layer, and beside it the spread of the layers run."""
    names, values = list(result["heat"]), list(result["heat"].values())
    figure.set_size_inches(9, 1.5 + 0.3 * len(names))
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    image = left.imshow(values, vmin=0, vmax=2, cmap="RdBu", aspect="auto")
    left.set_yticks(range(len(names)), names)
    left.set_xticks(range(0, len(values[0]), max(1, len(values[0]) // 12)))
    left.set_xlabel("layer")
    figure.colorbar(image, ax=left, label="times run")
    boxes = []
    for row in result["rows"]:
        ends = zip(("whislo", "q1", "med", "q3", "whishi"), (row[key] for key in BOX))
        boxes.append(dict(ends, fliers=[]))
    right.bxp(boxes[::-1], orientation="horizontal", showfliers=False)
    right.set_yticks([])
    plain(right, "layers per forward pass")


def stacked(axes, places, shares, width=0.8):
    """Bars of the three actions' shares, one upon the other."""
    base = [0.0] * len(places)
    for (action, colour), share in zip(ACTIONS, shares):
        axes.bar(places, share, width, bottom=base, color=colour, label=action)
        base = [low + more for low, more in zip(base, share)]


def bars(figure, result):
    """Shares of the three actions per layer, one panel per set of decisions."""
    panels = result["bars"]
    figure.set_size_inches(3.2 * len(panels), 2.8)
    drawn = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, shares) in zip(drawn, panels.items()):
        layers = range(len(shares[0]))
        stacked(axes, layers, shares)
        axes.set_title(name, fontsize=8)
        axes.set_ylim(0, 1)
        axes.set_xticks(layers[::max(1, len(layers) // 6)])
        plain(axes, "layer")
    legend(figure, axes, "lower center", ncols=3)


def curves(figure, result):
    """Accuracy against layers, a line per kind of route; fixed paths, the control, are black."""
    figure.set_size_inches(8, 4)
    axes, shapes = figure.subplots(), itertools.cycle("os^vD<>*")
    for name, points in result["curves"].items():
        if points:
            layers, accuracy = zip(*sorted(points))
            axes.plot(layers, [100 * y for y in accuracy], next(shapes) + "-", ms=4, lw=1,
                      label=name, color="black" if name == "fixed path" else None)
    plain(axes, "layers per forward pass", "accuracy %")
    legend(figure, axes, "right upper")


def interpolation(figure, result):
    """Accuracy and layers over the interpolation p, and what the routers then decide."""
    figure.set_size_inches(7.5, 3)
    left, right = figure.subplots(1, 2)
    p, accuracy, layers, *shares = zip(*result["interpolation"])
    left.plot(p, [100 * value for value in accuracy], "o-", color="#30638e")
    plain(left, "p", "accuracy %, solid")
    beside = left.twinx()
    beside.plot(p, layers, "s--", color="#d1495b")
    beside.set_ylabel("layers, dashed")
    stacked(right, p, shares, 0.9 * (p[1] - p[0]))
    plain(right, "p", "share of decisions")
    legend(figure, right, "lower right", ncols=3)
