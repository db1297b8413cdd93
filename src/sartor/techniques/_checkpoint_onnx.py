"""What a training that is stopped goes on from."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor


@dataclass
class Seen:
    """What a training has come to: the best weights so far, steps done, the losses on the search
    split (the best, the one before the first step, that of the last look), and how many looks in
    a row were each worse than the one before."""

    values: list[Tensor]
    done: int
    best: float
    before: float
    last: float
    rising: int = 0

    def look(self, loss: float, values: Callable[[], list[Tensor]]) -> None:
        # The rate falls to the end, and the loss with it: only one that rises is given up.
        self.rising = self.rising + 1 if loss >= self.last else 0
        self.last = loss
        if loss < self.best:
            self.best, self.values = loss, values()

    def facts(self) -> list[float]:
        return [self.done, self.best, self.before, self.last, self.rising]


@dataclass
class Checkpoint:
    """What was seen, the values of all that is trained or follows the data, masks of zeros, and for
    each weight what the optimizer knows of it, by name."""

    seen: Seen
    values: Sequence[Tensor]
    masks: Sequence[Tensor]
    moments: Sequence[Mapping[str, Tensor]]

    def save(self, place: Path) -> None:
        """The old file, or this one: never half of it."""
        state = {"facts": torch.tensor(self.seen.facts(), dtype=torch.float64)}
        lists = {"now": self.values, "best": self.seen.values, "mask": self.masks}
        for kind, tensors in lists.items():
            state |= {f"{kind} {at}": each.contiguous() for at, each in enumerate(tensors)}
        for at, known in enumerate(self.moments):
            state[f"moments {at}"] = torch.tensor(len(known))
            state |= {f"moment {at} {name}": each.contiguous() for name, each in known.items()}
        place.parent.mkdir(parents=True, exist_ok=True)
        # Workers may train the same at the same time: each writes a file of its own.
        making = place.with_suffix(f".{os.getpid()}.making")
        safetensors.torch.save_file(state, making)
        os.replace(making, place)

    @classmethod
    def load(cls, place: Path) -> Checkpoint:
        state = safetensors.torch.load_file(place)

        def under(start: str) -> dict[str, Tensor]:
            return {n.removeprefix(start): v for n, v in state.items() if n.startswith(start)}

        def several(kind: str) -> list[Tensor]:
            found = under(f"{kind} ")
            return [found[str(at)] for at in range(len(found))]

        done, best, before, last, rising = state["facts"].tolist()
        seen = Seen(several("best"), int(done), best, before, last, int(rising))
        moments = [under(f"moment {at} ") for at in range(len(several("moments")))]
        return cls(seen, several("now"), several("mask"), moments)


def restored(moments: Mapping[str, Tensor], weight: Tensor) -> dict[str, Tensor]:
    """What the optimizer knows of a weight, in memory as the weight is (a kernel may have its
    channels innermost): a fused step goes through both in the order of their bytes."""
    return {
        name: torch.empty_like(weight).copy_(value) if value.shape == weight.shape else value
        for name, value in moments.items()
    }
