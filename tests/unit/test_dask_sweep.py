"""Where a distributed sweep runs, and what it does with the futures that end."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvlab.cli.main import main
from kvlab.errors import RunError
from kvlab.experiments.cell import Cell
from kvlab.experiments.dask_cluster import SchedulerChoice, check_threads, worker_environment
from kvlab.experiments.dask_sweep import GROUPS_PER_WORKER, MAX_DEATHS, Distribution, show_link
from kvlab.experiments.result_store import RowStore
from tests.dask_cells import cells, result

distributed = pytest.importorskip("distributed", reason="the extra `dask` is not installed")


class FakeClient:
    """Answers every task at once; the workers of the first ``deaths`` tasks die."""

    status = "running"

    def __init__(self, deaths: int = 0, workers: int = 2) -> None:
        self.deaths, self.workers, self.submitted = deaths, workers, list[list[Cell]]()

    def nthreads(self) -> dict[str, int]:
        return {f"tcp://w{i}": 1 for i in range(self.workers)}

    def submit(self, task: Any, group: list[Cell], **options: Any) -> Any:
        assert options == {"pure": False, "retries": 0}
        self.submitted.append(group)
        if len(self.submitted) <= self.deaths:
            error = distributed.KilledWorker(task="t", last_worker=None, allowed_failures=0)
            return FakeFuture("error", error=error)
        return FakeFuture("finished", [result(cell) for cell in group])


class FakeFuture:
    def __init__(self, status: str, made: Any = None, error: Exception | None = None) -> None:
        self.status, self.made, self.error = status, made, error

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.made

    def cancel(self) -> None: ...


class Immediate(Distribution):
    """A distribution over futures that have ended already."""

    most = 0

    def _ended(self) -> list[Any]:
        self.most = max(self.most, len(self.running))
        return list(self.running)[:1]


def distribution(store: RowStore, client: FakeClient) -> Immediate:
    bar = SimpleNamespace(update=lambda count=1: None, disable=True)
    return Immediate(client, store, bar)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("local:2", SchedulerChoice(workers=2)),
        (" local:16 ", SchedulerChoice(workers=16)),
        ("tcp://host:8786", SchedulerChoice(address="tcp://host:8786")),
        ("tls://10.0.0.1:8786", SchedulerChoice(address="tls://10.0.0.1:8786")),
    ],
)
def test_a_scheduler_is_local_workers_or_an_address(text: str, choice: SchedulerChoice) -> None:
    assert SchedulerChoice.parse(text) == choice


@pytest.mark.parametrize("text", ["", "local", "local:", "local:0", "local:-1", "local:two", "host:8786", "tcp://"])
def test_a_wrong_scheduler_is_one_line_that_names_both_forms(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "some.toml"
    file.write_text('policies = ["full"]\n')
    assert main(["run", str(file), "--out", str(tmp_path / "run"), "--scheduler", text]) == 2
    shown = capsys.readouterr()
    assert "local:N" in shown.err and "tcp://host:8786" in shown.err and shown.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_workers_of_several_threads_are_refused() -> None:
    check_threads({"tcp://a": 1, "tcp://b": 1})
    with pytest.raises(RunError, match="tcp://b has 4 threads.*--nthreads 1"):
        check_threads({"tcp://a": 1, "tcp://b": 4})


def test_workers_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert worker_environment(2, cores=8)["OPENBLAS_NUM_THREADS"] == "4"
    assert worker_environment(8, cores=2)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    asked = worker_environment(2, cores=8)
    assert asked["OMP_NUM_THREADS"] == "3" and asked["OPENBLAS_NUM_THREADS"] == ""


def test_few_cells_are_under_way_and_each_is_done_once(tmp_path: Path) -> None:
    store, wanted, client = RowStore(tmp_path), cells(20), FakeClient()
    made = distribution(store, client)
    made.run([[cell] for cell in wanted])
    assert made.most == 2 * GROUPS_PER_WORKER
    assert sorted(cell.id for group in client.submitted for cell in group) == sorted(cell.id for cell in wanted)
    assert all(store.read(cell) is not None for cell in wanted)


def test_a_cell_whose_worker_died_is_run_again(tmp_path: Path) -> None:
    store, wanted, client = RowStore(tmp_path), cells(3), FakeClient(deaths=4)
    distribution(store, client).run([[cell] for cell in wanted])
    assert len(client.submitted) == 3 + 4
    assert [store.read(cell) for cell in wanted] == [result(cell) for cell in wanted]


def test_a_cell_that_kills_every_worker_ends_the_sweep_with_a_reason(tmp_path: Path) -> None:
    store, client = RowStore(tmp_path), FakeClient(deaths=1000)
    with pytest.raises(RunError, match=f"paged: {MAX_DEATHS} workers died with it"):
        distribution(store, client).run([cells(1)])
    assert len(client.submitted) == MAX_DEATHS
    with store.claim(cells(1)[0]) as work:
        assert work is not None, "the claim was left behind"


def test_what_another_process_finished_or_runs_is_left_to_it(tmp_path: Path) -> None:
    store, (first, second, third), client = RowStore(tmp_path), cells(3), FakeClient()
    store.write(result(first))
    with contextlib.ExitStack() as other:
        other.enter_context(store.claim(second))
        made = distribution(store, client)
        ended = made._ended

        def as_the_other_ends() -> list[Any]:
            store.write(result(second))
            other.close()
            return ended()

        made._ended = as_the_other_ends  # type: ignore[method-assign]
        made.run([[first], [second], [third]])
    assert client.submitted == [[third]]


def test_a_lost_scheduler_is_told(tmp_path: Path) -> None:
    client = FakeClient()
    client.status = "closed"
    made = Distribution(client, RowStore(tmp_path), SimpleNamespace(update=lambda count=1: None, disable=True))  # type: ignore[arg-type]
    with pytest.raises(RunError, match="scheduler is gone"):
        made._ended()


def test_the_dashboard_is_a_link_in_a_notebook_and_a_line_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(has_trait=lambda name: name == "kernel"))
    show_link("http://127.0.0.1:1/status")
    assert '<a href="http://127.0.0.1:1/status"' in shown[0].data
    monkeypatch.setattr("IPython.get_ipython", lambda: None)
    show_link("http://127.0.0.1:1/status")
    assert len(shown) == 1 and "http://127.0.0.1:1/status" in "".join(capsys.readouterr())
