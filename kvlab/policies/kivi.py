"""``Kivi``: keys per channel, values per token, behind a window in full precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvlab.errors import PolicyError
from kvlab.policies.bits_by_side import BitsBySide
from kvlab.policies.codecs import QUANTIZED_GROUP_CHANNELS


@dataclass(frozen=True)
class Kivi(BitsBySide):
    """Keys quantized per channel in groups of tokens, values per token in groups of channels; the latest tokens stay.

    A group is written as whole numbers from 0 to 2^bits - 1 between its least and its largest value. Rows that are
    encoded in groups can be neither stored nor shared, so this works without reuse and under ``full`` only.

    Deviations: keys and values share the window, of ``recent`` tokens and up to a group more; the paper's code keeps
    from none to ``recent`` keys, all of which it quantizes at once, and exactly ``recent`` values. A prompt is attended
    to as it is stored, chunk by chunk, where the paper's code computes a prompt's attention in full precision: so
    answers depend on the size of the chunks, a little.

    Args:
        bits: 4 or 2; of K and of V, where nothing else is said of one of them.
        k_bits: 4 or 2, of K only; None is ``bits``.
        v_bits: 4 or 2, of V only; None is ``bits``.
        group: tokens of a key channel, and channels of a value, that share a scale: 32, 64 or 128; it divides head_dim.
        recent: fewest latest tokens in full precision.

    Raises:
        PolicyError: other bits or groups, or fewer than 0 recent tokens.
    """

    name: ClassVar[str] = "kivi"
    paper: ClassVar[str] = "KIVI, arXiv:2402.02750"
    allowed_bits: ClassVar[tuple[int, ...]] = (2, 4)
    may_stay_raw: ClassVar[bool] = False
    encodes_groups: ClassVar[bool] = True
    bits: int = 2
    k_bits: int | str | None = None
    v_bits: int | str | None = None
    group: int = 32
    recent: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group not in QUANTIZED_GROUP_CHANNELS:
            raise PolicyError(f"kivi: group={self.group} is not available; write group=32, group=64 or group=128")
        if self.recent < 0:
            raise PolicyError(f"kivi: recent={self.recent} is negative; write recent=0 or more tokens")
