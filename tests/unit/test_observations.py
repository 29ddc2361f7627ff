"""Observations of real servers: the file keeps how far prompts agree, and says clearly what it cannot read."""

from __future__ import annotations

import itertools
import random

import pytest

from kvlab.systems.observations import (
    ObservationsError,
    ObservedSession,
    Step,
    common_length,
    opening,
    read_observations,
    write_observations,
)

FACTS = {"server": "some", "version": "1", "flags": "", "packages": {}, "model": "m", "date": "2026-11-26"}


def session(seed: int, setup: str = "some") -> ObservedSession:
    """Twelve requests, each of a random part of an earlier one, its reply included, and tokens of its own."""
    rng = random.Random(seed)
    known: list[tuple[int, ...]] = [()]
    steps = []
    for number in range(12):
        earlier = rng.choice(known)
        prompt = (*earlier[: rng.randint(0, len(earlier))], *(rng.randrange(9) for _ in range(rng.randint(1, 30))))
        reply = tuple(rng.randrange(9) for _ in range(rng.randint(0, 5)))
        known.append((*prompt, *reply))
        steps.append(
            Step("scenario", str(number), "completion", prompt, rng.randint(0, 2), reply, rng.choice([None, 7]))
        )
    return ObservedSession(setup, tuple(steps), FACTS)


def agreements(of: ObservedSession) -> list[int]:
    """How far each two sequences agree, and each prompt with each sequence."""
    whole = [(*step.prompt, *step.reply) for step in of.steps]
    prompts = [step.prompt for step in of.steps]
    return [common_length(a, b) for a, b in itertools.product([*whole, *prompts], whole)]


@pytest.mark.parametrize("seed", range(20))
def test_sequences_read_from_a_file_agree_as_far_as_those_that_were_sent(tmp_path, seed):
    sent = session(seed)
    write_observations(tmp_path / "rows.csv", [sent])
    [read] = read_observations(tmp_path / "rows.csv")
    assert agreements(read) == agreements(sent)
    for mine, theirs in zip(read.steps, sent.steps, strict=True):
        assert (mine.suffix, mine.cached, len(mine.reply)) == (theirs.suffix, theirs.cached, len(theirs.reply))
    assert read.facts == FACTS


def test_prompts_of_a_chat_end_with_the_tokens_that_open_a_reply(tmp_path):
    opens, asked, reply = (90, 91, 92), (7, 7, 8), (5, 5)
    first = Step("chat", "first", "chat", (*asked, *opens), 3, reply, 0)
    other = Step("chat", "other", "chat", (7, 7, 9, *opens), 3, reply, 2)
    later = Step("chat", "next", "chat", (*first.prompt, *reply, 6, *opens), 3, reply, 8)
    write_observations(tmp_path / "rows.csv", [ObservedSession("some", (first, other, later), FACTS)])
    [read] = read_observations(tmp_path / "rows.csv")
    assert [step.prompt[-3:] for step in read.steps] == [opening(3)] * 3
    assert agreements(read) == agreements(ObservedSession("some", (first, other, later), FACTS))


def test_a_session_written_later_replaces_its_own_and_keeps_the_others(tmp_path):
    file = tmp_path / "rows.csv"
    write_observations(file, [session(1, "one"), session(2, "two")])
    write_observations(file, [session(3, "one")])
    read = {found.setup: agreements(found) for found in read_observations(file)}
    assert read == {"one": agreements(session(3)), "two": agreements(session(2))}


def test_a_restart_is_no_request(tmp_path):
    restarted = ObservedSession("some", (Step("restart", "restart", "restart"),), FACTS)
    write_observations(tmp_path / "rows.csv", [restarted])
    [read] = read_observations(tmp_path / "rows.csv")
    assert read.steps == restarted.steps
    assert not read.steps[0].is_request


@pytest.mark.parametrize("damage", ["missing", "no rows", "too short"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, damage):
    file = tmp_path / "rows.csv"
    write_observations(file, [session(1)])
    text = file.read_text()
    if damage == "missing":
        file.unlink()
    elif damage == "no rows":
        file.write_text(text.replace("common", "number"))
    else:  # a row says that it agrees farther than the earlier one is long
        head, first, *rest = text.splitlines()
        second = rest[0].split(",")
        second[5:7] = ["0", "5000"]
        file.write_text("\n".join([head, first, ",".join(second)]))
    with pytest.raises(ObservationsError, match=r"rows\.csv holds no observations"):
        read_observations(file)
