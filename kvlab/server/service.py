"""The path of every request, whatever its protocol: admit it, generate, count it, remember its answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import Any

from kvlab.server.concurrency_limit import ConcurrencyLimit
from kvlab.server.generation.choice import Choice
from kvlab.server.generation.model_pool import ModelPool
from kvlab.server.generation.request import ChoiceEnd, ChoiceEvent, GenerationRequest
from kvlab.server.generation.served_model import ServedModel
from kvlab.server.logs import log
from kvlab.server.metrics import ServerMetrics
from kvlab.server.settings import Settings

MAX_RECENT_ANSWERS = 256
"""Answers whose KV can still be saved by id."""


class Service:
    """The models, limits and metrics behind the routes. Made and used on one event loop."""

    def __init__(self, settings: Settings, pool: ModelPool, metrics: ServerMetrics) -> None:
        self.settings, self.pool, self.metrics = settings, pool, metrics
        self.limit = ConcurrencyLimit(settings, metrics)
        # Templates and tokenizers hold the interpreter for milliseconds: they run beside the event loop, one at a time.
        self.worker = ThreadPoolExecutor(1, "kvlab-render")
        self.recent: dict[str, tuple[str, list[int], str]] = {}

    async def open(
        self,
        model_name: str | None,
        parse: Callable[[ServedModel], list[GenerationRequest]],
        *,
        request_id: str,
        tenant: str,
        path: str,
    ) -> GenerationSession:
        """Load, render, check and submit. Raises ApiError; on success the session must be closed."""
        stack = AsyncExitStack()
        try:
            model = await stack.enter_async_context(self.pool.use(model_name))
            requests = await self.run_in_worker(_parse_and_compile, parse, model)
            stack.enter_context(self.limit.admit(sum(request.n for request in requests)))
            session = GenerationSession(self, model, requests, stack, request_id, tenant, path)
            stack.push_async_callback(session.close)
            session.start()
        except BaseException:
            await stack.aclose()
            raise
        return session

    async def run_in_worker(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a slow function on the worker thread."""
        return await asyncio.get_running_loop().run_in_executor(self.worker, function, *arguments)

    def close(self) -> None:
        self.limit.closed = True
        self.pool.close()
        self.worker.shutdown(wait=False, cancel_futures=True)


class GenerationSession:
    """One admitted request. An async context manager: leaving it cancels what still runs."""

    def __init__(
        self,
        service: Service,
        model: ServedModel,
        requests: list[GenerationRequest],
        stack: AsyncExitStack,
        request_id: str,
        tenant: str,
        path: str,
    ) -> None:
        self.model, self.requests, self.request_id = model, requests, request_id
        self._service, self._stack, self._tenant = service, stack, tenant
        self._path = path
        self._choices: list[Choice] = []
        self._ends: list[ChoiceEnd] = []

    def start(self) -> None:
        """Submit every choice to the decoder."""
        facts = {
            "path": self._path,
            "model": self.model.name,
            "prompt_tokens": sum(len(request.prompt.ids) for request in self.requests),
            "max_tokens": max(request.max_tokens for request in self.requests),
            "n": sum(request.n for request in self.requests),
        }
        self._service.metrics.began_request(self.request_id, facts, self.tokens)
        for request in self.requests:
            for index in range(request.first_index, request.first_index + request.n):
                tags = {"request": self.request_id, "prompt": request.first_index}
                self._choices.append(self.model.start_choice(index, request, self._tenant, tags))

    async def __aenter__(self) -> GenerationSession:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def events(self) -> AsyncGenerator[ChoiceEvent, None]:
        """Yield the events of all choices in the order of their arrival."""
        deadline = asyncio.get_running_loop().time() + self._service.settings.request_seconds
        heartbeat = self._service.settings.heartbeat
        merged = _merge([choice.events(heartbeat=heartbeat, deadline=deadline) for choice in self._choices])
        async with aclosing(merged) as events:
            async for event in events:
                yield await self._finish(event) if isinstance(event, ChoiceEnd) else event

    async def _finish(self, event: ChoiceEnd) -> ChoiceEnd:
        choice, completion = self._choices[event.index], event.completion
        self._service.metrics.completed(completion, event.tokens, event.reason)
        if not choice.request.plain and event.stopped is None and not choice.hides_text:
            answer = assistant_message(choice)
            # Beside the event loop: it may write a file, which is there when the client learns of the end.
            await asyncio.to_thread(self.model.prompts.remember, choice.request.prompt, answer, choice.tokens)
        if completion.miss.startswith("diverged_at=") and not choice.request.plain:
            token = int(completion.miss.partition("=")[2])
            index = await self._service.run_in_worker(self.model.prompts.message_at, choice.request.prompt, token)
            event = replace(event, diverged_message=index)
        recent = self._service.recent
        recent[self.request_id] = (self.model.name, [*choice.request.prompt.ids, *completion.tokens], self._tenant)
        while len(recent) > MAX_RECENT_ANSWERS:
            del recent[next(iter(recent))]
        self._ends.append(event)
        return event

    def tokens(self) -> int:
        """Count the tokens generated so far."""
        return sum(len(choice.tokens) for choice in self._choices)

    async def close(self) -> None:
        """Cancel running choices, and report the outcome to the log and the dashboard."""
        for choice in self._choices:
            choice.cancel()
        outcome = "cancelled" if self._choices else "refused"
        if self._ends and len(self._ends) == len(self._choices):
            outcome = self._ends[0].reason
        facts: dict[str, Any] = {"ended": outcome, "tokens": self.tokens()}
        if self._ends:
            facts |= completion_details(self._ends[0])
        self._service.metrics.ended_request(self.request_id, facts)
        log("answered", request=self.request_id, path=self._path, model=self.model.name, **facts)


def completion_details(event: ChoiceEnd) -> dict[str, Any]:
    """Return the numbers of one generation for the ``kvlab`` field, the log and the dashboard."""
    completion = event.completion
    miss = completion.miss
    if event.diverged_message is not None:
        miss = f"{miss} in message {event.diverged_message}"
    return {
        "cached_tokens": completion.cached_tokens,
        "cached_by_tier": dict(completion.cached_by_tier),
        "miss": miss,
        "message": event.diverged_message,
        **{
            name: round(getattr(completion, name), 3)
            for name in ("ttft_ms", "queue_ms", "lookup_ms", "restore_ms", "prefill_ms", "tpot_ms")
        },
        "kv_bytes_live": completion.kv_bytes_live,
    }


def assistant_message(choice: Choice) -> Mapping[str, Any]:
    """Return the assistant message that a client sends back for this answer."""
    calls = [{"function": {"name": c.call.name, "arguments": c.call.arguments}} for c in choice.calls]
    message = {"role": "assistant", "content": choice.text, "tool_calls": calls}
    return message | {"reasoning_content": choice.reasoning}


def _parse_and_compile(
    parse: Callable[[ServedModel], list[GenerationRequest]], model: ServedModel
) -> list[GenerationRequest]:
    requests = parse(model)
    for request in requests:
        model.compile_grammar(request)
    return requests


async def _merge(sources: list[AsyncGenerator[ChoiceEvent, None]]) -> AsyncGenerator[ChoiceEvent, None]:
    """Yield the events of several choices in the order of their arrival; the first error ends all."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as events:
            async for event in events:
                yield event
        return
    arrived: asyncio.Queue[ChoiceEvent | Exception | None] = asyncio.Queue()

    async def forward(source: AsyncGenerator[ChoiceEvent, None]) -> None:
        try:
            async with aclosing(source) as events:
                async for event in events:
                    arrived.put_nowait(event)
            arrived.put_nowait(None)
        except Exception as error:  # noqa: BLE001 - raised again below, so that the client does not wait for ever
            arrived.put_nowait(error)

    tasks = [asyncio.create_task(forward(source)) for source in sources]
    try:
        running = len(tasks)
        while running:
            item = await arrived.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
