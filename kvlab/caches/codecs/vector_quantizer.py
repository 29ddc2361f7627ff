"""``VectorQuantizer``: vectors as a scale and the codes of their coordinates behind a random rotation (TurboQuant)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from kvlab.caches.codecs.base import Arrays
from kvlab.caches.codecs.lloyd_max import centroids
from kvlab.caches.codecs.packed_codes import byte_table, look_up, pack

LEAST_NORM = 1e-30
"""A vector below this norm is written as zero."""


@dataclass(frozen=True)
class VectorQuantizer:
    """Writes vectors ``[..., channels]``, whose channels are a multiple of 32.

    Codes are packed without gaps. Those of 3 bits are kept as a sign of 1 bit and a magnitude of 2 bits, which a byte
    holds a whole number of.

    Args:
        bits: 1 to 4 of a coordinate, with that of the projection.
        length: ``norm``, ``matched`` or ``least``, see :class:`kvlab.policies.TurboQuant`.
        seed: of rotation and projection.
        projection: whether one of the bits is the sign of a random projection of what the centroids leave.
    """

    bits: int
    length: str
    seed: int
    projection: bool = False

    def turn(self, vectors: mx.array) -> mx.array:
        """Rotate float32 vectors."""
        return vectors @ _rotation(vectors.shape[-1], self.seed)

    def turn_back(self, vectors: mx.array) -> mx.array:
        """Undo :meth:`turn`."""
        return vectors @ _rotation(vectors.shape[-1], self.seed).T

    def encode(self, vectors: mx.array) -> dict[str, mx.array]:
        """Return packed codes, and a scale ``[..., 1]`` in the dtype of the vectors."""
        exact = vectors.astype(mx.float32)
        norm = mx.linalg.norm(exact, axis=-1, keepdims=True)
        unit = self.turn(exact / mx.maximum(norm, LEAST_NORM))
        points = centroids(self._coordinate_bits, vectors.shape[-1])
        borders = (points[1:] + points[:-1]) / 2
        codes = mx.zeros(unit.shape, mx.uint8)
        for border in borders:
            codes = codes + (unit > float(border))
        nearest = mx.take(mx.array(points.astype(np.float32)), codes)
        scale = self._scale(norm, unit, nearest).astype(vectors.dtype)
        rows = {**self._packed(codes), "scale": scale}
        if self.projection:
            left = unit * norm - nearest * scale.astype(mx.float32)
            signs = left @ _projection(vectors.shape[-1], self.seed) > 0
            size = mx.linalg.norm(left, axis=-1, keepdims=True)
            rows |= {"projected": pack(signs, 1), "left": size.astype(vectors.dtype)}
        return rows

    def decode_turned(self, rows: Arrays) -> mx.array:
        """Return the rotated vectors, float32."""
        nearest = self._nearest(rows)
        turned = nearest * rows["scale"].astype(mx.float32)
        if not self.projection:
            return turned
        width = turned.shape[-1]
        signs = look_up(rows["projected"], _signs())
        size = rows["left"].astype(mx.float32) * (math.sqrt(math.pi / 2) / width)
        return turned + size * (signs @ _projection(width, self.seed).T)

    @property
    def _coordinate_bits(self) -> int:
        return self.bits - self.projection

    def _scale(self, norm: mx.array, unit: mx.array, nearest: mx.array) -> mx.array:
        if self.length == "norm":
            return norm
        squares = (nearest * nearest).sum(axis=-1, keepdims=True)
        if self.length == "matched":
            return norm * mx.rsqrt(squares)
        return norm * (unit * nearest).sum(axis=-1, keepdims=True) / squares

    def _packed(self, codes: mx.array) -> dict[str, mx.array]:
        if self._coordinate_bits != 3:
            return {"codes": pack(codes, self._coordinate_bits)}
        is_positive = codes >= 4
        magnitudes = mx.where(is_positive, codes - 4, 3 - codes)
        return {"codes": pack(magnitudes, 2), "signs": pack(is_positive, 1)}

    def _nearest(self, rows: Arrays) -> mx.array:
        bits = self._coordinate_bits
        width = rows["codes"].shape[-1] * 32 // (2 if bits == 3 else bits)
        values = look_up(rows["codes"], _centroid_table(bits, width))
        return values * look_up(rows["signs"], _signs()) if bits == 3 else values


@functools.cache
def _rotation(width: int, seed: int) -> mx.array:
    """Return a random orthogonal matrix of the uniform (Haar) distribution, float32 ``[width, width]``."""
    normal = np.random.RandomState(seed).standard_normal((width, width))  # its stream is the same in every NumPy
    q, r = np.linalg.qr(normal)
    return mx.array((q * np.sign(np.diag(r))).astype(np.float32))


@functools.cache
def _projection(width: int, seed: int) -> mx.array:
    """Return a random matrix of independent standard normal entries, float32 ``[width, width]``."""
    random = np.random.RandomState([seed, 1])  # another stream than the rotation's
    return mx.array(random.standard_normal((width, width)).astype(np.float32))


@functools.cache
def _centroid_table(bits: int, width: int) -> mx.array:
    """Return the centroids by packed byte; of 3 bits the positive ones, by their magnitude."""
    points = centroids(bits, width)
    table = byte_table(points[4:], 2) if bits == 3 else byte_table(points, bits)
    return mx.array(table.astype(np.float32))


@functools.cache
def _signs() -> mx.array:
    return mx.array(byte_table(np.array([-1.0, 1.0]), 1).astype(np.float32))
