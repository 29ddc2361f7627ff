"""What the decoder's thread does: admit requests, step the batch, hand out tokens, keep what was computed."""

from __future__ import annotations

import queue
import time
from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx_lm.generate import StopSequences

from kvlab.backends import Backend, current
from kvlab.caches import batchable, can_share, make_caches, own_caches
from kvlab.caches.factory import layerwise_model
from kvlab.caches.serialize import has_state, own_layers
from kvlab.decoder.admission import Admission
from kvlab.decoder.config import DecoderConfig
from kvlab.decoder.event_emitter import EventEmitter
from kvlab.decoder.memory_budget import LiveMemoryBudget, measure
from kvlab.decoder.prefill.batch_generator import ChunkedBatchGenerator
from kvlab.decoder.prefill.budget import PrefillBudget
from kvlab.decoder.prefill.segments import checkpoint_segments
from kvlab.decoder.prefix_tree import PrefixTree
from kvlab.decoder.request import Request
from kvlab.decoder.reuse import PrefixCache, make_prefix_cache
from kvlab.models import LoadedModel
from kvlab.policies import Paged, Policy
from kvlab.recording import events
from kvlab.store import Store

RESERVE = 128
"""Rows of room that a warm sequence gets for what its next turn brings, where live memory is not counted."""


class Scheduler:
    """Serves what comes in at ``inbox``: a job, the number of a request to cancel, or None to end.

    ``run`` and all that it calls belong to one thread; what has no underscore may be read from any. Arguments are those
    of :class:`kvlab.decoder.Decoder`.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        policy: Policy,
        store: Store | None,
        emitter: EventEmitter,
        config: DecoderConfig,
    ) -> None:
        self._loaded, self._policy, self._emitter, self._config = loaded, policy, emitter, config
        self._backend: Backend = current()
        self._prefill_step = config.prefill_step or self._backend.prefill_step
        self.reuse: PrefixCache | None = make_prefix_cache(loaded, policy, store)
        if self.reuse is not None:
            self.reuse.on_stored = lambda request, *fields: emitter.emit(events.Stored, request, *fields)
            if self.reuse.store is not None:
                self.reuse.store.on_event = emitter.store
        # Sharing needs rows that stay as they are, and a hook in every layer.
        keeps_all = policy.retention.is_lossless and (self.reuse is not None or policy.lossless)
        owns = self.reuse is not None or self._backend.owns_attention
        self._own = keeps_all and owns and can_share(loaded.model)
        # Chunks begin at cuts: those that checkpoints need are made without them, too, or answers would differ.
        self._is_cut = self.reuse is None and has_state(make_caches(loaded.model, policy))
        self._stages = layerwise_model(loaded.model) if self._own else None
        self._prefixes = PrefixTree() if self._own and self.reuse is not None else None
        self.budget = self._make_budget(config.live_bytes)
        depth = self._stages.depth if self._stages else 1
        self._prefill_budget = PrefillBudget(
            self._prefill_step, depth, preemptible=self._stages is not None and self._backend.is_preemptible
        )
        self.inbox: queue.SimpleQueue[Request | int | None] = queue.SimpleQueue()
        self._waiting = Admission(self.budget, self._prefixes, self.reuse)
        self._active: dict[int, Request] = {}
        self.live_bytes = self.retained_bytes = 0
        self._threads = self._backend.threads(loaded.model)
        self._generator = self._new_generator()

    def _make_budget(self, live_memory: int | None) -> LiveMemoryBudget | None:
        if live_memory is None:
            return None
        cost = measure(self._loaded, self._make_caches(2))
        pauses = self.reuse is not None and self._policy.retention.is_lossless
        return LiveMemoryBudget(live_memory, cost, self._policy.retention, pauses=pauses)

    def _make_caches(self, prompt_tokens: int, request: Request | None = None) -> list[Any]:
        """Empty caches for one sequence, of ``request`` if there is one yet."""
        model, record = self._loaded.model, self._emitter.sink is not None
        token_ids = None if request is None else lambda: request.context
        if not self._own:
            return make_caches(model, self._policy, prompt_tokens=prompt_tokens, record=record, token_ids=token_ids)
        rule = self._backend.buckets
        if self._config.live_bytes is not None:  # padding is memory that no request asked for
            rule = replace(rule, buckets=None)
        return own_caches(
            model, self._policy, prompt_tokens=prompt_tokens, record=record, backend=self._backend, buckets=rule
        )

    def _new_generator(self) -> ChunkedBatchGenerator:
        model = self._loaded.model
        return ChunkedBatchGenerator(
            model if self._own else batchable(model),
            self._backend,
            self._stages,
            stop_tokens=[[token] for token in self._loaded.eos],
            completion_batch_size=self._config.max_concurrency,
            prefill_batch_size=self._config.prefill_batch,
            prefill_step_size=self._prefill_step,
        )

    def run(self) -> None:
        """Serve until the inbox says to end. All work of MLX but decoding goes to one stream, the backend's choice."""
        with mx.stream(self._backend.prefill_stream(self._generator.stream)):
            self._run()

    def _run(self) -> None:
        while self._read_inbox():
            try:
                self._admit()
                if self._active:
                    self._step()
            except Exception as error:  # noqa: BLE001 - whatever the model raised belongs to the requests it served
                self._fail_all(error)
        for request in [*self._waiting, *self._active.values()]:
            self._cancel(request)
        self._yield_processors()
        if self.reuse:
            self.reuse.close()
        self._generator.close()

    def _read_inbox(self) -> bool:
        """Take new jobs and cancellations; wait when there is nothing to do. False: time to close."""
        idle = not self._active and not self._waiting
        if idle:
            self._yield_processors()
        while True:
            try:
                message = self.inbox.get(block=idle)
            except queue.Empty:
                break
            if message is None:
                return False
            if isinstance(message, Request):
                self._waiting.put(message)
            else:
                requests = [*self._waiting, *self._active.values()]
                for request in (request for request in requests if request.number == message):
                    self._cancel(request)
            idle = False
        if self.reuse:
            self.reuse.set_busy(True)
        return True

    def _yield_processors(self) -> None:
        self._threads.give_back()
        if self.reuse:
            self.reuse.set_busy(False)
            self.reuse.settle()

    def _admit(self) -> None:
        for request in self._waiting:
            if len(self._active) >= self._config.max_concurrency or not self._make_room(request):
                return
            if self._waiting.waits_for_prefix(request, self._active):
                continue
            self._waiting.remove(request)
            request.admitted = request.admitted or time.perf_counter()
            try:
                self._insert(request)
                self._release(self._config.max_concurrency - len(self._active))
            except Exception as error:  # noqa: BLE001 - one request's trouble must not end the others
                self._let_go(request)
                request.stream.fail(error)

    def _make_room(self, request: Request) -> bool:
        """True when the job may start, after warm sequences have left if need be."""
        while not self._waiting.has_room(request, self._active, self.live_bytes):
            if not self._release_one():
                return not self._active
        return True

    def _release(self, most: int) -> None:
        """Let no more than ``most`` sequences stay warm."""
        while self._prefixes and self._prefixes.retained > most:
            self._release_one()

    def _release_one(self) -> bool:
        cooled = self._prefixes is not None and self._prefixes.release_one()
        if cooled:
            self.live_bytes = self._measure()
        return cooled

    def _preempt(self, request: Request) -> None:
        """Take a running job out, keep its KV at rest, and queue it again."""
        [(caches, tokens)] = self._generator.remove([request.uid], return_prompt_caches=True).values()
        if self.reuse:
            self.reuse.keep(request, caches, tokens)
        self._let_go(request)
        self._emitter.emit(events.Paused, request, len(request.tokens), self.live_bytes)
        self._waiting.put(request)

    def _insert(self, request: Request) -> None:
        context = request.begin()
        caches = self._make_caches(len(request.prompt), request)
        request.caches, request.layers = caches, own_layers(caches)
        segments = [context]
        if self._is_cut:
            segments = checkpoint_segments(context, 0, self._loaded.eos, Paged().checkpoint)
        if self.reuse:
            live = self._prefixes.join(request, self.reuse.limit(request)) if self._prefixes else 0
            restored = self.reuse.restore(request, caches, live)
            self._emitter.emit(events.Matched, request, request.cached, request.by_tier, request.miss, request.lookup_s)
            if restored:
                self._emitter.emit(events.Restored, request, request.cached - live, restored, request.restore_s)
            segments = self.reuse.segments(request)
        request.note_start()
        stop = StopSequences([*([token] for token in self._loaded.eos), *map(list, request.stop)])
        [request.uid] = self._generator.insert_segments(
            [segments],
            max_tokens=[request.max_tokens - len(request.tokens)],
            caches=[caches],
            all_tokens=[context[: request.cached]],
            samplers=[request.sampler],
            logits_processors=[list(request.processors)],
            stop_sequences=[stop],
        )
        self._active[request.uid] = request

    def _step(self) -> None:
        decoding = sum(bool(request.tokens) for request in self._active.values())
        prefilling = min(self._config.prefill_batch, len(self._active) - decoding)
        self._generator.prefill_step_size = self._prefill_budget.chunk(prefilling, decoding)
        prefill = self._generator.prefill
        prefill.work, prefill.done = self._prefill_budget.work(decoding), 0
        chunks = (min(self._generator.prefill_step_size, request.to_compute) for request in self._active.values())
        self._threads.suit(decoding or sum(chunks), beside=decoding > 0 and prefilling > 0)
        started = time.perf_counter()
        prefill.until = self._prefill_budget.until(started, decoding)
        prompts, tokens = self._generator.next()
        now = time.perf_counter()
        if self.reuse:
            self.reuse.step()
        for prompt in prompts:
            self._take_prompt(prompt)
        self._prefill_budget.saw(now - started, prefill.done, len(tokens))
        share = self.live_bytes // max(1, len(self._active))
        for token in tokens:
            self._take_token(token, now, share)
        self.live_bytes = self._measure()
        self._relieve()

    def _take_prompt(self, prompt: Any) -> None:
        """Progress of a prompt, as mlx-lm reports it."""
        request = self._active[prompt.uid]
        self._emitter.prefill(request, *prompt.progress)
        if prompt.end_of_prompt:
            self._hand_out_first(request)
        elif prompt.end_of_segment and self.reuse and self.reuse.wants_checkpoints:
            self.reuse.keep_checkpoint(request, *self._generator.extract_cache([prompt.uid])[prompt.uid])

    def _take_token(self, response: Any, now: float, share: int) -> None:
        """A decoded token, as mlx-lm reports it."""
        request = self._active[response.uid]
        request.tokens.append(response.token)
        if len(request.times) < len(request.tokens):
            request.times.append(now)
        wanted = self._emitter.sink is not None or response.finish_reason is not None
        kv_bytes = self._kv_bytes(request, share) if wanted else 0
        self._emitter.token(request, kv_bytes)
        self._hand_out(request, response.token)
        if self.reuse and any(layer.retention.prompt_rows is not None for layer in request.layers):
            self.reuse.keep_prompt(request, request.caches)
        if response.finish_reason is not None:
            for layer in request.layers:
                layer.retention.check_all_scores()
            self._finish(request, response.finish_reason, kv_bytes, response.prompt_cache, response.all_tokens)

    def _relieve(self) -> None:
        """While live memory is short, let warm sequences go, then pause running ones, the least urgent first."""
        while self.budget is not None and self.budget.is_tight(self.live_bytes, len(self._active)):
            if self._release_one():
                continue
            # A first token that went out early must be reported before its job may start over from its tokens.
            settled = [request for request in self._active.values() if request.pushed <= len(request.tokens)]
            if len(self._active) < 2 or not settled:
                return
            self._preempt(max(settled, key=lambda request: request.rank))
            self.live_bytes = self._measure()

    def _hand_out_first(self, request: Request) -> None:
        """The first token is sampled one round before mlx-lm reports it: the client gets it without that wait."""
        token = self._generator.first_token(request.uid)
        request.times.append(time.perf_counter())
        self._hand_out(request, token, early=True)

    def _hand_out(self, request: Request, token: int, *, early: bool = False) -> None:
        """Push a token once; end tokens are never pushed."""
        place = len(request.tokens) + 1 if early else len(request.tokens)
        if place > request.pushed:
            request.pushed = place
            if token not in self._loaded.eos:
                request.stream.push(token)

    def _finish(self, request: Request, reason: str, kv_bytes: int, caches: Any, tokens: Any) -> None:
        self._emitter.evictions(request, all_of_them=True)
        completion = request.completion(reason, kv_bytes, self._loaded.eos)
        if self.reuse and caches:
            self.reuse.keep(request, caches, tokens)
        if self._prefixes and self._config.retain and caches and reason != "cancelled":
            self._retire(request)
            self._prefixes.retain(request, tokens, room=0 if self.budget else RESERVE)
            self._release(self._config.retain)
        else:
            self._let_go(request)

        def finish() -> None:
            self._emitter.emit(events.Finished, request, reason, len(completion.tokens), kv_bytes)
            request.stream.finish(completion)

        if self.reuse:
            self.reuse.after_kept(finish)
        else:
            finish()

    def _let_go(self, request: Request) -> None:
        """The job runs no longer: nothing of it stays live."""
        self._retire(request)
        if self._prefixes:
            self._prefixes.leave(request)
        request.caches, request.layers = [], []

    def _retire(self, request: Request) -> None:
        if request.uid is not None:
            self._active.pop(request.uid, None)
        request.uid = None

    def _cancel(self, request: Request) -> None:
        caches, tokens = None, None
        if request.uid is None:
            self._waiting.remove(request)
        else:
            removed = self._generator.remove([request.uid], return_prompt_caches=self.reuse is not None)
            caches, tokens = removed.get(request.uid, (None, None))
        self._finish(request, "cancelled", self._kv_bytes(request, 0), caches, tokens)
        self.live_bytes = self._measure()

    def _fail_all(self, error: Exception) -> None:
        for request in list(self._active.values()):
            self._let_go(request)
            request.stream.fail(error)
        self._generator.close()
        self._generator = self._new_generator()
        self.live_bytes = self._measure()

    def _measure(self) -> int:
        """Bytes of all live KV; shared prefixes count once."""
        self.retained_bytes = self._prefixes.retained_nbytes() if self._prefixes else 0
        return self._generator.prompt_cache_nbytes + (self._prefixes.nbytes() if self._prefixes else 0)

    def _kv_bytes(self, request: Request, share: int) -> int:
        return sum(layer.nbytes + layer.shared_nbytes for layer in request.layers) if request.layers else share
