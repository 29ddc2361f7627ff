"""Fit a model's transform to samples of its keys and values, for given steps of the quantizer."""

from __future__ import annotations

import numpy as np

from kvlab.caches.storage_codec.samples import KVSamples
from kvlab.caches.storage_codec.transform import KVTransform, SideTransform
from kvlab.counts import counted
from kvlab.errors import ModelError

QUANTILES = 4097
FEWEST_TOKENS = 512
"""Fewest tokens of samples: fewer do not tell the components of a layer apart."""


def fitted(samples: KVSamples, k_step: float, v_step: float) -> KVTransform:
    """Return the transform of a model for steps of the quantizer.

    Layer by layer: keys are predicted from the layer before, values from that and the layer's own keys, each as they
    are read back, so that errors of the quantizer do not mislead the prediction.

    Args:
        k_step: width of the quantizer of keys, in attention logits.
        v_step: that of values, relative to the values of their layer behind the output projection.

    Raises:
        ModelError: too few tokens, or a step of 0 or less.
    """
    if samples.tokens < FEWEST_TOKENS:
        few = counted(samples.tokens, "token")
        raise ModelError(f"samples of {few} are too few to fit a transform to: give {FEWEST_TOKENS} or more")
    if not (k_step > 0 and v_step > 0):
        raise ModelError(f"k_step={k_step} and v_step={v_step} must be above 0, such as 0.1")
    features = np.zeros((samples.tokens, 0), np.float32)
    layers: list[tuple[SideTransform, SideTransform] | None] = []
    shapes = []
    for sample in samples.layers:
        if sample is None:
            layers.append(None)
            continue
        sides: list[SideTransform] = []
        read: list[np.ndarray] = []
        for rows, weight, step in zip(sample.sides, sample.weights, (k_step, v_step), strict=True):
            seen = np.concatenate([features, *read], axis=1)
            side = SideTransform.of(rows.astype(np.float64), seen.astype(np.float64), weight, step)
            expected = side.expected(seen)
            coefficients = (rows - expected) @ side.forward
            read.append(np.rint(coefficients) @ side.inverse + expected)
            shapes.append((coefficients / np.maximum(side.deviation, 1e-12)).ravel())
            sides.append(side)
        layers.append((sides[0], sides[1]))
        features = np.concatenate(read, axis=1)
    heads = tuple(0 if sample is None else sample.heads for sample in samples.layers)
    quantiles = np.quantile(np.concatenate(shapes), np.linspace(0, 1, QUANTILES))
    return KVTransform(tuple(layers), heads, quantiles.astype(np.float32))
