"""How much of a prompt to compute between two decode steps: by time, so that a long prompt freezes nobody.

Work is counted in tokens times layers: a chunk of tokens goes through the model a few layers at a time.
"""

from __future__ import annotations

import math
import statistics
from collections import deque

ROUND = 2.6
"""How long a decode step with work on prompts behind it may take, in decode steps of their own."""
SOON = 12
"""Rounds that a chunk may take: whoever comes meanwhile waits for its end."""
LEAST, FIRST = 4, 96
"""Tokens times layers a round: the fewest, or fixed costs would rule, and those of the first."""
EVEN = 8
"""Larger chunks are multiples of so many tokens: products of like shapes use the same memory again."""
SLOWER, FASTER = 0.5, 1.25
"""Bounds of what a round's work may become from one to the next."""
NEAR, GAIN = 0.8, 0.3
"""A round that was at most so much too long moves the work by this power of it: noise must not make it much."""
SAMPLES = 8
"""Steps without work on prompts whose median is how long a step takes."""
STALE, CHANGED = 128, 16
"""Rounds until a step is measured anew, and until it is where many sequences have joined or left."""
ASIDE = 4
"""Rounds without work on prompts in which it is; the first still waits for what was set off before."""


class PrefillBudget:
    """Sizes the work on prompts from how long rounds took. Alone, a prompt gets chunks of ``most`` tokens at once.

    Args:
        depth: parts that a forward pass can be cut into, such as layers.
        preemptible: it can be left within a part, so that it is time that decides, and work only sizes chunks.
    """

    def __init__(self, most: int, depth: int = 1, *, preemptible: bool = False) -> None:
        self.most = most
        self._depth = depth
        self._preemptible = preemptible
        self._steps: deque[float] = deque(maxlen=SAMPLES)
        self._sequences = self._since = self._aside = 0
        self._granted = float(FIRST)
        self._under_way = 0
        self._last_s = float("inf")

    def chunk(self, prefilling: int, decoding: int) -> int:
        """Tokens of each of ``prefilling`` prompts to begin with, beside ``decoding`` sequences."""
        if not decoding:
            return self.most
        rounds = SOON / self._depth if self._preemptible else 1 / math.ceil(self._depth / SOON)
        tokens = int(self._granted * rounds / max(1, prefilling))
        return min(self.most, max(LEAST, EVEN * round(tokens / EVEN) if tokens > EVEN else tokens))

    def work(self, decoding: int) -> int | None:
        """Tokens times layers in this round, which gives ``decoding`` sequences a token; None: all there is."""
        if not decoding:
            return None
        if self._since >= (CHANGED if self._differ(decoding) else STALE) or self._preemptible and not self._steps:
            self._since, self._aside = 0, ASIDE
        if self._aside:
            self._aside -= 1
            return 0
        return int(self._granted)

    def until(self, started: float, decoding: int) -> float:
        """When to leave off work on prompts in a round that ``started`` then; infinity where time does not decide."""
        if not decoding or not self._preemptible or not self._steps:
            return math.inf
        return started + ROUND * statistics.median(self._steps)

    def saw(self, seconds: float, work: int, decoded: int) -> None:
        """A round took ``seconds``, gave ``decoded`` sequences a token and set ``work`` on prompts off.

        It may be waited for only a round later (:mod:`kvlab.decoder.prefill.chunked`): where it was as much as the one
        before, that makes no difference.
        """
        done, self._under_way = self._under_way, work
        last, self._last_s = self._last_s, seconds
        if not decoded:
            return
        self._since += 1
        if not done and not work:
            self._measured(seconds, decoded)
        elif self._preemptible:
            self._granted = max(LEAST, min(self.most * self._depth, self._granted + (work - self._granted) / SOON))
        elif self._steps and min(done, work) >= 0.8 * self._granted:
            self._adjust(min(done, work), ROUND * statistics.median(self._steps) / min(seconds, last))

    def _measured(self, seconds: float, decoded: int) -> None:
        """A step of its own."""
        if self._differ(decoded):
            self._steps.clear()
        self._sequences, self._since = decoded, 0
        self._steps.append(seconds)

    def _differ(self, decoding: int) -> bool:
        return abs(decoding - self._sequences) > self._sequences / 4

    def _adjust(self, work: int, wanted: float) -> None:
        """Rounds of so much ``work`` may take ``wanted`` times as long; a lone slow one is not among them."""
        change = max(SLOWER, min(FASTER, wanted if wanted < NEAR else wanted**GAIN))
        # A chunk goes on as it began, whatever is granted meanwhile: what it did decides, not what was granted.
        if change < 1:
            granted = min(self._granted, work * change)
        else:
            granted = min(self._granted * change, max(self._granted, work * wanted))
        self._granted = max(LEAST, min(self.most * self._depth, granted))
