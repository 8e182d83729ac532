"""What two paths of a question share is computed once.

Paths are edits of one another, and all that lies before the first difference is the same for
both: hidden states, keys and values. Prefixes remembers them per (question, decisions of the
first layers) and starts every row of a later prompt at the layer where its path leaves the
longest one known. The loop that runs the blocks is the model's own: a row that starts at layer 5
skips layers 0 to 4, and its hidden state is there already.

Memory is bounded: what a call computed is one page, and the page unused for longest goes first.

    prefixes = Prefixes(2 ** 30); generate(model, ids, fixed(paths), run_prompt=prefixes.of(names))
"""
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

import torch

from model_llama import KVCache, fixed, prefill, run_blocks

REUSE_BYTES = 2 ** 30  # what is kept of paths already run, unless told otherwise

# B rows of a call   N rows that run a layer   T tokens   D hidden size   L layers


@dataclass(frozen=True)
class State:
    """What one row's prompt left behind at one layer, as rows of a call's tensors.

    hidden: (tensor (N, T, D), row) after the layer. passes: per pass through the layer,
    (keys, values, row), tensors (N, K, capacity, E).
    """
    hidden: tuple
    passes: tuple


class Watch:
    """A Route along decisions (B, L) that keeps the hidden states entering every layer."""

    def __init__(self, decisions):
        self.path, self.entering = fixed(decisions), []

    def __call__(self, layer, hidden, lengths):
        self.entering.append(hidden)
        return self.path(layer, hidden, lengths)


class Prefixes:
    """The states of paths already run, at most `limit` bytes of them.

    asked: blocks that the prompts' paths name, counted per row; computed: those really run.
    """

    def __init__(self, limit):
        self.limit, self.bytes, self.calls = limit, 0, 0
        self.asked = self.computed = 0
        self.known = {}             # (name, decisions of the first layers) -> (page, State)
        self.pages = OrderedDict()  # page, least recently used first -> (its keys, bytes)

    def of(self, names):
        """What generate() takes for run_prompt where row b is a prompt of question names[b]."""
        return partial(self.prefill, names)

    def prefill(self, names, model, tokens, route, lengths, capacity):
        """model_llama.prefill along decisions (B, L), each row from its longest known prefix."""
        decisions = route.decisions
        if not self.limit:  # nothing would be found, nothing kept
            self.asked += int(decisions.sum())
            self.computed += int(decisions.sum())
            return prefill(model, tokens, route, lengths, capacity)
        paths = [tuple(path) for path in decisions.tolist()]
        found = [self.longest(name, path) for name, path in zip(names, paths)]
        starts = torch.tensor([len(states) for states in found])
        hidden = model.embed_tokens(tokens)
        copy_rows(hidden, [(row, *states[-1].hidden) for row, states in enumerate(found) if states])
        remaining = decisions * (torch.arange(decisions.shape[1]) >= starts[:, None])
        self.asked += int(decisions.sum())
        self.computed += int(remaining.sum())
        T = tokens.shape[1]
        watch, cache = Watch(remaining), model.empty_cache(lengths, T, capacity)
        hidden = run_blocks(model, hidden, model.span(cache, 0, T), cache, watch)
        self.remember(names, paths, starts, watch.entering, cache)
        return hidden, complete(model, cache, decisions, found)

    def longest(self, name, path):
        """The States after layers 0, 1, ... of the longest known prefix; never the last layer's."""
        states = []
        while (name, path[:len(states) + 1]) in self.known and len(states) < len(path) - 1:
            page, state = self.known[name, path[:len(states) + 1]]
            self.pages.move_to_end(page)
            states.append(state)
        return states

    def remember(self, names, paths, starts, entering, cache):
        """Keeps what a call computed as a page; entering: L hidden states (B, T, D)."""
        page, keys, size = self.calls, [], 0
        self.calls += 1
        for layer in range(len(entering) - 1):
            rows = (starts <= layer).nonzero().flatten()
            hidden = entering[layer + 1][rows.to(entering[0].device)]
            places = [places_of(slot, len(paths)) for slot in cache.slots[layer]]
            for here, row in enumerate(rows.tolist()):
                passes = tuple((slot.keys, slot.values, place[row])
                               for slot, place in zip(cache.slots[layer], places) if row in place)
                keys.append((names[row], paths[row][:layer + 1]))
                self.known[keys[-1]] = page, State((hidden, here), passes)
            stored = [hidden, *(part for s in cache.slots[layer] for part in (s.keys, s.values))]
            size += sum(tensor.numel() * tensor.element_size() for tensor in stored)
        self.pages[page] = keys, size
        self.bytes += size
        while self.bytes > self.limit:
            self.forget(next(iter(self.pages)))

    def forget(self, page):
        """Drops a page: prefixes that need it are computed again."""
        keys, size = self.pages.pop(page)
        for key in keys:
            if self.known.get(key, (None,))[0] == page:
                del self.known[key]
        self.bytes -= size


def places_of(slot, rows):
    """{row of the batch: row of the slot}."""
    running = range(rows) if slot.rows is None else slot.rows.tolist()
    return {row: place for place, row in enumerate(running)}


def copy_rows(target, picks):
    """target[here] = source[there] for picks (here, source, there), as far as both have tokens.

    The tokens are the last dimension but one of all tensors.
    """
    sources = {}
    for here, source, there in picks:
        _, to, of = sources.setdefault(id(source), (source, [], []))
        to.append(here)
        of.append(there)
    for source, to, of in sources.values():
        T = min(target.shape[-2], source.shape[-2])
        target[to, ..., :T, :] = source[of, ..., :T, :]


def complete(model, cache, decisions, found):
    """A KVCache along the whole decisions (B, L): what the cache of this call holds, and for the
    layers before a row's start what was found of it."""
    full = KVCache(cache.lengths, decisions.shape[1], cache.capacity, cache.angles)
    for layer, slots in enumerate(cache.slots):
        full.admit(layer, decisions[:, layer], model.empty_slot)
        for visit, slot in enumerate(full.slots[layer]):
            place = places_of(slot, len(decisions))
            known = [(here, *found[row][layer].passes[visit]) for row, here in place.items()
                     if layer < len(found[row])]
            if visit < len(slots):
                known += [(place[row], slots[visit].keys, slots[visit].values, there)
                          for row, there in places_of(slots[visit], len(decisions)).items()]
            copy_rows(slot.keys, [(here, keys, there) for here, keys, _, there in known])
            copy_rows(slot.values, [(here, values, there) for here, _, values, there in known])
    return full
