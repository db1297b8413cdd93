"""Graphs for the tests of structured pruning: one way each in which sizes go together.

Each function gives a model, which atom to thin (a member of its group: tensor, axis, size), which
of its indices go, and what to silence (tensor -> axis, positions) so that they carry zeros."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sartor.testing_onnx import Draft

Silence = dict[str, tuple[int, Sequence[int]]]


@dataclass(frozen=True)
class Case:
    proto: onnx.ModelProto
    member: tuple[str, int, int]
    gone: tuple[int, ...]
    silence: Silence


def port(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def image(draft: Draft, end: str, width: int, size: int = 8, classes: int = 5) -> onnx.ModelProto:
    """The draft with pooling and a head behind `end`."""
    pooled = draft.op("Flatten", draft.op("GlobalAveragePool", end), axis=1)
    draft.gemm(pooled, width, classes)
    return draft.model("image", [port("x", "n", 3, size, size)], [port("y", "n", classes)])


def weights(proto: onnx.ModelProto, node: str) -> list[str]:
    """The constants that a node reads, in the order of its inputs."""
    known = {tensor.name for tensor in proto.graph.initializer}
    found = next(each for each in proto.graph.node if each.name == node)
    return [name for name in found.input if name in known]


def made_by(proto: onnx.ModelProto, gone: Sequence[int], *nodes: str) -> Silence:
    """Weights and biases of convolutions, at these output channels."""
    return {name: (0, gone) for node in nodes for name in weights(proto, node)}


def plain() -> Case:
    draft = Draft(1)
    hidden = draft.op("Relu", draft.conv("x", 3, 32))
    hidden = draft.op("MaxPool", hidden, kernel_shape=[2, 2], strides=[2, 2])
    proto = image(draft, draft.op("Relu", draft.conv(hidden, 32, 16)), 16)
    gone = (0, 5, 31)
    return Case(proto, (weights(proto, "Conv_0")[0], 0, 32), gone, made_by(proto, gone, "Conv_0"))


def residual() -> Case:
    draft = Draft(2)
    stem = draft.op("Relu", draft.conv("x", 3, 32))
    inner = draft.op("Relu", draft.conv(stem, 32, 16))
    block = draft.op("Relu", draft.op("Add", draft.conv(inner, 16, 32), stem))
    proto = image(draft, draft.conv(block, 32, 16), 16)
    gone = (1, 2, 30)
    silence = made_by(proto, gone, "Conv_0", "Conv_4")
    return Case(proto, (weights(proto, "Conv_4")[0], 0, 32), gone, silence)


def concatenated() -> Case:
    """As in a DenseNet, with batch norms that stay."""
    draft = Draft(3)
    first = draft.op("Relu", draft.conv("x", 3, 16))
    second = draft.op("Relu", draft.conv(first, 16, 24))
    both = draft.op("Concat", first, second, axis=1)
    norm = [draft.constant(draft.rng.uniform(0.5, 2, 40).astype(np.float32)) for _ in range(4)]
    normed = draft.op("Relu", draft.op("BatchNormalization", both, *norm))
    proto = image(draft, draft.conv(normed, 40, 16), 16)
    gone = (3, 4, 23)
    places = [16 + at for at in gone]
    silence = made_by(proto, gone, "Conv_2") | {norm[1]: (0, places), norm[2]: (0, places)}
    return Case(proto, (weights(proto, "Conv_2")[0], 0, 24), gone, silence)


def _grouped() -> onnx.ModelProto:
    draft = Draft(4)
    thin = draft.op("Relu", draft.conv("x", 3, 32, size=1))
    wide = draft.op("Relu", draft.conv(thin, 32, 48, group=4))
    return image(draft, draft.conv(wide, 48, 16, size=1), 16)


def groups() -> Case:
    """Whole groups of a grouped convolution: 8 channels in, 12 out of each of the four."""
    proto = _grouped()
    silence = made_by(proto, range(12, 24), "Conv_2")
    return Case(proto, (weights(proto, "Conv_2")[0], 0, 4), (1,), silence)


def inside_groups() -> Case:
    """The same two output channels of each group."""
    proto = _grouped()
    silence = made_by(proto, [12 * g + at for g in range(4) for at in (0, 7)], "Conv_2")
    return Case(proto, (weights(proto, "Conv_2")[0], 0, 12), (0, 7), silence)


def depthwise() -> Case:
    """With two outputs for each channel."""
    draft = Draft(5)
    wide = draft.op("Clip", draft.conv("x", 3, 32), draft.constant(np.float32(0)))
    weight, bias = draft.weight(64, 1, 3, 3), draft.bias(64)
    deep = draft.op("Conv", wide, weight, bias, group=32, pads=[1] * 4)
    proto = image(draft, draft.conv(draft.op("HardSwish", deep), 64, 16, size=1), 16)
    both = (0, [2 * at + k for at in (0, 9) for k in (0, 1)])
    silence = made_by(proto, (0, 9), "Conv_0") | {bias: both}
    return Case(proto, (weight, 0, 32), (0, 9), silence)


def flattened() -> Case:
    """Channels that a Flatten merges with positions."""
    draft = Draft(6)
    hidden = draft.op("Relu", draft.conv("x", 3, 16))
    flat = draft.op("Flatten", draft.op("MaxPool", hidden, kernel_shape=[2, 2], strides=[2, 2]))
    draft.gemm(draft.op("Relu", draft.gemm(flat, 16 * 16, 32)), 32, 5)
    proto = draft.model("flat", [port("x", "n", 3, 8, 8)], [port("y", "n", 5)])
    gone = (2, 15)
    return Case(proto, (weights(proto, "Conv_0")[0], 0, 16), gone, made_by(proto, gone, "Conv_0"))


def squeezed() -> Case:
    """Squeeze and excite: the gates go with the channels."""
    draft = Draft(7)
    wide = draft.op("Relu", draft.conv("x", 3, 32))
    pooled = draft.op("ReduceMean", wide, axes=[2, 3])
    inner = draft.op("Relu", draft.conv(pooled, 32, 8, size=1))
    gate = draft.op("Sigmoid", draft.conv(inner, 8, 32, size=1))
    proto = image(draft, draft.conv(draft.op("Mul", wide, gate), 32, 16, size=1), 16)
    gone = (4, 8, 9)
    return Case(proto, (weights(proto, "Conv_0")[0], 0, 32), gone, made_by(proto, gone, "Conv_0"))


def shuffled() -> Case:
    """As in a ShuffleNet: halves, one of which is convolved, and their channels interleaved."""
    draft = Draft(8)
    stem = draft.op("Relu", draft.conv("x", 3, 32))
    sizes = draft.constant(np.array([16, 16], np.int64))
    draft.op("Split", stem, sizes, outputs=("left", "right"), axis=1)
    right = draft.op("Relu", draft.conv("right", 16, 16, size=1))
    both = draft.op("Concat", "left", right, axis=1)
    apart = draft.constant(np.array([0, 2, 16, 8, 8], np.int64))
    turned = draft.op("Transpose", draft.op("Reshape", both, apart), perm=[0, 2, 1, 3, 4])
    mixed = draft.op("Reshape", turned, draft.constant(np.array([0, 32, 8, 8], np.int64)))
    proto = image(draft, draft.conv(mixed, 32, 16, size=1), 16)
    silence = made_by(proto, (3, 19), "Conv_0") | made_by(proto, (3,), "Conv_3")
    return Case(proto, (weights(proto, "Conv_3")[0], 0, 16), (3,), silence)


def upsampled() -> Case:
    """A small decoder: Pad, InstanceNormalization, PRelu, ConvTranspose, Resize, a skip."""
    draft = Draft(9)
    pads = draft.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
    down = draft.op("Pad", draft.conv("x", 3, 16), pads, mode="reflect")
    scale, shift = draft.bias(16), draft.bias(16)
    normed = draft.op("InstanceNormalization", down, scale, shift)
    slope = draft.constant(np.full((16, 1, 1), 0.2, np.float32))
    skip = draft.op("PRelu", normed, slope)
    deep = draft.op("AveragePool", skip, kernel_shape=[2, 2], strides=[2, 2])
    kernel = draft.weight(16, 16, 2, 2)
    up = draft.op("ConvTranspose", deep, kernel, draft.bias(16), strides=[2, 2])
    scales = draft.constant(np.array([1, 1, 2, 2], np.float32))
    both = draft.op("Add", draft.op("Resize", up, "", scales), draft.op("Resize", skip, "", scales))
    proto = image(draft, draft.conv(both, 16, 8), 8)
    gone = (0, 6)
    silence = made_by(proto, gone, "Conv_0") | {shift: (0, gone), kernel: (1, gone)}
    silence[weights(proto, "ConvTranspose_5")[1]] = (0, gone)
    return Case(proto, (kernel, 1, 16), gone, silence)


# --- transformers ---------------------------------------------------------------------------------

WIDTH, HEADS, TOKENS = 32, 4, 6
SIZE = WIDTH // HEADS


def head(at: int) -> range:
    return range(SIZE * at, SIZE * (at + 1))


def sequence(draft: Draft, out: int = WIDTH) -> onnx.ModelProto:
    inputs, outputs = [port("x", "n", "t", WIDTH)], [port("y", "n", "t", out)]
    return draft.model("sequence", inputs, outputs)


def number(draft: Draft, *values: int) -> str:
    return draft.constant(np.array(values, np.int64))


def scalar(draft: Draft, value: int) -> str:
    return draft.constant(np.array(value, np.int64))


def mixture(draft: Draft, query: str, key: str, value: str) -> str:
    """softmax(q k' / sqrt(d)) v on [n, heads, tokens, size], then [n, tokens, heads, size]."""
    turned = draft.op("Transpose", key, perm=[0, 1, 3, 2])
    scores = draft.op("MatMul", query, turned)
    scores = draft.op("Div", scores, draft.constant(np.float32(np.sqrt(SIZE))))
    mixed = draft.op("MatMul", draft.op("Softmax", scores, axis=-1), value)
    return draft.op("Transpose", mixed, perm=[0, 2, 1, 3])


def of_value(proto: onnx.ModelProto, node: str, add: str, gone: int) -> Silence:
    """The values of a head are zero: whatever is looked at, nothing is seen."""
    return {weights(proto, node)[0]: (1, head(gone)), weights(proto, add)[0]: (0, head(gone))}


def heads(
    sizes: Callable[[Draft, str], str], back: Callable[[Draft, str], str], gone: int = 2
) -> Case:
    """Attention whose Reshapes get their sizes from `sizes` (into heads) and `back`."""
    draft = Draft(10)
    three = [draft.linear("x", WIDTH, WIDTH) for _ in "qkv"]
    apart = [draft.op("Reshape", each, sizes(draft, each)) for each in three]
    turned = [draft.op("Transpose", each, perm=[0, 2, 1, 3]) for each in apart]
    mixed = mixture(draft, *turned)
    draft.linear(draft.op("Reshape", mixed, back(draft, mixed)), WIDTH, WIDTH)
    proto = sequence(draft)
    silence = of_value(proto, "MatMul_4", "Add_5", gone)
    return Case(proto, (weights(proto, "MatMul_0")[0], 1, HEADS), (gone,), silence)


def length(draft: Draft, of: str, at: int) -> str:
    return draft.op("Gather", draft.op("Shape", of), scalar(draft, at), axis=0)


def joined(draft: Draft, *parts: str) -> str:
    raised = [draft.op("Unsqueeze", each, number(draft, 0)) for each in parts]
    return draft.op("Concat", *raised, axis=0)


def heads_constant() -> Case:
    return heads(
        lambda draft, _: number(draft, 0, 0, HEADS, SIZE), lambda draft, _: number(draft, 0, 0, -1)
    )


def heads_shared_target() -> Case:
    """One constant for all three Reshapes into heads and one width for another Reshape."""
    draft = Draft(11)
    into = number(draft, 0, 0, HEADS, SIZE)
    three = [draft.linear("x", WIDTH, WIDTH) for _ in "qkv"]
    turned = [
        draft.op("Transpose", draft.op("Reshape", each, into), perm=[0, 2, 1, 3]) for each in three
    ]
    back = number(draft, 0, 0, WIDTH)
    mixed = draft.op("Reshape", mixture(draft, *turned), back)
    out = draft.op("Add", draft.linear(mixed, WIDTH, WIDTH), "x")
    draft.op("Reshape", draft.op("Reshape", out, into), back)  # these heads are no heads
    proto = sequence(draft)
    return Case(
        proto,
        (weights(proto, "MatMul_0")[0], 1, HEADS),
        (0,),
        of_value(proto, "MatMul_4", "Add_5", 0),
    )


def heads_computed() -> Case:
    """Sizes by Shape, Gather, Unsqueeze and Concat, with constants inside, as exporters write."""

    def into(draft: Draft, x: str) -> str:
        tail = (scalar(draft, HEADS), scalar(draft, SIZE))
        return joined(draft, length(draft, x, 0), length(draft, x, 1), *tail)

    def back(draft: Draft, x: str) -> str:
        return joined(draft, length(draft, x, 0), length(draft, "x", 1), scalar(draft, WIDTH))

    return heads(into, back)


def heads_divided() -> Case:
    """The size of a head is the width, read off the tensor, divided by the number of heads; the
    way back multiplies them again."""

    def into(draft: Draft, x: str) -> str:
        size = draft.op("Div", length(draft, x, 2), scalar(draft, HEADS))
        return joined(draft, length(draft, x, 0), scalar(draft, -1), scalar(draft, HEADS), size)

    def back(draft: Draft, x: str) -> str:
        width = draft.op("Mul", length(draft, x, 2), length(draft, x, 3))
        return joined(draft, length(draft, x, 0), length(draft, x, 1), width)

    return heads(into, back)


def heads_packed() -> Case:
    """Queries, keys and values out of one product, told apart by Gather."""
    draft = Draft(12)
    three = draft.linear("x", WIDTH, 3 * WIDTH)
    apart = draft.op("Reshape", three, number(draft, 0, 0, 3, HEADS, SIZE))
    turned = draft.op("Transpose", apart, perm=[2, 0, 3, 1, 4])
    mixed = mixture(draft, *(draft.op("Gather", turned, scalar(draft, at)) for at in range(3)))
    draft.linear(draft.op("Reshape", mixed, number(draft, 0, 0, -1)), WIDTH, WIDTH)
    proto = sequence(draft)
    places = range(2 * WIDTH + SIZE, 2 * WIDTH + 2 * SIZE)
    silence = {
        weights(proto, "MatMul_0")[0]: (1, places),
        weights(proto, "Add_1")[0]: (0, places),
    }
    return Case(proto, (weights(proto, "MatMul_0")[0], 1, HEADS), (1,), silence)


def heads_split() -> Case:
    """One product behind which a Split tells queries, keys and values apart."""
    draft = Draft(13)
    three = draft.linear("x", WIDTH, 3 * WIDTH)
    draft.op("Split", three, outputs=("q", "k", "v"), axis=2)
    shape = number(draft, 0, 0, HEADS, SIZE)
    turned = [
        draft.op("Transpose", draft.op("Reshape", each, shape), perm=[0, 2, 1, 3]) for each in "qkv"
    ]
    mixed = draft.op("Reshape", mixture(draft, *turned), number(draft, 0, 0, WIDTH))
    draft.linear(mixed, WIDTH, WIDTH)
    proto = sequence(draft)
    places = range(2 * WIDTH + 3 * SIZE, 3 * WIDTH)
    silence = {
        weights(proto, "MatMul_0")[0]: (1, places),
        weights(proto, "Add_1")[0]: (0, places),
    }
    return Case(proto, (weights(proto, "MatMul_0")[0], 1, HEADS), (3,), silence)


def heads_merged() -> Case:
    """Heads merged with the batch, as torch's own attention writes them."""
    draft = Draft(14)
    turned = []
    for _ in "qkv":
        made = draft.op("Transpose", draft.linear("x", WIDTH, WIDTH), perm=[1, 0, 2])
        rows = draft.op("Mul", length(draft, made, 1), scalar(draft, HEADS))
        sizes = joined(draft, length(draft, made, 0), rows, scalar(draft, SIZE))
        turned.append(draft.op("Transpose", draft.op("Reshape", made, sizes), perm=[1, 0, 2]))
    query, key, value = turned
    scores = draft.op("MatMul", query, draft.op("Transpose", key, perm=[0, 2, 1]))
    mixed = draft.op("MatMul", draft.op("Softmax", scores, axis=-1), value)
    mixed = draft.op("Transpose", mixed, perm=[1, 0, 2])
    back = joined(draft, length(draft, "x", 1), length(draft, "x", 0), scalar(draft, WIDTH))
    mixed = draft.op("Transpose", draft.op("Reshape", mixed, back), perm=[1, 0, 2])
    draft.linear(mixed, WIDTH, WIDTH)
    proto = sequence(draft)
    products = [node.name for node in proto.graph.node if node.op_type == "MatMul"]
    adds = [node.name for node in proto.graph.node if node.op_type == "Add"]
    silence = of_value(proto, products[2], adds[2], 1)
    return Case(proto, (weights(proto, products[0])[0], 1, HEADS), (1,), silence)


def heads_queried() -> Case:
    """Two heads of keys and values for four of queries: what is repeated goes together."""
    draft = Draft(15)
    query = draft.linear("x", WIDTH, WIDTH)
    query = draft.op("Reshape", query, number(draft, 0, 0, HEADS, SIZE))
    query = draft.op("Transpose", query, perm=[0, 2, 1, 3])
    others = []
    for _ in "kv":
        made = draft.linear("x", WIDTH, WIDTH // 2)
        made = draft.op("Reshape", made, number(draft, 0, 0, 2, SIZE))
        made = draft.op("Transpose", made, perm=[0, 2, 1, 3])
        tall = draft.op("Unsqueeze", made, number(draft, 2))
        rows, tokens = length(draft, made, 0), length(draft, made, 2)
        two, size = scalar(draft, 2), scalar(draft, SIZE)
        tall = draft.op("Expand", tall, joined(draft, rows, two, two, tokens, size))
        flat = joined(draft, rows, scalar(draft, HEADS), tokens, size)
        others.append(draft.op("Reshape", tall, flat))
    mixed = draft.op("Reshape", mixture(draft, query, *others), number(draft, 0, 0, WIDTH))
    draft.linear(mixed, WIDTH, WIDTH)
    proto = sequence(draft)
    products = [node.name for node in proto.graph.node if node.op_type == "MatMul"]
    adds = [node.name for node in proto.graph.node if node.op_type == "Add"]
    silence = of_value(proto, products[2], adds[2], 0)
    return Case(proto, (weights(proto, products[2])[0], 1, 2), (0,), silence)


def heads_turned() -> Case:
    """Rotary positions: the halves of each head's width change places."""
    draft = Draft(16)
    three = [draft.linear("x", WIDTH, WIDTH) for _ in "qkv"]
    shape = number(draft, 0, 0, HEADS, SIZE)
    apart = [
        draft.op("Transpose", draft.op("Reshape", each, shape), perm=[0, 2, 1, 3]) for each in three
    ]
    angle = draft.constant(draft.rng.uniform(0, 3, (1, 1, 1, SIZE)).astype(np.float32))
    sine, cosine = draft.op("Sin", angle), draft.op("Cos", angle)
    last, half, far = number(draft, 3), number(draft, SIZE // 2), number(draft, 2**63 - 1)
    for at in (0, 1):
        first = draft.op("Slice", apart[at], number(draft, 0), half, last)
        second = draft.op("Neg", draft.op("Slice", apart[at], half, far, last))
        other = draft.op("Mul", draft.op("Concat", second, first, axis=-1), sine)
        apart[at] = draft.op("Add", draft.op("Mul", apart[at], cosine), other)
    mixed = draft.op("Reshape", mixture(draft, *apart), number(draft, 0, 0, WIDTH))
    draft.linear(mixed, WIDTH, WIDTH)
    proto = sequence(draft)
    silence = of_value(proto, "MatMul_4", "Add_5", 3)
    return Case(proto, (weights(proto, "MatMul_0")[0], 1, HEADS), (3,), silence)


def heads_in_an_equation() -> Case:
    """Einsum instead of Reshape and MatMul."""
    draft = Draft(17)
    kernels = [draft.weight(WIDTH, HEADS, SIZE, fan=WIDTH) for _ in "qkv"]
    query, key, value = (
        draft.op("Einsum", "x", kernel, equation="ntw,whs->nths") for kernel in kernels
    )
    scores = draft.op("Einsum", query, key, equation="nqhs,nkhs->nhqk")
    looks = draft.op("Softmax", scores, axis=-1)
    mixed = draft.op("Einsum", looks, value, equation="nhqk,nkhs->nqhs")
    back = draft.weight(HEADS, SIZE, WIDTH, fan=WIDTH)
    draft.op("Einsum", mixed, back, equation="nqhs,hsw->nqw")
    return Case(sequence(draft), (kernels[0], 1, HEADS), (1,), {kernels[2]: (1, [1])})


def gelu(draft: Draft, x: str) -> str:
    error = draft.op("Erf", draft.op("Div", x, draft.constant(np.float32(np.sqrt(2)))))
    grown = draft.op("Mul", x, draft.op("Add", error, draft.constant(np.float32(1))))
    return draft.op("Mul", grown, draft.constant(np.float32(0.5)))


def feed_forward() -> Case:
    """The hidden width of a block with its GELU written out, between normalizations."""
    draft = Draft(18)
    inner = gelu(draft, draft.linear(draft.norm("x", WIDTH), WIDTH, 64))
    draft.norm(draft.op("Add", draft.linear(inner, 64, WIDTH), "x"), WIDTH)
    proto = sequence(draft)
    gone = (0, 13, 63)
    silence = {weights(proto, "MatMul_1")[0]: (1, gone), weights(proto, "Add_2")[0]: (0, gone)}
    return Case(proto, (weights(proto, "MatMul_1")[0], 1, 64), gone, silence)


def gated() -> Case:
    """Half of a product gates the other one: the halves go together."""
    draft = Draft(19)
    both = draft.linear("x", WIDTH, 96)
    ends = [number(draft, 0), number(draft, 48), number(draft, 96)]
    last = number(draft, -1)
    value = draft.op("Slice", both, ends[0], ends[1], last)
    gate = draft.op("Sigmoid", draft.op("Slice", both, ends[1], ends[2], last))
    draft.linear(draft.op("Mul", value, gate), 48, WIDTH)
    proto = sequence(draft)
    gone = (0, 1, 40)
    silence = {weights(proto, "MatMul_0")[0]: (1, gone), weights(proto, "Add_1")[0]: (0, gone)}
    return Case(proto, (weights(proto, "MatMul_0")[0], 1, 48), gone, silence)


def from_the_end() -> Case:
    """Bounds that are counted from the end, where only what lies behind them becomes thinner."""
    draft = Draft(22)
    x = draft.conv("x", 3, 16)
    first, cut, far, channels = (number(draft, each) for each in (0, -6, 2**63 - 1, 1))
    front, back = (
        draft.op("Slice", x, first, cut, channels),
        draft.op("Slice", x, cut, far, channels),
    )
    proto = image(draft, draft.op("Relu", draft.op("Concat", back, front, axis=1)), 16)
    gone = (0, 3, 5)
    silence = made_by(proto, [10 + each for each in gone], "Conv_0")
    return Case(proto, (weights(proto, "Conv_0")[0], 0, 6), gone, silence)


def shared() -> Case:
    """One weight in two places: what goes in one goes in both."""
    draft = Draft(20)
    kernel, bias = draft.weight(WIDTH, 64), draft.bias(64)
    back = draft.weight(64, WIDTH)
    here = "x"
    for _ in range(2):
        wide = draft.op("Relu", draft.op("Add", draft.op("MatMul", here, kernel), bias))
        here = draft.op("Add", draft.op("MatMul", wide, back), "x")
    gone = (5, 6)
    return Case(sequence(draft), (kernel, 1, 64), gone, {kernel: (1, gone), bias: (0, gone)})


def windows() -> Case:
    """Attention within windows of a fixed grid of tokens, as in a Swin transformer."""
    draft = Draft(21)
    grid = draft.op("Reshape", "x", number(draft, 0, 2, 2, 2, 3, WIDTH))
    near = draft.op("Transpose", grid, perm=[0, 1, 3, 2, 4, 5])
    cells = draft.op("Reshape", near, number(draft, -1, 6, WIDTH))
    apart = []
    for _ in "qkv":
        made = draft.linear(cells, WIDTH, WIDTH)
        made = draft.op("Reshape", made, number(draft, -1, 6, HEADS, SIZE))
        apart.append(draft.op("Transpose", made, perm=[0, 2, 1, 3]))
    mixed = draft.op("Reshape", mixture(draft, *apart), number(draft, -1, 6, WIDTH))
    mixed = draft.linear(mixed, WIDTH, WIDTH)
    grid = draft.op("Reshape", mixed, number(draft, -1, 2, 2, 2, 3, WIDTH))
    turned = draft.op("Transpose", grid, perm=[0, 1, 3, 2, 4, 5])
    draft.op("Reshape", turned, number(draft, -1, 24, WIDTH))
    proto = draft.model("windows", [port("x", "n", 24, WIDTH)], [port("y", "n", 24, WIDTH)])
    products = [node.name for node in proto.graph.node if node.op_type == "MatMul"]
    adds = [node.name for node in proto.graph.node if node.op_type == "Add"]
    silence = of_value(proto, products[2], adds[2], 0)
    return Case(proto, (weights(proto, products[0])[0], 1, HEADS), (0,), silence)


CASES: dict[str, Callable[[], Case]] = {
    make.__name__: make
    for make in (
        *(plain, residual, concatenated, groups, inside_groups, depthwise, flattened, squeezed),
        *(shuffled, upsampled, heads_constant, heads_shared_target, heads_computed),
        *(heads_divided, heads_packed, heads_split, heads_merged, heads_queried, heads_turned),
        *(heads_in_an_equation, feed_forward, gated, shared, windows),
        from_the_end,
    )
}


def silenced(case: Case) -> onnx.ModelProto:
    """The model with zeros where the case says."""
    proto = onnx.ModelProto()
    proto.CopyFrom(case.proto)
    for tensor in proto.graph.initializer:
        if tensor.name in case.silence:
            axis, places = case.silence[tensor.name]
            value = numpy_helper.to_array(tensor).copy()
            np.moveaxis(value, axis, 0)[list(places)] = 0
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return proto
