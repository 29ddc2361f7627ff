"""Prefixes that live sequences share: a tree over what is decoding now, so that a common prefix is held once.

Sequences that have ended may stay *warm* for a while: their next turn takes their rows over as they are, where a
restore would copy them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from kvlab.caches.shared_prefix import SharedPrefix
from kvlab.decoder.request import Request

WORTH = 64
"""Shorter common prefixes are not shared: reading them apart costs more than holding them twice."""


@dataclass(eq=False)
class PrefixNode:
    """A run of tokens in all layers, and the jobs that read it."""

    layers: list[SharedPrefix]
    jobs: list[Request] = field(default_factory=list)

    @property
    def length(self) -> int:
        return self.layers[0].length

    @property
    def nbytes(self) -> int:
        return sum(prefix.nbytes for prefix in self.layers)


class PrefixTree:
    """Finds for each new job the live sequence that shares most with it, and makes the common rows common property.

    Every job's path is a list of nodes; a job that forks inside a node splits it, one that forks inside another's own
    rows turns them into a node. Decoder thread only.
    """

    def __init__(self) -> None:
        self._jobs: list[Request] = []
        self._warm: list[Request] = []

    def donor(self, job: Request, limit: int) -> tuple[Request | None, int]:
        """The live job that has, or will have when its prefill is through, most of this prompt; and how much."""
        best, most = None, 0
        context = np.array(job.context[:limit], np.int32)
        for other in self._jobs:
            if other.tenant == job.tenant and (common := common_prefix(context, other.context_array)) > most:
                best, most = other, common
        return best, most

    def join(self, job: Request, limit: int) -> int:
        """Let the job's empty layers begin with rows of the best donor; the tokens that saves, 0 when not worth it."""
        donor, most = self.donor(job, limit)
        self._jobs.append(job)
        if donor is None:
            return 0
        if self._goes_on(donor, most):
            return self._take_over(job, donor, most)
        nodes = self._nodes(donor, min(most, donor.computed))
        for node in nodes:
            node.jobs.append(job)
        job.path = nodes
        for i, layer in enumerate(job.layers):
            layer.begin_with(tuple(node.layers[i] for node in nodes))
        self._count(nodes)
        return sum(node.length for node in nodes)

    def leave(self, job: Request) -> None:
        """The job is done. Nodes that nobody reads any more are freed."""
        if job in self._warm:
            self._warm.remove(job)
        if job in self._jobs:
            self._jobs.remove(job)
            for node in job.path:
                node.jobs.remove(job)
            self._count(job.path)
            job.path = []

    def stay_warm(self, job: Request, tokens: Sequence[int], *, room: int) -> None:
        """The job has ended, with ``tokens`` in its layers; its rows stay until its next turn or :meth:`cool_one`.

        ``room`` more rows are made ready for that turn, so that it need not wait for them.
        """
        job.context_array = np.array(tokens, np.int32)
        for layer in job.layers:
            layer.reserve(room)
        mx.async_eval([layer.state for layer in job.layers])
        self._warm.append(job)

    def cool_one(self) -> bool:
        """Free the rows of the sequence that has been warm for longest; False when there is none."""
        if not self._warm:
            return False
        job = self._warm[0]
        self.leave(job)
        job.caches, job.layers = [], []
        return True

    @property
    def warm(self) -> int:
        """Sequences that have ended and still hold their rows."""
        return len(self._warm)

    def warm_nbytes(self) -> int:
        """Bytes of rows that only warm sequences read."""
        own = sum(layer.nbytes for job in self._warm for layer in job.layers)
        return own + sum(node.nbytes for node in self._all_nodes() if all(job in self._warm for job in node.jobs))

    def nbytes(self) -> int:
        """Bytes of all rows that warm sequences hold or several share, each counted once."""
        own = sum(layer.nbytes for job in self._warm for layer in job.layers)
        return own + sum(node.nbytes for node in self._all_nodes())

    def _all_nodes(self) -> list[PrefixNode]:
        return list({id(node): node for job in self._jobs for node in job.path}.values())

    def _goes_on(self, donor: Request, tokens: int) -> bool:
        """True when the donor has ended and little of it is lost to a job that goes on from its first ``tokens``."""
        if donor not in self._warm:
            return False
        held, shared = donor.computed, sum(node.length for node in donor.path)
        return min(tokens, held) >= max(WORTH, shared, held - max(WORTH, held // 8))

    def _take_over(self, job: Request, donor: Request, tokens: int) -> int:
        tokens = min(tokens, donor.computed)
        for mine, theirs in zip(job.layers, donor.layers, strict=True):
            mine.take_over(theirs, tokens)
        job.path = donor.path
        for node in job.path:
            node.jobs[node.jobs.index(donor)] = job
        donor.path, donor.layers, donor.caches = [], [], []
        self._warm.remove(donor)
        self._jobs.remove(donor)
        return tokens

    def _nodes(self, donor: Request, tokens: int) -> list[PrefixNode]:
        """Nodes for the first ``tokens`` of the donor, split or made as needed; a rest not worth it is left."""
        path: list[PrefixNode] = []
        for node in donor.path:
            if node.length > tokens:
                return [*path, self._split(node, tokens)] if tokens >= WORTH else path
            path.append(node)
            tokens -= node.length
        if tokens < WORTH:
            return path
        node = PrefixNode([layer.give(tokens) for layer in donor.layers], [donor])
        donor.path = [*donor.path, node]
        return [*path, node]

    def _split(self, node: PrefixNode, at: int) -> PrefixNode:
        halves = [prefix.split(at) for prefix in node.layers]
        head, tail = (PrefixNode([half[side] for half in halves], list(node.jobs)) for side in (0, 1))
        for job in node.jobs:
            place = job.path.index(node)
            job.path[place : place + 1] = [head, tail]
            for i, layer in enumerate(job.layers):
                layer.share(tuple(part.layers[i] for part in job.path))
        return head

    @staticmethod
    def _count(nodes: Iterable[PrefixNode]) -> None:
        for node in nodes:
            for prefix in node.layers:
                prefix.users = len(node.jobs)


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the longest common prefix of two token arrays."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n
