"""Two decoders with tiers of their own and one remote: the second computes only what the first did not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvlab.decoder import Decoder
from kvlab.models import LoadedModel
from kvlab.policies import Policy
from kvlab.store import Store, StoreConfig
from kvlab.store.remote import RemoteConfig
from kvlab.store.ssd.tier import SsdConfig
from tests.conftest import MakeModel
from tests.helpers import Weights
from tests.remote_kit import PATIENT_S, redis_program, redis_server
from tests.store_kit import MB

BLOCK = 16
SYSTEM = [5 + (7 * n) % 200 for n in range(5 * BLOCK + 3)]
TURNS = [[*SYSTEM, *range(300, 320)], [*SYSTEM, *range(300, 320), *range(340, 400)]]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis server where there is one, else a folder."""
    if redis_program() is not None and pytest.importorskip("redis", reason="the extra `remote` is not installed"):
        with redis_server(tmp_path_factory.mktemp("redis")) as server:
            yield server.url
    else:
        pytest.importorskip("obstore", reason="the extra `remote` is not installed")
        yield f"file://{tmp_path_factory.mktemp('remote')}"


class Machine:
    """A decoder with RAM and SSD of its own."""

    def __init__(self, model: LoadedModel, policy: str, folder: Path, url: str | None) -> None:
        remote = (RemoteConfig(url, wait_s=PATIENT_S),) if url is not None else ()
        self.store = Store(StoreConfig(BLOCK, 64 * MB, below=(SsdConfig(folder, 64 * MB), *remote)))
        self.decoder = Decoder(model, Policy.parse(f"paged:block={BLOCK}|{policy}|tiered"), store=self.store)

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.decoder.close()
        self.store.close()

    def answers(self, turns: list[list[int]] = TURNS) -> list[list[int]]:
        self.cached: list[int] = []
        self.tiers: list[dict[str, int]] = []
        found = []
        for prompt in turns:
            match = self.store.match(self.decoder.namespace(), prompt)
            self.tiers.append(dict(match.by_tier))
            self.store.release(match)
            done = self.decoder.generate(prompt, max_tokens=6)
            self.cached.append(done.cached_tokens)
            found.append(list(done.tokens))
            assert self.store.flush()
        return found


@pytest.mark.parametrize("policy", ["full", "quantized:bits=4", "rotated:bits=4"])
def test_the_second_machine_computes_what_is_new_and_says_the_same(
    bundled: LoadedModel, url: str, policy: str, tmp_path: Path
) -> None:
    with Machine(bundled, policy, tmp_path / "alone", None) as alone:
        expected = alone.answers()
        assert alone.cached[0] == 0 and alone.answers() == expected
        at_best = list(alone.cached)
    with Machine(bundled, policy, tmp_path / "first", url) as first:
        assert first.answers() == expected and first.cached[0] == 0
    with Machine(bundled, policy, tmp_path / "second", url) as second:
        assert second.answers() == expected
        assert second.cached == at_best, "the first machine's KV was not all of use"
        assert second.tiers[0].keys() == {"remote"}
        stats = second.store.stats()
        assert stats["remote_blocks_received"] and stats["trouble"] == ""


def test_lossy_kv_is_not_handed_to_a_lossless_request(bundled: LoadedModel, url: str, tmp_path: Path) -> None:
    turns = [[9, *TURNS[0]]]
    with Machine(bundled, "quantized:bits=4", tmp_path / "lossy", url) as lossy:
        lossy.answers(turns)
    with Machine(bundled, "full", tmp_path / "lossless", url) as lossless:
        lossless.answers(turns)
        assert lossless.cached == [0]


def test_kv_of_a_mac_s_weights_comes_back_as_it_was(
    make_model: MakeModel, mac_weights: Weights, url: str, tmp_path: Path
) -> None:
    """16 bits and weights of 4 bits: with as much from the remote as from SSD, the answer is the same."""
    model = make_model("llama", mac_weights)
    turns = [[n % 50 + 3 for n in range(4 * BLOCK + 5)]] * 2
    with Machine(model, "full", tmp_path / "first", url) as first:
        expected = first.answers(turns)
    with Machine(model, "full", tmp_path / "second", url) as second:
        found = second.answers(turns)
        assert second.cached == [first.cached[1]] * 2 and found == [expected[1]] * 2


@pytest.mark.parametrize("policy", ["full", "quantized:bits=4"])
def test_a_block_from_the_remote_is_bit_for_bit_the_one_that_was_computed(
    bundled: LoadedModel, url: str, policy: str, tmp_path: Path
) -> None:
    """What tells the second machine's lossy answers from those of one that computes all, the first one has too."""
    turns = [[11, *turn] for turn in TURNS]

    def held(machine: Machine) -> tuple[int, list[dict[str, bytes]]]:
        payloads, match = machine.store.read(machine.store.match(machine.decoder.namespace(), turns[-1]))
        return match.tokens, [{name: array.tobytes() for name, array in one.items()} for one in payloads]

    with Machine(bundled, policy, tmp_path / "first", url) as first:
        answers, computed = first.answers(turns), held(first)
    with Machine(bundled, policy, tmp_path / "second", url) as second:
        assert held(second) == computed and computed[0] == len(turns[-1])
        assert second.answers(turns) == answers
