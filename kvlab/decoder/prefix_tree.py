"""``PrefixTree``: prefixes that live sequences share, so that a common prefix is in memory once.

Sequences that have ended may be *retained*: a request that continues one takes over its rows without the copy that a
restore makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from kvlab.caches.shared_prefix import SharedPrefix
from kvlab.decoder.request import Request

MIN_SHARED_TOKENS = 64
"""Shortest common prefix that is shared: attending to a shorter one on its own costs more than storing it twice."""


@dataclass(eq=False)
class PrefixNode:
    """Consecutive tokens of a prefix in all layers, and the requests that read them."""

    layers: list[SharedPrefix]
    requests: list[Request] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.layers[0].tokens

    @property
    def nbytes(self) -> int:
        """Bytes in all layers."""
        return sum(prefix.nbytes for prefix in self.layers)


class PrefixTree:
    """Finds the live sequence that shares the longest prefix with a new request, and lets both read the same rows.

    The path of a request is a list of nodes. A request that diverges within a node splits it; one that diverges within
    rows of another's own turns the common ones into a node. Decoder thread only.

    Args:
        piece: tokens that are shared together or not at all, as those of a compressed block.
    """

    def __init__(self, piece: int = 1) -> None:
        self._piece = piece
        self._requests: list[Request] = []
        self._retained: list[Request] = []

    def source(self, request: Request, limit: int) -> tuple[Request | None, int]:
        """Return the live request with the longest common prefix, and its length in whole pieces, at most ``limit``.

        Its prefill need not have computed all of that prefix yet.
        """
        best, longest = None, 0
        context = np.array(request.context[:limit], np.int32)
        for other in self._requests:
            if not other.layers or other.tenant != request.tenant:
                continue
            if (common := common_prefix(context, other.context_array)) > longest:
                best, longest = other, common
        return best, longest // self._piece * self._piece

    def join(self, request: Request, limit: int) -> int:
        """Let the request's layers begin with rows of its source; return the number of tokens, 0 for none.

        The layers are empty, or hold ``limit`` tokens already and drop those that the source has too.
        """
        source, common = self.source(request, limit)
        self._requests.append(request)
        if source is None:
            return 0
        if self._can_take_over(source, common):
            return self._take_over(request, source, common)
        nodes = self._nodes(source, min(common, source.computed) // self._piece * self._piece)
        if not nodes:
            return 0
        for node in nodes:
            node.requests.append(request)
        request.path = nodes
        for i, layer in enumerate(request.layers):
            layer.begin_with(tuple(node.layers[i] for node in nodes))
        self._count(nodes)
        return sum(node.length for node in nodes)

    def remove(self, request: Request) -> None:
        """Remove a request, and free the nodes that no other one reads."""
        if request in self._retained:
            self._retained.remove(request)
        if request in self._requests:
            self._requests.remove(request)
            for node in request.path:
                node.requests.remove(request)
            self._count(request.path)
            request.path = []

    def remove_ended(self) -> None:
        """Remove the requests that have dropped their layers, where no one else removes them."""
        for request in [request for request in self._requests if not request.layers]:
            self.remove(request)

    def retain(self, request: Request, tokens: Sequence[int], *, room: int) -> None:
        """Retain the rows of a request that has ended with ``tokens``, until one continues it or :meth:`release_one`.

        Storage for ``room`` more rows is allocated now, so that the next request need not wait for it.
        """
        request.context_array = np.array(tokens, np.int32)
        for layer in request.layers:
            layer.reserve(room)
        mx.async_eval([layer.state for layer in request.layers])
        self._retained.append(request)

    def release_one(self) -> bool:
        """Free the rows of the sequence that was retained first; False when there is none."""
        if not self._retained:
            return False
        request = self._retained[0]
        self.remove(request)
        request.caches, request.layers = [], []
        return True

    @property
    def retained(self) -> int:
        """Number of sequences that have ended and still hold their rows."""
        return len(self._retained)

    def retained_nbytes(self) -> int:
        """Return the bytes of rows that only retained sequences read."""
        own = sum(layer.nbytes for request in self._retained for layer in request.layers)
        return own + sum(
            node.nbytes for node in self._all_nodes() if all(request in self._retained for request in node.requests)
        )

    def nbytes(self) -> int:
        """Return the bytes of all rows that retained sequences hold or several share, each counted once."""
        own = sum(layer.nbytes for request in self._retained for layer in request.layers)
        return own + sum(node.nbytes for node in self._all_nodes())

    def _all_nodes(self) -> list[PrefixNode]:
        return list({id(node): node for request in self._requests for node in request.path}.values())

    def _can_take_over(self, source: Request, tokens: int) -> bool:
        """Return whether the source has ended and loses few rows to a request that continues its first ``tokens``."""
        if source not in self._retained:
            return False
        held, shared = source.computed, sum(node.length for node in source.path)
        return min(tokens, held) >= max(MIN_SHARED_TOKENS, shared, held - max(MIN_SHARED_TOKENS, held // 8))

    def _take_over(self, request: Request, source: Request, tokens: int) -> int:
        """Give the rows of a retained sequence to the request that continues it; return the number of tokens."""
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
        """Return nodes for the first ``tokens`` of the source, split or made as needed; too few tokens are left out."""
        path: list[PrefixNode] = []
        for node in source.path:
            if node.length > tokens:
                return [*path, self._split(node, tokens)] if tokens >= MIN_SHARED_TOKENS else path
            path.append(node)
            tokens -= node.length
        if tokens < MIN_SHARED_TOKENS:
            return path
        node = PrefixNode([layer.share_first(tokens) for layer in source.layers], [source])
        source.path = [*source.path, node]
        return [*path, node]

    def _split(self, node: PrefixNode, at: int) -> PrefixNode:
        """Split a node at a token; return its first part."""
        halves = [prefix.split(at) for prefix in node.layers]
        head, tail = (PrefixNode([half[side] for half in halves], list(node.requests)) for side in (0, 1))
        for request in node.requests:
            place = request.path.index(node)
            request.path[place : place + 1] = [head, tail]
            for i, layer in enumerate(request.layers):
                layer.set_prefixes(tuple(part.layers[i] for part in request.path))
        return head

    @staticmethod
    def _count(nodes: Iterable[PrefixNode]) -> None:
        """Update the number of users of the prefixes of ``nodes``."""
        for node in nodes:
            for prefix in node.layers:
                prefix.users = len(node.requests)


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Return the length of the longest common prefix of two token arrays."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n
