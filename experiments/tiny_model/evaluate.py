"""Measures a model folder greedily on fresh prompts, under no policy at all: plain mlx-lm, one request at a time.

`python experiments/tiny_model/evaluate.py` prints one JSON document of tidy rows; `--record` also writes them into
the folder's provenance.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import kvlab  # noqa: E402, F401, I001  (before MLX: it loads a fast BLAS)

import mlx.core as mx  # noqa: E402
import mlx_lm  # noqa: E402
from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache  # noqa: E402
from tqdm import tqdm  # noqa: E402

from kvlab.workloads import WorkloadRequest, load_workload  # noqa: E402

CHUNK = 512
AGENT_TURNS = 15


class Greedy:
    """Greedy answers; the KV of a conversation's earlier turns is kept, so that a turn costs its new tokens only."""

    def __init__(self, folder: Path) -> None:
        self.model, self.tokenizer = mlx_lm.load(str(folder))
        self.cache, self.cached = make_prompt_cache(self.model), []

    def encode(self, request: WorkloadRequest) -> list[int]:
        return self.tokenizer.apply_chat_template(
            list(request.messages), tools=list(request.tools) or None, add_generation_prompt=True, return_dict=False
        )

    def answer(self, request: WorkloadRequest) -> str:
        prompt = self.encode(request)
        same = 0
        while same < min(len(prompt) - 1, len(self.cached)) and prompt[same] == self.cached[same]:
            same += 1
        trim_prompt_cache(self.cache, len(self.cached) - same)
        for start in range(same, len(prompt), CHUNK):
            logits = self.model(mx.array([prompt[start : start + CHUNK]]), self.cache)
            mx.eval(logits)
        said: list[int] = []
        while len(said) < request.max_tokens:
            token = mx.argmax(logits[0, -1]).item()
            if token in self.tokenizer.eos_token_ids:
                break
            said.append(token)
            logits = self.model(mx.array([[token]]), self.cache)
        self.cached = prompt + said
        return self.tokenizer.decode(said)


def measure(greedy: Greedy, name: str, requests: list[WorkloadRequest], show: int, **columns: int) -> list[dict]:
    """One row for each kind and metric: the mean score, and `requests`, how many it is the mean of."""
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    for request in tqdm(requests, desc=name, file=sys.stderr, mininterval=5):
        text = greedy.answer(request)
        grades = request.grade(text)
        for metric, score in grades.items():
            scores[request.kind, metric].append(score)
        if show > 0 and min(grades.values(), default=1.0) < 1.0:
            show -= 1
            print(f"{request.conversation} turn {request.turn}: {text!r}, not {request.reference}", file=sys.stderr)
    return [
        {
            "policy": "full",
            "workload": name,
            "metric": metric,
            "value": sum(values) / len(values),
            "unit": "ratio",
            "kind": kind,
            "requests": len(values),
            **columns,
        }
        for (kind, metric), values in sorted(scores.items())
    ]


def record(path: Path, document: dict) -> None:
    """Writes the rows into the model's provenance; rows of what was not measured now stay."""
    provenance = json.loads(path.read_text())
    measured = {(row["workload"], row.get("tokens")) for row in document["rows"]}
    earlier = provenance.get("measured", {}).get("rows", [])
    kept = [row for row in earlier if (row["workload"], row.get("tokens")) not in measured]
    provenance["measured"] = {**document, "rows": kept + document["rows"]}
    path.write_text(json.dumps(provenance, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "data" / "tiny")
    parser.add_argument("--n", type=int, default=200, help="prompts of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", type=int, default=0, help="wrong answers to print for each workload")
    parser.add_argument("--only", choices=("retrieval", "agent", "chat"))
    parser.add_argument("--tokens", type=int, nargs="*", default=[1500, 4000], help="lengths of retrieval prompts")
    parser.add_argument("--record", action="store_true", help="write the rows into the folder's provenance.json")
    arguments = parser.parse_args()
    greedy = Greedy(arguments.model)

    def count(text: str) -> int:
        return len(greedy.tokenizer.encode(text, add_special_tokens=False))

    rows: list[dict] = []
    if arguments.only in (None, "agent"):
        # a cycle of five turns has two calls, two answers and one recall
        conversations = -(-arguments.n // (AGENT_TURNS // 5))
        requests = load_workload("agent", n=conversations, seed=arguments.seed).requests()
        rows += measure(greedy, "agent", requests, arguments.show)
    if arguments.only in (None, "chat"):
        requests = load_workload("chat", n=-(-arguments.n // 4), seed=arguments.seed).requests()
        rows += measure(greedy, "chat", requests, arguments.show)
    if arguments.only in (None, "retrieval"):
        for tokens in arguments.tokens:
            workload = load_workload("retrieval", n=arguments.n, seed=arguments.seed, tokens=tokens, count=count)
            rows += measure(greedy, "retrieval", workload.requests(), arguments.show, tokens=tokens)
    document = {"command": "evaluate", "provenance": {"seed": arguments.seed, "mlx": mx.__version__}, "rows": rows}
    print(json.dumps(document, indent=2))
    if arguments.record:
        record(arguments.model / "provenance.json", document)


if __name__ == "__main__":
    main()
