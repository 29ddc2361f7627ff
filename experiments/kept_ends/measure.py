"""Measure what the first token and the latest tokens of a page are worth to methods that evict them: docs/quality.md.

Scores of `random`, `keydiff` and `knorm` are computed once at the end of the prompt, as they are and with some rows
lifted above all others; each choice is led along the same tokens as in experiments/methods_kl.toml.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np

from kvlab.caches import make_caches
from kvlab.caches.serialize import own_layers
from kvlab.experiments.teacher_forced import TeacherForcedRunner
from kvlab.models import LoadedModel, load
from kvlab.policies import Policy
from kvlab.policies.scorers.base import ScoreContext
from kvlab.policies.scorers.keydiff import KeyDiff
from kvlab.policies.scorers.knorm import KNorm
from kvlab.policies.scorers.saved_scores import save_scores
from kvlab.provenance import provenance
from kvlab.workloads.base import WorkloadRequest
from kvlab.workloads.forced import TEXT, TeacherForced, TextRequest

TEXTS = Path(__file__).parent.parent / "eviction_methods" / "texts"
CONTEXT_TOKENS, ANSWER_TOKENS = 800, 32
LATEST = 32
BUDGET = 0.5
LIFTED = {"as it is": (), "first token stays": (slice(0, 1),), f"latest {LATEST} stay": (slice(-LATEST, None),)}
LIFTED |= {"both stay": (slice(0, 1), slice(-LATEST, None))}


class Page(TeacherForced):
    """The beginning of one text, and the tokens behind it, which are forced."""

    def __init__(self, path: Path) -> None:
        self.name, self.path = "kl:docs", path

    def requests(self) -> list[WorkloadRequest]:
        text = self.path.read_text(encoding="utf-8")
        return [
            TextRequest(self.path.stem, 1, (), (), None, TEXT, ANSWER_TOKENS, text=text, context_tokens=CONTEXT_TOKENS)
        ]


def scores_by_method(loaded: LoadedModel, prompt: tuple[int, ...]) -> dict[str, list[np.ndarray]]:
    """Return each method's scores ``[n_kv_heads, tokens]`` of every layer at the end of the prompt."""
    caches = make_caches(loaded.model, "knorm:budget=1.0")  # rows as they are, in caches that can be read
    mx.eval(loaded.model(mx.array([list(prompt)]), cache=caches))
    draws = np.random.default_rng(0)
    found: dict[str, list[np.ndarray]] = {"random": [], "keydiff": [], "knorm": []}
    for layer, cache in enumerate(own_layers(caches)):
        keys, values = cache.rows.decode()
        at = mx.broadcast_to(mx.arange(keys.shape[2]), keys.shape[:3])
        place = ScoreContext(keys, values, at, None, 1.0, layer, len(caches), keys.shape[2])
        found["random"].append(draws.random(keys.shape[1:3]))
        found["keydiff"].append(np.array(KeyDiff().score(place)[0]))
        found["knorm"].append(np.array(KNorm().score(place)[0]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a folder or name of a model, such as smollm2-135m")
    parser.add_argument("--pages", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file of the rows, in JSON")
    args = parser.parse_args()
    loaded, rows = load(args.model, dtype="float32"), []
    for path in sorted(TEXTS.glob("*.md"))[: args.pages]:
        runner = TeacherForcedRunner(Page(path), loaded, concurrency=1, progress=False)
        with tempfile.TemporaryDirectory() as folder:
            names = {}
            for method, layers in scores_by_method(loaded, runner.items[0].forced.prompt).items():
                for said, places in LIFTED.items():
                    lifted = [one.copy() for one in layers]
                    for one in lifted:
                        for place in places:
                            one[:, place] = 1e6
                    file = Path(folder) / f"{method}-{len(names)}.npz"
                    save_scores(file, runner.items[0].forced.prompt, lifted)
                    names[str(Policy.parse(f"oracle:budget={BUDGET},scores={file}"))] = (method, said)
            found: dict[tuple[str, str], dict[str, object]] = {}
            for row in runner.run([Policy.parse(spec) for spec in names]).rows:
                if row["metric"] in ("kl", "top1") and row.get("conversation"):
                    method, said = key = names[row["policy"]]
                    one = found.setdefault(key, {"page": path.stem, "method": method, "rows": said, "budget": BUDGET})
                    one[row["metric"]] = row["value"]
        rows += found.values()
        print(*found.values(), sep="\n", flush=True)
    if args.out:
        args.out.write_text(json.dumps({"provenance": provenance(loaded), "rows": rows}, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
