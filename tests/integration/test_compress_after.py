"""A question that comes after the eviction: a scorer chooses the rows that stay before it has seen the question.

Class of inputs: any scorer (with and without a window of queries, equal and unequal heads), any place of the cut in any
chunking, alone or beside others, with KV at rest or without.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvlab.decoder import Decoder
from kvlab.errors import KvlabError
from kvlab.models import LoadedModel
from kvlab.policies import Policy, ScoreContext, Scorer
from kvlab.recording import events
from tests.integration.test_decoder import Log, conversation, uncached

CONTEXT, QUESTION = conversation(1, 150), conversation(2, 23)
PROMPT = [*CONTEXT, *QUESTION]


@dataclass(frozen=True)
class Uneven(Scorer):
    """Keeps more rows in one head than in the others, by the attention of the last queries."""

    name: ClassVar[str] = "uneven-of-test"

    @property
    def window(self) -> int:
        return 8

    def targets(self, scores: mx.array, rows: int) -> list[int]:
        heads = scores.shape[1]
        return [rows + heads - 1, *[rows - 1] * (heads - 1)] if rows > 1 else [rows] * heads

    def score(self, context: ScoreContext) -> mx.array:
        heads = context.keys.shape[1]
        weights = context.attention.mean(axis=2)
        return weights.reshape(1, heads, -1, weights.shape[-1]).mean(axis=2)


SCORERS = ["snapkv:budget=0.3,window=16", "knorm:budget=60", "random:budget=0.5", Uneven(budget=0.4)]


def first_gone(log: Log, request: int = 0) -> dict[int, np.ndarray]:
    """The positions of a request that left each layer in its first eviction."""
    found: dict[int, list[np.ndarray]] = defaultdict(list)
    for event in log.of(events.Evicted):
        if event.request == request:
            found[event.layer].append(event.positions)
    return {layer: positions[0] for layer, positions in found.items()}


def evicted(loaded: LoadedModel, policy: Policy, prompt: list[int], step: int, **options: int) -> dict[int, np.ndarray]:
    log = Log()
    with Decoder(loaded, policy, recorder=log, prefill_step=step) as decoder:
        decoder.generate(prompt, max_tokens=4, **options)
    return first_gone(log)


@pytest.mark.parametrize("scorer", SCORERS, ids=str)
@pytest.mark.parametrize("step", [64, 512])
def test_what_stays_is_what_the_context_alone_would_keep(llama: LoadedModel, scorer: str | Scorer, step: int) -> None:
    policy = Policy.parse(scorer)
    alone = evicted(llama, policy, CONTEXT, step)
    later = evicted(llama, policy, PROMPT, step, compress_after=len(CONTEXT))
    assert alone.keys() == later.keys() and alone
    for layer, positions in alone.items():
        np.testing.assert_array_equal(later[layer], positions)


def test_a_scorer_that_sees_the_question_chooses_otherwise(llama: LoadedModel) -> None:
    policy = Policy.parse("snapkv:budget=0.3,window=16")
    seen, unseen = evicted(llama, policy, PROMPT, 512), evicted(llama, policy, PROMPT, 512, compress_after=len(CONTEXT))
    assert any(not np.array_equal(seen[layer], unseen[layer]) for layer in seen)


@given(cut=st.integers(1, len(PROMPT)), step=st.sampled_from([32, 50, 512]))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lossless_policies_give_the_same_tokens_at_any_cut(llama: LoadedModel, cut: int, step: int) -> None:
    [want] = uncached(llama, [PROMPT])
    for policy in ("full", "paged:block=16"):
        with Decoder(llama, policy, prefill_step=step) as decoder:
            for _ in range(2):  # the second time from KV of the first
                assert decoder.generate(PROMPT, max_tokens=16, compress_after=cut).tokens == want


def test_requests_beside_each_other_keep_their_own_cuts(llama: LoadedModel) -> None:
    policy, cuts = Policy.parse("knorm:budget=0.5"), (40, 90, 150, len(PROMPT))
    log = Log()
    with Decoder(llama, policy, recorder=log) as decoder:
        streams = [decoder.submit(PROMPT, max_tokens=4, compress_after=cut) for cut in cuts]
        for stream in streams:
            stream.result()
    for request, cut in enumerate(cuts):
        alone = evicted(llama, policy, PROMPT[:cut], 512)
        for layer, positions in first_gone(log, request).items():
            np.testing.assert_array_equal(positions, alone[layer])


@pytest.mark.parametrize("scorer", ["snapkv:budget=0.3,window=16", "knorm:budget=60"])
def test_kv_at_rest_is_that_of_the_context_and_changes_no_choice(
    llama: LoadedModel, scorer: str, tmp_path: Path
) -> None:
    """Complete rows of the context are stored; a later request computes at least what its scorer looks at."""
    policy = Policy.parse(f"{scorer}|paged:block=16|tiered:dir={tmp_path / 'store'}")
    plain = Policy.parse(scorer)
    with Decoder(llama, plain) as decoder:
        want = decoder.generate(PROMPT, max_tokens=8, compress_after=len(CONTEXT)).tokens
    log = Log()
    with Decoder(llama, policy, recorder=log) as decoder:
        first, second = (decoder.generate(PROMPT, max_tokens=8, compress_after=len(CONTEXT)) for _ in range(2))
        whole = decoder.generate(PROMPT, max_tokens=8)
    assert first.tokens == second.tokens == want
    assert 0 < second.cached_tokens < len(CONTEXT) and 0 < whole.cached_tokens <= len(CONTEXT)
    np.testing.assert_array_equal(first_gone(log, 0)[0], first_gone(log, 1)[0])
    np.testing.assert_array_equal(first_gone(log, 2)[0], evicted(llama, plain, PROMPT, 512)[0])


@pytest.mark.parametrize("cut", [0, -1, len(PROMPT) + 1])
def test_a_cut_outside_the_prompt_is_refused(llama: LoadedModel, cut: int) -> None:
    with Decoder(llama, "knorm") as decoder, pytest.raises(KvlabError, match=f"1 to {len(PROMPT)}"):
        decoder.submit(PROMPT, compress_after=cut)
