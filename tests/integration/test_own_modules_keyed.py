"""Modules of one's own: what they store is theirs alone, and none is left out in silence."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np
import pytest

from kvlab.caches import make_caches
from kvlab.caches.codecs import Arrays, Codec
from kvlab.decoder import Decoder
from kvlab.errors import PolicyError
from kvlab.models import LoadedModel
from kvlab.policies import Full, Module, Paged, Policy, Quantized, Raw, Rotating, Tiered

PROMPT = np.random.default_rng(5).integers(5, 250, 184).tolist()


def rounding_codec(step: float, *, own_name: str = "rounding-of-test") -> Module:
    """A codec that rounds rows to multiples of a step, which is in its code and in no parameter."""

    @dataclass(frozen=True)
    class Rounding(Module):
        name: ClassVar[str] = own_name
        slot: ClassVar[str] = "codec"

    class RoundingCodec(Codec):
        module: ClassVar[type[Module]] = Rounding

        def __init__(self, module: Module) -> None: ...

        def encode(self, keys: mx.array, values: mx.array) -> dict[str, mx.array]:
            return {"k": mx.round(keys / step) * step, "v": mx.round(values / step) * step}

        def decode(self, rows: Arrays) -> tuple[mx.array, mx.array]:
            return rows["k"], rows["v"]

    KEPT.append(RoundingCodec)
    return Rounding()


KEPT: list[type] = []
"""A class that nothing refers to is forgotten, and its codec with it."""


def answer(loaded: LoadedModel, policy: Policy) -> Any:
    with Decoder(loaded, policy) as decoder:
        return decoder.generate(PROMPT, max_tokens=8)


def test_a_codec_of_ones_own_shares_no_block_with_raw_or_another_codec(llama: LoadedModel, tmp_path: Path) -> None:
    tiers = Tiered(dir=str(tmp_path))
    own = rounding_codec(0.5)
    policies = [own | Paged() | tiers, Policy(Paged(), tiers), Quantized() | Paged() | tiers]
    for policy in policies:
        first = answer(llama, policy)
        assert first.cached_tokens == 0 and first.miss in ("never_seen", "other_policy")
    for policy in policies:
        assert answer(llama, policy).cached_tokens == len(PROMPT) - 1


@pytest.mark.parametrize("step", [0.25, 0.125])
def test_a_codec_that_is_defined_anew_under_its_name_reads_none_of_the_old_rows(
    step: float, llama: LoadedModel, tmp_path: Path
) -> None:
    name, tiers = f"anew-{step}-of-test", Tiered(dir=str(tmp_path))
    assert answer(llama, rounding_codec(0.5, own_name=name) | Paged() | tiers).cached_tokens == 0
    assert answer(llama, rounding_codec(0.5, own_name=name) | Paged() | tiers).cached_tokens == len(PROMPT) - 1
    changed = answer(llama, rounding_codec(step, own_name=name) | Paged() | tiers)
    assert (changed.cached_tokens, changed.miss) == (0, "other_policy")


def test_own_code_is_no_part_of_the_key_of_kvlabs_modules(llama: LoadedModel, tmp_path: Path) -> None:
    with Decoder(llama, f"quantized:bits=8|tiered:dir={tmp_path}") as decoder:
        assert decoder.namespace().policy == "quantized:bits=8,group=64"


@dataclass(frozen=True)
class OwnFull(Full):
    name: ClassVar[str] = "own-full-of-test"


@dataclass(frozen=True)
class OwnRaw(Raw):
    name: ClassVar[str] = "own-raw-of-test"


@dataclass(frozen=True)
class Squeezed(Module):
    name: ClassVar[str] = "squeezed-of-test"
    slot: ClassVar[str] = "codec"
    is_lossless: ClassVar[bool] = True


@pytest.mark.parametrize("module", [OwnFull(), OwnRaw(), Squeezed()])
def test_a_module_that_says_it_changes_nothing_is_not_left_out_in_silence(module: Module, llama: LoadedModel) -> None:
    with pytest.raises(PolicyError, match=f"'{module.name}' is a (retention|codec) that says is_lossless"):
        Decoder(llama, Policy(module))
    with pytest.raises(PolicyError, match="would leave it out"):
        make_caches(llama.model, Policy(module))


@dataclass(frozen=True)
class Nameless(Quantized):
    """Would be keyed as ``quantized``."""


@dataclass(frozen=True)
class NamelessWindow(Rotating):
    """Would be shown as ``rotating``."""


@dataclass(frozen=True)
class NamelessPaged(Paged):
    """Would be shown as ``paged``."""


@pytest.mark.parametrize("module", [Nameless(), NamelessWindow(), NamelessPaged()])
def test_a_module_without_a_name_of_its_own_is_refused(module: Module) -> None:
    with pytest.raises(PolicyError, match="has no name of its own, and would pass for '(quantized|rotating|paged)'"):
        Policy(module)
