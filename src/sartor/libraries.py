"""What libraries print, warn of and log, held back; and what they say of an error, made short."""

from __future__ import annotations

import io
import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout

from sartor.contracts import WrongRequest

# What brings all that a search needs.
OPTIMIZE = "pip install 'sartor[onnx]' (or torch, keras, openvino, tflite: the model's kind)"


class NotInstalled(WrongRequest):
    """What was asked for needs a package that is not here."""


@contextmanager
def needing(what: str, remedy: str) -> Iterator[None]:
    """Raises NotInstalled where a package that is imported inside is not there."""
    try:
        yield
    except ModuleNotFoundError as missing:
        if (missing.name or "sartor").split(".")[0] == "sartor":
            raise
        raise NotInstalled(
            f"{what} needs {missing.name}, which is not installed here: write {remedy}"
        ) from None


class _Nowhere(io.StringIO):
    """Never closed: what was made meanwhile may hold on to it and write later."""

    def write(self, text: str) -> int:
        return len(text)

    def close(self) -> None:
        pass


_turn = threading.Lock()
_inside = 0  # threads that are quiet at this moment
_before = ExitStack()  # what the last of them puts back


@contextmanager
def quiet() -> Iterator[None]:
    """Without what Python code prints, warns of and logs, of all threads; the environment and the
    log's levels are afterwards what they were."""
    global _inside
    with _turn:
        if _inside == 0:
            _before.enter_context(_held_back())
        _inside += 1
    try:
        yield
    finally:
        with _turn:
            _inside -= 1
            if _inside == 0:
                _before.close()


@contextmanager
def _held_back() -> Iterator[None]:
    environment = dict(os.environ)
    disabled, level = logging.root.manager.disable, logging.root.level
    nowhere = _Nowhere()
    with redirect_stdout(nowhere), redirect_stderr(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)
            logging.root.setLevel(level)
            if os.environ != environment:
                os.environ.clear()
                os.environ.update(environment)


def lines_of(error: BaseException) -> list[str]:
    """The lines of an error that say something, without the codes of colours; its class where there
    is none."""
    said = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    return [line.strip() for line in said.splitlines() if line.strip()] or [type(error).__name__]


def first_line(error: BaseException, most: int = 300) -> str:
    return lines_of(error)[0][:most]


def one_line(error: BaseException, most: int = 300) -> str:
    return " ".join(" ".join(lines_of(error)).split())[:most]
