"""Rows: the K and V of one sequence in one layer, raw or quantized, in arrays that grow by steps."""

from __future__ import annotations

import math
from collections.abc import Mapping

import mlx.core as mx

from kvlab.errors import ModelError
from kvlab.policies import Module, Quantized

STEP = 64
"""Rows that storage grows by: small enough that live bytes follow real tokens, large enough to amortize the copy."""

FEW_QUERIES = 8
"""Up to this many queries, attention reads quantized rows directly; above, expanding them once is cheaper."""


class Rows:
    """K and V of one sequence as named arrays ``[1, n_kv_heads, capacity, width]`` of which ``length`` rows are used.

    Subclasses say how rows are written (:meth:`encode`), read (:meth:`decode`) and attended to. Names start with
    ``k`` or ``v``; axis 2 is the token axis of all of them.
    """

    def __init__(self) -> None:
        self.arrays: dict[str, mx.array] = {}
        self.length = 0

    def encode(self, keys: mx.array, values: mx.array) -> dict[str, mx.array]:
        """Named arrays for new rows ``[1, n_kv_heads, n, width]``."""
        raise NotImplementedError

    def decode(self) -> tuple[mx.array, mx.array]:
        """Keys and values ``[1, n_kv_heads, length, head_dim]`` as attention sees them."""
        raise NotImplementedError

    def attend(self, queries: mx.array, scale: float, mask: mx.array | str | None, sinks: mx.array | None) -> mx.array:
        """Attention of ``queries`` ``[1, n_heads, n, head_dim]`` over all rows; ``mask`` as in mx.fast."""
        keys, values = self.decode()
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask, sinks=sinks)

    def append(self, keys: mx.array, values: mx.array) -> None:
        """Write new rows behind the used ones."""
        self.append_encoded(self.encode(keys, values))

    def append_encoded(self, new: Mapping[str, mx.array]) -> None:
        """Write rows that are already in this codec's form, as :meth:`used` or a store gave them."""
        count = next(iter(new.values())).shape[2]
        end = self.length + count
        if not self.arrays or end > self.capacity:
            self._grow(new, end)
        for name, array in new.items():
            self.arrays[name][:, :, self.length : end] = array
        self.length = end

    def keep(self, index: mx.array) -> None:
        """Keep the rows ``index`` ``[1, n_kv_heads, n]`` of every head and free the others."""
        self.arrays = {name: mx.take_along_axis(array, index[..., None], axis=2) for name, array in self.arrays.items()}
        self.length = index.shape[2]

    def keep_spans(self, *spans: tuple[int, int]) -> None:
        """Keep the rows of the half-open ``spans``, in order, for all heads, and free the others."""
        self.arrays = {
            name: mx.concatenate([array[:, :, a:b] for a, b in spans], axis=2) for name, array in self.arrays.items()
        }
        self.length = sum(b - a for a, b in spans)

    def cut(self, length: int) -> None:
        """Forget the rows behind ``length``; their storage is written over later."""
        self.length = min(self.length, length)

    def used(self) -> dict[str, mx.array]:
        """Views of the used rows of every array."""
        return {name: array[:, :, : self.length] for name, array in self.arrays.items()}

    def snapshot(self) -> Rows:
        """Today's rows, to be read only: they outlive an eviction here, because that makes new arrays."""
        other = self.__class__.__new__(self.__class__)
        other.__dict__.update(self.__dict__, arrays=dict(self.arrays))
        return other

    @property
    def capacity(self) -> int:
        return next(iter(self.arrays.values())).shape[2] if self.arrays else 0

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that are held, unused capacity included."""
        return sum(array.nbytes for array in self.arrays.values())

    def _grow(self, new: Mapping[str, mx.array], end: int) -> None:
        room = math.ceil(end / STEP) * STEP - self.length
        for name, array in new.items():
            fresh = mx.zeros((*array.shape[:2], room, *array.shape[3:]), dtype=array.dtype)
            held = self.arrays.get(name)
            self.arrays[name] = fresh if held is None else mx.concatenate([held[:, :, : self.length], fresh], axis=2)


class RawRows(Rows):
    """Rows in the model's own dtype: arrays ``k`` and ``v``."""

    def encode(self, keys: mx.array, values: mx.array) -> dict[str, mx.array]:
        return {"k": keys, "v": values}

    def decode(self) -> tuple[mx.array, mx.array]:
        used = self.used()
        return used["k"], used["v"]


class QuantizedRows(Rows):
    """Affine-quantized rows, as ``mx.quantize`` writes them: packed integers, scales and biases of K and of V.

    Raises:
        ModelError: the head width is not a multiple of the group.
    """

    def __init__(self, bits: int, group: int) -> None:
        super().__init__()
        self.bits = bits
        self.group = group

    def encode(self, keys: mx.array, values: mx.array) -> dict[str, mx.array]:
        new: dict[str, mx.array] = {}
        for side, array in (("k", keys), ("v", values)):
            if array.shape[-1] % self.group:
                raise ModelError(
                    f"the model's heads are {array.shape[-1]} wide, which group={self.group} does not divide: "
                    f"write quantized:bits={self.bits},group=32 if that divides it, or raw"
                )
            parts = mx.quantize(array, group_size=self.group, bits=self.bits)
            new.update(zip((f"{side}.packed", f"{side}.scales", f"{side}.biases"), parts, strict=True))
        return new

    def decode(self) -> tuple[mx.array, mx.array]:
        used = self.used()
        keys, values = (
            mx.dequantize(*self._triple(used, side), group_size=self.group, bits=self.bits) for side in "kv"
        )
        return keys, values

    def attend(self, queries: mx.array, scale: float, mask: mx.array | str | None, sinks: mx.array | None) -> mx.array:
        count = queries.shape[2]
        if count > FEW_QUERIES or sinks is not None or isinstance(mask, str):
            return super().attend(queries, scale, mask, sinks)
        used = self.used()
        keys, values = self._triple(used, "k"), self._triple(used, "v")
        _, heads, _, dim = queries.shape
        kv_heads = keys[0].shape[1]
        grouped = (queries * scale).reshape(1, kv_heads, (heads // kv_heads) * count, dim)
        scores = mx.quantized_matmul(grouped, *keys, transpose=True, group_size=self.group, bits=self.bits)
        if mask is not None:
            scores = scores.reshape(1, kv_heads, -1, count, self.length)
            scores = mx.where(mask[:, :, None], scores, mx.finfo(scores.dtype).min)
            scores = scores.reshape(1, kv_heads, -1, self.length)
        weights = mx.softmax(scores, axis=-1, precise=True)
        out = mx.quantized_matmul(weights, *values, transpose=False, group_size=self.group, bits=self.bits)
        return out.reshape(1, heads, count, out.shape[-1])

    @staticmethod
    def _triple(arrays: Mapping[str, mx.array], side: str) -> tuple[mx.array, mx.array, mx.array]:
        return arrays[f"{side}.packed"], arrays[f"{side}.scales"], arrays[f"{side}.biases"]


def make_rows(codec: Module) -> Rows:
    """Empty rows in the form that ``codec`` asks for."""
    return QuantizedRows(codec.bits, codec.group) if isinstance(codec, Quantized) else RawRows()
