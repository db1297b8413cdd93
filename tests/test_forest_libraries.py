"""The kernel against the libraries themselves, on rows made to be hard: not one bit may differ.

Quick: 2,000 rows for each library and objective; slow: 1,000,000.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forest_cases import CATEGORICAL, ROWS, adversarial, table

from sartor import forest_catboost, forest_lightgbm, forest_sklearn, forest_xgboost
from sartor.contracts import WrongRequest
from sartor.forest import Forest
from sartor.forest_packing import WIDE, pack
from sartor.forest_predictor import Predictor

QUICK, SLOW, BLOCK, TREES = 2_000, 1_000_000, 50_000, 9
KNOWN, FULL, TARGET = table()
TWO, THREE = (TARGET > 2).astype(int), np.digitize(TARGET, [1, 3])
POSITIVE, PAIR = np.abs(TARGET) + 0.1, np.stack([TARGET, -TARGET], 1)


@pytest.fixture(params=[QUICK, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["quick", "slow"])
def rows(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def compare(forest: Forest, rows: int, margins: Any, finished: Any = None, **limits: bool) -> None:
    """Blocks of adversarial rows through the library and, for each layout and instruction set,
    through the kernel."""
    ways = [Predictor(pack(forest, layout=x), level=y) for x in (None, WIDE) for y in range(3)]
    for seed, size in enumerate(_blocks(rows)):
        given = adversarial(forest, size, seed, **limits)
        with np.errstate(all="ignore"):  # the libraries' own checks overflow on such rows
            wanted = np.asarray(margins(given)).reshape(size, -1)
        for way in ways:
            found = (
                way.predict(given) if forest.divide != 1 and not finished else way.margins(given)
            )
            np.testing.assert_array_equal(found, wanted)
        if finished is not None:
            with np.errstate(all="ignore"):
                answers = np.asarray(finished(given)).reshape(size, -1)
            near = 1e-6 if forest.sums == "float32" else 1e-12
            np.testing.assert_allclose(ways[0].predict(given), answers, rtol=near, atol=near)


def _blocks(rows: int) -> Iterator[int]:
    yield from (min(BLOCK, rows - at) for at in range(0, rows, BLOCK))


XGBOOST = [
    ("reg:squarederror", TARGET), ("binary:logistic", TWO), ("binary:logitraw", TWO),
    ("binary:hinge", TWO), ("multi:softprob", THREE), ("multi:softmax", THREE),
    ("count:poisson", POSITIVE), ("reg:gamma", POSITIVE), ("reg:tweedie", POSITIVE),
    ("survival:cox", POSITIVE), ("reg:absoluteerror", TARGET), ("rank:ndcg", TWO),
    ("reg:squarederror", PAIR), ("one-tree-for-all", PAIR),
]  # fmt: skip


@pytest.mark.parametrize("booster", ["gbtree", "dart"])
@pytest.mark.parametrize("case", range(len(XGBOOST)))
def test_xgboost(booster: str, case: int, rows: int) -> None:
    xgboost = pytest.importorskip("xgboost")
    objective, target = XGBOOST[case]
    settings: dict[str, Any] = {"booster": booster, "objective": objective, "nthread": 1}
    settings |= {"max_depth": 5, "max_cat_to_onehot": 4, "tree_method": "hist"}
    if booster == "dart":
        settings["rate_drop"] = 0.3
    if objective.startswith("multi"):
        settings["num_class"] = 3
    vectors = objective == "one-tree-for-all"
    if vectors:
        settings |= {"objective": "reg:squarederror", "multi_strategy": "multi_output_tree"}
    if vectors and booster == "dart":
        pytest.skip("XGBoost has no such models")
    kinds = ["float"] * 6 + ["float" if vectors else "c"] * 2

    def matrix(values: np.ndarray, label: Any = None) -> Any:
        return xgboost.DMatrix(values, label, feature_types=kinds, enable_categorical=True)

    data = matrix(KNOWN.astype(np.float32), target)
    if objective.startswith("rank"):
        data.set_group([100] * (ROWS // 100))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = xgboost.train(settings, data, TREES)
    forest = forest_xgboost.read(bytes(model.save_raw("ubj")))
    same = forest_xgboost.read(bytes(model.save_raw("json")))
    assert pack(forest) == pack(same)
    compare(
        forest, rows, lambda x: model.predict(matrix(x), output_margin=True),
        lambda x: model.predict(matrix(x)), infinite=False,  # XGBoost takes no infinities
    )  # fmt: skip


LIGHTGBM = [
    ("regression", TARGET, {}), ("regression", TARGET, {"zero_as_missing": True}),
    ("regression", TARGET, {"use_missing": False}), ("regression", TARGET, {"boosting": "dart"}),
    ("regression", TARGET, {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.7}),
    ("regression", POSITIVE, {"reg_sqrt": True}), ("binary", TWO, {"sigmoid": 1.3}),
    ("multiclass", THREE, {"num_class": 3}), ("multiclassova", THREE, {"num_class": 3}),
    ("poisson", POSITIVE, {}), ("gamma", POSITIVE, {}), ("tweedie", POSITIVE, {}),
    ("cross_entropy", TWO, {}), ("cross_entropy_lambda", TWO, {}), ("lambdarank", TWO, {}),
    ("quantile", TARGET, {}), ("l1", TARGET, {}), ("huber", TARGET, {}),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(LIGHTGBM)))
def test_lightgbm(case: int, rows: int) -> None:
    lightgbm = pytest.importorskip("lightgbm")
    objective, target, more = LIGHTGBM[case]
    settings = {"objective": objective, "verbose": -1, "num_leaves": 20, "num_threads": 1, **more}
    settings |= {"min_data_per_group": 5, "cat_smooth": 1, "min_data_in_bin": 1}
    groups = [100] * (ROWS // 100) if objective == "lambdarank" else None
    data = lightgbm.Dataset(KNOWN, target, categorical_feature=list(CATEGORICAL), group=groups)
    model = lightgbm.train(settings, data, TREES)
    compare(
        forest_lightgbm.read(model.model_to_string().encode()), rows,
        lambda x: model.predict(x, raw_score=True), model.predict,
    )  # fmt: skip


def test_lightgbm_with_functions_in_its_leaves_is_refused() -> None:
    lightgbm = pytest.importorskip("lightgbm")
    settings = {"objective": "regression", "linear_tree": True, "verbose": -1, "num_threads": 1}
    model = lightgbm.train(settings, lightgbm.Dataset(FULL, TARGET), 3)
    with pytest.raises(WrongRequest, match="linear_tree=false"):
        forest_lightgbm.read(model.model_to_string().encode())


CATBOOST = [
    ("RMSE", TARGET), ("Logloss", TWO), ("MultiClass", THREE), ("MultiClassOneVsAll", THREE),
    ("Poisson", POSITIVE), ("Quantile", TARGET), ("MultiRMSE", PAIR), ("QueryRMSE", TARGET),
]  # fmt: skip


@pytest.mark.parametrize("grow", ["SymmetricTree", "Lossguide"])
@pytest.mark.parametrize("case", range(len(CATBOOST)))
def test_catboost(grow: str, case: int, rows: int, tmp_path: Path) -> None:
    catboost = pytest.importorskip("catboost")
    loss, target = CATBOOST[case]
    model = catboost.CatBoost({
        "loss_function": loss, "iterations": TREES, "depth": 5, "grow_policy": grow, "verbose": 0,
        "nan_mode": "Max" if case % 2 else "Min", "allow_writing_files": False, "thread_count": 1,
    })  # fmt: skip
    groups = np.arange(ROWS) // 100 if loss.startswith("Query") else None
    model.fit(catboost.Pool(KNOWN.astype(np.float32), target, group_id=groups))
    model.save_model(str(tmp_path / "model.json"), format="json")
    compare(
        forest_catboost.read((tmp_path / "model.json").read_bytes()), rows,
        lambda x: model.predict(x, prediction_type="RawFormulaVal"),
    )  # fmt: skip


def test_catboost_with_texts_is_refused(tmp_path: Path) -> None:
    catboost = pytest.importorskip("catboost")
    words = [[str(int(row[7])), float(row[0])] for row in FULL]
    model = catboost.CatBoost({
        "loss_function": "RMSE", "iterations": 3, "verbose": 0, "allow_writing_files": False,
        "thread_count": 1, "one_hot_max_size": 20,
    })  # fmt: skip
    model.fit(catboost.Pool(words, FULL[:, 7] % 3, cat_features=[0]))
    model.save_model(str(tmp_path / "model.json"), format="json")
    with pytest.raises(WrongRequest, match="OneHotFeature"):
        forest_catboost.read((tmp_path / "model.json").read_bytes())


SKLEARN = [
    ("tree.DecisionTreeClassifier", {}), ("tree.DecisionTreeRegressor", {}),
    ("ensemble.RandomForestClassifier", {"n_estimators": TREES}),
    ("ensemble.RandomForestRegressor", {"n_estimators": TREES}),
    ("ensemble.ExtraTreesClassifier", {"n_estimators": TREES}),
    ("ensemble.ExtraTreesRegressor", {"n_estimators": TREES}),
    ("ensemble.GradientBoostingClassifier", {"n_estimators": TREES}),
    ("ensemble.GradientBoostingClassifier", {"n_estimators": TREES, "loss": "exponential"}),
    ("ensemble.GradientBoostingRegressor", {"n_estimators": TREES}),
    ("ensemble.HistGradientBoostingClassifier", {"max_iter": TREES}),
    ("ensemble.HistGradientBoostingClassifier", {"max_iter": 9, "categorical_features": [6, 7]}),
    ("ensemble.HistGradientBoostingRegressor", {"max_iter": TREES}),
    ("ensemble.HistGradientBoostingRegressor", {"max_iter": TREES, "loss": "poisson"}),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(SKLEARN)))
def test_sklearn(case: int, rows: int) -> None:
    name, settings = SKLEARN[case]
    module, _, cls = name.partition(".")
    made = getattr(pytest.importorskip(f"sklearn.{module}"), cls)(random_state=0, **settings)
    histogram, boosted = "Hist" in cls, "Boost" in cls
    missing = histogram or "Random" in cls or cls.startswith("Decision")
    classifier = cls.endswith("Classifier")
    target = THREE if classifier and case % 2 == 0 else TWO if classifier else POSITIVE
    made.fit(KNOWN if missing else FULL, target)
    forest = forest_sklearn.read(made)
    answer = made.predict_proba if classifier else made.predict

    def raw(x: np.ndarray) -> Any:
        return made._raw_predict(x if histogram else x.astype(np.float32))

    infinite = histogram and "categorical_features" not in settings  # its encoder refuses them
    limits = {"missing": missing, "infinite": infinite}
    if boosted:
        compare(forest, rows, raw, answer, **limits)
    else:
        compare(forest, rows, answer, **limits)
