"""Imports go one way, frameworks stay in plug-in files, and `import sartor` loads none."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import sartor
from sartor.registry import plugins

SOURCE = Path(sartor.__file__).parent

# From the ground up: a module may reach, directly or through any others, what stands on its own
# line or above it. Modules that are not named lie wherever their own imports put them.
LAYERS = [
    ["space", "records", "special"],
    ["stats"],
    ["bootstrap", "melded"],
    ["contracts"],
    ["sessions", "fitting", "libraries", "nearness"],
    ["kernels", "forest", "ubjson"],
    ["forest_ranks"],
    ["forest_packing", "forest_predictor", "forest_xgboost", "forest_lightgbm", "forest_catboost"],
    ["forest_sklearn"],
    ["keeper"],
    ["workers"],
    ["limits", "spec", "data", "metrics"],
    ["openvino_ir"],
    ["openvino_core"],
    ["flat_reader"],
    ["tflite_file", "executorch_file"],
    ["executorch_calls"],
    ["executorch_export"],
    ["tflite_write", "tflite_calls"],
    ["tflite_form"],
    ["tflite_export"],
    ["savedmodel_file"],
    ["savedmodel_calls"],
    ["techniques.*", "runtimes.*"],
    ["registry"],
    ["store", "verdicts", "profile", "evaluate", "certify", "bundle", "report.*"],
    ["search", "trials"],
    ["workshop"],
    ["ahead"],
    ["cluster"],
    ["optimizing", "verifying", "comparing"],
    ["each_format"],
    ["commands"],
    ["cli"],
]

FRAMEWORKS = {
    *("ai_edge_litert", "ai_edge_quantizer", "litert_torch"),
    *("catboost", "coremltools", "executorch", "jax", "keras", "lightgbm", "nncf", "onnx"),
    *("onnxruntime", "onnxscript", "onnxslim", "openvino", "ray", "tensorflow", "torch", "torchao"),
    *("transformers", "xgboost"),
}
SLOW = {"optuna", "psutil", "scipy", "pandas", "PIL", "pyarrow", "rich", "sklearn"}
# Heads of the building: no plug-ins, but each stands for one kind of model and says so by name.
MAY = {
    "demo": {"torch", "transformers", "onnx", "onnxruntime"},
    "cluster": {"ray"},
    "torch_graph": {"torch"},  # shared by the runtime and the technique of that kind
    "torch_operators": {"torch"},
    "openvino_core": {"openvino"},
    "tflite_calls": {"ai_edge_litert"},  # shared by the runtime and the techniques of that kind
    "tflite_write": {"ai_edge_litert"},
    "tflite_export": {"litert_torch", "torch"},
    "savedmodel_calls": {"tensorflow"},  # shared by the runtime and the technique of that kind
    "executorch_calls": {"executorch", "torch"},  # shared by the runtime and the techniques
    "executorch_export": {"executorch", "torch", "torchao"},
    "testing_executorch": {"torch"},
    "testing_tflite": {"ai_edge_litert"},
    "torch_saving": {"torch"},
}


@cache
def modules() -> dict[str, Path]:
    """Module below sartor ("" is the package itself) -> its file."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """Every dotted name that the file imports, wherever in it, but for type checking."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting.extend(node.orelse)
            continue
        waiting.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are written out in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def direct(module: str) -> frozenset[str]:
    """The modules of ours that it imports itself."""
    found = set()
    for name in imported(modules()[module]):
        parts = name.split(".")
        if parts[0] == "sartor":
            inside = [".".join(parts[1:end]) for end in (len(parts), len(parts) - 1)]
            found.add(next(each for each in (*inside, "") if each in modules()))
    return frozenset(found - {module})


def reached(module: str) -> set[str]:
    """All modules of ours that loading it (and calling what is in it) may load."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        for each in direct(waiting.pop()) - found:
            found.add(each)
            waiting.append(each)
    return found


def layer(module: str) -> int | None:
    for level, names in enumerate(LAYERS):
        for name in names:
            if module == name or (name.endswith("*") and module.startswith(name[:-1])):
                return level
    return None


def family(module: str) -> str:
    """A plug-in file and the helpers of its kind are one: `techniques._graph_onnx` and
    `techniques.graph_onnx` are "techniques onnx"."""
    group, _, name = module.partition(".")
    if group in ("techniques", "runtimes") and name:
        words = name.strip("_").split("_")
        return f"{group} {words[0] if group == 'runtimes' else words[-1]}"
    return module


@pytest.mark.parametrize("module", [name for name in modules() if layer(name) is not None])
def test_imports_go_one_way(module: str) -> None:
    own = layer(module)
    assert own is not None
    above = {each for each in reached(module) if (layer(each) or 0) > own}
    assert not above, f"{module} stands below {sorted(above)} and reaches it"


def test_every_layer_names_what_exists() -> None:
    for names in LAYERS:
        for name in names:
            prefix = name.removesuffix("*")
            assert any(
                each == name or (prefix != name and each.startswith(prefix)) for each in modules()
            )


def test_imports_are_found_wherever_they_stand(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(
        "from typing import TYPE_CHECKING\nimport onnx.helper\n"
        "if TYPE_CHECKING:\n    from sartor.records import Trial\nelse:\n    import torch\n"
        "def inside():\n    from sartor.techniques import graph_onnx, quantize_onnx\n"
    )
    assert set(imported(tmp_path / "module.py")) == {
        "typing.TYPE_CHECKING",
        "onnx.helper",
        "torch",
        "sartor.techniques.graph_onnx",
        "sartor.techniques.quantize_onnx",
    }
    assert "contracts" in reached("cli")
    assert "techniques._packing_onnx" in direct("techniques.cluster_onnx")
    assert reached("space") == set()


def test_there_are_no_circles() -> None:
    for module in modules():
        around = {each for each in reached(module) if module in reached(each)}
        assert {family(each) for each in around} <= {family(module)}, f"{module}: {sorted(around)}"


@pytest.mark.parametrize("group", ["techniques", "runtimes"])
def test_plugins_know_nothing_of_each_other(group: str) -> None:
    for module in (name for name in modules() if name.startswith(f"{group}.")):
        others = {
            each
            for each in direct(module)
            if layer(each) == layer(module) and family(each) != family(module)
        }
        assert not others, f"{module} imports {sorted(others)}"


def test_plugin_files_of_a_family_import_helpers_only() -> None:
    for module in (name for name in modules() if name.startswith("techniques.")):
        files = {each for each in direct(module) if each.startswith("techniques.")}
        public = {each for each in files if not each.split(".")[1].startswith("_")}
        assert not public, f"{module} imports the plug-in {sorted(public)}"


@pytest.mark.parametrize("module", list(modules()))
def test_frameworks_stand_in_plugin_files_only(module: str) -> None:
    found = {name.split(".")[0] for name in imported(modules()[module])} & FRAMEWORKS
    if module.startswith(("techniques.", "runtimes.")):
        return
    if module.startswith("testing_"):
        found -= {module.removeprefix("testing_"), f"{module.removeprefix('testing_')}runtime"}
    assert found <= MAY.get(module, set()), f"{module or 'sartor'} imports {sorted(found)}"


@pytest.mark.parametrize("group", ["techniques", "runtimes"])
def test_what_a_plugin_needs_is_known_without_importing_it(group: str) -> None:
    """Its own imports and those of its helpers, by the text alone: as the parser reads them."""
    for plugin in plugins(group):
        needed, seen, waiting = set(), set(), [plugin.module.removeprefix("sartor.")]
        while waiting:
            module = waiting.pop()
            seen.add(module)
            for name in at_top(modules()[module]):
                parts = name.split(".")
                if parts[0] != "sartor":
                    needed.add(parts[0])
                    continue
                inside = [".".join(parts[1:end]) for end in (len(parts), len(parts) - 1)]
                waiting += [each for each in inside if each in modules() and each not in seen]
        assert needed - set(sys.stdlib_module_names) <= set(plugin.imports), plugin.name


def at_top(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_import_sartor_loads_no_framework() -> None:
    code = (
        "import time; start = time.perf_counter(); import sartor; "
        "taken = time.perf_counter() - start; import json, sys; "
        "print(json.dumps([taken, sorted({name.split('.')[0] for name in sys.modules})]))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, loaded = json.loads(told.stdout)
    print(f"import sartor: {seconds:.2f} s")  # the machine's affair: shown, not asserted
    assert not set(loaded) & (FRAMEWORKS | SLOW)
