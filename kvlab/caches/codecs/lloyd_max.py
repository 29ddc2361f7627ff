"""The Lloyd-Max quantizer for a coordinate of a random unit vector: centroids of the least mean squared error.

A coordinate x of a vector that is uniform on the unit sphere of R^d has a density proportional to
(1 - x^2)^((d - 3) / 2): a scaled Beta distribution, near the normal one of variance 1/d for large d.
"""

from __future__ import annotations

import functools

import numpy as np

GRID_POINTS = 100_001
"""Points at which the density is integrated, from 0 to ``GRID_DEVIATIONS``: centroids are exact to 1e-6."""
GRID_DEVIATIONS = 12.0
"""Standard deviations behind which the density is negligible."""
MAX_ROUNDS = 10_000
PRECISION = 1e-10
"""Largest change of a centroid in a round, in standard deviations, after which the rounds end."""


@functools.cache
def centroids(bits: int, width: int) -> np.ndarray:
    """Return the 2^bits centroids for vectors of ``width`` channels, float64, sorted; each has its negative.

    Lloyd's rounds: borders are halfway between centroids, and a centroid is the mean of the density between its
    borders. Only the positive half is computed, since the density is symmetric.
    """
    x = np.linspace(0, min(1.0, GRID_DEVIATIONS / np.sqrt(width)), GRID_POINTS)
    density = np.maximum(0, 1 - x * x) ** ((width - 3) / 2)
    step = x[1] - x[0]
    mass = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * step)])
    # The integral of x times the density has a closed form.
    moment = (1 - np.maximum(0, 1 - x * x) ** ((width - 1) / 2)) / (width - 1)
    found = (np.arange(1 << bits - 1) + 0.5) * 4 / (1 << bits) / np.sqrt(width)
    for _ in range(MAX_ROUNDS):
        borders = np.concatenate([[0], (found[1:] + found[:-1]) / 2, x[-1:]])
        new = np.diff(np.interp(borders, x, moment)) / np.diff(np.interp(borders, x, mass))
        change = np.abs(new - found).max() * np.sqrt(width)
        found = new
        if change < PRECISION:
            break
    return np.concatenate([-found[::-1], found])
