"""``KvtcCodec``: live rows of a policy whose blocks at rest are encoded."""

from __future__ import annotations

from typing import ClassVar

from kvlab.caches.codecs.raw import RawCodec
from kvlab.policies import Kvtc, Module


class KvtcCodec(RawCodec):
    """Rows in the model's own dtype, as :class:`RawCodec`: only what is at rest differs."""

    module: ClassVar[type[Module]] = Kvtc

    def __init__(self, module: Kvtc) -> None:
        super().__init__()
