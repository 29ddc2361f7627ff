"""``HotSequence``: the live KV of the one sequence that ended last, which the next request may take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kvlab.caches.sequence_kv import SequenceKV
from kvlab.decoder.request import Request
from kvlab.decoder.reuse.kept_sequence import KeptSequence


class HotSequence:
    """Keeps an ended sequence that ran alone, until the next request takes or frees it, as LM Studio's MLX engine."""

    def __init__(self) -> None:
        self._held: KeptSequence | None = None
        self._running: list[Request] = []

    def take(self, request: Request, caches: Sequence[Any], limit: int, stored: int) -> tuple[int, str]:
        """Fill ``caches`` with the common prefix; return its tokens, and why those behind it must be computed.

        The sequence is gone either way. At most ``limit`` tokens are taken, and none where ``stored`` are more.
        """
        self._running = [one for one in self._running if one.caches and one is not request] + [request]
        held, self._held = self._held, None
        if held is None:
            return 0, ""
        context = np.array(request.context, np.int32)
        tokens = min(held.common(context, request.tenant), limit)
        if not tokens or tokens < stored:
            return 0, ""
        kv: SequenceKV = held.kv
        kv.give(caches, tokens, move=True)
        return tokens, "" if tokens >= limit else f"diverged_at={tokens}" if tokens < len(held) else "never_seen"

    def keep(self, request: Request, caches: Sequence[Any], tokens: Sequence[int]) -> None:
        """Keep a sequence that has ended, unless others ran beside it."""
        others = [one for one in self._running if one.caches and one is not request]
        self._running = others
        if others:
            return
        kv = SequenceKV.of(caches, len(tokens), {}, copy=False)
        self._held = KeptSequence(np.array(tokens, np.int32), request.tenant, kv.nbytes, kv=kv)
