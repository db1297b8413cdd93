"""The ONNX runtime: what it refuses, what it counts, how it runs."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from hostile import onnx_files
from onnx import TensorProto, helper, numpy_helper

from sartor.contracts import Failed, Model, Target, WrongRequest
from sartor.registry import adopt, open_model, runtime
from sartor.testing_onnx import save_toys, toy_batch, toy_models

ENGINE = runtime("onnx")


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    paths = save_toys(tmp_path_factory.mktemp("toys"))
    return {name: open_model(path) for name, path in paths.items()}


# -- opening --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", onnx_files.FILES)
def test_hostile_files_are_refused_with_one_sentence(name: str, tmp_path: Path) -> None:
    path, words = onnx_files.write(name, tmp_path)
    with pytest.raises(WrongRequest) as refusal:
        open_model(path)
    said = str(refusal.value)
    assert all(word in said for word in words), said
    assert "\n" not in said
    assert len(said) < 700


def test_paths_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongRequest, match="no such file"):
        open_model(tmp_path / "gone.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(WrongRequest, match="folder"):
        open_model(tmp_path / "folder.onnx")
    with (tmp_path / "large.onnx").open("wb") as file:
        file.truncate(3 << 30)  # sparse: takes no space
    with pytest.raises(WrongRequest, match="2 GB"):
        open_model(tmp_path / "large.onnx")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = toy_models()["lstm"].SerializeToString()
    path = tmp_path / "cut.onnx"
    for end in range(1, len(whole), 997):
        path.write_bytes(whole[:end])
        with pytest.raises(WrongRequest):
            open_model(path)


def test_signature_names_free_axes_none(toys: dict[str, Model]) -> None:
    ports = toys["transformer"].signature.inputs
    assert [(p.name, p.dtype, p.shape) for p in ports] == [
        ("input_ids", "int64", (None, None)),
        ("attention_mask", "int64", (None, None)),
    ]
    assert [(p.name, p.shape) for p in toys["several"].signature.outputs] == [
        ("scores", (None, 3)),
        ("level", (None, 1)),
    ]


def test_weights_listed_as_inputs_are_no_inputs(tmp_path: Path) -> None:
    proto = toy_models()["mlp"]
    for tensor in proto.graph.initializer:
        proto.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    onnx.save(proto, tmp_path / "old.onnx")
    model = open_model(tmp_path / "old.onnx")
    assert [port.name for port in model.signature.inputs] == ["x"]


def test_strings_go_in(tmp_path: Path) -> None:
    """A label encoder, as pipelines have them."""
    node = helper.make_node(
        "LabelEncoder", ["word"], ["code"], domain="ai.onnx.ml",
        keys_strings=["no", "yes"], values_int64s=[0, 1],
    )  # fmt: skip
    word = helper.make_tensor_value_info("word", TensorProto.STRING, ["batch", 1])
    code = helper.make_tensor_value_info("code", TensorProto.INT64, ["batch", 1])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 2)]
    graph = helper.make_graph([node], "words", [word], [code])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "w.onnx")
    model = open_model(tmp_path / "w.onnx")
    assert model.signature.inputs[0].dtype == "str"
    with ENGINE.start(model, Target()) as run:
        assert run({"word": np.array([["yes"], ["no"]])})["code"].tolist() == [[1], [0]]
        with pytest.raises(WrongRequest, match="word str"):
            run({"word": np.zeros((1, 1), np.float32)})


def test_a_live_model_is_adopted(tmp_path: Path) -> None:
    model = adopt(toy_models()["mlp"], tmp_path)
    assert Path(model.payload).parent == tmp_path
    with ENGINE.start(model, Target()) as run:
        assert run(toy_batch("mlp", 2))["logits"].shape == (2, 4)


# -- digest, size, save ---------------------------------------------------------------------------


def test_digest_sees_file_external_data_and_settings(tmp_path: Path) -> None:
    path = save_toys(tmp_path)["external"]
    model = open_model(path)
    first = ENGINE.digest(model)
    assert ENGINE.digest(dataclasses.replace(model, settings={"threads": 1})) != first
    data = bytearray((tmp_path / "external.data").read_bytes())
    data[100] ^= 1
    (tmp_path / "external.data").write_bytes(data)
    assert ENGINE.digest(model) != first


def test_save_takes_the_external_data_along(tmp_path: Path, toys: dict[str, Model]) -> None:
    saved = ENGINE.save(toys["external"], tmp_path / "new")
    assert sorted(p.name for p in saved.parent.iterdir()) == ["external.data", "external.onnx"]
    total = sum(p.stat().st_size for p in saved.parent.iterdir())
    assert ENGINE.size(toys["external"]) == total
    assert ENGINE.digest(open_model(saved)) == ENGINE.digest(toys["external"])
    with ENGINE.start(open_model(saved), Target()) as run:
        assert run(toy_batch("external", 1))["logits"].shape == (1, 4)


# -- sessions -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"speed": "high"},
        {"threads": 0},
        {"threads": True},
        {"graph_level": "most"},
        {"spinning": "no"},
        {"arena": 1},
    ],
)
def test_unknown_settings_are_refused(settings: dict[str, object], toys: dict[str, Model]) -> None:
    model = dataclasses.replace(toys["mlp"], settings=settings)
    with pytest.raises(WrongRequest, match="setting"):
        ENGINE.start(model, Target())


def test_threads_are_at_most_the_targets(toys: dict[str, Model]) -> None:
    for asked, ceiling, given in ((1, 4, 1), (8, 2, 2), (None, 3, 3)):
        settings = {} if asked is None else {"threads": asked}
        run = ENGINE.start(
            dataclasses.replace(toys["mlp"], settings=settings), Target(threads=ceiling)
        )
        assert run.session.get_session_options().intra_op_num_threads == given  # type: ignore[attr-defined]


@pytest.mark.parametrize("asked", [1, 2, 4])
def test_branches_at_the_same_time_have_no_more_threads_together(
    toys: dict[str, Model], asked: int
) -> None:
    model = dataclasses.replace(toys["mlp"], settings={"execution_mode": "parallel"})
    before = psutil.Process().num_threads()
    with ENGINE.start(model, Target(threads=asked)) as run:
        options = run.session.get_session_options()  # type: ignore[attr-defined]
        assert options.inter_op_num_threads == min(asked, 2)
        assert psutil.Process().num_threads() - before == asked - 1


def test_settings_reach_the_session(toys: dict[str, Model]) -> None:
    settings = {"graph_level": "basic", "arena": False, "mem_pattern": False, "spinning": True}
    run = ENGINE.start(dataclasses.replace(toys["mlp"], settings=settings), Target())
    options = run.session.get_session_options()  # type: ignore[attr-defined]
    assert options.graph_optimization_level.name == "ORT_ENABLE_BASIC"
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"


def test_another_device_is_refused(toys: dict[str, Model]) -> None:
    with pytest.raises(WrongRequest, match="'cuda'"):
        ENGINE.start(toys["mlp"], Target(device="cuda"))


@pytest.mark.parametrize(
    "batch",
    [
        {},
        {"y": np.zeros((1, 32), np.float32)},
        {"x": np.zeros((1, 32), np.float32), "label": np.zeros(1)},
        {"x": np.zeros((1, 32))},
        {"x": np.zeros((1, 32), ">f4")},
        {"x": np.zeros((1, 1, 32), np.float32)},
        {"x": np.zeros((1, 31), np.float32)},
    ],
)
def test_what_does_not_fit_is_refused(batch: dict[str, np.ndarray], toys: dict[str, Model]) -> None:
    with (
        ENGINE.start(toys["mlp"], Target()) as run,
        pytest.raises(WrongRequest, match=r"takes x float32\[\?, 32\]"),
    ):
        run(batch)


def test_values_that_the_model_cannot_take_fail(toys: dict[str, Model]) -> None:
    with ENGINE.start(toys["embedding"], Target()) as run, pytest.raises(Failed, match="out of"):
        run({"ids": np.array([[99_999]])})


def test_a_closed_session_says_so(toys: dict[str, Model]) -> None:
    with ENGINE.start(toys["mlp"], Target()) as run:
        pass
    with pytest.raises(Failed, match="closed"):
        run(toy_batch("mlp", 1))


def test_a_model_that_does_not_start_fails(tmp_path: Path) -> None:
    """Consistent to the eye, and refused by ONNX Runtime's type inference."""
    proto = toy_models()["mlp"]
    proto.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.zeros((32, 64), np.int64), proto.graph.initializer[0].name)
    )
    (tmp_path / "odd.onnx").write_bytes(proto.SerializeToString())
    model = open_model(tmp_path / "odd.onnx")
    with pytest.raises(Failed, match=r"cannot start odd\.onnx"):
        ENGINE.start(model, Target())


def test_a_session_imports_neither_onnx_nor_data_frames(toys: dict[str, Model]) -> None:
    import pickle

    code = (
        "import pickle, sys; from sartor.registry import runtime; from sartor.contracts import "
        "Target; model = pickle.loads(sys.stdin.buffer.read()); "
        "runtime('onnx').start(model, Target()); "
        "print([m for m in ('onnx', 'pandas', 'scipy', 'sklearn', 'torch') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(toys["mlp"]),
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode().strip() == "[]"


# -- counting -------------------------------------------------------------------------------------


def _macs(model: Model, batch: dict[str, np.ndarray]) -> int:
    return sum(part.macs or 0 for part in ENGINE.parts(model, batch))


def test_macs_by_hand(toys: dict[str, Model]) -> None:
    assert _macs(toys["mlp"], toy_batch("mlp", 1)) == 32 * 64 + 64 * 64 + 64 * 4
    pixels = 16 * 16
    convs = pixels * (27 * 32 + 2 * 288 * 32 + 9 * 32 + 32 * 64)
    assert _macs(toys["cnn"], toy_batch("cnn", 1)) == convs + 64 * 4
    steps = toy_batch("lstm", 1)["x"].shape[1]
    assert _macs(toys["lstm"], toy_batch("lstm", 1)) == steps * 4 * 32 * (16 + 32) + 32 * 4
    tokens = toy_batch("transformer", 1)["input_ids"].shape[1]
    linear = tokens * (4 * 64 * 64 + 2 * 64 * 128) + 64 * 4
    scores = 2 * tokens * tokens * 64
    assert _macs(toys["transformer"], toy_batch("transformer", 1)) == linear + scores


def test_bytes_and_parameters_add_up(toys: dict[str, Model]) -> None:
    for name, model in toys.items():
        proto = onnx.load(model.payload)
        floats = [t for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT]
        parts = ENGINE.parts(model, toy_batch(name, 1))
        assert sum(p.parameters for p in parts) == sum(int(np.prod(t.dims)) for t in floats)
        stored = sum(len(t.raw_data) for t in proto.graph.initializer)
        assert sum(p.bytes for p in parts) == stored
        assert len({p.name for p in parts}) == len(parts)


def test_a_shared_weight_counts_once(toys: dict[str, Model]) -> None:
    parts = ENGINE.parts(toys["several"], toy_batch("several", 1))
    shared = [part for part in parts if part.macs == 128 * 64]
    assert sorted(part.parameters for part in shared) == [0, 128 * 64 + 64]


def test_quantized_weights_are_found_behind_dequantize(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((4, 8), np.int8), "w")
    scale = numpy_helper.from_array(np.float32(0.5), "s")
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["float_w"], name="dequantize"),
        helper.make_node("Transpose", ["float_w"], ["turned"], perm=[1, 0], name="turn"),
        helper.make_node("MatMul", ["x", "turned"], ["y"], name="product"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
    graph = helper.make_graph(nodes, "q", [x], [y], [weight, scale])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, tmp_path / "q.onnx")
    parts = ENGINE.parts(open_model(tmp_path / "q.onnx"), {"x": np.zeros((1, 8), np.float32)})
    found = {part.name: part for part in parts}
    assert (found["product"].parameters, found["product"].bytes) == (33, 36)
    assert found["product"].macs == 32
    assert found["dequantize"].parameters == 0


def _quantized(path: Path, out: Path, how: str) -> Model:
    from onnxruntime.quantization import QuantType, matmul_nbits_quantizer, quantize_dynamic

    if how == "dynamic":
        quantize_dynamic(path, out, weight_type=QuantType.QInt8)
    else:
        packed = matmul_nbits_quantizer.MatMulNBitsQuantizer(onnx.load(path), block_size=32)
        packed.process()
        packed.model.save_model_to_file(str(out))
    return open_model(out)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("how", "share"), [("dynamic", 0.5), ("packed", 0.75)])
def test_quantizing_changes_bytes_not_work(
    how: str, share: float, toys: dict[str, Model], tmp_path: Path
) -> None:
    """MatMulInteger, DynamicQuantize* and MatMulNBits stop ONNX's inference: the model is run."""
    before, sample = toys["transformer"], toy_batch("transformer", 1)
    after = _quantized(Path(before.payload), tmp_path / "q.onnx", how)
    assert _macs(after, sample) == _macs(before, sample)
    small, large = (ENGINE.parts(model, sample) for model in (after, before))
    assert sum(p.bytes for p in small) < share * sum(p.bytes for p in large)
    counts = [sum(p.parameters for p in parts) for parts in (small, large)]
    assert 1 <= counts[0] / counts[1] < 1.1


@pytest.mark.filterwarnings("ignore")
def test_fused_attention_counts_as_much(toys: dict[str, Model], tmp_path: Path) -> None:
    """What ONNX Runtime fuses into contrib operators does the work of what it replaced."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 3
    for name in ("transformer", "cnn"):
        ort.InferenceSession(str(toys[name].payload), options, providers=["CPUExecutionProvider"])
        fused = open_model(tmp_path / "fused.onnx")
        assert len(ENGINE.parts(fused, toy_batch(name, 1))) < len(
            ENGINE.parts(toys[name], toy_batch(name, 1))
        )
        assert _macs(fused, toy_batch(name, 1)) == _macs(toys[name], toy_batch(name, 1))


def test_attention_counts_projection_scores_and_mixture() -> None:
    from sartor.runtimes._onnx_macs import macs

    sizes = {"x": (1, 10, 64), "w": (64, 192), "b": (192,), "y": (1, 10, 64), "s": ()}
    sizes |= {"past": (2, 1, 4, 6, 16), "q": (1, 4, 10, 16), "k": (1, 4, 12, 16)}
    fused = helper.make_node("Attention", ["x", "w", "b"], ["y"], domain="com.microsoft")
    assert macs(fused, sizes.get) == 10 * 64 * 192 + 2 * 10 * 10 * 64
    inputs = ["x", "w", "b", "s", "s", "", "s", "s", "past"]
    quantized = helper.make_node("QAttention", inputs, ["y"], domain="com.microsoft")
    assert macs(quantized, sizes.get) == 10 * 64 * 192 + 2 * 10 * 16 * 64
    plain = helper.make_node("Attention", ["q", "k", "k"], ["y"])
    assert macs(plain, sizes.get) == 2 * 4 * 10 * 16 * 12
    packed = helper.make_node("MultiHeadAttention", ["q"], ["y"], domain="com.microsoft")
    assert macs(packed, sizes.get) is None
    assert macs(helper.make_node("Loop", ["x"], ["y"]), sizes.get) is None
    assert macs(helper.make_node("Thing", ["x"], ["y"], domain="com.acme"), sizes.get) is None


def test_part_seconds_are_those_of_the_parts(toys: dict[str, Model]) -> None:
    batches = [toy_batch("cnn", 1, seed) for seed in range(5)]
    found = ENGINE.part_seconds(toys["cnn"], Target(), batches)
    parts = {part.name: part for part in ENGINE.parts(toys["cnn"], batches[0])}
    assert all(each >= 0 for each in found.values())
    heavy = max(parts.values(), key=lambda part: part.macs or 0)
    convs = {name for name, part in parts.items() if part.operator == "Conv"}
    assert heavy.name in found
    assert sum(found.get(name, 0) for name in convs) > 0.5 * sum(found.values())


def test_nodes_without_names_are_timed_under_their_parts(tmp_path: Path) -> None:
    proto = toy_models()["mlp"]
    for node in proto.graph.node:
        node.ClearField("name")
    onnx.save(
        proto, tmp_path / "bare.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    model = open_model(tmp_path / "bare.onnx")
    names = {part.name for part in ENGINE.parts(model, toy_batch("mlp", 1))}
    assert {"Gemm#0", "Gemm#2", "Gemm#4"} <= names
    found = ENGINE.part_seconds(model, Target(), [toy_batch("mlp", 1)] * 3)
    assert {"Gemm#0", "Gemm#2", "Gemm#4"} <= set(found)
