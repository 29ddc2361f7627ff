"""Mooncake's traces: JSON lines with 512-token blocks that are named by a hash over all that precedes.

Qin et al., "Mooncake: Trading More Storage for Less Computation", FAST 2025: ``timestamp`` in milliseconds,
``input_length`` and ``output_length`` in tokens, ``hash_ids`` of which the last is the partial tail. Requests of one
timestamp keep the order of the file.
"""

from __future__ import annotations

from array import array

import numpy as np

from kvlab.replay.loaders.base import TraceLoader
from kvlab.replay.loaders.source import TraceSource
from kvlab.replay.trace import BlockTrace, trace_of_arrays

BLOCK_TOKENS = 512
EXPECTED = 'an object such as {"timestamp": 0, "input_length": 600, "output_length": 20, "hash_ids": [1, 2]}'


class Mooncake(TraceLoader):
    """Reads Mooncake's JSON lines; each request is a session of its own, since the traces name none."""

    name = "mooncake"
    about = "JSON lines with timestamp, input_length, output_length, hash_ids of 512-token blocks"

    def recognises(self, source: TraceSource) -> bool:
        return {"timestamp", "input_length", "hash_ids"} <= source.first_object.keys()

    def load(self, source: TraceSource) -> BlockTrace:
        times, ids = array("d"), array("q")
        inputs, outputs, lengths = array("q"), array("q"), array("q")
        for part in source.parts():
            for number, found in part.objects(EXPECTED):
                try:
                    own, tokens = found["hash_ids"], found["input_length"]
                    times.append(found["timestamp"])
                    inputs.append(tokens)
                    outputs.append(found.get("output_length", 0))
                    ids.extend(own)
                    lengths.append(len(own))
                except (KeyError, TypeError, OverflowError):
                    raise part.error(number, EXPECTED) from None
                if len(own) != -(-tokens // BLOCK_TOKENS):
                    wanted = f"{-(-tokens // BLOCK_TOKENS)} hash_ids for input_length {tokens}, one for {BLOCK_TOKENS}"
                    raise part.error(number, f"{wanted} tokens begun", str(len(own)))
        return trace_of_arrays(
            source.name,
            BLOCK_TOKENS,
            np.array(ids, np.int64),
            np.array(lengths, np.int64),
            times=np.array(times) / 1000.0,
            input_tokens=np.array(inputs, np.int64),
            output_tokens=np.array(outputs, np.int64),
            sessions=np.arange(len(times), dtype=np.int32),
        )
