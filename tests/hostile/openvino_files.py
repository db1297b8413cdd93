"""Hostile and unusable OpenVINO files, each with words that the refusal must contain."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

# y = x + (1, 2, 3, 4), as OpenVINO 2026.4 writes it.
WHOLE = """<?xml version="1.0"?>
<net name="sum" version="11">
	<layers>
		<layer id="0" name="x" type="Parameter" version="opset1">
			<data shape="?,4" element_type="f32" />
			<output>
				<port id="0" precision="FP32" names="x">
					<dim>-1</dim>
					<dim>4</dim>
				</port>
			</output>
		</layer>
		<layer id="1" name="w" type="Const" version="opset1">
			<data element_type="f32" shape="1, 4" offset="0" size="16" />
			<output>
				<port id="0" precision="FP32">
					<dim>1</dim>
					<dim>4</dim>
				</port>
			</output>
		</layer>
		<layer id="2" name="add" type="Add" version="opset1">
			<data auto_broadcast="numpy" />
			<input>
				<port id="0" precision="FP32">
					<dim>-1</dim>
					<dim>4</dim>
				</port>
				<port id="1" precision="FP32">
					<dim>1</dim>
					<dim>4</dim>
				</port>
			</input>
			<output>
				<port id="2" precision="FP32" names="y">
					<dim>-1</dim>
					<dim>4</dim>
				</port>
			</output>
		</layer>
		<layer id="3" name="y/sink_port_0" type="Result" version="opset1" output_names="y">
			<input>
				<port id="0" precision="FP32">
					<dim>-1</dim>
					<dim>4</dim>
				</port>
			</input>
		</layer>
	</layers>
	<edges>
		<edge from-layer="0" from-port="0" to-layer="2" to-port="0" />
		<edge from-layer="1" from-port="0" to-layer="2" to-port="1" />
		<edge from-layer="2" from-port="2" to-layer="3" to-port="0" />
	</edges>
</net>
"""
WEIGHTS = np.arange(1, 5, dtype=np.float32).tobytes()

_HEAD = '<?xml version="1.0"?>\n'


def _bomb(_: Path) -> str:
    """A billion laughs: ten entities, each ten of the one before."""
    lines = ['<!ENTITY a "ha">']
    lines += [
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    return f"{_HEAD}<!DOCTYPE net [{''.join(lines)}]>" + WHOLE[len(_HEAD) :].replace(
        "sum", "&i;", 1
    )


def _reader(folder: Path) -> str:
    """An entity that is another file."""
    (folder / "secret").write_text("secret")
    entity = f'<!DOCTYPE net [<!ENTITY s SYSTEM "{folder / "secret"}">]>'
    return f"{_HEAD}{entity}" + WHOLE[len(_HEAD) :].replace("sum", "&s;", 1)


def _changed(old: str, new: str) -> Callable[[Path], str]:
    assert old in WHOLE
    return lambda _: WHOLE.replace(old, new)


def _in_body(_: Path) -> str:
    """A constant outside the weights in the body of a loop, where a lazy check would not look."""
    data = '<data element_type="f32" shape="4" offset="1000" size="16" />'
    layer = f'<layer id="0" name="c" type="Const" version="opset1">{data}</layer>'
    loop = f"<body><layers>{layer}</layers></body>"
    return WHOLE.replace('<data auto_broadcast="numpy" />', loop)


def _no_bin(folder: Path) -> str:
    (folder / "models" / "no_weights.bin").unlink()
    return WHOLE


def _linked(folder: Path) -> str:
    (folder / "secret").write_bytes(WEIGHTS)
    (folder / "models" / "linked_weights.bin").unlink()
    os.symlink(folder / "secret", folder / "models" / "linked_weights.bin")
    return WHOLE


def _short(folder: Path) -> str:
    (folder / "models" / "short_weights.bin").write_bytes(WEIGHTS[:9])
    return WHOLE


FILES: dict[str, tuple[Callable[[Path], str | bytes], tuple[str, ...]]] = {
    "empty": (lambda _: "", ("is empty",)),
    "random": (lambda _: np.random.default_rng(0).bytes(5000), ("not an OpenVINO model",)),
    "json": (lambda _: '{"a": "model"}\n' * 99, ("not an OpenVINO model",)),
    "truncated": (lambda _: WHOLE[: len(WHOLE) // 2], ("cut short",)),
    "another_xml": (lambda _: f"{_HEAD}<html><net></net></html>", ("<html>",)),
    "entity_bomb": (_bomb, ("document type",)),
    "entity_file": (_reader, ("document type",)),
    "deep": (lambda _: "<net>" + "<a>" * 100_000, ("64 deep",)),
    "offset_outside": (_changed('offset="0"', 'offset="8"'), ("were cut short", "24")),
    "offset_huge": (_changed('offset="0"', 'offset="18446744073709551608"'), ("no place",)),
    "offset_negative": (_changed('offset="0"', 'offset="-16"'), ("'-16'", "no place")),
    "size_missing": (_changed(' size="16"', ""), ("no place",)),
    "offset_in_body": (_in_body, ("were cut short", "1016")),
    "no_weights": (_no_bin, ("'no_weights.bin'", "missing")),
    "linked_weights": (_linked, ("'linked_weights.bin'", "outside")),
    "short_weights": (_short, ("were cut short", "9")),
    "no_inputs": (_changed('type="Parameter"', 'type="Const"'), ("no inputs",)),
    "no_outputs": (_changed('type="Result"', 'type="Sink"'), ("no outputs",)),
    "free_rank": (_changed('shape="?,4"', 'shape="..."'), ("'x'", "number of axes")),
    "brain_float": (_changed('shape="?,4" element_type="f32"', 'shape="?,4" element_type="bf16"'),
                    ("'bf16'",)),
    "one_name_twice": (_changed('output_names="y"', 'output_names="x"'),
                       ("'x'", "name of its own")),
}  # fmt: skip


def write(name: str, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """The file of that name, in a folder of its own, and the words of its refusal."""
    make, words = FILES[name]
    (folder / "models").mkdir(exist_ok=True)
    path = folder / "models" / f"{name}.xml"
    path.with_suffix(".bin").write_bytes(WEIGHTS)
    made = make(folder)
    path.write_bytes(made.encode() if isinstance(made, str) else made)
    return path, words
