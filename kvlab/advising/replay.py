"""Replays requests through the plans of reuse modules: tokens in, cached tokens out; no model, no arrays.

Each class does with a plan what the decoder's prefix cache of that module does with it. Blocks are stored in kvlab's
own store, with arrays that have a size and no memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kvlab.advising.errors import AdviceError
from kvlab.decoder.prefill.message_ends import message_ends
from kvlab.decoder.reuse.kept_sequence import KeptSequence
from kvlab.decoder.reuse.paged_rules import match_whole_pieces, tokens_to_store
from kvlab.decoder.reuse.prompt_plan import PromptPlan
from kvlab.decoder.reuse.slot_plan import SlotPlan
from kvlab.policies import NoReuse, Paged, Policy, Ram, Slots, Snapshot, Tiered, WholePrompts, parse_bytes
from kvlab.replay.kept_folder import KeptFolder
from kvlab.store import Namespace, Store
from kvlab.store.config import StoreConfig
from kvlab.store.read_buffers import PayloadList
from kvlab.tiers import RAM, SSD

Tokens = tuple[int, ...]


@dataclass
class Started:
    """What a request starts from.

    Attributes:
        cached: leading tokens that are not computed.
        copied: bytes copied within memory before the first token is computed.
        read: bytes read from SSD before that.
    """

    tokens: Tokens
    cached: int
    copied: int = 0
    read: int = 0
    slot: int = 0
    is_alone: bool = True
    stored: int = field(default=0, repr=False)


class ReuseReplay(ABC):
    """The KV at rest of one server, from its start on.

    Args:
        token_bytes: bytes of KV a token.
    """

    def __init__(self, policy: Policy, token_bytes: int) -> None:
        self.policy, self.token_bytes = policy, token_bytes

    nbytes: int = 0
    """Bytes at rest in memory."""
    ssd_bytes: int = 0
    """Bytes at rest on SSD."""
    written: int = 0
    """Bytes written to SSD so far."""

    @abstractmethod
    def start(self, tokens: Tokens, live: int = 0) -> Started:
        """Find what a request starts from; its first ``live`` tokens are live in another sequence."""

    def computed(self, started: Started) -> None:  # noqa: B027 - may be left
        """Take note that the prompt is computed."""

    @abstractmethod
    def end(self, started: Started, reply: Tokens) -> int:
        """Keep a request that has ended; return the bytes copied within memory for it."""

    def drop(self, started: Started) -> None:  # noqa: B027 - may be left
        """Keep nothing of a request that has ended."""

    @abstractmethod
    def restart(self) -> None:
        """Stop the server in order, and start it again."""

    def close(self) -> None:  # noqa: B027 - may be left
        """End threads."""


class NothingReplay(ReuseReplay):
    """No reuse: every request is computed from its first token."""

    def start(self, tokens: Tokens, live: int = 0) -> Started:
        return Started(tokens, live)

    def end(self, started: Started, reply: Tokens) -> int:
        return 0

    def restart(self) -> None: ...


class SlotsReplay(ReuseReplay):
    """As ``SlotPrefixCache``."""

    def __init__(self, policy: Policy, token_bytes: int) -> None:
        super().__init__(policy, token_bytes)
        self.restart()

    def start(self, tokens: Tokens, live: int = 0) -> Started:
        found = self._plan.start(tokens)
        self.nbytes = self._plan.nbytes
        return Started(tokens, found.tokens, copied=sum(one.nbytes for one in found.saved), slot=found.slot)

    def end(self, started: Started, reply: Tokens) -> int:
        held = np.array(started.tokens + reply[:-1], np.int32)  # the last sampled token is not kept
        self._plan.end(started.slot, KeptSequence(held, nbytes=len(held) * self.token_bytes))
        self.nbytes = self._plan.nbytes
        return 0

    def drop(self, started: Started) -> None:
        self._plan.end(started.slot, None)

    def restart(self) -> None:
        own = self.policy.reuse
        if not isinstance(own, Slots):
            raise AdviceError(f"'{self.policy}' has no slots")
        host = parse_bytes(own.host)
        self._plan = SlotPlan(own.n, share=own.share, unified=own.unified, host=host, keep=own.keep)
        self.nbytes = 0


class PromptsReplay(ReuseReplay):
    """As ``PromptPrefixCache``; ``ends`` are the tokens that end a message, and ``words`` so many behind them begin."""

    def __init__(self, policy: Policy, token_bytes: int, ends: frozenset[int] = frozenset(), words: int = 0) -> None:
        super().__init__(policy, token_bytes)
        self._ends, self._words = ends, words
        self.restart()

    def start(self, tokens: Tokens, live: int = 0) -> Started:
        found = self._plan.look_up(tokens)
        return Started(tokens, found.tokens, copied=found.tokens * self.token_bytes)

    def computed(self, started: Started) -> None:
        ends = message_ends(started.tokens, self._ends)
        if not ends:
            return
        cuts = {ends[0] + self._words: "system"} if len(ends) > 1 else {}
        cuts[len(started.tokens) - 1] = "user"
        for at in sorted(cut for cut in cuts if cut > started.cached):
            self._insert(started.tokens[:at], cuts[at])

    def end(self, started: Started, reply: Tokens) -> int:
        return self._insert(started.tokens + reply, "assistant")

    def restart(self) -> None:
        own = self.policy.reuse
        if not isinstance(own, WholePrompts):
            raise AdviceError(f"'{self.policy}' keeps no prompts")
        limit = None if own.bytes is None else parse_bytes(own.bytes)
        self._plan = PromptPlan(own.count, limit, refresh=own.order == "lru")
        self.nbytes = 0

    def _insert(self, tokens: Tokens, kind: str) -> int:
        size = len(tokens) * self.token_bytes
        self._plan.insert(KeptSequence(np.array(tokens, np.int32), nbytes=size, kind=kind))
        self.nbytes = self._plan.nbytes
        return size


class PagedReplay(ReuseReplay):
    """As ``PagedPrefixCache``; ``opening`` are the tokens with which a template opens an answer."""

    def __init__(self, policy: Policy, token_bytes: int, opening: Sequence[int] = ()) -> None:
        super().__init__(policy, token_bytes)
        if not isinstance(policy.reuse, Paged):
            raise AdviceError(f"'{policy}' has no blocks")
        if policy.retention.stored_block is not None:
            raise AdviceError(
                f"'{policy.retention}' compresses its blocks, which has no plan to replay: compare it instead"
            )
        self._reuse, self._opening = policy.reuse, opening
        self._space = Namespace("replay", policy.storage_key, "", policy.reuse.block)
        tiers = policy.tiers
        if not isinstance(tiers, Ram | Tiered | Snapshot):
            raise AdviceError(f"the tiers '{tiers}' cannot be replayed: write ram, tiered or snapshot")
        below: tuple[KeptFolder, ...] = ()
        if not isinstance(tiers, Ram):
            below = (KeptFolder(parse_bytes(tiers.ssd), tiers.replace),)
        write = "back" if isinstance(tiers, Ram) else tiers.write if isinstance(tiers, Tiered) else "snapshot"
        admit = tiers.admit if isinstance(tiers, Tiered) else 1
        self._folders = below
        self._config = StoreConfig(self._reuse.block, parse_bytes(tiers.ram), tiers.replace, below, write, admit)
        self._store = Store(self._config)
        self._hot: Tokens = ()

    def start(self, tokens: Tokens, live: int = 0) -> Started:
        limit, store = len(tokens) - 1, self._store
        if self._reuse.match == "token":
            match = store.match(self._space, tokens[:limit])
        else:
            match = match_whole_pieces(store, self._space, tokens, limit, self._reuse, checkpoint=False)
        started = Started(tokens, live)
        hot, self._hot = self._hot, ()
        common = min(_common(hot, tokens), limit)
        if common and common >= match.tokens:
            started.cached = started.stored = live = common
        if live >= match.tokens:
            store.release(match)
            return started
        found = store.read_into(match, PayloadList())
        started.cached = started.stored = found.tokens
        new = found.tokens - live
        from_ssd = min(new, found.by_tier.get(SSD.name, 0))
        started.read = from_ssd * self.token_bytes
        started.copied = min(new - from_ssd, found.by_tier.get(RAM.name, 0)) * self.token_bytes
        return started

    def end(self, started: Started, reply: Tokens) -> int:
        tokens = started.tokens + reply
        most = tokens_to_store(self._reuse, len(tokens), started.tokens, self._opening)
        if most > started.stored:
            kept = tokens[:most]
            at = self._store.stored(self._space, kept)
            self._store.put(self._space, kept, at, self._blocks(at, most))
        if self._reuse.hot and started.is_alone:
            self._hot = tokens
        self._count()
        return 0

    def restart(self) -> None:
        self.close()
        self._store, self._hot = Store(self._config), ()
        self.nbytes = 0

    def close(self) -> None:
        self._store.close()
        self._count()

    def _count(self) -> None:
        held = self._store.tiers_bytes()
        self.nbytes = held[RAM.name] + len(self._hot) * self.token_bytes
        self.ssd_bytes = held.get(SSD.name, 0)
        self.written = sum(folder.written for folder in self._folders)

    def _blocks(self, start: int, stop: int) -> list[dict[str, np.ndarray]]:
        """Return arrays of the sizes of blocks, which take no memory."""
        byte, step = np.zeros((1, 1, 1), np.uint8), self._reuse.block
        sizes = [min(step, stop - at) for at in range(start, stop, step)]
        return [{"kv": np.broadcast_to(byte, (1, size, self.token_bytes))} for size in sizes]


def replay_of(
    policy: Policy,
    token_bytes: int,
    *,
    ends: frozenset[int] = frozenset(),
    opening: Sequence[int] = (),
    user_opening: int = 0,
) -> ReuseReplay:
    """Return the replay of a policy's reuse. Raises AdviceError for a module that has no plan."""
    if isinstance(policy.reuse, NoReuse):
        return NothingReplay(policy, token_bytes)
    if isinstance(policy.reuse, Slots):
        return SlotsReplay(policy, token_bytes)
    if isinstance(policy.reuse, WholePrompts):
        return PromptsReplay(policy, token_bytes, ends, user_opening)
    if isinstance(policy.reuse, Paged):
        return PagedReplay(policy, token_bytes, opening)
    raise AdviceError(f"'{policy.reuse.name}' is a reuse of your own, which has no plan to replay: compare it instead")


def _common(one: Tokens, other: Tokens) -> int:
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    return next(at for at in range(shorter) if one[at] != other[at])
