"""One machine with a model: takes an order a line, as JSON, and answers with a line of JSON. See measure.py.

Each order opens decoders of its own, with RAM and SSD that are empty at first.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from kvlab import models
from kvlab.decoder import Completion, Decoder
from kvlab.experiments.conversations import warm_up
from kvlab.experiments.prompts import Prompts
from kvlab.models import LoadedModel
from kvlab.policies import Kvtc, Policy, Tiered
from kvlab.workloads.agent import Agent

STORE_FIGURES = ("remote_bytes_sent", "remote_bytes_received", "remote_trips", "remote_late", "remote_failures")
MIN_TOKEN = 100
"""Token ids below are often control tokens."""


def with_remote(policy: str, url: str, folder: str, wait_ms: int, restore: str = "always") -> Policy:
    """Return the policy with the remote as a tier, and its files in ``folder``."""
    given = Policy.parse(policy)
    tiers = given.tiers if isinstance(given.tiers, Tiered) else Tiered()
    others = [given.retention, given.codec] + ([given.reuse] if given.reuse.name != "none" else [])
    return Policy(*others, replace(tiers, remote=url, remote_wait=wait_ms, dir=folder, restore=restore))


def without_tiers(policy: str) -> Policy:
    """Return what computes every prompt as a whole, with the same retention, and with the codec of live KV."""
    given = Policy.parse(policy)
    return Policy(given.retention) if isinstance(given.codec, Kvtc) else Policy(given.retention, given.codec)


class Orders:
    """What a machine can be told to do; each method's name is an order."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model

    def prompt(self, length: int, number: int = 0) -> list[int]:
        """Return a prompt of a length: no other one begins as it does."""
        rng = random.Random(f"{length}/{number}")
        return [rng.randrange(MIN_TOKEN, self.model.model.args.vocab_size) for _ in range(length)]

    @contextlib.contextmanager
    def machine(
        self, policy: str, url: str, wait_ms: int, restore: str = "always", **settings: Any
    ) -> Iterator[Decoder]:
        """Yield a decoder of a machine that has nothing of its own yet."""
        with tempfile.TemporaryDirectory(prefix="kvlab-two-macs-") as folder:
            with_folder = with_remote(policy, url, folder, wait_ms, restore)
            with Decoder(self.model, with_folder, **settings) as decoder:
                yield decoder

    def loop(self, policy: str, url: str | None, turns: int, wait_ms: int = 50) -> dict[str, Any]:
        """Serve an agent's conversation; without ``url`` every prompt is computed as a whole."""
        prompts = Prompts(self.model, requests := Agent(1, 0, turns).requests())
        asked = [prompts.turn(request) for request in requests]
        with tempfile.TemporaryDirectory(prefix="kvlab-two-macs-") as folder:
            own = without_tiers(policy) if url is None else with_remote(policy, url, folder, wait_ms)
            warm_up(self.model, own, asked)
            with Decoder(self.model, own) as decoder:
                done = [decoder.generate(turn.prompt, max_tokens=turn.max_tokens) for turn in asked]
                return {"turns": [told(one) for one in done], "store": figures(decoder)}

    def fill(self, policy: str, url: str, lengths: list[int], wait_ms: int = 50) -> dict[str, Any]:
        """Compute a prompt of each length, and wait until the remote has it."""
        with self.machine(policy, url, wait_ms) as decoder:
            for length in lengths:
                decoder.generate(self.prompt(length), max_tokens=1)
                assert decoder.store is not None
                if not decoder.store.flush():
                    raise RuntimeError(f"the remote did not take a prompt of {length} tokens")
            return {"store": figures(decoder)}

    def lengths(self, policy: str, url: str, lengths: list[int], repeats: int, wait_ms: int) -> dict[str, Any]:
        """Measure prompts that the remote has, and in turn with each of them the same one computed."""
        rows = []
        with Decoder(self.model, without_tiers(policy)) as alone:
            alone.generate(self.prompt(max(lengths) - 1), max_tokens=1)
            for repeat in range(repeats):
                for length in lengths:
                    prompt = self.prompt(length)
                    with self.machine(policy, url, wait_ms) as decoder:
                        shared = decoder.generate(prompt, max_tokens=4)
                        stats = figures(decoder)
                    computed = alone.generate(prompt, max_tokens=4)
                    row = {"length": length, "repeat": repeat, "computed_ttft_ms": computed.ttft_ms}
                    rows.append(row | told(shared) | stats | {"equal": shared.tokens == computed.tokens})
        return {"rows": rows}

    def auto(self, policy: str, url: str, lengths: list[int], learn: list[int], wait_ms: int) -> dict[str, Any]:
        """Let ``restore=auto`` learn from prompts of other lengths, then serve those that the remote has.

        Of ``learn`` the first half is unknown to the remote, so that it is computed; the other half is read.
        """
        with self.machine(policy, url, wait_ms, "auto", retain=0) as decoder:
            for length in learn:
                decoder.generate(self.prompt(length), max_tokens=1)
            rows = [
                {"length": length} | told(decoder.generate(self.prompt(length), max_tokens=1)) for length in lengths
            ]
            return {"rows": rows, "store": figures(decoder)}


def told(done: Completion) -> dict[str, Any]:
    return {
        "prompt_tokens": done.prompt_tokens,
        "cached_tokens": done.cached_tokens,
        "from_remote": done.cached_by_tier.get("remote", 0),
        "ttft_ms": done.ttft_ms,
        "lookup_ms": done.lookup_ms,
        "restore_ms": done.restore_ms,
        "miss": done.miss,
        "tokens": list(done.tokens),
    }


def figures(decoder: Decoder) -> dict[str, int]:
    """Return what the store counted of its remote; nothing without a store."""
    if decoder.store is None:
        return {}
    decoder.store.flush()
    stats = decoder.store.stats()
    return {name: stats[name] for name in STORE_FIGURES}


def main(model: str) -> None:
    orders = Orders(models.load(model) if model != "bundled" else models.load())
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(getattr(orders, order.pop("order"))(**order)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
