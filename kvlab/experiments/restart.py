"""A real restart: the turns that are left are served by another process, over the same store folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import kvlab
from kvlab.errors import RunError
from kvlab.experiments.conversations import ServedTurn, Turn, to_json
from kvlab.models import LoadedModel
from kvlab.policies import Policy
from kvlab.policies.tiers import Tiers
from kvlab.recording.recorder import Recorder


def with_folder(policy: Policy, folder: Path) -> Policy:
    """Return `policy` with the files of its tiers in `folder`, unless it names a folder itself or keeps no files."""
    tiers = policy.tiers
    moved = tiers.in_folder(folder) if isinstance(tiers, Tiers) else tiers
    if moved is None or moved is tiers:
        return policy
    return Policy(policy.retention, policy.codec, policy.reuse, moved)


def survives_restart(policy: Policy) -> bool:
    return isinstance(policy.tiers, Tiers) and policy.tiers.survives_restart


def serve_in_new_process(
    model: LoadedModel,
    policy: Policy,
    turns: Sequence[Turn],
    *,
    concurrency: int,
    recorder: Recorder,
    tags: Mapping[str, Any],
    done: Callable[[ServedTurn], None],
) -> list[ServedTurn]:
    """`serve_turns` in a child that loads the model anew; its record is merged into `recorder`. Raises RunError."""
    with tempfile.TemporaryDirectory(prefix="kvlab-restart-") as name:
        folder = Path(name)
        order = {
            "model": str(model.path),
            "dtype": model.dtype,
            "policy": str(policy),
            "concurrency": concurrency,
            "tags": dict(tags),
            "turns": to_json(turns),
            "record": str(folder / "record.zarr"),
        }
        (folder / "order.json").write_text(json.dumps(order))
        served: dict[tuple[str, int], ServedTurn] = {}
        with (folder / "errors.txt").open("w+") as errors:
            child = subprocess.Popen(
                [sys.executable, "-m", "kvlab.experiments.worker", str(folder / "order.json")],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=_environment(),
            )
            try:
                for line in child.stdout or ():
                    one = ServedTurn.from_json(json.loads(line))
                    served[one.conversation, one.turn] = one
                    done(one)
                code = child.wait()
            finally:
                child.kill()  # nothing to do when it has ended
                child.wait()
            if code != 0:
                raise RunError(f"the process after the restart ended with status {code}: {_last_line(errors)}")
        recorder.merge(Recorder.load(folder / "record.zarr"))
        return [served[turn.conversation, turn.turn] for turn in turns]


def _environment() -> dict[str, str]:
    """Ours, with this very kvlab first on the path: it may be run from a source tree that is not installed."""
    here = str(Path(kvlab.__file__).resolve().parents[1])
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{path}" if path else here}


def _last_line(errors: IO[str]) -> str:
    errors.seek(0)
    lines = [line.strip() for line in errors.read().splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
