"""Bytes of KV a token of a model, under each codec: of the layers' own caches, so that they count everything."""

from __future__ import annotations

from collections.abc import Callable

from kvlab.advising.errors import AdviceError
from kvlab.caches import make_caches
from kvlab.caches.serialize import has_state
from kvlab.decoder.memory_budget import measure
from kvlab.models import LoadedModel
from kvlab.policies import Policy


def token_bytes_of(model: LoadedModel, given: int | None = None) -> Callable[[Policy], int]:
    """Return the function from a policy to the bytes of KV a token.

    Args:
        given: bytes a token without a codec, of another model than this one; codecs shrink them as they do here.

    Raises:
        AdviceError: a layer's state cannot be cut at a token, as of sliding windows: plans alone do not tell then.
    """
    if has_state(make_caches(model.model, Policy.parse("paged"))):
        raise AdviceError(
            f"{model.name} has layers whose state cannot be cut at a token (a sliding window, recurrent state), of "
            "which the plans alone do not tell: compare the designs on it with kvlab compare --system"
        )
    known: dict[str, int] = {}

    def of(policy: Policy) -> int:
        codec = Policy(policy.codec)
        if str(codec) not in known:
            known[str(codec)] = max(1, measure(model, make_caches(model.model, codec, prompt_tokens=2)).per_token)
        if given is None:
            return known[str(codec)]
        return max(1, round(given * known[str(codec)] / of_raw()))

    def of_raw() -> int:
        raw = Policy.parse("full")
        if str(raw) not in known:
            known[str(raw)] = measure(model, make_caches(model.model, raw, prompt_tokens=2)).per_token
        return known[str(raw)]

    return of


def attention_share(model: LoadedModel) -> float:
    """Return what attending to one earlier token costs, as a share of the rest of a prompt token, by the model's shape.

    Two products of the width of all heads in each layer, against two operations for each parameter; 0 where the config
    does not say.
    """
    args = getattr(model.model, "args", None)
    heads, hidden = getattr(args, "num_attention_heads", None), getattr(args, "hidden_size", None)
    if not heads or not hidden:
        return 0.0
    width = heads * (getattr(args, "head_dim", None) or hidden // heads)
    inner = getattr(args, "intermediate_size", None) or 4 * hidden
    kv_heads = getattr(args, "num_key_value_heads", None) or heads
    parameters = hidden * width * 2 + 2 * hidden * width * kv_heads // heads + 3 * hidden * inner
    return 2 * width / parameters
