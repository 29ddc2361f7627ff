"""vMLX: blocks on SSD as the only lasting tier; before, a paged or whole-prompt cache in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from kvlab.decoder.config import DecoderConfig
from kvlab.policies import Paged, Policy, Quantized, Raw, Snapshot, Tiered
from kvlab.systems.base import System
from kvlab.systems.server_values import SERVER_LOOP, size_on_ssd

V1681 = "vMLX 1.6.81 (20 Oct 2026)"
V1525 = "vMLX 1.5.25 (3e256e3, 7 May 2026)"
SCHEDULER = f"{V1681}: scheduler.py"
ARGUMENTS = f"{V1681}: cli.py"
BLOCK_TOKENS = 64
DISK_PERCENT = 10

SOURCES: Mapping[str, str] = {
    "retention": f"{SCHEDULER}: every token stays",
    "codec": f"{ARGUMENTS}:4084: --kv-cache-quantization is not given",
    "reuse": f"{SCHEDULER}: blocks under chained hashes, and a partial one at the end of a prompt",
    "reuse.block": f"{SCHEDULER}:93: 64 tokens",
    "reuse.match": f"{SCHEDULER}:11395: full blocks, and the partial one at the end where all of it is found",
    "reuse.reply": f"{SCHEDULER}:11395: of a repeat of 366 tokens 362 were cached, and of the next turn, too",
    "reuse.opening": f"{SCHEDULER}:11395: the template's opening of the answer and the token before it are cut",
    "reuse.live": f"{SCHEDULER}: one request at a time",
    "reuse.hot": f"{SCHEDULER}: blocks on SSD are the only lasting tier",
    "reuse.checkpoint": "kvlab: vMLX keeps companion records of recurrent layers, or derives them anew",
    "tiers": "vMLX 1.6.35: release notes: blocks on SSD are the first tier",
    "tiers.ram": f"{ARGUMENTS}: --use-paged-cache is not given: nothing stays in memory",
    "tiers.ssd": f"{ARGUMENTS}: --block-disk-cache-max-percent 10, of the volume",
    "tiers.replace": f"{SCHEDULER}: the oldest first, leaves before their beginnings",
    "tiers.write": f"{V1681}: VMLX_SSD_WRITE_BEHIND 1: written behind the request",
    "tiers.admit": f"{SCHEDULER}: every block is written at its first use",
    "tiers.daily": f"{SCHEDULER}: no limit",
    "tiers.dir": "kvlab: its own store",
    "max_concurrency": f"{ARGUMENTS}:3853: --max-num-seqs 1",
    "prefill_step": f"{ARGUMENTS}: --prefill-step-size 2048",
    "prefill_prompts": f"{ARGUMENTS}: --prefill-batch-size 512, of which --max-num-seqs leaves 1",
    "interleave": f"{SCHEDULER}: one request at a time",
    "context": f"{ARGUMENTS}: --max-prompt-tokens, or what memory allows",
    "long_prompt": f"{SCHEDULER}: prompt_too_long",
    "overflow": f"{SCHEDULER}: an answer ends at the limit",
    "live_memory": f"{SCHEDULER}: no limit was found",
    "retain": "kvlab: none; vMLX keeps no live sequence when it ends",
    "admission": "unknown: no order but that of arrival was found",
    "queue": f"{SCHEDULER}: no limit was found",
}
LEAVES_OUT = (
    "Its index of 4,097 blocks: 262,144 tokens.",
    "Exceptions for families of models (MiniMax-M3, DeepSeek-V4, GLM-5, Gemma with mixed windows).",
    "Blocks without checksums: flipped bits on SSD are served.",
)


@dataclass(frozen=True)
class Vmlx(System):
    """As released: blocks of 64 tokens on SSD, and one request at a time.

    Args:
        max_num_seqs: requests that run side by side (``--max-num-seqs``).
        ssd: bytes on SSD; auto is a tenth of the disk that kvlab's store lies on.
        context: tokens of a prompt (``--max-prompt-tokens``), and here of its answer, too; none is no limit.
    """

    name: ClassVar[str] = "vmlx"
    release: ClassVar[str] = V1681
    leaves_out: ClassVar[tuple[str, ...]] = LEAVES_OUT
    max_num_seqs: int = 1
    ssd: str = "auto"
    context: int | None = None

    @property
    def policy(self) -> Policy:
        blocks = Paged(block=BLOCK_TOKENS, match="tail", reply=False, opening=False, live=False)
        return Policy(blocks, Tiered(ram="0", ssd=size_on_ssd(self.ssd, DISK_PERCENT)), Raw())

    @property
    def config(self) -> DecoderConfig:
        return replace(SERVER_LOOP, max_concurrency=self.max_num_seqs, prefill_prompts=512, context=self.context)

    @property
    def sources(self) -> Mapping[str, str]:
        return SOURCES


@dataclass(frozen=True)
class VmlxArticle(System):
    """As the article has it, with 1.5's options: 256 sequences, paged KV of 4 or 8 bits in memory, written at shutdown.

    Args:
        kv_bits: 8 or 4 (``--kv-cache-quantization``).
        ram: bytes in memory; vMLX takes 30 % of what is free.
        context: as of the release.
    """

    name: ClassVar[str] = "vmlx"
    variant: ClassVar[str] = "article"
    release: ClassVar[str] = V1525
    leaves_out: ClassVar[tuple[str, ...]] = (
        "KV is quantized at rest only there, and decoded for use; here live KV is quantized, too.",
        "256 sequences are admitted and 32 decode side by side there; here more than 32 wait.",
    )
    kv_bits: int = 8
    ram: str = "4GB"
    context: int | None = None

    @property
    def policy(self) -> Policy:
        blocks = Paged(block=BLOCK_TOKENS, match="block", reply=False, live=False)
        return Policy(blocks, Snapshot(ram=self.ram, ssd="10GB"), Quantized(bits=self.kv_bits))

    @property
    def config(self) -> DecoderConfig:
        return replace(SERVER_LOOP, max_concurrency=32, prefill_prompts=8, context=self.context)

    @property
    def sources(self) -> Mapping[str, str]:
        arguments = f"{V1525}: cli.py"
        own = {
            "codec": "the article: q4 or q8 KV (--kv-cache-quantization)",
            "codec.group": f"{V1525}: groups of 64",
            "reuse.block": f"{arguments}: --use-paged-cache, blocks of 64",
            "reuse.match": "unknown: whether partial blocks were stored; full ones are taken here",
            "reuse.reply": "unknown: whether replies were stored; as in 1.6.81 they are not here",
            "reuse.opening": "unknown: full blocks of the whole prompt are taken here",
            "reuse.live": f"{V1525}: scheduler.py: blocks are copied; running requests share none",
            "tiers": f"{arguments}: --enable-disk-cache: whole prompts on disk",
            "tiers.ram": "kvlab: 4GB; vMLX 1.5.25 takes 30 % of free memory",
            "tiers.ssd": f"{arguments}: 10 GB",
            "max_concurrency": f"{arguments}:1488: 256 with --continuous-batching, of which 32 decode side by side",
            "prefill_prompts": f"{arguments}: --prefill-batch-size 8",
            "interleave": f"{V1525}: scheduler.py: mlx-lm's batches",
        }
        return {**SOURCES, **own}
