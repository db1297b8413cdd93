import dataclasses
import textwrap
import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from sartor.contracts import Port, Signature, Task, WrongRequest
from sartor.definitions import DEFINITIONS, KINDS, known, lookup
from sartor.limits import parse
from sartor.metrics import Truth, check_labels, default_limit, find, infer_task, primary

N = 400


def task(kind="classification", classes=None, labelled=True, metric="accuracy", form=None):
    return Task(kind, "out", metric, labelled, classes, form)


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.fixture(params=[2, 5])
def case(request):
    rng = np.random.default_rng(request.param)
    classes = request.param
    label = rng.integers(0, classes, N)
    logits = rng.normal(size=(N, classes)) + 1.2 * np.eye(classes)[label]
    return classes, label, logits.astype(np.float32)


def value(name, answers, truth, a_task):
    return find(name, a_task).value(answers, truth)


@pytest.mark.parametrize("form", ["logits", "probabilities"])
def test_classification_agrees_with_sklearn(case, form):
    classes, label, logits = case
    chances = softmax(logits.astype(np.float64))
    answers = logits if form == "logits" else chances
    decided, truth, t = logits.argmax(1), Truth(label=label), task(classes=classes)
    average = "binary" if classes == 2 else "macro"
    expected = {
        "accuracy": sk.accuracy_score(label, decided),
        "balanced_accuracy": sk.balanced_accuracy_score(label, decided),
        "precision": sk.precision_score(label, decided, average=average),
        "recall": sk.recall_score(label, decided, average=average),
        "f1": sk.f1_score(label, decided, average=average),
        "f1_macro": sk.f1_score(label, decided, average="macro"),
        "f1_weighted": sk.f1_score(label, decided, average="weighted"),
        "precision_weighted": sk.precision_score(label, decided, average="weighted"),
        "log_loss": sk.log_loss(label, chances),
        "neg_log_loss": -sk.log_loss(label, chances),
        "brier": sk.brier_score_loss(label, chances if classes > 2 else chances[:, 1]),
        "auc": sk.roc_auc_score(
            label, chances if classes > 2 else chances[:, 1], multi_class="ovr"
        ),
        "average_precision": sk.average_precision_score(
            label if classes == 2 else np.eye(classes)[label],
            chances[:, 1] if classes == 2 else chances,
        ),
    }
    if classes > 2:
        expected["top2_accuracy"] = sk.top_k_accuracy_score(label, chances, k=2)
    for name, wanted in expected.items():
        assert value(name, answers, truth, t) == pytest.approx(wanted, abs=1e-9), name


def test_one_column_is_two_classes():
    rng = np.random.default_rng(0)
    label, z = rng.integers(0, 2, N), rng.normal(size=(N, 1)) * 3
    z = z + 2 * label[:, None]
    two = np.hstack([np.zeros_like(z), z])
    chance = 1 / (1 + np.exp(-z))
    t, truth = task(classes=2), Truth(label=label)
    for name in ("accuracy", "log_loss", "brier", "auc", "f1", "calibration"):
        wanted = value(name, two, truth, t)
        for answers in (z, z[:, 0], chance, chance[:, 0]):
            assert value(name, answers, truth, t) == pytest.approx(wanted, abs=1e-6), name


def test_the_form_told_once_holds_for_small_samples():
    """Two logits within 0 and 1 are no probabilities, and a candidate's probabilities that miss
    the sum of 1 by rounding are no logits."""
    truth = Truth(label=np.array([1, 1]))
    logits = np.array([[0.2], [0.4]])
    assert value("accuracy", logits, truth, task(classes=2, form="logits")) == 1
    assert value("accuracy", logits, truth, task(classes=2, form="probabilities")) == 0
    rounded = np.array([[0.9, 0.11], [0.2, 0.81]])
    loss = value("log_loss", rounded, truth, task(classes=2, form="probabilities"))
    assert loss == pytest.approx(-np.log([0.11 / 1.01, 0.81 / 1.01]).mean())


def test_classes_as_answers():
    truth, t = Truth(label=np.array([0, 1, 2])), task(classes=3, form="classes")
    assert value("accuracy", np.array([0, 2, 2]), truth, t) == pytest.approx(2 / 3)
    with pytest.raises(WrongRequest, match="holds classes"):
        value("log_loss", np.array([0, 2, 2]), truth, t)


def test_calibration_by_hand():
    label = np.array([1, 1, 0, 1])
    chance = np.array([0.9, 0.9, 0.9, 0.6])
    # Bin of 0.9: sure 0.9, right 2/3; bin of 0.6: sure 0.6, right 1.
    wanted = 0.75 * abs(0.9 - 2 / 3) + 0.25 * abs(0.6 - 1)
    assert value("calibration", chance, Truth(label=label), task(classes=2)) == pytest.approx(
        wanted
    )


def test_resamples_without_a_class_are_undefined_not_errors():
    truth, t = Truth(label=np.ones(5, int)), task(classes=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(value("auc", np.linspace(0, 1, 5), truth, t))
        assert np.isnan(value("average_precision", np.linspace(0, 1, 5), truth, t))
        assert value("f1", np.zeros(5), truth, t) == 0
        assert np.isnan(value("accuracy", np.zeros((0, 2)), Truth(label=np.zeros(0, int)), t))


def test_answers_that_are_not_finite_are_wrong():
    label = np.array([0, 0, 1])
    answers = np.array([[np.nan, 0], [3, 0], [np.inf, -np.inf]])
    truth, t = Truth(label=label, reference=np.eye(3)[:, :2]), task(classes=2)
    assert find("accuracy", t).scores(answers, truth).tolist() == [0, 1, 0]
    assert find("top1_accuracy", t).scores(answers, truth).tolist() == [0, 1, 0]
    assert find("agreement", t).scores(answers, truth).tolist() == [0, 0, 0]
    assert find("flips", t).scores(answers, truth).tolist() == [1, 1, 1]
    assert find("brier", t).scores(answers, truth)[0] == 1
    assert find("cosine", t).scores(answers, truth)[0] == -1
    assert np.isnan(find("log_loss", t).value(answers, truth))
    assert np.isnan(find("rel_error", t).value(answers, truth))
    assert find("recall", t).value(answers, truth) == 0


def test_regression_agrees_with_sklearn():
    rng = np.random.default_rng(1)
    for width in (1, 3):
        label = rng.normal(size=(N, width)) + 3
        answers = label + rng.normal(size=(N, width))
        truth, t = Truth(label=label), task("regression")
        expected = {
            "mse": sk.mean_squared_error(label, answers),
            "mae": sk.mean_absolute_error(label, answers),
            "rmse": sk.root_mean_squared_error(label, answers),
            "mape": sk.mean_absolute_percentage_error(label, answers),
            "r2": sk.r2_score(label, answers),
            "neg_mae": -sk.mean_absolute_error(label, answers),
        }
        for name, wanted in expected.items():
            assert value(name, answers, truth, t) == pytest.approx(wanted), name
    flat = Truth(label=label[:, 0])
    assert value("mse", answers[:, :1], flat, t) == pytest.approx(
        ((answers[:, 0] - label[:, 0]) ** 2).mean()
    )


def test_ranking_agrees_with_sklearn_also_with_ties():
    rng = np.random.default_rng(2)
    group = rng.integers(100, 140, 600)
    label = rng.integers(0, 4, 600)
    score = np.round(rng.normal(size=600) + label / 2, 1)  # rounding makes ties
    truth, t = Truth(label=label, group=group), task("ranking")
    for k in (3, 10, None):
        wanted = [
            sk.ndcg_score(label[group == g][None], score[group == g][None], k=k)
            for g in np.unique(group)
        ]
        name = "ndcg" if k is None else f"ndcg@{k}"
        np.testing.assert_allclose(find(name, t).scores(score, truth), wanted, atol=1e-12)
    unit = find("ndcg", t).unit(truth)
    assert unit.max() + 1 == len(np.unique(group))
    assert find("accuracy", task(classes=2)).unit(truth) is None


def test_mean_average_precision_agrees_with_sklearn():
    rng = np.random.default_rng(3)
    group, label = rng.integers(0, 30, 500), (rng.random(500) < 0.2).astype(int)
    score = rng.normal(size=500) + label
    truth, t = Truth(label=label, group=group), task("ranking")
    wanted = [
        sk.average_precision_score(label[group == g], score[group == g])
        if label[group == g].any()
        else 0.0
        for g in range(30)
    ]
    np.testing.assert_allclose(find("map", t).scores(score, truth), wanted, atol=1e-12)
    # Ranks 2 and 4 of four are relevant: (1/2 + 2/4) / 2; of the first three the first alone,
    # of the two that could stand there; and ties gain nothing.
    four = Truth(label=np.array([0, 1, 0, 1]), group=np.zeros(4))
    falling = np.array([4.0, 3.0, 2.0, 1.0])
    assert find("map", t).value(falling, four) == pytest.approx(0.5)
    assert find("map@3", t).value(falling, four) == pytest.approx(0.25)
    assert find("map", t).value(np.ones(4), four) == pytest.approx((1 / 3 + 2 / 4) / 2)


def test_hits_and_reciprocal_ranks_by_hand():
    group = np.array([7, 7, 7, 3, 3, 5])
    label = np.array([0, 1, 0, 1, 0, 0])
    score = np.array([0.9, 0.5, 0.5, 0.2, 0.1, 0.4])
    truth, t = Truth(label=label, group=group), task("ranking")
    # Group 3: first. 5: nothing relevant. 7: behind 0.9 and behind its equal.
    assert find("mrr", t).scores(score, truth).tolist() == [1, 0, pytest.approx(1 / 3)]
    assert find("hit@2", t).scores(score, truth).tolist() == [1, 0, 0]
    assert find("hit@3", t).scores(score, truth).tolist() == [1, 0, 1]
    constant = np.zeros(6)
    assert find("hit@1", t).scores(constant, truth).tolist() == [0, 0, 0]


def test_against_the_reference():
    rng = np.random.default_rng(3)
    before = rng.normal(size=(N, 4))
    after = before + 0.5 * rng.normal(size=(N, 4))
    truth, t = Truth(reference=before), task(labelled=False, classes=4, form="logits")
    same = before.argmax(1) == after.argmax(1)
    assert value("agreement", after, truth, t) == pytest.approx(same.mean())
    assert value("flips", after, truth, t) == pytest.approx(1 - same.mean())
    p, q = softmax(before), softmax(after)
    assert value("kl", after, truth, t) == pytest.approx((p * np.log(p / q)).sum(1).mean())
    assert value("cosine", after, truth, t) == pytest.approx(
        np.mean(
            [
                sk.pairwise.cosine_similarity(a[None], b[None])[0, 0]
                for a, b in zip(after, before, strict=True)
            ]
        )
    )
    assert value("rel_error", 1.1 * before, truth, t) == pytest.approx(0.1)
    for name, own in (("agreement", 1), ("flips", 0), ("cosine", 1), ("kl", 0), ("rel_error", 0)):
        assert value(name, before, truth, t) == pytest.approx(own, abs=1e-12)
        assert not find(name, t).labelled


def test_iou_by_hand_and_from_scores():
    label = np.array([[[0, 0, 1, 1]], [[0, 0, 0, 0]]])
    masks = np.array([[[0, 1, 1, 1]], [[0, 0, 0, 0]]])
    t, truth = task("segmentation", 2), Truth(label=label)
    wanted = [(1 / 2 + 2 / 3) / 2, 1.0]
    np.testing.assert_allclose(find("iou", t).scores(masks, truth), wanted)
    scores = np.eye(2)[masks]
    for answers in (scores, scores.transpose(0, 3, 1, 2)):
        np.testing.assert_allclose(find("iou", t).scores(answers, truth), wanted)
    assert find("accuracy", t).scale == "bounded"
    assert find("accuracy", t).scores(masks, truth).tolist() == [0.75, 1]


def test_every_metric_keeps_its_promises():
    """Per example where it says so, within its bounds, better for better answers."""
    rng = np.random.default_rng(4)
    label = rng.integers(0, 2, N)
    good = np.where(label, 0.9, 0.1) + rng.uniform(-0.05, 0.05, N)
    bad = np.clip(good + rng.normal(size=N) * 0.5, 0.001, 0.999)
    truth = Truth(label=label, reference=good, group=rng.integers(0, 20, N))
    for name in known():
        definition = lookup(name)
        kind = sorted(definition.kinds, key=KINDS.index)[0]
        if kind == "segmentation" or definition.groups or definition.ratio:
            continue  # they have tests of their own
        t = task(kind, 2 if kind == "classification" else None)
        if name == "top5_accuracy":
            name = "top1_accuracy"  # of two classes five are always right
            answers = [np.stack([1 - a, a], 1) for a in (good, bad)]
        else:
            answers = [good, bad]
        metric = find(name, t)
        better, worse = (metric.value(a, truth) for a in answers)
        if name not in ("cosine", "calibration", "ece", "hit@10", "worst_class_drop"):
            assert (better > worse) == metric.higher, name
        if metric.scale == "whole":
            with pytest.raises(TypeError):
                metric.scores(answers[0], truth)
            continue
        scores = metric.scores(answers[1], truth)
        unit = metric.unit(truth)
        assert scores.shape == ((N,) if unit is None else (unit.max() + 1,)), name
        assert scores.dtype == np.float64
        assert metric.value(answers[1], truth) == pytest.approx(scores.mean())
        if metric.bounds:
            assert scores.min() >= metric.bounds[0], name
            assert scores.max() <= metric.bounds[1], name
        if metric.scale == "binary":
            assert np.isin(scores, (0, 1)).all(), name


def test_truth_takes_rows():
    truth = Truth(np.arange(4), np.arange(8).reshape(4, 2), None, {"sex": np.array(list("abab"))})
    some = truth.take(np.array([2, 0]))
    assert some.label.tolist() == [2, 0]
    assert some.reference.tolist() == [[4, 5], [0, 1]]
    assert some.segments["sex"].tolist() == ["a", "a"]
    assert some.group is None


def test_finding_teaches():
    with pytest.raises(WrongRequest, match="did you mean 'accuracy'"):
        find("acuracy", task())
    with pytest.raises(WrongRequest, match=r"f1 is a metric of classification.*mse"):
        find("f1", task("regression"))
    with pytest.raises(WrongRequest, match="agreement >= 99 %"):
        find("accuracy", task(labelled=False))
    with pytest.raises(WrongRequest, match="--group"):
        find("ndcg", task("ranking")).value(np.zeros(2), Truth(label=np.zeros(2)))


# --- a function of the user's


@pytest.fixture
def user(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        textwrap.dedent(
            """
            import numpy as np

            def whole(answers, labels):
                return float((answers.argmax(1) == labels).mean())

            def each(answers, labels) -> np.ndarray:
                return (answers.argmax(1) != labels).astype(float)

            each.higher_is_better = False

            def silent(answers, labels):
                return (answers.argmax(1) == labels).astype(float)

            def short(answers, labels):
                return np.zeros(3)

            def fails(answers, labels):
                raise KeyError("oh")

            def free(answers, reference):
                return -np.abs(answers - reference).max()

            free.labelled = False
            """
        )
    )
    return path


def test_users_function(user):
    answers, truth, t = np.eye(4), Truth(label=np.array([0, 1, 2, 0])), task(classes=4)
    whole = find(f"{user}:whole", t)
    assert (whole.scale, whole.higher) == ("whole", True)
    assert whole.value(answers, truth) == 0.75
    each = find(f"{user}:each", t)
    assert (each.scale, each.higher) == ("real", False)
    assert each.scores(answers, truth).tolist() == [0, 0, 0, 1]
    assert find(f"{user}:silent", t).scale == "whole"
    assert find(f"{user}:silent", t).value(answers, truth) == 0.75
    assert find(f"{user}:silent", t, (answers, truth)).scale == "real"
    unlabelled = find(f"{user}:free", task(labelled=False))
    assert unlabelled.value(answers, Truth(reference=answers)) == 0


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nothing", "has no function 'nothing'; it has: whole, each"),
        ("short", "shape \\(3,\\)"),
        ("fails", "failed: KeyError: 'oh'"),
    ],
)
def test_users_function_fails_with_a_sentence(user, name, sentence):
    with pytest.raises(WrongRequest, match=sentence):
        find(f"{user}:{name}", task()).value(np.eye(4), Truth(label=np.arange(4)))


def test_users_file_fails_with_a_sentence(tmp_path):
    with pytest.raises(WrongRequest, match="no such file"):
        find(f"{tmp_path}/none.py:f", task())
    with pytest.raises(WrongRequest, match="no_such_module"):
        find("no_such_module:f", task())
    (tmp_path / "broken.py").write_text("def f(:")
    with pytest.raises(WrongRequest, match="SyntaxError"):
        find(f"{tmp_path}/broken.py:f", task())
    assert find("math:hypot", task()).name == "math:hypot"


# --- the task


@dataclasses.dataclass
class Rows:
    label: np.ndarray | None
    group: np.ndarray | None = None


def infer(outputs, label, group=None, **more):
    ports = tuple(Port(name, a.dtype.name, (None, *a.shape[1:])) for name, a in outputs.items())
    return infer_task(Signature((), ports), Rows(label, group), outputs, **more)


F = np.float32


def test_tasks():
    rng = np.random.default_rng(5)
    z, c = rng.normal(size=(20, 3)).astype(F), np.arange(20) % 3
    t = infer({"y": z}, c)
    assert t == Task("classification", "y", "accuracy", True, 3, "logits")
    assert infer({"y": softmax(z)}, c).form == "probabilities"
    assert infer({"y": z}, c.astype(F)).kind == "classification"
    assert infer({"y": z}, c[:, None]).kind == "classification"
    t = infer({"label": c, "probabilities": softmax(z)}, c)
    assert (t.output, t.classes) == ("probabilities", 3)
    assert infer({"label": c, "p": z}, c, output="label").form == "classes"
    assert infer({"y": z[:, :1]}, c % 2).classes == 2
    t = infer({"y": z[:, :1]}, rng.normal(size=20))
    assert (t.kind, t.metric, t.classes) == ("regression", "mae", None)
    assert infer({"y": z[:, 0]}, c * 10).kind == "regression"
    assert infer({"y": z}, rng.normal(size=(20, 3))).kind == "regression"
    t = infer({"y": z[:, 0]}, c, group=np.arange(20) // 5)
    assert (t.kind, t.metric) == ("ranking", "ndcg@10")
    masks = rng.integers(0, 2, (20, 4, 4))
    t = infer({"y": rng.normal(size=(20, 2, 4, 4)).astype(F)}, masks)
    assert (t.kind, t.metric, t.classes) == ("segmentation", "iou", 2)


def test_tasks_without_labels():
    rng = np.random.default_rng(6)
    z = rng.normal(size=(20, 8)).astype(F)
    assert infer({"logits": z}, None).metric == "agreement"
    assert infer({"y": softmax(z)}, None).metric == "agreement"
    assert infer({"sentence": z}, None).metric == "cosine"
    assert infer({"sentence": z}, None, metric="agreement").kind == "classification"
    assert infer({"y": z}, None, kind="classification").metric == "agreement"
    assert infer({"y": z[:, :1]}, None).metric == "rel_error"
    assert not infer({"y": z}, None).labelled
    with pytest.raises(WrongRequest, match="agreement >= 99 %"):
        infer({"y": softmax(z)}, None, metric="accuracy")


def test_tasks_overruled():
    rng = np.random.default_rng(7)
    outputs = {"a": rng.normal(size=(20, 3)), "b": rng.normal(size=(20, 1))}
    label = np.arange(20) % 2
    assert infer(outputs, label).output == "a"
    assert infer(outputs, label, output="b").output == "b"
    assert infer(outputs, label, metric="mse").output == "b"
    assert infer(outputs, label, kind="regression").metric == "mae"
    assert infer(outputs, label, metric="f1").metric == "f1"
    with pytest.raises(WrongRequest, match="it has: a, b"):
        infer(outputs, label, output="c")
    with pytest.raises(WrongRequest, match="unknown kind"):
        infer(outputs, label, kind="classify")
    with pytest.raises(WrongRequest, match="did you mean 'auc'"):
        infer(outputs, label, metric="roc_auc")
    with pytest.raises(WrongRequest, match="do not go together"):
        infer(outputs, np.arange(20) % 2, output="a", kind="regression")
    with pytest.raises(WrongRequest, match=r"integers 0..C-1"):
        infer(outputs, np.array(["cat", "dog"] * 10))
    outputs["a"][3, 1] = np.nan
    with pytest.raises(WrongRequest, match="not finite for 1 of 20"):
        infer(outputs, label)


def test_ones_among_zeros_are_told_apart_from_numbers():
    """Keras' categorical losses take classes so: compared as numbers they would say nothing."""
    outputs, label = {"out": np.random.default_rng(0).random((20, 3))}, np.arange(20) % 3
    rows = np.eye(3)[label]
    for given in (rows, rows.astype(int), rows.astype(bool)):
        with pytest.raises(WrongRequest, match=r"label.argmax\(1\)"):
            infer(outputs, given)
    assert infer(outputs, rows, kind="regression").kind == "regression"
    assert infer(outputs, rows * 2).kind == "regression"
    assert infer({"out": np.zeros((20, 3, 4))}, rows.astype(int)).kind == "segmentation"


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ([0, 1, 5], "run from 0 to 5.*3 classes \\(0 to 2\\); 1 are outside"),
        ([1, 2, 3], "subtract 1"),
        ([-1, 0, 2], "run from -1"),
        ([2, 2, 2], "every label of the holdout is 2"),
        ([0.0, np.nan, 1], "1 labels of the holdout are not numbers.*row 1"),
        ([0.5, 1, 2], "not integers"),
        (["a", "b"], "labels are text"),
        ([], "no rows"),
    ],
)
def test_labels_out_of_order(labels, sentence):
    with pytest.raises(WrongRequest, match=sentence):
        check_labels(task(classes=3), np.array(labels), "the holdout")


def test_labels_in_order():
    check_labels(task(classes=3), np.array([0, 2, 1]))
    check_labels(task("regression"), np.array([0.5, -2, 1]))
    check_labels(task("ranking"), np.array([0, 0, 1]))
    with pytest.raises(WrongRequest, match="relevances"):
        check_labels(task("ranking"), np.array([0, 0, 0]))
    with pytest.raises(WrongRequest, match="write 0 instead of -1"):
        check_labels(task(classes=2), np.array([-1, 1, 1]))


def test_default_limits_can_be_parsed_and_found():
    from sartor.limits import parse

    for kind in KINDS:
        for labelled in (True, False):
            for single in (True, False):
                name = primary(kind, labelled, single)
                t = task(kind, 3, labelled, name)
                assert parse(default_limit(t)).metric == name
                find(name, t)
    assert default_limit(task(metric="accuracy")) == "accuracy >= baseline - 0.01"
    assert default_limit(task("regression", metric="mae")) == "mae <= 101 % of baseline"
    assert default_limit(task(metric="neg_log_loss")) == "neg_log_loss >= 99 % of baseline"
    assert default_limit(task(metric="calibration")) == "calibration <= baseline + 0.01"
    assert all(
        parse(default_limit(task(metric=name))) for name in DEFINITIONS if not lookup(name).groups
    )


@pytest.mark.parametrize(
    ("kind", "given", "told"),
    [
        ("free", lambda rng: 100 + rng.normal(size=(50, 8)), "have cosine"),
        ("free", lambda rng: rng.normal(size=(50, 8)), None),
        ("free", lambda rng: rng.random((50, 3)) + 1, None),  # 0.98, where 0.99 is asked
        ("classification", lambda rng: rng.random((50, 3)) + np.eye(3)[0] * 5, "agreement 1.0000"),
        ("classification", lambda rng: rng.random((50, 3)), None),
    ],
)
def test_a_limit_that_one_answer_to_all_would_meet_is_told(kind, given, told):
    from sartor.prepare import _asks_little

    answers = given(np.random.default_rng(0)).astype(np.float32)
    t = task(kind, 3, False, primary(kind, False, False))
    limits = [parse(default_limit(t))]
    found = _asks_little(t, limits, answers, Truth(reference=answers))
    assert (told in found[0]) if told else not found
