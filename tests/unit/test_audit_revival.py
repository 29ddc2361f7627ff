"""After a probe that harmed a server: a slow one is left alone, a dead one is restarted or named."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvlab.audit import own_server
from kvlab.audit.errors import AuditError
from kvlab.audit.revival import survival_findings

PROBE: Any = SimpleNamespace(name="overflow")
LATER: Any = [SimpleNamespace(name="curve")]


def lab(*answered: bool, restart: str = "") -> Any:
    """Return a lab whose server answers these short questions, and whose restart fails if it is run."""
    replies = iter(SimpleNamespace(is_complete=one, status=0, error="connection refused") for one in answered)
    client = SimpleNamespace(chat=lambda *_, **__: next(replies))
    return SimpleNamespace(client=client, restart=restart)


def test_a_server_that_answers_the_second_question_is_not_restarted() -> None:
    found = list(survival_findings(PROBE, LATER, [], lab(False, True, restart="exit 1")))
    assert [(one.metric, one.verdict) for one in found] == [("alive", "good")]


def test_a_server_that_answers_at_once_gives_no_finding() -> None:
    assert list(survival_findings(PROBE, LATER, [], lab(True))) == []


def test_a_dead_server_without_a_command_for_a_restart_ends_the_audit() -> None:
    found = list(survival_findings(PROBE, LATER, [], lab(False, False)))
    assert [(one.probe, one.metric, one.verdict) for one in found] == [
        ("overflow", "alive", "bad"),
        ("curve", "ran", "unknown"),
    ]


@pytest.mark.parametrize(
    ("script", "said"),
    [("raise SystemExit(3)", "it ended with status 3"), ("raise SystemExit('kvlab: no such model')", "no such model")],
)
def test_an_own_server_that_ends_at_once_says_how(script: str, said: str, tmp_path: Path) -> None:
    plan = {"command": [sys.executable, "-c", script], "url": "http://127.0.0.1:9"}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(AuditError, match=said):
        own_server.start(tmp_path)
