"""The functions of the Berkeley Function Calling Leaderboard, where a folder with it is at hand."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

CATALOGUE = Path(os.environ.get("KVLAB_BFCL") or Path(__file__).parents[2] / "shared" / "data" / "bfcl")
needs_catalogue = pytest.mark.skipif(
    not any(CATALOGUE.glob("*.json")), reason="the catalogue is not here; set KVLAB_BFCL to its folder"
)


def functions() -> list[dict[str, Any]]:
    """Return all functions, each with its ``name`` and ``parameters``; none without the folder."""
    lines = [line for file in sorted(CATALOGUE.glob("*.json")) for line in file.read_text().splitlines()]
    return [function for line in lines for function in json.loads(line)["function"]]


def type_names(node: Any) -> Iterator[str]:
    """Yield each type name of a schema; a property may be called ``type`` too."""
    if isinstance(node, Mapping):
        if isinstance(node.get("type"), str):
            yield node["type"]
        for value in node.values():
            yield from type_names(value)
    elif isinstance(node, list):
        for value in node:
            yield from type_names(value)
