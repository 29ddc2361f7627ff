"""LM Studio: its MLX engine, whose source is open, and its GGUF engine, which is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from kvlab.decoder.config import DecoderConfig
from kvlab.policies import Paged, Policy, Ram, Raw, Slots, WholePrompts
from kvlab.systems.base import System
from kvlab.systems.presets.llama_cpp import SOURCES as LLAMA_CPP
from kvlab.systems.presets.mlx_lm import SOURCES as MLX_LM
from kvlab.systems.server_values import SERVER_LOOP, kv_codec

DOCS = "LM Studio 0.4 documentation"
ENGINE = "mlx-engine 08f0c07 (21 Aug 2026)"
MAX_PARALLEL = 4
CHUNK_TOKENS = 256
CONTEXT = f"{DOCS}: chosen when the model is loaded; kvlab: else that of the model, which the engine fits to memory"


@dataclass(frozen=True)
class LMStudioMlx(System):
    """MLX models as released: the last sequence stays live, and chunks of 256 tokens lie in a file until the unload.

    Args:
        parallel: requests that run side by side (``max_seq_nums``).
        disk: bytes of the file; the engine takes the KV of one context of the largest size, at most a quarter of what
            is free.
        context: tokens of the loaded model's context; none is the model's own.
    """

    name: ClassVar[str] = "lm-studio"
    engine: ClassVar[str] = "mlx"
    release: ClassVar[str] = ENGINE
    leaves_out: ClassVar[tuple[str, ...]] = (
        "The chunks lie in a file without a name there, and in memory here; neither outlives the process.",
        "kv_bits, a draft model and one prediction at a time, which run in another kit.",
        "The context that is fitted to memory when a model is loaded.",
    )
    parallel: int = MAX_PARALLEL
    disk: str = "4GB"
    context: int | None = None

    @property
    def policy(self) -> Policy:
        return Policy(Paged(block=CHUNK_TOKENS, match="block", live=False, hot=True), Ram(ram=self.disk), Raw())

    @property
    def config(self) -> DecoderConfig:
        return replace(SERVER_LOOP, max_concurrency=self.parallel, prefill_prompts=1, context=self.context)

    @property
    def sources(self) -> Mapping[str, str]:
        cache = f"{ENGINE}: prompt_cache"
        return {
            "retention": f"{ENGINE}: batch_generator.py: every token stays",
            "codec": f"{ENGINE}: generate.py: a model with kv_bits is not batched",
            "reuse": f"{cache}/restore_planner.py: the longer of the live sequence and the chunks",
            "reuse.block": f"{cache}/chunks.py: 256 tokens, prompt and answer, thinking too",
            "reuse.match": f"{cache}/restore_planner.py: whole chunks",
            "reuse.reply": f"{cache}/chunks.py: written while a request runs, answer and thinking too",
            "reuse.opening": f"{cache}/chunks.py: written while a request runs, answer and thinking too",
            "reuse.live": f"{ENGINE}: coordinator.py: running requests share none",
            "reuse.hot": f"{ENGINE}: coordinator.py: the last sequence, if it ran alone, for the next request",
            "reuse.checkpoint": "kvlab: the engine keeps states where a step ends on a chunk",
            "tiers": f"{cache}/blob_store.py: a temporary file that ends with the load of the model",
            "tiers.ram": f"{cache}/disk_budget.py: that of one context, at most a quarter of the free space; 4GB here",
            "tiers.replace": f"{cache}/cache_store.py: least recently used, beginnings kept longer",
            "max_concurrency": f"{ENGINE}: generate.py: load_model(max_seq_nums=4)",
            "prefill_step": f"{ENGINE}: batch_generator.py: 2048",
            "prefill_prompts": f"{ENGINE}: batch_generator.py:1229: at most one step of one prompt",
            "interleave": f"{ENGINE}: batch_generator.py:1229: decode first, then a step of one prompt",
            "context": CONTEXT,
            "long_prompt": f"{ENGINE}: batch_generator.py: prompts beyond the context fail",
            "overflow": f"{ENGINE}: batch_generator.py: an answer ends at the limit",
            "live_memory": f"{ENGINE}: batch_generator.py: no limit besides the context",
            "retain": "kvlab: none besides the one sequence that hot keeps",
            "admission": f"{ENGINE}: batch_generator.py: first in, first out",
            "queue": f"{ENGINE}: batch_generator.py: first in, first out, without a limit",
        }


@dataclass(frozen=True)
class LMStudioGguf(System):
    """GGUF models as released: slots as llama.cpp has them, as far as it is known.

    Args:
        parallel: "Max Concurrent Predictions".
        context: tokens of the loaded model's context; none is the model's own.
        cache_type_k: of K: f16, q8_0 or q4_0.
        cache_type_v: of V.
    """

    name: ClassVar[str] = "lm-studio"
    engine: ClassVar[str] = "gguf"
    release: ClassVar[str] = "LM Studio 0.4.26 (the engine is closed)"
    leaves_out: ClassVar[tuple[str, ...]] = (
        "Runs of 256 or more equal tokens behind a change, which the engine keeps by moving them.",
        "What clients may choose at the context: truncateMiddle and rollingWindow; here it is stopAtLimit.",
        "A list of prompts in host memory: it is not known whether there is one, and here there is none.",
    )
    parallel: int = MAX_PARALLEL
    context: int | None = None
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"

    @property
    def policy(self) -> Policy:
        return Policy(Slots(n=self.parallel, host="0"), kv_codec(self.name, self.cache_type_k, self.cache_type_v))

    @property
    def config(self) -> DecoderConfig:
        return replace(
            SERVER_LOOP, max_concurrency=self.parallel, prefill_step=512, prefill_prompts=1, context=self.context
        )

    @property
    def sources(self) -> Mapping[str, str]:
        own = {
            "codec": f"{DOCS}: llamaKCacheQuantizationType and llamaVCacheQuantizationType, off unless set",
            "reuse.n": f"{DOCS}: Max Concurrent Predictions 4",
            "reuse.unified": f"{DOCS}: Unified KV cache",
            "reuse.host": "unknown: the engine is closed; none is taken here",
            "max_concurrency": f"{DOCS}: Max Concurrent Predictions 4",
            "prefill_step": "LM Studio 0.3.18: bug tracker 778: n_batch 512 in a user's log",
            "context": f"{DOCS}: chosen when the model is loaded",
            "overflow": "unknown: the server's own default; stopAtLimit of lmstudio-js is taken here",
        }
        return {**LLAMA_CPP, **own}


@dataclass(frozen=True)
class LMStudioArticle(System):
    """As the article knew it, 0.4.0 to 0.4.2: four requests side by side, and whole prompts in memory only.

    Args:
        context: tokens of the loaded model's context; none is the model's own.
    """

    name: ClassVar[str] = "lm-studio"
    variant: ClassVar[str] = "article"
    engine: ClassVar[str] = "mlx"
    release: ClassVar[str] = "LM Studio 0.4.2, as its batched kit remains in mlx-engine 08f0c07"
    leaves_out: ClassVar[tuple[str, ...]] = ("The context that is fitted to memory when a model is loaded.",)
    context: int | None = None

    @property
    def policy(self) -> Policy:
        return Policy(WholePrompts(), Raw())

    @property
    def config(self) -> DecoderConfig:
        return LMStudioMlx(context=self.context).config

    @property
    def sources(self) -> Mapping[str, str]:
        kit = f"{ENGINE}: model_kit/batched_model_kit.py"
        own = {
            "retention": f"{kit}: every token stays",
            "codec": f"{kit}: a model with kv_bits is not batched",
            "reuse": f"{kit}: mlx-lm's LRUPromptCache",
            "tiers": f"{kit}: nothing on disk",
            "max_concurrency": f"{ENGINE}: generate.py: load_model(max_seq_nums=4)",
            "prefill_step": f"{ENGINE}: batch_generator.py: 2048",
            "prefill_prompts": f"{kit}: one prompt at a time",
            "interleave": f"{ENGINE}: batch_generator.py: decode first, then a step of one prompt",
            "context": CONTEXT,
            "long_prompt": f"{ENGINE}: batch_generator.py: prompts beyond the context fail",
            "overflow": f"{ENGINE}: batch_generator.py: an answer ends at the limit",
            "admission": f"{ENGINE}: batch_generator.py: first in, first out",
            "queue": f"{ENGINE}: batch_generator.py: first in, first out, without a limit",
        }
        return {**MLX_LM, **own}
