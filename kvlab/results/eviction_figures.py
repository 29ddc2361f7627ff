"""What was evicted, for a report: one prompt under every policy that evicts, then a map for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from kvlab import charts
from kvlab.counts import counted
from kvlab.recording.recorder import Recorder
from kvlab.results.captions import ReportFigure
from kvlab.results.spans import Spans, spans_of
from kvlab.results.wording import policy_name

MAX_STRIPS = 24


@dataclass(frozen=True)
class EvictedRequest:
    """One request of one policy: its number, its tokens, decode steps, and what was dropped of it."""

    request: int
    prompt_tokens: int
    steps: int
    evicted: pl.DataFrame
    spans: Spans | None

    @property
    def length(self) -> int:
        return self.prompt_tokens + self.steps

    def kept(self, span: tuple[int, int]) -> float:
        """Return the share of a span's rows, over all layers and heads, that were never dropped."""
        heads = self.evicted.select("layer", "head").n_unique()
        inside = self.evicted.filter(pl.col("position").is_between(span[0], span[1] - 1))
        gone = inside.select("layer", "head", "position").n_unique()
        return 1 - gone / (heads * (span[1] - span[0]))


def evicted_requests(recorders: Mapping[str, Recorder]) -> dict[str, EvictedRequest]:
    """Return, for each policy that evicts, the same request: the longest prompt of those that lost tokens."""
    tables: dict[str, tuple[pl.DataFrame, pl.DataFrame, Recorder]] = {}
    for policy, recorder in recorders.items():
        evicted = recorder.frame("evicted")
        if not evicted.is_empty():
            sizes = recorder.frame("submitted").join(recorder.frame("finished"), on="request", how="left")
            tables[policy] = (sizes.join(evicted, on="request", how="semi"), evicted, recorder)
    found: dict[str, EvictedRequest] = {}
    wanted: tuple[Any, Any] | None = None
    for policy, (sizes, evicted, recorder) in tables.items():
        requests = sizes.sort("prompt_tokens", maintain_order=True).to_dicts()
        same = [one for one in requests if (one.get("conversation"), one.get("turn")) == wanted]
        one = (same or requests)[-1]
        conversation, turn = wanted = (one.get("conversation"), one.get("turn"))
        spans = None if conversation is None or turn is None else spans_of(recorder.provenance, conversation, turn)
        steps = one["tokens"] or 0  # not known of a request that did not finish
        lost = evicted.filter(pl.col("request") == one["request"])
        found[policy] = EvictedRequest(one["request"], one["prompt_tokens"], steps, lost, spans)
    return found


def strips_figure(found: Mapping[str, EvictedRequest], labels: Mapping[str, str]) -> ReportFigure:
    """Return one prompt under all policies that evict, with the question and the needle marked where known."""
    shown = dict(list(found.items())[:MAX_STRIPS])
    first = next(iter(shown.values()))
    spans = first.spans
    needles = spans.needles if spans else ()
    chart = charts.eviction_strips(
        {policy: one.evicted for policy, one in shown.items()},
        max(one.length for one in shown.values()),
        question=spans.question if spans else None,
        needles=needles,
        among=list(labels),
    )
    see = f"One prompt of {counted(first.prompt_tokens, 'token')} under each policy that evicts."
    why = "No later token of a layer and head attends to what that head dropped."
    if needles:
        kept = {p: sum(one.kept(span) for span in needles) / len(needles) for p, one in shown.items()}
        most, least = max(kept, key=kept.__getitem__), min(kept, key=kept.__getitem__)
        why += f" At the end, the needle, which the answer needs, is still in {kept[most]:.0%} of the layers and heads"
        why += f" under {policy_name(most, labels)}"
        why += f", in {kept[least]:.0%} under {policy_name(least, labels)}." if kept[least] < kept[most] else "."
    return ReportFigure(chart, see, why)


def map_figure(policy: str, one: EvictedRequest, labels: Mapping[str, str]) -> ReportFigure:
    """Return the map of one policy, layer by layer and head by head."""
    chart = charts.eviction_map(one.evicted, request=one.request, length=one.length, steps=one.steps)
    see = f"What {policy_name(policy, labels)} dropped, and when."
    return ReportFigure(chart, see, "No later token of that layer and head attends to a coloured position.")
