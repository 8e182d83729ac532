"""Is a routing gain real? Six controls that tell luck from routing, on a finished run of train.py.

A search sees the gold answer and tries some fifty paths per question, so with any model some of
them are correct by luck. Each control asks something that luck does not survive; docs/tutorial.md
explains why. A question is *corrected* if its default path is incorrect and the search met a
correct path; its label path is the paper's, the first of them. The tables are stored in the run's
luck.json.

    python -m experiments.luck --run runs/demo
    python -m experiments.luck --run runs/mine --model DIR --data FILE --limit 200
"""
import itertools
import random
import sys
import textwrap
from dataclasses import replace

import numpy as np
import torch

import cli
from answers import grade_paths, prompts_that_fit
from choose import confidence_if_correct, edit_effects
from cli import aligned, percent, progress_bar, with_interval
from evaluate import interval
from experiments.lab import Lab, add_run_flags, cells
from experiments.statistics import is_corrected
from model_llama import load_model
from paths import DECISIONS, EDITS, EXECUTE, default_path, is_legal, with_decision
from questions.schemas import LETTERS
from storage.files import write_json

ALONE = 200     # paths asked in a batch of one, which takes long
RANDOM = 50     # random paths, as many as a search tries
STRONGEST = 10  # single edits
CI = "95% interval"

# N questions   K paths or edits


# ---- counting ----

def count_hits(tries, name="correct"):
    """How many of the tries [(question id, whether it hit)] hit. The interval is over questions:
    ten tries at one question say less than ten questions do."""
    ids, owner = np.unique([question for question, _ in tries], return_inverse=True)
    hits = np.array([hit for _, hit in tries], dtype=float)
    row = {"questions": len(ids), "asked": len(tries), name: int(hits.sum())}
    if len(ids) < 2:  # one question says nothing of others
        return row | {"share": float(hits.mean()) if tries else None, CI: [0.0, 1.0]}
    share = float(hits.mean())
    size = np.bincount(owner)  # tries per question
    hit = np.bincount(owner, hits)  # hits per question
    low, high = interval(share + (hit - share * size) / size.mean())  # of a ratio, linearised
    # the rule of three, since a bootstrap of all hits or none has no width
    margin = 3 / len(ids) if share in (0, 1) else 0
    return row | {"share": share, CI: [max(0.0, low - margin), min(1.0, high + margin)]}


def in_words(row, name="correct"):
    """The counts in a few words."""
    share = row["share"] or 0.0
    return f"{row[name]} of {row['asked']} ({percent(share)}%)"


def versus(mine, other):
    """Two intervals compared in words; a number is an interval without width."""
    low, high = other if isinstance(other, list | tuple) else (other, other)
    if mine[0] > high:
        return "significantly more"
    if mine[1] < low:
        return "significantly less"
    return "not significantly more or less"


# ---- asking ----

def limited(lab):
    """(training prompts, their search records): the first --limit of them."""
    return lab.labelled[:lab.args.limit], lab.records[:lab.args.limit]


def corrected_pairs(lab):
    """[(prompt, record)] of corrected questions."""
    return [(prompt, record) for prompt, record in zip(*limited(lab)) if is_corrected(record)]


def tried_paths(record):
    """[(path, whether it was correct)] of all that the search tried after the default path."""
    tried = [(path, True) for path, _ in record["correct"]]
    tried += [(path, False) for path in record["wrong"]]
    return [(path, is_correct) for path, is_correct in tried if set(path) != {EXECUTE}]


def ask(lab, title, pairs, model=None, batch_size=None):
    """[(question id, whether it is answered correctly)] of [(prompt, path)]."""
    prompts = [prompt for prompt, _ in pairs]
    paths = torch.tensor([path for _, path in pairs])
    if model is None:
        model = lab.model
    if batch_size is None:
        batch_size = lab.args.batch_size
    with progress_bar(total=len(pairs), desc=title, unit="answer") as bar:
        rewards, _ = grade_paths(model, lab.tokenizer, prompts, paths, batch_size, bar.update)
    hits = (rewards > 0).tolist()
    return [(prompt.question.id, hit) for prompt, hit in zip(prompts, hits)]


def ask_each(lab, title, prompts, paths):
    """(N, K) bool: is question n answered correctly along path k?"""
    with progress_bar(total=len(prompts) * len(paths), desc=title, unit="answer") as bar:
        confidence = confidence_if_correct(lab.model, lab.tokenizer, prompts, paths,
                                           lab.args.batch_size, bar.update)
    return confidence > 0


# ---- the controls: (title, rows, what they mean) ----

def asked_again(lab):
    """How many correct paths are incorrect when they are asked again."""
    met = [(prompt, path, record["default_correct"]) for prompt, record in zip(*limited(lab))
           for path, _ in record["correct"]]
    sample = random.Random(lab.args.seed).sample(met, min(ALONE, len(met)))
    rows, sentences = [], []
    for dtype in ("float32", "bfloat16"):
        model = load_model(lab.args.model, lab.args.device, cli.DTYPES[dtype])
        for how, asked, size in (("alone", sample, 1), ("in batches", met, lab.args.batch_size)):
            run = f"{dtype}, {how}"
            hits = ask(lab, run, [(prompt, path) for prompt, path, _ in asked], model, size)
            flips = {"correct": [], "incorrect": []}  # by the default path's answer
            for (name, hit), (_, _, by_default) in zip(hits, asked):
                flips["correct" if by_default else "incorrect"].append((name, not hit))
            for word, group in flips.items():
                rows.append({"asked again": run, "default path": word,
                             **count_hits(group, "flipped")})
        default_correct, corrected = rows[-2:]  # of the batches
        sentences.append(f"In {dtype} {in_words(default_correct, 'flipped')} flip if the default "
                         f"path was correct; if it was incorrect {in_words(corrected, 'flipped')}, "
                         f"{versus(corrected[CI], default_correct[CI])}.")
    title = f"correct paths asked again (alone: {len(sample)} of {len(met)})"
    return title, rows, " ".join(sentences)


def share_of_correct(lab):
    """The share of correct paths among all that the searches tried, next to that of luck."""
    rows, sentences = [], []
    groups = {key: [] for key in itertools.product(("multiple choice", "written"),
                                                   ("correct", "incorrect"))}
    for prompt, record in zip(lab.labelled, lab.records):
        kind = "multiple choice" if prompt.question.choices else "written"
        word = "correct" if record["default_correct"] else "incorrect"
        groups[kind, word].append((prompt.question, tried_paths(record)))
    for (kind, word), group in groups.items():
        if not group:
            continue
        hits = [(q.id, is_correct) for q, tried in group for _, is_correct in tried]
        row = {"answer": kind, "default path": word, **count_hits(hits)}
        rows.append(row)
        if kind == "multiple choice":
            row["by luck"] = float(np.mean([1 / len(q.choices) for q, _ in group]))
        if word == "incorrect":
            row["corrected"] = len({name for name, is_correct in hits if is_correct})
            sentences.append(f"If a {kind} answer was incorrect, {in_words(row)} other paths are "
                             f"correct; they correct {row['corrected']} of {len(group)} questions.")
        if kind == "multiple choice" and word == "incorrect":
            row["luck corrects"] = round(sum(by_luck(q, len(tried)) for q, tried in group))
            sentences.append(f"By luck {percent(row['by luck'])}% are correct and correct "
                             f"{row['luck corrects']}: the share is "
                             f"{versus(row[CI], row['by luck'])} than that.")
    meaning = " ".join(sentences) or "No answer was incorrect."
    return "correct paths among those tried", rows, meaning


def by_luck(question, tries):
    """The probability that one of so many guesses is correct."""
    return 1 - (1 - 1 / len(question.choices)) ** tries


def moved(question, by):
    """The question with every option `by` places further on, the gold letter with it; None if its
    own prompt does not list the options as "(A) text"."""
    choices, prompt = question.choices[-by:] + question.choices[:-by], question.prompt
    if prompt is not None:
        for letter, old, new in zip(LETTERS, question.choices, choices):
            if prompt.count(f"({letter}) {old}") != 1:
                return None
            prompt = prompt.replace(f"({letter}) {old}", f"({letter}) {new}")
    gold = (LETTERS.index(question.answer) + by) % len(choices)
    return replace(question, id=f"{question.id} moved by {by}", choices=choices, prompt=prompt,
                   answer=LETTERS[gold])


def answered_by_letter(pairs):
    """The pairs (prompt, record) of multiple choice that is answered by writing a letter."""
    return [pair for pair in pairs if pair[0].question.choices and not pair[0].options]


def options_moved(lab):
    """How many answers stay correct when the options are in another order."""
    title = "multiple choice, its options moved by every number of places"
    default_correct = [pair for pair in answered_by_letter(zip(*limited(lab)))
                       if pair[1]["default_correct"]]
    corrected, default, rows = answered_by_letter(corrected_pairs(lab)), default_path(lab.L), []
    for name, group, takes_label in (("correct by default", default_correct, False),
                                     ("corrected, label path", corrected, True),
                                     ("corrected, default path", corrected, False)):
        origin = {}  # {moved question: (id of the question, path)}
        for prompt, record in group:
            path = record["decisions"] if takes_label else default
            for by in range(1, len(prompt.question.choices)):
                origin[moved(prompt.question, by)] = prompt.question.id, path
        origin.pop(None, None)
        if not origin:
            return title, rows, "Too few questions that are answered by a letter."
        prompts, _ = prompts_that_fit(list(origin), lab.tokenizer, lab.model,
                                      "questions with moved options")
        hits = ask(lab, name, [(p, origin[p.question][1]) for p in prompts])
        of_question = [(origin[p.question][0], hit) for p, (_, hit) in zip(prompts, hits)]
        luck = float(np.mean([1 / len(p.question.choices) for p in prompts]))
        rows.append({"questions are": name, **count_hits(of_question), "by luck": luck})
    steady, of_label, of_default = rows
    return title, rows, (
        f"If the default path was correct, {in_words(steady)} stay correct; of corrected questions "
        f"{in_words(of_label)}. That is {versus(of_label[CI], of_label['by luck'])} than by luck "
        f"({percent(of_label['by luck'])}%), and {versus(of_label[CI], of_default[CI])} than along "
        f"the default path, which was incorrect before ({in_words(of_default)}).")


def edit_undone(lab):
    """How many corrections survive when one edit of the label path is taken back."""
    undone, others, number = [], [], 0
    title = "corrections of two edits or more, one of them undone"
    for prompt, record in corrected_pairs(lab):
        path = record["decisions"]
        edited = [layer for layer, code in enumerate(path) if code != EXECUTE]
        if len(edited) < 2:  # a single edit undone leaves the default path, which is incorrect
            continue
        number += 1
        undone += [(prompt, with_decision(path, layer, EXECUTE)) for layer in edited]
        others += [(prompt.question.id, hit) for tried, hit in tried_paths(record) if tried != path]
    if not undone:
        return title, [], "No correction has two edits or more: nothing to undo."
    remaining = count_hits(ask(lab, "one edit undone", undone))
    other = count_hits(others)
    if_one = 1 - number / len(undone)  # all but one of each question's
    rows = [{"path": "one edit undone", **remaining, "if one did it all": if_one},
            {"path": "any other that was tried", **other}]
    return title, rows, (
        f"{in_words(remaining)} are still correct. That is {versus(remaining[CI], other[CI])} than "
        f"of the other paths tried on these questions ({in_words(other)}), and "
        f"{versus(remaining[CI], if_one)} than the {percent(if_one)}% there would be if one edit "
        "of each did it all.")


def random_paths(num_layers, edits, number, rng):
    """Up to `number` different legal paths of `edits` edits on average, one at least."""
    paths = {}
    for _ in range(100 * number):  # a model of few layers may not have so many
        path, wanted = list(default_path(num_layers)), max(1, int(edits + rng.random()))
        for layer in rng.sample(range(num_layers), min(num_layers, wanted)):
            path[layer] = rng.choice(EDITS)
        if is_legal(path):
            paths[tuple(path)] = None
    return list(paths)[:number]


def random_candidates(lab):
    """What random paths correct if the gold answer picks one per question, and what the best one
    gains without it."""
    prompts, records = limited(lab)
    edits = [sum(code != EXECUTE for code in r["decisions"]) for r in records if r["correct"]]
    mean_edits = float(np.mean(edits)) if edits else 1.0
    rng, N = random.Random(lab.args.seed), len(records)
    paths = random_paths(lab.L, mean_edits, RANDOM, rng)
    correct = ask_each(lab, "random paths", prompts, paths)  # (N, K)
    default = torch.tensor([bool(record["default_correct"]) for record in records])
    searched = torch.tensor([bool(record["correct"]) for record in records])
    # each half of the questions chooses its best path, which is tried on both halves
    half = torch.tensor(rng.sample([n % 2 for n in range(N)], N))
    best = torch.stack([correct[half == h].sum(0).argmax() for h in (0, 1)])
    each = torch.arange(N)
    rows = []
    for name, hit in (("the search's, picked by the answer", searched),
                      ("random, picked by the answer", correct.any(1) | default),
                      ("best random, half that chose it", correct[each, best[half]]),
                      ("best random, other half", correct[each, best[1 - half]])):
        gain = hit.float() - default.float()
        rows.append({"path": name, "questions": N, "incorrect": int((~default).sum()),
                     "corrected": int((hit & ~default).sum()), "lost": int((default & ~hit).sum()),
                     "gain": gain.mean().item(), f"{CI} of gain": interval(gain)})
    search, oracle, chosen, fresh = rows
    return f"{len(paths)} random paths of {mean_edits:.1f} edits on average", rows, (
        f"If the answer picks the path, the search corrects {search['corrected']} and random paths "
        f"{oracle['corrected']} of {search['incorrect']} incorrect questions. The best random path "
        f"gains {percent(chosen['gain'], True)} points on the half that chose it and "
        f"{percent(fresh['gain'], True)} on the other, {versus(fresh[f'{CI} of gain'], 0)} than 0.")


def single_edits(lab):
    """The largest effects by the searches' own data, and the same edits on test questions."""
    title = "single edits: effect in the searches' data, gain on test questions (points)"
    default = default_path(lab.L)
    effects = edit_effects(lab.records)[:, list(EDITS)].flatten()
    strongest = effects.abs().argsort(descending=True, stable=True)[:STRONGEST]
    effect = effects[strongest]  # (K,)
    edits = [(n // len(EDITS), EDITS[n % len(EDITS)]) for n in strongest.tolist()]
    paths = [with_decision(default, layer, code) for layer, code in edits]
    correct = ask_each(lab, "single edits", lab.inside, [default, *paths]).float()
    gains = correct[:, 1:] - correct[:, :1]  # (N, K)
    rows = []
    for k, (layer, code) in enumerate(edits):
        gain = gains[:, k]
        rows.append({"edit": f"{DECISIONS[code].name} {layer}", "effect": effect[k].item(),
                     "questions": len(gain), "gain": gain.mean().item(),
                     f"{CI} of gain": interval(gain)})
    helping = effect > 0
    if not helping.any():
        return title, rows, "By the searches' data none of these edits helps."
    promised, fresh = effect[helping].mean().item(), gains[:, helping].mean(1)
    ends = interval(fresh)
    return title, rows, (
        f"Those that help by the searches' data ({helping.sum()}) promise "
        f"{percent(promised, True)} points each on average; on test questions they gain "
        f"{with_interval(fresh.mean().item(), ends)}: {versus(ends, 0)} than 0, "
        f"{versus(ends, promised)} than promised.")


CONTROLS = (asked_again, share_of_correct, options_moved, edit_undone, random_candidates,
            single_edits)


# ---- the command ----

def parse_args(argv=None):
    parser = cli.Parser(__doc__, prog="python -m experiments.luck")
    add_run_flags(parser, batch_size=64)
    parser.set_defaults(out=None, seeds=1)  # which a Lab asks for
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    cli.use_device(args)
    lab, results = Lab(args), {}
    for number, control in enumerate(CONTROLS, 1):
        title, rows, meaning = control(lab)
        results[control.__name__] = {"title": title, "rows": rows, "meaning": meaning}
        write_json(args.run / "luck.json", {"command": " ".join(sys.argv), "key": lab.key,
                                            "limit": args.limit, "controls": results})
        print(f"\n{number}. {title}")
        if rows:
            print(aligned([cells(row) for row in rows]))
        print(textwrap.fill(meaning, 100))
    print(f"\n{args.run / 'luck.json'}")


if __name__ == "__main__":
    cli.run(main)
