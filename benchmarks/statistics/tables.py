"""The tables that `simulate.py` prints: what is simulated, and what a figure may be.

A figure outside its bounds is marked; one that is outside by more than chance makes the command
fail: a level above 6.2 % or a coverage below 93 %. A coverage above 97 % is marked only.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import chain
import covering
import power
import simulate

MOST_LEVEL, LEAST_COVERAGE, MOST_COVERAGE = 0.062, 0.93, 0.97
CHANCE = 3.5  # standard errors: over the hundred lines or so chance alone exceeds it in 2 to 3 %


@dataclass(frozen=True)
class Line:
    """One row of a table. `work` runs in a process of its own; `cells` turns what it returns into
    text and a verdict: "" (well), "!" (to be explained) or "FAILS"."""

    label: str
    work: Callable[[], Any]
    cells: Callable[[Any], tuple[list[str], str]]


@dataclass(frozen=True)
class Table:
    title: str
    head: tuple[str, ...]
    lines: list[Line]


def level(found: float, repetitions: float = math.inf) -> str:
    """Whether an error rate of nominally 5 % is kept, chance apart."""
    chance = 0.05 + CHANCE * math.sqrt(0.05 * 0.95 / repetitions)
    return "FAILS" if found > max(MOST_LEVEL, chance) else ""


def coverage(found: float, repetitions: float = math.inf) -> str:
    chance = CHANCE * math.sqrt(0.95 * 0.05 / repetitions)
    if found < min(LEAST_COVERAGE, 0.95 - chance):
        return "FAILS"
    return "" if LEAST_COVERAGE <= found <= MOST_COVERAGE else "!"


def _percent(*figures: float) -> list[str]:
    return [f"{100 * each:.1f} %" for each in figures]


# --- what is simulated --------------------------------------------------------------------------


def closed_forms(many: int) -> Iterator[Table]:
    def paired_level(found: tuple[float, float]) -> tuple[list[str], str]:
        return [f"{100 * each:.2f} %" for each in found], level(found[0])

    yield Table(
        "Paired 0/1 outcomes: the largest level over all flip rates",
        ("rows, margin", "exact test", "score test"),
        [
            Line(f"{n:,}, {margin:.1%}", partial(simulate.paired_levels, n, -margin), paired_level)
            for n in (50, 100, 200, 500, 1000, 2000, 10_000)
            for margin in (0.002, 0.01, 0.0)
        ],
    )

    def covered(found: float) -> tuple[list[str], str]:
        return [f"{100 * found:.2f} %"], coverage(found)

    lines = [
        Line(
            f"score interval, {n:,} rows, {flips:.1%} flips",
            partial(covering.paired_exactly, n, 0.01, flips),
            covered,
        )
        for n in (50, 200, 500, 1000, 2000, 10_000)
        for flips in (0.012, 0.03, 0.1, 0.2)
    ]
    lines += [
        Line(
            f"Clopper-Pearson, {n:,} rows, share {share:.0%}",
            partial(covering.share, n, share),
            covered,
        )
        for n in (50, 200, 1000, 10_000)
        for share in (0.01, 0.1, 0.5)
    ]
    yield Table("Coverage of 95 % intervals, summed", ("interval", "coverage"), lines)


def single_methods(many: int) -> Iterator[Table]:
    few = max(many // 2, 50)
    lines = []
    for n in (50, 200, 1000, 4000):
        for kind, draws in (("self", simulate.REAL), ("bounded", simulate.BOUNDED)):
            for name in draws:
                label = f"{'unbounded' if kind == 'self' else 'bounded'}, {n:,} rows, {name}"
                work = partial(_mean_levels, name, kind, n, few)
                lines.append(Line(label, work, partial(_first_level, many=few)))
    yield Table("Means: levels", ("scores", "Sartor", "t test"), lines)
    covered = partial(_covered, many=few)
    lines = [
        Line(
            f"Gaffke's bound, {n:,} rows, {name}", partial(covering.bounded, name, n, few), covered
        )
        for n in (200, 1000)
        for name in covering.BOUNDED
    ]
    lines += [
        Line(f"self-bounded, {n:,} rows, {name}", partial(_real_coverage, name, n, few), covered)
        for n in (200, 1000)
        for name in simulate.REAL
    ]
    lines += [
        Line(f"means over {n} groups", partial(covering.grouped, n, few), covered)
        for n in (50, 200)
    ]
    lines += [
        Line(
            f"p{q * 100:.0f} by order statistics, {rounds} rounds of {calls}, drift {drift:.0%}",
            partial(simulate.quantile_coverage, q, rounds, calls, drift, few),
            covered,
        )
        for q, rounds, calls in ((0.5, 20, 20), (0.95, 20, 50), (0.95, 40, 20), (0.99, 40, 50))
        for drift in (0.0, 0.05)
    ]
    lines += [
        Line(f"Hodges-Lehmann, {n} rounds", partial(simulate.ratio_coverage, n, few), covered)
        for n in (6, 10, 20, 40)
    ]
    lines += [
        Line(
            f"t over {n} starts{', skewed' if skewed else ''}",
            partial(covering.starts, n, 4 * few, skewed=skewed),
            partial(_told if skewed else _covered, many=4 * few),
        )
        for n in (3, 6, 8)
        for skewed in (False, True)
    ]
    yield Table("Coverage of 95 % intervals, drawn", ("interval", "coverage"), lines)
    rare = max(many // 20, 20)
    tenth = max(many // 10, 20)
    lines = [
        Line(name, partial(_rare, name, rare), partial(_one_level, many=rare))
        for name in simulate.RARE
    ]
    lines += [
        Line(
            f"{rows} rows, {'1 to 19' if uneven else '10'} copies of each",
            partial(simulate.copies_level, rows, 10, tenth, uneven=uneven),
            partial(_one_level, many=tenth),
        )
        for rows in (200, 1000)
        for uneven in (False, True)
    ]
    yield Table("Rare classes and repeated rows: levels", ("limit", "level"), lines)


def whole_chain(many: int) -> Iterator[Table]:
    lines = [
        Line(name, partial(_chain, name, many, "once"), _wrong) for name in chain.WORLDS
    ]  # fmt: skip
    one = "accuracy on its limit"
    lines += [
        Line(f"{one}; {said}", partial(_chain, one, many, mode), _wrong)
        for mode, said in (
            ("killed", "killed now and then, and started anew"),
            ("longer", "continued with as many trials more"),
            ("three runs", "three runs on one holdout"),
            ("three runs, fishing", "three runs, each from what came nearest on the holdout"),
        )
    ]
    head = ("candidates", "wrongly certified", "testing every finalist", "testing all 50",
            "a good one certified")  # fmt: skip
    yield Table("The whole chain", head, lines)


def power_beside(many: int) -> Iterator[Table]:
    few = max(many // 8, 20)
    head = ("holdout, limits", "way", "something certified", "the best, within 5 %",
            "not feasible", "mean objective")  # fmt: skip
    lines = [
        Line(f"{rows:,}, {name}, {trade}", partial(power.compare, name, trade, rows, few), _power)
        for rows in (500, 2000, 10_000)
        for name in power.WORLDS
        for trade in power.TRADES
    ]
    yield Table("Power", head, lines)


def early_stopping(many: int) -> Iterator[Table]:
    looks = importlib.import_module("looks")
    lines = [
        Line(
            f"{rows:,} rows, a drop of {100 * drop:.1f} points, {flips:.0%} flips",
            partial(looks.one_hypothesis, rows, drop, flips, many),
            partial(_looks, null=drop >= 0.01, many=many),
        )
        for rows in (2000, 10_000)
        for drop, flips in ((0.01, 0.012), (0.01, 0.05), (0.0, 0.01), (0.0, 0.03), (0.004, 0.03))
    ]
    head = ("truth, limit of 1 point", "certified early", "certified in the end",
            "with up to 7 x more rows", "fixed size at 5 %", "rows used")  # fmt: skip
    yield Table("Looking early", head, lines)


SECTIONS: Mapping[str, Callable[[int], Iterator[Table]]] = {
    "closed": closed_forms,
    "single": single_methods,
    "chain": whole_chain,
    "power": power_beside,
    # Where there are betting sequences to look at.
    **({"looks": early_stopping} if importlib.util.find_spec("sartor.sequences") else {}),
}


# --- work and cells -----------------------------------------------------------------------------


def _mean_levels(name: str, kind: str, n: int, many: int) -> tuple[float, float]:
    draw = (simulate.REAL if kind == "self" else simulate.BOUNDED)[name]
    ours, plain = (simulate.mean_level(draw, n, each, many) for each in (kind, "t test"))
    return ours, plain


def _real_coverage(name: str, n: int, many: int) -> float:
    return simulate.mean_coverage(simulate.REAL[name], n, many)


def _rare(name: str, many: int) -> float:
    return simulate.rare_level(simulate.RARE[name], many)


def _chain(name: str, many: int, mode: chain.Mode) -> chain.Counts:
    return chain.certification(chain.WORLDS[name], many, seed=1, mode=mode)


def _first_level(found: tuple[float, float], many: int) -> tuple[list[str], str]:
    return _percent(*found), level(found[0], many)


def _one_level(found: float, many: int) -> tuple[list[str], str]:
    return _percent(found), level(found, many)


def _covered(found: float, many: int) -> tuple[list[str], str]:
    return _percent(found), coverage(found, many)


def _told(found: float, many: int) -> tuple[list[str], str]:
    """Known to lie below: a handful of starts does not show how skewed they are."""
    return _percent(found), "!" if coverage(found, many) else ""


def _wrong(found: chain.Counts) -> tuple[list[str], str]:
    counts = (found.wrong, found.walking_on, found.everything, found.good)
    share = [each / found.repetitions for each in counts]
    return [f"{share[0]:.2%}", *_percent(*share[1:])], level(share[0], found.repetitions)


def _power(found: dict[str, power.Power]) -> tuple[list[str], str]:
    """One line of a cell per way; marked where the plain way certifies more often."""
    ways = list(found)
    columns = [ways]
    for figure in ("something", "best", "wrong"):
        columns.append(_percent(*(getattr(found[each], figure) for each in ways)))
    columns.append([f"{found[each].objective:.3f}" for each in ways])
    ours, plain = found["Sartor"], found["Bonferroni"]
    less = ours.something < plain.something or ours.objective > plain.objective
    return ["<br>".join(each) for each in columns], "!" if less else ""


def _looks(found: Any, null: bool, many: int) -> tuple[list[str], str]:
    figures = (found.early, found.certified, found.continued, found.fixed, found.used)
    return _percent(*figures), level(found.continued, many) if null else ""


# --- printing -----------------------------------------------------------------------------------


def printed(table: Table, pool: Executor) -> Iterator[str]:
    """The table in Markdown, each row as soon as it and those before it are there."""
    waiting = [pool.submit(each.work) for each in table.lines]
    yield f"### {table.title}\n"
    yield "| " + " | ".join((*table.head, "")) + " |"
    yield "|---" * (len(table.head) + 1) + "|"
    for line, each in zip(table.lines, waiting, strict=True):
        cells, verdict = line.cells(each.result())
        yield "| " + " | ".join((line.label, *cells, verdict)) + " |"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=simulate.__doc__)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    failed, began = False, time.monotonic()
    with ProcessPoolExecutor(given.processes) as pool:
        for section in given.only:
            for table in SECTIONS[section](given.repetitions):
                for line in printed(table, pool):
                    failed |= line.endswith("| FAILS |")
                    print(line, flush=True)
            print(f"({section}: {time.monotonic() - began:.0f} s since the start)\n", flush=True)
    sys.exit(1 if failed else 0)
