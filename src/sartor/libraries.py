"""What libraries print, warn of and log, held back; and what they say of an error, made short."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def quiet() -> Iterator[None]:
    """Without what Python code prints, warns of and logs; the environment and the log's levels are
    afterwards what they were."""
    environment = dict(os.environ)
    disabled, level = logging.root.manager.disable, logging.root.level
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
        warnings.catch_warnings(),
    ):
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
