"""Keep blocks in a remote that several machines share: a Redis or Valkey server, or an object store.

Nothing there is trusted: a block counts only after its checksums, and its key, recomputed from parent and tokens, have
proved right. Nothing there is waited for: a lookup takes ``wait_s`` seconds at most, a block as long as its size
allows, and a remote that is later than that is left alone until it answers in time again.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from kvlab.errors import StoreError
from kvlab.store import keys as k
from kvlab.store.blocks import BLOCK, Block, Child
from kvlab.store.errors import TierCorrupt, TierMiss, TierUnreadable
from kvlab.store.protocols import IsPinned, OnDropped
from kvlab.store.read_buffers import ReadBuffer
from kvlab.store.remote import sealing as names
from kvlab.store.remote.block_bytes import BadBlock, NewerFormat, decode, encode
from kvlab.store.remote.bounded_calls import BoundedCalls
from kvlab.store.remote.budget import remove_surplus
from kvlab.store.remote.circuit import Circuit
from kvlab.store.remote.client import RemoteClient, check_url, connect
from kvlab.store.remote.errors import RemoteTrouble
from kvlab.store.remote.read_ahead import ReadAhead
from kvlab.store.remote.sealing import OtherSecret, Sealing, sealing_from_environment
from kvlab.store.remote.uploader import Upload, Uploader
from kvlab.tiers import REMOTE

DEFAULT_WAIT_S = 0.05
DEFAULT_QUEUE_BYTES = 64 << 20
MIN_BYTES_PER_S = 20e6
"""A block that comes more slowly is late: it may take ``wait_s`` and its bytes at this rate."""
FLUSH_S = 10.0
"""Longest time that a flush waits for a remote that takes blocks."""
AVOID_S = 30.0
"""Seconds for which a block that proved bad is not looked for."""
MAX_KNOWN_KEYS = 1 << 16
"""Keys that are remembered as having been in the remote, to say why they are missed."""
MAX_CHILDREN = 64
"""Children of one block that a lookup looks at, chosen by the service where there are more."""
MAX_CHILDREN_TRIED = 3
MAX_CHECKPOINT_PARENTS = 256
"""Blocks, the last ones of a prompt, under which a lookup looks for checkpoints."""
COUNTERS = (
    *("remote_blocks_sent", "remote_bytes_sent", "remote_blocks_received", "remote_bytes_received"),
    *("remote_refused", "remote_failures", "remote_removed", "unreadable"),
)
SWEEPS_PER_BUDGET = 16
"""The budget is looked after whenever this process has sent that share of it."""


@dataclass(frozen=True)
class RemoteConfig:
    """Describes a remote tier. Impossible settings raise ``StoreError``.

    Attributes:
        url: the service, see ``kvlab.remote_urls.URL_FORMS``; without a password.
        ttl_s: seconds after which a block leaves the remote by itself; None is never.
        budget: bytes that all blocks in the remote may take, by whichever process; None leaves it to the service.
        wait_s: seconds that a lookup may wait for answers; a remote that needs longer is left alone.
        queue_bytes: bytes of blocks that may wait in memory to be sent.
    """

    name: ClassVar[str] = REMOTE.name
    url: str
    ttl_s: float | None = None
    budget: int | None = None
    wait_s: float = DEFAULT_WAIT_S
    queue_bytes: int = DEFAULT_QUEUE_BYTES

    def __post_init__(self) -> None:
        check_url(self.url)
        if self.ttl_s is not None and self.ttl_s <= 0:
            raise StoreError(f"ttl_s={self.ttl_s:g} is no time to live; use seconds above 0, or None")
        if self.budget is not None and self.budget < 1:
            raise StoreError(f"{self.budget} bytes are not a budget of the remote tier; use 1 or more, or None")
        if self.wait_s <= 0:
            raise StoreError(f"wait_s={self.wait_s:g} is no time to wait; use seconds above 0")
        if self.queue_bytes < 1:
            raise StoreError(f"queue_bytes={self.queue_bytes} holds no block; use 1 or more")

    def open(self, *, pinned: IsPinned, dropped: OnDropped) -> RemoteTier:
        return RemoteTier(self, connect(self.url, self.ttl_s), sealing_from_environment(), dropped)


class RemoteTier:
    """Implements ``Tier``. Other machines read and write the same remote; this one knows what it asked last."""

    name = REMOTE.name

    def __init__(self, config: RemoteConfig, client: RemoteClient, sealing: Sealing, dropped: OnDropped) -> None:
        self._config, self._client, self._sealing, self._dropped = config, client, sealing, dropped
        self._circuit = Circuit(config.url, client.ping, config.wait_s, self._on_back)
        self._calls = BoundedCalls(self._circuit, config.wait_s)
        self._uploads = Uploader(client, self._circuit, config.queue_bytes, self._after_batch)
        self._ahead = ReadAhead(lambda wanted: self._calls.start(client.read, wanted))
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._avoided: dict[bytes, float] = {}
        self._counts: Counter[str] = Counter()
        self._blocks = self._bytes = 0  # in the remote, as far as known: from the last listing, and what was sent since
        self._unswept = config.budget or 0  # the first batch looks after the budget
        self._calls.connect(client.ping)

    def _on_back(self) -> None:
        self._ahead.forget()
        self._uploads.wake()

    # -- looking up -----------------------------------------------------------------------------------------------

    def contains(self, keys: Sequence[bytes]) -> set[bytes]:
        return self._found(keys, begins=True)

    def _found(self, keys: Sequence[bytes], *, begins: bool) -> set[bytes]:
        """Return the keys that are in the remote or on their way; ``begins`` as for :meth:`BoundedCalls.ask`."""
        if not keys:
            return set()
        now = time.monotonic()
        asked = {self._block_name(key): key for key in keys if now >= self._avoided.get(key, 0.0)}
        queued = {name for name in asked if self._uploads.pending(name) is not None}
        sizes: dict[str, int] = self._calls.ask(
            self._client.sizes, [name for name in asked if name not in queued], otherwise={}, begins=begins
        )
        self._ahead.found([(name, sizes[name]) for name in asked if name in sizes])
        found = {asked[name] for name in (*queued, *sizes)}
        with self._lock:
            for key in found:
                self._known[key] = None
                self._known.move_to_end(key)
            while len(self._known) > MAX_KNOWN_KEYS:
                self._known.popitem(last=False)
        return found

    def nearest(self, parent: bytes, tokens: bytes) -> Child | None:
        collection = self._sealing.name(names.CHILDREN, parent)
        members: dict[str, bytes] = self._calls.ask(self._client.members, collection, MAX_CHILDREN, otherwise={})
        children = sorted(
            filter(None, (self._child(parent, collection, *member) for member in members.items())),
            key=lambda child: (-k.common(child.tokens, tokens), len(child.tokens)),
        )[:MAX_CHILDREN_TRIED]
        if not children:
            return None
        there = self._found([child.key for child in children], begins=False)  # a collection may name what has left
        found = next((child for child in children if child.key in there), None)
        if found is not None:
            self._ahead.follows(self._block_name(parent), self._block_name(found.key))
        return found

    def _child(self, parent: bytes, collection: str, member: str, record: bytes) -> Child | None:
        """Return the child that a member names; None for one that does not name itself, as a forged one would."""
        try:
            tokens = self._sealing.open(collection + member, record)
        except BadBlock:
            return None
        if not tokens or len(tokens) % 4:
            return None
        key = k.chain(parent, tokens)
        return Child(key, tokens) if self._member(key) == member else None

    def with_checkpoints(self, parents: Sequence[bytes]) -> set[bytes]:
        asked = {self._sealing.name(names.CHECKPOINTS, one): one for one in parents[-MAX_CHECKPOINT_PARENTS:]}
        found: set[str] = self._calls.ask(self._client.with_members, list(asked), otherwise=set())
        return {asked[name] for name in found}

    def eviction_reason(self, key: bytes) -> str:
        if time.monotonic() < self._avoided.get(key, 0.0):
            return TierCorrupt.reason
        if key not in self._known:
            return ""
        return TierUnreadable.reason if time.monotonic() - self._calls.failed_at < 1.0 else TierMiss.reason

    def roots_of(self, head: bytes) -> set[bytes]:
        collection = self._sealing.name(names.HEADS, head)
        members: dict[str, bytes] = self._calls.ask(self._client.members, collection, MAX_CHILDREN, otherwise={})
        found = set[bytes]()
        for member, record in members.items():
            try:
                root = self._sealing.open(collection + member, record)
            except BadBlock:
                continue
            if self._member(root) == member:
                found.add(root)
        return found

    # -- reading --------------------------------------------------------------------------------------------------

    def read(self, key: bytes) -> Block:
        return self.read_within(key, math.inf)

    def read_within(self, key: bytes, most_s: float) -> Block:
        """Do as :meth:`read`, and wait no longer than ``most_s``, but for ``wait_s``, which any answer may take."""
        name = self._block_name(key)
        most_s = max(most_s, self._config.wait_s)
        queued = self._uploads.pending(name)
        if queued is not None:
            return decode(self._sealing.open(name, queued.data), key)
        if self._circuit.is_open:
            raise TierUnreadable(f"{key.hex()}: {self._circuit.trouble}")
        try:
            awaited = self._ahead.take(name)
            wait_s = self._config.wait_s + 2 * awaited.batch_bytes / MIN_BYTES_PER_S
            data = self._calls.result(awaited.batch, wait_s, most_s).get(name)
            try:
                return self._verified(name, key, data)
            except BadBlock:  # read it again: the fault may be in memory or on the way
                again = self._calls.result(self._calls.start(self._client.read, [name]), wait_s, most_s).get(name)
                return self._verified(name, key, again)
        except RemoteTrouble as error:
            self._ahead.forget()
            self._calls.failed_at = time.monotonic()
            self._counts["unreadable"] += 1
            raise TierUnreadable(f"{key.hex()}: {error}") from None
        except BadBlock as error:
            self._set_aside(key, name, again or b"", error)
            raise TierCorrupt(f"{key.hex()}: {error}") from None

    def read_to(self, key: bytes, buffer: ReadBuffer) -> Block | None:
        """Do as :meth:`read`: the bytes have come over a network already, into memory of their own."""
        return self.read(key)

    def _verified(self, name: str, key: bytes, data: bytes | None) -> Block:
        if data is None:
            raise TierMiss("the remote no longer has it")
        self._counts["remote_bytes_received"] += len(data)
        block = decode(self._sealing.open(name, data), key)
        self._counts["remote_blocks_received"] += 1
        return block

    def _set_aside(self, key: bytes, name: str, data: bytes, error: BadBlock) -> None:
        """Do not look for a bad block for a while; remove it where it is surely nobody's."""
        self._avoid(key)
        if not isinstance(error, NewerFormat | OtherSecret):
            self._uploads.delete([name])
        self._dropped(key, len(data), TierCorrupt.reason)

    def quarantine(self, key: bytes) -> None:
        self._avoid(key)

    def _avoid(self, key: bytes) -> None:
        now = time.monotonic()
        with self._lock:
            self._avoided = {old: until for old, until in self._avoided.items() if until > now} | {key: now + AVOID_S}

    # -- changing -------------------------------------------------------------------------------------------------

    def write(self, blocks: Sequence[Block], heads: Sequence[tuple[bytes, bytes]] = ()) -> set[bytes]:
        taken: set[bytes] = set()
        for block in blocks:
            if self._uploads.takes and self._queue(block):
                taken.add(block.key)
        for head, root in heads if self._uploads.takes else ():
            collection, member = self._sealing.name(names.HEADS, head), self._member(root)
            self._uploads.add_head(collection, member, self._sealing.seal(collection + member, root))
        with self._lock:
            self._known |= dict.fromkeys(taken)
        return taken

    def _queue(self, block: Block) -> bool:
        name = self._block_name(block.key)
        try:
            data = self._sealing.seal(name, encode(block))
        except BadBlock:
            return False
        folder = names.CHILDREN if block.kind == BLOCK else names.CHECKPOINTS
        collection, member = self._sealing.name(folder, block.parent), self._member(block.key)
        record = self._sealing.seal(collection + member, block.tokens)
        return self._uploads.add(Upload(block.key, name, data, collection, member, record))

    def touch(self, keys: Sequence[bytes]) -> None:
        self._uploads.touch([self._block_name(key) for key in keys if key in self._known])

    def delete(self, keys: Sequence[bytes]) -> None:
        self._uploads.delete([self._block_name(key) for key in keys])

    def note(self, counters: Mapping[str, int]) -> None:
        """Send postponed uses. Counters stay here: those of one process say nothing of a shared remote."""
        self._uploads.send_uses()

    def sync(self) -> bool:
        """Wait until the remote has acknowledged all; what survives its own power cut is its own affair."""
        return self._uploads.drain(FLUSH_S)

    def _after_batch(self, blocks: int, sent: int) -> None:
        """Look after the budget, on the writer's thread, whenever much was sent. Raises ``RemoteTrouble``."""
        budget = self._config.budget
        self._bytes += sent
        self._blocks += blocks
        self._unswept += sent
        if budget is None or self._unswept < budget / SWEEPS_PER_BUDGET:
            return
        self._unswept = 0
        done = remove_surplus(self._client, keep=budget, ttl_s=self._config.ttl_s)
        self._blocks, self._bytes = done.left, done.left_bytes
        self._counts["remote_removed"] += done.removed

    # -- state ----------------------------------------------------------------------------------------------------

    def nbytes(self) -> int:
        return self._bytes

    def stats(self) -> dict[str, Any]:
        counters = Counter(dict.fromkeys(COUNTERS, 0))
        counters.update(self._counts)
        counters.update(self._uploads.counts)
        return {
            "bytes": self._bytes,
            "blocks": self._blocks,
            **counters,
            "remote_queued_bytes": self._uploads.queued_bytes,
            "remote_trips": self._circuit.trips,
            "remote_late": self._calls.late,
            "trouble": self._circuit.trouble or self._uploads.full,
        }

    def problems(self) -> list[str]:
        return []

    def close(self) -> None:
        self._uploads.stop()
        self._circuit.end()
        self._calls.close()
        self._client.close()

    # -- names ----------------------------------------------------------------------------------------------------

    def _block_name(self, key: bytes) -> str:
        return self._sealing.name(names.BLOCKS, key)

    def _member(self, key: bytes) -> str:
        """Return what names a block within a collection: its own name, without the folder."""
        return self._block_name(key)[len(names.BLOCKS) :]
