"""``TriAttention``: keep rows by the distance to the positions to come at which each head attends most."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import mlx.core as mx
import numpy as np

from kvlab.errors import PolicyError
from kvlab.policies.scorers.base import ScoreContext, Scorer
from kvlab.policies.scorers.model_layer import pairs_of, rope_of

DISTANCES = tuple(float(1 << power) for power in range(17))
"""Positions ahead over which attention is averaged: 1, 2, 4 to 65,536."""
MIN_DEVIATION = 1e-6
"""Smallest standard deviation that a head's scores are divided by."""
CENTRE, SIZE = "centre_{}", "size_{}"
"""Names of the arrays of a file: the mean query of a layer before RoPE, and the mean size of its pairs of channels."""


@dataclass(frozen=True)
class TriAttention(Scorer):
    """Rows that a head's average query attends to from the positions to come stay. Calibrated per head; no question.

    Follows Mao et al. 2026: before RoPE, the queries of a head lie around one centre, so that attention depends on the
    distance to a key as a series of cosines. The score of a key is its product with the centre, rotated to 1, 2, 4 to
    65,536 positions ahead and averaged, and, for what the centre leaves out, the sum over pairs of channels of the
    key's size times the mean size of queries less that of the centre. The scores of a query head are brought to mean 0
    and deviation 1, and a row has the greatest of its group. Two guards against lost text were added later by users:
    the first ``prefix`` tokens stay, and of ``segments`` equal parts of the text each keeps the best of its rows, up to
    ``quota`` of an equal share.

    Deviations: prompts are compressed too (the paper compresses what is generated); heads choose for themselves in each
    layer, which is one of the authors' options; while decoding, ``interval`` rows leave together (128 in the paper).

    Args:
        calibration: path of a file that ``kvlab.caches.query_centres`` made for this model; none: refused when it runs.
        prefix: first tokens that always stay, as far as half of the budget.
        segments: equal parts of the text with a quota each; 1 is no quota.
        quota: share of a part's equal share of the budget that it keeps in any case, from 0 to 1.
    """

    name: ClassVar[str] = "triattention"
    paper: ClassVar[str] = "TriAttention, arXiv:2604.04921"
    calibration: str | None = None
    prefix: int = 128
    segments: int = 8
    quota: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prefix < 0:
            raise PolicyError(f"triattention: prefix={self.prefix} is negative; write prefix=0 or more")
        if self.segments < 1:
            raise PolicyError(f"triattention: segments={self.segments} must be 1 or more")
        if not 0 <= self.quota <= 1:
            raise PolicyError(f"triattention: quota={self.quota} is no share; write 0 to 1, such as quota=0.5")

    def score(self, context: ScoreContext) -> mx.array:
        rope = rope_of(context, self.name)
        saved, names = self._saved(), [name.format(context.layer) for name in (CENTRE, SIZE)]
        _, kv_heads, length, width = context.keys.shape
        if any(name not in saved or saved[name].shape[1:] != (width,) for name in names):
            raise PolicyError(
                f"triattention: {self.calibration} has nothing for layer {context.layer} with heads of {width} "
                "channels: it was made for another model"
            )
        centre, size = (mx.array(saved[name]).reshape(kv_heads, -1, width) for name in names)
        keys = context.keys[0].astype(mx.float32)
        scores = keys[:, None] @ self._ahead(rope, centre, context.offset)[..., None]
        pairs, weight = pairs_of(rope, width)
        left_out = weight * mx.maximum(size - mx.sqrt((centre * centre) @ pairs), 0)
        scores = scores + mx.sqrt((keys * keys) @ pairs)[:, None] @ left_out[..., None]
        is_real = (context.positions[0] >= 0)[:, None]
        each = _standardized(scores[..., 0], is_real).max(axis=1)[None]
        return self._guarded(each, context)

    def _ahead(self, rope: Callable[..., mx.array], centre: mx.array, offset: int) -> mx.array:
        """Return the centres rotated to the positions ahead, averaged; ``[n_kv_heads, group, head_dim]``."""
        at = mx.array([offset + distance for distance in DISTANCES]).astype(mx.int32)
        kv_heads, group, width = centre.shape
        flat = mx.broadcast_to(centre.reshape(1, -1, 1, width), (len(DISTANCES), kv_heads * group, 1, width))
        return rope(flat, offset=at).mean(axis=0).reshape(kv_heads, group, width)

    def _guarded(self, scores: mx.array, context: ScoreContext) -> mx.array:
        """Lift the rows of the prefix, and the best rows of each segment, above all others."""
        length = scores.shape[-1]
        budget = min(self.rows(context.offset, context.layer, context.n_layers), length)
        prefix = min(self.prefix, budget // 2)
        own = int(self.quota * (budget - prefix) / self.segments) if self.segments > 1 else 0
        positions = context.positions
        is_prefix = (positions >= 0) & (positions < prefix)
        part = mx.where(positions < prefix, -1, (positions - prefix) * self.segments // max(1, context.offset - prefix))
        lifted = scores
        for segment in range(self.segments if own else 0):
            inside = mx.where(part == segment, scores, -mx.inf)
            order = mx.argsort(mx.argsort(-inside, axis=-1), axis=-1)
            lifted = mx.where((part == segment) & (order < own), scores + 2 * mx.abs(scores).max() + 1, lifted)
        return mx.where(is_prefix, mx.inf, lifted)

    def _saved(self) -> dict[str, np.ndarray]:
        if self.calibration is None:
            raise PolicyError(
                "triattention has no calibration: write triattention:calibration=FILE, a file that "
                "kvlab.caches.query_centres made for this model"
            )
        try:
            return _read(self.calibration, os.stat(self.calibration).st_mtime_ns)
        except (OSError, ValueError) as error:
            raise PolicyError(f"triattention: cannot read calibration={self.calibration}: {error}") from error


def save_centres(path: str | Path, layers: Sequence[tuple[np.ndarray, np.ndarray] | None]) -> None:
    """Write centres and sizes, each ``[n_heads, head_dim]``, of each layer; None is a layer that is not compressed."""
    arrays: dict[str, np.ndarray] = {}
    for layer, found in enumerate(layers):
        if found is not None:
            arrays |= {CENTRE.format(layer): found[0], SIZE.format(layer): found[1]}
    with Path(path).open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


@functools.lru_cache(maxsize=2)
def _read(path: str, changed_ns: int) -> dict[str, np.ndarray]:
    """Read a file once for all its layers; ``changed_ns`` tells a new file of the same name."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name].astype(np.float32) for name in file.files}


def _standardized(scores: mx.array, is_real: mx.array) -> mx.array:
    """Return scores with mean 0 and standard deviation 1 over the real rows of each query head."""
    count = is_real.sum(axis=-1, keepdims=True)
    mean = mx.where(is_real, scores, 0.0).sum(axis=-1, keepdims=True) / count
    variance = mx.where(is_real, (scores - mean) ** 2, 0.0).sum(axis=-1, keepdims=True) / count
    return (scores - mean) / mx.maximum(mx.sqrt(variance), MIN_DEVIATION)
