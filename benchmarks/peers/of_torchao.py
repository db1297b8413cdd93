"""torchao's first example: eight bits for the activations, on the fly, and for the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from peer import Job, Made, Peer, function, run

PAGE = "https://docs.pytorch.org/ao/stable/eager_tutorials/first_quantization_example.html"


def quantized(job: Job) -> Path:
    """Quantized as the page says, saved as its neighbour on serialization says."""
    import torch
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    from sartor.references import made_by

    model = made_by(job.code).eval()
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    weights = job.out / "model.pth"
    torch.save(model.state_dict(), weights)
    return weights


def eager(job: Job) -> Made:
    """As it is."""
    weights = quantized(job)
    return function(job, "torchao_eager", called(job, weights, False), [weights])


def compiled(job: Job) -> Made:
    """Compiled as the page says, in each process that runs it; here to see whether it can be."""
    weights = quantized(job)
    answers(job.code, weights, job.outputs, job.threads, True)(job.examples(1)[0])
    return function(job, "torchao_compiled", called(job, weights, True), [weights])


def called(job: Job, weights: Path, compile_it: bool) -> str:
    told = (job.code, str(weights.resolve()), job.outputs, job.threads, compile_it)
    return f"answers{told!r}"


def answers(
    code: str, weights: str | Path, outputs: list[str], threads: int, compile_it: bool
) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """The model that is loaded as torchao's page on serialization says, as a function of arrays."""
    import torch
    import torchao  # noqa: F401 - its classes may be read from files once it is imported

    from sartor.references import made_by

    torch.set_num_threads(threads)
    model: Any = made_by(code).eval()
    model.load_state_dict(torch.load(weights), assign=True)
    if compile_it:
        model = torch.compile(model, mode="max-autotune", fullgraph=True)

    def run_it(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.no_grad():
            found = model(*(torch.from_numpy(np.array(each)) for each in batch.values()))
        found = found if isinstance(found, (tuple, list)) else (found,)
        return {name: each.numpy() for name, each in zip(outputs, found, strict=True)}

    return run_it


PACKAGES = ("torchao", "torch")
PEERS = (
    Peer("torchao", eager, PAGE, PACKAGES, code=True),
    Peer("torchao-compiled", compiled, PAGE, PACKAGES, code=True),
)

if __name__ == "__main__":
    run(PEERS)
