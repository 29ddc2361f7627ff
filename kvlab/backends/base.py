"""What a backend is: every decision that depends on the device, in one object that caches and scheduler are handed."""

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
        """Keys and values where they are stored as the model computes them; None where a codec changed them."""
        ...


class ResumableWork(Protocol):
    """Work that can be left and gone on with, on one thread, because MLX must stay on one.

    Attributes:
        wait_s: seconds that it is expected to wait for the device.
    """

    wait_s: float

    def go_on(self, until: float) -> None:
        """Go on to the next step, or, where the work can be left within one, to the time ``until``.

        ``until`` is a time of ``time.perf_counter``; infinity: exactly one step. Raises what the work raises.
        """
        ...

    def stop(self) -> None:
        """Leave the work for good."""
        ...


class ComputeThreads(Protocol):
    """The number of threads that the device's products run on; one number for the whole process."""

    def suit(self, rows: int, *, beside: bool = False) -> None:
        """Choose for a forward pass of ``rows`` rows, which runs alone or ``beside`` another."""
        ...

    def give_back(self) -> None:
        """Set the number back: others in this process compute meanwhile."""
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
        """Columns of storage ahead of ``columns`` used ones."""
        return max(self.growth_least, min(self.growth_most, columns // 16))

    def fit_together(self, shortest: int, longest: int) -> bool:
        """Whether sequences of these lengths, in rows, may share a bucket."""
        return longest - shortest < max(self.spread_rows, self.spread_share * longest)


class Backend(ABC):
    """Computes attention and schedules work as suits one kind of device."""

    name: ClassVar[str]
    buckets: ClassVar[BucketRule]
    is_preemptible: ClassVar[bool] = False
    """Whether prefill can be left within a layer, so that time decides and not the size of chunks."""
    owns_attention: ClassVar[bool] = False
    """Whether kvlab's own attention is the quicker one: then every lossless policy gets it, so that policies are
    compared, and not kernels."""
    evicts_alone: ClassVar[bool] = False
    """Whether sequences that evict attend each on its own, and not beside others in a bucket."""
    copies_aside: ClassVar[bool] = True
    """Whether KV is copied into the store on a thread of its own: CPUs that compute have no core to spare for it."""
    prefill_step: ClassVar[int] = 2048
    """Prompt tokens computed at a time where a prompt is alone, unless the decoder is told otherwise."""
    composes_batches: ClassVar[bool] = False
    """Whether a batch that shares nothing is quicker by :meth:`partial_attention` than by :meth:`attention`."""

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
        """Compute what single queries get from some of their rows, scores and sums in float32.

        Args:
            queries: scaled, float32 ``[batch, n_kv_heads, n, head_dim]``; n are the query heads of a KV head, or those
                of all sequences that share the rows.
            mask: bool ``[batch, 1, 1, length]``: which rows are real; None for all.

        Returns:
            A state whose arrays are ``[batch, n_kv_heads, n, ...]``.
        """

    @abstractmethod
    def merge(self, one: AttentionState, other: AttentionState) -> AttentionState:
        """Put together what the same queries got from different rows."""

    @abstractmethod
    def finish(self, state: AttentionState, dtype: mx.Dtype, sinks: mx.array | None) -> mx.array:
        """Give the attention output ``[batch, n_heads, 1, v_head_dim]``; ``sinks`` ``[n_heads]`` join the
        denominator."""

    def composes(self, scores: int) -> bool:
        """Whether one sequence's single query with so many ``scores`` is quicker by :meth:`partial_attention`."""
        return False

    @abstractmethod
    def shares_attention(self, readers: int, rows: int) -> bool:
        """Whether ``readers`` sequences of a batch that begin with the same ``rows`` rows attend to them together.

        Where not, they share the memory only.
        """

    # -- scheduling -------------------------------------------------------------------------------------------------

    @abstractmethod
    def resumable(self, steps: Iterator[None], wait_s: float) -> ResumableWork:
        """Make work of ``steps`` that can be left between two of them."""

    @abstractmethod
    def threads(self, model: nn.Module) -> ComputeThreads:
        """Make the control of the threads that ``model`` is computed on."""

    def prefill_stream(self, decode_stream: Any) -> Any:
        """Choose the stream for prompts and all else that is not decoding, which goes on on ``decode_stream``.

        Called on the decoder's thread. One stream for both waits for nothing across queues.
        """
        return decode_stream
