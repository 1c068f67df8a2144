"""Chunked cross-entropy through the head against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from groundthink.ops import linear_cross_entropy


def _numbers(tokens: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, 6, generator=g, dtype=dtype).requires_grad_()
    weight = torch.randn(11, 6, generator=g, dtype=dtype).requires_grad_()
    labels = torch.randint(0, 11, (tokens,), generator=g)
    labels[::3] = -100
    return hidden, weight, labels


@pytest.mark.parametrize("chunk", [1, 4, 7, 20, 4096])
def test_is_cross_entropy(chunk: int) -> None:
    hidden, weight, labels = _numbers(20)
    total = linear_cross_entropy(hidden, weight, labels, chunk=chunk)
    judge = F.cross_entropy(hidden @ weight.T, labels, ignore_index=-100, reduction="sum")
    torch.testing.assert_close(total, judge, rtol=1e-12, atol=0)  # float64 rounding
    got, want = (torch.autograd.grad(x * 3, [hidden, weight]) for x in (total, judge))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_gradcheck() -> None:
    hidden, weight, labels = _numbers(5)
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, labels, chunk=2), (hidden, weight))


def test_one_gradient_alone() -> None:
    hidden, weight, labels = _numbers(9)
    for leaves in ((hidden, weight.detach()), (hidden.detach(), weight)):
        total = linear_cross_entropy(*leaves, labels, chunk=4)
        judge = F.cross_entropy(leaves[0] @ leaves[1].T, labels, reduction="sum")
        leaf = next(x for x in leaves if x.requires_grad)
        torch.testing.assert_close(
            torch.autograd.grad(total, leaf), torch.autograd.grad(judge, leaf), rtol=1e-10, atol=1e-12
        )


def test_nothing_to_predict_is_zero() -> None:
    hidden, weight, labels = _numbers(6)
    total = linear_cross_entropy(hidden, weight, torch.full_like(labels, -100))
    assert float(total.detach()) == 0
    assert all(float(g.abs().max()) == 0 for g in torch.autograd.grad(total, [hidden, weight]))
    assert float(linear_cross_entropy(hidden[:0], weight, labels[:0]).detach()) == 0


def test_tokens_without_a_label_have_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight = torch.randn(50, 8, requires_grad=True), torch.randn(11, 8)
    labels = torch.full((50,), -100)
    labels[[3, 40]] = torch.tensor([1, 2])
    rows = []
    plain = torch.log_softmax
    monkeypatch.setattr(torch, "log_softmax", lambda x, dim, out: rows.append(len(x)) or plain(x, dim, out=out))  # type: ignore[func-returns-value]
    total = linear_cross_entropy(hidden, weight, labels)
    assert rows == [2]
    (slope,) = torch.autograd.grad(total, hidden)
    assert slope.abs().sum(-1).nonzero().flatten().tolist() == [3, 40]


def test_half_precision_sums_in_float32() -> None:
    hidden, weight, labels = _numbers(20, torch.bfloat16)
    total = linear_cross_entropy(hidden, weight, labels)
    judge = F.cross_entropy(hidden.double() @ weight.double().T, labels, reduction="sum")
    assert total.dtype == torch.float32
    # Logits of order 2.5 are rounded to 8 bits: 1 % each, and they average out over 13 tokens.
    torch.testing.assert_close(total.double(), judge, rtol=0.01, atol=0)
    assert {g.dtype for g in torch.autograd.grad(total, [hidden, weight])} == {torch.bfloat16}


def test_autocast_rounds_the_products_and_nothing_else() -> None:
    hidden, weight, labels = _numbers(20, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = linear_cross_entropy(hidden, weight, labels, chunk=4)
    judge = linear_cross_entropy(hidden.detach().bfloat16(), weight.detach().bfloat16(), labels, chunk=4)
    assert torch.equal(total, judge)
    slopes = torch.autograd.grad(total, [hidden, weight])
    want = torch.autograd.grad(linear_cross_entropy(hidden, weight, labels), [hidden, weight])
    assert {g.dtype for g in slopes} == {torch.float32}
    for got, exact in zip(slopes, want, strict=True):
        # Products of numbers rounded to 8 bits, 0.4 % each; the sum over chunks is exact.
        assert float((got - exact).norm() / exact.norm()) < 0.02


def test_a_half_precision_weight_gradient_is_rounded_once_however_many_chunks() -> None:
    hidden, weight, labels = _numbers(400, torch.bfloat16)
    whole, cut = (
        torch.autograd.grad(linear_cross_entropy(hidden, weight, labels, chunk=chunk), weight)[0] for chunk in (400, 4)
    )
    # Partial products are rounded to 8 bits, 0.4 % each, and average out: 0.1 %; a bfloat16 sum of 67 is off by 0.8 %.
    assert float((whole - cut).float().norm() / whole.float().norm()) < 0.005


@pytest.mark.parametrize("label", [11, -1, -99])
def test_a_label_outside_the_vocabulary_is_refused(label: int) -> None:
    hidden, weight, labels = _numbers(6)
    labels[1] = label
    with pytest.raises(ValueError, match="outside the vocabulary of 11"):
        linear_cross_entropy(hidden, weight, labels)
