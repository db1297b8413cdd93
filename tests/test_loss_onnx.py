"""What training holds answers against: forms of labels, class weights, rows that a user changes."""

from __future__ import annotations

import dataclasses
import functools
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Case, save_perceptron

import sartor
from sartor.bench import LocalBench
from sartor.contracts import (
    Failed,
    Model,
    Port,
    Signature,
    Step,
    Target,
    Task,
    Training,
    Unneeded,
)
from sartor.data import read
from sartor.lab import Toy, ToyBench
from sartor.records import Journal
from sartor.registry import open_model, runtime
from sartor.techniques._graph_onnx import Graph
from sartor.techniques._graph_onnx import read as graph_of
from sartor.techniques.prune_onnx import PruneMagnitude
from sartor.techniques.recover_onnx import Recover
from sartor.techniques.sparsify_onnx import GradualPrune
from sartor.techniques.structured_onnx import StructuredPrune
from sartor.testing_onnx import save_toys, toy_batch
from sartor.user_functions import Augmentation, augmentation

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from stopping import stopped  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from sartor.techniques import _training_onnx as trainer  # noqa: E402
from sartor.techniques._loss_onnx import Loss, Plan, class_weights  # noqa: E402

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "threads", lambda: 1)


def bench(folder: Path, name: str = "mlp", **facts: Any) -> ToyBench:
    (folder / "toys").mkdir(exist_ok=True)
    path = save_toys(folder / "toys")[name]
    toy = Toy(name, runtime("onnx").open(path), functools.partial(toy_batch, name))
    return ToyBench(toy, folder / "bench", training=Training(120, 0.01, 10**12), **facts)


def worn(made: ToyBench) -> Graph:
    """The toy with noise on its matrices: something to win back."""
    graph, rng = graph_of(made.toy.model), np.random.default_rng(0)
    for name, _ in list(graph.constants()):
        value = graph.constant(name)
        if value.ndim > 1:
            noise = 0.5 * value.std() * rng.standard_normal(value.shape)
            graph.set_constant(name, (value + noise).astype(np.float32))
    return graph


class Fixed:
    """A bench of which only the task, labels and lessons are asked for."""

    def __init__(
        self, task: Task, label: Any = (), taught: Any = None, shape: Any = (), lengths: Any = None
    ) -> None:
        self.task, self.label, self.taught = task, np.asarray(label), taught
        port = Port(task.output, "float32", tuple(shape))
        self.teacher, self._lengths = Model("onnx", None, Signature((), (port,))), lengths

    def batches(self, split: str, size: int) -> Any:
        for at in range(0, len(self.label), size):
            yield {"label": self.label[at : at + size]}

    def remember(self, key: str, compute: Any, *, shared: bool = False) -> Any:
        return compute()

    def teach(self, batch: Any, sharers: int = 1) -> Any:
        return self.taught if isinstance(self.taught, dict) else {"y": self.taught}

    def lengths(self, split: str) -> Any:
        return self._lengths

    def count(self, split: str) -> int:
        return len(self.label)

    def pick(self, split: str, rows: np.ndarray) -> Any:
        return {"label": self.label[rows]}


def loss_of(task: Task, given: np.ndarray, label: np.ndarray, **plan: Any) -> float:
    made = Fixed(task, label, shape=(None, *given.shape[1:]))
    loss = Loss(Plan(1, **{"teacher": 0.0, **plan}), made)  # type: ignore[arg-type]
    return float(loss({"y": torch.from_numpy(given)}, {"label": label}, None))


# -- forms of labels -----------------------------------------------------------------------------


def test_labels_of_every_form() -> None:
    logits = RNG.normal(size=(6, 3)).astype(np.float32)
    chosen = np.array([0, 1, 2, 2, 1, 0])
    plain = Task("classification", "y", "accuracy", classes=3, form="logits")
    right = float(F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(chosen)))
    assert loss_of(plain, logits, chosen) == pytest.approx(right)
    assert loss_of(plain, logits, chosen[:, None]) == pytest.approx(right)
    assert loss_of(plain, logits, chosen.astype(float)) == pytest.approx(right)
    shares = dataclasses.replace(plain, form="probabilities")
    made = torch.softmax(torch.from_numpy(logits), 1).numpy()
    assert loss_of(shares, made, chosen) == pytest.approx(right, rel=1e-5)

    one = Task("classification", "y", "auc", classes=2, form="logits")
    two = (chosen > 0).astype(np.int64)
    given = logits[:, :1]
    right = float(
        F.binary_cross_entropy_with_logits(
            torch.from_numpy(given[:, 0]), torch.from_numpy(two).float()
        )
    )
    assert loss_of(one, given, two) == pytest.approx(right)
    assert loss_of(one, given[:, 0], two) == pytest.approx(right)
    share = torch.sigmoid(torch.from_numpy(given)).numpy()
    as_share = dataclasses.replace(one, form="probabilities")
    assert loss_of(as_share, share, two) == pytest.approx(right, rel=1e-5)

    dense = Task("segmentation", "y", "mean_iou", classes=3, form="logits")
    pictures = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
    truth = RNG.integers(0, 3, (2, 4, 5))
    right = float(F.cross_entropy(torch.from_numpy(pictures), torch.from_numpy(truth)))
    assert loss_of(dense, pictures, truth) == pytest.approx(right)
    last = np.moveaxis(pictures, 1, -1)
    assert loss_of(dense, last, truth) == pytest.approx(right)
    without = truth.copy()
    without[0] = -1  # which no class is
    half = float(F.cross_entropy(torch.from_numpy(pictures[1:]), torch.from_numpy(truth[1:])))
    assert loss_of(dense, pictures, without) == pytest.approx(half / 2)

    numbers = Task("regression", "y", "mse")
    value = RNG.normal(size=6)
    right = float(np.square(logits[:, 0] - value).mean())
    assert loss_of(numbers, logits[:, :1], value) == pytest.approx(right, rel=1e-5)


TAGS = Task("segmentation", "y", "accuracy", classes=9, form="logits")


@pytest.mark.parametrize("last", [True, False])
def test_sequences_as_long_as_there_are_classes(last: bool) -> None:
    shape = (None, None, 9) if last else (None, 9, None)
    loss = Loss(Plan(1, teacher=0.0), Fixed(TAGS, shape=shape, lengths=np.array([8, 9, 10])))  # type: ignore[arg-type]
    for length in (8, 9, 10):
        label = RNG.integers(0, 9, (4, 12))  # as wide as the longest row of all
        given = 20 * torch.eye(9)[torch.from_numpy(label[:, :length])]
        answers = {"y": given if last else given.movedim(-1, 1)}
        assert float(loss(answers, {"label": label}, None)) == pytest.approx(0, abs=1e-5)


def test_an_axis_of_classes_that_cannot_be_told_is_refused(tmp_path: Path) -> None:
    made = bench(tmp_path)
    made.task = TAGS
    for shape, said in (((None, None, 9), None), ((None, 9, 9), r"[?, 9, 9]"), ((None,) * 3, "?")):
        port = Port("y", "float32", shape)
        made.teacher = dataclasses.replace(made.toy.model, signature=Signature((), (port,)))
        found = trainer.untrainable(made.toy.model, made, 1.0)
        assert found is None if said is None else "cannot be told" in found and said in found


def test_answers_without_a_row_for_each_do_not_teach() -> None:
    plain = Task("classification", "y", "accuracy", classes=4, form="logits")
    given = RNG.normal(size=(6, 4)).astype(np.float32)
    states = RNG.normal(size=(2, 6, 5)).astype(np.float32)
    taught = {"y": given, "h": states, "scale": np.float32(1), "other": given + 1}
    for rows in (np.arange(6), None):
        made = Fixed(plain, np.zeros(6, np.int64), taught, (None, 4))
        loss = Loss(Plan(1, teacher=1.0), made)  # type: ignore[arg-type]
        answers = {name: torch.from_numpy(np.array(value)) for name, value in taught.items()}
        assert float(loss(answers, {"label": made.label}, rows)) == pytest.approx(0, abs=1e-6)
        answers["h"] = answers["h"] + 1
        assert float(loss(answers, {"label": made.label}, rows)) == pytest.approx(0, abs=1e-6)
        answers["other"] = answers["other"] + 1
        assert float(loss(answers, {"label": made.label}, rows)) > 0.01


def test_answers_as_long_as_their_batch_teach() -> None:
    """Rows of like length are together where answers are remembered, not where they are used."""

    class Tokens(Fixed):
        def pick(self, split: str, rows: np.ndarray) -> Any:
            width = int(self._lengths[rows].max())
            return {"x": np.zeros((len(rows), width)), "label": self.label[rows]}

        def teach(self, batch: Any, sharers: int = 1) -> Any:
            return {"y": np.zeros((*batch["x"].shape, 9), np.float32)}

    rows = np.array([0, 40, 63])
    made = Tokens(
        TAGS, np.zeros((64, 80), np.int64), shape=(None, None, 9), lengths=np.arange(4, 68)
    )
    loss = Loss(Plan(1, batch=8, teacher=0.5), made)  # type: ignore[arg-type]
    for each in (rows, rows[:2]):
        batch = made.pick("train", each)
        answers = {"y": torch.zeros(*batch["x"].shape, 9)}
        assert float(loss(answers, batch, each)) == pytest.approx(0.5 * np.log(9), rel=1e-5)


def test_without_labels_the_original_alone_teaches() -> None:
    task = Task("classification", "y", "agreement", labelled=False, classes=3, form="logits")
    given = RNG.normal(size=(6, 3)).astype(np.float32)
    loss = Loss(Plan(1, teacher=0.0), Fixed(task, taught=given))  # type: ignore[arg-type]
    batch = {"x": given}
    assert float(loss({"y": torch.from_numpy(given)}, batch, None)) == pytest.approx(0, abs=1e-6)
    assert float(loss({"y": torch.from_numpy(given[::-1].copy())}, batch, None)) > 0.1


# -- class weights -------------------------------------------------------------------------------

TASK = Task("classification", "y", "recall", classes=2, form="logits")


def test_every_class_counts_the_same() -> None:
    label = np.repeat([0, 1], [97, 3])
    weights = class_weights(Fixed(TASK, label))  # type: ignore[arg-type]
    assert weights == pytest.approx([100 / (2 * 97), 100 / (2 * 3)])
    assert weights[label].mean() == pytest.approx(1)
    as_floats = class_weights(Fixed(TASK, label.astype(float)))  # type: ignore[arg-type]
    assert as_floats == pytest.approx(weights)
    three = dataclasses.replace(TASK, classes=3)
    absent = class_weights(Fixed(three, label))  # type: ignore[arg-type]
    assert absent == pytest.approx([100 / (2 * 97), 100 / (2 * 3), 1])
    given = RNG.normal(size=(100, 2)).astype(np.float32)
    apart = [loss_of(TASK, given[label == each], label[label == each]) for each in (0, 1)]
    balanced = loss_of(TASK, given, label, balance="inverse")
    assert balanced == pytest.approx(sum(apart) / 2, rel=1e-5)
    assert abs(balanced - loss_of(TASK, given, label)) > 0.01


def test_lessons_count_as_labels_do() -> None:
    label = np.repeat([0, 1], [9, 1])
    given, taught = RNG.normal(size=(2, 10, 2)).astype(np.float32)

    def lesson(rows: slice, balance: str) -> float:
        bench = Fixed(TASK, label, taught[rows])
        loss = Loss(Plan(1, teacher=1.0, balance=balance), bench)  # type: ignore[arg-type]
        return float(loss({"y": torch.from_numpy(given[rows])}, {"label": label[rows]}, None))

    apart = [lesson(rows, "none") for rows in (slice(0, 9), slice(9, 10))]
    assert lesson(slice(0, 10), "inverse") == pytest.approx(sum(apart) / 2, rel=1e-5)


def test_what_cannot_be_balanced_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unneeded, match="about equally frequent"):
        class_weights(Fixed(TASK, np.repeat([0, 1], [51, 49])))  # type: ignore[arg-type]
    for wrong in (np.zeros((9, 2), np.int64), np.full(9, 0.5), np.full(9, -1)):
        with pytest.raises(Failed, match="where labels are whole numbers, one a row"):
            class_weights(Fixed(TASK, wrong))  # type: ignore[arg-type]
    made = bench(tmp_path)
    changed = dataclasses.replace(made.toy.model, lineage=(Step(PruneMagnitude(), ("one",)),))
    for cls in (Recover, GradualPrune):
        assert cls(balance="inverse").refuse(changed, made) is None
    made.task = dataclasses.replace(made.task, kind="regression")
    for cls in (Recover, GradualPrune):
        reason = cls(balance="inverse").refuse(changed, made)
        assert reason == "balance=inverse: a task of regression has no classes to balance"
        assert cls().refuse(changed, made) is None
    made.task = dataclasses.replace(made.task, kind="classification", labelled=False)
    reason = Recover(balance="inverse").refuse(changed, made)
    assert reason == "balance=inverse: there are no labels that say which class is rare"


# -- a function of the user's --------------------------------------------------------------------

FUNCTIONS = """
    import numpy as np

    seen = []

    def shake(inputs, rng):
        return {name: each + rng.normal(0, 0.3, each.shape).astype(each.dtype)
                for name, each in inputs.items()}

    def wide(inputs, rng):
        return {name: each.astype(np.float64) for name, each in inputs.items()}

    def longer(inputs, rng):
        return {name: np.repeat(each, 2, axis=0) for name, each in inputs.items()}

    def other(inputs, rng):
        return {"pixels_": 3}

    def nothing(inputs, rng):
        inputs.clear()

    def breaks(inputs, rng):
        raise ValueError("no room\\nto turn")

    def later(inputs, rng):
        seen.append(rng)
        if len(seen) == 9:
            raise ValueError("no room to turn")
        return inputs
"""


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    (tmp_path / "changes.py").write_text(textwrap.dedent(FUNCTIONS))
    return tmp_path / "changes.py"


def test_batches_are_changed_by_seed_and_step_alone(functions: Path) -> None:
    shake = augmentation(f"{functions}:shake")
    batch = {"x": np.zeros((4, 3), np.float32), "label": np.arange(4)}
    once, again, other = shake(batch, 0, 7), shake(batch, 0, 7), shake(batch, 0, 8)
    assert np.array_equal(once["x"], again["x"])
    assert not np.array_equal(once["x"], other["x"])
    assert np.array_equal(once["label"], batch["label"])
    assert not batch["x"].any()
    functions.write_text(functions.read_text() + "\n")
    assert augmentation(f"{functions}:shake").digest != shake.digest


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("wide", r"made x of float32 \[4, 3\] into float64 \[4, 3\]; it must keep types"),
        ("longer", r"made x of float32 \[4, 3\] into float32 \[8, 3\]; it must keep types"),
        ("other", "returned pixels_; it must return x$"),
        ("nothing", "failed: AttributeError: 'NoneType' object has no attribute 'items'$"),
        ("breaks", "failed: ValueError: no room$"),
    ],
)
def test_a_function_that_breaks_its_word(name: str, sentence: str, functions: Path) -> None:
    batch = {"x": np.zeros((4, 3), np.float32), "label": np.arange(4)}
    with pytest.raises(Failed, match=rf"changes\.py:{name} {sentence}"):
        augmentation(f"{functions}:{name}")(batch, 0, 7)


def test_training_batches_alone_are_changed_and_the_original_answers_them(tmp_path: Path) -> None:
    given: list[Any] = []
    answered: list[Any] = []
    made = bench(tmp_path)
    (name,) = (port.name for port in made.toy.model.signature.inputs)

    def shift(batch: Any, *seed: int) -> Any:
        given.append(seed)
        return {**batch, name: batch[name] + 100}

    made.augment = shift
    teach = made.teach
    made.teach = lambda batch, sharers=1: (answered.append(batch[name].mean()), teach(batch))[1]  # type: ignore[method-assign]
    training = trainer._Training(graph_of(made.toy.model), trainer.Plan(4, teacher=1.0), made)
    answered.clear()  # what the norms saw
    for at in range(2):
        training.step(at)
    assert given == [(0, 0), (0, 1)]
    assert [round(each, -1) for each in answered if each > 50] == [100, 100]
    answered.clear()
    training.judged()
    assert len(given) == 2
    assert max(answered) < 50


def test_an_interrupted_training_on_changed_rows_ends_as_one_that_was_not(
    tmp_path: Path, functions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(tmp_path, augment=augmentation(f"{functions}:shake"))
    graphs = [worn(made) for _ in range(4)]
    plan = trainer.Plan(30)
    monkeypatch.setattr(trainer, "_PATIENCE", 99)
    trainer.train(graphs[0], plan, made)
    stopped(lambda: trainer.train(graphs[1], plan, made), 17)
    trainer.train(graphs[2], plan, made)
    assert graphs[2].digest() == graphs[0].digest() != worn(made).digest()
    made.augment = None
    trainer.train(graphs[3], plan, made)
    assert graphs[3].digest() != graphs[0].digest()


def test_gradients_are_clipped(tmp_path: Path) -> None:
    made = bench(tmp_path)
    training = trainer._Training(graph_of(made.toy.model), trainer.Plan(4), made)
    with trainer.settings(0, 1):
        for weight in training.net.weights:
            weight.grad = torch.full_like(weight, 1e4)
        training._tame()
    whole = torch.cat([weight.grad.reshape(-1) for weight in training.net.weights])
    assert float(whole.norm()) == pytest.approx(trainer._CLIP, rel=1e-3)


# -- real: is it a 3? ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Threes:
    """A network that tells threes, of which there are few, and rows that trained nothing."""

    bench: LocalBench
    fresh: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def threes(tmp_path_factory: pytest.TempPathFactory) -> Threes:
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    place = tmp_path_factory.mktemp("threes")
    pixels, digit = load_digits(return_X_y=True)
    pixels, label = (pixels / 16).astype(np.float32), (digit == 3).astype(np.int64)
    order = np.random.default_rng(0).permutation(len(label))
    yes, no = (order[label[order] == each] for each in (1, 0))
    seen = np.concatenate([yes[:27], no[:873]])  # 3 %
    fresh = np.concatenate([yes[27:], no[873:]])
    model = MLPClassifier((64, 64), max_iter=30, random_state=0)
    with pytest.warns(match="Maximum iterations"):
        model.fit(pixels[seen], label[seen])
    layers = list(zip(model.coefs_, model.intercepts_, strict=True))
    path = save_perceptron(place / "threes.onnx", layers, ("pixels", "logit"))
    opened = open_model(path)
    split = np.random.default_rng(1).permutation(np.repeat(["train", "search"], [600, 300]))
    split = np.concatenate([split, ["holdout"] * 9])
    arrays = {"pixels": np.concatenate([pixels[seen], pixels[fresh[:9]]])}
    arrays |= {"label": np.concatenate([label[seen], label[fresh[:9]]]), "split": split}
    data = read(arrays, place / "data", opened.signature)
    (place / "scratch").mkdir()
    made = LocalBench(
        model=opened, teacher=opened, limits=(), target=Target(), train=data.train,
        search=data.search, scratch=place / "scratch", memory=place / "memory",
        task=Task("classification", "logit", "recall", classes=2, form="logits"),
        training=Training(400, 0.01, 64 * 64 + 64 * 64 + 64 + 80 * (4 * 64 + 1)),
    )  # fmt: skip
    return Threes(made, {"pixels": pixels[fresh], "label": label[fresh]})


def test_balance_finds_more_of_a_rare_class(threes: Threes) -> None:
    from sklearn.metrics import recall_score

    bench = threes.bench
    thin = StructuredPrune(share=0.2).apply(bench.model, bench)
    found = {}
    for balance in ("none", "inverse"):
        made = Recover(effort=0.3, teacher=0.0, balance=balance).apply(thin, bench)
        with runtime("onnx").start(made, Target()) as session:
            logit = session({"pixels": threes.fresh["pixels"]})["logit"]
        found[balance] = recall_score(threes.fresh["label"], logit.reshape(-1) > 0)
    print(found)
    assert found["inverse"] > found["none"]


# -- inside a run --------------------------------------------------------------------------------

THIN = {"technique": "structured-prune", "share": 0.3}
TRAIN = {"technique": "recover", "effort": 1.0, "rate": 0.02}


def run_with(digits: Case, place: Path, augment: Any, **more: Any) -> Any:
    split = np.repeat(["train", "search", "holdout"], [400, 200, 400])
    return sartor.optimize(
        digits.model, digits.data(place, split=split), ["accuracy >= baseline - 0.1"], trials=3,
        out=place / "run", recipes=[[THIN], [THIN, TRAIN]], augment=augment, **more,
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_trains_on_changed_rows(digits: Case, functions: Path, tmp_path: Path) -> None:
    run = run_with(digits, tmp_path, f"{functions}:shake")
    thin, trained = run.trials[1:3]
    assert trained.state == "done", trained.reason
    assert trained.figures["accuracy"] > thin.figures.get("accuracy", 0)
    told = Journal(run.folder / "run.jsonl").last("request")
    assert told is not None
    assert told["request"]["augment"] == augmentation(f"{functions}:shake").digest
    assert told["spec"]["augment"] == f"{functions}:shake"
    with pytest.raises(
        sartor.WrongRequest, match=r"runs the code .*changes\.py:shake: write --tru"
    ):
        sartor.optimize(resume=run.folder, trials="+1")
    functions.write_text(functions.read_text() + "\n# another text\n")
    with pytest.raises(sartor.WrongRequest, match="augment"):
        sartor.optimize(resume=run.folder, trials="+1", trust=True)


def test_a_function_that_breaks_leaves_the_run_without_training(
    digits: Case, functions: Path, tmp_path: Path
) -> None:
    run = run_with(digits, tmp_path, f"{functions}:breaks")
    assert run.status in (0, 3, 4)
    trained = run.trials[2]
    assert trained.state == "refused"
    assert trained.reason == (
        f"no training was granted: {functions}:breaks failed: ValueError: no room"
    )


def test_a_function_that_breaks_on_the_way_fails_its_trial(tmp_path: Path, functions: Path) -> None:
    made = bench(tmp_path, augment=augmentation(f"{functions}:later"))
    with pytest.raises(Failed, match=r"later failed: ValueError: no room to turn"):
        trainer.train(graph_of(made.toy.model), trainer.Plan(30), made)


def test_how_it_is_named(functions: Path, tmp_path: Path) -> None:
    from sartor.references import digest, reference_to
    from sartor.spec import Spec, load, merge

    assert merge(Spec(), {"augment": toy_batch}).augment == reference_to(toy_batch)
    assert reference_to(toy_batch).endswith("testing_onnx.py:toy_batch")
    assert digest("sartor.testing_onnx:toy_batch")
    for wrong in ("changes.py", 3, lambda inputs, rng: inputs, functools.partial(toy_batch)):
        with pytest.raises(sartor.WrongRequest, match=r"augment must be .*file\.py:function|text"):
            merge(Spec(), {"augment": wrong})
    (tmp_path / "request.toml").write_text('[data]\naugment = "changes.py:shake"\n')
    assert load(tmp_path / "request.toml").augment == f"{functions}:shake"
    with pytest.raises(sartor.WrongRequest, match="has no function 'none'"):
        augmentation(f"{functions}:none")


def test_facts_know_the_function(threes: Threes) -> None:
    plain = threes.bench.facts()
    assert "augment" not in plain
    other = dataclasses.replace(threes.bench, augment=Augmentation("changes.py:shake", "abc"))
    assert other.facts()["augment"] == "abc"


# -- scales ---------------------------------------------------------------------------------------


def test_squared_errors_are_told_in_the_spread_of_the_original() -> None:
    """Labels and lessons weigh alike whatever the unit, and one row alone has a loss too."""

    def loss(unit: float, rows: int) -> float:
        taught = unit * np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
        made = Fixed(Task("regression", "y", "mae"), taught[:, 0], shape=(None, 1))
        made.pick = lambda part, which: {"which": which, "label": taught[which, 0]}  # type: ignore
        made.teach = lambda batch, sharers=1: {"y": 0.5 * taught[batch["which"]]}  # type: ignore
        given, which = torch.from_numpy(0.9 * taught[:rows]), np.arange(rows)
        found = Loss(Plan(1, teacher=0.5), made)  # type: ignore[arg-type]
        return float(found({"y": given}, made.pick("train", which), which))

    assert np.isfinite(loss(1.0, 1))
    assert loss(1e5, 1) == pytest.approx(loss(1.0, 1), rel=1e-3)
    assert loss(1e-3, 64) == pytest.approx(loss(1.0, 64), rel=1e-3)


def test_answers_that_take_too_much_room_are_not_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = Task("classification", "y", "accuracy", classes=3, form="logits")
    made = Fixed(task, [0, 1, 2, 0], np.zeros((4, 3), np.float32), shape=(None, 3))
    monkeypatch.setattr(made, "remember", lambda *a, **k: pytest.fail("it was remembered"))
    monkeypatch.setattr("sartor.techniques._loss_onnx._ROOM", 10)
    loss = Loss(Plan(1, teacher=1.0), made)  # type: ignore[arg-type]
    loss.learn(4)
    given = torch.zeros(4, 3)
    assert float(loss({"y": given}, {"label": made.label}, np.arange(4))) == pytest.approx(0.0)
