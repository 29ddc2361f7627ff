"""When requests get their first token from a decoder that serves several at once: prompts share it, beside answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvlab.speed import Speed


@dataclass(frozen=True)
class QueuedRequest:
    """Names the work of one request.

    Attributes:
        arrival: seconds.
        alone: seconds that hold up all others: its restore, and what every request costs besides.
        after: the number of the job whose prompt computes what this one restores; -1 is none.
        prefill: seconds of computing its prompt, alone.
        answer: tokens of its answer behind the first.
    """

    arrival: float
    alone: float
    prefill: float
    answer: int
    after: int = -1


def first_token_s(jobs: Sequence[QueuedRequest], speed: Speed, places: int) -> np.ndarray:
    """Return the seconds from each arrival to the first token, float64 ``[jobs]``.

    At most ``places`` requests are served at once, others wait in order. One whose KV another one still computes waits
    for that, and lets others pass. A request that begins holds up all others while its KV is restored. Prompts are
    computed side by side, in equal shares of the time; beside answers, they get ``speed.prefill_share`` of it, and the
    answers the rest; a request that begins then costs ``speed.busy_s``, too, if that is more than ``speed.base_s``. A
    step of so many answers takes ``speed.step``.
    """
    found = np.zeros(len(jobs))
    waiting: deque[int] = deque()
    prompts: dict[int, float] = {}
    answers: dict[int, float] = {}
    pending: set[int] = set()
    now, arrived = 0.0, 0
    while arrived < len(jobs) or waiting or prompts:
        next_one = next((at for at in waiting if jobs[at].after not in pending), None)
        if next_one is not None and len(prompts) + len(answers) < places:
            at = next_one
            waiting.remove(at)  # mostly the first
            late = max(0.0, speed.busy_s - speed.base_s) * speed.prefill_share if answers else 0.0
            prompts[at] = jobs[at].prefill + late
            now += jobs[at].alone
        else:
            rates = _rates(len(prompts), len(answers), speed)
            ends = [left / rate for some, rate in zip((prompts, answers), rates, strict=True) for left in some.values()]
            passed = min(ends, default=float("inf"))
            if arrived < len(jobs):
                passed = min(passed, max(0.0, jobs[arrived].arrival - now))
            for some, rate in zip((prompts, answers), rates, strict=True):
                for at in some:
                    some[at] -= passed * rate
            now += passed
        while arrived < len(jobs) and jobs[arrived].arrival <= now:
            waiting.append(arrived)
            pending.add(arrived)
            arrived += 1
        for at in [at for at, left in prompts.items() if left <= DONE]:
            del prompts[at]
            pending.remove(at)
            found[at] = now - jobs[at].arrival
            if jobs[at].answer > 0 and speed.step_s:
                answers[at] = float(jobs[at].answer)
        for at in [at for at, left in answers.items() if left <= DONE]:
            del answers[at]
    return found


DONE = 1e-9
"""Seconds of a prompt, or tokens of an answer, that are none: what is left by rounding."""


def _rates(prompts: int, answers: int, speed: Speed) -> tuple[float, float]:
    """Return what each prompt gets of the time, and the tokens a second that each answer gets."""
    share = (speed.prefill_share if answers else 1.0) if prompts else 0.0
    return share / max(1, prompts), (1.0 - share) / speed.step(answers) if answers else 0.0
