"""The certificate again: on this machine, with data that the bundle never saw."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import Case, Said, Tailored

import sartor as package
from sartor import bundle
from sartor.contracts import Target, WrongRequest
from sartor.ledger import ledger_path
from sartor.registry import open_model, runtime

Sartor = Callable[..., Said]


def rewrite(place: Path, facts: dict[str, Any]) -> None:
    facts["digest"] = bundle.digest_of(facts)
    (place / "sartor.json").write_text(json.dumps(facts))


@pytest.fixture(autouse=True)
def anew(tailored: Tailored) -> Iterator[None]:
    """Every test begins with a bundle of which nothing stands."""
    yield
    (tailored.folder / "bundle.sartor-evidence").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def verified(tailored: Tailored, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("verify")
    data = tailored.case.data(place, **tailored.case.fresh)
    found = package.verify(tailored.folder / "bundle", data)
    assert list(place.glob("*.sartor-ledger"))
    return found


def test_a_good_bundle_is_verified(verified: dict[str, Any], tailored: Tailored) -> None:
    assert verified["status"] == 0, verified
    assert verified["parity_holds"]
    limits = {each["limit"]: each for each in verified["limits"]}
    assert {"accuracy >= baseline - 0.03", "size <= 0.5 x baseline"} <= set(limits)
    assert {each["outcome"] for each in limits.values()} == {"met"}
    accuracy = limits["accuracy >= baseline - 0.03"]
    assert accuracy["examples"] == len(tailored.case.fresh["label"])
    json.dumps(verified, allow_nan=False)


def test_data_that_verified_have_spent_of_their_error_rate(verified: dict[str, Any]) -> None:
    assert any("error rate is left" in note for note in verified["notes"])
    assert not any(note.startswith("5.00%") for note in verified["notes"])


def test_on_the_command_line(sartor: Sartor, tailored: Tailored, tmp_path: Path) -> None:
    """The run's folder stands for its bundle; too few rows leave it undecided."""
    few = {name: each[:40] for name, each in tailored.case.fresh.items()}
    data = tailored.case.data(tmp_path, **few)
    shutil.copytree(tailored.folder, tmp_path / "run")
    said = sartor("verify", tmp_path / "run", "--data", data, "--json")
    assert said.status == 4, said.err
    assert said.json["status"] == 4
    assert "undecided" in said.json["message"]
    assert said.json["message"] in said.err


def test_labels_that_tell_another_story_break_it(
    sartor: Sartor, tailored: Tailored, tmp_path: Path
) -> None:
    """Where the artifact answers otherwise than the original did, the labels take its side or
    not: here they are the original's own answers but for what the artifact changed."""
    import onnxruntime

    case = tailored.case
    pixels = np.random.default_rng(0).random((3000, 64)).astype(np.float32)
    session = onnxruntime.InferenceSession(case.model)
    before = session.run(None, {"pixels": pixels})[0].argmax(1)
    with package.load(tailored.folder) as model:
        after = model.predict(pixels)["logits"].argmax(1)
    differ = np.flatnonzero(before != after)
    assert len(differ) >= 10  # noise lies on every border
    rows = np.concatenate([differ, np.flatnonzero(before == after)[: 5 * len(differ)]])
    data = tmp_path / "odd.npz"
    thick = np.array(["thin", "thick"])[np.arange(len(rows)) % 2]
    np.savez(data, pixels=pixels[rows], label=before[rows], thickness=thick)
    said = sartor("verify", tailored.folder, "--data", data, "--json")
    assert said.status == 3, said.json
    assert "accuracy >= baseline - 0.03" in said.json["message"]


def test_the_original_is_needed_and_must_be_the_one(
    tailored: Tailored, tiny: Case, tmp_path: Path
) -> None:
    shutil.copytree(tailored.folder / "bundle", tmp_path / "bundle")
    data = tailored.case.data(tmp_path)
    with pytest.raises(WrongRequest, match="not the original"):
        package.verify(tmp_path / "bundle", data, original=tiny.model)
    facts = json.loads((tmp_path / "bundle" / "sartor.json").read_text())
    facts["original"]["path"] = str(tmp_path / "gone.onnx")
    rewrite(tmp_path / "bundle", facts)
    with pytest.raises(WrongRequest, match="--original"):
        package.verify(tmp_path / "bundle", data)
    assert not list(tmp_path.glob("*.sartor-ledger"))


def without_original(
    tailored: Tailored, place: Path, limits: list[str], rival: bool = False
) -> Path:
    """The bundle under other limits, its original being nowhere."""
    facts = bundle.read(tailored.folder)
    asked = {**facts["certificate"], "limits_asked": limits, "rival": rival}
    gone = {**facts["original"], "path": str(place / "gone.onnx")}
    return copied(tailored, place, certificate=asked, original=gone)


def test_limits_that_name_no_baseline_need_no_original(tailored: Tailored, tmp_path: Path) -> None:
    limits = ["accuracy >= 0.5", "accuracy@thickness >= 0.3", "size <= 20 MB", "latency <= 1 s"]
    place = without_original(tailored, tmp_path / "bundle", limits)
    found = package.verify(place, tailored.case.data(tmp_path, **tailored.case.fresh))
    assert found["status"] == 0, found
    assert [each["limit"] for each in found["limits"]] == limits
    assert {each["outcome"] for each in found["limits"]} == {"met"}
    assert any("original, which was not measured" in note for note in found["notes"])
    strict = without_original(tailored, tmp_path / "strict", ["accuracy >= 0.999", "size <= 1 kB"])
    found = package.verify(strict, tailored.case.data(tmp_path / "again", **tailored.case.fresh))
    assert found["status"] == 3
    assert {each["outcome"] for each in found["limits"]} == {"broken"}


@pytest.mark.parametrize(
    ("limit", "rival"),
    [
        ("accuracy >= 0.5", True),
        ("size <= 0.9 x baseline", False),
        ("accuracy@thickness >= baseline - 0.1", False),
        ("flips <= 10 %", False),
        ("worst_class_drop <= 0.2", False),
        ("mine.py:metric >= 0.1", False),
    ],
)
def test_all_other_limits_need_it(
    limit: str, rival: bool, tailored: Tailored, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text("def metric(answers, labels):\n    return 1.0\n")
    limit = limit.replace("mine.py", str(tmp_path / "mine.py"))
    place = without_original(tailored, tmp_path / "bundle", [limit], rival)
    with pytest.raises(WrongRequest, match="write --original FILE"):
        package.verify(place, tailored.case.data(tmp_path))
    assert not list(tmp_path.glob("*.sartor-ledger"))


def test_rows_of_the_run_verify_nothing(tailored: Tailored, tmp_path: Path) -> None:
    """What chose or certified the artifact once cannot certify it again."""
    with pytest.raises(WrongRequest, match="fresh rows"):
        package.verify(tailored.folder, tailored.case.data(tmp_path / "own"))
    own, fresh = tailored.case.arrays, tailored.case.fresh
    mixed = {name: np.concatenate([own[name], fresh[name][:50]]) for name in own}
    found = package.verify(tailored.folder, tailored.case.data(tmp_path / "mixed", **mixed))
    assert {each["examples"] for each in found["limits"] if "accuracy" in each["limit"]} == {50}
    assert any(f"{len(own['label']):,} rows" in note for note in found["notes"])


def test_a_changed_bundle_is_not_measured(tailored: Tailored, tmp_path: Path) -> None:
    shutil.copytree(tailored.folder / "bundle", tmp_path / "bundle")
    with (tmp_path / "bundle" / "card.md").open("a") as card:
        card.write("\nAccuracy: 100 %")
    with pytest.raises(WrongRequest, match=r"card\.md was changed"):
        package.verify(tmp_path / "bundle", tailored.case.data(tmp_path))


def test_broken_parity_is_said(tailored: Tailored, tmp_path: Path) -> None:
    """An artifact that answers otherwise here than where it was made, its hashes being right."""
    place = tmp_path / "bundle"
    shutil.copytree(tailored.folder / "bundle", place)
    with np.load(place / "parity.npz") as kept:
        arrays = {name: kept[name] for name in kept.files}
    arrays["output.logits"] = arrays["output.logits"] + 1.0
    np.savez(place / "parity.npz", **arrays)
    facts = json.loads((place / "sartor.json").read_text())
    facts["files"]["parity.npz"] = bundle.file_digest(place / "parity.npz")
    rewrite(place, facts)
    few = {name: each[:60] for name, each in tailored.case.fresh.items()}
    found = package.verify(place, tailored.case.data(tmp_path, **few))
    assert found["status"] == 3
    assert not found["parity_holds"]
    assert "parity" in found["message"]


def test_an_artifact_that_does_not_run_here_is_broken_and_spends_nothing(
    tailored: Tailored, tmp_path: Path
) -> None:
    place = tmp_path / "bundle"
    shutil.copytree(tailored.folder / "bundle", place)
    facts = json.loads((place / "sartor.json").read_text())
    proto = onnx.load(place / facts["file"])
    proto.graph.node[0].op_type = "FromTheFuture"
    onnx.save(proto, place / facts["file"])
    facts["files"][facts["file"]] = bundle.file_digest(place / facts["file"])
    rewrite(place, facts)
    data = tailored.case.data(tmp_path, **tailored.case.fresh)
    found = package.verify(place, data)
    assert found["status"] == 3
    assert "does not run here" in found["message"]
    assert not ledger_path(data).exists()


def test_data_of_another_model(tailored: Tailored, cancer: Case, tmp_path: Path) -> None:
    with pytest.raises(WrongRequest, match="pixels"):
        package.verify(tailored.folder, cancer.data(tmp_path))


# -- columns and labels ---------------------------------------------------------------------------


def copied(tailored: Tailored, place: Path, **changed: Any) -> Path:
    """The bundle with other words in `sartor.json`, its hash being right."""
    shutil.copytree(tailored.folder / "bundle", place)
    rewrite(place, {**bundle.read(place), **changed})
    return place


def test_columns_are_those_of_the_run(tailored: Tailored, tmp_path: Path) -> None:
    """A label of another name and a segment are found again without being named anew; a segment
    that no limit is about need not be there."""
    facts = bundle.read(tailored.folder)
    asked = ["accuracy@thickness >= 0.1", "size <= 0.5 x baseline"]
    place = copied(
        tailored, tmp_path / "bundle",
        columns={"label": "truth", "segments": ["thickness", "city"], "group": None, "mask": None},
        certificate={**facts["certificate"], "limits_asked": asked},
    )  # fmt: skip
    few = {name: each[:60] for name, each in tailored.case.fresh.items()}
    truth = few.pop("label")
    data = tailored.case.data(tmp_path, **few, label=None, truth=truth)
    found = package.verify(place, data)
    limits = {each["limit"]: each for each in found["limits"]}
    assert limits["accuracy@thickness >= 0.1"]["outcome"] != "broken"
    parts = json.dumps(limits["accuracy@thickness >= 0.1"]["parts"])
    assert "thin" in parts
    assert "thick" in parts
    other = tailored.case.data(tmp_path / "other", **few, label=None, mine=truth)
    with pytest.raises(WrongRequest, match="truth"):
        package.verify(place, other)
    assert package.verify(place, other, label="mine")["limits"]


def test_data_without_labels_are_refused_before_they_spend_anything(
    sartor: Sartor, tailored: Tailored, tmp_path: Path
) -> None:
    data = tailored.case.data(tmp_path, **{**tailored.case.fresh, "label": None})
    said = sartor("verify", tailored.folder, "--data", data)
    assert said.status == 2, said.err
    assert "accuracy" in said.err
    assert "--label" in said.err
    assert "Traceback" not in said.err
    assert not list(tmp_path.glob("*.sartor-ledger"))


def test_a_segment_that_is_not_there(tailored: Tailored, tmp_path: Path) -> None:
    facts = bundle.read(tailored.folder)
    asked = {**facts["certificate"], "limits_asked": ["accuracy@city >= 0.1"]}
    place = copied(tailored, tmp_path / "bundle", certificate=asked, columns={})
    with pytest.raises(WrongRequest, match="no segment column 'city'"):
        package.verify(place, tailored.case.data(tmp_path, **tailored.case.fresh))


def test_mask_and_trust_are_taken(sartor: Sartor, tailored: Tailored, tmp_path: Path) -> None:
    few = {name: each[:40] for name, each in tailored.case.fresh.items()}
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps(few))
    said = sartor("verify", tailored.folder, "--data", path)
    assert said.status == 2
    assert "--trust" in said.err
    said = sartor("verify", tailored.folder, "--data", path, "--trust", "--mask", "gone")
    assert said.status == 2
    assert "no input 'gone'" in said.err
    said = sartor("verify", tailored.folder, "--data", path, "--trust", "--json")
    assert said.status == 4, said.err


@pytest.mark.parametrize(
    ("limit", "rows", "status"),
    [
        ("accuracy >= 0.5", 150, 0),
        ("accuracy >= {own}", 60, 4),
        ("accuracy >= 0.999", 200, 3),
        ("accuracy >= baseline - 0.01", 60, 0),
    ],
)
def test_an_original_that_was_kept_is_judged_by_its_limits_alone(
    limit: str, rows: int, status: int, tailored: Tailored, tmp_path: Path
) -> None:
    """It need not be better than itself, and what is undecided is not broken."""
    case, facts = tailored.case, bundle.read(tailored.folder)
    model = open_model(case.model)
    few = {name: each[:rows] for name, each in case.fresh.items()}
    with runtime("onnx").start(model, Target()) as run:
        right = run({"pixels": few["pixels"]})["logits"].argmax(1) == few["label"]
    text = limit.format(own=round(float(right.mean()) - 0.01, 3))
    kept = ("task", "original", "data")
    bundle.write(
        model, tmp_path / "bundle",
        {
            **{name: facts[name] for name in kept},
            "recipe": [],
            "certificate": {"limits_asked": [text], "objective": "latency"},
        },
        {"pixels": case.arrays["pixels"][:8]}, np.zeros(0, np.uint32), Target(), "the original",
    )  # fmt: skip
    found = package.verify(tmp_path / "bundle", case.data(tmp_path, **few))
    assert found["status"] == status, found
    assert [each["limit"] for each in found["limits"]] == [text]
    told = {0: "met", 3: "broken", 4: "undecided"}[status]
    assert found["limits"][0]["outcome"] == told
    assert ("verified" if status == 0 else text) in found["message"]


def test_it_goes_on_with_more_data_and_takes_no_row_twice(
    sartor: Sartor, tailored: Tailored, tmp_path: Path
) -> None:
    """Too few rows, then the others: the sequences of the first go on, and the first rows among
    the others are left out."""
    shutil.copytree(tailored.folder / "bundle", tmp_path / "bundle")
    evidence = tmp_path / "bundle.sartor-evidence"
    fresh = tailored.case.fresh
    count = len(fresh["label"])
    few = tailored.case.data(tmp_path / "few", **{k: v[: count // 2] for k, v in fresh.items()})
    said = sartor("verify", tmp_path / "bundle", "--data", few, "--json")
    assert said.status in (0, 4), said.err
    if said.status == 0:
        pytest.skip("half of the rows were enough here")
    first = json.loads(evidence.read_text())
    again = sartor("verify", tmp_path / "bundle", "--data", few, "--json")
    assert again.status == 2
    assert "fresh rows" in again.err
    more = tailored.case.data(tmp_path / "more", **fresh)
    said = sartor("verify", tmp_path / "bundle", "--data", more, "--json")
    assert said.status in (0, 4), said.err
    assert any("sequences go on" in note for note in said.json["notes"])
    assert any(f"{count // 2:,} rows that judged it" in note for note in said.json["notes"])
    quality = next(each for each in said.json["limits"] if each["limit"].startswith("accuracy"))
    assert quality["method"] == f"betting on {count:,} examples"
    if said.status == 4:
        seen = {key: each["seen"] for key, each in json.loads(evidence.read_text())["bets"].items()}
        assert all(seen[key] > each["seen"] for key, each in first["bets"].items())


def test_spoilt_evidence_is_told(sartor: Sartor, tailored: Tailored, tmp_path: Path) -> None:
    shutil.copytree(tailored.folder / "bundle", tmp_path / "bundle")
    (tmp_path / "bundle.sartor-evidence").write_text('{"bundle": 3, "bets"')
    data = tailored.case.data(tmp_path, **tailored.case.fresh)
    said = sartor("verify", tmp_path / "bundle", "--data", data)
    assert said.status == 2
    assert "sartor-evidence is not as Sartor wrote it" in said.err
