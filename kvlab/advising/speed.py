"""``Speed``: what a machine and a model need for prompts, tokens and copies; and the speeds of an audit card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvlab.advising.errors import AdviceError

SSD_BYTES_PER_S = 2e9
"""Of an SSD of which nothing else is said: a usual NVMe drive reads 2 to 7 GB/s."""
MEMORY_BYTES_PER_S = 10e9
"""Of a copy within memory, where it was not measured."""

_CURVE = re.compile(r"^([\d.e+-]+) ms \+ ([\d.e+-]+) ms a token \+ ([\d.e+-]+) µs a token squared")


@dataclass(frozen=True)
class Speed:
    """Seconds of a request's parts.

    Args:
        base_s: what every request costs besides its tokens.
        token_s: a prompt token.
        token2_s: attention: ``token2_s * n**2`` for the first ``n`` tokens of a prompt.
        step_s: a decode step of one sequence.
        beside_s: what each further sequence adds to a step.
        ssd: bytes a second that are read from SSD and restored.
        memory: bytes a second of copies within memory.
        source: where these come from, in words.
    """

    token_s: float
    step_s: float
    base_s: float = 0.0
    token2_s: float = 0.0
    beside_s: float = 0.0
    ssd: float = SSD_BYTES_PER_S
    memory: float = MEMORY_BYTES_PER_S
    source: str = "as given"

    def __post_init__(self) -> None:
        for name in ("token_s", "step_s", "ssd", "memory"):
            if not getattr(self, name) > 0:
                raise AdviceError(f"{name}={getattr(self, name)} must be more than 0")

    def prefill(self, start: int, tokens: int) -> float:
        """Return the seconds for ``tokens`` of a prompt behind its first ``start``."""
        end = start + tokens
        return self.token_s * tokens + self.token2_s * (end * end - start * start)

    def fitting(self, start: int, seconds: float) -> int:
        """Return how many prompt tokens behind the first ``start`` are computed in so many seconds."""
        slope = self.token_s + 2 * self.token2_s * start
        if not self.token2_s:
            return int(seconds / slope)
        return int(((slope**2 + 4 * self.token2_s * seconds) ** 0.5 - slope) / (2 * self.token2_s))

    def step(self, sequences: int) -> float:
        """Return the seconds of a decode step of so many sequences."""
        return self.step_s + self.beside_s * max(0, sequences - 1)

    @property
    def row(self) -> dict[str, Any]:
        """The numbers and their source, for provenance."""
        return {
            "prefill_tokens_per_s": 1 / self.token_s,
            "decode_tokens_per_s": 1 / self.step_s,
            "ssd_bytes_per_s": self.ssd,
            "source": self.source,
        }


def given_speed(prefill: float, decode: float, *, ssd: float | None = None, attention: float = 0.0) -> Speed:
    """Return the speed of a machine that computes so many tokens of a short prompt, and of an answer, a second.

    ``attention`` is the cost of attending to one earlier token, as a share of the rest of a prompt token's.
    """
    if prefill <= 0 or decode <= 0:
        raise AdviceError("speeds must be more than 0 tokens a second: write --prefill 500 --decode 20, for example")
    token = 1 / prefill
    return Speed(token, 1 / decode, token2_s=token * attention / 2, ssd=ssd or SSD_BYTES_PER_S)


def card_speed(path: Path, decode: float | None = None, *, ssd: float | None = None) -> Speed:
    """Return the speed that an audit card of ``kvlab audit --json`` saw: its curve of cold prompts.

    ``decode`` is in tokens a second; None takes the card's own. Raises AdviceError for another file, or a card without.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows: Sequence[Mapping[str, Any]] = document["rows"]
        details = [row["detail"] for row in rows if (row["probe"], row["metric"]) == ("curve", "cold_ttft_ms")]
    except OSError as error:
        raise AdviceError(f"{path} cannot be read ({error.strerror}); write a file of kvlab audit --json") from None
    except (ValueError, KeyError, TypeError):
        raise AdviceError(f"{path} is no audit card; write a file made by kvlab audit --json") from None
    found = _CURVE.match(details[0]) if details else None
    if found is None:
        raise AdviceError(f"{path} has no curve of cold prompts in tokens: write --prefill and --decode instead")
    base, linear, quadratic = (float(part) for part in found.groups())
    decode = decode or _decode_of(rows)
    if decode is None:
        raise AdviceError(f"{path} says nothing about decoding: write --decode 20 for 20 tokens a second")
    name = document.get("provenance", {}).get("served_model") or path.name
    token_s = linear / 1e3 or 1e-9
    return Speed(
        token_s, 1 / decode, base / 1e3, quadratic / 1e6, ssd=ssd or SSD_BYTES_PER_S, source=f"audit of {name}"
    )


def _decode_of(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the tokens a second of one client of a card, its first wait included; None where it has no such row."""
    for row in rows:
        if row["probe"] == "clients" and row["metric"] == "tokens_per_s_1" and row["value"]:
            return float(row["value"])
    return None


def fitted(samples: Sequence[tuple[int, float]]) -> tuple[float, float, float]:
    """Return base, seconds a token and seconds a token squared of cold prompts, none below zero.

    ``samples`` are prompt tokens and seconds, of three lengths or more.
    """
    lengths = np.array([n for n, _ in samples], float)
    times = np.array([t for _, t in samples])
    best, least = (0.0, float(np.median(times / lengths)), 0.0), float("inf")
    for terms in ((0, 1, 2), (0, 1), (1, 2), (1,)):
        powers = np.stack([lengths**term for term in terms], axis=1) / times[:, None]
        found, *_ = np.linalg.lstsq(powers, np.ones_like(times), rcond=None)
        error = float(((powers @ found - 1) ** 2).sum())
        if (found >= 0).all() and error < least - 1e-12:
            full = np.zeros(3)
            full[list(terms)] = found
            best, least = (float(full[0]), float(full[1]), float(full[2])), error
    return best
