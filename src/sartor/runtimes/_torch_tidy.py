"""Exported programs as PyTorch's own layers would give them: Keras' code asks for a type and a
device before each operator, turns its kernels around at each call, and writes a dense layer as a
product and a sum.

What is left gives the same numbers to the last bit, but for linear layers, which round once less.
"""

from __future__ import annotations

from typing import Any

import torch

_aten = torch.ops.aten
_CONVERSIONS = (_aten.to.dtype_layout, _aten.to.dtype)
_TURNS = (
    _aten.permute.default, _aten.reshape.default, _aten.transpose.int, _aten.contiguous.default,
)  # fmt: skip


def tidy(made: torch.export.ExportedProgram) -> None:
    """Drops checks of types, and conversions to the type and the device that a tensor has; weights
    that are only turned around before they are used are stored so; products with weights become
    linear layers."""
    graph = made.graph_module.graph
    for node in list(graph.nodes):
        if node.target == _aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.target in _CONVERSIONS and _converts_nothing(node):
            _bypass(node)
    weights = made.graph_signature.inputs_to_parameters
    for node in list(graph.nodes):
        if node.target in _TURNS and _is_plain(node) and node.args[0].name in weights:
            _turn(made, node, weights[node.args[0].name])
    for node in list(graph.nodes):
        if node.target == _aten.matmul.default and _is_weight(made, node.args[1], 2):
            _linear(made, node)
    made.graph_module.recompile()


def _converts_nothing(node: Any) -> bool:
    one, two = node.args[0].meta["val"], node.meta["val"]
    same = (one.dtype, one.device, one.layout) == (two.dtype, two.device, two.layout)
    asked = (node.kwargs.get("copy"), node.kwargs.get("memory_format"), *node.args[2:])
    return same and not any(asked) and all(each.op != "output" for each in node.users)


def _is_plain(node: Any) -> bool:
    """Whether nothing else reads the weight, nothing writes into what comes out, and no size in it
    is one of the data's."""
    sizes = [e for each in node.args[1:] for e in (each if isinstance(each, list) else [each])]
    return (
        all(isinstance(each, int) for each in sizes)
        and set(node.kwargs) <= {"memory_format"}
        and len(node.args[0].users) == 1
        and not any(each.op == "output" or _writes(each) for each in node.users)
    )


def _writes(node: Any) -> bool:
    return str(node.target).split(".")[1].endswith("_")


def _turn(made: torch.export.ExportedProgram, node: Any, name: str) -> None:
    source = node.args[0]
    old = made.state_dict[name]
    turned = node.target(old, *node.args[1:], **node.kwargs).detach()
    made.state_dict[name] = torch.nn.Parameter(turned, requires_grad=old.requires_grad)
    source.meta["val"] = node.meta["val"]
    _bypass(node)


def _is_weight(made: torch.export.ExportedProgram, node: Any, axes: int) -> bool:
    known = node.name in made.graph_signature.inputs_to_parameters
    return known and len(node.users) == 1 and node.meta["val"].ndim == axes


def _linear(made: torch.export.ExportedProgram, product: Any) -> None:
    """A product and, where it follows, the sum with one number per column, as `nn.Linear` calls
    them and names its weight."""
    rows, kernel = product.args
    specs = made.graph_signature.input_specs
    spec = next(each for each in specs if getattr(each.arg, "name", "") == kernel.name)
    name = str(spec.target)
    old = made.state_dict.pop(name)
    wanted = f"{name.rpartition('.')[0]}.weight".lstrip(".")
    spec.target = name if wanted in made.state_dict else wanted
    turned = old.detach().t().contiguous()
    made.state_dict[spec.target] = torch.nn.Parameter(turned, requires_grad=old.requires_grad)
    kernel.meta["val"] = kernel.meta["val"].t().contiguous()
    last, bias = product, None
    followers: list[Any] = list(product.users)
    if [(each.target, each.kwargs) for each in followers] == [(_aten.add.Tensor, {})]:
        other = next((each for each in followers[0].args if each is not product), None)
        if isinstance(other, torch.fx.Node) and _is_weight(made, other, 1):
            last, bias = followers[0], other
    with made.graph_module.graph.inserting_before(last):
        given = (rows, kernel) if bias is None else (rows, kernel, bias)
        layer = made.graph_module.graph.call_function(_aten.linear.default, given)
    layer.meta = dict(last.meta)
    last.replace_all_uses_with(layer)
    made.graph_signature.replace_all_uses(last.name, layer.name)  # where it is an answer
    for node in dict.fromkeys((last, product)):
        made.graph_module.graph.erase_node(node)


def _bypass(node: Any) -> None:
    node.replace_all_uses_with(node.args[0])
    node.graph.erase_node(node)
