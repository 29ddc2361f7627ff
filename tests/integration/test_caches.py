"""Live caches in mlx-lm's own generators: alone, in ragged batches, against mlx-lm's caches, and in bytes."""

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models.cache import QuantizedKVCache, RotatingKVCache

from kvlab.caches import LayerCache, LayerPlace, make_caches
from kvlab.caches.attention_hook import install
from kvlab.errors import ModelError
from kvlab.models import LoadedModel
from kvlab.policies import KNorm, Policy, ScoreContext, SnapKV

LENGTHS = (30, 100, 257, 64, 5, 190, 12, 1)
POLICIES = [
    "quantized",
    "quantized:bits=2",
    "rotating:window=40",
    "rotating:window=40|quantized:bits=4,group=32",
    "knorm:budget=0.5",
    "knorm:budget=24,interval=1|quantized",
    "snapkv:budget=0.5,window=8",
    "snapkv:budget=40,window=8|quantized:bits=4",
    "random:budget=0.25",
]


def prompts_of(model: LoadedModel, lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(5, 250, n).tolist() for n in lengths]


def decode(model: LoadedModel, caches, prompts, tokens: int = 24, step: int = 64) -> list[list[int]]:
    """Greedy tokens of all prompts in one BatchGenerator."""
    generator = BatchGenerator(model.model, max_tokens=tokens, prefill_step_size=step)
    uids = generator.insert(prompts, caches=caches)
    out: dict[int, list[int]] = {uid: [] for uid in uids}
    while any(len(got) < tokens for got in out.values()):
        for response in generator.next()[1]:
            out[response.uid].append(response.token)
    generator.close()
    return [out[uid] for uid in uids]


def build(model: LoadedModel, policy: str, prompts) -> list[list[LayerCache]]:
    return [make_caches(model.model, policy, prompt_tokens=len(prompt)) for prompt in prompts]


def raw_layers(model: LoadedModel) -> list[LayerCache]:
    """kvlab's own layer caches, keeping everything as it is (a lossless policy would use mlx-lm's)."""
    install(model.model)
    return [LayerCache(Policy(), LayerPlace(layer, model.n_layers)) for layer in range(model.n_layers)]


@pytest.mark.parametrize("policy", POLICIES)
def test_ragged_batch_gives_each_sequence_its_tokens_alone(llama, policy):
    prompts = prompts_of(llama)
    alone = [decode(llama, build(llama, policy, [prompt]), [prompt])[0] for prompt in prompts]
    assert decode(llama, build(llama, policy, prompts), prompts) == alone


def test_layer_caches_with_full_retention_equal_mlx_lms_cache(random_weights):
    prompts = prompts_of(random_weights)
    plain = [decode(random_weights, None, [prompt])[0] for prompt in prompts]
    assert decode(random_weights, [raw_layers(random_weights) for _ in prompts], prompts) == plain


def step_tokens(model: LoadedModel, caches, prompt: list[int], tokens: int = 40) -> list[int]:
    """Greedy tokens of mlx_lm's single-sequence generator."""
    steps = generate_step(mx.array(prompt), model.model, prompt_cache=caches, max_tokens=tokens, prefill_step_size=64)
    return [int(token) for token, _ in steps]


def test_rotating_equals_mlx_lms_rotating_cache(random_weights):
    prompt = prompts_of(random_weights)[6]
    layers = random_weights.n_layers
    theirs = step_tokens(random_weights, [RotatingKVCache(max_size=48) for _ in range(layers)], prompt)
    ours = step_tokens(random_weights, make_caches(random_weights.model, "rotating:window=48,sinks=0"), prompt)
    assert ours == theirs


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_quantized_equals_mlx_lms_quantized_cache(random_weights, bits):
    prompt = prompts_of(random_weights)[5]
    layers = random_weights.n_layers
    theirs = step_tokens(random_weights, [QuantizedKVCache(bits=bits) for _ in range(layers)], prompt)
    ours = step_tokens(random_weights, make_caches(random_weights.model, f"quantized:bits={bits}"), prompt)
    assert ours == theirs


def test_rotating_sees_sinks_and_window_and_nothing_else(llama):
    """Two prompts that differ only where the window never looks, for any layer, decode alike once it has passed."""
    rng = np.random.default_rng(1)
    head, tail = rng.integers(5, 250, 2).tolist(), rng.integers(5, 250, 64).tolist()
    others = [rng.integers(5, 250, 100).tolist() for _ in range(2)]
    # With two layers a token sees at most two windows back: 64 tokens of equal tail cover that.
    got = [step_tokens(llama, make_caches(llama.model, "rotating:window=16,sinks=2"), head + o + tail) for o in others]
    assert got[0] == got[1]


@pytest.mark.parametrize(
    ("policy", "factor"), [("quantized:bits=8", 3.55), ("quantized:bits=4", 6.4), ("quantized:bits=2", 10.6)]
)
def test_quantized_bytes_fall_by_the_factor_of_its_bits(llama, policy, factor):
    """float32 rows of 64 channels: 256 bytes against bits * 8 + a scale and a bias of 4 bytes."""
    prompts = prompts_of(llama, (300,))
    held = []
    for caches in ([raw_layers(llama)], build(llama, policy, prompts)):
        decode(llama, caches, prompts, tokens=4)
        held.append(sum(cache.nbytes for cache in caches[0]))
    assert held[0] / held[1] == pytest.approx(factor, rel=0.01)


@pytest.mark.parametrize(
    "policy", ["knorm:budget=64", "snapkv:budget=64,window=8", "random:budget=64", "rotating:window=60"]
)
def test_eviction_frees_memory_and_keeps_the_budget_while_decoding(llama, policy):
    prompts = prompts_of(llama, (500,))
    [caches] = built = build(llama, policy, prompts)
    generator = BatchGenerator(llama.model, max_tokens=150, prefill_step_size=64)
    generator.insert(prompts, caches=built)
    rows, steps = [], 0
    while steps < 150:
        steps += len(generator.next()[1])
        if steps:
            rows.append(max(cache.rows.length for cache in caches))
    slack = 60 // 8 if policy.startswith("rotating") else 0
    assert max(rows) <= 64 + slack
    # 64 rows of 64 float32 channels, K and V, 2 heads; one more is there while rows are evicted.
    assert all(cache.rows.nbytes <= (64 + 1 + slack) * 64 * 4 * 2 * 2 for cache in caches)
    assert all(cache.offset == 500 + 150 for cache in caches)


class Watching(SnapKV):
    """SnapKV that keeps what it was shown."""

    seen: list[ScoreContext] = []
    name = "watching-snapkv"

    def score(self, context):
        self.seen.append(context)
        return super().score(context)


@pytest.mark.parametrize("codec", ["raw", "quantized:bits=8"])
def test_kept_positions_score_highest_in_each_head_and_others_are_recorded(llama, codec):
    [prompt] = prompts_of(llama, (200,))
    Watching.seen.clear()
    policy = Watching(budget=50, window=8, interval=4) | Policy.parse(codec)
    caches = [LayerCache(policy, LayerPlace(i, 2, prompt_tokens=200, record=True)) for i in range(2)]
    install(llama.model)
    step_tokens(llama, caches, prompt, tokens=30)
    first = [ctx for ctx in Watching.seen if ctx.offset == 200]
    assert len(first) == 2
    for ctx, cache in zip(first, caches, strict=True):
        scores = np.array(SnapKV(budget=50, window=8).score(ctx)[0])
        kept = [set(np.argsort(-row, kind="stable")[:50].tolist()) for row in scores]
        dropped = np.array(cache.retention.evictions[0].positions[0])
        assert [set(range(200)) - set(row.tolist()) for row in dropped] == kept
        # Everything the sequence ever held is either kept today or was recorded when it left.
        now = np.array(cache.positions()[0])
        for head in range(2):
            gone = np.concatenate([np.array(e.positions[0, head]) for e in cache.retention.evictions])
            assert sorted([*gone.tolist(), *now[head].tolist()]) == list(range(cache.offset))
            assert np.all(np.diff(now[head]) > 0)


def test_keys_stay_with_their_positions(llama):
    """After evictions, every row kept is the row that the full cache has at that position (layer 0 sees no loss)."""
    [prompt] = prompts_of(llama, (120,))
    full, few = raw_layers(llama), make_caches(llama.model, KNorm(budget=30))
    tokens = step_tokens(llama, full, prompt, tokens=1)
    step_tokens(llama, few, prompt, tokens=1)
    assert len(tokens) == 1
    positions = np.array(few[0].positions()[0])
    keys, values = few[0].rows.decode()
    all_keys, all_values = full[0].rows.decode()
    for head in range(2):
        at = positions[head][positions[head] < 120]
        np.testing.assert_array_equal(np.array(keys[0, head])[: len(at)], np.array(all_keys[0, head])[at])
        np.testing.assert_array_equal(np.array(values[0, head])[: len(at)], np.array(all_values[0, head])[at])


def test_trimming_removes_the_last_tokens(llama):
    [prompt] = prompts_of(llama, (80,))
    caches = raw_layers(llama)
    once = step_tokens(llama, caches, prompt, tokens=10)
    for cache in caches:
        assert cache.is_trimmable()
        cache.trim(cache.offset - 79)
    assert step_tokens(llama, caches, prompt[79:], tokens=10) == once


def test_group_that_does_not_divide_the_head_is_refused(llama):
    with pytest.raises(ModelError, match="does not divide"):
        step_tokens(llama, make_caches(llama.model, "quantized:group=128"), [5, 6, 7])


def test_model_that_never_calls_attend_is_refused(llama):
    cache = make_caches(llama.model, "quantized")[0]
    rows = mx.zeros((1, 2, 1, 64))
    cache.update_and_fetch(rows, rows)
    with pytest.raises(ModelError, match="use the policy full"):
        cache.update_and_fetch(rows, rows)
