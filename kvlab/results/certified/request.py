"""``CertifyRequest``: what ``kvlab compare --certify`` asks for, read from its text."""

from __future__ import annotations

import re
from dataclasses import dataclass

import polars as pl

from kvlab.errors import RunError
from kvlab.results.certified.certificate import CONFIDENCE, Certificate, certify

FORM = re.compile(r"(?P<metric>\w+)(?:/(?P<kind>\w+))?:(?P<bound>[0-9.]+%?)(?:@(?P<confidence>[0-9.]+%?|expected))?")
EXAMPLES = "equal_call:1%@95%, tool_flip/name:0.02 or accuracy:5%@expected"


@dataclass(frozen=True)
class CertifyRequest:
    """A metric, the kind of its rows, a bound of its loss, and the confidence (None: expected)."""

    metric: str
    at_most: float
    confidence: float | None = CONFIDENCE
    kind: str | None = None

    @classmethod
    def read(cls, text: str) -> CertifyRequest:
        """Read ``METRIC[/KIND]:BOUND[@CONFIDENCE]``. Raises RunError that shows examples."""
        match = FORM.fullmatch(text.strip())
        if match is None:
            raise RunError(f"--certify {text!r} cannot be read; write METRIC:BOUND@CONFIDENCE, such as {EXAMPLES}")
        sure = match["confidence"]
        confidence = CONFIDENCE if sure is None else None if sure == "expected" else _share(sure, text)
        return cls(match["metric"], _share(match["bound"], text), confidence, match["kind"])

    def of(self, rows: pl.DataFrame) -> Certificate:
        """Return the certificate of these rows. Raises RunError as ``certify`` does."""
        return certify(rows, self.metric, at_most=self.at_most, confidence=self.confidence, kind=self.kind)


def _share(number: str, text: str) -> float:
    """Read ``0.01`` or ``1%``, above 0 and below 1."""
    try:
        value = float(number.rstrip("%")) / (100 if number.endswith("%") else 1)
    except ValueError as error:
        raise RunError(f"--certify {text!r}: {number} is no number; write for example {EXAMPLES}") from error
    if not 0.0 < value < 1.0:
        raise RunError(f"--certify {text!r}: {number} is not between 0 and 1; write for example {EXAMPLES}")
    return value
