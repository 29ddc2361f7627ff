"""A process that decodes on a store folder until it is killed or told to stop."""

from __future__ import annotations

from multiprocessing.connection import Connection

import numpy as np

from kvlab.decoder import Decoder
from kvlab.models import load

TOKENS = 4


def talk(seed: int) -> list[int]:
    """A prompt of 40 to 140 tokens; two of three go on from the middle of another."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 250, int(rng.integers(40, 100))).tolist()
    return talk(seed - 1)[:40] + tokens if seed % 3 else tokens


def serve(model: str, policy: str, seeds: range, pipe: Connection) -> None:
    """Answer the talks of ``seeds``; sends the seed, tokens and cached tokens of each once it is durable."""
    with Decoder(load(model), policy, prefill_step=64) as decoder:
        for seed in seeds:
            completion = decoder.generate(talk(seed), max_tokens=TOKENS)
            if decoder.store is None or not decoder.store.flush():
                raise RuntimeError(decoder.store.stats()["trouble"] if decoder.store else "no store")
            pipe.send((seed, completion.tokens, completion.cached_tokens))
    pipe.close()
