"""Mixed agents on one server that is stopped, killed and started again: all answers right, nothing grows.

``pytest -m soak tests/soak`` runs for KVLAB_SOAK_SECONDS (20 minutes unless set) and prints a summary; ``-rP`` shows
it. For the first half the server is ended again and again, by SIGTERM and by kill -9 in turn; the second half is one
life of one server.

What must hold:

- Every token is the one that the model alone gives, without any cache between requests (``reference``); answers with a
  grammar or seeded chance equal those of a server that reuses nothing; a client's text is that of the tokens.
- Nothing is cached for a tenant that no request of the same tenant had before.
- No request is refused but with 429 or 503, and no server ends but by our signals.
- In the second half, the median of the last quarter lies at most 10 percent and one allowance (``ALLOWANCES``) above
  that of the second quarter, for RSS, file handles and threads. What the server says that it holds in memory, within
  limits that it states, is not growth.
- The folder's parts never exceed what docs/store.md says: the budget, the 64th of it, and the index with its log and
  the keys of evicted blocks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import pytest

from kvlab.models import LoadedModel
from kvlab.store.from_policy import ANSWER_SHARE
from kvlab.store.ssd.index import MAX_GHOST_KEYS
from tests.processes import ROOT, environment
from tests.server_kit import Served, stated_bytes
from tests.soak.clients import KEYS, Clients, answer_of, fixed_questions
from tests.soak.reference import Answer, Recording, Reference
from tests.victim import resident

SOAK_SECONDS = float(os.environ.get("KVLAB_SOAK_SECONDS", "1200"))
SSD_BYTES = 60_000_000
ADMIN_KEY = "admin"
LOG_BYTES = 4_300_000
"""Of the index's log, before it is written back."""
ANSWER_BYTES = 100_000
"""Of answers that come while the files are counted, or before the oldest leave."""
WALK_BYTES = 1_000_000
"""Of blocks that come while the files are counted, one after the other: what has left is counted too."""
OTHER_BYTES = 2_000_000
"""Of files that are being written, locks, and what was quarantined."""
INDEX_BYTES_PER_BLOCK = 1_000
GHOST_BYTES = 115
"""Of the index for each key whose block was evicted, with its entry in the index of keys."""
ALLOWANCES = {"rss": 16_000_000, "handles": 4, "threads": 4}
"""What a process may have more of without growing: bytes, files and threads that one request needs."""


@dataclass
class Samples:
    """What the server's process has, second by second; ``life`` counts the servers."""

    rows: list[dict[str, float]] = field(default_factory=list)

    def take(self, process: int, life: int, store: Path, stated: float) -> None:
        """Note what the process has now; ``stated`` is how many bytes it says that it holds within limits."""
        try:
            handles, threads = (len(os.listdir(f"/proc/{process}/{name}")) for name in ("fd", "task"))
        except OSError:  # ended, or a system without /proc: the folder counts all the same
            handles, threads = 0, 0
        self.rows.append(
            {"life": life, "rss": resident(process) - stated, "stated": stated, "handles": handles, "threads": threads}
            | folder_bytes(store)
        )

    def growth(self) -> dict[str, tuple[float, float]]:
        """Medians of the second and of the last quarter of the last life."""
        rows = [row for row in self.rows if row["life"] == self.rows[-1]["life"]]
        quarter = len(rows) // 4
        if not quarter:
            return {}
        return {
            name: (
                median(row[name] for row in rows[quarter : 2 * quarter]),
                median(row[name] for row in rows[-quarter:]),
            )
            for name in (*ALLOWANCES, "stated", *PARTS)
        }


PARTS = ("blocks", "answers", "index", "other")


def folder_bytes(folder: Path) -> dict[str, float]:
    """Return the bytes of each part of a store's folder, and the number of its blocks."""
    found = {**dict.fromkeys(PARTS, 0.0), "files": 0.0}
    for parent, _, files in os.walk(folder):
        top = Path(parent).relative_to(folder).parts[:1]
        for name in files:
            part = "index" if name.startswith("catalog.sqlite") else top[0] if top and top[0] in PARTS else "other"
            try:
                found[part] += os.lstat(os.path.join(parent, name)).st_size
            except OSError:  # gone since it was listed
                continue
            found["files"] += part == "blocks"
    return found


class Servers:
    """One server after the other on one port, home and store, with a recording of all of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.recording, self.store = folder, folder / "recording.jsonl", folder / "store"
        self.recording.touch()
        self.lives = 0
        self.failures: list[str] = []
        self.now = self._start(0)
        self.url = self.now.url

    def _start(self, port: int) -> Served:
        self.lives += 1
        keys = [option for key in KEYS for option in ("--api-key", key)] + ["--admin-key", ADMIN_KEY]
        policy = f"tiered:dir={self.store},ram=30MB,ssd={SSD_BYTES // 10**6}MB"
        recorder = ("tests.soak.recording_server", str(self.recording))
        return Served("--policy", policy, "--drain", "3", *keys, home=self.folder, port=port, module=recorder)

    def restart(self, how: str) -> None:
        if self.now.process.poll() is not None:
            self.failures.append(f"life {self.lives} ended by itself with {self.now.process.returncode}")
        elif how == "kill":
            self.now.kill()
        elif (status := self.now.terminate()) != 0:
            self.failures.append(f"life {self.lives} ended with status {status} after SIGTERM")
        self._read_log()
        self.now = self._start(int(self.url.rpartition(":")[2]))

    def stated(self) -> float:
        """Return the bytes of memory that the server says that it holds: live KV, and what has a limit."""
        held, limits = stated_bytes(self.now, headers={"x-api-key": ADMIN_KEY})
        return sum(held[name] for name in held if name.startswith("live{") or (name in limits and "ssd" not in name))

    def end(self) -> None:
        if self.now.process.poll() is not None:
            self.failures.append(f"the last life ended by itself with {self.now.process.returncode}")
        elif self.now.terminate() != 0:
            self.failures.append("the last life did not end with status 0")
        self._read_log()

    def _read_log(self) -> None:
        bad = [i for i, line in enumerate(self.now.log) if '"level": "error"' in line or "Traceback" in line]
        self.failures += ["".join(self.now.log[i : i + 40]) for i in bad[:3]]


def uncached_answers(folder: Path) -> tuple[list[str], list[list[int]]]:
    """The answers to the fixed questions, from a server that reuses nothing, and their prompts."""
    folder.mkdir()
    (folder / "recording.jsonl").touch()
    recorder = ("tests.soak.recording_server", str(folder / "recording.jsonl"))
    with Served("--policy", "full", home=folder, module=recorder) as server:
        made = [httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120) for body in fixed_questions()]
    prompts = [answer.prompt for answer in Recording(folder / "recording.jsonl", set()).new()]
    return [answer_of(response) for response in made], prompts


@dataclass(frozen=True)
class Plan:
    """How a soak goes on.

    Attributes:
        seconds: how long it lasts at least. The restarts are spread over its first half.
        restarts: how often the server is ended, by kill -9 and SIGTERM in turn.
        answers: how many requests each server must have answered before it is ended; no machine is too slow for that.
    """

    seconds: float
    restarts: int
    answers: int

    def may_end(self, life: int, answers: int, elapsed: float) -> bool:
        """Whether server number ``life``, which has given ``answers``, may be ended now."""
        last = life > self.restarts
        return answers >= self.answers and elapsed >= self.seconds * (1 if last else life / (2 * self.restarts))


def soak(bundled: LoadedModel, folder: Path, plan: Plan) -> dict[str, Any]:
    """Run clients against servers, compare as they go, and return a summary."""
    right, prompts = uncached_answers(folder / "reference")
    servers = Servers(folder)
    clients, samples = Clients(servers.url, right), Samples()
    recording, reference = Recording(servers.recording, set(bundled.eos)), Reference(bundled, prompts)
    waiting: list[Answer] = []
    began, answers = time.monotonic(), 0
    try:
        while True:
            elapsed = time.monotonic() - began
            if plan.may_end(servers.lives, answers, elapsed):
                if servers.lives > plan.restarts:
                    break
                servers.restart("kill" if servers.lives % 2 else "term")
                answers = 0
            samples.take(servers.now.process.pid, servers.lives, servers.store, servers.stated())
            new = recording.new()
            answers += sum(answer.reason != "cancelled" for answer in new)
            waiting = reference.check(waiting + new, seconds=1)
            time.sleep(max(0.0, began + elapsed + 1 - time.monotonic()))
    finally:
        clients.stop()
        servers.end()
    reference.check(waiting + recording.new())
    totals, verdict = clients.totals, reference.verdict
    for request, text in totals.texts.items():
        tokens = verdict.tokens_of.get(request)
        if tokens is None or bundled.decode(tokens).strip() != text.strip():
            verdict.wrong[request] = f"the client read {text!r}"
    return {
        "seconds": round(elapsed),
        "lives": servers.lives,
        "clients": dict(totals.counts),
        "cached share": round(totals.counts["cached tokens"] / max(1, totals.counts["prompt tokens"]), 3),
        "compared": {
            "answers": verdict.answers,
            "tokens": verdict.tokens,
            "ties": verdict.ties,
            "by grammar": verdict.by_grammar,
        },
        "texts compared": len(totals.texts),
        "ended": dict(verdict.reasons),
        "wrong": verdict.wrong,
        "wrong fixed answers": totals.wrong,
        "leaks": recording.leaks,
        "refused": totals.refused,
        "failures": servers.failures,
        "growth": samples.growth(),
        "most": {name: max(row[name] for row in samples.rows) for name in (*PARTS, "files")},
    }


def check(summary: dict[str, Any], plan: Plan) -> None:
    for name in ("wrong", "wrong fixed answers", "leaks", "refused", "failures"):
        assert not summary[name], (name, summary[name])
    assert summary["lives"] == plan.restarts + 1
    counts = summary["clients"]
    for name in ("turns of Claude", "turns of Proxy", "fixed questions", "left early"):
        assert counts.get(name), (name, counts)
    most = summary["most"]
    assert most["blocks"] <= SSD_BYTES + WALK_BYTES
    assert most["answers"] <= SSD_BYTES / ANSWER_SHARE + ANSWER_BYTES
    assert most["index"] <= INDEX_BYTES_PER_BLOCK * most["files"] + GHOST_BYTES * MAX_GHOST_KEYS + LOG_BYTES
    assert most["other"] <= OTHER_BYTES


def test_answers_stay_right_while_servers_end(bundled: LoadedModel, tmp_path: Path) -> None:
    plan = Plan(seconds=0, restarts=2, answers=30)
    summary = soak(bundled, tmp_path, plan)
    print(json.dumps(summary, indent=1))
    check(summary, plan)


@pytest.mark.soak
def test_agents_live_on_a_server_for_long(bundled: LoadedModel, tmp_path: Path) -> None:
    plan = Plan(SOAK_SECONDS, restarts=max(2, int(SOAK_SECONDS / 120)), answers=30)
    summary = soak(bundled, tmp_path, plan)
    print(json.dumps(summary, indent=1))
    check(summary, plan)
    for name, allowance in ALLOWANCES.items():
        before, after = summary["growth"][name]
        assert after <= 1.1 * before + allowance, (name, before, after)
    verify = [sys.executable, "-m", "kvlab", "store", "verify", "--dir", str(tmp_path / "store"), "--json"]
    made = subprocess.run(verify, capture_output=True, text=True, cwd=ROOT, env=environment(KVLAB_HOME=str(tmp_path)))
    assert made.returncode == 0, made.stdout + made.stderr
    print(made.stdout)
