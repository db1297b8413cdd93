"""Rules for the operators that multiply and add: which axes are summed over, which are made."""

from __future__ import annotations

from functools import partial

import onnx

from sartor.techniques._axes_onnx import Axes, Layout, axis, broadcast, merge, unify
from sartor.techniques._axes_rewrite_onnx import rewrite_number
from sartor.techniques._axes_trace_onnx import Product, Trace, Unknown, positions, sized
from sartor.techniques._graph_onnx import attribute


def conv(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    x, weight = trace.of(node.input[0]), trace.of(node.input[1])
    groups = _groups(trace, node)
    inside, own = axis(sized(x[1]) // groups[0]), axis(sized(weight[0]) // groups[0])
    unify(x[1], merge((groups[1], inside)))
    unify(weight[0], merge((groups[1], own)))
    unify(weight[1], inside)
    made = (x[0], weight[0], *positions(trace, node, x, weight))
    _with_bias(trace, node, weight[0], 1)
    out = [(node.output[0], at, each) for at, each in enumerate(made)]
    kernel = [(node.input[1], at, each) for at, each in enumerate(weight) if at]
    trace.products.append(Product(node.name, (*out, *kernel)))
    return [made]


def conv_transpose(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    x, weight = trace.of(node.input[0]), trace.of(node.input[1])
    groups = _groups(trace, node)
    inside = axis(sized(x[1]) // groups[0])
    unify(x[1], merge((groups[1], inside)))
    unify(weight[0], merge((groups[1], inside)))
    made_axis = merge((groups[1], weight[1]))
    _with_bias(trace, node, made_axis, 0)
    into = [(node.input[0], at, each) for at, each in enumerate(x)]
    kernel = [(node.input[1], at, each) for at, each in enumerate(weight) if at]
    trace.products.append(Product(node.name, (*into, *kernel)))
    return [(x[0], made_axis, *positions(trace, node, x, weight))]


def _groups(trace: Trace, node: onnx.NodeProto) -> tuple[int, Layout]:
    """How many groups a convolution has, as a number and as an axis."""
    number = attribute(node, "group", 1)
    layout = axis(number)
    if number > 1:
        trace.rewrites.append(partial(rewrite_number, node.name, "group", layout))
    return number, layout


def _with_bias(trace: Trace, node: onnx.NodeProto, made: Layout, into: int) -> None:
    """`into` is the axis of the weight that goes with the channels of the input."""
    if trace.given(node, 2):
        unify(made, trace.of(node.input[2])[0])
    alone = attribute(node, "group", 1) == 1
    trace.reads(node.input[0], 1, node.input[1] if alone else "", into)
    if node.input[1] in trace.fixed:
        trace.made.append((node.name, made))


def matmul(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    one, two = trace.of(node.input[0]), trace.of(node.input[1])
    if len(one) < 2 or len(two) < 2:
        return _vector_product(trace, node, one, two)
    unify(one[-1], two[-2])
    batch = broadcast((one[:-2], two[:-2]))
    made = (*batch, one[-2], two[-1])
    _product(trace, node, made, (one[-1], len(one) - 1))
    fixed = [name in trace.fixed for name in node.input]
    if fixed[1]:
        trace.made.append((node.name, two[-1]))
        trace.reads(node.input[0], -1, node.input[1] if len(two) == 2 else "", -2)
    if fixed[0]:
        trace.made.append((node.name, one[-2]))
        trace.reads(node.input[1], -2, node.input[0] if len(one) == 2 else "", -1)
    if not any(fixed):
        trace.mixed.extend(batch)
    return [made]


def _vector_product(trace: Trace, node: onnx.NodeProto, one: Axes, two: Axes) -> list[Axes]:
    if not one or not two:
        raise Unknown("it enters a product with a number")
    unify(one[-1], two[-2] if len(two) > 1 else two[0])
    made = (*one[:-1], *(two[:-2] + two[-1:] if len(two) > 1 else ()))
    _product(trace, node, made, (one[-1], len(one) - 1))
    return [made]


def _product(trace: Trace, node: onnx.NodeProto, made: Axes, summed: tuple[Layout, int]) -> None:
    sizes = [(node.output[0], at, each) for at, each in enumerate(made)]
    sizes.append((node.input[0], summed[1], summed[0]))
    trace.products.append(Product(node.name, tuple(sizes)))


def gemm(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    one, two = trace.of(node.input[0]), trace.of(node.input[1])
    turned = [attribute(node, "transA", 0), attribute(node, "transB", 0)]
    one_out, one_in = one[::-1] if turned[0] else one
    two_in, two_out = two[::-1] if turned[1] else two
    unify(one_in, two_in)
    made: Axes = (one_out, two_out)
    if trace.given(node, 2):
        made = broadcast((made, trace.of(node.input[2])))[:2]
    _product(trace, node, made, (one_in, 0 if turned[0] else 1))
    if node.input[1] in trace.fixed:
        trace.made.append((node.name, two_out))
        trace.reads(node.input[0], 0 if turned[0] else 1, node.input[1], 1 if turned[1] else 0)
    return [made]


def einsum(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    equation = attribute(node, "equation", b"").decode().replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow or "." in equation or any(len(set(each)) < len(each) for each in terms):
        raise Unknown(f"the equation {equation} is not followed here")
    letters: dict[str, tuple[str, int, Layout]] = {}
    for name, term in zip(node.input, terms, strict=True):
        for at, (letter, layout) in enumerate(zip(term, trace.of(name), strict=True)):
            known = letters.setdefault(letter, (name, at, layout))
            unify(known[2], layout)
    if len(terms) > 1:
        trace.products.append(Product(node.name, tuple(letters.values())))
    for name, term in zip(node.input, terms, strict=True):
        others = [each for each in node.input if each != name]
        if name in trace.fixed:
            new = [letter for letter in term if letter in right and left.count(letter) == 1]
            trace.made.extend((node.name, letters[letter][2]) for letter in new)
        elif any(each in trace.fixed for each in others):
            for at, letter in enumerate(term):
                if letter not in right:
                    trace.reads(name, at)
    if len(terms) > 1 and trace.fixed.isdisjoint(node.input):
        shared = [letter for letter in right if left.count(letter) > 1]
        trace.mixed.extend(letters[letter][2] for letter in shared)
    return [tuple(letters[letter][2] for letter in right)]


def recurrent(trace: Trace, node: onnx.NodeProto) -> list[Axes]:
    """Frozen, but counted: steps x rows x the numbers in both weights."""
    steps = [(node.input[0], at, each) for at, each in enumerate(trace.of(node.input[0])[:2])]
    for name in node.input[1:3]:
        weight = [(name, at, each) for at, each in enumerate(trace.of(name))]
        trace.products.append(Product(node.name, (*steps, *weight)))
    raise Unknown(f"{node.op_type} carries it from step to step")


PRODUCTS = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "MatMul": matmul,
    "Gemm": gemm,
    "Einsum": einsum,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), recurrent),
}
