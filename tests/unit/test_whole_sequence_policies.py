"""The policy modules ``slots`` and ``prompts``: their specs, and what they refuse."""

import pytest

from kvlab.errors import PolicyError
from kvlab.policies import Policy, Slots, WholePrompts, parse_module


@pytest.mark.parametrize(
    ("spec", "module"),
    [
        ("slots", Slots()),
        ("slots:n=1,share=0,unified=false,host=0", Slots(n=1, share=0.0, unified=False, host="0")),
        ("slots:share=none", Slots(share=None)),
        ("prompts", WholePrompts()),
        ("prompts:count=1", WholePrompts(count=1)),
        ("prompts:bytes=1GB,order=lru", WholePrompts(bytes="1GB", order="lru")),
    ],
)
def test_specs_of_whole_sequences_round_trip(spec, module):
    assert parse_module(spec) == module
    assert Policy.parse(str(Policy(module))) == Policy(module)


def test_equal_host_limits_are_equal_policies():
    assert Policy.parse("slots:host=8192MiB") == Policy.parse("slots")
    assert Policy.parse("slots:host=0MB") == Policy.parse("slots:host=0")


def test_whole_sequences_have_no_tiers():
    assert Policy.parse("slots").tiers is None and Policy.parse("prompts").tiers is None
    assert Policy.parse("paged").tiers is not None


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("slots|tiered", "write slots alone, or paged|tiered"),
        ("prompts|ram", "write prompts alone, or paged|ram"),
        ("snapkv|slots", "full with slots"),
        ("rotating|prompts", "'full' with it"),
        ("slots:n=0", "write 1 to 1024 slots"),
        ("slots:share=1.0", "a part below 1"),
        ("slots:keep=2", "a part from 0 to 1"),
        ("slots:spacing=0", "spacing=0 must be 1 or more"),
        ("slots:host=much", "cannot read the size 'much'"),
        ("prompts:count=0", "count=0 must be 1 sequence or more"),
        ("prompts:order=sieve", "write one of fifo, lru"),
    ],
)
def test_refused_whole_sequences_say_what_to_write(spec, said):
    with pytest.raises(PolicyError, match=said.replace("|", r"\|")):
        Policy.parse(spec)
