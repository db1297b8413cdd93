"""Exported programs without calls that compute nothing: Keras' own code asks for a type and a
device before each operator, and turns its kernels around at each call.

What is left gives the same numbers to the last bit.
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
    that are only turned around before they are used are stored so."""
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


def _bypass(node: Any) -> None:
    node.replace_all_uses_with(node.args[0])
    node.graph.erase_node(node)
