"""The fused kernels of a layer compiled, on a CUDA device, judged by plain torch in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import groundthink as gt
from groundthink import ops

pytestmark = pytest.mark.gpu

# RMS(error) / RMS(truth). float32: some tens of roundings of 6e-8; products of tf32 parts hold 21 bits.
# bfloat16: inputs are exact, so an output is off by one rounding to 8 bits, 2^-9 / sqrt(3) = 0.0011 RMS; gradients that
# pass the rounded weighting of the loss and sums of rounded terms stay below twice that.
BARS = {torch.float32: 5e-6, torch.bfloat16: 0.0025}
DTYPES = pytest.mark.parametrize("dtype", list(BARS))
# Whatever the input's dtype these are float32 parameters.
FLOAT32 = {"weight", "beta_bias", "decay_bias", "a_log"}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator("cuda").manual_seed(seed), device="cuda")


def outcome(function: Callable[..., tuple[Tensor, ...]], inputs: dict[str, Tensor], truth: bool) -> dict[str, Tensor]:
    given = {
        n: (x.double() if truth else x).detach().requires_grad_() if x.is_floating_point() else x
        for n, x in inputs.items()
    }
    outputs = function(**given)
    loss = torch.zeros((), device="cuda", dtype=torch.float64)
    for i, y in enumerate(outputs):
        # a weighting that every dtype holds exactly: the gradients that arrive are the same numbers
        weighting = numbers(*y.shape, seed=100 + i).bfloat16()
        loss = loss + (y.double() * weighting.double()).sum()
    leaves = {n: x for n, x in given.items() if x.requires_grad}
    grads = torch.autograd.grad(loss, list(leaves.values()))
    found = {f"out{i}": y.detach() for i, y in enumerate(outputs)}
    return found | {f"d_{n}": d for n, d in zip(leaves, grads, strict=True)}


def assert_within(
    function: Callable[..., tuple[Tensor, ...]],
    inputs: dict[str, Tensor],
    dtype: torch.dtype,
    wider: dict[str, float] | None = None,
) -> None:
    x = {n: t.to(dtype) if t.is_floating_point() and n not in FLOAT32 else t for n, t in inputs.items()}
    found, truth = outcome(function, x, False), outcome(function, x, True)
    errors = {n: float((found[n].double() - t).norm() / t.norm()) for n, t in truth.items() if t.numel()}
    bars = wider if wider and dtype == torch.bfloat16 else {}
    assert all(e < bars.get(n, BARS[dtype]) for n, e in errors.items()), errors


def conv(parts: int, heads: int, key_dim: int, value_dim: int, documents: Tensor | None = None) -> Any:
    def function(x: Tensor, weight: Tensor, state: Tensor | None = None) -> tuple[Tensor, ...]:
        found, after = ops.conv_heads(
            x, weight, key_parts=parts, key_heads=heads, key_dim=key_dim, value_dim=value_dim, state=state,
            documents=documents,
        )  # fmt: skip
        assert after is not None
        return (*found, after)

    return function


@DTYPES
@pytest.mark.parametrize("length", [1, 2, 3, 61, 62, 64, 65, 1000])
def test_conv_lengths(length: int, dtype: torch.dtype) -> None:
    x = {
        "x": numbers(2, length, 6 * 64 * 3), "weight": numbers(6 * 64 * 3, 4, seed=1),
        "state": numbers(2, 3, 6 * 64 * 3, seed=2),
    }  # fmt: skip
    assert_within(conv(2, 6, 64, 64), x, dtype)


@DTYPES
@pytest.mark.parametrize(("key_dim", "value_dim"), [(16, 16), (24, 40), (32, 256), (128, 128), (256, 64)])
@pytest.mark.parametrize("width", [2, 4])
def test_conv_sizes_and_documents(key_dim: int, value_dim: int, width: int, dtype: torch.dtype) -> None:
    channels = 2 * 3 * key_dim + 3 * value_dim
    documents = (numbers(2, 150, seed=3) > 1).int().cumsum(1)
    x = {
        "x": numbers(2, 150, channels), "weight": numbers(channels, width, seed=1),
        "state": numbers(2, width - 1, channels, seed=2),
    }  # fmt: skip
    assert_within(conv(2, 3, key_dim, value_dim, documents), x, dtype)


@DTYPES
@pytest.mark.parametrize("size", [48, 768, 1024, 4096])
@pytest.mark.parametrize("joined", [False, True])
def test_add_rms_norm(size: int, joined: bool, dtype: torch.dtype) -> None:
    x = {"x": numbers(3, 1111, size), "weight": numbers(size, seed=1) + 2}
    if joined:
        x["branch"] = numbers(3, 1111, size, seed=2)

    def function(x: Tensor, weight: Tensor, branch: Tensor | None = None) -> tuple[Tensor, ...]:
        return ops.add_rms_norm(x, branch, weight, eps=1e-6)

    # the sum is rounded before its norm is taken: two roundings in a row
    assert_within(function, x, dtype, {"out1": 0.004, "d_x": 0.004, "d_branch": 0.004, "d_weight": 0.004})


@DTYPES
@pytest.mark.parametrize("size", [16, 40, 128, 256])
def test_gated_rms_norm(size: int, dtype: torch.dtype) -> None:
    x = {"x": numbers(2, 700, 6, size), "gate": numbers(2, 700, 6 * size, seed=1), "weight": numbers(size) + 2}
    assert_within(lambda x, gate, weight: (ops.gated_rms_norm(x, gate, weight, eps=1e-6),), x, dtype)


@DTYPES
@pytest.mark.parametrize("width", [7, 1344, 2048, 2752])
def test_swiglu(width: int, dtype: torch.dtype) -> None:
    assert_within(lambda packed: (ops.swiglu(packed),), {"packed": numbers(2, 500, 2 * width)}, dtype)


@DTYPES
@pytest.mark.parametrize("mamba", [False, True])
@pytest.mark.parametrize(("heads", "width"), [(1, 24), (6, 768), (16, 1024), (40, 200)])
def test_gates(heads: int, width: int, mamba: bool, dtype: torch.dtype) -> None:
    x = {
        "x": numbers(2, 1000, width), "weight": numbers(2 * heads, width, seed=1) * width**-0.5,
        "beta_bias": numbers(heads, seed=2), "decay_bias": numbers(heads, seed=3) + 4,
    }  # fmt: skip
    if mamba:
        x["a_log"] = numbers(heads, seed=4)

    def function(
        x: Tensor, weight: Tensor, beta_bias: Tensor, decay_bias: Tensor, a_log: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        return ops.delta_gates(x, weight, beta_bias=beta_bias, decay_bias=decay_bias, a_log=a_log, beta_range=1.0)

    # outputs and biases are float32 whatever x is; both factors of d_x are rounded, and the sum of its two products
    fine = dict.fromkeys(("out0", "out1", "d_beta_bias", "d_decay_bias", "d_a_log"), 1e-5)
    assert_within(function, x, dtype, {"d_x": 0.005} | fine)


@DTYPES
@pytest.mark.parametrize("vocabulary", [100, 50257, 50304])
def test_cross_entropy(vocabulary: int, dtype: torch.dtype) -> None:
    labels = torch.randint(0, vocabulary, (1500,), device="cuda")
    labels[::7] = -100
    x = {"hidden": numbers(1500, 256), "weight": numbers(vocabulary, 256, seed=1) * 0.1, "labels": labels}

    def function(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        return (ops.linear_cross_entropy(hidden, weight.to(hidden.dtype), labels, chunk=400),)

    # logits of order 1.6 are rounded to 8 bits before they become exponents, and their gradient once more
    assert_within(function, x, dtype, {"out0": 0.001, "d_hidden": 0.01, "d_weight": 0.01})


def test_the_head_stays_float32_under_autocast() -> None:
    hidden, weight = numbers(300, 64).bfloat16().requires_grad_(), numbers(99, 64, seed=1).requires_grad_()
    labels = torch.randint(0, 99, (300,), device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        total = ops.linear_cross_entropy(hidden, weight, labels)
    dh, dw = torch.autograd.grad(total, [hidden, weight])
    assert (total.dtype, dh.dtype, dw.dtype) == (torch.float32, torch.bfloat16, torch.float32)


def test_the_same_bits_twice() -> None:
    """No atomics: sums run in a fixed order."""
    x = numbers(2, 500, 768).bfloat16()
    weights = {"conv": numbers(768, 4, seed=1), "norm": numbers(768, seed=2)}

    def once() -> tuple[Tensor, ...]:
        leaves = [x.clone().requires_grad_(), *(w.clone().requires_grad_() for w in weights.values())]
        normed = ops.rms_norm(leaves[0], leaves[2], eps=1e-6)
        heads, _ = ops.conv_heads(normed, leaves[1], key_parts=2, key_heads=4, key_dim=64, value_dim=64)
        return torch.autograd.grad(sum((h.float() ** 3).sum() for h in heads), leaves)  # type: ignore[arg-type]

    assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))


def test_more_than_two_to_the_31_elements() -> None:
    """The last row of tensors that pass 2^31 elements equals that row alone."""
    x = torch.randn(9, 65536, 3840, device="cuda", dtype=torch.bfloat16)
    assert x.numel() > 2**31
    weight, scale = numbers(3840, 4), numbers(3840, seed=1)
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda t: ops.conv_heads(t, weight, key_parts=2, key_heads=10, key_dim=128, value_dim=128)[0][-1],
        lambda t: ops.rms_norm(t, scale, eps=1e-6),
        ops.swiglu,
    ]
    with torch.no_grad():
        for function in functions:
            assert torch.equal(function(x)[-1:], function(x[-1:]))
    part = x[:, :, :1280].contiguous().requires_grad_()  # gradients of a third fit beside it
    del x
    out = ops.swiglu(torch.cat([part, part, part], -1))
    (grad,) = torch.autograd.grad(out.sum(), part)
    one = part[-1:].detach().requires_grad_()
    (alone,) = torch.autograd.grad(ops.swiglu(torch.cat([one, one, one], -1)).sum(), one)
    assert torch.equal(grad[-1:], alone)


def model(pattern: str = "GG", backend: str = "triton") -> gt.HybridForCausalLM:
    torch.manual_seed(0)
    sizes = {"d_model": 192, "n_heads": 3, "head_dim": 64, "value_dim": 64}
    return gt.HybridForCausalLM(gt.ModelConfig(pattern=pattern, vocab_size=1000, backend=backend, **sizes)).cuda()


def trained(net: gt.HybridForCausalLM, autocast: bool) -> tuple[Tensor, dict[str, Tensor]]:
    ids = torch.randint(0, 1000, (2, 300), generator=torch.Generator().manual_seed(1)).cuda()
    documents = (torch.arange(300, device="cuda") >= torch.tensor([[100], [170]], device="cuda")).int()
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
        total, count, _ = net.loss(ids, ids, documents=documents)
    net.zero_grad()
    (total / count).backward()
    return (total / count).detach(), {n: p.grad.double() for n, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("autocast", [False, True])
def test_model_against_plain_float64(autocast: bool) -> None:
    """float64 takes plain torch everywhere, the chunked memory included."""
    loss, grads = trained(model(), autocast)
    truth, expected = trained(model(backend="chunked").double(), False)
    # bfloat16: every activation of two layers is rounded to 8 bits, some ten in a row
    assert abs(float(loss) - float(truth)) < (2e-3 if autocast else 1e-5) * float(truth)
    error = sum((grads[n] - t).square().sum() for n, t in expected.items())
    size = sum(t.square().sum() for t in expected.values())
    assert float(error) ** 0.5 < (0.03 if autocast else 1e-4) * float(size) ** 0.5  # type: ignore[operator]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own, inside inductor
def test_model_compiled_whole_equals_eager() -> None:
    net = model("GG", backend="triton")
    ids = torch.randint(0, 1000, (2, 130), device="cuda")
    compiled = torch.compile(lambda: net.loss(ids, ids)[0], fullgraph=True)
    with torch.no_grad():
        # the kernels are the same; what inductor fuses between them rounds in another order
        torch.testing.assert_close(compiled(), net.loss(ids, ids)[0], rtol=1e-5, atol=0)
