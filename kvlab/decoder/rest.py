"""KV at rest for the decoder: what a request starts from, and what it leaves behind."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from kvlab.backend import home
from kvlab.caches import leaves, make_caches
from kvlab.decoder.job import Job
from kvlab.models import LoadedModel
from kvlab.policies import Paged, Policy, Ram, Scorer, Tiered, parse_bytes
from kvlab.store import Namespace, Store

RECENT_BOUNDARIES = 4
"""Message boundaries at the end of a prompt that always get a checkpoint: there conversations go on, or fork."""


def open_store(policy: Policy) -> Store | None:
    """The store that the policy's tiers describe; None where it keeps nothing at rest."""
    reuse, tiers = policy.reuse, policy.tiers
    if not isinstance(reuse, Paged):
        return None
    if isinstance(tiers, Tiered):
        return Store(
            block=reuse.block,
            ram=parse_bytes(tiers.ram),
            ssd=parse_bytes(tiers.ssd),
            directory=Path(tiers.dir).expanduser() if tiers.dir else home() / "store",
            replace=tiers.replace,
            write=tiers.write,
        )
    if isinstance(tiers, Ram):
        return Store(block=reuse.block, ram=parse_bytes(tiers.ram), replace=tiers.replace)
    return None


class Rest:
    """Restores live caches from a store and puts them back, for one model and policy. Decoder thread only."""

    def __init__(self, store: Store, loaded: LoadedModel, policy: Policy, reuse: Paged) -> None:
        self.store = store
        self._policy = policy
        self._loaded = loaded
        self._dtype = getattr(mx, loaded.dtype)
        self._block = reuse.block
        self._every = reuse.checkpoint
        self.wants_checkpoints = leaves.has_state(make_caches(loaded.model, policy))

    def restore(self, job: Job, caches: Sequence[Any]) -> int:
        """Fill empty ``caches`` with the longest stored prefix of the job's prompt; notes the match on the job.

        Returns the bytes restored. At least one prompt token is left, because its logits are wanted; scorers that
        look at the last queries get those tokens computed anew.
        """
        started = time.perf_counter()
        window = self._policy.retention.window if isinstance(self._policy.retention, Scorer) else 0
        limit = max(0, len(job.prompt) - max(1, window))
        match = self.store.match(self._namespace(job), job.prompt[:limit], checkpoint=self.wants_checkpoints)
        looked_up = time.perf_counter()
        blocks, match = self.store.read(match)
        checkpoint = self.store.read_checkpoint(match)
        job.miss = match.miss
        if blocks and self.wants_checkpoints and checkpoint is None:
            blocks, job.miss = [], "corrupt"
        if blocks:
            leaves.restore_rows(caches, blocks, self._dtype)
            if checkpoint is not None:
                leaves.restore_checkpoint(caches, checkpoint, self._dtype)
            mx.eval([cache.state for cache in caches])
            job.cached = job.stored = match.tokens
            job.by_tier = match.by_tier
        job.lookup_s = looked_up - started
        job.restore_s = time.perf_counter() - looked_up
        held = [*blocks, checkpoint or {}]
        return sum(array.nbytes for payload in held for array in payload.values())

    def segments(self, job: Job) -> list[list[int]]:
        """The tokens still to compute, cut where a checkpoint is wanted: at message boundaries and every N tokens.

        A message ends with one of the model's end tokens. Of many boundaries the first and the last few count.
        """
        todo = job.prompt[job.cached :]
        if not self.wants_checkpoints:
            return [todo]
        ends = [i + 1 for i, token in enumerate(todo[:-1]) if token in self._loaded.eos]
        cuts = {*ends[:1], *ends[-RECENT_BOUNDARIES:], *range(self._every, len(todo) - 1, self._every), len(todo) - 1}
        marks = sorted({0, *cuts, len(todo)})
        return [todo[a:b] for a, b in zip(marks, marks[1:], strict=False)]

    def keep_checkpoint(self, job: Job, caches: Sequence[Any], tokens: Sequence[int]) -> tuple[int, int]:
        """Store everything at exactly ``tokens``, in the middle of a prompt; blocks and bytes written."""
        blocks, size = self._put(job, tokens, leaves.token_rows(caches))
        put = self.store.put_checkpoint(self._namespace(job), tokens, leaves.to_checkpoint(caches))
        return blocks + put.blocks, size + put.bytes

    def keep_prompt(self, job: Job, caches: Sequence[Any]) -> tuple[int, int]:
        """Store the complete prompt rows that scorers set aside before they evicted; blocks and bytes written."""
        rows = leaves.token_rows(caches, prompt=True)
        for layer in leaves.own_layers(caches):
            layer.prompt_rows = None
        return self._put(job, job.prompt, rows)

    def keep(self, job: Job, caches: Sequence[Any], tokens: Sequence[int]) -> tuple[int, int]:
        """Store what the job has computed of ``tokens``, generated ones included; blocks and bytes written."""
        own = leaves.own_layers(caches)
        if any(layer.prompt_rows is not None for layer in own):
            return self.keep_prompt(job, caches)
        if any(layer.compressed for layer in own):
            # Rows computed under eviction are not what another request would compute.
            return 0, 0
        blocks, size = self._put(job, tokens, leaves.token_rows(caches))
        if self.wants_checkpoints and len(tokens) > job.cached:
            put = self.store.put_checkpoint(self._namespace(job), tokens, leaves.to_checkpoint(caches))
            blocks, size = blocks + put.blocks, size + put.bytes
        return blocks, size

    def _put(self, job: Job, tokens: Sequence[int], rows: dict[str, mx.array]) -> tuple[int, int]:
        if len(tokens) <= job.stored:
            return 0, 0
        # What was matched or put is stored already, up to its last whole block.
        start = job.stored // self._block * self._block
        job.stored = len(tokens)
        blocks = leaves.to_blocks(rows, start, len(tokens), self._block)
        put = self.store.put(self._namespace(job), tokens, start, blocks)
        return put.blocks, put.bytes

    def _namespace(self, job: Job) -> Namespace:
        return Namespace(self._loaded.fingerprint, self._policy.at_rest, self._loaded.dtype, self._block, job.tenant)
