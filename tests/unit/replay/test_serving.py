"""Waits of requests that a decoder serves side by side."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlab.replay.serving import QueuedRequest, first_token_s
from kvlab.replay.waits import queue_s
from kvlab.speed import Speed

SPEED = Speed(0.01, step_s=0.1, prefill_share=0.5)
SECONDS = st.integers(0, 40).map(lambda number: number / 8)
JOBS = st.lists(
    st.builds(QueuedRequest, SECONDS, SECONDS, SECONDS.map(lambda one: one + 0.125), st.integers(0, 20)), min_size=1
)


def waits(jobs: list[QueuedRequest], places: int, speed: Speed = SPEED) -> list[float]:
    return first_token_s(jobs, speed, places).tolist()


def test_a_request_alone_restores_and_computes() -> None:
    assert waits([QueuedRequest(3.0, 0.5, 2.0, 9)], 1) == pytest.approx([2.5])


def test_two_prompts_share_the_time() -> None:
    assert waits([QueuedRequest(0.0, 0.0, 2.0, 0), QueuedRequest(1.0, 0.0, 2.0, 0)], 8) == pytest.approx([3.0, 3.0])


def test_a_request_that_restores_holds_up_the_prompt_before_it() -> None:
    assert waits([QueuedRequest(0.0, 0.0, 2.0, 0), QueuedRequest(1.0, 1.0, 1.0, 0)], 8) == pytest.approx([4.0, 3.0])


def test_a_prompt_beside_an_answer_gets_its_share_until_the_answer_ends() -> None:
    # The first answer begins at 1: 10 steps of 0.1 s at half speed take 2 s, in which half of 2 s is computed.
    assert waits([QueuedRequest(0.0, 0.0, 1.0, 10), QueuedRequest(1.0, 0.0, 2.0, 0)], 8) == pytest.approx([1.0, 3.0])


def test_a_request_without_a_place_waits_for_the_end_of_an_answer() -> None:
    assert waits([QueuedRequest(0.0, 0.0, 1.0, 10), QueuedRequest(0.5, 0.0, 1.0, 0)], 1) == pytest.approx([1.0, 2.5])


def test_a_request_waits_for_the_prompt_that_it_continues_and_lets_others_pass() -> None:
    jobs = [QueuedRequest(0.0, 0.0, 2.0, 0), QueuedRequest(0.0, 0.0, 1.0, 0, after=0), QueuedRequest(0.5, 0.0, 0.5, 0)]
    assert waits(jobs, 2) == pytest.approx([2.5, 3.5, 1.0])


def test_a_request_that_begins_beside_an_answer_costs_more() -> None:
    jobs = [QueuedRequest(0.0, 0.0, 1.0, 100), QueuedRequest(1.0, 0.0, 0.5, 0)]
    assert waits(jobs, 2, replace(SPEED, busy_s=0.25)) == pytest.approx([1.0, 0.25 + 1.0])


@given(JOBS, st.integers(1, 8))
def test_no_request_is_sooner_than_alone(jobs: list[QueuedRequest], places: int) -> None:
    jobs = sorted(jobs, key=lambda job: job.arrival)
    for job, wait in zip(jobs, waits(jobs, places), strict=True):
        assert wait >= job.alone + job.prefill - 1e-6


@given(JOBS, st.integers(1, 8))
def test_without_answers_the_server_is_done_when_a_queue_would_be(jobs: list[QueuedRequest], places: int) -> None:
    jobs = sorted((replace(job, answer=0) for job in jobs), key=lambda job: job.arrival)
    times = np.array([job.arrival for job in jobs])
    work = np.array([job.alone + job.prefill for job in jobs])
    ends = times + np.array(waits(jobs, places))
    assert ends.max() == pytest.approx((times + queue_s(times, work) + work).max())
