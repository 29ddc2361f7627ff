"""``KeepAll``: every row stays."""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx

from kvlab.caches.retention.base import Mask, Retention
from kvlab.policies import Full, Module


class KeepAll(Retention):
    """Keeps every row."""

    module: ClassVar[type[Module]] = Full
    keeps_all: ClassVar[bool] = True

    def mask(self, length: int, offset: int, count: int) -> Mask:
        return None if count == 1 else "causal"

    def positions(self, length: int, offset: int) -> mx.array:
        return mx.arange(length)[None, None]
