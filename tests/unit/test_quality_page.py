"""The table of docs/quality.md is that of its saved rows."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_says_what_the_rows_say() -> None:
    rows = json.loads((ROOT / "experiments/rows/kept_needle.json").read_text())["rows"]
    found = {(row["method"], row["budget"]): row for row in rows}
    page = (ROOT / "docs/quality.md").read_text()
    table = re.findall(r"^\| `(.+?)` \| (\d+) % \| (\d+) % \| (\d+) % \| (\d+) % \|$", page, re.MULTILINE)
    assert {line[0] for line in table} == {method for method, _ in found}
    for method, *shown in table:
        wanted = [found[method, budget][name] for name in ("read_of_digits", "question") for budget in (0.25, 0.5)]
        assert [int(one) for one in shown] == [round(100 * one) for one in wanted], method
