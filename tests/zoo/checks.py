"""What must hold for a small model of any module: whatever is shared or reused, the answer is that of no cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import generate_step

from kvlab.decoder import Decoder
from kvlab.errors import ModelError
from kvlab.models import LoadedModel
from tests.lab import END, OPENING, STEP, TOKENS, Answer, Lab, Prompt, ask, chat, message, policy

NEAR = 3e-4
"""Largest difference between two ways to the same logits, as a share of their largest; products of float32 are summed
in other orders."""
TIE = 3e-5
"""Two best logits that are nearer than this share make a tie: rounding decides between them."""

ROUNDS_ITS_KV = {"afm7": 33.0}
"""Models whose attention rounds keys and values to 8 bits, where another order of a sum may come out a whole step away;
and how many times as far logits may lie then, and best ones be from a tie."""

LENGTHS = (30, 47, 21, 40)
FIRST = chat(*LENGTHS)
BORDERS = tuple(np.cumsum(LENGTHS).tolist())
FORKS: list[Prompt] = [(*FIRST[: BORDERS[2]], *message(20 + i, 9 + 13 * i), *FIRST[-OPENING:]) for i in range(3)]
RAGGED: list[Prompt] = [FIRST, chat(50), chat(9, 70, seed=3), FIRST[:1], FORKS[1]]


def check_lossless(loaded: LoadedModel, folder: Path, *, reuses: bool = True, as_mlx_lm: bool = True) -> int:
    """Compare answers under lossless policies with those of no cache; return how many parted at a tie.

    Args:
        reuses: KV of the model can be reused; otherwise the policies that do so must be refused.
        as_mlx_lm: mlx-lm's own answer to one request alone is right.
    """
    lab = Lab(loaded)
    ties = _same_as_mlx_lm(lab, [FIRST, RAGGED[2]]) if as_mlx_lm else _same_in_one_chunk(lab, [FIRST, RAGGED[2]])
    with Decoder(loaded, "full", prefill_step=STEP) as decoder:
        ties += _check(lab, RAGGED, ask(decoder, RAGGED))
    spec = policy(folder, 16)
    if not reuses:
        with pytest.raises(ModelError, match="reuses KV, which cannot be done with .*: use full"):
            Decoder(loaded, spec)
        return ties
    with Decoder(loaded, spec, prefill_step=STEP) as decoder:
        [cold] = ask(decoder, [FIRST])
        ties += _check(lab, [FIRST], [cold])
        ties += _check(lab, [FIRST, *FORKS], ask(decoder, [FIRST, *FORKS]))
        second = (*FIRST, *cold.tokens, *message(8, 33), *FIRST[-OPENING:])
        answers = ask(decoder, [second, *RAGGED])
        ties += _check(lab, [second, *RAGGED], answers)
    assert answers[0].completion.cached_tokens >= BORDERS[2], answers[0].completion
    with Decoder(loaded, spec, prefill_step=STEP) as decoder:
        again = [second, *FORKS, *RAGGED]
        answers = ask(decoder, again)
        ties += _check(lab, again, answers)
    assert all(answer.completion.cached_tokens >= BORDERS[2] for answer in answers[:4])
    return ties


def _same_as_mlx_lm(lab: Lab, prompts: Sequence[Prompt]) -> int:
    """Compare ``full`` alone with mlx-lm alone, in steps of the same length."""
    ties = 0
    for prompt in prompts:
        logits: list[np.ndarray] = []

        def keep(_: mx.array, values: mx.array, logits: list[np.ndarray] = logits) -> mx.array:
            values[:, END] = -1e9
            logits.append(np.array(values[0]))
            return values

        steps = generate_step(
            mx.array(prompt), lab.loaded.model, max_tokens=TOKENS, prefill_step_size=STEP, logits_processors=[keep]
        )
        tokens = tuple(int(token) for token, _ in steps)
        ties += _parted(lab, lab.uncached(prompt), tokens, np.stack(logits), f"mlx-lm, {len(prompt)} tokens")
    return ties


def _same_in_one_chunk(lab: Lab, prompts: Sequence[Prompt]) -> int:
    """Compare ``full`` alone with the model's whole forward pass over prompt and answer, without a cache."""
    ties = 0
    for prompt in prompts:
        tokens = lab.uncached(prompt).tokens
        logits = np.array(lab.loaded.model(mx.array([[*prompt, *tokens[:-1]]]))[0, len(prompt) - 1 :])
        logits[:, END] = -1e9
        chosen = tuple(int(token) for token in logits.argmax(axis=-1))
        ties += _parted(lab, lab.uncached(prompt), chosen, logits, f"one chunk, {len(prompt)} tokens")
    return ties


def _check(lab: Lab, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> int:
    return sum(
        _parted(lab, lab.uncached(prompt), answer.tokens, answer.logits, f"prompt {i} of {len(prompt)} tokens")
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    )


def _parted(lab: Lab, want: Answer, tokens: Prompt, logits: np.ndarray, what: str) -> int:
    """Return 1 if two answers part at a tie, 0 if they are the same; anything else is an AssertionError."""
    times = ROUNDS_ITS_KV.get(type(lab.loaded.model).__module__.rpartition(".")[2], 1.0)
    usual = np.arange(want.logits.shape[1]) != END
    for step, (one, other) in enumerate(zip(want.tokens, tokens, strict=True)):
        wanted, seen = want.logits[step][usual], logits[step][usual]
        scale = np.abs(wanted).max()
        distance = np.abs(wanted - seen).max() / scale
        assert distance < times * NEAR, f"{what}: logits {distance:.1e} apart at step {step}"
        if one != other:
            second, first = np.sort(wanted)[-2:]
            assert first - second < times * TIE * scale, f"{what}: {want.tokens} became {tokens}"
            return 1
    return 0
