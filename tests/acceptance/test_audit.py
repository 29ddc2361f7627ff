"""The audit of a real server: it finds nothing wrong with ``tiered``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvlab.cli.main import main

COUNTED = ("repeat", "append", "divergence", "shared_system", "alternating", "edited_history", "tool_order")
"""Probes whose verdict follows from reported cached tokens alone, so that no clock takes part in this test."""


def test_audit_finds_nothing_wrong_with_tiered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only = [part for name in COUNTED for part in ("--only", name)]
    page = tmp_path / "card.html"
    arguments = ["--policy", "tiered", "--tokens", "128", "--salt", "acceptance", "--html", str(page), "--json"]
    assert main(["audit", *arguments, *only]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = {(row["probe"], row["metric"]): row for row in document["rows"]}
    assert [key for key, row in rows.items() if row["verdict"] == "bad"] == []
    assert rows["repeat", "cached_tokens"]["value"] == rows["repeat", "prompt_tokens"]["value"] - 1
    assert rows["divergence", "block_tokens"]["value"] == 1
    assert {name for name, _ in rows} == {"curve", *COUNTED}
    assert document["provenance"]["served_model"] == "tiny"
    assert "✓ good" in page.read_text(encoding="utf-8")
