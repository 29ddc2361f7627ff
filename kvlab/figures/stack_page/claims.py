"""What the article of 2026 says of six servers' caches, claim by claim, in kvlab's words, and what decides each."""

from __future__ import annotations

from kvlab.figures.stack_page.verdicts import (
    ALL_SIX,
    CONFIRMED,
    CONTRADICTED,
    DATED,
    OPEN,
    AllSix,
    ArticleClaim,
    FirstOfSix,
    Within,
)  # fmt: skip

LOST = Within("found", at_most=0.01)
KEPT = Within("found", at_least=0.5)
ONE_BY_ONE = Within("together-8", at_most=1.3)
SIDE_BY_SIDE = Within("together-8", at_least=2.0)

CLAIMS: tuple[ArticleClaim, ...] = (
    ArticleClaim(
        "ollama",
        "Runs llama.cpp, and MLX models in an engine of its own",
        verdict=CONFIRMED,
        source="Ollama v0.33.0-rc2, `llm/server.go` and `runner/runner.go`: a `llama-server` for each GGUF model",
    ),
    ArticleClaim(
        "ollama",
        "Takes one request of a model at a time",
        ONE_BY_ONE,
        source="a default: `OLLAMA_NUM_PARALLEL` above 1 batches GGUF models",
    ),
    ArticleClaim("ollama", "Finds a conversation's earlier prompt in memory", Within("warm", at_least=0.5)),
    ArticleClaim("ollama", "Loses its cache at a restart", LOST, source="and when a model is unloaded"),
    ArticleClaim("ollama", "The choice for one agent and short sessions", FirstOfSix("short")),
    ArticleClaim("lm-studio", "Batches requests since 0.4", SIDE_BY_SIDE),
    ArticleClaim("lm-studio", "Finds nothing after a restart", LOST),
    ArticleClaim(
        "lm-studio",
        "Has no KV on disk",
        verdict=DATED,
        source="mlx-engine since 1.8.5 writes chunks into a temporary file, which ends with the load of the model; the "
        "preset holds them in memory, so that no row can show it",
    ),
    ArticleClaim(
        "lm-studio",
        "Needs its window on the desktop",
        verdict=DATED,
        source="LM Studio's docs: `lms daemon up` since 0.4.0",
    ),
    ArticleClaim(
        "lm-studio", "The choice for people who do not write code", verdict=OPEN, source="no row can decide it"
    ),
    ArticleClaim("llama.cpp", "Batches where it is given slots", SIDE_BY_SIDE),
    ArticleClaim(
        "llama.cpp",
        "`--cache-type-k q8_0` halves the KV, so that twice the sequences fit",
        Within("sequences", at_least=1.9, beside="llama.cpp", beside_variant="now"),
        source="the flag is for keys; values stay as they are, 1.3 times by arithmetic where those have 16 bits",
    ),
    ArticleClaim(
        "llama.cpp",
        "Finds nothing after a restart unless slots were saved by hand",
        LOST,
        source="`--slot-save-path`; the list of prompts in host memory ends with the process",
    ),
    ArticleClaim(
        "llama.cpp",
        "Has a setting for everything",
        verdict=CONFIRMED,
        source="`common/arg.cpp` of b11434: `kvlab systems llama.cpp` names the flags of its cache",
    ),
    ArticleClaim("mlx-lm", "Takes one request at a time", ONE_BY_ONE, source="batches since 3 Dec 2025"),
    ArticleClaim(
        "mlx-lm",
        "Has a rotating cache of fixed size, which drops old tokens",
        Within("live-last", at_most=0.75, over="live-first"),
        source="its server never had `--max-kv-size`; what rotates is part of some models",
    ),
    ArticleClaim("mlx-lm", "Has no SSD tier, and finds nothing after a restart", LOST),
    ArticleClaim(
        "omlx",
        "Keeps hot blocks in memory",
        Within("waiting", more_than=0.0),
        source='`hot_cache_max_size` is "0" as released: out of the box it is the SSD alone',
    ),
    ArticleClaim("omlx", "Keeps blocks on the SSD", Within("on-ssd", more_than=0.0)),
    ArticleClaim("omlx", "Goes on after a restart", KEPT),
    ArticleClaim("omlx", "Batches requests", SIDE_BY_SIDE),
    ArticleClaim("omlx", "A late turn has its first token as soon as the first turn", Within("growth", at_most=1.1)),
    ArticleClaim("omlx", "The choice for long runs behind a stable system prompt", FirstOfSix("growth")),
    ArticleClaim(
        "omlx",
        "Cannot quantize KV",
        verdict=DATED,
        source="oMLX 0.5.3, `model_settings.py`: TurboQuant for each model, off unless set",
    ),
    ArticleClaim(
        "omlx",
        "Scales the token counts that Claude Code reads",
        verdict=CONFIRMED,
        source="oMLX 0.5.3, `server.py` and `settings.py`: off unless set",
    ),
    ArticleClaim(
        "omlx", "Runs on macOS 15 with Apple silicon only", verdict=CONFIRMED, source="its README; not tried elsewhere"
    ),
    ArticleClaim(
        "vmlx",
        "Runs very many sequences side by side, 256 of them",
        Within("together-32", at_least=8.0),
        source="measured with 32 agents; of 1.5.25's 256 at most 32 decode together; `--max-num-seqs` is 1 in 1.6.81",
    ),
    ArticleClaim(
        "vmlx",
        "With quantized KV it holds about four times the sequences",
        Within("sequences", at_least=3.0, beside="omlx"),
        source="quantized are stored blocks alone, and only with `--kv-cache-quantization`; the preset of the article "
        "holds live KV in 8 bits, too, which the server does not",
    ),
    ArticleClaim("vmlx", "Writes its cache only for a warm start, when it ends", Within("written-before", at_most=0.0)),
    ArticleClaim("vmlx", "A new process begins warm", KEPT),
    ArticleClaim("vmlx", "The choice for many agents at once", FirstOfSix("speed-32")),
    ArticleClaim(
        "vmlx",
        "Runs on macOS only",
        verdict=CONTRADICTED,
        source="its package is for Macs; 1.6.81 answered on a Linux CPU, see [calibration](calibration.md)",
    ),
    ArticleClaim(ALL_SIX, "Tool calls stay valid", AllSix(Within("calls-kept", at_least=0.98))),
    ArticleClaim(
        ALL_SIX,
        "Open source, but for LM Studio's app",
        verdict=OPEN,
        source="read were the licences of llama.cpp and of LM Studio's mlx-engine (both MIT); the app is closed",
    ),
    ArticleClaim(
        ALL_SIX,
        "One client serves for all: only the base URL changes",
        verdict=CONFIRMED,
        source="OpenAI's protocol; [the audit](audit.md) asked llama-server, mlx-lm and vMLX with one client",
    ),
)
