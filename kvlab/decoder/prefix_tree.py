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
    requests: list[Request] = field(default_factory=list)

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
        self._requests: list[Request] = []
        self._retained: list[Request] = []

    def source(self, request: Request, limit: int) -> tuple[Request | None, int]:
        """The live job that has, or will have when its prefill is through, most of this prompt; and how much."""
        best, most = None, 0
        context = np.array(request.context[:limit], np.int32)
        for other in self._requests:
            if other.tenant == request.tenant and (common := common_prefix(context, other.context_array)) > most:
                best, most = other, common
        return best, most

    def join(self, request: Request, limit: int) -> int:
        """Let the job's empty layers begin with rows of the best donor; the tokens that saves, 0 when not worth it."""
        source, most = self.source(request, limit)
        self._requests.append(request)
        if source is None:
            return 0
        if self._goes_on(source, most):
            return self._take_over(request, source, most)
        nodes = self._nodes(source, min(most, source.computed))
        for node in nodes:
            node.requests.append(request)
        request.path = nodes
        for i, layer in enumerate(request.layers):
            layer.begin_with(tuple(node.layers[i] for node in nodes))
        self._count(nodes)
        return sum(node.length for node in nodes)

    def leave(self, request: Request) -> None:
        """The job is done. Nodes that nobody reads any more are freed."""
        if request in self._retained:
            self._retained.remove(request)
        if request in self._requests:
            self._requests.remove(request)
            for node in request.path:
                node.requests.remove(request)
            self._count(request.path)
            request.path = []

    def retain(self, request: Request, tokens: Sequence[int], *, room: int) -> None:
        """The job has ended, with ``tokens`` in its layers; its rows stay until its next turn or :meth:`release_one`.

        ``room`` more rows are made ready for that turn, so that it need not wait for them.
        """
        request.context_array = np.array(tokens, np.int32)
        for layer in request.layers:
            layer.reserve(room)
        mx.async_eval([layer.state for layer in request.layers])
        self._retained.append(request)

    def release_one(self) -> bool:
        """Free the rows of the sequence that has been warm for longest; False when there is none."""
        if not self._retained:
            return False
        request = self._retained[0]
        self.leave(request)
        request.caches, request.layers = [], []
        return True

    @property
    def retained(self) -> int:
        """Sequences that have ended and still hold their rows."""
        return len(self._retained)

    def retained_nbytes(self) -> int:
        """Bytes of rows that only warm sequences read."""
        own = sum(layer.nbytes for request in self._retained for layer in request.layers)
        return own + sum(
            node.nbytes for node in self._all_nodes() if all(request in self._retained for request in node.requests)
        )

    def nbytes(self) -> int:
        """Bytes of all rows that warm sequences hold or several share, each counted once."""
        own = sum(layer.nbytes for request in self._retained for layer in request.layers)
        return own + sum(node.nbytes for node in self._all_nodes())

    def _all_nodes(self) -> list[PrefixNode]:
        return list({id(node): node for request in self._requests for node in request.path}.values())

    def _goes_on(self, source: Request, tokens: int) -> bool:
        """True when the donor has ended and little of it is lost to a job that goes on from its first ``tokens``."""
        if source not in self._retained:
            return False
        held, shared = source.computed, sum(node.length for node in source.path)
        return min(tokens, held) >= max(WORTH, shared, held - max(WORTH, held // 8))

    def _take_over(self, request: Request, source: Request, tokens: int) -> int:
        tokens = min(tokens, source.computed)
        for mine, theirs in zip(request.layers, source.layers, strict=True):
            mine.take_over(theirs, tokens)
        request.path = source.path
        for node in request.path:
            node.requests[node.requests.index(source)] = request
        source.path, source.layers, source.caches = [], [], []
        self._retained.remove(source)
        self._requests.remove(source)
        return tokens

    def _nodes(self, source: Request, tokens: int) -> list[PrefixNode]:
        """Nodes for the first ``tokens`` of the donor, split or made as needed; a rest not worth it is left."""
        path: list[PrefixNode] = []
        for node in source.path:
            if node.length > tokens:
                return [*path, self._split(node, tokens)] if tokens >= WORTH else path
            path.append(node)
            tokens -= node.length
        if tokens < WORTH:
            return path
        node = PrefixNode([layer.give(tokens) for layer in source.layers], [source])
        source.path = [*source.path, node]
        return [*path, node]

    def _split(self, node: PrefixNode, at: int) -> PrefixNode:
        halves = [prefix.split(at) for prefix in node.layers]
        head, tail = (PrefixNode([half[side] for half in halves], list(node.requests)) for side in (0, 1))
        for request in node.requests:
            place = request.path.index(node)
            request.path[place : place + 1] = [head, tail]
            for i, layer in enumerate(request.layers):
                layer.share(tuple(part.layers[i] for part in request.path))
        return head

    @staticmethod
    def _count(nodes: Iterable[PrefixNode]) -> None:
        for node in nodes:
            for prefix in node.layers:
                prefix.users = len(node.requests)


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the longest common prefix of two token arrays."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n
