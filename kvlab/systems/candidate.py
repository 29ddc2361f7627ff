"""What can be compared, measured and served: a policy under kvlab's own settings, or a whole system."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kvlab.decoder.config import DecoderConfig
from kvlab.models import LoadedModel
from kvlab.policies import Module, Policy
from kvlab.systems.base import System
from kvlab.systems.registry import parse_system

SYSTEMS = "systems"
"""The key in the provenance: for each system, all of its settings."""

Candidate = Policy | System
"""Its text is its name in rows and legends."""


def parse_candidates(
    policies: Iterable[str | Policy | Module | System], systems: Iterable[str] = ()
) -> list[Candidate]:
    """Read policies, and systems by their names; each once, in this order. Raises KvlabError."""
    read = [one if isinstance(one, System) else Policy.parse(one) for one in policies]
    return list(dict.fromkeys([*read, *(parse_system(name) for name in systems)]))


def policy_of(candidate: Candidate, model: LoadedModel | None = None) -> Policy:
    """Return its policy; with a model, that for this model, of whose layers some systems take their block size."""
    if not isinstance(candidate, System):
        return candidate
    return (candidate if model is None else candidate.for_model(model)).policy


def settings_of(candidate: Candidate, model: LoadedModel | None = None) -> dict[str, Any]:
    """Return what the provenance of its rows says: its settings under its name; nothing for a policy."""
    if not isinstance(candidate, System):
        return {}
    settled = candidate if model is None else candidate.for_model(model)
    return {SYSTEMS: {str(candidate): settled.settings}}


def config_of(candidate: Candidate) -> DecoderConfig | None:
    """Return the decoder settings that it brings; None where they are the caller's."""
    return candidate.config if isinstance(candidate, System) else None
