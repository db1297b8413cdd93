"""The bundle: what a changed one is refused with, and what a whole one answers."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import Case, Tailored
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sartor
from sartor import bundle
from sartor.contracts import Port, Signature, Target, WrongRequest
from sartor.registry import open_model, runtime
from sartor.runtimes import _onnx_file
from sartor.runtimes._onnx_bytes import FIELDS, external_names
from sartor.testing_onnx import save_toys, toy_batch, toy_models

SIGNATURE = Signature(
    (Port("ids", "int64", (None, None)), Port("mask", "int64", (None, None))),
    (Port("logits", "float32", (None, 3)),),
)


@pytest.fixture
def place(tailored: Tailored, tmp_path: Path) -> Path:
    """A bundle of one's own, to be spoilt."""
    shutil.copytree(tailored.folder / "bundle", tmp_path / "bundle")
    return tmp_path / "bundle"


def facts(place: Path) -> dict[str, Any]:
    found = json.loads((place / "sartor.json").read_text())
    assert isinstance(found, dict)
    return found


def rewrite(place: Path, **changed: Any) -> None:
    """As somebody would who knows how Sartor writes it."""
    entry = {**facts(place), **changed}
    (place / "sartor.json").write_text(json.dumps({**entry, "digest": bundle.digest_of(entry)}))


# -- what is refused ------------------------------------------------------------------------------


def _list(place: Path, name: str) -> None:
    """Lists one more file, with the hash of a file that is there."""
    listed = facts(place)["files"]
    rewrite(place, files={**listed, name: listed["card.md"]})


def _replace_by_link(place: Path, inside: bool) -> None:
    target = place / "card.md" if inside else place.parent / "card.md"
    shutil.copy(place / "card.md", place.parent / "card.md")
    name = "twin.md" if inside else "card.md"
    (place / name).unlink(missing_ok=True)
    os.symlink(target, place / name)


def _linked_folder(place: Path) -> None:
    (place.parent / "elsewhere").mkdir()
    shutil.copy(place / "card.md", place.parent / "elsewhere" / "card.md")
    os.symlink(place.parent / "elsewhere", place / "inner")
    _list(place, "inner/card.md")


def _named(place: Path, name: str) -> None:
    rewrite(place, file=name)


Spoil = Callable[[Path], Any]
SPOILT: dict[str, tuple[Spoil, tuple[str, ...]]] = {
    "newer format": (
        lambda p: rewrite(p, format=bundle.FORMAT + 1),
        (f"format {bundle.FORMAT + 1}", "pip install -U sartor"),
    ),
    "a format of another kind": (lambda p: rewrite(p, format="1"), ("format '1'",)),
    "no format": (lambda p: rewrite(p, format=None), ("format None",)),
    "true as format": (lambda p: rewrite(p, format=True), ("format True",)),
    "a file that climbs out": (lambda p: _list(p, "../card.md"), ("'../card.md'", "out")),
    "a file that climbs out below": (lambda p: _list(p, "a/../../b"), ("'a/../../b'", "out")),
    "an absolute file": (lambda p: _list(p, str(p.parent / "x")), ("leads out",)),
    "a Windows path": (lambda p: _list(p, "..\\card.md"), ("leads out",)),
    "a drive": (lambda p: _list(p, "C:card.md"), ("leads out",)),
    "a null byte": (lambda p: _list(p, "a\0b"), ("leads out",)),
    "a name too long": (lambda p: _list(p, "x" * 5000), ("leads out",)),
    "an empty name": (lambda p: _list(p, ""), ("sartor.json",)),
    "a link out": (lambda p: _replace_by_link(p, False), ("'card.md'", "leads out")),
    "a link inside": (lambda p: _replace_by_link(p, True), ("twin.md",)),
    "a linked folder": (_linked_folder, ("inner/card.md", "leads out")),
    "an artifact that climbs out": (lambda p: _named(p, "../x.onnx"), ("artifact",)),
    "an artifact that is not listed": (lambda p: _named(p, "sartor.json"), ("artifact",)),
    "a missing file": (lambda p: (p / "card.md").unlink(), ("card.md is missing",)),
    "an extra file": (lambda p: (p / "extra.py").write_text("x"), ("extra.py", "not among")),
    "an extra file in a folder": (
        lambda p: ((p / "deep").mkdir(), (p / "deep" / "x").write_text("")), ("deep/x",),
    ),
    "truncated": (
        lambda p: (p / "sartor.json").write_text((p / "sartor.json").read_text()[:-20]),
        ("cannot be read",),
    ),
    "empty": (lambda p: (p / "sartor.json").write_text(""), ("cannot be read",)),
    "not text": (lambda p: (p / "sartor.json").write_bytes(b"\xff\xfe\x00"), ("cannot be read",)),
    "too deep": (
        lambda p: (p / "sartor.json").write_text("[" * 100_000), ("cannot be read",),
    ),
    "another JSON": (lambda p: (p / "sartor.json").write_text("[1, 2]"), ("lists no files",)),
    "no files": (lambda p: rewrite(p, files=None), ("lists no files",)),
    "an unknown kind": (lambda p: rewrite(p, kind="magic"), ("'magic'", "onnx")),
    "no kind": (lambda p: rewrite(p, kind=None), ("kind",)),
    "no target": (lambda p: rewrite(p, target=None), ("target",)),
    "settings of another kind": (lambda p: rewrite(p, settings=[]), ("settings",)),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_bundle_is_refused_with_a_sentence(name: str, place: Path) -> None:
    spoil, words = SPOILT[name]
    spoil(place)
    with pytest.raises(WrongRequest) as refusal:
        sartor.load(place)
    said = str(refusal.value)
    assert "\n" not in said
    missing = [word for word in words if word not in said]
    assert not missing, f"{missing} not in: {said}"


def test_one_changed_byte_in_any_file_is_refused(place: Path) -> None:
    rng = np.random.default_rng(0)
    for name in facts(place)["files"]:
        whole = (place / name).read_bytes()
        for at in [0, len(whole) - 1, *rng.integers(len(whole), size=3).tolist()]:
            spoilt = bytearray(whole)
            spoilt[at] ^= 1 << int(rng.integers(8))
            (place / name).write_bytes(bytes(spoilt))
            with pytest.raises(WrongRequest, match=f"{name} was changed"):
                bundle.read(place)
        (place / name).write_bytes(whole)
    bundle.read(place)


def test_one_changed_byte_in_what_it_says_is_refused(place: Path) -> None:
    """A better figure in the certificate, say."""
    whole = (place / "sartor.json").read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(len(whole), size=200).tolist():
        spoilt = bytearray(whole)
        spoilt[at] ^= 1 << int(rng.integers(8))
        (place / "sartor.json").write_bytes(bytes(spoilt))
        try:
            same = json.loads(bytes(spoilt)) == json.loads(whole)  # white space between the words
        except ValueError:
            same = False
        if same:
            bundle.read(place)
            continue
        with pytest.raises(WrongRequest, match=r"sartor\.json"):
            bundle.read(place)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(key=st.integers(0, 30), value=st.none() | st.integers() | st.text() | st.lists(st.text()))
def test_whatever_stands_in_the_json_no_other_error_escapes(
    key: int, value: object, place: Path
) -> None:
    whole = (place / "sartor.json").read_text()
    names = sorted(facts(place))
    rewrite(place, **{names[key % len(names)]: value})
    try:
        sartor.load(place).close()
    except WrongRequest:
        pass
    finally:
        (place / "sartor.json").write_text(whole)


def test_what_is_no_bundle(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(WrongRequest, match=r"no bundle: there is no sartor\.json"):
            sartor.load(folder)


def test_a_bundle_is_never_written_over(place: Path, digits: Case) -> None:
    model = bundle.open_model(place)
    target = bundle.target_of(facts(place))
    with pytest.raises(FileExistsError):
        bundle.write(model, place, {}, digits.arrays, np.zeros(1, np.uint32), target, "")


# -- what it says ---------------------------------------------------------------------------------


def test_it_explains_itself(place: Path, digits: Case) -> None:
    found = facts(place)
    assert found["format"] == bundle.FORMAT
    assert found["recipe"]
    for step in found["steps"]:
        assert step["touched"]
        assert all(reason for _, reason in step["skipped"])
    assert {"onnxruntime", "onnx"} & set(found["versions"])
    assert [port["name"] for port in found["signature"]["inputs"]] == ["pixels"]
    limits = found["certificate"]["limits"]
    assert {each["outcome"] for each in limits} == {"met"}
    assert set(found["data"]) == {"train", "search", "holdout"}
    assert found["certificate"]["machine"]
    assert "accuracy >= baseline - 0.03" in (place / "card.md").read_text()


def test_no_row_of_the_data_is_in_it(place: Path, digits: Case) -> None:
    rows = {row.tobytes() for row in digits.arrays["pixels"]}
    with np.load(place / "parity.npz") as kept:
        assert not rows & {row.tobytes() for row in kept["input.pixels"]}
    assert facts(place)["data"].keys() == {"train", "search", "holdout"}


def test_files_are_those_on_disk(place: Path) -> None:
    assert sorted([*facts(place)["files"], "sartor.json"]) == bundle.files(place)
    assert bundle.files(place / "gone") == []


# -- what it answers ------------------------------------------------------------------------------


def test_predictions_are_the_artifacts(place: Path, digits: Case) -> None:
    import onnxruntime

    pixels = digits.arrays["pixels"][:32]
    session = onnxruntime.InferenceSession(place / facts(place)["file"])
    expected = session.run(None, {"pixels": pixels})[0]
    with sartor.load(place) as model:
        found = model.predict({"pixels": pixels})
        assert list(found) == ["logits"]
        np.testing.assert_allclose(found["logits"], expected, atol=1e-5)
        np.testing.assert_array_equal(model.predict(pixels)["logits"], found["logits"])
        counts = (16 * pixels).astype(np.uint8)
        as_floats = model.predict(counts.astype(np.float32))["logits"]
        np.testing.assert_array_equal(model.predict(counts)["logits"], as_floats)
        wider = model.predict(pixels.astype(np.float64))["logits"]
        np.testing.assert_array_equal(wider, found["logits"])
        listed = model.predict(pixels.tolist())["logits"]
        np.testing.assert_array_equal(listed, found["logits"])
        one = model.predict(pixels[:1])["logits"]
        assert one.shape == (1, 10)


def test_a_model_of_a_fixed_batch_takes_any_number_of_rows(place: Path, digits: Case) -> None:
    pixels = digits.arrays["pixels"][:10]
    with sartor.load(place) as model:
        # In fours: what is rounded at run time is rounded by all rows of a call.
        parts = (pixels[:4], pixels[4:8], pixels[[8, 9, 9, 9]])
        expected = np.concatenate([model.predict(part)["logits"] for part in parts])[:10]
        given: list[int] = []
        session, ports = model.session, model.model.signature.inputs

        def four(batch: Any) -> Any:
            given.append(len(batch["pixels"]))
            return session(batch)

        fixed = dataclasses.replace(ports[0], shape=(4, *ports[0].shape[1:]))
        signature = dataclasses.replace(model.model.signature, inputs=(fixed,))
        model.model = dataclasses.replace(model.model, signature=signature)
        model.session = four  # type: ignore[assignment]
        found = model.predict(pixels)["logits"]
        model.session = session
    assert given == [4, 4, 4]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_data_frame_goes_in(place: Path, digits: Case) -> None:
    import pandas

    pixels = digits.arrays["pixels"][:8]
    with sartor.load(place) as model:
        expected = model.predict(pixels)["logits"]
        framed = model.predict(pandas.DataFrame(pixels))["logits"]
    np.testing.assert_array_equal(framed, expected)


def test_the_run_and_its_bundle_load_alike(tailored: Tailored, digits: Case) -> None:
    pixels = digits.arrays["pixels"][:8]
    with sartor.load(tailored.folder) as one, sartor.load(tailored.folder / "bundle") as other:
        first, second = one.predict(pixels), other.predict(pixels)
    np.testing.assert_array_equal(first["logits"], second["logits"])


def test_it_is_as_good_as_certified(place: Path, digits: Case) -> None:
    """Against the labels, with another library's session for the original: all rows at hand."""
    import onnxruntime

    pixels, label = digits.arrays["pixels"], digits.arrays["label"]
    before = onnxruntime.InferenceSession(digits.model).run(None, {"pixels": pixels})[0]
    with sartor.load(place) as model:
        after = model.predict(pixels)["logits"]
    right = [(each.argmax(1) == label).mean() for each in (before, after)]
    assert right[1] >= right[0] - 0.03


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"image": np.zeros((1, 64), "f4")}, ("pixels", "image")),
        ({}, ("pixels", "none")),
        ({"pixels": np.zeros((1, 64), "f4"), "more": np.zeros(1)}, ("pixels", "more")),
        ({"pixels": np.zeros((1, 63), "f4")}, ("pixels", "64")),
        ({"pixels": np.zeros(64, "f4")}, ("pixels", "64")),
        ({"pixels": np.full((1, 64), "a")}, ("pixels", "float32")),
        ({"pixels": np.zeros((1, 64), complex)}, ("pixels", "float32")),
        ({"pixels": [[1.0] * 64, [1.0] * 63]}, ("pixels", "length")),
        ({"pixels": np.full((1, 64), 2**24 + 1)}, ("pixels", "float32", "int64")),
        (None, ("pixels",)),
    ],
)
def test_wrong_inputs_are_refused_with_the_right_ones(
    given: Any, words: tuple[str, ...], place: Path
) -> None:
    with sartor.load(place) as model, pytest.raises(WrongRequest) as refusal:
        model.predict(given)
    said = str(refusal.value)
    assert all(word in said for word in words), said


def test_threads_are_a_ceiling_that_changes_no_answer(place: Path, digits: Case) -> None:
    pixels = digits.arrays["pixels"][:64]
    with sartor.load(place, threads=2) as two, sartor.load(place) as one:
        a, b = (each.predict(pixels)["logits"] for each in (two, one))
    np.testing.assert_allclose(a, b, atol=1e-5)
    with pytest.raises(WrongRequest, match="threads"):
        sartor.load(place, threads=0)


HEAVY = ("torch", "onnx", "sklearn", "scipy", "pandas", "optuna", "rich", "PIL", "pyarrow", "sympy")


def test_loading_imports_one_runtime_and_nothing_else(place: Path) -> None:
    script = (
        "import sys, numpy as np, sartor\n"
        f"model = sartor.load({str(place)!r})\n"
        "assert model.predict(np.zeros((2, 64), 'f4'))['logits'].shape == (2, 10)\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)), 'onnxruntime' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout == "[] True\n", done.stderr


# -- parity ---------------------------------------------------------------------------------------


def test_parity_holds_here(place: Path) -> None:
    found = facts(place)
    assert bundle.parity(place, found, bundle.target_of(found)) <= bundle.PARITY_TOLERANCE


def test_parity_sees_another_model_and_another_answer(place: Path) -> None:
    found = facts(place)
    target = bundle.target_of(found)
    with np.load(place / "parity.npz") as kept:
        arrays = {name: kept[name] for name in kept.files}
    spread = float(np.ptp(arrays["output.logits"]))
    for spoilt, least in (
        (arrays["output.logits"] + 0.1 * spread, 0.05),
        (arrays["output.logits"][:, ::-1], 0.05),
        (arrays["output.logits"][:, :9], np.inf),
        (np.full_like(arrays["output.logits"], np.nan), np.inf),
    ):
        np.savez(place / "parity.npz", **{**arrays, "output.logits": spoilt})
        assert bundle.parity(place, found, target) >= least


def test_reference_inputs_keep_to_the_ranges_of_the_sample() -> None:
    rng = np.random.default_rng(1)
    sample = {"ids": rng.integers(5, 99, (20, 7)), "mask": np.ones((20, 7), np.int64)}
    sample["mask"][3, 4:] = 0
    made = bundle.reference_inputs(sample, SIGNATURE)
    assert made["ids"].shape == made["mask"].shape == (bundle.PARITY_ROWS, 7)
    assert made["ids"].dtype == np.int64
    assert made["ids"].min() >= 5
    assert made["ids"].max() < 99
    assert (made["mask"] == 1).all()  # a row without one real token has no defined answer
    again = bundle.reference_inputs(sample, SIGNATURE)
    np.testing.assert_array_equal(made["ids"], again["ids"])
    assert not {row.tobytes() for row in sample["ids"]} & {row.tobytes() for row in made["ids"]}


def test_a_fixed_batch_stays_fixed() -> None:
    fixed = Signature((Port("x", "float32", (1, 3)),), SIGNATURE.outputs)
    made = bundle.reference_inputs({"x": np.ones((9, 3), np.float32)}, fixed)
    assert made["x"].shape == (1, 3)
    longer = Signature((Port("x", "float32", (None, 8)),), SIGNATURE.outputs)
    made = bundle.reference_inputs({"x": np.ones((9, 3), np.float32)}, longer)
    assert made["x"].shape == (bundle.PARITY_ROWS, 8)  # as long as the model insists on


def test_numbers_of_every_kind_are_made_up() -> None:
    most = np.iinfo(np.int64).max
    sample = {
        "flag": np.array([[True], [True]]), "mask": np.array([[True, False]]),
        "big": np.array([[most - 3], [most]]), "small": np.array([[0], [255]], np.uint8),
    }  # fmt: skip
    ports = tuple(Port(k, str(v.dtype), (None, *v.shape[1:])) for k, v in sample.items())
    made = bundle.reference_inputs(sample, Signature(ports, SIGNATURE.outputs))
    assert {name: each.dtype for name, each in made.items()} == {
        name: each.dtype for name, each in sample.items()
    }
    assert made["flag"].all()
    assert made["mask"].all()  # a row without any real token has no defined answer
    assert (made["big"] >= most - 3).all()


def test_the_artifact_is_read_from_where_it_lies_now(place: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    place.rename(moved)
    model = bundle.open_model(moved)
    assert moved in Path(model.payload).parents
    assert runtime("onnx").size(model) == Path(model.payload).stat().st_size


# -- text, and files outside ----------------------------------------------------------------------


def test_no_text_of_the_data_is_in_the_reference_inputs() -> None:
    """Made-up letters, as long as the texts: not one value is the data's."""
    texts = np.array([["Ada Lovelace", "Bath"], ["Alan Turing", "Wilmslow"], ["C. Shannon", "MI"]])
    signature = Signature((Port("text", "str", (None, 2)),), SIGNATURE.outputs)
    made = bundle.reference_inputs({"text": texts}, signature)["text"]
    assert made.shape == (bundle.PARITY_ROWS, 2)
    assert made.dtype.kind == "U"
    assert not set(made.flat) & set(texts.flat)
    assert all(each.isalpha() and each.islower() for each in made.flat)
    lengths = [len(each) for each in made.flat]
    assert min(lengths) >= 2
    assert max(lengths) <= 12
    assert len(set(made.flat)) > 8
    as_objects = bundle.reference_inputs({"text": texts.astype(object)}, signature)["text"]
    np.testing.assert_array_equal(made, as_objects)


def _categories(path: Path, unknown: int) -> Path:
    """One of three cities as three numbers; `unknown` 0: any other city is an error."""
    node = onnx.helper.make_node(
        "OneHotEncoder", ["city"], ["logits"], domain="ai.onnx.ml",
        cats_strings=["Bath", "Paris", "Rome"], zeros=unknown,
    )  # fmt: skip
    graph = onnx.helper.make_graph(
        [node], "cities",
        [onnx.helper.make_tensor_value_info("city", onnx.TensorProto.STRING, ["batch"])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 3])],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@pytest.mark.parametrize("unknown", [0, 1])
def test_a_model_that_takes_known_words_only(unknown: int, tmp_path: Path) -> None:
    """Where made-up words are refused there is no parity to check, and nothing of the data."""
    model = open_model(_categories(tmp_path / "cities.onnx", unknown))
    sample = {"city": np.array(["Paris", "Rome"])}
    place = tmp_path / "bundle"
    bundle.write(model, place, {}, sample, np.zeros(0, np.uint32), Target(), "cities")
    for name in bundle.files(place):
        if name != facts(place)["file"]:
            assert b"P\0\0\0a\0\0\0r" not in (place / name).read_bytes()
    with np.load(place / "parity.npz") as kept:
        assert "Paris" not in kept["input.city"]
        assert ("output.logits" in kept.files) == bool(unknown)
    gap = bundle.parity(place, facts(place), Target())
    assert gap == 0 if unknown else np.isnan(gap)
    with sartor.load(place) as loaded:
        answer = loaded.predict(np.array(["Rome"]))["logits"]
    assert answer.tolist() == [[0, 0, 1]]


def _external(place: Path, location: str) -> None:
    """The artifact is replaced by one that reads its weights from `location`, all hashes right."""
    (place.parent / "toys").mkdir()
    save_toys(place.parent / "toys")
    proto = onnx.load(place.parent / "toys" / "external.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    found = facts(place)
    (place / found["file"]).write_bytes(proto.SerializeToString())
    listed = {**found["files"], found["file"]: bundle.file_digest(place / found["file"])}
    rewrite(place, files=listed, settings={})


@pytest.mark.parametrize(
    "location", ["../toys/external.data", "gone.data", "/etc/passwd", "sub/../x", "sartor.json", ""]
)
def test_weights_from_files_that_are_not_listed_are_refused(location: str, place: Path) -> None:
    _external(place, location)
    with pytest.raises(WrongRequest, match="not among the files of the bundle") as refusal:
        sartor.load(place)
    assert repr(location) in str(refusal.value)
    with pytest.raises(WrongRequest, match="not among the files"):
        bundle.open_model(place)


def test_weights_in_a_listed_file_are_read(tmp_path: Path) -> None:
    (tmp_path / "toys").mkdir()
    model = open_model(save_toys(tmp_path / "toys")["external"])
    sample = toy_batch("external", 4)
    place = tmp_path / "bundle"
    bundle.write(model, place, {}, sample, np.zeros(0, np.uint32), Target(), "external")
    assert "external.data" in facts(place)["files"]
    with sartor.load(place) as loaded:
        assert loaded.predict(sample)["logits"].shape == (4, 4)


def test_external_names_are_those_that_the_onnx_package_finds(tmp_path: Path) -> None:
    for path in save_toys(tmp_path).values():
        found = {
            entry.value
            for tensor in _onnx_file.every_tensor(_onnx_file.read(path))
            if tensor.data_location == onnx.TensorProto.EXTERNAL
            for entry in tensor.external_data
            if entry.key == "location"
        }
        assert external_names(path.read_bytes()) == tuple(sorted(found))


def test_every_way_to_a_tensor_is_followed() -> None:
    """The table of fields is complete: by the onnx package's own description of its messages."""
    names = {
        "model": "ModelProto", "training": "TrainingInfoProto", "graph": "GraphProto",
        "function": "FunctionProto", "node": "NodeProto", "attribute": "AttributeProto",
        "sparse": "SparseTensorProto", "tensor": "TensorProto",
    }  # fmt: skip
    ours = {proto: name for name, proto in names.items()}
    for name, proto in names.items():
        described = getattr(onnx, proto).DESCRIPTOR.fields
        expected = {f.number: ours[f.message_type.name] for f in described
                    if f.message_type and f.message_type.name in ours}  # fmt: skip
        if name == "tensor":
            expected = {onnx.TensorProto.EXTERNAL_DATA_FIELD_NUMBER: "entry"}
        assert FIELDS[name] == expected, name


def test_bytes_that_are_no_model_are_refused_or_name_nothing_odd() -> None:
    rng = np.random.default_rng(0)
    whole = toy_models()["mlp"].SerializeToString()
    refused = 0
    for _ in range(300):
        spoilt = bytearray(whole[: rng.integers(1, len(whole))])
        spoilt[rng.integers(min(len(spoilt), 200))] ^= 1 << int(rng.integers(8))
        try:
            external_names(bytes(spoilt))
        except WrongRequest as error:
            refused += 1
            assert "ONNX file" in str(error)  # noqa: PT017  (some are well-formed)
    assert refused > 250
    assert external_names(b"") == ()
