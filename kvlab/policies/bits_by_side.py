"""``BitsBySide``: the base of codec modules that write K and V with bits of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvlab.errors import PolicyError
from kvlab.policies.codecs import UNQUANTIZED
from kvlab.policies.slots import Module


@dataclass(frozen=True)
class BitsBySide(Module):
    """Base of codec modules whose bits of K and of V may differ.

    A subclass gives ``allowed_bits``, and ``may_stay_raw``: whether one side may stay as the model computes it. Equal
    choices have one spelling: ``bits`` are those of K, unless K stays raw.

    Raises:
        PolicyError: bits that are not allowed, or both sides raw.
    """

    slot: ClassVar[str] = "codec"
    allowed_bits: ClassVar[tuple[int, ...]] = ()
    may_stay_raw: ClassVar[bool] = True
    bits: int = 4
    k_bits: int | str | None = None
    v_bits: int | str | None = None

    def __post_init__(self) -> None:
        options: tuple[int | str, ...] = (*self.allowed_bits, UNQUANTIZED) if self.may_stay_raw else self.allowed_bits
        for name, allowed in (("bits", self.allowed_bits), ("k_bits", options), ("v_bits", options)):
            bits = getattr(self, name)
            if bits not in allowed and not (bits is None and name != "bits"):
                named = " or ".join(f"{name}={one}" for one in allowed)
                raise PolicyError(f"{self.name}: {name}={bits} is not available; write {named}")
        k, v = self.bits_of("k"), self.bits_of("v")
        if k is None and v is None:
            raise PolicyError(f"{self.name}: k_bits=raw,v_bits=raw changes nothing; write raw, or bits for one of them")
        given = (v, UNQUANTIZED, None) if k is None else (k, None, None if v == k else v or UNQUANTIZED)
        for name, value in zip(("bits", "k_bits", "v_bits"), given, strict=True):
            object.__setattr__(self, name, value)

    def bits_of(self, side: str) -> int | None:
        """Return the bits of ``"k"`` or ``"v"``; None where that side stays as the model computes it."""
        bits = self.k_bits if side == "k" else self.v_bits
        if bits == UNQUANTIZED:
            return None
        return self.bits if bits is None else int(bits)
