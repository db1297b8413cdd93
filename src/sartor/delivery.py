"""What a run leaves behind: the bundle of its answer, and the frontier of what else it found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sartor import bundle
from sartor.building import APPLY_SECONDS
from sartor.card import card
from sartor.certify import Certification, Row
from sartor.contracts import Failed, WrongRequest
from sartor.finalists import Finalist
from sartor.measuring import Measuring
from sartor.outcome import nearness
from sartor.prepare import environment
from sartor.records import Trial, plain
from sartor.registry import runtime
from sartor.run import RunFolder
from sartor.store import discard, publish, settle, step_to_json

FRONTIER = 5


class Delivery:
    """Writes artifacts, each with all that is known of it."""

    def __init__(self, measuring: Measuring, folder: RunFolder) -> None:
        self.measuring, self.folder = measuring, folder
        self.spec, self.ready, self.lab = measuring.spec, measuring.ready, measuring.lab

    def write(self, row: Row, message: str, steps: list[dict[str, Any]], place: Path) -> None:
        """The artifact with what is known of it, certified or not."""
        trial = row.finalist.trial
        model = self.lab.model_of(trial)
        facts = environment(self.ready.original)
        conditions = self.measuring.conditions(row.evidence)
        scratch = self.lab.store.scratch()
        made = scratch / "bundle"
        original = self.ready.original
        certificate = {
            "message": message,
            "status": row.status,
            "limits": row.verdicts or trial.verdicts,
            "level": row.alpha,
            "objective": self.spec.objective,
            "confidence": self.spec.confidence,
            "ratio": row.value,
            "limits_asked": [each.text for each in self.ready.limits],
            "figures_on_the_search_split": trial.figures,
            "steps": steps,
            "replayed": self.spec.replay is not None,
            "rival": self.lab.rival,
            "conditions": conditions,
            "watts": self.spec.watts,
            **facts,
        }
        if row.bets and row.status != "certified":  # `verify` goes on from here with more data
            certificate["bets"] = {key: each.to_json() for key, each in row.bets.items()}
            certificate["bets_level"] = row.bets_level
        # In a child: an artifact that crashes must not take the answer with it.
        self.lab.pool.call(
            bundle.write,
            model,
            made,
            {
                "sartor": facts["versions"]["sartor"],
                "title": self.lab.title(trial),
                "task": self.ready.task,
                "recipe": trial.recipe,
                "steps": [step_to_json(step) for step in model.lineage],
                "original": {
                    "digest": self.measuring.own,
                    "path": str(Path(str(original.payload)).resolve()),
                    "bytes": runtime(original.kind).size(original),
                    "kind": original.kind,
                    "signature": original.signature,
                },
                "data": self.ready.request["data"],
                "columns": {
                    "label": self.spec.label,
                    "segments": self.spec.segments,
                    "group": self.spec.group,
                    "mask": self.spec.mask,
                },
                "certificate": certificate,
            },
            self.ready.data.search.inputs(slice(0, 64)),
            self.ready.data.fingerprints,
            self.ready.target,
            card(
                f"{Path(str(original.payload)).stem}, tailored", self.lab.title(trial), message,
                plain(certificate["limits"]), steps, {**facts, "conditions": conditions},
            ),
            timeout=APPLY_SECONDS,
        )  # fmt: skip
        settle(made)
        publish(made, place)
        scratch.rmdir()

    def frontier(
        self, found: Certification, chosen: Row | None, trials: Sequence[Trial]
    ) -> list[str]:
        """The other artifacts worth having, each marked with what is known of it."""
        scratch = self.lab.store.scratch()
        kept: list[str] = []
        others = [row for row in found.rows if row is not chosen]
        if not others and chosen is None:
            others = _hopeless(trials)
        for row in others[:FRONTIER]:
            trial = row.finalist.trial
            name = f"{len(kept) + 1:02d}-trial-{trial.number}"
            about = f"{row.status}: {self.lab.title(trial)}"
            try:
                self.write(row, about, [], scratch / "frontier" / name)
            except (Failed, WrongRequest):
                continue  # it does not run any more: nothing worth having
            kept.append(str(self.folder.frontier / name))
        if kept:
            settle(scratch / "frontier")
            publish(scratch / "frontier", self.folder.frontier)
        else:
            discard(self.folder.frontier)
        scratch.rmdir()
        return kept


def _hopeless(trials: Sequence[Trial]) -> list[Row]:
    """Where every trial was dropped: those that were built, the nearest to the limits first."""
    built = [t for t in trials if t.state == "dropped" and t.model and t.recipe]
    built.sort(key=lambda each: nearness(each.verdicts))
    return [Row(Finalist(each.model, each), "untested") for each in built]
