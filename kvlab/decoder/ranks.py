"""``Ranks``: keeps the decoders of a split model in step, one of which runs on every rank.

All ranks run the same program, and so submit the same requests in the same order, at times of their own. A step of the
model adds up parts of all ranks, so every rank must take the same requests into the same step.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from kvlab.decoder.config import CHUNKS, PACED, DecoderConfig
from kvlab.errors import KvlabError, PolicyError
from kvlab.models import LoadedModel, group_of
from kvlab.policies import Full, Policy
from kvlab.policies.reuse import NoReuse, Paged
from kvlab.policies.tiers import ALWAYS


class OutOfStep(KvlabError):
    """Raised where ranks did different things: their sums are of no use any more."""


class Ranks:
    """Agrees with the other ranks. One thread, the decoder's; every method is called on all ranks in the same order.

    Args:
        group: MLX's group of the ranks.
    """

    def __init__(self, group: Any) -> None:
        self._group = group
        self._digest = 0
        self._posted: mx.array | None = None

    @property
    def has_posted(self) -> bool:
        """Whether a number waits to be taken."""
        return self._posted is not None

    def note(self, *numbers: int) -> None:
        """Take note of what this rank did, such as the tokens of a step; :meth:`take` compares it."""
        self._digest = zlib.crc32(np.array(numbers, np.int64).tobytes(), self._digest)

    def post(self, number: int) -> None:
        """Send a number to the other ranks without waiting for theirs."""
        mine = mx.array([[number, self._digest >> 16, self._digest & 0xFFFF]], mx.int32)
        self._posted = mx.distributed.all_gather(mine, group=self._group)
        mx.async_eval(self._posted)

    def take(self) -> int:
        """Return the least of the numbers that were posted. Raises OutOfStep where ranks noted different things."""
        posted, self._posted = np.array(self._posted), None
        if (posted[:, 1:] != posted[0, 1:]).any():
            raise OutOfStep(
                "the ranks of this model are out of step: give all of them the same requests in the same order, and "
                "samplers that draw the same numbers, and start them again"
            )
        return int(posted[:, 0].min())

    def least(self, number: int) -> int:
        """Return the least number that any rank has."""
        return int(np.array(mx.distributed.all_min(mx.array(number, mx.int32), group=self._group)))

    def share_seed(self) -> None:
        """Give this thread of every rank the same random numbers."""
        mx.random.seed(self.least(int(np.array(mx.random.randint(0, 2**30)))))


def ranks_of(loaded: LoadedModel, policy: Policy) -> Ranks | None:
    """Return what keeps the ranks of a split model in step; None for a whole model.

    Raises PolicyError where the policy chooses by what a rank alone has, or knows.
    """
    group = group_of(loaded.model)
    if group is None:
        return None
    if why := _refused(policy):
        raise PolicyError(f"'{policy}' on a model that is split over ranks: {why}")
    return Ranks(group)


def without_time(config: DecoderConfig) -> DecoderConfig:
    """Return the settings with whole chunks where work on prompts would follow the time, which ranks measure apart."""
    return replace(config, interleave=CHUNKS) if config.interleave == PACED else config


def _refused(policy: Policy) -> str:
    """Return why ranks cannot follow a policy in step; empty where they can."""
    if not isinstance(policy.retention, Full):
        return f"{policy.retention.name} chooses rows by all heads, of which a rank has a part; write full"
    if not isinstance(policy.reuse, NoReuse | Paged):
        return f"{policy.reuse.name} is not kept in step; write paged or none"
    if policy.codec.name == "kvtc":
        return "its transform is of all heads, of which a rank has a part; write quantized or raw"
    if getattr(policy.tiers, "restore", ALWAYS) != ALWAYS:
        return "restore=auto follows the time, which ranks measure apart; write restore=always"
    return ""
