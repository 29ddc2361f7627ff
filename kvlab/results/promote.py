"""From the lab to an endpoint: the command line that serves a policy as it was measured."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any


def serve_line(policy: str, provenance: Mapping[str, Any] | None = None) -> str:
    """Return `kvlab serve --policy '…'`, with `--model` and `--adapter` where the rows are not of the bundled model."""
    quoted = f"'{policy}'" if "'" not in policy else shlex.quote(policy)
    facts = provenance or {}
    options = (("--model", facts.get("model_argument")), ("--adapter", facts.get("adapter_argument")))
    return f"kvlab serve --policy {quoted}" + "".join(
        f" {name} {shlex.quote(value)}" for name, value in options if value
    )
