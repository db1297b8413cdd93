"""Keras models: files and live models, what is read, what is refused, and that they answer as Keras
does."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("keras") is None:  # Keras itself is imported by the runtime alone
    pytest.skip("the extra `keras` is not installed", allow_module_level=True)

from hostile import keras_files

from sartor.contracts import Glimpse, Model, Target, WrongRequest
from sartor.lab import Lab, Toy
from sartor.prepare import prepare
from sartor.records import Journal
from sartor.registry import adopt, kind_of, open_model, runtime
from sartor.runtimes import _torch_keras
from sartor.runtimes._torch_keras import keras
from sartor.spec import Spec
from sartor.techniques.convert_torch import ToOnnx
from sartor.techniques.quantize_torch import considered
from sartor.torch_archive import opened
from sartor.torch_program import program
from sartor.workers import Pool

L = keras.layers

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SOURCE = """
import keras


def make():
    return keras.saving.load_model("digits.keras")
"""


@dataclass(frozen=True)
class Digits:
    """A network of digits of 8 x 8 in memory, and its file; rows that it was not trained on."""

    model: Any
    path: Path
    rows: dict[str, np.ndarray]
    fresh: dict[str, np.ndarray]


def _digits(folder: Path, epochs: int) -> Digits:
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels, label = (found.images / 16).astype(np.float32)[..., None], found.target
    order = np.random.default_rng(0).permutation(len(label))
    fit, rest, fresh = order[:500], order[500:1500], order[1500:]
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1), name="image")
    x = L.Conv2D(32, 3, padding="same", use_bias=False, name="first")(image)
    x = L.MaxPooling2D()(L.ReLU()(L.BatchNormalization(momentum=0.9, name="norm")(x)))
    x = L.Conv2D(64, 3, padding="same", activation="relu", name="second")(x)
    x = L.Dropout(0.2)(L.GlobalAveragePooling2D()(x))
    model = keras.Model(image, L.Dense(10, activation="softmax", name="head")(x))
    model.compile(
        keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    if epochs:
        model.fit(pixels[fit], label[fit], epochs=epochs, batch_size=50, verbose=0)
    else:
        rng = np.random.default_rng(0)
        model.get_layer("norm").set_weights(list(rng.uniform(0.5, 2, (4, 32))))
    model.save(folder / "digits.keras")
    taken = [{"image": pixels[each], "label": label[each]} for each in (rest, fresh)]
    return Digits(model, folder / "digits.keras", *taken)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """For what needs no good answers; its batch norm is as if it had seen data."""
    return _digits(tmp_path_factory.mktemp("net"), 0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    return _digits(tmp_path_factory.mktemp("good"), 20)


def look(**arrays: Any) -> Callable[[], Glimpse]:
    return lambda: Glimpse({name: np.asarray(each)[:32] for name, each in arrays.items()})


def rows(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def numbers(below: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, below, shape)


def answers(model: Model, **arrays: Any) -> dict[str, np.ndarray]:
    ports = {port.name: port.dtype for port in model.signature.inputs}
    with runtime(model.kind).start(model, Target()) as run:
        return dict(run({name: each.astype(ports[name]) for name, each in arrays.items()}))


def same(model: Model, live: Any, **arrays: Any) -> None:
    """The answers of the model are those of Keras' predict, for some rows and for one."""
    for count in (len(next(iter(arrays.values()))), 1):
        given = {name: each[:count] for name, each in arrays.items()}
        single = next(iter(given.values()))
        right = live.predict(given if len(given) > 1 else single, verbose=0)
        found = answers(model, **given)
        listed = list(right.values()) if isinstance(right, dict) else right
        listed = listed if isinstance(listed, list) else [listed]
        assert len(found) == len(listed)
        named = right if isinstance(right, dict) else dict(zip(found, listed, strict=True))
        for name, each in named.items():
            assert np.allclose(found[name], each, atol=1e-5), name


# -- what comes in ------------------------------------------------------------------------------


def test_a_file_and_a_live_model_are_the_same_model(untrained: Digits, tmp_path: Path) -> None:
    weights = untrained.model.get_weights()
    seen = look(**untrained.rows)
    live = adopt(untrained.model, tmp_path / "live", look=seen)
    file = adopt(str(untrained.path), tmp_path / "file", look=seen)
    assert live.signature == file.signature
    assert live.signature.inputs[0].shape == (None, 8, 8, 1)
    assert runtime("torch").digest(live) == runtime("torch").digest(file)
    same(live, untrained.model, image=untrained.fresh["image"])
    after = untrained.model.get_weights()
    assert all(np.array_equal(one, two) for one, two in zip(weights, after, strict=True))
    assert untrained.model.optimizer is not None
    assert kind_of(untrained.path) == "torch"
    names = {part.name for part in runtime("torch").parts(live, {"image": rows(1, 8, 8, 1)})}
    assert {"first", "second", "head"} <= names


def test_the_program_calls_nothing_that_does_nothing(untrained: Digits, tmp_path: Path) -> None:
    """Keras asks for a type and a device before each operator; weights are stored once."""
    from sartor.torch_archive import opened
    from sartor.torch_program import program

    model = adopt(untrained.model, tmp_path, look=look(**untrained.rows))
    archive = opened(Path(model.payload))
    calls = [each.target for each in program(archive).block.calls]
    assert not [each for each in calls if "aten.to." in each or "_assert" in each]
    parts = {e.name: e for e in runtime("torch").parts(model, {"image": rows(1, 8, 8, 1)})}
    assert (parts["second"].operator, parts["second"].macs) == ("conv2d", 32 * 64 * 9 * 16)
    stored = sum(
        e.file_size for n, e in archive.entries.items() if "/weight_" in n or "/tensor_" in n
    )
    assert stored <= 1.05 * sum(each.nbytes for each in untrained.model.get_weights())


def test_dense_layers_are_linear_layers(tmp_path: Path) -> None:
    """As PyTorch has them, so that what rounds linear layers knows them; one that is called twice
    stays as Keras writes it."""
    twice = L.Dense(96, activation="tanh", name="twice")
    given = keras.Input((5, 96), name="x")
    x = L.Dense(96, use_bias=False, name="bare")(L.Dense(96, name="wide")(given))
    live = keras.Model(given, L.Dense(3, name="head")(twice(twice(x))))
    batch = rows(8, 5, 96)
    found = adopt(live, tmp_path, look=look(x=batch))
    touched, skipped = considered(program(opened(Path(found.payload))))
    assert touched == ["wide", "bare"]
    assert dict(skipped)["twice"] == "matmul is no linear layer"
    assert "do not pay" in dict(skipped)["head"]
    same(found, live, x=batch)


def several() -> Any:
    left, right = keras.Input((6,), name="left"), keras.Input((4,), name="right")
    both = L.Concatenate()([L.Dense(8, activation="tanh")(left), L.Dense(8)(right)])
    out = {"zeta": L.Dense(3, name="zeta")(both), "alpha": L.Dense(1, name="alpha")(both)}
    return keras.Model({"left": left, "right": right}, out)


def sentences(layer: Any, mask: bool = False, length: int | None = 6) -> Any:
    ids = keras.Input((length,), dtype="int32", name="ids")
    x = layer(L.Embedding(50, 8, mask_zero=mask)(ids))
    return keras.Model(ids, L.Dense(3)(x))


class Own(keras.Model):  # type: ignore[misc]
    """Somebody's class, which names its inputs in `call` alone, and drops in training."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.drop, self.head = L.Dense(8), L.Dropout(0.9), L.Dense(3)

    def call(self, x: Any, training: bool = False) -> Any:
        return self.head(self.drop(keras.ops.relu(self.inner(x)), training=training))


def attending() -> Any:
    ids = keras.Input((None,), dtype="int32", name="ids")
    x = L.Embedding(50, 16)(ids)
    x = L.LayerNormalization()(x + L.MultiHeadAttention(2, 8)(x, x))
    return keras.Model(ids, L.Dense(3)(L.GlobalAveragePooling1D()(x)))


def test_several_inputs_and_outputs_keep_their_names(tmp_path: Path) -> None:
    live, given = several(), {"right": rows(9, 4), "left": rows(9, 6)}
    model = adopt(live, tmp_path, look=look(**given))
    assert [port.name for port in model.signature.inputs] == ["left", "right"]
    assert {port.name for port in model.signature.outputs} == {"alpha", "zeta"}
    same(model, live, **given)


@pytest.mark.parametrize(
    ("live", "shape"),
    [
        (lambda: sentences(L.LSTM(6)), (None, 6)),
        pytest.param(lambda: sentences(L.GRU(6), mask=True), (None, 6), marks=pytest.mark.slow),
        pytest.param(
            lambda: sentences(L.Bidirectional(L.LSTM(6)), mask=True), (1, 6), marks=pytest.mark.slow
        ),
        (attending, (None, None)),
    ],
    ids=["lstm", "gru under a mask", "both ways under a mask", "attention of free length"],
)
def test_models_of_tokens(live: Callable[[], Any], shape: Any, tmp_path: Path) -> None:
    made, ids = live(), numbers(50, 9, 6)
    ids[2:, 4:] = 0
    model = adopt(made, tmp_path, look=look(ids=ids))
    assert model.signature.inputs[0].dtype == "int32"
    assert model.signature.inputs[0].shape == shape
    same(model, made, ids=ids[: shape[0] or 9])
    same(model, made, ids=ids[: shape[0] or 9, : shape[1] or 5])


def test_classes_of_the_users_and_sequential_models(tmp_path: Path) -> None:
    own = Own()
    own(rows(2, 6))
    model = adopt(own, tmp_path / "own", look=look(x=rows(9, 6)))
    same(model, own, x=rows(9, 6))
    line = keras.Sequential(
        [keras.Input((6,)), L.Normalization(mean=1.0, variance=4.0), L.Dense(3)]
    )
    model = adopt(line, tmp_path / "line", look=look(pixels=rows(9, 6)))
    assert model.signature.inputs[0].name == "pixels"
    same(model, line, pixels=rows(9, 6))


def test_a_column_of_numbers_is_an_input_of_width_one(tmp_path: Path) -> None:
    age, size = keras.Input((1,), name="age"), keras.Input((1,), name="size")
    live = keras.Model([age, size], L.Dense(2)(L.Concatenate()([age, size])))
    model = adopt(live, tmp_path, look=look(age=numbers(9, 9), size=rows(9)))
    assert [(p.dtype, p.shape) for p in model.signature.inputs] == [("float32", (None, 1))] * 2


def test_what_follows_takes_it(untrained: Digits, tmp_path: Path) -> None:
    """The conversion to ONNX keeps the batch free and the answers."""
    model = adopt(untrained.model, tmp_path / "in", look=look(**untrained.rows))
    given = {"image": untrained.fresh["image"]}
    toy = Toy("digits", model, lambda n, seed: {"image": untrained.rows["image"][seed : seed + n]})
    with Lab([toy], tmp_path / "lab") as lab:
        made = lab.make(toy, (ToOnnx(),))
        assert isinstance(made, Model), made
        assert made.kind == "onnx"
        assert made.signature == model.signature
        found = lab.answers(made, given)["output"]
    assert np.allclose(found, untrained.model.predict(given["image"], verbose=0), atol=1e-5)


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", keras_files.FILES)
def test_hostile_files_are_refused_with_one_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, words = keras_files.FILES[name]
    (tmp_path / "model.keras").write_bytes(make())
    before = sorted(tmp_path.iterdir())
    with pytest.raises(WrongRequest) as refusal:
        adopt("model.keras", tmp_path / "in", look=look(x=rows(9, 6)))
    said = str(refusal.value)
    assert words in said, said
    assert "\n" not in said
    assert len(said) < 700
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", keras_files.HARMLESS)
def test_what_training_needs_is_never_looked_at(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.keras").write_bytes(keras_files.HARMLESS[name]())
    model = adopt(str(tmp_path / "model.keras"), tmp_path / "in", look=look(x=rows(9, 6)))
    assert answers(model, x=rows(9, 6))["output"].shape == (9, 5)


def test_code_in_a_file_runs_with_trust_alone(tmp_path: Path) -> None:
    live = keras.Sequential([keras.Input((6,)), L.Lambda(lambda x: x * 2), L.Dense(3)])
    path = tmp_path / "model.keras"
    live.save(path)
    with pytest.raises(WrongRequest, match=r"(?i)holds a lambda, which is code"):
        adopt(str(path), tmp_path / "in", look=look(x=rows(9, 6)))
    model = adopt(str(path), tmp_path / "in", look=look(x=rows(9, 6)), trust=True)
    same(model, live, x=rows(9, 6))


def test_models_that_cannot_be_run_are_one_sentence(
    untrained: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong: dict[str, tuple[Any, Any]] = {
        "no weights yet": (keras.Sequential([L.Dense(3)]), look(x=rows(9, 6))),
        "is no Keras model": (L.Dense(3), look(x=rows(9, 6))),
        "takes image and the data have": (untrained.model, look(a=rows(9, 3), b=rows(9, 4))),
        "does not run on rows of the data": (untrained.model, look(image=rows(9, 4, 8, 8))),
        "it needs data": (untrained.model, None),
    }
    for words, (given, seen) in wrong.items():
        with pytest.raises(WrongRequest, match=words) as refusal:
            adopt(given, tmp_path / "in", look=seen)
        assert "\n" not in str(refusal.value)
    with pytest.raises(WrongRequest, match=r"\.keras file is taken in with data"):
        open_model(untrained.path)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(WrongRequest, match="KERAS_BACKEND=torch before `import keras`"):
        adopt(untrained.model, tmp_path / "in", look=look(**untrained.rows))


def test_a_model_that_answers_otherwise_is_refused(
    untrained: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held against Keras' own predict, not against what was exported."""
    real = type(untrained.model).predict_on_batch
    monkeypatch.setattr(
        type(untrained.model), "predict_on_batch", lambda self, x: real(self, x) + 0.01
    )
    with pytest.raises(WrongRequest, match="answers otherwise as PyTorch's graph"):
        adopt(untrained.model, tmp_path, look=look(**untrained.rows))


def test_keras_is_asked_for_pytorch_and_for_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv("KERAS_HOME", raising=False)
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    with _torch_keras._by_pytorch():
        assert os.environ["KERAS_BACKEND"] == "torch"
        assert not Path(os.environ["KERAS_HOME"]).parent.is_dir()
    assert not {"KERAS_BACKEND", "KERAS_HOME"} & set(os.environ)
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    with _torch_keras._by_pytorch():  # it is imported already, and does not read it again
        pass
    assert os.environ["KERAS_BACKEND"] == "tensorflow"
    monkeypatch.delitem(sys.modules, "keras")
    with pytest.raises(WrongRequest, match="write KERAS_BACKEND=torch"), _torch_keras._by_pytorch():
        pass


@pytest.mark.parametrize("package", ["keras", "h5py"])
def test_without_the_extra_it_says_how_to_get_it(
    package: str, untrained: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sartor import runtimes

    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "sartor.runtimes._torch_keras")
    monkeypatch.delattr(runtimes, "_torch_keras")
    with pytest.raises(WrongRequest, match=rf"needs {package}; write: pip install 'sartor\[keras"):
        adopt(str(untrained.path), tmp_path, look=look(**untrained.rows))


# -- what it was compiled for -------------------------------------------------------------------


def _own_loss(right: Any, found: Any) -> Any:
    return keras.ops.mean(keras.ops.abs(found - right))


# The user's own, by names that Keras has too.


def huber(right: Any, found: Any) -> Any:
    return _own_loss(right, found)


def f1_score(right: Any, found: Any) -> Any:
    return _own_loss(right, found)


class Huber(keras.losses.Loss):  # type: ignore[misc]
    def call(self, right: Any, found: Any) -> Any:
        return _own_loss(right, found)


class Recall(keras.metrics.Mean):  # type: ignore[misc]
    pass


@pytest.mark.parametrize(
    ("loss", "metrics", "told"),
    [
        ("sparse_categorical_crossentropy", ["accuracy"], ("classification", "accuracy")),
        (lambda: keras.losses.BinaryCrossentropy(from_logits=True), ["acc"],
         ("classification", "accuracy")),
        ("binary_crossentropy", [lambda: keras.metrics.AUC(curve="PR"), "accuracy"],
         ("classification", "average_precision")),
        ("mse", ["mean_absolute_error"], ("regression", "mae")),
        (lambda: keras.losses.Huber(), [lambda: keras.metrics.R2Score()], ("regression", "r2")),
        ("mae", None, ("regression", None)),
        ("poisson", ["mae"], (None, None)),
        (lambda: _own_loss, ["mae"], (None, None)),
        (lambda: huber, ["mae"], (None, None)),
        (lambda: Huber(), ["mae"], (None, None)),
        ("mse", [lambda: f1_score, lambda: Recall()], ("regression", None)),
        (None, None, (None, None)),
    ],
)  # fmt: skip
def test_what_compile_said_is_read_off(
    loss: Any, metrics: Any, told: tuple[str | None, str | None], tmp_path: Path
) -> None:
    model = keras.Sequential([keras.Input((4,), name="x"), L.Dense(1)])
    if loss:
        made = [each() if callable(each) else each for each in metrics or ()]
        model.compile("adam", loss() if callable(loss) else loss, metrics=made)
    kind, metric = told
    right = {k: v for k, v in (("kind", kind), ("metric", metric)) if v}
    live = adopt(model, tmp_path / "live", look=look(x=rows(32, 4)))
    assert runtime("torch").purpose(live) == right
    model.save(tmp_path / "model.keras")
    file = adopt(tmp_path / "model.keras", tmp_path / "file", look=look(x=rows(32, 4)))
    assert runtime("torch").purpose(file) == right


def test_what_it_was_compiled_for_is_what_quality_is(tmp_path: Path) -> None:
    """Counts of 0 and 1 look like classes; the loss says that they are numbers."""
    model = keras.Sequential([keras.Input((4,), name="x"), L.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"])
    data = {"x": rows(400, 4), "label": numbers(3, 400) - 1}
    with Pool() as pool:
        for more, kind, metric in (
            ({}, "regression", "mae"),
            ({"metric": "mse"}, "regression", "mse"),
            ({"task": "classification"}, "classification", "accuracy"),
        ):
            spec = Spec(model=model, data=data, **more)
            ready = prepare(spec, tmp_path / metric, pool)
            assert (ready.task.kind, ready.task.metric) == (kind, metric)
            assert any("compiled for regression" in each for each in ready.notes) != bool(more)


@pytest.mark.parametrize(
    ("loss", "metric", "label", "judged", "said"),
    [
        ("mse", "accuracy", "ones", ("regression", "mae"), "not accuracy, which does not fit"),
        ("sparse_categorical_crossentropy", "accuracy", None, ("classification", "agreement"),
         "not accuracy, which does not fit"),
        ("sparse_categorical_crossentropy", "accuracy", "halves", ("regression", "mae"),
         "compiled for classification, which does not fit these rows: it is judged as regression"),
    ],
)  # fmt: skip
def test_what_does_not_fit_of_what_it_was_compiled_for_is_said(
    loss: str, metric: str, label: str | None, judged: tuple[str, str], said: str, tmp_path: Path
) -> None:
    width = 3 if label is None else 1
    model = keras.Sequential([keras.Input((4,), name="x"), L.Dense(width)])
    model.compile("adam", loss, metrics=[metric])
    ones = numbers(3, 400) - 1
    labels = {None: {}, "ones": {"label": ones}, "halves": {"label": ones + 0.5}}[label]
    with Pool() as pool:
        spec = Spec(model=model, data={"x": rows(400, 4), **labels})
        ready = prepare(spec, tmp_path, pool)
    assert (ready.task.kind, ready.task.metric) == judged
    assert any(said in each for each in ready.notes)


# -- whole runs ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_on_a_file_and_on_a_live_model(
    trained: Digits, tmp_path: Path, sartor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command on the file and on a factory: certified, verified, and nothing in the home."""
    import sartor as package

    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    data = str(tmp_path / "eval.npz")
    np.savez(data, **trained.rows)  # type: ignore[arg-type]
    limits = ["--limit", "accuracy >= baseline - 0.03", "--limit", "size <= 0.5 x baseline"]
    out = tmp_path / "file"
    said = sartor("optimize", trained.path, "--data", data, *limits, "--trials", "5", "--out", out)
    assert said.status == 0, said.err
    journal = Journal(out / "run.jsonl")
    first = journal.last("request")
    assert first is not None
    assert first["request"]["kind"] == "torch"
    tried = [[step["technique"] for step in each["recipe"]] for each in journal.events("trial")]
    assert ["to-onnx"] in tried
    with package.load(out) as best:
        found = best.predict({"image": trained.fresh["image"]})["output"].argmax(1)
    assert (found == trained.fresh["label"]).mean() > 0.9
    fresh = str(tmp_path / "fresh.npz")
    np.savez(fresh, **trained.fresh)  # type: ignore[arg-type]
    assert package.verify(out, fresh, original=trained.model)["status"] in (0, 4)
    (tmp_path / "net.py").write_text(SOURCE.replace("digits.keras", str(trained.path)))
    model = f"{tmp_path / 'net.py'}:make"
    said = sartor("profile", model, "--data", data, "--json")
    assert said.status == 0, said.err
    parts = {row["name"]: row for row in said.json["rows"]}
    assert parts["second"]["macs"] == 32 * 64 * 9 * 16
    assert not (home / ".keras").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNetV2", "EfficientNetB0"])
def test_applications_of_keras(name: str, tmp_path: Path) -> None:
    """Their architectures, with weights that were never trained: files are read, answers kept."""
    live = getattr(keras.applications, name)(input_shape=(32, 32, 3), weights=None, classes=10)
    path = tmp_path / "net.keras"
    live.save(path)
    pixels = np.abs(rows(9, 32, 32, 3)) * 100
    model = adopt(str(path), tmp_path / "in", look=look(pixels=pixels))
    assert model.signature.inputs[0].shape == (None, 32, 32, 3)
    same(model, live, pixels=pixels)
