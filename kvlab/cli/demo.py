"""`kvlab demo`: five policies, one agent, a restart in the middle, and a report."""

from __future__ import annotations

import time
from pathlib import Path

from kvlab.counts import counted
from kvlab.experiments.run import compare
from kvlab.models import ModelLike
from kvlab.results import Results, new_run_folder
from kvlab.results.summary import text_table

POLICIES = ("full", "rotating:window=128", "paged", "quantized:bits=8", "tiered")
LEAD = (
    "An agent with a long system prompt and tools works through {turns} turns; its user keeps coming back to what was "
    "found earlier. Every policy sees the same prompts. Half-way, the process of every policy but {full} ends and "
    "another one goes on; it finds what {tiered} has on SSD."
)
NEXT = (
    (
        "which tokens to keep",
        "kvlab compare --policies full,snapkv,knorm,random --workload retrieval --n 8",
    ),
    (
        "how few bits will do",
        "kvlab compare --policies full,quantized:bits=8,quantized:bits=4,quantized:bits=2 --workload agent",
    ),
    ("what else there is", "kvlab policies"),
)


def demo(
    out: Path | None = None, *, model: ModelLike = None, turns: int = 15, seed: int = 0, progress: bool = True
) -> Results:
    """Run the demo, print the table; write rows, record and `report.html` to `out` (else a new folder in `runs/`)."""
    from kvlab.results.report import write_run  # draws in Altair, which takes a moment to import

    started = time.perf_counter()
    folder = new_run_folder(out, "demo")
    results = compare(POLICIES, "agent", model, turns=turns, seed=seed, restart=True, folder=folder, progress=progress)
    results.provenance |= {"command": "kvlab demo"}
    report = write_run(
        results, folder, title="kvlab demo", lead=LEAD.format(turns=turns, full=POLICIES[0], tiered=POLICIES[-1])
    )
    print(f"\nOne agent, {counted(turns, 'turn')}, the same prompts for all. TTFT: time to first token.\n")
    print(f"{text_table(results.summary())}\n\n{results.verdict().text()}")
    print(f"\n{time.perf_counter() - started:.0f} s. Charts: {report}\n\nThree things to try next")
    width = max(len(why) for why, _ in NEXT)
    for why, command in NEXT:
        print(f"  {why:<{width}}  {command}")
    return results
