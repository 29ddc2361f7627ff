"""What every protocol does with a request: admit it, run it, count it, remember its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import Any

from kvlab.server.concurrency_limit import ConcurrencyLimit
from kvlab.server.generation.choice import Choice
from kvlab.server.generation.model_pool import ModelPool
from kvlab.server.generation.request import Ended, Event, GenerationRequest
from kvlab.server.generation.served_model import ServedModel
from kvlab.server.logs import log
from kvlab.server.metrics import ServerMetrics
from kvlab.server.settings import Settings


class Service:
    """Everything behind the routes. Made and used on one event loop."""

    def __init__(self, settings: Settings, pool: ModelPool, monitor: ServerMetrics) -> None:
        self.settings, self.pool, self.monitor = settings, pool, monitor
        self.gate = ConcurrencyLimit(settings, monitor)
        # Templates and tokenizers hold the interpreter for milliseconds: not on the event loop, and not in parallel.
        self.worker = ThreadPoolExecutor(1, "kvlab-render")
        self.recent: dict[str, tuple[str, list[int], str]] = {}

    async def open(
        self,
        asked: str | None,
        make: Callable[[ServedModel], list[GenerationRequest]],
        *,
        request: str,
        tenant: str,
        path: str,
    ) -> Session:
        """Load, render, check and submit. Raises ApiError; on success the session must be closed."""
        stack = AsyncExitStack()
        try:
            model = await stack.enter_async_context(self.pool.use(asked))
            asks = await self.off_loop(_prepared, make, model)
            stack.enter_context(self.gate.enter(sum(ask.n for ask in asks)))
            session = Session(self, model, asks, stack, request, tenant, path)
            stack.push_async_callback(session.leave)
            session.start()
        except BaseException:
            await stack.aclose()
            raise
        return session

    async def off_loop(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call something slow on the worker thread."""
        return await asyncio.get_running_loop().run_in_executor(self.worker, function, *arguments)

    def close(self) -> None:
        self.gate.closed = True
        self.pool.close()
        self.worker.shutdown(wait=False, cancel_futures=True)


class Session:
    """One admitted request. An async context manager: leaving it cancels what still runs."""

    def __init__(
        self,
        service: Service,
        model: ServedModel,
        asks: list[GenerationRequest],
        stack: AsyncExitStack,
        request: str,
        tenant: str,
        path: str,
    ) -> None:
        self.model, self.asks, self.request = model, asks, request
        self._service, self._stack, self._tenant = service, stack, tenant
        self._path = path
        self._choices: list[Choice] = []
        self._began = time.perf_counter()
        self._first: float | None = None
        self._ended: list[Ended] = []

    def start(self) -> None:
        """Submit every choice."""
        facts = {
            "path": self._path,
            "model": self.model.name,
            "prompt_tokens": sum(len(ask.prompt.ids) for ask in self.asks),
            "max_tokens": max(ask.max_tokens for ask in self.asks),
            "n": sum(ask.n for ask in self.asks),
        }
        self._service.monitor.began_request(self.request, facts, self.tokens)
        for ask in self.asks:
            for index in range(ask.first, ask.first + ask.n):
                tags = {"request": self.request, "prompt": ask.first}
                self._choices.append(self.model.choose(index, ask, self._tenant, tags))

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def events(self) -> AsyncGenerator[Event, None]:
        """The events of all choices as they come."""
        deadline = asyncio.get_running_loop().time() + self._service.settings.request_seconds
        beat = self._service.settings.heartbeat
        merged = _merged([choice.events(heartbeat=beat, deadline=deadline) for choice in self._choices])
        async with aclosing(merged) as events:
            async for event in events:
                if self._first is None and not isinstance(event, Ended):
                    self._first = time.perf_counter()
                yield await self._finished(event) if isinstance(event, Ended) else event

    async def _finished(self, event: Ended) -> Ended:
        choice, completion = self._choices[event.index], event.completion
        self._service.monitor.completed(completion, event.tokens, event.reason)
        if not choice.ask.raw and event.stopped is None:
            self.model.prompts.remember(choice.ask.prompt, answer_message(choice), choice.tokens)
        if completion.miss.startswith("diverged_at=") and not choice.ask.raw:
            at = int(completion.miss.partition("=")[2])
            index = await self._service.off_loop(self.model.prompts.message_at, choice.ask.prompt, at)
            event = replace(event, message=index)
        recent = self._service.recent
        recent[self.request] = (self.model.name, [*choice.ask.prompt.ids, *completion.tokens], self._tenant)
        while len(recent) > 256:
            del recent[next(iter(recent))]
        self._ended.append(event)
        return event

    def tokens(self) -> int:
        """Tokens generated so far."""
        return sum(len(choice.tokens) for choice in self._choices)

    async def leave(self) -> None:
        """Cancel what runs, and tell the log and the dashboard how it went."""
        for choice in self._choices:
            choice.cancel()
        how = "cancelled" if self._choices else "refused"
        if self._ended and len(self._ended) == len(self._choices):
            how = self._ended[0].reason
        facts: dict[str, Any] = {"ended": how, "tokens": self.tokens()}
        if self._ended:
            facts |= figures(self._ended[0])
        self._service.monitor.ended_request(self.request, facts)
        log("answered", request=self.request, path=self._path, model=self.model.name, **facts)


def figures(event: Ended) -> dict[str, Any]:
    """What the ``kvlab`` field, the log and the dashboard say about one generation."""
    done = event.completion
    miss = done.miss if event.message is None else f"{done.miss} in message {event.message}"
    return {
        "cached_tokens": done.cached_tokens,
        "cached_by_tier": dict(done.cached_by_tier),
        "miss": miss,
        "message": event.message,
        **{
            name: round(getattr(done, name), 3)
            for name in ("ttft_ms", "queue_ms", "lookup_ms", "restore_ms", "prefill_ms", "tpot_ms")
        },
        "kv_bytes_live": done.kv_bytes_live,
    }


def answer_message(choice: Choice) -> Mapping[str, Any]:
    """The assistant message that a client sends back for this answer."""
    calls = [{"function": {"name": c.call.name, "arguments": c.call.arguments}} for c in choice.calls]
    return {"role": "assistant", "content": choice.text, "tool_calls": calls}


def _prepared(make: Callable[[ServedModel], list[GenerationRequest]], model: ServedModel) -> list[GenerationRequest]:
    asks = make(model)
    for ask in asks:
        model.prepare(ask)
    return asks


async def _merged(sources: list[AsyncGenerator[Event, None]]) -> AsyncGenerator[Event, None]:
    """Events of several choices in the order they come; the first error ends all."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as events:
            async for event in events:
                yield event
        return
    arrived: asyncio.Queue[Event | Exception | None] = asyncio.Queue()

    async def pump(source: AsyncGenerator[Event, None]) -> None:
        try:
            async with aclosing(source) as events:
                async for event in events:
                    arrived.put_nowait(event)
            arrived.put_nowait(None)
        except Exception as error:  # noqa: BLE001 - raised again by the reader; lost, it would leave the client waiting
            arrived.put_nowait(error)

    tasks = [asyncio.create_task(pump(source)) for source in sources]
    try:
        running = len(tasks)
        while running:
            news = await arrived.get()
            if news is None:
                running -= 1
            elif isinstance(news, Exception):
                raise news
            else:
                yield news
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
