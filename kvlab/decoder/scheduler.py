"""What the decoder's thread does: admit requests, step the batch, hand out tokens, keep what was computed."""

from __future__ import annotations

import queue
import time
from typing import Any

from mlx_lm.generate import StopSequences

from kvlab.backends.x86.blas_threads import BlasThreads
from kvlab.backends.x86.fast_exp import is_composed
from kvlab.backends.x86.flash_attention import are_quicker
from kvlab.caches import batchable, can_share, make_caches, own_caches
from kvlab.caches.factory import layerwise_model
from kvlab.caches.serialize import own_layers
from kvlab.decoder.admission import Admission
from kvlab.decoder.event_emitter import EventEmitter
from kvlab.decoder.memory_budget import LiveMemoryBudget, measure
from kvlab.decoder.prefill.batch_generator import ChunkedBatchGenerator
from kvlab.decoder.prefill.budget import PrefillBudget
from kvlab.decoder.prefix_tree import PrefixTree
from kvlab.decoder.request import Request
from kvlab.decoder.reuse.paged import PagedPrefixCache
from kvlab.models import LoadedModel
from kvlab.policies import Full, Paged, Policy, parse_bytes
from kvlab.recording import events
from kvlab.store import Store

RESERVE = 128
"""Rows of room that a warm sequence gets for what its next turn brings, where live memory is not counted."""

PREFILL_BATCH = 8
"""Prompts that are prefilled side by side (mlx-lm's default)."""


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
        tell: EventEmitter,
        *,
        max_concurrency: int,
        prefill_step: int,
        live_memory: int | str | None,
        warm: int,
    ) -> None:
        self._loaded, self._policy, self._tell = loaded, policy, tell
        self._max_concurrency, self._prefill_step, self._warm = max_concurrency, prefill_step, warm
        self.rest: PagedPrefixCache | None = None
        if store is not None and isinstance(policy.reuse, Paged):
            self.rest = PagedPrefixCache(store, loaded, policy, policy.reuse)
            store.on_event = tell.store
        # Sharing needs rows that stay as they are, and a hook in every layer.
        keeps_all = isinstance(policy.retention, Full) and (self.rest is not None or policy.lossless)
        # Where kvlab's own attention is faster than MLX's, all policies get it: they are compared, not kernels.
        self._own = keeps_all and (self.rest is not None or is_composed()) and can_share(loaded.model)
        self._stages = layerwise_model(loaded.model) if self._own else None
        self._prefixes = PrefixTree() if self._own and self.rest is not None else None
        self.budget = self._make_budget(live_memory)
        depth = self._stages.depth if self._stages else 1
        self._pace = PrefillBudget(prefill_step, depth, preemptible=self._stages is not None and are_quicker())
        self.inbox: queue.SimpleQueue[Request | int | None] = queue.SimpleQueue()
        self._waiting = Admission(self.budget, self._prefixes, self.rest)
        self._active: dict[int, Request] = {}
        self.live_bytes = self.warm_bytes = 0
        self._cores = BlasThreads(loaded.model)
        self._generator = self._new_generator()

    def _make_budget(self, live_memory: int | str | None) -> LiveMemoryBudget | None:
        if live_memory is None:
            return None
        cost = measure(self._loaded, self._make_caches(2))
        pauses = self.rest is not None and isinstance(self._policy.retention, Full)
        return LiveMemoryBudget(parse_bytes(live_memory), cost, self._policy.retention, pauses=pauses)

    def _make_caches(self, prompt_tokens: int) -> list[Any]:
        build = own_caches if self._own else make_caches
        record = self._tell.sink is not None
        return build(self._loaded.model, self._policy, prompt_tokens=prompt_tokens, record=record)

    def _new_generator(self) -> ChunkedBatchGenerator:
        model = self._loaded.model
        return ChunkedBatchGenerator(
            model if self._own else batchable(model),
            self._stages,
            stop_tokens=[[token] for token in self._loaded.eos],
            completion_batch_size=self._max_concurrency,
            prefill_batch_size=min(PREFILL_BATCH, self._max_concurrency),
            prefill_step_size=self._prefill_step,
        )

    def run(self) -> None:
        while self._read_inbox():
            try:
                self._admit()
                if self._active:
                    self._step()
            except Exception as error:  # noqa: BLE001 - whatever the model raised belongs to the requests it served
                self._fail_all(error)
        for job in [*self._waiting, *self._active.values()]:
            self._cancel(job)
        self._yield_processors()
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
                jobs = [*self._waiting, *self._active.values()]
                for job in (job for job in jobs if job.request == message):
                    self._cancel(job)
            idle = False
        if self.rest:
            self.rest.store.give_way(True)
        return True

    def _yield_processors(self) -> None:
        self._cores.give_back()
        if self.rest:
            self.rest.store.give_way(False)

    def _admit(self) -> None:
        for job in self._waiting:
            if len(self._active) >= self._max_concurrency or not self._make_room(job):
                return
            if self._waiting.is_held(job, self._active):
                continue
            self._waiting.remove(job)
            job.admitted = job.admitted or time.perf_counter()
            try:
                self._insert(job)
                self._cool(self._max_concurrency - len(self._active))
            except Exception as error:  # noqa: BLE001 - one request's trouble must not end the others
                self._let_go(job)
                job.stream.fail(error)

    def _make_room(self, job: Request) -> bool:
        """True when the job may start, after warm sequences have left if need be."""
        while not self._waiting.has_room(job, self._active, self.live_bytes):
            if not self._cool_one():
                return not self._active
        return True

    def _cool(self, most: int) -> None:
        """Let no more than ``most`` sequences stay warm."""
        while self._prefixes and self._prefixes.warm > most:
            self._cool_one()

    def _cool_one(self) -> bool:
        cooled = self._prefixes is not None and self._prefixes.cool_one()
        if cooled:
            self.live_bytes = self._measure()
        return cooled

    def _pause(self, job: Request) -> None:
        """Take a running job out, keep its KV at rest, and queue it again."""
        [(caches, tokens)] = self._generator.remove([job.uid], return_prompt_caches=True).values()
        if self.rest:
            self._stored(job, self.rest.keep, caches, tokens)
        self._let_go(job)
        self._tell.emit(events.Paused, job, len(job.tokens), self.live_bytes)
        self._waiting.put(job)

    def _insert(self, job: Request) -> None:
        context = job.begin()
        caches = self._make_caches(len(job.prompt))
        job.caches, job.layers = caches, own_layers(caches)
        segments = [context]
        if self.rest:
            live = self._prefixes.join(job, self.rest.limit(job)) if self._prefixes else 0
            restored = self.rest.restore(job, caches, live)
            self._tell.emit(events.Matched, job, job.cached, job.by_tier, job.miss, job.lookup_s)
            if restored:
                self._tell.emit(events.Restored, job, job.cached - live, restored, job.restore_s)
            segments = self.rest.segments(job)
        job.note_start()
        stop = StopSequences([*([token] for token in self._loaded.eos), *map(list, job.stop)])
        [job.uid] = self._generator.insert_segments(
            [segments],
            max_tokens=[job.max_tokens - len(job.tokens)],
            caches=[caches],
            all_tokens=[context[: job.cached]],
            samplers=[job.sampler],
            logits_processors=[list(job.processors)],
            stop_sequences=[stop],
        )
        self._active[job.uid] = job

    def _step(self) -> None:
        decoding = sum(bool(job.tokens) for job in self._active.values())
        prefilling = min(PREFILL_BATCH, len(self._active) - decoding)
        self._generator.prefill_step_size = self._pace.chunk(prefilling, decoding)
        prefill = self._generator.prefill
        prefill.work, prefill.done = self._pace.work(decoding), 0
        chunks = (min(self._generator.prefill_step_size, job.to_compute) for job in self._active.values())
        self._cores.suit(decoding or sum(chunks), beside=decoding > 0 and prefilling > 0)
        started = time.perf_counter()
        prefill.until = self._pace.until(started, decoding)
        prompts, tokens = self._generator.next()
        now = time.perf_counter()
        for prompt in prompts:
            self._take_prompt(prompt)
        self._pace.saw(now - started, prefill.done, len(tokens))
        share = self.live_bytes // max(1, len(self._active))
        for token in tokens:
            self._take_token(token, now, share)
        self.live_bytes = self._measure()
        self._relieve()

    def _take_prompt(self, prompt: Any) -> None:
        """Progress of a prompt, as mlx-lm reports it."""
        job = self._active[prompt.uid]
        self._tell.prefill(job, *prompt.progress)
        if prompt.end_of_prompt:
            self._hand_out_first(job)
        elif prompt.end_of_segment and self.rest and self.rest.wants_checkpoints:
            self._stored(job, self.rest.keep_checkpoint, *self._generator.extract_cache([prompt.uid])[prompt.uid])

    def _take_token(self, response: Any, now: float, share: int) -> None:
        """A decoded token, as mlx-lm reports it."""
        job = self._active[response.uid]
        job.tokens.append(response.token)
        if len(job.times) < len(job.tokens):
            job.times.append(now)
        wanted = self._tell.sink is not None or response.finish_reason is not None
        kv_bytes = self._kv_bytes(job, share) if wanted else 0
        self._tell.token(job, kv_bytes)
        self._hand_out(job, response.token)
        if self.rest and any(layer.prompt_rows is not None for layer in job.layers):
            self._stored(job, self.rest.keep_prompt, job.caches)
        if response.finish_reason is not None:
            self._finish(job, response.finish_reason, kv_bytes, response.prompt_cache, response.all_tokens)

    def _relieve(self) -> None:
        """While live memory is short, let warm sequences go, then pause running ones, the least urgent first."""
        while self.budget is not None and self.budget.is_tight(self.live_bytes, len(self._active)):
            if self._cool_one():
                continue
            # A first token that went out early must be reported before its job may start over from its tokens.
            settled = [job for job in self._active.values() if job.pushed <= len(job.tokens)]
            if len(self._active) < 2 or not settled:
                return
            self._pause(max(settled, key=lambda job: job.rank))
            self.live_bytes = self._measure()

    def _hand_out_first(self, job: Request) -> None:
        """The first token is sampled one round before mlx-lm reports it: the client gets it without that wait."""
        token = self._generator.first_token(job.uid)
        job.times.append(time.perf_counter())
        self._hand_out(job, token, early=True)

    def _hand_out(self, job: Request, token: int, *, early: bool = False) -> None:
        """Push a token once; end tokens are never pushed."""
        place = len(job.tokens) + 1 if early else len(job.tokens)
        if place > job.pushed:
            job.pushed = place
            if token not in self._loaded.eos:
                job.stream.push(token)

    def _finish(self, job: Request, reason: str, kv_bytes: int, caches: Any, tokens: Any) -> None:
        completion = job.completion(reason, kv_bytes, self._loaded.eos)
        if self.rest and caches:
            self._stored(job, self.rest.keep, caches, tokens)
        if self._prefixes and self._warm and caches and reason != "cancelled":
            self._retire(job)
            self._prefixes.stay_warm(job, tokens, room=0 if self.budget else RESERVE)
            self._cool(self._warm)
        else:
            self._let_go(job)
        self._tell.emit(events.Finished, job, reason, len(completion.tokens), kv_bytes)
        job.stream.finish(completion)

    def _let_go(self, job: Request) -> None:
        """The job runs no longer: nothing of it stays live."""
        self._retire(job)
        if self._prefixes:
            self._prefixes.leave(job)
        job.caches, job.layers = [], []

    def _retire(self, job: Request) -> None:
        if job.uid is not None:
            self._active.pop(job.uid, None)
        job.uid = None

    def _cancel(self, job: Request) -> None:
        caches, tokens = None, None
        if job.uid is None:
            self._waiting.remove(job)
        else:
            removed = self._generator.remove([job.uid], return_prompt_caches=self.rest is not None)
            caches, tokens = removed.get(job.uid, (None, None))
        self._finish(job, "cancelled", self._kv_bytes(job, 0), caches, tokens)
        self.live_bytes = self._measure()

    def _fail_all(self, error: Exception) -> None:
        for job in list(self._active.values()):
            self._let_go(job)
            job.stream.fail(error)
        self._generator.close()
        self._generator = self._new_generator()
        self.live_bytes = self._measure()

    def _measure(self) -> int:
        """Bytes of all live KV; shared prefixes count once."""
        self.warm_bytes = self._prefixes.warm_nbytes() if self._prefixes else 0
        return self._generator.prompt_cache_nbytes + (self._prefixes.nbytes() if self._prefixes else 0)

    def _kv_bytes(self, job: Request, share: int) -> int:
        return sum(layer.nbytes + layer.shared_nbytes for layer in job.layers) if job.layers else share

    def _stored(self, job: Request, keep: Any, *what: Any) -> None:
        started = time.perf_counter()
        blocks, size = keep(job, *what)
        if blocks:
            self._tell.emit(events.Stored, job, blocks, size, time.perf_counter() - started)
