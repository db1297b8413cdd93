"""The recipes to try first on a PyTorch model that stays one."""

from __future__ import annotations

from typing import Any

from sartor.contracts import Bench, Model


def portfolio(model: Model, bench: Bench) -> list[list[dict[str, Any]]]:
    """Frozen TorchScript, which takes seconds. int8 run operator by operator is for size alone:
    the search comes to it by itself."""
    return [] if "fused" in model.settings else [[{"technique": "freeze-script"}]]
