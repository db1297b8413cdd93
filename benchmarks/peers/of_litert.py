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
    """As it is converted."""
    return delivered(job, converted(job))


def dynamic(job: Job) -> Made:
    """The quantizer's quick start, which is also what it recommends for CPUs."""
    from ai_edge_quantizer import quantizer, recipe

    path = job.out / "model.tflite"
    qt = quantizer.Quantizer(str(converted(job)))
    qt.load_quantization_recipe(recipe.dynamic_wi8_afp32())
    qt.quantize().export_model(str(path))
    return delivered(job, path)


def static(job: Job) -> Made:
    """Its third step: full integer quantization, calibrated."""
    from ai_edge_quantizer import quantizer, recipe

    path, source = job.out / "model.tflite", converted(job)
    taken = types(source)
    samples = [
        {name: array.astype(taken[name]) for name, array in each.items()}
        for each in job.examples(COUNT)
    ]
    qt = quantizer.Quantizer(str(source))
    qt.load_quantization_recipe(recipe.static_wi8_ai8())
    calibration_result = qt.calibrate({"serving_default": samples})
    qt.quantize(calibration_result=calibration_result).export_model(str(path))
    return delivered(job, path)


def types(path: Path) -> dict[str, np.dtype]:
    """Input name -> what the file takes."""
    from ai_edge_litert.interpreter import Interpreter

    told = Interpreter(str(path)).get_signature_runner("serving_default").get_input_details()
    return {name: np.dtype(each["dtype"]) for name, each in told.items()}


def delivered(job: Job, path: Path) -> Made:
    """The file, or a function before it where it takes integers of its own in place of the rows'
    floats, or shorter integers than theirs."""
    taken = types(path)
    if all(taken[name] == each.dtype for name, each in job.examples(1)[0].items()):
        return path, [path]
    return function(job, "litert_function", f"answers{(str(path), job.threads)!r}", [path])


def answers(path: str, threads: int) -> Callable[[Arrays], Arrays]:
    """The file as Sartor runs its own of this kind, floats outside: one row at a time, with zeros
    behind rows that are shorter than the file's."""
    from sartor.contracts import Target
    from sartor.fitting import fitted
    from sartor.registry import runtime

    engine = runtime("tflite")
    model = replace(engine.open(Path(path)), settings={"interface": "float32"})
    ports = engine.facing(model).inputs
    session = engine.start(model, Target("cpu", threads))

    def answer(batch: Arrays, at: int) -> Arrays:
        alone = {port.name: fitted(batch[port.name][at : at + 1], port, 1) for port in ports}
        return session({p.name: alone[p.name].astype(p.dtype, copy=False) for p in ports})

    def run_it(batch: Arrays) -> Arrays:
        found = [answer(batch, at) for at in range(len(next(iter(batch.values()))))]
        if len(found) == 1:
            return found[0]
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
