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
from kvlab.caches.storage_codec.samples import SINKS, by_token
from kvlab.caches.storage_codec.scale_tables import ESCAPE, LARGEST, ScaleTables
from kvlab.caches.storage_codec.transform import KVTransform, SideTransform
from kvlab.counts import counted
from kvlab.errors import ModelError
from kvlab.policies.scorers.model_layer import without_rope

HEADER = struct.Struct("<4sIIIII")
"""Mark, index of the dtype, first position, tokens, numbers that are no symbol, and bytes of the code."""
MARK = b"KVS1"
DTYPES = (mx.float32, mx.float16, mx.bfloat16)
LANES = 512
Sides = tuple[mx.array, mx.array]


@dataclass(frozen=True)
class PlainRows:
    """Rows of consecutive tokens that wait to be encoded.

    Attributes:
        start: position of the first token, of ``count``.
        dtype: index of the rows' dtype in ``DTYPES``.
        first: bytes of the rows that stay as they are.
        layers: of each layer its index, and the other rows of both sides, float32 ``[n, n_kv_heads * head_dim]``, keys
            without RoPE.
    """

    start: int
    count: int
    dtype: int
    first: bytes
    layers: tuple[tuple[int, tuple[np.ndarray, np.ndarray]], ...]

    def blocks(self, block: int) -> list[PlainRows]:
        """Return the rows block by block, from the first token on; a block holds all rows that stay as they are."""
        kept = _whole(self.start, self.count)
        found = []
        for at in range(0, self.count, block):
            end = min(at + block, self.count)
            rows = slice(max(0, at - kept), end - kept)
            layers = tuple((layer, (keys[rows], values[rows])) for layer, (keys, values) in self.layers)
            found.append(PlainRows(self.start + at, end - at, self.dtype, b"" if at else self.first, layers))
        return found


@dataclass(frozen=True)
class StorageCodec:
    """Encodes KV of a model into about an eighth of its bytes, or what the steps say. Lossy; for storage only.

    Follows KVTC (Staniszewski and Lancucki 2025, arXiv:2511.01815): RoPE is taken off the keys, principal components
    take the tokens' channels apart, each gets the bits that its size deserves, and entropy coding writes them. The
    first 4 tokens stay as they are, as in the paper.

    Deviations: components are of one layer and side, and what the layer before predicts is taken off first (the paper
    takes components of all layers together); errors are weighed by what they change in logits and in the layer's
    output, so that one step for all components is the best choice of bits (reverse water-filling, in place of the
    paper's dynamic program over bit widths); a coder with a table for each size of component in place of DEFLATE;
    recent tokens are coded too (the paper leaves the latest 128 as they are, which blocks at rest do not know).

    What lies in components too small for a symbol is lost, also where a text has more of it than the samples had:
    samples must be of the kind of text that is stored.

    Args:
        transform: of the model, see :func:`kvlab.caches.storage_codec.fitted`.
        ropes: the RoPE of each layer; of layers without a plain KV cache, it is not used.
    """

    transform: KVTransform
    ropes: tuple[Callable[..., mx.array] | None, ...]

    @classmethod
    def of(cls, model: nn.Module, transform: KVTransform) -> StorageCodec:
        """Make the codec of a model. Raises ModelError for the transform of another one."""
        ropes = tuple(layer.rope for layer in model_layers(model))
        if len(ropes) != len(transform.layers):
            raise ModelError(
                f"the transform is of {counted(len(transform.layers), 'layer')}; the model has {len(ropes)}"
            )
        return cls(transform, ropes)

    def encode(self, layers: Sequence[Sides | None], start: int) -> bytes:
        """Return the code of the rows of consecutive tokens, the first at position ``start``.

        ``layers`` are keys and values ``[1, n_kv_heads, n, head_dim]``, keys behind RoPE, float32, float16 or bfloat16;
        None where the transform has none. Raises ModelError for other layers than those of the transform.
        """
        return self.encode_plain(self.plain(layers, start))

    def plain(self, layers: Sequence[Sides | None], start: int) -> PlainRows:
        """Return the rows that :meth:`encode` is given as NumPy arrays, without RoPE: all of it that MLX computes."""
        if [sides is None for sides in layers] != [sides is None for sides in self.transform.layers]:
            raise ModelError("the layers that are given are not those of the transform: give one pair of K and V each")
        given = [(layer, sides) for layer, sides in enumerate(layers) if sides is not None]
        dtype, count = given[0][1][0].dtype, given[0][1][0].shape[2]
        whole = _whole(start, count)
        raw, found = b"", []
        for layer, sides in given:
            raw += b"".join(_bytes_of(side[:, :, :whole].astype(dtype)) for side in sides)
            keys, values = (side[:, :, whole:] for side in sides)
            at = mx.broadcast_to(mx.arange(start + whole, start + count), keys.shape[:3])
            found.append((layer, (by_token(without_rope(self._rope(layer), keys, at)), by_token(values))))
        return PlainRows(start, count, DTYPES.index(dtype), raw, tuple(found))

    def encode_plain(self, plain: PlainRows) -> bytes:
        """Return the code of what :meth:`plain` returned. Uses NumPy only, so that any thread may call it."""
        count = plain.count - _whole(plain.start, plain.count)
        symbols, extra = [], []
        reader = _Reader(self._scales, count)
        for layer, rows in plain.layers:
            for side, plan in zip(rows, self._plans[layer], strict=True):
                steps = np.rint((side - reader.expected(plan)) @ plan.side.forward)
                is_far = np.abs(steps) > plan.limit
                extra.append(steps[is_far])
                symbols.append(np.where(is_far, ESCAPE, steps + LARGEST).astype(np.int64).ravel())
                reader.read(plan, symbols[-1], extra[-1])
            reader.end_layer()
        code = rans.encode(np.concatenate(symbols), self._tables_of(count), self._scales.tables, LANES)
        far = np.concatenate(extra).astype("<i4")
        header = HEADER.pack(MARK, plain.dtype, plain.start, plain.count, len(far), len(code))
        return header + plain.first + far.tobytes() + code

    def decode(self, data: bytes) -> list[Sides | None]:
        """Return what :meth:`encode` was given, as near as the steps allow. Raises PayloadError for other bytes."""
        mark, kind, start, count, n_far, n_code = HEADER.unpack(data[: HEADER.size].ljust(HEADER.size, b"\0"))
        if mark != MARK or kind >= len(DTYPES):
            raise PayloadError("the bytes are of another format")
        dtype, whole = DTYPES[kind], _whole(start, count)
        n_raw = dtype.size * whole * sum(len(plan.side.mean) for plans in self._plans for plan in plans)
        if len(data) != HEADER.size + n_raw + 4 * n_far + n_code:
            raise PayloadError("the code is cut off")
        raw, far = data[HEADER.size :], np.frombuffer(data, "<i4", n_far, HEADER.size + n_raw).astype(np.float32)
        symbols = rans.decode(data[len(data) - n_code :], self._tables_of(count - whole), self._scales.tables, LANES)
        if int((symbols == ESCAPE).sum()) != n_far:
            raise PayloadError("the code holds another number of values than it says")
        reader = _Reader(self._scales, count - whole)
        out: list[Sides | None] = []
        for layer, plans in enumerate(self._plans):
            sides: list[mx.array] = []
            for plan in plans:
                mine, symbols = np.split(symbols, [len(plan.table) * (count - whole)])
                own, far = np.split(far, [int((mine == ESCAPE).sum())])
                rows = self._by_head(layer, reader.read(plan, mine, own))
                is_key = not sides
                coded = self._rope(layer)(rows, offset=start + whole) if is_key else rows
                size = dtype.size * whole * len(plan.side.mean)
                first = _array_of(raw[:size], dtype, (1, rows.shape[1], whole, rows.shape[3]))
                raw = raw[size:]
                sides.append(mx.concatenate([first, coded.astype(dtype)], axis=2))
            reader.end_layer()
            out.append((sides[0], sides[1]) if sides else None)
        return out

    def _by_head(self, layer: int, rows: np.ndarray) -> mx.array:
        heads = self.transform.heads[layer]
        return mx.array(rows.reshape(len(rows), heads, rows.shape[1] // heads).transpose(1, 0, 2))[None]

    def _rope(self, layer: int) -> Callable[..., mx.array]:
        rope = self.ropes[layer]
        if rope is None:
            raise ModelError(f"kvlab finds no RoPE in layer {layer} of this model")
        return rope

    @cached_property
    def _scales(self) -> ScaleTables:
        return ScaleTables.of(self.transform.quantiles)

    @cached_property
    def _plans(self) -> list[tuple[_Plan, ...]]:
        return [tuple(map(_Plan.of, sides or ())) for sides in self.transform.layers]

    def _tables_of(self, count: int) -> np.ndarray:
        """Return the table of each symbol of ``count`` tokens, in the order of the code."""
        return np.concatenate([np.tile(plan.table, count) for plans in self._plans for plan in plans])


@dataclass(frozen=True)
class _Plan:
    """A side's transform, with the table and the largest symbol of each coefficient."""

    side: SideTransform
    table: np.ndarray
    limit: np.ndarray

    @classmethod
    def of(cls, side: SideTransform) -> _Plan:
        table = ScaleTables.table_of(side.deviation)
        return cls(side, table, ScaleTables.limits()[table])


class _Reader:
    """Reads rows back from symbols, side by side; what was read predicts what comes next."""

    def __init__(self, scales: ScaleTables, count: int) -> None:
        self._scales, self._count = scales, count
        self._before = np.zeros((count, 0), np.float32)
        self._layer: list[np.ndarray] = []

    def expected(self, plan: _Plan) -> np.ndarray:
        return plan.side.expected(np.concatenate([self._before, *self._layer], axis=1))

    def read(self, plan: _Plan, symbols: np.ndarray, far: np.ndarray) -> np.ndarray:
        """Return the rows of a side, ``[count, width]``; ``far`` are the steps that have no symbol."""
        symbols = symbols.reshape(self._count, len(plan.table))
        steps = self._scales.centre[plan.table, symbols].astype(np.float32)
        steps[symbols == ESCAPE] = far
        rows = steps @ plan.side.inverse + self.expected(plan)
        self._layer.append(rows)
        return rows

    def end_layer(self) -> None:
        if self._layer:
            self._before, self._layer = np.concatenate(self._layer, axis=1), []


def _whole(start: int, count: int) -> int:
    """Return how many of the tokens stay as they are."""
    return min(max(0, SINKS - start), count)


def _bytes_of(rows: mx.array) -> bytes:
    plain = rows.view(mx.uint16) if rows.dtype.size == 2 else rows
    return np.array(plain).tobytes()


def _array_of(data: bytes, dtype: mx.Dtype, shape: tuple[int, ...]) -> mx.array:
    kind = np.dtype("<u2" if dtype.size == 2 else "<f4")
    return mx.array(np.frombuffer(data, kind).reshape(shape)).view(dtype)
