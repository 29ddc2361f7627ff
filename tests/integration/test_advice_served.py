"""The line that ``kvlab advise`` prints starts a server that answers."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

import kvlab
from kvlab.models import LoadedModel
from tests.server_kit import Served, chat


@pytest.mark.parametrize(
    ("described", "option"),
    [({"agents": 2, "turns": 3, "restarts": 1}, "--policy"), ({"sessions": 2, "turns": 2}, "--system")],
)
def test_line_of_advice_starts_a_server_that_answers(
    described: dict[str, Any], option: str, bundled: LoadedModel, tmp_path: Path
) -> None:
    advice = kvlab.advise(
        model=bundled, memory="400MB", ssd="2GB", prefill=500.0, decode=20.0, what_if=False, **described
    )
    program, command, *options = shlex.split(advice.serve)
    assert (program, command, options[0]) == ("kvlab", "serve", option)
    with Served(*options, home=tmp_path) as server:
        answer = server.post("/v1/chat/completions", chat("Hello."))
    assert answer.status_code == 200, answer.text
