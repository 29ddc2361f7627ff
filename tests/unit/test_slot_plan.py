"""Slots: which one a request takes, what is saved, and what moves, held against what llama.cpp's server was seen to do.

A conversation is a range of token numbers of its own; answers are ``ANSWER`` tokens, of which the last is not kept.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlab.decoder.reuse.kept_sequence import KeptSequence
from kvlab.decoder.reuse.slot_plan import HostList, SlotPlan, SlotStart
from kvlab.errors import KvlabError

ANSWER = 4
BYTES_PER_TOKEN = 10
SESSIONS = Path(__file__).parents[1] / "real_sessions" / "llama_server_b10434.json"
"""What llama-server (b10434) answered to random requests, one after another, with several flags.

A request is ``[earlier, n, more, reply, cached, slot]``: its prompt is ``more`` behind the first ``n`` tokens that were
kept of an earlier request; ``reply`` is the answer without its last token; the server said ``cached`` and ``slot``.
"""


def prompt(conversation: int, length: int, shared: int = 0) -> np.ndarray:
    """``length`` tokens of a conversation, of which the first ``shared`` are those of all conversations."""
    own = conversation * 10_000 + np.arange(length)
    return np.concatenate([np.arange(shared), own[shared:]])


def answered(tokens: np.ndarray, start: SlotStart | None = None, answer: int = ANSWER, **known: object) -> KeptSequence:
    kept = np.concatenate([tokens, -1 - np.arange(answer - 1)])
    return KeptSequence(kept, nbytes=BYTES_PER_TOKEN * len(kept), **known)


def serve(plan: SlotPlan, tokens: np.ndarray, answer: int = ANSWER, **known: object) -> SlotStart:
    """Start a request and end it with its answer."""
    start = plan.start(tokens)
    plan.end(start.slot, answered(tokens, answer=answer, **known))
    plan.check_integrity()
    return start


def cached(plan: SlotPlan, *prompts: np.ndarray) -> list[int]:
    return [serve(plan, one).tokens for one in prompts]


def test_a_repeated_prompt_computes_its_last_token():
    assert cached(SlotPlan(4), prompt(1, 200), prompt(1, 200)) == [0, 199]


def test_a_prompt_that_goes_on_behind_the_answer_starts_there():
    plan = SlotPlan(4)
    serve(plan, prompt(1, 200), answer=10)
    [held] = [one for one in plan.slots if one is not None]
    assert len(held) == 209, "the last sampled token is not kept"
    assert serve(plan, np.concatenate([held.tokens, prompt(9, 30)])).tokens == 209
    assert serve(plan, np.concatenate([prompt(1, 200), prompt(8, 30)])).tokens == 200


def test_a_prompt_that_diverges_starts_where_it_does():
    plan = SlotPlan(4)
    serve(plan, prompt(1, 200))
    start = serve(plan, np.concatenate([prompt(1, 120), prompt(2, 80)]))
    assert (start.tokens, start.origin, start.miss) == (120, "slot", "diverged_at=120")


def test_a_fresh_server_fills_its_slots_from_the_last_one():
    plan = SlotPlan(4, unified=False)
    assert [serve(plan, prompt(i, 50)).slot for i in range(6)] == [3, 2, 1, 0, 3, 2]


@pytest.mark.parametrize(("shared", "found"), [(24, 0), (27, 0), (30, 0), (31, 31), (36, 36)])
def test_separate_slots_are_chosen_by_a_share_above_a_tenth(shared, found):
    plan = SlotPlan(4, unified=False)
    assert cached(plan, prompt(1, 300, shared), prompt(2, 300, shared)) == [0, found]


@pytest.mark.parametrize(("shared", "found"), [(40, 0), (80, 0), (120, 120)])
def test_one_memory_for_all_slots_finds_a_quarter_of_a_saved_prompt(shared, found):
    plan = SlotPlan(4)
    cached(plan, prompt(1, 400, shared), prompt(5, 200))  # the second one has the first one saved
    assert [one is None for one in plan.slots].count(False) == 1
    assert serve(plan, prompt(2, 400, shared)).tokens == found


def test_a_whole_session_finds_what_the_real_server_found():
    """Cached tokens and slots of llama-server b10434 with its defaults, 4 tokens an answer."""
    numbers = itertools.count(1)
    plan, seen = SlotPlan(4), []

    def ask(tokens: np.ndarray) -> None:
        start = serve(plan, tokens)
        seen.append((start.tokens, start.slot))

    first = prompt(next(numbers), 200)
    ask(first)
    ask(first)
    for is_between, shared in itertools.product((False, True), (24, 40, 60)):
        donor = prompt(next(numbers), 200)
        ask(donor)
        if is_between:
            ask(prompt(next(numbers), 100))
        ask(np.concatenate([donor[:shared], prompt(next(numbers), 200 - shared)]))
        ask(donor)
    assert seen == [
        (0, 3), (199, 3),
        (0, 2), (24, 2), (199, 2),
        (0, 1), (40, 1), (199, 1),
        (0, 0), (60, 0), (199, 0),
        (0, 3), (0, 2), (0, 1), (199, 1),
        (0, 0), (0, 3), (0, 2), (199, 2),
        (0, 1), (0, 0), (60, 3), (60, 3),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "session", json.loads(SESSIONS.read_text(encoding="utf-8")), ids=lambda one: one["flags"] or "default"
)
def test_random_sessions_find_what_the_real_server_found(session):
    plan, kept = SlotPlan(**session["settings"]), []
    for earlier, shared, more, reply, found, slot in session["requests"]:
        request = [*(kept[earlier][:shared] if earlier is not None else []), *more]
        start = plan.start(request)
        assert (start.tokens, start.slot) == (found, slot)
        kept.append([*request, *reply])
        plan.end(start.slot, KeptSequence(np.array(kept[-1]), nbytes=len(kept[-1])))


def test_a_saved_sequence_moves_so_that_the_branch_takes_it_from_the_donor():
    plan = SlotPlan(4)
    cached(plan, prompt(1, 400, 120), prompt(5, 200))
    branch = serve(plan, prompt(2, 400, 120))
    assert (branch.tokens, branch.origin) == (120, "host")
    assert serve(plan, prompt(1, 400, 120)).tokens == 120, "not the donor's 400"


def test_two_conversations_on_one_slot_get_their_own_tokens_back():
    turns = [prompt(1, 400, 100), prompt(2, 400, 100)] * 2
    assert cached(SlotPlan(1, unified=False), *turns) == [0, 100, 399, 399]


def test_without_a_host_list_two_conversations_share_only_the_common_part():
    turns = [prompt(1, 400, 100), prompt(2, 400, 100)] * 2
    assert cached(SlotPlan(1, unified=False, host=0), *turns) == [0, 100, 100, 100]


def test_four_conversations_in_rotation_over_two_saved_ones_find_nothing():
    plan = SlotPlan(1, unified=False, host=2 * 303 * BYTES_PER_TOKEN + 1000)
    assert cached(plan, *[prompt(i, 300) for i in range(4)] * 3) == [0] * 12
    assert len(plan.host) == 2


def test_two_conversations_in_rotation_over_two_saved_ones_find_all():
    plan = SlotPlan(1, unified=False, host=2 * 303 * BYTES_PER_TOKEN + 1000)
    assert cached(plan, *[prompt(i, 300) for i in range(2)] * 3) == [0, 0, 299, 299, 299, 299]


def test_a_new_request_empties_the_idle_slots_of_one_memory():
    plan = SlotPlan(4)
    running = [plan.start(prompt(i, 50)) for i in (1, 2)]
    for i, start in zip((1, 2), running, strict=True):
        plan.end(start.slot, answered(prompt(i, 50)))
    assert [one is None for one in plan.slots].count(False) == 2
    start = plan.start(prompt(3, 50))
    assert plan.slots == (None,) * 4 and len(plan.host) == 2 and len(start.saved) == 2


def test_busy_slots_are_not_emptied():
    plan = SlotPlan(4)
    first, second = plan.start(prompt(1, 50)), plan.start(prompt(1, 50))
    assert first.slot != second.slot and second.tokens == 0 and plan.busy == (2, 3)
    with pytest.raises(KvlabError, match="all 4 slots are busy"):
        for _ in range(3):
            plan.start(prompt(1, 50))


def test_separate_slots_are_saved_and_keep_their_tokens():
    plan = SlotPlan(2, unified=False)
    cached(plan, prompt(1, 100), prompt(2, 100))
    assert len(plan.host) == 1 and None not in plan.slots


def test_any_common_token_chooses_a_slot_where_there_is_no_threshold():
    one = SlotPlan(2, share=0.0, unified=False, host=0)
    assert cached(one, prompt(1, 300, 1), prompt(2, 300, 1)) == [0, 1]
    by_use = SlotPlan(2, share=None, unified=False, host=0)
    assert cached(by_use, prompt(1, 300, 200), prompt(2, 300, 200)) == [0, 0]


def test_the_host_list_drops_prefixes_skips_repeats_and_what_is_too_large():
    host = HostList(1000)
    short, long = KeptSequence(np.arange(10), nbytes=100), KeptSequence(np.arange(20), nbytes=200)
    assert host.takes(short) and host.save(short) == []
    assert host.save(long) == [short]
    assert not host.takes(KeptSequence(np.arange(20), nbytes=1)) and not host.takes(KeptSequence(np.arange(5)))
    assert not host.takes(KeptSequence(np.arange(50), nbytes=1001))
    other = KeptSequence(np.arange(100, 130), nbytes=900)
    assert host.takes(other) and host.save(other) == [long]


def test_a_saved_sequence_must_beat_the_slot_on_both_parts():
    host = HostList(1000)
    host.save(KeptSequence(np.arange(40)))
    slot = KeptSequence(np.concatenate([np.arange(40), np.arange(900, 905)]))
    request = np.concatenate([np.arange(40), np.arange(500, 600)])
    assert host.take(request, "", slot, 0.25) is None, "not more of the request is found"
    assert len(host.take(request, "", None, 0.25)) == 40 and len(host) == 0


def test_layers_that_cannot_be_cut_start_at_the_newest_checkpoint_that_is_left():
    plan = SlotPlan(1, unified=False, host=0)
    state = {"cut_from": 1403, "checkpoints": (884, 1396)}
    serve(plan, prompt(1, 1400), **state)
    again = serve(plan, prompt(1, 1400), **state)
    assert (again.tokens, again.miss) == (1396, "no_checkpoint")
    assert serve(plan, np.concatenate([prompt(1, 1000), prompt(2, 300)]), **state).tokens == 884


def test_a_sequence_without_a_checkpoint_is_computed_from_the_start():
    plan = SlotPlan(1, unified=False, host=0)
    serve(plan, prompt(1, 300), cut_from=303)
    start = serve(plan, prompt(1, 300))
    assert (start.tokens, start.source, start.origin) == (0, None, "")


def test_tenants_never_start_from_tokens_of_one_another():
    plan = SlotPlan(1)
    serve(plan, prompt(1, 100))
    start = plan.start(prompt(1, 100), tenant="other")
    assert (start.tokens, start.miss) == (0, "never_seen")


def test_a_miss_says_that_the_tokens_are_gone():
    plan = SlotPlan(1, unified=False, host=303 * BYTES_PER_TOKEN)
    cached(plan, prompt(1, 300), prompt(2, 300), prompt(3, 300))
    assert plan.start(prompt(1, 300)).miss == "evicted"


# -- a slow, plain model of the same rules ----------------------------------------------------------------------------


class PlainServer:
    """llama.cpp's rules, written with lists of tokens and loops; one request at a time."""

    def __init__(self, n: int, share: float | None, unified: bool, host: int, keep: float) -> None:
        self.slots: list[list[int]] = [[] for _ in range(n)]
        self.used, self.host, self.clock = [-1] * n, [], 0
        self.share, self.unified, self.limit, self.keep = share, unified, host, keep

    def serve(self, request: list[int], answer: list[int]) -> int:
        chosen, best = None, self.share if self.share is not None else 2.0
        for i, slot in enumerate(self.slots):
            if slot and lcp(slot, request) and lcp(slot, request) / len(request) > best:
                chosen, best = i, lcp(slot, request) / len(request)
        by_use = chosen is None
        if chosen is None:
            for i in range(len(self.slots)):
                if chosen is None or self.used[i] <= self.used[chosen]:
                    chosen = i
        slot = self.slots[chosen]
        if self.limit and (by_use or lcp(slot, request) / len(slot) < 0.5):
            if slot:
                self.save(slot)
            kept, found = (lcp(slot, request) / len(slot), lcp(slot, request) / len(request)) if slot else (-1, 0)
            place = None
            for i, entry in enumerate(self.host):
                one = lcp(entry, request)
                if one / len(entry) >= self.keep and one / len(entry) > kept and one / len(request) > found:
                    place, kept, found = i, one / len(entry), one / len(request)
            if place is not None:
                slot = self.host.pop(place)
        for i, other in enumerate(self.slots):
            if i != chosen and other and self.limit:
                self.save(other)
                if self.unified:
                    self.slots[i] = []
        self.clock += 1
        self.slots[chosen], self.used[chosen] = request + answer, self.clock
        return min(lcp(slot, request), len(request) - 1)

    def save(self, tokens: list[int]) -> None:
        size = BYTES_PER_TOKEN * len(tokens)
        if size > self.limit or any(entry[: len(tokens)] == tokens for entry in self.host):
            return
        self.host = [entry for entry in self.host if tokens[: len(entry)] != entry] + [tokens]
        while sum(map(len, self.host)) * BYTES_PER_TOKEN > self.limit:
            self.host.pop(0)


def lcp(a: Sequence[int], b: Sequence[int]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


tokens = st.lists(st.integers(0, 2), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(tokens, st.lists(st.integers(0, 2), max_size=3)), min_size=1, max_size=25),
    st.integers(1, 4),
    st.sampled_from([None, 0.0, 0.1, 0.5]),
    st.booleans(),
    st.sampled_from([0, 100, 300, 10_000]),
    st.sampled_from([0.0, 0.25, 0.9]),
)
def test_slots_agree_with_a_plain_model_of_the_rules(requests, n, share, unified, host, keep):
    plan, plain = (
        SlotPlan(n, share=share, unified=unified, host=host, keep=keep),
        PlainServer(n, share, unified, host, keep),
    )
    for request, answer in requests:
        start = plan.start(request)
        held = start.source.tokens[: start.tokens].tolist() if start.source is not None else []
        assert held == request[: start.tokens], "what a request starts from are its own first tokens"
        assert start.tokens < len(request)
        assert start.tokens == plain.serve(request, answer)
        plan.end(start.slot, KeptSequence(np.array(request + answer), nbytes=BYTES_PER_TOKEN * len(request + answer)))
        plan.check_integrity()
        assert [entry.tokens.tolist() for entry in plan.host] == plain.host
        assert [one.tokens.tolist() if one is not None else [] for one in plan.slots] == plain.slots
