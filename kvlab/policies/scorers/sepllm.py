"""``SepLLM``: keep the separators between segments of text, the first tokens and the latest."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import mlx.core as mx

from kvlab.errors import PolicyError
from kvlab.policies.scorers.base import ScoreContext, Scorer

SINK, LATEST, SEPARATOR = 3.0, 2.0, 1.0
"""Scores of the kinds of rows that stay; of rows with equal scores, the newest stay."""
MIN_ROWS = 4
"""Fewest rows of a head: a share of a prompt of a few tokens may be less."""
MARKS = frozenset(".,?!;:\n\t ")
"""Characters that the paper counts as separators."""


@dataclass(frozen=True)
class SepLLM(Scorer):
    """The first tokens, the latest tokens and separators such as full stops stay, the same in all heads and layers.

    Follows the training-free form of Chen et al. 2024: a separator has condensed its segment, so that the segment may
    leave. In the order in which they stay: ``sinks`` first tokens, ``latest`` newest ones, separators from the newest
    back, and, where the budget has room, other tokens from the newest back. Deviations: one budget for all kinds (the
    paper bounds each); rows keep their true positions; the newest tokens of an answer count as separators only when the
    host knows them, a few tokens later.

    Which token ids are separators depends on the tokenizer, which a policy does not know: give their ids joined with
    ``+``, as in ``sepllm:separators=13+30``. In Python, ``SepLLM.for_tokenizer(tokenizer)`` finds them. A head keeps at
    least 4 rows.

    Args:
        separators: token ids of the separators, joined with ``+``; none: the policy is refused when it runs.
        sinks: first tokens of the sequence that always stay.
        latest: newest tokens that always stay.
    """

    name: ClassVar[str] = "sepllm"
    paper: ClassVar[str] = "SepLLM, arXiv:2412.12094"
    reads_token_ids: ClassVar[bool] = True
    separators: str | None = None
    sinks: int = 4
    latest: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.separators is not None and not re.fullmatch(r"\d+(\+\d+)*", self.separators):
            raise PolicyError(f"sepllm: separators={self.separators} are no token ids; join them with +, as in 13+30")
        for name in ("sinks", "latest"):
            if getattr(self, name) < 0:
                raise PolicyError(f"sepllm: {name}={getattr(self, name)} is negative; write {name}=0 or more")

    @classmethod
    def for_tokenizer(cls, tokenizer: Any, **parameters: Any) -> SepLLM:
        """Return the policy for a tokenizer: separators are the tokens of nothing but ``. , ? ! ; :`` and white space.

        ``tokenizer`` has ``get_vocab()``, a mapping whose values are token ids, and ``decode(ids)``, as those of
        mlx-lm and transformers do; ``parameters`` are those of the policy. Raises PolicyError where no token is one.
        """
        found = sorted(one for one in tokenizer.get_vocab().values() if _is_separator(tokenizer.decode([one])))
        if not found:
            raise PolicyError("sepllm: this tokenizer has no token that is a separator")
        return cls(separators=_joined(found), **parameters)

    @cached_property
    def separator_ids(self) -> tuple[int, ...]:
        """The token ids of the separators."""
        return tuple(int(one) for one in self.separators.split("+")) if self.separators else ()

    def rows(self, prompt_tokens: int, layer: int, n_layers: int) -> int:
        return max(MIN_ROWS, super().rows(prompt_tokens, layer, n_layers))

    def score(self, context: ScoreContext) -> mx.array:
        if self.separators is None:
            raise PolicyError(
                "sepllm: separators are the token ids of full stops, commas and so on, joined with +: write "
                "sepllm:separators=13+30, with the ids of your model's tokenizer"
            )
        if context.token_ids is None:
            raise PolicyError("sepllm reads token ids, which only kvlab's decoder hands to a cache: use that")
        ids, length = context.token_ids, context.positions.shape[-1]
        is_separator = mx.any(ids[..., None] == mx.array(self.separator_ids), axis=-1)
        scores = mx.where(is_separator, SEPARATOR, 0.0)
        scores = mx.where(mx.arange(length) >= length - self.latest, LATEST, scores)
        return mx.where((context.positions >= 0) & (context.positions < self.sinks), SINK, scores)


def _is_separator(text: str) -> bool:
    return bool(text) and set(text) <= MARKS


def _joined(ids: Iterable[int]) -> str:
    return "+".join(str(one) for one in ids)
