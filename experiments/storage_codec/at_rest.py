"""Measure what blocks at rest cost under several policies: bytes, and the TTFT after a restart.

``flush_s`` is what is left to write when the request has ended; ``kvtc`` has encoded its blocks by then.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kvlab.decoder import Decoder
from kvlab.models import LoadedModel, load
from kvlab.provenance import provenance

ROOT = Path(__file__).parents[2]
TEXT = "kvlab/decoder/scheduler.py"
"""A text of another kind than the samples of the transform, pages of docs/."""
MORE_TOKENS = 16
"""Tokens of the second request behind those of the first."""


def measured(loaded: LoadedModel, policy: str, prompt: list[int], folder: Path) -> dict[str, float]:
    """Store a prompt, start again, and ask with a few tokens more."""
    spec = policy if policy == "full" else f"{policy}|tiered:dir={folder}"
    with Decoder(loaded, spec) as decoder:
        cold = decoder.generate(prompt, max_tokens=1)
        started = time.perf_counter()
        held = 0
        if decoder.store is not None:
            decoder.store.flush()
            held = decoder.store.tiers_bytes()["ssd"]
        flushed_s = time.perf_counter() - started
    with Decoder(loaded, spec) as decoder:
        again = decoder.generate([*prompt, *prompt[:MORE_TOKENS]], max_tokens=1)
    return {
        "bytes_a_token": held / len(prompt),
        "flush_s": flushed_s,
        "ttft_cold_s": cold.ttft_ms / 1000,
        "ttft_restart_s": again.ttft_ms / 1000,
        "cached_tokens": again.cached_tokens,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a folder or name of a model, such as smollm2-135m's folder")
    parser.add_argument("policies", nargs="+", help="codecs such as raw, quantized:bits=4 or kvtc:transform=FILE")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", help="as kvlab compare takes it")
    parser.add_argument("--out", type=Path, help="file of the rows, in JSON")
    args = parser.parse_args()
    loaded = load(args.model, dtype=args.dtype)
    prompt = list(loaded.encode((ROOT / TEXT).read_text()))[: args.tokens]
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(args.repeats):
        for policy in ("full", *args.policies):
            folder = Path(tempfile.mkdtemp(prefix="kvlab-at-rest-"))
            found.setdefault(policy, []).append(measured(loaded, policy, prompt, folder))
            shutil.rmtree(folder)
            print(policy, found[policy][-1], file=sys.stderr, flush=True)
    rows: list[dict[str, Any]] = [
        {
            "policy": policy.partition(":transform")[0],
            "tokens": len(prompt),
            **{name: statistics.median(one[name] for one in runs) for name in runs[0]},
            "ttft_restart_s_all": [one["ttft_restart_s"] for one in runs],
        }
        for policy, runs in found.items()
    ]
    document = {"provenance": provenance(model=loaded), "rows": rows}
    text = json.dumps(document, indent=1, default=str)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
