"""Checks the ablation of task 5.5: are its figures what its own answers say?

The file names a question, the command or code that made it, two routes, and every question's
reward along both, in the same order. The difference, its interval and the verdict are worked out
again from the rewards, here with the standard error of the mean instead of a bootstrap.

    python course/ablation.py course/ablation.json
"""
import json
import math
import sys
from pathlib import Path

FEWEST = 200  # questions
TEXTS = ("question", "made_with", "baseline_name", "changed_name", "conclusion")


def figures(baseline, changed):
    """(mean difference, half width of its 95% interval) of paired rewards."""
    differences = [b - a for a, b in zip(baseline, changed)]
    mean = sum(differences) / len(differences)
    variance = sum((d - mean) ** 2 for d in differences) / (len(differences) - 1)
    return mean, 1.96 * math.sqrt(variance / len(differences))


def verdict_of(low, high):
    """better or worse where the interval leaves zero out, else undecided."""
    return "better" if low > 0 else "worse" if high < 0 else "undecided"


def problems(report):
    """What is wrong with a report, a sentence each; [] if nothing is."""
    found = [f"{name}: wanted a sentence" for name in TEXTS
             if not isinstance(report.get(name), str) or not report[name].strip()]
    baseline, changed = report["baseline"], report["changed"]
    if len(baseline) != len(changed) or len(baseline) < FEWEST:
        return [*found, f"{len(baseline)} and {len(changed)} rewards; wanted the same questions, "
                        f"at least {FEWEST}"]
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
        found = problems(json.loads(Path(file).read_text()))
    except FileNotFoundError:
        return 0.0, "not written yet (no course/ablation.json)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return 0.0, f"unreadable: {error!r}"[:150]
    return max(0.0, 1 - len(found) / 4), "; ".join(found) or "its figures are its answers'"


if __name__ == "__main__":
    share, says = check_ablation(*sys.argv[1:])
    print(f"{share:.0%}: {says}")
