"""Codec modules: how K and V are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvlab.errors import PolicyError
from kvlab.policies.slots import Module

QUANTIZED_BITS = (2, 4, 8)
QUANTIZED_GROUP_CHANNELS = (32, 64, 128)


@dataclass(frozen=True)
class Raw(Module):
    """K and V in the model's own dtype."""

    name: ClassVar[str] = "raw"
    slot: ClassVar[str] = "codec"
    is_lossless: ClassVar[bool] = True


@dataclass(frozen=True)
class Quantized(Module):
    """Affine quantization of K and V per token in groups of channels, as ``mx.quantize`` writes it.

    Args:
        bits: 8, 4 or 2.
        group: channels that share a scale and a bias: 32, 64 or 128, a divisor of the model's head_dim.

    Raises:
        PolicyError: other bits or groups.
    """

    name: ClassVar[str] = "quantized"
    slot: ClassVar[str] = "codec"
    paper: ClassVar[str] = "mlx affine quantization"
    bits: int = 8
    group: int = 64

    def __post_init__(self) -> None:
        if self.bits not in QUANTIZED_BITS:
            raise PolicyError(f"quantized: bits={self.bits} is not available; write bits=8, bits=4 or bits=2")
        if self.group not in QUANTIZED_GROUP_CHANNELS:
            raise PolicyError(f"quantized: group={self.group} is not available; write group=32, group=64 or group=128")
