"""A benchmark's time budget, its progress bar, and the rows that say what was left out."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from tqdm.auto import tqdm

SECONDS = 240.0
"""Default budget: with what it cannot know beforehand, a benchmark ends within five minutes."""

Clock = Callable[[], float]
T = TypeVar("T")


class BenchSession:
    """One run of a benchmark within a time budget. Use it as a context manager; the bar on stderr counts seconds.

    Args:
        name: of the benchmark.
        seconds: what it may take; infinity: sizes stay as they are.
        clock: seconds from any start.

    Attributes:
        skipped: tidy rows of what was left out, ``metric: "skipped"``: how much, and the ``reason``.
    """

    def __init__(self, name: str, seconds: float = SECONDS, *, clock: Clock = time.perf_counter) -> None:
        self.clock = clock
        self.skipped: list[dict[str, Any]] = []
        self._name, self._seconds, self._begun = name, seconds, clock()
        total = None if math.isinf(seconds) else round(seconds)
        self._bar = tqdm(total=total, desc=f"bench {name}", unit="s", leave=False)

    def __enter__(self) -> BenchSession:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    @property
    def is_over(self) -> bool:
        """Whether the time is up: what has not begun is left out."""
        return self._elapsed() >= self._seconds

    def parts(self, items: Sequence[T], seconds: float = math.inf) -> Iterator[tuple[T, float]]:
        """Each item with its part of ``seconds``: what earlier ones save goes to later ones."""
        end = self.clock() + min(seconds, self._seconds - self._elapsed())
        for at, item in enumerate(items):
            yield item, max(0.0, end - self.clock()) / (len(items) - at)

    def show(self, doing: str) -> None:
        """Say on the bar what is measured now."""
        if not self._bar.disable:
            self._bar.set_postfix_str(doing, refresh=False)
            self._bar.n = round(min(self._elapsed(), self._seconds))
            self._bar.refresh()

    def rounds(self, most: int, seconds: float, about: Mapping[str, Any], *, warm_up: bool = True) -> Iterator[int]:
        """Numbers of rounds: 0 for one that warms up, then 1 to ``most``, or fewer where they would take too long.

        The first measured round always takes place. ``about`` names what is measured, on the bar and in a row.
        """
        end, longest = self.clock() + seconds, 0.0
        for number in range(0 if warm_up else 1, most + 1):
            started = self.clock()
            if number > 1 and started + longest > end:
                self.skip(about, most + 1 - number, "rounds", "time")
                return
            self.show(f"{_text(about)} round {number} of {most}" if number else f"{_text(about)} warming up")
            yield number
            longest = max(longest, self.clock() - started)

    def fit(
        self, wanted: int, seconds: float, each_s: float, *, least: int, about: Mapping[str, Any], unit: str
    ) -> int:
        """As many of ``wanted`` as fit into ``seconds`` where one takes ``each_s``, but not below ``least``."""
        affordable = wanted if each_s <= 0 else int(min(wanted, seconds / each_s))
        return self.cut(wanted, max(min(least, wanted), affordable), unit, "time", about)

    def cut(self, wanted: int, to: int, unit: str, reason: str, about: Mapping[str, Any]) -> int:
        """``wanted`` or ``to``, the smaller; a row says what was left out."""
        if to < wanted:
            self.skip(about, wanted - to, unit, reason)
        return min(wanted, to)

    def skip(self, about: Mapping[str, Any], value: int, unit: str, reason: str) -> None:
        """Note that ``value`` of ``unit`` were left out for ``reason``: a row, and a line on stderr."""
        row = {"policy": "", "workload": self._name, **about, "metric": "skipped", "value": value, "unit": unit}
        self.skipped.append({**row, "reason": reason})
        self._bar.write(f"bench {self._name}: {_text(about)}: {value} {unit} left out ({reason})", file=sys.stderr)

    def _elapsed(self) -> float:
        return self.clock() - self._begun


def _text(about: Mapping[str, Any]) -> str:
    """``shared n=8 of qwen3``: the fields of a row in words."""
    named = [str(about[key]) for key in ("workload",) if about.get(key)]
    named += [f"n={about['n']}"] if "n" in about else []
    return " ".join([*named, f"of {about['model']}" if about.get("model") else ""]).strip()
