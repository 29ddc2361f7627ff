"""A real restart: the remaining turns are served by another process over the same store folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from kvlab.decoder.config import DecoderConfig
from kvlab.errors import RunError
from kvlab.experiments.conversations import ServedTurn, Turn, to_json
from kvlab.importing import module_name, user_files
from kvlab.models import LoadedModel
from kvlab.paths import PACKAGE
from kvlab.policies import Module, Policy
from kvlab.policies.slots import inner_fields
from kvlab.recording.recorder import Recorder


def serve_in_new_process(
    model: LoadedModel,
    policy: Policy,
    turns: Sequence[Turn],
    *,
    concurrency: int,
    recorder: Recorder,
    tags: Mapping[str, Any],
    config: DecoderConfig | None = None,
    done: Callable[[ServedTurn], None],
) -> list[ServedTurn]:
    """Serve turns in a child process that loads the model again; merge its record into `recorder`. Raises RunError."""
    with tempfile.TemporaryDirectory(prefix="kvlab-restart-") as name:
        folder = Path(name)
        order = {
            "model": str(model.path),
            "adapter": str(model.adapter) if model.adapter else None,
            "fingerprint": model.fingerprint,
            "dtype": model.dtype,
            "dequantize": model.dequantized,
            "imports": [asdict(file) for file in user_files()],
            "modules": _own_modules(policy),
            "policy": str(policy),
            "concurrency": concurrency,
            "config": None if config is None else asdict(config),
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


def _own_modules(policy: Policy) -> list[str]:
    """Return the names of modules outside kvlab that define parts of a policy. Raises RunError for `__main__`."""
    found: dict[str, None] = {}
    for part in _parts([policy.retention, policy.codec, policy.reuse, policy.tiers]):
        name = type(part).__module__
        if name == "__main__":
            raise RunError(
                f"{part.name!r} is defined in this notebook or script, which the process after a restart cannot read: "
                "write it to a file such as mine.py and import that, or run without restart"
            )
        if name not in {module_name(file.path) for file in user_files()} and name.partition(".")[0] != "kvlab":
            found[name] = None
    return list(found)


def _parts(modules: Iterable[Module | None]) -> Iterator[Module]:
    """Return the modules of a policy, those within wrappers too."""
    for module in modules:
        if module is not None:
            yield module
            yield from _parts(getattr(module, field) for field in inner_fields(type(module)))


def _environment() -> dict[str, str]:
    """Return this environment with this kvlab first on the path; a source tree may not be installed."""
    here = str(PACKAGE.parent)
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{path}" if path else here}


def _last_line(errors: IO[str]) -> str:
    errors.seek(0)
    lines = [line.strip() for line in errors.read().splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
