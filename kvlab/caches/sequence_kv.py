"""``SequenceKV``: KV of a whole sequence outside of live caches, as MLX arrays.

Rows of layers that can be cut at a token are kept once, for all tokens. All other layers (sliding windows, recurrent
state) are kept as states at exact token counts. The states of sliding windows hold rows too: where those of two states
meet, the window before any token between them can be put together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import RotatingKVCache

from kvlab.caches.layer_cache import LayerCache
from kvlab.caches.serialize import NONE, cache_leaves, checkpoint_state, is_cuttable, name_parts, unflatten

State = Mapping[str, Any]
"""Values by ``<leaf>:<path>``, as :func:`kvlab.caches.serialize.flatten` names the paths of a cache's state."""

KEYS, VALUES, OFFSET, KEPT_FIRST, WINDOW, ROWS = (str(i) for i in range(6))
"""Paths in the state of a sliding window."""


def state_of(caches: Sequence[Any]) -> dict[str, Any]:
    """Return the state of all layers that cannot be cut at a token, in arrays that do not change."""
    arrays, others = checkpoint_state(caches)
    values: dict[str, Any] = {name: mx.contiguous(array) for name, array in arrays.items()}
    mx.async_eval(list(values.values()))
    for name, value in others.items():
        leaf, path, kind = name_parts(name)
        values[f"{leaf}:{path}"] = None if kind == NONE else value.item()
    return values


def largest_window(caches: Sequence[Any]) -> int:
    """Return the tokens of the largest sliding window; 0 unless all layers that cannot be cut are sliding windows."""
    others = [cache for _, cache in cache_leaves(caches) if not is_cuttable(cache)]
    if not all(isinstance(cache, RotatingKVCache) and not cache.keep for cache in others):
        return 0
    return max((cache.max_size for cache in others), default=0)


@dataclass
class SequenceKV:
    """KV of the first ``tokens`` of one sequence.

    Attributes:
        rows: ``[1, n_kv_heads, tokens or more, width]`` by ``<leaf>:<array>``.
        states: the state of all other layers by token count, that at ``tokens`` among them; empty without such layers.
        windows: tokens of each sliding window, by leaf.
        is_windowed: whether all layers that cannot be cut are sliding windows.
    """

    tokens: int
    rows: dict[str, mx.array]
    states: dict[int, State] = field(default_factory=dict)
    windows: Mapping[str, int] = field(default_factory=dict)
    is_windowed: bool = True

    @classmethod
    def of(cls, caches: Sequence[Any], tokens: int, states: Mapping[int, State], *, copy: bool) -> SequenceKV:
        """Take the KV of live caches that hold ``tokens``.

        Args:
            states: earlier states of the same sequence.
            copy: the caches go on; otherwise their arrays are taken, and they must not be used again.
        """
        leaves = list(cache_leaves(caches))
        others = [(name, cache) for name, cache in leaves if not is_cuttable(cache)]
        windows = {name: cache.max_size for name, cache in others if _is_window(cache)}
        rows = {
            f"{name}:{key}": array
            for name, cache in leaves
            if is_cuttable(cache)
            for key, array in _rows_of(cache, copy=copy).items()
        }
        now = {tokens: state_of(caches)} if others else {}
        kept = cls(tokens, rows, {**states, **now}, windows, len(windows) == len(others))
        return kept.copied() if copy else kept

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        held = [array for state in self.states.values() for array in state.values() if isinstance(array, mx.array)]
        return sum(array.nbytes for array in [*self.rows.values(), *held])

    def copied(self) -> SequenceKV:
        """Return a copy whose rows are memory of their own, without storage that is not used. States never change."""
        rows = {name: mx.contiguous(array[:, :, : self.tokens]) for name, array in self.rows.items()}
        mx.async_eval(list(rows.values()))
        return SequenceKV(self.tokens, rows, dict(self.states), self.windows, self.is_windowed)

    @property
    def cut_from(self) -> int:
        """The fewest tokens from which on all layers can be cut at any token."""
        if not self.states:
            return 0
        if not self.is_windowed:
            return self.tokens
        return max(self._window_from(window) for window in self.windows.values())

    def give(self, caches: Sequence[Any], tokens: int, *, move: bool) -> int:
        """Fill empty caches with the first ``tokens``, and return their bytes.

        Args:
            move: the caches get the arrays themselves, with storage for more tokens; this KV must not be used again.
        """
        state = self.state_at(tokens)
        by_leaf: dict[str, dict[str, mx.array]] = {}
        for name, array in self.rows.items():
            leaf, _, key = name.rpartition(":")
            by_leaf.setdefault(leaf, {})[key] = array if move else array[:, :, :tokens]
        used = 0
        for leaf, cache in cache_leaves(caches):
            if not is_cuttable(cache):
                values = {path.partition(":")[2]: value for path, value in state.items() if _leaf(path) == leaf}
                held = {path: value[...] if isinstance(value, mx.array) else value for path, value in values.items()}
                cache.state = unflatten(cache.state, held)
                used += sum(value.nbytes for value in held.values() if isinstance(value, mx.array))
            elif rows := by_leaf.get(leaf):
                used += sum(array.nbytes * tokens // array.shape[2] for array in rows.values())
                _fill(cache, rows, tokens)
        mx.eval([cache.state for cache in caches])
        return used

    def _window_from(self, window: int) -> int:
        """Return the fewest tokens from which on the ``window`` before any token is held without a gap."""
        first = self.tokens
        for end in sorted(self.states, reverse=True):
            if end >= first:
                first = min(first, end - min(end, window))
        return first + window if first else 0

    def state_at(self, tokens: int) -> State:
        """Return the state of all layers that cannot be cut, at a token count where they can be; empty without any."""
        if tokens in self.states or not self.states:
            return self.states.get(tokens, {})
        made: dict[str, Any] = {}
        for leaf, window in self.windows.items():
            for path in (KEYS, VALUES):
                made[f"{leaf}:{path}"] = self._window_rows(f"{leaf}:{path}", max(0, tokens - window), tokens)
            numbers = {OFFSET: tokens, KEPT_FIRST: 0, WINDOW: window, ROWS: min(tokens, window)}
            made |= {f"{leaf}:{path}": value for path, value in numbers.items()}
        return made

    def _window_rows(self, name: str, start: int, end: int) -> mx.array:
        """Put the rows from ``start`` to ``end`` of a sliding window together."""
        parts = []
        for at in sorted(self.states):
            array = self.states[at][name]
            first = at - array.shape[2]
            if first <= start < at and start < end:
                parts.append(array[:, :, start - first : min(at, end) - first])
                start = min(at, end)
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)


def _is_window(cache: Any) -> bool:
    return isinstance(cache, RotatingKVCache) and not cache.keep and cache.keys is not None


def _leaf(name: str) -> str:
    return name.partition(":")[0]


def _rows_of(cache: Any, *, copy: bool) -> dict[str, mx.array]:
    """Return the arrays of a cuttable leaf; none where its model never uses it.

    Without ``copy`` they are those that the cache holds, with storage that is not used yet.
    """
    if isinstance(cache, LayerCache):
        if copy or cache.prefixes:
            return cache.all_rows()
        cache.leave_bucket()
        return dict(cache.rows.arrays)
    return {} if cache.keys is None else {"k": cache.keys, "v": cache.values}


def _fill(cache: Any, rows: Mapping[str, mx.array], tokens: int) -> None:
    if isinstance(cache, LayerCache):
        cache.begin_with_rows(rows, tokens)
    else:
        cache.keys, cache.values, cache.offset = rows["k"], rows["v"], tokens
