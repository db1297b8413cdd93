"""A model in a folder as Hugging Face's transformers write it: `config.json` names an architecture
of that package, `model.safetensors` holds its weights.

No code of the folder is run and nothing is fetched: what needs either is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import constants
from torch import nn
from transformers.utils import logging

from sartor.contracts import WrongRequest
from sartor.libraries import first_line


def model(folder: Path) -> nn.Module:
    """The module, in float32. Raises WrongRequest with a sentence for any other folder."""
    config = _config(folder)
    if not list(folder.glob("*.safetensors")):
        has = ", ".join(sorted(each.name for each in folder.glob("*.bin"))) or "no weights"
        raise WrongRequest(
            f"{folder} has {has} and no model.safetensors: save it again with "
            "save_pretrained(..., safe_serialization=True)"
        )
    if config.get("auto_map"):
        raise WrongRequest(
            f"{folder}: config.json asks for code of the folder's own, which is not run; write a "
            "function that makes the model: file.py:function"
        )
    told = config.get("architectures")
    names = [str(name) for name in told] if isinstance(told, list) else []
    cls = getattr(transformers, names[0], None) if len(names) == 1 else None
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise WrongRequest(
            f"{folder}: config.json names {', '.join(names) or 'no architecture'}, which "
            f"transformers {transformers.__version__} does not know"
        )
    return _read(cls, folder)


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WrongRequest(f"{folder}/config.json cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise WrongRequest(f"{folder}/config.json is no mapping")
    return found


def _read(cls: Any, folder: Path) -> nn.Module:
    """ "eager" attention is written out in products and a softmax, which the rewriting of graphs
    knows; a cache of keys is no answer."""
    try:
        with _alone():
            made, told = cls.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                attn_implementation="eager",
                output_loading_info=True,
                dtype="float32",
            )
    except Exception as error:  # OSError, ValueError and what its many classes raise
        raise WrongRequest(
            f"{folder} cannot be read by transformers {transformers.__version__}: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from None
    missing = sorted(str(each) for each in told["missing_keys"])
    if missing:
        raise WrongRequest(
            f"{folder} has no weights for {', '.join(missing[:3])}"
            f"{' ...' if len(missing) > 3 else ''}: they would be random numbers"
        )
    made.config.use_cache = False
    found: nn.Module = made
    return found


@contextmanager
def _alone() -> Iterator[None]:
    """Without the network, which some architectures ask for more (a backbone, say), and without
    words; whoever called it finds both as they were."""
    verbosity, offline, bar = (
        logging.get_verbosity(), constants.HF_HUB_OFFLINE, logging.is_progress_bar_enabled(),
    )  # fmt: skip
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
