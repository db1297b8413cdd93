"""TensorFlow's SavedModels: looked through without TensorFlow, run and converted with it."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import Case, run
from onnx import numpy_helper

import sartor as package
from sartor.contracts import Port, Target, WrongRequest
from sartor.lab import Toy, ToyBench, apply
from sartor.registry import kind_of, plugins, runtime, techniques
from sartor.savedmodel_file import FILE, names_of, place, read
from sartor.savedmodel_operators import COMPUTES, RESTORES, SAVES
from sartor.savedmodel_schema import saved_model

HERE = importlib.util.find_spec("tensorflow") is not None
needs_tensorflow = pytest.mark.skipif(
    not HERE, reason="tensorflow is not installed: the extra tensorflow"
)
FLOAT, TEXT = 1, 7


# -- files made here ------------------------------------------------------------------------------


def node(graph: Any, name: str, op: str, *inputs: str, calls: str = "") -> None:
    made = graph.add(name=name, op=op, input=inputs)
    if calls:
        made.attr.add(key="f").value.func.name = calls


def function(meta: Any, name: str, op: str, takes: str = "x", *inputs: str) -> Any:
    made = meta.graph.library.function.add()
    made.signature.name = name
    made.signature.input_arg.add(name=takes)
    node(made.node_def, "inner", op, *(inputs or (takes,)))
    return made


def tensor(side: Any, key: str, name: str, *shape: int, dtype: int = FLOAT) -> None:
    entry = side.add(key=key)
    entry.value.name, entry.value.dtype = name, dtype
    for size in shape:
        entry.value.shape.dim.add(size=size)


def usual() -> Any:
    """What TensorFlow writes of one product: a function that is served, one that saves the
    variable and one that restores it."""
    whole = saved_model()()
    meta = whole.meta_graphs.add()
    meta.info.tags.append("serve")
    nodes = meta.graph.node
    node(nodes, "w", "VarHandleOp")
    node(nodes, "serve_x", "Placeholder")
    node(nodes, "saver_filename", "Placeholder")
    node(nodes, "answer", "StatefulPartitionedCall", "serve_x", "w", calls="served")
    node(nodes, "save", "StatefulPartitionedCall", "saver_filename", "w", calls="saves")
    node(nodes, "restore", "StatefulPartitionedCall", "saver_filename", "w", calls="restores")
    function(meta, "served", "MatMul")
    function(meta, "saves", "SaveV2", "file")
    function(meta, "restores", "RestoreV2", "file")
    meta.saver.filename, meta.saver.save = "saver_filename:0", "save:0"
    meta.saver.restore = "restore"
    told = meta.signatures.add(key="serving_default").value
    tensor(told.inputs, "x", "serve_x:0", -1, 32)
    tensor(told.outputs, "y", "answer:0", -1, 4)
    return whole


def written(folder: Path, whole: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_bytes(whole.SerializeToString())
    (folder / "variables").mkdir(exist_ok=True)
    (folder / "variables" / "variables.index").write_bytes(b"numbers")
    return folder / FILE


def test_the_usual_file_is_read(tmp_path: Path) -> None:
    found = read(written(tmp_path, usual()))
    assert found.signature.inputs == (Port("x", "float32", (None, 32)),)
    assert found.signature.outputs == (Port("y", "float32", (None, 4)),)
    assert found.inputs == {"x": "serve_x:0"}
    assert found.files == (FILE, "variables/variables.index")
    assert kind_of(tmp_path) == "savedmodel" == kind_of(tmp_path / FILE)
    assert place(tmp_path) == place(tmp_path / FILE) == tmp_path / FILE


def _op(name: str, op: str) -> Callable[[Any], None]:
    """One more operator: in the graph, or in a function of this name that is there already."""

    def change(meta: Any) -> None:
        held = [each for each in meta.graph.library.function if each.signature.name == name]
        node(held[0].node_def if held else meta.graph.node, "more", op)

    return change


def _calls(op: str, called: str) -> Callable[[Any], None]:
    def change(meta: Any) -> None:
        node(meta.graph.node, "more", op, "serve_x", calls=called)

    return change


def _listed(meta: Any) -> None:
    """A function that saves, named in a list within an attribute of a function's attribute."""
    inner = meta.graph.library.function[0].node_def[0].attr.add(key="branches")
    outer = inner.value.list.func.add(name="served")
    outer.attr.add(key="deep").value.func.name = "saves"


def _constant(meta: Any) -> None:
    """Variables from a file that the graph names itself."""
    node(meta.graph.node, "mine", "Const")
    meta.graph.node[5].input[0] = "mine"


def _nested(meta: Any) -> None:
    """The same, one function deeper."""
    made = function(meta, "between", "StatefulPartitionedCall", "file")
    made.node_def[0].attr.add(key="f").value.func.name = "restores"
    meta.graph.node[5].attr[0].value.func.name = "between"


def _own(meta: Any) -> None:
    meta.graph.library.function[2].node_def[0].input[0] = "here:output:0"


def _swapped(meta: Any) -> None:
    meta.graph.library.function[1].attr.add(key="api_implements")


def _twice(meta: Any) -> None:
    function(meta, "served", "ReadFile")


def _as_saver(meta: Any) -> None:
    """What is served is said to be what saves."""
    meta.saver.save = "answer:0"
    meta.graph.library.function[0].node_def[0].op = "SaveV2"


def _initial(meta: Any) -> None:
    """What is run when the model is loaded is said to be what saves."""
    told = meta.signatures.add(key="__saved_model_init_op").value
    tensor(told.outputs, "__saved_model_init_op", "save")


HOSTILE: dict[str, tuple[Callable[[Any], None], str]] = {
    "reads a file": (_op("served", "ReadFile"), "operator ReadFile"),
    "writes a file": (_op("graph", "WriteFile"), "operator WriteFile"),
    "python": (_op("served", "EagerPyFunc"), "operator EagerPyFunc"),
    "looks for files": (_op("served", "MatchingFiles"), "operator MatchingFiles"),
    "prints, which may be to a file": (_op("served", "PrintV2"), "operator PrintV2"),
    "maps a file": (_op("served", "ImmutableConst"), "operator ImmutableConst"),
    "not known": (_op("served", "SomeoneElses"), "operator SomeoneElses"),
    "writes where it saves": (_op("saves", "WriteFile"), "operator WriteFile"),
    "saves where it restores": (_op("restores", "SaveV2"), "operator SaveV2"),
    "saves where it serves": (_op("served", "SaveV2"), "operator SaveV2"),
    "serves what saves": (_calls("StatefulPartitionedCall", "saves"), "operator SaveV2"),
    "serves what saves, by its name": (_op("served", "saves"), "operator SaveV2"),
    "hides it in an attribute": (_listed, "operator SaveV2"),
    "says that it saves": (_as_saver, "operator SaveV2"),
    "saves when it is loaded": (_initial, "operator SaveV2"),
    "swaps functions": (_swapped, "operator SaveV2"),
    "restores another file": (_constant, "file of its own choice"),
    "restores it deeper": (_nested, "file of its own choice"),
    "names the file itself": (_own, "file of its own choice"),
    "two of a name": (_twice, "share a name"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_does_more_than_compute_is_refused(name: str, tmp_path: Path) -> None:
    change, said = HOSTILE[name]
    whole = usual()
    change(whole.meta_graphs[0])
    with pytest.raises(WrongRequest, match=said) as refusal:
        read(written(tmp_path, whole))
    assert "\n" not in str(refusal.value)


def _told(whole: Any) -> Any:
    return whole.meta_graphs[0].signatures[0].value


def _renamed(whole: Any) -> None:
    whole.meta_graphs[0].signatures[0].key = "mine"


def _tagged(whole: Any) -> None:
    whole.meta_graphs[0].info.tags.append("train")


def _words(whole: Any) -> None:
    _told(whole).inputs[0].value.dtype = TEXT


def _shapeless(whole: Any) -> None:
    _told(whole).outputs[0].value.shape.unknown_rank = True


def _nowhere(whole: Any) -> None:
    _told(whole).outputs[0].value.name = "gone:0"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_renamed, "no signature serving_default; it has mine"),
        (_tagged, "graphs for serve, train"),
        (_words, "'x' is text"),
        (_shapeless, "'y' states no shape"),
        (_nowhere, "names what is not in its graph"),
    ],
)
def test_what_cannot_be_served_is_refused(
    change: Callable[[Any], None], said: str, tmp_path: Path
) -> None:
    whole = usual()
    change(whole)
    with pytest.raises(WrongRequest, match=said):
        read(written(tmp_path, whole))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, usual())
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for at in rng.integers(0, len(damaged), 3):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(WrongRequest):  # anything else that it raises is a defect
            read(path)


def test_files_that_lie_elsewhere_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "model", usual())
    (tmp_path / "secret").write_bytes(b"mine")
    link = path.parent / "variables" / "variables.data-00000-of-00001"
    link.symlink_to(tmp_path / "secret")
    with pytest.raises(WrongRequest, match="leads out of the model's folder"):
        names_of(path)
    link.unlink()
    shutil.move(path.parent / "variables", tmp_path / "variables")
    (path.parent / "variables").symlink_to(tmp_path / "variables")
    with pytest.raises(WrongRequest, match="leads out of the model's folder"):
        names_of(path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("assets/words.txt", "words.txt, which no model of numbers needs"),
        ("saved_model.pbtxt", "beside saved_model.pb"),
        ("variables/run.sh", "none of TensorFlow's files"),
    ],
)
def test_files_that_no_model_of_numbers_needs_are_refused(
    name: str, said: str, tmp_path: Path
) -> None:
    path = written(tmp_path, usual())
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("x")
    with pytest.raises(WrongRequest, match=said):
        read(path)


def test_without_tensorflow_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    hidden: Callable[[str], Any] = lambda name: None if name == "tensorflow" else real(name)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    (plugin,) = (each for each in plugins("runtimes") if each.kind == "savedmodel")
    with pytest.raises(WrongRequest, match=r"needs tensorflow: write pip install 'sartor\[tensorf"):
        plugin.load()


# -- with TensorFlow ------------------------------------------------------------------------------


@needs_tensorflow
def test_the_operators_are_tensorflows() -> None:
    from sartor.savedmodel_calls import silent

    with silent():
        from tensorflow.python.framework import op_def_registry
    names = COMPUTES | SAVES | RESTORES
    assert not [name for name in sorted(names) if op_def_registry.get(name) is None]
    assert not COMPUTES & (SAVES | RESTORES)
    words = ("File", "PyFunc", "Py", "Summary", "Dataset", "Reader", "Save", "Remote", "Print")
    assert not [name for name in COMPUTES if any(word in name for word in words)]


@needs_tensorflow
def test_a_function_that_reads_a_file_is_not_run(tmp_path: Path) -> None:
    """As TensorFlow itself writes it."""
    from sartor.savedmodel_calls import silent, tf

    (tmp_path / "secret").write_text("mine")

    def answer(x: Any) -> Any:
        size = tf.strings.length(tf.io.read_file(str(tmp_path / "secret")))
        return {"y": x + tf.cast(size, tf.float32)}

    with silent():
        holder, taken = tf.Module(), tf.TensorSpec((None, 3), tf.float32, name="x")
        made = tf.function(answer).get_concrete_function(taken)
        tf.saved_model.save(holder, str(tmp_path / "model"), signatures=made)
    with pytest.raises(WrongRequest, match="operator ReadFile"):
        runtime("savedmodel").open(tmp_path / "model")
    known = Port("x", "float32", (None, 3)), Port("y", "float32", (None, 3))
    signature = type(read(written(tmp_path / "usual", usual())).signature)(known[:1], known[1:])
    unread = runtime("savedmodel").open(tmp_path / "model", signature)
    with pytest.raises(WrongRequest, match="operator ReadFile"):
        runtime("savedmodel").start(unread, Target())


def toy(name: str, folder: Path) -> Toy:
    from sartor import testing_savedmodel as testing

    model = testing.save_toys(folder, only=(name,))[name]
    return Toy(name, model, functools.partial(testing.toy_batch, name))


@needs_tensorflow
@pytest.mark.parametrize("rows", [1, 4])
def test_it_is_converted_to_the_batch_of_the_target(rows: int, tmp_path: Path) -> None:
    mine = toy("cnn", tmp_path)
    bench = ToyBench(mine, tmp_path / "bench", target=Target(batch=rows))
    made = apply(techniques("savedmodel")["savedmodel-to-tflite"](), mine.model, bench)
    assert not isinstance(made, str), made
    assert made.signature.inputs == (Port("image", "float32", (rows, 16, 16, 3)),)
    batch = mine.batch(rows, 5)
    with (
        runtime("savedmodel").start(mine.model, Target()) as right,
        runtime("tflite").start(made, Target()) as found,
    ):
        np.testing.assert_allclose(found(batch)["logits"], right(batch)["logits"], atol=1e-4)


@needs_tensorflow
def test_sizes_that_stay_free_are_refused(tmp_path: Path) -> None:
    from sartor.savedmodel_calls import silent, tf

    with silent():
        taken = tf.TensorSpec((None, None), tf.float32, name="x")
        made = tf.function(lambda x: {"y": x * 2}).get_concrete_function(taken)
        tf.saved_model.save(tf.Module(), str(tmp_path / "free"), signatures=made)
    model = runtime("savedmodel").open(tmp_path / "free")
    bench = ToyBench(toy("mlp", tmp_path), tmp_path / "bench")
    refused = techniques("savedmodel")["savedmodel-to-tflite"]().refuse(model, bench)
    assert refused is not None
    assert "--fix x=1,N" in refused


@needs_tensorflow
def test_what_the_converter_has_no_operator_for_fails_with_its_name(tmp_path: Path) -> None:
    from sartor.savedmodel_calls import silent, tf

    with silent():
        taken = tf.TensorSpec((None, 32), tf.float32, name="x")
        made = tf.function(lambda x: {"y": tf.math.digamma(x)}).get_concrete_function(taken)
        tf.saved_model.save(tf.Module(), str(tmp_path / "odd"), signatures=made)
    mine = toy("mlp", tmp_path)
    model = runtime("savedmodel").open(tmp_path / "odd")
    bench = ToyBench(Toy("odd", model, mine.batch), tmp_path / "bench")
    said = apply(techniques("savedmodel")["savedmodel-to-tflite"](), model, bench)
    assert isinstance(said, str)
    assert "Digamma" in said


def saved_digits(case: Case, folder: Path) -> Path:
    """The network of the case, with the same weights, as a SavedModel."""
    from sartor.savedmodel_calls import silent, tf

    held = [numpy_helper.to_array(each) for each in onnx.load(case.model).graph.initializer]
    with silent():
        holder = tf.Module()
        holder.held = [tf.Variable(each) for each in held]

        def answer(x: Any) -> Any:
            for at in range(0, len(held), 2):
                x = tf.matmul(x, holder.held[at]) + holder.held[at + 1]
                x = tf.nn.relu(x) if at < len(held) - 2 else x
            return {"logits": x}

        taken = tf.TensorSpec((None, 64), tf.float32, name="pixels")
        made = tf.function(answer).get_concrete_function(taken)
        tf.saved_model.save(holder, str(folder), signatures=made)
    return folder


@needs_tensorflow
@pytest.mark.slow
def test_a_folder_becomes_a_certified_tflite_file(digits: Case, tmp_path: Path) -> None:
    model, data = saved_digits(digits, tmp_path / "model"), digits.data(tmp_path)
    limits = ("--limit", "accuracy >= baseline - 0.03", "--limit", "size <= 0.5 x baseline")
    said = run(
        *("optimize", model, "--data", data, *limits, "--format", "tflite", "--minimize", "size"),
        *("--budget", "60s", "--out", tmp_path / "run", "--json"),
    )
    assert said.status == 0, said.err
    assert said.json["chosen"].startswith("savedmodel-to-tflite > ")
    assert next((tmp_path / "run" / "bundle").glob("*.tflite"))
    np.savez(tmp_path / "fresh.npz", **digits.fresh)
    verified = run("verify", tmp_path / "run" / "bundle", "--data", tmp_path / "fresh.npz")
    assert verified.status in (0, 4), verified.err
    assert "hashes are right" in verified.out + verified.err


@needs_tensorflow
@pytest.mark.slow
def test_the_original_is_delivered_where_nothing_is_better(tiny: Case, tmp_path: Path) -> None:
    model, data = saved_digits(tiny, tmp_path / "model"), tiny.data(tmp_path)
    said = run(
        *("optimize", model, "--data", data, "--trials", 1, "--budget", "60s"),
        *("--out", tmp_path / "run", "--json"),
    )
    assert said.status == 0, said.err
    bundle = tmp_path / "run" / "bundle"
    listed = json.loads((bundle / "sartor.json").read_text())["files"]
    assert {FILE, "variables/variables.index"} <= set(listed)
    pixels = tiny.fresh["pixels"][:5]
    with (
        package.load(bundle) as artifact,
        runtime("savedmodel").start(runtime("savedmodel").open(model), Target()) as right,
    ):
        found = artifact.predict(pixels)["logits"]
        np.testing.assert_allclose(found, right({"pixels": pixels})["logits"], atol=1e-6)
