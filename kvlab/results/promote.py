"""From the lab to an endpoint: the command line that serves a policy or a system as it was measured."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from kvlab.systems import SYSTEMS


def serve_line(policy: str, provenance: Mapping[str, Any] | None = None) -> str:
    """Return `kvlab serve --policy '…'`, with `--import` of a user's own code, and model and adapter where needed.

    For a system, which the provenance lists, it is `--system`.
    """
    quoted = f"'{policy}'" if "'" not in policy else shlex.quote(policy)
    facts = provenance or {}
    imported = [("--import", file["file"]) for file in facts.get("imports", ())]
    options = (*imported, ("--model", facts.get("model_argument")), ("--adapter", facts.get("adapter_argument")))
    option = "--system" if policy in facts.get(SYSTEMS, ()) else "--policy"
    return f"kvlab serve {option} {quoted}" + "".join(
        f" {name} {shlex.quote(value)}" for name, value in options if value
    )
