"""Workers on Ray: the same answer as alone, also when one is killed; nothing stays behind."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Said, Tailored, command, run
from test_resume import essence

from sartor import cluster
from sartor.records import Journal, Trial, trial_from_json

Sartor = Callable[..., Said]
PATIENCE = 300.0
COUNT = 10

with_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray is not installed: pip install 'sartor[cluster]'",
)


# -- what is wrong is said at once ------------------------------------------------------------


@pytest.mark.parametrize("address", ["rays", "ray://", "ray://head", "http://head:80", "a:b", ":1"])
def test_what_is_no_address(address: str, sartor: Sartor, tmp_path: Path) -> None:
    said = sartor("optimize", "m.onnx", "--data", "d.npz", "--out", tmp_path, "--cluster", address)
    assert said.status == 2
    assert "such as head:6379 or ray://head:10001" in said.err
    assert len(said.err.splitlines()) == 1


def test_without_ray_the_command_says_how_to_get_it(
    sartor: Sartor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    out = tmp_path / "run"
    said = sartor("optimize", "m.onnx", "--data", "d.npz", "--out", out, "--cluster", "ray")
    assert said.status == 2
    assert said.err == (
        "sartor: --cluster ray needs Ray, which is not installed; write: "
        "pip install 'sartor[cluster]'\n"
    )
    assert not out.exists()


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_where_nobody_listens(
    scheme: str, sartor: Sartor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: name)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"{scheme}127.0.0.1:{taken.getsockname()[1]}"
        out = tmp_path / "run"
        said = sartor("optimize", "m.onnx", "--data", "d.npz", "--out", out, "--cluster", address)
    assert said.status == 2
    assert f"--cluster {address}: no Ray cluster answers there (" in said.err
    assert len(said.err.splitlines()) == 1
    assert not out.exists()


@with_ray
@pytest.mark.slow
def test_where_something_else_listens(
    sartor: Sartor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the connection and says nothing: bounded all the same."""
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 10.0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(cluster.WrongRequest, match="no Ray cluster answers there"):
            cluster.check(address)


def test_workers_that_compute_something_else_are_told_apart() -> None:
    ours = {"numpy": "2.4.6", "instructions": ["avx2"]}
    assert cluster._difference(ours, dict(ours)) == ""
    assert "numpy 2.0, and this machine 2.4.6" in cluster._difference(
        ours, {**ours, "numpy": "2.0"}
    )
    assert "instruction sets" in cluster._difference(ours, {**ours, "instructions": []})
    assert "onnx None" in cluster._difference({**ours, "onnx": "1.23"}, ours)


# -- with Ray ---------------------------------------------------------------------------------


def trials(folder: Path) -> list[dict[str, Any]]:
    """All that was found of each, but for the seconds."""
    found: list[Trial] = [trial_from_json(e) for e in Journal(folder / "run.jsonl").events("trial")]
    return [{k: v for k, v in vars(trial).items() if k != "seconds"} for trial in found]


def killing(place: Path, arguments: tuple[Any, ...], environment: dict[str, str]) -> Said:
    """Runs the command, and kills a worker with SIGKILL once the first trial is done; checks that
    no process of the command outlives it."""
    journal = Journal(place / "run" / "run.jsonl")
    process = subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    children: set[psutil.Process] = set()
    until = time.monotonic() + PATIENCE
    while process.poll() is None and not journal.events("trial") and time.monotonic() < until:
        time.sleep(0.02)
    told = journal.last("cluster")
    assert told is not None, process.communicate()
    assert len(told["workers"]) == 2
    victim = psutil.Process(told["workers"][0]["pid"])
    children |= set(victim.children(recursive=True))
    children |= set(psutil.Process(process.pid).children(recursive=True))
    victim.send_signal(signal.SIGKILL)
    with contextlib.suppress(psutil.NoSuchProcess):
        children |= set(psutil.Process(process.pid).children(recursive=True))
    out, err = process.communicate(timeout=PATIENCE)
    left = psutil.wait_procs(children, timeout=PATIENCE)[1]
    assert not left, f"orphans: {left}"
    return Said(process.returncode, out, err)


def check_same(said: Said, place: Path, plain: Said, plain_folder: Path) -> None:
    assert said.status == 0, said.err
    assert essence(said.json) == essence(plain.json)
    assert trials(place / "run") == trials(plain_folder)
    journal = Journal(place / "run" / "run.jsonl")
    assert [each["again"] for each in journal.events("lost")] == ["its successor"]
    redone = journal.events("redone")
    assert [each["recipe"] for each in redone] == [journal.events("lost")[0]["recipe"]]
    assert redone[0]["tries"] == 2
    brought = journal.last("ahead")
    assert brought is not None
    assert brought["brought"] > 1


@pytest.fixture(scope="module")
def plain(tailored: Tailored, tmp_path_factory: pytest.TempPathFactory) -> tuple[Said, Path]:
    """The run without workers."""
    place = tmp_path_factory.mktemp("plain")
    said = run(*tailored.arguments(place, trials=COUNT))
    assert said.status == 0, said.err
    return said, place / "run"


def again(tailored: Tailored, place: Path, replay: Path, address: str) -> tuple[Any, ...]:
    more = ("--replay", replay / "run.jsonl", "--cluster", address)
    return tailored.arguments(place, *more, trials=COUNT)


@with_ray
@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) != 2, reason="written for two cores, two workers")
def test_a_killed_worker_on_this_machine(
    tailored: Tailored, plain: tuple[Said, Path], tmp_path: Path
) -> None:
    said = killing(tmp_path, again(tailored, tmp_path, plain[1], "ray"), {})
    check_same(said, tmp_path, *plain)
    assert not (tmp_path / "run" / "work" / "workers").exists()


@pytest.fixture
def head(tmp_path: Path) -> Iterator[tuple[int, int, dict[str, str]]]:
    """A Ray cluster of two workers in processes of its own: its ports and what one must know."""
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    known = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with cluster.tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [
                *(Path(sys.executable).with_name("ray"), "start", "--head", "--block"),
                *("--port", str(ports[0]), "--ray-client-server-port", str(ports[1])),
                *("--num-cpus", "2", "--include-dashboard=false", "--temp-dir", folder),
            ],
            env={**os.environ, **known},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            if "will now block" in line:
                break
        children = psutil.Process(process.pid).children(recursive=True)
        yield ports[0], ports[1], known
        children += psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=60)
        for each in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


@with_ray
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_is_there(
    scheme: str,
    tailored: Tailored,
    plain: tuple[Said, Path],
    head: tuple[int, int, dict[str, str]],
    tmp_path: Path,
) -> None:
    """Files travel; the workers are the cluster's, and one is killed there too."""
    gcs, client, known = head
    address = f"{scheme}127.0.0.1:{client if scheme else gcs}"
    said = killing(tmp_path, again(tailored, tmp_path, plain[1], address), known)
    check_same(said, tmp_path, *plain)
