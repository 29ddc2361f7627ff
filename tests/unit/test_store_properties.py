"""The store against a dictionary: any sequence of puts, reads, restarts and accidents, and never a wrong byte."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from kvlab.store import Match, Namespace, Store
from kvlab.store.replacement import REPLACEMENTS
from tests.soaking import times
from tests.store_kit import fetch, opened, payloads, rows, same, sound

NAMESPACES = [Namespace("m", "", "f32", 4), Namespace("m", "q4", "f32", 4, "tenant")]
tokens_ = st.lists(st.integers(0, 2), min_size=1, max_size=40)
ns_ = st.sampled_from(NAMESPACES)
replace_ = st.sampled_from(REPLACEMENTS)
write_ = st.sampled_from(["back", "through"])


def shared(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class Machine(RuleBasedStateMachine):
    """What both machines do. ``ram`` and ``ssd`` are budgets."""

    ram: int
    ssd: ClassVar[int]
    exact: ClassVar[bool]

    @initialize(replace=replace_, write=write_, admit=st.sampled_from([1, 1, 2]), little=st.booleans())
    def open(self, replace: str, write: str, admit: int, little: bool) -> None:
        self.ram = 700 if little else self.ram
        self.folder = Path(tempfile.mkdtemp(prefix="kvlab-store-"))
        self.how = {"block": 4, "replace": replace, "write": write, "ram": self.ram, "ssd": self.ssd}
        self.how["admit"] = 1 if self.exact else admit
        self.store: Store = opened(self.folder, **self.how)
        self.put_: dict[Namespace, list[list[int]]] = {ns: [] for ns in NAMESPACES}
        self.marks: dict[Namespace, set[tuple[int, ...]]] = {ns: set() for ns in NAMESPACES}
        self.held: list[tuple[Match, Namespace, list[int]]] = []

    def reach(self, ns: Namespace, tokens: list[int]) -> int:
        return max((shared(tokens, one) for one in self.put_[ns]), default=0)

    @rule(ns=ns_, tokens=tokens_, again=st.booleans())
    def put(self, ns: Namespace, tokens: list[int], again: bool) -> None:
        start = 0 if again else self.store.stored(ns, tokens)
        self.store.put(ns, tokens, start, payloads(tokens, start, ns))
        self.put_[ns].append(tokens)

    @rule(ns=ns_, tokens=tokens_)
    def put_longer(self, ns: Namespace, tokens: list[int]) -> None:
        if self.put_[ns]:
            self.put(ns, (self.put_[ns][-1] + tokens)[:80], False)

    @rule(ns=ns_, tokens=tokens_)
    def read(self, ns: Namespace, tokens: list[int]) -> None:
        match = fetch(self.store, tokens, ns)
        best = self.reach(ns, tokens)
        assert match.tokens == best if self.exact else match.tokens <= best
        assert (match.miss == "") == (match.tokens == len(tokens))

    @precondition(lambda self: self.ram > 700)  # else pinned blocks may leave no memory for a put
    @rule(ns=ns_, tokens=tokens_)
    def hold(self, ns: Namespace, tokens: list[int]) -> None:
        self.held.append((self.store.match(ns, tokens), ns, tokens))

    @precondition(lambda self: self.held)
    @rule(how=st.sampled_from(["read", "release", "forget"]))
    def let_go(self, how: str) -> None:
        match, ns, tokens = self.held.pop(0)
        if how == "read":
            got, match = self.store.read(match)
            for piece, payload in zip(match.pieces, got, strict=True):
                same(payload, rows(tokens, piece.start, piece.start + piece.used, ns))
        elif how == "release":
            self.store.release(match)

    @rule(ns=ns_, tokens=tokens_, n=st.integers(1, 40))
    def mark(self, ns: Namespace, tokens: list[int], n: int) -> None:
        source = self.put_[ns][-1] if self.put_[ns] else tokens
        source = source[:n]
        self.store.put_checkpoint(ns, source, {"s": np.array(source)})
        self.marks[ns].add(tuple(source))

    @rule(ns=ns_, tokens=tokens_, own=st.booleans())
    def read_marked(self, ns: Namespace, tokens: list[int], own: bool) -> None:
        tokens = [*self.put_[ns][-1], *tokens[:2]] if own and self.put_[ns] else tokens
        got, match = self.store.read(self.store.match(ns, tokens, checkpoint=True))
        for piece, payload in zip(match.pieces, got, strict=True):
            same(payload, rows(tokens, piece.start, piece.start + piece.used, ns))
        state = self.store.read_checkpoint(match)
        reach = self.reach(ns, tokens)
        best = max((n for n in range(reach + 1) if tuple(tokens[:n]) in self.marks[ns]), default=0)
        assert match.tokens == best if self.exact else match.tokens <= best
        if state is not None:
            assert state["s"].tolist() == tokens[: match.tokens]
        elif self.exact:
            assert match.tokens == 0

    @rule()
    def flush(self) -> None:
        assert self.store.flush()

    @rule()
    def restart(self) -> None:
        self.held.clear()
        self.store.close()
        self.store = opened(self.folder, **self.how)

    @invariant()
    def consistent(self) -> None:
        if hasattr(self, "store"):
            sound(self.store)
            held = self.store.tiers_bytes()
            assert held["ram"] <= self.ram + 300 and held["ssd"] <= self.ssd

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)


class Roomy(Machine):
    """Budgets for everything: a match is exactly as long as what was put allows, before and after restarts."""

    ram, ssd, exact = 1 << 20, 1 << 22, True


class Tight(Machine):
    """Budgets for a few blocks, and damage now and then: a match may be shorter, never wrong."""

    ram, ssd, exact = 1000, 8000, False

    @rule(which=st.integers(0, 1000), at=st.integers(0, 100_000))
    def flip_a_bit(self, which: int, at: int) -> None:
        files = sorted(path for path in (self.folder / "blocks").rglob("*") if path.is_file())
        if files:
            path = files[which % len(files)]
            data = bytearray(path.read_bytes())
            data[at // 8 % len(data)] ^= 1 << at % 8
            path.write_bytes(data)

    @rule(which=st.integers(0, 1000))
    def delete_a_file(self, which: int) -> None:
        files = sorted(path for path in (self.folder / "blocks").rglob("*") if path.is_file())
        if files:
            files[which % len(files)].unlink()

    @invariant()
    def consistent(self) -> None:
        if hasattr(self, "store"):
            held = self.store.tiers_bytes()
            assert held["ram"] <= self.ram + 300 and held["ssd"] <= self.ssd
            problems = self.store.check_integrity().problems
            assert all("in the index but not there" in one for one in problems)


@times(8)
@pytest.mark.parametrize("machine", [Roomy, Tight])
def test_no_sequence_of_accidents_gives_a_wrong_byte(machine: type[RuleBasedStateMachine], count: int) -> None:
    how = settings(
        max_examples=count, stateful_step_count=40, derandomize=count == 8,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip
    run_state_machine_as_test(machine, settings=how)
