"""The base of all request bodies, and fields in which clients write "unset" as a number."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from kvlab.server.limits import MAX_NAME_CHARS

MAX_COUNT = 2**31


class RequestBody(BaseModel):
    """A JSON object from a client. Unknown fields are ignored; NaN and infinity are refused."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


def _unset_below_one(count: int | None) -> int | None:
    return None if count is not None and count < 1 else count


def _off_below_zero(count: int | None) -> int | None:
    return 0 if count is not None and count < 0 else count


def _off_at_zero(factor: float | None) -> float | None:
    return 1.0 if factor == 0 else factor


def _drawn_at_minus_one(seed: int | None) -> int | None:
    return None if seed == -1 else seed


def _known_choice(choice: Any) -> Any:
    return choice or None  # "" and {} choose nothing


Count = Annotated[int, Field(ge=-MAX_COUNT, le=MAX_COUNT)]
TokenLimit = Annotated[Count | None, AfterValidator(_unset_below_one)]
"""Most tokens of an answer; 0 and -1 stand for no limit of the client's own."""
TopK = Annotated[Count | None, AfterValidator(_off_below_zero)]
"""Tokens to draw from; 0 and -1 stand for all."""
TopP = Annotated[float, Field(ge=0, le=1)] | None
"""Probability mass to draw from; 0 leaves the likeliest token only."""
Repetition = Annotated[Annotated[float, Field(ge=0, le=10)] | None, AfterValidator(_off_at_zero)]
"""Factor of the repetition penalty; 0 stands for none, as 1 does."""
Seed = Annotated[Annotated[int, Field(ge=-(2**63), lt=2**64)] | None, AfterValidator(_drawn_at_minus_one)]
"""-1 stands for a seed that the server draws."""
ToolChoiceField = Annotated[
    Annotated[str, Field(max_length=MAX_NAME_CHARS)] | dict[str, Any] | None, BeforeValidator(_known_choice)
]
"""A word or an object in any protocol's form; :func:`kvlab.server.generation.tool_choice.choose_tools` reads it."""
