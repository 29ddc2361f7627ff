"""The tier of every block of each conversation, after every request."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import polars as pl

from kvlab import models
from kvlab.decoder import Decoder
from kvlab.errors import PolicyError, RunError
from kvlab.models import LoadedModel
from kvlab.policies import Module, Policy
from kvlab.policies.ssd_folder import with_ssd_folder
from kvlab.store import Store
from kvlab.tiers import tiers_at_rest
from kvlab.workloads import Workload, load_workload

GONE = "gone"


@dataclass(frozen=True)
class BlockResidency:
    """``blocks``: ``step``, ``conversation``, ``block``, ``tier`` (one at rest, or `gone`), for conversations that were
    seen. ``steps``: ``step``, ``conversation``, ``turn``, ``cached_tokens``, ``prompt_tokens``, ``ttft_ms``, ``miss``,
    and the bytes in each tier, under its name."""

    policy: Policy
    blocks: pl.DataFrame
    steps: pl.DataFrame


def resting(decoder: Decoder, prompt: Sequence[int]) -> list[str]:
    """Return the tier of each block of a served prompt, the last, partial one included; ``gone`` behind a gap.

    Raises RunError where the decoder's policy keeps nothing at rest.
    """
    try:
        space = decoder.namespace()
    except PolicyError as error:
        raise RunError(str(error)) from error
    store = cast(Store, decoder.store)  # a policy with a namespace has one
    match = store.match(space, prompt)
    store.release(match)
    tiers = [piece.tier for piece in match.pieces]
    return tiers + [GONE] * (-(-len(prompt) // space.block) - len(tiers))


def follow_blocks(
    policy: str | Policy | Module,
    workload: str | Workload = "chat",
    model: str | Path | LoadedModel | None = None,
    *,
    n: int = 4,
    turns: int = 2,
    seed: int = 0,
) -> BlockResidency:
    """Serve ``n`` conversations in turn, one request at a time, and note the tier of every block after each request.

    The SSD tier is a folder that is removed afterwards, unless the policy names one. Raises KvlabError.
    """
    loaded = model if isinstance(model, LoadedModel) else models.load(model)
    parsed = Policy.parse(policy)
    if isinstance(workload, str):
        workload = load_workload(workload, turns=turns, n=n, seed=seed, count=lambda text: len(loaded.encode(text)))
    requests = sorted(workload.requests(), key=lambda request: request.turn)
    blocks, steps = [], []
    seen: dict[str, list[int]] = {}
    # No sequence stays warm: this follows KV at rest.
    with (
        tempfile.TemporaryDirectory(prefix="kvlab-store-") as folder,
        Decoder(loaded, with_ssd_folder(parsed, Path(folder)), retain=0) as decoder,
    ):
        for step, request in enumerate(requests, start=1):
            prompt = loaded.render(list(request.messages), list(request.tools))
            done = decoder.generate(prompt, max_tokens=request.max_tokens)
            seen[request.conversation] = prompt
            for conversation, known in seen.items():
                tiers = resting(decoder, known)
                blocks += [(step, conversation, block, tier) for block, tier in enumerate(tiers)]
            held: Mapping[str, int] = decoder.tiers_bytes()
            steps.append(
                {
                    "step": step,
                    "conversation": request.conversation,
                    "turn": request.turn,
                    "cached_tokens": done.cached_tokens,
                    "prompt_tokens": done.prompt_tokens,
                    "ttft_ms": done.ttft_ms,
                    "miss": done.miss,
                    **{tier.name: held.get(tier.name, 0) for tier in tiers_at_rest(held)},
                }
            )
    schema = {"step": pl.Int64, "conversation": pl.String, "block": pl.Int64, "tier": pl.String}
    return BlockResidency(parsed, pl.DataFrame(blocks, schema=schema, orient="row"), pl.DataFrame(steps))
