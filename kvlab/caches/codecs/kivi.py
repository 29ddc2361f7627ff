"""``KiviCodec``: keys quantized per channel in groups of tokens, values per token in groups of channels."""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx

from kvlab.backends.base import Segment
from kvlab.caches.codecs.base import Arrays, Codec
from kvlab.caches.codecs.packed_codes import pack
from kvlab.errors import ModelError
from kvlab.policies import Kivi, Module


class KiviCodec(Codec):
    """Packed codes, with the step and the least value of each group.

    Arrays of keys have a row for each group of tokens, in which the codes of a channel follow each other; arrays of
    values have one for each token.
    """

    module: ClassVar[type[Module]] = Kivi

    def __init__(self, module: Kivi) -> None:
        self.group = self.group_rows = module.group
        self.recent_rows = module.recent
        self.bits = {side: module.bits_of(side) or 0 for side in ("k", "v")}

    def encode(self, keys: mx.array, values: mx.array) -> dict[str, mx.array]:
        for array in (keys, values):
            if array.shape[-1] % self.group:
                raise ModelError(
                    f"the model's heads are {array.shape[-1]} wide, which group={self.group} does not divide: write "
                    "kivi:group=32 if that divides it, or raw"
                )
        batch, heads, count, width = keys.shape
        by_channel = keys.reshape(batch, heads, count // self.group, self.group, width).swapaxes(-1, -2)
        k_codes, k_step, k_least = self._quantize(by_channel.reshape(batch, heads, count // self.group, -1), "k")
        v_codes, v_step, v_least = self._quantize(values, "v")
        return {
            "k.codes": k_codes, "k.step": k_step, "k.least": k_least,
            "v.codes": v_codes, "v.step": v_step, "v.least": v_least,
        }  # fmt: skip

    def decode(self, rows: Arrays) -> Segment:
        by_channel = self._dequantize(rows, "k")
        batch, heads, groups, _ = by_channel.shape
        keys = by_channel.reshape(batch, heads, groups, -1, self.group).swapaxes(-1, -2)
        return keys.reshape(batch, heads, groups * self.group, -1), self._dequantize(rows, "v")

    def _quantize(self, numbers: mx.array, side: str) -> tuple[mx.array, mx.array, mx.array]:
        """Return packed codes of ``[..., n]``, and the step and the least value of every ``group`` of them."""
        highest = (1 << self.bits[side]) - 1
        groups = numbers.reshape(*numbers.shape[:-1], -1, self.group)
        least = groups.min(axis=-1)
        spread = groups.max(axis=-1).astype(mx.float32) - least.astype(mx.float32)
        step = (spread / highest).astype(numbers.dtype)
        exact = mx.where(step == 0, 1, step).astype(mx.float32)  # a group of equal values has codes of 0
        above = groups.astype(mx.float32) - least.astype(mx.float32)[..., None]
        codes = mx.clip(mx.round(above / exact[..., None]), 0, highest)
        return pack(codes.reshape(numbers.shape), self.bits[side]), step, least

    def _dequantize(self, rows: Arrays, side: str) -> mx.array:
        codes, step, least = (rows[f"{side}.{name}"] for name in ("codes", "step", "least"))
        return mx.dequantize(codes, step, least, group_size=self.group, bits=self.bits[side])
