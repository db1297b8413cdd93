"""Keras' old .h5 files of image networks as PyTorch modules, without TensorFlow.

    network = load(path)  # takes [N, C, H, W] where Keras takes [N, H, W, C]

Keras 3 reads such a file too, and `parity` holds the module against it; but what it exports has a
transposition around every convolution.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Config = Mapping[str, Any]
ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity, "relu": nn.ReLU, "softmax": lambda: nn.Softmax(1),
}  # fmt: skip


class Network(nn.Module):
    """Layers in the file's order; `sources` names those whose answers each takes."""

    def __init__(self, layers: Mapping[str, nn.Module], sources: Mapping[str, list[str]]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(dict(layers))
        self.sources = dict(sources)

    def forward(self, image: Tensor) -> Tensor:
        answers: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            answers[name] = layer(*[answers[each] for each in self.sources[name]] or [image])
        return answers[name]


class Add(nn.Module):
    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return one + other


def load(path: Path) -> Network:
    """The network with the file's weights, in eval mode. Layers are made one after the other, on
    what those before them give: padding depends on its size."""
    layers: dict[str, nn.Module] = {}
    sources: dict[str, list[str]] = {}
    shapes: dict[str, Sequence[int]] = {}
    with h5py.File(path) as file:
        for each in json.loads(file.attrs["model_config"])["config"]["layers"]:
            config = each["config"]
            name, kind = config["name"], each["class_name"]
            if kind == "InputLayer":
                _, *size, channels = config["batch_input_shape"]
                layers[name], sources[name], shapes[name] = nn.Identity(), [], (1, channels, *size)
                continue
            if kind not in LAYERS:
                raise SystemExit(f"{path}: layer {name} is of an unknown kind, {kind}")
            group = file["model_weights"][name]
            keys = [key.decode() for key in group.attrs["weight_names"]]
            weights = {key.rpartition("/")[2].removesuffix(":0"): group[key][()] for key in keys}
            sources[name] = [source for source, *_ in each["inbound_nodes"][0]]
            inputs = [torch.zeros(shapes[source]) for source in sources[name]]
            made = LAYERS[kind](config, weights, shapes[sources[name][0]])
            if "activation" in config and config["activation"] != "linear":
                made = nn.Sequential(made, ACTIVATIONS[config["activation"]]())
            layers[name] = made.eval()
            with torch.inference_mode():
                shapes[name] = layers[name](*inputs).shape
    return Network(layers, sources).eval()


def _set(module: nn.Module, **values: NDArray[np.float32]) -> nn.Module:
    with torch.no_grad():
        for name, value in values.items():
            getattr(module, name).copy_(torch.from_numpy(value))
    return module


def _convolution(config: Config, weights: Config, shape: Sequence[int]) -> nn.Module:
    """Keras keeps kernels as [height, width, inputs, outputs], depthwise ones as [height, width,
    channels, 1]."""
    depthwise = "depthwise_kernel" in weights
    kernel = weights["depthwise_kernel"] if depthwise else weights["kernel"]
    kernel = kernel.transpose((2, 3, 0, 1) if depthwise else (3, 2, 0, 1))
    size, stride = config["kernel_size"], config["strides"]
    edges = [0, 0, 0, 0]
    if config["padding"] == "same":
        for axis in (0, 1):
            have = shape[2 + axis]
            lacking = (math.ceil(have / stride[axis]) - 1) * stride[axis] + size[axis] - have
            before = max(lacking, 0) // 2
            edges[2 - 2 * axis : 4 - 2 * axis] = [before, max(lacking, 0) - before]
    left, right, top, bottom = edges
    even = left == right and top == bottom
    made = nn.Conv2d(
        shape[1], len(kernel), tuple(size), tuple(stride),
        padding=(top, left) if even else 0,
        groups=shape[1] if depthwise else 1, bias=config["use_bias"],
    )  # fmt: skip
    _set(made, weight=kernel, **({"bias": weights["bias"]} if config["use_bias"] else {}))
    return made if even else nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), made)


def _normalization(config: Config, weights: Config, shape: Sequence[int]) -> nn.Module:
    kind = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
    return _set(
        kind(shape[1], eps=config["epsilon"]), weight=weights["gamma"], bias=weights["beta"],
        running_mean=weights["moving_mean"], running_var=weights["moving_variance"],
    )  # fmt: skip


def _dense(config: Config, weights: Config, shape: Sequence[int]) -> nn.Module:
    made = nn.Linear(shape[1], config["units"])
    return _set(made, weight=weights["kernel"].T, bias=weights["bias"])


def _padding(config: Config, weights: Config, shape: Sequence[int]) -> nn.Module:
    (top, bottom), (left, right) = config["padding"]
    return nn.ZeroPad2d((left, right, top, bottom))


def _pooling(config: Config, weights: Config, shape: Sequence[int]) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _flatten(config: Config, weights: Config, shape: Sequence[int]) -> nn.Module:
    if shape[1] > 1:
        raise SystemExit("flattening several channels would change their order")
    return nn.Flatten()


def _reshape(config: Config, weights: Config, shape: Sequence[int]) -> nn.Module:
    *size, channels = config["target_shape"]
    if channels > 1:
        raise SystemExit("several channels would change their order in reshaping")
    return nn.Unflatten(1, (channels, *size))


def _relu(config: Config, weights: Config, shape: Sequence[int]) -> nn.Module:
    return nn.ReLU6() if config.get("max_value") == 6 else nn.ReLU()


LAYERS: Mapping[str, Callable[[Config, Config, Sequence[int]], nn.Module]] = {
    "Activation": lambda *_: nn.Identity(),  # `activation` follows every layer that has one
    "Add": lambda *_: Add(),
    "BatchNormalization": _normalization,
    "Conv2D": _convolution,
    "Dense": _dense,
    "DepthwiseConv2D": _convolution,
    "Dropout": lambda *_: nn.Identity(),
    "Flatten": _flatten,
    "GlobalAveragePooling2D": _pooling,
    "ReLU": _relu,
    "Reshape": _reshape,
    "ZeroPadding2D": _padding,
}


def parity(network: nn.Module, path: Path, images: NDArray[np.float32]) -> float:
    """Largest difference between the answers of the module and of Keras 3 on the same file."""
    os.environ["KERAS_BACKEND"] = "torch"  # Keras reads it once, when it is imported
    import keras

    class Depthwise(keras.layers.DepthwiseConv2D):  # type: ignore[misc]
        """Keras 2 wrote an argument that Keras 3 does not take."""

        def __init__(self, groups: int = 1, **given: Any) -> None:
            super().__init__(**given)

    known = {"DepthwiseConv2D": Depthwise}
    original = keras.saving.load_model(path, compile=False, custom_objects=known)
    answers = original.predict(images.transpose(0, 2, 3, 1), verbose=0)
    with torch.inference_mode():
        own = network(torch.from_numpy(images)).numpy()
    own = own.transpose(0, 2, 3, 1) if own.ndim == 4 else own
    return float(np.abs(own - answers).max())
