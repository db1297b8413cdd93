"""Which recipe to try next: the original, a portfolio known to be good, repairs of what came
close, then a model of what was seen (Optuna's TPE) until the caller stops asking.

Ask and tell: the caller owns the loop. The same seed and the same answers give the same questions,
so a run that was killed is continued by telling the journal's trials again.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sartor.contracts import STAGES, Recipe, Technique, technique_name, to_json
from sartor.records import Trial
from sartor.registry import recipe as recipe_from_json
from sartor.space import Choice, domains

Settings = dict[str, Any]

# A graph may be fused, rewritten and folded in turn; elsewhere one technique a stage is enough.
SLOTS = tuple(stage for stage in STAGES for _ in range(3 if stage == "graph" else 1))
REPAIRS = 3  # how often one recipe's exceptions are widened before it is given up
HOPELESS = 2  # a technique that only ever refused or failed is not suggested again
FRUITLESS = 200  # asks in a row that bring only known recipes: the space is exhausted


def key_of(recipe: Recipe) -> str:
    return json.dumps([to_json(each) for each in recipe], sort_keys=True)


class GuidedSearch:
    """The default Searcher.

    `known` maps technique names to classes for the kind at hand; `portfolio` comes first, in its
    order; `trials` ends the search after that many (None: until the caller stops).
    """

    def __init__(
        self,
        kind: str,
        known: Mapping[str, type[Technique]],
        portfolio: Sequence[Recipe] = (),
        *,
        trials: int | None = None,
        seed: int = 0,
    ) -> None:
        self.kind = kind
        self.known = dict(sorted(known.items()))
        self.waiting: list[Recipe] = [(), *portfolio]
        self.trials = trials
        self.told: dict[str, Trial] = {}
        self.pending: dict[str, Any] = {}
        self.repaired: dict[str, int] = {}
        self.useless: Counter[str] = Counter()
        self.useful: set[str] = set()
        self.study = _study(seed)

    def ask(self) -> tuple[Recipe, float] | None:
        if self.trials is not None and len(self.told) >= self.trials:
            return None
        while self.waiting:
            recipe = self.waiting.pop(0)
            if key_of(recipe) not in self.told and self._legal(recipe):
                self.pending[key_of(recipe)] = None
                return recipe, 1.0
        if not self.known:
            return None
        for _ in range(FRUITLESS):
            question = self.study.ask()
            recipe = self._suggest(question)
            key = key_of(recipe)
            if key not in self.told and key not in self.pending:
                self.pending[key] = question
                return recipe, 1.0
            # Tell what is known already, so that the model learns not to ask again.
            seen = self.told.get(key)
            self.study.tell(question, _loss(seen) if seen else math.inf)
        return None

    def tell(self, trial: Trial) -> None:
        self.told[trial.key] = trial
        if trial.culprit:
            self.useless[trial.culprit] += 1
        elif trial.state in ("done", "dropped"):
            self.useful |= {entry["technique"] for entry in trial.recipe}
        question = self.pending.pop(trial.key, None)
        if question is not None:
            self.study.tell(question, _loss(trial))
        else:
            self._teach(trial)
        self._repair(trial)

    def upcoming(self, n: int) -> list[Recipe]:
        """At most `n` recipes that are likely to be asked next, the likeliest first, without a
        change of state: what would be asked if no answer changed the plan."""
        ahead = copy.deepcopy(self)
        ahead.trials = None
        found: list[Recipe] = []
        while len(found) < n:
            asked = ahead.ask()
            if asked is None:
                break
            found.append(asked[0])
        return found

    def _legal(self, recipe: Recipe) -> bool:
        return all(technique_name(each) in self.known or each.makes for each in recipe)

    def _suggest(self, question: Any) -> Recipe:
        """A recipe from the study: for each slot a technique or none, then its settings."""
        steps: list[Technique] = []
        for number, stage in enumerate(SLOTS):
            names = [name for name, cls in self.known.items() if cls.stage == stage]
            if not names:
                continue
            picked = question.suggest_categorical(f"{number}:{stage}", _options(names))
            if picked not in self.known or any(technique_name(each) == picked for each in steps):
                continue
            if self.useless[picked] >= HOPELESS and picked not in self.useful:
                continue
            cls = self.known[picked]
            settings = {
                name: _suggest(question, f"{number}:{picked}:{name}", domain)
                for name, domain in domains(cls).items()
            }
            steps.append(cls(**settings))
        return tuple(steps)

    def _teach(self, trial: Trial) -> None:
        """Puts a trial that the study did not ask for (portfolio, repair) into it."""
        import optuna

        params: Settings = {}
        space: dict[str, Any] = {}
        slots = list(enumerate(SLOTS))
        for entry in trial.recipe:
            cls = self.known.get(entry["technique"])
            at = next((i for i, s in enumerate(slots) if cls and s[1] == cls.stage), None)
            if cls is None or at is None:
                return  # more techniques of a stage than the study has slots for
            number, stage = slots.pop(at)
            slots = [slot for slot in slots if slot[0] > number]
            names = _options([n for n, c in self.known.items() if c.stage == stage])
            space[f"{number}:{stage}"] = optuna.distributions.CategoricalDistribution(names)
            params[f"{number}:{stage}"] = entry["technique"]
            for name, domain in domains(cls).items():
                label = f"{number}:{entry['technique']}:{name}"
                space[label] = _distribution(domain)
                params[label] = _code(domain, entry[name])
        for number, stage in enumerate(SLOTS):
            names = [n for n, c in self.known.items() if c.stage == stage]
            if names and f"{number}:{stage}" not in params:
                space[f"{number}:{stage}"] = optuna.distributions.CategoricalDistribution(
                    _options(names)
                )
                params[f"{number}:{stage}"] = "none 0"
        self.study.add_trial(
            optuna.trial.create_trial(params=params, distributions=space, value=_loss(trial))
        )

    def _repair(self, trial: Trial) -> None:
        """A recipe that gains but loses too much quality is tried again, milder: the setting that
        buys quality back is raised in its last technique that has one, bolder each time."""
        gains = trial.figures.get("objective", math.inf) < 1.0
        harmed = any(each.outcome != "met" and each.method != "exact" for each in trial.verdicts)
        if trial.state not in ("done", "dropped") or not gains or not harmed or trial.same:
            return
        recipe = recipe_from_json(self.kind, trial.recipe)
        for at in reversed(range(len(recipe))):
            technique = recipe[at]
            name = technique.repair
            if name is None:
                continue
            root = key_of(
                (*recipe[:at], dataclasses.replace(technique, **{name: _first(technique, name)}))
            )
            times = self.repaired.get(root, 0)
            milder = _milder(technique, name, times)
            if times < REPAIRS and milder is not None:
                self.repaired[root] = times + 1
                self.waiting.insert(0, (*recipe[:at], milder, *recipe[at + 1 :]))
                return


def _options(names: list[str]) -> list[str]:
    """What a slot may hold. Nothing has two chances of three, so that recipes stay short."""
    return [*(f"none {i}" for i in range(2 * len(names))), *names]


def _first(technique: Technique, name: str) -> Any:
    return domains(technique)[name].grid(2)[0]


def _milder(technique: Technique, name: str, times: int) -> Technique | None:
    """The technique with its repair setting raised, by more each time (as in a bisection, the
    order of sensitivity is known, so that steps may double)."""
    domain = domains(technique)[name]
    steps = domain.grid(16)
    above = [value for value in steps if value > getattr(technique, name)]
    if not above:
        return None
    return dataclasses.replace(technique, **{name: above[min(times, len(above) - 1)]})


def _loss(trial: Trial) -> float:
    """What the study minimizes: the objective's ratio to the original where the limits hold;
    above 1, by how improbable that is, where they do not."""
    value = trial.figures.get("objective", math.inf)
    if not math.isfinite(value) or (trial.state != "done" and not trial.same):
        return 3.0
    broken = sum(each.outcome == "broken" for each in trial.verdicts)
    return value if trial.p_value <= 0.5 and not broken else 1.0 + trial.p_value + broken


def _study(seed: int) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, n_startup_trials=5, constant_liar=False
        )
    return optuna.create_study(sampler=sampler, direction="minimize")


def _distribution(domain: Any) -> Any:
    from optuna import distributions

    if isinstance(domain, Choice):
        return distributions.CategoricalDistribution(range(len(domain.values)))
    if domain.whole:
        return distributions.IntDistribution(domain.low, domain.high, log=domain.log)
    return distributions.FloatDistribution(domain.low, domain.high, log=domain.log)


def _code(domain: Any, value: Any) -> Any:
    # Choices travel as their index: Optuna's categories must be plain values.
    value = tuple(value) if isinstance(value, list) else value
    return domain.values.index(value) if isinstance(domain, Choice) else value


def _suggest(question: Any, label: str, domain: Any) -> Any:
    if isinstance(domain, Choice):
        return domain.values[question.suggest_categorical(label, list(range(len(domain.values))))]
    if domain.whole:
        return question.suggest_int(label, domain.low, domain.high, log=domain.log)
    value = question.suggest_float(label, domain.low, domain.high, log=domain.log)
    return float(f"{value:.3g}")  # three digits are enough, and equal recipes are then equal
