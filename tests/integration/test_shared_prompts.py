"""Prompts that are computed once for several policies: the same answers as with a prompt for each, and less prefill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvlab.decoder.shared_prompts import SharedPrompts
from kvlab.errors import KvlabError, PolicyError, RunError
from kvlab.experiments.config import read_experiment
from kvlab.experiments.result_store import RowStore
from kvlab.experiments.run import Run, compare
from kvlab.experiments.sweep import sweep
from kvlab.models import LoadedModel
from kvlab.policies import Policy
from kvlab.recording.events import Prefilled
from kvlab.results import Results

POLICIES = ("full", "snapkv:budget=60,window=8", "knorm:budget=0.5", "quantized:bits=4", "paged")
GIVEN = POLICIES[:-2]
STEP_BYTES = 256 * 4096
"""Rows are allocated in steps of 256 at most, of 4,096 bytes here; restored ones take what they need."""
ALIKE = "needle:single"
"""A workload whose prompts begin alike for most of their length."""
WORKLOAD = "needle:single,question=none"
WHERE = {"tokens": 300, "n": 2, "progress": False}


def values(results: Results, metric: str, column: str = "value") -> list[tuple[str, Any]]:
    return sorted((row["policy"], row[column]) for row in results.rows if row["metric"] == metric)


def prefilled(results: Results, policy: str) -> int:
    events = results.recorders[str(Policy.parse(policy))].events
    return sum(event.tokens for event in events if isinstance(event, Prefilled))


@pytest.fixture(scope="module")
def shared(bundled: LoadedModel) -> Results:
    """All policies, with prompts in common."""
    return compare(POLICIES, WORKLOAD, bundled, share_prompts="200MB", **WHERE)


def test_answers_and_live_bytes_are_those_of_a_prompt_for_each_policy(bundled: LoadedModel, shared: Results) -> None:
    alone = compare(POLICIES, WORKLOAD, bundled, **WHERE)
    for metric in ("text", "accuracy", "prompt_tokens"):
        assert values(shared, metric) == values(alone, metric)
    for (policy, found), (_, expected) in zip(*(values(one, "kv_bytes_live") for one in (shared, alone)), strict=True):
        assert expected - (STEP_BYTES if policy == "full" else 0) < found + 1 <= expected + 1
    assert values(shared, "text", "text") == values(alone, "text", "text")
    assert "computed once" in shared.provenance["prompts"] and "prompts" not in alone.provenance


def test_full_holds_every_row_of_its_own_beside_prompts_that_begin_alike(bundled: LoadedModel) -> None:
    found = compare(["full"], ALIKE, bundled, tokens=600, n=5, concurrency=5, share_prompts="200MB", progress=False)
    rows = [row["value"] / 4096 for row in found.rows if row["metric"] == "kv_bytes_live" and row.get("turn")]
    lengths = [row["value"] for row in found.rows if row["metric"] == "prompt_tokens"]
    assert len(rows) == 5 and all(held >= prompt for held, prompt in zip(sorted(rows), sorted(lengths), strict=True))


def test_only_the_first_policy_computes_whole_prompts(shared: Results) -> None:
    prompt = sum(value for policy, value in values(shared, "prompt_tokens") if policy == "full")
    assert 0.7 * prompt < prefilled(shared, "full") <= prompt  # the second prompt begins as the first
    for policy in GIVEN[1:]:
        assert prefilled(shared, policy) < 0.2 * prompt
    assert prefilled(shared, "quantized:bits=4") == prompt


def test_there_are_no_rows_of_what_given_prompts_change(shared: Results) -> None:
    timed = {policy for metric in ("ttft_ms", "cached_tokens", "kv_bytes_ram") for policy, _ in values(shared, metric)}
    assert timed == {"quantized:bits=4", "paged"}
    assert {row["phase"] for row in shared.rows if row["policy"] == "knorm"} == {"cold"}
    assert "knorm" in shared.table()


def test_distances_of_forced_answers_are_the_same(bundled: LoadedModel, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The badge of @mira is #417. Nobody knows the locker of @tolu. " * 30)
    alone = compare(GIVEN, f"kl:{text}", bundled, tokens=300, progress=False)
    shared = compare(GIVEN, f"kl:{text}", bundled, tokens=300, share_prompts="200MB", progress=False)
    # Prompts are cut into other chunks, so logits and scores differ in their last bits: of hundreds of tokens few flip,
    # and a method may keep another one of two rows with equal scores.
    for metric, apart in (("kl", 1e-5), ("top1", 0.01)):
        found, expected = values(shared, metric), values(alone, metric)
        assert [policy for policy, _ in found] == [policy for policy, _ in expected]
        ours, theirs = (np.array([value for _, value in one]) for one in (found, expected))
        is_near = np.abs(ours - theirs) <= 1e-3 * np.abs(theirs) + apart
        assert is_near.mean() >= 0.9
        assert np.allclose(ours, theirs, rtol=0.2, atol=0.05)


def test_a_sweep_shares_prompts_between_cells(tmp_path: Path) -> None:
    file = tmp_path / "needles.toml"
    file.write_text(
        'policies = ["full", "knorm:budget=0.5"]\nworkload = "needle:single"\ntokens = 300\nn = 2\nexact = false\n'
        'events = ["matched"]\nshare_prompts = "200MB"\n'
    )
    results = sweep(file, tmp_path / "rows", progress=False)
    assert not values(results, "ttft_ms")
    assert {policy for policy, _ in values(results, "accuracy")} == {"full", "knorm"}
    kept = {cell.policy: RowStore(tmp_path / "rows").read(cell) for cell in read_experiment(file).cells()}
    knorm = kept["knorm"]
    assert knorm is not None and min(knorm.events["matched"]["cached_tokens"]) > 200


def test_a_cell_without_shared_prompts_keeps_its_id(tmp_path: Path) -> None:
    (cell,) = read_experiment(_file(tmp_path, "")).cells()
    assert "share_prompts" not in cell.content()
    (other,) = read_experiment(_file(tmp_path, 'share_prompts = "1GB"')).cells()
    assert other.id != cell.id


def _file(folder: Path, line: str) -> Path:
    file = folder / "one.toml"
    file.write_text(f'policies = ["full"]\nworkload = "needle:single"\n{line}\n')
    return file


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("share_prompts = 6", "write text in quotes"),
        ('share_prompts = "much"', "much"),
        ('share_prompts = "-1GB"', "-1GB"),
        ('share_prompts = "1GB"\nrestart = true', "leave restart or share_prompts out"),
    ],
)
def test_wrong_settings_say_what_to_write(tmp_path: Path, lines: str, words: str) -> None:
    with pytest.raises(KvlabError, match=words):
        read_experiment(_file(tmp_path, lines))


def test_wrong_sizes_are_refused_in_python_too(bundled: LoadedModel) -> None:
    with pytest.raises(RunError, match="in quotes"):
        Run("full", "needle:single", bundled, share_prompts=6).execute()  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="much"):
        compare(["full"], "needle:single", bundled, share_prompts="much")


def test_policies_with_kv_at_rest_or_other_kv_of_prompts_are_given_none(bundled: LoadedModel) -> None:
    shared = SharedPrompts("10MB")
    for policy in ("paged", "tiered:ssd=1GB", "quantized:bits=4", "rotating:window=64"):
        assert shared.given(Policy.parse(policy), bundled) == (Policy.parse(policy), None)
    found, store = shared.given(Policy.parse("full"), bundled)
    assert str(found) == "paged:live=false|ram:ram=10MB" and store is not None
    assert shared.given(Policy.parse("knorm"), bundled)[1] is store
    shared.close()
