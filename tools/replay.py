"""A finished search again, path by path, from its row in a label file; no model is asked.

A row keeps the right paths in order and the wrong ones in order, not how the two followed each
other, nor whose child a path was. But a search is random only by its question's id, so it can be
driven once more with the recorded rewards: the same tree grows.

    told_search(row, read_json(Path("runs/demo/labels.meta.json")))["steps"][:2]
"""
from label import question_rng
from mcts import EXECUTE, SearchConfig, search, select


def digits(row):
    """Small whole numbers as one text: (1, 0, 2) gives "102"."""
    return "".join(str(int(value)) for value in row)


def replayed(row, config, seed):
    """[(path, number of its parent)] in the order asked: a row's search, done again with the
    rewards of its record. The seed comes from the question's id, so the same tree grows. None
    where it does not, because the file was made otherwise: then the paths are not the record's."""
    sure, parents, reward = dict(row["correct"]), [], None
    known = {*sure, *row["wrong"]}

    def noting(*state):
        node = select(*state)
        parents.append(node and node.decisions)
        return node

    steps = search(len(row["decisions"]), config, question_rng(row["id"], seed), noting)
    try:
        while True:
            path = steps.send(reward)
            if path not in known:
                return None
            reward = float(path in sure)
    except StopIteration as end:
        tried = list(end.value.rewards)
    wrong = [path for path in tried if path not in sure]
    if [path for path in tried if path in sure] != list(sure) or wrong != row["wrong"]:
        return None
    return [(tried[0], None), *((path, tried.index(parent))
                                for path, parent in zip(tried[1:], parents))]


def likeliest(row):
    """The same from the row alone, which says neither how right and wrong paths followed each other
    nor whose child a path is. Both lists are spread evenly over the search; the likeliest parent is
    the earlier path with most of a path's edits and no other (of equals, the first)."""
    sides = [path for path, _ in row["correct"]], row["wrong"]
    default = (EXECUTE,) * len(row["decisions"])
    time = {path: (path != default, n / len(side)) for side in sides for n, path in enumerate(side)}
    tried = sorted(time, key=time.get)
    edits = lambda path: sum(runs != EXECUTE for runs in path)
    leads = lambda early, late: all(a in (EXECUTE, b) for a, b in zip(early, late))
    return [(path, max((k for k in range(n) if leads(tried[k], path)),
                       key=lambda k: edits(tried[k]), default=None))
            for n, path in enumerate(tried)]


def told_search(row, header, text):
    """A search as an object. steps: [path, probability of its answer or None where it was wrong,
    number of its parent] in order. scores: the constants of Eq. 2, None where the order and the
    parents are only likely. header: of the label file, or {}; text: of the question, or None."""
    try:
        config, seed = SearchConfig(**header["search"]), header["seed"]
        steps = replayed(row, config, seed)
    except (KeyError, TypeError):  # no header, or one of another search
        steps = None
    scores = steps and {"exploration": config.exploration, "length": config.length_penalty}
    sure = dict(row["correct"])
    return {"id": row["id"], "task": row["task"], "level": row["level"], "question": text,
            "label": digits(row["decisions"]) if sure else None, "scores": scores,
            "steps": [[digits(path), sure.get(path), parent]
                      for path, parent in steps or likeliest(row)]}
