"""Policies: composition, the spec grammar, and the errors that help."""

import dataclasses
import pickle
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlab.errors import PolicyError
from kvlab.policies import (
    SLOTS,
    Full,
    KNorm,
    Module,
    NoReuse,
    Paged,
    Policy,
    Quantized,
    Ram,
    Random,
    Raw,
    Rotating,
    Scorer,
    SnapKV,
    Tiered,
    format_bytes,
    parse_bytes,
    registry,
)
from kvlab.policies.slots import known_modules

EXAMPLE = "paged:block=64|quantized:bits=4|tiered:ram=2GB,ssd=20GB,replace=s3fifo"


def test_modules_compose_and_print_as_the_design_says():
    policy = Paged(block=64) | Quantized(bits=4) | Tiered(ram="2GB", ssd="20GB", replace="s3fifo")
    assert str(policy) == EXAMPLE
    assert Policy.parse(EXAMPLE) == policy
    assert hash(Policy.parse(EXAMPLE)) == hash(policy)


def test_a_bare_name_is_enough():
    policy = Policy.parse("tiered")
    assert policy == Paged() | Tiered()
    assert str(Paged() | Tiered()) == "tiered"
    assert str(Policy.parse("paged|ram")) == "paged"
    assert str(Policy.parse("full")) == str(Policy()) == "full"
    assert Policy.parse("paged").tiers == Ram()


def test_the_order_of_composition_does_not_matter():
    assert Tiered() | Paged(block=64) == Paged(block=64) | Tiered()
    assert str(Tiered() | Quantized(bits=4) | SnapKV(budget=0.25)) == "snapkv:budget=0.25|quantized:bits=4|tiered"


retentions = st.one_of(
    st.just(Full()),
    st.builds(Rotating, window=st.integers(65, 4096), sinks=st.integers(0, 64)),
    *(
        st.builds(scorer, budget=st.one_of(st.integers(65, 9999), st.floats(0.01, 1.0)), interval=st.integers(1, 64))
        for scorer in (KNorm, SnapKV, Random)
    ),
)
codecs = st.one_of(
    st.just(Raw()), st.builds(Quantized, bits=st.sampled_from((2, 4, 8)), group=st.sampled_from((32, 64)))
)
reuses = st.one_of(st.none(), st.just(NoReuse()), st.builds(Paged, block=st.integers(1, 4096)))
sizes = st.integers(0, 10**13)
tiers = st.one_of(
    st.none(),
    st.builds(Ram, ram=sizes),
    st.builds(
        Tiered,
        ram=sizes,
        ssd=sizes,
        replace=st.sampled_from(("lru", "cost")),
        dir=st.one_of(st.none(), st.just("/tmp/x")),
    ),
)  # fmt: skip


@given(st.lists(st.one_of(retentions, codecs, reuses, tiers), min_size=4, max_size=4, unique_by=lambda m: m and m.slot))
def test_every_policy_round_trips_through_its_spec(modules):
    try:
        policy = Policy(*(module for module in modules if module is not None))
    except PolicyError:
        return
    assert Policy.parse(str(policy)) == policy
    assert str(Policy.parse(str(policy))) == str(policy)
    assert pickle.loads(pickle.dumps(policy)) == policy


def test_a_policy_is_immutable():
    with pytest.raises(AttributeError, match="compose"):
        Policy.parse("paged").codec = Raw()  # type: ignore[misc]


@pytest.mark.parametrize(
    ("spec", "lossless", "storage_key"),
    [
        ("full", True, ""),
        ("tiered", True, ""),
        ("quantized:bits=4", False, "quantized:bits=4,group=64"),
        ("rotating:window=64", False, "rotating:window=64,sinks=4"),
        # Scorers evict after the prompt's KV was stored, so what rests is exact.
        ("snapkv|paged", False, ""),
    ],
)
def test_what_is_lossless_and_what_keys_the_blocks(spec, lossless, storage_key):
    policy = Policy.parse(spec)
    assert policy.lossless is lossless
    assert policy.storage_key == storage_key


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", "empty policy"),
        ("nothing-of-the-kind", " full, "),
        ("quantised", "did you mean 'quantized'"),
        ("quantized:bits=3", "bits=8, bits=4 or bits=2"),
        ("quantized:group=48", "group=32"),
        ("raw|quantized", "'raw' and 'quantized'"),
        ("rotating:window=4", "above sinks=4"),
        ("rotating:sinks=-1", "negative"),
        ("rotating|paged", "'full' with it"),
        ("none|tiered", "paged|tiered"),
        ("paged:blok=64", "it takes block"),
        ("paged:block", "as key=value"),
        ("paged:block=64,block=32", "twice"),
        ("paged:block=many", "type int"),
        ("paged:block=0", "1 to 4096"),
        ("tiered:ram=2XB", "512MB"),
        ("tiered:replace=mru", "s3fifo"),
        ("tiered:write=later", "back, through"),
        ("tiered:admit=0", "1 or more"),
        ("tiered:daily=much", "512MB"),
        ("snapshot:replace=mru", "s3fifo"),
        ("none|snapshot", "paged|snapshot"),
        ("snapkv:budget=0", "0.25"),
        ("snapkv:budget=1.5", "0.25"),
        ("snapkv:budget=20", "window=32"),
        ("snapkv:kernel=4", "odd"),
        ("snapkv:pooling=sum", "avg or max"),
        ("snapkv:window=0", "1 or more"),
        ("knorm:interval=0", "1 or more"),
    ],
)
def test_wrong_specs_say_what_to_write(spec, words):
    with pytest.raises(PolicyError) as error:
        Policy.parse(spec)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_the_registry_lists_every_module_with_slot_and_defaults():
    rows = {info.name: info for info in registry()}
    assert {
        "full",
        "rotating",
        "knorm",
        "snapkv",
        "random",
        "raw",
        "quantized",
        "none",
        "paged",
        "ram",
        "tiered",
        "snapshot",
    } <= set(rows)
    assert all(info.slot in SLOTS for info in rows.values())
    # Modules of other tests' users may be known too, and need no docstring.
    own = [name for name, module in known_modules().items() if module.__module__.startswith("kvlab.")]
    assert len(own) >= 12 and all(rows[name].summary for name in own)
    assert rows["quantized"].parameters == {"bits": 8, "group": 64, "k_bits": None, "v_bits": None}


def test_a_module_without_a_docstring_is_listed_and_shown():
    class Plain(Scorer):
        name: ClassVar[str] = "plain-and-undescribed"

    (row,) = [info for info in registry() if info.name == "plain-and-undescribed"]
    assert row.summary == ""
    assert "plain-and-undescribed" in Policy(Plain(budget=8))._repr_html_()


def test_html_escapes_what_an_own_module_says():
    @dataclasses.dataclass(frozen=True)
    class Angled(Scorer):
        """Keeps rows <i> & j."""

        name: ClassVar[str] = "angled"

    assert "rows &lt;i&gt; &amp; j." in Policy(Angled(budget=8))._repr_html_()


def test_defining_a_class_registers_it():
    @dataclasses.dataclass(frozen=True)
    class Newest(Scorer):
        """The newest rows stay."""

        name: ClassVar[str] = "newest-of-test"

        def score(self, context):
            return context.positions

    assert Policy.parse("newest-of-test:budget=7").retention == Newest(budget=7)
    assert issubclass(Newest, Module)


@given(st.integers(0, 10**15))
def test_byte_sizes_round_trip(size):
    assert parse_bytes(format_bytes(size)) == size


def test_byte_sizes_are_read_as_people_write_them():
    assert [parse_bytes(s) for s in ("2GB", "1.5 MB", "4GiB", "12", "7kb")] == [2 * 10**9, 1_500_000, 2**32, 12, 7000]
    with pytest.raises(PolicyError, match="negative"):
        parse_bytes(-1)
