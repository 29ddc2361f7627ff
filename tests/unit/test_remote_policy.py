"""``tiered:remote=URL``: the spec, what it refuses, and the store that it opens."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvlab.errors import PolicyError
from kvlab.policies import Policy, Tiered
from kvlab.policies.durations import format_seconds, parse_seconds
from kvlab.store.from_policy import open_store, store_config
from kvlab.store.remote import RemoteConfig
from kvlab.tiers import RAM, REMOTE, SSD


@pytest.mark.parametrize(
    "spec",
    [
        "tiered:remote=redis://mac-1:6379/0",
        "paged:block=16|tiered:ram=2GB,remote=rediss://me@host/2,remote_size=50GB,remote_ttl=7d,remote_wait=200",
        "tiered:dir=mine,remote=s3://bucket/some/folder",
        "tiered:remote=file:///shared/kv",
    ],
)
def test_a_policy_with_a_remote_round_trips(spec: str) -> None:
    assert str(Policy.parse(spec)) == spec and Policy.parse(spec) == Policy.parse(str(Policy.parse(spec)))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("tiered:remote=http://host", "redis://host:6379/0"),
        ("tiered:remote=redis", "redis://host:6379/0"),
        ("tiered:remote=redis://me:hunter2@host", "KVLAB_REMOTE_PASSWORD"),
        ("tiered:remote=file:///a(b", "parenthes"),
        ("tiered:remote_ttl=7d", "write remote=URL too"),
        ("tiered:remote_wait=10", "write remote=URL too"),
        ("tiered:remote=redis://host,remote_wait=0", "1 or more milliseconds"),
        ("tiered:remote=redis://host,remote_ttl=soon", "90s, 12h or 7d"),
        ("tiered:remote=redis://host,remote_size=big", "512MB"),
    ],
)
def test_wrong_remotes_are_refused_with_what_to_write(spec: str, says: str) -> None:
    with pytest.raises(PolicyError, match=says) as caught:
        Policy.parse(spec)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds", "again"), [("90", 90, "90s"), ("120s", 120, "2m"), ("24h", 86400, "1d"), ("7D", 604800, "7d")]
)
def test_durations_have_one_text(text: str, seconds: int, again: str) -> None:
    assert parse_seconds(text) == seconds and format_seconds(seconds) == again


@pytest.mark.parametrize("text", ["", "0s", "-1s", "1.5h", "1w", "h"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(PolicyError, match="write a number with a unit"):
        parse_seconds(text)


def test_the_settings_reach_the_tier() -> None:
    module = Tiered(remote="redis://host", remote_size="1GB", remote_ttl="1h", remote_wait=200)
    ssd, remote = store_config(module, 16).below
    assert ssd.name == "ssd" and remote == RemoteConfig("redis://host", 3600.0, 10**9, 0.2)
    assert store_config(Tiered(remote="redis://host"), 16).below[1] == RemoteConfig("redis://host")


def test_a_remote_is_a_tier_of_those_policies_only_that_name_one(tmp_path: Path) -> None:
    assert Tiered().holds == (RAM, SSD) and len(store_config(Tiered(), 16).below) == 1
    policy = Policy.parse(f"tiered:dir={tmp_path}/own,remote=file://{tmp_path}/shared")
    assert policy.tiers is not None and policy.tiers.holds == (RAM, SSD, REMOTE)  # type: ignore[attr-defined]
    pytest.importorskip("obstore", reason="the extra `remote` is not installed")
    with open_store(policy) as store:  # type: ignore[union-attr]
        assert store.tiers_bytes() == {"ram": 0, "ssd": 0, "remote": 0}
    assert Tiered().holds == (RAM, SSD)
    with open_store(Policy.parse(f"tiered:dir={tmp_path}/alone")) as store:  # type: ignore[union-attr]
        assert not [name for name in store.stats() if name.startswith("remote")]


def test_a_policy_in_another_folder_keeps_its_remote(tmp_path: Path) -> None:
    moved = Tiered(remote="redis://host", remote_ttl="1h").in_folder(tmp_path)
    assert moved == Tiered(remote="redis://host", remote_ttl="1h", dir=str(tmp_path)) and REMOTE in moved.holds
