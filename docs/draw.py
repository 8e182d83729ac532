"""The README's picture: one row per question and route, one box per layer, as SVG text.

A layer that runs is a filled box, a skipped one an empty box under an arc, a repeated one a filled
box with a loop above. The picture brings its own background, so it reads on any page, and follows
the reader's light or dark setting.

    .venv/bin/python docs/make_results.py      draws assets/paths.svg from assets/demo.json
"""
from html import escape

BOX, GAP, LEFT, ROW, TOP = 38, 14, 24, 112, 66  # pixels
STYLE = """
  svg { --page: #ffffff; --ink: #1f2328; --faint: #59636e; --run: #0969da; --twice: #bc4c00;
        --rim: #afb8c1; --on: #ffffff; --good: #1a7f37; --bad: #cf222e; }
  @media (prefers-color-scheme: dark) {
    svg { --page: #151b23; --ink: #f0f6fc; --faint: #9198a1; --run: #4493f8; --twice: #db6d28;
          --rim: #656c76; --on: #0d1117; --good: #3fb950; --bad: #f85149; } }
  text { font: 14px ui-sans-serif, system-ui, Helvetica, Arial, sans-serif; fill: var(--ink); }
  .faint { fill: var(--faint); } .on { fill: var(--on); font-size: 13px; }
  .good { fill: var(--good); font-weight: 600; } .bad { fill: var(--bad); font-weight: 600; }
  .stream { stroke: var(--rim); stroke-width: 2; }
  .run { fill: var(--run); } .twice { fill: var(--twice); }
  .skip { fill: var(--page); stroke: var(--rim); stroke-width: 1.5; stroke-dasharray: 4 3; }
  .arc { fill: none; stroke: var(--faint); stroke-width: 1.5; }
  .loop { fill: none; stroke: var(--twice); stroke-width: 2; }
"""


def layer(number, count, x, y):
    """SVG of one layer, its box's upper left corner at (x, y)."""
    kind, ink = (("skip", "faint"), ("run", "on"), ("twice", "on"))[count]
    middle = x + BOX / 2
    above = ("",
             f'<path class="arc" d="M{x - 5} {y - 2} Q{middle} {y - 24} {x + BOX + 5} {y - 2}"/>',
             f'<path class="loop" d="M{x + BOX - 9} {y} '
             f'C{x + BOX} {y - 24} {x} {y - 24} {x + 9} {y}"/>'
             f'<path class="twice" d="M{x + 4} {y - 8} l10 1 l-6 8 z"/>')
    return (f'<rect class="{kind}" x="{x}" y="{y}" width="{BOX}" height="{BOX}" rx="6"/>'
            f'<text class="{ink}" x="{middle}" y="{y + BOX / 2 + 5}" text-anchor="middle">{number}'
            f'</text>{above[(1, 0, 2)[count]]}')


def row(case, y):
    """SVG of one question along one path: its title, its layers, its answer."""
    decisions, boxes = case["decisions"], []
    end = LEFT + len(decisions) * (BOX + GAP)
    for number, count in enumerate(decisions):
        boxes.append(layer(number, count, LEFT + number * (BOX + GAP), y))
    tone = "good" if case["correct"] else "bad"
    return "\n".join((
        f'<text x="{LEFT}" y="{y - 32}">{escape(case["title"])}'
        f'<tspan class="faint" dx="10">{escape(case["prompt"])}</tspan></text>',
        f'<line class="stream" x1="{LEFT - 14}" x2="{end}" y1="{y + BOX / 2}" y2="{y + BOX / 2}"/>',
        *boxes,
        f'<text x="{end + 6}" y="{y + 15}" class="{tone}">{escape(case["answer"])}: '
        f'{"correct" if case["correct"] else "incorrect"}</text>',
        f'<text x="{end + 6}" y="{y + 34}" class="faint">{sum(decisions)} blocks run</text>'))


def draw(cases):
    """SVG text of cases {"title", "prompt", "decisions", "answer", "correct"}."""
    width = LEFT + len(cases[0]["decisions"]) * (BOX + GAP) + 128
    height = TOP + ROW * len(cases) - 12
    key = (("run", "execute"), ("skip", "skip"), ("twice", "repeat"))
    legend = "".join(
        f'<rect class="{kind}" x="{LEFT + 110 * n}" y="{height - 34}" width="14" height="14" '
        f'rx="3"/>'
        f'<text class="faint" x="{LEFT + 20 + 110 * n}" y="{height - 22}">{word}</text>'
        for n, (kind, word) in enumerate(key))
    prompts = len({case["prompt"] for case in cases})
    rows = "\n".join(row(case, TOP + ROW * n) for n, case in enumerate(cases))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" '
            f'aria-label="{prompts} prompts passing the layers">\n<style>{STYLE}</style>\n'
            f'<rect fill="var(--page)" width="{width}" height="{height}" rx="10"/>\n'
            f'{rows}\n{legend}\n</svg>\n')
