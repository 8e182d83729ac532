"""One pass of whole sequences through the layers, where paths of a question share what they can.

Kept for speed alone: paths of a question are edits of one another, and all that lies before the
first difference is the same for both. Measured in docs/results.md.
"""
import torch

from model_llama import pad, prefill, run_blocks


def through_layers(model, sequences, lengths, route, known=None, span=None):
    """(hidden (B, T, D), decisions (B, L)) of B id lists; the route sees the first `lengths`
    tokens. span: their positions and mask, where they are not those of a plain text. known: per row
    {decisions of the first l layers: hidden (T, D) entering layer l}. A row goes on from the
    longest beginning of its path that is known, and adds what it computes; the route is fixed."""
    tokens, ends = pad(sequences, model.embed_tokens.weight.device)
    if known is None:
        hidden, cache = prefill(model, tokens, route, lengths, span=span)
        return hidden, cache.decisions
    (B, T), L = tokens.shape, model.config.num_layers
    hidden, cache = model.embed_tokens(tokens), model.empty_cache(lengths, T)
    paths = route.decisions.expand(B, L)
    decisions = [tuple(path) for path in paths.tolist()]
    starts = [max((l for l in range(1, L) if path[:l] in found), default=0)
              for path, found in zip(decisions, known)]
    for row, start in enumerate(starts):
        if start:
            hidden[row, :ends[row]] = known[row][decisions[row][:start]]
    remaining = (paths * (torch.arange(L) >= torch.tensor(starts)[:, None])).to(tokens.device)

    def remember(layer, entering, lengths):
        for row, start in enumerate(starts):
            if layer > start:
                known[row][decisions[row][:layer]] = entering[row, :ends[row]].clone()
        return remaining[:, layer]
    return run_blocks(model, hidden, span or model.span(cache, 0, T), cache, remember), paths
