"""``Retention``: which rows of one layer of a sequence stay."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx

from kvlab.caches.kv_buffer import KVBuffer
from kvlab.policies import Module
from kvlab.policies.scorers.model_layer import ModelLayer

Mask = mx.array | str | None


@dataclass(frozen=True)
class Eviction:
    """Rows that were evicted together.

    Attributes:
        positions: their true positions ``[1, n_kv_heads, n]``, lazy; -1 fills heads that lost fewer rows.
        kept: number of rows that stayed, in the head that kept most.
        offset: tokens of the sequence at that time.
    """

    positions: mx.array
    kept: int
    offset: int


@dataclass(frozen=True)
class LayerPlace:
    """A layer of a sequence, and facts about the sequence for its retention.

    Attributes:
        layer: index among ``n_layers``.
        prompt_tokens: length of the prompt; None: it ends at the first step of a single token.
        record: keep an :class:`Eviction` of each eviction.
        keeps_prompt: copy the complete rows of the prompt at its end, before the first eviction.
        token_ids: returns the tokens of the sequence that are known so far; None where they are unknown.
        model_layer: parts of the model's attention, for scorers that read them.
    """

    layer: int = 0
    n_layers: int = 1
    prompt_tokens: int | None = None
    record: bool = False
    keeps_prompt: bool = False
    token_ids: Callable[[], Sequence[int]] | None = None
    model_layer: ModelLayer = ModelLayer()


class Retention(ABC):
    """Decides which rows of one layer of a sequence stay.

    The owner calls :meth:`note` after each attention and, where :meth:`is_due` says so, :meth:`evict`. ``length`` is
    always the number of rows held, ``offset`` the tokens of the sequence so far.

    A concrete subclass sets ``module``, the policy module (or base of modules) that it carries out.

    Attributes:
        evictions: those since the owner last cleared the list; filled only where ``place.record`` is set.
        prompt_rows: the complete rows of the prompt, where ``place.keeps_prompt`` is set; the owner takes them.
    """

    module: ClassVar[type[Module]]
    keeps_all: ClassVar[bool] = False

    def __init__(self, module: Module, place: LayerPlace) -> None:
        self.place = place
        self.evictions: list[Eviction] = []
        self.prompt_rows: KVBuffer | None = None

    @abstractmethod
    def mask(self, length: int, offset: int, count: int) -> Mask:
        """Return which rows the newest ``count`` queries see: ``"causal"``, a bool array, or None for all."""

    @abstractmethod
    def positions(self, length: int, offset: int) -> mx.array:
        """Return the true positions of the rows, int32 ``[1, heads, length]``; heads is 1 while all have the same.

        -1 is the position of rows that only fill a head with fewer rows than others.
        """

    @property
    def visible(self) -> tuple[int, int] | None:
        """Numbers of first and of last rows that a single query sees; None where it sees all rows."""
        return None

    @property
    def is_batchable(self) -> bool:
        """Whether the rows may be in one padded array with those of other sequences, all heads of the same length."""
        return True

    @property
    def keeps_by_head(self) -> bool:
        """Whether heads may keep different numbers of rows, as a :class:`RaggedKVBuffer` holds them."""
        return False

    def note(self, rows: KVBuffer | None, queries: mx.array, offset: int, scale: float) -> None:  # noqa: B027
        """Take note of the newest queries ``[1, n_heads, n, head_dim]``. ``rows`` is None for a batchable retention."""

    def room(self, offset: int) -> int | None:
        """Return how many tokens may follow before rows are evicted; None where any number may."""
        return None

    def is_due(self, length: int, offset: int, count: int) -> bool:
        """Return whether rows are to be evicted now, after ``count`` queries."""
        return False

    def evict(self, rows: KVBuffer, offset: int, scale: float) -> None:  # noqa: B027
        """Remove the rows that do not stay from ``rows``."""

    @property
    def kept(self) -> mx.array | None:
        """True positions of own rows of complete blocks that are compressed, int32 ``[1, n_kv_heads, n]``; else None.

        They are the first rows, and do not change.
        """
        return None

    def begin_with(self, kept: mx.array) -> None:  # noqa: B027
        """Start behind complete blocks whose rows have these positions, as :attr:`kept` gives them.

        Rows that are in prefixes are left out: behind such alone, there are none.
        """

    def rows_of(self, tokens: int) -> int:
        """Return how many rows the first ``tokens`` of a sequence have; whole blocks, where these are compressed."""
        return tokens

    def give_first(self, rows: int) -> mx.array | None:
        """Give the first ``rows`` rows away to a prefix; return their positions, None where each token has its row."""
        return None

    def check_all_scores(self) -> None:  # noqa: B027
        """Raise PolicyError where rows were chosen by scores that are NaN; waits for scores to be computed."""

    @property
    def is_compressed(self) -> bool:
        """Whether later rows are computed after a scorer's eviction, and so differ from those without it."""
        return False

    @property
    def state(self) -> list[mx.array]:
        """Every array of the retention, for ``mx.eval``."""
        return [eviction.positions for eviction in self.evictions]

    @property
    def nbytes(self) -> int:
        """Bytes of the retention's own arrays, without the rows."""
        return 0
