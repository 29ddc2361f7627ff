"""How prefill and decoding take turns: as each setting says, and with the same tokens."""

from __future__ import annotations

from typing import Any

import pytest

from kvlab.decoder import Decoder
from kvlab.models import LoadedModel
from kvlab.recording.recorder import Recorder

STEP = 32
LONG = [5 + (31 * n) % 2000 for n in range(8 * STEP)]
SHORT = [7 + (17 * n) % 2000 for n in range(12)]


def served(loaded: LoadedModel, **settings: Any) -> tuple[list[tuple[int, ...]], int, int]:
    """Serve a long prompt while a short one decodes: the tokens of both, the chunks, and steps between them."""
    recorder = Recorder()
    with Decoder(loaded, "full", recorder=recorder, prefill_step=STEP, **settings) as decoder:
        decoding = decoder.submit(SHORT, max_tokens=60)
        next(iter(decoding))
        late = decoder.submit(LONG, max_tokens=4)
        done = [decoding.result(), late.result()]
    chunks = recorder.frame("prefilled").filter(request=late.request)
    tokens = recorder.frame("token").filter(request=decoding.request)
    between = tokens.filter((tokens["t"] > chunks["t"].min()) & (tokens["t"] < chunks["t"].max())).height
    return [one.tokens for one in done], chunks.height, between


@pytest.fixture(scope="module")
def paced(bundled: LoadedModel) -> list[tuple[int, ...]]:
    return served(bundled)[0]


def test_chunks_follow_decode_steps_one_to_one(bundled: LoadedModel, paced: list[tuple[int, ...]]) -> None:
    tokens, chunks, between = served(bundled, interleave="chunks")
    assert tokens == paced
    assert chunks <= len(LONG) // STEP + 2
    assert chunks - 3 <= between <= chunks + 1


def test_without_interleaving_no_token_comes_before_the_prompt_is_computed(
    bundled: LoadedModel, paced: list[tuple[int, ...]]
) -> None:
    tokens, chunks, between = served(bundled, interleave="none")
    assert tokens == paced
    assert chunks >= len(LONG) // STEP
    assert between == 0


def test_prompts_are_computed_one_after_another_where_one_is_the_most(bundled: LoadedModel) -> None:
    recorder = Recorder()
    with Decoder(bundled, "full", recorder=recorder, prefill_step=STEP, prefill_prompts=1) as decoder:
        streams = [decoder.submit(LONG, max_tokens=2), decoder.submit(LONG[::-1], max_tokens=2)]
        first, second = (stream.result() for stream in streams)
    chunks = recorder.frame("prefilled")
    ended = chunks.filter(request=first.request)["t"].max()
    assert (chunks.filter(request=second.request)["t"].to_numpy() >= ended).all()
