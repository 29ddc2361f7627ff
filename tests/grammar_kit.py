"""Grammars without a decoder: prepared as the server does, and random tokens drawn under them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from kvlab.models import LoadedModel
from kvlab.server.structured.constraint import Constraint
from kvlab.server.structured.grammar import Grammars
from kvlab.server.structured.request_grammar import RequestGrammar, RequestGrammars, Wanted
from kvlab.server.structured.tool_families.choose import tool_format


class GrammarKit:
    """The grammars of one model; each preparation has an event loop of its own."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded, self.grammars = loaded, Grammars(loaded)
        self.form = tool_format(loaded.tokenizer)

    def prepare(self, wanted: Wanted) -> RequestGrammar | None:
        async def run() -> RequestGrammar | None:
            prepared = RequestGrammars(self.grammars, self.form)
            try:
                return await prepared.prepare(wanted)
            finally:
                prepared.close()

        return asyncio.run(run())

    def answer(self, wanted: Wanted, max_tokens: int, **options: Any) -> str:
        """Return the text of random tokens under the grammar of ``wanted``."""
        prepared = self.prepare(wanted)
        assert prepared is not None
        constraint = prepared.constraint(max_tokens)
        assert constraint is not None
        tokens = generate(self.loaded, constraint, max_tokens, **options)
        assert not constraint.failure, constraint.failure
        return self.loaded.decode(tokens)


def tool(name: str, parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def generate(
    loaded: LoadedModel, constraint: Constraint, max_tokens: int, *, seed: int = 0, favour: Sequence[str] = ()
) -> list[int]:
    """Return tokens drawn from hot random logits under a constraint, called as mlx-lm calls it.

    Args:
        favour: texts whose tokens the model likes best, so that it goes on with them wherever it may.
    """
    rng = np.random.default_rng(seed)
    liked = [token for text in favour for token in loaded.encode(text)]
    made: list[int] = []
    while len(made) < max_tokens:
        logits = rng.normal(0, 3, (1, loaded.vocab_size)).astype(np.float32)
        logits[0, liked] += 12
        masked = constraint(mx.array([1, 2, 3, *made]), mx.array(logits))
        made.append(int(mx.argmax(masked).item()))
        if made[-1] in loaded.eos:
            return made[:-1]
    return made
