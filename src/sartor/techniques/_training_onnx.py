"""One trainer for everything that trains a loss away: the labels and the original teach.

    trained = train(graph, Plan(steps=500), bench)       the graph's constants are changed

The steps run on Lightning Fabric, in one process or in several (see `_ranks_onnx`). Rows, order and
rounding depend on the seed, the step and the number of processes alone, so that a training that was
killed goes on from its last checkpoint as if nothing had happened.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sartor.contracts import Arrays, Bench, Failed, Model
from sartor.machine import multiplies_bfloats
from sartor.pace import Pace
from sartor.techniques._agreement_onnx import agree
from sartor.techniques._autograd_onnx import GraphModule, followed
from sartor.techniques._checkpoint_onnx import Checkpoint, Seen, restored
from sartor.techniques._graph_onnx import Graph, peek
from sartor.techniques._hints_onnx import Hints
from sartor.techniques._loss_onnx import Loss, Plan, by_row, without_classes, without_gradient
from sartor.techniques._mixing_onnx import Mixing
from sartor.techniques._norms_onnx import Norms
from sartor.techniques._operators_onnx import called
from sartor.techniques._order_onnx import Order
from sartor.techniques._ranks_onnx import Rank, joined, spread
from sartor.techniques._rates_onnx import optimizer, schedule, zeros_kept
from sartor.techniques._sparsity_onnx import Sparse, Sparsity, sparsifiable
from sartor.techniques._weights_onnx import weighs

_CLIP = 5.0  # the largest norm of a step's gradient
_LOOKS = 6  # times that the search split is looked at
_JUDGED = 1024  # rows of the search split that are looked at
_DEAR = 20  # times as many rows are trained on, or fewer are looked at
_PATIENCE = 3  # looks in a row, each worse than the one before, after which no gain is expected
_UNPACED = 10  # first steps, in which the original's answers are computed
_PACED = 20  # steps after which it is known how long the training takes
_SAVE_SECONDS = 30.0
_TELL_SECONDS = 2.0
_FEWEST = 64  # rows without which nothing is trained
_SHORTEST = 3  # steps
_TRAFFIC = 80  # multiply-accumulates that take as long as writing and reading a number
_SEEN = 4  # batches by which norms begin


@dataclass
class Trained:
    """What a training came to: steps done, and the loss on the search split, before and best."""

    steps: int
    before: float
    after: float
    names: tuple[str, ...] = ()


def threads() -> int:
    """Cores that a training may use: all that this process may."""
    return len(os.sched_getaffinity(0))


@contextmanager
def settings(seed: int, threads: int) -> Iterator[None]:
    """Threads, seed and gradient mode of torch for a training; what was found comes back."""
    before = torch.get_num_threads(), torch.is_grad_enabled(), torch.get_rng_state()
    torch.set_num_threads(threads)
    torch.set_grad_enabled(True)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_grad_enabled(before[1])
        torch.set_rng_state(before[2])


def train(graph: Graph, plan: Plan, bench: Bench, sparse: Sparse | None = None) -> Trained:
    """Trains the weights of the graph in place, `sparse` says which shall become zeros on the way.

    Raises Failed where the graph cannot be followed, the loss is no number, or nothing teaches."""
    with _together(graph, plan, bench, sparse) as training:
        try:
            return training.run()
        except Failed:
            training.place.unlink(missing_ok=True)  # nobody goes on with it
            raise


@contextmanager
def _together(
    graph: Graph, plan: Plan, bench: Bench, sparse: Sparse | None = None
) -> Iterator[_Training]:
    """The training, in as many processes as the bench says."""
    count, cores = bench.processes, threads()
    others = spread(bench, count, cores, graph, follow, plan, bench, sparse)
    with others as rank, settings(bench.seed, rank.threads):
        yield _Training(graph, plan, bench, sparse, rank)


def follow(rank: Rank, path: Path, plan: Plan, bench: Bench, sparse: Sparse | None) -> None:
    """In another process than the first: all steps that are left, until it is ended."""
    with settings(bench.seed, rank.threads), joined():
        training = _Training(Graph(onnx.load(path)), plan, bench, sparse, rank)
        for at in range(training.begin().done, plan.steps):
            training.step(at)


def cost(graph: Graph, bench: Bench, batch: int = 64, steps: int = 3) -> tuple[float, int]:
    """Seconds of a training step of this graph here, by the labels alone where there are any, and
    its `work`."""
    # The original's answers are remembered, unless they are to rows that were changed.
    teacher = 0.0 if bench.augment is None else 0.5
    with _together(graph, Plan(steps + 1, batch, teacher=teacher), bench) as training:
        training.meet()
        training.step(0)
        began = time.perf_counter()
        for at in range(1, steps + 1):
            training.step(at)
        return (time.perf_counter() - began) / steps, work(graph, bench)


def granted(graph: Graph, bench: Bench, effort: float) -> int:
    """Steps for this graph: `effort` of those granted, more where a step costs less than one of
    the original; overhead leaves a quarter of the cost at least."""
    ratio = work(graph, bench) / max(bench.training.work, 1)
    return round(bench.training.steps * effort / min(max(ratio, 0.25), 1.0))


def work(graph: Graph, bench: Bench) -> int:
    """What a step costs, told by the first search example and by no clock: multiply-accumulates,
    as torch counts them, and so many for each number that an operator gives."""
    batches = bench.batches("search", 1, 1)
    if batches is None:
        raise Failed("there are no search rows")
    batch = next(iter(batches))
    net = GraphModule(graph).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        every = tuple(name for node in net.program for name in node.outputs if name)
        made = net({name: torch.from_numpy(batch[name]) for name in net.inputs}, every)
    numbers: int = sum(each.numel() for each in made.values() if each.is_floating_point())
    return int(counter.get_total_flops()) // 2 + _TRAFFIC * numbers


def untrainable(model: Model, bench: Bench, effort: float, balance: str = "none") -> str | None:
    """Why this model cannot be trained so on this bench; None where it can. Cheap."""
    whole = bench.training
    if not whole.steps:
        return f"no training was granted: {whole.why or 'the budget is too short for it'}"
    if reason := without_classes(bench, balance) or without_gradient(bench):
        return reason
    if bench.count("train") < _FEWEST:
        return f"training wants {_FEWEST} rows or more, and there are {bench.count('train')}"
    if round(whole.steps * effort) < _SHORTEST:
        return f"{whole.steps * effort:.0f} steps are too few to train anything"
    seconds = whole.takes(effort)
    if seconds > bench.patience:
        return f"its training takes {seconds:.0f} s, and {bench.patience:.0f} s may go into it"
    graph = peek(model)
    for node in graph.nodes:
        if node.op_type != "Constant" and not followed(node):
            return f"{called(node)} is an operator that cannot be trained through"
    return None if weighs(graph) else "it has no weights in floats of 32 bits to train"


class _Training:
    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        bench: Bench,
        sparse: Sparse | None = None,
        rank: Rank | None = None,
    ) -> None:
        self.graph, self.plan, self.bench = graph, plan, bench
        self.rank = rank or Rank(threads=threads())
        self.until = time.monotonic() + bench.patience
        self.rows = min(bench.count("train"), plan.steps * plan.batch)
        if not self.rows:
            raise Failed("there are no training rows")
        self.norms = Norms(graph)
        self.net = GraphModule(graph, self.norms)
        if not self.net.names:
            raise Failed("it has no weights in floats of 32 bits to train")
        self.net.channels_last()
        if self.rank.first:
            agree(self.net, graph, bench)
        self._rows = Order(self.rows, plan.batch, bench.seed, bench.lengths("train"))
        self._see()
        self.hints = self._prepared(graph)
        self.mixing = Mixing(plan.mixed, graph, bench) if plan.mixed else None
        self.loss = Loss(plan, bench, self.rank.count)
        self.sparsity = self._sparsity(graph, sparse)
        stored = [self.net.rounded.get(name) for name in self.net.names]
        self.masks = [zeros_kept(*each) for each in zip(self.net.weights, stored, strict=True)]
        precision = "bf16-mixed" if multiplies_bfloats(bench.target.features) else "32-true"
        self.fabric = self.rank.fabric(precision)
        self.module, self.optimizer = self.fabric.setup(
            self.net, optimizer(self._trained(), plan.rate, plan.decay)
        )
        facts = f"{dataclasses.asdict(plan)} {self.rank.cores} {precision} {sparse}"
        self.place = bench.keeping(f"training {graph.digest()} {facts}")

    def _see(self) -> None:
        """Lets the norms see some rows."""

        def seen() -> Iterator[dict[str, Tensor]]:
            for at in range(_SEEN):
                batch = self.bench.pick("train", self._rows(at))
                yield self.net(self._feeds(batch), tuple(self.norms.tensors))

        if self.norms.tensors:
            with torch.no_grad():
                self.net.eval()
                self.norms.begin(seen())

    def _feeds(self, batch: Arrays) -> dict[str, Tensor]:
        return {name: torch.from_numpy(batch[name]) for name in self.net.inputs}

    def _prepared(self, graph: Graph) -> Hints | None:
        if self.plan.hints == "none":
            return None
        hints = Hints(self.plan.hints, graph, self.bench)
        batch = self.bench.pick("train", np.arange(min(2, self.rows)))
        with torch.no_grad():
            feeds = self._feeds(batch)
            hints.prepare(self.net.eval()(feeds, hints.names), batch, self.bench.seed)
        return hints

    def _sparsity(self, graph: Graph, sparse: Sparse | None) -> Sparsity | None:
        if sparse is None:
            return None
        axes = sparsifiable(graph, sparse)
        named = {n: w for n, w in zip(self.net.names, self.net.weights, strict=True) if n in axes}
        return Sparsity(list(named.values()), [axes[n] for n in named], sparse, self.plan.steps)

    def _trained(self) -> list[nn.Parameter]:
        """All that the optimizer moves: the weights, and what hints are compared through."""
        hints = self.hints.projections.values() if self.hints else ()
        norms = (*self.norms.gains.values(), *self.norms.shifts.values())
        return [*self.net.weights, *norms, *hints]

    def begin(self) -> Seen:
        """What was seen by the time it was stopped, or before the first step."""
        seen = self._resumed()
        self.meet()
        return seen

    def meet(self) -> None:
        """Gives all processes the same weights, once the original's answers are remembered."""
        if self.rank.count == 1:
            return
        if self.rank.first and self.bench.augment is None:
            with self.rank.alone():
                self.loss.learn(self.rows)
        self.rank.share([*self._trained(), *self._moving()])

    def run(self) -> Trained:
        seen = self.begin()
        looks = {round(self.plan.steps * (at + 1) / _LOOKS) for at in range(_LOOKS)}
        start, began = seen.done, time.monotonic()
        saved = told = began
        for at in range(start, self.plan.steps):
            self.step(at)
            seen.done, now = at + 1, time.monotonic()
            if at + 1 - start == _UNPACED:
                began = now
            if at + 1 - start >= _UNPACED + _PACED and now - told > _TELL_SECONDS:
                self._tell(at + 1, (now - began) / (at + 1 - start - _UNPACED))
                told = now
            if at + 1 in looks and (self.sparsity is None or at >= self.sparsity.last):
                seen.look(self.judged(), self._values)
                if seen.rising == _PATIENCE:
                    break
            if now - saved > _SAVE_SECONDS:
                self._save(seen)
                saved = now
        self._put(seen.values)
        self.net.write(self.graph)
        self.place.unlink(missing_ok=True)
        return Trained(seen.done, seen.before, seen.best, tuple(self.net.names))

    def _tell(self, done: int, seconds: float) -> None:
        """Says how far it is, a step taking so many seconds; gives up at once what the clock would
        cut off at its end."""
        pace = Pace(done, self.plan.steps, seconds * self.plan.steps)
        pace.tell(self.bench.scratch)
        left = self.until - time.monotonic()
        if pace.left > left:
            raise Failed(
                f"its training would take {pace.left:.0f} s more, and {max(left, 0):.0f} s may go "
                "into it"
            )

    def step(self, at: int) -> None:
        rows = self._rows(at)
        own = self.rank.part(rows)
        batch, known, labelled = self._batch(own, at)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial"] * schedule(at, self.plan.steps)
        self.module.train()
        feeds = self._feeds(batch)
        answers = self.module(feeds, self.hints.names if self.hints else ())
        taught, lesson = {}, None
        if self.hints:
            with self.fabric.autocast():
                taught = self.hints.taught(batch)
            if known is None:
                lesson = self._lesson(taught, len(own))
        loss = self.loss(answers, batch, known, "train", lesson, labelled)
        if self.hints:
            loss = loss + self.hints(answers, taught)
        if not math.isfinite(loss.item()):
            raise Failed(
                f"the loss is {loss.item()} at step {at + 1} of {self.plan.steps}: a lower rate "
                f"than {self.plan.rate:g} may hold"
            )
        self.optimizer.zero_grad(set_to_none=True)
        if self.rank.count == 1:
            self.fabric.backward(loss)
        else:
            self.fabric.backward(loss * (len(own) * self.rank.count / len(rows)))
            gradients = [each.grad for each in self._trained() if each.grad is not None]
            self.rank.average(self.fabric, [*gradients, *self._moving()])
        self._tame()
        self.optimizer.step()
        if self.sparsity:
            self.sparsity.update(at)

    def _batch(
        self, rows: np.ndarray, at: int
    ) -> tuple[Arrays, np.ndarray | None, np.ndarray | None]:
        """These rows, as the user's function changes them in this step and as they are mixed; which
        they are, where they are still the rows of the data; and which still have their label."""
        batch = self.bench.pick("train", rows)
        which = () if self.rank.count == 1 else (self.rank.index,)
        known: np.ndarray | None = rows
        if self.bench.augment is not None:
            batch, known = self.bench.augment(batch, self.bench.seed, at, *which), None
        if self.mixing is None:
            return batch, known, None
        batch, own = self.mixing(batch, rows, (self.bench.seed, at, *which))
        return batch, None, own

    def _lesson(self, taught: Mapping[str, Tensor], rows: int) -> Mapping[str, np.ndarray] | None:
        """The original's answers out of what its inner values were computed with."""
        names = [name for name in self.net.outputs if name in taught]
        found = by_row({name: taught[name].float().numpy() for name in names}, rows)
        return found if self.bench.task.output in found else None

    def _tame(self) -> None:
        """Zeros stay zeros; gradients of like size whatever the layer; none beyond bounds."""
        for weight, mask in zip(self.net.weights, self.masks, strict=True):
            if weight.grad is not None and mask is not None:
                weight.grad.mul_(mask)
        self.fabric.clip_gradients(self.module, self.optimizer, max_norm=_CLIP)

    @torch.no_grad()
    def judged(self) -> float:
        """The mean loss on the first rows of the search split."""
        self.net.eval()
        fewer = max(self.plan.steps * self.plan.batch // _DEAR, self.plan.batch)
        batches = self.bench.batches("search", self.plan.batch, min(_JUDGED, fewer))
        if batches is None:
            raise Failed("there are no search rows")
        total, seen = 0.0, 0
        with self.rank.alone():
            for batch in batches:
                answers = self.module(self._feeds(batch))
                count = len(batch[self.net.inputs[0]])
                rows = np.arange(seen, seen + count)
                total += float(self.loss(answers, batch, rows, "search")) * count
                seen += count
        return total / seen if math.isfinite(total) else math.inf

    # -- checkpoints ------------------------------------------------------------------------------

    def _values(self) -> list[Tensor]:
        return [each.detach().clone() for each in (*self._trained(), *self._moving())]

    def _moving(self) -> list[Tensor]:
        """What follows the data in training: the means and variances of batch norms."""
        return [*(self.net.constants[name] for name in self.net.moving), *self.norms.moving]

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        for place, value in zip((*self._trained(), *self._moving()), values, strict=True):
            place.copy_(value)

    def _save(self, seen: Seen) -> None:
        moments = [self.optimizer.state.get(each, {}) for each in self._trained()]
        masks = self.sparsity.masks if self.sparsity else []
        Checkpoint(seen, self._values(), masks, moments).save(self.place)

    def _resumed(self) -> Seen:
        """What was seen by the time it was stopped. Weights that are to be zeros and are not yet
        are never the best."""
        if not self.place.exists():
            before = self.judged() if self.rank.first else math.inf
            best = math.inf if self.sparsity else before
            return Seen(self._values(), 0, best, before, before)
        kept = Checkpoint.load(self.place)
        self._put(kept.values)
        for weight, moments in zip(self._trained(), kept.moments, strict=True):
            if moments:
                self.optimizer.state[weight] = restored(moments, weight)
        if self.sparsity:
            self.sparsity.masks = list(kept.masks)
        return kept.seen
