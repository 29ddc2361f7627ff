"""The path of every request, whatever its protocol: admit it, generate, count it, remember its answer."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

from starlette.requests import Request

from kvlab.decoder.reuse.prompts import LAST_ROLE_TAG
from kvlab.server.access import Client
from kvlab.server.body_parsing import Body, parse_body
from kvlab.server.body_reader import BodyReader
from kvlab.server.computed_tokens import reason_for_computing
from kvlab.server.concurrency_limit import ConcurrencyLimit
from kvlab.server.errors import ApiError
from kvlab.server.generation.choice import Choice
from kvlab.server.generation.model_pool import ModelPool
from kvlab.server.generation.request import ChoiceEnd, ChoiceEvent, GenerationRequest
from kvlab.server.generation.served_model import ServedModel
from kvlab.server.http import take_body
from kvlab.server.limits import MAX_SMALL_BODY_BYTES, MAX_UNSENT_EVENTS
from kvlab.server.logs import log
from kvlab.server.metrics import ServerMetrics
from kvlab.server.recent_answers import RecentAnswers
from kvlab.server.settings import Settings

MAX_INLINE_BODY_BYTES = 8_192
"""Bodies up to this size are parsed where they arrive: a change of threads takes longer."""
SEND_GRACE_S = 1.0


@dataclass(frozen=True)
class RequestLabels:
    """What is known of a request before it is parsed. ``deadline`` is the event loop's time."""

    request_id: str
    client: Client
    path: str
    body_bytes: int
    deadline: float

    @property
    def tenant(self) -> str:
        return self.client.tenant


class Service:
    """The models, limits and metrics behind the routes. Made and used on one event loop."""

    def __init__(self, settings: Settings, pool: ModelPool, metrics: ServerMetrics) -> None:
        self.settings, self.pool, self.metrics = settings, pool, metrics
        self.limit = ConcurrencyLimit(settings, metrics)
        self.bodies = BodyReader(settings)
        self.recent = RecentAnswers()
        recent, bodies, limited = self.recent, self.bodies.memory, metrics.limited
        limited.add("recent_answers_bytes", "Tokens of the latest answers.", lambda: (recent.nbytes, recent.limit))
        limited.add("request_bodies_bytes", "Large requests held.", lambda: (bodies.used, bodies.limit))
        # Parsers, templates and tokenizers hold the interpreter for milliseconds: they run beside the event loop, one
        # at a time. Large requests have a thread of their own, so that small ones do not wait for them.
        self._worker = ThreadPoolExecutor(1, "kvlab-render")
        self._worker_for_large = ThreadPoolExecutor(1, "kvlab-render-large")

    async def read_body(self, model: type[Body], request: Request) -> Body:
        """Parse and check a request's body. Raises ApiError 400."""
        body = take_body(request.scope)
        if len(body) <= MAX_INLINE_BODY_BYTES:
            return parse_body(model, body)
        return cast(Body, await self.run_in_worker(parse_body, model, body, size=len(body)))

    async def open(
        self,
        model_name: str | None,
        parse: Callable[[ServedModel], list[GenerationRequest]],
        *,
        places: int,
        labels: RequestLabels,
    ) -> GenerationSession:
        """Take ``places`` for its answers, load, render, compile and submit; drop it when its client leaves.

        Raises ApiError, 408 at the request's deadline. On success the session must be closed.
        """
        stack = AsyncExitStack()
        try:
            async with _before(labels.deadline):
                stack.enter_context(self.limit.admit(places, labels.tenant))
                model = await stack.enter_async_context(self.pool.use(model_name))
                requests = await self.run_in_worker(parse, model, size=labels.body_bytes)
                requests = [await model.compile_grammar(request) for request in requests]
            session = GenerationSession(self, model, requests, stack, labels)
            stack.push_async_callback(session.close)
            session.start()
        except BaseException:
            await stack.aclose()
            raise
        return session

    async def count(self, model_name: str | None, function: Callable[[ServedModel], int], labels: RequestLabels) -> int:
        """Count something with a model beside the event loop. Takes a place, and raises as :meth:`open` does."""
        async with _before(labels.deadline), AsyncExitStack() as stack:
            stack.enter_context(self.limit.admit(1, labels.tenant))
            model = await stack.enter_async_context(self.pool.use(model_name))
            return cast(int, await self.run_in_worker(function, model, size=labels.body_bytes))

    def labels(self, request: Request, kind: str) -> RequestLabels:
        """Name a request that has just arrived; its deadline begins now. ``kind`` begins its id."""
        return RequestLabels(
            request_id=kind + secrets.token_hex(12),
            client=request.state.client,
            path=request.url.path,
            body_bytes=request.state.body_bytes,
            deadline=asyncio.get_running_loop().time() + self.settings.request_seconds,
        )

    async def run_in_worker(self, function: Callable[..., Any], *arguments: Any, size: int = 0) -> Any:
        """Call a slow function on a worker thread; ``size`` is that of its request in bytes.

        Cancelled while it waits for the thread, it is never called.
        """
        worker = self._worker if size <= MAX_SMALL_BODY_BYTES else self._worker_for_large
        return await asyncio.get_running_loop().run_in_executor(worker, function, *arguments)

    def begin_closing(self) -> None:
        """Admit nothing more, end what follows the server's state, and wait for no incomplete body."""
        self.limit.closing.set()
        self.bodies.close()

    def close(self) -> None:
        """Close every model; running requests end as cancelled."""
        self.begin_closing()
        self.pool.close()
        for worker in (self._worker, self._worker_for_large):
            worker.shutdown(wait=False, cancel_futures=True)


class GenerationSession:
    """One admitted request. An async context manager: leaving it cancels what still runs."""

    def __init__(
        self,
        service: Service,
        model: ServedModel,
        requests: list[GenerationRequest],
        stack: AsyncExitStack,
        labels: RequestLabels,
    ) -> None:
        self.model, self.requests, self.request_id = model, requests, labels.request_id
        self._service, self._stack, self._labels = service, stack, labels
        self._choices: list[Choice] = []
        self._ends: list[ChoiceEnd] = []

    def start(self) -> None:
        """Submit every choice to the decoder."""
        facts = {
            "path": self._labels.path,
            "model": self.model.name,
            "prompt_tokens": sum(len(request.prompt.ids) for request in self.requests),
            "max_tokens": max(request.max_tokens for request in self.requests),
            "n": sum(request.n for request in self.requests),
        }
        self._service.metrics.began_request(self.request_id, self._labels.tenant, facts, self.tokens)
        for request in self.requests:
            for index in range(request.first_index, request.first_index + request.n):
                tags = {"request": self.request_id, "prompt": request.first_index}
                if request.prompt.messages:
                    tags[LAST_ROLE_TAG] = request.prompt.messages[-1]["role"]
                self._choices.append(self.model.start_choice(index, request, self._labels.tenant, tags))

    async def __aenter__(self) -> GenerationSession:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel what still runs and give its places back. Idempotent."""
        await self._stack.aclose()

    @property
    def send_deadline(self) -> float:
        """The event loop's time until which a stream may be sent: an error at the deadline is still told."""
        return self._labels.deadline + SEND_GRACE_S

    async def events(self) -> AsyncGenerator[ChoiceEvent, None]:
        """Yield the events of all choices in the order of their arrival."""
        heartbeat, deadline = self._service.settings.heartbeat, self._labels.deadline
        merged = _merge([choice.events(heartbeat=heartbeat, deadline=deadline) for choice in self._choices])
        async with aclosing(merged) as events:
            async for event in events:
                yield await self._finish(event) if isinstance(event, ChoiceEnd) else event

    async def _finish(self, event: ChoiceEnd) -> ChoiceEnd:
        choice, completion = self._choices[event.index], event.completion
        self._service.metrics.completed(self._labels.tenant, completion, event.tokens, event.reason)
        if not choice.request.plain and event.stopped is None and not choice.hides_text:
            answer = assistant_message(choice)
            # Beside the event loop: it may write a file, which is there when the client learns of the end.
            await asyncio.to_thread(self.model.prompts.remember, choice.request.prompt, answer, choice.tokens)
        whole = not choice.request.plain and not completion.cut_tokens
        if completion.miss.startswith("diverged_at=") and whole:
            token = int(completion.miss.partition("=")[2])
            index = await self._service.run_in_worker(
                self.model.prompts.message_at, choice.request.prompt, token, size=self._labels.body_bytes
            )
            event = replace(event, diverged_message=index)
        tokens = [*choice.request.prompt.ids, *completion.tokens]
        self._service.recent.add(self.request_id, self.model.name, tokens, self._labels.tenant)
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
            facts["computed_because"] = reason_for_computing(self._ends[0].completion)
        self._service.metrics.ended_request(self.request_id, facts)
        log("answered", request=self.request_id, path=self._labels.path, model=self.model.name, **facts)


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
        **{name: lost for name in ("cut_tokens", "discarded_tokens") if (lost := getattr(completion, name))},
    }


def answer_details(event: ChoiceEnd) -> dict[str, Any]:
    """Return the ``kvlab`` field of an answer: its numbers, and what its grammar left open."""
    return completion_details(event) | ({"unenforced": list(event.unenforced)} if event.unenforced else {})


def assistant_message(choice: Choice) -> Mapping[str, Any]:
    """Return the assistant message that a client sends back for this answer."""
    calls = [{"function": {"name": c.call.name, "arguments": c.call.arguments}} for c in choice.calls]
    message = {"role": "assistant", "content": choice.text, "tool_calls": calls}
    return message | {"reasoning_content": choice.reasoning}


@asynccontextmanager
async def _before(deadline: float) -> AsyncIterator[None]:
    """Cancel the block at the event loop's time ``deadline``; then raise ApiError 408."""
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise ApiError(408, "the request took longer than this server allows") from None


async def _merge(sources: list[AsyncGenerator[ChoiceEvent, None]]) -> AsyncGenerator[ChoiceEvent, None]:
    """Yield the events of several choices in the order of their arrival; the first error ends all."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as events:
            async for event in events:
                yield event
        return
    arrived: asyncio.Queue[ChoiceEvent | Exception | None] = asyncio.Queue(MAX_UNSENT_EVENTS)

    async def forward(source: AsyncGenerator[ChoiceEvent, None]) -> None:
        try:
            async with aclosing(source) as events:
                async for event in events:
                    await arrived.put(event)
            await arrived.put(None)
        except Exception as error:  # noqa: BLE001 - raised again below, so that the client does not wait for ever
            await arrived.put(error)

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
