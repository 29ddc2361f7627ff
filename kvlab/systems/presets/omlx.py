"""oMLX: paged blocks on SSD, optionally with a hot tier in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from kvlab.decoder.config import DecoderConfig
from kvlab.decoder.reuse.block_size import PLAIN_BLOCK, block_for_model
from kvlab.models import LoadedModel
from kvlab.policies import Paged, Policy, Raw, Tiered
from kvlab.systems.base import System
from kvlab.systems.server_values import SERVER_LOOP, size_on_ssd

V053 = "oMLX 0.5.3 (d508490, 23 Jul 2026)"
SCHEDULER = f"{V053}: omlx/scheduler.py"
SETTINGS = f"{V053}: omlx/settings.py"
CACHE = f"{V053}: omlx/cache"
MAX_RUNNING, MIN_QUEUE, QUEUE_FOR_EACH = 8, 32, 4
DISK_PERCENT = 10

SOURCES: Mapping[str, str] = {
    "retention": f"{SCHEDULER}: every token stays",
    "codec": f"{V053}: omlx/model_settings.py:146: TurboQuant is off unless set for a model",
    "reuse": f"{CACHE}/prefix_cache.py:513: chained blocks",
    "reuse.block": f"{SCHEDULER}:2264-2376: 256 tokens; 512 to 1,024 with sliding windows, 2,048 with recurrent layers",
    "reuse.checkpoint": "kvlab: oMLX takes snapshots where a prefill lands on the end of a block",
    "reuse.match": f"{CACHE}/prefix_cache.py:513: only full blocks are stored and matched",
    "reuse.reply": f"{SCHEDULER}:8922: prompt and answer, where the template opens no thinking",
    "reuse.opening": f"{SCHEDULER}:8922: prompt and answer, where the template opens no thinking",
    "reuse.live": f"{SCHEDULER}: blocks are stored when a request ends; running ones share none",
    "reuse.hot": f"{SCHEDULER}: no sequence stays live when it ends",
    "tiers": f"{CACHE}/paged_ssd_cache.py: one file a block",
    "tiers.ram": f'{SETTINGS}:303: hot_cache_max_size "0"',
    "tiers.ssd": f"{SETTINGS}:296: auto, a tenth of the capacity of the disk",
    "tiers.replace": f"{CACHE}/paged_ssd_cache.py:2504: least recently used, over all models in the folder",
    "tiers.write": f"{CACHE}/paged_ssd_cache.py: written by a thread behind the request",
    "tiers.admit": f"{CACHE}/paged_ssd_cache.py: every block is written at its first use",
    "tiers.daily": f"{CACHE}/paged_ssd_cache.py: no limit",
    "tiers.dir": "kvlab: its own store; oMLX has ~/.omlx/cache",
    "max_concurrency": f"{SETTINGS}: max_concurrent_requests 8",
    "prefill_step": f"{SCHEDULER}: 2048",
    "prefill_prompts": f"{SCHEDULER}:6414: one prompt after another",
    "interleave": f"{SCHEDULER}:1347: chunked_prefill is off: a prompt is computed to its end before decoding goes on",
    "context": f"{SETTINGS}: max_context_window of a model, 32768 where it does not say",
    "long_prompt": f"{SCHEDULER}: status 400 beyond max_context_window",
    "overflow": f"{SCHEDULER}: no shift; an answer ends at the limit",
    "live_memory": f"{SCHEDULER}: a guard may pause prefill; no fixed limit",
    "retain": "kvlab: none; oMLX keeps no live sequence when it ends",
    "admission": f"{SCHEDULER}: first come, first served",
    "queue": f"{SCHEDULER}: more than max(32, 4 times the running ones) waiting: 503 with Retry-After",
}
LEAVES_OUT = (
    "Replies of models whose template opens with thinking, which are not stored there.",
    "Keys from a model's name in place of its weights, and files without checksums.",
)


def queue_of(running: int) -> int:
    """Return how many requests may wait where so many run."""
    return max(MIN_QUEUE, QUEUE_FOR_EACH * running)


def policy_with(hot_cache: str, ssd: str, block: int | None) -> Policy:
    """Return blocks of so many tokens on SSD; the state of layers that cannot be cut is kept with each large block."""
    size = block or PLAIN_BLOCK
    checkpoint = Paged.checkpoint if size == PLAIN_BLOCK else size
    blocks = Paged(block=size, checkpoint=checkpoint, match="block", live=False)
    return Policy(blocks, Tiered(ram=hot_cache, ssd=size_on_ssd(ssd, DISK_PERCENT)), Raw())


@dataclass(frozen=True)
class Omlx(System):
    """As released: blocks on SSD only.

    Args:
        hot_cache: bytes of blocks in memory (``hot_cache_max_size``).
        ssd: bytes on SSD; auto is a tenth of the disk that kvlab's store lies on.
        max_concurrent_requests: requests that run side by side.
        block: tokens a block; None is oMLX's choice by the layers of the model, and 256 where no model is known.
        context: tokens of prompt and answer (``max_context_window``); none is the model's own.
    """

    name: ClassVar[str] = "omlx"
    release: ClassVar[str] = V053
    leaves_out: ClassVar[tuple[str, ...]] = LEAVES_OUT
    hot_cache: str = "0"
    ssd: str = "auto"
    max_concurrent_requests: int = MAX_RUNNING
    block: int | None = None
    context: int | None = None

    @property
    def policy(self) -> Policy:
        return policy_with(self.hot_cache, self.ssd, self.block)

    def for_model(self, model: LoadedModel) -> Omlx:
        return replace(self, block=self.block or block_for_model(model))

    @property
    def config(self) -> DecoderConfig:
        running = self.max_concurrent_requests
        return replace(SERVER_LOOP, max_concurrency=running, prefill_prompts=1, interleave="none", context=self.context)

    @property
    def queue(self) -> int | None:
        return queue_of(self.max_concurrent_requests)

    @property
    def sources(self) -> Mapping[str, str]:
        return SOURCES


@dataclass(frozen=True)
class OmlxArticle(System):
    """As the article has it: a hot tier in memory that spills to SSD.

    Args:
        hot_cache: bytes of blocks in memory; the article names no number.
        ssd: bytes on SSD; auto is a tenth of the disk that kvlab's store lies on.
        block: tokens a block; None is oMLX's choice by the layers of the model, and 256 where no model is known.
        context: tokens of prompt and answer (``max_context_window``); none is the model's own.
    """

    name: ClassVar[str] = "omlx"
    variant: ClassVar[str] = "article"
    release: ClassVar[str] = V053
    leaves_out: ClassVar[tuple[str, ...]] = LEAVES_OUT
    hot_cache: str = "4GB"
    ssd: str = "auto"
    block: int | None = None
    context: int | None = None

    @property
    def policy(self) -> Policy:
        return policy_with(self.hot_cache, self.ssd, self.block)

    def for_model(self, model: LoadedModel) -> OmlxArticle:
        return replace(self, block=self.block or block_for_model(model))

    @property
    def config(self) -> DecoderConfig:
        return Omlx(context=self.context).config

    @property
    def queue(self) -> int | None:
        return queue_of(MAX_RUNNING)

    @property
    def sources(self) -> Mapping[str, str]:
        return {**SOURCES, "tiers.ram": "the article: two tiers, memory and SSD; it names no size, and 4GB is taken"}
