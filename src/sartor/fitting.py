"""Rows of the data as a model takes them that insists on so many at a time, or on so long ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sartor.contracts import Arrays, Bench, Failed, Port, Session, Signature


def natural_batch(signature: Signature) -> int | None:
    """How many rows the model insists on at a time; None where it takes any number."""
    sizes = (port.shape[0] for port in signature.inputs if port.shape)
    return next((size for size in sizes if size is not None), None)


def in_portions(run: Session, signature: Signature, batch: Arrays) -> Arrays:
    """The answers to any number of rows, of a model that may insist on so many at a time: the last
    portion is filled up with its last row, whose further answers are left out."""
    size = natural_batch(signature)
    rows = len(next(iter(batch.values())))
    if size is None or size == rows:
        return run(batch)
    found: dict[str, list[np.ndarray]] = {}
    for at in range(0, rows, size):
        picked = np.minimum(np.arange(at, at + size), rows - 1)
        for name, answer in run({key: each[picked] for key, each in batch.items()}).items():
            found.setdefault(name, []).append(np.asarray(answer))
    return {name: np.concatenate(each)[:rows] for name, each in found.items()}


def fitted(array: np.ndarray, port: Port, rows: int) -> np.ndarray:
    """So many rows, the first ones over again where there are too few, with zeros behind each axis
    that the model wants longer. Raises Failed where it wants one shorter."""
    if rows != len(array):
        array = array[np.arange(rows) % len(array)]
    pairs = list(zip(port.shape[1:], array.shape[1:], strict=True))
    behind = [0 if size is None else size - have for size, have in pairs]
    if min(behind, default=0) < 0:
        raise Failed(
            f"rows of {port.name!r} have the shape {list(array.shape[1:])}, which is more than the "
            f"{list(port.shape[1:])} of the target"
        )
    return np.pad(array, [(0, 0), *((0, each) for each in behind)]) if any(behind) else array


def batches(
    bench: Bench, signature: Signature, most: int, free: int = 1, parts: Sequence[str] = ("train",)
) -> Iterator[dict[str, np.ndarray]]:
    """The inputs of at most `most` rows of the first of `parts` that has any: as many at a time as
    the model insists on, else `free`."""
    size = natural_batch(signature)
    found = (bench.batches(part, size or free, most) for part in parts)
    for batch in next((each for each in found if each is not None), ()):
        yield {
            port.name: fitted(batch[port.name], port, size or len(batch[port.name]))
            for port in signature.inputs
        }


def to_compare(
    bench: Bench, signature: Signature, most: int = 128, free: int = 32
) -> list[dict[str, np.ndarray]]:
    """Batches to compare a model in two forms on; the last one a single row, where the model takes
    any number. Raises Failed where there are no rows."""
    found = list(batches(bench, signature, most, free, ("train", "search")))
    if not found:
        raise Failed("there are no rows to compare the converted model on")
    if natural_batch(signature) is None:
        found.append({name: array[:1] for name, array in found[0].items()})
    return found


def fixed(signature: Signature, bench: Bench, who: str = "LiteRT") -> Signature:
    """The signature with every size fixed, as `who` needs it: as the target asks, and else the
    target's batch. Raises Failed, naming the input, where a size stays free."""
    asked = dict(bench.target.fixed)
    ports = []
    for port in signature.inputs:
        shape = asked.get(port.name, port.shape)
        if port.name not in asked and shape[:1] == (None,):
            shape = (bench.target.batch, *shape[1:])
        if port.shape and shape[:1] not in ((None,), (bench.target.batch,)):
            raise Failed(
                f"the input {port.name!r} is fixed to {shape[0]} rows and the target asks for "
                f"{bench.target.batch} at a time: write --batch {shape[0]}"
            )
        if len(shape) != len(port.shape) or any(
            have not in (None, wanted) for have, wanted in zip(port.shape, shape, strict=True)
        ):
            raise Failed(
                f"the target fixes {port.name!r} to {list(shape)}, which does not fit its shape"
            )
        if None in shape:
            sizes = ",".join("N" if each is None else str(each) for each in shape)
            raise Failed(
                f"the input {port.name!r} has a free length and {who} takes fixed shapes only: "
                f"write --fix {port.name}={sizes} with a number for each N"
            )
        ports.append(Port(port.name, port.dtype, tuple(shape)))
    return Signature(tuple(ports), signature.outputs)
