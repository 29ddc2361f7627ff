"""``Decoder``: mlx-lm's BatchGenerator with a policy, a store and a recorder, on a thread of its own."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kvlab.backends import mlx_threads
from kvlab.caches import Batching, check_model, forget_results_of_another
from kvlab.decoder.config import DecoderConfig
from kvlab.decoder.context_limit import leading_tokens
from kvlab.decoder.event_emitter import EventEmitter, EventSink
from kvlab.decoder.inbox import AgreedInbox, Inbox
from kvlab.decoder.rank_scheduler import RankScheduler
from kvlab.decoder.ranks import ranks_of
from kvlab.decoder.request import Processor, Request, Sampler, check_request
from kvlab.decoder.reuse import nothing_at_rest
from kvlab.decoder.scheduler import Scheduler
from kvlab.decoder.stream import Completion, Stream
from kvlab.errors import KvlabError, ModelError
from kvlab.models import LoadedModel, evaluate_own_arrays
from kvlab.policies import Policy
from kvlab.recording import events
from kvlab.store import Namespace, Store
from kvlab.store.from_policy import open_store
from kvlab.tiers import RAM

MAX_FUTILE_CHANGES = 8
"""Changes of the model, each after a single step, before it is taken for one that changes itself."""


class Decoder:
    """Continuous batching of any number of requests under one policy.

    MLX work happens on the decoder's own thread; every method may be called from any thread. Use it as a context
    manager, or :meth:`close` it.

    The model may be changed meanwhile (another adapter, other weights, quantized): between two steps that is noticed,
    and running requests continue with the changed model, which computes their tokens so far anew. KV of before is not
    used again until the model is what it was.

    Args:
        loaded: the model, see :func:`kvlab.models.load`.
        policy: a Policy or its spec string.
        store: KV at rest; None opens the one that the policy's tiers describe, and closes it at the end.
        recorder: gets every event; None costs nothing.
        config: its settings; None is the defaults. ``settings`` are fields of
            :class:`~kvlab.decoder.config.DecoderConfig` that replace those of ``config``: ``live_memory="2GB"``.

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
        config: DecoderConfig | None = None,
        **settings: Any,
    ) -> None:
        self.config = replace(config or DecoderConfig(), **settings)
        self.loaded = loaded
        self.policy = Policy.parse(policy)
        self.limit = self.config.limit(0 if self.config.context is None else leading_tokens(loaded))
        self._emitter = EventEmitter(recorder)
        self._owns_store = store is None
        self._ranks = ranks_of(loaded, self.policy)
        self._inbox = Inbox() if self._ranks is None else AgreedInbox(self._ranks)
        self.store = store or open_store(self.policy)
        try:
            self._scheduler = self._new_scheduler()
        except BaseException:
            self._close_store()
            raise
        self._numbers = itertools.count()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="kvlab-decoder", daemon=True)
        self._thread.start()

    def _new_scheduler(self) -> Scheduler:
        """Make a scheduler for the model as it is now. Raises ModelError where the policy cannot be used with it."""
        forget_results_of_another(self.loaded.model, self.loaded.fingerprint)
        check_model(self.loaded.model, self.policy)
        given = (self.loaded, self.policy, self.store, self._emitter, self.config)
        if self._ranks is None:
            return Scheduler(*given, self._inbox, limit=self.limit)
        return RankScheduler(*given, self._inbox, limit=self.limit, ranks=self._ranks)

    def _serve(self) -> None:
        """Serve until the inbox says to end, with another scheduler each time that the model was changed."""
        futile = 0
        requests = self._scheduler.run()
        while requests is not None:
            futile = futile + 1 if self._scheduler.steps < 2 else 0
            try:
                if futile > MAX_FUTILE_CHANGES:
                    raise ModelError("the model changes its own arrays or settings whenever it computes")
                self._scheduler = self._new_scheduler()
            except Exception as error:  # noqa: BLE001 - a changed model may fail in any way, and may be changed again
                for request in requests:
                    request.stream.fail(_changed(error))
                requests = []
            requests = self._scheduler.run(requests)

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
        group: str | None = None,
        compress_after: int | None = None,
    ) -> Stream:
        """Queue a request and return at once.

        Args:
            prompt: token ids, at least one. One that fills the context limit is refused or cut, see
                :class:`~kvlab.decoder.config.DecoderConfig`; ``cut_tokens`` of the completion tells.
            sampler: log-probabilities ``[batch, vocab]`` to tokens, as mlx-lm's ``make_sampler``; None is greedy.
            logits_processors: as mlx-lm's, called with the tokens so far and the logits.
            stop: token sequences that end the request besides the model's own end tokens.
            tags: labels for events and rows.
            tenant: salts the block keys, so that tenants never share KV at rest.
            max_tokens: most tokens to generate.
            priority: requests of higher priority start first, and are preempted last.
            group: where places are short, tenants share them evenly, and so do the groups of a tenant, such as the
                answers of one HTTP request; None is a group of its own.
            compress_after: prompt tokens after which a scorer chooses the rows that stay. It has not seen the rest of
                the prompt then, which is computed with the rows that are left: a question that comes later. None: all.

        Raises:
            KvlabError: an empty prompt, a token outside the vocabulary, ``max_tokens`` below 1, ``compress_after``
                beyond the prompt, a request that can never fit the live memory or the context, or a closed decoder.
        """
        if self._closed:
            raise KvlabError("this decoder is closed: make a new one")
        compress_after = len(prompt) if compress_after is None else compress_after
        check_request(self.loaded, prompt, max_tokens, compress_after)
        cut_from, cut_to = self.limit.cut(len(prompt))
        if cut_to:
            prompt = [*prompt[:cut_from], *prompt[cut_to:]]
            compress_after -= max(0, min(cut_to, compress_after) - cut_from)
        max_tokens = self.limit.answer(len(prompt), max_tokens)
        if self._scheduler.watch.may_have_changed():
            evaluate_own_arrays(self.loaded.model)  # the decoder's thread cannot evaluate what this one has changed
        if self._scheduler.budget is not None:
            self._scheduler.budget.check(len(prompt), self.limit.most_live(len(prompt), max_tokens))
        request = Request(
            stream=Stream(next(self._numbers), self._scheduler.inbox.put),
            prompt=[int(token) for token in prompt],
            max_tokens=max_tokens,
            sampler=sampler,
            processors=logits_processors,
            stop=stop,
            tags=dict(tags or {}),
            tenant=tenant,
            compress_after=compress_after,
            priority=priority,
            group=group,
            cut=cut_to - cut_from,
        )
        self._emitter.emit(events.Submitted, request, len(request.prompt), max_tokens, request.tags)
        if cut_to:
            self._emitter.emit(events.PromptCut, request, cut_from, cut_to - cut_from)
        self._scheduler.inbox.put(request)
        return request.stream

    def generate(self, prompt: Sequence[int], **options: Any) -> Completion:
        """Submit a request and wait for its end; ``options`` and errors are those of :meth:`submit`."""
        return self.submit(prompt, **options).result()

    def namespace(self, tenant: str = "") -> Namespace:
        """Return the namespace in which the store keeps this decoder's blocks, for one tenant.

        Raises:
            PolicyError: the policy keeps nothing at rest.
        """
        if self._scheduler.reuse is None:
            raise nothing_at_rest(self.policy)
        return self._scheduler.reuse.namespace(tenant)

    @property
    def wants_checkpoints(self) -> bool:
        """Whether KV at rest is blocks and checkpoints: some layers' state cannot be cut at a token."""
        return self._scheduler.reuse is not None and self._scheduler.reuse.wants_checkpoints

    @property
    def batching(self) -> Batching:
        """Whether this model's sequences are computed side by side or one by one, as a trial has found, and why."""
        return self._scheduler.batching

    def live_bytes(self) -> int:
        """Return the bytes of all live KV after the last step."""
        return self._scheduler.live_bytes

    def retained_bytes(self) -> int:
        """Return the bytes of live KV that only retained sequences hold: those that have ended."""
        return self._scheduler.retained_bytes

    def tiers_bytes(self) -> dict[str, int]:
        """Return the bytes of KV at rest by tier; empty where the policy keeps none."""
        held = self.store.tiers_bytes() if self.store is not None else {}
        if self._scheduler.reuse is not None and self.store is None:
            held = {RAM.name: self._scheduler.reuse.nbytes}
        return held

    def close(self) -> None:
        """Cancel running requests, store the KV that they computed, flush and close the store. Idempotent."""
        if not self._closed:
            self._closed = True
            self._scheduler.inbox.put(None)
        mlx_threads.join(self._thread)
        self._close_store()

    def _close_store(self) -> None:
        if self.store is not None and self._owns_store:
            self.store.close()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _changed(error: Exception) -> ModelError:
    """Return the error for a changed model that cannot be used."""
    said = str(error).strip().splitlines()
    hint = "call mx.eval(model.parameters()) on the thread that changes it, or restore it"
    return ModelError(f"the model was changed and cannot be used now ({said[0] if said else error!r}): {hint}")
