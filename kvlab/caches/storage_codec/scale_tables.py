"""Tables for entropy coding: how often each quantizer step comes, for components of each size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvlab.caches.storage_codec.rans import TOTAL, Tables

PER_DOUBLING = 4
"""Tables for each doubling of a component's size."""
SCALES = 2.0 ** (np.arange(-7, 27) / PER_DOUBLING)
"""Standard deviations, in steps of the quantizer, that there is a table for; smaller components are not coded."""
LARGEST = 127
"""Largest step that is a symbol; the symbol of step ``s`` is ``s + LARGEST``."""
ESCAPE = 2 * LARGEST + 1
"""The symbol of any larger step, which is written beside the code."""
REACH = 8
"""Standard deviations up to which a table has symbols of its own."""


@dataclass(frozen=True)
class ScaleTables:
    """Frequencies and centres of steps under each table.

    Attributes:
        tables: for :mod:`kvlab.caches.storage_codec.rans`, of 256 symbols.
        centre: mean value, in steps, of what is quantized to a symbol, ``[tables, symbols]``.
    """

    tables: Tables
    centre: np.ndarray

    @classmethod
    def of(cls, quantiles: np.ndarray) -> ScaleTables:
        """Make the tables of a distribution of deviation 1, given as values at equal steps of probability."""
        frequency = np.zeros((len(SCALES), ESCAPE + 1), np.int64)
        centre = np.zeros((len(SCALES), ESCAPE + 1))
        share = np.linspace(0, 1, len(quantiles))
        # The mean of a part of the distribution is a difference of this, divided by its probability.
        mass = np.concatenate([[0], np.cumsum((quantiles[1:] + quantiles[:-1]) / 2)]) / (len(quantiles) - 1)
        for table, (scale, limit) in enumerate(zip(SCALES, cls.limits(), strict=True)):
            edges = (np.arange(-limit, limit + 2) - 0.5) / scale
            below = np.interp(edges, quantiles, share, left=0, right=1)
            moment = np.interp(below, share, mass)
            probability, steps = np.diff(below), np.arange(-limit, limit + 1)
            mean = np.where(probability > 1e-9, np.diff(moment) * scale / np.maximum(probability, 1e-9), steps)
            symbols = steps + LARGEST
            centre[table, symbols] = np.clip(mean, steps - 0.5, steps + 0.5)
            frequency[table, [*symbols, ESCAPE]] = _whole(np.append(probability, 1 - probability.sum()))
        return cls(Tables.of(frequency), centre)

    @staticmethod
    def limits() -> np.ndarray:
        """Return the largest step of each table that is a symbol."""
        return np.minimum(np.ceil(REACH * SCALES).astype(np.int64) + 1, LARGEST)

    @staticmethod
    def table_of(deviation: np.ndarray) -> np.ndarray:
        """Return the table of components with these standard deviations in steps; -1 where they are not coded."""
        nearest = np.rint(PER_DOUBLING * np.log2(np.maximum(deviation, 1e-30) / SCALES[0])).astype(np.int64)
        return np.where(nearest < 0, -1, np.minimum(nearest, len(SCALES) - 1))


def _whole(probability: np.ndarray) -> np.ndarray:
    """Return frequencies, of 1 or more and with the sum TOTAL, near to probabilities."""
    spare = TOTAL - len(probability)
    found = 1 + np.floor(np.maximum(probability, 0) / probability.sum() * spare).astype(np.int64)
    found[np.argmax(found)] += TOTAL - found.sum()
    return found
