"""The Triton kernels compiled, on a CUDA device, judged by the float64 token loop: bf16, long texts, CUDA graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from groundthink.ops import _reference
from groundthink.ops._shapes import WriteInputs

pytestmark = pytest.mark.gpu

# RMS(error) / RMS(truth). float32: three tf32 products hold 21 bits. bf16: operands are rounded to 8 bits, 2e-3 to
# 4e-3 after the products; gradients of gates are differences of such numbers.
FLOAT32 = dict.fromkeys(
    ("out", "again", "final", "keys", "values", "queries", "log_decay", "beta", "initial_state"), 1e-5
)
BFLOAT16 = {
    "out": 0.005, "again": 0.005, "final": 0.005, "keys": 0.008, "values": 0.008, "queries": 0.008,
    "log_decay": 0.015, "beta": 0.015, "initial_state": 0.008,
}  # fmt: skip


@pytest.fixture(scope="module")
def ops() -> Any:
    from groundthink.ops import _triton_ops

    return _triton_ops


def inputs(
    length: int, key_dim: int = 128, value_dim: int = 128, dtype: torch.dtype = torch.bfloat16, value_heads: int = 1
) -> dict[str, Tensor]:
    g = torch.Generator("cuda").manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device="cuda")

    keys, queries = (torch.nn.functional.normalize(normal(1, length, 1, key_dim), dim=-1).to(dtype) for _ in range(2))
    return {
        "keys": keys,
        "values": normal(1, length, value_heads, value_dim).to(dtype),
        "queries": queries,
        "log_decay": torch.nn.functional.logsigmoid(normal(1, length, value_heads) + 3),
        "beta": torch.rand(1, length, value_heads, generator=g, device="cuda"),
        "initial_state": normal(1, value_heads, key_dim, value_dim),
    }


def outcome(ops: Any, x: dict[str, Tensor], *, raw: bool, documents: Tensor | None, truth: bool) -> dict[str, Tensor]:
    """Two reads, the final state and the gradient of every input."""
    x = {n: (t.double() if truth else t).detach().requires_grad_() for n, t in x.items()}
    given = {n: x[n] for n in ("log_decay", "beta", "initial_state")} | {"documents": documents, "raw": raw}
    if truth:
        parts, final = _reference.write(x["keys"], x["values"], **given)
        out, again = (_reference.read(parts, x[n], scale=0.1) for n in ("queries", "keys"))
    else:
        parts, final, out = ops.write_and_read(WriteInputs(x["keys"], x["values"], **given), x["queries"], scale=0.1)
        again = ops.read(parts, x["keys"], scale=0.1)
    g = torch.Generator("cuda").manual_seed(0)
    loss = torch.zeros((), device="cuda", dtype=torch.float64)
    for y in (out, again, final):
        loss = loss + (y.double() * torch.randn(y.shape, generator=g, device="cuda", dtype=torch.float64)).sum()
    grads = torch.autograd.grad(loss, list(x.values()))
    return {n: y.detach() for n, y in (("out", out), ("again", again), ("final", final))} | dict(
        zip(x, grads, strict=True)
    )


def assert_within(
    ops: Any, x: dict[str, Tensor], bars: dict[str, float], *, raw: bool = False, documents: Tensor | None = None
) -> None:
    truth = outcome(ops, x, raw=raw, documents=documents, truth=True)
    found = outcome(ops, x, raw=raw, documents=documents, truth=False)
    errors = {n: float((found[n].double() - t).norm() / t.norm()) for n, t in truth.items()}
    bad = {n: e for n, e in errors.items() if not e < bars[n]}
    assert not bad, bad


@pytest.mark.parametrize("length", [1, 63, 64, 65, 100, 1000, 4096])
def test_lengths(ops: Any, length: int) -> None:
    assert_within(ops, inputs(length), BFLOAT16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_time_cut_in_segments(ops: Any, dtype: torch.dtype) -> None:
    """One head leaves the chip idle, so 4,096 tokens run as segments; documents end inside them."""
    x = inputs(4096, 128 if dtype == torch.bfloat16 else 64, 64, dtype=dtype)
    assert ops.launch.segments(1, 64, 4, x["keys"].device)[0] > 1
    documents = (torch.arange(4096, device="cuda")[None] // 1500).int()
    assert_within(ops, x, BFLOAT16 if dtype == torch.bfloat16 else FLOAT32, documents=documents)


@pytest.mark.parametrize("key_dim", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("value_dim", [16, 64, 256])
def test_every_width(ops: Any, key_dim: int, value_dim: int) -> None:
    documents = (torch.arange(150, device="cuda")[None] >= 70).int()
    assert_within(ops, inputs(150, key_dim, value_dim, value_heads=2), BFLOAT16, raw=True, documents=documents)


@pytest.mark.parametrize("raw", [False, True])
def test_float32_with_strong_decay(ops: Any, raw: bool) -> None:
    x = inputs(200, 64, 64, torch.float32)
    x["log_decay"] = -20 * torch.rand_like(x["log_decay"])
    assert_within(ops, x, FLOAT32, raw=raw)


@pytest.mark.parametrize("raw", [False, True])
def test_bfloat16_with_strong_decay(ops: Any, raw: bool) -> None:
    x = inputs(200)
    x["log_decay"] = -20 * torch.rand_like(x["log_decay"])
    assert_within(ops, x, BFLOAT16, raw=raw)


def test_identical_keys_stay_finite(ops: Any) -> None:
    x = inputs(200)
    x["keys"] = x["keys"][:, :1].expand_as(x["keys"]).contiguous()
    x["beta"], x["log_decay"] = torch.ones_like(x["beta"]), torch.zeros_like(x["log_decay"])
    truth = outcome(ops, x, raw=False, documents=None, truth=True)
    found = outcome(ops, x, raw=False, documents=None, truth=False)
    assert all(bool(torch.isfinite(t).all()) for t in found.values())
    for name in ("out", "again", "final", "values"):
        assert (found[name].double() - truth[name]).norm() < 0.05 * truth[name].norm(), name


def test_more_than_two_to_the_31_elements(ops: Any) -> None:
    """The last row of a batch whose values pass 2^31 elements equals that row alone."""
    batch, length, heads, width = 33, 65536, 8, 128
    k = torch.randn(batch, length, 1, 16, device="cuda", dtype=torch.bfloat16)
    k = torch.nn.functional.normalize(k, dim=-1)
    v = torch.randn(batch, length, heads, width, device="cuda", dtype=torch.bfloat16)
    g = -torch.rand(batch, length, heads, device="cuda")
    b = torch.rand(batch, length, heads, device="cuda")
    rest = {"scale": 0.25, "keep": False}
    assert v.numel() > 2**31
    _, final, out = ops.write_and_read(WriteInputs(k, v, log_decay=g, beta=b), k, **rest)
    one = WriteInputs(k[-1:], v[-1:], log_decay=g[-1:], beta=b[-1:])
    _, final_one, out_one = ops.write_and_read(one, k[-1:], **rest)
    assert torch.equal(out[-1:], out_one)
    assert torch.equal(final[-1:], final_one)


def test_step_in_a_cuda_graph(ops: Any) -> None:
    x = inputs(3)
    state = x["initial_state"].clone()
    token = [x[n][:, :1].clone() for n in ("keys", "values", "queries", "log_decay", "beta")]
    torch.ops.groundthink.triton_step_(*token, state.clone(), False, 0.1)  # compiles outside the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = torch.ops.groundthink.triton_step_(*token, state, False, 0.1)
    state.copy_(x["initial_state"])
    for t in range(3):
        for held, n in zip(token, ("keys", "values", "queries", "log_decay", "beta"), strict=True):
            held.copy_(x[n][:, t : t + 1])
        graph.replay()
    parts, final = _reference.write(
        x["keys"].double(), x["values"].double(), log_decay=x["log_decay"].double(), beta=x["beta"].double(),
        initial_state=x["initial_state"].double(), documents=None, raw=False,
    )  # fmt: skip
    truth = _reference.read(parts, x["queries"].double(), scale=0.1)[:, -1:]
    assert (out.double() - truth).norm() < 0.005 * truth.norm()
    assert (state.double() - final).norm() < 1e-5 * final.norm()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own, inside inductor
def test_compiled_whole_equals_eager(ops: Any) -> None:
    """No graph break, and the same numbers."""
    x = inputs(130)

    def layer(k: Tensor, v: Tensor, q: Tensor, g: Tensor, b: Tensor) -> Tensor:
        parts, _, out = ops.write_and_read(WriteInputs(k, v, log_decay=g, beta=b), q, scale=0.1)
        return out + ops.read(parts, k, scale=0.1)

    given = [x[n].requires_grad_() for n in ("keys", "values", "queries", "log_decay", "beta")]
    compiled = torch.compile(layer, fullgraph=True)
    eager, fast = layer(*given), compiled(*given)
    assert torch.equal(eager, fast)
    for a, b in zip(torch.autograd.grad(eager.sum(), given), torch.autograd.grad(fast.sum(), given), strict=True):
        assert (a - b).norm() <= 0.01 * a.norm()  # bf16 sums of the same parts in another order


def test_one_row_of_more_than_2_to_the_31_numbers(ops: Any) -> None:
    """The scans' offsets inside a row; the same text in two segments stays below them. Some 20 GiB."""
    length, half = 2**20 + 128, 2**19
    keys = torch.nn.functional.normalize(torch.randn(1, length, 1, 128, device="cuda"), dim=-1).bfloat16()
    values = torch.randn(1, length, 16, 128, device="cuda", dtype=torch.bfloat16)
    log_decay = torch.full((1, length, 16), -0.05, device="cuda")
    beta = torch.full_like(log_decay, 0.5)

    def run(start: int, stop: int, state: Tensor | None) -> tuple[Tensor, Tensor]:
        k, v, g, b = (x[:, start:stop] for x in (keys, values, log_decay, beta))
        given = {"log_decay": g, "beta": b, "initial_state": state, "documents": None, "raw": False}
        with torch.no_grad():
            _, final, out = ops.write_and_read(WriteInputs(k, v, **given), k, scale=1.0, keep=False)
        return out, final

    out, final = run(0, length, None)
    first, state = run(0, half, None)
    second, there = run(half, length, state)
    # bf16 outputs of the same sums in other segments: a rounding of 2^-9 here and there
    for here, wanted in ((out[:, :half], first), (out[:, half:], second), (final, there)):
        assert float((here.float() - wanted.float()).abs().max()) < 0.05


@pytest.mark.parametrize("index", range(torch.cuda.device_count()))
def test_any_card_while_the_first_is_current(ops: Any, index: int) -> None:
    x = {name: value.to(f"cuda:{index}") for name, value in inputs(100, dtype=torch.float32).items()}
    given = {n: x[n] for n in ("log_decay", "beta", "initial_state")} | {"documents": None, "raw": False}
    _, final, out = ops.write_and_read(WriteInputs(x["keys"], x["values"], **given), x["queries"], scale=0.1)
    truth, expected = _reference.write(x["keys"].double(), x["values"].double(), **{
        n: v.double() if isinstance(v, Tensor) else v for n, v in given.items()
    })  # fmt: skip
    wanted = _reference.read(truth, x["queries"].double(), scale=0.1)
    for found, right in ((out, wanted), (final, expected)):
        assert float((found.double() - right).norm() / right.norm()) < 1e-5  # as FLOAT32
