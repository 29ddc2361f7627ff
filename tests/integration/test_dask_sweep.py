"""A sweep through a real Dask scheduler, with its worker in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvlab.errors import RunError
from kvlab.experiments.dask_cluster import SchedulerChoice, connected
from kvlab.experiments.dask_sweep import finish_on
from kvlab.experiments.result_store import RowStore
from tests import dask_cells as cheap_cells

distributed = pytest.importorskip("distributed", reason="the extra `dask` is not installed")


@pytest.fixture
def client() -> Iterator[Any]:
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp://", host="127.0.0.1"
    )
    with cluster, distributed.Client(cluster) as client:
        yield client


def test_results_come_back_to_the_row_store_in_any_order(client: Any, tmp_path: Path) -> None:
    store, wanted = RowStore(tmp_path), cheap_cells.cells(9)
    store.write(cheap_cells.result(wanted[4]))
    finish_on(client, wanted, store, "nine", progress=False, task=cheap_cells.cheap)
    assert store.results(wanted).rows == [row for cell in wanted for row in cheap_cells.result(cell).rows]
    assert {path.suffix for path in (tmp_path / ".work").iterdir()} == {".lock"}


@pytest.mark.parametrize(
    ("task", "says"),
    [(cheap_cells.refusing, r"^cell \d is impossible"), (cheap_cells.broken, "ZeroDivisionError: a fault")],
)
def test_an_error_of_a_cell_ends_the_sweep(client: Any, tmp_path: Path, task: Any, says: str) -> None:
    with pytest.raises(RunError, match=says):
        finish_on(client, cheap_cells.cells(3), RowStore(tmp_path), "three", progress=False, task=task)


def test_a_scheduler_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvlab.experiments.dask_cluster.CONNECT_TIMEOUT_S", 0.5)
    with (
        pytest.raises(RunError, match="no Dask scheduler answers at tcp://127.0.0.1:1 .*dask scheduler"),
        connected(SchedulerChoice.parse("tcp://127.0.0.1:1")),
    ):
        pass


def test_the_dashboard_s_link_is_shown_in_a_terminal(
    client: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish_on(client, cheap_cells.cells(1), RowStore(tmp_path), "one", task=cheap_cells.cheap)
    assert "Dask's dashboard: http" in "".join(capsys.readouterr())
