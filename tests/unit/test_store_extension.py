"""A tier and a replacement policy that are defined elsewhere work everywhere, as built-in ones do."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from kvlab import charts, replacement_names, tiers
from kvlab.errors import PolicyError, StoreError
from kvlab.policies import Paged, Policy, Tiered
from kvlab.recording import events
from kvlab.recording.recorder import Recorder
from kvlab.results import row
from kvlab.server.access import Client
from kvlab.server.metrics import ServerMetrics
from kvlab.store import Store
from kvlab.store.from_policy import open_store
from kvlab.store.replacement import replacements
from kvlab.store.ssd.tier import SsdConfig
from kvlab.tiers import RAM, SSD
from tests.chart_kit import frame, marks, values
from tests.store_kit import BLOCK, MB, fetch, opened, put, rows, sound

TOKENS = list(range(3 * BLOCK + 5))


@pytest.fixture(scope="module", autouse=True)
def own() -> Iterator[Any]:
    """The module of :mod:`tests.own_tier`, whose names are known while these tests run and no longer."""
    module = importlib.import_module("tests.own_tier")
    yield module
    tiers._tiers.pop(module.ATTIC.name)
    replacement_names._declared.pop(module.Mru.name)
    for known in (module.Attic, module.Loft, module.SharedTiered, module.Mru):
        known.name = ""
    del sys.modules["tests.own_tier"]


# -- a tier ---------------------------------------------------------------------------------------------------------


def opened_attic(shelf: str) -> Store:
    store = open_store(Policy.parse(f"paged:block={BLOCK}|attic:shelf={shelf}"))
    assert store is not None
    return store


def test_policy_opens_the_new_tier_and_a_restart_finds_its_blocks() -> None:
    with opened_attic("restart") as store:
        put(store, TOKENS)
        assert store.flush()
        assert store.tiers_bytes()["attic"] == store.tiers_bytes()["ram"] > 0
    with opened_attic("restart") as store:
        assert fetch(store, TOKENS).by_tier == {"attic": len(TOKENS)}
        stats = store.stats()
        assert (stats["attic_blocks"], stats["ssd_blocks"], stats["trouble"]) == (4, 0, "")
        assert stats["bytes_written"] == stats["attic_bytes"]
        sound(store)


def test_third_tier_serves_what_the_second_has_lost(own: Any, tmp_path: Path) -> None:
    below = (SsdConfig(tmp_path, 16 * MB), own.AtticConfig("third"))
    with opened(None, below=below) as store:
        put(store, TOKENS)
        assert store.flush()
        stats = store.stats()
        assert stats["ssd_blocks"] == stats["attic_blocks"] == 4
        assert stats["bytes_written"] == stats["ssd_bytes"] + stats["attic_bytes"]
    for file in (tmp_path / "blocks").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with opened(None, below=below) as store:
        assert fetch(store, TOKENS).tokens == len(TOKENS), (
            "the SSD tier fails while it is read, and the next one serves"
        )
        assert store.stats()["corrupt"] == 4
        sound(store)
    with opened(None, below=below) as store:
        assert fetch(store, TOKENS).by_tier == {"attic": len(TOKENS)}


def test_full_ram_moves_blocks_to_the_new_tier(own: Any) -> None:
    size = sum(array.nbytes for array in rows(TOKENS, 0, BLOCK).values())
    with opened(None, ram=2 * size, below=(own.AtticConfig("full"),)) as store:
        talks = [[n, *TOKENS] for n in range(4)]
        for talk in talks:
            put(store, talk)
        assert all(fetch(store, talk).tokens == len(talk) for talk in talks)
        assert store.tiers_bytes()["ram"] <= 3 * size


@pytest.mark.parametrize("name", ["Loft", "SharedTiered"])
def test_module_that_the_store_does_not_know_is_an_error_that_names_both(own: Any, name: str) -> None:
    module = getattr(own, name)()
    with pytest.raises(StoreError, match=f"(?s)kvlab.store.from_policy.*register {name}") as caught:
        open_store(Paged() | module)
    assert f"'{module}'" in str(caught.value)


def test_rows_recordings_charts_and_the_server_know_the_new_tier(own: Any) -> None:
    where: dict[str, Any] = {"turn": 1, "conversation": "c"}
    made = row("attic", "agent", "kv_bytes_attic", 3e6, **where)
    assert made["unit"] == "bytes"

    recorder = Recorder()
    recorder.emit(events.Matched(0, 1.0, 64, {"ram": 64}, "", 0.0))
    assert "attic_tokens" not in recorder.frame("matched").columns  # of a policy without one
    recorder.emit(events.Matched(1, 1.0, 64, {"ram": 60, "attic": 4}, "", 0.0))
    assert recorder.frame("matched")["attic_tokens"].to_list() == [0, 4]

    times = pl.DataFrame({"policy": ["attic"], "request": [0], "t": [1.0]})
    submitted = times.with_columns(pl.lit(0.0).alias("t"), pl.lit("c").alias("conversation"), pl.lit(1).alias("turn"))
    chart = charts.bytes_by_tier(
        frame(made), times.with_columns(kv_bytes=pl.lit(5, pl.Int64)), times, submitted
    ).to_dict()
    assert {point["tier"] for point in values(chart, marks(chart)[0])} == {"live", "attic"}
    assert own.ATTIC.color in str(chart)
    steps = pl.DataFrame({"step": [1], "ram": [1], "attic": [2]})
    assert own.ATTIC.color in str(charts.bytes_at_rest(steps).to_dict())

    def shown(**held: int) -> list[dict[str, str]]:
        decoder = SimpleNamespace(tiers_bytes=lambda: held, live_bytes=int, retained_bytes=int, store=None)
        answers = SimpleNamespace(budget=0, file_budget=0, nbytes=0, file_bytes=0)
        others = {"grammars": SimpleNamespace(nbytes=0, max_bytes=0), "prompts": SimpleNamespace(answers=answers)}
        models: dict[str, Any] = {}
        metrics = ServerMetrics(models)
        models["one"] = SimpleNamespace(decoder=decoder, policy="attic", context=0, nbytes=0, **others)
        tiers: list[dict[str, str]] = metrics.state(Client("", sees_all=True))["tiers"]
        return tiers

    assert shown(attic=3)[-1] == {"name": "attic", "label": "attic", "color": own.ATTIC.color}
    assert [tier["name"] for tier in shown(ram=3)] == ["live", "ram", "ssd"]


def test_dashboard_names_no_tier_at_rest() -> None:
    page = (Path(charts.__file__).parents[1] / "server" / "dashboard.html").read_text()
    script = page.partition("<script>")[2].lower()
    assert "state.tiers" in script
    assert not [tier.name for tier in (RAM, SSD) if f'"{tier.name}"' in script or f"--{tier.name}" in page]


# -- a replacement policy -------------------------------------------------------------------------------------------


def test_replacement_is_known_to_policies_and_tiers_once_it_is_defined(own: Any, tmp_path: Path) -> None:
    policy = Policy.parse(f"paged:block={BLOCK}|tiered:replace=mru,dir={tmp_path / 'store'}")
    store = open_store(policy)
    assert store is not None and isinstance(store._ram._order, own.Mru)
    store.close()
    known = ", ".join(replacement_names.replacement_files())
    with pytest.raises(PolicyError, match=rf"known are {known}, .*\bmru\b"):
        Tiered(replace="never")


def test_replacement_that_is_defined_here_decides_what_leaves() -> None:
    size = sum(array.nbytes for array in rows(TOKENS, 0, BLOCK).values())
    with opened(None, ram=3 * size, replace="mru") as store:
        talks = [[n] * BLOCK for n in range(4)]
        for talk in talks:
            put(store, talk)
        assert [fetch(store, talk).tokens for talk in talks] == [BLOCK, BLOCK, 0, BLOCK]


def test_every_file_of_a_replacement_defines_the_policy_of_its_name() -> None:
    known = replacements()
    for name in replacement_names.replacement_files():
        assert known[name].__module__ == f"kvlab.store.replacement.{name}"
