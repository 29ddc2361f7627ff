"""Metrics of a server: Prometheus counters, the latest requests, and the state that the dashboard shows."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from kvlab.decoder import Completion
from kvlab.recording import events
from kvlab.server.access import Client
from kvlab.server.computed_tokens import reason_for_computing
from kvlab.server.limited_gauges import LimitedGauges
from kvlab.server.tier_history import TierHistory
from kvlab.tiers import LIVE, RAM, SSD, tiers_at_rest

TTFT_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TPOT_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
MAX_LATEST_REQUESTS = 200


class _Counters:
    """The counters of all clients, or of one."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        options: dict[str, Any] = {"registry": self.registry, "namespace": "kvlab"}
        self.requests = Counter("requests", "Answered HTTP requests.", ["path", "status"], **options)
        self.prompt = Counter("prompt_tokens", "Prompt tokens received.", **options)
        self.cached = Counter("cached_tokens", "Prompt tokens not recomputed, by tier.", ["tier"], **options)
        self.generated = Counter("generated_tokens", "Tokens generated.", **options)
        self.misses = Counter("misses", "Requests that the store knew in part or not, by why.", ["reason"], **options)
        self.computed = Counter("computed_tokens", "Prompt tokens computed, by why.", ["reason"], **options)
        self.finished = Counter("finished", "Generations by how they ended.", ["reason"], **options)
        self.ttft = Histogram("ttft_seconds", "Time to first token.", buckets=TTFT_BUCKETS_S, **options)
        self.tpot = Histogram("tpot_seconds", "Mean time per later token.", buckets=TPOT_BUCKETS_S, **options)
        self.running = Gauge("running", "Generations running or waiting in the decoder.", **options)

    def completed(self, completion: Completion, tokens: int, reason: str) -> None:
        self.prompt.inc(completion.prompt_tokens)
        self.generated.inc(tokens)
        for tier, count in completion.cached_by_tier.items():
            self.cached.labels(tier).inc(count)
        if completion.ttft_ms:  # else it was cancelled before its prompt was computed
            computed = completion.prompt_tokens - completion.cached_tokens
            self.computed.labels(reason_for_computing(completion)).inc(computed)
        if completion.miss:
            self.misses.labels(completion.miss.partition("=")[0]).inc()
        self.finished.labels(reason).inc()
        if completion.ttft_ms:
            self.ttft.observe(completion.ttft_ms / 1e3)
        if completion.itl_ms:
            self.tpot.observe(completion.tpot_ms / 1e3)

    def totals(self) -> dict[str, Any]:
        """Return all metrics by name; one with labels as a mapping from label to value."""
        totals: dict[str, Any] = {}
        for family in self.registry.collect():
            for sample in family.samples:
                name = sample.name.removeprefix("kvlab_")
                if name.endswith(("_created", "_bucket")):
                    continue
                if sample.labels:
                    totals.setdefault(name, {})[" ".join(sample.labels.values())] = sample.value
                else:
                    totals[name] = sample.value
        return totals


class ServerMetrics:
    """Counts requests, tokens and times; the dashboard and ``/metrics`` read the same numbers. Thread-safe.

    Every client's numbers are kept apart as well. A :class:`~kvlab.server.access.Client` that does not see all is shown
    its own requests and counters: no other client's, and no sizes of stores and memories that all clients share.
    """

    def __init__(self, models: Mapping[str, Any]) -> None:
        self._models = models
        self._lock = threading.Lock()
        self._all = _Counters()
        self._of_tenant: dict[str, _Counters] = {}
        self._latest: dict[str, deque[dict[str, Any]]] = {}
        self._live: dict[str, tuple[str, dict[str, Any]]] = {}
        self.began = time.time()
        self.history = TierHistory(models)
        self.evicted_rows = Counter(
            "evicted_rows", "Rows that retention dropped from live KV.", registry=self._all.registry, namespace="kvlab"
        )
        self.limited = LimitedGauges()
        self._all.registry.register(self.limited)
        self._all.registry.register(_StoreCollector(models))

    def emit(self, event: events.Event) -> None:
        """Count the rows of an eviction; called by the decoder. Other numbers come with the completion."""
        if isinstance(event, events.Evicted):
            self.evicted_rows.inc(int((event.positions >= 0).sum()))

    def responded(self, tenant: str, path: str, status: int) -> None:
        """Count one HTTP response."""
        for counters in self._counters(tenant):
            counters.requests.labels(path, str(status)).inc()

    def running(self, tenant: str, change: int) -> None:
        """Count generations that begin, or end where ``change`` is negative."""
        for counters in self._counters(tenant):
            counters.running.inc(change)

    def completed(self, tenant: str, completion: Completion, tokens: int, reason: str) -> None:
        """Count one generation."""
        for counters in self._counters(tenant):
            counters.completed(completion, tokens, reason)

    def began_request(self, request: str, tenant: str, facts: Mapping[str, Any], tokens: Callable[[], int]) -> None:
        """Note that a request runs; ``tokens`` counts those it has generated so far."""
        with self._lock:
            self._live[request] = (tenant, {"id": request, "began": time.time(), "tokens": tokens, **facts})

    def ended_request(self, request: str, facts: Mapping[str, Any]) -> None:
        """Move a request from the running to the latest ones."""
        with self._lock:
            tenant, begun = self._live.pop(request, ("", None))
            if begun is None:
                return
            latest = self._latest.setdefault(tenant, deque(maxlen=MAX_LATEST_REQUESTS))
            latest.append({**begun, **facts, "seconds": round(time.time() - begun["began"], 4)})

    def prometheus_text(self, client: Client) -> bytes:
        """Return the metrics that a client sees in Prometheus' text format."""
        return generate_latest(self._shown(client).registry)

    def state(self, client: Client) -> dict[str, Any]:
        """Return the state that the dashboard shows to a client."""
        with self._lock:
            running = [row for tenant, row in self._live.values() if client.sees_all or tenant == client.tenant]
            live = [{**row, "tokens": row["tokens"]()} for row in running]
            ended = [
                row
                for tenant, rows in self._latest.items()
                for row in rows
                if client.sees_all or tenant == client.tenant
            ]
        latest = sorted(ended, key=lambda row: row["began"] + row["seconds"])[-MAX_LATEST_REQUESTS:]
        models = [
            {"name": name, "policy": str(model.policy), "context": model.context, "bytes": model.nbytes}
            for name, model in list(self._models.items())
        ]
        now = time.time()
        return {
            "uptime": round(now - self.began, 1),
            "now": now,
            "models": models,
            "tiers": [dataclasses.asdict(tier) for tier in (LIVE, *tiers_at_rest(self._held()))],
            "sees_all": client.sees_all,
            "history": self.history.columns() if client.sees_all else {},
            "live": live,
            "latest": latest[::-1],
            "totals": self._shown(client).totals(),
        }

    def _held(self) -> set[str]:
        """Return the names of the tiers at rest that any model's store holds."""
        return {name for model in list(self._models.values()) for name in model.decoder.tiers_bytes()}

    def _counters(self, tenant: str) -> tuple[_Counters, ...]:
        return (self._all, self._own(tenant)) if tenant else (self._all,)

    def _shown(self, client: Client) -> _Counters:
        return self._all if client.sees_all else self._own(client.tenant)

    def _own(self, tenant: str) -> _Counters:
        with self._lock:  # tenants stand for keys that the server knows: there are few
            return self._of_tenant.setdefault(tenant, _Counters())


class _StoreCollector:
    """Reads the numbers of decoders and stores when Prometheus or the dashboard collects."""

    def __init__(self, models: Mapping[str, Any]) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        live = GaugeMetricFamily("kvlab_live_bytes", "Bytes of live KV.", labels=["model"])
        warm = GaugeMetricFamily(
            "kvlab_warm_bytes", "The part of them that ended sequences hold for their next turn.", labels=["model"]
        )
        rest = GaugeMetricFamily("kvlab_store_bytes", "Bytes of KV at rest.", labels=["model", "tier"])
        most_rest = GaugeMetricFamily(
            "kvlab_store_bytes_limit", "The limit of kvlab_store_bytes in RAM.", labels=["model", "tier"]
        )
        blocks = GaugeMetricFamily("kvlab_store_blocks", "Blocks at rest.", labels=["model", "tier"])
        evictions = CounterMetricFamily("kvlab_store_evictions", "Blocks that left the store.", labels=["model"])
        spills = CounterMetricFamily(
            "kvlab_store_spills", "Blocks written from RAM to a slower tier.", labels=["model"]
        )
        written = CounterMetricFamily(
            "kvlab_store_bytes_written", "Bytes written to the tiers below RAM.", labels=["model"]
        )
        answers = GaugeMetricFamily(
            "kvlab_answer_bytes", "Bytes of the tokens of answers that are remembered.", labels=["model", "tier"]
        )
        most = GaugeMetricFamily(
            "kvlab_answer_bytes_limit", "The limit of kvlab_answer_bytes.", labels=["model", "tier"]
        )
        grammars = GaugeMetricFamily("kvlab_grammar_bytes", "Bytes of compiled grammars, estimated.", labels=["model"])
        most_grammars = GaugeMetricFamily(
            "kvlab_grammar_bytes_limit", "The limit of kvlab_grammar_bytes.", labels=["model"]
        )
        for name, model in list(self._models.items()):
            most.add_metric([name, RAM.name], model.prompts.answers.budget)
            most.add_metric([name, SSD.name], model.prompts.answers.file_budget)
            answers.add_metric([name, RAM.name], model.prompts.answers.nbytes)
            answers.add_metric([name, SSD.name], model.prompts.answers.file_bytes)
            live.add_metric([name], model.decoder.live_bytes())
            warm.add_metric([name], model.decoder.retained_bytes())
            grammars.add_metric([name], model.grammars.nbytes)
            most_grammars.add_metric([name], model.grammars.max_bytes)
            held = model.decoder.tiers_bytes()
            for tier in tiers_at_rest(held) if held else ():
                rest.add_metric([name, tier.name], held.get(tier.name, 0))
            if model.decoder.store is None:
                continue
            stats = model.decoder.store.stats()
            most_rest.add_metric([name, RAM.name], model.decoder.store.ram_budget)
            for tier in tiers_at_rest(held):
                blocks.add_metric([name, tier.name], stats.get(f"{tier.name}_blocks", 0))
            evictions.add_metric([name], _count(stats.get("evictions", 0)))
            spills.add_metric([name], _count(stats.get("spills", 0)))
            written.add_metric([name], stats.get("bytes_written", 0))
        yield from (answers, most, live, warm, grammars, most_grammars)
        yield from (rest, most_rest, blocks, evictions, spills, written)


def _count(value: Any) -> float:
    return float(sum(value.values())) if isinstance(value, Mapping) else float(value)
