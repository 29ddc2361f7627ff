"""Log-probabilities: float32 values of the likeliest tokens, computed with the step and never waited for by it."""

from __future__ import annotations

import asyncio
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from kvlab.decoder import Decoder
from kvlab.models import LoadedModel, load
from kvlab.server.generation.async_stream import AsyncTokenStream
from kvlab.server.generation.sampling import Logprobs, logprob_arrays

WORDS = "The badge of @mira is #482. What is the badge of @mira?"


@pytest.fixture(scope="module")
def in_bfloat16(bundled: LoadedModel) -> LoadedModel:
    return load(bundled.path, dtype="bfloat16")


def reference(logits: mx.array) -> np.ndarray:
    """Log-probabilities in float64, from the logits as they are."""
    values = np.array(logits.astype(mx.float32), np.float64)
    shifted = values - values.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


class Spy:
    """A processor that keeps the logits it sees and passes calls on."""

    def __init__(self, logprobs: Logprobs) -> None:
        self.logprobs, self.seen = logprobs, {}

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        self.seen[tokens.size] = logits
        return self.logprobs(tokens, logits)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32])
@pytest.mark.parametrize("top", [0, 1, 5, 50, 80])
def test_arrays_equal_a_float32_reference(dtype: mx.Dtype, top: int) -> None:
    logits = (mx.random.normal((1, 50), key=mx.random.key(3)) * 9).astype(dtype)
    own, order, best = logprob_arrays(logits, mx.array([7]), top)
    expected = reference(logits)[0]
    assert own.dtype == best.dtype == mx.float32
    assert abs(own.item() - expected[7]) < 1e-5
    assert np.allclose(best, np.sort(expected)[::-1][:top], atol=1e-5)
    assert np.allclose(expected[np.array(order)], best, atol=1e-5)
    assert len(set(order.tolist())) == min(top, 50)


def test_bfloat16_model_reports_float32_values(in_bfloat16: LoadedModel) -> None:
    logprobs = Logprobs(5)
    spy = Spy(logprobs)
    prompt = in_bfloat16.encode(WORDS)
    with Decoder(in_bfloat16, "full") as decoder:
        stream = decoder.submit(prompt, max_tokens=12, logits_processors=[spy], sampler=lambda x: x[:, :300].argmax(-1))
        stream.listen(logprobs.token_out)
        tokens = stream.result(60).tokens
    assert len(tokens) == 12
    assert spy.seen[len(prompt)].dtype == mx.bfloat16
    assert len(logprobs.entries) == len(tokens)
    for i, (token, entry) in enumerate(zip(tokens, logprobs.entries, strict=True)):
        expected = reference(spy.seen[len(prompt) + i])[0]
        assert abs(entry.logprob - expected[token]) < 1e-5
        assert [value for _, value in entry.top] == pytest.approx(np.sort(expected)[::-1][:5].tolist(), abs=1e-5)
        assert all(abs(expected[other] - value) < 1e-5 for other, value in entry.top)


def test_processor_call_evaluates_nothing(bundled: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way to wait for an array is counted while the processor runs, beside a real decoder."""
    inside, waits = [False], []

    def counted(name: str, function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            if inside[0]:
                waits.append(name)
            return function(*arguments)

        return call

    for name in ("eval", "async_eval", "synchronize"):
        monkeypatch.setattr(mx, name, counted(name, getattr(mx, name)))
    for name in ("item", "tolist", "__array__", "__int__", "__float__", "__bool__"):
        if hasattr(mx.array, name):
            monkeypatch.setattr(mx.array, name, counted(name, getattr(mx.array, name)))

    class Watched(Logprobs):
        def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
            inside[0] = True
            try:
                return super().__call__(tokens, logits)
            finally:
                inside[0] = False

    logprobs = Watched(5)
    with Decoder(bundled, "full") as decoder:
        stream = decoder.submit(bundled.encode(WORDS), max_tokens=6, logits_processors=[logprobs])
        stream.listen(logprobs.token_out)
        tokens = stream.result(60).tokens
    assert waits == []
    assert len(logprobs.entries) >= len(tokens) > 0
    inside[0] = True
    mx.eval(mx.array(1))
    assert mx.array(2).tolist() == 2
    assert waits == ["eval", "tolist"]  # the counters count


def test_reports_are_computed_with_the_step_and_not_by_their_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the step's result is evaluated, reading a report evaluates no more: the graph behind it is gone."""
    logprobs = Logprobs(3)
    first, second = (mx.random.normal((1, 40), key=mx.random.key(i)) for i in range(2))
    logprobs(mx.array([1]), first)
    step = logprobs(mx.array([1, 9]), second)
    mx.eval(step)
    monkeypatch.setattr(mx, "eval", None)
    logprobs.token_out(9)
    assert logprobs.entries == []
    logprobs.token_out(4)
    assert logprobs.entries[0].logprob == pytest.approx(reference(first)[0, 9], abs=1e-5)
    assert np.array_equal(np.array(step), np.array(second))


def test_reports_wait_for_the_next_token_and_are_complete_at_the_end() -> None:
    logprobs = Logprobs(0)
    context = [1]
    for i in range(4):
        logprobs(mx.array(context), mx.random.normal((1, 40), key=mx.random.key(i)))
        logprobs.token_out(i)
        assert len(logprobs.entries) == i
        context.append(i)
    logprobs(mx.array(context), mx.zeros((1, 40)))
    logprobs.token_out(None)
    assert len(logprobs.entries) == 4


def test_stream_calls_its_listener_before_the_coroutine_gets_the_token() -> None:
    from kvlab.decoder import Stream

    async def main() -> None:
        stream, heard = Stream(0, lambda request: None), []
        tokens = AsyncTokenStream(stream, heard.append)
        stream.push(5)
        assert heard == [5]
        assert await tokens.next_batch(1) == [5]

    asyncio.run(main())


def test_large_flat_vocabulary_keeps_its_digits() -> None:
    logits = mx.random.normal((1, 150_001), key=mx.random.key(1)).astype(mx.bfloat16)
    own, _, best = logprob_arrays(logits, mx.array([150_000]), 2)
    expected = reference(logits)[0]
    assert abs(own.item() - expected[-1]) < 1e-5
    assert np.allclose(best, np.sort(expected)[::-1][:2], atol=1e-5)
