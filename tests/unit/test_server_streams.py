"""Streams to clients: what happens when a client reads late, never, or is gone before its stream has begun."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack

import pytest

from kvlab.decoder import Stream
from kvlab.errors import KvlabError
from kvlab.server import Settings
from kvlab.server.concurrency_limit import ConcurrencyLimit
from kvlab.server.errors import ApiError
from kvlab.server.generation.async_stream import AsyncTokenStream
from kvlab.server.http import ABORT_KEY, EventStream, until_disconnect
from kvlab.server.metrics import ServerMetrics


class Connection:
    """One request's connection, as far as an application sees it."""

    def __init__(self, *, accepts: int = 10**9, stays: bool = True) -> None:
        self.sent: list[dict] = []
        self.aborted = False
        self._accepts = accepts
        self._stays = stays
        self.scope = {"type": "http", ABORT_KEY: self.abort}

    def abort(self) -> None:
        self.aborted = True

    async def receive(self) -> dict:
        if self._stays:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict) -> None:
        if len(self.sent) >= self._accepts:
            await asyncio.Event().wait()  # the client does not read
        self.sent.append(message)


class Events:
    """Endless events; whether they were begun and closed."""

    def __init__(self) -> None:
        self.begun = self.closed = self.left = 0

    async def __call__(self) -> AsyncGenerator[bytes, None]:
        self.begun += 1
        try:
            while True:
                yield b"data: x\n\n"
                await asyncio.sleep(0)
        finally:
            self.closed += 1

    async def leave(self) -> None:
        self.left += 1


@pytest.mark.parametrize("accepts", [0, 1, 2, 10])
@pytest.mark.parametrize("stays", [True, False])
def test_a_stream_ends_wherever_its_client_stops_reading(accepts, stays):
    """Also before its first event: then no generator is there whose end could give the places back."""

    async def run() -> None:
        events, connection = Events(), Connection(accepts=accepts, stays=stays)
        deadline = asyncio.get_running_loop().time() + 0.05
        await EventStream(events(), deadline=deadline, on_close=events.leave)(
            connection.scope, connection.receive, connection.send
        )
        assert events.left == 1
        assert events.begun == events.closed
        assert connection.aborted == stays

    asyncio.run(run())


def test_a_stream_that_ends_by_itself_keeps_its_connection():
    async def run() -> None:
        async def events() -> AsyncGenerator[bytes, None]:
            yield b"data: x\n\n"

        left, connection = Events(), Connection()
        await EventStream(events(), deadline=None, on_close=left.leave)(
            connection.scope, connection.receive, connection.send
        )
        assert [message.get("more_body") for message in connection.sent] == [None, True, False]
        assert left.left == 1
        assert not connection.aborted

    asyncio.run(run())


def test_work_is_cancelled_when_its_client_leaves():
    async def run() -> None:
        cancelled = asyncio.Event()

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

        with pytest.raises(ApiError, match="the client left"):
            await until_disconnect(Connection(stays=False), work())
        assert cancelled.is_set()

    asyncio.run(run())


@pytest.mark.parametrize(("pushed", "limit", "overflows"), [(5, 5, False), (6, 5, True), (100, 5, True), (0, 1, False)])
def test_tokens_that_wait_for_a_client_are_bounded(pushed, limit, overflows):
    async def run() -> None:
        cancelled: list[int] = []
        stream = Stream(7, cancelled.append)
        tokens = AsyncTokenStream(stream, max_unsent=limit)
        for token in range(pushed):
            stream.push(token)
        stream.fail(KvlabError("over"))
        batch = await tokens.next_batch(10)
        assert batch == [*range(min(pushed, limit)), None]
        assert tokens.overflowed == overflows
        assert bool(cancelled) == overflows

    asyncio.run(run())


def test_tokens_that_are_read_in_between_never_overflow():
    async def run() -> None:
        stream = Stream(7, lambda _: pytest.fail("cancelled"))
        tokens = AsyncTokenStream(stream, max_unsent=3)
        for start in range(0, 30, 3):
            for token in range(start, start + 3):
                stream.push(token)
            assert await tokens.next_batch(10) == [start, start + 1, start + 2]
        assert not tokens.overflowed

    asyncio.run(run())


def is_full(limit: ConcurrencyLimit, n: int, tenant: str = "") -> bool:
    try:
        with limit.admit(n, tenant):
            return False
    except ApiError as error:
        assert error.status == 429
        return True


def test_requests_for_many_answers_leave_places_for_others():
    limit = ConcurrencyLimit(Settings(max_concurrency=4, queue=4), ServerMetrics({}))
    with limit.admit(4):
        assert is_full(limit, 4)
        with limit.admit(2):
            assert is_full(limit, 2)
            with limit.admit(1), limit.admit(1):
                assert is_full(limit, 1)
    assert not is_full(limit, 8)


def test_a_tenant_leaves_places_for_others():
    limit = ConcurrencyLimit(Settings(max_concurrency=4, queue=4), ServerMetrics({}))
    with ExitStack() as stack:
        for _ in range(7):
            stack.enter_context(limit.admit(1, "a"))
        assert is_full(limit, 1, "a")
        assert not is_full(limit, 1, "b")
    assert not is_full(limit, 1, "a")


def test_places_are_counted_and_given_back():
    limit = ConcurrencyLimit(Settings(max_concurrency=2, queue=1), ServerMetrics({}))
    with limit.admit(2), limit.admit(1):
        with pytest.raises(ApiError, match="no more may wait") as full, limit.admit(1):
            pass
        assert (full.value.status, full.value.headers) == (429, {"retry-after": "1"})
    with pytest.raises(ApiError, match="this server takes 3: send fewer") as never, limit.admit(4):
        pass
    assert never.value.status == 400
    with pytest.raises(RuntimeError), limit.admit(3):
        raise RuntimeError
    with limit.admit(3):
        pass
    limit.closing.set()
    with pytest.raises(ApiError) as closing, limit.admit(1):
        pass
    assert closing.value.status == 503
