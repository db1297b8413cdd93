import dataclasses
import os
import textwrap
from pathlib import Path

import pytest

from sartor.contracts import WrongRequest
from sartor.records import Journal, Trial
from sartor.resuming import remembered, requested, settled
from sartor.run import RunFolder
from sartor.spec import More, MoreTrials, Spec, duration, from_flags, load, merge, request


def write(folder, text, name="sartor.toml"):
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return path


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("10m", 600),
        ("1h30m", 5400),
        ("1h 30 min", 5400),
        ("1.5h", 5400),
        ("90", 90),
        (".5", 0.5),
        ("1d", 86400),
        ("+10m", 600),
        (45, 45),
        (2.5, 2.5),
    ],
)
def test_durations(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "10x", "m", "-3s", "10m later", True, float("nan")])
def test_no_durations(text):
    with pytest.raises(WrongRequest, match=r"write e.g. 30s, 10m or 1h30m"):
        duration(text)


FULL = """
    model = "models/m.onnx"
    limits = ["accuracy >= baseline - 0.01", "size <= 20 MB", "my/metric.py:f >= 0.9"]
    minimize = "latency.p95"
    budget = "1h30m"
    out = "/abs/out"
    trust = true

    [data]
    source = "data.py:make"
    label = "y"
    segments = ["sex"]

    [task]
    kind = "classification"
    metric = "f1"

    [target]
    threads = 1
    batch = 4

    [search]
    trials = 12
    seed = 3
    memory = "2 GB"
    without = ["prune"]
    recipes = [["static-int8"], [{technique = "low-rank", share = 0.5}, "static-int8"]]
"""


def test_a_full_file(tmp_path):
    spec = load(write(tmp_path, FULL))
    assert spec == Spec(
        model=f"{tmp_path}/models/m.onnx",
        data=f"{tmp_path}/data.py:make",
        label="y",
        segments=("sex",),
        task="classification",
        metric="f1",
        limits=(
            "accuracy >= baseline - 0.01",
            "size <= 20 MB",
            f"{tmp_path}/my/metric.py:f >= 0.9",
        ),
        minimize="latency.p95",
        budget=5400.0,
        out="/abs/out",
        trust=True,
        threads=1,
        batch=4,
        trials=12,
        seed=3,
        memory=2_000_000_000,
        without=("prune",),
        recipes=(
            ({"technique": "static-int8"},),
            ({"technique": "low-rank", "share": 0.5}, {"technique": "static-int8"}),
        ),
    )
    assert spec.check() == ()
    assert spec.objective == "latency.p95"


def test_flat_keys_are_the_same(tmp_path):
    flat = load(write(tmp_path, 'model = "m.onnx"\ndata = "d.npz"\nthreads = 1\nseed = 3\n'))
    grouped = (
        'model = "m.onnx"\n[data]\nsource = "d.npz"\n[target]\nthreads = 1\n[search]\nseed = 3'
    )
    assert flat == load(write(tmp_path, grouped, "b.toml"))


def test_modules_are_no_paths_and_the_default_folder_is_where_the_command_runs(tmp_path):
    spec = load(write(tmp_path, 'model = "package.models:make"\ndata = "d.npz"\n'))
    assert spec.model == "package.models:make"
    assert spec.out == "tailored"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('modle = "m.onnx"', "unknown key 'modle' in .*did you mean 'model'"),
        ("[targets]\nthreads = 1", "unknown key 'targets'.*did you mean 'target'"),
        ("[target]\ntreads = 1", "unknown key 'treads' under \\[target\\].*did you mean 'threads'"),
        ("[target]\nseed = 1", "unknown key 'seed' under \\[target\\].*known are: threads"),
        ("[model]\npath = 1", "model is a single value"),
        ("threads = 1\n[target]\nthreads = 2", "threads is given twice"),
        ('threads = "two"', "threads must be a whole number; it is 'two'"),
        ("threads = true", "threads must be a whole number"),
        ('limits = "size <= 20 MB"', "limits must be a list of texts"),
        ("model = 3", "model.* must be"),
        ('trust = "yes"', "trust must be true or false"),
        ('budget = "soon"', "budget: 'soon' is not a time"),
        ('memory = "much"', "memory: 'much' is not a number with a unit"),
        ('recipes = ["static-int8"]', "recipes must be a list of lists"),
        ("recipes = [[{tool = 1}]]", "recipes must be techniques"),
        ('limits = ["acuracy >= 1"]', "did you mean 'accuracy'"),
        ("model = ", "is not TOML"),
    ],
)
def test_files_that_teach(tmp_path, text, sentence):
    with pytest.raises(WrongRequest, match=sentence):
        load(write(tmp_path, text))


def test_no_file(tmp_path):
    with pytest.raises(WrongRequest, match="no such file"):
        load(tmp_path / "none.toml")
    with pytest.raises(WrongRequest, match="no such file"):
        load(tmp_path)
    (tmp_path / "random.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WrongRequest, match="is not TOML"):
        load(tmp_path / "random.toml")


def test_flags_override_the_file(tmp_path):
    path = write(tmp_path, FULL)
    spec = from_flags(str(path), budget="30s", limits=["size <= 1 MB"], label=None, segments=[])
    assert spec.budget == 30
    assert spec.limits == ("size <= 1 MB",)
    assert (spec.label, spec.segments) == ("y", ("sex",))
    assert from_flags(str(path), maximize="throughput").objective == "throughput"
    with pytest.raises(WrongRequest, match="did you mean 'budget'"):
        merge(spec, {"budgt": 1})
    plain = from_flags("m.onnx", data="d.npz", out=Path("o"))
    assert (plain.model, plain.data, plain.out) == ("m.onnx", "d.npz", "o")


CORES = os.cpu_count() or 1


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"budget": 0}, "budget 0 s: write a time above 0"),
        ({"threads": 0}, "threads 0"),
        ({"threads": CORES + 1}, f"this machine has {CORES}; write 1 to {CORES}"),
        ({"batch": 0}, "batch 0"),
        ({"trials": 0}, "trials 0"),
        ({"seed": -1}, "seed -1"),
        ({"device": "gpu"}, "only cpu"),
        ({"confidence": 95}, "write a share below 1"),
        ({"memory": 5}, "100 MB at least"),
        ({"minimize": "size", "maximize": "throughput"}, "name one objective"),
        ({"minimize": "accuracy"}, "better when higher; write maximize accuracy"),
        ({"maximize": "latency"}, "better when lower; write minimize latency"),
        ({"minimize": "latencies"}, "did you mean 'latency'"),
        ({"limits": ["size <= 3 mb"]}, "did you mean MB"),
        ({"limits": ["size <= 3 MB", "size <= 2 MB"]}, "bound the same figure"),
        ({"techniques": ["a"], "without": ["a"]}, "asked for and left out"),
    ],
)
def test_nonsense_is_refused(values, sentence):
    with pytest.raises(WrongRequest, match=sentence):
        merge(Spec(), values).check()


def test_remarks():
    assert "no limit on quality" in merge(Spec(), {"limits": ["size <= 3 MB"]}).check()[0]
    assert merge(Spec(), {"limits": ["accuracy >= 0.9", "accuracy >= baseline"]}).check() == ()


def test_budgets_on_top() -> None:
    spec = merge(Spec(), {"budget": "+10m", "trials": "+20"})
    assert (type(spec.budget), spec.budget) == (More, 600.0)
    assert (type(spec.trials), spec.trials) == (MoreTrials, 20)
    spec = merge(Spec(), {"budget": "10m", "trials": "20"})
    assert (type(spec.budget), spec.budget) == (float, 600.0)
    assert (type(spec.trials), spec.trials) == (int, 20)
    with pytest.raises(WrongRequest, match="whole number"):
        merge(Spec(), {"trials": "+few"})
    with pytest.raises(WrongRequest, match="deadline 0 s"):
        merge(Spec(), {"deadline": 0}).check()


def test_what_is_on_top_is_added_to_what_was_spent(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for session, elapsed in (("a", 40.0), ("a", 100.0), ("b", 20.0)):
        folder.journal.add("early", session=session, elapsed=elapsed)
    for number in range(3):
        folder.journal.add("trial", **vars(Trial(number, (), "done")))
    more = settled(merge(Spec(), {"budget": "+10m"}), folder)
    assert more.budget == 720.0
    assert settled(merge(Spec(), {"trials": "+2"}), folder).trials == 5
    assert settled(merge(Spec(), {"budget": "2m"}), folder).budget == 120.0  # it was killed
    folder.journal.add("answer", status=0)
    with pytest.raises(WrongRequest, match=r"after 120 s.*say how much more"):
        settled(merge(Spec(), {"budget": "2m", "resume": True}), folder)
    assert settled(merge(Spec(), {"budget": "3m", "resume": True}), folder).budget == 180.0


def test_what_the_journal_keeps_gives_the_request_again(tmp_path: Path) -> None:
    asked = request(
        model="m.onnx", data=str(tmp_path / "d.npz"), limits=["size <= 3 MB"], maximize="accuracy",
        fixed={"image": [1, 3, 8, 8]}, recipes=[["simplify"], [{"technique": "x", "p": 0.5}]],
        trials=4, seed=3, memory="1 GB", segments=["a"], without=["simplify"],
        learn_from=["earlier/run.jsonl"],
    )  # fmt: skip
    Journal(tmp_path / "run.jsonl").add("request", spec=remembered(asked))
    again = requested(resume=tmp_path)
    place = {"out": str(tmp_path), "resume": str(tmp_path)}
    lessons = (str(Path.cwd() / "earlier" / "run.jsonl"),)
    changed = {"model": str(Path.cwd() / "m.onnx"), "learn_from": lessons, **place}
    assert again == dataclasses.replace(asked, **changed)
    assert requested(resume=tmp_path, budget="+5m").trials is None
    assert requested(resume=tmp_path, data="other.npz").data == "other.npz"
