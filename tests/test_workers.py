"""Child processes: whatever happens to one is a reason, and the next call is sound."""

from __future__ import annotations

import errno
import operator
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from sartor.contracts import Failed, WrongRequest
from sartor.keeper import _descendants_slowly, descendants
from sartor.registry import runtime
from sartor.workers import LONGEST, DiskFull, Pool, Worker

PATIENCE = 60.0  # seconds after which a process counts as an orphan; not a time that is asserted
HERE = str(Path(__file__).parent)


def gone(process: int) -> bool:
    """Whether it ends, if need be after a moment: a dead child of ours may still be listed."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            if psutil.Process(process).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


# What children are asked to do. They stand here, and children import them from this file.


def start_helper(daemon: bool) -> int:
    """A process that would live for ever; as a daemon in a session of its own, its parent dead."""
    if not daemon:
        return subprocess.Popen(["sleep", "1000"]).pid
    done = subprocess.run([sys.executable, "-c", DAEMON], capture_output=True, check=True)
    return int(done.stdout)


DAEMON = """
import subprocess
quiet = subprocess.DEVNULL
print(subprocess.Popen(["sleep", "1000"], start_new_session=True, stdout=quiet, stderr=quiet).pid)
"""


def start_helper_and(end: Callable[[], object], file: str) -> None:
    Path(file).write_text(str(start_helper(daemon=True)))
    end()


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang() -> None:
    time.sleep(1000)


def say_much(lines: int) -> None:
    for number in range(lines):
        os.write(2, b"%08d " % number + b"x" * 990 + b"\n")


def say_and_exit() -> None:
    say_much(20_000)
    os.write(2, b"the last words\n")
    os._exit(7)


def fail_at_length() -> None:
    raise RuntimeError("first line\nsecond line\n" + "x" * 100_000)


def no_room() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def no_room_below() -> None:
    try:
        no_room()
    except OSError as error:
        raise ValueError("the file cannot be written") from error


def temporary_folder() -> str:
    import tempfile

    path = Path(tempfile.gettempdir())
    (path / "litter").write_text("")
    return str(path)


@pytest.fixture(autouse=True)
def functions_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)


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


@pytest.mark.parametrize("daemon", [False, True])
def test_what_a_child_started_goes_with_it(daemon: bool) -> None:
    with Worker() as worker:
        started = worker.call(start_helper, daemon)
        assert psutil.pid_exists(started)
        assert worker.littered
    assert gone(started)


@pytest.mark.parametrize("end", [crash, hang])
def test_what_it_started_goes_when_it_crashes_or_hangs(
    end: Callable[[], object], tmp_path: Path
) -> None:
    note = tmp_path / "started"
    with Worker() as worker:
        with pytest.raises(Failed, match=r"segmentation fault|hung"):
            worker.call(start_helper_and, end, str(note), timeout=5)
        assert gone(int(note.read_text()))


def test_descendants_are_found_by_the_parents_of_all_too() -> None:
    with Worker() as worker:
        started = worker.call(start_helper, True)
        below = set(descendants(worker.process.pid))
        assert started in below
        assert set(_descendants_slowly(worker.process.pid)) == below
    assert _descendants_slowly(worker.process.pid) == []


def test_a_pool_keeps_nothing_of_a_call_that_left_processes_behind() -> None:
    with Pool() as pool:
        first = pool.call(os.getpid)
        started = pool.call(start_helper, True)
        assert pool.call(os.getpid) != first
        assert gone(started)


DRIVER = """
import os, sys
sys.path.insert(0, {here!r})
from sartor.workers import Worker
import test_workers
with Worker() as worker:
    print(worker.call(os.getpid), worker.call(test_workers.start_helper, True), flush=True)
    worker.call(test_workers.hang)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_driver_that_is_killed_leaves_nothing(how: signal.Signals) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER.format(here=HERE)], stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    with driver.stdout:
        processes = [int(each) for each in driver.stdout.readline().split()]
        assert len(processes) == 2
        driver.send_signal(how)
        driver.wait(PATIENCE)
    assert all(gone(each) for each in processes)


def test_a_flood_of_words_fills_nothing() -> None:
    with Worker() as worker:
        worker.call(say_much, 20_000)
        with pytest.raises(Failed, match="status 7: the last words"):
            worker.call(say_and_exit)
    assert worker.told.closed
    with Worker() as worker:
        worker.call(say_much, 20_000)
        assert os.fstat(worker.told.fileno()).st_size == 0


def test_a_reason_is_one_line_of_bounded_length() -> None:
    with Worker() as worker, pytest.raises(Failed) as failure:
        worker.call(fail_at_length)
    text = str(failure.value)
    assert text.startswith("RuntimeError: first line second line xxx")
    assert "\n" not in text
    assert len(text) < LONGEST + 100


@pytest.mark.parametrize("function", [no_room, no_room_below])
def test_a_full_disk_is_told_apart(function: Callable[[], None]) -> None:
    with Worker() as worker, pytest.raises(DiskFull, match="the disk is full"):
        worker.call(function)


def test_temporary_files_go_with_the_child() -> None:
    with Worker() as worker:
        place = Path(worker.call(temporary_folder))
        assert (place / "litter").exists()
    assert not place.exists()


def test_more_than_fits_into_the_pipe_to_a_stopped_child_is_a_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sartor.workers.STUCK", 1)
    with Worker() as worker:
        child = psutil.Process(worker.call(os.getpid))
        child.suspend()
        with pytest.raises(Failed, match="hung"):
            worker.call(len, bytes(10_000_000))
        assert gone(child.pid)
