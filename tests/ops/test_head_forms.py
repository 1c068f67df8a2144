"""`conv_heads` and `delta_gates` in their rarer forms: what they are, and that kernels run only what they cover."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fused_cases import interpreted

from groundthink import ops
from groundthink.ops import _fused

__all__ = ["interpreted"]  # float32 takes the kernels here, float64 plain torch
SHAPE: dict[str, Any] = {"key_parts": 2, "key_heads": 2, "key_dim": 4, "value_dim": 3}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kernel files that were asked for."""
    names: list[str] = []
    real = _fused.kernels
    monkeypatch.setattr(_fused, "kernels", lambda name: (names.append(name), real(name))[1])
    return names


@pytest.mark.parametrize("width", [0, 3, 4, 5])
@pytest.mark.parametrize("activation", ["silu", "none"])
@pytest.mark.parametrize("query_norm", [True, False])
def test_heads(width: int, activation: Any, query_norm: bool, asked: list[str]) -> None:
    x, weight = torch.randn(2, 6, 22), torch.randn(22, width) if width else None
    (q, k, v), state = ops.conv_heads(x, weight, **SHAPE, activation=activation, query_norm=query_norm)
    assert asked == (["conv"] if (activation, query_norm) == ("silu", True) and 1 <= width <= 4 else [])
    mixed = x.double()
    if weight is None:
        assert state is None
    else:
        mixed = F.conv1d(F.pad(mixed.mT, (width - 1, 0)), weight.double()[:, None], groups=22).mT
        assert state is not None
        assert torch.equal(state, x[:, 6 - (width - 1) :])
    mixed = F.silu(mixed) if activation == "silu" else mixed
    queries, keys, values = (part.unflatten(-1, (2, -1)) for part in mixed.split([8, 8, 6], -1))
    queries = F.normalize(queries, dim=-1) if query_norm else queries
    for got, want in ((q, queries), (k, F.normalize(keys, dim=-1)), (v, values)):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)  # a handful of float32 roundings


@pytest.mark.parametrize("mamba", [False, True])
@pytest.mark.parametrize(("most", "least"), [(1.0, 0.0), (1.0, 0.25), (2.0, 0.5), (1.0, 1.0)])
def test_gates(most: float, least: float, mamba: bool, asked: list[str]) -> None:
    """A floor keeps the kernel; a constant beta, whose weights do not exist, takes plain torch."""
    constant = most == least
    x, weight = torch.randn(2, 5, 7), torch.randn(3 if constant else 6, 7, requires_grad=True)
    beta_bias = None if constant else torch.randn(3)
    decay_bias, a_log = torch.randn(3), torch.rand(3) if mamba else None
    log_decay, beta = ops.delta_gates(
        x, weight, beta_bias=beta_bias, decay_bias=decay_bias, a_log=a_log, beta_range=most, beta_floor=least
    )
    assert asked == ([] if constant else ["gates"])
    raw = x.double() @ weight.double().T
    decay = raw[..., :3] + decay_bias
    want = -a_log.exp() * F.softplus(decay) if a_log is not None else F.logsigmoid(decay)
    torch.testing.assert_close(log_decay.double(), want, rtol=1e-5, atol=1e-6)
    share = torch.zeros_like(want) if beta_bias is None else torch.sigmoid(raw[..., 3:] + beta_bias)
    torch.testing.assert_close(beta.double(), least + (most - least) * share, rtol=1e-5, atol=1e-6)
    assert bool(((beta >= least) & (beta <= most)).all())
    (log_decay.sum() + beta.sum()).backward()
    assert weight.grad is not None
    assert bool(weight.grad.abs().sum(1).all())


def test_windows_are_the_tokens_side_by_side() -> None:
    x = torch.arange(10.0).view(1, 5, 2)
    windows, state = ops.causal_windows(x, 2)
    assert torch.equal(windows[0, :, 2:], x[0])
    assert torch.equal(windows[0, 1:, :2], x[0, :-1])
    assert not windows[0, 0, :2].any()
    again, _ = ops.causal_windows(x, 2, state=state)
    assert torch.equal(again[0, 0, :2], x[0, -1])
