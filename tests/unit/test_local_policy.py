"""The policy ``local(scorer)``: its spec, what it refuses, and the form of its blocks at rest."""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kvlab.caches.compressed_blocks import to_compressed_blocks, unpacked
from kvlab.caches.serialize import PayloadError
from kvlab.errors import PolicyError
from kvlab.policies import Local, Policy, Scorer
from kvlab.policies.scorers.model_layer import LayerContext
from tests.unit.test_scorer_formulas import make_context


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("local(h2o)", "adds up over all queries of a prompt: write another scorer"),
        ("local(adakv)", "keeps different numbers of rows in different heads"),
        ("local(dms(knorm):threshold=1)", "keeps different numbers of rows in different heads"),
        ("local(criticalkv(kvzip))", "has scores of one prompt only"),
        ("local(oracle)", "has scores of one prompt only"),
        ("local(pyramidkv)", "keeps different numbers of rows in different layers"),
        ("local(local)", "which nothing can wrap: write local alone"),
        ("local:block=1", "write 2 to 4096 tokens"),
        ("local:block=5000", "write 2 to 4096 tokens"),
        ("local:sinks=-1", "write sinks=0 or more"),
        ("local(knorm:interval=4)", "interval=4 has no meaning: leave it out"),
        ("local(snapkv):block=32", "16 rows of 32 have no room for the 32 that always stay"),
        ("local:budget=0.01,block=128", "1 rows of 128 have no room for the 4 that always stay"),
        ("local|paged", "write paged:block=128, or leave paged out beside tiers"),
        ("local|paged:block=64|tiered", "write paged:block=128, or leave paged out beside tiers"),
        ("local|slots", "stores blocks, which 'slots' does not: use it with paged or tiers"),
        ("local|kivi", "encodes rows in groups"),
        ("adakv(local)", "which nothing can wrap: write local alone"),
    ],
)
def test_what_cannot_be_local_is_refused_with_what_to_write(spec: str, hint: str) -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.parse(spec)
    assert hint in str(caught.value)


def test_rows_of_a_block_are_a_share_or_a_number() -> None:
    assert [Local(budget=budget).block_rows for budget in (0.25, 1.0, 40, 200)] == [32, 128, 40, 128]


def test_the_tiers_get_the_local_block() -> None:
    policy = Policy.parse("local(knorm):block=64|tiered")
    assert policy == Policy.parse("local(knorm):block=64|tiered|paged:block=64")
    assert str(policy) == "local(knorm):block=64|tiered" and not policy.lossless
    assert policy.storage_key == "local(knorm:budget=0.5,interval=16):budget=0.5,interval=16,block=64,sinks=4"


def test_sinks_stay_in_the_first_block_only() -> None:
    made = make_context(8, 0)
    context = LayerContext(**made.__dict__)
    scores = Local(block=8).score(context)
    assert bool(mx.all(mx.isinf(scores[..., :4]))) and not bool(mx.any(mx.isinf(scores[..., 4:])))


SIZES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 3), st.integers(1, 9))


@given(SIZES, st.sampled_from([np.float32, np.uint16, np.float16, np.uint32, np.int32]), st.data())
def test_rows_come_back_from_blocks_at_rest(sizes: tuple[int, ...], dtype: type, data: st.DataObject) -> None:
    heads, block_rows, blocks, width = sizes
    block = data.draw(st.integers(block_rows, 12))
    rows = data.draw(arrays.arrays(dtype, (1, heads, block_rows * blocks, width)))
    first = data.draw(st.integers(0, blocks))
    made = to_compressed_blocks({"0.1:k_scales:float16": rows}, first * block, blocks * block, block, block_rows)
    assert len(made) == blocks - first
    assert all(array.shape[:2] == (heads, block) for one in made for array in one.values())
    found = [unpacked(one)["0.1:k_scales:float16"] for one in made]
    for i, one in enumerate(found, first):
        assert one.dtype == dtype
        np.testing.assert_array_equal(one, rows[0, :, i * block_rows : (i + 1) * block_rows])


@pytest.mark.parametrize("name", ["0:k:float32", "0:k:float32:8x:float32", "0:k:float32:8x64:object", "k"])
def test_other_arrays_are_no_compressed_rows(name: str) -> None:
    with pytest.raises(PayloadError):
        unpacked({name: np.zeros((2, 32, 16), np.uint8)})


def test_code_of_an_own_scorer_in_parentheses_is_part_of_the_key() -> None:
    from kvlab.decoder.reuse.paged import policy_key

    class Mine(Scorer):
        name: ClassVar[str] = "mine-in-local"

        def score(self, context: LayerContext) -> mx.array:  # type: ignore[override]
            return context.keys.sum(axis=-1)

    try:
        policy = Policy(Local(scorer=Mine()), "tiered")
        assert "#" in policy_key(policy) and "#" not in policy_key(Policy.parse("local|tiered"))
    finally:
        Mine.name = ""
