"""The figure of codecs at equal bytes, on SmolLM2-135M."""

from __future__ import annotations

from typing import Any

import polars as pl

from kvlab import charts
from kvlab.figures.saved import Saved
from kvlab.policies import Kivi, Policy, Quantized, Rotated, TurboQuant
from kvlab.results.kl_by_bytes import kl_by_stored_share

STORED = "16 bits"
"""The kind of rows of bytes that are counted in 16 bits, whatever the model was computed in."""
NAME = "codecs-at-equal-bytes"
METHODS = ("quantized", "rotated", "kivi", "turboquant")


def label(policy: str) -> str:
    """Return the short name of a codec as the field writes it: ``k8v4``, ``4/64`` (bits and group), ``kivi 4``."""
    codec = Policy.parse(policy).codec
    if isinstance(codec, Quantized | Rotated):
        k, v = codec.bits_of("k"), codec.bits_of("v")
        name = f"{k}/{codec.group}" if k == v else f"k{k}v{v}"
        return name if isinstance(codec, Quantized) else f"rotated {name}"
    if isinstance(codec, Kivi):
        return f"kivi {codec.bits}" + ("" if codec.recent else ", no window")
    if isinstance(codec, TurboQuant):
        length = "" if codec.length == "matched" else f", {codec.length}"
        return f"turboquant {codec.bits}{length}{', projection' * codec.projection}"
    return policy


def _drawn(saved: Saved) -> Any:
    found = kl_by_stored_share(saved.rows, STORED)
    named = found.with_columns(
        pl.col("policy").map_elements(label, return_dtype=pl.String).alias("label"),
        pl.col("policy").str.extract(r"^(\w+)").alias("method"),
    )
    order = {method: place for place, method in enumerate(METHODS)}
    return charts.kl_by_stored_bytes(named.sort(pl.col("method").replace_strict(order), maintain_order=True))
