"""Which server's cache: who is first, what the claims come to, and that pages say what the rows say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kvlab.figures import saved as saved_rows
from kvlab.figures.build import Place, source_tree
from kvlab.figures.saved import Saved
from kvlab.figures.stack_page.claims import CLAIMS
from kvlab.figures.stack_page.designs import KVLAB, TITLES, Design, asked_for, design_of
from kvlab.figures.stack_page.kept import kept
from kvlab.figures.stack_page.measured import MEASURES, METRICS, TABLE
from kvlab.figures.stack_page.page import PARTS, check_stack, fill_stack
from kvlab.figures.stack_page.portraits import not_first, portraits
from kvlab.figures.stack_page.stack_rows import STACK, STACK_SMOLLM2, StackRows
from kvlab.figures.stack_page.standing import DesignOrder
from kvlab.figures.stack_page.tables import anchor, claims_table, failure, main_table, opening_table, rows_behind
from kvlab.figures.stack_page.verdicts import CONFIRMED, CONTRADICTED, DATED, OPEN, VERDICTS, ArticleClaim, judge
from kvlab.systems import system_names
from tests.stack_rows import NO_CACHE, TIERED, changed, stack_rows, without

FACTS = {"commit": "0123456789abcdef", "device": "cpu: one", "model": "tiny", "dtype": "float32"}
ALL_PARTS = "# A page\n\n" + "\n\n".join(f"<!-- stack: {name} -->\n<!-- /stack -->" for name in PARTS) + "\n"
FRAME = stack_rows()
ROWS = StackRows(FRAME)
OMLX = Design("omlx", "now")


def the_claim(system: str, begins: str) -> ArticleClaim:
    [found] = [claim for claim in CLAIMS if claim.system == system and claim.says.startswith(begins)]
    return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text(ALL_PARTS)
    (tmp_path / "README.md").write_text("<!-- stack: opening -->\n<!-- /stack -->\n")
    return Place.of(tmp_path)


def save(place: Place, rows: pl.DataFrame, experiment: str = STACK) -> None:
    saved_rows.write(place.rows, experiment, Saved(rows, FACTS), METRICS)


def cells(table: str, title: str) -> dict[str, list[str]]:
    """The texts of a row of the table by system, links and stars left out: released, then as described."""
    [line] = [line for line in table.splitlines() if f"**{title}**" in line]
    texts = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", cell).split("<br>") for cell in line.strip("|").split("|")[1:]]
    return {name: [text.strip() for text in cell] for name, cell in zip(TITLES, texts, strict=True)}


# -- the table --------------------------------------------------------------------------------------------------------


def test_the_table_has_every_system_in_both_variants_and_kvlab() -> None:
    assert [*system_names()] == sorted(name for name in TITLES if name != KVLAB)
    assert len(asked_for()) == 13
    shown = cells(main_table(ROWS), TABLE[0].title)
    assert all(len(texts) == (1 if name == KVLAB else 2) for name, texts in shown.items())


def test_options_of_a_system_leave_it_the_same_design() -> None:
    assert design_of("ollama:context=1024") == design_of("ollama") != design_of("ollama:variant=article")
    assert design_of("ollama:engine=mlx") != design_of("ollama")
    assert str(design_of("ollama:engine=mlx,")) == "ollama:engine=mlx" and str(OMLX) == "omlx"


@pytest.mark.parametrize("measure", MEASURES.values(), ids=lambda measure: measure.key)
def test_every_number_has_rows_that_its_filter_finds(measure) -> None:
    for design in asked_for():
        sample = measure.sample(ROWS, design)
        assert sample is not None and sample.n_rows > 0 and len(sample.values) == 2, design
        found = [eval(code, {"rows": FRAME, "pl": pl}) for code in sample.code]
        assert found[0].height == sample.n_rows and all(rows.height for rows in found)


def test_a_number_is_the_median_of_its_repeats_and_divided_within_each() -> None:
    growth = MEASURES["growth"].sample(ROWS, OMLX)
    assert growth is not None and growth.values == pytest.approx((0.5, 0.5))
    waits = MEASURES["p95-8"].sample(ROWS, Design("ollama", "now", "gguf"))
    assert waits is not None and waits.values == pytest.approx((765, 765 * 1.01)), "the 95th of 100 to 800 ms"
    assert waits.median == pytest.approx(765 * 1.005)
    after = MEASURES["restart"].sample(ROWS, OMLX)
    base = pl.Series([100 * noise * (1 + 3 * 7 / 14) for noise in (1, 1.01)]).median()
    assert after is not None and base and isinstance(base, float)
    no_cache = FRAME.filter(policy=NO_CACHE, workload="stack-turns", metric="ttft_ms", turn=8)["value"].median()
    own = FRAME.filter(policy="omlx", workload="stack-turns", metric="ttft_ms", phase="restart")["value"].median()
    assert isinstance(no_cache, float) and isinstance(own, float)
    assert after.median == pytest.approx(own / no_cache), "the same turn without a cache, which is never restarted"


def test_designs_whose_ranges_touch_are_tied_and_all_alike_have_no_star() -> None:
    growth = DesignOrder.of(MEASURES["growth"], ROWS)
    assert growth.first == [Design(TIERED)] and growth.order[-1] == OMLX
    speed = DesignOrder.of(MEASURES["speed-8"], StackRows(stack_rows(changed(TIERED, places=7.9))))
    assert Design(TIERED) in speed.first and Design("mlx-lm", "now") in speed.first, "apart by less than the range"
    apart = DesignOrder.of(MEASURES["speed-8"], StackRows(stack_rows(changed(TIERED, places=7.5))))
    assert Design(TIERED) not in apart.first
    assert DesignOrder.of(MEASURES["calls"], ROWS).all_alike
    assert "★" not in "".join(cells(main_table(ROWS), "Calls valid")["omlx"])
    assert "★" in cells(main_table(ROWS), TABLE[0].title)[KVLAB][0]


def test_a_missing_system_is_named_and_its_cells_are_empty(place: Place) -> None:
    rows = stack_rows(without("vmlx", "omlx:variant=article"))
    shown = StackRows(rows)
    assert [str(design) for design in shown.missing] == ["omlx:variant=article", "vmlx"]
    assert cells(main_table(shown), TABLE[0].title)["vmlx"][0] == "–"
    assert judge(the_claim("vmlx", "The choice"), shown).verdict == OPEN
    assert "`vmlx` was not measured" in portraits(shown)
    save(place, rows)
    fill_stack(place)
    told = (place.pages[1]).read_text()
    assert "**Not measured, and so in no place below:** `omlx:variant=article`, `vmlx`." in told


def test_a_design_that_keeps_nothing_at_rest_writes_nothing() -> None:
    rows = FRAME.filter(~((pl.col("policy") == "mlx-lm") & (pl.col("metric") == "bytes_written")))
    sample = MEASURES["written"].sample(StackRows(rows), Design("mlx-lm", "now"))
    assert sample is not None and (sample.values, sample.n_rows) == ((0.0,), 0)


def test_what_happens_beyond_the_context_is_read_from_the_rows() -> None:
    said = {name: failure(ROWS, Design(*name)) for name in [("omlx", "now"), (TIERED,), ("llama.cpp", "now")]}
    assert list(said.values()) == ["goes on", "keeps all", "refuses"]
    assert failure(ROWS, Design("ollama", "now", "gguf")) == "shifts"
    assert failure(StackRows(stack_rows(without(TIERED))), Design(TIERED)) == "–"


def test_the_short_answer_names_first_own_and_last() -> None:
    table = opening_table(ROWS, "docs/")
    assert "[TTFT, turn 15 over turn 1](docs/stack-rows.md#ttft-turn-15-over-turn-1) | `tiered`: 0.1×" in table
    assert "`mlx-lm`, `omlx` (both), `vmlx:variant=article`, `tiered`: 56.9 | 56.9 ★ | `" in table


def test_every_link_to_rows_finds_its_heading() -> None:
    headings = {anchor(line.removeprefix("## ")) for line in rows_behind(ROWS).splitlines() if line.startswith("## ")}
    assert len(headings) == len(MEASURES)
    linked = set(re.findall(r"stack-rows\.md#([\w-]+)", main_table(ROWS) + claims_table(ROWS)))
    assert linked and linked <= headings


def test_the_code_above_the_filters_reads_the_rows(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(place, FRAME)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(rows_behind(ROWS).split("```python\n")[1].split("```")[0], names)
    [code] = MEASURES["found"].sample(ROWS, OMLX).code[:1]  # type: ignore[union-attr]
    assert eval(code, names)["value"].to_list() == [760.0, 760.0]


# -- claims -----------------------------------------------------------------------------------------------------------


def test_each_claim_has_a_verdict_on_these_rows_and_a_number_or_a_source() -> None:
    for claim in CLAIMS:
        found = judge(claim, ROWS)
        assert found.verdict in VERDICTS
        if claim.rule is None:
            assert claim.verdict and claim.source, claim.says
        else:
            assert found.verdict != OPEN and found.now is not None and not claim.verdict, claim.says
    assert claims_table(ROWS).count("\n| ") == len(CLAIMS) + 2


FLIPS = [
    ("ollama", "Takes one", "ollama", {"places": 4}, CONFIRMED, DATED),
    ("ollama", "Loses", "ollama", {"found": 0.9}, CONFIRMED, DATED),
    ("lm-studio", "Finds nothing", "lm-studio", {"found": 0.9}, CONFIRMED, DATED),
    ("llama.cpp", "`--cache-type-k", "llama.cpp:variant=article", {"live": 500}, CONTRADICTED, DATED),
    ("mlx-lm", "Takes one", "mlx-lm", {"places": 1}, DATED, CONFIRMED),
    ("omlx", "Keeps hot", "omlx", {"ram": 5}, DATED, CONFIRMED),
    ("omlx", "Goes on", "omlx", {"found": 0.1}, CONFIRMED, DATED),
    ("omlx", "A late turn", "omlx", {"growth": 1.2}, CONFIRMED, DATED),
    ("omlx", "The choice", "omlx", {"growth": 0.1}, CONTRADICTED, CONFIRMED),
    ("vmlx", "Runs very many", "vmlx", {"places": 32}, DATED, CONFIRMED),
    ("vmlx", "The choice", "vmlx:variant=article", {"places": 2}, DATED, CONTRADICTED),
    ("vmlx", "Writes", "vmlx", {"late": 1}, DATED, CONFIRMED),
]


@pytest.mark.parametrize(("system", "begins", "candidate", "values", "before", "after"), FLIPS)
def test_a_verdict_turns_where_the_rows_say_the_opposite(system, begins, candidate, values, before, after) -> None:
    claim = the_claim(system, begins)
    assert judge(claim, ROWS).verdict == before
    assert judge(claim, StackRows(stack_rows(changed(candidate, **values)))).verdict == after


def test_one_system_of_six_turns_what_is_said_of_all() -> None:
    claim = the_claim("all six", "Tool calls")
    assert judge(claim, ROWS).verdict == CONFIRMED
    bad = FRAME.with_columns(
        value=pl.when(policy="omlx", metric="accuracy", kind="call").then(0.0).otherwise(pl.col("value"))
    )
    found = judge(claim, StackRows(bad))
    assert (found.verdict, found.now and found.now.shown) == (DATED, "`omlx` 0×")


# -- portraits --------------------------------------------------------------------------------------------------------


def test_where_kvlab_is_not_first_the_row_is_named_with_what_would_win_it() -> None:
    told = not_first(ROWS)
    assert "first, or tied with the first, on 14 of 16 rows" in told
    [line] = [line for line in told.splitlines() if "Live sequences" in line]
    assert "2,000, place 2 of 13; first is `vmlx:variant=article` with 3,333" in line and "quantized" in line
    assert "TTFT, turn 15" not in told
    assert "**TTFT, turn 15 over turn 1**: 0.6×" in not_first(StackRows(stack_rows(changed(TIERED, growth=0.6))))
    every = not_first(StackRows(stack_rows(changed(TIERED, live=100, written=0))))
    assert every == "It is first, or tied with the first, on 16 of 16 rows."


def test_every_row_that_kvlab_may_lose_says_what_would_win_it() -> None:
    assert all(measure.lever and measure.good_for and measure.better for measure in TABLE)


def test_a_portrait_has_the_numbers_of_the_rows() -> None:
    told = portraits(ROWS)
    assert all(f"### {title}\n" in told for title in TITLES.values())
    assert "short waits with 4, 8 and 32 agents (100 ms, 100 ms, 100 ms)" in told
    assert "Found after a restart 0.0%, where `tiered` has 99.0%" in told
    other = portraits(StackRows(stack_rows(changed(TIERED, found=0.98))))
    assert "where `tiered` has 98.0%" in other and "99.0%" not in other


def test_saved_rows_are_those_that_anything_is_read_from() -> None:
    unread = FRAME.head(1).with_columns(workload=pl.lit("stack-agents"), metric=pl.lit("prompt_tokens"))
    other = FRAME.head(1).with_columns(workload=pl.lit("elsewhere"))
    few = kept(pl.concat([FRAME, unread, other]))
    assert few.height < FRAME.height and few.filter(workload="elsewhere").height == 1
    assert few.filter(workload="stack-agents", metric="prompt_tokens").is_empty()
    for make in (main_table, claims_table, portraits, not_first, rows_behind):
        assert make(StackRows(few)) == make(ROWS)


# -- pages ------------------------------------------------------------------------------------------------------------


def test_pages_get_the_parts_and_other_rows_make_them_old(place: Place) -> None:
    save(place, FRAME)
    assert [page.name for page in fill_stack(place)] == ["README.md", "page.md"]
    assert check_stack(place) == [] and fill_stack(place) == []
    assert "(docs/stack-rows.md#" in place.pages[0].read_text() and "docs/stack-rows" not in place.pages[1].read_text()
    save(place, stack_rows(changed(TIERED, growth=0.3)))
    old = check_stack(place)
    assert len(old) >= 5 and all(line.endswith("is older than the rows of stack; run kvlab figures") for line in old)


def test_a_page_shows_the_rows_of_another_model_without_the_measures_that_it_lacks(place: Place) -> None:
    save(place, FRAME)
    few = FRAME.filter((pl.col("workload") != "stack-agents") | pl.col("n").is_in([1, 8]))
    save(place, few.with_columns(model=pl.lit("smollm2-135m")), STACK_SMOLLM2)
    page = place.pages[1]
    page.write_text("\n\n".join(f"<!-- stack: {name} of stack_smollm2 -->\n<!-- /stack -->" for name in PARTS))
    fill_stack(place)
    told = page.read_text()
    assert (
        "](stack-smollm2-rows.md#" in told
        and "](stack-rows.md#" not in told
        and '"experiments/rows/stack_smollm2.csv"' in told
    )
    assert "**TTFT p95, 8 agents**" in told and "TTFT p95, 32 agents" not in told.split("## TTFT")[0]
    assert "## TTFT p95, 8 agents" in told and "## TTFT p95, 32 agents" not in told
    assert check_stack(place) == []
    save(place, stack_rows(changed(TIERED, growth=0.3)), STACK_SMOLLM2)
    assert any("is older than the rows of stack_smollm2" in line for line in check_stack(place))
    page.write_text("<!-- stack: table of stak -->\n<!-- /stack -->\n")
    fill_stack(place)
    assert any("no experiment 'stak'" in line and "stack_smollm2" in line for line in check_stack(place))


def test_the_picture_is_shown_where_it_is(place: Place) -> None:
    save(place, FRAME)
    fill_stack(place)
    assert "](docs/figures" not in place.pages[0].read_text()
    place.pictures.mkdir()
    (place.pictures / "stack-at-a-glance.svg").write_text("<svg/>")
    fill_stack(place)
    assert "](docs/figures/stack-at-a-glance.svg)" in place.pages[0].read_text()


def test_before_the_first_measurement_pages_say_so_and_sources_are_judged(place: Place) -> None:
    fill_stack(place)
    told = place.pages[1].read_text()
    assert "kvlab figures --rerun --only stack-at-a-glance" in told and "◷\u00a0dated" in told
    assert check_stack(place) == []


def test_a_part_that_does_not_exist_and_a_comment_that_cannot_be_read_are_named(place: Place) -> None:
    fill_stack(place)
    place.pages[1].write_text("<!-- stack: tabel -->\n<!-- /stack -->\n\n<!-- stack: table --> on one line\n")
    problems = check_stack(place)
    assert any("no part 'tabel'; the parts are opening, origin, table" in line for line in problems)
    assert any("a comment cannot be read" in line for line in problems)


def test_the_committed_pages_follow_from_the_committed_rows() -> None:
    assert check_stack(source_tree()) == []
    named = {
        found for page in source_tree().pages for found in re.findall(r"<!-- stack: ([\w-]+) -->", page.read_text())
    }
    assert named == set(PARTS)


def test_committed_rows_have_all_designs_and_no_cell_is_empty() -> None:
    place = source_tree()
    if not saved_rows.are_there(place.rows, [STACK]):
        pytest.skip("no saved rows of the stack: kvlab figures --rerun --only stack-at-a-glance")
    rows = StackRows(saved_rows.read(place.rows, [STACK]).rows)
    assert rows.missing == []
    empty = [(m.key, str(d)) for m in MEASURES.values() for d in asked_for() if m.sample(rows, d) is None]
    assert empty == []
