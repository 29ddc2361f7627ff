"""Numbers of figures in the text of pages: written from the rows, checked, and refused where they cannot be."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlab.cli.main import main
from kvlab.errors import RunError
from kvlab.figures import command, declared
from kvlab.figures import saved as saved_rows
from kvlab.figures.build import Place
from kvlab.figures.claim import pick
from kvlab.figures.figure import Figure
from kvlab.figures.number import Number
from kvlab.figures.on_methods import ON_METHODS
from kvlab.figures.on_smollm2 import ON_SMOLLM2
from kvlab.figures.pages import check_pages, fill, texts_of
from kvlab.figures.saved import Saved
from kvlab.results import Results, row
from tests.unit.test_figures import FACTS, FIGURE, some_rows

NUMBERED = dataclasses.replace(
    FIGURE,
    numbers={
        "share": Number(pick("ttft_ms", policy="tiered", turn=2), pick("ttft_ms", policy="full", turn=2)),
        "measured": Number(pick("ttft_ms", "count", policy="full", turn=2)),
        "seconds": Number(pick("ttft_ms", "sum", policy="full", turn=2), scale=1e-3, digits=3),
    },
)
PAGE = (
    "# A page\n\ntiered needs <!-- figure: small share -->?<!-- /figure --> times the time of "
    "<!-- figure: small measured -->0<!-- /figure --> turns,\nat <!-- figure: small commit --><!-- /figure -->.\n"
)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(PAGE)
    (tmp_path / "docs" / "other.md").write_text("No figure here.\n")
    place = Place.of(tmp_path)
    saved_rows.write(place.rows, "some", Saved(some_rows(), FACTS), NUMBERED.needs())
    return place


def rows_of(value: float) -> pl.DataFrame:
    return Results([row("full", "agent", "ttft_ms", value)], {}).frame()


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        (0.02571, 2, "0.026"),
        (9.23, 2, "9.2"),
        (24.0, 2, "24"),
        (0.0, 2, "0"),
        (1290.4, 2, "1,290"),
        (0.9876, 3, "0.988"),
        (0.000123, 1, "0.0001"),
        (-3.46, 2, "-3.5"),
        (1234567.0, 2, "1,234,567"),
    ],
)
def test_a_number_is_text_without_an_exponent(value: float, digits: int, shown: str) -> None:
    assert Number(pick("ttft_ms"), digits=digits).text(rows_of(value)) == shown


@given(st.floats(1e-9, 1e12), st.integers(1, 6))
def test_a_number_as_text_is_as_near_as_its_digits(value: float, digits: int) -> None:
    shown = Number(pick("ttft_ms"), digits=digits).text(rows_of(value))
    assert "e" not in shown
    assert float(shown.replace(",", "")) == pytest.approx(value, rel=0.51 * 10 ** (1 - digits))


def test_a_number_is_a_mean_a_sum_a_count_or_a_ratio() -> None:
    rows = some_rows()
    texts = {name: number.text(rows) for name, number in NUMBERED.numbers.items()}
    assert texts == {"share": "0.10", "measured": "2", "seconds": "0.401"}
    with pytest.raises(RunError, match="is 0 and cannot be divided by"):
        Number(pick("ttft_ms"), pick("ttft_ms")).text(rows_of(0))
    with pytest.raises(RunError, match="no rows of ttft_ms policy=paged"):
        Number(pick("ttft_ms", policy="paged")).text(rows)


def test_pages_get_the_numbers_of_the_rows_and_where_they_come_from(place: Place) -> None:
    assert [page.name for page in fill([NUMBERED], place)] == ["README.md"]
    text = place.pages[0].read_text()
    assert "<!-- figure: small share -->0.10<!-- /figure --> times the time of" in text
    assert "-->2<!-- /figure --> turns,\nat" in text and "-->0123456789ab<!-- /figure -->.\n" in text
    assert fill([NUMBERED], place) == [] and check_pages([NUMBERED], place) == []
    saved = saved_rows.read(place.rows, ["some"])
    assert set(texts_of(NUMBERED, saved)) == {
        "origin", "model", "device", "commit", "date", "share", "measured", "seconds",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (PAGE.replace("?", "0.11"), "README.md: share of small is '0.11' here and '0.10' in the saved rows"),
        (PAGE.replace("small share", "small shares"), "figure small has no 'shares'; its texts are origin"),
        (PAGE.replace("small share", "smell share"), "the figure 'smell'; the figures are small"),
        (PAGE.replace("<!-- /figure --> times", " times"), "cannot be read; write <!-- figure"),
        (PAGE.replace("?", "1\n2"), "cannot be read; write <!-- figure"),
        (PAGE.replace("small share", "small"), "cannot be read; write <!-- figure"),
        (PAGE.replace("needs <!--", "needs\n<!--"), "a line begins with a comment about a figure"),
    ],
)
def test_a_page_that_the_rows_do_not_give_is_named(text: str, says: str, place: Place) -> None:
    place.pages[0].write_text(text)
    assert any(says in problem for problem in check_pages([NUMBERED], place)), check_pages([NUMBERED], place)


def test_other_rows_make_every_number_of_a_page_wrong_until_it_is_written_anew(place: Place) -> None:
    fill([NUMBERED], place)
    facts = {**FACTS, "commit": "fedcba9876543210"}
    saved_rows.write(place.rows, "some", Saved(some_rows(40), facts), NUMBERED.needs())
    problems = check_pages([NUMBERED], place)
    assert [problem.split(" ")[1] for problem in problems] == ["share", "commit"]
    fill([NUMBERED], place)
    assert check_pages([NUMBERED], place) == [] and "-->0.40<!--" in place.pages[0].read_text()


def test_numbers_of_figures_that_are_not_asked_for_stay(place: Place) -> None:
    other = dataclasses.replace(NUMBERED, name="other")
    assert fill([other], place) == [] and place.pages[0].read_text() == PAGE
    assert check_pages([other], place, complete=False) == []


def test_figures_writes_pages_and_check_leaves_them(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(declared, "FIGURES", (NUMBERED,))
    monkeypatch.setattr(command, "source_tree", lambda: place)
    assert main(["figures", "--check"]) == 1 and place.pages[0].read_text() == PAGE
    assert "share of small is '?' here" in capsys.readouterr().err
    assert main(["figures", "--out", str(tmp_path / "elsewhere")]) == 0 and place.pages[0].read_text() == PAGE
    assert main(["figures"]) == 0 and "-->0.10<!--" in place.pages[0].read_text()


@pytest.mark.parametrize("figure", [*ON_SMOLLM2, *ON_METHODS], ids=lambda figure: figure.name)
def test_a_figure_of_a_real_model_draws_and_says_all_it_declares(figure: Figure) -> None:
    """Rows are made of what its claims and numbers pick, so that no error waits at the end of a long measurement."""
    said = [part for one in (*figure.claims, *figure.numbers.values()) for part in (one.of, one.to) if part]
    made = []
    for part in said:
        several = {key: value if isinstance(value, tuple) else (value,) for key, value in part.where.items()}
        where = {
            "turn": 1,
            "phase": "cold",
            "n": 1,
            "seed": 0,
            "model": "other",
            "conversation": "0",
            "kind": "retrieve",
        }
        for values in itertools.product(*several.values()):
            picked = where | dict(zip(several, values, strict=True))
            picked["turn"] = 2 if picked["phase"] != "cold" else picked["turn"]
            policy = picked.pop("policy")
            for workload in {picked.pop("workload", "agent"), "crowd"}:
                made += [row(policy, workload, metric, 1.0, **picked) for metric in figure.needs()]
    saved = Saved(Results(made, {}).frame(), FACTS)
    assert figure.draw(saved).to_dict()
    assert all(str(verdict) in figure.caption(saved) for verdict in figure.judge(saved))
    assert set(figure.numbers) < set(texts_of(figure, saved))
