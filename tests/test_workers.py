"""Child processes: whatever happens to one is a reason, and the next call is sound."""

from __future__ import annotations

import operator
import os
import signal
import sys
import threading
import time

import pytest

from sartor.contracts import Failed, WrongRequest
from sartor.registry import runtime
from sartor.workers import Pool, Worker


def test_results_refusals_and_failures_come_back() -> None:
    with Worker() as worker:
        assert worker.call(operator.add, 2, 3) == 5
        with pytest.raises(Failed, match="ZeroDivisionError"):
            worker.call(divmod, 1, 0)
        with pytest.raises(WrongRequest, match="no runtime for models of kind 'none'"):
            worker.call(runtime, "none")
        with pytest.raises(Failed, match="ended with status 3"):
            worker.call(os._exit, 3)
        assert not worker.alive
        with pytest.raises(Failed, match="has ended before"):
            worker.call(operator.add, 2, 3)


def test_a_result_that_cannot_travel_is_a_failure() -> None:
    with Worker() as worker:
        with pytest.raises(Failed, match="cannot be pickled"):
            worker.call(threading.Lock)
        assert worker.call(operator.add, 1, 2) == 3


@pytest.mark.parametrize(
    ("name", "words"), [("SIGSEGV", "segmentation fault"), ("SIGKILL", "out of memory")]
)
def test_a_crash_is_named(name: str, words: str) -> None:
    with Worker() as worker, pytest.raises(Failed, match=words):
        worker.call(signal.raise_signal, signal.Signals[name])


def test_a_hang_ends_at_its_deadline() -> None:
    with Worker() as worker:
        began = time.monotonic()
        with pytest.raises(Failed, match="hung"):
            worker.call(time.sleep, 60, timeout=0.3)
        assert time.monotonic() - began < 10
        assert not worker.alive


def test_a_pool_replaces_what_died() -> None:
    with Pool() as pool:
        first = pool.call(os.getpid)
        assert pool.call(os.getpid) == first
        with pytest.raises(Failed):
            pool.call(os.abort)
        assert pool.call(os.getpid) != first


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not enforce RLIMIT_AS")
def test_too_much_memory_is_a_reason() -> None:
    with Worker(memory=2 << 30) as worker:
        with pytest.raises(Failed, match="out of memory"):
            worker.call(bytes, 8 << 30)
        assert worker.call(len, b"alive") == 5


def test_an_interrupted_call_leaves_no_answer_for_the_next() -> None:
    """Ctrl-C while waiting: the late answer must not be taken for another call's."""
    with Pool() as pool:
        assert pool.call(operator.add, 1, 1) == 2
        timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            pool.call(time.sleep, 2)
        timer.join()
        assert pool.call(operator.add, 2, 2) == 4
