"""Replay a trace through RAM over SSD, request by request."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np

from kvlab.replay.capacity import TOKENS, Capacity
from kvlab.replay.errors import TraceError
from kvlab.replay.simulation import TELL_EVERY, Told, collector_paused
from kvlab.replay.sized_block import TraceBlocks
from kvlab.replay.tiered_counts import TieredCounts
from kvlab.replay.tiers import ReplayTiers
from kvlab.replay.trace import BlockTrace
from kvlab.speed import Speed
from kvlab.store.restore_choice import tokens_to_restore
from kvlab.tiers import RAM, SSD


@dataclass(frozen=True)
class RestoreRule:
    """Decides for each request how much of what is stored is restored, by a speed.

    Attributes:
        speed: of the machine and the model.
        token_bytes: bytes of KV a token.
    """

    speed: Speed
    token_bytes: int

    def blocks(self, in_ram: list[bool], tokens: list[int], prompt_tokens: int) -> int:
        """Return how many of the stored blocks to restore.

        Args:
            in_ram: whether each is in RAM.
            tokens: those of each.
        """
        runs = [
            (RAM.name if where else SSD.name, sum(size for _, size in group))
            for where, group in groupby(zip(in_ram, tokens, strict=True), key=lambda one: one[0])
        ]
        most = tokens_to_restore(self.speed, runs, prompt_tokens, self.token_bytes)
        return int(np.searchsorted(np.cumsum(tokens), most, side="right")) if tokens else 0


def in_tokens(capacity: Capacity, trace: BlockTrace) -> Capacity:
    """Return a capacity that counts in tokens; a block counts as a full one."""
    if capacity.unit == TOKENS:
        return capacity
    amount = capacity.amount * trace.block_tokens
    return Capacity(capacity.text, TOKENS, amount, amount / max(int(trace.sizes.sum()), 1))


def simulate_tiers(
    trace: BlockTrace,
    replace: str,
    ram: Capacity,
    ssd: Capacity | None,
    *,
    rule: RestoreRule | None = None,
    admit: int = 1,
    told: Told = lambda _: None,
) -> TieredCounts:
    """Replay a trace with RAM over SSD, and count; without ``ssd`` with RAM alone.

    A request finds its stored prefix. Without ``rule`` all of it is restored; with it, what is computed again though
    SSD has it is kept in RAM. What no tier has then enters RAM, and is written to SSD behind the request. Requests run
    one after the other, in the order of their times.

    Raises:
        TraceError: a policy that is not known, or a trace without parents.
    """
    if trace.is_plain and trace.unique > 1 and trace.block_tokens == 1:
        raise TraceError(f"{trace.name} has single blocks without parents: replay it with one tier, --capacity")
    ram, ssd = in_tokens(ram, trace), None if ssd is None else in_tokens(ssd, trace)
    tiers = _tiers(trace, replace, ram, ssd, admit)
    n = len(trace)
    found = {name: np.zeros(n, np.int64) for name in ("ram", "ssd", "spurned", "written")}
    computed_by, after = [-1] * trace.unique, np.full(n, -1, np.int64)
    times, prompts, offsets = trace.times.tolist(), trace.input_tokens.tolist(), trace.offsets.tolist()
    asked, tails = (
        trace.asked_blocks.tolist(),
        list(zip(trace.tail_blocks.tolist(), trace.tail_tokens.tolist(), strict=True)),
    )
    with collector_paused():
        for request in range(n):
            chain = trace.chain(request).tolist()
            in_ram = tiers.start(chain[: asked[request]], times[request])
            stop = offsets[request] + len(in_ram)
            tokens = trace.place_tokens[offsets[request] : stop].tolist()
            most = len(in_ram) if rule is None or not in_ram else rule.blocks(in_ram, tokens, prompts[request])
            tiers.read(chain, most)
            for at, size in enumerate(tokens):
                found["spurned" if at >= most else "ram" if in_ram[at] else "ssd"][request] += size
            if (most, tails[request][0]) == (len(in_ram), len(in_ram)):
                found["ssd" if in_ram and not in_ram[-1] else "ram"][request] += tails[request][1]
            if most:
                after[request] = computed_by[chain[most - 1]]
            for block in chain[most:]:
                computed_by[block] = request
            before = tiers.written
            tiers.end(chain, chain[most : len(in_ram)])
            found["written"][request] = tiers.written - before
            if request % TELL_EVERY == TELL_EVERY - 1:
                told(TELL_EVERY)
    told(n % TELL_EVERY)
    return TieredCounts(
        trace, replace, ram, ssd, found["ram"], found["ssd"], found["spurned"], found["written"], tiers.evictions, after
    )


def _tiers(trace: BlockTrace, replace: str, ram: Capacity, ssd: Capacity | None, admit: int) -> ReplayTiers:
    partial = np.zeros(trace.unique, bool)
    partial[trace.blocks[trace.place_tokens < trace.block_tokens]] = True
    blocks = TraceBlocks(
        trace.parents.tolist(), trace.sizes.tolist(), trace.depths.tolist(), trace.block_tokens, partial.tolist()
    )
    chains = lambda: (trace.chain(request).tolist() for request in range(len(trace)))  # noqa: E731
    return ReplayTiers(ram.amount, ssd.amount if ssd else 0, replace, blocks, admit=admit, chains=chains)
