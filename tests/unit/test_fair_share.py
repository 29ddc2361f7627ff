"""Shares of the decoder's places: who comes next, and whose place is taken, for any requests."""

from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from kvlab.decoder.fair_share import Shares


@dataclass(frozen=True)
class One:
    """What shares need of a request."""

    number: int
    tenant: str = ""
    group: int = 0
    priority: int = 0
    is_reported: bool = True

    @property
    def rank(self):
        return (-self.priority, self.number)


def by_rank(requests):
    return sorted(requests, key=lambda one: one.rank)


requests = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 1), st.booleans()), max_size=30
).map(lambda rows: [One(i, *row) for i, row in enumerate(rows)])


def test_requests_that_stand_alone_come_in_the_order_of_their_age():
    waiting = [One(i, group=i) for i in range(9)]
    assert Shares([]).in_turn(waiting) == waiting


def test_a_newcomer_comes_before_the_later_answers_of_one_request():
    many = [One(i, group=1) for i in range(5)]
    newcomer = One(9, group=2)
    assert Shares([]).in_turn([*many, newcomer])[:2] == [many[0], newcomer]
    assert Shares([One(8, group=1)]).in_turn([*many, newcomer])[0] == newcomer


def test_tenants_take_turns_whatever_their_number_of_requests():
    busy = [One(i, "a", group=i) for i in range(6)]
    calm = [One(i, "b", group=i) for i in range(6, 8)]
    order = Shares([]).in_turn([*busy, *calm])
    assert [one.tenant for one in order] == list("ababaaaa")


@given(requests, requests)
def test_all_come_once_and_by_priority(active, waiting):
    order = Shares(active).in_turn(by_rank(waiting))
    assert sorted(order, key=lambda one: one.number) == waiting
    assert [one.priority for one in order] == sorted((one.priority for one in waiting), reverse=True)


@given(requests, st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 1))
def test_a_place_is_taken_only_where_shares_become_fairer_and_from_who_has_most(active, tenant, group, priority):
    request = One(99, tenant, group, priority)
    taken = Shares(active).over_share(request)
    tenants, groups = (
        Counter(one.tenant for one in active),
        Counter((one.tenant, one.group) for one in active),
    )
    able = [one for one in active if one.priority <= priority and one.is_reported]
    if taken is None:
        assert all(tenants[one.tenant] <= tenants[tenant] + 1 for one in able if one.tenant != tenant)
        same = [one for one in able if one.tenant == tenant]
        assert all(groups[tenant, one.group] <= groups[tenant, group] + 1 for one in same)
    else:
        assert taken in able
        if taken.tenant != tenant:
            assert tenants[taken.tenant] >= tenants[tenant] + 2
        else:
            assert groups[tenant, taken.group] >= groups[tenant, group] + 2
