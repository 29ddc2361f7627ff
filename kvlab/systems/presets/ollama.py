"""Ollama: a ``llama-server`` for GGUF models, an engine of its own for MLX ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from kvlab.decoder.config import DecoderConfig
from kvlab.policies import Paged, Policy, Ram, Raw, Slots
from kvlab.systems.base import System
from kvlab.systems.presets.llama_cpp import HOST_CACHE
from kvlab.systems.presets.llama_cpp import LEAVES_OUT as OF_LLAMA_CPP
from kvlab.systems.presets.llama_cpp import SOURCES as LLAMA_CPP
from kvlab.systems.server_values import SERVER_LOOP, kv_codec

V33 = "Ollama v0.33.0-rc2 (21 Aug 2026)"
V20 = "Ollama v0.20.0 (spring 2026)"
SCHEDULER = f"{V33}: server/sched.go"
CHILD = f"{V33}: llm/llama_server.go"
MLX_RUNNER = f"{V33}: x/mlxrunner"
OLD_RUNNER = f"{V20}: runner/ollamarunner/cache.go"
CONTEXT_BELOW_24_GIB = 4096
KEEP_TOKENS = 4
BATCHES = ((4096, 512), (32768, 1024))
"""Largest context, and the tokens of a batch up to it; 2,048 above."""
LARGEST_BATCH = 2048


def batch_tokens(context: int) -> int:
    """Return the batch that Ollama gives its ``llama-server`` for a context of so many tokens."""
    return next((batch for most, batch in BATCHES if context <= most), LARGEST_BATCH)


@dataclass(frozen=True)
class OllamaGguf(System):
    """GGUF models as released: one slot of a ``llama-server`` with its host list; prompts are cut, answers shift.

    Args:
        parallel: OLLAMA_NUM_PARALLEL.
        context: OLLAMA_CONTEXT_LENGTH or num_ctx; 4,096 where the GPU has less than 24 GiB.
        kv_type: OLLAMA_KV_CACHE_TYPE: f16, q8_0 or q4_0, of K and V alike.
    """

    name: ClassVar[str] = "ollama"
    engine: ClassVar[str] = "gguf"
    release: ClassVar[str] = V33
    leaves_out: ClassVar[tuple[str, ...]] = (
        *OF_LLAMA_CPP,
        "Chat endpoints first drop whole old messages until the rest fits; kvlab cuts the middle of the tokens.",
        "Unloading a model after 5 minutes, and the 512 requests that may wait for a model to load.",
        "Families that are forced to one request at a time.",
    )
    parallel: int = 1
    context: int = CONTEXT_BELOW_24_GIB
    kv_type: str = "f16"

    @property
    def policy(self) -> Policy:
        batch = batch_tokens(self.context)
        slots = Slots(n=self.parallel, unified=False, host=HOST_CACHE, ubatch=batch)
        return Policy(slots, kv_codec(self.name, self.kv_type, self.kv_type))

    @property
    def config(self) -> DecoderConfig:
        return replace(
            SERVER_LOOP,
            max_concurrency=self.parallel,
            prefill_step=batch_tokens(self.context),
            prefill_prompts=1,
            context=self.context,
            long_prompt=f"truncate-middle:keep={KEEP_TOKENS}",
            overflow=f"shift:keep={KEEP_TOKENS}",
        )

    @property
    def sources(self) -> Mapping[str, str]:
        own = {
            "codec": f"{V33}: envconfig/config.go: OLLAMA_KV_CACHE_TYPE, f16 where it is not set",
            "codec.v_bits": f"{CHILD}: one type for K and V",
            "reuse.n": f"{V33}: envconfig/config.go: OLLAMA_NUM_PARALLEL 1",
            "reuse.unified": f"{CHILD}: -np is always given",
            "reuse.host": f"{CHILD}: --cache-ram is not given, so that llama.cpp's own 8192 MiB hold",
            "reuse.ubatch": f"{SCHEDULER}: 512 to a context of 4096, 1024 to 32768, 2048 above",
            "max_concurrency": f"{V33}: envconfig/config.go: OLLAMA_NUM_PARALLEL 1",
            "prefill_step": f"{SCHEDULER}: -b is -ub: 512 to a context of 4096, 1024 to 32768, 2048 above",
            "context": f"{V33}: docs/context-length: 4096 below 24 GiB of GPU memory, 32768 to 48, 262144 above",
            "long_prompt": f"{CHILD}: the middle is cut to context - (context - keep) / 2 tokens",
            "overflow": f"{CHILD}: --context-shift --keep 4",
            "admission": f"{CHILD}: a semaphore, in the order of arrival",
            "queue": f"{CHILD}: requests for a loaded model wait on a semaphore without a limit",
        }
        return {**LLAMA_CPP, **own}


@dataclass(frozen=True)
class OllamaMlx(System):
    """MLX models as released: a trie of token edges, of which one path is live and the others lie in memory."""

    name: ClassVar[str] = "ollama"
    engine: ClassVar[str] = "mlx"
    release: ClassVar[str] = V33
    leaves_out: ClassVar[tuple[str, ...]] = (
        "The trie is a store of blocks here: matches are to the token in both, but a full store loses single blocks, "
        "and Ollama whole edges: the oldest, then the deepest, then the largest.",
        "Snapshots where a request branched, and 4 tokens before the end of a prompt.",
    )

    @property
    def policy(self) -> Policy:
        return Policy(Paged(checkpoint=8192), Ram(ram="8GiB"), Raw())

    @property
    def config(self) -> DecoderConfig:
        return replace(SERVER_LOOP, max_concurrency=1, retain=1)

    @property
    def sources(self) -> Mapping[str, str]:
        return {
            "retention": f"{MLX_RUNNER}: every token stays",
            "codec": f"{MLX_RUNNER}: no quantization of KV was found",
            "reuse": f"{MLX_RUNNER}/prefix_cache.go: the longest prefix, to the token; prompt and answer are kept",
            "reuse.block": "kvlab: matches are to the token, whatever the block",
            "reuse.checkpoint": f"{MLX_RUNNER}/prefix_cache.go: a snapshot every 8192 tokens",
            "tiers": f"{MLX_RUNNER}/cache_trie.go: snapshots in memory only",
            "tiers.ram": f"{MLX_RUNNER}/prefix_cache.go: 8 GiB of snapshots",
            "tiers.replace": f"{MLX_RUNNER}/cache_trie.go: the oldest use first",
            "max_concurrency": f"{MLX_RUNNER}/pipeline.go: one request at a time",
            "prefill_step": f"{MLX_RUNNER}: chunks of 2048",
            "prefill_prompts": f"{MLX_RUNNER}/pipeline.go: one request at a time",
            "interleave": f"{MLX_RUNNER}/pipeline.go: one request at a time",
            "context": f"{MLX_RUNNER}: that of the model",
            "long_prompt": f"{MLX_RUNNER}: status 400",
            "overflow": f"{MLX_RUNNER}: answers are capped",
            "live_memory": f"{MLX_RUNNER}: no limit was found",
            "retain": f"{MLX_RUNNER}/cache_trie.go: the last path stays live",
            "admission": f"{MLX_RUNNER}/pipeline.go: first in, first out",
            "queue": f"{MLX_RUNNER}/pipeline.go: first in, first out, without a limit",
        }


@dataclass(frozen=True)
class OllamaArticle(System):
    """As the article knew it: the Go runner's slots, without a threshold and without a list in host memory.

    Args:
        parallel: slots.
        context: tokens of a slot.
    """

    name: ClassVar[str] = "ollama"
    variant: ClassVar[str] = "article"
    engine: ClassVar[str] = "gguf"
    release: ClassVar[str] = V20
    leaves_out: ClassVar[tuple[str, ...]] = (
        "OLLAMA_MULTIUSER_CACHE, which copies a common prefix into the oldest slot.",
        "Unloading a model after 5 minutes.",
    )
    parallel: int = 1
    context: int = CONTEXT_BELOW_24_GIB

    @property
    def policy(self) -> Policy:
        return Policy(Slots(n=self.parallel, share=0.0, unified=False, host="0"), Raw())

    @property
    def config(self) -> DecoderConfig:
        return OllamaGguf(self.parallel, self.context).config

    @property
    def sources(self) -> Mapping[str, str]:
        own = {
            "retention": f"{OLD_RUNNER}: every token stays",
            "codec": f"{V20}: envconfig/config.go: OLLAMA_KV_CACHE_TYPE, f16 where it is not set",
            "reuse": f"{OLD_RUNNER}: the slot with the longest common prefix, cut in place",
            "reuse.n": f"{V20}: envconfig/config.go: OLLAMA_NUM_PARALLEL 1",
            "reuse.share": f"{OLD_RUNNER}: no threshold",
            "reuse.unified": f"{OLD_RUNNER}: slots keep their KV",
            "reuse.host": f"{OLD_RUNNER}: no list in host memory",
            "reuse.keep": f"{OLD_RUNNER}: has no effect without a list",
            "reuse.checkpoints": "kvlab: llama.cpp's; the Go runner had another way with windows",
            "tiers": f"{OLD_RUNNER}: nothing on disk",
            "max_concurrency": f"{V20}: envconfig/config.go: OLLAMA_NUM_PARALLEL 1",
            "prefill_step": f"{SCHEDULER}: that of the later release",
            "overflow": f"{OLD_RUNNER}: drops (context - keep) / 2",
        }
        return {**OllamaGguf().sources, **own}
