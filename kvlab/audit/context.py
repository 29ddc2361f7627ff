"""The context of a served model: as the server lists it, or as its error for a long prompt names it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from kvlab.audit.client import AuditClient

LISTED_AS = (
    "max_model_len",
    "context_window",
    "loaded_context_length",
    "context_length",
    "max_context_length",
    "n_ctx",
)
"""Names that servers give the context in ``/v1/models``, at the model or in its ``meta``."""

MIN_CONTEXT_TOKENS = 128
"""Smaller numbers in an error are no context."""


@dataclass(frozen=True)
class Context:
    """Tokens that prompt and answer may have together, and where that number is from."""

    tokens: int
    source: str


def listed_context(client: AuditClient) -> Context | None:
    """Return the context that the server states; None where it states none.

    Asks ``/v1/models``, and then ``/props``, where llama.cpp's server tells what each of its slots has.
    """
    for model in _models(client):
        for place in (model, model.get("meta")):
            stated = place if isinstance(place, Mapping) else {}
            for name in LISTED_AS:
                value = stated.get(name)
                if isinstance(value, int) and value >= MIN_CONTEXT_TOKENS:
                    return Context(value, f"{name} in /v1/models")
    settings = _json(client, f"{client.url.removesuffix('/v1')}/props").get("default_generation_settings")
    value = settings.get("n_ctx") if isinstance(settings, Mapping) else None
    return Context(value, "n_ctx in /props") if isinstance(value, int) and value >= MIN_CONTEXT_TOKENS else None


def context_in_error(error: str, sent_tokens: int) -> Context | None:
    """Return the context that the error for a prompt of about ``sent_tokens`` names; None where it names none.

    It is the largest number in it that is well below the prompt's size, which is named, too.
    """
    numbers = [int(found.replace(",", "")) for found in re.findall(r"\d[\d,]*", error)]
    fitting = [number for number in numbers if MIN_CONTEXT_TOKENS <= number < 0.9 * sent_tokens]
    return Context(max(fitting), "named in the error") if fitting else None


def _models(client: AuditClient) -> list[Mapping[str, Any]]:
    listed = _json(client, f"{client.url}/models").get("data")
    models = [model for model in listed if isinstance(model, Mapping)] if isinstance(listed, list) else []
    own = [model for model in models if model.get("id") == client.model]
    return own or models[:1]


def _json(client: AuditClient, url: str) -> Mapping[str, Any]:
    try:
        answer = client.http.get(url, timeout=10).json()
    except (httpx.HTTPError, ValueError):
        return {}
    return answer if isinstance(answer, Mapping) else {}
