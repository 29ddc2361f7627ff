"""``KVTransform``: what turns keys and values of a model into a few independent numbers, measured once for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvlab.errors import ModelError

FIELDS = ("mean", "forward", "inverse", "deviation")


@dataclass(frozen=True)
class SideTransform:
    """A linear transform of one side (K or V) of one layer, all KV heads of a token together.

    ``coefficients = (rows - mean) @ forward``, and ``rows = coefficients @ inverse + mean``. Coefficients are not
    correlated over the calibration's tokens, and an error in any of them counts the same.

    Attributes:
        mean: ``[n_kv_heads * head_dim]``.
        forward: ``[n_kv_heads * head_dim, coefficients]``.
        inverse: ``[coefficients, n_kv_heads * head_dim]``.
        deviation: standard deviation of each coefficient, falling.
    """

    mean: np.ndarray
    forward: np.ndarray
    inverse: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, weight: np.ndarray) -> SideTransform:
        """Measure the transform of ``rows`` ``[tokens, width]``, where errors ``e`` count as ``e @ weight @ e``.

        ``weight`` is symmetric and above 0, ``[width, width]``: it is taken apart first, and then come the principal
        components of what is left.
        """
        sizes, axes = np.linalg.eigh(weight)
        root = axes * np.sqrt(sizes)
        mean = rows.mean(axis=0)
        spread = (rows - mean) @ root
        power, components = np.linalg.eigh(spread.T @ spread / len(rows))
        order = np.argsort(-power)
        components = components[:, order]
        inverse = components.T @ (axes / np.sqrt(sizes)).T
        deviation = np.sqrt(np.maximum(power[order], 0))
        return cls(*(one.astype(np.float32) for one in (mean, root @ components, inverse, deviation)))


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
            raise ModelError(f"{path} holds no transform of KV: make one with calibrated and save") from error


def _sides(arrays: dict[str, np.ndarray], layer: int) -> tuple[SideTransform, SideTransform] | None:
    if f"{layer}.k.mean" not in arrays:
        return None
    k, v = (SideTransform(*(arrays[f"{layer}.{name}.{field}"] for field in FIELDS)) for name in "kv")
    return k, v
