"""kvlab's own traces: JSON lines with ``hash_ids``, behind a line that says how many tokens a block has."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np

from kvlab.replay.errors import TraceError
from kvlab.replay.loaders.base import TraceLoader
from kvlab.replay.loaders.source import TraceSource
from kvlab.replay.trace import BlockTrace, trace_of_arrays

HEADER = 'a first line such as {"block_tokens": 64}'
EXPECTED = 'an object with hash_ids, such as {"hash_ids": [1, 2], "t": 0.5, "input_tokens": 100, "session": "a"}'


class HashIds(TraceLoader):
    """Reads requests with ``hash_ids`` and, where known, ``t`` (s), ``input_tokens``, ``output_tokens``, ``session``.

    Ids may be chained hashes or name the content of a block alone. Without ``t`` requests are a second apart; without
    ``input_tokens`` all blocks are full; without ``session`` each request is one of its own.
    """

    name = "hash_ids"
    about = 'a line {"block_tokens": N}, then JSON lines with hash_ids and t, input_tokens, output_tokens, session'

    def recognises(self, source: TraceSource) -> bool:
        first = source.first_object
        return "block_tokens" in first or ("hash_ids" in first and "input_length" not in first)

    def load(self, source: TraceSource) -> BlockTrace:
        block = 0
        ids, lengths, times = array("q"), array("q"), array("d")
        inputs, outputs, sessions = array("q"), array("q"), array("l")
        names: dict[Any, int] = {}
        for part in source.parts():
            for number, found in part.objects(EXPECTED if block else HEADER):
                if not block:
                    block = found.get("block_tokens", 0)
                    if not isinstance(block, int) or block < 1:
                        raise part.error(number, HEADER)
                    continue
                try:
                    own = found["hash_ids"]
                    ids.extend(own)
                    lengths.append(len(own))
                    times.append(found.get("t", float(len(times))))
                    inputs.append(found.get("input_tokens", len(own) * block))
                    outputs.append(found.get("output_tokens", 0))
                    sessions.append(names.setdefault(found.get("session", ("request", number)), len(names)))
                except (KeyError, TypeError, OverflowError):
                    raise part.error(number, EXPECTED) from None
                if own and inputs[-1] <= (len(own) - 1) * block:
                    wanted = f"input_tokens that fill {len(own)} hash_ids of {block} tokens"
                    raise part.error(number, wanted, str(inputs[-1]))
        if not block:
            raise TraceError(f"{source.path}: it is empty; expected {HEADER}")
        return trace_of_arrays(
            source.name,
            block,
            np.array(ids, np.int64),
            np.array(lengths, np.int64),
            times=np.array(times),
            input_tokens=np.array(inputs, np.int64),
            output_tokens=np.array(outputs, np.int64),
            sessions=np.array(sessions, np.int32),
        )
