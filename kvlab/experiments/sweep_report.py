"""What a sweep's command shows at its end: the table, the lines that serve each policy, and the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvlab.counts import counted
from kvlab.experiments.config import Experiment
from kvlab.results import Results
from kvlab.results.promote import serve_line
from kvlab.results.rows import TOGETHER


def print_report(
    experiment: Experiment, results: Results, folder: Path, *, before: int, command: str | None = None
) -> Results:
    """Print the table of a sweep and write its report to `folder`; return the results.

    `before` cells were finished earlier; `command` is the command line, for the provenance. Raises RunError.
    """
    from kvlab.results.report import write_run  # draws in Altair, which takes a moment to import

    title, count = experiment.title or experiment.name, len(experiment.cells())
    print(f"\n{title}\n\n{table(experiment, results)}\n\nPromote one to an endpoint:")
    for policy in results.policies:
        print(f"  {serve_line(policy, results.provenance)}")
    results.provenance |= {"command": command} if command else {}
    lead = "Every policy sees the same prompts; a point of the grid is compared with itself only."
    report = write_run(results, folder, title=title, lead=lead)
    again = f", {before} of them before this run" if before else ""
    print(f"\n{counted(count, 'cell')} finished{again}. Rows: {folder}. Charts and answers: {report}")
    if before == count:
        print(f"Nothing was left to do; remove {folder} to measure again.")
    if "commits" in results.provenance:
        print("Mind: the rows come from several commits of kvlab; remove the folder to measure all at one.")
    return results


def table(experiment: Experiment, results: Results) -> str:
    """Return the summary as text, a line for each policy and point of the grid."""
    varied = [name for name, _ in experiment.grid if name in ("workload", "model", "adapter", "concurrency", "tokens")]
    column = {"concurrency": "n", "adapter": "model"}
    rows: list[dict[str, Any]] = []
    for row in results.rows:
        if row.get("kind") == TOGETHER:
            continue
        point = " ".join(f"{name}={row[column.get(name, name)]}" for name in varied)
        rows.append({**row, "policy": f"{row['policy']}  {point}" if point else row["policy"]})
    return Results(rows, {}).table()
