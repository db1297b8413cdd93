"""Fine-tune the whole of MiniLM (not only a head, as the demo does) on the tweets.

    python benchmarks/models/minilm_tweets.py --out build/minilm [--epochs 3]

Written are `model.onnx` (`input_ids`, `attention_mask` int64 [N, length] -> `logits` [N, 3]),
`model.safetensors` (with `minilm_tweets.py:make` the model as PyTorch code) and `eval.npz` with all
training rows. Encoder and tweets come from PyPI packages (see sartor.demo);
search and holdout are the demo's.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from sartor import demo
from sartor.machine import features, multiplies_bfloats

OUT = Path(__file__).resolve().parent.parent.parent / "build" / "minilm"
BATCH, RATE, SEED = 32, 1e-4, 20
EVERY = 10**9
BRIEF = multiplies_bfloats(features())  # bfloat16 is twice as fast then, else slower


def parts(rows: int) -> NDArray[np.str_]:
    """The demo's split; what it leaves out is for training too."""
    others = rows - demo.HEAD - demo.SEARCH - demo.HOLDOUT
    sizes = [demo.HEAD, demo.SEARCH, demo.HOLDOUT, others]
    return np.repeat(np.array(["train", "search", "holdout", "train"]), sizes)


def make() -> nn.Module:
    """The trained network, for `sartor optimize benchmarks/models/minilm_tweets.py:make`."""
    made = demo._load_model(demo._locate_encoder())
    made.load_state_dict(load_file(OUT / "model.safetensors"))
    return made


def train(model: demo.SentimentModel, tokens: demo.Ints, labels: demo.Ints, epochs: int) -> None:
    """AdamW under a rate that rises and falls linearly; rows of like length together."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    lengths = demo._mask(tokens).sum(1)
    steps = epochs * (len(tokens) // BATCH)
    rng, done, start, losses = np.random.default_rng(SEED), 0, time.perf_counter(), []
    model.train()
    for _ in range(epochs):
        order = rng.permutation(len(tokens))
        pools = [order[at : at + 50 * BATCH] for at in range(0, len(order), 50 * BATCH)]
        near = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
        cuts = [near[at : at + BATCH] for at in range(0, len(near) - BATCH + 1, BATCH)]
        for at in rng.permutation(len(cuts)):
            rows = cuts[at]
            ids = tokens[rows, : lengths[rows].max()]
            share = done / steps
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(share / 0.1, (1 - share) / 0.9)
            with torch.autocast("cpu", torch.bfloat16, enabled=BRIEF):
                logits = model(torch.from_numpy(ids), torch.from_numpy(demo._mask(ids)))
            loss = F.cross_entropy(logits.float(), torch.from_numpy(labels[rows]))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            done += 1
            if done % 100 == 0:
                spent = time.perf_counter() - start
                print(f"{done} of {steps}: {np.mean(losses[-100:]):.3f}, {spent:.0f} s", flush=True)
    model.eval()


def accuracy(path: Path, tokens: demo.Ints, labels: demo.Ints) -> float:
    session = demo.ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    right = 0
    for rows, ids in demo._batches(tokens):
        (logits,) = session.run(None, {"input_ids": ids, "attention_mask": demo._mask(ids)})
        right += int((logits.argmax(1) == labels[rows]).sum())
    return right / len(tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(SEED)
    encoder, corpus = demo._locate_encoder(), demo._locate_corpus()
    texts, labels = demo._read_tweets(corpus, EVERY)
    tokens, split = demo._tokenize(encoder, texts), parts(len(texts))
    data = {
        "input_ids": tokens, "attention_mask": demo._mask(tokens), "label": labels, "split": split,
    }  # fmt: skip
    print({name: int((split == name).sum()) for name in ("train", "search", "holdout")}, flush=True)
    model = demo._load_model(encoder)
    known = split == "train"
    train(model, tokens[known], labels[known], given.epochs)
    demo._export(model, given.out / "model.onnx")
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()},
        given.out / "model.safetensors",
    )
    demo._check_parity(model, given.out / "model.onnx", data)
    np.savez_compressed(given.out / "eval.npz", **data)
    for name in ("search", "holdout"):
        rows = split == name
        found = accuracy(given.out / "model.onnx", tokens[rows], labels[rows])
        print(f"accuracy on {name}: {found:.4f}", flush=True)


if __name__ == "__main__":
    main()
