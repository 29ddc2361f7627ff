"""Replacement policies written anew, as plainly as possible, on traces of unit size: what kvlab's are compared with.

Each takes the keys of a trace in order and a capacity in keys, and returns the number of misses. Lists are searched and
shifted at will. Where libCacheSim defines a policy in another way than its paper, there is a second function or a
switch for its rules, so that these can be held against libCacheSim itself.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import xxhash

Trace = Sequence[int]


def fifo(trace: Trace, capacity: int) -> int:
    held: list[int] = []
    misses = 0
    for key in trace:
        if key not in held:
            misses += 1
            held = [*held, key][-capacity:]
    return misses


def lru(trace: Trace, capacity: int) -> int:
    held: list[int] = []
    misses = 0
    for key in trace:
        if key in held:
            held.remove(key)
        else:
            misses += 1
        held = [*held, key][-capacity:]
    return misses


def lfu(trace: Trace, capacity: int) -> int:
    """Uses count while a key is resident; of the least used, the least recently used leaves."""
    held: dict[int, tuple[int, int]] = {}
    misses = 0
    for now, key in enumerate(trace):
        if key not in held:
            misses += 1
            if len(held) == capacity:
                del held[min(held, key=held.__getitem__)]
        held[key] = (held.get(key, (0, 0))[0] + 1, now)
    return misses


def clock(trace: Trace, capacity: int) -> int:
    held: list[list[int]] = []  # [key, used]
    misses = 0
    for key in trace:
        for one in held:
            if one[0] == key:
                one[1] = 1
                break
        else:
            misses += 1
            if len(held) == capacity:
                while held[0][1]:
                    held.append([held.pop(0)[0], 0])
                held.pop(0)
            held.append([key, 0])
    return misses


def sieve(trace: Trace, capacity: int) -> int:
    held: list[list[int]] = []  # the oldest first
    hand = misses = 0
    for key in trace:
        for one in held:
            if one[0] == key:
                one[1] = 1
                break
        else:
            misses += 1
            if len(held) == capacity:
                while held[hand][1]:
                    held[hand][1] = 0
                    hand = (hand + 1) % len(held)
                held.pop(hand)
                hand %= len(held) or 1
            held.append([key, 0])
    return misses


def s3fifo(trace: Trace, capacity: int, *, fills_main: bool = False) -> int:
    """With ``fills_main``, keys enter the main queue while the small one is full and nothing was evicted yet.

    That is libCacheSim's rule since 2024; the paper's, and kvlab's, is without.
    """
    small_capacity, ghost_capacity = int(0.1 * capacity), int(0.9 * capacity)
    small: list[int] = []
    main: list[int] = []
    ghosts: list[int] = []
    hits: Counter[int] = Counter()
    misses, has_evicted = 0, False
    for key in trace:
        if key in small or key in main:
            hits[key] += 1
            continue
        misses += 1
        is_ghost = key in ghosts
        if is_ghost:
            ghosts.remove(key)
        while len(small) + len(main) >= capacity:
            has_evicted = True
            if len(main) > capacity - small_capacity or not small:
                while hits[main[0]]:
                    hits[main[0]] = min(hits[main[0]], 3) - 1
                    main.append(main.pop(0))
                main.pop(0)
                continue
            while small and hits[small[0]] >= 2:
                hits[small[0]] = 0
                main.append(small.pop(0))
            if small:
                ghosts.append(small.pop(0))
                ghosts = ghosts[max(0, len(ghosts) - ghost_capacity) :]
        hits[key] = 0
        into_main = is_ghost or (fills_main and not has_evicted and len(small) >= small_capacity)
        (main if into_main else small).append(key)
    return misses


class Segments:
    """LRU segments, the lowest first, each with its limit: a hit moves a key up, an overflow the oldest one down."""

    def __init__(self, limits: Sequence[float], fills_up: bool) -> None:
        self.limits, self.fills_up = limits, fills_up
        self.held: list[list[int]] = [[] for _ in limits]

    def __contains__(self, key: int) -> bool:
        return any(key in segment for segment in self.held)

    def __len__(self) -> int:
        return sum(map(len, self.held))

    def use(self, key: int) -> None:
        at = next(i for i, segment in enumerate(self.held) if key in segment)
        self.held[at].remove(key)
        up = min(at + 1, len(self.held) - 1)
        self.held[up].append(key)
        self._shrink(up)

    def _shrink(self, at: int) -> None:
        while len(self.held[at]) > self.limits[at]:
            oldest = self.held[at].pop(0)
            if at:
                self.held[at - 1].append(oldest)
                self._shrink(at - 1)

    def next_out(self) -> int:
        return next(segment[0] for segment in self.held if segment)

    def evict(self) -> None:
        next(segment for segment in self.held if segment).pop(0)

    def add(self, key: int) -> None:
        """Add to the lowest segment; with ``fills_up`` to the lowest that has space."""
        space = (s for s, limit in zip(self.held, self.limits, strict=True) if len(s) + 1 <= limit)
        (next(space, self.held[0]) if self.fills_up else self.held[0]).append(key)


def slru(trace: Trace, capacity: int) -> int:
    return _segmented(trace, capacity, Segments([math.inf, int(0.8 * capacity)], fills_up=False))


def slru_libcachesim(trace: Trace, capacity: int) -> int:
    """Four segments of one size, and new keys fill the lowest segment that has space."""
    return _segmented(trace, capacity, Segments([capacity // 4] * 4, fills_up=True))


def _segmented(trace: Trace, capacity: int, held: Segments) -> int:
    misses = 0
    for key in trace:
        if key in held:
            held.use(key)
            continue
        misses += 1
        if len(held) >= capacity:
            held.evict()
        held.add(key)
    return misses


def arc(trace: Trace, capacity: int, *, late: bool = False) -> int:
    """The paper's four cases. With ``late``, p is adapted after the eviction, and that does not know the key."""
    t1: list[int] = []
    t2: list[int] = []
    b1: list[int] = []
    b2: list[int] = []
    p, misses = 0.0, 0

    def adapted(key: int) -> float:
        if key in b1:
            return min(float(capacity), p + max(1.0, len(b2) / len(b1)))
        return max(0.0, p - max(1.0, len(b1) / len(b2))) if key in b2 else p

    def replace(in_b2: bool) -> None:
        if t1 and (len(t1) > p or (in_b2 and len(t1) == p) or not t2):
            b1.append(t1.pop(0))
        else:
            b2.append(t2.pop(0))

    for key in trace:
        if key in t1 or key in t2:
            (t1 if key in t1 else t2).remove(key)
            t2.append(key)
            continue
        misses += 1
        known_in = b1 if key in b1 else b2 if key in b2 else None
        is_full = len(t1) + len(t2) == capacity
        if known_in is not None:
            p = p if late else adapted(key)
            if is_full:
                replace(not late and known_in is b2)
            p = adapted(key) if late else p
            known_in.remove(key)
            t2.append(key)
            continue
        if len(t1) + len(b1) == capacity:
            if len(t1) < capacity:
                b1.pop(0)
                if is_full:
                    replace(False)
            else:
                t1.pop(0)
        elif len(t1) + len(t2) + len(b1) + len(b2) >= capacity:
            if len(t1) + len(t2) + len(b1) + len(b2) == 2 * capacity:
                b2.pop(0)
            if is_full:
                replace(False)
        t1.append(key)
    return misses


def lirs(trace: Trace, capacity: int, *, caffeine: bool = False) -> int:
    """The paper's. S has at most twice the capacity; with ``caffeine`` its ghosts have.

    With ``caffeine`` also, keys that fill the queue at first do not enter S, and a resident HIR key that is used twice
    in a row stays HIR.
    """
    most_low = int(0.99 * capacity) if caffeine else capacity - max(1, int(0.01 * capacity))
    stack: list[int] = []  # the top is the last one
    queue: list[int] = []
    low: set[int] = set()
    left: list[int] = []  # keys of S that are not resident, in the order in which they left
    misses = 0

    def prune() -> None:
        while stack and stack[0] not in low:
            if (bottom := stack.pop(0)) in left:
                left.remove(bottom)

    def make_low(key: int) -> None:
        stack.append(key)
        low.add(key)
        if len(low) > most_low:
            prune()
            bottom = stack.pop(0)
            low.remove(bottom)
            queue.append(bottom)
        prune()

    for key in trace:
        in_stack, is_top = key in stack, stack[-1:] == [key]
        if in_stack:
            stack.remove(key)
        if key in low:
            stack.append(key)
        elif key in queue:
            queue.remove(key)
            if in_stack and not (caffeine and is_top):
                make_low(key)
            else:
                stack.append(key)
                queue.append(key)
        else:
            misses += 1
            is_full = len(low) + len(queue) == capacity
            if is_full:
                out = queue.pop(0)
                left.extend([out] if out in stack else [])
            if key in left:
                left.remove(key)
                make_low(key)
            elif len(low) < most_low:
                make_low(key)
            else:
                stack.extend([key] if is_full or not caffeine else [])
                queue.append(key)
        prune()
        while left and (len(left) if caffeine else len(stack)) > 2 * capacity:
            stack.remove(left.pop(0))
    return misses


def lirs_libcachesim(trace: Trace, capacity: int) -> int:
    """As libCacheSim has it: a hit on a HIR key that is not in S also turns the LIR key at the bottom of S into HIR.

    A HIR key leaves the cache for it, and the cache is not full until the next miss. Where the queue has one place,
    that is the key that was hit, which counts as resident nevertheless until it leaves S.
    """
    most_high = max(1, int(0.01 * capacity))
    most_low = capacity - most_high
    stack: list[int] = []
    queue: list[int] = []
    low: set[int] = set()
    lost: set[int] = set()
    left: list[int] = []
    misses = 0

    def prune() -> None:
        while len(stack) > 1 and stack[0] not in low:
            bottom = stack.pop(0)
            lost.discard(bottom)
            if bottom in left:
                left.remove(bottom)

    def evict_high() -> None:
        out = queue.pop(0)
        left.extend([out] if out in stack else [])

    def demote() -> None:
        while len(low) + 1 > most_low:
            bottom = stack.pop(0)
            low.remove(bottom)
            while len(queue) + 1 > most_high:
                evict_high()
            queue.append(bottom)
            prune()

    for key in trace:
        is_ghost = key in left
        in_stack = key in stack
        if in_stack:
            stack.remove(key)
            stack.append(key)
        if key in low:
            prune()
        elif key in queue or key in lost:
            if key in queue:
                queue.remove(key)
            if in_stack:
                lost.discard(key)
                demote()
                low.add(key)
            else:
                queue.append(key)
                demote()
                stack.append(key)
                lost.update({key} - {*queue})
        else:
            misses += 1
            if is_ghost:
                demote()
                left.remove(key)
                low.add(key)
            else:
                if len(low) + 1 > most_low and len(queue) + 1 > most_high:
                    evict_high()
                stack.append(key)
                if len(low) + 1 <= most_low:
                    low.add(key)
                else:
                    queue.append(key)
        while left and len(stack) > 2 * capacity:
            stack.remove(left.pop(0))
    return misses


def wtinylfu(trace: Trace, capacity: int) -> int:
    """As Caffeine describes it: a key enters the window first; then what falls out of the window competes."""
    window_capacity = max(1, int(0.01 * capacity))
    window: list[int] = []
    main = Segments([math.inf, int(0.8 * (capacity - window_capacity))], fills_up=False)
    counts: Counter[int] = Counter()
    misses = used = 0
    for key in trace:
        if key in window:
            window.remove(key)
            window.append(key)
        elif key in main:
            main.use(key)
        else:
            misses += 1
            window.append(key)
            if len(window) > window_capacity:
                candidate = window.pop(0)
                if len(window) + len(main) < capacity:
                    main.add(candidate)
                elif len(main) and counts[candidate] > counts[main.next_out()]:
                    main.evict()
                    main.add(candidate)
        counts[key] = min(15, counts[key] + 1)
        used += 1
        if used >= 10 * capacity:
            counts = Counter({one: count // 2 for one, count in counts.items()})
            used //= 2
    return misses


class FilterCounts:
    """Counts in a counting Bloom filter, as libCacheSim makes it: too large where keys share counters."""

    ERROR = 0.001
    SEEDS = (0x12345678, 0x12344321)

    def __init__(self, keys: int) -> None:
        share = -math.log(self.ERROR) / math.log(2) ** 2
        self.hashes = math.ceil(math.log(2) * share)
        self.counters = [0] * math.ceil(share * keys)

    def _places(self, key: int) -> list[int]:
        one, other = (xxhash.xxh64_intdigest(key.to_bytes(8, "little"), seed) for seed in self.SEEDS)
        return [(one + at * other) % 2**32 % len(self.counters) for at in range(self.hashes)]

    def __getitem__(self, key: int) -> int:
        return min(self.counters[at] for at in self._places(key))

    def add(self, key: int) -> None:
        for at in self._places(key):
            self.counters[at] += 1

    def halve(self) -> None:
        self.counters = [count // 2 for count in self.counters]


def wtinylfu_libcachesim(trace: Trace, capacity: int) -> int:
    """As libCacheSim has it.

    All keys stay in the window until the cache is full. A use counts where the key is in the main part, is new, or
    competes; counts are halved after 32 times the capacity of hits in the main part.
    """
    main_capacity = capacity - int(0.01 * capacity)
    window: list[int] = []
    main = Segments([int(main_capacity * 0.2), int(main_capacity * 0.8)], fills_up=True)
    counts = FilterCounts(main_capacity)
    misses = hits = 0
    for key in trace:
        if key in window:
            window.remove(key)
            window.append(key)
        elif key in main:
            main.use(key)
            counts.add(key)
            hits += 1
            if hits >= 32 * main_capacity:
                counts.halve()
                hits = 0
        else:
            misses += 1
            while len(window) + len(main) >= capacity:
                candidate = window.pop(0)
                if len(main) < main_capacity:
                    main.add(candidate)
                elif counts[candidate] > counts[main.next_out()]:
                    main.evict()
                    main.add(candidate)
                counts.add(candidate)
            window.append(key)
            counts.add(key)
    return misses


def belady(trace: Trace, capacity: int, *, bypasses: bool = False) -> int:
    """With ``bypasses``, a key whose next use is farther than that of all resident keys is not admitted."""
    held: list[int] = []
    misses = 0
    for now, key in enumerate(trace):
        if key in held:
            continue
        misses += 1
        if len(held) == capacity:
            later = trace[now + 1 :]
            uses = {one: later.index(one) if one in later else len(trace) for one in {*held, key}}
            farthest = max(held, key=uses.__getitem__)
            if bypasses and uses[key] >= uses[farthest]:
                continue
            held.remove(farthest)
        held.append(key)
    return misses


REFERENCES: dict[str, Callable[[Trace, int], int]] = {
    "fifo": fifo,
    "lru": lru,
    "ttl": lru,
    "tail_lru": lru,
    "shortest": lru,
    "superseded": lru,
    "lfu": lfu,
    "clock": clock,
    "sieve": sieve,
    "s3fifo": s3fifo,
    "slru": slru,
    "arc": arc,
    "lirs": lirs,
    "wtinylfu": wtinylfu,
    "belady": belady,
}
"""By kvlab's name. Without ends of lives, costs and chains, ``ttl``, ``tail_lru``, ``shortest`` and ``superseded``
are ``lru``."""


def s3fifo_libcachesim(trace: Trace, capacity: int) -> int:
    return s3fifo(trace, capacity, fills_main=True)


LIBCACHESIM: dict[str, tuple[str, Callable[[Trace, int], int], int]] = {
    "fifo": ("FIFO", fifo, 1),
    "lru": ("LRU", lru, 1),
    "lfu": ("LFU", lfu, 1),
    "clock": ("Clock", clock, 1),
    "sieve": ("Sieve", sieve, 1),
    "s3fifo": ("S3FIFO", s3fifo_libcachesim, 20),
    "slru": ("SLRU", slru_libcachesim, 4),
    "arc": ("ARC", arc, 1),
    "lirs": ("LIRS", lirs_libcachesim, 10),
    "wtinylfu": ("WTinyLFU", wtinylfu_libcachesim, 100),
    "belady": ("Belady", belady, 1),
}
"""Its class, its rules written anew, and the smallest capacity at which it stores every key."""
