"""Print prompts of `needle:single` as token ids, for `answers.py`. Runs in kvlab's environment."""

from __future__ import annotations

import json

import kvlab
from kvlab.experiments.prompts import Prompts, tokens_before
from kvlab.workloads.needle import Needle

MODEL, TOKENS, PROMPTS, SEED = "smollm2-135m", 1000, 8, 0


def main() -> None:
    model = kvlab.load(MODEL)
    requests = Needle("single", PROMPTS, SEED, TOKENS, lambda text: len(model.encode(text)), question="none").requests()
    written = Prompts(model, requests)
    rows = []
    for request in requests:
        ids = written.ids(request)
        seen = tokens_before(model, ids, request.unseen)
        rows.append({"tokens": list(ids), "seen": seen, "wanted": request.wanted, "max_tokens": request.max_tokens})
    print(json.dumps({"eos": sorted(model.eos), "prompts": rows}))


if __name__ == "__main__":
    main()
