"""Weights in few bits, arithmetic in float: for products in blocks, for embedding tables by rows.

Half of a small language model is its embedding; its rows are looked up, not multiplied, so that
eight bits and a scale for each row cost next to nothing in quality or time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
from onnx import TensorProto, helper

from sartor.contracts import Bench, Failed, Model, Technique, Unneeded
from sartor.space import choice
from sartor.techniques._graph_onnx import Graph, Parts, attribute, finish, foreign, peek, read
from sartor.techniques._integers_onnx import (
    EXCEPTIONS,
    FEW,
    MICROSOFT,
    consider,
    count_weights,
    irregular,
    lift_constants,
    no_examples,
    obstacle,
    pack_bits,
    spare,
    split_gemms,
    tidy,
    too_few,
    without_lopsided,
)
from sartor.techniques._sensitivity_onnx import Rounding, worst


@dataclass(frozen=True)
class WeightOnly(Technique):
    """Weights of MatMul and Gemm in `matmul` bits (0: leave them) in blocks of `block` numbers,
    embedding tables in `embeddings` bits (0: leave them; in 8 bits a whole row is one block).

    ONNX Runtime's MatMulNBits and GatherBlockQuantized compute with them. `accuracy` is the level
    of MatMulNBits: 4 rounds the activations to int8 blocks too, 1 keeps float32. `exceptions`
    products stay in float, those that change the answer most. Takes what another quantizer left
    in float, so that it can follow DynamicInt8."""

    kinds: ClassVar[frozenset[str]] = frozenset({"onnx"})
    stage: ClassVar[str] = "storage"
    claims: ClassVar[frozenset[str]] = frozenset({"size"})

    matmul: int = choice(8, values=(0, 8, 4))
    embeddings: int = choice(8, values=(0, 8, 4))
    block: int = choice(64, values=(32, 64, 128))
    symmetric: bool = choice(True, False)
    accuracy: int = choice(4, values=(1, 4))
    exceptions: int = choice(0, values=EXCEPTIONS)

    def refuse(self, model: Model, bench: Bench) -> str | None:
        reason = foreign(self, model)
        if reason:
            return reason
        graph = peek(model)
        products, tables = self._products(graph), self._tables(graph)
        if self.exceptions and len(products.touched) <= self.exceptions:
            return too_few(products, self.exceptions)
        if not products.touched and not tables.touched:
            return f"nothing to quantize: {_joined(products, tables).most_frequent_reason()}"
        return no_examples(bench, "exceptions") if self.exceptions else None

    def apply(self, model: Model, bench: Bench) -> Model:
        graph = read(model)
        lift_constants(graph)
        products, tables = self._products(graph), self._tables(graph)
        split_gemms(graph, set(products.touched))
        products = without_lopsided(graph, products)
        if self.exceptions:
            products = spare(products, self._worst(graph, products, bench), self.exceptions)
        chosen, looked_up = set(products.touched), set(tables.touched)
        for node in list(graph.nodes):
            if node.name in chosen:
                graph.replace(node, [self._product(graph, node)])
            elif node.name in looked_up:
                graph.replace(node, [self._lookup(graph, node)])
        parts = _joined(products, tables)
        if not parts.touched:
            raise Unneeded(f"nothing to quantize: {parts.most_frequent_reason()}")
        return finish(model, self, tidy(graph.proto), bench, parts)

    def _products(self, graph: Graph) -> Parts:
        return consider(graph, self._against)

    def _against(self, graph: Graph, node: onnx.NodeProto) -> str | None:
        if node.op_type not in ("MatMul", "Gemm"):
            return f"ONNX Runtime has no {node.op_type} with weights in blocks"
        if not self.matmul:
            return "matmul=0 leaves it in float"
        reason = obstacle(graph, node) or irregular(node)
        few = 0 if reason else count_weights(graph, node)
        return f"{few} weights are too few to pay" if 0 < few < FEW else reason

    def _worst(self, graph: Graph, products: Parts, bench: Bench) -> list[str]:
        chosen = set(products.touched)
        roundings = {}
        for node in graph.nodes:
            weight = graph.constant(node.input[1]) if node.name in chosen else None
            if weight is not None:
                blocks = Blocks(weight.T, self.block, self.matmul, self.symmetric)
                roundings[node.name] = Rounding({1: blocks.rounded().T})
        how = f"weights {self.matmul} {self.block} {self.symmetric}"
        return worst(graph, roundings, bench, how)

    def _product(self, graph: Graph, node: onnx.NodeProto) -> onnx.NodeProto:
        weight = _value(graph, node.input[1])
        blocks = Blocks(weight.T, self.block, self.matmul, self.symmetric)
        settings = {"accuracy_level": self.accuracy, "K": weight.shape[0], "N": weight.shape[1]}
        inputs = [node.input[0], *_store(graph, node.input[1], blocks, blocks.packed())]
        return _contrib("MatMulNBits", inputs, node, blocks, **settings)

    def _tables(self, graph: Graph) -> Parts:
        parts = Parts()
        for node in _lookups(graph):
            reason = self._against_table(graph, node)
            if reason:
                parts.skip(node.name, reason)
            else:
                parts.touch(node.name)
        return parts

    def _against_table(self, graph: Graph, node: onnx.NodeProto) -> str | None:
        tensor = graph.constant_tensor(node.input[0])
        if not self.embeddings:
            return "embeddings=0 leaves it in float"
        if node.op_type != "Gather":
            return f"the table is inside {node.op_type}: do not fuse it"
        if tensor is None or tensor.data_type != TensorProto.FLOAT:
            return "its table is not float32"
        if attribute(node, "axis", 0) != 0 or len(tensor.dims) != 2:
            return "it does not pick rows of a table"
        if int(np.prod(tensor.dims)) < FEW:
            return "its table is too small to pay"
        if self.embeddings == 4 and tensor.dims[1] % 2:
            return "rows of an odd width cannot be packed in 4 bits"
        others = [user for user in graph.users(node.input[0]) if not _picks(user, node.input[0])]
        if others or node.input[0] in graph.outputs:
            reader = others[0].name if others else "the caller"
            return f"its table is read by {reader} too"
        return None

    def _lookup(self, graph: Graph, node: onnx.NodeProto) -> onnx.NodeProto:
        table = _value(graph, node.input[0])
        whole = max(16, 1 << (table.shape[1] - 1).bit_length())
        block = whole if self.embeddings == 8 else self.block
        blocks = Blocks(table, block, self.embeddings, self.symmetric)
        packed = blocks.flat(table.shape[1])
        data, *others = _store(graph, node.input[0], blocks, packed)
        inputs = [data, node.input[1], *others]
        return _contrib(
            "GatherBlockQuantized", inputs, node, blocks, gather_axis=0, quantize_axis=1
        )


class Blocks:
    """A matrix [rows, columns] in blocks along its columns, each with a scale of its own.

    `numbers` uint8 [rows, blocks, block], `scales` float32 and `zeros` uint8 [rows, blocks]; a
    value is (number - zero) * scale. Symmetric: zero is the middle, and the number of largest
    magnitude stands at the far end, whatever its sign (scales may be negative)."""

    def __init__(self, matrix: np.ndarray, block: int, bits: int, symmetric: bool) -> None:
        self.bits, self.block, self.symmetric = bits, block, symmetric
        self.columns = matrix.shape[1]
        padded = np.pad(matrix, ((0, 0), (0, -self.columns % block)))
        cut = padded.reshape(len(matrix), -1, block)
        low, high = cut.min(axis=2), cut.max(axis=2)
        middle, top = 1 << (bits - 1), (1 << bits) - 1
        if symmetric:
            scales = np.where(-low > high, low, high) / -middle
        else:
            low, high = np.minimum(low, 0), np.maximum(high, 0)
            scales = (high - low) / top
        self.scales = np.where(scales == 0, 1, scales).astype(np.float32)
        zeros = np.full_like(low, middle) if symmetric else np.round(-low / self.scales)
        self.zeros = np.clip(zeros, 0, top).astype(np.uint8)
        steps = np.round(cut / self.scales[..., None]) + self.zeros[..., None]
        self.numbers = np.clip(steps, 0, top).astype(np.uint8)

    def rounded(self) -> np.ndarray:
        """The matrix as it will be read, float32 [rows, columns]."""
        whole = self.numbers.astype(np.float32) - self.zeros[..., None]
        flat = (whole * self.scales[..., None]).reshape(len(whole), -1)
        cut: np.ndarray = flat[:, : self.columns]
        return cut

    def packed(self) -> np.ndarray:
        """[rows, blocks, bytes]; in 4 bits two numbers a byte, the first in the low half."""
        return pack_bits(self.numbers, self.bits)

    def flat(self, columns: int) -> np.ndarray:
        """As `packed`, without the blocks and their padding: [rows, bytes]."""
        rows: np.ndarray = self.numbers.reshape(len(self.numbers), -1)[:, :columns]
        return pack_bits(rows, self.bits)

    def packed_zeros(self) -> np.ndarray:
        return pack_bits(self.zeros, self.bits)


def _store(graph: Graph, name: str, blocks: Blocks, packed: np.ndarray) -> list[str]:
    """Writes the constants of a quantized matrix; their names in the order of the operators'
    inputs. Two readers of one matrix share them."""
    held = {f"{name}_q{blocks.bits}": packed, f"{name}_scales": blocks.scales}
    if not blocks.symmetric:
        held[f"{name}_zeros"] = blocks.packed_zeros()
    for each, value in held.items():
        graph.set_constant(each, value)
    return list(held)


def _contrib(
    operator: str, inputs: list[str], node: onnx.NodeProto, blocks: Blocks, **settings: Any
) -> onnx.NodeProto:
    return helper.make_node(
        operator,
        inputs,
        list(node.output),
        name=node.name,
        domain=MICROSOFT,
        bits=blocks.bits,
        block_size=blocks.block,
        **settings,
    )


def _lookups(graph: Graph) -> Iterator[onnx.NodeProto]:
    """The nodes that may look rows up in a constant table of floats."""
    for node in graph.nodes:
        if node.op_type == "EmbedLayerNormalization":
            yield node
        elif node.op_type == "Gather":
            tensor = graph.constant_tensor(node.input[0])
            if tensor is not None and tensor.data_type in (
                TensorProto.FLOAT,
                TensorProto.FLOAT16,
                TensorProto.BFLOAT16,
            ):
                yield node


def _picks(node: onnx.NodeProto, table: str) -> bool:
    return (
        node.op_type == "Gather"
        and node.input[0] == table
        and table not in node.input[1:]
        and attribute(node, "axis", 0) == 0
    )


def _value(graph: Graph, name: str) -> np.ndarray:
    value = graph.constant(name)
    if value is None:
        raise Failed(f"the weights {name} are not constant")
    return value


def _joined(*several: Parts) -> Parts:
    joined = Parts()
    for parts in several:
        for name in parts.touched:
            joined.touch(name)
        for name, reason in parts.skipped:
            joined.skip(name, reason)
    return joined
