"""Which rows of an experiment are saved, where all of its metrics' rows would be too many."""

from __future__ import annotations

import polars as pl

from kvlab.figures.stack_page.kept import kept
from kvlab.figures.stack_page.stack_rows import STACKS

TOOLS = "tools"


def kept_rows(experiment: str, rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of an experiment to save: of the stack and of tool calls a part, else all."""
    if experiment in STACKS:
        return kept(rows)
    return _of_tools(rows) if experiment == TOOLS else rows


def _of_tools(rows: pl.DataFrame) -> pl.DataFrame:
    """Leave out the tokens around a call, and the lengths of prompts that are the same under every policy."""
    around = (pl.col("kind") == "syntax").fill_null(False)
    again = (pl.col("metric") == "prompt_tokens") & (pl.col("policy") != "full")
    return rows.filter(~around & ~again)
