"""llama.cpp's ``llama-server``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from kvlab.decoder.config import DecoderConfig
from kvlab.errors import KvlabError
from kvlab.policies import Policy, Quantized, Slots
from kvlab.systems.base import System
from kvlab.systems.server_values import SERVER_LOOP, kv_codec, padded_context

B11434 = "llama.cpp b11434 (6 Oct 2026)"
SERVER = f"{B11434}: tools/server/server-context.cpp"
ARGUMENTS = f"{B11434}: common/arg.cpp"
AUTO_SLOTS = 4
HOST_CACHE = "8GiB"

SOURCES: Mapping[str, str] = {
    "retention": f"{SERVER}: every token stays",
    "codec": f"{ARGUMENTS}: -ctk and -ctv, each f16 unless given",
    "codec.bits": f"{ARGUMENTS}: -ctk",
    "codec.v_bits": f"{ARGUMENTS}: -ctv",
    "codec.group": "kvlab: with 64 channels, 8 bits take 8.5 bits a value as q8_0 does",
    "reuse": f"{SERVER}: get_available_slot",
    "reuse.n": f"{B11434}: tools/server/server.cpp: 4 slots unless -np says otherwise",
    "reuse.share": f"{ARGUMENTS}: -sps 0.10, which must be exceeded",
    "reuse.unified": f"{B11434}: tools/server/server.cpp: one memory where -np is not given",
    "reuse.host": f"{ARGUMENTS}: --cache-ram 8192 MiB",
    "reuse.keep": f"{B11434}: tools/server/server-task.cpp: server_prompt_cache, a quarter of the saved prompt",
    "reuse.checkpoints": f"{ARGUMENTS}: --ctx-checkpoints 32",
    "reuse.spacing": f"{ARGUMENTS}: -cms 8192",
    "reuse.ubatch": f"{ARGUMENTS}: -ub 512",
    "tiers": f"{SERVER}: nothing at rest but the host list; slots are saved to files on request",
    "max_concurrency": f"{SERVER}: one request a slot; a seen server with 4 slots ran 4 of 6 requests, then 2",
    "prefill_step": f"{ARGUMENTS}: -b 2048",
    "prefill_prompts": f"{SERVER}: update_slots fills one batch with the prompt of one slot after another",
    "interleave": f"{SERVER}: update_slots: all decoding slots first, prompt tokens in the same batch",
    "context": f"{ARGUMENTS}: -c, divided by -np and padded to 256 (src/llama-context.cpp) where -np is given",
    "long_prompt": f"{SERVER}: status 400 exceed_context_size_error",
    "overflow": f"{ARGUMENTS}: --context-shift is off: an answer ends at the context; --keep 0",
    "live_memory": f"{SERVER}: no limit besides the slots' own context",
    "retain": "kvlab: slots keep their sequences themselves",
    "admission": f"{SERVER}: update_slots: deferred requests start in the order of their arrival",
    "queue": f"{SERVER}: requests without a slot are deferred, first in, first out, without a limit",
}
LEAVES_OUT = (
    "--cache-reuse, which keeps later runs of equal tokens by moving them (off by default).",
    "Hadamard rotation before quantized K and V, and their own formats: kvlab quantizes affinely with as many bytes.",
    "The slot of a sequence that went on beyond its context: kvlab does not reuse it.",
    "Of a sliding window, which rows a branch writes over first, and which of two checkpoints a token apart is taken.",
    "2,048 tokens are the limit of each prompt here, not of all prompts of a step together.",
)


@dataclass(frozen=True)
class LlamaCpp(System):
    """As released: 4 slots in one memory, and a list of whole prompts in host memory.

    Args:
        parallel: slots (``-np``); none is the server's own choice: 4, in one memory.
        context: tokens of all slots together (``-c``); none is the model's own context, for every slot.
        cache_ram: bytes of the host list (``--cache-ram``); 0 is no list.
        cache_type_k: of K: f16, q8_0 or q4_0 (``-ctk``).
        cache_type_v: of V (``-ctv``).
        context_shift: whether an answer goes on beyond the context (``--context-shift``).
        keep: tokens that a shift keeps (``--keep``).
    """

    name: ClassVar[str] = "llama.cpp"
    release: ClassVar[str] = B11434
    leaves_out: ClassVar[tuple[str, ...]] = LEAVES_OUT
    parallel: int | None = None
    context: int | None = None
    cache_ram: str = HOST_CACHE
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    context_shift: bool = False
    keep: int = 0

    def __post_init__(self) -> None:
        if self.context_shift and self.context is None:
            raise KvlabError(f"{self.name}: context_shift needs a context: write context_shift=true,context=4096")

    @property
    def policy(self) -> Policy:
        slots = Slots(n=self.parallel or AUTO_SLOTS, unified=self.parallel is None, host=self.cache_ram)
        return Policy(slots, kv_codec(self.name, self.cache_type_k, self.cache_type_v))

    @property
    def config(self) -> DecoderConfig:
        return replace(
            SERVER_LOOP,
            max_concurrency=self.parallel or AUTO_SLOTS,
            prefill_prompts=1,
            context=padded_context(self.context, self.parallel or 1),
            overflow=f"shift:keep={self.keep}" if self.context_shift else "stop",
        )

    @property
    def sources(self) -> Mapping[str, str]:
        return SOURCES


@dataclass(frozen=True)
class LlamaCppArticle(System):
    """With the flags of the article: ``-c 32768 -np 4 --cache-type-k q8_0``.

    Args:
        parallel: slots.
        context: tokens of all slots together.
    """

    name: ClassVar[str] = "llama.cpp"
    variant: ClassVar[str] = "article"
    release: ClassVar[str] = B11434
    leaves_out: ClassVar[tuple[str, ...]] = (
        *LEAVES_OUT,
        "The article says that the key type halves the KV: it is of K only, so that 0.77 is left.",
    )
    parallel: int = 4
    context: int = 32768

    @property
    def policy(self) -> Policy:
        return Policy(Slots(n=self.parallel, unified=False, host=HOST_CACHE), Quantized(bits=8, v_bits="raw"))

    @property
    def config(self) -> DecoderConfig:
        return replace(
            SERVER_LOOP,
            max_concurrency=self.parallel,
            prefill_prompts=1,
            context=padded_context(self.context, self.parallel),
        )

    @property
    def sources(self) -> Mapping[str, str]:
        article = "the article's command line: -c 32768 -np 4 --cache-type-k q8_0"
        return {**SOURCES, **dict.fromkeys(("reuse.n", "codec", "codec.bits", "context", "max_concurrency"), article)}
