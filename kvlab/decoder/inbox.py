"""``Inbox``: the messages to the decoder's thread, in their order."""

from __future__ import annotations

import queue
from contextlib import suppress

from kvlab.decoder.ranks import Ranks
from kvlab.decoder.request import Request

Message = Request | int | None
"""A request, the number of a request to cancel, or None to end."""


class Inbox:
    """Holds messages until the decoder's thread reads them. :meth:`put` may be called from any thread."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def put(self, message: Message) -> None:
        """Add a message."""
        self._queue.put(message)

    def read(self, *, wait: bool) -> list[Message]:
        """Return the messages that are there; with ``wait``, at least one."""
        messages = [self._queue.get()] if wait else []
        with suppress(queue.Empty):
            while True:
                messages.append(self._queue.get_nowait())
        return messages

    def refuse(self, error: Exception) -> None:
        """Fail all requests that still come, until the message to end."""
        messages = self._left()
        while None not in messages:
            for request in messages:
                if isinstance(request, Request):
                    request.stream.fail(error)
            messages = Inbox.read(self, wait=True)

    def _left(self) -> list[Message]:
        """Take the messages that were read from the queue and not handed out."""
        return []


class AgreedInbox(Inbox):
    """Gives the same messages in the same round on all ranks: those that have come to every one of them."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self._ranks = ranks
        self._pending: list[Message] = []

    def read(self, *, wait: bool) -> list[Message]:
        """Return the messages that every rank had a round ago; with ``wait``, those that every rank has now.

        Asking a round before keeps the device at work meanwhile. Raises OutOfStep.
        """
        count = self._ranks.take() if self._ranks.has_posted else 0
        if wait and not count:
            self._pending += super().read(wait=not self._pending)
            self._ranks.post(len(self._pending))
            count = self._ranks.take()
        messages, self._pending = self._pending[:count], self._pending[count:]
        self._pending += super().read(wait=False)
        for message in messages:
            self._note(message)
        if None not in messages:
            self._ranks.post(len(self._pending))
        return messages

    def _left(self) -> list[Message]:
        messages, self._pending = self._pending, []
        return messages

    def _note(self, message: Message) -> None:
        if isinstance(message, Request):
            self._ranks.note(message.number, message.max_tokens, *message.prompt)
        else:
            self._ranks.note(-1 if message is None else message)
