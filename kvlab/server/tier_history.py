"""``TierHistory``: the bytes of KV in each tier over the last minutes, whether somebody looks or not."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

from kvlab.tiers import LIVE, tiers_at_rest

STEP_S = 5.0
MAX_POINTS = 180


class TierHistory:
    """Samples the decoders and stores of ``models``, all together. Used on one event loop.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, models: Mapping[str, Any], clock: Callable[[], float] = time.time) -> None:
        self._models, self._clock = models, clock
        self._points: deque[tuple[float, Mapping[str, int]]] = deque(maxlen=MAX_POINTS)

    def sample(self) -> None:
        """Add a point: the bytes of each tier now."""
        self._points.append((self._clock(), self._bytes()))

    async def follow(self, step_s: float = STEP_S) -> None:
        """Sample every ``step_s`` seconds, until cancelled."""
        while True:
            self.sample()
            await asyncio.sleep(step_s)

    def columns(self) -> dict[str, list[float]]:
        """Return ``at``, the times of all points and of now, and a list of bytes for each tier, oldest first."""
        points = [*self._points, (self._clock(), self._bytes())]
        names = [LIVE.name, *(tier.name for tier in tiers_at_rest(name for _, point in points for name in point))]
        held = {name: [float(point.get(name, 0)) for _, point in points] for name in names}
        return {"at": [round(at, 1) for at, _ in points], **held}

    def _bytes(self) -> Mapping[str, int]:
        found: Counter[str] = Counter()
        for model in list(self._models.values()):
            found[LIVE.name] += model.decoder.live_bytes()
            found.update(model.decoder.tiers_bytes())
        return found
