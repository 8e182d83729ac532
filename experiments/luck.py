"""Is a routing gain real? Six controls that tell luck from routing, on a finished run of train.py.

A search knows the right answer and tries some fifty paths per question, so with any model some of
them are right by luck. Each control asks something that luck does not survive; docs/tutorial.md
says why. A question is *repaired* where the default path was wrong and a right path was found; its
label path is the paper's, the first of them. luck.json of the run folder keeps the tables.

    python -m experiments.luck --run runs/demo
    python -m experiments.luck --run runs/mine --model DIR --data FILE --limit 200
"""
import itertools
import random
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import cli
from choose import along_each, edit_effects
from cli import aligned, percent
from evaluate import interval
from experiments.lab import Lab
from mcts import EXECUTE, REPEAT, SKIP, is_legal
from model_llama import load_model
from storage.files import write_json
from cli import progress_bar
from questions.schemas import LETTERS
from answers import judge, prepare

ALONE, MENU, EDITS = 200, 50, 10  # paths asked in a batch of one; random paths; single edits
CI = "95% interval"


# ---- counting ----

def counted(tries, name="right"):
    """How many of the tries [(question id, whether it hit)] hit. The interval is over questions:
    ten tries at one question say less than ten questions do."""
    ids, owner = np.unique([question for question, _ in tries], return_inverse=True)
    hits = np.array([hit for _, hit in tries], dtype=float)
    found = {"questions": len(ids), "asked": len(tries), name: int(hits.sum())}
    if len(ids) < 2:  # one question says nothing of others
        return found | {"share": float(hits.mean()) if tries else None, CI: [0.0, 1.0]}
    share, size, hit = float(hits.mean()), np.bincount(owner), np.bincount(owner, hits)
    low, high = interval(share + (hit - share * size) / size.mean())  # of a ratio, linearised
    doubt = 3 / len(ids) if share in (0, 1) else 0  # the rule of three: the bootstrap has none here
    return found | {"share": share, CI: [max(0.0, low - doubt), min(1.0, high + doubt)]}


def said(row, name="right"):
    """The counts in a sentence."""
    return f"{row[name]} of {row['asked']} ({percent(row['share'] or 0.0)}%)"


def versus(mine, other):
    """Two intervals compared in words; a number is an interval without width."""
    low, high = other if isinstance(other, list | tuple) else (other, other)
    return ("surely more" if mine[0] > high else "surely less" if mine[1] < low
            else "not surely more or less")


# ---- asking ----

def some(lab):
    """[(prompt, labels row)] of the first --limit label questions."""
    return list(zip(lab.labelled, lab.label_rows))[:lab.args.limit]


def repaired(pairs):
    """Those whose default path was wrong and that have a right path."""
    return [(prompt, row) for prompt, row in pairs if row["correct"] and not row["default_correct"]]


def tried(row):
    """[(path, whether it was right)] of all that the search tried after the default path."""
    met = [(path, True) for path, _ in row["correct"]] + [(path, False) for path in row["wrong"]]
    return [(path, right) for path, right in met if set(path) != {EXECUTE}]


def ask(lab, title, asked, model=None, size=None):
    """[(question id, whether it is answered right)] of [(prompt, path, ...)]."""
    with progress_bar(total=len(asked), desc=title, unit="answer") as bar:
        right, _ = judge(model or lab.model, lab.tokenizer, [prompt for prompt, *_ in asked],
                         torch.tensor([path for _, path, *_ in asked]),
                         size or lab.args.batch_size, bar.update)
    return [(p.question.id, hit) for (p, *_), hit in zip(asked, (right > 0).tolist())]


def ask_each(lab, title, prompts, paths):
    """(N, K) bool: is question n answered right along path k?"""
    with progress_bar(total=len(prompts) * len(paths), desc=title, unit="answer") as bar:
        return along_each(lab.model, lab.tokenizer, prompts, paths, lab.args.batch_size,
                          bar.update) > 0


# ---- the controls: (title, rows, what they mean) ----

def asked_again(lab):
    """How many right paths are wrong when they are asked again."""
    met = [(prompt, path, row["default_correct"]) for prompt, row in some(lab)
           for path, _ in row["correct"]]
    sample, rows = random.Random(lab.args.seed).sample(met, min(ALONE, len(met))), []
    for dtype in ("float32", "bfloat16"):
        model = load_model(lab.args.model, lab.args.device, cli.DTYPES[dtype])
        for how, asked, size in (("alone", sample, 1), ("in batches", met, lab.args.batch_size)):
            again = list(zip(ask(lab, f"{dtype}, {how}", asked, model, size), asked))
            for default, word in ((True, "right"), (False, "wrong")):
                flips = [(name, not hit) for (name, hit), (*_, was) in again if was == default]
                rows.append({"asked again": f"{dtype}, {how}", "default path": word,
                             **counted(flips, "flipped")})
    words = [f"In {dtype} {said(right, 'flipped')} flip where the default path was right; where it "
             f"was wrong {said(wrong, 'flipped')}, {versus(wrong[CI], right[CI])}."
             for dtype, right, wrong in (("float32", *rows[2:4]), ("bfloat16", *rows[6:8]))]
    return f"right paths asked again (alone: {len(sample)} of {len(met)})", rows, " ".join(words)


def share_of_right(lab):
    """The share of right paths among all that the searches tried, beside that of luck."""
    rows, words = [], []
    for kind, word in itertools.product(("multiple choice", "written"), ("right", "wrong")):
        group = [(p.question, tried(row)) for p, row in zip(lab.labelled, lab.label_rows)
                 if bool(p.question.choices) == (kind == "multiple choice")
                 and row["default_correct"] == (word == "right")]
        row = counted([(q.id, right) for q, paths in group for _, right in paths])
        row = {"answer": kind, "default path": word, **row}
        rows += [row] if group else []
        if kind == "multiple choice" and group:
            row["by luck"] = float(np.mean([1 / len(q.choices) for q, _ in group]))
        if word == "wrong" and group:
            row["repaired"] = sum(any(right for _, right in paths) for _, paths in group)
            words.append(f"Where a {kind} answer was wrong, {said(row)} other paths are right; "
                         f"they repair {row['repaired']} of {len(group)} questions.")
            if "by luck" in row:
                row["luck repairs"] = round(sum(1 - (1 - 1 / len(q.choices)) ** len(paths)
                                                for q, paths in group))
                words.append(f"By luck {percent(row['by luck'])}% are right and repair "
                             f"{row['luck repairs']}: the share is "
                             f"{versus(row[CI], row['by luck'])} than that.")
    return "right paths among those tried", rows, " ".join(words) or "No answer was wrong."


def moved(question, by):
    """The question with every option `by` places further on, the right letter with it; None where
    a prompt of its own does not list the options as "(A) text"."""
    choices, prompt = question.choices[-by:] + question.choices[:-by], question.prompt
    listed = [f"({letter}) {choice}" for letter, choice in zip(LETTERS, question.choices)]
    if prompt and any(prompt.count(one) != 1 for one in listed):
        return None
    for one, letter, choice in zip(listed, LETTERS, choices) if prompt else ():
        prompt = prompt.replace(one, f"({letter}) {choice}")
    right = LETTERS[(LETTERS.index(question.answer) + by) % len(choices)]
    return replace(question, id=f"{question.id} moved by {by}", choices=choices, prompt=prompt,
                   answer=right)


def options_moved(lab):
    """How many answers stay right when the options stand in another order."""
    title = "multiple choice, its options moved by every number of places"
    pairs = [(p, row) for p, row in some(lab) if p.question.choices and not p.options]
    answered, rows = [pair for pair in pairs if pair[1]["default_correct"]], []
    for name, group, key in (("answered by default", answered, None),
                             ("repaired, label path", repaired(pairs), "decisions"),
                             ("repaired, default path", repaired(pairs), None)):
        new = {moved(p.question, by): (p.question.id, row[key] if key else (EXECUTE,) * lab.L)
               for p, row in group for by in range(1, len(p.question.choices))}
        new.pop(None, None)
        if not new:
            return title, rows, "Too few questions that are answered by a letter."
        asked = [(p, new[p.question][1]) for p in prepare(list(new), lab.tokenizer, lab.model)[0]]
        hits = [(new[p.question][0], hit) for (p, _), (_, hit) in zip(asked, ask(lab, name, asked))]
        rows.append({"those": name, **counted(hits), "by luck": float(np.mean(
            [1 / len(p.question.choices) for p, _ in asked]))})
    right, mended, plain = rows
    return title, rows, (
        f"Where the default path was right, {said(right)} stay right; of repaired questions "
        f"{said(mended)}. That is {versus(mended[CI], mended['by luck'])} than by luck "
        f"({percent(mended['by luck'])}%), and {versus(mended[CI], plain[CI])} than along the "
        f"default path, which was wrong before ({said(plain)}).")


def edit_undone(lab):
    """How many repairs survive when one edit of the label path is taken back."""
    asked, others, number, title = [], [], 0, "repairs of two edits or more, one of them undone"
    for prompt, row in repaired(some(lab)):
        path = row["decisions"]
        edited = [layer for layer, count in enumerate(path) if count != EXECUTE]
        if len(edited) > 1:  # a single edit undone leaves the default path, which is wrong
            number += 1
            asked += [(prompt, path[:l] + (EXECUTE,) + path[l + 1:]) for l in edited]
            others += [(prompt.question.id, right) for met, right in tried(row) if met != path]
    if not asked:
        return title, [], "No repair has two edits or more: nothing to undo."
    left, other = counted(ask(lab, "one edit undone", asked)), counted(others)
    kept = 1 - number / len(asked)  # all but one of each question's
    rows = [{"path": "one edit undone", **left, "if one did it all": kept},
            {"path": "any other that was tried", **other}]
    return title, rows, (
        f"{said(left)} are still right. That is {versus(left[CI], other[CI])} than of the other "
        f"paths tried on these questions ({said(other)}), and {versus(left[CI], kept)} than the "
        f"{percent(kept)}% there would be if one edit of each did it all.")


def random_paths(num_layers, edits, number, rng):
    """Up to `number` different legal paths of `edits` edits on average, one at least."""
    paths = {}
    for _ in range(100 * number):  # a model of few layers may not have so many
        path, many = [EXECUTE] * num_layers, max(1, int(edits + rng.random()))
        for layer in rng.sample(range(num_layers), min(num_layers, many)):
            path[layer] = rng.choice((SKIP, REPEAT))
        if is_legal(path):
            paths[tuple(path)] = None
    return list(paths)[:number]


def random_menu(lab):
    """What random paths repair with the answer at hand, and what the best one gains without it."""
    prompts, found = zip(*some(lab))
    made = [sum(n != EXECUTE for n in row["decisions"]) for row in found if row["correct"]]
    rng, edits, N = random.Random(lab.args.seed), float(np.mean(made or [1])), len(found)
    paths = random_paths(lab.L, edits, MENU, rng)
    right, every = ask_each(lab, "random paths", prompts, paths), torch.arange(N)
    default, searched = (torch.tensor([bool(row[key]) for row in found])
                         for key in ("default_correct", "correct"))
    half = torch.tensor(rng.sample([n % 2 for n in range(N)], N))
    best = torch.stack([right[half == h].sum(0).argmax() for h in (0, 1)])
    rows = []
    for name, hit in (("the search's, answer at hand", searched),
                      ("random, answer at hand", right.any(1) | default),
                      ("best random, half that chose it", right[every, best[half]]),
                      ("best random, other half", right[every, best[1 - half]])):
        gain = hit.float() - default.float()
        rows.append({"path": name, "questions": N, "wrong": int((~default).sum()),
                     "repaired": int((hit & ~default).sum()), "lost": int((default & ~hit).sum()),
                     "gain": gain.mean().item(), f"{CI} of gain": interval(gain)})
    search, oracle, picked, fresh = rows
    return f"{len(paths)} random paths of {edits:.1f} edits on average", rows, (
        f"With the answer at hand the search repairs {search['repaired']} and random paths "
        f"{oracle['repaired']} of {search['wrong']} wrong questions. The best random path gains "
        f"{percent(picked['gain'], True)} points where it was chosen and "
        f"{percent(fresh['gain'], True)} where it was not, "
        f"{versus(fresh[f'{CI} of gain'], 0)} than 0.")


def single_edits(lab):
    """The largest effects by the searches' own data, and the same edits on test questions."""
    effects, default = edit_effects(lab.label_rows)[:, [SKIP, REPEAT]].flatten(), (EXECUTE,) * lab.L
    places = effects.abs().argsort(descending=True, stable=True)[:EDITS]
    effect, edits = effects[places], [(n // 2, (SKIP, REPEAT)[n % 2]) for n in places.tolist()]
    paths = [default[:layer] + (count,) + default[layer + 1:] for layer, count in edits]
    right = ask_each(lab, "single edits", lab.inside, [default, *paths]).float()
    gains = right[:, 1:] - right[:, :1]
    rows = [{"edit": f"{'skip' if count == SKIP else 'repeat'} {layer}", "effect": effect[k].item(),
             "questions": len(gains), "gain": gains[:, k].mean().item(),
             f"{CI} of gain": interval(gains[:, k])} for k, (layer, count) in enumerate(edits)]
    title = "single edits: effect in the searches' data, gain on test questions (points)"
    if not (helping := effect > 0).any():
        return title, rows, "By the searches' data none of these edits helps."
    promised, fresh = effect[helping].mean().item(), gains[:, helping].mean(1)
    found = [percent(value, True) for value in (promised, fresh.mean().item(), *interval(fresh))]
    return title, rows, (
        f"Those that help by the searches' data ({helping.sum()}) promise {found[0]} points each "
        f"on average; on test questions they gain {found[1]} [{found[2]}, {found[3]}]: "
        f"{versus(interval(fresh), 0)} than 0, {versus(interval(fresh), promised)} than promised.")


CONTROLS = (asked_again, share_of_right, options_moved, edit_undone, random_menu, single_edits)


# ---- the command ----

def cells(row):
    """A row's figures as text: shares in percent, gains and effects in points with their sign."""
    text = {}
    for key, value in row.items():
        sign = "gain" in key or "effect" in key
        if isinstance(value, float):
            text[f"{key} %"] = percent(value, sign)
        elif isinstance(value, list | tuple):
            text[key] = f"[{percent(value[0], sign)}, {percent(value[1], sign)}]"
        elif value is not None:
            text[key] = str(value)
    return text


def parse_args(argv=None):
    parser = cli.Parser(__doc__, prog="python -m experiments.luck")
    cli.add_model_flags(parser)
    cli.add_data_flags(parser, [cli.DEMO_LABEL], batch_size=64)
    parser.set_defaults(limit=1000, out=None, seeds=1, depth=None)  # the last three are a Lab's
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), metavar="DIR",
                        help="finished run folder of train.py, whose --data this takes too")
    parser.add_argument("--test", nargs="+", metavar="FILE", help="held-out question files")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    cli.use_device(args)
    lab, found = Lab(args), {}
    for number, control in enumerate(CONTROLS, 1):
        title, rows, meaning = control(lab)
        found[control.__name__] = {"title": title, "rows": rows, "meaning": meaning}
        write_json(args.run / "luck.json", {"command": " ".join(sys.argv), "key": lab.key,
                                            "limit": args.limit, "controls": found})
        print(f"\n{number}. {title}")
        if rows:
            print(aligned([cells(row) for row in rows]))
        print(textwrap.fill(meaning, 100))
    print(f"\n{args.run / 'luck.json'}")


if __name__ == "__main__":
    cli.run(main)
