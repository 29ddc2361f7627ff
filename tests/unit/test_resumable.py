"""Long computations are interrupted in time, resume where they were, and can be stopped."""

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest

from kvlab.backends.x86 import blas_library, flash_attention, sgemm
from kvlab.backends.x86.resumable import Resumable, evaluate, maybe_yield, wait_for

pytestmark = pytest.mark.x86_only

PAST = 0.0
"""A time that is over: the computation is interrupted at every chance."""


def test_resumable_runs_one_step_a_call_when_its_time_is_over():
    seen: list[int] = []

    def count() -> None:
        for i in range(3):
            seen.append(i)
            maybe_yield()

    run = Resumable(count)
    for wanted in ([0], [0, 1], [0, 1, 2]):
        run.resume(PAST)
        assert seen == wanted and not run.dead
    run.resume(PAST)
    assert run.dead


def test_resumable_with_time_left_runs_to_its_end_on_the_same_thread():
    seen: list[threading.Thread] = []
    run = Resumable(lambda: (maybe_yield(), seen.append(threading.current_thread())))
    run.resume(time.perf_counter() + 60)
    assert run.dead and seen == [threading.current_thread()]


def test_yield_always_interrupts_even_with_time_left():
    run = Resumable(lambda: maybe_yield(always=True))
    run.resume(math.inf)
    assert not run.dead
    run.resume(math.inf)
    assert run.dead


def test_yield_does_nothing_outside_a_resumable():
    maybe_yield()
    maybe_yield(always=True)
    array = mx.ones(3) + 1
    evaluate(array)
    assert array.tolist() == [2, 2, 2]


def test_error_of_the_function_is_raised_by_resume():
    def fails() -> None:
        maybe_yield()
        raise FloatingPointError

    run = Resumable(fails)
    run.resume(PAST)
    with pytest.raises(FloatingPointError):
        run.resume(PAST)
    assert run.dead


def test_stopped_resumable_runs_its_finally_clauses_to_their_end():
    ended = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        helper = pool.submit(ended.wait, 30)

        def computes() -> None:
            try:
                maybe_yield()
            finally:
                wait_for(helper)

        run = Resumable(computes)
        run.resume(PAST)
        threading.Timer(0.05, ended.set).start()
        run.stop()
    assert run.dead and helper.done()
    run.stop()


def test_waiting_for_a_future_ends_when_the_time_is_over():
    ended = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        helper = pool.submit(ended.wait, 30)
        run = Resumable(lambda: wait_for(helper))
        run.resume(time.perf_counter() + 0.01)
        assert not run.dead
        ended.set()
        run.resume(math.inf)
    assert run.dead


def test_evaluation_is_postponed_when_it_is_expected_to_take_too_long():
    run = Resumable(lambda: evaluate(mx.ones(4) + 1), wait_s=60.0)
    run.resume(time.perf_counter() + 1)
    assert not run.dead and run.wait_s < 60
    run.resume(PAST)
    assert run.dead


@pytest.mark.skipif(not sgemm.is_available(), reason="kvlab loads a BLAS of its own on Linux only")
@pytest.mark.parametrize("stop", [False, True])
def test_interrupted_attention_equals_attention_in_one_go(monkeypatch, stop):
    monkeypatch.setattr(flash_attention, "BLOCK_KEYS", 16)
    monkeypatch.setattr(flash_attention, "BLOCK_QUERY_ROWS", 32)
    monkeypatch.setattr(flash_attention, "MAX_SCORES_ON_ONE_CORE", 0)
    rng = np.random.default_rng(0)
    queries = mx.array(rng.normal(size=(2, 300, 3, 8)).astype(np.float32))
    rows = tuple(mx.array(rng.normal(size=(1, 2, 400, 8)).astype(np.float32)) for _ in "kv")
    wanted = flash_attention.flash_attention(queries, [rows], "causal")
    before, got, interruptions = blas_library.threads_in_use(), [], 0
    run = Resumable(lambda: got.append(flash_attention.flash_attention(queries, [rows], "causal")))
    while not run.dead:
        run.resume(PAST)
        interruptions += 1
        np.testing.assert_array_equal(
            flash_attention.flash_attention(queries, [rows], "causal").out, wanted.out
        )  # others meanwhile
        if stop and interruptions == 3:
            run.stop()
    assert interruptions >= 3 and blas_library.threads_in_use() == before
    assert stop or np.array_equal(got[0].out, wanted.out) and np.array_equal(got[0].sum_exp, wanted.sum_exp)


@pytest.mark.skipif(not sgemm.is_available(), reason="kvlab loads a BLAS of its own on Linux only")
def test_number_of_threads_set_within_the_context_counts_after_it():
    before = blas_library.threads_in_use()
    try:
        with sgemm.SINGLE_THREADED:
            sgemm.SINGLE_THREADED.set_threads(2)
            assert blas_library.threads_in_use() == 1
        assert blas_library.threads_in_use() == 2
    finally:
        sgemm.SINGLE_THREADED.set_threads(before)
    assert blas_library.threads_in_use() == before
