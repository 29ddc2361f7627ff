"""Seal and open blocks of real sizes in turns: what encryption costs a block. See README.md."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvlab import models
from kvlab.decoder import Decoder
from kvlab.models import LoadedModel
from kvlab.provenance import provenance
from kvlab.store.blocks import Block
from kvlab.store.remote.block_bytes import encode
from kvlab.store.remote.sealing import BLOCKS, Sealed

BLOCK_TOKENS = 128
POLICIES = ("raw", "quantized:bits=4")
SECRET = bytes(range(32))
BURST_S = 0.02
"""Time that one sample takes at least, so that the clock and a first touch of memory weigh little."""


def a_block(model: LoadedModel, policy: str) -> bytes:
    """Return the bytes of a block that a decoder stored."""
    with tempfile.TemporaryDirectory(prefix="kvlab-sealing-") as folder:
        spec = f"paged:block={BLOCK_TOKENS}|{policy}|tiered:dir={folder}"
        with Decoder(model, spec) as decoder:
            prompt = [100 + n % 300 for n in range(BLOCK_TOKENS + 2)]
            decoder.generate(prompt, max_tokens=1)
            assert decoder.store is not None and decoder.store.flush()
            match = decoder.store.match(decoder.namespace(), prompt[:BLOCK_TOKENS])
            (piece,) = match.pieces
            block: Block = decoder.store._fetch(piece.key)
            data = encode(block)
            decoder.store.release(match)
            return data


def seconds(work: Any) -> float:
    """Return the mean time of one call, of as many as fill a burst."""
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < BURST_S:
        work()
        count += 1
    return (time.perf_counter() - started) / count


def measured(name: str, model: LoadedModel, repeats: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each policy: medians over ``repeats`` turns of sealing, opening and copying the same bytes."""
    sealing, key = Sealed(SECRET), BLOCKS + "a name"
    blocks = {policy: a_block(model, policy) for policy in POLICIES}
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(repeats):
        for policy, data in blocks.items():
            sealed = sealing.seal(key, data)
            assert sealing.open(key, sealed) == data
            acts = {
                "seal": lambda d=data: sealing.seal(key, d),
                "open": lambda s=sealed: sealing.open(key, s),
                "copy": lambda d=data: bytearray(d),
            }
            for act, work in acts.items():
                times.setdefault((policy, act), []).append(seconds(work))
    for policy, data in blocks.items():
        row = {"model": name, "policy": policy, "tokens": BLOCK_TOKENS, "bytes": len(data)}
        row["more_bytes"] = len(sealing.seal(key, data)) - len(data)
        found = {act: statistics.median(times[policy, act]) for act in ("seal", "open", "copy")}
        row |= {f"{act}_ms": 1000 * found[act] for act in found}
        yield row | {f"{act}_to_copy": found[act] / found["copy"] for act in ("seal", "open")} | {"repeats": repeats}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["bundled", "smollm2-135m"], help="names or folders of models")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = []
    for name in arguments.models:
        model = models.load() if name == "bundled" else models.load(name)
        rows += measured(Path(name).name, model, arguments.repeats)
    text = ",\n".join(json.dumps(row) for row in rows)
    arguments.out.write_text(json.dumps({"provenance": provenance()})[:-1] + f',\n"rows": [\n{text}\n]}}\n')


if __name__ == "__main__":
    main()
