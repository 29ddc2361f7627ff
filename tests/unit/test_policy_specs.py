"""Specs that nest, lists of them, and what may stand beside ``|``."""

import dataclasses
import pickle
from typing import Any, ClassVar

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlab.charts.policy_styles import policy_colors
from kvlab.cli.main import split_policies
from kvlab.errors import PolicyError
from kvlab.experiments.config import read_experiment
from kvlab.policies import (
    KNorm,
    Module,
    Paged,
    Policy,
    Quantized,
    Random,
    ScoreContext,
    Scorer,
    SnapKV,
    Tiered,
    registry,
)


@dataclasses.dataclass(frozen=True)
class Wrapper(Scorer):
    """Scores of another scorer, weighed."""

    name: ClassVar[str] = "wrapper-of-test"
    inner: Scorer = KNorm()
    alpha: float = 0.2
    strict: bool = False

    def score(self, context: ScoreContext) -> mx.array:
        return self.inner.score(context)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needy(Scorer):
    """A wrapper that has no inner scorer by default."""

    name: ClassVar[str] = "needy-of-test"
    inner: Scorer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blend(Scorer):
    """Two scorers, the second of which may be missing."""

    name: ClassVar[str] = "blend-of-test"
    first: Scorer
    second: Scorer | None = None
    share: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Twice(Module):
    """A codec over another one."""

    name: ClassVar[str] = "twice-of-test"
    slot: ClassVar[str] = "codec"
    inner: Quantized
    times: int = 2


SNAP = SnapKV(budget=0.3, window=8)


@pytest.mark.parametrize(
    ("policy", "spec"),
    [
        (Wrapper(inner=SNAP), "wrapper-of-test(snapkv:budget=0.3,window=8)"),
        (Wrapper(inner=SNAP, alpha=0.5), "wrapper-of-test(snapkv:budget=0.3,window=8):alpha=0.5"),
        (Wrapper(), "wrapper-of-test"),
        (Wrapper(budget=9, strict=True), "wrapper-of-test:budget=9,strict=true"),
        (Needy(inner=Wrapper(inner=SNAP)), "needy-of-test(wrapper-of-test(snapkv:budget=0.3,window=8))"),
        (Needy(inner=Wrapper(alpha=1.0)), "needy-of-test(wrapper-of-test:alpha=1.0)"),
        (Needy(inner=Wrapper(inner=KNorm(), alpha=1.0)), "needy-of-test(wrapper-of-test:alpha=1.0)"),
        (Blend(first=SNAP, second=Random()), "blend-of-test(snapkv:budget=0.3,window=8,random)"),
        (Blend(first=SNAP, share=0.1), "blend-of-test(snapkv:budget=0.3,window=8):share=0.1"),
        (
            Wrapper(inner=SNAP) | Twice(inner=Quantized(bits=4)) | Paged(block=64),
            "wrapper-of-test(snapkv:budget=0.3,window=8)|paged:block=64|twice-of-test(quantized:bits=4)",
        ),
    ],
)  # fmt: skip
def test_wrappers_print_and_parse(policy: Policy | Module, spec: str) -> None:
    assert str(policy) == spec
    assert Policy.parse(spec) == Policy.parse(policy)
    assert str(Policy.parse(spec)) == spec
    assert pickle.loads(pickle.dumps(policy)) == policy
    spaced = spec.replace("(", " ( ").replace(")", " ) ").replace(",", " , ")
    assert Policy.parse(spaced) == Policy.parse(policy)


def test_the_block_key_of_a_wrapper_holds_all_parameters_of_what_it_wraps() -> None:
    key = Policy(Twice(inner=Quantized(bits=4))).storage_key
    assert key == "twice-of-test(quantized:bits=4,group=64):times=2"
    assert Policy(Twice(inner=Quantized(bits=2))).storage_key != key


scorers: Any = st.recursive(
    st.builds(SnapKV, budget=st.floats(0.01, 1.0), window=st.integers(1, 64))
    | st.builds(KNorm, interval=st.integers(1, 9)),
    lambda inner: st.builds(Wrapper, inner=inner, alpha=st.floats(0, 9), strict=st.booleans())
    | st.builds(Needy, inner=inner)
    | st.builds(Blend, first=inner, second=st.none() | inner),
    max_leaves=4,
)  # fmt: skip


@given(st.lists(scorers, min_size=1, max_size=4), st.sampled_from((",", ";", " , ")))
def test_lists_of_nested_policies_round_trip(modules: list[Module], mark: str) -> None:
    policies = [module | Paged(block=64) for module in modules]
    text = mark.join([*map(str, policies), "tiered:ram=1GB,ssd=2GB"])
    assert [Policy.parse(spec) for spec in split_policies([text])] == [*policies, Policy.parse(Tiered(ssd="2GB"))]


def test_experiment_files_read_nested_policies(tmp_path: Any) -> None:
    file = tmp_path / "nested.toml"
    file.write_text(
        'policies = ["wrapper-of-test(snapkv:budget={budget},window=8):alpha={alpha}", "full"]\n'
        "[grid]\nbudget = [0.2, 0.3]\nalpha = [0.1]\n"
    )
    assert {cell.policy for cell in read_experiment(file).cells()} == {
        "full",
        "wrapper-of-test(snapkv:budget=0.2,window=8):alpha=0.1",
        "wrapper-of-test(snapkv:budget=0.3,window=8):alpha=0.1",
    }


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("adakv-of-nobody(snapkv:budget=0.3)", "unknown policy 'adakv-of-nobody': known are "),
        ("wrapper-of-test(snapvk)", "unknown policy 'snapvk': did you mean 'snapkv'?"),
        ("wrapper-of-test(paged)", "cannot wrap 'paged': it wraps one of "),
        ("twice-of-test(raw)", "cannot wrap 'raw': it wraps one of quantized"),
        ("wrapper-of-test(snapkv,knorm)", "wraps 1, not 2"),
        ("wrapper-of-test(snapkv|paged)", "write wrapper-of-test(snapkv)|paged"),
        ("wrapper-of-test(snapkv", "parentheses of 'wrapper-of-test(snapkv' do not match"),
        ("wrapper-of-test(snapkv))", "do not match"),
        ("wrapper-of-test(snapkv)alpha=3", "write wrapper-of-test(snapkv):key=value"),
        ("wrapper-of-test:inner=snapkv", "in parentheses: write wrapper-of-test(snapkv)"),
        ("wrapper-of-test:strict=maybe", "type true or false"),
        ("wrapper-of-test(budget=3)", "sets a parameter of no policy"),
        ("needy-of-test", "wraps another: write needy-of-test(NAME), with one of "),
        ("needy-of-test()", "wraps another"),
        ("paged(snapkv)", "wraps no other: write paged"),
        ("(snapkv)", "unknown policy ''"),
    ],
)
def test_wrong_nested_specs_say_what_to_write(spec: str, words: str) -> None:
    with pytest.raises(PolicyError) as error:
        Policy.parse(spec)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_folders_may_have_pairs_of_parentheses_in_their_names_and_no_single_ones() -> None:
    policy = Policy.parse("tiered:dir=/tmp/kv (1)|paged:block=64")
    assert policy.tiers == Tiered(dir="/tmp/kv (1)")
    assert Policy.parse(str(policy)) == policy
    with pytest.raises(PolicyError, match="single parenthesis"):
        Tiered(dir="/tmp/kv(1")


# -- what may stand beside | ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy",
    [
        lambda: Paged() | "quantized",
        lambda: "quantized" | Paged(),
        lambda: Policy(Paged()) | "quantized",
        lambda: "paged" | Policy(Quantized()),
        lambda: Policy("paged", Quantized()),
        lambda: Policy("paged|quantized"),
        lambda: Policy(Policy("paged"), "quantized"),
        lambda: Paged() | "quantized|ram",
    ],
)
def test_specs_policies_and_modules_compose_in_any_order(policy: Any) -> None:
    assert policy() == Policy.parse("paged|quantized")


@pytest.mark.parametrize(
    ("compose", "words"),
    [
        (lambda: Paged() | "quantised", "did you mean 'quantized'"),
        (lambda: Paged() | "paged:block=64", "two policies for one slot"),
        (lambda: Paged() | Quantized, "Quantized is a class: write Quantized()"),
        (lambda: Policy(Paged), "Paged is a class: write Paged()"),
        (lambda: Policy.parse(Tiered), "Tiered is a class: write Tiered()"),
        (lambda: Paged() | None, "None is no policy: write a spec such as"),
        (lambda: Policy("paged") | 3, "3 is no policy"),
        (lambda: Policy.parse(["full", "paged"]), "is no policy"),
        (lambda: Paged() | "", "an empty policy"),
    ],
)
def test_what_is_no_policy_is_refused_with_what_to_write(compose: Any, words: str) -> None:
    with pytest.raises(PolicyError) as error:
        compose()
    assert words in str(error.value)


# -- where specs are shown --------------------------------------------------------------------------------------------


def test_listings_show_wrappers() -> None:
    rows = {info.name: info.parameters for info in registry()}
    assert rows["wrapper-of-test"]["inner"] == "knorm"
    assert rows["needy-of-test"]["inner"] == "required"
    assert rows["blend-of-test"]["second"] is None


def test_a_wrapper_has_one_colour_whatever_it_wraps() -> None:
    colors = policy_colors(["mine(snapkv:budget=0.3)", "mine(knorm)|paged", "snapkv"])
    assert len(set(colors.values())) == 3
    assert colors["mine(snapkv:budget=0.3)"] == policy_colors(["mine"])["mine"]
