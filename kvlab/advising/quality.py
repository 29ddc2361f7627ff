"""What a measured run says of lossy designs: the codecs whose loss stays below a bound."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvlab.advising.errors import AdviceError
from kvlab.errors import PolicyError
from kvlab.policies import Module, Paged, Policy, Ram
from kvlab.results import Results
from kvlab.results.certified import CertifyRequest

DEFAULT_PROMISE = "accuracy:5%@95%"


@dataclass(frozen=True)
class CertifiedCodecs:
    """Codecs that hold a promise, and the promise in words."""

    codecs: tuple[Module, ...]
    promise: str


def certified_codecs(run: Results | str | Path, promise: str = DEFAULT_PROMISE) -> CertifiedCodecs:
    """Return the codecs of a run that lose no more than ``promise`` says, of those whose KV can be kept at rest.

    ``promise`` is what ``kvlab compare --certify`` takes. Raises AdviceError where no codec holds it, RunError where
    the run has no rows for it or too few items.
    """
    results = run if isinstance(run, Results) else Results.load(run)
    request = CertifyRequest.read(promise)
    certificate = request.of(results.frame())
    holding = [Policy.parse(one.policy) for one in certificate.policies if one.holds]
    codecs = dict.fromkeys(one.codec for one in holding if one.retention.is_lossless and not one.codec.is_lossless)
    found = tuple(codec for codec in codecs if _can_be_kept(codec))
    if not found:
        raise AdviceError(
            f"no codec that can be kept at rest holds {promise} in these {certificate.items} items: "
            "allow a larger loss, or leave the run out"
        )
    sure = "expected" if request.confidence is None else f"{request.confidence:.0%} sure"
    what = request.metric if request.kind is None else f"{request.metric} of {request.kind}"
    words = f"lose at most {request.at_most:.3g} of {what} ({sure}, {certificate.items} items)"
    return CertifiedCodecs(found, words)


def _can_be_kept(codec: Module) -> bool:
    try:
        Policy(Paged(), Ram(), codec)
    except PolicyError:
        return False
    return True
