"""The block size that oMLX (0.5.3) chooses for a model."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_lm.models.cache import RotatingKVCache

from kvlab.caches import make_caches
from kvlab.caches.serialize import cache_leaves, is_cuttable
from kvlab.models import LoadedModel

PLAIN_BLOCK, RECURRENT_BLOCK = 256, 2048
SMALLEST_WINDOW_BLOCK = 512


def block_for(windows: Sequence[int], *, is_recurrent: bool) -> int:
    """Return the tokens of a block, for a model with these sliding windows.

    256 where all layers keep all rows; 2048 with recurrent layers; else the smallest multiple of the window that is
    512 or more.
    """
    if is_recurrent:
        return RECURRENT_BLOCK
    if not windows:
        return PLAIN_BLOCK
    window = max(windows)
    return -(-SMALLEST_WINDOW_BLOCK // window) * window


def block_for_model(loaded: LoadedModel) -> int:
    """Return the tokens of a block for a model, by what its layers are."""
    others = [cache for _, cache in cache_leaves(make_caches(loaded.model)) if not is_cuttable(cache)]
    windows = [cache.max_size for cache in others if isinstance(cache, RotatingKVCache)]
    return block_for(windows, is_recurrent=len(windows) < len(others))
