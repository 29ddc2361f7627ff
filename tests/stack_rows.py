"""Rows in the shape of `experiments/rows/stack.csv`, made up: no server and no decoder gave these numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from kvlab.results import SCHEMA

LAST, RESTART = 15, 8
TIERED, NO_CACHE = "tiered", "full"

Shape = Mapping[str, Any]
SHAPES: Mapping[str, Shape] = {
    # growth of TTFT, share found after a restart, places side by side, live bytes, bytes written, overflow
    "ollama": {"growth": 0.2, "found": 0.0, "places": 1, "shifts": 1},
    "ollama:variant=article": {"growth": 0.2, "found": 0.0, "places": 1, "shifts": 1},
    "lm-studio": {"growth": 0.3, "found": 0.0, "places": 4},
    "lm-studio:variant=article": {"growth": 0.2, "found": 0.0, "places": 4},
    "llama.cpp": {"growth": 0.2, "found": 0.0, "places": 4, "refused": 1},
    "llama.cpp:variant=article": {"growth": 0.2, "found": 0.0, "places": 4, "live": 600, "refused": 1},
    "mlx-lm": {"growth": 0.2, "found": 0.0, "places": 32},
    "mlx-lm:variant=article": {"growth": 0.2, "found": 0.0, "places": 1},
    "omlx": {"growth": 0.5, "found": 0.95, "places": 8, "written": 3e6},
    "omlx:variant=article": {"growth": 0.4, "found": 0.95, "places": 8, "written": 3e6, "ram": 2e6},
    "vmlx": {"growth": 0.4, "found": 0.97, "places": 1, "written": 2e6},
    "vmlx:variant=article": {"growth": 0.4, "found": 0.9, "places": 32, "live": 300, "written": 2e6, "late": 1},
    TIERED: {"growth": 0.1, "found": 0.99, "places": 32, "written": 4e6, "ram": 4e6, "live": 500, "right": 1},
    NO_CACHE: {"growth": 4.0, "found": 0.0, "places": 32, "right": 1},
}  # fmt: skip


def stack_rows(shapes: Mapping[str, Shape] = SHAPES, repeats: int = 2) -> pl.DataFrame:
    """Return rows of all parts for these candidates; a repeat differs from the next by a percent."""
    made = [
        {**one, "model": "tiny", "seed": 0, "repeat": repeat}
        for name, shape in shapes.items()
        for repeat in range(repeats)
        for one in _rows(name, shape, 1 + repeat / 100)
    ]
    return pl.DataFrame(made, schema=dict(SCHEMA))


def changed(name: str, **values: Any) -> dict[str, Shape]:
    """Return the shapes with other values in one candidate's."""
    return {**SHAPES, name: {**SHAPES[name], **values}}


def without(*names: str) -> dict[str, Shape]:
    """Return the shapes but for these candidates."""
    return {name: shape for name, shape in SHAPES.items() if name not in names}


def _rows(name: str, shape: Shape, noise: float) -> Iterator[dict[str, Any]]:
    live, written = shape.get("live", 1000), shape.get("written", 0)
    for turn in range(1, LAST + 1):
        share = (turn - 1) / (LAST - 1)
        found = shape["found"] if turn == RESTART else 0.0 if turn == 1 or name == NO_CACHE else 0.98
        growth = 1 + (shape["growth"] - 1) * share
        values = {
            "ttft_ms": 100 * noise * (growth if turn != RESTART else 4 * (1.05 - found)),
            "prompt_tokens": 100 * turn,
            "cached_tokens": 100 * turn * found,
            "kv_bytes_live": live * 100 * turn,
            "kv_bytes_ram": shape.get("ram", 0),
            "kv_bytes_ssd": written,
            "bytes_written": 0 if shape.get("late") and turn < RESTART else written * turn / LAST,
            "accuracy": 1.0 if turn % 3 else 0.5,
        }
        phase = "restart" if turn == RESTART and name != NO_CACHE else "warm" if found else "cold"
        kind = "call" if turn % 2 else "answer"
        for metric, value in values.items():
            yield _row(name, "stack-turns", metric, value, turn=turn, phase=phase, n=1, kind=kind)
    for n in (1, 4, 8, 32):
        places = min(n, shape["places"])
        for agent in range(n):
            wait = 100 * noise * (1 + agent // places)
            yield _row(name, "stack-agents", "ttft_ms", wait, n=n, conversation=f"agent-{agent}", kind="call")
        yield _row(name, "stack-agents", "tokens_per_s", 20 * places**0.5 * noise, n=n, kind="together")
        yield _row(name, "stack-agents", "kv_bytes_live", live * 100 * places, n=n, kind="together")
    yield _row(name, "stack-memory", "kv_bytes_live", live * 1000, kind="running")
    yield _row(name, "stack-memory", "kv_bytes_ram", shape.get("ram", 0), kind="waiting")
    yield _row(name, "stack-memory", "hit_ratio", float(shape["found"] > 0), kind="waiting")
    text = f"{name}{',' if ':' in name else ':'}context=1024" if name.startswith(("ollama", "llama.cpp")) else name
    for question in range(4):
        beyond = {"turn": question, "kind": "beyond"}
        yield _row(text, "stack-overflow", "accuracy", 1.0, turn=question, kind="recall")
        yield _row(text, "stack-overflow", "accuracy", float(shape.get("right", question % 2)), **beyond)
        yield _row(text, "stack-overflow", "refused", float(shape.get("refused", 0)), **beyond)
        yield _row(text, "stack-overflow", "discarded_tokens", 100.0 * shape.get("shifts", 0), **beyond)


def _row(policy: str, workload: str, metric: str, value: float, **where: Any) -> dict[str, Any]:
    return {"policy": policy, "workload": workload, "metric": metric, "value": float(value), "unit": "x", **where}
