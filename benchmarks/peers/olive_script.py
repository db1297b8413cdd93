"""Rows for Olive's passes, as its documentation tells to bring one's own; `data_dir`: an .npz."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from olive.data.registry import Registry


class Rows(torch.utils.data.Dataset):
    def __init__(self, path: str) -> None:
        with np.load(path, allow_pickle=False) as found:
            self.arrays = {name: found[name] for name in found.files}

    def __len__(self) -> int:
        return min(map(len, self.arrays.values()))

    def __getitem__(self, at: int) -> tuple[dict[str, np.ndarray], int]:
        return {name: each[at] for name, each in self.arrays.items()}, 0


@Registry.register_dataset()
def train_rows(data_dir: str, **kwargs: Any) -> Rows:
    return Rows(data_dir)
