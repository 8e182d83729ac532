"""Task 4.7: two properties of the routers. See course/handouts/4.7.md."""
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drllm import RouterRoute, Routers, class_weights, focal_loss, interpolate

pytestmark = pytest.mark.task("4.7")

numbers = st.integers(0, 999)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=3), numbers)
def test_a_prompt_is_pooled_judged_and_guarded_as_if_it_were_alone(lengths, seed):
    """By its own tokens, all of them where they fill whole windows, and by no padding."""
    rng = torch.Generator().manual_seed(seed)
    hidden = 10 + torch.randn(len(lengths), max(lengths) + 2, 6, generator=rng)
    routers, counted = Routers(1, 6, 4, windows=4), torch.tensor(lengths)
    pooled, counts = RouterRoute(routers).pool(hidden, counted)
    logits, norms = routers(pooled[:, None], counts), []
    for row, n in enumerate(lengths):
        size, used = n // min(4, n), min(4, n)
        windows = hidden[row, :size * used].view(used, size, 6).mean(1)
        torch.testing.assert_close(pooled[row, :used], windows)
        alone = routers(windows[None, None], torch.tensor([used]))
        torch.testing.assert_close(logits[row:row + 1], alone, atol=1e-5, rtol=1e-4)
        norms.append(windows.mean(0).norm().item())
    for limit, strange in ((0.9 * min(norms), True), (1.1 * max(norms), False)):
        routers.set_guard(torch.eye(6), torch.zeros(1, 3, 6), torch.tensor([limit]))
        assert (routers.is_ood(0, pooled, counts) == strange).all()


@given(st.lists(st.integers(1, 5000), min_size=3, max_size=3), numbers, st.floats(0.1, 4))
def test_rare_and_hard_labels_count_more_and_the_knob_has_its_centre(counts, seed, gamma):
    """A rarer class never weighs less; a label of probability p counts (1 - p) ** gamma of its
    cross-entropy; the knob at -0.5 is the routers themselves."""
    weights = class_weights(counts)
    order = sorted(range(3), key=lambda n: counts[n])
    assert weights[order[0]] >= weights[order[1]] >= weights[order[2]]
    logits = torch.randn(1, 3, generator=torch.Generator().manual_seed(seed))
    p, label = logits.softmax(-1), torch.tensor([seed % 3])
    wanted = -(1 - p[0, label]) ** gamma * p[0, label].log()
    torch.testing.assert_close(focal_loss(logits, label, gamma=gamma), wanted[0])
    assert torch.equal(interpolate(p, -0.5), p)
