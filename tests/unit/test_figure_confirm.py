"""Saved rows of older code are signed where a sample comes out the same, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from kvlab import charts
from kvlab.errors import RunError
from kvlab.experiments.config import read_experiment
from kvlab.figures import saved as saved_rows
from kvlab.figures.build import Place
from kvlab.figures.claim import Claim, pick
from kvlab.figures.command import figures_command
from kvlab.figures.confirm import confirm, sample
from kvlab.figures.figure import Figure
from kvlab.figures.relevant_code import relevant_code

EXPERIMENT = """
workload = "needle:single"
tokens = 200
n = 1
exact = false
share_prompts = "1GB"
seeds = [0, 1]
policies = ["full", "{method}:budget={budget}"]

[grid]
method = ["knorm", "random"]
budget = [0.25, 0.5]
"""
FIGURE = Figure(
    "needles", "Needles", ("needles",), lambda saved: charts.ttft_by_turn(saved.rows),
    frozenset({"accuracy", "kv_bytes_live"}),
    (Claim("full finds some", pick("accuracy", policy="full"), at_least=0),), "How to read it.",
)  # fmt: skip
OLDER = {"kvlab.decoder.scheduler": "another"}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place.of(tmp_path_factory.mktemp("figures"))
    place.experiments.mkdir()
    (place.experiments / "needles.toml").write_text(EXPERIMENT)
    found = saved_rows.measure(place.experiments / "needles.toml", place.rows / "cells", progress=False)
    saved_rows.write(place.rows, "needles", found, FIGURE.needs())
    return place


@pytest.fixture
def older(measured: Place) -> Place:
    code = relevant_code(measured.experiments / "needles.toml") | OLDER
    saved = saved_rows.read(measured.rows, ["needles"])
    facts = {key: value for key, value in saved.provenance.items() if key != "confirmed"} | {"code": code}
    saved_rows.write(measured.rows, "needles", replace(saved, provenance=facts), FIGURE.needs())
    return measured


def test_a_sample_has_one_cell_of_each_combination_of_modules(measured: Place) -> None:
    cells = read_experiment(measured.experiments / "needles.toml").cells()
    found = [(cell.policy, cell.run.seed) for cell in sample(cells)]
    assert found == [("full", 0), ("knorm:budget=0.25", 1), ("random:budget=0.25", 0)]


def test_rows_that_come_out_the_same_are_signed(older: Place, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = (older.rows / "needles.csv").read_text()
    assert confirm([FIGURE], older, tmp_path, progress=False) == []
    assert capsys.readouterr().out == "needles: 3 of 10 cells gave the saved rows again\n"
    saved = saved_rows.read(older.rows, ["needles"])
    assert saved.provenance["code"] == relevant_code(older.experiments / "needles.toml")
    assert (saved.provenance["confirmed"]["cells"], saved.provenance["confirmed"]["of"]) == (3, 10)
    assert "3 of 10 cells gave the same at" in FIGURE.caption(saved)
    assert (older.rows / "needles.csv").read_text() == rows and not list(tmp_path.iterdir())
    assert confirm([FIGURE], older, tmp_path, progress=False) == [], "nothing is left to confirm"
    assert capsys.readouterr().out == ""


def test_rows_of_which_one_differs_are_left_as_they_are(older: Place, tmp_path: Path) -> None:
    saved = saved_rows.read(older.rows, ["needles"])
    parts = {"kv_bytes_live": 1.05, "accuracy": 1.0}  # storage may differ a little
    factor = saved.rows["metric"].replace_strict(parts, return_dtype=pl.Float64)
    wrong = saved.rows.with_columns(value=saved.rows["value"] * factor + (factor == 1.0).cast(int))
    other = replace(saved, rows=wrong, provenance={**saved.provenance, "blas": "OpenBLAS P5"})
    saved_rows.write(older.rows, "needles", other, FIGURE.needs())
    before = (older.rows / "needles.json").read_text()
    problems = confirm([FIGURE], older, tmp_path, progress=False)
    after = (older.rows / "needles.json").read_text()
    saved_rows.write(older.rows, "needles", saved, FIGURE.needs())
    assert len(problems) == 1 and problems[0].endswith(
        f"and 1 more), but the saved ones come from OpenBLAS P5, and these from {saved.provenance['blas']}, "
        "which may be why; kvlab figures --rerun"
    )
    assert "needles: the code as it is gives other rows (accuracy of full (" in problems[0]
    assert after == before


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ('events = ["evicted"]\n', "the experiment itself is another"),
        ("", "ttft_ms does not come out twice the same"),
    ],
)
def test_rows_that_no_sample_confirms_are_named(older: Place, tmp_path: Path, more: str, why: str) -> None:
    place = Place.of(tmp_path)
    place.experiments.mkdir()
    (place.experiments / "needles.toml").write_text(more + EXPERIMENT)
    saved = saved_rows.read(older.rows, ["needles"])
    if not more:
        timed = saved.rows.head(1).with_columns(metric=saved.rows["metric"].head(1).replace({"accuracy": "ttft_ms"}))
        timed = timed.with_columns(metric=timed["metric"].replace({"kv_bytes_live": "ttft_ms"}))
        saved = replace(saved, rows=saved.rows.vstack(timed))
    saved_rows.write(place.rows, "needles", saved, {*FIGURE.needs(), "ttft_ms"})
    assert confirm([FIGURE], place, tmp_path / "stores", progress=False) == [
        f"needles: {why}; measure it anew: kvlab figures --rerun"
    ]


def test_confirming_goes_with_nothing_else() -> None:
    for other in ({"fresh": True}, {"check": True}, {"out": Path("somewhere")}):
        with pytest.raises(RunError, match="leave out --rerun, --check and --out"):
            figures_command(confirm=True, **other)  # type: ignore[arg-type]


SCRIPT = """
import json, sys
full = "--sample" not in sys.argv
names = ["c1", "c2"] if full else ["c2"]
shared = {"workload": "w", "metric": "accuracy", "unit": "fraction"}
rows = [{"policy": "full", "conversation": name, "turn": 1, "value": VALUE, **shared} for name in names]
print(json.dumps({"rows": rows, "provenance": {}}))
"""


@pytest.fixture
def scripted(tmp_path: Path) -> Callable[..., Place]:
    place = Place.of(tmp_path / "tree")
    place.experiments.mkdir(parents=True)

    def write(value: float, sample: str) -> Place:
        (place.experiments / "script").mkdir(exist_ok=True)
        (place.experiments / "script" / "measure.py").write_text(SCRIPT.replace("VALUE", str(value)))
        text = f'script = "script/measure.py"\npolicies = ["full"]\n{sample}\n'
        (place.experiments / "needles.toml").write_text(text)
        return place

    return write


def test_a_script_that_names_a_sample_is_confirmed_by_it(
    scripted: Callable[..., Place], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    place = scripted(0.5, "")
    measured = saved_rows.measure(place.experiments / "needles.toml", tmp_path / "cells")
    saved_rows.write(place.rows, "needles", measured, FIGURE.needs())
    assert confirm([FIGURE], place, tmp_path) == [], "nothing has changed"

    scripted(0.5, 'sample = ["--sample"]')
    assert confirm([FIGURE], place, tmp_path) == [] and capsys.readouterr().out == "", "a sample changes no row"
    changed = scripted("0.25 * 2", 'sample = ["--sample"]')
    assert confirm([FIGURE], changed, tmp_path) == []
    assert capsys.readouterr().out == "needles: 1 of 2 rows gave the saved rows again\n"
    assert "1 of 2 rows gave the same at" in FIGURE.caption(saved_rows.read(place.rows, ["needles"]))

    other = scripted(0.75, 'sample = ["--sample"]')
    assert "(accuracy of full (c2, seed None): 0.5, now 0.75)" in confirm([FIGURE], other, tmp_path)[0]
    assert "names no sample" in confirm([FIGURE], scripted(0.75, ""), tmp_path)[0]
