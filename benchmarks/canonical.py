"""CP beside Tucker-2 on a trained network: what each loses at equal multiply-accumulates.

    pip install tensorly==0.9.0
    python benchmarks/canonical.py build/resnet18/model.onnx [--share 0.5]

A row a layer: rank, relative errors of the weights (no data are used), and of CP by alternating
least squares (100 rounds, three starts) its largest term beside the norm of the kernel: terms that
cancel one another are what makes it unstable (de Silva and Lim, SIAM 2008). CP of (out, in, taps)
is a 1x1, a depthwise and a 1x1 convolution. At the end the networks with those kernels are written.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from tensorly.cp_tensor import cp_to_tensor
from tensorly.decomposition import parafac

Found = tuple[np.ndarray, float, float]


def canonical(kernel: np.ndarray, rank: int, seed: int) -> Found:
    """The kernel at this rank, its relative error, and the largest term beside the whole."""
    made = parafac(
        kernel, rank, n_iter_max=100, init="random", random_state=seed, normalize_factors=True,
        tol=1e-7,
    )  # fmt: skip
    again, norm = cp_to_tensor(made), np.linalg.norm(kernel)
    return again, np.linalg.norm(again - kernel) / norm, np.abs(made.weights).max() / norm


def tucker(kernel: np.ndarray, most: float, strides: int) -> Found:
    """By HOSVD, with the ranks that lose least for so many multiply-accumulates."""
    out, into, taps = kernel.shape
    u = np.linalg.svd(kernel.reshape(out, -1), full_matrices=False)[0]
    v = np.linalg.svd(kernel.swapaxes(0, 1).reshape(into, -1), full_matrices=False)[0]
    core = np.einsum("oip,oa,ib->abp", kernel, u, v, optimize=True)
    kept = np.square(core).sum(2).cumsum(0).cumsum(1)
    a, b = np.arange(1, out + 1)[:, None], np.arange(1, into + 1)[None]
    cost = taps * a * b + np.where(a < out, a * out, 0) + np.where(b < into, b * into * strides, 0)
    at = np.unravel_index(np.where(cost <= most, kept, -1).argmax(), kept.shape)
    high, low = at[0] + 1, at[1] + 1
    again = np.einsum("abp,oa,ib->oip", core[:high, :low], u[:, :high], v[:, :low], optimize=True)
    return again, np.linalg.norm(again - kernel) / np.linalg.norm(kernel), high * low


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--widest", type=int, default=1 << 16, help="channels; wider ones stay")
    parser.add_argument("--out", type=Path, default=Path("build/canonical"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    protos = {name: onnx.load(given.model) for name in ("cp", "tucker")}
    print("| layer | out, in | CP rank | Tucker-2 error | CP error | largest term of CP |")
    print("|---|---|---|---|---|---|")
    known = {name: {t.name: t for t in each.graph.initializer} for name, each in protos.items()}
    for node in protos["cp"].graph.node:
        tensor = known["cp"].get(node.input[1]) if node.op_type == "Conv" else None
        if tensor is None or min(tensor.dims[:2]) < 16 or np.prod(tensor.dims[2:]) == 1:
            continue
        if max(tensor.dims[:2]) > given.widest:
            continue
        strides = int(np.prod(next((a.ints for a in node.attribute if a.name == "strides"), [1])))
        whole = numpy_helper.to_array(tensor)
        kernel = whole.reshape(*whole.shape[:2], -1)
        out, into, taps = kernel.shape
        most = given.share * kernel.size
        rank = int(most / (into * strides + taps + out))
        thin = tucker(kernel, most, strides)
        tries = [canonical(kernel, rank, seed) for seed in range(3)]
        for name, made in (("cp", tries[0][0]), ("tucker", thin[0])):
            value = np.ascontiguousarray(made.reshape(whole.shape).astype(np.float32))
            known[name][tensor.name].CopyFrom(numpy_helper.from_array(value, tensor.name))
        errors = ", ".join(f"{error:.3f}" for _, error, _ in tries)
        sizes = ", ".join(f"{size:.1f}" for _, _, size in tries)
        row = (node.name, f"{out}, {into}", rank, f"{thin[1]:.3f}", errors, sizes)
        print("|", " | ".join(map(str, row)), "|", flush=True)
    for name, proto in protos.items():
        onnx.save(proto, given.out / f"{name}.onnx")


if __name__ == "__main__":
    main()
