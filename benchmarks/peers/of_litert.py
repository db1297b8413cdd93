"""LiteRT: converted from PyTorch, and rounded by AI Edge Quantizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from peer import Job, Made, Peer, function, run

Arrays = Mapping[str, np.ndarray]

PAGE = "https://github.com/google-ai-edge/litert-torch#pytorch-converter"
QUANTIZER = "https://github.com/google-ai-edge/ai-edge-quantizer#quick-start"
STATIC = "https://github.com/google-ai-edge/ai-edge-quantizer#quantization-workflow"
COUNT = 256


def converted(job: Job) -> Path:
    """As the README says, with a wrapper (its documentation's "Providing a Wrapper") that keeps the
    model's names: else inputs and outputs would be called args_0 and output_0."""
    import litert_torch
    import torch

    class Wrapper(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            found = self.model(*inputs.values())
            found = found if isinstance(found, (tuple, list)) else (found,)
            return dict(zip(job.outputs, found, strict=True))

    sample = {name: torch.from_numpy(each) for name, each in job.examples(1)[0].items()}
    model = torch.export.load(job.program).module()
    edge_model = litert_torch.convert(Wrapper(model), sample_kwargs=sample)
    path = job.out / "float.tflite"
    edge_model.export(str(path))
    return path


def plain(job: Job) -> Made:
    path = converted(job)
    return path, [path]


def dynamic(job: Job) -> Made:
    """The quantizer's quick start, which is also what it recommends for CPUs."""
    from ai_edge_quantizer import quantizer, recipe

    path = job.out / "model.tflite"
    qt = quantizer.Quantizer(str(converted(job)))
    qt.load_quantization_recipe(recipe.dynamic_wi8_afp32())
    qt.quantize().export_model(str(path))
    return path, [path]


def static(job: Job) -> Made:
    """Its third step: full integer quantization, calibrated. The file takes and gives integers, so
    that a function stands between it and the model's floats."""
    from ai_edge_quantizer import quantizer, recipe

    path = job.out / "model.tflite"
    qt = quantizer.Quantizer(str(converted(job)))
    qt.load_quantization_recipe(recipe.static_wi8_ai8())
    calibration_result = qt.calibrate({"serving_default": job.examples(COUNT)})
    qt.quantize(calibration_result=calibration_result).export_model(str(path))
    return function(job, "litert_static", f"answers{(str(path), job.threads)!r}", [path])


def answers(path: str, threads: int) -> Callable[[Arrays], Arrays]:
    """The file as Sartor runs its own of this kind: floats outside, one row at a time."""
    from sartor.contracts import Target
    from sartor.registry import runtime

    engine = runtime("tflite")
    model = replace(engine.open(Path(path)), settings={"interface": "float32"})
    session = engine.start(model, Target("cpu", threads, 1))

    def run_it(batch: Arrays) -> Arrays:
        rows = len(next(iter(batch.values())))
        if rows == 1:
            return session(batch)
        alone = ({name: each[at : at + 1] for name, each in batch.items()} for at in range(rows))
        found = [session(each) for each in alone]
        return {name: np.concatenate([each[name] for each in found]) for name in found[0]}

    return run_it


PACKAGES = ("litert-torch", "ai-edge-quantizer", "ai-edge-litert", "torch")
NEEDS = ("litert-torch==0.10.0", "torch==2.13.0")
PEERS = (
    Peer("litert", plain, PAGE, PACKAGES, NEEDS, code=True),
    Peer("litert-dynamic", dynamic, QUANTIZER, PACKAGES, NEEDS, code=True),
    Peer("litert-static", static, STATIC, PACKAGES, NEEDS, code=True),
)

if __name__ == "__main__":
    run(PEERS)
