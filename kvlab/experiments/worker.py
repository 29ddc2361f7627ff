"""The process after a restart: `python -m kvlab.experiments.worker ORDER.json`. One JSON line a turn served."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from kvlab.errors import KvlabError
from kvlab.experiments.conversations import ServedTurn, Turn, serve_turns
from kvlab.models import load
from kvlab.policies import Policy
from kvlab.recording.recorder import Recorder


def main(order_file: str) -> int:
    order = json.loads(Path(order_file).read_text())
    lines, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not mix with the lines

    def report(served: ServedTurn) -> None:
        print(json.dumps(dataclasses.asdict(served)), file=lines, flush=True)

    recorder = Recorder()
    try:
        turns = [Turn(**{**turn, "prompt": tuple(turn["prompt"])}) for turn in order["turns"]]
        serve_turns(
            load(order["model"], dtype=order["dtype"], dequantize=order["dequantize"]),
            Policy.parse(order["policy"]),
            turns,
            concurrency=order["concurrency"],
            recorder=recorder,
            tags=order["tags"],
            done=report,
        )
    except KvlabError as error:
        print(error, file=sys.stderr)
        return 2
    recorder.save(order["record"])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
