"""``Speed``: what a machine and a model need for prompts, tokens and copies, typed or of ``kvlab bench cost``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvlab.errors import PolicyError, SpeedError
from kvlab.policies import parse_bytes

SSD_BYTES_PER_S = 2e9
"""Of an SSD of which nothing else is said: a usual NVMe drive reads 2 to 7 GB/s."""
WRITE_BYTES_PER_S = 1e9
"""Of writing to it: drives with little memory of their own fall to about this in long writes."""
MEMORY_BYTES_PER_S = 10e9
"""Of a copy within memory, where it was not measured."""

PREFILL_SHARE = 0.6
"""Where it was not measured: kvlab's decoder gives prompts up to 1.6 of 2.6 parts of a round beside answers."""

EXAMPLE = "prefill=450,attention=0.0002,ram=10GB,ssd=3GB,write=1GB"
SIZES = {"ram": "memory", "ssd": "ssd", "write": "write"}
"""Typed rates in bytes a second, and the fields that they fill."""
NUMBERS = (
    "prefill",
    "attention",
    "latency",
    "restore_latency",
    "decode",
    "kv_bytes",
    "beside",
    "prefill_share",
    "busy_latency",
)

ROWS = {
    ("prefill_tokens_per_s", ""): "prefill",
    ("attention_share", ""): "attention",
    ("decode_tokens_per_s", ""): "decode",
    ("latency_s", ""): "latency",
    ("restore_latency_s", ""): "restore_latency",
    ("restore_bytes_per_s", "ram"): "ram",
    ("restore_bytes_per_s", "ssd"): "ssd",
    ("written_bytes_per_s", ""): "write",
    ("kv_bytes_per_token", ""): "kv_bytes",
    ("decode_beside_s", ""): "beside",
    ("prefill_share", ""): "prefill_share",
    ("busy_latency_s", ""): "busy_latency",
}
"""Metric and tier of the rows of ``kvlab bench cost``, and what they say in the words of a typed speed."""


@dataclass(frozen=True)
class Speed:
    """Seconds of a request's parts.

    Args:
        token_s: a prompt token.
        step_s: a decode step of one sequence; 0 where nothing is said of answers.
        base_s: what every request costs besides its tokens.
        token2_s: attention: ``token2_s * n**2`` for the first ``n`` tokens of a prompt.
        beside_s: what each further sequence adds to a step.
        prefill_share: the share of its undisturbed rate at which a prompt is computed while answers are decoded.
        busy_s: what every request costs besides its tokens while answers are decoded, where that is more than base_s.
        ssd: bytes a second that are read from SSD and restored.
        memory: bytes a second of copies within memory.
        write: bytes a second that are written to SSD.
        restore_s: what a restore costs besides its bytes.
        token_bytes: bytes of KV a token; 0 where nothing is said of them.
        source: where these come from, in words.
    """

    token_s: float
    step_s: float = 0.0
    base_s: float = 0.0
    token2_s: float = 0.0
    beside_s: float = 0.0
    ssd: float = SSD_BYTES_PER_S
    memory: float = MEMORY_BYTES_PER_S
    write: float = WRITE_BYTES_PER_S
    restore_s: float = 0.0
    token_bytes: int = 0
    prefill_share: float = PREFILL_SHARE
    busy_s: float = 0.0
    source: str = "as given"

    def __post_init__(self) -> None:
        for name in ("token_s", "ssd", "memory", "write"):
            if not getattr(self, name) > 0:
                raise SpeedError(f"{name}={getattr(self, name)} must be more than 0")
        if not 0 < self.prefill_share <= 1:
            raise SpeedError(f"prefill_share={self.prefill_share} must be more than 0, and at most 1")
        for name in ("step_s", "base_s", "token2_s", "beside_s", "restore_s", "token_bytes", "busy_s"):
            if not getattr(self, name) >= 0:
                raise SpeedError(f"{name}={getattr(self, name)} must be 0 or more")

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

    def restore(self, ram: int, ssd: int) -> float:
        """Return the seconds of restoring so many bytes from RAM and from SSD; nothing takes no time."""
        return self.restore_s + ram / self.memory + ssd / self.ssd if ram or ssd else 0.0

    @property
    def row(self) -> dict[str, Any]:
        """The numbers and their source, for provenance."""
        decode = {"decode_tokens_per_s": 1 / self.step_s} if self.step_s else {}
        return {
            "prefill_tokens_per_s": 1 / self.token_s,
            **decode,
            "ssd_bytes_per_s": self.ssd,
            "source": self.source,
        }


def typed_speed(values: Mapping[str, Any]) -> Speed:
    """Return the speed that numbers in the words of a user say: tokens a second, bytes a second such as ``2GB``.

    ``attention`` is the cost of attending to one earlier token, as a share of the rest of a prompt token's; ``latency``
    and ``restore_latency`` are seconds that every request, and every restore, costs besides. Raises SpeedError.
    """
    known = ("name", *NUMBERS, *SIZES)
    for word in values:
        if word not in known:
            raise SpeedError(f"a speed has no {word!r}; write some of {', '.join(known)}, such as {EXAMPLE}")
    number = {word: _number(word, values[word]) for word in NUMBERS if word in values}
    if number.get("prefill", 0.0) <= 0:
        raise SpeedError(f"a speed needs the prompt tokens a second: write prefill=450, as in {EXAMPLE}")
    token, decode = 1 / number["prefill"], number.get("decode", 0.0)
    if decode < 0:
        raise SpeedError(f"decode={decode:g} must be more than 0 tokens a second")
    return Speed(
        token,
        1 / decode if decode else 0.0,
        number.get("latency", 0.0),
        token * number.get("attention", 0.0) / 2,
        number.get("beside", 0.0),
        restore_s=number.get("restore_latency", 0.0),
        token_bytes=round(number.get("kv_bytes", 0.0)),
        prefill_share=number.get("prefill_share", PREFILL_SHARE),
        busy_s=number.get("busy_latency", 0.0),
        source=str(values.get("name", "as given")),
        **{field: _rate(word, values[word]) for word, field in SIZES.items() if word in values},
    )


def read_speed(given: str | Path) -> Speed:
    """Read a speed: words such as ``prefill=450,ssd=3GB``, or a JSON file.

    The file is what ``kvlab bench cost --json`` printed, or an object of the same words with a ``name``. Raises
    SpeedError.
    """
    path = Path(given).expanduser()
    if "=" in str(given) and not path.is_file():
        pairs = [part.partition("=") for part in str(given).split(",")]
        return typed_speed({word.strip(): value.strip() for word, _, value in pairs})
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpeedError(
            f"{given}: no speed, and no file that can be read ({error.strerror}); write a file of "
            f"kvlab bench cost --json, or {EXAMPLE}"
        ) from None
    except ValueError:
        raise SpeedError(f"{path} is no JSON; write a file of kvlab bench cost --json, or {EXAMPLE}") from None
    if not isinstance(found, dict):
        raise SpeedError(f'{path}: expected an object such as {{"name": "M4 Pro, Qwen3-8B-4bit", "prefill": 450}}')
    return typed_speed(_measured(path, found) if "rows" in found else found)


def _measured(path: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the words that the rows of ``kvlab bench cost`` say."""
    try:
        rows = [(ROWS.get((row["metric"], row.get("tier", ""))), row) for row in document["rows"]]
        words: dict[str, Any] = {word: row["value"] for word, row in rows if word is not None}
        models = {row.get("model") for word, row in rows if word is not None}
    except (KeyError, TypeError, AttributeError):
        words, models = {}, set()
    if "prefill" not in words:
        raise SpeedError(f"{path} has no prefill_tokens_per_s; write a file of kvlab bench cost --json")
    device = document.get("provenance", {}).get("device")
    return words | {"name": ", ".join(str(part) for part in (device, *models) if part) or path.name}


def _number(word: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise SpeedError(f"{word}={value} is no number; write one, as in {EXAMPLE}") from None


def _rate(word: str, value: Any) -> float:
    try:
        return float(parse_bytes(value) if isinstance(value, str) else value)
    except (PolicyError, TypeError, ValueError):
        raise SpeedError(f"{word}={value} is no size; write bytes a second, such as {word}=2GB") from None


def fitted(
    samples: Sequence[tuple[int, float]], terms: Sequence[Sequence[int]] = ((0, 1, 2), (0, 1), (1, 2), (1,))
) -> tuple[float, float, float]:
    """Return base, seconds a token and seconds a token squared of cold prompts, none below zero.

    ``samples`` are prompt tokens and seconds, of three lengths or more; ``terms`` the sets of powers that are tried.
    """
    lengths = np.array([n for n, _ in samples], float)
    times = np.array([t for _, t in samples])
    best, least = (0.0, float(np.median(times / lengths)), 0.0), float("inf")
    for powers_of in terms:
        powers = np.stack([lengths**power for power in powers_of], axis=1) / times[:, None]
        found, *_ = np.linalg.lstsq(powers, np.ones_like(times), rcond=None)
        error = float(((powers @ found - 1) ** 2).sum())
        if (found >= 0).all() and error < least - 1e-12:
            full = np.zeros(3)
            full[list(powers_of)] = found
            best, least = (float(full[0]), float(full[1]), float(full[2])), error
    return best
