"""``TurboQuant``: a random rotation, then the best scalar quantizer of a coordinate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvlab.errors import PolicyError
from kvlab.policies.bits_by_side import BitsBySide

TURBOQUANT_LENGTHS = ("norm", "matched", "least")
MAX_SEED = (1 << 31) - 1


@dataclass(frozen=True)
class TurboQuant(BitsBySide):
    """A random rotation of each head, then the Lloyd-Max quantizer for a coordinate of a random unit vector.

    The norm of a vector is kept apart, and each coordinate of the rotated unit vector is written as the index of the
    nearest of 2^bits centroids. With ``projection``, keys take the paper's variant for inner products: one bit less for
    the centroids, and one bit for the sign of a random projection of what they leave (QJL), whose products with queries
    are unbiased.

    Deviations: by default a decoded vector has the norm of the original one (``length=matched``, known as norm
    correction), which the paper's has not. Values never take the variant for inner products. ``boundary`` is no part of
    the paper; other implementations have it, and keep two layers or more at either end.

    Args:
        bits: 4, 3, 2 or 1; of K and of V, where nothing else is said of one of them.
        k_bits: 4, 3, 2, 1 or raw, of K only; None is ``bits``.
        v_bits: 4, 3, 2, 1 or raw, of V only; None is ``bits``.
        length: what scales the centroids. ``norm``: the norm of the vector, as in the paper. ``matched``: what gives
            the decoded vector that norm. ``least``: what gives the least squared error (EDEN, arXiv:2604.18555).
        seed: of the random rotation and projection, a whole number from 0 on; the same in every process.
        projection: the variant for inner products, for keys of 2 bits or more.
        boundary: how many of the first and of the last layers stay as the model computes them.

    Raises:
        PolicyError: other bits, lengths or seeds; a negative boundary; both sides raw; a projection of raw keys, or of
            keys of 1 bit.
    """

    name: ClassVar[str] = "turboquant"
    paper: ClassVar[str] = "TurboQuant, arXiv:2504.19874"
    allowed_bits: ClassVar[tuple[int, ...]] = (1, 2, 3, 4)
    bits: int = 4
    k_bits: int | str | None = None
    v_bits: int | str | None = None
    length: str = "matched"
    seed: int = 0
    projection: bool = False
    boundary: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length not in TURBOQUANT_LENGTHS:
            known = ", ".join(TURBOQUANT_LENGTHS)
            raise PolicyError(f"turboquant: length={self.length} is unknown; write one of {known}")
        if not 0 <= self.seed <= MAX_SEED:
            raise PolicyError(
                f"turboquant: seed={self.seed} is out of range; write a whole number from 0 to 2147483647"
            )
        if self.boundary < 0:
            raise PolicyError(f"turboquant: boundary={self.boundary} is no number of layers; write 0 or more")
        if self.projection and (self.bits_of("k") or 0) < 2:
            raise PolicyError("turboquant: projection=true takes one bit of the keys; write k_bits=2, 3 or 4 with it")
