"""The figure of codecs at equal bytes, on SmolLM2-135M."""

from __future__ import annotations

from typing import Any

import polars as pl

from kvlab import charts
from kvlab.figures.claim import Claim, pick
from kvlab.figures.figure import Figure
from kvlab.figures.number import Number
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


def _beside(metric: str, one: str, other: str, **where: Any) -> Number:
    return Number(pick(metric, policy=one, **where), pick(metric, policy=other, **where))


K8V4, K4V8 = "quantized:v_bits=4", "quantized:bits=4,v_bits=8"
FOUR, FOUR_32 = "quantized:bits=4", "quantized:bits=4,group=32"
KIVI, KIVI_NO_WINDOW = "kivi:bits=4", "kivi:bits=4,recent=0"
TURBO, LEAST = "turboquant:bits=3", "turboquant:bits=3,length=least"
PROJECTION = "turboquant:bits=3,projection=true"

ON_CODECS: tuple[Figure, ...] = (
    Figure(
        name=NAME,
        title="KL of codecs by their bytes, SmolLM2-135M",
        experiments=("codecs",),
        chart=_drawn,
        metrics=frozenset({"kl", "top1", "kv_bytes_live", "relative_error", "rank_correlation", "concordant"}),
        claims=(
            Claim("Eight bits change next to nothing", pick("kl", policy="quantized"), at_most=0.001),
            Claim(
                "Keys of 8 bits and values of 4 (k8v4) have at most a tenth of the KL of 4 bits for both",
                pick("kl", policy=K8V4),
                pick("kl", policy=FOUR),
                at_most=0.1,
            ),
            Claim(
                "At the same bytes, k8v4 has at most a tenth of the KL of k4v8",
                pick("kl", policy=K8V4),
                pick("kl", policy=K4V8),
                at_most=0.1,
            ),
            Claim(
                "Keys per channel (kivi, no window) have at most a quarter of the KL of 4/32 at the same bytes",
                pick("kl", policy=KIVI_NO_WINDOW),
                pick("kl", policy=FOUR_32),
                at_most=0.25,
            ),
            Claim(
                "The variant for inner products has at least twice the KL of turboquant without it, at 3 bits",
                pick("kl", policy=PROJECTION),
                pick("kl", policy=TURBO),
                at_least=2,
            ),
            Claim(
                "Over all codecs, less error of attention goes with less KL",
                pick("rank_correlation", kind="attention"),
                at_least=0.9,
            ),
        ),
        shows="Docs, code and an agent's conversations, led through every codec behind 640 tokens. To the left are "
        "fewer bytes, down is closer to `full`. [What it says about the choice of a codec](../codecs.md).",
        numbers={
            "codecs": Number(pick("relative_error", "count", kind="attention", conversation="docs-0")),
            "texts": Number(pick("kl", "count", policy=K8V4)),
            "eight-bits": Number(pick("kl", policy="quantized")),
            "k8v4": Number(pick("kl", policy=K8V4)),
            "k4v8": Number(pick("kl", policy=K4V8)),
            "four": Number(pick("kl", policy=FOUR)),
            "four-32": Number(pick("kl", policy=FOUR_32)),
            "k8v2": Number(pick("kl", policy="quantized:v_bits=2")),
            "rotated-four": Number(pick("kl", policy="rotated")),
            "rotated-k8v4": Number(pick("kl", policy="rotated:bits=8,v_bits=4")),
            "kivi-four": Number(pick("kl", policy=KIVI)),
            "kivi-no-window": Number(pick("kl", policy=KIVI_NO_WINDOW)),
            "turboquant-four": Number(pick("kl", policy="turboquant")),
            "turboquant-three": Number(pick("kl", policy=TURBO)),
            "least-three": Number(pick("kl", policy=LEAST)),
            "projection-three": Number(pick("kl", policy=PROJECTION)),
            "four-over-k8v4": _beside("kl", FOUR, K8V4),
            "k4v8-over-k8v4": _beside("kl", K4V8, K8V4),
            "rank-rows": Number(pick("rank_correlation", kind="rows")),
            "rank-keys": Number(pick("rank_correlation", kind="keys")),
            "rank-values": Number(pick("rank_correlation", kind="values")),
            "rank-attention": Number(pick("rank_correlation", kind="attention")),
            "pairs": Number(pick("concordant", "count", kind="rows")),
            "agree-rows": Number(pick("concordant", "sum", kind="rows")),
            "agree-keys": Number(pick("concordant", "sum", kind="keys")),
            "agree-values": Number(pick("concordant", "sum", kind="values")),
            "agree-attention": Number(pick("concordant", "sum", kind="attention")),
        },
    ),
)
