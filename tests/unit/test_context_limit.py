"""The context limit: what is kept and dropped, in numbers that were seen at servers, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from kvlab.decoder.config import DecoderConfig
from kvlab.decoder.context_limit import ContextError
from kvlab.errors import KvlabError


def limit(bos: int = 0, **settings: Any) -> Any:
    return DecoderConfig(**settings).limit(bos)


def test_a_shift_drops_half_of_what_is_not_kept() -> None:
    """As a llama-server with a context of 512 and 16 tokens to keep wrote in its log: 495 left, 247 discarded."""
    full = limit(context=512, overflow="shift:keep=16")
    assert full.shift(511) == (16, 247)
    assert full.shift(510) is None
    assert limit(1, context=512, overflow="shift:keep=15").shift(511) == (16, 247)
    assert limit(context=512, overflow="shift:keep=9999").shift(511) == (508, 1)
    assert limit(context=512).shift(511) is None


@pytest.mark.parametrize(
    ("context", "keep", "bos", "prompt", "span", "left"),
    [
        (4096, 4, 0, 4095, (0, 0), 4095),
        (4096, 4, 0, 4096, (4, 2050), 2050),
        (4096, 4, 0, 10_000, (4, 7954), 2050),
        (4096, 4, 1, 10_000, (5, 7954), 2051),
        (512, 4, 0, 600, (4, 346), 258),
    ],
)
def test_a_long_prompt_loses_its_middle(
    context: int, keep: int, bos: int, prompt: int, span: tuple[int, int], left: int
) -> None:
    """Half of what is not kept stays free: ``context - (context - keep) // 2`` tokens are left of a prompt."""
    start, stop = limit(bos, context=context, long_prompt=f"truncate-middle:keep={keep}").cut(prompt)
    assert (start, stop) == span
    assert prompt - (stop - start) == left


def test_an_answer_ends_at_the_context_or_is_refused() -> None:
    assert limit(context=100).answer(60, 50) == 40
    assert limit(context=100).answer(60, 30) == 30
    assert limit(context=100, overflow="shift").answer(60, 500) == 500
    assert limit().answer(60, 5000) == 5000
    with pytest.raises(ContextError, match="ask for 40 or fewer"):
        limit(context=100, overflow="error").answer(60, 41)
    with pytest.raises(ContextError, match="the prompt has 100 tokens, and the context is 100: shorten it"):
        limit(context=100).cut(100)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"context": 64, "overflow": "rolling"}, "overflow=rolling is unknown; write one of stop, error, shift"),
        ({"context": 64, "overflow": "shift:keep=x"}, "write shift:keep=4"),
        ({"context": 64, "overflow": "stop:keep=4"}, "write stop"),
        ({"context": 64, "long_prompt": "shift"}, "write one of error, truncate-middle"),
        ({"context": 4}, "context=4 must be 8 or more"),
        ({"overflow": "shift"}, "has no effect without a context"),
        ({"long_prompt": "truncate-middle"}, "has no effect without a context"),
        ({"interleave": "sometimes"}, "write one of paced, chunks, none"),
        ({"prefill_prompts": 0}, "prefill_prompts=0 must be 1 or more"),
    ],
)
def test_impossible_settings_are_refused_with_what_to_write(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(KvlabError, match=says):
        DecoderConfig(**settings)
