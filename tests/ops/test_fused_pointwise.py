"""SwiGLU's and the gates' kernels through Triton's interpreter, judged by plain torch in float64."""

from __future__ import annotations

import pytest
import torch
from fused_cases import assert_close, errors, interpreted, outcome
from torch import Tensor

from groundthink import ops
from groundthink.ops import _fused

__all__ = ["interpreted"]  # a fixture of every test here
BAR = 1e-6  # float32: some tens of roundings of 6e-8


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 3, 48), (1, 2, 2 * 1344)])
def test_swiglu(shape: tuple[int, ...]) -> None:
    assert_close(lambda packed: (ops.swiglu(packed),), {"packed": numbers(*shape) * 3}, BAR)


def test_swiglu_of_a_view() -> None:
    wide = numbers(2, 3, 96)
    assert torch.equal(ops.swiglu(wide[..., 48:]), ops.swiglu(wide[..., 48:].contiguous()))


def gate_inputs(tokens: int = 5, heads: int = 3, width: int = 24, mamba: bool = False) -> dict[str, Tensor]:
    x = {
        "x": numbers(1, tokens, width), "weight": numbers(2 * heads, width, seed=1) * 0.5,
        "beta_bias": numbers(heads, seed=2), "decay_bias": numbers(heads, seed=3) + 3,
    }  # fmt: skip
    return x | {"a_log": numbers(heads, seed=4)} if mamba else x


def gates(
    x: Tensor, weight: Tensor, beta_bias: Tensor, decay_bias: Tensor, a_log: Tensor | None = None
) -> tuple[Tensor, ...]:
    return ops.delta_gates(x, weight, beta_bias=beta_bias, decay_bias=decay_bias, a_log=a_log, beta_range=2.0)


@pytest.mark.parametrize("mamba", [False, True])
@pytest.mark.parametrize(("tokens", "heads", "width"), [(1, 1, 16), (5, 3, 24), (64, 4, 64), (130, 17, 200)])
def test_gates(tokens: int, heads: int, width: int, mamba: bool) -> None:
    assert_close(gates, gate_inputs(tokens, heads, width, mamba), BAR)


@pytest.mark.parametrize("mamba", [False, True])
@pytest.mark.parametrize("shift", [-30.0, -8.0, 8.0, 30.0])
def test_gates_far_out(shift: float, mamba: bool) -> None:
    """A decay of 1 - 1e-13 has the gradient of one, and nothing overflows."""
    x = gate_inputs(mamba=mamba)
    x["decay_bias"] += shift
    # (the slope of beta is formed from beta itself: where that rounds to 2, its gradient of 2e-13 rounds to 0)
    # At 30 the sum under the exponential is itself rounded to 1e-6 (half a unit of float32 between 16 and 32), and that
    # is the relative error of what comes out: two such roundings. Processors differ in whether they meet both.
    assert_close(gates, x, 2e-6 if abs(shift) > 16 else BAR)


def test_gates_stay_float32_under_autocast() -> None:
    x = gate_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gates(**x)
    assert {t.dtype for t in found} == {torch.float32}
    assert torch.equal(found[0], gates(**x)[0])


def test_gates_of_half_precision_input() -> None:
    """bfloat16 inputs are exact in float32: only the factors of the matrix's gradient are rounded.

    (The interpreter cannot multiply bfloat16 matrices, so the gradient of x is tested in tests/gpu alone.)
    """
    x = gate_inputs()
    x["x"] = x["x"].bfloat16().float()
    truth = outcome(gates, x, torch.float64)

    def half(x: Tensor, **rest: Tensor) -> tuple[Tensor, ...]:
        return gates(x.bfloat16(), **rest)

    worst = errors(outcome(half, x, torch.float32), truth)
    del worst["d_x"]
    rounded = worst.pop("d_weight")
    assert max(worst.values()) < BAR, worst
    assert rounded < 0.004  # 8 bits; the interpreter cuts where a GPU rounds


def test_one_gate_alone() -> None:
    for which in (0, 1):
        assert_close(lambda i=which, **x: (gates(**x)[i] + 0 * sum(t.sum() for t in x.values()),), gate_inputs(), BAR)


def test_planted_faults_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    x = gate_inputs(130)
    truth = outcome(gates, x, torch.float64)

    def swapped(x: Tensor, weight: Tensor, **rest: Tensor) -> tuple[Tensor, ...]:
        return gates(x, weight.flip(0), **rest)

    assert max(errors(outcome(swapped, x, torch.float32), truth).values()) > 0.1
    x = gate_inputs(200)
    truth = outcome(gates, x, torch.float64)
    module = _fused.kernels("gates")
    monkeypatch.setattr(module.triton, "cdiv", lambda a, b: a // b)  # forgets the ragged tile
    assert not max(errors(outcome(gates, x, torch.float32), truth).values()) < 0.01
