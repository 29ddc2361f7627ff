"""Frames and rows made by hand, and what a chart's spec says of its parts."""

from __future__ import annotations

from typing import Any

import polars as pl

from kvlab.results import Results, row


def rows(*policies: str, conversations: int = 1, restart: str = "", kinds: tuple[str, ...] = ("call",)) -> pl.DataFrame:
    made = []
    for policy in policies:
        for turn in (1, 2, 3):
            for conversation in range(conversations):
                phase = "restart" if policy == restart and turn == 2 else "cold" if turn == 1 else "warm"
                where: dict[str, Any] = {"turn": turn, "phase": phase, "conversation": f"c{conversation}"}
                made.append(row(policy, "agent", "ttft_ms", 10 * turn + conversation, **where))
                made.append(row(policy, "agent", "cached_tokens", 5 * turn, **where))
                made.append(row(policy, "agent", "prompt_tokens", 6 * turn, **where))
                made.append(row(policy, "agent", "accuracy", turn % 2, kind=kinds[turn % len(kinds)], **where))
    return Results(made, {}).frame()


def evicted() -> pl.DataFrame:
    lost = [(1, 0, 0, p, 0) for p in (4, 5, 6, 9)] + [
        (1, 0, 0, 7, 1),
        (1, 1, 0, 4, 0),
        (1, 0, 1, 8, 2),
        (2, 0, 0, 3, 0),
    ]
    return pl.DataFrame(lost, schema=["request", "layer", "head", "position", "step"], orient="row")


def tokens() -> pl.DataFrame:
    events = [
        ("full", 0, 1.0, 100),
        ("full", 0, 1.1, 110),
        ("full", 1, 1.2, 50),
        ("paged", 0, 9.0, 70),
        ("paged", 0, 9.5, 80),
    ]
    return pl.DataFrame(events, schema=["policy", "request", "t", "kv_bytes"], orient="row")


def frame(*rows: dict[str, Any]) -> pl.DataFrame:
    return Results(list(rows), {}).frame()


def data_of(spec: dict[str, Any], part: dict[str, Any]) -> list[dict[str, Any]]:
    data = part["data"]
    return data["values"] if "values" in data else spec["datasets"][data["name"]]


def values(spec: dict[str, Any], part: dict[str, Any]) -> list[dict[str, Any]]:
    return data_of(spec, part if "data" in part else {**part, "data": spec["data"]})


def marks(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The unit charts of a layered spec, depth first."""
    if "layer" in spec:
        return [unit for part in spec["layer"] for unit in marks({"data": spec.get("data"), **part})]
    return [spec]
