"""``DecoderConfig``: the settings of a decoder that are not part of its policy."""

from __future__ import annotations

from dataclasses import dataclass

from kvlab.errors import KvlabError
from kvlab.policies import parse_bytes

PREFILL_BATCH = 8
"""Prompts that are prefilled side by side (mlx-lm's default)."""


@dataclass(frozen=True)
class DecoderConfig:
    """The settings of one decoder.

    Args:
        max_concurrency: sequences that decode side by side; more wait in a queue.
        prefill_step: most prompt tokens computed at a time; beside decoding sequences it is less, by time. None is the
            backend's choice.
        live_memory: byte budget for live KV, such as ``"2GB"``; None is no limit. Requests wait for room; where the
            policy keeps KV at rest, running ones are preempted and continue later with the same tokens.
        retain: sequences that keep their live KV when they end, where the policy shares live KV: their next turn
            continues from it without a restore. They count as live, are never more than ``max_concurrency`` together
            with the running ones, and are released when live memory is short.

    Raises:
        KvlabError: a number below its minimum.
        PolicyError: a size that cannot be read.
    """

    max_concurrency: int = 32
    prefill_step: int | None = None
    live_memory: int | str | None = None
    retain: int = 4

    def __post_init__(self) -> None:
        for name, least in (("max_concurrency", 1), ("prefill_step", 1), ("retain", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise KvlabError(f"{name}={value} must be {least} or more")
        if self.live_memory is not None:
            object.__setattr__(self, "live_memory", parse_bytes(self.live_memory))

    @property
    def live_bytes(self) -> int | None:
        """The budget for live KV in bytes."""
        return None if self.live_memory is None else parse_bytes(self.live_memory)

    @property
    def prefill_batch(self) -> int:
        """Prompts that are prefilled side by side."""
        return min(PREFILL_BATCH, self.max_concurrency)
