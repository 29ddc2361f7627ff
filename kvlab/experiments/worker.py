"""The process after a restart: `python -m kvlab.experiments.worker ORDER.json`. One JSON line a turn served."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvlab.decoder.config import DecoderConfig
from kvlab.errors import KvlabError, RunError
from kvlab.experiments.conversations import ServedTurn, Turn, serve_turns
from kvlab.importing import UserFile, import_again
from kvlab.models import LoadedModel, load
from kvlab.policies import Policy
from kvlab.recording.recorder import Recorder


def main(order_file: str) -> int:
    order = json.loads(Path(order_file).read_text())
    lines, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not mix with the lines

    def report(served: ServedTurn) -> None:
        print(json.dumps(dataclasses.asdict(served)), file=lines, flush=True)

    recorder = Recorder()
    try:
        for file in order["imports"]:
            import_again(UserFile(**file))
        for name in order["modules"]:
            _import_module(name)
        turns = [Turn(**{**turn, "prompt": tuple(turn["prompt"])}) for turn in order["turns"]]
        serve_turns(
            _same_model(order),
            Policy.parse(order["policy"]),
            turns,
            concurrency=order["concurrency"],
            recorder=recorder,
            tags=order["tags"],
            config=DecoderConfig(**order["config"]) if order["config"] else None,
            done=report,
        )
    except KvlabError as error:
        print(error, file=sys.stderr)
        return 2
    recorder.save(order["record"])
    return 0


def _import_module(name: str) -> None:
    """Import a module that defines parts of the policy. Raises RunError where this process does not find it."""
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise RunError(
            f"the process after the restart cannot import {name} ({error}), which defines parts of the policy: run in "
            "the folder that it is in, or give its file with --import"
        ) from error


def _same_model(order: Mapping[str, Any]) -> LoadedModel:
    """Load the model of the process before. Raises RunError where loading does not give the same."""
    for dtype in dict.fromkeys((order["dtype"], None)):  # some weights may be of another dtype than the KV
        loaded = load(order["model"], adapter=order["adapter"], dtype=dtype, dequantize=order["dequantize"])
        if loaded.fingerprint == order["fingerprint"]:
            return loaded
    raise RunError(
        "the model was changed after it was loaded, so that a new process cannot load it: save it to a folder with "
        "mlx_lm.utils.save and give that, or run without restart"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
