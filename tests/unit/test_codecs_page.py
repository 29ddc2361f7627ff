"""The table of docs/codecs.md is that of its saved rows, and so are the pairs that it names."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl

from kvlab.figures import saved
from kvlab.figures.on_codecs import STORED, label
from kvlab.results.kl_by_bytes import kl_by_stored_share

ROOT = Path(__file__).parents[2]
CELL = r"([^|]+)"
LINE = re.compile(
    rf"^\| (.+?) \| `(.+?)` \| {CELL} \| {CELL} \| {CELL} \| {CELL} \| {CELL} \| {CELL} \|$", re.MULTILINE
)


def rows() -> pl.DataFrame:
    return saved.read(ROOT / "experiments/rows", ["codecs"]).rows


def test_the_table_says_what_the_rows_say() -> None:
    points = {one["policy"]: one for one in kl_by_stored_share(rows(), STORED).to_dicts()}
    lines = LINE.findall((ROOT / "docs/codecs.md").read_text())
    assert {line[1] for line in lines} == set(points)
    for name, policy, share, kl, same, *errors in lines:
        point = points[policy]
        assert name == label(policy)
        assert share == f"{100 * point['share']:.1f} %", policy
        assert kl == f"{point['kl']:.2g} ({point['low']:.2g} to {point['high']:.2g})", policy
        mine = rows().filter(pl.col("policy") == policy)
        found = mine.group_by("metric", "kind").agg(pl.col("value").mean())
        means = {(metric, kind): value for metric, kind, value in found.iter_rows()}
        best = mine.filter(pl.col("metric") == "top1")["value"].to_list()
        assert same == f"{100 * sum(best) / len(best):.0f} %", policy
        wanted = [means["relative_error", kind] for kind in ("keys", "values", "attention")]
        assert errors == [f"{value:.2g}" for value in wanted], policy


def test_the_page_names_every_pair_in_which_less_error_of_rows_goes_with_more_kl() -> None:
    page = (ROOT / "docs/codecs.md").read_text()
    named = {frozenset(pair) for pair in re.findall(r"^- \*\*(.+?)\*\* and \*\*(.+?)\*\*", page, re.MULTILINE)}
    against = rows().filter(pl.col("metric") == "concordant", pl.col("kind") == "rows", pl.col("value") == 0)
    pairs = [(label(one), label(other)) for one, other in against.select("policy", "of").iter_rows()]
    assert named == {frozenset(pair) for pair in pairs}
