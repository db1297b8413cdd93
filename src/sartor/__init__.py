"""Sartor takes a trained model, labelled data and the limits it must meet, and returns the best
artifact that is shown to meet them on this machine, with the evidence, or says that none does.

    run = sartor.optimize("model.onnx", "eval.npz", limits=["size <= 20 MB"], minimize="latency")
    run.best.predict(x)
    model = sartor.load("tailored/bundle")
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sartor.contracts import Failed, WrongRequest

if TYPE_CHECKING:
    from sartor.bundle import Loaded
    from sartor.run import Run

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # ONNX Runtime reports home from 1.24 on unless told

__version__ = "0.1.0"
__all__ = [
    "Failed",
    "WrongRequest",
    "__version__",
    "compare",
    "load",
    "optimize",
    "optimize_each",
    "verify",
]


def optimize(
    model: Any = None,
    data: Any = None,
    limits: Sequence[str] = (),
    minimize: str | None = None,
    budget: str | float | None = None,
    out: str | Path | None = None,
    **settings: Any,
) -> Run:
    """The best artifact that is shown to meet the limits.

    `model` is a path (ONNX, .pt2, TorchScript, .keras, a folder of Hugging Face's),
    `file.py:factory`, or a live object: a `torch.nn.Module`, the pair of one and a file of
    weights, a `keras.Model`, an `ExportedProgram`, an `onnx.ModelProto`.
    `data` is a path, a mapping of arrays, a data frame, a
    PyTorch `DataLoader` or `Dataset`, or such a source for each part ("train", "search",
    "holdout"); a module is exported with a few of its rows. `settings` are those of the command
    line (`threads`, `batch`, `trials`, `seed`, `metric`, `label`, `segments` ...); the budget is
    ten minutes unless one is named.
    `resume=FOLDER` continues the run in a folder and needs nothing else but a budget, such as
    "+10m". Without `out` the run lives in a new temporary folder; `Run.save` copies it. Raises
    WrongRequest with one sentence for a wrong request."""
    import tempfile

    from sartor.libraries import OPTIMIZE, needing
    from sartor.spec import request

    with needing("sartor.optimize", OPTIMIZE):
        from sartor.optimizing import optimize as run_it
        from sartor.resuming import requested

    asked = {"limits": list(limits), "minimize": minimize, "budget": budget, **settings}
    if isinstance(settings.get("resume"), (str, Path)):
        return run_it(requested(model, data=data, out=out, **asked))
    folder = Path(tempfile.mkdtemp(prefix="sartor-")) / "run" if out is None else Path(out)
    return run_it(request(model=model, data=data, out=str(folder), **asked))


def optimize_each(
    model: Any, data: Any, formats: Sequence[str], out: str | Path, **settings: Any
) -> dict[str, Run]:
    """What `optimize` does, for each of several formats (`["onnx", "tflite"]`): a run of its own in
    the folder of that name under `out`. They share the budget, and the holdout's error rate."""
    from sartor.libraries import OPTIMIZE, needing
    from sartor.spec import request

    with needing("sartor.optimize_each", OPTIMIZE):
        from sartor.each_format import optimize_each as run_them

    return run_them(request(model=model, data=data, formats=formats, out=str(out), **settings))


def load(bundle: str | Path, threads: int | None = None) -> Loaded:
    """The artifact of a bundle, ready to `predict`; imports only the one runtime it needs."""
    from sartor.bundle import Loaded

    return Loaded(Path(bundle), threads)


def verify(bundle: str | Path, data: Any, **settings: Any) -> dict[str, Any]:
    """A bundle's certificate measured again on this machine, with fresh data."""
    from sartor.verifying import verify as verify_it

    return verify_it(Path(bundle), data=data, **settings)


def compare(models: Sequence[str | Path], data: Any, **settings: Any) -> dict[str, Any]:
    """Artifacts side by side, the first as the baseline."""
    from sartor.comparing import compare as compare_them

    return compare_them(list(models), data=data, **settings)
