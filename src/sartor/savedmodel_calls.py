"""TensorFlow's SavedModels called: TensorFlow itself, quiet, shared by the runtime, which times it,
and by the conversion, which compares what it made.

A session of TensorFlow's first interface is used: each has threads of its own and may compute on
its caller's, and is freed when it is closed; a function loaded by the second shares its threads
with all others of the process.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sartor.contracts import Arrays, Failed, Signature, WrongRequest
from sartor.libraries import one_line, quiet
from sartor.savedmodel_file import TAG, read
from sartor.sessions import Entry

__all__ = ["Caller", "converted", "resaved", "silent", "tf"]

_turn = threading.Lock()
_CALM = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_OVERRIDE_GLOBAL_THREADPOOL": "1",  # each session's number of threads is its own
}


@contextmanager
def silent() -> Iterator[None]:
    """Without what TensorFlow prints, logs and writes to standard error past Python."""
    with _turn, quiet():
        os.environ.update(_CALM)
        sys.stderr.flush()
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


with silent():
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)  # of conversions; sessions have theirs
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.get_logger().setLevel("ERROR")

v1 = tf.compat.v1
# What TensorFlow raises of a model or of values; its own errors derive from Exception alone.
ERRORS = (tf.errors.OpError, RuntimeError, ValueError, TypeError, KeyError, OSError)


class Caller:
    """A model that runs. Threads may call it at the same time. Raises WrongRequest for a model that
    is not safe to be loaded, Failed where TensorFlow refuses it."""

    def __init__(self, path: Path, signature: Signature | None = None, threads: int = 1) -> None:
        saved = read(path)
        stated = signature or saved.signature
        same = ({p.name for p in side} for side in (stated.inputs, stated.outputs))
        if tuple(same) != (set(saved.inputs), set(saved.outputs)):
            raise WrongRequest(f"{path} has other inputs or outputs than were stated")
        self.entry = Entry(stated.inputs)
        self.names = [port.name for port in stated.outputs]
        fed = [saved.inputs[port.name] for port in stated.inputs]
        fetched = [saved.outputs[name] for name in self.names]
        # With a number below zero operators are begun on the caller's own thread.
        wanted = v1.ConfigProto(
            intra_op_parallelism_threads=threads,
            inter_op_parallelism_threads=-1,
            device_count={"GPU": 0},
        )
        with silent():
            self.session: Any = v1.Session(graph=tf.Graph(), config=wanted)
            try:
                with self.session.graph.as_default():
                    v1.saved_model.loader.load(self.session, [TAG], str(path.parent))
                self.run: Any = self.session.make_callable(fetched, fed)
            except ERRORS as error:
                self.close()
                raise Failed(f"TensorFlow cannot start {path}: {one_line(error)}") from None
        self._first = True

    def __call__(self, batch: Arrays) -> dict[str, np.ndarray]:
        """Raises WrongRequest where names, dtypes or shapes do not fit, Failed where TensorFlow
        gives up on values that fit."""
        run = self.run
        if run is None:
            raise Failed("the session was closed; start another one")
        arrays = self.entry.arrays(batch)
        try:
            if self._first:  # it rewrites the graph now, and says so
                with silent():
                    found = run(*arrays)
                self._first = False
            else:
                found = run(*arrays)
        except ERRORS as error:
            raise Failed(f"TensorFlow: {one_line(error)}") from None
        return dict(zip(self.names, found, strict=True))

    def close(self) -> None:
        self.run = None
        if self.session is not None:
            self.session.close()
        self.session = None
        gc.collect(1)  # TensorFlow's graphs hold themselves, and only such a round frees them

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def resaved(path: Path, signature: Signature, folder: Path) -> None:
    """Writes the model anew into `folder`, with the sizes of the inputs as in `signature`."""
    given: Mapping[str, Any] = {
        port.name: tf.TensorSpec(port.shape, port.dtype, name=port.name)
        for port in signature.inputs
    }
    loaded = tf.saved_model.load(str(path.parent), tags=[TAG])
    serve = loaded.signatures["serving_default"]

    def fixed(**arrays: Any) -> Any:
        return serve(**arrays)

    holder = tf.Module()
    holder.loaded = loaded  # its variables are found by it
    made = tf.function(fixed).get_concrete_function(**given)
    tf.saved_model.save(holder, str(folder), signatures=made)


def converted(folder: Path) -> bytes:
    """The TensorFlow Lite file of a SavedModel, in floats."""
    tool = tf.lite.TFLiteConverter.from_saved_model(str(folder))
    return bytes(tool.convert())
