"""The events of a request, one class for each kind.

Every event carries ``request`` (the decoder's number for it; -1 for events of no request) and ``t``, seconds on the
decoder's clock (``time.perf_counter``). The recorder keeps them, the charts read them back as frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Event:
    """Base of all events. ``t`` in seconds."""

    request: int
    t: float


@dataclass(frozen=True)
class Submitted(Event):
    """A request was accepted. ``tags`` are the caller's labels (policy, turn, phase ...)."""

    prompt_tokens: int
    max_tokens: int
    tags: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Matched(Event):
    """The store was looked up. ``cached_tokens`` are not recomputed; ``miss`` is the reason for the others."""

    cached_tokens: int
    by_tier: Mapping[str, int]
    miss: str
    seconds: float


@dataclass(frozen=True)
class Restored(Event):
    """KV at rest became live KV."""

    tokens: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Prefilled(Event):
    """``tokens`` prompt tokens were computed in this step; ``done`` of ``total`` are now."""

    tokens: int
    done: int
    total: int


@dataclass(frozen=True)
class FirstToken(Event):
    """The first token came out ``seconds`` after the submission, of which ``queued`` were spent waiting.

    ``t`` is when it had joined the answer, one decode step after it came out.
    """

    token: int
    seconds: float = 0.0
    queued: float = 0.0


@dataclass(frozen=True)
class Token(Event):
    """A later token came out; ``step`` counts from 1 after the first token (step 0)."""

    token: int
    step: int
    kv_bytes: int


@dataclass(frozen=True)
class Evicted(Event):
    """Rows left the live KV of one layer.

    ``positions`` are the true positions dropped, int32 ``[n_kv_heads, n]``, padded with -1; ``step`` is the decode
    step (0: at the end of the prompt); ``kept`` is the number of rows left per head.
    """

    layer: int
    step: int
    positions: np.ndarray
    kept: int


@dataclass(frozen=True)
class Stored(Event):
    """KV went to the store: ``blocks`` new blocks, ``bytes`` new bytes."""

    blocks: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Spilled(Event):
    """Blocks moved from RAM to SSD."""

    blocks: int
    bytes: int


@dataclass(frozen=True)
class Chained(Event):
    """The full blocks of a request's sequence were named: of its prompt when it was looked up, or at its end.

    ``blocks`` are int64 ``[n]``, each a hash over all that precedes it and itself, ``block_tokens`` tokens long. With
    ``kept`` they are those of the tokens that were given to the store. So a replay sees the blocks that the store saw.
    """

    block_tokens: int
    kept: bool
    blocks: np.ndarray


@dataclass(frozen=True)
class Dropped(Event):
    """Blocks left the store for good; ``reason`` is ``evicted`` or ``corrupt``."""

    blocks: int
    bytes: int
    reason: str


@dataclass(frozen=True)
class Paused(Event):
    """Live memory or places were short: the request was preempted after ``tokens`` tokens, and continues later."""

    tokens: int
    live_bytes: int


@dataclass(frozen=True)
class PromptCut(Event):
    """A prompt beyond the context limit lost ``removed`` tokens behind its first ``kept``."""

    kept: int
    removed: int


@dataclass(frozen=True)
class Shifted(Event):
    """A sequence reached the context limit after ``tokens`` of its answer.

    It lost ``removed`` tokens behind its first ``kept``; those after them moved to earlier positions.
    """

    kept: int
    removed: int
    tokens: int


@dataclass(frozen=True)
class Finished(Event):
    """The request ended: ``stop``, ``length``, ``cancelled`` or ``error``. ``kv_bytes`` is its live KV at the end."""

    reason: str
    tokens: int
    kv_bytes: int


KINDS: tuple[type[Event], ...] = (
    Submitted, Matched, Restored, Prefilled, FirstToken, Token, Evicted, Stored, Spilled, Dropped, Paused, Finished,
    PromptCut, Shifted, Chained,
)  # fmt: skip
