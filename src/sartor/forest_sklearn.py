"""scikit-learn's trees, forests and boosting as a forest: fitted estimators, read by their
attributes (versions 1.4 to 1.9), so that nothing is imported here."""

from __future__ import annotations

from typing import Any

import numpy as np

from sartor.contracts import WrongRequest
from sartor.forest import EXACT, LEAF, LEFT, RIGHT, Forest, checked

TREES = ("DecisionTreeClassifier", "DecisionTreeRegressor",
         "ExtraTreeClassifier", "ExtraTreeRegressor")  # fmt: skip
FORESTS = ("RandomForestClassifier", "RandomForestRegressor",
           "ExtraTreesClassifier", "ExtraTreesRegressor")  # fmt: skip
BOOSTED = ("GradientBoostingClassifier", "GradientBoostingRegressor")
HISTOGRAM = ("HistGradientBoostingClassifier", "HistGradientBoostingRegressor")
EXPONENTIAL = ("poisson", "gamma")


def read(estimator: Any) -> Forest:
    """The forest of a fitted estimator. Its predictions are those of `predict_proba` of a
    classifier and `predict` of a regressor. Raises WrongRequest with a sentence."""
    name = type(estimator).__name__
    if not hasattr(estimator, "n_features_in_"):
        raise WrongRequest(f"the {name} is not fitted: call its fit first")
    if getattr(estimator, "n_outputs_", 1) != 1 and name.endswith("Classifier"):
        raise WrongRequest(f"the {name} has several outputs, each with its classes: not taken")
    if name in TREES:
        return checked(_averaged(estimator, [estimator]))
    if name in FORESTS:
        return checked(_averaged(estimator, list(estimator.estimators_)))
    if name in BOOSTED:
        return checked(_boosted(estimator))
    if name in HISTOGRAM:
        return checked(_histogram(estimator))
    known = ", ".join((*TREES, *FORESTS, *BOOSTED, *HISTOGRAM))
    raise WrongRequest(f"a {name} is no forest that is known here; known: {known}")


def _classes(estimator: Any) -> tuple[Any, ...]:
    return tuple(np.asarray(getattr(estimator, "classes_", ())).tolist())


def _names(estimator: Any) -> tuple[str, ...]:
    return tuple(map(str, getattr(estimator, "feature_names_in_", ())))


def _tree(tree: Any, leaf: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of a `tree_`; `leaf` [nodes, width]."""
    left = np.asarray(tree.children_left, np.int64)
    inner = left != -1
    goes_left = np.asarray(getattr(tree, "missing_go_to_left", np.zeros(len(left))))
    return {
        "feature": np.where(inner, tree.feature, LEAF).astype(np.int64),
        "threshold": np.where(inner, tree.threshold, 0.0),
        "left": left, "right": np.asarray(tree.children_right, np.int64),
        "missing": np.where(goes_left != 0, LEFT, RIGHT), "leaf": leaf,
    }  # fmt: skip


def _joined(trees: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    if not trees:
        raise WrongRequest("the estimator has no trees")
    starts = np.concatenate([[0], np.cumsum([len(each["feature"]) for each in trees])])
    whole = {name: np.concatenate([each[name] for each in trees]) for name in trees[0]}
    return {**whole, "starts": starts}


def _averaged(estimator: Any, members: list[Any]) -> Forest:
    """One tree, or the mean over trees: values summed in the order of the trees, then divided."""
    trees = []
    for member in members:
        value = np.asarray(member.tree_.value, np.float64)
        trees.append(_tree(member.tree_, value.reshape(len(value), -1)))
    width = trees[0]["leaf"].shape[1]
    return Forest(
        features=int(estimator.n_features_in_), output=np.zeros(len(trees), np.int64),
        base=np.zeros(width), inputs="float32", sums="float64", divide=float(len(trees)),
        names=_names(estimator), classes=_classes(estimator), **_joined(trees),
    )  # fmt: skip


def _boosted(estimator: Any) -> Forest:
    init = estimator.init_
    if init != "zero" and type(init).__name__ not in ("DummyClassifier", "DummyRegressor"):
        raise WrongRequest(
            f"the boosting starts from a {type(init).__name__} of its own: only a constant start "
            "is taken"
        )
    rounds, outputs = estimator.estimators_.shape
    base = estimator._raw_predict_init(np.zeros((1, estimator.n_features_in_), np.float32))[0]
    trees = []
    for member in estimator.estimators_.ravel():
        value = estimator.learning_rate * np.asarray(member.tree_.value, np.float64)[:, 0, :1]
        trees.append(_tree(member.tree_, value))
    classes = _classes(estimator)
    link = "identity" if not classes else "two-classes" if outputs == 1 else "softmax"
    return Forest(
        features=int(estimator.n_features_in_), output=np.tile(np.arange(outputs), rounds),
        base=np.asarray(base, np.float64), inputs="float32", sums="float64", link=link,
        steepness=2.0 if estimator.loss == "exponential" else 1.0,
        names=_names(estimator), classes=classes, **_joined(trees),
    )  # fmt: skip


def _histogram(estimator: Any) -> Forest:
    order, known = _columns(estimator)
    sets: list[np.ndarray] = []
    trees = [
        _histogram_tree(each, order, known, sets)
        for round_ in estimator._predictors
        for each in round_
    ]
    outputs = len(estimator._predictors[0])
    classes = _classes(estimator)
    exponential = not classes and estimator.loss in EXPONENTIAL
    joined = _joined(trees)
    if not sets:
        joined["category"] = None
    return Forest(
        features=int(estimator.n_features_in_), inputs="float64", sums="float64",
        output=np.tile(np.arange(outputs), len(estimator._predictors)),
        base=np.asarray(estimator._baseline_prediction, np.float64).ravel(),
        link=("two-classes" if outputs == 1 else "softmax") if classes
        else "exp" if exponential else "identity",
        categories=EXACT, sets=tuple(sets), known=tuple(known.items()),
        names=_names(estimator), classes=classes, **joined,
    )  # fmt: skip


def _columns(estimator: Any) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """The estimator's columns as its trees see them (categorical ones first), and by categorical
    feature its categories in the order of their codes."""
    chosen = getattr(estimator, "is_categorical_", None)
    if chosen is None or getattr(estimator, "_preprocessor", None) is None:
        return np.arange(estimator.n_features_in_), {}
    chosen = np.asarray(chosen, bool)
    order = np.concatenate([np.flatnonzero(chosen), np.flatnonzero(~chosen)])
    known = {}
    encoder = estimator._preprocessor.named_transformers_["encoder"]
    for feature, values in zip(np.flatnonzero(chosen), encoder.categories_, strict=True):
        try:
            numbers = np.asarray(values, np.float64)
        except (TypeError, ValueError):
            raise WrongRequest(
                f"feature {int(feature)} has categories that are texts: number them from 0, or "
                "keep the encoder in front"
            ) from None
        numbers = numbers[~np.isnan(numbers)]
        if (numbers < 0).any() or (numbers != np.floor(numbers)).any():
            raise WrongRequest(
                f"feature {int(feature)} has categories that are no whole numbers from 0"
            )
        known[int(feature)] = numbers.astype(np.int64)
    return order, known


def _histogram_tree(
    predictor: Any, order: np.ndarray, known: dict[int, np.ndarray], sets: list[np.ndarray]
) -> dict[str, np.ndarray]:
    nodes = predictor.nodes
    inner = nodes["is_leaf"] == 0
    feature = np.where(inner, order[np.where(inner, nodes["feature_idx"], 0)], LEAF)
    category = np.full(len(nodes), -1, np.int64)
    for node in np.flatnonzero(inner & (nodes["is_categorical"] != 0)):
        words = np.asarray(predictor.raw_left_cat_bitsets[nodes["bitset_idx"][node]], np.uint32)
        codes = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
        category[node] = len(sets)
        values = known[int(feature[node])]
        sets.append(values[codes[codes < len(values)]])
    return {
        "feature": feature.astype(np.int64),
        "threshold": np.where(inner & (category < 0), nodes["num_threshold"], 0.0),
        "left": nodes["left"].astype(np.int64), "right": nodes["right"].astype(np.int64),
        "missing": np.where(nodes["missing_go_to_left"] != 0, LEFT, RIGHT),
        "category": category, "leaf": nodes["value"].astype(np.float64)[:, None],
    }  # fmt: skip
