"""Asking a decoder, and comparing with the answers of no cache."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from kvlab.decoder import Completion, Decoder
from kvlab.models import LoadedModel

TIE = 1e-4
"""Two best logits that are nearer than this make a tie: rounding decides between them."""

NEAR = 5e-4
"""Largest difference between two ways to the same logits, whose standard deviation is 1 to 3."""

STEP = 64
TOKENS = 6
END = 2
OPENING = 11
"""Tokens behind the last message of a chat: the opening of the answer."""

Prompt = tuple[int, ...]


@dataclass
class Answer:
    """Greedy tokens, and the logits that each was chosen from."""

    completion: Completion
    logits: np.ndarray

    @property
    def tokens(self) -> Prompt:
        return self.completion.tokens


class Lab:
    """One model with the answers of no cache, computed once a prompt."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self._uncached: dict[tuple[Prompt, int], Answer] = {}

    def uncached(self, prompt: Prompt, tokens: int = TOKENS) -> Answer:
        if (prompt, tokens) not in self._uncached:
            with Decoder(self.loaded, "full", prefill_step=STEP) as decoder:
                self._uncached[prompt, tokens] = ask(decoder, [prompt], tokens)[0]
        return self._uncached[prompt, tokens]

    def same(self, prompt: Prompt, answer: Answer) -> int:
        """Compare with the answer of no cache: 1 if they part at a tie, else 0."""
        want = self.uncached(prompt, len(answer.logits))
        for i, (a, b) in enumerate(zip(want.tokens, answer.tokens, strict=True)):
            assert np.abs(want.logits[i] - answer.logits[i]).max() < NEAR, (len(prompt), i)
            if a != b:
                second, first = np.sort(want.logits[i])[-2:]
                assert first - second < TIE, (len(prompt), i, want.tokens, answer.tokens)
                return 1
        return 0


def ask(decoder: Decoder, prompts: Sequence[Prompt], tokens: int = TOKENS) -> list[Answer]:
    """Answers to all prompts, which reach the decoder together and never end early."""
    seen: list[list[np.ndarray]] = [[] for _ in prompts]

    def keep(log: list[np.ndarray]) -> Callable[[mx.array, mx.array], mx.array]:
        def process(_: mx.array, logits: mx.array) -> mx.array:
            logits[:, END] = -1e9
            log.append(np.array(logits[0]))
            return logits

        return process

    with busy(decoder) if len(prompts) > 1 else nullcontext():
        streams = [
            decoder.submit(prompt, max_tokens=tokens, logits_processors=[keep(log)])
            for prompt, log in zip(prompts, seen, strict=True)
        ]
    completions = [stream.result() for stream in streams]
    return [Answer(c, np.stack(log[: len(c.tokens)])) for c, log in zip(completions, seen, strict=True)]


@contextmanager
def busy(decoder: Decoder) -> Iterator[None]:
    """Hold the decoder inside a step, so that what is submitted meanwhile is admitted together, and beside it."""
    inside, release = threading.Event(), threading.Event()

    def process(_: mx.array, logits: mx.array) -> mx.array:
        inside.set()
        release.wait()
        return logits

    stream = decoder.submit([7], max_tokens=2, logits_processors=[process])
    inside.wait()
    try:
        yield
    finally:
        release.set()
    stream.result()


def message(seed: int, length: int) -> Prompt:
    return (*np.random.default_rng(seed).integers(5, 250, length - 1).tolist(), END)


def chat(*lengths: int, seed: int = 1) -> Prompt:
    """Messages of these lengths, then the opening of an answer."""
    body = [token for i, length in enumerate(lengths) for token in message(100 * seed + i, length)]
    return (*body, *message(7, OPENING + 1)[:-1])


def policy(folder: Path, block: int, **more: object) -> str:
    extra = "".join(f",{name}={value}" for name, value in more.items())
    return f"paged:block={block}{extra}|tiered:dir={folder}"
