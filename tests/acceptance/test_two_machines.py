"""Two machines, as network namespaces joined by a line, and processes of one machine, share a remote: real servers.

The scripts of ``experiments/two_macs`` run as they do for the figures of the docs, on the bundled model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.remote_kit import needs_redis, redis_program, without_secrets

pytest.importorskip("redis", reason="the extra `remote` is not installed")

SCRIPTS = Path(__file__).parents[2] / "experiments" / "two_macs"
NO_NAMESPACES = 77
"""Exit status of measure.py where network namespaces are not permitted."""
LIMIT_S = 300
PATIENT_MS = "10000"


def run(script: str, out: Path, *arguments: str) -> list[dict[str, Any]]:
    """Return the rows that a script wrote; skip the test where the system does not let it work."""
    command = [sys.executable, str(SCRIPTS / script), "--model", "bundled", "--out", str(out), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=without_secrets())
    if done.returncode == NO_NAMESPACES:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"]
    return rows


@needs_redis
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="network namespaces need root")
def test_the_second_machine_answers_an_agent_s_loop_with_what_the_first_one_computed(tmp_path: Path) -> None:
    policies = ["full", "quantized:bits=4"]
    line = ["--delays", "1", "--wait", PATIENT_MS, "--redis", str(redis_program())]
    parts = ["--parts", "loop", "lengths", "--turns", "2", "--lengths", "70", "300", "--repeats", "1"]
    rows = run("measure.py", tmp_path / "rows.json", "--policies", *policies, *line, *parts)
    for policy in policies:
        loop = {(row["machine"], row["turn"]): row for row in rows if row["part"] == "loop" and row["policy"] == policy}
        assert len(loop) == 8
        for turn in (1, 2):
            at_first, at_second = loop["first again", turn], loop["second", turn]
            assert at_second["cached_tokens"] == at_first["cached_tokens"] == at_second["prompt_tokens"] - 1
            assert at_second["tokens"] == at_first["tokens"] == loop["computed", turn]["tokens"]
        assert loop["second", 1]["from_remote"] == loop["second", 1]["cached_tokens"]
        assert loop["second", 1]["remote_bytes_received"] > 0 and not loop["second", 1]["remote_trips"]
        lengths = [row for row in rows if row["part"] == "lengths" and row["policy"] == policy]
        assert [row["from_remote"] for row in lengths] == [69, 299] and all(row["equal"] for row in lengths)


@needs_redis
def test_agents_on_several_processes_have_the_answers_and_the_hits_of_one_process(tmp_path: Path) -> None:
    given = ["--agents", "16", "--processes", "2", "--turns", "2", "--redis", str(redis_program())]
    several, one = run("agents.py", tmp_path / "rows.json", *given)
    assert several["requests"] == one["requests"] == several["equal_answers"] == 32
    assert several["later_hit_ratio"] == one["later_hit_ratio"] > 0.9
    assert several["from_remote"] > 0 == one["from_remote"]
    assert several["flushed"] and not several["remote_trips"] and not several["remote_refused"]
    # What the server counts is the blocks, and a few percent of questions and names around them.
    for counted, blocks in (("to_server_bytes", "remote_bytes_sent"), ("from_server_bytes", "remote_bytes_received")):
        assert several[blocks] < several[counted] < 1.1 * several[blocks]
