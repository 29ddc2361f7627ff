"""``Scheduler``: the decoder's thread: admits requests, steps the batch, hands out tokens and stores KV."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import mlx.core as mx
from mlx_lm.generate import StopSequences

from kvlab.backends import Backend, current
from kvlab.caches import SequentialModel
from kvlab.caches.serialize import own_layers
from kvlab.decoder.admission import Admission
from kvlab.decoder.cache_maker import CacheMaker
from kvlab.decoder.config import FAIR, NONE, PACED, DecoderConfig
from kvlab.decoder.context_limit import ContextLimit
from kvlab.decoder.event_emitter import EventEmitter
from kvlab.decoder.inbox import Inbox
from kvlab.decoder.places import Places
from kvlab.decoder.prefill.batch_generator import ChunkedBatchGenerator
from kvlab.decoder.prefill.budget import PrefillBudget
from kvlab.decoder.prefill.segments import checkpoint_segments, checkpoints_of, cut_at
from kvlab.decoder.prefix_tree import PrefixTree
from kvlab.decoder.request import Request
from kvlab.decoder.reuse import PrefixCache, make_prefix_cache
from kvlab.models import LoadedModel
from kvlab.policies import Paged, Policy
from kvlab.recording import events
from kvlab.store import Store

RETAINED_SPARE_ROWS = 128
"""Rows of storage that a retained sequence gets for its next turn, where live memory has no budget."""


class Scheduler:
    """Serves the messages of ``inbox``: a request, the number of a request to cancel, or None to end.

    ``run`` and all that it calls belong to one thread; public attributes may be read from any. Arguments are those of
    :class:`kvlab.decoder.Decoder`. A scheduler serves one model: when it is changed, ``run`` returns, and another
    scheduler continues.

    Attributes:
        watch: notices that the model was changed.
        steps: number of steps so far.
        reuse: finds and stores KV at rest; None where the policy has no reuse.
        batching: whether sequences are computed side by side or one by one, and why.
        budget: that of live memory; None where it has no limit.
        live_bytes: bytes of all live KV after the last step.
        retained_bytes: bytes of them that only sequences hold which have ended.
    """

    one_stream: ClassVar[bool] = False
    """Whether prompts are computed on the stream of decoding, whatever the backend prefers."""
    follows_time: ClassVar[bool] = True
    """Whether who gets a place may depend on how long a request has waited."""

    def __init__(
        self,
        loaded: LoadedModel,
        policy: Policy,
        store: Store | None,
        emitter: EventEmitter,
        config: DecoderConfig,
        inbox: Inbox,
        *,
        limit: ContextLimit | None = None,
    ) -> None:
        self.watch = loaded.watch()
        self._loaded, self._policy, self._emitter, self._config = loaded, policy, emitter, config
        self._backend: Backend = current()
        self._prefill_step = config.prefill_step or self._backend.prefill_step
        self.reuse: PrefixCache | None = make_prefix_cache(loaded, policy, store)
        if self.reuse is not None:
            self.reuse.on_stored = lambda request, *fields: emitter.emit(events.Stored, request, *fields)
            self.reuse.on_dropped = lambda count, size: emitter.store("evicted", {"blocks": count, "bytes": size})
            if emitter.sink is not None:
                self.reuse.on_chain = lambda request, *fields: emitter.emit(events.Chained, request, *fields)
            if self.reuse.store is not None:
                self.reuse.store.on_event = emitter.store
            if self.reuse.places is not None:
                most = min(config.max_concurrency, self.reuse.places)
                self._config = config = replace(config, max_concurrency=most)
        self._limit = limit or config.limit()
        self._caches = CacheMaker(
            loaded,
            policy,
            config,
            self._backend,
            keeps_kv=self.reuse is not None,
            shifts=self._limit.shifts,
            record=emitter.sink is not None,
        )
        self.batching = self._caches.batching
        joins = self.reuse is not None and self.reuse.joins_running
        self._prefixes = PrefixTree() if self._caches.owns and joins else None
        self._context_shift = self._caches.context_shift(self._limit)
        # A preempted request continues later from KV at rest.
        can_preempt = self.reuse is not None and policy.retention.is_lossless
        self.budget = self._caches.budget(preempts=can_preempt)
        layerwise = self._caches.layerwise
        self._prefill_budget = PrefillBudget(
            self._prefill_step,
            layerwise.depth if layerwise else 1,
            preemptible=layerwise is not None and self._backend.is_preemptible,
        )
        self.inbox = inbox
        self._waiting = Admission(self.budget, self._prefixes, self.reuse, is_fair=config.admission == FAIR)
        self._places = Places(
            config.max_concurrency,
            is_fair=self._waiting.is_fair,
            can_preempt=can_preempt,
            may_take=self.follows_time,
        )
        self._active: dict[int, Request] = {}
        self.live_bytes = self.retained_bytes = self.steps = 0
        self._threads = self._backend.threads(loaded.model)
        self._generator = self._new_generator()
        self.watch.has_changed()  # trials note what they find on the model: looked at now, not at the first request

    def _new_generator(self) -> ChunkedBatchGenerator:
        model = self._loaded.model
        return ChunkedBatchGenerator(
            model if self.batching else SequentialModel(model),
            self._backend,
            self._caches.layerwise,
            stop_tokens=[[token] for token in self._loaded.eos],
            completion_batch_size=self._config.max_concurrency,
            prefill_batch_size=self._config.prefill_batch,
            prefill_step_size=self._prefill_step,
            prompts_first=self._config.interleave == NONE,
            one_stream=self.one_stream,
        )

    def run(self, requests: Sequence[Request] = ()) -> list[Request] | None:
        """Serve ``requests``, and then the inbox, until it says to end; return None then.

        Return the unfinished requests when the model was changed: what they generated stays, their KV is dropped. All
        MLX work except decoding goes to the backend's prefill stream.
        """
        for request in requests:
            self._waiting.put(request)
        with mx.stream(self._generator.prefill_stream):
            return self._run()

    def _run(self) -> list[Request] | None:
        is_open, unfinished = True, None
        while unfinished is None and (is_open := self._read_inbox()):
            if not self._is_same_model():
                unfinished = self._hand_over()
                break
            try:
                self._admit()
                if self._active:
                    self._step()
            except Exception as error:  # noqa: BLE001 - any error of the model ends the requests it computed
                self._survive(error)
        for request in [] if is_open else [*self._waiting, *self._active.values()]:
            self._cancel(request)
        self._release_processors()
        if self.reuse:
            self.reuse.close()
        self._generator.close()
        return unfinished

    def _hand_over(self) -> list[Request]:
        """Stop all requests, which another scheduler continues from their tokens; retained sequences are dropped."""
        self._release(0)
        for request in list(self._active.values()):
            if request.pushed > len(request.tokens):  # its first token was handed out, but not reported yet
                token = self._generator.first_token(request.uid)
                request.tokens.append(token)
                if token in self._loaded.eos or [token] in [list(stop) for stop in request.stop]:
                    self._finish(request, "stop", 0, None, None)
                elif len(request.tokens) >= request.max_tokens:
                    self._finish(request, "length", 0, None, None)
            if request.uid is not None:
                self._drop(request)
                self._waiting.put(request)
        return list(self._waiting)

    def _is_same_model(self) -> bool:
        """Return whether all KV was computed by the model as it was: else it is neither stored nor retained."""
        return not self.watch.has_changed()

    def _read_inbox(self) -> bool:
        """Take new requests and cancellations; wait when there are none to serve. False: time to close."""
        idle = not self._active and not self._waiting
        if idle:
            self._release_processors()
        for message in self.inbox.read(wait=idle):
            if message is None:
                return False
            if isinstance(message, Request):
                self._waiting.put(message)
            else:
                requests = [*self._waiting, *self._active.values()]
                for request in (request for request in requests if request.number == message):
                    self._cancel_safely(request)
        if self.reuse:
            self.reuse.set_busy(True)
        return True

    def _release_processors(self) -> None:
        """Before the thread waits, reset the number of BLAS threads, and let background work use the processors."""
        self._threads.restore()
        if self.reuse:
            self.reuse.set_busy(False)
            self.reuse.settle()

    def _admit(self) -> None:
        if not self._waiting or (self._places.free(self._active) <= 0 and not self._places.may_take):
            return
        for request in self._waiting.in_turn(self._active):
            has_place = self._places.has_one_for(request, self._active)
            taken = None if has_place else self._places.to_take(request, self._active)
            if not has_place and taken is None:
                return
            if self._waiting.waits_for_prefix(request, self._active):
                continue
            if taken is not None:
                self._preempt(taken)
            if not self._make_room(request):
                return
            self._waiting.remove(request)
            request.admitted = request.admitted or time.perf_counter()
            try:
                self._insert(request)
                self._release(self._places.free(self._active))
            except Exception as error:  # noqa: BLE001 - an error of one request must not end the others
                self._fail_one(request, error)

    def _make_room(self, request: Request) -> bool:
        """Return whether the request may start, after releasing retained sequences if needed."""
        while not self._waiting.has_room(request, self._active, self.live_bytes):
            if not self._release_one():
                return not self._active
        return True

    def _release(self, most: int) -> None:
        """Release retained sequences until at most ``most`` are left."""
        while self._prefixes and self._prefixes.retained > most:
            self._release_one()

    def _release_one(self) -> bool:
        released = self._prefixes is not None and self._prefixes.release_one()
        if released:
            self.live_bytes = self._measure()
        return released

    def _preempt(self, request: Request) -> None:
        """Preempt a running request: store its KV, and queue it again."""
        [(caches, tokens)] = self._generator.remove([request.uid], return_prompt_caches=True).values()
        if self.reuse and self._is_same_model():
            self.reuse.keep(request, caches, tokens)
        self._drop(request)
        self._emitter.emit(events.Paused, request, len(request.tokens), self.live_bytes)
        self.live_bytes = self._measure()
        self._waiting.put(request)

    def _insert(self, request: Request) -> None:
        context = request.begin()
        caches = self._caches.make_for(request)
        request.caches, request.layers = caches, own_layers(caches)
        segments = [context]
        if self._caches.needs_segments:
            segments = checkpoint_segments(context, 0, self._loaded.eos, Paged().checkpoint)
        if self.reuse:
            live = self._prefixes.join(request, self.reuse.limit(request)) if self._prefixes else 0
            restored = self.reuse.restore(request, caches, live)
            self._emitter.emit(events.Matched, request, request.cached, request.by_tier, request.miss, request.lookup_s)
            if restored:
                self._emitter.emit(events.Restored, request, request.cached - live, restored, request.restore_s)
            segments = self.reuse.segments(request)
            if self.reuse.wants_checkpoints:
                request.checkpoints = checkpoints_of(segments, request.cached)
        if request.compress_after < len(request.prompt):
            segments = cut_at(segments, request.compress_after - request.cached)
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
        self.steps += 1
        self._shift_full_sequences()
        decoding = sum(request.is_decoding and bool(request.tokens) for request in self._active.values())
        prefilling = min(self._config.prefill_batch, len(self._active) - decoding)
        paced = decoding if self._config.interleave == PACED else 0  # otherwise chunks are whole and not interrupted
        self._generator.prefill_step_size = self._prefill_budget.chunk(prefilling, paced)
        prefill = self._generator.prefill
        prefill.work, prefill.done = self._prefill_budget.work(paced), 0
        # Threads round sums otherwise: their number follows what is computed now, and not what is left of a prompt.
        most = min(self._generator.prefill_step_size, self.reuse and self.reuse.piece_tokens or sys.maxsize)
        chunks = (min(most, request.to_compute) for request in self._active.values())
        self._threads.choose(decoding or sum(chunks), beside=decoding > 0 and prefilling > 0)
        started = time.perf_counter()
        prefill.until = self._prefill_budget.until(started, paced)
        prompts, tokens = self._generator.next()
        now = time.perf_counter()
        if self.reuse:
            self.reuse.step()
        for prompt in prompts:
            self._take_prompt(prompt)
        self._prefill_budget.observe(now - started, prefill.done, len(tokens))
        share = self.live_bytes // max(1, len(self._active))
        for token in tokens:
            self._take_token(token, now, share)
        self.live_bytes = self._measure()
        self._free_memory()

    def _shift_full_sequences(self) -> None:
        """Drop tokens of sequences that have reached the context limit; their KV is not stored or shared any more."""
        if self._context_shift is None:
            return
        for request in self._active.values():
            span = self._limit.shift(request.computed) if request.is_decoding else None
            if span is None:
                continue
            if self._prefixes:
                self._prefixes.remove(request)
            keep, removed = span
            self._context_shift.shift(request.layers, keep, removed)
            request.discarded.append((keep, keep + removed))
            self._emitter.emit(events.Shifted, request, keep, removed, len(request.tokens))

    def _take_prompt(self, prompt: Any) -> None:
        """Handle the progress of a prompt, as mlx-lm reports it."""
        request = self._active[prompt.uid]
        self._emitter.prefill(request, *prompt.progress)
        if prompt.end_of_prompt:
            request.is_decoding = True
            token = self._generator.first_token(request.uid)  # sampled now, one round before mlx-lm reports it
            request.times.append(time.perf_counter())
            request.hand_out(token, self._loaded.eos, early=True)
        elif prompt.end_of_segment and self.reuse and self.reuse.wants_checkpoints and self._is_same_model():
            caches, tokens = self._generator.extract_cache([prompt.uid])[prompt.uid]
            self.reuse.keep_checkpoint(request, caches, tokens)
            request.checkpointed = len(tokens)
        elif self.reuse and self.reuse.keeps_parts and self._prefixes is None:
            self._keep_part(request, self.reuse)

    def _keep_part(self, request: Request, reuse: PrefixCache) -> None:
        """Keep the computed part of a prompt, once it holds what others wait for."""
        awaited = self._waiting.most_awaited(request)
        if awaited > request.checkpointed:
            caches, tokens = self._generator.extract_cache([request.uid])[request.uid]
            if len(tokens) >= awaited:
                reuse.keep(request, caches, tokens)
                request.checkpointed = len(tokens)

    def _take_token(self, response: Any, now: float, share: int) -> None:
        """Handle a decoded token, as mlx-lm reports it; ``share`` is its KV in bytes where no layer cache counts it."""
        request = self._active[response.uid]
        request.tokens.append(response.token)
        if len(request.times) < len(request.tokens):
            request.times.append(now)
        wanted = self._emitter.sink is not None or response.finish_reason is not None
        kv_bytes = self._kv_bytes(request, share) if wanted else 0
        self._emitter.token(request, kv_bytes)
        request.hand_out(response.token, self._loaded.eos)
        has_prompt = any(layer.retention.prompt_rows is not None for layer in request.layers)
        if self.reuse and has_prompt and self._is_same_model():
            self.reuse.keep_prompt(request, request.caches)
        if response.finish_reason is not None:
            for layer in request.layers:
                layer.retention.check_all_scores()
            self._finish(request, response.finish_reason, kv_bytes, response.prompt_cache, response.all_tokens)

    def _free_memory(self) -> None:
        """While live memory is short, release retained sequences, then preempt running ones of the lowest rank."""
        while self.budget is not None and self.budget.is_tight(self.live_bytes, len(self._active)):
            if self._release_one():
                continue
            # A first token that was handed out early must be reported before its request can start from its tokens.
            reported = [request for request in self._active.values() if request.is_reported]
            if len(self._active) < 2 or not reported:
                return
            self._preempt(max(reported, key=lambda request: request.rank))

    def _finish(self, request: Request, reason: str, kv_bytes: int, caches: Any, tokens: Any) -> None:
        """End a request: store its KV, retain or drop its caches, and end its stream once the KV can be found."""
        self._emitter.evictions(request, include_latest=True)
        completion = request.completion(reason, kv_bytes, self._loaded.eos)
        is_same_model = caches and not request.discarded and self._is_same_model()
        if self.reuse and is_same_model:
            keep = self.reuse.keep_cancelled if reason == "cancelled" else self.reuse.keep
            keep(request, caches, tokens)
        if self._prefixes and self._config.retain and is_same_model and reason != "cancelled":
            self._deactivate(request)
            self._prefixes.retain(request, tokens, room=0 if self.budget else RETAINED_SPARE_ROWS)
            self._release(self._config.retain)
        else:
            self._drop(request)

        def finish() -> None:
            self._emitter.emit(events.Finished, request, reason, len(completion.tokens), kv_bytes)
            request.stream.finish(completion)

        if self.reuse:
            self.reuse.after_kept(finish)
        else:
            finish()

    def _drop(self, request: Request) -> None:
        """Stop running a request, and free its live KV."""
        self._deactivate(request)
        if self._prefixes:
            self._prefixes.remove(request)
        request.caches, request.layers = [], []

    def _deactivate(self, request: Request) -> None:
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

    def _cancel_safely(self, request: Request) -> None:
        """Cancel a request; an error ends those that are computed, and not the decoder."""
        try:
            self._cancel(request)
        except Exception as error:  # noqa: BLE001 - any error of the model or the store
            self._fail_all(error)
            if not request.stream.done:
                request.stream.fail(error)

    def _fail_one(self, request: Request, error: Exception) -> None:
        """End a request that could not start."""
        self._drop(request)
        request.stream.fail(error)

    def _survive(self, error: Exception) -> None:
        """Go on after an error of a step."""
        self._fail_all(error)

    def _fail_all(self, error: Exception) -> None:
        for request in list(self._active.values()):
            self._drop(request)
            request.stream.fail(error)
        self._generator.close()
        self._generator = self._new_generator()
        self.live_bytes = self._measure()

    def _measure(self) -> int:
        """Return the bytes of all live KV; shared prefixes count once."""
        self.retained_bytes = self._prefixes.retained_nbytes() if self._prefixes else 0
        return self._generator.prompt_cache_nbytes + (self._prefixes.nbytes() if self._prefixes else 0)

    def _kv_bytes(self, request: Request, share: int) -> int:
        return sum(layer.nbytes + layer.shared_nbytes for layer in request.layers) if request.layers else share
