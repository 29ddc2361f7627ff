"""``Backend``: the decisions that depend on the device, in one object that caches and the scheduler receive."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import mlx.core as mx
import mlx.nn as nn

from kvlab.backends.attention_state import AttentionState

Segment = tuple[mx.array, mx.array]
"""Keys and values ``[batch, n_kv_heads, length, head_dim]``."""


class KeyValueRows(Protocol):
    """Rows of keys and values ``[batch, n_kv_heads, length, ...]``, however a codec wrote them."""

    def scores(self, queries: mx.array) -> mx.array:
        """Multiply float32 ``queries`` ``[batch, n_kv_heads, n, head_dim]`` with the keys: float32."""
        ...

    def mix(self, weights: mx.array) -> mx.array:
        """Multiply float32 ``weights`` ``[batch, n_kv_heads, n, length]`` with the values: float32."""
        ...

    @property
    def plain(self) -> Segment | None:
        """Keys and values as the model computes them; None where a codec changes them."""
        ...


class ResumableWork(Protocol):
    """Work that can be interrupted and resumed, on one thread, because MLX must stay on one.

    Attributes:
        wait_s: seconds that the work is expected to wait for the device.
    """

    wait_s: float

    def resume(self, until: float) -> None:
        """Run to the end of the next step, or, where the work can be interrupted within one, to the time ``until``.

        ``until`` is a time of ``time.perf_counter``; infinity: exactly one step. Raises the errors of the work.
        """
        ...

    def stop(self) -> None:
        """End the work before it is done."""
        ...


class ComputeThreads(Protocol):
    """The number of threads that the device's products run on; one number for the whole process."""

    def choose(self, rows: int, *, beside: bool = False) -> None:
        """Set the number for a forward pass of ``rows`` rows, which runs alone or ``beside`` another."""
        ...

    def restore(self) -> None:
        """Reset the number to its first value, for other work in this process."""
        ...


@dataclass(frozen=True)
class BucketRule:
    """Which sequences of a decoding batch share one padded array (:mod:`kvlab.caches.length_bucket`).

    Args:
        slots: sequences a bucket.
        spread_rows: lengths that differ by less share a bucket.
        spread_share: so may lengths that differ by less than this share of the longest.
        buckets: most buckets of a batch whose sequences would fit into as many; None is no limit.
        growth_least, growth_most: columns that a bucket grows by: a sixteenth of what it has, within these bounds.
    """

    slots: int
    spread_rows: int = 64
    spread_share: float = 0.25
    buckets: int | None = None
    growth_least: int = 16
    growth_most: int = 64

    def growth(self, columns: int) -> int:
        """Return the columns to allocate ahead of ``columns`` used ones."""
        return max(self.growth_least, min(self.growth_most, columns // 16))

    def fit_together(self, shortest: int, longest: int) -> bool:
        """Return whether sequences of these lengths, in rows, may share a bucket."""
        return longest - shortest < max(self.spread_rows, self.spread_share * longest)


class Backend(ABC):
    """Computes attention and schedules work for one kind of device."""

    name: ClassVar[str]
    """Name of the backend, a value of ``KVLAB_BACKEND``."""
    buckets: ClassVar[BucketRule]
    """Which sequences of a decoding batch share one array."""
    is_preemptible: ClassVar[bool] = False
    """Whether prefill can be interrupted within a layer, so that time limits a round, not the size of chunks."""
    owns_attention: ClassVar[bool] = False
    """Whether kvlab's own attention is faster than MLX's: then every lossless policy uses it, so that a comparison is
    one of policies, not of kernels."""
    evicts_alone: ClassVar[bool] = False
    """Whether sequences that evict attend one by one, and not beside others in a bucket."""
    copies_in_background: ClassVar[bool] = True
    """Whether KV is copied into the store on another thread. Where MLX computes on CPUs, no core is free for it."""
    prefill_step: ClassVar[int] = 2048
    """Prompt tokens computed at a time where a prompt is alone, unless the decoder is told otherwise."""
    composes_batches: ClassVar[bool] = False
    """Whether :meth:`partial_attention` is faster than :meth:`attention` for a batch without shared prefixes."""

    # -- attention --------------------------------------------------------------------------------------------------

    @abstractmethod
    def attention(
        self,
        queries: mx.array,
        segments: Sequence[Segment],
        scale: float,
        mask: mx.array | str | None,
        sinks: mx.array | None,
    ) -> mx.array:
        """Compute attention ``[batch, n_heads, n, v_head_dim]`` of the newest ``n`` queries over rows in segments.

        Args:
            queries: ``[batch, n_heads, n, head_dim]``.
            segments: keys and values, one segment behind the other; the last holds the queries' own rows.
            mask: what of the last segment is visible: ``"causal"``, bool ``[batch or 1, n_heads or 1, n, length]``, or
                None for all of it. Earlier segments are visible throughout.
            sinks: ``[n_heads]``, joining the denominator.
        """

    @abstractmethod
    def scaled_queries(self, queries: mx.array, scale: float) -> mx.array:
        """Multiply by ``scale``, in float32: what :meth:`partial_attention` takes."""

    @abstractmethod
    def partial_attention(self, queries: mx.array, rows: KeyValueRows, mask: mx.array | None) -> AttentionState:
        """Compute the attention state of single queries over some of their rows, scores and sums in float32.

        Args:
            queries: scaled, float32 ``[batch, n_kv_heads, n, head_dim]``; n counts the query heads of a KV head, or
                those of all sequences that share the rows.
            mask: bool ``[batch, 1, 1, length]``: which rows are real; None for all.

        Returns:
            A state whose arrays are ``[batch, n_kv_heads, n, ...]``.
        """

    @abstractmethod
    def merge(self, one: AttentionState, other: AttentionState) -> AttentionState:
        """Merge the states of the same queries over different rows."""

    @abstractmethod
    def finish(self, state: AttentionState, dtype: mx.Dtype, sinks: mx.array | None) -> mx.array:
        """Give the attention output ``[batch, n_heads, 1, v_head_dim]``; ``sinks`` ``[n_heads]`` join the
        denominator."""

    def composes(self, scores: int) -> bool:
        """Return whether :meth:`partial_attention` is faster for one sequence's single query with this many scores.

        Args:
            scores: query heads times rows.
        """
        return False

    @abstractmethod
    def shares_attention(self, readers: int, rows: int) -> bool:
        """Return whether ``readers`` sequences of a batch attend together to the ``rows`` rows with which all begin.

        Where not, they share memory only.
        """

    # -- scheduling -------------------------------------------------------------------------------------------------

    @abstractmethod
    def resumable(self, steps: Iterator[None], wait_s: float) -> ResumableWork:
        """Make work of ``steps`` that can be interrupted between two of them.

        Args:
            wait_s: seconds that it is expected to wait for the device.
        """

    @abstractmethod
    def threads(self, model: nn.Module) -> ComputeThreads:
        """Make the control of the number of threads that ``model`` is computed on."""

    def prefill_stream(self, decode_stream: Any) -> Any:
        """Return the stream for prompts and all other work except decoding, which uses ``decode_stream``.

        Called on the decoder's thread. With one stream for both, no work waits for another queue.
        """
        return decode_stream
