"""Which compression breaks tool calls first: BFCL's items and tau-bench's conversations, led through every policy.

    python experiments/tool_calls/measure.py --data FOLDER [--model NAME] [--json]

FOLDER holds `bfcl/` (the files of BFCL v4, such as simple_python and parallel, with `possible_answer/`) and
`tau-bench/` (recorded conversations); `KVLAB_TOOL_DATA` may name it instead. A run that was stopped continues in
`runs/tools`, behind the last part that it finished: a part is a fifth of the items of BFCL, or of the conversations.
`--sample` takes the first part of each only, from nothing, and keeps nothing.

Under a codec the answer that is led and the model's own begin with the same prompt: it is computed once and read again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from kvlab.errors import KvlabError, WorkloadError
from kvlab.experiments.config import Experiment
from kvlab.experiments.sweep import sweep
from kvlab.policies import Policy

ITEMS = {"bfcl": 60, "tau-bench": 5}
"""What a part takes of each: items, and conversations."""
PARTS = 5
PROMPTS = "paged:live=false|ram:ram=4GB"
"""Where the prompts of a codec are kept; ``share_prompts`` keeps those of the other policies."""
POLICIES = ("full", "quantized:bits={bits}|" + PROMPTS, "{method}:budget={budget}")
GRID = (("bits", (8, 4, 2)), ("method", ("snapkv", "knorm", "random")), ("budget", (0.5, 0.25)))
AT_ONCE = 32
"""Answers that are led side by side."""


def experiments(data: Path, model: str, parts: int = PARTS) -> list[Experiment]:
    """Return an experiment for each source, of its first parts. Raises WorkloadError where one is not there."""
    made = []
    for name, items in ITEMS.items():
        if not (data / name).is_dir():
            raise WorkloadError(
                f"no folder {data / name}; give the folder that holds {' and '.join(ITEMS)} with --data"
            )
        made.append(
            Experiment(
                name=f"tools-{name}",
                policies=POLICIES,
                workload=f"tools:{data / name}",
                model=model,
                n=items,
                turns=1,  # of a conversation: its first call and its first text
                seeds=tuple(range(parts)),  # each takes the next items
                concurrency=AT_ONCE,
                share_prompts="8GB",
                grid=GRID,
            )
        )
    return made


def without_prompts(policy: str) -> str:
    """Return the policy without its store of prompts, which changes no token and no live byte."""
    modules = Policy.parse(policy).named
    return str(Policy(*(module for slot, module in modules.items() if slot in ("retention", "codec"))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("KVLAB_TOOL_DATA", ".")))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sample", action="store_true")
    asked = parser.parse_args()
    rows, facts = [], {}
    try:
        with tempfile.TemporaryDirectory(prefix="kvlab-tools-") as empty:
            runs = Path(empty) if asked.sample else Path("runs") / "tools"
            for experiment in experiments(asked.data, asked.model, 1 if asked.sample else PARTS):
                results = sweep(experiment, runs / experiment.name)
                workload = f"tools:{experiment.name.removeprefix('tools-')}"
                rows += [
                    {**row, "workload": workload, "policy": without_prompts(row["policy"])} for row in results.rows
                ]
                facts = facts or results.provenance
                print(f"{workload}\n{results.table()}", file=sys.stderr)
    except KvlabError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    if asked.json:
        print(json.dumps({"command": "tool_calls", "provenance": facts, "rows": rows}, default=str))


if __name__ == "__main__":
    main()
