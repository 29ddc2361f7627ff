"""What a module of one's own may do: each contract is used by a small module that needs it."""

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from kvlab.caches import make_caches
from kvlab.caches.codecs import Arrays, Codec
from kvlab.decoder import Decoder
from kvlab.errors import PolicyError, PolicyWarning
from kvlab.models import LoadedModel
from kvlab.policies import Module, Policy, ScoreContext, Scorer

LENGTH = 90
PROMPT = np.random.default_rng(3).integers(5, 250, LENGTH).tolist()


def held(
    loaded: LoadedModel, policy: Policy | Module | str, tokens: int = 0, prompt: Sequence[int] = PROMPT
) -> list[Any]:
    """The layers of a sequence under ``policy`` after its prompt and some tokens."""
    caches = make_caches(loaded.model, Policy.parse(policy), prompt_tokens=len(prompt), record=True)
    return fed(loaded, caches, tokens, prompt)


def fed(loaded: LoadedModel, caches: list[Any], tokens: int, prompt: Sequence[int] = PROMPT) -> list[Any]:
    """The same caches after the prompt, and after tokens that are always the same."""
    loaded.model(mx.array([list(prompt)]), cache=caches)
    for token in range(10, 10 + tokens):
        loaded.model(mx.array([[token]]), cache=caches)
        mx.eval([cache.state for cache in caches])
    return caches


# -- scorers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pyramid(Scorer):
    """More rows in the first layers than in the last, as PyramidKV."""

    name: ClassVar[str] = "pyramid-of-test"

    def rows(self, prompt_tokens: int, layer: int, n_layers: int) -> int:
        return super().rows(prompt_tokens, layer, n_layers) * 2 // (layer + 1)

    def score(self, context: ScoreContext) -> mx.array:
        return context.positions.astype(mx.float32)


def test_a_scorer_may_keep_another_number_of_rows_in_each_layer(llama: LoadedModel) -> None:
    first, second = held(llama, Pyramid(budget=20, interval=1))
    assert (first.length, second.length) == (40, 20)


@dataclass(frozen=True)
class Uneven(Scorer):
    """The first head keeps more rows than the second, as AdaKV may decide."""

    name: ClassVar[str] = "uneven-of-test"

    def score(self, context: ScoreContext) -> mx.array:
        return -mx.linalg.norm(context.keys.astype(mx.float32), axis=-1)

    def targets(self, scores: mx.array, rows: int) -> list[int]:
        return [rows + 9, rows - 9]


@dataclass(frozen=True)
class Even(Uneven):
    """The same scores, and the same number for both heads."""

    name: ClassVar[str] = "even-of-test"
    more: int = 0

    def targets(self, scores: mx.array, rows: int) -> int:
        return rows + self.more


def test_heads_may_keep_different_numbers_of_rows_and_attend_to_those_only(llama: LoadedModel) -> None:
    uneven = held(llama, Uneven(budget=30, interval=1))[0]
    positions = np.array(uneven.positions()[0])
    kept = [set(row[row >= 0].tolist()) for row in positions]
    assert [len(rows) for rows in kept] == [39, 21]
    assert all(np.all(np.diff(row[row >= 0]) > 0) for row in positions)
    for head, more in ((0, 9), (1, -9)):  # what it would keep if both heads kept as many
        even = held(llama, Even(budget=30, interval=1, more=more))[0]
        assert set(np.array(even.positions()[0, head]).tolist()) == kept[head]
    [gone] = [np.array(eviction.positions[0]) for eviction in uneven.retention.evictions]
    assert [set(row[row >= 0].tolist()) | rows for row, rows in zip(gone, kept, strict=True)] == [
        set(range(LENGTH))
    ] * 2
    queries = mx.array(np.random.default_rng(0).normal(size=(1, 4, 1, 64)).astype(np.float32))
    out = np.array(uneven.attend(queries, scale=0.125))
    for head in range(4):
        keys, values = (np.array(side)[0, head // 2] for side in uneven.rows.decode())
        real = np.array(uneven.positions())[0, head // 2, : len(keys)] >= 0
        scores = keys[real] @ np.array(queries)[0, head, 0] * 0.125
        weights = np.exp(scores - scores.max())
        np.testing.assert_allclose(out[0, head, 0], weights @ values[real] / weights.sum(), rtol=2e-4, atol=2e-5)


def test_heads_of_different_lengths_go_on_within_their_budget(llama: LoadedModel) -> None:
    cache = held(llama, Uneven(budget=30, interval=4), tokens=40)[0]
    positions = np.array(cache.positions()[0])
    counts = (positions >= 0).sum(axis=1)
    assert counts[0] > counts[1] and counts.sum() <= 2 * 30 + 2 * 4
    with Decoder(llama, Uneven(budget=30) | Policy()) as decoder:
        alone = decoder.generate(PROMPT, max_tokens=12).tokens
    with Decoder(llama, Uneven(budget=30) | Policy()) as decoder:
        streams = [decoder.submit(PROMPT[i:], max_tokens=12) for i in (0, 7, 31)]
        assert streams[0].result().tokens == alone


@pytest.mark.parametrize("wrong", [[3], [0, 5], [5, 10_000]])
def test_targets_that_cannot_be_are_refused(llama: LoadedModel, wrong: list[int]) -> None:
    @dataclass(frozen=True)
    class Wrong(Uneven):
        name: ClassVar[str] = "wrong-of-test"

        def targets(self, scores: mx.array, rows: int) -> list[int]:
            return wrong

    with pytest.raises(PolicyError, match="2 numbers, one a KV head"):
        held(llama, Wrong(budget=30))


@dataclass(frozen=True)
class HeavyHitters(Scorer):
    """The rows that all queries so far attended to most, as H2O."""

    name: ClassVar[str] = "heavy-hitters-of-test"

    @property
    def accumulates(self) -> bool:
        return True

    def accumulate(self, accumulated: mx.array, context: ScoreContext) -> mx.array:
        _, kv_heads, length, _ = context.keys.shape
        weights = context.attention
        return accumulated + weights.reshape(1, kv_heads, -1, weights.shape[2], length).sum(axis=(2, 3))

    def score(self, context: ScoreContext) -> mx.array:
        assert context.accumulated is not None
        return context.accumulated


def test_a_scorer_may_accumulate_over_all_queries_of_all_chunks(llama: LoadedModel) -> None:
    seen: list[np.ndarray] = []

    @dataclass(frozen=True)
    class Watched(HeavyHitters):
        name: ClassVar[str] = "watched-of-test"

        def score(self, context: ScoreContext) -> mx.array:
            scores = super().score(context)
            if context.layer == 0:
                seen.append(np.array(scores[0]))
            return scores

    whole = held(llama, Watched(budget=30))
    caches = make_caches(llama.model, Watched(budget=30) | Policy(), prompt_tokens=LENGTH)
    for start in range(0, LENGTH, 40):
        llama.model(mx.array([PROMPT[start : start + 40]]), cache=caches)
    np.testing.assert_allclose(seen[-1], seen[0], rtol=2e-4, atol=1e-4)
    # Each of 4 query heads pays 1 in all at each of LENGTH positions; 2 of them share a KV head.
    np.testing.assert_allclose(seen[0].sum(axis=1), 2 * LENGTH, rtol=1e-4)
    assert whole[0].length == 30
    after = held(llama, HeavyHitters(budget=30, interval=4), tokens=25)[0]
    assert after.length <= 30 and after.retention._accumulated.shape == (1, 2, after.length)


def test_a_scorer_over_all_queries_computes_a_stored_prompt_anew(llama: LoadedModel) -> None:
    with Decoder(llama, HeavyHitters(budget=30) | Policy()) as decoder:
        alone = decoder.generate(PROMPT, max_tokens=12)
    with Decoder(llama, HeavyHitters(budget=30) | Policy.parse("paged:block=16")) as decoder:
        first, again = (decoder.generate(PROMPT, max_tokens=12) for _ in range(2))
    assert first.tokens == again.tokens == alone.tokens
    assert again.cached_tokens == 0


@dataclass(frozen=True)
class Separators(Scorer):
    """Rows of separator tokens stay, as in SepLLM."""

    name: ClassVar[str] = "separators-of-test"
    reads_token_ids: ClassVar[bool] = True
    separator: int = 7

    def score(self, context: ScoreContext) -> mx.array:
        assert context.token_ids is not None
        return mx.where(context.token_ids == self.separator, 1e6, 0) + context.positions


def test_a_scorer_may_read_the_tokens_of_the_rows(llama: LoadedModel) -> None:
    marks = [5, 17, 44]
    prompt = [9 if token == 7 else token for token in PROMPT]
    for mark in marks:
        prompt[mark] = 7
    kept: list[list[int]] = []

    @dataclass(frozen=True)
    class Watched(Separators):
        name: ClassVar[str] = "watched-separators-of-test"

        def score(self, context: ScoreContext) -> mx.array:
            scores = super().score(context)
            kept.append(sorted(np.argsort(-np.array(scores[0, 0]))[:20].tolist()))
            return scores

    with Decoder(llama, Watched(budget=20) | Policy()) as decoder:
        assert len(decoder.generate(prompt, max_tokens=6).tokens) == 6
    assert kept[0] == [*marks, *range(LENGTH - 17, LENGTH)]
    with pytest.raises(PolicyError, match="only kvlab's decoder hands"):
        held(llama, Separators(budget=20))


@dataclass(frozen=True)
class NotANumber(Scorer):
    """Scores that are no numbers from some token on."""

    name: ClassVar[str] = "nan-of-test"
    from_token: int = 0

    def score(self, context: ScoreContext) -> mx.array:
        scores = context.positions.astype(mx.float32)
        return scores * mx.nan if context.offset >= self.from_token else scores


@pytest.mark.parametrize(("from_token", "tokens"), [(0, 20), (0, 1), (LENGTH + 5, 40)])
def test_scores_that_are_no_numbers_are_refused(llama: LoadedModel, from_token: int, tokens: int) -> None:
    policy = NotANumber(budget=20, interval=4, from_token=from_token) | Policy()
    with Decoder(llama, policy) as decoder, pytest.raises(PolicyError, match="NotANumber.score gave NaN in layer 0"):
        decoder.generate(PROMPT, max_tokens=tokens)


@dataclass(frozen=True)
class NarrowEnd(Scorer):
    """Fewer rows in later layers than its window of queries."""

    name: ClassVar[str] = "narrow-end-of-test"
    window: int = 16  # type: ignore[assignment]

    def rows(self, prompt_tokens: int, layer: int, n_layers: int) -> int:
        return 40 if layer == 0 else 8

    def score(self, context: ScoreContext) -> mx.array:
        return context.positions.astype(mx.float32)


@pytest.mark.parametrize(
    ("spec", "tokens", "says"),
    [
        ("snapkv:budget=0.1", 90, "of a prompt below 325 tokens than its window of 32 fills.*such as budget=64"),
        ("snapkv:budget=0.5", 20, "of a prompt below 65 tokens"),  # all of the prompt is in the window
        ("narrow-end-of-test", 90, "of a short prompt than its window of 16 fills"),  # in later layers only
    ],
)
def test_a_budget_that_its_window_fills_is_one_warning_for_all_prompts_and_layers(
    llama: LoadedModel, spec: str, tokens: int, says: str
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for prompt in (PROMPT[:tokens], PROMPT[1 : tokens - 1]):
            with Decoder(llama, spec) as decoder:
                decoder.generate(prompt, max_tokens=4)
    [warning] = [one for one in caught if one.category is PolicyWarning]
    assert re.search(says, str(warning.message))


@pytest.mark.parametrize(("spec", "tokens"), [("snapkv:budget=0.5", 90), ("snapkv:budget=40", 30), ("knorm", 9)])
def test_a_budget_above_the_window_or_the_prompt_is_no_warning(llama: LoadedModel, spec: str, tokens: int) -> None:
    with warnings.catch_warnings(), Decoder(llama, spec) as decoder:
        warnings.simplefilter("error", PolicyWarning)
        decoder.generate(PROMPT[:tokens], max_tokens=4)


# -- retention, codecs and reuse that nothing carries out -------------------------------------------------------------


def test_a_retention_that_the_caches_do_not_know_is_refused(llama: LoadedModel) -> None:
    @dataclass(frozen=True)
    class Unknown(Module):
        name: ClassVar[str] = "unknown-retention-of-test"
        slot: ClassVar[str] = "retention"

    with pytest.raises(
        PolicyError, match="'unknown-retention-of-test' is a retention that the live caches do not know"
    ):
        Decoder(llama, Policy(Unknown()))


def test_a_codec_that_the_caches_do_not_know_is_refused(llama: LoadedModel) -> None:
    @dataclass(frozen=True)
    class Unknown(Module):
        name: ClassVar[str] = "unknown-codec-of-test"
        slot: ClassVar[str] = "codec"

    with pytest.raises(PolicyError, match="'unknown-codec-of-test' is a codec that the live caches do not know"):
        Decoder(llama, Policy(Unknown()))


def test_a_reuse_that_the_decoder_does_not_know_is_refused(llama: LoadedModel) -> None:
    @dataclass(frozen=True)
    class Unknown(Module):
        name: ClassVar[str] = "unknown-reuse-of-test"
        slot: ClassVar[str] = "reuse"

    with pytest.raises(PolicyError, match="'unknown-reuse-of-test' is a reuse that the decoder does not know"):
        Decoder(llama, Policy(Unknown()))


def test_a_lossy_module_is_keyed_by_its_whole_spec_unless_it_says_otherwise() -> None:
    @dataclass(frozen=True)
    class Lossy(Module):
        name: ClassVar[str] = "lossy-of-test"
        slot: ClassVar[str] = "codec"
        bits: int = 3
        share: float = 0.5

    assert Policy(Lossy()).storage_key == "lossy-of-test:bits=3,share=0.5"
    assert Policy(Lossy(bits=2)).storage_key != Policy(Lossy()).storage_key
    assert Policy().storage_key == "" and not Policy(Lossy()).lossless


# -- codecs over groups of rows ---------------------------------------------------------------------------------------

GROUP, RECENT = 8, 12


@dataclass(frozen=True)
class Grouped(Module):
    """Keys per channel in groups of rows, behind a window in full precision, as KIVI."""

    name: ClassVar[str] = "grouped-of-test"
    slot: ClassVar[str] = "codec"
    encodes_groups: ClassVar[bool] = True


class GroupedCodec(Codec):
    """Keys as 8-bit steps between the least and the largest of a group in each channel; values as they are."""

    module: ClassVar[type[Module]] = Grouped
    group_rows = GROUP
    recent_rows = RECENT
    encoded: ClassVar[list[int]] = []

    def __init__(self, module: Grouped) -> None: ...

    def encode(self, keys: mx.array, values: mx.array) -> dict[str, mx.array]:
        self.encoded.append(keys.shape[2])
        groups = keys.reshape(*keys.shape[:2], -1, GROUP, keys.shape[3])
        least, most = groups.min(axis=3), groups.max(axis=3)
        step = mx.maximum((most - least) / 255, 1e-9)
        codes = mx.round((groups - least[:, :, :, None]) / step[:, :, :, None]).astype(mx.uint8)
        return {"k.codes": codes.reshape(keys.shape), "k.least": least, "k.step": step, "v": values}

    def decode(self, rows: Arrays) -> tuple[mx.array, mx.array]:
        least, step = (mx.repeat(rows[name], GROUP, axis=2) for name in ("k.least", "k.step"))
        return rows["k.codes"] * step + least, rows["v"]


def test_a_codec_may_encode_groups_of_rows_behind_a_window_in_full_precision(llama: LoadedModel) -> None:
    GroupedCodec.encoded.clear()
    ours = held(llama, Grouped(), tokens=20)[0]
    plain = fed(llama, make_prompt_cache(llama.model), 20)
    total = ours.offset
    assert all(count % GROUP == 0 for count in GroupedCodec.encoded)
    exact = ours.rows.recent.length
    assert RECENT <= exact < RECENT + GROUP and ours.length == total
    keys, values = (np.array(side) for side in ours.rows.decode())
    want_keys, want_values = (np.array(side[..., :total, :]) for side in (plain[0].keys, plain[0].values))
    np.testing.assert_array_equal(keys[..., -exact:, :], want_keys[..., -exact:, :])
    np.testing.assert_allclose(values, want_values, rtol=1e-5, atol=1e-5)
    spread = want_keys.max(axis=2) - want_keys.min(axis=2)
    assert np.all(np.abs(keys - want_keys).max(axis=2) <= spread / 255) and not np.array_equal(keys, want_keys)
    least = math.prod(ours.rows.arrays["k.codes"].shape)
    assert ours.rows.arrays["k.codes"].nbytes == least  # one byte a channel


def test_a_codec_over_groups_serves_batches_and_is_refused_where_rows_must_be_single(llama: LoadedModel) -> None:
    with Decoder(llama, Policy(Grouped())) as decoder:
        alone = decoder.generate(PROMPT, max_tokens=12).tokens
        streams = [decoder.submit(PROMPT[i:], max_tokens=12) for i in (0, 7, 31)]
        assert streams[0].result().tokens == alone
    with pytest.raises(PolicyError, match="'grouped-of-test' encodes rows in groups, which 'paged' cannot"):
        Policy.parse("grouped-of-test|paged")
    with pytest.raises(PolicyError, match="'grouped-of-test' encodes rows in groups, of which 'knorm' drops"):
        Policy.parse("grouped-of-test|knorm")
