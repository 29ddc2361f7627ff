"""``Rotated``: affine quantization behind a Hadamard rotation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvlab.errors import PolicyError
from kvlab.policies.bits_by_side import BitsBySide
from kvlab.policies.codecs import QUANTIZED_BITS, QUANTIZED_GROUP_CHANNELS


@dataclass(frozen=True)
class Rotated(BitsBySide):
    """A Hadamard rotation of each head, which spreads outlier channels, then affine quantization as ``quantized``.

    Follows llama.cpp, which rotates keys in blocks of the largest power of two that divides head_dim, and values in
    blocks of 64. Queries are rotated with the keys, which leaves their products as they are, and the output of
    attention is rotated back once. A side that stays raw is not rotated.

    Deviations: scales and biases are those of ``mx.quantize`` for ``group`` channels, not those of q4_0 or q8_0 for 32;
    a head_dim that 64 does not divide is rotated in smaller blocks, where llama.cpp does not rotate.

    Args:
        bits: 8, 4 or 2; of K and of V, where nothing else is said of one of them.
        k_bits: 8, 4, 2 or raw, of K only; None is ``bits``.
        v_bits: 8, 4, 2 or raw, of V only; None is ``bits``.
        group: channels that share a scale and a bias: 32, 64 or 128, a divisor of the model's head_dim.

    Raises:
        PolicyError: other bits or groups, or both sides raw.
    """

    name: ClassVar[str] = "rotated"
    paper: ClassVar[str] = "QuaRot, arXiv:2404.00456, as in llama.cpp"
    allowed_bits: ClassVar[tuple[int, ...]] = QUANTIZED_BITS
    bits: int = 4
    k_bits: int | str | None = None
    v_bits: int | str | None = None
    group: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group not in QUANTIZED_GROUP_CHANNELS:
            raise PolicyError(f"rotated: group={self.group} is not available; write group=32, group=64 or group=128")
