"""The trie of prompts: what a request starts from and what leaves, held against mlx-lm's own ``LRUPromptCache``."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import LRUPromptCache

from kvlab.decoder.reuse.kept_sequence import KeptSequence
from kvlab.decoder.reuse.prompt_plan import PromptPlan

BYTES_PER_TOKEN = 10


def kept(tokens, *, cuttable: bool = True, kind: str = "assistant") -> KeptSequence:
    tokens = np.array(tokens)
    return KeptSequence(
        tokens, nbytes=BYTES_PER_TOKEN * len(tokens), cut_from=0 if cuttable else len(tokens), kind=kind
    )


def conversation(i: int, length: int = 20) -> np.ndarray:
    return 1000 * i + np.arange(length)


def test_a_repeated_prompt_computes_its_last_token():
    plan = PromptPlan()
    plan.insert(kept(conversation(1, 25)))
    assert plan.look_up(conversation(1, 20)).tokens == 19
    assert plan.look_up(conversation(1, 25)).tokens == 24, "an equal sequence too, which mlx-lm's server fails at"


def test_the_next_turn_starts_behind_prompt_and_answer():
    plan = PromptPlan()
    plan.insert(kept(conversation(1, 71)))
    start = plan.look_up(conversation(1, 95))
    assert (start.tokens, start.miss) == (71, "never_seen")


def test_a_copy_leaves_the_sequence_so_that_branches_do_not_take_it():
    plan = PromptPlan()
    plan.insert(kept(conversation(1, 400)))
    branch = np.concatenate([conversation(1, 120), conversation(2, 280)])
    start = plan.look_up(branch)
    assert (start.tokens, start.miss) == (120, "diverged_at=120")
    plan.insert(kept(branch))
    assert plan.look_up(conversation(1, 420)).tokens == 400


def test_the_shortest_longer_sequence_is_cut():
    plan = PromptPlan()
    short = kept(np.concatenate([conversation(1, 10), conversation(3, 5)]))
    plan.insert(kept(np.concatenate([conversation(1, 10), conversation(2, 50)])))
    plan.insert(short)
    assert plan.look_up(np.concatenate([conversation(1, 10), conversation(4, 5)])).source is short


def test_the_eleventh_sequence_sends_the_first_one_away_though_it_was_just_read():
    plan = PromptPlan(10)
    for i in range(10):
        plan.insert(kept(conversation(i + 1)))
    assert plan.look_up(conversation(1, 30)).tokens == 20
    assert [one.tokens[0] for one in plan.insert(kept(conversation(11)))] == [1000]
    again = plan.look_up(conversation(1, 30))
    assert (again.tokens, again.miss) == (0, "evicted")


def test_a_prompt_of_one_token_starts_from_nothing():
    plan = PromptPlan()
    plan.insert(kept(conversation(1)))
    start = plan.look_up(conversation(1, 1))
    assert (start.tokens, start.source) == (0, None)


def test_a_lookup_refreshes_the_order_where_asked():
    plan = PromptPlan(2, refresh=True)
    plan.insert(kept(conversation(1)))
    plan.insert(kept(conversation(2)))
    plan.look_up(conversation(1, 30))
    assert [one.tokens[0] for one in plan.insert(kept(conversation(3)))] == [2000]


def test_victims_are_answers_then_user_messages_then_system_prompts_unless_outnumbered():
    plan = PromptPlan(3)
    for i, kind in enumerate(["system", "user", "assistant"], start=1):
        plan.insert(kept(conversation(i), cuttable=False, kind=kind))
    gone = [plan.insert(kept(conversation(4 + i), cuttable=False, kind=kind)) for i, kind in enumerate(["user"] * 3)]
    assert [one.kind for [one] in gone] == ["user", "user", "user"], "one answer is fewer than two user messages"
    assert [one.kind for one in plan.insert(kept(conversation(9), cuttable=False))] == ["assistant"]


def test_a_longer_sequence_replaces_its_prefixes_where_all_layers_can_be_cut():
    plan = PromptPlan()
    plan.insert(kept(conversation(1, 10), kind="system"))
    plan.insert(kept(conversation(1, 20)))
    plan.insert(kept(conversation(1, 30)))
    assert [len(one) for one in plan.known()] == [30]


def test_stored_prefixes_stay_and_are_all_that_helps_where_layers_cannot_be_cut():
    plan = PromptPlan()
    for length, kind in ((10, "system"), (20, "user"), (30, "assistant")):
        plan.insert(kept(conversation(1, length), cuttable=False, kind=kind))
    assert len(plan) == 3
    start = plan.look_up(np.concatenate([conversation(1, 25), conversation(2, 9)]))
    assert (start.tokens, start.source.kind) == (20, "user")
    assert plan.look_up(conversation(1, 30)).tokens == 20, "an equal sequence cannot give up its last token"


def test_one_sequence_at_a_time_is_the_early_server():
    plan = PromptPlan(1)
    plan.insert(kept(conversation(1)))
    assert plan.look_up(np.concatenate([conversation(1, 12), conversation(2, 9)])).tokens == 12
    plan.insert(kept(conversation(2)))
    assert plan.look_up(conversation(1)).tokens == 0 and len(plan) == 1


def test_bytes_are_never_over_the_limit_and_one_too_large_is_not_kept():
    plan = PromptPlan(10, 300)
    plan.insert(kept(conversation(1, 20)))
    assert [one.tokens[0] for one in plan.insert(kept(conversation(2, 15)))] == [1000]
    gone = plan.insert(kept(conversation(3, 31)))
    assert len(gone) == 2 and len(plan) == 0
    plan.check_integrity()


def test_tenants_never_start_from_tokens_of_one_another():
    plan = PromptPlan()
    plan.insert(kept(conversation(1)))
    assert plan.look_up(conversation(1), tenant="other").tokens == 0


class FakeCache:
    """A layer cache of so many tokens, for mlx-lm's trie."""

    def __init__(self, tokens: list[int], cuttable: bool) -> None:
        self.tokens, self.cuttable = list(tokens), cuttable

    @property
    def nbytes(self) -> int:
        return BYTES_PER_TOKEN * len(self.tokens)

    def is_trimmable(self) -> bool:
        return self.cuttable

    def trim(self, n: int) -> int:
        del self.tokens[len(self.tokens) - n :]
        return n


tokens = st.lists(st.integers(0, 1), min_size=2, max_size=9)
steps = st.lists(
    st.tuples(st.booleans(), tokens, st.sampled_from(["assistant", "user", "system"])), min_size=1, max_size=40
)


@pytest.mark.parametrize("cuttable", [True, False])
@settings(max_examples=150, deadline=None)
@given(steps, st.integers(1, 5), st.sampled_from([None, 60, 150]))
def test_the_plan_does_what_mlx_lm_does(cuttable, steps, count, limit):
    plan, theirs = PromptPlan(count, limit), LRUPromptCache(count, limit or 1 << 63)
    for is_insert, sequence, kind in steps:
        if is_insert:
            plan.insert(kept(sequence, cuttable=cuttable, kind=kind))
            theirs.insert_cache("model", sequence, [FakeCache(sequence, cuttable)], cache_type=kind)
        else:
            start = plan.look_up(sequence)
            found, rest = theirs.fetch_nearest_cache("model", sequence)
            if not rest and cuttable:
                assert start.tokens == len(sequence) - 1
            elif rest:
                assert start.tokens == len(sequence) - len(rest)
                assert found is None or found[0].tokens == sequence[: start.tokens]
            assert start.source is None or start.source.tokens[: start.tokens].tolist() == sequence[: start.tokens]
        plan.check_integrity()
        assert (len(plan), plan.nbytes) == (len(theirs), theirs.nbytes)
        by_kind = {kind: [s.tokens.tolist() for s in sequences] for kind, sequences in plan._order.items()}
        assert by_kind == {kind: [t for _, t in order] for kind, order in theirs._lru._lrus.items()}
