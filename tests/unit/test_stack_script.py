"""The stack's measurement: which candidates and contexts it has, and what it makes of rows and of bytes."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest

from kvlab.errors import RunError
from kvlab.figures.script import Script
from kvlab.results import Row, row
from kvlab.systems import System, all_systems
from kvlab.systems.presets.mlx_lm import MlxLm
from tests.stack_script import STACK, memory, stack


def test_every_part_has_every_system_beside_tiered_and_full() -> None:
    names = [str(one) for one in all_systems()]
    assert len(names) == 14
    for experiment in stack.experiments(None, stack.Size()).values():
        read = [System.parse(name) for name in experiment.systems]
        assert [(one.name, one.variant, one.engine) for one in read] == [
            (one.name, one.variant, one.engine) for one in map(System.parse, names)
        ]
        assert experiment.policies == ("full", "tiered")
        assert {cell.policy for cell in experiment.cells()} == {"full", "tiered", *experiment.systems}


def test_a_system_that_is_added_later_is_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    before = all_systems()

    @dataclasses.dataclass(frozen=True)
    class Later(MlxLm):
        release: ClassVar[str] = "later"

    monkeypatch.setattr(stack, "all_systems", lambda: [*before, Later(prompt_cache_size=3)])
    size = stack.Size()
    assert size.systems[-1] == "mlx-lm:prompt_cache_size=3" and len(size.systems) == 15
    assert size.systems[-1] in stack.experiments(None, size)["agents"].systems


def test_all_systems_with_a_setting_have_the_same_context_for_a_sequence() -> None:
    limited = {name: System.parse(stack.with_context(name, 1024)).config.context for name in stack.Size().systems}
    grow = {name for name, context in limited.items() if context is None}
    assert grow == {"mlx-lm", "mlx-lm:variant=article", "ollama:engine=mlx"}
    assert {context for context in limited.values() if context} == {1024}
    assert stack.with_context("llama.cpp:variant=article", 1024) == "llama.cpp:variant=article,context=4096"
    with pytest.raises(RunError, match="write a multiple of 256"):
        stack.with_context("llama.cpp", 1000)


def test_code_of_every_preset_counts_among_the_code_of_the_rows() -> None:
    script = Script.of(STACK.parent / "stack.toml")
    assert script is not None and script.path == STACK / "measure.py"
    assert {type(one).__module__ for one in all_systems()} <= set(script.modules)


def test_questions_beyond_the_context_are_told_by_the_prompts_of_full() -> None:
    def at(policy: str, metric: str, value: float, turn: int, kind: str = "recall") -> Row:
        return row(policy, "stack-overflow", metric, value, turn=turn, conversation="c", kind=kind)

    sizes = [at("full", "prompt_tokens", tokens, turn) for turn, tokens in ((1, 1023), (2, 1024))]
    asked = [at("ollama", "accuracy", 1, 1), at("ollama", "accuracy", 0, 2), at("ollama", "ttft_ms", 9, 2, "chat")]
    kinds = [one["kind"] for one in stack.by_context([*sizes, *asked], 1024)]
    assert kinds == ["recall", "beyond", "recall", "beyond", "chat"]


def test_what_is_at_rest_is_the_most_of_a_run() -> None:
    rows = [
        row("paged", "stack-agents", "kv_bytes_ram", value, n=n, seed=0, repeat=0, turn=1, model="m")
        for n, value in ((4, 5.0), (4, 7.0), (8, 6.0))
    ]
    made = stack.at_rest(rows)
    assert [(one["n"], one["value"], one["kind"]) for one in made] == [(4, 7, "together"), (8, 6, "together")]


@pytest.mark.parametrize(
    ("held", "kept", "adds"),
    [
        ([0, 100, 120, 140, 160], 4, 20),  # what is common is held once
        ([0, 100, 200, 300, 300], 3, 100),  # a list of three: the fourth agent takes a place
        ([0, 100, 101, 99, 100], 1, 100),  # one place
        ([0, 30, 31, 29, 30], 4, 0),  # a buffer, and all on SSD
        ([0, 2, 1, 2, 1], 0, 0),  # nothing in memory
        ([0, 100, 190, 210, 230], 4, 20),  # a second sequence stays live, the others are blocks
    ],
)
def test_one_more_waiting_agent_costs_what_memory_grows_by(held: list[float], kept: int, adds: float) -> None:
    assert memory.one_more(held, least=8, kept=kept) == adds
