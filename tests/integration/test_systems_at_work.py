"""Every system in the decoder: the answers of no cache where it loses nothing, and what its server reuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvlab.decoder import Decoder
from kvlab.models import LoadedModel
from kvlab.policies.ssd_folder import with_ssd_folder
from kvlab.systems import System, all_systems

PROMPT = [5 + (37 * n * n + 11 * n) % 2000 for n in range(600)]
TO_THE_TOKEN = (599, 300)
"""Cached tokens of an exact repeat, and of a prompt that departs after 300 tokens."""
CACHED = {
    "omlx": (512, 256),
    "omlx:variant=article": (512, 256),
    "vmlx": (599, 256),
    "vmlx:variant=article": (576, 256),
}
"""Whole blocks of 256 and of 64 tokens; vMLX also finds the end of a prompt, where all of it is there."""


@pytest.fixture(scope="module")
def uncached(bundled: LoadedModel) -> tuple[int, ...]:
    with Decoder(bundled, "full") as decoder:
        return decoder.generate(PROMPT, max_tokens=6).tokens


@pytest.mark.parametrize("system", all_systems(), ids=str)
def test_a_system_answers_as_without_a_cache_and_reuses_what_its_server_does(
    bundled: LoadedModel, system: System, uncached: tuple[int, ...], tmp_path: Path
) -> None:
    with Decoder(bundled, with_ssd_folder(system.policy, tmp_path), config=system.config) as decoder:
        cold = decoder.generate(PROMPT, max_tokens=6)
        again = decoder.generate(PROMPT, max_tokens=6)
        departs = decoder.generate(PROMPT[:300] + PROMPT[:200], max_tokens=1)
    assert cold.cached_tokens == 0
    assert (again.cached_tokens, departs.cached_tokens) == CACHED.get(str(system), TO_THE_TOKEN)
    if system.policy.lossless:
        assert cold.tokens == again.tokens == uncached
