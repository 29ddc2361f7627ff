"""Policies over a folder: which of their tiers survive a restart, and where they lie."""

from pathlib import Path

from kvlab.policies import Policy
from kvlab.policies.ssd_folder import with_ssd_folder
from kvlab.policies.tiers import Tiers


def test_ssd_folder_moves_tiers_without_a_folder_of_their_own(tmp_path: Path) -> None:
    assert with_ssd_folder(Policy.parse("paged"), tmp_path) == Policy.parse("paged")
    moved = with_ssd_folder(Policy.parse("paged:block=16|tiered:ram=1MB"), tmp_path)
    assert moved == Policy.parse(f"paged:block=16|tiered:ram=1MB,dir={tmp_path}")
    assert with_ssd_folder(moved, tmp_path / "other") == moved


def test_tiers_with_a_folder_survive_a_restart() -> None:
    tiers = [Policy.parse(spec).tiers for spec in ("tiered", "paged|snapshot", "paged|ram")]
    assert [isinstance(one, Tiers) and one.survives_restart for one in tiers] == [True, True, False]
