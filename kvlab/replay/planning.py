"""Find the smallest RAM and SSD that reach a target on a trace, by replaying it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from kvlab.replay.errors import TraceError
from kvlab.replay.loaders import load_trace
from kvlab.replay.lru import LRU, lru_counts
from kvlab.replay.orders import policy_class
from kvlab.replay.plan_results import PlanResults, PlanTrial
from kvlab.replay.plan_target import DEFAULT_TARGET, PlanTarget, read_target
from kvlab.replay.round_sizes import RoundSizes
from kvlab.replay.stack_distances import stack_distances
from kvlab.replay.statistics import infinite_hits
from kvlab.replay.tiered_counts import TieredCounts
from kvlab.replay.tiered_replaying import ALWAYS, restore_rule
from kvlab.replay.tiered_simulation import RestoreRule, in_tokens, simulate_tiers
from kvlab.replay.trace import BlockTrace
from kvlab.speed import Speed, read_speed

BETWEEN = 2
"""Sizes of RAM that are tried between the smallest one and that which needs no SSD."""
INTERPOLATIONS, LEAST_STEP = 4, 0.02
"""Times that a line between two sizes says which one to try, and how near to one of them that is at least."""
NONE = -1
"""The number of an SSD that is not there."""


def plan(
    trace: BlockTrace | str | Path,
    target: str = DEFAULT_TARGET,
    replace: str = LRU,
    *,
    format: str | None = None,
    token_bytes: int = 0,
    cost: Speed | str | Path | None = None,
    restore: str = ALWAYS,
    admit: int = 1,
    progress: bool = True,
) -> PlanResults:
    """Find the smallest RAM, and for it the smallest SSD, with which a trace reaches a target.

    RAM holds at least the longest prompt: with less, requests would wait for the drive to take their blocks. Sizes have
    three digits. Each number comes from a replay: at the answer the target is reached, at the next smaller size of the
    SSD it is not (nor with less RAM and an SSD without limit). It is taken for granted that more of a tier is never
    worse; where a policy breaks that, a smaller answer may have been passed over.

    Args:
        trace: a trace, or a file that :func:`load_trace` reads.
        target: ``95%`` of what tiers without limit would hit, or a wait such as ``ttft_p95=2s``.
        replace: replacement policy of both tiers.
        format: of the file; else its content tells.
        token_bytes: bytes of KV a token; else those of ``cost``, else sizes are in tokens.
        cost: how quick machine and model are, for waits.
        restore: ``always``, or ``auto``: compute again what that has sooner.
        admit: uses after which a block may be written to SSD.
        progress: show a bar.

    Raises:
        TraceError: the trace or the target cannot be used, or tiers without limit do not reach it.
    """
    loaded = trace if isinstance(trace, BlockTrace) else load_trace(trace, format)
    if not len(loaded.blocks):
        raise TraceError(f"{loaded.name} has no block: its prompts are shorter than a block, or it has no request")
    wanted, speed = read_target(target), cost if isinstance(cost, Speed) or cost is None else read_speed(cost)
    if wanted.is_wait and speed is None:
        raise TraceError(f"{target} is a wait: write --cost prefill=450,ssd=3GB too, or a file of speeds")
    policy_class(replace)
    token_bytes = token_bytes or (speed.token_bytes if speed else 0)
    rule = restore_rule(restore, speed, token_bytes)
    with tqdm(desc="plan", unit="replay", file=sys.stderr, disable=not progress) as bar:
        search = _Search(loaded, wanted, replace, speed, token_bytes, rule, admit, bar)
        frontier = search.frontier()
        trials = tuple(search.trials.values())
        return PlanResults(loaded, wanted, replace, trials, frontier, frontier[0], token_bytes, speed)


class _Search:
    """Replays pairs of sizes, each once, until the smallest are known."""

    def __init__(
        self,
        trace: BlockTrace,
        target: PlanTarget,
        replace: str,
        speed: Speed | None,
        token_bytes: int,
        rule: RestoreRule | None,
        admit: int,
        bar: Any,
    ) -> None:
        self._trace, self._target, self._replace, self._speed = trace, target, replace, speed
        self._token_bytes, self._rule, self._admit, self._bar = token_bytes, rule, admit, bar
        self._sizes = RoundSizes(trace, token_bytes)
        self.trials: dict[tuple[int, int], PlanTrial] = {}
        self._most = self._sizes.number(int(trace.sizes.sum()))
        self._block = self._sizes.number(trace.block_tokens)
        longest = np.minimum(trace.input_tokens, trace.lengths * trace.block_tokens)
        self._floor = self._sizes.number(int(longest.max()))

    def frontier(self) -> tuple[PlanTrial, ...]:
        """Return what reaches the target and is not beaten in both sizes, the least RAM first."""
        best = self._without_limit()
        if not self._target.is_reached(best) and not self.try_pair(self._most, self._most).is_reached:
            raise TraceError(
                f"{self._target.text} cannot be reached on {self._trace.name}: with RAM and SSD without limit it has "
                f"{self._target.shown(best)}; write a target that is easier to reach"
            )
        alone = self._smallest(lambda size: (size, NONE), self._floor, self._most, self._guess())
        points = [self.try_pair(alone, NONE)]
        if alone > self._floor:
            ram = self._least_ram(alone)
            points.insert(0, self._with_least_ssd(ram))
            if self._target.is_wait:  # hits are the same whatever RAM there is beside an SSD
                between = [ram + (alone - ram) * step // (BETWEEN + 1) for step in range(1, BETWEEN + 1)]
                points += [self._with_least_ssd(size) for size in dict.fromkeys(between) if ram < size < alone]
        points.sort(key=lambda one: one.sizes)
        return tuple(one for one in points if one.is_reached and not any(_beats(other, one) for other in points))

    def _without_limit(self) -> float:
        """Return what RAM without limit has of the target's metric, where all that is stored is restored."""
        trace, none = self._trace, np.zeros(len(self._trace), np.int64)
        known = trace.hit_tokens(infinite_hits(trace)[0])
        most = in_tokens(self._sizes.capacity(self._most), trace)
        counts = TieredCounts(trace, self._replace, most, None, known, none, none, none, 0)
        return self._target.value(counts, self._speed, self._token_bytes)

    def _least_ram(self, most: int) -> int:
        """Return the least RAM that reaches the target over an SSD without limit."""
        near = self._guess()
        if near is not None and self.try_pair(self._floor, max(near, self._floor)).is_reached:
            return self._floor
        return self._smallest(lambda size: (size, self._most), self._floor, most)

    def _smallest(self, pair: Callable[[int], tuple[int, int]], low: int, high: int, guess: int | None = None) -> int:
        """Return the least number whose pair reaches the target; without a guess, from where a straight line does."""
        if guess is None:
            low, high, guess = self._interpolated(lambda size: self.try_pair(*pair(size)), low, high)
        return smallest(lambda size: self.try_pair(*pair(size)).is_reached, low, high, guess)

    def _interpolated(self, trial: Callable[[int], PlanTrial], low: int, high: int) -> tuple[int, int, int]:
        """Return closer bounds of the least number that reaches the target, and a guess between them.

        A few times a straight line between the two bounds says where to try (regula falsi): hits rise smoothly with
        the logarithm of a size, so that this takes fewer replays than halving.
        """
        if low == high or trial(low).is_reached:
            return low, low, low
        guess = low
        for _ in range(INTERPOLATIONS):
            first, last = trial(low).value, trial(high).value
            share = (self._target.bound - first) / (last - first) if last != first else 0.5
            guess = low + round(min(1 - LEAST_STEP, max(LEAST_STEP, share)) * (high - low))
            if not low < guess < high:
                break
            low, high = (low, guess) if trial(guess).is_reached else (guess, high)
        return low + 1, high, guess

    def _with_least_ssd(self, ram: int) -> PlanTrial:
        ssd = self._smallest(lambda size: (ram, size), self._block, self._most, self._guess())
        self._near = ssd
        return self.try_pair(ram, ssd)

    _near: int | None = None
    """The SSD that was found last, from where the next search begins."""

    def _guess(self) -> int | None:
        """Return where a search may begin: of LRU one pass says what a single tier of each size would hit."""
        if self._near is None and not self._target.is_wait and self._replace == LRU:
            distances, wanted = stack_distances(self._trace), self._target.bound * self._trace.known_tokens
            self._near = smallest(
                lambda size: (
                    lru_counts(self._trace, [self._sizes.capacity(size)], distances)[0].cached_tokens >= wanted
                ),
                self._block,
                self._most,
            )
        return self._near

    def try_pair(self, ram: int, ssd: int) -> PlanTrial:
        """Replay a pair of sizes, by their numbers."""
        if (ram, ssd) not in self.trials:
            memory = in_tokens(self._sizes.capacity(ram), self._trace)
            drive = None if ssd == NONE else in_tokens(self._sizes.capacity(ssd), self._trace)
            counts = simulate_tiers(self._trace, self._replace, memory, drive, rule=self._rule, admit=self._admit)
            value = self._target.value(counts, self._speed, self._token_bytes)
            self.trials[ram, ssd] = PlanTrial(memory, drive, value, self._target.is_reached(value))
            self._bar.update()
        return self.trials[ram, ssd]


def _beats(other: PlanTrial, one: PlanTrial) -> bool:
    sizes, better = one.sizes, other.sizes
    return better != sizes and better[0] <= sizes[0] and better[1] <= sizes[1]


def smallest(reaches: Callable[[int], bool], low: int, high: int, guess: int | None = None) -> int:
    """Return the least number from ``low`` to ``high`` that reaches, where each above it does, too.

    ``high`` is known to reach. The search looks near ``guess`` first, in steps that double.
    """
    if guess is not None and low < guess < high:
        step, probe = 1, guess
        if reaches(guess):
            high = guess
            while (probe := high - step) > low and reaches(probe):
                high, step = probe, 2 * step
            low = max(low, probe + 1) if probe > low else low
        else:
            low = guess + 1
            while (probe := low + step - 1) < high and not reaches(probe):
                low, step = probe + 1, 2 * step
            high = min(high, probe)
    while low < high:
        middle = (low + high) // 2
        if reaches(middle):
            high = middle
        else:
            low = middle + 1
    return low
