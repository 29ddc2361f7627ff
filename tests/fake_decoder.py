"""A decoder without a model: it answers at once, and reuses prefixes by its policy."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kvlab.decoder import Completion
from kvlab.decoder.config import DecoderConfig
from kvlab.policies import NoReuse, Policy, Rotating
from kvlab.recording import events
from kvlab.recording.recorder import Recorder

BYTES_PER_TOKEN = 100


class FakeStore:
    """Remembers whole prompts; counts bytes as if each token were stored once."""

    def __init__(self) -> None:
        self.prompts: list[tuple[int, ...]] = []
        self.flushed = False

    def match(self, prompt: tuple[int, ...]) -> int:
        return max((_common(prompt, known) for known in self.prompts), default=0)

    def tiers_bytes(self) -> dict[str, int]:
        held = BYTES_PER_TOKEN * max(map(len, self.prompts), default=0)
        return {"ram": held, "ssd": held if self.flushed else 0}

    def stats(self) -> dict[str, Any]:
        return {"bytes_written": self.tiers_bytes()["ssd"]}

    def flush(self) -> None:
        self.flushed = True


class FakeDecoder:
    """TTFT is 1 ms for each token that is not cached; three tokens come out, which depend on the prompt only.

    A prompt beyond the context is refused or cut as its settings say.
    """

    disk: dict[str, FakeStore] = {}
    configs: list[DecoderConfig | None] = []
    """Of all decoders that were made."""

    def __init__(
        self,
        loaded: Any,
        policy: Policy,
        *,
        store: None = None,
        recorder: Recorder | None = None,
        max_concurrency: int = 32,
        config: DecoderConfig | None = None,
    ) -> None:
        self.policy, self.recorder = policy, recorder
        self.configs.append(config)
        self.limit = (config or DecoderConfig()).limit()
        folder = getattr(policy.tiers, "dir", None)
        self.store: FakeStore | None = None
        if not isinstance(policy.reuse, NoReuse):
            self.store = self.disk.setdefault(folder, FakeStore()) if folder else FakeStore()
        self._numbers = itertools.count()

    def tiers_bytes(self) -> dict[str, int]:
        return self.store.tiers_bytes() if self.store is not None else {}

    def __enter__(self) -> FakeDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def generate(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        tags: Mapping[str, Any] | None = None,
        compress_after: int | None = None,
    ) -> Completion:
        start, stop = self.limit.cut(len(prompt))
        known, request, t = (*prompt[:start], *prompt[stop:]), next(self._numbers), time.perf_counter()
        cached = min(self.store.match(known), len(known) - 1) if self.store else 0
        tokens = tuple(int(sum(known) % 7 + 3 + i) for i in range(3))
        emit = self.recorder.emit if self.recorder else lambda _: None
        emit(events.Submitted(request, t, len(known), max_tokens, dict(tags or {})))
        emit(events.Matched(request, t, cached, {"ram": cached}, "never_seen", 0.001))
        rows = len(known)
        if isinstance(self.policy.retention, Rotating):
            rows = min(rows, self.policy.retention.window)
            tokens = tokens[:2]
            lost = np.arange(4, max(5, len(known) - rows), dtype=np.int32)
            emit(events.Evicted(request, t, 0, 0, np.stack([lost, lost]), rows))
        emit(events.FirstToken(request, t, tokens[0]))
        for step, token in enumerate(tokens[1:], start=1):
            emit(events.Token(request, t + step / 100, token, step, (rows + step) * BYTES_PER_TOKEN))
        emit(events.Finished(request, t + 0.04, "length", len(tokens), (rows + 2) * BYTES_PER_TOKEN))
        if self.store:
            self.store.prompts.append(known)
        return Completion(
            request=request,
            tokens=tokens,
            finish_reason="length",
            prompt_tokens=len(known),
            cached_tokens=cached,
            cached_by_tier={"ram": cached},
            miss="never_seen",
            queue_ms=0.0,
            lookup_ms=0.0,
            restore_ms=0.0,
            prefill_ms=float(len(known) - cached),
            ttft_ms=float(len(known) - cached),
            tpot_ms=10.0,
            itl_ms=(10.0,) * (len(tokens) - 1),
            kv_bytes_live=(rows + 2) * BYTES_PER_TOKEN,
            tags=dict(tags or {}),
            cut_tokens=stop - start,
        )


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
