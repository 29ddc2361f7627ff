"""Compare codecs at equal bytes: KL behind real texts, and how far keys, values and attention are from the model's.

    python experiments/codecs/measure.py [--model NAME] [--sample] [--json]

A policy is led along the same 128 tokens behind 640 as ``full``; rows of ``kl``, ``top1`` and ``kv_bytes_live`` are by
part of a text. Bytes are those of the caches in float32, and of the same rows in 16 bits (``kind`` is ``16 bits``).
Errors are measured on the first part of each text. ``--sample`` takes a few codecs only.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import numpy as np
from forced_kl import divergence, forced
from ranks import rank_rows
from row_errors import layer_rows, relative_errors, stored_bytes
from texts import Texts

from kvlab.experiments.forced_answers import forced_items
from kvlab.experiments.prompts import Prompts
from kvlab.models import LoadedModel, load
from kvlab.policies import Policy
from kvlab.provenance import document, provenance
from kvlab.results import Row, row

CODECS = (
    "quantized", "quantized:group=32", "quantized:v_bits=4", "quantized:bits=4,v_bits=8", "quantized:v_bits=2",
    "quantized:bits=4", "quantized:bits=4,group=32", "quantized:bits=2", "quantized:bits=2,group=32",
    "rotated:bits=8,v_bits=4", "rotated", "rotated:group=32", "rotated:bits=2",
    "kivi:bits=4", "kivi:bits=4,recent=0", "kivi", "kivi:recent=0",
    "turboquant", "turboquant:bits=3", "turboquant:bits=2", "turboquant:bits=3,length=least",
    "turboquant:bits=3,length=norm", "turboquant:projection=true", "turboquant:bits=3,projection=true",
)  # fmt: skip
SAMPLE = ("quantized:v_bits=4", "rotated", "kivi:bits=4", "turboquant:bits=3")
WORKLOAD = "codecs-texts"
IN_16_BITS = "16 bits"


def measured(loaded: LoadedModel, codecs: tuple[str, ...]) -> list[Row]:
    """Return the rows of ``full`` and of these codecs, without ranks."""
    rows: list[Row] = []
    full, policies = Policy.parse("full"), [Policy.parse(one) for one in codecs]
    requests = Texts().requests()
    for item in forced_items(requests, Prompts(loaded, requests)):
        prompt, answer = item.forced.prompt, item.forced.answer
        where: dict[str, Any] = {"turn": 1, "conversation": item.request.conversation, "model": loaded.name, "seed": 0}

        def new(policy: Policy, metric: str, value: float, where: dict[str, Any] = where, **more: Any) -> None:
            rows.append(row(str(policy), WORKLOAD, metric, value, **where, **more))

        first = item.request.part == 0  # type: ignore[attr-defined]
        layers = layer_rows(loaded.model, [*prompt, *answer], len(answer)) if first else []
        own = forced(loaded.model, full, prompt, answer)
        for policy in (full, *policies):
            found = own if policy == full else forced(loaded.model, policy, prompt, answer)
            for metric, value in divergence(own, found).items():
                new(policy, metric, value, kind=item.request.kind)
            new(policy, "kv_bytes_live", found.live_bytes, kind=item.request.kind)
            if first:
                new(policy, "kv_bytes_live", stored_bytes(policy, layers), kind=IN_16_BITS)
            if first and policy != full:
                for kind, value in relative_errors(policy, layers).items():
                    new(policy, "relative_error", value, kind=kind)
            print(item.request.conversation, policy, rows[-1]["value"], file=sys.stderr, flush=True)
    return rows


def ranked(rows: list[Row]) -> list[Row]:
    """Return the rows of ranks that belong to these rows."""
    of: dict[tuple[str, str], dict[str, list[float]]] = {}
    for one in rows:
        if one["policy"] != "full":
            of.setdefault((one["metric"], one["kind"]), {}).setdefault(one["policy"], []).append(one["value"])
    errors = {
        kind: {policy: float(np.mean(values)) for policy, values in found.items()}
        for (metric, kind), found in of.items()
        if metric == "relative_error"
    }
    kl: dict[str, list[float]] = {}
    for (metric, _), found in of.items():
        for policy, values in found.items() if metric == "kl" else ():
            kl.setdefault(policy, []).extend(values)
    size = {policy: float(np.mean(values)) for policy, values in of["kv_bytes_live", IN_16_BITS].items()}
    return list(rank_rows(WORKLOAD, errors, kl, size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--sample", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    loaded = load(asked.model, dtype="float32")
    facts = provenance(loaded, seed=0, workload=WORKLOAD)
    rows = measured(loaded, SAMPLE if asked.sample else CODECS)
    rows += [] if asked.sample else ranked(rows)
    if asked.json:
        print(json.dumps(document("codecs", rows, facts), default=str))


if __name__ == "__main__":
    main()
