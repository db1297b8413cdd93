"""Kernels in C, built by the package; `missing` says why one is not there."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

from sartor.contracts import WrongRequest


@cache
def missing() -> str:
    """Why the forest kernel cannot be loaded; empty where it can."""
    try:
        importlib.import_module("sartor.kernels._forest")
    except ImportError as error:
        if getattr(error, "name", "") == "sartor.kernels._forest":
            return (
                "it was not built: install a C compiler (gcc or clang), then install sartor again"
            )
        return f"it does not load: {error}"
    return ""


def forest() -> ModuleType:
    """The forest kernel. Raises WrongRequest where it is missing."""
    if why := missing():
        raise WrongRequest(f"the forest kernel is missing: {why}")
    return importlib.import_module("sartor.kernels._forest")


def uses() -> str:
    """The widest instruction set that the forest kernel uses here; empty where it is missing."""
    return "" if missing() else ("portable C", "AVX2", "AVX-512")[forest().level]
