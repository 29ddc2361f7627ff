"""Codec modules: how K and V are written."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from kvlab.errors import PolicyError
from kvlab.policies.slots import Module

QUANTIZED_BITS = (2, 4, 8)
QUANTIZED_GROUP_CHANNELS = (32, 64, 128)
UNQUANTIZED = "raw"
"""In place of the bits of K or of V: that side stays in the model's own dtype."""


@dataclass(frozen=True)
class Raw(Module):
    """K and V in the model's own dtype."""

    name: ClassVar[str] = "raw"
    slot: ClassVar[str] = "codec"
    is_lossless: ClassVar[bool] = True


@dataclass(frozen=True)
class Quantized(Module):
    """Affine quantization of K and V per token in groups of channels, as ``mx.quantize`` writes it.

    K and V may differ, and one of them may stay as the model computes it: llama.cpp's ``--cache-type-k q8_0`` alone is
    ``quantized:bits=8,v_bits=raw``.

    Args:
        bits: 8, 4 or 2; of K and of V, where nothing else is said of one of them.
        group: channels that share a scale and a bias: 32, 64 or 128, a divisor of the model's head_dim.
        k_bits: 8, 4, 2 or raw, of K only; None is ``bits``.
        v_bits: 8, 4, 2 or raw, of V only; None is ``bits``.

    Raises:
        PolicyError: other bits or groups, or both sides raw.
    """

    name: ClassVar[str] = "quantized"
    slot: ClassVar[str] = "codec"
    paper: ClassVar[str] = "mlx affine quantization"
    bits: int = 8
    group: int = 64
    k_bits: int | str | None = None
    v_bits: int | str | None = None

    def __post_init__(self) -> None:
        if self.bits not in QUANTIZED_BITS:
            raise PolicyError(f"quantized: bits={self.bits} is not available; write bits=8, bits=4 or bits=2")
        for name in ("k_bits", "v_bits"):
            bits = getattr(self, name)
            if bits not in (None, UNQUANTIZED, *QUANTIZED_BITS):
                raise PolicyError(f"quantized: {name}={bits} is not available; write {name}=8, 4, 2 or {UNQUANTIZED}")
        if self.group not in QUANTIZED_GROUP_CHANNELS:
            raise PolicyError(f"quantized: group={self.group} is not available; write group=32, group=64 or group=128")
        k, v = self.bits_of("k"), self.bits_of("v")
        if k is None and v is None:
            raise PolicyError("quantized: k_bits=raw,v_bits=raw quantizes nothing; write raw, or bits for one of them")
        # One spelling for equal choices: bits are those of K, unless K stays raw.
        given = (v, UNQUANTIZED, None) if k is None else (k, None, None if v == k else v or UNQUANTIZED)
        for name, value in zip(("bits", "k_bits", "v_bits"), given, strict=True):
            object.__setattr__(self, name, value)

    def bits_of(self, side: str) -> int | None:
        """Return the bits of ``"k"`` or ``"v"``; None where that side stays as the model computes it."""
        bits = self.k_bits if side == "k" else self.v_bits
        if bits == UNQUANTIZED:
            return None
        return self.bits if bits is None else int(bits)

    def full_spec(self) -> str:
        """Return the spec with all parameters; sides without bits of their own keep the key of older blocks."""
        shown = [f for f in dataclasses.fields(self) if f.default is not None or getattr(self, f.name) is not None]
        return self.written(shown, str)  # it wraps no module
