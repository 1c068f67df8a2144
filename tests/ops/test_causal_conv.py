"""The short convolution against torch's own, and its state."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from groundthink.ops import causal_conv

FEW = settings(deadline=None, max_examples=15, derandomize=True, database=None)


def _numbers(length: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(length * 10 + width)
    x = torch.randn(2, length, 5, generator=g, dtype=torch.float64)
    return x, torch.randn(5, width, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 2, 3, 20])
def test_is_conv1d(length: int, width: int) -> None:
    x, weight = _numbers(length, width)
    x.requires_grad_(), weight.requires_grad_()
    y, state = causal_conv(x, weight)
    judge = F.conv1d(F.pad(x.mT, (width - 1, 0)), weight[:, None], groups=5).mT
    torch.testing.assert_close(y, judge, rtol=1e-12, atol=1e-12)  # float64 rounding of at most 4 terms
    assert state.shape == (2, width - 1, 5)
    got, want = (torch.autograd.grad(v.square().sum(), [x, weight]) for v in (y, judge))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@FEW
@given(length=st.integers(2, 12), cut=st.data(), width=st.integers(1, 5))
def test_split_anywhere_is_the_whole(length: int, cut: st.DataObject, width: int) -> None:
    x, weight = _numbers(length, width)
    at = cut.draw(st.integers(1, length - 1))
    whole, last = causal_conv(x, weight)
    first, state = causal_conv(x[:, :at], weight)
    kept = state.clone()
    second, end = causal_conv(x[:, at:], weight, state=state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=0, atol=1e-14)
    assert torch.equal(end, last)
    assert torch.equal(state, kept)


@FEW
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), width=st.integers(1, 5))
def test_documents_are_separate_texts(lengths: list[int], width: int) -> None:
    x, weight = _numbers(sum(lengths), width)
    before = torch.randn(2, width - 1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).expand(2, -1)
    y, state = causal_conv(x, weight, state=before, documents=ids)
    start = 0
    for i, length in enumerate(lengths):
        part = x[:, start : start + length]
        alone, end = causal_conv(part, weight, state=before if i == 0 else None)
        torch.testing.assert_close(y[:, start : start + length], alone, rtol=0, atol=1e-14)
        start += length
    assert torch.equal(state, end)


def test_a_weight_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"weight should be \[5, W\]"):
        causal_conv(torch.zeros(1, 3, 5), torch.zeros(4, 2))
