"""draft.py: a drafted answer is the plain answer, whatever drafts it, and every pass is counted."""
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draft import agreements
from model_llama import fixed, generate
from test_model import PICKS, by_state, cases, close, stops_from
from tiny import tiny_model

LIMIT = 12  # tokens of context: prompts of up to 7, so the context ends some answers


@st.composite
def drafts(draw):
    """(case, the same model with a short context, a path per row that drafts)."""
    case = draw(cases())
    layers = len(case.paths[0])
    path = st.tuples(*[st.integers(0, 2)] * layers)
    return case, case.build(max_positions=LIMIT), draw(st.tuples(*[path] * len(case.prompts)))


@given(drafts(), st.integers(1, 6), st.integers(0, 9), PICKS, st.booleans())
def test_drafted_answers_equal_plain_ones(drawn, k, new, picks, by_prompt):
    """Catches a refused draft that stays in the cache, a draft kept after the first difference, a
    stop id inside a round, and a row that reaches its room while others go on."""
    case, model, paths = drawn
    free = generate(model, case.prompts, fixed(case.paths), max(new, 1)).tokens
    stop_ids = stops_from(free, picks)
    plain = generate(model, case.prompts, fixed(case.paths), new, stop_ids)
    draft = by_state if by_prompt else fixed(paths)
    got = generate(model, case.prompts, fixed(case.paths), new, stop_ids, draft=draft,
                   draft_tokens=k)
    assert got.tokens == plain.tokens
    assert got.decisions.tolist() == plain.decisions.tolist()
    close(got.logprobs, plain.logprobs, 1e-4)


@given(cases(), st.integers(1, 5), st.integers(1, 12))
def test_a_draft_along_the_answers_own_path_is_accepted_whole(case, k, new):
    """Catches a draft that goes on from keys it never wrote, or from the wrong position."""
    path, rounds = fixed(case.paths), -(-(new - 1) // (k + 1))
    got = generate(case.model, case.prompts, path, new, draft=path, draft_tokens=k)
    assert got.accepted.tolist() == got.drafted.tolist() == [k * rounds] * len(case.prompts)
    assert got.passes.tolist() == [2 + (k + 2) * rounds] * len(case.prompts)


@given(drafts(), st.integers(1, 5), st.integers(1, 9), PICKS)
def test_layers_executed_counts_drafting_and_confirming(drawn, k, new, picks):
    """The count is taken inside the blocks, one row at a time."""
    case, model, paths = drawn
    stop_ids = stops_from(generate(model, case.prompts, max_new_tokens=new).tokens, picks)
    entered = []
    for block in model.layers:
        block.register_forward_pre_hook(lambda _, inputs: entered.append(len(inputs[0])))
    for prompt, path, cheap in zip(case.prompts, case.paths, paths):
        entered.clear()
        got = generate(model, [prompt], fixed(path), new, stop_ids, draft=fixed(cheap),
                       draft_tokens=k)
        assert got.layers_executed.item() == sum(entered)


@pytest.mark.parametrize("proposed, own, agreed", [
    ([7, 1, 2, 3], [1, 2, 3, 9], 3),
    ([7, 1, 5, 3], [1, 2, 3, 9], 1),  # 3 is right again, but after a wrong one
    ([7, 4, 2, 3], [1, 2, 3, 9], 0),
])
def test_drafts_agree_up_to_the_first_difference(proposed, own, agreed):
    assert agreements(torch.tensor([proposed]), torch.tensor([own])).tolist() == [agreed]


def test_a_round_drafts_at_least_one_token():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        generate(tiny_model(), [[3, 4]], draft=fixed((1, 1, 1)), draft_tokens=0)
