"""How much each channel, head or unit of a group matters: larger means more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sartor.contracts import Arrays, Bench, Failed, Task
from sartor.techniques._axes_groups_onnx import Group
from sartor.techniques._axes_onnx import Atom, Layout, leaves, places
from sartor.techniques._axes_trace_onnx import Trace
from sartor.techniques._graph_onnx import watch
from sartor.techniques._refit_onnx import removal_errors

_ROWS = 16  # examples in a batch for gradients

Scores = Mapping[Atom, np.ndarray]


def magnitude(
    trace: Trace, groups: Sequence[Group], bench: Bench, examples: int
) -> dict[Atom, np.ndarray]:
    """The L2 norm of all weights that go with an index (Li et al., ICLR 2017; over all layers
    that share it as in Fang et al., "DepGraph", CVPR 2023). Vectors (biases, statistics of a
    batch norm) count only where there is nothing else."""
    found = {}
    for group in groups:
        wide = [each for each in group.members if len(trace.axes[each[0]]) > 1] or group.members
        squares = np.zeros(group.size)
        for name, at in wide:
            value = trace.graph.constant(name)
            if value is not None:
                squares += _by_index(np.square(value, dtype=np.float64), trace, group, name, at)
        found[group.atom] = np.sqrt(squares)
    return found


def random(
    trace: Trace, groups: Sequence[Group], bench: Bench, examples: int
) -> dict[Atom, np.ndarray]:
    """A control: drawn from the bench's seed."""
    rng = np.random.default_rng((bench.seed, len(groups)))
    return {group.atom: rng.uniform(0.5, 1.5, group.size) for group in groups}


def activation(
    trace: Trace, groups: Sequence[Group], bench: Bench, examples: int
) -> dict[Atom, np.ndarray]:
    """The mean magnitude of the activations over which weights sum, on training examples."""
    seen = {group.atom: _activations(trace, group) for group in groups}
    names = list(dict.fromkeys(name for each in seen.values() for name, _ in each))

    def compute() -> dict[str, np.ndarray]:
        sums = {group.atom: np.zeros(group.size) for group in groups}
        batches = bench.batches("train", 1, examples)  # one by one: no padding
        if batches is None:
            raise Failed("there are no training rows to gather activations from")
        for values in watch(trace.graph, names, batches, bench):
            for group in groups:
                for name, at in seen[group.atom]:
                    size = np.abs(values[name], dtype=np.float64)
                    mean = _by_index(size, trace, group, name, at) * group.size / size.size
                    sums[group.atom] += mean
        return {str(at): sums[group.atom] for at, group in enumerate(groups)}

    return _remembered("activation", compute, trace, groups, bench, examples)


def _activations(trace: Trace, group: Group) -> list[tuple[str, int]]:
    """The activations that products sum over this group's indices; where there are none, what
    makes it gives."""
    reads = [
        (each.tensor, each.at)
        for each in trace.read
        if group.atom in leaves(trace.axes[each.tensor][each.at])
    ]
    if reads:
        return list(dict.fromkeys(reads))
    node = next(node for node in trace.graph.nodes if node.name == group.node)
    made = trace.axes[node.output[0]]
    return [(node.output[0], at) for at, each in enumerate(made) if group.atom in leaves(each)]


def error(
    trace: Trace, groups: Sequence[Group], bench: Bench, examples: int
) -> dict[Atom, np.ndarray]:
    """The share of the outputs' energy that is lost with an index though what reads it is refitted
    (`removal_errors`). For what only grouped convolutions read: its share of the squared norm."""

    def compute() -> dict[str, np.ndarray]:
        errors = removal_errors(trace, groups, bench, examples)
        norms = magnitude(trace, groups, bench, examples)
        found = {}
        for at, group in enumerate(groups):
            squares = np.square(norms[group.atom])
            share = squares / max(float(squares.sum()), 1e-30)
            own = errors[group.atom]
            found[str(at)] = share if np.isnan(own).any() else own
        return found

    return _remembered("error", compute, trace, groups, bench, examples)


def taylor(
    trace: Trace, groups: Sequence[Group], bench: Bench, examples: int
) -> dict[Atom, np.ndarray]:
    """The change of the loss to first order when the weights of an index become zero: the sum of
    |w dL/dw| over them (Molchanov et al., CVPR 2019), added up over batches. L is the
    cross-entropy to the labels of a classifier, else the squared error to the original's
    answers."""

    def compute() -> dict[str, np.ndarray]:
        products = _gradient_products(trace, bench, examples)
        found = {}
        for at, group in enumerate(groups):
            total = np.zeros(group.size)
            for name, axis in group.members:
                if name in products:
                    total += _by_index(products[name], trace, group, name, axis)
            if not np.isfinite(total).all():
                raise Failed(f"the gradients at {group.name} are not finite")
            found[str(at)] = total
        return found

    return _remembered("taylor", compute, trace, groups, bench, examples)


def _gradient_products(trace: Trace, bench: Bench, examples: int) -> dict[str, np.ndarray]:
    """Weight -> sum over batches of |w dL/dw|, in its shape."""
    import torch

    from sartor.techniques._agreement_onnx import agree
    from sartor.techniques._autograd_onnx import GraphModule

    net = GraphModule(trace.graph)
    inputs = [port.name for port in trace.graph.proto.graph.input]
    sums = {name: np.zeros(tuple(each.shape)) for name, each in _weights(net)}
    batches = bench.batches("train", _ROWS, examples)
    if batches is None:
        raise Failed("there are no training rows to take gradients on")
    agree(net, trace.graph, bench)
    for batch in batches:
        with torch.enable_grad():
            answer = net({name: torch.from_numpy(np.array(batch[name])) for name in inputs})
            loss = _loss(answer[bench.task.output], batch, bench)
            if not loss.requires_grad:
                raise Failed(f"no gradient passes through {bench.task.output}")
            weights = [each for _, each in _weights(net)]
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        for (name, weight), gradient in zip(_weights(net), gradients, strict=True):
            if gradient is not None:
                product = (weight.detach() * gradient).abs().double()
                sums[name] += product.numpy()
    return sums


def _weights(net: Any) -> list[tuple[str, Any]]:
    return list(zip(net.names, net.weights, strict=True))


def _loss(answer: Any, batch: Arrays, bench: Bench) -> Any:
    """The mean over the batch, a torch scalar."""
    import torch

    task = bench.task
    if _labelled_classes(task, batch) and task.form in ("logits", "probabilities", None):
        label = torch.from_numpy(np.asarray(batch["label"], np.int64))
        if answer.ndim == 1 or answer.shape[-1] == 1:
            given, wanted = answer.reshape(-1), label.reshape(-1).to(answer.dtype)
            if task.form == "probabilities":
                return torch.nn.functional.binary_cross_entropy(given, wanted)
            return torch.nn.functional.binary_cross_entropy_with_logits(given, wanted)
        if task.form == "probabilities":
            logs = torch.log(answer.clamp_min(1e-7))
            return torch.nn.functional.nll_loss(logs, label)
        return torch.nn.functional.cross_entropy(answer, label)
    inputs = {port.name: batch[port.name] for port in bench.teacher.signature.inputs}
    wanted = torch.from_numpy(np.array(bench.teach(inputs)[task.output]))
    return torch.nn.functional.mse_loss(answer, wanted)


def _labelled_classes(task: Task, batch: Arrays) -> bool:
    """Whether there is one whole number per row that names its class."""
    label = batch.get("label")
    if task.kind != "classification" or not task.labelled or label is None:
        return False
    whole = np.issubdtype(np.asarray(label).dtype, np.integer)
    return bool(whole and np.ndim(label) == 1)


def _remembered(
    what: str,
    compute: Callable[[], Mapping[str, np.ndarray]],
    trace: Trace,
    groups: Sequence[Group],
    bench: Bench,
    examples: int,
) -> dict[Atom, np.ndarray]:
    names = " ".join(group.name for group in groups)
    key = f"importance {what} {trace.graph.digest()} {examples} {names}"
    found = bench.remember(key, compute)
    return {group.atom: found[str(at)] for at, group in enumerate(groups)}


def _by_index(value: np.ndarray, trace: Trace, group: Group, name: str, at: int) -> np.ndarray:
    """The sum of a tensor's numbers for each index of the group, along one of its axes."""
    layout: Layout = trace.axes[name][at]
    sums = value.sum(axis=tuple(each for each in range(value.ndim) if each != at))
    where = places(layout, group.atom)
    here = where >= 0
    return np.bincount(where[here], weights=sums[here], minlength=group.size)


IMPORTANCE: Mapping[str, Callable[[Trace, Sequence[Group], Bench, int], Scores]] = {
    "magnitude": magnitude,
    "error": error,
    "taylor": taylor,
    "activation": activation,
    "random": random,
}
