"""Measure which rows of a needle each method keeps, and how much of what an answer reads there: docs/quality.md.

The bundled model, which knows no needles, is asked for a fact of a document. Rows are evicted once, at the end of the
prompt, or with ``--unknown`` at the end of the text before the question.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from kvlab.caches import make_caches
from kvlab.caches.later_attention import continuation_attention
from kvlab.caches.serialize import own_layers
from kvlab.experiments.prompts import Prompts
from kvlab.models import BUNDLED, LoadedModel, load
from kvlab.provenance import provenance
from kvlab.workloads import load_workload
from kvlab.workloads.needle import NeedleRequest

METHODS = (
    "keydiff", "adakv(keydiff)", "compactor", "tova", "lagkv", "local(keydiff)", "local(knorm)", "knorm", "h2o",
    "adakv(snapkv)", "snapkv", "criticalkv(snapkv)", "pyramidkv:window=8", "expected", "cur", "random",
)  # fmt: skip
BUDGETS = (0.25, 0.5)
LATEST = 30
"""Last tokens of the prompt, which hold the question."""


def places_of(loaded: LoadedModel, prompt: Sequence[int], value: str) -> list[int]:
    """Return the positions of the tokens of a value in a prompt."""
    text, starts = "", []
    for token in prompt:
        starts.append(len(text))
        text += loaded.tokenizer.decode([token])
    at = text.index(value)
    ends = [*starts[1:], len(text)]
    return [i for i, (start, end) in enumerate(zip(starts, ends, strict=True)) if start < at + len(value) and end > at]


@dataclass(frozen=True)
class Case:
    """A prompt and what it hides.

    Attributes:
        prompt: token ids.
        value: what is asked for, as it stands in the text.
        answer: tokens whose reading counts.
        question: so many last tokens of the prompt hold the question.
        seen: the tokens that are there when rows are evicted; the rest comes later.
    """

    prompt: list[int]
    value: str
    answer: list[int]
    question: int
    seen: int


def cases(loaded: LoadedModel, count: int, unknown: bool) -> Iterator[Case]:
    is_bundled = loaded.name == load(BUNDLED).name
    spec = "retrieval:question=none" if is_bundled else "needle:single,question=none"
    requests = load_workload(spec, n=count, seed=0, tokens=700 if is_bundled else 1000).requests()
    prompts = Prompts(loaded, requests)
    for request in requests:
        turn = prompts.turn(request)
        prompt, before = list(turn.prompt), turn.compress_after or len(turn.prompt)
        seen = before if unknown else len(prompt)
        if isinstance(request, NeedleRequest):
            value = request.values[0]
            yield Case(prompt, value, loaded.tokenizer.encode(value), LATEST, seen)
        else:
            value = request.wanted.rpartition("#")[2].rstrip(".")
            yield Case(prompt, value, loaded.tokenizer.encode(request.wanted), len(prompt) - before, seen)


def measured(loaded: LoadedModel, case: Case) -> list[dict[str, Any]]:
    prompt = case.prompt
    needle = places_of(loaded, prompt, case.value)
    read = continuation_attention(loaded.model, prompt, case.answer).layers
    first = prompt[: case.seen]
    rows = []
    for method in METHODS:
        for budget in BUDGETS:
            spec = f"{method}{',' if ':' in method else ':'}budget={budget}"
            caches = make_caches(loaded.model, spec, prompt_tokens=len(first), token_ids=lambda: first)
            mx.eval(loaded.model(mx.array([first]), cache=caches))
            kept = np.zeros((len(read), len(read[0]), len(prompt)), bool)
            for layer, cache in enumerate(own_layers(caches)):
                for head, row in enumerate(np.array(cache.positions()[0])):
                    kept[layer, head, row[row >= 0]] = True
            kept[:, :, case.seen :] = True
            weights = np.stack(read)[:, :, needle]
            rows.append(
                {
                    "method": method.partition(":")[0],
                    "budget": budget,
                    "digits": float(kept[:, :, needle].mean()),
                    "heads_with_all_digits": float(kept[:, :, needle].all(axis=2).mean()),
                    "read_of_digits": float((weights * kept[:, :, needle]).sum() / weights.sum()),
                    "first_token": float(kept[:, :, 0].mean()),
                    "question": float(kept[:, :, -case.question :].mean()),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a folder or name of a model, such as smollm2-135m's folder")
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--unknown", action="store_true", help="evict before the question is there")
    parser.add_argument("--out", type=Path, help="file of the rows, in JSON")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    loaded = load(args.model, dtype="float32")
    found: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for case in cases(loaded, args.prompts, args.unknown):
        for row in measured(loaded, case):
            found.setdefault((row["method"], row["budget"]), []).append(row)
        print(len(next(iter(found.values()))), "prompts", file=sys.stderr, flush=True)
    names = ("digits", "heads_with_all_digits", "read_of_digits", "first_token", "question")
    rows = [
        {"method": method, "budget": budget, **{name: float(np.mean([one[name] for one in some])) for name in names}}
        for (method, budget), some in found.items()
    ]
    text = json.dumps(
        {"provenance": provenance(model=loaded), "prompts": args.prompts, "unknown": args.unknown, "rows": rows},
        indent=1,
        default=str,
    )
    if args.out:
        args.out.write_text(text + "\n")
    for row in rows:
        print(f"{row['method']:20s} {row['budget']:.2f}", *(f"{name} {row[name]:.2f}" for name in names))


if __name__ == "__main__":
    main()
