"""Restore, or compute again: how many of a request's stored tokens are worth restoring, so that it answers soonest."""

from __future__ import annotations

from collections.abc import Iterable

from kvlab.speed import Speed
from kvlab.tiers import RAM


def tokens_to_restore(speed: Speed, found: Iterable[tuple[str, int]], prompt_tokens: int, token_bytes: int) -> int:
    """Return how many leading tokens to restore; the others are computed.

    Each further token saves computing it, which takes the longer the deeper it lies, and costs its bytes from its tier,
    the same for all tokens of a run. So within a run the wait first grows and then falls, or does only one of these:
    it is least at an end of a run, and no other place is looked at. Of equal waits the one with more restored counts.

    Args:
        speed: of prompts, and of restores by tier; tiers but ``ram`` are read at the speed of the SSD.
        found: runs of stored tokens from the start of the prompt on, each with the name of its tier.
        prompt_tokens: tokens of the whole prompt; its last one is computed in any case.
        token_bytes: bytes of KV a token.
    """
    at = best = ram = ssd = 0
    least = speed.prefill(0, prompt_tokens)
    for tier, tokens in found:
        at += tokens
        if tier == RAM.name:
            ram += tokens * token_bytes
        else:
            ssd += tokens * token_bytes
        wait = speed.restore(ram, ssd) + speed.prefill(min(at, prompt_tokens - 1), max(1, prompt_tokens - at))
        if wait <= least:
            best, least = at, wait
    return best
