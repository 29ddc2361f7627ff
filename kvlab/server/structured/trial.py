"""Trials: schemas that may be costly are compiled in another process first, which a timer ends."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvlab.server.errors import ApiError
from kvlab.server.structured.enforceable import Enforceable, Unenforced
from kvlab.server.structured.schema_limits import shown

MAX_TRIAL_CPU_S = 2.0
"""CPU time of a trial; the request's compilation takes about as long again."""
MAX_TRIAL_WALL_S = 60.0
MAX_MASK_CPU_S = 0.1
"""CPU time of one token's mask: the decoder waits for it."""
MAX_TRIALS = 2
"""Trials at a time; others wait for their turn."""
PARSER_LIMITS: dict[str, Any] = {"max_lexer_states": 50_000, "precompute_large_lexemes": False, "verbose_errors": False}
"""Of llguidance. A state takes about 2 KB; large lexemes would be computed ahead for the whole vocabulary."""


class Trials:
    """Tries schemas before the server compiles them itself. One event loop.

    Args:
        guidance: options of llguidance's compiler.
        cpu_seconds: CPU time of one trial.
        mask_seconds: CPU time of one token's mask.
    """

    def __init__(
        self,
        guidance: Mapping[str, Any],
        *,
        cpu_seconds: float = MAX_TRIAL_CPU_S,
        mask_seconds: float = MAX_MASK_CPU_S,
    ) -> None:
        self._guidance, self._cpu_seconds, self._mask_seconds = guidance, cpu_seconds, mask_seconds
        self._turns = asyncio.Semaphore(MAX_TRIALS)
        self.running = 0
        """Processes that run now."""

    async def run(self, sources: Sequence[Enforceable], wheres: Sequence[str], *, strict: bool) -> list[Enforceable]:
        """Return the schemas with the parts opened that do not compile. Cancelling it ends the process.

        Raises ApiError 400 for a schema that takes too long, and under ``strict`` for one that nothing satisfies.
        """
        work = {
            "schemas": [source.schema for source in sources],
            "guidance": self._guidance,
            "limits": PARSER_LIMITS,
            "cpu_seconds": self._cpu_seconds,
            "mask_seconds": self._mask_seconds,
            "strict": strict,
        }
        async with self._turns:
            lines, ended = await self._run(json.dumps(work).encode())
        made = []
        for source, where, line in zip(sources, wheres, lines, strict=False):
            result = json.loads(line)
            if result["error"]:
                path, error = result["error"]
                raise ApiError(400, f"the schema of {where} cannot be satisfied at {_path(path, source)}: {error}")
            opened = [Unenforced(where, _path(path, source), "", error[:200]) for path, error in result["opened"]]
            made.append(source._replace(schema=result["schema"], unenforced=(*source.unenforced, *opened)))
        if len(made) < len(sources):
            why = "it takes too long" if ended < 0 else "the compiler failed"
            raise ApiError(400, f"the schema of {wheres[len(made)]} cannot be enforced: {why}; send a simpler one")
        return made

    async def _run(self, work: bytes) -> tuple[list[bytes], int]:
        script = str(Path(__file__).with_name("trial_process.py"))
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", script, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
        )
        self.running += 1
        try:
            out, _ = await asyncio.wait_for(process.communicate(work), MAX_TRIAL_WALL_S)
        except TimeoutError:
            out = b""
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            self.running -= 1
        lines = out.split(b"\n")[:-1]
        return lines, process.returncode if process.returncode is not None else -1


def _path(path: str, source: Enforceable) -> str:
    """Return the client's JSON pointer for one into the enforceable schema."""
    if path.startswith("/$defs/"):
        name, _, rest = path.removeprefix("/$defs/").partition("/")
        path = source.paths.get(name, "") + (f"/{rest}" if rest else "")
    return shown(path)
