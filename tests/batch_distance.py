"""Batches whose logits are compared with those of each request alone, in 16 bits, where no batch is exact."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvlab.decoder import Decoder, logit_distance
from kvlab.decoder.logit_distance import COMPARED_TOKENS, Distances, Leader, Logits
from kvlab.models import LoadedModel
from tests.lab import Prompt, busy

MLX_LM = "mlx-lm"
PREFILL_STEP = 2048
RAGGED = (23, 41, 67, 96, 133, 171, 222, 290)
COMMON, ENDS = 160, (5, 9, 16, 24, 33, 41, 52, 64)


def ragged(seed: int) -> list[Prompt]:
    """Eight prompts of different lengths."""
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(5, 250, length).tolist()) for length in RAGGED]


def forked(seed: int) -> list[Prompt]:
    """Eight prompts that begin with the same COMMON tokens and end differently."""
    rng = np.random.default_rng(seed)
    common = rng.integers(5, 250, COMMON).tolist()
    return [(*common, *rng.integers(5, 250, length).tolist()) for length in ENDS]


def measure(loaded: LoadedModel, prompts: list[Prompt], policies: Sequence[str]) -> dict[str, Distances]:
    """Distances of ``prompts``, decoded together: by mlx-lm (``MLX_LM``), and by kvlab's decoder under each policy."""
    wanted = logit_distance.alone(loaded, prompts, PREFILL_STEP)
    own = logit_distance.in_mlx_lm_batch(loaded, prompts, wanted, PREFILL_STEP)
    found = {MLX_LM: logit_distance.distances(own, wanted)}
    for policy in policies:
        found[policy] = logit_distance.distances(_admitted_together(loaded, policy, prompts, wanted), wanted)
    return found


def _admitted_together(loaded: LoadedModel, policy: str, prompts: list[Prompt], wanted: Logits) -> Logits:
    led: list[Leader] = logit_distance.leaders(loaded, wanted)
    with Decoder(loaded, policy) as decoder:
        with busy(decoder):
            streams = [
                decoder.submit(prompt, max_tokens=COMPARED_TOKENS, logits_processors=[leader])
                for prompt, leader in zip(prompts, led, strict=True)
            ]
        for stream in streams:
            stream.result()
    return [leader.logits for leader in led]
