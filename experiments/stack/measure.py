"""Which of the six server designs: all systems beside `tiered` and `full`, with the same model, prompts and kernels.

    python experiments/stack/measure.py [--model NAME] [--out FOLDER] [--parts turns agents memory overflow] [--json]

The rows of a part have its name as their workload:

- `stack-turns`: one agent of 15 turns, once for each seed, with a new process after half of them.
- `stack-agents`: 1, 4, 8 and 32 agents at once behind one system prompt, two turns each, three times. Rows of kind
  `together`: tokens a second, the most live KV, and the most KV at rest in RAM.
- `stack-memory`: what one more agent costs while it runs and while it waits; see memory.py.
- `stack-overflow`: facts from the beginning, asked for within a context of 1,024 tokens and (kind `beyond`) where the
  prompt no longer fits it. Every system that has a setting for its context gets this one; the others grow.

A run that was stopped continues in FOLDER, behind the last cell that it finished. Candidates take turns, so that a
drift over time affects all alike.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import kvlab  # noqa: F401 - before MLX, for its BLAS

# isort: split
import memory
import overflow

from kvlab.errors import KvlabError, RunError
from kvlab.experiments.config import Experiment
from kvlab.experiments.sweep import sweep
from kvlab.models import load
from kvlab.results import Results, Row, row
from kvlab.results.rows import TOGETHER
from kvlab.systems import System, all_systems, parse_candidates

POLICIES = ("full", "tiered")
PARTS = ("turns", "agents", "memory", "overflow")
TURNS, TURN_SEEDS = 15, (0, 1, 2)
AGENTS, AGENT_TURNS, AGENT_REPEATS = (1, 4, 8, 32), 2, 3
CONTEXT_TOKENS, OVERFLOWING = 1024, 4
"""The context of `stack-overflow`, and its conversations."""
MAX_SLOTS = 64
"""Slots that may divide a context at most."""
BEYOND = "beyond"


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured; the defaults are those of the saved rows."""

    systems: tuple[str, ...] = dataclasses.field(default_factory=lambda: tuple(str(one) for one in all_systems()))
    turns: int = TURNS
    seeds: tuple[int, ...] = TURN_SEEDS
    agents: tuple[int, ...] = AGENTS
    repeats: int = AGENT_REPEATS
    waiting: int = memory.WAITING
    overflowing: int = OVERFLOWING


def with_context(system: str, tokens: int) -> str:
    """Return the system with a context of so many tokens for each sequence; as it is where it has no such setting.

    Raises RunError where no value of the setting gives a sequence that many.
    """
    made = System.parse(system)
    if "context" not in {part.name for part in dataclasses.fields(made)}:
        return system
    for slots in range(1, MAX_SLOTS + 1):
        limited = dataclasses.replace(made, context=tokens * slots)  # type: ignore[call-arg]
        if limited.config.context == tokens:
            return str(limited)
    raise RunError(f"{system} has no context of {tokens} tokens a sequence; write a multiple of 256")


def experiments(model: str | None, size: Size) -> dict[str, Experiment]:
    """Return the parts that are experiments, by their names."""
    limited = tuple(with_context(system, CONTEXT_TOKENS) for system in size.systems)
    return {
        "turns": Experiment(
            "stack-turns", POLICIES, size.systems, model=model, turns=size.turns, seeds=size.seeds, restart=True
        ),
        "agents": Experiment(
            "stack-agents",
            POLICIES,
            size.systems,
            model=model,
            turns=AGENT_TURNS,
            repeats=size.repeats,
            exact=False,
            grid=(("concurrency", size.agents),),
        ),
        "overflow": Experiment(
            "stack-overflow",
            POLICIES,
            limited,
            workload=overflow.Overflow.name,
            model=model,
            n=size.overflowing,
            tokens=CONTEXT_TOKENS,
        ),
    }


def swept(experiment: Experiment, out: Path) -> Results:
    """Run what is missing of an experiment; return its rows without the texts, and with its name as the workload."""
    results = sweep(experiment, out / experiment.name)
    kept = (one for one in results.rows if one["metric"] != "text")
    return Results([{**one, "workload": experiment.name} for one in kept], results.provenance)


def at_rest(rows: Iterable[Row]) -> list[Row]:
    """Return, for each run of agents, the most bytes at rest in RAM at the end of any of its requests."""
    most: dict[tuple[Any, ...], Row] = {}
    for one in rows:
        if one["metric"] == "kv_bytes_ram":
            key = (one["policy"], one["n"], one["seed"], one["repeat"])
            if key not in most or one["value"] > most[key]["value"]:
                most[key] = one
    where = ("n", "model", "seed", "repeat")
    return [
        row(one["policy"], one["workload"], "kv_bytes_ram", one["value"], kind=TOGETHER, **{k: one[k] for k in where})
        for one in most.values()
    ]


def by_context(rows: Sequence[Row], context: int) -> list[Row]:
    """Return the rows of questions whose whole prompt does not fit the context with the kind `beyond`.

    The prompts are those of `full`, which none of them is cut for.
    """
    sizes = {
        (one["conversation"], one["turn"]): one["value"]
        for one in rows
        if one["policy"] == "full" and one["metric"] == "prompt_tokens"
    }
    return [
        {**one, "kind": BEYOND}
        if one.get("kind") == "recall" and sizes[one["conversation"], one["turn"]] >= context
        else one
        for one in rows
    ]


def measured_memory(model: str | None, size: Size, out: Path) -> Results:
    """Measure the memory of every candidate that has no rows yet, and return the rows of all."""
    loaded = load(model)
    agents = memory.Agents.of(loaded, size.waiting)
    folder = out / memory.WORKLOAD
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for candidate in parse_candidates(POLICIES, size.systems):
        settings = {key: str(value) for key, value in getattr(candidate, "settings", {}).items()}
        about = [str(candidate), settings, loaded.fingerprint, loaded.dtype, size.waiting]
        name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        file = folder / f"{name}.json"
        if not file.exists():
            say(f"memory: {candidate}")
            made = memory.memory_rows(candidate, loaded, agents)
            unfinished = file.with_suffix(".tmp")
            unfinished.write_text(json.dumps(made))
            unfinished.replace(file)
        rows += json.loads(file.read_text())
    return Results(rows, {})


def measure(model: str | None, out: Path, parts: Sequence[str] = PARTS, size: Size | None = None) -> Results:
    """Run the parts, and return all rows with the provenance of the first. Raises KvlabError."""
    size = size or Size()
    planned = experiments(model, size)
    made: dict[str, Callable[[], Results]] = {
        "memory": lambda: measured_memory(model, size, out),
        **{name: lambda one=one: swept(one, out) for name, one in planned.items()},  # type: ignore[misc]
    }
    rows: list[Row] = []
    facts: dict[str, Any] = {}
    for part in parts:
        results = made[part]()
        if part == "agents":
            results.rows += at_rest(results.rows)
        if part == "overflow":
            results.rows = by_context(results.rows, CONTEXT_TOKENS)
        rows += results.rows
        facts = facts or results.provenance
        say(f"{part}: {len(results.rows)} rows")
    return Results(rows, facts)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="what kvlab loads; without it, the bundled one")
    parser.add_argument("--out", type=Path, default=Path("runs") / "stack", help="where it continues")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--agents", nargs="+", type=int, default=AGENTS, help="how many at once, each a point")
    parser.add_argument("--seeds", type=int, default=len(TURN_SEEDS), help="conversations of 15 turns")
    parser.add_argument("--json", action="store_true", help="print one JSON document, and nothing else")
    asked = parser.parse_args()
    size = Size(agents=tuple(asked.agents), seeds=tuple(range(asked.seeds)))
    try:
        results = measure(asked.model, asked.out, asked.parts, size)
    except KvlabError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    if asked.json:
        print(json.dumps(results.document("stack"), default=str))


if __name__ == "__main__":
    main()
