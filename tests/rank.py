"""A rank of a split model: runs the same decoders as the other ranks, and writes what they gave."""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any

import mlx.core as mx
from mlx_lm.sample_utils import make_sampler

from kvlab import KvlabError, load
from kvlab.decoder import Decoder
from kvlab.models import LoadedModel

MAX_TOKENS = 12
MAX_DELAY_S = 0.02
"""Requests come to each rank at times of its own."""


def decode(loaded: LoadedModel, plan: dict[str, Any], rank: int) -> list[Any]:
    """Run the requests of one decoder side by side; return `[tokens, cached tokens, miss]` or an error for each."""
    found: list[Any] = []
    delays = random.Random(rank)
    sampler = make_sampler(temp=1.0) if plan.get("sampled") else None
    with Decoder(loaded, plan["policy"].replace("RANK", str(rank)), prefill_step=plan.get("step")) as decoder:
        streams = []
        for start, length in plan["requests"]:
            time.sleep(delays.random() * MAX_DELAY_S)
            prompt = [5 + (start * 7 + at * at) % 200 for at in range(length + plan.get("other", 0) * rank)]
            streams.append(decoder.submit(prompt, max_tokens=MAX_TOKENS, sampler=sampler))
        for stream in streams:
            try:
                done = stream.result()
            except KvlabError as error:
                found.append(str(error))
            else:
                found.append([list(done.tokens), done.cached_tokens, done.miss])
        if decoder.store is not None:
            decoder.store.flush()
    return found


def main(name: str, dtype: str, plans: str, out: str) -> None:
    rank = mx.distributed.init().rank()
    loaded = load(name, dtype=dtype, dequantize=False, tensor_parallel=True)
    found = [decode(loaded, plan, rank) for plan in json.loads(plans)]
    with open(f"{out}-{rank}.json", "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
