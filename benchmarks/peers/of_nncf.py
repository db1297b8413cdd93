"""NNCF's post-training quantization with its defaults: 300 examples, preset by model."""

from __future__ import annotations

import sys

from peer import Job, Made, Peer, run

PAGE = "https://github.com/openvinotoolkit/nncf#post-training-quantization"
COUNT = 300

# OpenVINO and NNCF tell their makers of each run, unless the package that does it is missing.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


def openvino(job: Job) -> Made:
    """The README's first example; the file as examples/post_training_quantization writes it."""
    import nncf
    import openvino as ov

    model = ov.Core().read_model(job.model)
    calibration_dataset = nncf.Dataset(job.examples(COUNT), lambda item: item)
    quantized = nncf.quantize(model, calibration_dataset)
    path = job.out / "model.xml"
    ov.save_model(quantized, path)
    return path, [path, path.with_suffix(".bin")]


def onnx(job: Job) -> Made:
    """The README's last example."""
    import nncf
    import onnx

    model = onnx.load_model(job.model)
    calibration_dataset = nncf.Dataset(job.examples(COUNT), lambda item: item)
    quantized = nncf.quantize(model, calibration_dataset)
    path = job.out / "model.onnx"
    onnx.save(quantized, path)
    return path, [path]


PEERS = (
    Peer("nncf-openvino", openvino, PAGE, ("nncf", "openvino")),
    Peer("nncf-onnx", onnx, PAGE, ("nncf", "onnx", "onnxruntime")),
)

if __name__ == "__main__":
    run(PEERS)
