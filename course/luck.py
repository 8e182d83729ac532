"""How many questions luck alone would repair: the first control of any search.

A search that tries many paths on a wrong question, knowing the right answer, finds a right one
sooner or later even where every path guesses.

    lucky_corrections([0.25] * 11, [50] * 11)      # (11.0, 0.0025): all of them
"""
import numpy as np


def lucky_corrections(chances, tries):
    """(expected number, its standard deviation) of questions with at least one right try.

    chances (N,): the probability, below 1, that one try at a question is right; tries (N,): their
    number.
    A question is repaired with probability q = 1 - (1 - p)^k, apart from all others, so the
    variances q (1 - q) add up. Exact also where p is as small as 1e-18.
    """
    missed = np.asarray(tries, dtype=np.float64) * np.log1p(-np.asarray(chances, dtype=np.float64))
    corrected = -np.expm1(missed)  # 1 - (1 - p)^k would round to 0 for a small p
    return float(corrected.sum()), float(np.sqrt((corrected * (1 - corrected)).sum()))
