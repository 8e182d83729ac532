"""The ablation of task 5.2: measures it, and checks that its figures are what its answers say.

course/my_ablation.py says what is compared: QUESTION, BASELINE and CHANGED (a name each),
QUESTIONS (a list of files in demo/questions) and routes(model), which returns the two routes.
`measure` asks them and writes ablation.json; you add the verdict and the conclusion.

    python course/ablation.py measure
    python course/ablation.py check
"""
import importlib
import json
import math
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "course" / "ablation.json"
FEWEST, SAMPLE = 200, 100  # questions: of an ablation, and asked again when it is graded
NOISE = 0.03  # of answers may turn over on another machine
TEXTS = ("question", "baseline_name", "changed_name", "conclusion")


def figures(baseline, changed):
    """(mean difference, half width of its 95% interval) of paired rewards, by the standard error
    of the mean."""
    differences = [b - a for a, b in zip(baseline, changed)]
    mean = sum(differences) / len(differences)
    variance = sum((d - mean) ** 2 for d in differences) / (len(differences) - 1)
    return mean, 1.96 * math.sqrt(variance / len(differences))


def verdict_of(low, high):
    """better or worse where the interval leaves zero out, else undecided."""
    return "better" if low > 0 else "worse" if high < 0 else "undecided"


# ---- asking ----

def rewards(chosen=None):
    """(baseline, changed) rewards that the routes of my_ablation.py earn, of the questions with
    the numbers in chosen, or of all."""
    if not (ROOT / "course" / "my_ablation.py").exists():
        sys.exit("course/my_ablation.py: not there yet; see course/handouts/5.2.md")
    sys.path[:0] = [str(ROOT)]
    from model_llama import load_model, load_tokenizer
    from answers import answer, prepare
    from questions.loading import load_all
    mine = importlib.import_module("course.my_ablation")
    files = [ROOT / "demo" / "questions" / Path(name).name for name in mine.QUESTIONS]
    model, tokenizer = load_model(ROOT / "demo/model"), load_tokenizer(ROOT / "demo/model")
    prompts, _ = prepare(load_all(files), tokenizer, model)
    prompts = prompts if chosen is None else [prompts[n] for n in chosen]
    return [answer(model, tokenizer, prompts, route).correct.double().round(decimals=4).tolist()
            for route in mine.routes(model)]


def measure():
    """Writes ablation.json, but for the verdict and the conclusion."""
    baseline, changed = rewards()
    mine = importlib.import_module("course.my_ablation")
    mean, half = figures(baseline, changed)
    report = {"question": mine.QUESTION, "baseline_name": mine.BASELINE,
              "changed_name": mine.CHANGED, "difference": round(mean, 4),
              "interval": [round(mean - half, 4), round(mean + half, 4)], "verdict": "",
              "conclusion": "", "baseline": baseline, "changed": changed}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in report.items()]
    REPORT.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def asked_again(seed):
    """How many rewards of a sample of the questions are not those in ablation.json, and of how
    many. ValueError if not exactly two routes answer all of the sample."""
    text = REPORT.read_text(encoding="utf-8")
    total = len(json.loads(text)["baseline"])
    chosen = tuple(random.Random(seed).sample(range(total), min(SAMPLE, total)))
    again = rewards(chosen)
    report = json.loads(text)  # after their code has run, which could have changed it
    if [len(new) for new in again] != [len(chosen)] * 2:
        raise ValueError(f"{[len(new) for new in again]} answers of {len(chosen)} questions by "
                         "each route, wanted those of two routes")
    wrong = [report[name][n] != reward for name, new in zip(("baseline", "changed"), again)
             for n, reward in zip(chosen, new)]
    return sum(wrong), len(wrong)


# ---- checking ----

def problems(report):
    """What is wrong with a report, a sentence each; [] if nothing is."""
    found = [f"{name}: wanted a sentence" for name in TEXTS
             if not isinstance(report.get(name), str) or not report[name].strip()]
    baseline, changed = report["baseline"], report["changed"]
    if len(baseline) != len(changed) or len(baseline) < FEWEST:
        return [*found, f"{len(baseline)} and {len(changed)} rewards; wanted the same questions, "
                        f"at least {FEWEST}"]
    if baseline == changed:
        return [*found, "both routes earn the same on every question; nothing was changed"]
    if not all(0 <= reward <= 1 for reward in [*baseline, *changed]):
        return [*found, "rewards must lie in 0..1"]
    mean, half = figures(baseline, changed)
    low, high = report["interval"]
    if abs(report["difference"] - mean) > 5e-4:
        found.append(f"difference {report['difference']}; the rewards say {mean:.4f}")
    slack = 0.25 * half + 5e-4
    if abs(low - (mean - half)) > slack or abs(high - (mean + half)) > slack:
        found.append(f"interval [{low}, {high}]; the rewards say about "
                     f"[{mean - half:.4f}, {mean + half:.4f}]")
    if report["verdict"] != verdict_of(low, high):
        found.append(f"verdict {report['verdict']!r}; the interval says {verdict_of(low, high)!r}")
    return found


def check_ablation(file):
    """(share of the points, a sentence): each problem costs a quarter."""
    try:
        found = problems(json.loads(Path(file).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return 0.0, "not written yet (no course/ablation.json)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return 0.0, f"unreadable: {error!r}"[:150]
    return max(0.0, 1 - len(found) / 4), "; ".join(found) or "its figures are its answers'"


if __name__ == "__main__":
    if sys.argv[1:] == ["measure"]:
        measure()
    elif sys.argv[1:] != ["check"]:
        sys.exit(__doc__)
    share, says = check_ablation(REPORT)
    print(f"{share:.0%}: {says}")
