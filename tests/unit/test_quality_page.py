"""The tables of docs/quality.md are those of their saved rows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NEEDLE, TOOLS = "## What decides: the rows that the answer reads", "What is behind it"
LINE = re.compile(r"^\| `(.+?)` \| (\d+) % \| (\d+) % \| (\d+) % \| (\d+) % \|$", re.MULTILINE)


def table_behind(text: str) -> list[tuple[str, ...]]:
    """Return the lines of the first table behind a text of the page: a method and four shares in percent."""
    page = (ROOT / "docs/quality.md").read_text()
    behind = page[page.index(text) :]
    return LINE.findall(behind[: behind.index("\n- **")])


BUNDLED = re.compile(
    r"^\| `(.+?)` \| (\d+) % \| <!.*?-->\d+<!.*?--> \| (\d+) % \| (\d+) % \| <!.*?-->\d+<!.*?--> \|$", re.MULTILINE
)


def saved(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((ROOT / f"experiments/rows/{name}.json").read_text())["rows"]
    return rows


def test_the_table_says_what_the_rows_say() -> None:
    found = {(row["method"], row["budget"]): row for row in saved("kept_needle")}
    table = table_behind(NEEDLE)
    assert {line[0] for line in table} == {method for method, _ in found}
    for method, *shown in table:
        wanted = [found[method, budget][name] for name in ("read_of_digits", "question") for budget in (0.25, 0.5)]
        assert [int(one) for one in shown] == [round(100 * one) for one in wanted], method


@pytest.mark.parametrize("method", [line[0] for line in table_behind(TOOLS)])
def test_the_table_of_tool_calls_says_what_the_rows_say(method: str) -> None:
    found = next(row for row in saved("kept_tools") if row["method"] == method and row["budget"] == 0.5)
    shown = next(line[1:] for line in table_behind(TOOLS) if line[0] == method)
    assert [int(one) for one in shown] == [
        round(100 * found[name]) for name in ("first_token", "latest", "name", "read")
    ]


def test_the_table_of_the_bundled_model_says_what_the_rows_say() -> None:
    known, unknown = (
        {row["method"]: row for row in saved(name) if row["budget"] == 0.25}
        for name in ("kept_needle_bundled", "kept_needle_bundled_unknown")
    )
    table = BUNDLED.findall((ROOT / "docs/quality.md").read_text())
    assert {method for method, *_ in table} == set(known) - {"adakv(snapkv)"}
    for method, *shown in table:
        wanted = (unknown[method]["read_of_digits"], known[method]["read_of_digits"], known[method]["question"])
        assert [int(one) for one in shown] == [round(100 * one) for one in wanted], method
