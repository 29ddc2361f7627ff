"""``DecoderConfig``: the settings of a decoder that are not part of its policy."""

from __future__ import annotations

from dataclasses import dataclass

from kvlab.decoder.context_limit import LONG_PROMPT, MIN_MOVING_TOKENS, OVERFLOW, ContextLimit, OverflowRule
from kvlab.errors import KvlabError
from kvlab.policies import parse_bytes

PREFILL_BATCH = 8
"""Prompts that are prefilled side by side (mlx-lm's default)."""

PACED, CHUNKS, NONE = "paced", "chunks", "none"
INTERLEAVE = (PACED, CHUNKS, NONE)
"""How prefill and decoding take turns."""

FAIR, FIFO = "fair", "fifo"
ADMISSION = (FAIR, FIFO)
"""Which waiting request gets the next place."""


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
        prefill_prompts: most prompts that are prefilled side by side.
        interleave: ``paced``: beside decoding sequences, prefill gets a share of the time; ``chunks``: a chunk of
            ``prefill_step`` tokens of each prompt follows every decode step, however long it takes; ``none``: prompts
            are computed to their end before decoding goes on.
        context: most tokens of a sequence, prompt and answer together; None is no limit.
        long_prompt: what becomes of a prompt that fills the context: ``error``, or ``truncate-middle:keep=4``, which
            drops its middle so that half of the context behind the first 4 tokens is left for the answer.
        overflow: what happens where an answer reaches the context: ``stop`` ends it, ``error`` refuses a request that
            might, ``shift:keep=4`` drops half of the tokens behind the first 4 and goes on. Tokens that the tokenizer
            puts before every text are kept besides.
        admission: ``fair``: clients, and the requests of each, share the places evenly, and a running request of one
            that holds more may be preempted; ``fifo``: places go by priority and age, and stay taken until an answer
            ends, as in the servers that systems rebuild.

    Raises:
        KvlabError: a number below its minimum, an unknown rule, or one that has no effect without a ``context``.
        PolicyError: a size that cannot be read.
    """

    max_concurrency: int = 32
    prefill_step: int | None = None
    live_memory: int | str | None = None
    retain: int = 4
    prefill_prompts: int = PREFILL_BATCH
    interleave: str = PACED
    context: int | None = None
    long_prompt: str = "error"
    overflow: str = "stop"
    admission: str = FAIR

    def __post_init__(self) -> None:
        counts = (("max_concurrency", 1), ("prefill_step", 1), ("retain", 0), ("prefill_prompts", 1))
        for name, least in (*counts, ("context", 2 * MIN_MOVING_TOKENS)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise KvlabError(f"{name}={value} must be {least} or more")
        for name, known in (("interleave", INTERLEAVE), ("admission", ADMISSION)):
            if getattr(self, name) not in known:
                raise KvlabError(f"{name}={getattr(self, name)} is unknown; write one of {', '.join(known)}")
        self.limit()
        for name in ("long_prompt", "overflow"):
            if self.context is None and getattr(self, name) != DecoderConfig.__dataclass_fields__[name].default:
                raise KvlabError(f"{name}={getattr(self, name)} has no effect without a context: set context=4096")
        if self.live_memory is not None:
            object.__setattr__(self, "live_memory", parse_bytes(self.live_memory))

    @property
    def live_bytes(self) -> int | None:
        """The budget for live KV in bytes."""
        return None if self.live_memory is None else parse_bytes(self.live_memory)

    @property
    def prefill_batch(self) -> int:
        """Prompts that are prefilled side by side."""
        return min(self.prefill_prompts, self.max_concurrency)

    def limit(self, bos: int = 0) -> ContextLimit:
        """Return the context limit; ``bos`` is how many tokens the tokenizer puts before every text."""
        long_prompt = OverflowRule.parse("long_prompt", self.long_prompt, LONG_PROMPT)
        overflow = OverflowRule.parse("overflow", self.overflow, OVERFLOW)
        return ContextLimit(self.context, long_prompt, overflow, bos)
