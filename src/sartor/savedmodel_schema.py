"""The messages of TensorFlow's SavedModel, as far as they are read here, for protobuf's own parser:
no TensorFlow is needed to look through a file, and what is not named here is not looked at."""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# Message -> its fields as "name number type", with a star where there may be many. Maps are lists
# of entries, as they lie in the file.
_MESSAGES = {
    "SavedModel": "meta_graphs 2 MetaGraph*",
    "MetaGraph": "info 1 Info, graph 2 Graph, saver 3 Saver, collections 4 Collection*, "
    "signatures 5 NamedSignature*, assets 6 bytes*",
    "Info": "tags 4 string*",
    "Saver": "filename 1 string, save 2 string, restore 3 string",
    "Collection": "key 1 string",
    "NamedSignature": "key 1 string, value 2 Told",
    "Told": "inputs 1 NamedTensor*, outputs 2 NamedTensor*",
    "NamedTensor": "key 1 string, value 2 Tensor",
    "Tensor": "name 1 string, dtype 2 int32, shape 3 Shape",
    "Shape": "dim 2 Size*, unknown_rank 3 bool",
    "Size": "size 1 int64",
    "Graph": "node 1 Node*, library 2 Library",
    "Library": "function 1 Function*",
    "Function": "signature 1 Takes, node_def 3 Node*, attr 5 Attribute*",
    "Takes": "name 1 string, input_arg 2 Argument*",
    "Argument": "name 1 string",
    "Node": "name 1 string, op 2 string, input 3 string*, attr 5 Attribute*",
    "Attribute": "key 1 string, value 2 Value",
    "Value": "list 1 Values, type 6 int32, shape 7 Shape, func 10 Called",
    "Values": "func 9 Called*",
    "Called": "name 1 string, attr 2 Attribute*",
}
_TYPES = {
    name: getattr(descriptor_pb2.FieldDescriptorProto, f"TYPE_{name.upper()}")
    for name in ("string", "bytes", "bool", "int32", "int64")
}


@cache
def saved_model() -> Any:
    """The class of the message that is the whole file."""
    file = descriptor_pb2.FileDescriptorProto(
        name="sartor_saved_model.proto", package="sartor.saved_model", syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for told in fields.split(","):
            _field(message, *told.split())
    pool = descriptor_pool.DescriptorPool()  # one of its own: TensorFlow's messages are not these
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName("sartor.saved_model.SavedModel")
    )


def _field(message: Any, name: str, number: str, kind: str) -> None:
    made = descriptor_pb2.FieldDescriptorProto
    field = message.field.add(name=name, number=int(number))
    field.label = made.LABEL_REPEATED if kind.endswith("*") else made.LABEL_OPTIONAL
    kind = kind.rstrip("*")
    if kind in _TYPES:
        field.type = _TYPES[kind]
    else:
        field.type, field.type_name = made.TYPE_MESSAGE, f".sartor.saved_model.{kind}"
