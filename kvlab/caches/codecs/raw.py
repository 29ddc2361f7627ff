"""``RawCodec``: rows as the model computes them."""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx

from kvlab.backends.base import Segment
from kvlab.caches.codecs.base import Arrays, Codec
from kvlab.policies import Module, Raw


class RawCodec(Codec):
    """Rows in the model's own dtype: arrays ``k`` and ``v``."""

    module: ClassVar[type[Module]] = Raw
    is_exact: ClassVar[bool] = True

    def __init__(self, module: Raw | None = None) -> None: ...

    def encode(self, keys: mx.array, values: mx.array) -> dict[str, mx.array]:
        return {"k": keys, "v": values}

    def decode(self, rows: Arrays) -> Segment:
        return rows["k"], rows["v"]
