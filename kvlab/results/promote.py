"""From the lab to an endpoint: the command line that serves a policy as it was measured."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any


def serve_line(policy: str, provenance: Mapping[str, Any] | None = None) -> str:
    """Return `kvlab serve --policy '…'`, with `--import` of a user's own code, and model and adapter where needed."""
    quoted = f"'{policy}'" if "'" not in policy else shlex.quote(policy)
    facts = provenance or {}
    imported = [("--import", file["file"]) for file in facts.get("imports", ())]
    options = (*imported, ("--model", facts.get("model_argument")), ("--adapter", facts.get("adapter_argument")))
    return f"kvlab serve --policy {quoted}" + "".join(
        f" {name} {shlex.quote(value)}" for name, value in options if value
    )
