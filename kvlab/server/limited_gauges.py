"""Gauges of what the server holds, each beside its limit."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class LimitedGauges(Collector):
    """Reads sizes and limits when Prometheus or the dashboard collects."""

    def __init__(self) -> None:
        self._gauges: dict[str, tuple[str, Callable[[], tuple[int, int]]]] = {}

    def add(self, name: str, what: str, read: Callable[[], tuple[int, int]]) -> None:
        """Show ``kvlab_<name>`` and ``kvlab_<name>_limit``; ``read`` returns both, ``what`` describes the first."""
        self._gauges[name] = (what, read)

    def collect(self) -> Iterable[Metric]:
        """Return two gauges for each name."""
        for name, (what, read) in self._gauges.items():
            held, limit = read()
            yield GaugeMetricFamily(f"kvlab_{name}", what, value=held)
            yield GaugeMetricFamily(f"kvlab_{name}_limit", f"The limit of kvlab_{name}.", value=limit)
