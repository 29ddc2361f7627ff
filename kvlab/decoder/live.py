"""Prefixes that live sequences share: a tree over what is decoding now, so that a common prefix is held once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from kvlab.caches.prefix import Prefix
from kvlab.decoder.job import Job

WORTH = 64
"""Shorter common prefixes are not shared: reading them apart costs more than holding them twice."""


@dataclass(eq=False)
class Node:
    """A run of tokens in all layers, and the jobs that read it."""

    layers: list[Prefix]
    jobs: list[Job] = field(default_factory=list)

    @property
    def length(self) -> int:
        return self.layers[0].length


class LivePrefixes:
    """Finds for each new job the live sequence that shares most with it, and makes the common rows common property.

    Every job's path is a list of nodes; a job that forks inside a node splits it, one that forks inside another's own
    rows turns them into a node. Decoder thread only.
    """

    def __init__(self) -> None:
        self._jobs: list[Job] = []

    def donor(self, job: Job, limit: int) -> tuple[Job | None, int]:
        """The live job that has, or will have when its prefill is through, most of this prompt; and how much."""
        best, most = None, 0
        context = np.array(job.context[:limit], np.int32)
        for other in self._jobs:
            if other.tenant == job.tenant and (common := common_prefix(context, other.context_array)) > most:
                best, most = other, common
        return best, most

    def join(self, job: Job, limit: int) -> int:
        """Let the job's empty layers begin with rows of the best donor; the tokens that saves, 0 when not worth it."""
        donor, most = self.donor(job, limit)
        self._jobs.append(job)
        if donor is None:
            return 0
        nodes = self._nodes(donor, min(most, donor.layers[0].offset))
        for node in nodes:
            node.jobs.append(job)
        job.path = nodes
        for i, layer in enumerate(job.layers):
            layer.begin_with(tuple(node.layers[i] for node in nodes))
        self._count(nodes)
        return sum(node.length for node in nodes)

    def leave(self, job: Job) -> None:
        """The job is done. Nodes that nobody reads any more are freed."""
        if job in self._jobs:
            self._jobs.remove(job)
            for node in job.path:
                node.jobs.remove(job)
            self._count(job.path)
            job.path = []

    def nbytes(self) -> int:
        """Bytes of all shared rows, each counted once."""
        nodes = {id(node): node for job in self._jobs for node in job.path}
        return sum(prefix.nbytes for node in nodes.values() for prefix in node.layers)

    def _nodes(self, donor: Job, tokens: int) -> list[Node]:
        """Nodes for the first ``tokens`` of the donor, split or made as needed; a rest not worth it is left."""
        path: list[Node] = []
        for node in donor.path:
            if node.length > tokens:
                return [*path, self._split(node, tokens)] if tokens >= WORTH else path
            path.append(node)
            tokens -= node.length
        if tokens < WORTH:
            return path
        node = Node([layer.give(tokens) for layer in donor.layers], [donor])
        donor.path = [*donor.path, node]
        return [*path, node]

    def _split(self, node: Node, at: int) -> Node:
        halves = [prefix.split(at) for prefix in node.layers]
        head, tail = (Node([half[side] for half in halves], list(node.jobs)) for side in (0, 1))
        for job in node.jobs:
            place = job.path.index(node)
            job.path[place : place + 1] = [head, tail]
            for i, layer in enumerate(job.layers):
                layer.share(tuple(part.layers[i] for part in job.path))
        return head

    @staticmethod
    def _count(nodes: Iterable[Node]) -> None:
        for node in nodes:
            for prefix in node.layers:
                prefix.users = len(node.jobs)


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the longest common prefix of two token arrays."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n
