"""Claims about the decoder: any path, any batch, any split of the tokens over cached calls.

The oracle for a path is a physically rebuilt stack: a plain Llama whose list of layers holds
the blocks in path order. The oracle for the plain decoder is a textbook one written here.
Hypothesis draws sizes, families, paths and a seed; tensors follow from the seed. Everything is
float64, so equal means within EXACT; other tolerances are stated where they are used.
"""
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import ModuleList

import model_llama
from checkpoint.config import Llama3Rope
from model_llama import FixedRoute, Linear, Llama, decode, generate, load_model, prefill
from paths import DECISIONS, Decision, blocks
from tiny import FAMILIES, WORDS, save_tiny, tiny_model

HERE = Path(__file__).resolve().parent
EXACT = 1e-10  # float64 noise of logits of size 10; the mistakes below change them by 1e-3 or more


# ---- what Hypothesis draws ----

@dataclass
class Case:
    """A tiny model and a ragged batch with one path per row; prints small when it fails."""
    family: str
    seed: int
    kv_heads: int
    group: int  # query heads per key/value head
    head_dim: int
    lengths: tuple
    paths: tuple  # one tuple of decisions per row

    @cached_property
    def model(self):
        return self.build()

    def build(self, **changes):
        return tiny_model(self.seed, self.family, num_layers=len(self.paths[0]),
                          num_kv_heads=self.kv_heads, num_heads=self.kv_heads * self.group,
                          head_dim=self.head_dim, **changes)

    @cached_property
    def prompts(self):
        return [words(length, self.seed + row) for row, length in enumerate(self.lengths)]


def words(length, seed):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(len(WORDS), (length,), generator=rng).tolist()


@st.composite
def cases(draw, min_rows=1, max_rows=4, max_length=7):
    rows, layers = draw(st.integers(min_rows, max_rows)), draw(st.integers(1, 4))
    path = st.tuples(*[st.integers(0, 2)] * layers)
    return Case(draw(st.sampled_from(sorted(FAMILIES))), draw(st.integers(0, 10**6)),
                draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.sampled_from((2, 4, 6))),
                draw(st.tuples(*[st.integers(1, max_length)] * rows)),
                draw(st.tuples(*[path] * rows)))


# ---- oracles ----

def rebuilt(model, decisions):
    """A plain Llama that holds the blocks of a path in order, each as often as it runs."""
    in_order = [block for block, n in zip(model.layers, decisions) for _ in range(n)]
    stack = Llama(replace(model.config, num_layers=0))
    stack.config = replace(model.config, num_layers=len(in_order))
    stack.layers = ModuleList(in_order)
    stack.embed_tokens, stack.norm = model.embed_tokens, model.norm
    stack.lm_head = model.lm_head
    return stack


def alone(model, tokens, decisions):
    """Logits (T, V) of one row along its path, recomputed without cache, batch or route."""
    return rebuilt(model, decisions)(torch.tensor([tokens]))[0]


def greedy(model, prompt, decisions, max_new_tokens, stop_ids=()):
    """(tokens, passes, logprob) of one row by recomputing everything for each new token."""
    tokens, logprob = [], 0.0
    for passes in range(1, max_new_tokens + 1):  # noqa: B007 - returned
        scores = alone(model, prompt + tokens, decisions)[-1].log_softmax(-1)
        logprob += scores.max().item()
        if scores.argmax().item() in stop_ids:
            break
        tokens.append(scores.argmax().item())
    return tokens, passes, logprob


def textbook_frequencies(config):
    pairs = torch.arange(config.head_dim // 2, dtype=torch.float64)
    frequencies = config.rope_theta ** (-2 * pairs / config.head_dim)
    rope = config.rope_scaling
    for i, frequency in enumerate(frequencies.tolist() if rope else ()):
        length, wave = rope.original_max_position_embeddings, 2 * torch.pi / frequency
        if wave > length / rope.low_freq_factor:
            frequencies[i] = frequency / rope.factor
        elif wave > length / rope.high_freq_factor:
            smooth = ((length / wave - rope.low_freq_factor)
                      / (rope.high_freq_factor - rope.low_freq_factor))
            frequencies[i] = (1 - smooth) * frequency / rope.factor + smooth * frequency
    return frequencies


def textbook_logits(model, tokens):
    """Logits (T, V) of the plain decoder: head by head, complex RoPE, Hugging Face's names."""
    c, weights, T = model.config, model.named_weights(), len(tokens)
    turn = torch.arange(T)[:, None] * textbook_frequencies(c)
    turn = torch.polar(torch.ones_like(turn), turn)
    future = torch.ones(T, T).triu(1).bool()

    def norm(x, name):
        return x / (x.pow(2).mean(-1, keepdim=True) + c.rms_norm_eps).sqrt() * weights[name]

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

    def head(x, name, index):
        return linear(x, name)[:, index * c.head_dim:(index + 1) * c.head_dim]

    def turned(x, name):
        x = norm(x, name) if c.qk_norm else x
        pairs = torch.complex(*x.chunk(2, dim=-1)) * turn
        return torch.cat((pairs.real, pairs.imag), dim=-1)

    hidden = weights["model.embed_tokens.weight"][tokens]
    for layer in (f"model.layers.{i}" for i in range(c.num_layers)):
        x, mixed = norm(hidden, f"{layer}.input_layernorm.weight"), []
        attention = f"{layer}.self_attn"
        for h in range(c.num_heads):
            k = h * c.num_kv_heads // c.num_heads
            query = turned(head(x, f"{attention}.q_proj", h), f"{attention}.q_norm.weight")
            key = turned(head(x, f"{attention}.k_proj", k), f"{attention}.k_norm.weight")
            scores = (query @ key.T / c.head_dim ** 0.5).masked_fill(future, -torch.inf)
            mixed.append(scores.softmax(-1) @ head(x, f"{attention}.v_proj", k))
        hidden = hidden + linear(torch.cat(mixed, dim=-1), f"{attention}.o_proj")
        x = norm(hidden, f"{layer}.post_attention_layernorm.weight")
        gate = linear(x, f"{layer}.mlp.gate_proj")
        hidden = hidden + linear(gate * gate.sigmoid() * linear(x, f"{layer}.mlp.up_proj"),
                                 f"{layer}.mlp.down_proj")
    head_name = "lm_head" if "lm_head.weight" in weights else "model.embed_tokens"
    return linear(norm(hidden, "model.norm.weight"), head_name)


def close(got, wanted, tolerance=EXACT):
    torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance, check_dtype=False)


def by_state(layer, hidden, lengths):
    """A route that looks at each row's last real token: a stand-in for a trained router."""
    last = hidden[torch.arange(len(hidden)), lengths - 1]
    return (last.sum(-1) * 100).long() % 3


# ---- one row ----

@given(cases(max_rows=1, max_length=12), st.sampled_from((4, 16, 64)), st.floats(1e-6, 0.5))
def test_full_path_equals_plain_decoder(case, original, eps):
    """Catches a wrong head grouping, RoPE pairing, llama3 ramp, norm, bias or causal mask.

    Tolerance 1e-4: the model turns float32 angles, the textbook float64 ones.
    """
    model = case.build(rms_norm_eps=eps)
    if case.family == "llama3":
        rope = Llama3Rope(8.0, 1.0, 4.0, original)
        model = case.build(rms_norm_eps=eps, rope_scaling=rope)
    tokens = case.prompts[0]
    close(model(torch.tensor([tokens]))[0], textbook_logits(model, tokens), 1e-4)


# ---- batches ----

def padded(prompts):
    """(tokens, lengths), padded with a real word: what a row must not see may be anything."""
    T = max(map(len, prompts)) + 1
    return torch.tensor([p + [5] * (T - len(p)) for p in prompts]), [len(p) for p in prompts]


@given(cases(min_rows=2))
def test_padding_is_never_seen(case):
    """Catches padding that enters attention, and logits read at T - 1 instead of length - 1."""
    tokens, lengths = padded(case.prompts)
    logits = case.model(tokens, FixedRoute(case.paths), lengths)
    for row, (prompt, path) in enumerate(zip(case.prompts, case.paths)):
        close(logits[row, :lengths[row]], alone(case.model, prompt, path))


@given(cases(), st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 3))
def test_cached_decode_equals_recompute_for_any_path_and_any_split(case, chunks, spare):
    """Catches both passes sharing a slot, a position taken from a tensor's shape, a mask aligned
    to the top left of a chunk, and a length that is advanced once per step instead of per call.
    """
    model, later = case.model, [words(sum(chunks), case.seed + 100 + row)
                                for row in range(len(case.prompts))]
    tokens, lengths = padded(case.prompts)
    capacity = max(tokens.shape[1], max(lengths) + sum(chunks)) + spare
    _, cache = prefill(model, tokens, FixedRoute(case.paths), lengths, capacity)
    pieces = [decode(model, chunk, cache) for chunk in torch.tensor(later).split(chunks, dim=1)]
    logits = model.head(torch.cat(pieces, dim=1))
    assert cache.lengths == [length + sum(chunks) for length in lengths]
    assert cache.decisions.tolist() == [list(path) for path in case.paths]
    assert bytes_in(cache) == bytes_of(case, case.paths, capacity)
    for row, (prompt, path) in enumerate(zip(case.prompts, case.paths)):
        close(logits[row], alone(model, prompt + later[row], path)[len(prompt):])


PICKS = st.lists(st.integers(0, 40), max_size=3)


def stops_from(free, picks):
    """Ids that the rows do choose at some step, so that rows finish at different times."""
    chosen = [token for tokens in free for token in tokens]
    return {chosen[pick % len(chosen)] for pick in picks}


@given(cases(min_rows=2), st.integers(1, 8), PICKS, st.booleans())
def test_batch_rows_are_independent(case, new, picks, trained):
    """Catches row 0's decision used for all, cache rows mixed up, finished rows still counted."""
    model, prompts = case.model, case.prompts
    stop_ids = stops_from(generate(model, prompts, max_new_tokens=new).tokens, picks)
    routes = [by_state if trained else FixedRoute(path) for path in case.paths]
    of_all = by_state if trained else FixedRoute(case.paths)
    together = generate(model, prompts, of_all, new, stop_ids)
    for row, route in enumerate(routes):
        single = generate(model, prompts[row:row + 1], route, new, stop_ids)
        assert together.tokens[row] == single.tokens[0]
        assert together.decisions[row].tolist() == single.decisions[0].tolist()
        assert together.layers_executed[row] == single.layers_executed[0]
        assert together.passes[row] == single.passes[0]
        close(together.logprobs[row], single.logprobs[0], 1e-4)


@given(cases(), st.integers(1, 8), PICKS)
def test_generate_equals_greedy_recompute(case, new, picks):
    """Catches a wrong last position, a stop id in the answer, a log-probability that misses the
    stop id or counts finished rows, and layers counted per batch instead of per row.

    Log-probabilities within 1e-4: generate sums up to 8 of them in float32.
    """
    model = case.model
    free = [greedy(model, prompt, path, new)[0] for prompt, path in zip(case.prompts, case.paths)]
    stop_ids = stops_from(free, picks)
    got = generate(model, case.prompts, FixedRoute(case.paths), new, stop_ids)
    for row, (prompt, path) in enumerate(zip(case.prompts, case.paths)):
        tokens, passes, logprob = greedy(model, prompt, path, new, stop_ids)
        assert got.tokens[row] == tokens
        assert got.decisions[row].tolist() == list(path)
        assert got.passes[row] == passes
        assert got.layers_executed[row] == passes * blocks(path)
        close(got.logprobs[row].item(), logprob, 1e-4)


def test_rows_that_have_ended_run_on_ignored_until_the_last_has(monkeypatch):
    """Catches a batch that ends with its first row, one that runs on after its last, and words said
    after a stop id. Here rows finish one by one."""
    steps = []
    monkeypatch.setattr(model_llama, "decode", lambda *a: steps.append(1) or decode(*a))
    model = tiny_model(3, num_layers=2)
    prompts, paths = [words(n, n) for n in (3, 5, 2, 4)], [(1, 2), (2, 0), (0, 1), (1, 1)]
    alone_tokens = [greedy(model, p, path, 12)[0] for p, path in zip(prompts, paths)]
    stop_ids = {alone_tokens[row][last] for row, last in enumerate((2, 0, 1, 5))}
    wanted = [greedy(model, p, path, 12, stop_ids)[:2] for p, path in zip(prompts, paths)]
    got = generate(model, prompts, FixedRoute(paths), 12, stop_ids)
    assert list(zip(got.tokens, got.passes.tolist())) == wanted
    assert len(steps) == max(passes for _, passes in wanted) - 1 < 11
    assert len({passes for _, passes in wanted}) > 2, "the rows no longer end one by one"


def test_the_context_limits_each_row_by_its_own_length():
    """Catches an answer cut short because another row of the batch has a longer prompt, and an
    off-by-one at the last position the model was trained for."""
    prompts = [words(14, 1), words(2, 2)]
    together = generate(tiny_model(1, max_positions=16), prompts, max_new_tokens=8)
    assert together.tokens == [greedy(tiny_model(1), prompt, (1, 1, 1), room)[0]
                               for prompt, room in zip(prompts, (2, 8))]


def test_half_precision_follows_every_path():
    """Catches an operation that leaves the model's dtype. Tolerance 5% of the largest logit:
    bfloat16 keeps 8 bits and the noise adds up over 5 blocks."""
    model, paths = tiny_model(0, "qwen3"), [(1, 0, 2), (2, 1, 2)]
    half = tiny_model(0, "qwen3", torch.bfloat16)
    prompts = [words(6, 1), words(3, 2)]
    tokens, lengths = padded(prompts)
    _, cache = prefill(half, tokens, FixedRoute(paths), lengths, capacity=9)
    logits = half.head(decode(half, torch.tensor([[7], [8]]), cache))[:, 0]
    for row, (prompt, path) in enumerate(zip(prompts, paths)):
        wanted = alone(model, prompt + [7 + row], path)[-1]
        close(logits[row].double(), wanted, 0.05 * wanted.abs().max().item())


# ---- the route ----

@given(cases(), st.integers(1, 4))
def test_a_route_is_asked_once_per_layer_and_on_the_prompt_only(case, new):
    """Catches a route asked again while decoding, and one that is told other lengths."""
    seen = []

    def spy(layer, hidden, lengths):
        seen.append((layer, lengths.tolist()))
        return by_state(layer, hidden, lengths)

    generate(case.model, case.prompts, spy, new)
    layers = range(case.model.config.num_layers)
    assert seen == [(layer, list(case.lengths)) for layer in layers]


@given(cases(), st.integers(0, 3))
def test_a_route_sees_zeros_after_each_rows_own_prompt(case, behind):
    """Catches a route shown anything but the hidden states that enter its layer after the decisions
    taken before it: the answer, the options or another row's length. Every prompt is followed by
    real tokens; the route looks at all it is given, as a route by mean would."""
    prompts, seen = case.prompts, []
    width = max(case.lengths) + behind
    tokens = torch.tensor([p + words(width - len(p), case.seed + 9) for p in prompts])

    def by_everything(layer, hidden, lengths):
        seen.append(hidden)
        return (hidden.abs().sum((1, 2)) * 1000).round().long() % 3

    _, cache = prefill(case.model, tokens, by_everything, case.lengths)
    for layer, hidden in enumerate(seen):
        assert hidden.shape[1] == max(case.lengths)
        for row, prompt in enumerate(prompts):
            before = rebuilt(case.model, cache.decisions[row, :layer].tolist())
            close(hidden[row, :len(prompt)], prefill(before, torch.tensor([prompt]))[0][0])
            assert not hidden[row, len(prompt):].any()


# ---- the cache ----

def bytes_of(case, paths, capacity):
    """Keys and values: float64, (kv heads, capacity, head size) per row and pass."""
    return 2 * 8 * case.kv_heads * capacity * case.head_dim * sum(map(blocks, paths))


def bytes_in(cache):
    tensors = [t for slots in cache.slots for slot in slots for t in (slot.keys, slot.values)]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


@given(cases(), st.integers(0, 5))
def test_cache_holds_nothing_for_skipped_layers(case, spare):
    """Catches slots allocated for every layer, or for every row of the batch."""
    tokens, lengths = padded(case.prompts)
    capacity = tokens.shape[1] + spare
    _, cache = prefill(case.model, tokens, FixedRoute(case.paths), lengths, capacity)
    assert bytes_in(cache) == bytes_of(case, case.paths, capacity)
    assert bytes_in(prefill(case.model, tokens, FixedRoute(case.paths), lengths)[1]) == 0


# ---- refusals ----

@pytest.mark.parametrize("decisions, numbers", [
    ((1, 1), ("2", "3")), ((1,) * 7, ("7", "3")), ((1, 3, 1), ("0..2", "3")),
    ((0, -1, 1), ("0..2", "-1")), (((1, 1, 1), (1, 1, 1)), ("1 decisions", "[1, 1]"))])
def test_a_path_that_does_not_fit_is_refused(decisions, numbers):
    """Catches a short path that silently runs fewer layers, and decisions that nothing defines."""
    with pytest.raises(ValueError) as error:
        tiny_model()(torch.tensor([[1, 2]]), FixedRoute(decisions))
    assert all(number in str(error.value) for number in numbers)


def test_a_decision_means_what_the_table_says_and_no_other_is_run(monkeypatch):
    """Catches a code taken for a number of passes: without a word, 3 ran a layer three times."""
    model, tokens = tiny_model(), torch.tensor([[1, 2]])
    with pytest.raises(ValueError, match=r"decisions in 0\.\.2, got \[3\]"):
        model(tokens, lambda layer, hidden, lengths: torch.tensor([3]))
    once_more = Decision("execute otherwise", passes=1, edit=False, mark="?")
    monkeypatch.setattr(model_llama, "DECISIONS", (*DECISIONS, once_more))
    monkeypatch.setattr(model_llama, "PASSES", torch.tensor([0, 1, 2, 1]))
    close(model(tokens, FixedRoute((3, 3, 3))), model(tokens))


@pytest.mark.parametrize("lengths", [[0, 2], [2, 4], [-1, 3]])
def test_lengths_outside_the_tokens_are_refused(lengths):
    """Catches a length of 0 whose last position would wrap round to the padding."""
    with pytest.raises(ValueError, match=r"1\.\.3") as error:
        tiny_model()(torch.ones(2, 3, dtype=torch.long), None, lengths)
    assert str(lengths) in str(error.value)


@pytest.mark.parametrize("length", [8, 11])
def test_a_prompt_longer_than_the_context_is_refused(length):
    """Catches positions the model never saw, where it answers nonsense without a word."""
    with pytest.raises(ValueError, match=rf"{length} .*\b8\b"):
        generate(tiny_model(max_positions=8), [words(2, 0), words(length, 0)])


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_decode_beyond_the_capacity_is_refused(length, room, beyond):
    """Catches keys written past the end, or over the first ones."""
    model = tiny_model()
    _, cache = prefill(model, torch.tensor([words(length, 0)]), capacity=length + room)
    with pytest.raises(ValueError, match=rf"{length} .*{room + beyond} .*{length + room}"):
        decode(model, torch.tensor([words(room + beyond, 1)]), cache)
    decode(model, torch.tensor([words(room, 1)]), cache)  # a refusal leaves the cache usable


def test_a_prompt_beyond_the_capacity_is_refused():
    """Catches a shape error from deep inside where the caller asked for too little room."""
    with pytest.raises(ValueError, match=r"3\b.*2"):
        prefill(tiny_model(), torch.tensor([[1, 2, 3]]), capacity=2)


# ---- the fingerprint ----

@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_fingerprint_names_the_weights_and_nothing_else(family, tmp_path):
    """Catches a fingerprint that depends on dtype or on a trip through a file, or that leaves
    a tensor out: routers trained for one model would then be run on another."""
    model = tiny_model(0, family, torch.bfloat16)
    folder = save_tiny(tmp_path, model)
    wanted = model.fingerprint()
    assert len(wanted) == 16 and int(wanted, 16) >= 0
    assert load_model(folder).fingerprint() == wanted
    assert load_model(folder, dtype=torch.bfloat16).fingerprint() == wanted
    assert tiny_model(1, family, torch.bfloat16).fingerprint() != wanted
    other = load_model(folder, dtype=torch.bfloat16)
    for name, weight in other.named_weights().items():
        last = weight.view(-1)[-1].clone()
        vars(other).pop("_fingerprint", None)  # it is computed once per model
        weight.view(-1)[-1] += 1
        assert other.fingerprint() != wanted, name
        weight.view(-1)[-1] = last


# ---- agreement with transformers ----

GOLDEN = [*sorted(file.name.removesuffix(".gold.json")  # made by make_golden.py
                  for file in (HERE / "golden").glob("*.gold.json")),
          "shared/llama32_tied_rope3", "shared/qwen25", "shared/qwen3"]


@pytest.fixture(params=GOLDEN)
def golden(request):
    """(model, what transformers computes with it)."""
    place, _, name = request.param.rpartition("/")
    folder = request.getfixturevalue("shared") / "golden" if place else HERE / "golden"
    return load_model(folder / name), json.loads((folder / f"{name}.gold.json").read_text("utf-8"))


def near(got, wanted):
    """Within 1e-4 of the largest logit: float32 noise is about 1e-6 of it."""
    wanted = torch.tensor(wanted)
    close(got, wanted, 1e-4 * wanted.abs().max().item())


def test_logits_and_tokens_match_transformers_on_every_path(golden):
    """Catches a misreading that this file's own textbook decoder shares."""
    model, gold = golden
    for path, logits, generated in zip(gold["paths"], gold["logits"], gold["generated"]):
        near(model(torch.tensor(gold["tokens"]), FixedRoute(path))[:, 35:37], logits)
        assert generate(model, gold["tokens"], FixedRoute(path), 20).tokens == generated
    assert gold["paths"][0] == [1] * model.config.num_layers
    assert generate(model, gold["tokens"], None, 20).tokens == gold["generated"][0]


def test_a_ragged_batch_of_all_paths_matches_transformers(golden):
    """Catches rows that take a neighbour's path or position: 12 rows, two lengths, four paths."""
    model, gold = golden
    rows = [(p, r) for p in range(len(gold["paths"])) for r in range(3)]
    prompts = [gold["tokens"][r][:37 - (p + r) % 2] for p, r in rows]
    route, (tokens, lengths) = FixedRoute([gold["paths"][p] for p, _ in rows]), padded(prompts)
    logits = model(tokens, route, lengths)
    generated = generate(model, prompts, route, 20).tokens
    for row, (p, r) in enumerate(rows):
        near(logits[row, lengths[row] - 1], gold["logits"][p][r][lengths[row] - 36])
        assert lengths[row] == 36 or generated[row] == gold["generated"][p][r]


# ---- speed must not change the answer ----

@pytest.mark.parametrize("bias", [True, False])
def test_large_float32_products_are_the_plain_ones_and_still_have_gradients(bias):
    """Catches a fast product that drops the bias, the leading axes, or the gradient."""
    layer = Linear(512, 1024, bias=bias)
    x = torch.randn(2, 3, 512)
    assert x.numel() * 1024 >= 2 ** 20
    wanted = torch.nn.functional.linear(x, layer.weight, layer.bias)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    frozen = layer.requires_grad_(False)
    close(frozen(x), wanted.detach(), 1e-4)
    x.requires_grad_()
    assert frozen(x).requires_grad


@pytest.mark.parametrize("on_amd", [True, False])
def test_onednn_multiplies_several_tokens_and_a_single_one_on_amd_alone(on_amd, monkeypatch):
    """Catches a float32 token that takes half as long again on an Intel processor."""
    sizes = []

    def multiply(x, weight, bias, *_):
        sizes.append(x.shape[1])
        return torch.nn.functional.linear(x, weight, bias)

    monkeypatch.setattr(model_llama, "ONEDNN_LINEAR", multiply)
    monkeypatch.setattr(model_llama, "ON_AMD", on_amd)
    large, small = (Linear(512, width).requires_grad_(False) for width in (512, 128))
    for layer in (large, small):
        for tokens in (1, 2, 16):
            layer(torch.randn(1, tokens, 512))
    large.bfloat16()(torch.randn(1, 2, 512, dtype=torch.bfloat16))
    assert sizes == ([1] if on_amd else []) + [2, 16, 16]
