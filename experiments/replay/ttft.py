"""Does a replay say how long requests wait? A live run, beside the replay of what it recorded, by this machine's costs.

    PYTHONPATH=. python experiments/replay/ttft.py --cost cost.json --out experiments/rows/replay_ttft.json

``cost.json`` is what ``kvlab bench cost --model MODEL --json`` printed here. Agents take turns in several conversations
through one decoder that records its events; then ``kvlab.replay`` loads that record, replays its blocks through tiers
of the same sizes, and predicts each request's ``ttft_ms`` from the costs. Nothing else goes from the live run into the
prediction: neither what was found nor how long anything took, but the times at which requests came. Where requests
run one by one, the live run is made several times, and the median of each request's waits counts; the last record is
replayed.

``ram``: all KV fits in RAM. ``ssd``: RAM holds less than a prompt, so that KV comes from the drive; where requests run
one by one, the system is asked to forget its files before each. ``--concurrency``: conversations side by side.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kvlab.bench.cost import forget_folder
from kvlab.decoder import Decoder
from kvlab.experiments.conversations import Turn, warm_up
from kvlab.experiments.prompts import Prompts
from kvlab.models import LoadedModel, load
from kvlab.policies import Policy
from kvlab.provenance import document, provenance
from kvlab.recording.recorder import Recorder
from kvlab.replay import replay_tiers
from kvlab.replay.loaders.kvlab_events import trace_of_events
from kvlab.speed import read_speed
from kvlab.workloads.agent import Agent

BLOCK = 64
RAM_SIZES = {"ram": "2GB", "ssd": "4MB"}
SSD_SIZE = "8GB"


def served(
    loaded: LoadedModel, policy: str, turns: Sequence[Turn], folder: Path, concurrency: int
) -> tuple[Recorder, dict[int, float]]:
    """Serve conversations, ``concurrency`` at once; return the record, and ms to first tokens by request."""
    warm_up(loaded, Policy.parse(policy), turns)
    recorder, waits, lock = Recorder(), dict[int, float](), threading.Lock()
    conversations: dict[str, list[Turn]] = {}
    for turn in turns:
        conversations.setdefault(turn.conversation, []).append(turn)
    with Decoder(loaded, policy, recorder=recorder, retain=0, max_concurrency=max(1, concurrency)) as decoder:

        def converse(mine: Sequence[Turn]) -> None:
            for turn in mine:
                if concurrency == 1 and decoder.store is not None:
                    decoder.store.flush()
                    forget_folder(folder)
                tags = {"conversation": turn.conversation, "turn": turn.turn}
                done = decoder.generate(turn.prompt, max_tokens=turn.max_tokens, tags=tags)
                with lock:
                    waits[done.request] = done.ttft_ms

        if concurrency == 1:
            converse(sorted(turns, key=lambda turn: turn.turn))  # they take turns: what was read last is not next
        else:
            with ThreadPoolExecutor(concurrency) as pool:
                list(pool.map(converse, conversations.values()))
    return recorder, waits


def errors_of(predicted: np.ndarray, live: np.ndarray) -> np.ndarray:
    return np.abs(predicted - live) / live


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cost", required=True)
    parser.add_argument("--model")
    parser.add_argument("--conversations", type=int, default=3)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=3, help="live runs; medians of their waits count")
    parser.add_argument("--tiers", nargs="+", default=["ram", "ssd"])
    options = parser.parse_args()
    loaded, speed, rows = load(options.model), read_speed(options.cost), []
    requests = Agent(options.conversations, turns=options.turns).requests()
    prompts = Prompts(loaded, requests)
    turns = [prompts.turn(request) for request in requests]
    for concurrency in options.concurrency:
        for tier in options.tiers:
            runs = []
            for _ in range(options.repeats if concurrency == 1 else 1):  # side by side, no run is like another
                with tempfile.TemporaryDirectory(prefix="kvlab-ttft-") as made:
                    policy = f"paged:block={BLOCK}|tiered:ram={RAM_SIZES[tier]},ssd={SSD_SIZE},dir={made}"
                    recorder, waits = served(loaded, policy, turns, Path(made), concurrency)
                    runs.append(waits)
            trace = trace_of_events(f"{loaded.name} {tier}", recorder)
            found = replay_tiers(
                trace, RAM_SIZES[tier], SSD_SIZE, cost=speed, concurrency=concurrency, workers=1, progress=False
            )
            [counts] = found.counts
            predicted = found.requests(counts)["ttft_ms"].to_numpy()
            matched = recorder.frame("matched").sort("request")
            live = np.median([[waits[request] for request in matched["request"]] for waits in runs], axis=0)
            cached = matched["cached_tokens"].to_numpy()
            errors = errors_of(predicted, live)
            about = {"policy": "tiered", "workload": "agent", "model": loaded.name, "tier": tier, "n": concurrency}
            for at, request in enumerate(matched["request"]):
                row = {**about, "request": int(request), "unit": "ms", "metric": "ttft_ms"}
                rows.append({**row, "value": float(live[at]), "of": "live", "cached_tokens": int(cached[at])})
                rows.append({**row, "value": float(predicted[at]), "of": "replay",
                             "cached_tokens": int(counts.cached[at])})  # fmt: skip
            for name, percent in (("median", 50), ("p95", 95)):
                value = float(np.percentile(errors, percent))
                rows.append({**about, "metric": f"error_{name}", "value": value, "unit": "fraction"})
            print(tier, concurrency, f"median {np.median(errors):.1%}  p95 {np.percentile(errors, 95):.1%}")
            for at in range(len(live)):
                print(
                    f"  {int(trace.input_tokens[at]):5} cached {cached[at]:5}/{counts.cached[at]:5} "
                    f"live {live[at]:8.1f} predicted {predicted[at]:8.1f}  {predicted[at] / live[at] - 1:+.0%}"
                )
    made_of = document("replay", rows, provenance(loaded, cost=vars(speed)))
    options.out.write_text(json.dumps(made_of, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
