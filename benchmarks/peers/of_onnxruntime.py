"""ONNX Runtime's own quantizers, with their defaults."""

from __future__ import annotations

import numpy as np
from peer import Job, Made, Peer, Unsuited, run

PAGE = "https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html"
EXAMPLES = "https://github.com/microsoft/onnxruntime-inference-examples/tree/main/quantization"
COUNT = 300  # the documentation names no number: "a set of inputs"; NNCF's is taken


def dynamic(job: Job) -> Made:
    """The page's example."""
    from onnxruntime.quantization import quantize_dynamic

    quantized = job.out / "model.onnx"
    quantize_dynamic(job.model, quantized)
    return quantized, [quantized]


def static(job: Job) -> Made:
    """Pre-processing, then the arguments of the examples' image_classification/cpu/run.py, which
    are the defaults (8 bits with sign on both sides), and its data reader with rows of ours."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class DataReader(CalibrationDataReader):
        def __init__(self) -> None:
            self.enum_data = iter(job.examples(COUNT))

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.enum_data, None)

    prepared, quantized = job.out / "prepared.onnx", job.out / "model.onnx"
    try:
        quant_pre_process(job.model, prepared)
    except (
        Exception
    ) as error:  # it raises nothing narrower; the page calls each of its steps optional
        job.notes.append(f"quant_pre_process: {error}; done with skip_symbolic_shape=True")
        quant_pre_process(job.model, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        quantized,
        DataReader(),
        quant_format=QuantFormat.QDQ,
        per_channel=False,
        weight_type=QuantType.QInt8,
    )
    return quantized, [quantized]


def transformer(job: Job) -> Made:
    """What the page tells for transformers, by the examples' notebooks/bert: the model optimizer
    for them, then dynamic quantization. Heads and width are found out by the optimizer."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    fusion = FusionOptions("bert")
    fusion.enable_embed_layer_norm = False
    model = optimizer.optimize_model(
        str(job.model), "bert", num_heads=0, hidden_size=0, optimization_options=fusion
    )
    if not any(model.get_fused_operator_statistics().values()):
        raise Unsuited("no transformer: ONNX Runtime's optimizer finds nothing of one to fuse")
    optimized, quantized = job.out / "optimized.onnx", job.out / "model.onnx"
    model.save_model_to_file(str(optimized))
    try:
        quantize_dynamic(optimized, quantized, weight_type=QuantType.QInt8)
    except RuntimeError as error:
        if "DefaultTensorType" not in str(error):
            raise
        options = {"DefaultTensorType": onnx.TensorProto.FLOAT}
        job.notes.append("quantize_dynamic stopped; done with DefaultTensorType, as it advises")
        quantize_dynamic(optimized, quantized, weight_type=QuantType.QInt8, extra_options=options)
    return quantized, [quantized]


PACKAGES = ("onnxruntime", "onnx")
PEERS = (
    Peer("onnxruntime-dynamic", dynamic, PAGE, PACKAGES),
    Peer("onnxruntime-static", static, EXAMPLES, PACKAGES),
    Peer("onnxruntime-transformer", transformer, EXAMPLES, PACKAGES),
)

if __name__ == "__main__":
    run(PEERS)
