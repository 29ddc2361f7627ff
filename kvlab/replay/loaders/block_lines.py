"""Traces of other caches: one block number a line, all blocks of one size and without parents.

The format of the LIRS traces (Jiang & Zhang, SIGMETRICS 2002) as the Caffeine project keeps them. Lines that are no
number, such as ``*`` between two parts, are skipped.
"""

from __future__ import annotations

import numpy as np

from kvlab.replay.errors import TraceError
from kvlab.replay.loaders.base import TraceLoader
from kvlab.replay.loaders.source import TraceSource
from kvlab.replay.trace import BlockTrace, trace_of_arrays

LARGEST = 2**63 - 1


class BlockLines(TraceLoader):
    """Reads one block number a line; a block is one token, and each line one request, a second after the last."""

    name = "blocks"
    about = "one block number a line; other lines are skipped"

    def recognises(self, source: TraceSource) -> bool:
        lines = source.start.split("\n")[:50]
        if len(source.start) >= 1 << 16:
            lines = lines[:-1]  # the last one may be cut
        filled = [line.strip() for line in lines if line.strip()]
        return bool(filled) and sum(line.isdigit() for line in filled) > len(filled) / 2

    def load(self, source: TraceSource) -> BlockTrace:
        found: list[int] = []
        for part in source.parts():
            for number, line in part.lines():
                if line.isdigit():
                    if (block := int(line)) > LARGEST:
                        raise part.error(number, f"a block number up to {LARGEST}", line.decode())
                    found.append(block)
        if not found:
            raise TraceError(f"{source.path}: no line holds a block number; expected one number a line")
        n = len(found)
        ones = np.ones(n, np.int64)
        return trace_of_arrays(
            source.name,
            1,
            np.array(found, np.int64),
            ones,
            times=np.arange(n, dtype=np.float64),
            input_tokens=ones,
            output_tokens=np.zeros(n, np.int64),
            sessions=np.arange(n, dtype=np.int32),
        )
