"""The decoder: mlx-lm's BatchGenerator with a policy, a store and a recorder, on a thread of its own."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from mlx_lm.generate import StopSequences

from kvlab import events, threads
from kvlab.caches import batchable, can_share, check_model, make_caches, own_caches, stages
from kvlab.caches.exponential import is_composed
from kvlab.caches.leaves import own_layers
from kvlab.decoder.admission import Admission
from kvlab.decoder.batch import Batch
from kvlab.decoder.cores import Cores
from kvlab.decoder.job import Job, Processor, Sampler, check_request
from kvlab.decoder.live import LivePrefixes
from kvlab.decoder.memory import LiveBudget, measure
from kvlab.decoder.pace import Pace
from kvlab.decoder.rest import Rest, open_store
from kvlab.decoder.stream import Completion, Stream
from kvlab.decoder.teller import Sink, Teller
from kvlab.errors import KvlabError
from kvlab.models import LoadedModel
from kvlab.policies import Full, Paged, Policy, parse_bytes
from kvlab.store import Store

RESERVE = 128
"""Rows of room that a warm sequence gets for what its next turn brings, where live memory is not counted."""

PREFILL_BATCH = 8
"""Prompts that are prefilled side by side (mlx-lm's default)."""


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
        recorder: Sink | None = None,
        max_concurrency: int = 32,
        prefill_step: int = 512,
        live_memory: int | str | None = None,
        warm: int = 4,
    ) -> None:
        if max_concurrency < 1 or prefill_step < 1 or warm < 0:
            raise KvlabError("max_concurrency and prefill_step must be 1 or more, warm 0 or more")
        self.loaded = loaded
        self.policy = Policy.parse(policy)
        self._tell = Teller(recorder)
        self.max_concurrency = max_concurrency
        self.prefill_step = prefill_step
        self.warm = warm
        check_model(loaded.model, self.policy)
        self._owns_store = store is None
        self.store = store or open_store(self.policy)
        self._rest: Rest | None = None
        if self.store is not None and isinstance(self.policy.reuse, Paged):
            self._rest = Rest(self.store, loaded, self.policy, self.policy.reuse)
            self.store.on_event = self._tell.store
        # Sharing needs rows that stay as they are, and a hook in every layer.
        keeps_all = isinstance(self.policy.retention, Full) and (self._rest is not None or self.policy.lossless)
        # Where kvlab's own attention is faster than MLX's, all policies get it: they are compared, not kernels.
        self._own = keeps_all and (self._rest is not None or is_composed()) and can_share(loaded.model)
        self._stages = stages(loaded.model) if self._own else None
        self._prefixes = LivePrefixes() if self._own and self._rest is not None else None
        self._budget = self._make_budget(live_memory)
        self._pace = Pace(prefill_step, self._stages.depth if self._stages else 1)
        self._numbers = itertools.count()
        self._inbox: queue.SimpleQueue[Job | int | None] = queue.SimpleQueue()
        self._waiting = Admission(self._budget, self._prefixes, self._rest)
        self._active: dict[int, Job] = {}
        self._live_bytes = self._warm_bytes = 0
        self._closed = False
        self._cores = Cores(loaded.model)
        self._generator = self._new_generator()
        self._thread = threading.Thread(target=self._run, name="kvlab-decoder", daemon=True)
        self._thread.start()

    # -- any thread -------------------------------------------------------------------------------------------------

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
        if self._budget is not None:
            self._budget.check(len(prompt), max_tokens)
        job = Job(
            stream=Stream(next(self._numbers), self._inbox.put),
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
        self._inbox.put(job)
        return job.stream

    def generate(self, prompt: Sequence[int], **options: Any) -> Completion:
        """:meth:`submit` and wait for the end."""
        return self.submit(prompt, **options).result()

    @property
    def wants_checkpoints(self) -> bool:
        """Whether KV at rest is blocks and checkpoints: some layers' state cannot be cut at a token."""
        return self._rest is not None and self._rest.wants_checkpoints

    def live_bytes(self) -> int:
        """Bytes of all live KV after the last step."""
        return self._live_bytes

    def warm_bytes(self) -> int:
        """The part of them that only sequences hold which have ended."""
        return self._warm_bytes

    def close(self) -> None:
        """Cancel what is running, keep what it computed, flush and close the store. Idempotent."""
        if not self._closed:
            self._closed = True
            self._inbox.put(None)
        threads.join(self._thread)
        if self.store is not None and self._owns_store:
            self.store.close()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the decoder's thread ---------------------------------------------------------------------------------------

    def _make_budget(self, live_memory: int | str | None) -> LiveBudget | None:
        if live_memory is None:
            return None
        cost = measure(self.loaded, self._make_caches(2))
        pauses = self._rest is not None and isinstance(self.policy.retention, Full)
        return LiveBudget(parse_bytes(live_memory), cost, self.policy.retention, pauses=pauses)

    def _make_caches(self, prompt_tokens: int) -> list[Any]:
        build = own_caches if self._own else make_caches
        record = self._tell.sink is not None
        return build(self.loaded.model, self.policy, prompt_tokens=prompt_tokens, record=record)

    def _new_generator(self) -> Batch:
        model = self.loaded.model
        return Batch(
            model if self._own else batchable(model),
            self._stages,
            stop_tokens=[[token] for token in self.loaded.eos],
            completion_batch_size=self.max_concurrency,
            prefill_batch_size=min(PREFILL_BATCH, self.max_concurrency),
            prefill_step_size=self.prefill_step,
        )

    def _run(self) -> None:
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
                message = self._inbox.get(block=idle)
            except queue.Empty:
                break
            if message is None:
                return False
            if isinstance(message, Job):
                self._waiting.put(message)
            else:
                jobs = [*self._waiting, *self._active.values()]
                for job in (job for job in jobs if job.request == message):
                    self._cancel(job)
            idle = False
        if self._rest:
            self._rest.is_behind(True)
        return True

    def _yield_processors(self) -> None:
        self._cores.give_back()
        if self._rest:
            self._rest.is_behind(False)

    def _admit(self) -> None:
        for job in self._waiting:
            if len(self._active) >= self.max_concurrency or not self._make_room(job):
                return
            if self._waiting.is_held(job, self._active):
                continue
            self._waiting.remove(job)
            job.admitted = job.admitted or time.perf_counter()
            try:
                self._insert(job)
                self._cool(self.max_concurrency - len(self._active))
            except Exception as error:  # noqa: BLE001 - one request's trouble must not end the others
                self._let_go(job)
                job.stream.fail(error)

    def _make_room(self, job: Job) -> bool:
        """True when the job may start, after warm sequences have left if need be."""
        while not self._waiting.has_room(job, self._active, self._live_bytes):
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
            self._live_bytes = self._measure()
        return cooled

    def _pause(self, job: Job) -> None:
        """Take a running job out, keep its KV at rest, and queue it again."""
        [(caches, tokens)] = self._generator.remove([job.uid], return_prompt_caches=True).values()
        if self._rest:
            self._stored(job, self._rest.keep, caches, tokens)
        self._let_go(job)
        self._tell.emit(events.Paused, job, len(job.tokens), self._live_bytes)
        self._waiting.put(job)

    def _insert(self, job: Job) -> None:
        context = job.begin()
        caches = self._make_caches(len(job.prompt))
        job.caches, job.layers = caches, own_layers(caches)
        segments = [context]
        if self._rest:
            live = self._prefixes.join(job, self._rest.limit(job)) if self._prefixes else 0
            restored = self._rest.restore(job, caches, live)
            self._tell.emit(events.Matched, job, job.cached, job.by_tier, job.miss, job.lookup_s)
            if restored:
                self._tell.emit(events.Restored, job, job.cached - live, restored, job.restore_s)
            segments = self._rest.segments(job)
        job.note_start()
        stop = StopSequences([*([token] for token in self.loaded.eos), *map(list, job.stop)])
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
        prompts, tokens = self._generator.next()
        now = time.perf_counter()
        for prompt in prompts:
            job = self._active[prompt.uid]
            self._tell.prefill(job, *prompt.progress)
            if prompt.end_of_prompt:
                self._hand_out_first(job)
            if prompt.end_of_segment and not prompt.end_of_prompt and self._rest and self._rest.wants_checkpoints:
                self._stored(job, self._rest.keep_checkpoint, *self._generator.extract_cache([prompt.uid])[prompt.uid])
        self._pace.saw(now - started, prefill.done, len(tokens))
        share = self._live_bytes // max(1, len(self._active))
        for response in tokens:
            job = self._active[response.uid]
            job.tokens.append(response.token)
            if len(job.times) < len(job.tokens):
                job.times.append(now)
            wanted = self._tell.sink is not None or response.finish_reason is not None
            kv_bytes = self._kv_bytes(job, share) if wanted else 0
            self._tell.token(job, kv_bytes)
            self._hand_out(job, response.token)
            if self._rest and any(layer.prompt_rows is not None for layer in job.layers):
                self._stored(job, self._rest.keep_prompt, job.caches)
            if response.finish_reason is not None:
                self._finish(job, response.finish_reason, kv_bytes, response.prompt_cache, response.all_tokens)
        self._live_bytes = self._measure()
        while self._budget is not None and self._budget.is_tight(self._live_bytes, len(self._active)):
            if self._cool_one():
                continue
            # A first token that went out early must be reported before its job may start over from its tokens.
            settled = [job for job in self._active.values() if job.pushed <= len(job.tokens)]
            if len(self._active) < 2 or not settled:
                return
            self._pause(max(settled, key=lambda job: job.rank))
            self._live_bytes = self._measure()

    def _hand_out_first(self, job: Job) -> None:
        """The first token is sampled one round before mlx-lm reports it: the client gets it without that wait."""
        token = self._generator.first_token(job.uid)
        job.times.append(time.perf_counter())
        self._hand_out(job, token, early=True)

    def _hand_out(self, job: Job, token: int, *, early: bool = False) -> None:
        """Push a token once; end tokens are never pushed."""
        place = len(job.tokens) + 1 if early else len(job.tokens)
        if place > job.pushed:
            job.pushed = place
            if token not in self.loaded.eos:
                job.stream.push(token)

    def _finish(self, job: Job, reason: str, kv_bytes: int, caches: Any, tokens: Any) -> None:
        completion = job.completion(reason, kv_bytes, self.loaded.eos)
        if self._rest and caches:
            self._stored(job, self._rest.keep, caches, tokens)
        if self._prefixes and self.warm and caches and reason != "cancelled":
            self._retire(job)
            self._prefixes.stay_warm(job, tokens, room=0 if self._budget else RESERVE)
            self._cool(self.warm)
        else:
            self._let_go(job)
        self._tell.emit(events.Finished, job, reason, len(completion.tokens), kv_bytes)
        job.stream.finish(completion)

    def _let_go(self, job: Job) -> None:
        """The job runs no longer: nothing of it stays live."""
        self._retire(job)
        if self._prefixes:
            self._prefixes.leave(job)
        job.caches, job.layers = [], []

    def _retire(self, job: Job) -> None:
        if job.uid is not None:
            self._active.pop(job.uid, None)
        job.uid = None

    def _cancel(self, job: Job) -> None:
        caches, tokens = None, None
        if job.uid is None:
            self._waiting.remove(job)
        else:
            removed = self._generator.remove([job.uid], return_prompt_caches=self._rest is not None)
            caches, tokens = removed.get(job.uid, (None, None))
        self._finish(job, "cancelled", self._kv_bytes(job, 0), caches, tokens)
        self._live_bytes = self._measure()

    def _fail_all(self, error: Exception) -> None:
        for job in list(self._active.values()):
            self._let_go(job)
            job.stream.fail(error)
        self._generator.close()
        self._generator = self._new_generator()
        self._live_bytes = self._measure()

    def _measure(self) -> int:
        """Bytes of all live KV; shared prefixes count once."""
        self._warm_bytes = self._prefixes.warm_nbytes() if self._prefixes else 0
        return self._generator.prompt_cache_nbytes + (self._prefixes.nbytes() if self._prefixes else 0)

    def _kv_bytes(self, job: Job, share: int) -> int:
        return sum(layer.nbytes + layer.shared_nbytes for layer in job.layers) if job.layers else share

    def _stored(self, job: Job, keep: Any, *what: Any) -> None:
        started = time.perf_counter()
        blocks, size = keep(job, *what)
        if blocks:
            self._tell.emit(events.Stored, job, blocks, size, time.perf_counter() - started)
