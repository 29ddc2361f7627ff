"""The tokens of the latest answers, so that their KV can be saved by id."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kvlab.server.limits import RECENT_ANSWERS_BYTES

ENTRY_BYTES = 600
"""Names, keys and objects of one answer beside its tokens."""


class _Answer(NamedTuple):
    model: str
    tokens: np.ndarray
    tenant: str

    @property
    def size(self) -> int:
        return self.tokens.nbytes + ENTRY_BYTES


class RecentAnswers:
    """Prompt and answer of the latest requests, the oldest leaving first when ``limit`` bytes are used."""

    def __init__(self, limit: int = RECENT_ANSWERS_BYTES) -> None:
        self.limit = limit
        self.nbytes = 0
        self._answers: OrderedDict[str, _Answer] = OrderedDict()

    def add(self, request_id: str, model: str, tokens: Sequence[int], tenant: str) -> None:
        """Remember an answer; a later one of the same request replaces it."""
        self._drop(request_id)
        answer = _Answer(model, np.array(tokens, np.int32), tenant)
        if answer.size > self.limit:
            return
        self._answers[request_id] = answer
        self.nbytes += answer.size
        while self.nbytes > self.limit:
            self._drop(next(iter(self._answers)))

    def find(self, request_id: str, tenant: str) -> tuple[str, list[int]] | None:
        """Return model and tokens of a tenant's answer, for ``0`` its latest one; None for none."""
        if request_id == "0":
            mine = (answer for answer in reversed(self._answers.values()) if answer.tenant == tenant)
            found = next(mine, None)
        else:
            found = self._answers.get(request_id)
        if found is None or found.tenant != tenant:
            return None
        return found.model, found.tokens.tolist()

    def _drop(self, request_id: str) -> None:
        answer = self._answers.pop(request_id, None)
        if answer is not None:
            self.nbytes -= answer.size
