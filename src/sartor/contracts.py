"""The theory on one page: what a model, a technique, a runtime and a search are.

    recipe : tuple[Technique, ...]          () is the original
    apply  : Technique x Model x Bench -> Model            pure
    start  : Runtime x Model x Target -> Session           a model that runs
    call   : Session x Arrays -> Arrays

Everything is a frozen value; a loop over a recipe is all the composition there is.
"""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np

from sartor.space import domains

if TYPE_CHECKING:
    from sartor.records import Trial

Arrays = Mapping[str, np.ndarray]
"""Input or output name -> array; the first axis of every array is the batch."""


HUNG = "hung"  # how the reason of a trial begins that was cut off by the clock


class WrongRequest(ValueError):
    """The request is wrong: one clear sentence that says what, and what to write instead."""


class Failed(RuntimeError):
    """A trial could not be carried out; the sentence stands in the journal as its reason."""


class Unneeded(Failed):
    """A technique finds, only while it is applied, that there is nothing for it to do."""


@dataclass(frozen=True)
class Port:
    """One named input or output. `shape` has None where a size is free; dtype is numpy's name."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Signature:
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True)
class Glimpse:
    """A few rows of the data, for models that do not say what they take: arrays by name, or in
    their order where they have none. What is no input (labels, groups, splits) is not in it;
    `last` is what stands behind unnamed ones: the label, or one more input."""

    named: Mapping[str, np.ndarray] = field(default_factory=dict)
    unnamed: tuple[np.ndarray, ...] = ()
    last: np.ndarray | None = None


@dataclass(frozen=True)
class Model:
    """A model at rest: a value, never mutated. What `payload` is, the runtime of `kind` knows.

    For file formats the payload is the Path of a read-only file; who changes the model writes
    another file (into `Bench.scratch`).
    """

    kind: str
    payload: Any
    signature: Signature
    settings: Mapping[str, Any] = field(default_factory=dict)
    lineage: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Step:
    """What one technique did. `touched` and the names in `skipped` partition the parts it
    considered (graph nodes, layers, tensors); every skipped part has its reason."""

    technique: Technique
    touched: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Target:
    """Where the artifact is to run. `threads` is a ceiling; `features` are instruction sets by
    Linux's names ("avx512_vnni", "amx_int8" ...); `fixed` holds (input, shape) where the target
    asks for fixed shapes: only then may a technique make the signature narrower."""

    device: str = "cpu"
    threads: int = 1
    batch: int = 1
    features: frozenset[str] = frozenset()
    fixed: tuple[tuple[str, tuple[int, ...]], ...] = ()


@dataclass(frozen=True)
class Task:
    """What the model is for. `output` names the output that answers; `metric` is the primary
    quality metric; `labelled` is False where the original's answers stand in for labels; `form`
    is what the numbers of a classifier's answers are: "logits", "probabilities" or "classes"."""

    kind: str
    output: str
    metric: str
    labelled: bool = True
    classes: int | None = None
    form: Literal["logits", "probabilities", "classes"] | None = None


@dataclass(frozen=True)
class Training:
    """What one full training of a recipe may cost: `steps` of the original, each of `seconds` here
    and of so much `work` (in multiply-accumulates) an example. No steps: nothing may be trained,
    and `why`."""

    steps: int = 0
    seconds: float = 0.0
    work: int = 0
    why: str = ""

    def takes(self, effort: float) -> float:
        """Seconds of a training that is granted this share."""
        return self.steps * effort * self.seconds


class Bench(Protocol):
    """All that a technique may use: never the holdout."""

    @property
    def seed(self) -> int: ...

    @property
    def teacher(self) -> Model: ...

    @property
    def task(self) -> Task: ...

    @property
    def limits(self) -> tuple[Any, ...]: ...

    @property
    def target(self) -> Target: ...

    @property
    def training(self) -> Training:
        """What may be spent on training, set once from the measured time of a step."""

    @property
    def augment(self) -> Callable[..., Arrays] | None:
        """The user's function for training batches, None where there is none: a batch and whole
        numbers that seed it -> the batch with inputs of the same names, shapes and types. Raises
        Failed with a sentence."""

    @property
    def processes(self) -> int:
        """Over how many processes a training is spread."""

    @property
    def budget(self) -> float:
        """Seconds of the whole run, for what to propose; infinite where trials are counted."""

    @property
    def patience(self) -> float:
        """Seconds after which a step of a recipe is given up, at present: for refusals alone,
        since what is made must not depend on it."""

    @property
    def scratch(self) -> Path:
        """A folder for the files that a technique makes."""

    def batches(
        self, split: str, size: int = 1, most: int | None = None
    ) -> Iterator[Arrays] | None:
        """Batches of `split` ("train" or "search"), at most `most` examples of it, in the part's
        order; labels, where there are any, under "label". None where the split has no rows."""

    def count(self, split: str) -> int:
        """Rows of "train" or "search"; 0 where there are none."""

    def pick(self, split: str, rows: np.ndarray) -> Arrays:
        """One batch of these rows, as `batches` gives them."""

    def lengths(self, split: str) -> np.ndarray | None:
        """[N]: the true length of each row; None where rows are not padded."""

    def teach(self, batch: Arrays, sharers: int = 1) -> Arrays:
        """The original's answers, where so many processes ask at the same time."""

    def remember(
        self, key: str, compute: Callable[[], Mapping[str, np.ndarray]], *, shared: bool = False
    ) -> Mapping[str, np.ndarray]:
        """What `compute` returns, from disk where it was computed before for this model and these
        data. The key holds every setting that matters. `shared`: it is of the original and the
        data alone, and the same whatever model the technique is applied to."""

    def keeping(self, key: str) -> Path:
        """Where work that may be interrupted keeps its state until it is done, and then deletes
        it: a file that may or may not be there, for this model, these data and this key."""


@dataclass(frozen=True)
class Technique(ABC):
    """One way to change a model. Fields are settings and carry their search domains (`space`).

    `stage` orders techniques in a recipe: structure < weights < graph < precision < storage <
    tuning < session (how it is run, which no conversion keeps) < conversion (to another kind of
    model), behind which the stages begin anew.
    `repair` names the setting that buys quality back when it grows.
    `neutral` holds settings with which the outputs are reproduced exactly, where there are some.
    `claims` names what it should lower: "size", "latency", "macs", "memory".
    `makes` is the kind of the model that comes out, where it is another one.
    `values_only`: size and speed are those of a recipe without it.
    `experimental`: the search takes it only where a request names it.
    """

    kinds: ClassVar[frozenset[str]]
    needs: ClassVar[frozenset[str]] = frozenset()
    stage: ClassVar[str] = "graph"
    repair: ClassVar[str | None] = None
    neutral: ClassVar[Mapping[str, Any] | None] = None
    claims: ClassVar[frozenset[str]] = frozenset()
    makes: ClassVar[str | None] = None
    values_only: ClassVar[bool] = False
    experimental: ClassVar[bool] = False

    @abstractmethod
    def refuse(self, model: Model, bench: Bench) -> str | None:
        """The reason why this cannot help here, found cheaply; None = may try."""

    @abstractmethod
    def apply(self, model: Model, bench: Bench) -> Model:
        """The changed model, with one more Step in its lineage. Pure in (self, model, bench).

        Raises Unneeded where it turns out that there is nothing to do, Failed with a sentence
        where it is impossible."""


STAGES = ("structure", "weights", "graph", "precision", "storage", "tuning", "session",
          "conversion")  # fmt: skip

Recipe = tuple[Technique, ...]


@dataclass(frozen=True)
class Part:
    """One countable part of a model, for the profile: a node, a layer.

    `parameters` counts numbers, `bytes` what they take at rest, `macs` multiply-accumulates for
    one example (None where unknown)."""

    name: str
    operator: str
    parameters: int
    bytes: int
    macs: int | None


class Session(Protocol):
    """A model that runs; a context manager that frees its memory on exit."""

    def __call__(self, batch: Arrays) -> Arrays: ...

    def __enter__(self) -> Session: ...

    def __exit__(self, *exc: object) -> None: ...


class Runtime(Protocol):
    """One per kind, found by the file `runtimes/<kind>.py`.

    What it may state and have besides:
    `takes`: packages; objects in memory whose class derives from one of theirs are given to
    `adopt(given, folder, look, trust) -> Model`, which stores them below `folder`.
    `folders`: names of files; a folder with one of them is a model of this kind.
    `bring(path, folder, look, trust) -> Model`: the model in a file or folder that somebody else
    wrote, made below `folder` into what `open` takes where it is not that already.
    `look()` gives a `Glimpse` of the data, or is None; with `trust` pickles may be read. Both raise
    WrongRequest with a sentence.
    `remarks(model) -> tuple[str, ...]`: what was given up when it was taken in, for the user.
    `purpose(model) -> Mapping[str, str]`: `kind` of task and `metric`, where its training told
    them; what the user says goes before.
    `reads(model) -> tuple[str, ...]`: the files that the model's file names, as it names them; a
    bundle must list them.
    `elsewhere(model, rows, batch) -> str`: a line for a bundle's card on how another engine would
    run the file on such rows, or "".
    `facing(model) -> Signature`: that of a session, where a model's settings change it.
    `static = True`: models of this kind have fixed sizes as a rule, so that a conversion to it may
    fix what was free.
    `runs_code = True`: its files name code; neither a path nor a bundle opens them.
    `internal = True`: for tests; not named to users."""

    kind: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]

    def open(self, path: Path, known: Signature | None = None) -> Model:
        """The model in a file. Raises WrongRequest with a sentence for anything unusable.

        `known`: the signature of a file that Sartor wrote and that is unchanged since; it need
        not be read again, so that a bundle runs with nothing but its framework."""

    def save(self, model: Model, folder: Path) -> Path:
        """Writes the model's files into `folder`; returns the one that `open` takes."""

    def digest(self, model: Model) -> str:
        """A hex digest of content and settings; equal for equal models wherever they lie."""

    def size(self, model: Model) -> int:
        """Bytes on disk of all that `save` writes."""

    def start(self, model: Model, target: Target) -> Session: ...

    def parts(self, model: Model, sample: Arrays) -> tuple[Part, ...]:
        """The model's parts; `sample` (one example) fixes free sizes for counting MACs."""

    def part_seconds(
        self, model: Model, target: Target, batches: list[Arrays]
    ) -> Mapping[str, float]:
        """Part name -> measured seconds for one batch, by the runtime's own profiler."""

    def versions(self) -> Mapping[str, str]:
        """Package name -> version of all that decides what the model computes."""


class Searcher(Protocol):
    """Ask and tell; knows no framework."""

    def ask(self) -> tuple[Recipe, float] | None:
        """A recipe and its fidelity (share of the search split, 0 to 1); None = finished."""

    def tell(self, trial: Trial) -> None: ...


def technique_name(technique: Technique | type[Technique]) -> str:
    """`StaticInt8` -> "static-int8": the name in recipes, specs and journals."""
    cls = technique if isinstance(technique, type) else type(technique)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).lower()


def to_json(technique: Technique) -> dict[str, Any]:
    """Plain JSON of a technique: its name and every setting."""
    return {"technique": technique_name(technique), **dataclasses.asdict(technique)}


def trains(technique: Technique | type[Technique]) -> bool:
    """Whether it trains, and so wants some of what a run grants."""
    return "training" in technique.needs


def describe(recipe: Recipe) -> str:
    """A recipe in words: names, and the settings that differ from their defaults."""
    return " > ".join(_describe(each) for each in recipe) or "original"


def _describe(technique: Technique) -> str:
    changed = [
        f"{f.name}={getattr(technique, f.name)}"
        for f in dataclasses.fields(technique)
        if getattr(technique, f.name) != f.default
    ]
    return technique_name(technique) + (f"({', '.join(changed)})" if changed else "")


def check_settings(technique: Technique) -> None:
    """Raises WrongRequest where a setting lies outside its domain."""
    for name, domain in domains(technique).items():
        value = getattr(technique, name)
        if value not in domain:
            raise WrongRequest(
                f"{technique_name(technique)}: {name}={value!r} is outside its domain; "
                f"write one of {domain}"
            )
