"""The tutorial's figures as SVG text: 480 pixels wide, so that they can be read on a phone, with a
background of their own that follows the reader's light or dark setting.

    .venv/bin/python docs/draw_tutorial.py     draws assets/tutorial_*.svg

The tree comes from the search of math-01053 by the demo's model, the windows from its prompt, the
accuracies from assets/demo.json. The others show the examples of the page.
"""
import random
import sys
from html import escape
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]

from draw import STYLE  # noqa: E402

from label import question_rng  # noqa: E402
from mcts import SearchConfig, search, select_node_to_expand, ucb_score  # noqa: E402
from model_llama import FixedRoute, generate, load_model, load_tokenizer  # noqa: E402
from storage.files import read_json, write_whole  # noqa: E402

ROOT, ASSETS = DOCS.parent, DOCS.parent / "assets"
WIDTH = 480
PROMPT = "Question: 1 - 8 - 5 - 1 + 7 * 3 + 6 * 2 * 2 = Answer: \\boxed{"
ANSWER = "2 }"
MORE = """
  .bold { font-weight: 600; } .small { font-size: 12px; } .line { stroke: var(--rim); }
  .bar { fill: none; stroke: var(--run); stroke-width: 2; }
  .right { fill: var(--good); } .wrong { fill: var(--page); stroke: var(--bad); stroke-width: 3; }
  .off { fill: var(--page); stroke: var(--faint); }
"""


# ---- pieces ----

def page(height, label, *parts):
    """A whole figure; label: what a screen reader says."""
    body = "\n".join(parts)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" role="img" aria-label="{escape(label)}">\n'
            f"<style>{STYLE}{MORE}</style>\n"
            f'<rect fill="var(--page)" width="{WIDTH}" height="{height}" rx="10"/>\n'
            f"{body}\n</svg>\n")


def text(x, y, words, kind="", anchor="start", turn=None):
    turned = f' transform="rotate({turn} {x:g} {y:g})"' if turn is not None else ""
    return (f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}"{turned}>'
            f"{escape(str(words))}</text>")


def box(x, y, width, height, kind):
    return (f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" '
            f'rx="{min(5, height / 4):g}"/>')


def line(x1, y1, x2, y2, kind="line"):
    return f'<line class="{kind}" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>'


def dot(x, y, radius, kind):
    return f'<circle class="{kind}" cx="{x:g}" cy="{y:g}" r="{radius:g}"/>'


def small_path(decisions, x, y):
    """A path as a row of small squares: empty if skipped, orange if repeated."""
    return "".join(box(x + 11 * n, y, 9, 9, ("off", "run", "twice")[code])
                   for n, code in enumerate(decisions))


# ---- the figures ----

def loop():
    """The routed loop: what each layer does, and the cache entries that it leaves."""
    columns = [(4, 1), (5, 0), (6, 1), (7, 2)]
    parts = [text(20, 30, "hidden states", "faint"), text(460, 30, "layers", "faint", "end"),
             line(14, 80, 470, 80, "stream"), text(20, 178, "cache entries", "faint")]
    for n, (layer, count) in enumerate(columns):
        x = 40 + 108 * n
        parts += [box(x, 56, 64, 48, ("skip", "run", "twice")[count]),
                  text(x + 32, 86, layer, ("faint", "on", "on")[count], "middle"),
                  text(x + 32, 126, ("skip", "execute", "repeat")[count], "bold", "middle")]
        if count == 0:
            parts.append(f'<path class="arc" d="M{x - 14} 78 Q{x + 32} 20 {x + 78} 78"/>')
        if count == 2:
            parts.append(f'<path class="loop" '
                         f'd="M{x + 52} 56 C{x + 62} 28 {x + 2} 28 {x + 12} 56"/>')
        for entry in range(count):
            y = 192 + 40 * entry
            parts += [box(x - 8, y, 80, 32, "skip"),
                      text(x + 32, y + 21, f"K V, pass {entry + 1}", "small", "middle")]
        if count == 0:
            parts.append(text(x + 32, 213, "none", "faint", "middle"))
    return page(286, "Layers 4 and 6 are executed and have one cache entry each. Layer 5 is "
                "skipped and has none. Layer 7 is repeated and has two, one for each pass.", *parts)


def first_tree(simulations=11):
    """The root of the search tree of math-01053 after so many simulations."""
    model, tokenizer = load_model(ROOT / "demo/model"), load_tokenizer(ROOT / "demo/model")
    prompt, roots = tokenizer.encode(PROMPT), []

    def select(root, rewards, config, rng):
        roots.append(root)
        return select_node_to_expand(root, rewards, config, rng)
    config = SearchConfig(simulations=simulations, stop_when_repaired=False)
    steps = search(12, config, question_rng("math-01053", 0), select)
    path = next(steps)
    try:
        while True:
            made = generate(model, [prompt], FixedRoute(path), 7, tokenizer.stop_ids)
            path = steps.send(float(tokenizer.decode(made.tokens[0]) == ANSWER))
    except StopIteration:
        return roots[0]


def rows_of(node, depth=0):
    """[(node, depth)] from the root down, as an indented list."""
    rows = [(node, depth)]
    for child in node.children:
        rows += rows_of(child, depth + 1)
    return rows


def tree(root):
    """A search tree as an indented list: path, reward, visits, total reward, score."""
    config, top, step = SearchConfig(), 62, 34
    parts = [text(20, 28, "path", "faint"), text(282, 28, "visits", "faint", "end"),
             text(352, 28, "reward", "faint", "end"), text(460, 28, "score", "faint", "end"),
             text(460, 44, "(best is highest)", "faint small", "end")]
    rows, row_of = rows_of(root), {}
    for n, (node, depth) in enumerate(rows):
        x, y = 26 + 26 * depth, top + step * n
        row_of[node] = (x, y)
        if node.parent is not None:
            px, py = row_of[node.parent]
            parts += [line(px, py + 9, px, y), line(px, y, x - 9, y)]
    for node, (x, y) in row_of.items():
        parts += [dot(x, y, 7, "right" if node.reward else "wrong"),
                  small_path(node.decisions, x + 18, y - 5),
                  text(282, y + 5, node.visits, "", "end"),
                  text(352, y + 5, f"{node.total_reward:.0f}", "", "end")]
        if node.parent is not None:
            parts.append(text(460, y + 5, f"{ucb_score(node, config):.3f}", "", "end"))
    end = top + step * len(rows)
    parts += [dot(34, end, 7, "right"), text(48, end + 5, "correct", "faint"),
              dot(124, end, 7, "wrong"), text(138, end + 5, "incorrect", "faint"),
              small_path((0,), 228, end - 5), text(242, end + 5, "skip", "faint"),
              small_path((1,), 290, end - 5), text(304, end + 5, "execute", "faint"),
              small_path((2,), 374, end - 5), text(388, end + 5, "repeat", "faint")]
    return page(end + 24, f"A search tree of {len(rows)} nodes. The default path is the root, with "
                f"{root.visits} visits and a total reward of {root.total_reward:.0f}.", *parts)


def windows():
    """Tokens into windows, windows through one network, their mean to three logits."""
    tokens = PROMPT.replace("=", "= ").split()
    parts = [text(20, 28, "21 tokens", "faint")]
    for n, token in enumerate(tokens):
        x, used = 12 + 22 * n, n < 16
        parts += [box(x, 38, 19, 82, "skip"),
                  text(x + 14, 114, token, "small" if used else "small faint", turn=-90)]
        if n % 2 == 0 and used:
            middle = x + 20.5
            parts += [f'<path class="bar" d="M{x + 2} 126 v6 h37 v-6"/>',
                      box(middle - 16, 146, 32, 28, "run"),
                      text(middle, 165, n // 2, "on", "middle"),
                      line(middle, 132, middle, 146), line(middle, 174, 188, 208)]
    parts += [text(372, 150, "in no", "faint"), text(372, 166, "window", "faint"),
              box(108, 208, 160, 36, "twice"),
              text(188, 231, "the same network", "on", "middle"), line(188, 244, 188, 262),
              text(188, 278, "mean over the 8 windows", "faint", "middle"),
              line(188, 286, 188, 300)]
    for n, (word, kind) in enumerate((("skip", "skip"), ("execute", "run"), ("repeat", "twice"))):
        x = 56 + 92 * n
        parts += [box(x, 300, 80, 32, kind),
                  text(x + 40, 321, word, "on" if n else "faint", "middle")]
    parts.append(text(340, 321, "the largest decides", "faint"))
    return page(350, "21 tokens pass in pairs into 8 windows; the last five are in no window. "
                "Every window's mean passes through the same network. The mean of the results "
                "gives three logits for skip, execute and repeat; the largest decides.", *parts)


def label():
    """From correct paths to a label, in four steps."""
    rng = random.Random(4)
    steps = (("Group similar questions", "by their mean hidden states"),
             ("Estimate every edit's effect", "repeat layer 2: +0.56; skip layer 0: +0.11"),
             ("Combine the best edits", "into candidate paths, tried on every question"),
             ("Choose a correct one", "the neighbours' share, minus a cost per layer"))
    parts = []
    for n, (title, words) in enumerate(steps):
        y = 24 + 112 * n
        parts += [dot(34, y + 22, 16, "run"), text(34, y + 27, n + 1, "on", "middle"),
                  text(64, y + 18, title, "bold"), text(64, y + 38, words, "faint")]
        if n < 3:
            parts.append(line(34, y + 42, 34, y + 112))
    for middle, kind in ((110, "run"), (220, "twice"), (330, "right")):  # step 1
        parts += [dot(middle + rng.uniform(-26, 26), 84 + rng.uniform(-12, 12), 4, kind)
                  for _ in range(9)]
    for x, size, kind, word in ((64, 112, "twice", "repeat 2"), (64, 22, "skip", "skip 0")):
        y = 186 if kind == "twice" else 206
        parts += [box(x, y, size, 14, kind), text(x + size + 8, y + 12, word, "small")]
    for n, path in enumerate(((1, 1, 1), (1, 1, 2), (0, 1, 2))):  # step 3
        parts += [small_path(path, 64 + 90 * n, 304)]
    values = (("0.75 - 0.20 = 0.55", (1, 1, 2)), ("0.50 - 0.15 = 0.35", (0, 1, 2)))
    for n, (value, path) in enumerate(values):  # step 4: at a cost of 0.05 per layer
        x = 64 + 200 * n
        parts += [small_path(path, x, 416), text(x + 42, 425, value, "faint" if n else "good")]
    return page(452, "Four steps. 1: similar questions are grouped. 2: the effect of every single "
                "edit is estimated. 3: the best edits are combined into candidate paths. 4: each "
                "question takes the correct candidate path with the highest value.", *parts)


def fixed_points(metrics):
    """[(layers, accuracy)] of the best fixed paths in metrics.json."""
    return [(point["layers"], point["accuracy"]) for point in metrics["fixed"]]


def depth(metrics):
    """Accuracy against layers on the demo."""
    low, high, bottom, top = 8.5, 16.5, 0.5, 0.95

    def at(layers, accuracy):
        return (56 + 400 * (layers - low) / (high - low),
                300 - 250 * (accuracy - bottom) / (top - bottom))
    parts = [text(20, 28, "accuracy, %", "faint"),
             text(456, 342, "blocks per forward pass", "faint", "end")]
    for percent in range(50, 96, 10):
        x, y = at(low, percent / 100)
        parts += [line(x, y, 456, y), text(x - 8, y + 5, percent, "faint", "end")]
    for layers in range(9, 17):
        x, y = at(layers, bottom)
        parts.append(text(x, y + 20, layers, "faint", "middle"))
    points = [at(*point) for point in fixed_points(metrics)]
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts.append(f'<polyline class="bar" points="{drawn}"/>')
    parts += [dot(x, y, 4, "run") for x, y in points]
    x, y = at(14, 0.875)
    parts.append(text(x + 8, y + 22, "best fixed paths", "small"))
    named = {"vanilla": ("base model", "skip", 10, 18), "dr.llm": ("our labels", "right", -84, -8),
             "dr.llm shortest": ("the paper's labels", "wrong", 12, 5)}
    for route, (word, kind, right, down) in named.items():
        x, y = at(metrics["routes"][route]["layers"], metrics["routes"][route]["accuracy"])
        parts += [dot(x, y, 6, kind), text(x + right, y + down, word, "bold small")]
    return page(360, "Accuracy against blocks per forward pass on the demo. Fixed paths rise with "
                "depth. Routers on our labels are above their line, routers on the paper's labels "
                "far below it, and the base model below it.", *parts)


def number_line():
    """The four stops of the interpolation parameter p."""
    def at(p):
        return 240 + 190 * p
    parts = [line(at(-1), 64, at(1), 64, "stream"), text(20, 28, "p", "bold")]
    stops = ((-1, "skip", "always", "skip"), (-0.5, "right", "the routers", "themselves"),
             (0.5, "run", "always", "execute"), (1, "twice", "always", "repeat"))
    for p, kind, above, below in stops:
        parts += [dot(at(p), 64, 8, kind), text(at(p), 44, f"{p:g}", "bold", "middle"),
                  text(at(p), 92, above, "small", "middle"),
                  text(at(p), 107, below, "small", "middle")]
    parts += [dot(at(0), 64, 3, "run"), text(at(0), 44, "0", "faint", "middle"),
              text(at(0), 92, "half of", "faint small", "middle"),
              text(at(0), 107, "each", "faint small", "middle")]
    return page(128, "A number line of p with four stops: -1 always skip, -0.5 the routers "
                "themselves, 0.5 always execute, 1 always repeat.", *parts)


def figures():
    """{name: SVG text} of all figures."""
    metrics = read_json(ASSETS / "demo.json")["metrics"]
    return {"tutorial_loop": loop(), "tutorial_tree": tree(first_tree()),
            "tutorial_windows": windows(), "tutorial_label": label(),
            "tutorial_depth": depth(metrics), "tutorial_p": number_line()}


def main():
    for name, drawn in figures().items():
        write_whole(ASSETS / f"{name}.svg",
                    lambda part, drawn=drawn: part.write_text(drawn, encoding="utf-8"))


if __name__ == "__main__":
    main()
