"""The decoder: mlx-lm's BatchGenerator with a policy, a store and a recorder, on a thread of its own."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from kvlab.backends import mlx_threads
from kvlab.caches import check_model
from kvlab.decoder.event_emitter import EventEmitter, EventSink
from kvlab.decoder.request import Processor, Request, Sampler, check_request
from kvlab.decoder.scheduler import Scheduler
from kvlab.decoder.stream import Completion, Stream
from kvlab.errors import KvlabError
from kvlab.models import LoadedModel
from kvlab.policies import Policy
from kvlab.recording import events
from kvlab.store import Store
from kvlab.store.from_policy import open_store


class Decoder:
    """Continuous batching of any number of requests under one policy.

    MLX work happens on the decoder's own thread; every method may be called from any thread. Use it as a context
    manager, or :meth:`close` it.

    Args:
        loaded: the model, see :func:`kvlab.models.load`.
        policy: a Policy or its spec string.
        store: where KV rests; None opens what the policy's tiers describe, and closes it at the end.
        recorder: gets every event; None costs nothing.
        max_concurrency: sequences that decode side by side; more wait in a queue.
        prefill_step: most prompt tokens computed at a time; beside decoding sequences it is less, by time.
        live_memory: byte budget for live KV, such as ``"2GB"``; None is no limit. Requests wait for room; where the
            policy keeps KV at rest, running ones step aside to it and go on later, token for token.
        warm: sequences that keep their live KV when they end, where the policy shares live KV: their next turn goes on
            from it without a restore. They count as live, never make more than ``max_concurrency`` sequences with the
            running ones, and leave when live memory is short.

    Raises:
        PolicyError: the policy cannot be read.
        ModelError: it cannot be used with this model.
        StoreError: its folder cannot be used.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        policy: Policy | str = "full",
        *,
        store: Store | None = None,
        recorder: EventSink | None = None,
        max_concurrency: int = 32,
        prefill_step: int = 512,
        live_memory: int | str | None = None,
        warm: int = 4,
    ) -> None:
        if max_concurrency < 1 or prefill_step < 1 or warm < 0:
            raise KvlabError("max_concurrency and prefill_step must be 1 or more, warm 0 or more")
        self.loaded = loaded
        self.policy = Policy.parse(policy)
        check_model(loaded.model, self.policy)
        self._tell = EventEmitter(recorder)
        self._owns_store = store is None
        self.store = store or open_store(self.policy)
        try:
            self._loop = Scheduler(
                loaded,
                self.policy,
                self.store,
                self._tell,
                max_concurrency=max_concurrency,
                prefill_step=prefill_step,
                live_memory=live_memory,
                warm=warm,
            )
        except BaseException:
            self._close_store()
            raise
        self._numbers = itertools.count()
        self._closed = False
        self._thread = threading.Thread(target=self._loop.run, name="kvlab-decoder", daemon=True)
        self._thread.start()

    def submit(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int = 128,
        sampler: Sampler | None = None,
        logits_processors: Sequence[Processor] = (),
        stop: Sequence[Sequence[int]] = (),
        tags: Mapping[str, Any] | None = None,
        tenant: str = "",
        priority: int = 0,
    ) -> Stream:
        """Queue a request and return at once.

        Args:
            prompt: token ids, at least one.
            sampler: log-probabilities ``[batch, vocab]`` to tokens, as mlx-lm's ``make_sampler``; None is greedy.
            logits_processors: as mlx-lm's, called with the tokens so far and the logits.
            stop: token sequences that end the request besides the model's own end tokens.
            tags: labels for events and rows.
            tenant: salts the block keys, so that tenants never share KV at rest.
            priority: requests of higher priority start first, and step aside last.

        Raises:
            KvlabError: an empty prompt, a token outside the vocabulary, ``max_tokens`` below 1, a request that can
                never fit the live memory, or a closed decoder.
        """
        if self._closed:
            raise KvlabError("this decoder is closed: make a new one")
        check_request(self.loaded, prompt, max_tokens)
        if self._loop.budget is not None:
            self._loop.budget.check(len(prompt), max_tokens)
        job = Request(
            stream=Stream(next(self._numbers), self._loop.inbox.put),
            prompt=[int(token) for token in prompt],
            max_tokens=max_tokens,
            sampler=sampler,
            processors=logits_processors,
            stop=stop,
            tags=dict(tags or {}),
            tenant=tenant,
            priority=priority,
        )
        self._tell.emit(events.Submitted, job, len(job.prompt), max_tokens, job.tags)
        self._loop.inbox.put(job)
        return job.stream

    def generate(self, prompt: Sequence[int], **options: Any) -> Completion:
        """:meth:`submit` and wait for the end."""
        return self.submit(prompt, **options).result()

    @property
    def wants_checkpoints(self) -> bool:
        """Whether KV at rest is blocks and checkpoints: some layers' state cannot be cut at a token."""
        return self._loop.rest is not None and self._loop.rest.wants_checkpoints

    def live_bytes(self) -> int:
        """Bytes of all live KV after the last step."""
        return self._loop.live_bytes

    def warm_bytes(self) -> int:
        """The part of them that only sequences hold which have ended."""
        return self._loop.warm_bytes

    def close(self) -> None:
        """Cancel what is running, keep what it computed, flush and close the store. Idempotent."""
        if not self._closed:
            self._closed = True
            self._loop.inbox.put(None)
        mlx_threads.join(self._thread)
        self._close_store()

    def _close_store(self) -> None:
        if self.store is not None and self._owns_store:
            self.store.close()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
