"""Measure which rows of a tool prompt each method keeps, and how much of what a call reads there: docs/quality.md.

    PYTHONPATH=experiments/eviction_methods python experiments/kept_tools/measure.py MODEL --data FOLDER

The calls are those of experiments/eviction_methods/tools.py, for any model. FOLDER holds `bfcl/`.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from evicted_once import evicted, prompt_pass
from tools import calls

from kvlab.caches.later_attention import continuation_attention
from kvlab.caches.serialize import own_layers
from kvlab.experiments.forced_answers import ForcedItem, forced_items
from kvlab.experiments.prompts import Prompts
from kvlab.models import LoadedModel, load
from kvlab.policies.scorers.sepllm import SepLLM
from kvlab.provenance import provenance

METHODS = (
    "keydiff", "adakv(keydiff)", "knorm", "tova", "snapkv", "adakv(snapkv)", "criticalkv(snapkv)", "pyramidkv:window=8",
    "h2o", "expected", "lagkv", "cur", "compactor", "random",
)  # fmt: skip
BUDGETS = (0.25, 0.5)
LATEST = 32


def name_places(loaded: LoadedModel, item: ForcedItem) -> list[int]:
    """Return the positions of the tokens of the called function's name in its prompt."""
    name = (item.request.reference or {})["tool_calls"][0]["function"]["name"]
    text, starts = "", []
    for token in item.forced.prompt:
        starts.append(len(text))
        text += loaded.tokenizer.decode([token])
    at = text.index(name)
    ends = [*starts[1:], len(text)]
    return [i for i, (start, end) in enumerate(zip(starts, ends, strict=True)) if start < at + len(name) and end > at]


def measured(loaded: LoadedModel, item: ForcedItem, methods: Sequence[str]) -> list[dict[str, Any]]:
    prompt, name = list(item.forced.prompt), name_places(loaded, item)
    read = np.stack(
        [np.asarray(one) for one in continuation_attention(loaded.model, prompt, item.forced.answer).layers]
    )
    whole, rows = prompt_pass(loaded, prompt), []
    for method in methods:
        for budget in BUDGETS:
            spec = f"{method}{',' if ':' in method else ':'}budget={budget}"
            caches, _ = evicted(loaded, whole, spec)
            kept = np.zeros(read.shape, bool)
            for layer, cache in enumerate(own_layers(caches)):
                for head, row in enumerate(np.array(cache.positions()[0])):
                    kept[layer, head, row[row >= 0]] = True
            later = read[:, :, 1:]  # without the first token, which is read whatever is asked
            rows.append(
                {
                    "method": method.partition(":")[0],
                    "budget": budget,
                    "first_token": float(kept[:, :, 0].mean()),
                    "latest": float(kept[:, :, -LATEST:].mean()),
                    "name": float((read * kept)[:, :, name].sum() / read[:, :, name].sum()),
                    "read": float((later * kept[:, :, 1:]).sum() / later.sum()),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder or name of a model, such as smollm2-135m")
    parser.add_argument("--data", type=Path, default=Path("."))
    parser.add_argument("--calls", type=int, help="the first ones only")
    parser.add_argument("--out", type=Path, help="file of the rows, in JSON")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    loaded = load(args.model, dtype="float32")
    _, requests = calls(args.model, args.data)
    methods = (*METHODS, str(SepLLM.for_tokenizer(loaded.tokenizer)))
    found: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for item in forced_items(requests, Prompts(loaded, requests))[: args.calls]:
        for row in measured(loaded, item, methods):
            found.setdefault((row["method"], row["budget"]), []).append(row)
        print(len(next(iter(found.values()))), "calls", file=sys.stderr, flush=True)
    names = ("first_token", "latest", "name", "read")
    rows = [
        {"method": method, "budget": budget, **{name: float(np.mean([one[name] for one in some])) for name in names}}
        for (method, budget), some in found.items()
    ]
    if args.out:
        facts = {"provenance": provenance(loaded), "calls": len(next(iter(found.values()))), "rows": rows}
        args.out.write_text(json.dumps(facts, indent=1, default=str) + "\n")
    for row in rows:
        print(f"{row['method']:20s} {row['budget']:.2f}", *(f"{name} {row[name]:.2f}" for name in names))


if __name__ == "__main__":
    main()
