"""Factors of a layer's weight at which its outputs err least, and what each rank costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.linalg

from sartor.contracts import Failed
from sartor.techniques._moments_onnx import steadied
from sartor.techniques._products_onnx import Layer, Piece


class Factored(Protocol):
    """The ways to factorize a layer: multiply-accumulates of each, the share of the outputs'
    energy that it loses, and the layer's own multiply-accumulates."""

    costs: np.ndarray
    losses: np.ndarray
    whole: float

    def pieces(self, which: int) -> list[Piece]: ...


def factor(
    layer: Layer, weight: np.ndarray, moments: Mapping[str, np.ndarray], lanes: int
) -> Factored:
    """Of the weight (width, outputs). Raises Failed where something is not finite."""
    second = moments[layer.key].astype(np.float64)
    if not np.isfinite(second).all() or not np.isfinite(weight).all():
        raise Failed(f"weight or activations of {layer.node.name} are not finite")
    places = moments[f"places:{layer.key}"]
    if layer.width == layer.inputs:
        return _matrix(layer, weight, second, float(places[-1]))
    return Tucker(layer, weight, steadied(second, float(moments[f"rows:{layer.key}"])), places, lanes)


@dataclass(frozen=True)
class Matrix:
    """Factors of full rank, best columns first: `first` is (inputs, n), `second` (n, outputs).
    `ranks` are those that save multiply-accumulates."""

    layer: Layer
    first: np.ndarray
    second: np.ndarray
    ranks: np.ndarray
    costs: np.ndarray
    losses: np.ndarray
    whole: float

    def pieces(self, which: int) -> list[Piece]:
        rank = self.ranks[which]
        flat = (1,) * len(self.layer.kernel)
        pair = (self.first[:, :rank], self.second[:rank])
        low, high = (each.reshape(*each.shape, *flat) for each in pair)
        return [Piece(low, range(len(flat))), Piece(high)]


def _matrix(layer: Layer, weight: np.ndarray, second: np.ndarray, places: float) -> Matrix:
    """By the eigenvectors of the smaller of two matrices, which is far cheaper than an SVD."""
    if layer.outputs <= layer.inputs:
        energies, vectors = leading(weight.T @ second @ weight)
        left, right = weight @ vectors, vectors.T
    else:
        # Directions the data never took have no weight at all and could not be unwhitened.
        ridge = 1e-6 * max(float(np.trace(second)) / layer.inputs, 1e-30)
        root = np.linalg.cholesky(second + ridge * np.eye(layer.inputs))
        whitened = root.T @ weight
        energies, vectors = leading(whitened @ whitened.T)
        left = scipy.linalg.solve_triangular(root.T, vectors)
        right = vectors.T @ whitened
    lost = np.concatenate([np.cumsum(energies[::-1])[::-1], [0.0]])
    even = layer.inputs * layer.outputs / (layer.inputs + layer.outputs)
    step = 8 if even >= 64 else 1  # for the vector units, where there is a choice
    ranks = np.arange(step, int(np.ceil(even)), step)
    return Matrix(
        layer, *balanced(left, right), ranks,
        costs=ranks * (layer.inputs + layer.outputs) * places,
        losses=lost[ranks] / max(float(lost[0]), 1e-300),
        whole=layer.inputs * layer.outputs * places,
    )  # fmt: skip


def leading(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, largest first and none below zero, and their vectors as columns."""
    values, vectors = np.linalg.eigh(matrix)
    # Eigenvectors have no sign of their own: the largest entry is made positive.
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(values))])
    return np.maximum(values[::-1], 0.0), (vectors * signs)[:, ::-1]


def balanced(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Between factors (n, rank) and (rank, m) every column gets the root of its scale: what a
    quantizer likes best."""
    heights = np.linalg.norm(left, axis=0) / np.maximum(np.linalg.norm(right, axis=1), 1e-30)
    balance = np.sqrt(np.maximum(heights, 1e-30))
    return left / balance, right * balance[:, None]


class Tucker:
    """Tucker-2 of a convolution's kernel: channels in to fewer, the kernel over those, fewer to
    channels out (Kim et al., ICLR 2016), or without the first or the last of the three.

    The channels kept are the leading eigenvectors of the kernel's unfolding under the channels'
    second moments; given those, core and last are the linear map of least error on the data (reduced-rank
    regression, Izenman, 1975), which without the first is the method of Zhang et al., "Accelerating
    very deep CNNs", TPAMI 2016."""

    def __init__(
        self, layer: Layer, weight: np.ndarray, second: np.ndarray, places: np.ndarray, lanes: int
    ) -> None:
        self._layer, self._second, self._weight = layer, second, weight
        taps, into, out = layer.width // layer.inputs, layer.inputs, layer.outputs
        self.whole = float(layer.width * out * places[-1])
        _, mapped, _ = self._regressed()
        energy = max(float(np.einsum("io,ij,jo->", weight, second, weight, optimize=True)), 1e-300)
        gram = np.zeros((out, out))
        ranks, costs, losses, at = [], [], [], 0
        for low in (*_ranks(into, lanes), into):
            rows = mapped[at : low * taps]
            gram, at = gram + rows.T @ rows, low * taps
            kept = np.cumsum(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0))
            for high in (*_ranks(out, lanes), out):
                cost = low * taps * high * places[-1]
                cost += into * low * places[0] if low < into else 0
                cost += high * out * places[-1] if high < out else 0
                if cost < self.whole:
                    ranks.append((low, high))
                    costs.append(cost)
                    losses.append(max(1.0 - kept[high - 1] / energy, 0.0))
        self.ranks, self.costs, self.losses = ranks, np.array(costs), np.array(losses)

    def _regressed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """New channels as columns (inputs, inputs), best first; what the outputs are in the patches
        of those made orthonormal, (width, outputs); and the Cholesky factor that made them so."""
        into, width = self._layer.inputs, self._layer.width
        taps = width // into
        blocks = self._second.reshape(into, taps, into, taps)
        root = np.linalg.cholesky(np.einsum("atbt->ab", blocks) / taps)
        whitened = root.T @ self._weight.reshape(into, -1)
        _, vectors = leading(whitened @ whitened.T)
        basis = scipy.linalg.solve_triangular(root.T, vectors)
        turned = np.einsum("ac,atbu->ctbu", basis, blocks, optimize=True)
        turned = np.einsum("ctbu,bd->ctdu", turned, basis, optimize=True).reshape(width, width)
        square = np.linalg.cholesky((turned + turned.T) / 2)
        # In the new channels the layer's own weight is known: no need to go by the data.
        inverse = np.linalg.inv(basis)
        weight = (inverse @ self._weight.reshape(into, -1)).reshape(width, -1)
        return basis, square.T @ weight, square

    def pieces(self, which: int) -> list[Piece]:
        layer = self._layer
        low, high = self.ranks[which]
        taps, flat = layer.width // layer.inputs, (1,) * len(layer.kernel)
        axes = range(len(layer.kernel))
        basis, mapped, square = self._regressed()
        first, core = None, self._weight
        if low < layer.inputs:
            at = low * taps
            core = scipy.linalg.solve_triangular(square[:at, :at], mapped[:at], lower=True, trans=1)
            first, core = balanced(basis[:, :low], core.reshape(low, -1))
            core = core.reshape(at, -1)
        pieces = []
        if high < layer.outputs:
            rows = mapped[: low * taps]
            _, vectors = leading(rows.T @ rows)
            core, last = balanced(core @ vectors[:, :high], vectors[:, :high].T)
            pieces = [Piece(last.reshape(high, -1, *flat))]
        core = core.reshape(low, *layer.kernel, -1)
        pieces.insert(0, Piece(np.moveaxis(core, -1, 1), axes))
        if first is not None:
            pieces.insert(0, Piece(first.reshape(layer.inputs, low, *flat)))
        return pieces


def _ranks(channels: int, lanes: int) -> range:
    """Fewer channels than these, in steps that fill the vector units where there is a choice."""
    step = next(each for each in (lanes, 8, 4, 1) if channels >= 4 * each or each == 1)
    return range(step, channels, step)
