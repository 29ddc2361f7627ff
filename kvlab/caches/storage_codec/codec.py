"""``StorageCodec``: keys and values of consecutive tokens as bytes at rest, in the manner of KVTC."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from kvlab.caches.model_layers import model_layers
from kvlab.caches.serialize import PayloadError
from kvlab.caches.storage_codec import rans
from kvlab.caches.storage_codec.calibration import SINKS, by_token
from kvlab.caches.storage_codec.scale_tables import ESCAPE, LARGEST, ScaleTables
from kvlab.caches.storage_codec.transform import KVTransform, SideTransform
from kvlab.errors import ModelError
from kvlab.policies.scorers.model_layer import without_rope

HEADER = struct.Struct("<4sIIII")
"""Mark, first position, tokens, numbers that are no symbol, and bytes of the code."""
MARK = b"KVS1"
LANES = 512
Sides = tuple[mx.array, mx.array]


@dataclass(frozen=True)
class StorageCodec:
    """Encodes KV of a model into about an eighth of its bytes, or what the steps say. Lossy; for storage only.

    Follows KVTC (Staniszewski and Lancucki 2025, arXiv:2511.01815): RoPE is taken off the keys, principal components
    take the tokens' channels apart, each gets the bits that its size deserves, and entropy coding writes them.
    The first 4 tokens stay as they are, as in the paper. Deviations: components are of one layer and side, not of all
    layers; errors are weighed by what they change in logits and in the layer's output, so that one step for all
    components is the best choice of bits (reverse water-filling, in place of the paper's dynamic program over bit
    widths); an arithmetic-like coder with a table for each size of component in place of DEFLATE; recent tokens are
    coded too (the paper leaves the latest 128 as they are, which blocks at rest do not know).

    Args:
        transform: of the model, see :func:`kvlab.caches.storage_codec.calibrated`.
        ropes: the RoPE of each layer; of layers without a plain KV cache, it is not used.
        k_step: width of the quantizer of keys: deviations of an attention logit.
        v_step: that of values, relative to the values of their layer behind the output projection.
    """

    transform: KVTransform
    ropes: tuple[Callable[..., mx.array] | None, ...]
    k_step: float
    v_step: float

    @classmethod
    def of(cls, model: nn.Module, transform: KVTransform, k_step: float, v_step: float) -> StorageCodec:
        """Make the codec of a model. Raises ModelError for the transform of another one, or steps of 0 or less."""
        ropes = tuple(layer.rope for layer in model_layers(model))
        if len(ropes) != len(transform.layers):
            raise ModelError(f"the transform is of {len(transform.layers)} layers, and the model has {len(ropes)}")
        if not (k_step > 0 and v_step > 0):
            raise ModelError(f"k_step={k_step} and v_step={v_step} must be above 0, such as 0.5")
        return cls(transform, ropes, k_step, v_step)

    def encode(self, layers: Sequence[Sides | None], start: int) -> bytes:
        """Return the code of the rows of consecutive tokens, the first at position ``start``.

        ``layers`` are keys and values ``[1, n_kv_heads, n, head_dim]``, keys behind RoPE; None where the transform has
        none. Raises ModelError for other layers than those of the transform.
        """
        given = [(layer, sides) for layer, sides in enumerate(layers) if sides is not None]
        if [layer for layer, _ in given] != [layer for layer, plans in enumerate(self._plans) if plans]:
            raise ModelError("the layers that are given are not those of the transform: give one pair of K and V each")
        count = given[0][1][0].shape[2]
        whole = self._whole(start, count)
        symbols, extra, first = [], [], []
        for layer, (keys, values) in given:
            at = mx.broadcast_to(mx.arange(start, start + count), keys.shape[:3])
            rows = by_token(without_rope(self._rope(layer), keys, at)), by_token(values)
            for side, plan in zip(rows, self._plans[layer] or (), strict=True):
                first.append(side[:whole].ravel())
                steps = np.rint((side[whole:] - plan.side.mean) @ plan.forward)
                is_far = np.abs(steps) > plan.limit
                extra.append(steps[is_far])
                symbols.append(np.where(is_far, ESCAPE, steps + LARGEST).astype(np.int64).ravel())
        code = rans.encode(np.concatenate(symbols), self._tables_of(count - whole), self._scales.tables, LANES)
        far, raw = np.concatenate(extra).astype("<i4"), np.concatenate(first).astype("<f4")
        return HEADER.pack(MARK, start, count, len(far), len(code)) + raw.tobytes() + far.tobytes() + code

    def decode(self, data: bytes, dtype: mx.Dtype = mx.float32) -> list[Sides | None]:
        """Return what :meth:`encode` was given, as near as the steps allow. Raises PayloadError for other bytes."""
        if len(data) < HEADER.size:
            raise PayloadError("the code is cut off")
        mark, start, count, n_far, n_code = HEADER.unpack_from(data)
        if mark != MARK:
            raise PayloadError("the bytes are of another format")
        whole = self._whole(start, count)
        known = [plans for plans in self._plans if plans is not None]
        n_raw = whole * sum(len(plan.side.mean) for plans in known for plan in plans)
        if len(data) != HEADER.size + 4 * (n_raw + n_far) + n_code:
            raise PayloadError("the code is cut off")
        raw = np.frombuffer(data, "<f4", n_raw, HEADER.size)
        far = np.frombuffer(data, "<i4", n_far, HEADER.size + 4 * n_raw)
        tables = self._tables_of(count - whole)
        symbols = rans.decode(data[len(data) - n_code :], tables, self._scales.tables, LANES)
        is_far = symbols == ESCAPE
        if int(is_far.sum()) != n_far:
            raise PayloadError("the code holds another number of values than it says")
        steps = self._scales.centre[tables, symbols].astype(np.float32)
        steps[is_far] = far
        out: list[Sides | None] = []
        for layer, plans in enumerate(self._plans):
            if plans is None:
                out.append(None)
                continue
            sides = []
            for plan in plans:
                taken, width = (count - whole) * plan.inverse.shape[0], len(plan.side.mean)
                coded = steps[:taken].reshape(count - whole, -1) @ plan.inverse + plan.side.mean
                rows = np.concatenate([raw[: whole * width].reshape(whole, width), coded])
                steps, raw = steps[taken:], raw[whole * width :]
                sides.append(rows)
            out.append(self._as_rows(layer, sides, start, dtype))
        return out

    def _as_rows(self, layer: int, sides: Sequence[np.ndarray], start: int, dtype: mx.Dtype) -> Sides:
        """Return keys behind RoPE and values by KV head; both sides have as many heads."""
        heads = self.transform.heads[layer]
        k, v = (mx.array(side.reshape(len(side), heads, -1).transpose(1, 0, 2))[None] for side in sides)
        return self._rope(layer)(k, offset=start).astype(dtype), v.astype(dtype)

    def _rope(self, layer: int) -> Callable[..., mx.array]:
        rope = self.ropes[layer]
        if rope is None:
            raise ModelError(f"kvlab finds no RoPE in layer {layer} of this model")
        return rope

    @staticmethod
    def _whole(start: int, count: int) -> int:
        """Return how many of the tokens stay as they are."""
        return min(max(0, SINKS - start), count)

    @cached_property
    def _scales(self) -> ScaleTables:
        return ScaleTables.of(self.transform.quantiles)

    @cached_property
    def _plans(self) -> list[tuple[_Plan, ...] | None]:
        steps = (self.k_step, self.v_step)
        return [
            None if sides is None else tuple(_Plan.of(side, step) for side, step in zip(sides, steps, strict=True))
            for sides in self.transform.layers
        ]

    def _tables_of(self, count: int) -> np.ndarray:
        """Return the table of each symbol of ``count`` tokens, in the order of the code."""
        each = [np.tile(plan.table, count) for plans in self._plans if plans is not None for plan in plans]
        return np.concatenate(each)


@dataclass(frozen=True)
class _Plan:
    """What a side's coefficients are divided by, and which of them are coded, under which table."""

    side: SideTransform
    forward: np.ndarray
    inverse: np.ndarray
    table: np.ndarray
    limit: np.ndarray

    @classmethod
    def of(cls, side: SideTransform, step: float) -> _Plan:
        table = ScaleTables.table_of(side.deviation / step)
        coded = table >= 0
        forward, inverse = side.forward[:, coded] / step, side.inverse[coded] * step
        return cls(side, forward, inverse, table[coded], ScaleTables.limits()[table[coded]])
