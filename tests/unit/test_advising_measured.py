"""The choice of ``kvlab.advise`` against designs that were served for real: ``experiments/advise/rows.csv``."""

from __future__ import annotations

import csv
import json
import math
import statistics
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvlab
from kvlab.advising import Advice, Description, Speed
from kvlab.advising.designs import SizedDesign
from kvlab.advising.judging import TIE_SHARE, known_tokens
from kvlab.policies import parse_bytes
from kvlab.systems import parse_candidates, system_names

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "experiments" / "advise"
TAU_BENCH = ROOT.parent / "shared" / "data" / "tau-bench"
USERS: dict[str, dict[str, Any]] = tomllib.loads((FOLDER / "users.toml").read_text(encoding="utf-8"))
FACTS: dict[str, Any] = json.loads((FOLDER / "rows.json").read_text(encoding="utf-8"))


def rows(user: str) -> list[dict[str, str]]:
    with (FOLDER / "rows.csv").open(encoding="utf-8", newline="") as text:
        return [row for row in csv.DictReader(text) if row["user"] == user]


def design(policy: str) -> SizedDesign:
    is_system = policy.partition(":")[0] in system_names()
    return SizedDesign(parse_candidates([] if is_system else [policy], [policy] if is_system else [])[0])


def waits(user: str) -> dict[str, list[float]]:
    """Of each design, the waits for all first tokens together, repeat by repeat."""
    totals: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in rows(user):
        totals[row["policy"]][row["repeat"]] += float(row["ttft_ms"])
    return {policy: [own[repeat] for repeat in sorted(own)] for policy, own in totals.items()}


def winners(user: str) -> list[str]:
    """The design that waits least, and those that tie with it, the simplest first.

    Designs were served in turns, so that a repeat compares them under much the same load. One ties with the least where
    its wait is within a tenth of that in the median of the repeats, or at most that in a quarter of them.
    """
    found = waits(user)
    best = min(found, key=lambda policy: statistics.mean(math.log(total) for total in found[policy]))

    def ties(policy: str) -> bool:
        ratios = np.divide(found[policy], found[best])
        return bool(np.median(ratios) <= 1 + TIE_SHARE or np.quantile(ratios, 0.25) <= 1)

    return sorted(filter(ties, found), key=lambda policy: design(policy).simplicity)


def advised(user: str) -> Advice:
    """The advice at the speed of the machine when the designs were served."""
    own = {key: value for key, value in USERS[user].items() if key != "transcript"}
    given = [TAU_BENCH / USERS[user]["transcript"]] if "transcript" in USERS[user] else []
    return kvlab.advise(*given, **own, speed=Speed(**FACTS[user]["speed"]), what_if=False)


@pytest.mark.parametrize("user", USERS)
def test_choice_is_the_measured_winner(user: str) -> None:
    if "transcript" in USERS[user] and not TAU_BENCH.is_dir():
        pytest.skip(f"{TAU_BENCH} is not here: the transcripts of tau-bench are no part of the repository")
    found = advised(user)
    assert found.policy == winners(user)[0]
    measured = rows(user)
    assert len({row["policy"] for row in measured}) >= 5
    assert max(int(row["kv_bytes"]) for row in measured if row["policy"] == found.policy) <= parse_bytes(
        USERS[user]["memory"]
    )


@pytest.mark.parametrize("user", [user for user in USERS if "transcript" not in USERS[user]])
def test_replay_counts_the_cached_tokens_that_were_measured(user: str) -> None:
    """Of designs that share no running prompt, so that the order of arrivals changes nothing."""
    agents = {row["agent"] for row in rows(user)}
    if len(agents) > 1:
        pytest.skip("agents at once: which of them comes first was not the same in every run")
    computed: dict[str, int] = defaultdict(int)
    for row in rows(user):
        if row["repeat"] == "0":
            computed[row["policy"]] += int(row["prompt_tokens"]) - int(row["cached_tokens"])
    judged = {one.name: one for one in advised(user).ranking.judged}
    workload = Description(**{k: v for k, v in USERS[user].items() if k not in ("memory", "ssd")}).workload()
    new = sum(len(one.prompt) for one in workload.requests) - sum(known_tokens(workload).values())
    for policy, tokens in computed.items():
        assert tokens == pytest.approx(new + judged[policy].again * len(workload.requests), abs=len(workload.requests))
