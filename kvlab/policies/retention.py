"""Retention modules without scores: all tokens, or a window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvlab.errors import PolicyError
from kvlab.policies.policy import Policy
from kvlab.policies.slots import Module


@dataclass(frozen=True)
class Full(Module):
    """Every token stays."""

    name: ClassVar[str] = "full"
    slot: ClassVar[str] = "retention"
    is_lossless: ClassVar[bool] = True


@dataclass(frozen=True)
class Rotating(Module):
    """The first ``sinks`` tokens and the last ``window`` tokens stay; both are visible to the current token.

    Follows StreamingLLM (Xiao et al. 2023). Deviation: rows keep their true RoPE positions (as mlx-lm's
    RotatingKVCache does) and are not re-numbered inside the cache.

    Args:
        window: tokens that stay behind the sinks, the current one included.
        sinks: first tokens of the sequence that always stay.
    """

    name: ClassVar[str] = "rotating"
    slot: ClassVar[str] = "retention"
    paper: ClassVar[str] = "StreamingLLM, arXiv:2309.17453"
    window: int = 1024
    sinks: int = 4

    def __post_init__(self) -> None:
        if self.sinks < 0:
            raise PolicyError(f"rotating: sinks={self.sinks} is negative; write sinks=0 or more")
        if self.window <= self.sinks:
            raise PolicyError(f"rotating: window={self.window} must be above sinks={self.sinks}")

    def check(self, policy: Policy) -> None:
        if policy.reuse.name != "none":
            raise PolicyError(
                f"'{self}' drops rows that '{policy.reuse}' would need to rebuild a prefix: "
                "use 'rotating' without reuse, or 'full' with it"
            )
