"""The command line: reads arguments, calls one function, prints what it returns. No logic."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from sartor.contracts import Failed, WrongRequest

DESCRIPTION = (
    "Takes a trained model, labelled data and the limits it must meet; returns the best artifact "
    "that is shown to meet them on this machine, with the evidence, or says that none does."
)
STATUSES = (
    "exit status: 0 something (the original included) is certified to meet all limits; "
    "4 undecided; 3 infeasible; 2 the request is wrong; 1 a defect; 130 stopped (Ctrl-C)"
)
MODEL = (
    "a model: .onnx, .xml (OpenVINO), .tflite, .pt2 (torch.export.save), TorchScript (.ts, .pt), a "
    "folder of Hugging Face's, a .keras file, or file.py:factory, which returns a torch.nn.Module "
    "or a keras.Model"
)
LIMITS = """\
limits: METRIC[.STATISTIC][@SEGMENT] (<=|>=) VALUE, for instance
  "accuracy >= baseline - 0.01"   "size <= 20 MB"          "latency.p95 <= 10 ms"
  "f1 >= 99 % of baseline"        "size <= 0.5 x baseline" "accuracy@sex >= baseline - 0.02"
"""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, as everything else here does."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"sartor: {message}; write {self.prog} --help for what there is\n")


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="sartor", description=DESCRIPTION, epilog=STATUSES)
    top.add_argument("--version", action="store_true", help="print the version")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    _optimize(commands)
    _profile(commands)
    _compare(commands)
    _verify(commands)
    report = _command(commands, "report", "a run's journal rendered again; measures nothing")
    report.add_argument("folder", help="the run's output folder")
    _json(report)
    doctor = _command(
        commands, "doctor", "what is installed here, and what each missing part needs"
    )
    _json(doctor)
    demo = _command(commands, "demo", "the main job on a real model and real data from pip")
    demo.add_argument("--out", default="sartor-demo", help="output folder (default: %(default)s)")
    demo.add_argument("--budget", default="3m", help="time to spend (default: %(default)s)")
    _json(demo)
    return top


def _command(commands: Any, name: str, about: str, usage: str = "") -> argparse.ArgumentParser:
    """`usage`: what comes after the command's name, where argparse's own order would mislead."""
    made: argparse.ArgumentParser = commands.add_parser(
        name,
        usage=f"sartor {name} {usage}" if usage else None,
        help=about,
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return made


def _json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print one JSON object last")


def _data(command: argparse.ArgumentParser, required: bool, task: bool = True) -> None:
    group = command.add_argument_group("data")
    group.add_argument(
        "--data",
        required=required,
        help=".npz, .parquet, .csv, a folder of images by class, or file.py:factory",
    )
    group.add_argument("--label", help="the array or column with the labels (default: label)")
    group.add_argument(
        "--segment", action="append", dest="segments", metavar="COLUMN", help="a segment column"
    )
    group.add_argument("--group", help="the column with the query of each row, for ranking")
    group.add_argument("--mask", help="the input that marks padding (default: attention_mask)")
    group.add_argument(
        "--trust", action="store_true", default=None, help="allow pickles, which can run any code"
    )
    if not task:
        return
    group.add_argument("--output", help="the model's output that answers")
    group.add_argument(
        "--task", choices=("classification", "regression", "ranking", "segmentation", "free")
    )
    group.add_argument("--metric", help="the primary quality metric")


def _target(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("target")
    group.add_argument("--threads", type=int, help="the most threads it may use (default: 1)")
    group.add_argument("--batch", type=int, help="examples a call (default: 1)")


def _optimize(commands: Any) -> None:
    command = _command(
        commands,
        "optimize",
        "find, certify and bundle the best artifact",
        "MODEL --data DATA [--limit LIMIT ...] [--budget TIME] [--out FOLDER] [OPTION ...]\n"
        "       sartor optimize --resume FOLDER [--budget +TIME]",
    )
    command.epilog = LIMITS + STATUSES
    command.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help=f"{MODEL}; or a .toml with the whole request; not needed with --resume FOLDER",
    )
    _data(command, required=False)
    _target(command)
    command.add_argument(
        "--augment",
        metavar="FILE.py:FUNCTION",
        help="changes the inputs of training batches: (inputs by name, rng) -> inputs",
    )
    command.add_argument(
        "--train-processes",
        type=int,
        metavar="N",
        help="spread every training over so many processes (default: 1)",
    )
    command.add_argument(
        "--fix",
        action="append",
        dest="fixed",
        metavar="INPUT=SIZES",
        help="the target takes fixed shapes only, such as image=1,3,224,224",
    )
    command.add_argument(
        "--format",
        action="extend",
        nargs="+",
        dest="formats",
        metavar="KIND",
        help="what the target takes, such as tflite, onnx, openvino, pt2, torchscript: the answer "
        "is of that kind; with several there is a run and a bundle for each",
    )
    command.add_argument(
        "--watts", type=float, help="what a busy core needs, to estimate energy from CPU time"
    )
    group = command.add_argument_group("request")
    group.add_argument(
        "--limit",
        action="append",
        dest="limits",
        metavar="LIMIT",
        help="what the artifact must meet, as below; may be given several times",
    )
    group.add_argument("--minimize", metavar="METRIC", help="default: latency")
    group.add_argument("--maximize", metavar="METRIC")
    group.add_argument(
        "--technique", action="append", dest="techniques", metavar="NAME", help="use only these"
    )
    group.add_argument("--without", action="append", metavar="NAME", help="leave this one out")
    group = command.add_argument_group("run")
    group.add_argument(
        "--budget",
        help="time to spend, such as 30s, 10m, 1h (default: 10m); +10m: on top of what it had",
    )
    group.add_argument(
        "--trials", metavar="N", help="number of trials instead of a time; +N: so many more"
    )
    group.add_argument("--seed", type=int)
    group.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="let Ray workers work ahead: ray (this machine), HOST:6379 or ray://HOST:10001",
    )
    group.add_argument("--out", help="output folder (default: tailored)")
    group.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="FOLDER",
        help="continue the run in this folder (default: that of --out), finished or not; its "
        "journal holds the request, so that --budget +10m or --trials +20 is all that it needs",
    )
    group.add_argument(
        "--replay", metavar="JOURNAL", help="take latencies from this run.jsonl where it has them"
    )
    group.add_argument(
        "--learn-from",
        action="append",
        metavar="PATH",
        help="a run.jsonl, or a folder of runs: what they found guides what is tried first",
    )
    group.add_argument("--quiet", action="store_true", help="only the answer")
    _json(command)


def _profile(commands: Any) -> None:
    command = _command(
        commands,
        "profile",
        "where a model's time, bytes and operations sit",
        "MODEL --data DATA [OPTION ...]",
    )
    command.add_argument("model", metavar="MODEL", help=MODEL)
    _data(command, required=True)
    _target(command)
    command.add_argument("--top", type=int, default=20, help="rows shown (default: %(default)s)")
    _json(command)


def _compare(commands: Any) -> None:
    command = _command(
        commands,
        "compare",
        "artifacts side by side, the first as the baseline",
        "MODEL [MODEL ...] --data DATA [OPTION ...]",
    )
    which = f"{MODEL} or a function in its place; or a bundle"
    command.add_argument("models", nargs="+", metavar="MODEL", help=which)
    _data(command, required=True)
    _target(command)
    _json(command)


def _verify(commands: Any) -> None:
    command = _command(
        commands,
        "verify",
        "a bundle's certificate measured again on this machine",
        "BUNDLE --data DATA [--original MODEL] [OPTION ...]",
    )
    command.add_argument("bundle", metavar="BUNDLE", help="a bundle, or the folder of its run")
    _data(command, required=True, task=False)
    command.add_argument("--original", help="the model it came from, for limits on the baseline")
    command.add_argument("--threads", type=int, help="the most threads (default: the bundle's)")
    _json(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    top = parser()
    given = top.parse_args(arguments)
    if given.version:
        from sartor import __version__

        print(__version__)
        return 0
    if given.command is None:
        top.print_help()
        return 2
    if given.command == "optimize" and not (given.model or isinstance(given.resume, str)):
        print(
            "sartor: name a MODEL (before --format, which takes all words behind it), or --resume "
            "FOLDER; write sartor optimize --help for what there is",
            file=sys.stderr,
        )
        return 2
    try:
        with _stopping():
            return _run(given)
    except WrongRequest as error:
        print(f"sartor: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        how = f"; {stopped}" if str(stopped) else ""
        print(f"sartor: stopped{how}", file=sys.stderr)
        return 130
    except Failed as error:
        print(f"sartor: {error}", file=sys.stderr)
        return 1
    except Exception:  # the one place where a defect meets the user
        traceback.print_exc()
        print("sartor: this is a defect of Sartor, not of your request", file=sys.stderr)
        return 1


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """The first Ctrl-C is answered at once, though what runs takes seconds to end; a second one
    ends the process there and then."""

    def told(*_: object) -> NoReturn:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        print("\nsartor: stopping (what is done is kept; Ctrl-C again: at once)", file=sys.stderr)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, told)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _run(given: argparse.Namespace) -> int:
    # Imported here, so that --help and a mistyped flag answer at once.
    from sartor import commands

    os.environ.setdefault("KERAS_BACKEND", "torch")  # for factories that import Keras
    values = {k: v for k, v in vars(given).items() if k not in ("command", "version")}
    answer = getattr(commands, given.command)(**values)
    if given.json:
        print(json.dumps(answer.data, allow_nan=False))
    status: int = answer.status
    return status


if __name__ == "__main__":
    sys.exit(main())
