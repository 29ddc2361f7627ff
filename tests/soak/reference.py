"""Whether recorded answers are those of no cache: each token must be the best one that the model alone gives.

Where a grammar has chosen another one, the best token before it must be the model's.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from kvlab import backends
from kvlab.models import LoadedModel

TIE = 1e-3
"""Logits nearer than this are equal: two ways to the same float32 logits differ by up to half of it."""
STEP = 512
PASSES_KEPT = 12
"""A conversation's requests end one soon after the other, so the latest passes are kept: what begins as one of them
did goes on from the plain KV cache of that pass."""


@dataclass(frozen=True)
class Answer:
    """One recorded request that ended."""

    prompt: list[int]
    tenant: str
    tokens: list[int]
    reason: str
    cached: int
    request: str
    chosen: dict[str, list[int]]

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.tokens


@dataclass(frozen=True)
class Pass:
    """The model over ``ids [n]``: the logits behind each, ``[n, vocabulary]``, and mlx-lm's KV cache at its end."""

    ids: np.ndarray
    logits: np.ndarray
    cache: list[Any]

    def shared_with(self, ids: np.ndarray) -> int:
        """How many tokens the two begin with in common."""
        n = min(len(ids), len(self.ids))
        different = np.flatnonzero(self.ids[:n] != ids[:n])
        return int(different[0]) if len(different) else n


@dataclass
class Verdict:
    """What was compared, and the ``wrong`` answers by request.

    ``by_grammar``: tokens that a grammar chose; ``computed``: tokens that the model alone computed for it.
    """

    answers: int = 0
    tokens: int = 0
    ties: int = 0
    by_grammar: int = 0
    computed: int = 0
    wrong: dict[str, str] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    tokens_of: dict[str, list[int]] = field(default_factory=dict)


class Recording:
    """Reads a recording as it grows, and checks that nothing cached is another tenant's.

    Args:
        path: what a recording server writes.
        eos: the model's end tokens, which an answer's KV holds and its tokens do not.
    """

    def __init__(self, path: Path, eos: set[int]) -> None:
        self._path, self._eos, self._offset = path, eos, 0
        self._running: dict[str, tuple[list[int], str]] = {}
        self._submitted: dict[str, Counter[int]] = {}
        self.leaks: list[str] = []

    def new(self) -> list[Answer]:
        """The requests that ended since the last call."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        answers = []
        for line in whole.splitlines():
            try:
                read: dict[str, Any] = json.loads(line)
            except ValueError:  # cut by a kill
                continue
            if "prompt" in read:
                self._running[read["id"]] = read["prompt"], read["tenant"]
                self._submitted.setdefault(read["tenant"], Counter()).update(prefix_hashes(read["prompt"]))
            elif read["id"] in self._running:
                made = Answer(*self._running.pop(read.pop("id")), **read)
                self._check_tenant(made)
                answers.append(made)
        return answers

    def _check_tenant(self, answer: Answer) -> None:
        """What is cached, another request of the same tenant must have begun with."""
        if answer.cached:
            prefix = prefix_hashes(answer.prompt[: answer.cached])[-1]
            if self._submitted[answer.tenant][prefix] < 2:
                self.leaks.append(f"{answer.request}: {answer.cached} tokens were cached for {answer.tenant!r}")
        hashes = prefix_hashes(answer.ids)
        ends = [hash((hashes[-1], token)) for token in self._eos]
        self._submitted[answer.tenant].update([*hashes[len(answer.prompt) :], *ends])


class Reference:
    """Compares answers with the model alone, without any cache between requests.

    Args:
        loaded: the model.
        skipped: prompts whose answers are not the model's best tokens: a grammar or chance has chosen them.
    """

    def __init__(self, loaded: LoadedModel, skipped: list[list[int]]) -> None:
        self._loaded, self._skipped = loaded, skipped
        self._passes: list[Pass] = []
        self._threads = backends.current().threads(loaded.model)
        self.verdict = Verdict()

    def check(self, answers: list[Answer], *, seconds: float = float("inf")) -> list[Answer]:
        """Compare ``answers`` until ``seconds`` have passed; return those that are left."""
        until = time.monotonic() + seconds
        for at, answer in enumerate(answers):
            if time.monotonic() > until:
                return answers[at:]
            if answer.prompt not in self._skipped:
                self._compare(answer, self._logits(np.array(answer.ids)))
        return []

    def _logits(self, ids: np.ndarray) -> np.ndarray:
        """The logits behind each of ``ids``, ``[n, vocabulary]``."""
        self._threads.choose(1)  # several threads wait for one another on a machine that servers keep busy
        base = max(self._passes, key=lambda made: made.shared_with(ids), default=None)
        cache, logits, start = make_prompt_cache(self._loaded.model), [], 0
        if base is not None and (start := base.shared_with(ids)):
            logits.append(base.logits[:start])
            for empty, full in zip(cache, base.cache, strict=True):
                empty.update_and_fetch(full.keys[:, :, :start], full.values[:, :, :start])
        for at in range(start, len(ids), STEP):
            part = mx.array(ids[at : at + STEP])[None]
            logits.append(np.array(self._loaded.model(part, cache=cache)[0].astype(mx.float32)))
            self.verdict.computed += part.size
        made = Pass(ids, np.concatenate(logits), cache)
        self._passes = [made, *(kept for kept in self._passes if kept is not base or start < len(base.ids))]
        del self._passes[PASSES_KEPT:]
        return made.logits

    def _compare(self, answer: Answer, logits: np.ndarray) -> None:
        verdict = self.verdict
        verdict.answers += 1
        verdict.tokens += len(answer.tokens)
        verdict.reasons[answer.reason] += 1
        verdict.tokens_of[answer.request] = answer.tokens
        behind = logits[len(answer.prompt) - 1 :]
        for at, (token, row) in enumerate(zip(answer.tokens, behind, strict=False)):
            before, after = answer.chosen.get(str(at), (token, token))
            if before != after == token:
                verdict.by_grammar += 1
                token = before
            below = float(row.max() - row[token])
            verdict.ties += 0 < below < TIE
            if below >= TIE:
                words = f"token {at} is {token}, not {int(row.argmax())}: {below:.4f} below"
                about = f"{answer.reason}, {answer.cached} of {len(answer.prompt)} cached"
                verdict.wrong[answer.request] = f"{words}; {about}, {self._loaded.decode(answer.tokens)!r}"
                return
        if answer.reason == "stop" and int(behind[len(answer.tokens)].argmax()) not in self._loaded.eos:
            verdict.wrong[answer.request] = "it ended where the model goes on"


def prefix_hashes(ids: list[int]) -> list[int]:
    """A hash of each prefix of ``ids`` that is not empty."""
    running, made = 0, []
    for token in ids:
        running = hash((running, token))
        made.append(running)
    return made
