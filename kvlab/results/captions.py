"""The charts of a report with what they show in words: every number and every policy named is taken from the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from kvlab import charts
from kvlab.charts.pareto import pareto_points
from kvlab.counts import counted
from kvlab.results.answers import REFERENCE
from kvlab.results.forced_summary import split_forced, summarize_forced
from kvlab.results.standing import standing
from kvlab.results.summary import last_turn, medians, summarize
from kvlab.results.void import valid
from kvlab.results.wording import bytes_text, listed, ms_text, policy_name


@dataclass(frozen=True)
class ReportFigure:
    """A chart, one sentence on what it shows, and the reason; both as Markdown with nothing but `code` in it."""

    chart: Any
    see: str
    why: str


_QUALITY_TEXTS: Mapping[str, Callable[[float], str]] = {
    "accuracy": lambda share: f"{share:.0%} right",
    "equal_call": lambda share: f"{share:.0%} of calls equal",
    "kl": lambda nats: f"KL {nats:.3g}",
}


def _quality_metric(rows: pl.DataFrame) -> str:
    """Return what tells how good a policy is in these rows: answers where they are graded, else what is nearest."""
    if standing(rows) is not None:
        return "accuracy"
    return "equal_call" if "equal_call" in set(rows["metric"]) else "kl"


def pareto_figure(rows: pl.DataFrame, labels: Mapping[str, str]) -> ReportFigure | None:
    """Return quality against bytes; None where there are fewer than two policies with both."""
    metric = _quality_metric(rows)
    known = rows.filter(pl.col("metric") == metric)["policy"].n_unique()
    if known < 2 or rows.filter((pl.col("metric") == "kv_bytes_live") & pl.col("turn").is_not_null()).is_empty():
        return None
    points = pareto_points(rows, metric)
    line = sorted((point for point in points if point.on_line), key=lambda point: point.megabytes)
    quality = _QUALITY_TEXTS[metric]
    said = [f"{policy_name(p.policy, labels)} ({quality(p.quality)}, {bytes_text(1e6 * p.megabytes)})" for p in line]
    beaten = len(points) - len(line)
    see = f"On the line: {listed(said)}." if line else ""
    of_all = f"{beaten} of {counted(len(points), 'policy', 'policies')} {'is' if beaten == 1 else 'are'}"
    why = f"{of_all} beaten in both by one on the line." if beaten else ""
    return ReportFigure(charts.quality_with_pareto(rows, metric, among=list(labels)), see, why)


def figures_of_rows(rows: pl.DataFrame, labels: Mapping[str, str]) -> Iterator[ReportFigure]:
    """Yield the charts of turns, of answers and of forced answers that these rows have data for."""
    forced, rows = split_forced(rows)
    if not forced.is_empty():
        yield from _forced(forced, labels)
    if rows.is_empty():
        return
    summary = summarize(rows)
    facts = {r["policy"]: r for r in summary.iter_rows(named=True)}
    last = last_turn(rows)
    if last is not None and last > 1:
        if not rows.filter((pl.col("metric") == "ttft_ms") & (pl.col("turn") > 1)).is_empty():
            yield ReportFigure(charts.ttft_by_turn(rows, among=list(labels)), *_ttft(rows, facts, last, labels))
        if not rows.filter((pl.col("metric") == "cached_tokens") & (pl.col("turn") > 1)).is_empty():
            yield ReportFigure(charts.cached_tokens_by_turn(rows, among=list(labels)), *_cached(facts, last, labels))
    graded = standing(rows)
    if graded is not None:
        why = "Beside every bar: right answers of those asked."
        once = valid(rows).filter(pl.col("repeat").is_null() | (pl.col("repeat") == pl.col("repeat").min()))
        yield ReportFigure(
            charts.accuracy_by_policy(once, among=list(labels)), _extremes(graded.right, graded.questions, labels), why
        )


def _forced(rows: pl.DataFrame, labels: Mapping[str, str]) -> Iterator[ReportFigure]:
    """Yield the charts of a teacher-forced workload."""
    if "tool_flip" in set(rows["metric"]):
        summary = summarize_forced(rows)
        flips = summary.filter((pl.col("metric") == "tool_flip") & (pl.col("policy") != REFERENCE)).sort("value")
        see = "A flip is a token where the most probable one is not that of `full`."
        if not flips.is_empty():
            most = flips.row(-1, named=True)
            what = f"{most['measure'].removesuffix(' flips')} tokens"
            see = f"Most flips: {policy_name(most['policy'], labels)} in {most['value']:.1%} of {what}."
        why = "The same answers were led through every policy, so that one error does not cause the next."
        yield ReportFigure(charts.tools_by_policy(summary, among=list(labels)), see, why)
    placed = rows.filter((pl.col("metric") == "kl") & pl.col("position").is_not_null())
    if not placed.is_empty():
        others = placed.filter(pl.col("policy") != REFERENCE).sort("value")
        see = "Every policy is `full` itself."
        if not others.is_empty():
            most = others.row(-1, named=True)
            first = most["position"]  # of as many tokens as its number
            where = "token 1" if first == 1 else f"tokens {first} to {2 * first - 1}"
            name = policy_name(most["policy"], labels)
            see = f"Farthest: {name}, {most['value']:.3g} nats at {where} behind the context."
        why = "Where a line climbs, the text refers to what a policy lost; a level line is as far off at every place."
        yield ReportFigure(charts.kl_by_position(rows, among=list(labels)), see, why)


def live_figure(
    tokens: pl.DataFrame, finished: pl.DataFrame, submitted: pl.DataFrame, labels: Mapping[str, str]
) -> ReportFigure:
    """Return live KV over time, from the events of all policies."""
    peaks = tokens.group_by("policy", maintain_order=True).agg(pl.col("kv_bytes").max())
    held = {policy: float(most) for policy, most in peaks.iter_rows() if most}
    see = "Height is memory, width is time for the whole workload."
    if len(held) > 1:
        least, most = min(held, key=held.__getitem__), max(held, key=held.__getitem__)
        if held[most] > 1.02 * held[least]:
            see = (
                f"A request holds at most {bytes_text(held[most])} under {policy_name(most, labels)}, "
                f"{bytes_text(held[least])} under {policy_name(least, labels)}."
            )
    chart = charts.kv_bytes_over_time(tokens, finished, submitted, among=list(labels))
    return ReportFigure(chart, see, "Every tooth is a request; the width is the time for the whole workload.")


def _ttft(
    rows: pl.DataFrame, facts: Mapping[str, Mapping[str, Any]], last: int, labels: Mapping[str, str]
) -> tuple[str, str]:
    at_end = {p: f["ttft_last_ms"] for p, f in facts.items() if f["ttft_last_ms"] is not None}
    see = f"The time to first token, turn by turn, to turn {last}."
    if at_end:
        fast, slow = min(at_end, key=at_end.__getitem__), max(at_end, key=at_end.__getitem__)
        see = f"At turn {last}, the first token of {policy_name(fast, labels)} takes {ms_text(at_end[fast])}"
        see += f", that of {policy_name(slow, labels)} {ms_text(at_end[slow])}." if fast != slow else "."
    without = [p for p, f in facts.items() if f["cached_tokens"] == 0 and p in at_end]
    why = ""
    if without:
        verb = "computes" if len(without) == 1 else "compute"
        why = f"{listed([policy_name(p, labels) for p in without])} {verb} the whole prompt again at every turn."
    restarts = medians(rows.filter((pl.col("metric") == "ttft_ms") & (pl.col("phase") == "restart")), "turn")
    found = restarts.select("policy", "turn", "value").iter_rows()
    said = [f"{policy_name(p, labels)} at turn {turn} ({ms_text(took)})" for p, turn, took in found]
    if said:
        why += f" Diamonds are the first turns of a new process: {listed(said)}."
    return see, why.strip()


def _cached(facts: Mapping[str, Mapping[str, Any]], last: int, labels: Mapping[str, str]) -> tuple[str, str]:
    known = {p: f for p, f in facts.items() if f["cached_tokens"] is not None and f["prompt_tokens"]}
    most = max(known, key=lambda p: known[p]["cached_tokens"] / known[p]["prompt_tokens"], default=None)
    if most is None or not known[most]["cached_tokens"]:
        return "No policy takes tokens from an earlier request.", "Nothing was kept between requests."
    f = known[most]
    see = (
        f"At turn {last}, {policy_name(most, labels)} does not compute {f['cached_tokens']:,.0f} of "
        f"{counted(round(f['prompt_tokens']), 'prompt token')} again."
    )
    return see, "The distance to the dashed line is what is computed: at best, what the turn added."


def _extremes(right: Mapping[str, float], questions: int, labels: Mapping[str, str]) -> str:
    top, low = max(right.values()), min(right.values())
    if top == low:
        return f"Every policy has {top:g} of {questions} answers right."
    best, worst = ([policy_name(p, labels) for p in right if right[p] == value] for value in (top, low))
    return f"Most right: {listed(best)} with {top:g} of {questions}; fewest: {listed(worst)} with {low:g}."
