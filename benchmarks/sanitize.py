"""What `sanitize.sh` runs: random forests and damaged packed files through the kernel."""

from __future__ import annotations

import sys

import numpy as np
from forest_cases import grown
from test_forest import damaged, fuzz, small

from sartor import kernels
from sartor.forest_packing import NARROW, WIDE, pack


def main(rounds: int) -> None:
    for seed in range(rounds):
        fuzz(seed + 20_000)
    for layout in (NARROW, WIDE):
        damaged(pack(small(), layout=layout), rounds * 20, layout)
    for seed in range(rounds // 10):
        forest = grown(np.random.default_rng(seed))
        if forest.features > 2:
            damaged(pack(forest), rounds // 4, seed)  # looked through; other rows are not run
    print(f"{rounds} forests and their damaged files: clean in {kernels.forest().__file__}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
