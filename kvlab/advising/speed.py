"""The speeds that a user types for advice, and those of an audit card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvlab.advising.errors import AdviceError
from kvlab.speed import SSD_BYTES_PER_S, Speed

_CURVE = re.compile(r"^([\d.e+-]+) ms \+ ([\d.e+-]+) ms a token \+ ([\d.e+-]+) µs a token squared")


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
