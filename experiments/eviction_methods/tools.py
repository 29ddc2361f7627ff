"""What every eviction method breaks in tool calls, with half of the rows: BFCL on SmolLM2-135M, docs/quality.md.

    python experiments/eviction_methods/tools.py --data FOLDER [--model NAME] [--sample] [--json]

FOLDER holds `bfcl/` as for tools.toml; `KVLAB_TOOL_DATA` may name it instead. `oracle` and `kvzip` get their scores for
each prompt here. `--sample` takes the first two items only.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from methods import document, measured

from kvlab.decoder.shared_prompts import opened
from kvlab.errors import KvlabError
from kvlab.models import load
from kvlab.workloads.base import WorkloadRequest
from kvlab.workloads.forced import TeacherForced
from kvlab.workloads.tools import Tools

ITEMS, SAMPLE = 24, 2
BUDGETS = (0.5,)


class Calls(TeacherForced):
    """Calls of some items, each a request."""

    calls_apart = True

    def __init__(self, requests: list[WorkloadRequest]) -> None:
        self.name, self._requests = "tools:bfcl", requests

    def requests(self) -> list[WorkloadRequest]:
        return list(self._requests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("KVLAB_TOOL_DATA", ".")))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sample", action="store_true")
    asked = parser.parse_args()
    try:
        items = Tools(asked.data / "bfcl", n=SAMPLE if asked.sample else ITEMS).requests()
        loaded = load(asked.model)
        with tempfile.TemporaryDirectory(prefix="kvlab-methods-") as folder, opened("2GB") as shared:
            rows, facts = measured(
                loaded, Calls(items), lambda index: Calls([items[index]]), BUDGETS, Path(folder), shared, len(items)
            )
    except KvlabError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    if asked.json:
        print(document("methods_tools", rows, facts))


if __name__ == "__main__":
    main()
