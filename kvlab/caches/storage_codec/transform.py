"""``KVTransform``: what turns keys and values of a model into independent numbers, measured once for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvlab.caches.storage_codec.scale_tables import ScaleTables
from kvlab.errors import ModelError

FIELDS = ("mean", "predictor", "forward", "inverse", "deviation")
RIDGE = 1e-3
"""Part of the mean square of features that is added in the prediction, so that few tokens do not mislead it."""


@dataclass(frozen=True)
class SideTransform:
    """A linear transform of one side (K or V) of one layer, all KV heads of a token together.

    Rows are predicted from features, those that were read before: ``expected = mean + features @ predictor``. What is
    left becomes ``coefficients = (rows - expected) @ forward``, in steps of the quantizer, and back
    ``rows = coefficients @ inverse + expected``. Coefficients are not correlated over the calibration's tokens, and an
    error in any of them counts the same; those that are too small to be coded are left out.

    Attributes:
        mean: ``[width]``, where width is ``n_kv_heads * head_dim``.
        predictor: ``[features, width]``.
        forward: ``[width, coefficients]``.
        inverse: ``[coefficients, width]``.
        deviation: standard deviation of each coefficient in steps, falling.
    """

    mean: np.ndarray
    predictor: np.ndarray
    forward: np.ndarray
    inverse: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, features: np.ndarray, weight: np.ndarray, step: float) -> SideTransform:
        """Measure the transform of ``rows`` ``[tokens, width]``, where errors ``e`` count as ``e @ weight @ e``.

        ``features`` are ``[tokens, n]``; ``weight`` is symmetric and above 0, ``[width, width]``: it is taken apart
        first, and then come the principal components of what is left.
        """
        mean, of_features = rows.mean(axis=0), features.mean(axis=0)
        centred = features - of_features
        gram = centred.T @ centred
        gram += RIDGE * np.trace(gram) / max(1, len(gram)) * np.eye(len(gram))
        predictor = np.linalg.solve(gram, centred.T @ (rows - mean))
        mean = mean - of_features @ predictor
        sizes, axes = np.linalg.eigh(weight)
        root = axes * np.sqrt(sizes) / step
        left = (rows - mean - features @ predictor) @ root
        power, components = np.linalg.eigh(left.T @ left / len(rows))
        order = np.argsort(-power)
        deviation = np.sqrt(np.maximum(power[order], 0))
        coded = order[ScaleTables.table_of(deviation) >= 0]
        inverse = components[:, coded].T @ (axes / np.sqrt(sizes)).T * step
        fields = (mean, predictor, root @ components[:, coded], inverse, deviation[: len(coded)])
        return cls(*(one.astype(np.float32) for one in fields))

    def expected(self, features: np.ndarray) -> np.ndarray:
        """Return what features ``[tokens, n]`` predict, ``[tokens, width]``."""
        return self.mean + features @ self.predictor


@dataclass(frozen=True)
class KVTransform:
    """The transforms of all layers of a model.

    Attributes:
        layers: K and V of each layer; None for layers without a plain KV cache.
        heads: KV heads of each layer; 0 for layers without a plain KV cache.
        quantiles: the distribution of coefficients that are divided by their deviation, over all layers: values at
            equal steps of probability.
    """

    layers: tuple[tuple[SideTransform, SideTransform] | None, ...]
    heads: tuple[int, ...]
    quantiles: np.ndarray

    def save(self, path: str | Path) -> None:
        """Write the transform to a file."""
        arrays = {"quantiles": self.quantiles, "heads": np.array(self.heads, np.int32)}
        for layer, sides in enumerate(self.layers):
            for name, side in zip("kv", sides or (), strict=False):
                arrays |= {f"{layer}.{name}.{field}": getattr(side, field) for field in FIELDS}
        with Path(path).open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | Path) -> KVTransform:
        """Read what :meth:`save` wrote. Raises ModelError where the file holds no transform."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            heads = tuple(arrays["heads"].tolist())
            return cls(tuple(_sides(arrays, layer) for layer in range(len(heads))), heads, arrays["quantiles"])
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{path} holds no transform of KV: make one with fitted and save") from error


def _sides(arrays: dict[str, np.ndarray], layer: int) -> tuple[SideTransform, SideTransform] | None:
    if f"{layer}.k.mean" not in arrays:
        return None
    k, v = (SideTransform(*(arrays[f"{layer}.{name}.{field}"] for field in FIELDS)) for name in "kv")
    return k, v
