"""The chunked cross-entropy kernel through Triton's interpreter, judged by plain torch in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from fused_cases import assert_close, errors, interpreted, outcome
from torch import Tensor

from groundthink import ops
from groundthink.ops import _fused

__all__ = ["interpreted"]  # a fixture of every test here
BAR = 1e-6  # float32: some tens of roundings of 6e-8


def inputs(tokens: int = 9, vocabulary: int = 11, width: int = 6) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(tokens)
    labels = torch.randint(0, vocabulary, (tokens,), generator=g)
    labels[1::3] = -100
    return {
        "hidden": torch.randn(tokens, width, generator=g),
        "weight": torch.randn(vocabulary, width, generator=g),
        "labels": labels,
    }


def run(chunk: int | None = None) -> Callable[..., tuple[Tensor, ...]]:
    return lambda hidden, weight, labels: (ops.linear_cross_entropy(hidden, weight, labels, chunk=chunk),)


@pytest.mark.parametrize("chunk", [1, 4, 5, 9, None])
def test_chunks(chunk: int | None) -> None:
    assert_close(run(chunk), inputs(), BAR)


@pytest.mark.parametrize("vocabulary", [2, 64, 100])
def test_vocabularies_over_several_blocks(monkeypatch: pytest.MonkeyPatch, vocabulary: int) -> None:
    monkeypatch.setattr(_fused.kernels("cross_entropy"), "BLOCK", 32)
    assert_close(run(), inputs(vocabulary=vocabulary), BAR)


def test_large_logits_do_not_overflow() -> None:
    x = inputs()
    x["hidden"] *= 100
    assert_close(run(), x, 3e-5)  # logits near 500 are rounded to 3e-5 before they are exponents


def test_the_kernels_choice_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more logits than allowed, in chunks of nearly equal size; never less than a token."""
    module = _fused.kernels("cross_entropy")
    monkeypatch.setattr(module, "LOGITS", 44)
    assert [module._rows(tokens, 11, 0) for tokens in (0, 1, 4, 5, 9)] == [0, 1, 4, 3, 3]
    assert module._rows(9, 100, 0) == 1
    assert_close(run(), inputs(), BAR)


def test_one_gradient_alone_and_none() -> None:
    x = inputs()
    for name in ("hidden", "weight"):
        rest = {n: t for n, t in x.items() if n != name}

        def one(rest: dict[str, Tensor] = rest, **leaf: Tensor) -> tuple[Tensor, ...]:
            fixed = {n: t.to(next(iter(leaf.values())).dtype) if t.is_floating_point() else t for n, t in rest.items()}
            return run(4)(**fixed, **leaf)

        assert_close(one, {name: x[name]}, BAR)
    with torch.no_grad():
        without = run()(**x)[0]
    assert torch.equal(without, run()(**x)[0])


def test_nothing_to_predict_is_zero() -> None:
    x = inputs()
    x["labels"][:] = -100
    found = outcome(run(), x, torch.float32)
    assert all(float(t.abs().max()) == 0 for t in found.values())
    assert float(run()(x["hidden"][:0], x["weight"], x["labels"][:0])[0]) == 0


def test_gradients_come_in_the_dtype_of_their_inputs() -> None:
    """The head is float32 while hidden is half precision: no rounding of the weight's gradient on its way."""
    x = inputs()
    hidden, weight = x["hidden"].half().requires_grad_(), x["weight"].requires_grad_()
    total = ops.linear_cross_entropy(hidden, weight, x["labels"], chunk=4)
    judge = F.cross_entropy(hidden.double() @ weight.double().T, x["labels"], reduction="sum")
    assert total.dtype == torch.float32
    torch.testing.assert_close(total.double(), judge, rtol=0.003, atol=0)  # logits of order 2.5, rounded to 11 bits
    dh, dw = torch.autograd.grad(total, [hidden, weight])
    assert (dh.dtype, dw.dtype) == (torch.float16, torch.float32)
    th, tw = torch.autograd.grad(judge, [hidden, weight])
    assert (dw - tw).norm() < 0.003 * tw.norm()
    assert (dh - th).norm() < 0.003 * th.norm()


def test_a_label_outside_the_vocabulary_is_nan_not_other_memory() -> None:
    x = inputs()
    x["labels"][0] = 11
    kernels = _fused.kernels("cross_entropy")
    total = kernels.linear_cross_entropy(**x, chunk=0, dtype=torch.float32)
    assert bool(total.isnan())


def test_next_token_loss_is_the_shifted_sum() -> None:
    g = torch.Generator().manual_seed(0)
    x = {"hidden": torch.randn(2, 5, 6, generator=g), "weight": torch.randn(11, 6, generator=g)}
    labels = torch.randint(0, 11, (2, 5), generator=g)
    labels[:, 2] = -100
    assert int(ops.next_token_loss(**x, labels=labels)[1]) == 6
    assert_close(lambda hidden, weight: (ops.next_token_loss(hidden, weight, labels)[0],), x, BAR)


def test_a_planted_fault_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight's gradient that forgets all but the last chunk."""
    x, real = inputs(), _fused.float32_product
    truth = outcome(run(4), x, torch.float64)
    monkeypatch.setattr(_fused, "float32_product", lambda a, b: real(a, b) * (0 if a.shape[1] > 1 else 1))
    assert max(errors(outcome(run(4), x, torch.float32), truth).values()) > 0.1
