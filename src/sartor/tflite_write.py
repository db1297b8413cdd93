"""TensorFlow Lite's files changed and written, by the schema's classes that come with LiteRT."""

from __future__ import annotations

from typing import Any

import flatbuffers
from ai_edge_litert import schema_py_generated as schema


def unpacked(data: bytes) -> Any:
    """The model in these bytes, which were checked, as objects of the schema's classes."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))


def packed(model: Any) -> bytes:
    """The bytes of a file that holds this model."""
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def text(name: Any) -> str:
    """A name as LiteRT's classes hold it."""
    return name.decode() if isinstance(name, bytes) else str(name)
