"""Factors of a layer's weight at which its outputs err least, and what each rank costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.linalg

from sartor.contracts import Failed
from sartor.techniques._moments_onnx import steadied
from sartor.techniques._products_onnx import Layer, Piece


class Factored(Protocol):
    """The ways to factorize a layer: `costs` are multiply-accumulates for an example, `losses` the
    share of the outputs' energy that is lost; `whole` is what the layer costs as it is. Only ways
    that cost less are among them."""

    @property
    def costs(self) -> np.ndarray: ...

    @property
    def losses(self) -> np.ndarray: ...

    @property
    def whole(self) -> float: ...

    def pieces(self, which: int) -> list[Piece]: ...


def factor(
    layer: Layer, weight: np.ndarray, moments: Mapping[str, np.ndarray], kernels: str, lanes: int
) -> Factored:
    """Of the weight (width, outputs), by the moments that `_products_onnx` gathers; kernels over
    several axes go over them apart where `kernels` is "spatial". Raises Failed where something is
    not finite."""
    second = moments[layer.key].astype(np.float64)
    if not np.isfinite(second).all() or not np.isfinite(weight).all():
        raise Failed(f"weight or activations of {layer.node.name} are not finite")
    places = moments[f"places:{layer.key}"]
    if layer.width == layer.inputs:
        return _matrix(layer, weight, second, float(places[-1]))
    steady = steadied(second, float(moments[f"rows:{layer.key}"]))
    apart = kernels == "spatial" and sum(size > 1 for size in layer.kernel) > 1
    fronts = range(1, len(layer.kernel)) if apart else range(1)
    return Kernel(layer, weight, steady, places, fronts, lanes)


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
        rank, flat = self.ranks[which], (1,) * len(self.layer.kernel)
        first = _piece(self.first[:, :rank], self.layer.inputs, flat, range(len(flat)))
        return [first, _piece(self.second[:rank], rank, flat, range(0))]


def _matrix(layer: Layer, weight: np.ndarray, second: np.ndarray, places: float) -> Matrix:
    """By the eigenvectors of the smaller of two matrices, which is far cheaper than an SVD."""
    if layer.outputs <= layer.inputs:
        energies, vectors = leading(weight.T @ second @ weight)
        left, right = weight @ vectors, vectors.T
    else:
        # Directions the data never took have no weight at all, or less than none where the moments
        # were rounded, and could not be unwhitened.
        ridge = 1e-6 * max(float(np.trace(second)) / layer.inputs, 1e-30)
        ridge -= min(float(np.linalg.eigvalsh(second)[0]), 0.0)
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


class Kernel:
    """The ways to make up to three of a convolution whose kernel is wider than 1.

    With `front` 0, Tucker-2 (Kim et al., ICLR 2016): fewer channels in, the kernel over those, from
    fewer to all channels out; also without the first or without the last. With `front` 1 the first
    goes over the first spatial axis, the second over the others (Jaderberg et al., BMVC 2014), from
    which a third may make the channels out (Zhang et al., TPAMI 2016).

    What the first keeps are the leading eigenvectors of the kernel's unfolding under the second
    moments `second` (width, width) of what it sees; given those, what follows is the linear map of
    least error on the data at its rank (reduced-rank regression, Izenman, 1975). `places` are those
    of `Layer.places`; ranks are multiples of `lanes` where there is a choice."""

    def __init__(
        self,
        layer: Layer,
        weight: np.ndarray,
        second: np.ndarray,
        places: np.ndarray,
        fronts: range,
        lanes: int,
    ) -> None:
        self._layer, self._weight, self._second = layer, weight, second
        self.whole = float(layer.width * layer.outputs * places[-1])
        found = [way for front in fronts for way in self._ways(front, places, lanes)]
        self.ranks = [ranks for ranks, _, _ in found]
        self.costs = np.array([cost for _, cost, _ in found])
        self.losses = np.array([lost for _, _, lost in found])

    def _ways(
        self, front: int, places: np.ndarray, lanes: int
    ) -> Iterator[tuple[tuple[int, int, int], float, float]]:
        """((front, rank behind the first, rank before the last), cost, loss); a rank as large as
        what it would stand for leaves the first or the last out."""
        out, (into, taps) = self._layer.outputs, self._groups(front)
        _, mapped, _ = self._regressed(front)
        energy = max(float(np.square(mapped).sum()), 1e-300)
        gram, at = np.zeros((out, out)), 0
        highs = np.array([*_ranks(out, lanes), out])
        # Without the first there are no spatial axes to go over apart.
        for low in (*_ranks(into, lanes), *([] if front else [into])):
            rows = mapped[at : low * taps]
            gram, at = gram + rows.T @ rows, low * taps
            costs = (low * taps + np.where(highs < out, out, 0)) * highs * places[-1]
            costs += into * low * places[front] if low < into else 0
            if costs.min() < self.whole:
                kept = np.cumsum(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)) / energy
                for high, cost in zip(highs.tolist(), costs.tolist(), strict=True):
                    if cost < self.whole:
                        yield (front, low, high), cost, max(1.0 - float(kept[high - 1]), 0.0)

    def _groups(self, front: int) -> tuple[int, int]:
        """How many numbers the first sums over, and at how many taps the second sees each."""
        front_taps = int(np.prod(self._layer.kernel[:front], dtype=np.int64))
        into = self._layer.inputs * front_taps
        return into, self._layer.width // into

    def _regressed(self, front: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the first could keep as columns (into, into), best first; the outputs in terms of
        it made orthonormal, (width, outputs); and the Cholesky factor that makes it so. Its
        leading part belongs to the leading columns: one serves all ranks."""
        (into, taps), width = self._groups(front), self._layer.width
        blocks = self._second.reshape(into, taps, into, taps)
        root = np.linalg.cholesky(np.einsum("atbt->ab", blocks) / taps)
        whitened = root.T @ self._weight.reshape(into, -1)
        _, vectors = leading(whitened @ whitened.T)
        basis = scipy.linalg.solve_triangular(root.T, vectors)
        turned = np.tensordot(np.tensordot(basis, blocks, (0, 0)), basis, (2, 0))
        turned = turned.swapaxes(2, 3).reshape(width, width)
        square = np.linalg.cholesky((turned + turned.T) / 2)
        weight = np.linalg.solve(basis, self._weight.reshape(into, -1)).reshape(width, -1)
        return basis, square.T @ weight, square

    def pieces(self, which: int) -> list[Piece]:
        front, low, high = self.ranks[which]
        into, taps = self._groups(front)
        kernel, at = self._layer.kernel, low * taps
        flat = (1,) * len(kernel)
        basis, mapped, square = self._regressed(front)
        before, core, after = [], self._weight, []
        if low < into:
            core = scipy.linalg.solve_triangular(square[:at, :at], mapped[:at], lower=True, trans=1)
            first, core = balanced(basis[:, :low], core.reshape(low, -1))
            before = [
                _piece(first, self._layer.inputs, (*kernel[:front], *flat[front:]), range(front))
            ]
            core = core.reshape(at, -1)
        if high < self._layer.outputs:
            _, vectors = leading(mapped[:at].T @ mapped[:at])
            core, last = balanced(core @ vectors[:, :high], vectors[:, :high].T)
            after = [_piece(last, high, flat, range(0))]
        over = (*flat[:front], *kernel[front:])
        return [*before, _piece(core, low, over, range(front, len(kernel))), *after]


def _piece(matrix: np.ndarray, into: int, kernel: tuple[int, ...], axes: range) -> Piece:
    """Of the weight (into * kernel, out)."""
    return Piece(np.moveaxis(matrix.reshape(into, *kernel, -1), -1, 1), axes)


def _ranks(channels: int, lanes: int) -> range:
    """Fewer channels than these, in steps that fill the vector units where there is a choice."""
    step = next(each for each in (lanes, 8, 4, 1) if channels >= 4 * each or each == 1)
    return range(step, channels, step)
