"""Labels of a set of policies: the class of inputs is any set, in which defaults stand beside other values."""

from __future__ import annotations

import dataclasses
import itertools
from typing import ClassVar

import mlx.core as mx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvlab.policies import KNorm, Policy, ScoreContext, Scorer, policy_labels


@dataclasses.dataclass(frozen=True)
class Around(Scorer):
    """A wrapper whose label must name what differs inside of it."""

    name: ClassVar[str] = "around-of-test"
    inner: Scorer = KNorm()
    alpha: float = 0.2

    def score(self, context: ScoreContext) -> mx.array:
        return self.inner.score(context)


@pytest.mark.parametrize(
    ("policies", "labels"),
    [
        (["snapkv"], ["snapkv"]),
        (["full", "snapkv:budget=0.5"], ["full", "snapkv"]),
        (["snapkv:budget=0.5", "snapkv:budget=0.25"], ["snapkv:budget=0.5", "snapkv:budget=0.25"]),
        (["snapkv", "knorm:budget=0.25", "full"], ["snapkv:budget=0.5", "knorm:budget=0.25", "full"]),
        (["snapkv:budget=0.25", "knorm:budget=0.25"], ["snapkv:budget=0.25", "knorm:budget=0.25"]),
        (["snapkv:window=16", "snapkv:kernel=7"], ["snapkv:window=16,kernel=5", "snapkv:window=32,kernel=7"]),
        (["snapkv", "rotating:window=512"], ["snapkv", "rotating:window=512"]),  # not the same window
        (["quantized", "quantized:bits=4|paged"], ["quantized:bits=8", "paged|quantized:bits=4"]),
        (["tiered", "paged:block=64|tiered"], ["tiered", "paged:block=64|tiered"]),  # what is implied stays so
        (["paged", "paged:block=64|tiered:ram=6MB"], ["paged:block=32", "paged:block=64|tiered:ram=6MB"]),
        (["tiered", "tiered:ram=6MB"], ["tiered:ram=1GB", "tiered:ram=6MB"]),
        (["paged", "ram:ram=6MB|paged"], ["paged", "ram:ram=6MB"]),
        (["full", "paged", "tiered:ssd=1GB"], ["full", "paged", "tiered:ssd=1GB"]),
        (["tiered:dir=/a/b", "full"], ["tiered", "full"]),
        (["tiered:dir=/a", "tiered:dir=/b"], ["tiered:dir=/a", "tiered:dir=/b"]),
        (["tiered:dir=/a", "tiered"], ["tiered:dir=/a", "tiered:dir=none"]),
        (
            ["around-of-test(snapkv)", "around-of-test(snapkv:budget=0.25)", "around-of-test"],
            ["around-of-test(snapkv:budget=0.5)", "around-of-test(snapkv:budget=0.25)",
             "around-of-test(knorm:budget=0.5)"],
        ),
        (
            ["around-of-test(snapkv:budget=0.25)", "snapkv"],  # the wrapper has a budget of its own
            ["around-of-test(snapkv:budget=0.25)", "snapkv"],
        ),
        (["around-of-test:alpha=1.0", "around-of-test"], ["around-of-test:alpha=1.0", "around-of-test:alpha=0.2"]),
        (["omlx:variant=article", "mine:k=2|paged", "snapkv"], ["omlx:variant=article", "mine:k=2|paged", "snapkv"]),
    ],
)  # fmt: skip
def test_defaults_are_named_where_they_differ(policies: list[str], labels: list[str]) -> None:
    assert list(policy_labels(policies).values()) == labels


def options(name: str, **values: list[str]) -> list[str]:
    """Every spec of a module with up to two of these parameters."""
    pairs = [[f"{key}={value}" for value in texts] for key, texts in values.items()]
    chosen = [(), *((one,) for texts in pairs for one in texts)]
    chosen += [both for a, b in itertools.combinations(pairs, 2) for both in itertools.product(a, b)]
    return [f"{name}:{','.join(one)}" if one else name for one in chosen]


LOSSY = [
    "full", *options("snapkv", budget=["0.25", "0.5", "64"], window=["8", "32"]),
    *options("knorm", budget=["0.5", "0.75"]), *options("random", budget=["0.1"], seed=["0", "3"]),
    *(f"around-of-test({inner})" for inner in options("snapkv", budget=["0.5", "0.25"])),
]  # fmt: skip
REUSE = ["", *options("paged", block=["16", "32"], checkpoint=["64"])]
CODECS = ["", *options("quantized", bits=["4", "8"], group=["32", "64"])]
TIERS = [
    "",
    *options("ram", ram=["1GB", "5MB"], replace=["lru", "s3fifo"]),
    *options("tiered", ram=["5MB"], ssd=["2GB"]),
]
whole = st.tuples(*map(st.sampled_from, (LOSSY, REUSE, CODECS, TIERS))).map(lambda parts: "|".join(filter(None, parts)))


def is_policy(text: str) -> bool:
    try:
        return bool(Policy.parse(text))
    except ValueError:
        return False


@settings(max_examples=20)
@given(st.lists(whole.filter(is_policy), min_size=1, max_size=5))
@example(["snapkv:budget=0.5", "snapkv:budget=0.25"])
def test_labels_read_as_their_policies_and_are_as_long_as_they_must_be(texts: list[str]) -> None:
    """So that labels of different policies differ, whatever the set."""
    labels = policy_labels(texts)
    assert list(labels) == list(dict.fromkeys(texts))
    for text, label in labels.items():
        assert Policy.parse(label) == Policy.parse(text)
        assert len(label) >= len(str(Policy.parse(text)))
        assert list(policy_labels([text]).values()) == [str(Policy.parse(text))]


BUDGETS = ["snapkv", "snapkv:budget=0.25", "knorm", "full"]


@settings(max_examples=60)
@given(st.lists(st.sampled_from(BUDGETS), min_size=1))
def test_all_scorers_name_their_budget_where_one_of_them_must(texts: list[str]) -> None:
    named = {"budget=" in label for label in policy_labels(texts).values() if label != "full"}
    assert named <= {"snapkv:budget=0.25" in texts}
