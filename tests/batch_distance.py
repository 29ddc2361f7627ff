"""How far logits in a batch lie from those of the same request alone, in 16 bits, where no batch is exact.

The answers of a request alone, by mlx-lm, are taken as given: every other run is led along the same tokens, so that all
its logits can be compared, also behind the place where it would have taken another token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx_lm.generate import BatchGenerator

from kvlab.decoder import Decoder
from kvlab.models import LoadedModel
from tests.lab import END, Prompt, busy

MLX_LM = "mlx-lm"
TOKENS = 12
RAGGED = (23, 41, 67, 96, 133, 171, 222, 290)
COMMON, ENDS = 160, (5, 9, 16, 24, 33, 41, 52, 64)
LED = 1e4
"""The logit of the token that a run is led to: above any of a model's, and within what float16 holds."""


@dataclass(frozen=True)
class Distances:
    """Distances of one way to compute batches: one a request, the mean over its tokens and the vocabulary.

    Attributes:
        values: one a request.
        parted: requests whose greedy answer would have been another.
    """

    values: tuple[float, ...] = ()
    parted: int = 0

    def __add__(self, other: Distances) -> Distances:
        return Distances(self.values + other.values, self.parted + other.parted)

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def error(self) -> float:
        """Standard error of the mean: most requests meet no rounding that falls the other way, a few meet many."""
        return float(np.std(self.values, ddof=1) / len(self.values) ** 0.5)


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
    alone = [Leader() for _ in prompts]
    for prompt, leader in zip(prompts, alone, strict=True):
        mlx_lm_batch(loaded, [prompt], [leader])
    wanted = [leader.logits for leader in alone]
    tokens = [logits.argmax(axis=1).tolist() for logits in wanted]
    found = {}
    for way in (MLX_LM, *policies):
        led = [Leader(answer) for answer in tokens]
        if way == MLX_LM:
            mlx_lm_batch(loaded, prompts, led)
        else:
            decoder_batch(loaded, way, prompts, led)
        pairs = list(zip((leader.logits for leader in led), wanted, strict=True))
        found[way] = Distances(
            tuple(float(np.abs(got - want).mean()) for got, want in pairs),
            sum(not np.array_equal(got.argmax(axis=1), want.argmax(axis=1)) for got, want in pairs),
        )
    return found


class Leader:
    """A logits processor that notes the logits of a request, and leads it to given tokens; without them it is greedy.

    No request ends early: the end token never has the largest logit.
    """

    def __init__(self, tokens: Sequence[int] | None = None) -> None:
        self.tokens = tokens
        self._seen: list[np.ndarray] = []

    def __call__(self, _: mx.array, logits: mx.array) -> mx.array:
        logits[:, END] = -LED
        if self.tokens is not None and len(self._seen) < TOKENS:
            led = logits + 0
            led[:, self.tokens[len(self._seen)]] = LED
        else:
            led = logits
        self._seen.append(np.array(logits[0].astype(mx.float32)))
        return led

    @property
    def logits(self) -> np.ndarray:
        """float32 ``[TOKENS, vocabulary]``."""
        return np.stack(self._seen[:TOKENS])


def mlx_lm_batch(loaded: LoadedModel, prompts: list[Prompt], leaders: list[Leader]) -> None:
    """Decode ``prompts`` together by mlx-lm's BatchGenerator on its own caches."""
    generator = BatchGenerator(loaded.model, stop_tokens=[[token] for token in loaded.eos])
    generator.insert(
        [list(prompt) for prompt in prompts],
        max_tokens=[TOKENS] * len(prompts),
        logits_processors=[[leader] for leader in leaders],
    )
    left = len(prompts)
    while left:
        left -= sum(one.finish_reason is not None for one in generator.next_generated())
    generator.close()


def decoder_batch(loaded: LoadedModel, policy: str, prompts: list[Prompt], leaders: list[Leader]) -> None:
    """Decode ``prompts`` together by kvlab's decoder under ``policy``."""
    with Decoder(loaded, policy) as decoder:
        with busy(decoder):
            streams = [
                decoder.submit(prompt, max_tokens=TOKENS, logits_processors=[leader])
                for prompt, leader in zip(prompts, leaders, strict=True)
            ]
        for stream in streams:
            stream.result()
