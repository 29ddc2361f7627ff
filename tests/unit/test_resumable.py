"""Long computations step aside in time, go on where they were, and can be left for good."""

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
"""A point in time from which on every chance to step aside is taken."""


def test_it_gets_one_step_further_each_time_and_is_through_at_last():
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


def test_with_time_left_it_runs_to_the_end_on_the_same_thread():
    seen: list[threading.Thread] = []
    run = Resumable(lambda: (maybe_yield(), seen.append(threading.current_thread())))
    run.resume(time.perf_counter() + 60)
    assert run.dead and seen == [threading.current_thread()]


def test_it_steps_aside_always_where_it_says_so():
    run = Resumable(lambda: maybe_yield(always=True))
    run.resume(math.inf)
    assert not run.dead
    run.resume(math.inf)
    assert run.dead


def test_elsewhere_nothing_steps_aside():
    maybe_yield()
    maybe_yield(always=True)
    array = mx.ones(3) + 1
    evaluate(array)
    assert array.tolist() == [2, 2, 2]


def test_what_it_raises_reaches_whoever_has_it_go_on():
    def fails() -> None:
        maybe_yield()
        raise FloatingPointError

    run = Resumable(fails)
    run.resume(PAST)
    with pytest.raises(FloatingPointError):
        run.resume(PAST)
    assert run.dead


def test_left_for_good_it_ends_what_it_must_end():
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


def test_it_waits_for_others_only_as_long_as_it_has_time():
    ended = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        helper = pool.submit(ended.wait, 30)
        run = Resumable(lambda: wait_for(helper))
        run.resume(time.perf_counter() + 0.01)
        assert not run.dead
        ended.set()
        run.resume(math.inf)
    assert run.dead


def test_it_does_not_begin_to_wait_for_the_device_when_it_expects_to_be_late():
    run = Resumable(lambda: evaluate(mx.ones(4) + 1), wait_s=60.0)
    run.resume(time.perf_counter() + 1)
    assert not run.dead and run.wait_s < 60
    run.resume(PAST)
    assert run.dead


@pytest.mark.skipif(not sgemm.is_available(), reason="kvlab loads a BLAS of its own on Linux only")
@pytest.mark.parametrize("leave", [False, True])
def test_attention_is_the_same_however_often_it_stepped_aside(monkeypatch, leave):
    monkeypatch.setattr(flash_attention, "KEYS", 16)
    monkeypatch.setattr(flash_attention, "ROWS", 32)
    monkeypatch.setattr(flash_attention, "FEW", 0)
    rng = np.random.default_rng(0)
    queries = mx.array(rng.normal(size=(2, 300, 3, 8)).astype(np.float32))
    rows = tuple(mx.array(rng.normal(size=(1, 2, 400, 8)).astype(np.float32)) for _ in "kv")
    wanted = flash_attention.flash_attention(queries, [rows], "causal")
    before, got, asides = blas_library.threads_in_use(), [], 0
    run = Resumable(lambda: got.append(flash_attention.flash_attention(queries, [rows], "causal")))
    while not run.dead:
        run.resume(PAST)
        asides += 1
        np.testing.assert_array_equal(
            flash_attention.flash_attention(queries, [rows], "causal").out, wanted.out
        )  # others meanwhile
        if leave and asides == 3:
            run.stop()
    assert asides >= 3 and blas_library.threads_in_use() == before
    assert leave or np.array_equal(got[0].out, wanted.out) and np.array_equal(got[0].sum_exp, wanted.sum_exp)


@pytest.mark.skipif(not sgemm.is_available(), reason="kvlab loads a BLAS of its own on Linux only")
def test_a_number_of_threads_that_is_asked_for_meanwhile_counts_afterwards():
    before = blas_library.threads_in_use()
    try:
        with sgemm.SINGLE_THREADED:
            sgemm.SINGLE_THREADED.set_threads(2)
            assert blas_library.threads_in_use() == 1
        assert blas_library.threads_in_use() == 2
    finally:
        sgemm.SINGLE_THREADED.set_threads(before)
    assert blas_library.threads_in_use() == before
