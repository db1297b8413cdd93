"""What libraries print and warn of is held back, for as long as anybody asks for it."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings

from sartor.libraries import first_line, one_line, quiet


def test_nothing_is_said_and_all_comes_back(capsys) -> None:  # type: ignore[no-untyped-def]
    before = sys.stdout, sys.stderr, logging.root.level, logging.root.manager.disable
    with quiet():
        print("said")
        warnings.warn("warned", stacklevel=1)
        logging.error("logged")
        logging.root.setLevel(logging.DEBUG)
        os.environ["SARTOR_TEST_OF_QUIET"] = "1"
    assert (sys.stdout, sys.stderr, logging.root.level, logging.root.manager.disable) == before
    assert "SARTOR_TEST_OF_QUIET" not in os.environ
    assert capsys.readouterr() == ("", "")


def test_threads_that_are_quiet_at_the_same_time() -> None:
    """The first to enter leaves first: what was there is back when the last one has left."""
    before = sys.stdout, logging.root.manager.disable
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with quiet():
            inside.set()
            leave.wait()

    with quiet():
        thread = threading.Thread(target=other)
        thread.start()
        inside.wait()
    assert sys.stdout is not before[0]
    leave.set()
    thread.join()
    assert (sys.stdout, logging.root.manager.disable) == before


def test_what_was_made_meanwhile_may_write_later() -> None:
    with quiet():
        kept = sys.stderr
        handler = logging.StreamHandler(sys.stderr)
    kept.write("later")
    handler.emit(logging.makeLogRecord({"msg": "later"}))


def test_errors_in_one_line() -> None:
    error = ValueError("\n  \x1b[31mfirst\x1b[0m \n second  \n")
    assert first_line(error) == "first"
    assert one_line(error) == "first second"
    assert first_line(KeyError()) == "KeyError"
    assert one_line(ValueError("x" * 900)) == 300 * "x"
