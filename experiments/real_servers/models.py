"""The models that servers are observed with, by name: a folder for MLX each, with a GGUF file of the same weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import real_weights
import window_chain
import word_chain

MODELS: dict[str, Callable[[Path | None], Path]] = {
    word_chain.NAME: word_chain.word_chain,
    word_chain.ATTENDING: lambda folder: word_chain.word_chain(folder, attends=True),
    window_chain.NAME: window_chain.window_chain,
    real_weights.SMOLLM2: partial(real_weights.real_weights, real_weights.SMOLLM2),
    real_weights.GEMMA3: partial(real_weights.real_weights, real_weights.GEMMA3),
}

KNOWN_REPLIES = frozenset({word_chain.NAME, window_chain.NAME})
"""Models of which each reply follows from its prompt; those of others are read from the answer."""
