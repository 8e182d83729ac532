"""PNG of an experiment's numbers, if matplotlib is installed (it is not required).

    draw("figure1", result, "figure1.png")
"""
import functools
import importlib.util
import itertools

DRAWN = ("heat", "curves")  # the parts of a result that have a picture
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
    if not any(result.get(key) for key in DRAWN) or not available():
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    if result.get("heat"):
        heat(figure, result)
    else:
        curves(figure, result)
    figure.suptitle(f"{name}: {result['title']}", fontsize=9, wrap=True)
    figure.savefig(file, dpi=90)


def plain(axes, xlabel, ylabel=""):
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)


def heat(figure, result):
    """Mean count per task and layer, and next to it the spread of the layers run."""
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
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
