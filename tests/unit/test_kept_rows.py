"""Which rows of an experiment are saved."""

from __future__ import annotations

import polars as pl

from kvlab.figures.kept_rows import kept_rows
from kvlab.results import row
from kvlab.results.rows import SCHEMA


def test_tool_calls_are_saved_without_the_tokens_around_them_and_with_lengths_once() -> None:
    made = [
        row(policy, "tools:x", metric, 1.0, kind=kind, conversation="1")
        for policy in ("full", "knorm")
        for metric, kind in (("prompt_tokens", "call"), ("kl", "name"), ("kl", "syntax"), ("tool_flip", "prose"))
    ]
    rows = pl.DataFrame(made, schema=dict(SCHEMA))
    kept = [(one["policy"], one["metric"], one["kind"]) for one in kept_rows("tools", rows).iter_rows(named=True)]
    assert kept == [
        ("full", "prompt_tokens", "call"),
        *[
            (policy, metric, kind)
            for policy in ("full", "knorm")
            for metric, kind in (("kl", "name"), ("tool_flip", "prose"))
        ],
    ]
    assert kept_rows("needle", rows).equals(rows)
