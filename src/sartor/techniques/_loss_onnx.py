"""What a training holds the answers against: the labels and the original's answers.

    loss = Loss(Plan(steps=500), bench)
    loss(answers, batch, rows, part)        a number that can be differentiated

Every row counts by its weight, which balances the classes where that is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sartor.contracts import Arrays, Bench, Failed, Port, Unneeded

_TAUGHT = 1024  # rows whose answers by the original are remembered together
_ROOM = 1_000_000_000  # bytes; larger answers to all rows of a part are not remembered
_EVEN = 1.1  # the largest weight up to which classes are taken to be equally frequent
_TINY = 1e-7  # the least probability


@dataclass(frozen=True)
class Plan:
    """How to train. `rate` is the share of a weight's root mean square by which a step moves it at
    most (the relative step of Shazeer and Stern, "Adafactor", ICML 2018): one value fits layers of
    all scales. `teacher` is the part of the loss that compares with the original's answers at
    `temperature` (Hinton, Vinyals and Dean 2015); the rest compares with the labels. `hints`: what
    inner values add to it (see `_hints_onnx.Hints`); `balance`: whether rare classes count more
    (see `class_weights`); `mixed`: of how much of another row the original is asked too (see
    `_mixing_onnx`)."""

    steps: int
    batch: int = 64
    rate: float = 0.01
    teacher: float = 0.5
    temperature: float = 2.0
    hints: str = "none"
    balance: str = "none"
    mixed: float = 0.0
    decay: float = 0.01


class Loss:
    """The loss of a plan on a bench, used by so many processes at once. Raises Failed where classes
    cannot be balanced."""

    def __init__(self, plan: Plan, bench: Bench, sharers: int = 1) -> None:
        self.plan, self.bench, self.task = plan, bench, bench.task
        self.sharers = sharers
        self.share = plan.teacher if self.task.labelled else 1.0
        balanced = plan.balance != "none"
        self.weights = torch.from_numpy(class_weights(bench)) if balanced else None
        self._taught: dict[tuple[str, int], Mapping[str, np.ndarray]] = {}
        self._spreads: dict[str, float] = {}

    def __call__(
        self,
        answers: Mapping[str, Tensor],
        batch: Arrays,
        rows: np.ndarray | None,
        part: str = "train",
        lesson: Mapping[str, np.ndarray] | None = None,
        own: np.ndarray | None = None,
    ) -> Tensor:
        """`rows`: which rows of the part ("train", "search") these are, whose lessons are
        remembered; None where they were changed. `lesson`: the original's answers, where they are
        known. `own`: [N] which rows still have their label; None: all."""
        parts: list[Tensor] = []
        given = answers[self.task.output].float()
        weight = self._weight(batch)
        if self.share < 1 and "label" in batch:
            gap = self._labels(given, torch.from_numpy(batch["label"]))
            parts.append((1 - self.share) * _mean(gap, _of_own(weight, own)))
        if self.share > 0 or not parts:
            if lesson is None:
                lesson = self._lesson(batch, given, rows, part)
            taught = torch.from_numpy(np.array(lesson[self.task.output])).float()
            gap = self._teacher(given, taught)
            parts.append(max(self.share, 0.01) * _mean(gap, weight))
            for name, value in lesson.items():  # what else it answers must not drift
                if name != self.task.output and value.dtype.kind == "f" and name in answers:
                    if answers[name].shape != value.shape:
                        continue
                    other = torch.from_numpy(np.array(value))
                    drift = F.mse_loss(answers[name].float(), other) / self._spread(name, other)
                    parts.append(0.1 * drift)
        return torch.stack(parts).sum()

    def learn(self, rows: int) -> None:
        """Has the original's answers to the first training rows remembered, where they teach."""
        if self.share > 0 and self._kept("train"):
            for number in range(-(-rows // _TAUGHT)):
                self._chunk("train", number)

    def _weight(self, batch: Arrays) -> Tensor | None:
        """[N]: what each row counts; None where all count the same."""
        if self.weights is None:
            return None
        label = torch.from_numpy(batch["label"]).reshape(-1).long()
        return self.weights[label.clamp(0, len(self.weights) - 1)]

    def _labels(self, given: Tensor, label: Tensor) -> Tensor:
        """[N]: cross-entropy where labels are classes, else the squared error."""
        classes = self.task.kind in ("classification", "segmentation")
        label = self._trimmed(label, given)
        if classes and label.numel() == len(given) == given.numel():
            return self._one_number(given.reshape(-1), label.reshape(-1).float())
        if classes and label.shape == (len(given), 1) and given.ndim == 2:
            label = label[:, 0]
        if not (classes and label.ndim == given.ndim - 1):
            gap = _rows((given.reshape(label.shape) - label.float()).square())
            alone = classes or not self.share  # in which unit does not matter then
            return gap if alone else gap / self._spread(self.task.output, given.detach())
        scores = given.movedim(-1, 1) if given.ndim > 2 and self.axis != 1 else given
        label = torch.where(label < 0, -100, label.long())  # which PyTorch leaves out
        if self.task.form == "probabilities":
            return _rows(F.nll_loss(scores.clamp_min(_TINY).log(), label, reduction="none"))
        return _rows(F.cross_entropy(scores, label, reduction="none"))

    @cached_property
    def axis(self) -> int | None:
        """Of the task's output: where its classes lie."""
        return _class_axis(self.bench)

    def _trimmed(self, label: Tensor, given: Tensor) -> Tensor:
        """Labels of tokens are as wide as the longest row of all, answers as that of the batch."""
        if label.ndim < 2 or given.ndim < 2:
            return label
        at = 2 if given.ndim > 2 and label.ndim < given.ndim and self.axis == 1 else 1
        longer = label.shape[1] > given.shape[at]
        return label[:, : given.shape[at]] if longer and self._padded else label

    @cached_property
    def _padded(self) -> bool:
        return self.bench.lengths("search") is not None

    def _one_number(self, given: Tensor, label: Tensor) -> Tensor:
        """[N]: of two classes with one number for both."""
        if self.task.form == "probabilities":
            inside = given.clamp(_TINY, 1 - _TINY)
            return F.binary_cross_entropy(inside, label, reduction="none")
        return F.binary_cross_entropy_with_logits(given, label, reduction="none")

    def _teacher(self, given: Tensor, taught: Tensor) -> Tensor:
        if self.task.kind != "classification" or given.ndim < 2 or given.shape[-1] < 2:
            spread = self._spread(self.task.output, taught)
            return _rows((given - taught).square()) / spread
        heat = self.plan.temperature
        if self.task.form == "probabilities":
            given, taught = (each.clamp_min(_TINY).log() for each in (given, taught))
        gap = F.kl_div(
            F.log_softmax(given / heat, -1), F.log_softmax(taught / heat, -1),
            log_target=True, reduction="none",
        )  # fmt: skip
        return heat * heat * _rows(gap.sum(-1))

    def _spread(self, name: str, seen: Tensor) -> float:
        """The variance of the original's answers to the first training rows, in which all squared
        errors of an output are told; of what is `seen` first where those are not remembered."""
        if name not in self._spreads:
            part = self._first_part
            first = self._chunk(part, 0).get(name) if self._kept(part) else None
            known = seen if first is None else torch.from_numpy(first)
            spread = float(known.double().var(correction=0))
            self._spreads[name] = spread if spread > 1e-12 else 1.0
        return self._spreads[name]

    def _kept(self, part: str) -> bool:
        """Whether the original's answers to the rows of the part are few enough to be kept."""
        return self._bytes_a_row * self.bench.count(part) <= _ROOM

    @property
    def _first_part(self) -> str:
        return "train" if self.bench.count("train") else "search"

    @cached_property
    def _bytes_a_row(self) -> float:
        found = self.bench.teach(self.bench.pick(self._first_part, np.arange(1)))
        return float(sum(each.nbytes for each in found.values()))

    def _lesson(
        self, batch: Arrays, given: Tensor, rows: np.ndarray | None, part: str
    ) -> Mapping[str, np.ndarray]:
        """The original's answers to these rows, as they are remembered; anew where rows were
        changed, or where answers are as long as the longest row of their batch."""
        output = self.task.output
        if rows is not None and self._kept(part):
            chunks = {
                int(each): self._chunk(part, int(each)) for each in np.unique(rows // _TAUGHT)
            }
            names = set.intersection(*(set(each) for each in chunks.values()))
            sizes = {each[output].shape[1:] for each in chunks.values() if output in names}
            if sizes == {tuple(given.shape[1:])}:
                return {
                    name: np.stack([chunks[int(r // _TAUGHT)][name][r % _TAUGHT] for r in rows])
                    for name in sorted(names)
                    if len({each[name].shape[1:] for each in chunks.values()}) == 1
                }
        taught = self.bench.teach(batch, self.sharers)
        return by_row(taught, len(given))

    def _chunk(self, part: str, number: int) -> Mapping[str, np.ndarray]:
        """The original's answers to `_TAUGHT` rows of the part, those with a row for each (the
        last state of an LSTM has its layers first) and of one size, since others would have to be
        padded."""
        if (part, number) in self._taught:
            return self._taught[part, number]

        def compute() -> Mapping[str, np.ndarray]:
            rows = np.arange(number * _TAUGHT, min((number + 1) * _TAUGHT, self.bench.count(part)))
            lengths = self.bench.lengths(part)
            order = rows if lengths is None else rows[np.argsort(lengths[rows], kind="stable")]
            found: dict[str, list[np.ndarray]] = {}
            counts = []
            for start in range(0, len(order), self.plan.batch):
                picked = order[start : start + self.plan.batch]
                counts.append(len(picked))
                for name, value in self.bench.teach(self.bench.pick(part, picked)).items():
                    found.setdefault(name, []).append(value)
            back = np.argsort(order, kind="stable")
            return {
                name: np.concatenate(values)[back]
                for name, values in found.items()
                if _by_row(values, counts)
            }

        known = self.bench.remember(f"taught {part} {number}", compute, shared=True)
        self._taught[part, number] = known
        return known


def by_row(answers: Mapping[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
    """Those that have one answer for each row."""
    return {name: value for name, value in answers.items() if _by_row([value], [rows])}


def _by_row(values: Sequence[np.ndarray], counts: Sequence[int]) -> bool:
    """Whether these answers to so many rows each are one array with a row for every row."""
    if any(not value.ndim or len(value) != n for value, n in zip(values, counts, strict=True)):
        return False
    return len({value.shape[1:] for value in values}) == 1


def _rows(gaps: Tensor) -> Tensor:
    """[N]: the mean of what belongs to each row."""
    return gaps.reshape(len(gaps), -1).mean(1)


def _of_own(weight: Tensor | None, own: np.ndarray | None) -> Tensor | None:
    if own is None:
        return weight
    counts = torch.from_numpy(own.astype(np.float32))
    return counts if weight is None else weight * counts


def _mean(gap: Tensor, weight: Tensor | None) -> Tensor:
    return gap.mean() if weight is None else (gap * weight).mean()


# -- answers that cannot be trained ----------------------------------------------------------------


def without_gradient(bench: Bench) -> str | None:
    """Why these answers cannot be trained; None where they can. Cheap."""
    task = bench.task
    port = _port(bench)
    if task.form == "classes" or np.dtype(port.dtype).kind in "biuOSU":
        return f"{task.output} holds classes or whole numbers, through which no gradient passes"
    if task.labelled and task.kind == "segmentation" and _class_axis(bench) is None:
        sizes = ", ".join("?" if each is None else str(each) for each in port.shape)
        return (
            f"which axis of {task.output} [{sizes}] holds the {task.classes} classes cannot be "
            "told: export the model with the size of that one alone fixed"
        )
    return None


def _class_axis(bench: Bench) -> int | None:
    """1 or -1, by the signature: the length of a sequence may happen to be the number of classes.
    None where both could be."""
    shape, classes = _port(bench).shape, bench.task.classes
    if len(shape) < 3:
        return 1
    for sizes in ((classes,), (classes, None)):
        first, last = shape[1] in sizes, shape[-1] in sizes
        if first != last:
            return 1 if first else -1
    return None


def _port(bench: Bench) -> Port:
    """The task's output."""
    return next(p for p in bench.teacher.signature.outputs if p.name == bench.task.output)


# -- classes that are not equally frequent ---------------------------------------------------------


def without_classes(bench: Bench, balance: str) -> str | None:
    """Why classes cannot be balanced on this bench; None where they can. Cheap."""
    if balance == "none":
        return None
    if not bench.task.labelled:
        return f"balance={balance}: there are no labels that say which class is rare"
    if bench.task.kind != "classification":
        return f"balance={balance}: a task of {bench.task.kind} has no classes to balance"
    return None


def class_weights(bench: Bench) -> np.ndarray:
    """[classes] of float32: rows / (classes x rows of the class), so that every class counts the
    same in the sum over the training rows and a row counts 1 on average (King and Zeng, "Logistic
    Regression in Rare Events Data", 2001). 1 for classes without a row.

    Raises Failed where labels are no classes, Unneeded where all are about equally frequent."""
    counts = bench.remember("rows of each class", lambda: _counted(bench), shared=True)["rows"]
    there = counts > 0
    weights = np.ones(len(counts), np.float32)
    weights[there] = counts.sum() / (there.sum() * counts[there])
    if weights.max() < _EVEN:
        raise Unneeded("the classes are about equally frequent: there is nothing to balance")
    return weights


def _counted(bench: Bench) -> dict[str, np.ndarray]:
    counts = np.zeros(max(bench.task.classes or 0, 2), np.int64)
    for batch in bench.batches("train", _TAUGHT) or ():
        given = batch["label"].reshape(-1)
        label = given.astype(np.int64) if given.dtype.kind in "iubf" else given
        if len(label) != len(batch["label"]) or (label != given).any() or label.min() < 0:
            raise Failed("classes can be balanced where labels are whole numbers, one a row")
        found = np.bincount(label)
        counts = np.pad(counts, (0, max(len(found) - len(counts), 0)))
        counts[: len(found)] += found
    return {"rows": counts}
