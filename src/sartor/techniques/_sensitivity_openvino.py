"""How much each layer's rounding alone changes the answer of the task: measured, not guessed.

One graph holds the weights and the input of every quantized layer twice, as they are and rounded,
behind a switch on the number of the layer to be rounded. So one model answers for all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sartor.contracts import Bench, Model
from sartor.openvino_core import core, opened, ov, properties
from sartor.techniques._graph_openvino import examples, is_constant, mark

EXAMPLES = 16


def worst(
    model: Model, quantized: ov.Model, names: Sequence[str], bench: Bench, how: str
) -> list[str]:
    """These layers of `quantized`, which was made of the model as `how` says, the one whose
    rounding changes the answer most first; ties in the graph's order."""
    key = f"sensitivity {how} {mark(model)}"
    found = bench.remember(key, lambda: {"error": _errors(model, quantized, names, bench)})
    return [names[at] for at in np.argsort(-found["error"], kind="stable")]


def _errors(model: Model, quantized: ov.Model, names: Sequence[str], bench: Bench) -> np.ndarray:
    """For each layer the mean squared change of the task's output when only it is rounded."""
    board = _switchboard(model, quantized.clone(), names)
    running = core().compile_model(board, "CPU", properties({}, bench.target.threads))
    ports = model.signature.inputs
    output = next(
        (at for at, p in enumerate(model.signature.outputs) if p.name == bench.task.output), 0
    )
    wrong = np.zeros(len(names))
    for inputs in examples(model, bench, EXAMPLES):

        def answer(which: int, inputs: dict[int, np.ndarray] = inputs) -> np.ndarray:
            found = running({**inputs, len(ports): np.array(which, np.int64)})
            return np.asarray(found[output], np.float64)

        right = answer(-1)
        for which in range(len(names)):
            change = np.square(answer(which) - right)
            wrong[which] += np.nan_to_num(change, nan=np.inf).mean()
    return wrong


def _switchboard(model: Model, board: ov.Model, names: Sequence[str]) -> ov.Model:
    """The quantized graph with one more input, the number of the layer to be rounded (-1: none)."""
    from openvino import opset13 as ops

    which = ops.parameter([], np.int64, name="sartor_which")
    before = {op.get_friendly_name(): op for op in opened(Path(model.payload)).get_ordered_ops()}
    layers = {op.get_friendly_name(): op for op in board.get_ordered_ops()}
    for number, name in enumerate(names):
        layer, old = layers[name], before.get(name)
        if old is None:
            continue
        here = ops.equal(which, ops.constant(np.array(number, np.int64)))
        for at in range(layer.get_input_size()):
            rounding = layer.input_value(at)
            plain = _plain(rounding, old.input_value(at))
            if plain is not None:
                switch = ops.select(here, rounding, plain)
                layer.input(at).replace_source_output(switch.output(0))
    board.add_parameters([which])
    board.validate_nodes_and_infer_types()
    return board


def _plain(rounding: ov.Output, old: ov.Output) -> ov.Output | None:
    """What stands there without the rounding: the input of a FakeQuantize, or the old constants."""
    node = rounding.get_node()
    if is_constant(old.get_node()):
        alike = old.get_partial_shape() == rounding.get_partial_shape()
        return old if alike and old.get_element_type() == rounding.get_element_type() else None
    return node.input_value(0) if node.get_type_name() == "FakeQuantize" else None
