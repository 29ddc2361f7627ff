"""Faults in the code of mlx-lm's models that no short trial shows, by the file of ``mlx_lm.models`` that has them.

They hold for the pinned version of mlx-lm; ``tests/zoo`` compares all its models with no cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import mlx.nn as nn

NOT_IN_CHUNKS: Mapping[str, str] = MappingProxyType(
    {
        "phi3small": "its sparse attention takes other blocks of keys for a prompt in two chunks than in one",
    }
)
"""Models that cannot be computed in chunks at all, and so not by kvlab."""

SHORT_WINDOWS: Mapping[str, str] = MappingProxyType(
    {
        "plamo3": "its mask shows a token one row more than its caches keep",
    }
)
"""Models whose rotating caches are too short by one row, so that answers depend on where chunks end."""

NOT_IN_BATCHES: Mapping[str, str] = MappingProxyType(
    {
        "minimax_m3_vl": "it chooses blocks of keys by their place among padded rows",
        "phi3small": "it chooses blocks of keys by their place among padded rows",
    }
)
"""Models whose sequences are right one by one only, from a length on that no trial reaches."""


def fault_of(model: nn.Module, faults: Mapping[str, str]) -> str:
    """Return what is wrong with the code of ``model``, by the files that define its modules; empty for nothing known.

    A model may have another one inside, as those with a vision tower have.
    """
    files = {type(module).__module__.rpartition(".")[2] for module in model.modules()}
    return next((why for file, why in faults.items() if file in files), "")
