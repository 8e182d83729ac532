"""Task 1.6: two properties of the decoder. See course/handouts/1.6.md."""
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_llama import decode, FixedRoute, prefill, rotate
from tiny import FAMILIES, WORDS, cos_sin, tiny_model

pytestmark = pytest.mark.task("1.6")


@st.composite
def batches(draw):
    """A tiny model, prompts of different lengths and a path for each."""
    rows, layers = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    model = tiny_model(draw(st.integers(0, 99)), draw(st.sampled_from(sorted(FAMILIES))),
                       num_layers=layers)
    token = st.integers(0, len(WORDS) - 1)
    prompts = [draw(st.lists(token, min_size=1, max_size=6)) for _ in range(rows)]
    paths = [[draw(st.integers(0, 2)) for _ in range(layers)] for _ in range(rows)]
    return model, prompts, paths


@given(batches(), st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_tokens_in_chunks_and_rows_in_batches_equal_one_pass_of_one_row(batch, chunks):
    """Whatever the paths and however the new tokens are cut, the logits are those of one row that
    is computed in one pass, without cache and without neighbours."""
    model, prompts, paths = batch
    lengths, total = [len(prompt) for prompt in prompts], sum(chunks)
    tokens = torch.tensor([p + [3] * (max(lengths) - len(p)) for p in prompts])
    later = torch.arange(total).expand(len(prompts), -1) % len(WORDS)
    _, cache = prefill(model, tokens, FixedRoute(paths), lengths, max(lengths) + total)
    states = [decode(model, chunk, cache) for chunk in later.split(chunks, dim=1)]
    logits = model.head(torch.cat(states, dim=1))
    for row, (prompt, path) in enumerate(zip(prompts, paths)):
        whole = torch.tensor([prompt + later[row].tolist()])
        torch.testing.assert_close(logits[row], model(whole, FixedRoute(path))[0, len(prompt):])


@given(st.integers(0, 99), st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_a_query_and_a_key_see_only_how_far_apart_they_are(seed, query_at, key_at, shift):
    """Moving both by the same number of positions leaves their product as it is."""
    rng, frequencies = torch.Generator().manual_seed(seed), torch.tensor([[1.0, 0.3]]).double()
    query, key = torch.randn(2, 1, 1, 1, 4, generator=rng, dtype=torch.float64)

    def turned(heads, at):
        return rotate(heads, *cos_sin(at * frequencies))

    near = (turned(query, query_at) * turned(key, key_at)).sum()
    far = (turned(query, query_at + shift) * turned(key, key_at + shift)).sum()
    torch.testing.assert_close(near, far)
