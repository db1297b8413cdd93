"""UBJSON as XGBoost writes it (https://ubjson.org, draft 12), read without recursion.

Every length is held against what is left of the file before anything is made of it.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from sartor.contracts import WrongRequest

NUMBERS = {
    b"i": ">i1", b"U": ">u1", b"I": ">i2", b"l": ">i4", b"L": ">i8", b"d": ">f4", b"D": ">f8",
}  # fmt: skip
DEEPEST = 64


def read(data: bytes) -> Any:
    """The value: dicts, lists, numpy arrays (where the file says an array's type), texts, numbers.
    Raises WrongRequest with a sentence."""
    try:
        return _Reader(data).value()
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, WrongRequest):
            raise
        raise WrongRequest(f"the UBJSON file is damaged: {error}") from None


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        if count < 0 or count > len(self.data) - self.at:
            raise WrongRequest("the UBJSON file was cut short, or states a length beyond its end")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, mark: bytes) -> int | float:
        kind = np.dtype(NUMBERS[mark])
        found: int | float = np.frombuffer(self.take(kind.itemsize), kind)[0].item()
        return found

    def length(self) -> int:
        mark = self.take(1)
        if mark not in NUMBERS or mark in b"dD":
            raise WrongRequest("the UBJSON file is damaged: a length is no whole number")
        return int(self.number(mark))

    def text(self) -> str:
        return self.take(self.length()).decode()

    def peek(self) -> bytes:
        return self.data[self.at : self.at + 1]

    def opened(self, mark: bytes) -> tuple[Any, int | None, bytes]:
        """What begins with [ or {: the empty container, how many it holds and of which type, where
        the file says so; an array of numbers of one type is read at once."""
        kind, count = b"", None
        if self.peek() == b"$":
            self.take(1)
            kind = self.take(1)
        if self.peek() == b"#":
            self.take(1)
            count = self.length()
            if count < 0:
                raise WrongRequest("the UBJSON file is damaged: a length is below zero")
        elif kind:
            raise WrongRequest("the UBJSON file is damaged: a typed array without a length")
        if mark == b"{":
            return {}, count, kind
        if kind in NUMBERS and count is not None:
            dtype = np.dtype(NUMBERS[kind])
            array = np.frombuffer(self.take(count * dtype.itemsize), dtype)
            return array.astype(dtype.newbyteorder("=")), 0, kind
        return [], count, kind

    def value(self) -> Any:
        """One value; containers under way stand on a stack: (container, left, type, key)."""
        stack: list[tuple[Any, int | None, bytes, str]] = []
        kind = b""
        while True:
            done = self.one(stack, kind or self.take(1))
            while stack:
                holder, left, kind, key = stack[-1]
                if done is not _OPEN:
                    if isinstance(holder, dict):
                        holder[key] = done
                    else:
                        holder.append(done)
                    left = None if left is None else left - 1
                if self.ended(holder, left):
                    stack.pop()
                    done = holder
                    continue
                key = self.text() if isinstance(holder, dict) else ""
                stack[-1] = (holder, left, kind, key)
                break
            else:
                return done

    def ended(self, holder: Any, left: int | None) -> bool:
        if left is not None:
            return left == 0
        if self.peek() == (b"}" if isinstance(holder, dict) else b"]"):
            self.take(1)
            return True
        return False

    def one(self, stack: list[tuple[Any, int | None, bytes, str]], mark: bytes) -> Any:
        """The next value, or _OPEN where a container begins, which then lies on the stack."""
        if mark in (b"{", b"["):
            holder, left, kind = self.opened(mark)
            if isinstance(holder, np.ndarray):
                return holder
            if len(stack) >= DEEPEST:
                raise WrongRequest(f"the UBJSON file is nested deeper than {DEEPEST}: no model is")
            # What has no bytes of its own cannot be held against the length of the file.
            if left is not None and (kind in (b"Z", b"T", b"F") or left > len(self.data)):
                raise WrongRequest("the UBJSON file states a length beyond its end")
            stack.append((holder, left, kind, ""))
            return _OPEN
        if mark in NUMBERS:
            return self.number(mark)
        if mark == b"S":
            return self.text()
        if mark == b"C":
            return self.take(1).decode()
        if mark in (b"Z", b"T", b"F"):
            return {b"Z": None, b"T": True, b"F": False}[mark]
        raise WrongRequest(f"the UBJSON file is damaged: no value begins with {mark!r}")


_OPEN = object()
