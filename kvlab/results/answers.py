"""Answers as a frame: what every policy said to every request, beside what was wanted and its grades."""

from __future__ import annotations

import polars as pl

from kvlab.counts import counted
from kvlab.results.rows import REQUEST

REFERENCE = "full"
"""The policy whose answers the others' are compared with: it computes everything and keeps everything."""
MAX_TEXT = 4000
"""Characters of a question or a wanted answer that a row keeps; a document before the question may be far longer."""


def storable(text: str, most: int | None = None) -> str:
    """Return text that every file format can hold; of more than `most` characters the middle is left out, and said.

    Half a surrogate pair, which JSON lets through, becomes a question mark.
    """
    clean = text.encode("utf-8", "replace").decode("utf-8")
    if most is None or len(clean) <= most:
        return clean
    half = most // 2
    return f"{clean[:half]}\n[… {counted(len(clean) - 2 * half, 'character')} …]\n{clean[-half:]}"


def answers(rows: pl.DataFrame) -> pl.DataFrame:
    """Return one row for each request, policy and repeat: request by request, the policies in their order.

    Columns: `conversation` and `turn`; those of `workload`, `model`, `seed`, `n`, `tokens`, `kind` and `repeat` that
    have more than one value; `policy`, `question`, `wanted`, `text`, a column for each grade, `as_full` (whether the
    text is that of `full`; null where `full` did not run), and `answer_tokens`.
    """
    said = rows.filter(pl.col("metric") == "text")
    always = ("conversation", "turn")
    several = [name for name in (*REQUEST, "kind") if name not in always and said[name].n_unique() > 1]
    request = [*always, *several]
    about = [*request, "policy", *(["repeat"] if said["repeat"].n_unique() > 1 else [])]
    length = pl.col("value").cast(pl.Int64).alias("answer_tokens")
    texts = said.select(*about, "question", "wanted", pl.col("text").fill_null(""), length)
    grades = rows.filter((pl.col("unit") == "fraction") & pl.col("turn").is_not_null())
    for metric in grades["metric"].unique(maintain_order=True):
        one = grades.filter(pl.col("metric") == metric).group_by(about).agg(pl.col("value").mean().alias(metric))
        texts = texts.join(one, on=about, how="left", nulls_equal=True, maintain_order="left")
    reference = texts.filter(pl.col("policy") == REFERENCE).group_by(request).agg(pl.col("text").first().alias("_full"))
    order = texts.select(request).unique(maintain_order=True).with_row_index("_order")
    for more in (reference, order):
        texts = texts.join(more, on=request, how="left", nulls_equal=True, maintain_order="left")
    as_full = (pl.col("text") == pl.col("_full")).alias("as_full")
    ordered = texts.sort("_order", maintain_order=True)
    return ordered.select(pl.exclude("_full", "_order", "answer_tokens"), as_full, "answer_tokens")
