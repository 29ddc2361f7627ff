"""``SavedScores``: base of scorers whose scores were computed before, by other means than a prompt's own pass."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import mlx.core as mx
import numpy as np

from kvlab.errors import PolicyError
from kvlab.policies.scorers.base import ScoreContext, Scorer
from kvlab.policies.slots import Module

TOKENS, LAYER = "tokens", "layer_{}"
"""Names of the arrays of a file: the token ids, and the scores ``[n_kv_heads, tokens]`` of a layer."""


@dataclass(frozen=True)
class SavedScores(Scorer):
    """Scores of one prompt's rows from a file; rows of the answer rank above them, the newest first.

    Args:
        scores: path of a file that :func:`save_scores` wrote; none: the policy is refused when it runs.
    """

    reads_token_ids: ClassVar[bool] = True
    scores: str | None = None

    def score(self, context: ScoreContext) -> mx.array:
        saved = self.saved()
        tokens, table = saved[TOKENS], saved.get(LAYER.format(context.layer))
        _, heads, length, _ = context.keys.shape
        if table is None or table.shape != (heads, len(tokens)):
            raise PolicyError(f"{self.name}: {self.scores} has no scores of {heads} KV heads for layer {context.layer}")
        self._check_prompt(context, tokens)
        known = (context.positions >= 0) & (context.positions < len(tokens))
        at = mx.clip(context.positions, 0, len(tokens) - 1)
        found = mx.take_along_axis(mx.array(table)[None], at, axis=-1)
        return mx.where(known, found, mx.where(context.positions < 0, -mx.inf, mx.inf))

    def saved(self) -> dict[str, np.ndarray]:
        """Return the arrays of the file. Raises PolicyError where there is none, or it cannot be read."""
        if self.scores is None:
            raise PolicyError(
                f"{self.name} has no scores: write {self.name}:scores=FILE, a file that kvlab.policies.scorers."
                "saved_scores.save_scores made for this prompt"
            )
        try:
            return _read(self.scores, os.stat(self.scores).st_mtime_ns)
        except (OSError, ValueError, KeyError) as error:
            raise PolicyError(f"{self.name}: cannot read scores={self.scores}: {error}") from error

    def _check_prompt(self, context: ScoreContext, tokens: np.ndarray) -> None:
        if context.token_ids is None:
            raise PolicyError(f"{self.name} reads token ids, which only kvlab's decoder hands to a cache: use that")
        positions, ids = np.array(context.positions[0, 0]), np.array(context.token_ids[0, 0])
        of_prompt = (positions >= 0) & (positions < len(tokens)) & (ids >= 0)
        if not np.array_equal(tokens[positions[of_prompt]], ids[of_prompt]):
            raise PolicyError(f"{self.name}: the scores in {self.scores} are those of another prompt")


def saved_scores_of(module: Module) -> SavedScores | None:
    """Return the scorer with saved scores that a retention is or has in its parentheses; None where there is none."""
    if isinstance(module, SavedScores):
        return module
    inner = getattr(module, "scorer", None)
    return saved_scores_of(inner) if isinstance(inner, Module) else None


def save_scores(path: str | Path, tokens: Sequence[int], layers: Sequence[np.ndarray | None]) -> None:
    """Write scores ``[n_kv_heads, tokens]`` of each layer for ``scores=``; None is a layer without a plain KV cache."""
    arrays = {LAYER.format(layer): np.asarray(one, np.float32) for layer, one in enumerate(layers) if one is not None}
    with Path(path).open("wb") as file:
        np.savez(file, **{TOKENS: np.asarray(tokens, np.int32)}, **arrays)  # type: ignore[arg-type]


@functools.lru_cache(maxsize=2)
def _read(path: str, changed_ns: int) -> dict[str, np.ndarray]:
    """Read a file once for all its layers; ``changed_ns`` tells a new file of the same name."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    arrays[TOKENS]  # noqa: B018 - a file of another kind
    return arrays
