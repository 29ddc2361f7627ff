"""The service probes against real servers: kvlab's, where nothing that holds at any speed is bad, and mlx-lm's.

What depends on times is held in ``tests/unit/test_audit_service.py``, on a clock that the server moves itself.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from kvlab.audit import AuditClient, ColdCurve, Finding, Lab, Probe, prepare
from kvlab.audit.material import user
from kvlab.audit.own_server import OwnServer
from kvlab.audit.probes.clients import Clients
from kvlab.audit.probes.continuation import Continuation
from kvlab.audit.probes.overflow import Overflow
from kvlab.audit.probes.restart import Kill, Restart
from kvlab.audit.probes.tool_calls import ToolCalls
from kvlab.audit.probes.truth import Truth
from kvlab.audit.probes.well_formed import WellFormed
from kvlab.models import bundled_path
from tests.processes import ROOT, environment

MLX_LM = "import kvlab; from mlx_lm.server import main; main()"
START_S = 300.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab at ``kvlab serve --policy tiered`` with the bundled model; without a curve, which would hold times."""
    with OwnServer(["--policy", "tiered"]) as server, AuditClient(server.url) as client:
        lab = prepare(client, salt="integration", tokens=192, restart=server.restart)
        lab.kill = server.kill
        lab.reports_cached = True
        yield lab


def found(probe: Probe, lab: Lab) -> dict[str, Finding]:
    return {finding.metric: finding for finding in probe.run(lab)}


def bad(findings: dict[str, Finding]) -> list[Finding]:
    return [finding for finding in findings.values() if finding.verdict == "bad"]


@pytest.mark.parametrize("probe", [WellFormed(), ToolCalls(), Continuation()], ids=lambda probe: probe.name)
def test_streams_calls_and_continuations_of_kvlab_are_good(probe: Probe, lab: Lab) -> None:
    assert bad(found(probe, lab)) == []


def test_required_calls_of_kvlab_come_and_parse(lab: Lab) -> None:
    findings = found(ToolCalls(), lab)
    assert findings["called_required"].verdict == "good"
    assert findings["arguments_required"].verdict == "good"


def test_cached_answers_of_kvlab_equal_cold_ones(lab: Lab) -> None:
    findings = found(Truth(), lab)
    assert findings["equal_answers"].verdict == "good", findings["equal_answers"].detail
    assert findings["logprob_distance"].value is not None


def test_a_crowd_at_kvlab_is_answered_whole(lab: Lab) -> None:
    findings = found(Clients((1, 4)), lab)
    assert findings["refused_4"].value == 0
    assert "lost_4" not in findings
    assert findings["alive"].verdict == "good"


def test_kvlab_names_its_context_and_refuses_longer_prompts_clearly(lab: Lab) -> None:
    lab.curve = ColdCurve(0.0, 1.0, 0.0, 0.0)  # so slow that the probe does not fill the context
    findings = found(Overflow(), lab)
    lab.curve = None
    assert findings["context"].value == 32768
    assert findings["prompt_over_the_context"].verdict == "good"
    assert findings["answer_up_to_the_context"].verdict == "unknown"


@pytest.mark.parametrize("probe", [Restart(), Kill()], ids=lambda probe: probe.name)
def test_kv_of_kvlab_outlives_restart_and_kill(probe: Restart, lab: Lab) -> None:
    findings = found(probe, lab)
    assert bad(findings) == []
    assert findings["cached_tokens"].verdict == "good"
    assert findings["same_answer"].verdict == "good"


@pytest.fixture
def mlx_lm() -> Iterator[Lab]:
    """A lab at mlx-lm's own server with the bundled model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = str(bundled_path())
    command = [sys.executable, "-c", MLX_LM, "--model", model, "--port", str(port), "--log-level", "CRITICAL"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with AuditClient(f"http://127.0.0.1:{port}", model) as client:
            until = time.monotonic() + START_S
            while not client.chat([user("Hello.")], max_tokens=1).is_complete:
                assert process.poll() is None and time.monotonic() < until, "mlx_lm.server did not start"
                time.sleep(0.1)
            yield prepare(client, salt="integration", tokens=192)
    finally:
        process.kill()
        process.wait()


def test_mlx_lm_dies_of_a_prompt_that_its_cache_holds_whole(mlx_lm: Lab) -> None:
    findings = found(Continuation(), mlx_lm)
    assert findings["continued"].verdict == "bad"
    assert findings["alive"].verdict == "bad"
    assert "generation thread died" in findings["alive"].detail
