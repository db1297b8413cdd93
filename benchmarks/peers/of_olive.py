"""Olive's command line, for a CPU and a model that is an ONNX file already.

The package states requests and datasets nowhere, but its commands stop without them."""

from __future__ import annotations

import json
from pathlib import Path

from peer import Job, Made, Peer, complaint, run

GUIDE = "https://microsoft.github.io/Olive/how-to/cli/"
DATA = "https://microsoft.github.io/Olive/how-to/configure-workflows/how-to-configure-data.html"


def made(job: Job, said: str) -> Made:
    """Raises SystemExit where there is no model: Olive's own status is 0 then too."""
    path = job.out / "model.onnx"
    if not path.is_file():
        raise SystemExit(f"status 0 and no model: {complaint(said)}")
    return path, [path, *job.out.glob("model.onnx.data")]


def quantize(job: Job) -> Made:
    """With its defaults."""
    return made(job, job.call("olive", "quantize", *common(job)))


def quantize_ort(job: Job) -> Made:
    """By ONNX Runtime: of the implementations that the guide lists for eight bits and no GPU the
    one that needs no data."""
    return made(job, job.call("olive", "quantize", "--implementation", "ort", *common(job)))


def optimize(job: Job) -> Made:
    target = ("--device", "cpu", "--provider", "CPUExecutionProvider", "--precision", "int8")
    return made(job, job.call("olive", "optimize", *target, *common(job)))


def auto_opt(job: Job) -> Made:
    """Deprecated in favour of `optimize`."""
    target = ("--device", "cpu", "--provider", "CPUExecutionProvider", "--precision", "int8")
    return made(job, job.call("olive", "auto-opt", *target, *common(job)))


def run_static(job: Job) -> Made:
    """A workflow of the one pass that is calibrated, with the defaults of the pass. The other
    commands know text data alone; rows of any kind come by a script, as the page tells."""
    config = {
        "input_model": {"type": "OnnxModel", "model_path": str(job.model)},
        "data_configs": [
            {
                "name": "rows",
                "type": "DataContainer",
                "user_script": str(Path(__file__).with_name("olive_script.py").resolve()),
                "load_dataset_config": {"type": "train_rows", "data_dir": str(job.rows)},
            }
        ],
        "passes": {"quantize": {"type": "OnnxStaticQuantization", "data_config": "rows"}},
        "output_dir": str(job.out),
    }
    (job.out / "workflow.json").write_text(json.dumps(config, indent=1))
    telling = "--disable_telemetry"
    return made(job, job.call("olive", "run", "--config", job.out / "workflow.json", telling))


def common(job: Job) -> tuple[str | Path, ...]:
    return "--model_name_or_path", job.model, "--output_path", job.out, "--disable_telemetry"


PACKAGES = ("olive-ai", "onnxruntime", "onnx")
NEEDS = ("olive-ai[cpu]==0.13.0", "onnxruntime==1.31.1", "torch==2.13.0", "requests", "datasets")
PEERS = (
    Peer("olive-quantize", quantize, GUIDE + "cli-quantize.html", PACKAGES, NEEDS),
    Peer("olive-quantize-ort", quantize_ort, GUIDE + "cli-quantize.html", PACKAGES, NEEDS),
    Peer("olive-optimize", optimize, GUIDE + "cli-optimize.html", PACKAGES, NEEDS),
    Peer("olive-auto-opt", auto_opt, GUIDE + "cli-auto-opt.html", PACKAGES, NEEDS),
    Peer("olive-run-static", run_static, DATA, PACKAGES, NEEDS),
)

if __name__ == "__main__":
    run(PEERS)
