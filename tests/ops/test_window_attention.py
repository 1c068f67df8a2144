"""Window attention in blocks against softmax under a dense mask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from groundthink.ops import window_attention

FEW = settings(deadline=None, max_examples=15, derandomize=True, database=None)
CLOSE = {"rtol": 1e-10, "atol": 1e-12}  # float64, sums of at most 60 terms


def _numbers(length: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(length)
    q, k = (torch.randn(2, length, 3, 4, generator=g, dtype=torch.float64) for _ in range(2))
    return q, k, torch.randn(2, length, 3, 5, generator=g, dtype=torch.float64)


def _dense(q: Tensor, k: Tensor, v: Tensor, window: int, documents: Tensor | None = None) -> Tensor:
    """The definition."""
    length = q.shape[1]
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    seen = ((distance >= 0) & (distance < window)).expand(q.shape[0], -1, -1)
    if documents is not None:
        seen = seen & (documents[:, :, None] == documents[:, None, :])
    scores = torch.einsum("bihk,bjhk->bhij", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhij,bjhv->bihv", scores.masked_fill(~seen[:, None], float("-inf")).softmax(-1), v)


@pytest.mark.parametrize("window", [1, 2, 5, 16, 17, 100])
@pytest.mark.parametrize("length", [1, 2, 15, 40, 60])
def test_is_masked_softmax(length: int, window: int) -> None:
    parts = [x.requires_grad_() for x in _numbers(length)]
    out, past = window_attention(*parts, window=window)
    judge = _dense(*parts, window)
    torch.testing.assert_close(out, judge, **CLOSE)
    assert past.keys.shape == (2, window - 1, 3, 4)
    assert past.valid.sum(1).tolist() == [min(length, window - 1)] * 2
    got, want = (torch.autograd.grad(x.square().sum(), parts) for x in (out, judge))
    torch.testing.assert_close(got, want, **CLOSE)


@FEW
@given(lengths=st.lists(st.integers(1, 25), min_size=1, max_size=4), window=st.integers(1, 20))
def test_splits_and_documents(lengths: list[int], window: int) -> None:
    """Segments of one text give the whole; the same segments as documents give separate texts."""
    q, k, v = _numbers(sum(lengths))
    whole, _ = window_attention(q, k, v, window=window)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).expand(2, -1)
    packed, packed_past = window_attention(q, k, v, window=window, documents=ids)
    torch.testing.assert_close(packed, _dense(q, k, v, window, ids), **CLOSE)
    past, start = None, 0
    for length in lengths:
        rows = slice(start, start + length)
        given_past = None if past is None else [x.clone() for x in past]
        out, after = window_attention(q[:, rows], k[:, rows], v[:, rows], window=window, past=past)
        assert past is None or all(map(torch.equal, past, given_past))
        alone, alone_past = window_attention(q[:, rows], k[:, rows], v[:, rows], window=window)
        torch.testing.assert_close(out, whole[:, rows], **CLOSE)
        torch.testing.assert_close(packed[:, rows], alone, **CLOSE)
        past, start = after, start + length
    assert torch.equal(packed_past.valid, alone_past.valid)


def test_the_first_document_continues_the_past() -> None:
    q, k, v = _numbers(30)
    whole, _ = window_attention(q, k, v, window=8)
    _, past = window_attention(q[:, :10], k[:, :10], v[:, :10], window=8)
    ids = torch.tensor([0] * 12 + [1] * 8).expand(2, -1)
    out, _ = window_attention(q[:, 10:], k[:, 10:], v[:, 10:], window=8, past=past, documents=ids)
    torch.testing.assert_close(out[:, :12], whole[:, 10:22], **CLOSE)
    torch.testing.assert_close(out[:, 12:], _dense(q[:, 22:], k[:, 22:], v[:, 22:], 8), **CLOSE)


def test_a_window_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, is 0"):
        window_attention(*_numbers(3), window=0)
