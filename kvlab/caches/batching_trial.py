"""Find out by a trial whether a model computes the same for sequences side by side as for each alone.

That a cache has a batched form does not say so: recurrent layers of some mlx-lm models read padding as tokens, and
some models compute positions from the number that the cache of one sequence has and the cache of a batch has not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from kvlab.caches.serialize import cache_leaves

MAX_LOGIT_DIFFERENCE = 0.05
"""Largest difference between two computations of the same logits, as a share of the largest logit; above, one of them
is wrong."""

MAX_TRIALS = 3
"""Trials with other tokens after a difference. In 16 bits, rounding may send a token to other experts; it does not in
each trial, and a wrong computation is wrong in each."""

FIRST_CHUNK_TOKENS, SECOND_CHUNK_TOKENS = (6, 3), (4, 5)
"""Tokens of the first two sequences in the two chunks of their prefill: one is padded in each, not the same one. No
number is that of the sequences, so that arrays of wrong shapes do not fit together by chance."""
TRIAL_TOKENS = 97
"""Different tokens in a trial: any vocabulary has so many."""
JOINING_TOKENS = 2
"""Tokens of the sequence that joins the others when they decode."""
STEPS = ("padded prefill", "second padded prefill", "ragged decode", "decode after a sequence joined", "alone again")
"""What a sequence does in a trial, step by step."""


@dataclass(frozen=True)
class Batching:
    """What the trial of a model has found.

    Attributes:
        why_not: what differs in a batch from the sequences alone; empty: sequences are computed side by side.
    """

    why_not: str = ""

    def __bool__(self) -> bool:
        """Return whether sequences can be computed side by side."""
        return not self.why_not

    def __str__(self) -> str:
        return f"one by one: {self.why_not}" if self.why_not else "side by side"


def try_batch(model: nn.Module, make: Callable[[], Sequence[Any]]) -> Batching:
    """Compute three short sequences of a padded, ragged batch in caches of ``make``, and each alone; compare logits.

    The batch does what a batch of requests does: a prefill in two chunks with padding, decode steps at different
    lengths, a sequence that joins, one that leaves and goes on alone.
    """
    if not all(hasattr(cache, "merge") for cache in make()):
        return Batching("mlx-lm has no batched form of its caches")
    caches = list(make())
    try:
        model(mx.array([[1, 2, 3]]), cache=caches)
    except Exception as error:  # noqa: BLE001 - a model's code may raise nearly everything
        return Batching(f"its code fails for a few tokens ({type(error).__name__})")
    if any(cache.offset == 0 for _, cache in cache_leaves(caches) if hasattr(cache, "offset")):
        return Batching("it has layers that do not use their caches")
    found = set(STEPS)
    for seed in range(MAX_TRIALS):
        try:
            found &= _differing(_alone(model, make, seed), _batched(model, make, seed))
        except Exception as error:  # noqa: BLE001 - a model's code may raise nearly everything
            return Batching(f"its code fails for a batch ({type(error).__name__})")
        if not found:
            return Batching()
    return Batching(f"logits differ in a batch: {', '.join(sorted(found))}")


def _tokens(seed: int) -> list[list[list[int]]]:
    """Return the segments of the three sequences: chunks of the prefill, then single tokens."""
    lengths = ([*pair, 1, 1, 1] for pair in zip(FIRST_CHUNK_TOKENS, SECOND_CHUNK_TOKENS, strict=True))
    out: list[list[list[int]]] = []
    for i, segments in enumerate([*lengths, [JOINING_TOKENS, 1]]):
        start = 1 + 17 * seed + 40 * i
        out.append([])
        for segment in segments:
            out[-1].append([1 + (start + 7 * step) % TRIAL_TOKENS for step in range(segment)])
            start += 5
    return out


def _alone(model: nn.Module, make: Callable[[], Sequence[Any]], seed: int) -> list[tuple[str, mx.array]]:
    """Return the last logits of each step of each sequence alone, with the name of the step."""
    first, second, joining = _tokens(seed)
    out = [*_steps(model, list(make()), first[:4], STEPS), *_steps(model, list(make()), second, STEPS)]
    return [*out, *_steps(model, list(make()), joining, (STEPS[0], STEPS[3]))]


def _steps(
    model: nn.Module, caches: list[Any], segments: list[list[int]], names: Sequence[str]
) -> list[tuple[str, mx.array]]:
    out = []
    for name, tokens in zip(names, segments, strict=False):
        logits = model(mx.array([tokens]), cache=caches)[0, -1]
        mx.eval(logits, [cache.state for cache in caches])
        out.append((name, logits))
    return out


def _batched(model: nn.Module, make: Callable[[], Sequence[Any]], seed: int) -> list[mx.array]:
    """Return the logits that :func:`_alone` returns, computed in batches."""
    first, second, joining = _tokens(seed)
    pair = _merged([make(), make()])
    mine: list[mx.array] = []
    others: list[mx.array] = []
    for one, other in zip(first[:2], second[:2], strict=True):
        longest = max(len(one), len(other))
        padding = [longest - len(one), longest - len(other)]
        for cache in pair:
            cache.prepare(lengths=[len(one), len(other)], right_padding=padding)
        tokens = [part + [0] * (longest - len(part)) for part in (one, other)]
        logits = model(mx.array(tokens), cache=pair)
        for cache in pair:
            cache.finalize()
        mx.eval(logits, [cache.state for cache in pair])
        mine.append(logits[0, len(one) - 1])
        others.append(logits[1, len(other) - 1])
    logits = model(mx.array([first[2], second[2]]), cache=pair)[:, -1]
    mine.append(logits[0])
    others.append(logits[1])
    late = _merged([make()])
    joined = [model(mx.array([joining[0]]), cache=late)[0, -1]]
    for cache, new in zip(pair, late, strict=True):
        cache.extend(new)
    logits = model(mx.array([first[3], second[3], joining[1]]), cache=pair)[:, -1]
    mx.eval(logits, [cache.state for cache in pair])
    mine.append(logits[0])
    others.append(logits[1])
    joined.append(logits[2])
    for cache in pair:
        cache.filter([1, 2])
    left = _merged([[cache.extract(0) for cache in pair]])
    others.append(model(mx.array([second[4]]), cache=left)[0, -1])
    return [*mine, *others, *joined]


def _merged(sequences: list[Sequence[Any]]) -> list[Any]:
    return [caches[0].merge(list(caches)) for caches in zip(*sequences, strict=True)]


def _differing(wanted: list[tuple[str, mx.array]], got: list[mx.array]) -> set[str]:
    """Return the names of steps whose logits differ by more than rounding, or are not numbers."""
    return {name for (name, one), other in zip(wanted, got, strict=True) if differ(one, other)}


def differ(wanted: mx.array, got: mx.array) -> bool:
    """Return whether two computations of the same logits differ by more than rounding."""
    near = mx.abs(wanted - got) <= MAX_LOGIT_DIFFERENCE * mx.abs(wanted).max()
    return not bool(mx.all(near).item())
