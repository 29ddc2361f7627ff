"""Send blocks to a remote on a thread of its own, from a queue that holds so many bytes and no more."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvlab.store.remote.circuit import Circuit
from kvlab.store.remote.client import RemoteClient
from kvlab.store.remote.errors import RemoteFull, RemoteTrouble

BATCH_BYTES = 4 << 20
"""Bytes sent with one request; a larger block goes alone."""
FULL_PAUSE_S = 3.0
"""Seconds without writes to a remote that does not take them."""
MAX_ERRANDS = 4096
"""Deletions and uses that wait to be sent; what comes beyond is left to the remote's own replacement."""

log = logging.getLogger("kvlab.store")


@dataclass(frozen=True)
class Upload:
    """Holds a block on its way: its key, its name, its sealed bytes, and the collection that names it as a member."""

    key: bytes
    name: str
    data: bytes
    collection: str
    member: str
    record: bytes


class Uploader:
    """Owns the thread. What is queued counts as held by the tier: ``pending`` serves it meanwhile.

    While the circuit is open or the remote is full nothing more is taken, so that RAM keeps its blocks unwritten, and
    what is queued waits. ``after_batch(blocks, bytes)`` is called on the thread.
    """

    def __init__(
        self, client: RemoteClient, circuit: Circuit, max_bytes: int, after_batch: Callable[[int, int], None]
    ) -> None:
        self._client, self._circuit, self._max_bytes, self._after_batch = client, circuit, max_bytes, after_batch
        self._condition = threading.Condition()
        self._queue: OrderedDict[str, Upload] = OrderedDict()
        self._heads: dict[tuple[str, str], bytes] = {}
        self._deleted: dict[str, None] = {}
        self._touched: dict[str, None] = {}
        self._queued_bytes = 0
        self._full_until = 0.0
        self._is_busy = False
        self._sends_uses = False
        self._stopped = False
        self.counts: Counter[str] = Counter()
        self.full = ""
        self._thread = threading.Thread(target=self._run, name="kvlab-remote-writer", daemon=True)
        self._thread.start()

    # -- called by the tier ---------------------------------------------------------------------------------------

    @property
    def takes(self) -> bool:
        """Tell whether blocks may be queued now."""
        return not (self._circuit.is_open or self._stopped or time.monotonic() < self._full_until)

    @property
    def queued_bytes(self) -> int:
        return self._queued_bytes

    def add(self, upload: Upload) -> bool:
        """Queue a block; return False where there is no room for it, or no remote."""
        with self._condition:
            has_room = self._queued_bytes + len(upload.data) <= self._max_bytes
            if not has_room or not self.takes:
                self.counts["remote_refused"] += 1
                return False
            old = self._queue.pop(upload.name, None)
            self._queued_bytes += len(upload.data) - (len(old.data) if old is not None else 0)
            self._queue[upload.name] = upload
            self._deleted.pop(upload.name, None)
            self._condition.notify_all()
            return True

    def add_head(self, collection: str, member: str, record: bytes) -> None:
        with self._condition:
            if len(self._heads) < MAX_ERRANDS:
                self._heads[collection, member] = record
                self._condition.notify_all()

    def pending(self, name: str) -> Upload | None:
        """Return a block that is not sent yet."""
        with self._condition:
            return self._queue.get(name)

    def delete(self, names: Sequence[str]) -> None:
        with self._condition:
            for name in names:
                queued = self._queue.pop(name, None)
                self._queued_bytes -= len(queued.data) if queued is not None else 0
                if len(self._deleted) < MAX_ERRANDS:
                    self._deleted[name] = None
            self._condition.notify_all()

    def touch(self, names: Sequence[str]) -> None:
        """Note uses; they are sent with the next blocks, or at :meth:`send_uses`."""
        with self._condition:
            for name in names:
                if len(self._touched) < MAX_ERRANDS:
                    self._touched[name] = None

    def send_uses(self) -> None:
        """Send the uses noted so far, also where no blocks are."""
        with self._condition:
            self._sends_uses = bool(self._touched)
            self._condition.notify_all()

    def wake(self) -> None:
        """Look again, since the remote is back."""
        with self._condition:
            self._condition.notify_all()

    def drain(self, seconds: float) -> bool:
        """Wait until all is sent; return False where that is not so after so long, or the remote is in trouble."""
        end = time.monotonic() + seconds
        with self._condition:
            while (self._queue or self._heads or self._deleted or self._is_busy) and self._thread.is_alive():
                left = end - time.monotonic()
                if left <= 0 or not (self.takes or self._is_busy):
                    return False
                self._condition.wait(min(left, 0.1))
            return self.takes  # else blocks were refused, which are in RAM alone

    def stop(self) -> int:
        """End the thread; return how many blocks are lost with it."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()
        self._thread.join(timeout=5.0)  # a request that hangs ends by itself
        return len(self._queue)

    # -- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._condition:
                self._is_busy = False
                self._condition.notify_all()
                while not self._stopped and not (self._has_work() and self.takes):
                    self._condition.wait(self._pause())
                if self._stopped:
                    return
                self._is_busy = True
            try:
                self._send()
            except RemoteFull as error:
                self._pause_for(error)
            except RemoteTrouble as error:
                self.counts["remote_failures"] += 1
                self._circuit.trip(str(error))
            except Exception:  # a fault of this program: the decoder goes on without the remote
                log.exception("kvlab store: writing to the remote stopped")
                with self._condition:
                    self._stopped = True
                    self._condition.notify_all()
                return

    def _has_work(self) -> bool:
        return bool(self._queue or self._heads or self._deleted or self._sends_uses)

    def _pause(self) -> float | None:
        """Return how long to wait for work or for room; None: until woken."""
        left = self._full_until - time.monotonic()
        return left if left > 0 else None

    def _pause_for(self, error: RemoteFull) -> None:
        self.counts["remote_failures"] += 1
        if not self.full:
            log.warning("kvlab store: the remote takes no blocks (%s); they are offered again later", error)
        with self._condition:
            self.full, self._full_until = str(error), time.monotonic() + FULL_PAUSE_S

    def _send(self) -> None:
        with self._condition:
            deleted, self._deleted = list(self._deleted), {}
            touched, self._touched, self._sends_uses = list(self._touched), {}, False
            heads, self._heads = self._heads, {}
            batch: list[Upload] = []
            for upload in self._queue.values():
                if batch and sum(len(one.data) for one in batch) + len(upload.data) > BATCH_BYTES:
                    break
                batch.append(upload)
        if deleted:
            self._client.delete(deleted)
        if batch:
            self._client.write({upload.name: upload.data for upload in batch})
            for upload in batch:  # behind the block, so that who finds the member finds the block
                self._client.add(upload.collection, upload.member, upload.record)
        for (collection, member), record in heads.items():
            self._client.add(collection, member, record)
        if touched:
            self._client.touch(touched)
        sent = sum(len(upload.data) for upload in batch)
        with self._condition:
            self.full = ""
            for upload in batch:
                if self._queue.get(upload.name) is upload:
                    del self._queue[upload.name]
                    self._queued_bytes -= len(upload.data)
            self.counts["remote_bytes_sent"] += sent
            self.counts["remote_blocks_sent"] += len(batch)
        self._after_batch(len(batch), sent)
