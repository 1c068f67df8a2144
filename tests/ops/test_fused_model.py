"""A whole model with the fused kernels in place (interpreted), against itself in plain torch and float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fused_cases import interpreted
from torch import Tensor

import groundthink as gt
from groundthink.ops import _fused

__all__ = ["interpreted"]  # a fixture of every test here
# float32 through two layers: a hundred roundings of 6e-8, enlarged where gradients cancel
BAR = 3e-5


def model(pattern: str, **fields: Any) -> gt.HybridForCausalLM:
    torch.manual_seed(0)
    sizes = {"d_model": 24, "n_heads": 2, "head_dim": 8, "value_dim": 4, "d_ff": 20, "window_size": 3}
    return gt.HybridForCausalLM(gt.ModelConfig(pattern=pattern, vocab_size=13, **(sizes | fields)))


def text(length: int = 7) -> dict[str, Tensor]:
    ids = torch.randint(0, 13, (2, length), generator=torch.Generator().manual_seed(1))
    documents = (torch.arange(length) >= torch.tensor([[3], [5]])).int()
    return {"input_ids": ids, "labels": ids, "documents": documents}


def gradients(net: gt.HybridForCausalLM) -> dict[str, Tensor]:
    total, _, _ = net.loss(**text())
    net.zero_grad()
    total.backward()
    return {"loss": total.detach()} | {n: p.grad for n, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("fields", [{}, {"decay": "mamba", "query": "key", "n_value_heads": 4, "conv_width": 2}])
@pytest.mark.parametrize("pattern", ["G", "GS"])
def test_loss_and_every_gradient(pattern: str, fields: dict[str, Any]) -> None:
    if pattern == "GS" and fields:
        fields = {"read_sources": "all"}
    found, truth = gradients(model(pattern, **fields)), gradients(model(pattern, **fields).double())
    assert found.keys() == truth.keys()
    for name, t in truth.items():
        assert (found[name].double() - t).norm() < BAR * t.norm(), name


@pytest.mark.parametrize(
    "fields",
    [
        {"conv_width": 0, "beta_floor": 0.3, "output_gate": False, "read_norm": False, "shifted_value": True},
        {"qkv_activation": "none", "beta_floor": 1.0, "output_norm": False, "embedding_norm": True, "rope": False},
        {"key_conv_width": 2, "slot_tokens": (3, 5), "read_query": "shared", "query_norm": False, "read_gate": "mean"},
    ],
)
def test_options_beside_the_kernels(fields: dict[str, Any]) -> None:
    """What no kernel covers takes plain torch in the middle of those that run."""
    found, truth = gradients(model("GS", **fields)), gradients(model("GS", **fields).double())
    assert found.keys() == truth.keys()
    for name, t in truth.items():
        assert (found[name].double() - t).norm() < BAR * t.norm(), name


def test_a_normed_embedding_keeps_the_residual_stream_in_float32() -> None:
    """Kernels return norms in autocast's type, for the product that follows; here none does."""
    net, seen = model("G", embedding_norm=True), []
    net.blocks[0].register_forward_pre_hook(lambda _m, given: seen.append(given[0]))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        net.prefill(text()["input_ids"])
    embedded = net.embed(text()["input_ids"])
    assert seen[0].dtype == torch.float32
    torch.testing.assert_close(seen[0], F.rms_norm(embedded, (24,), eps=1e-6), rtol=1e-5, atol=1e-6)


def test_the_kernels_are_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel file is asked for, and without them the numbers come from plain torch."""
    asked: set[str] = set()
    real = _fused.kernels
    monkeypatch.setattr(_fused, "kernels", lambda name: (asked.add(name), real(name))[1])
    gradients(model("G"))
    assert asked == {"conv", "norms", "pointwise", "gates", "cross_entropy"}


def test_carried_state_equals_the_whole() -> None:
    net, ids = model("GG").eval(), text()["input_ids"]
    with torch.no_grad():
        whole, _ = net.prefill(ids)
        first, snapshot = net.prefill(ids[:, :2])
        pieces = [first]
        for t in range(2, ids.shape[1]):
            logits, snapshot = net.resume(snapshot, ids[:, t : t + 1])
            pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-5)  # float32 sums in another order


def test_compiled_without_a_graph_break() -> None:
    net = model("G")
    given = text()
    compiled = torch.compile(lambda: net.loss(**given)[0], fullgraph=True, backend="aot_eager")
    eager = gradients(net)
    net.zero_grad()
    total = compiled()
    total.backward()
    torch.testing.assert_close(total.detach(), eager["loss"], rtol=1e-6, atol=0)  # the same kernels
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, eager[name], rtol=1e-4, atol=1e-6)  # sums in another order
