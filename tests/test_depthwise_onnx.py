"""Gradients of depthwise convolutions in bfloat16: those of PyTorch, by another way."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from sartor.techniques import _depthwise_onnx as own  # noqa: E402
from sartor.techniques import _operators_windows_onnx  # noqa: E402, F401  (it adds to OPERATORS)
from sartor.techniques._operators_onnx import OPERATORS, Call  # noqa: E402

CONV = OPERATORS["Conv"]


def gradients(made, *wanted):
    """Of a sum in which every answer has a weight of its own."""
    rng = torch.Generator().manual_seed(1)
    weights = torch.randn(made.shape, generator=rng)
    return torch.autograd.grad((made.float() * weights).sum(), wanted)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(
    ("window", "stride", "pads"),
    [
        ((3, 3), (2, 2), (1, 1, 1, 1)),
        ((5, 5), (1, 1), (2, 2, 2, 2)),
        ((5, 5), (2, 2), (1, 1, 2, 2)),
        ((7, 7), (1, 1), (3, 3, 3, 3)),
        ((4, 6), (1, 2), (0, 0, 0, 0)),
        ((1, 5), (2, 1), (0, 2, 0, 2)),
        ((8, 3), (3, 2), (4, 1, 3, 0)),
    ],
)
def test_gradients_are_those_of_floats(window, stride, pads, biased, monkeypatch):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn((2, 6, 13, 12), generator=rng, requires_grad=True)
    weight = torch.randn((6, 1, *window), generator=rng, requires_grad=True)
    wanted = [x, weight]
    if biased:
        wanted.append(torch.randn(6, generator=rng, requires_grad=True))
    settings = {"strides": stride, "pads": pads, "group": 6}
    right = CONV(Call(wanted, settings, 17, True))
    called = []
    run = own._native
    monkeypatch.setattr(own, "_native", lambda *given: (called.append(1), run(*given))[1])
    with torch.autocast("cpu", torch.bfloat16):
        found = CONV(Call(wanted, settings, 17, True))
        assert found.dtype == torch.bfloat16
    pairs = zip(gradients(found, *wanted), gradients(right, *wanted), strict=True)
    for one, two in pairs:
        assert (one - two).norm() < 0.01 * two.norm()
    assert called
    assert (found.float() - right).norm() < 0.01 * right.norm()


def test_what_is_fast_by_itself_is_left_to_pytorch():
    x, thin, wide = torch.zeros(1, 4, 8, 8), torch.zeros(4, 1, 3, 3), torch.zeros(4, 1, 5, 5)
    one, two = (1, 1), (2, 2)
    assert not own.fallen_back(x, wide, two, one, 4)  # no autocast
    with torch.autocast("cpu", torch.bfloat16):
        assert own.fallen_back(x, wide, one, one, 4)
        assert own.fallen_back(x, thin, two, one, 4)
        assert not own.fallen_back(x, thin, one, one, 4)
        assert not own.fallen_back(x, wide, two, two, 4)
        assert not own.fallen_back(x, torch.zeros(4, 4, 5, 5), two, one, 1)
        assert not own.fallen_back(x, torch.zeros(8, 1, 5, 5), two, one, 4)
        with torch.no_grad():
            assert not own.fallen_back(x, wide, two, one, 4)


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-1.0, 0.5), (None, 1.0), (0.0, None)])
def test_what_is_clipped_passes_no_gradient(low, high):
    x = torch.linspace(-3, 8, 40, requires_grad=True)  # on none of the bounds
    bounds = [None if each is None else torch.tensor(each) for each in (low, high)]
    made = OPERATORS["Clip"](Call([x, *bounds], {}, 17, True))
    right = torch.clamp(x, low, high)
    assert torch.equal(made, right)
    assert torch.equal(*(torch.autograd.grad(each.sum(), x)[0] for each in (made, right)))
    if low is not None and high is not None:  # with one bound it is PyTorch's clamp itself
        on = torch.tensor([low, high], requires_grad=True)
        made = OPERATORS["Clip"](Call([on, *bounds], {}, 17, True))
        assert torch.autograd.grad(made.sum(), on)[0].tolist() == [0, 0]
    whole = OPERATORS["Clip"](Call([x.long(), torch.tensor(0), torch.tensor(6)], {}, 17, True))
    assert torch.equal(whole, F.relu(x.long()).clamp_max(6))
