"""mlx-lm's server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from kvlab.decoder.config import DecoderConfig
from kvlab.policies import Policy, Raw, WholePrompts
from kvlab.systems.base import System
from kvlab.systems.server_values import SERVER_LOOP

V32 = "mlx-lm 0.32.2 (16 Oct 2026)"
SERVER = f"{V32}: server.py"
CACHE = f"{V32}: models/cache.py: LRUPromptCache"
GENERATE = f"{V32}: generate.py: BatchGenerator"

SOURCES: Mapping[str, str] = {
    "retention": f"{SERVER}: main has no option that drops tokens",
    "codec": f"{SERVER}: --kv-bits is not given",
    "reuse": f"{CACHE}: a trie of whole sequences; a request starts from a copy",
    "reuse.count": f"{SERVER}: --prompt-cache-size 10",
    "reuse.bytes": f"{SERVER}: --prompt-cache-bytes is not given",
    "reuse.order": f"{CACHE}: a read does not renew an entry (seen)",
    "tiers": f"{SERVER}: nothing on disk",
    "max_concurrency": f"{SERVER}: --decode-concurrency 32",
    "prefill_step": f"{SERVER}: --prefill-step-size 2048",
    "prefill_prompts": f"{SERVER}: --prompt-concurrency 8",
    "interleave": f"{GENERATE}._next: one decode step, then a chunk of every prompt",
    "context": f"{SERVER}: no limit: KV grows",
    "long_prompt": f"{SERVER}: no limit: KV grows",
    "overflow": f"{SERVER}: no limit: KV grows",
    "live_memory": f"{SERVER}: no limit",
    "retain": "kvlab: the trie keeps its sequences itself",
    "admission": f"{SERVER}: one queue of requests, in the order of their arrival",
    "queue": f"{SERVER}: requests wait without a limit",
}


@dataclass(frozen=True)
class MlxLm(System):
    """As released: the last 10 sequences in a trie, and continuous batching.

    Args:
        prompt_cache_size: sequences that are kept (``--prompt-cache-size``).
    """

    name: ClassVar[str] = "mlx-lm"
    release: ClassVar[str] = V32
    leaves_out: ClassVar[tuple[str, ...]] = (
        "Requests with a seed, a draft model or images, which wait until the batch is empty and run alone.",
        "An exact repeat with its answer ends the server's generation thread; kvlab computes the last token anew.",
        "--kv-bits, which begins at token 5,000 and ends batching.",
    )
    prompt_cache_size: int = 10

    @property
    def policy(self) -> Policy:
        return Policy(WholePrompts(count=self.prompt_cache_size), Raw())

    @property
    def config(self) -> DecoderConfig:
        return replace(SERVER_LOOP, max_concurrency=32)

    @property
    def sources(self) -> Mapping[str, str]:
        return SOURCES


@dataclass(frozen=True)
class MlxLmArticle(System):
    """As it was until 0.28.3: one conversation for the whole server, and one request at a time."""

    name: ClassVar[str] = "mlx-lm"
    variant: ClassVar[str] = "article"
    release: ClassVar[str] = "mlx-lm 0.28.3 and before (until 2 Dec 2025)"
    leaves_out: ClassVar[tuple[str, ...]] = (
        "The article's rotating cache: no release of the server had an option for one.",
        "A request that diverges cuts the one conversation there; a trie keeps it until the next one ends.",
    )

    @property
    def policy(self) -> Policy:
        return Policy(WholePrompts(count=1), Raw())

    @property
    def config(self) -> DecoderConfig:
        return replace(SERVER_LOOP, max_concurrency=1)

    @property
    def sources(self) -> Mapping[str, str]:
        before = "mlx-lm before 34cbb8b (2 Dec 2025): server.py: one PromptCache, cut or reset"
        alone = "mlx-lm before 6b42901 (3 Dec 2025): server.py: one request at a time"
        return {
            **SOURCES,
            **dict.fromkeys(("reuse", "reuse.count", "reuse.order"), before),
            **dict.fromkeys(("max_concurrency", "prefill_prompts", "interleave"), alone),
        }
