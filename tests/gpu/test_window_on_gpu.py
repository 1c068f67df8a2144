"""Window attention on a CUDA device: blocks, flexible and flash attention against the float64 definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from groundthink.ops import window_attention
from groundthink.ops.window import Past

pytestmark = pytest.mark.gpu

# RMS(error) / RMS(truth). bf16: operands and probabilities are rounded to 8 bits, gradients are products of two such.
# float32: sums of at most 512 terms; a kernel's exp2 and online softmax keep 20 bits.
BARS = {torch.bfloat16: (0.005, 0.01), torch.float32: (1e-5, 2e-5)}
WINDOWS, LENGTHS = (16, 64, 512), (1, 2, 63, 64, 65, 300, 1000, 4096)


def inputs(length: int, dtype: torch.dtype, size: int = 64, rows: int = 2) -> list[Tensor]:
    g = torch.Generator("cuda").manual_seed(length)
    return [torch.randn(rows, length, 2, size, generator=g, device="cuda").to(dtype) for _ in range(3)]


def some_documents(length: int, rows: int = 2) -> Tensor:
    g = torch.Generator("cuda").manual_seed(length)
    return (torch.rand(rows, length, generator=g, device="cuda") < 0.02).cumsum(1).int()


def definition(q: Tensor, k: Tensor, v: Tensor, window: int, past: Past | None, documents: Tensor | None) -> Tensor:
    """Softmax under a dense mask, float64, row by row of the batch."""
    before = 0 if past is None else past.keys.shape[1]
    if past is not None:
        k, v = torch.cat([past.keys.double(), k], 1), torch.cat([past.values.double(), v], 1)
    distance = torch.arange(q.shape[1], device="cuda")[:, None] + before - torch.arange(k.shape[1], device="cuda")
    outs = []
    for row in range(len(q)):
        seen = (distance >= 0) & (distance < window)
        if past is not None:
            seen = seen & torch.cat([past.valid[row], past.valid.new_ones(q.shape[1])])
        if documents is not None:
            ids = torch.cat([documents[row, :1].expand(before), documents[row]])
            seen = seen & (documents[row][:, None] == ids)
        scores = torch.einsum("ihk,jhk->hij", q[row], k[row]) * q.shape[-1] ** -0.5
        outs.append(torch.einsum("hij,jhv->ihv", scores.masked_fill(~seen, -torch.inf).softmax(-1), v[row]))
    return torch.stack(outs)


def assert_within(
    parts: list[Tensor], window: int, backend: str, past: Past | None = None, documents: Tensor | None = None
) -> None:
    bar, gradient_bar = BARS[parts[0].dtype]
    parts = [x.detach().requires_grad_() for x in parts]
    exact = [x.detach().double().requires_grad_() for x in parts]
    out, _ = window_attention(*parts, window=window, past=past, documents=documents, backend=backend)
    truth = definition(*exact, window, past, documents)
    weight = torch.randn_like(out)
    found = torch.autograd.grad((out * weight).sum(), parts)
    wanted = torch.autograd.grad((truth * weight.double()).sum(), exact)
    errors = {"out": relative(out, truth)}
    errors |= {name: relative(x, y) for name, x, y in zip("qkv", found, wanted, strict=True)}
    assert errors.pop("out") < bar
    assert all(error < gradient_bar for error in errors.values()), errors


def relative(found: Tensor, truth: Tensor) -> float:
    """RMS(error) over RMS(truth); where the truth is 0 (one key: a softmax without slope) a hundredth of RMS(error)."""
    error = float((found.detach().double() - truth.detach()).norm())
    size = float(truth.detach().norm())
    scale = truth.numel() ** 0.5
    return error / size if size > 1e-6 * scale else error / scale * 1e-2


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("backend", ["auto", "blocks", "flex", "flash"])
def test_lengths(backend: str, dtype: torch.dtype, window: int) -> None:
    for length in LENGTHS:
        assert_within(inputs(length, dtype), window, backend)


# flexible attention compiles anew for every window, dtype and kind of mask: one window of each dtype is asked
ASKED = [(b, d, w) for b in ("blocks", "flash") for d in BARS for w in WINDOWS] + [("flex", d, 64) for d in BARS]


@pytest.mark.parametrize(("backend", "dtype", "window"), ASKED)
def test_documents_and_past(backend: str, dtype: torch.dtype, window: int) -> None:
    for length in (1, 65, 1000):
        whole = inputs(length + 200, dtype)
        ids = some_documents(length + 200)
        first, rest = [x[:, :200] for x in whole], [x[:, 200:] for x in whole]
        assert_within(rest, window, backend, documents=ids[:, 200:])
        _, past = window_attention(*first, window=window, documents=ids[:, :200], backend=backend)
        for documents in (None, ids[:, 200:]):
            assert_within(rest, window, backend, past=past, documents=documents)


@pytest.mark.parametrize("size", [16, 32, 128, 256])
@pytest.mark.parametrize("backend", ["blocks", "flex", "flash"])
def test_head_sizes(backend: str, size: int) -> None:
    assert_within(inputs(300, torch.bfloat16, size), 64, backend)


@pytest.mark.parametrize("backend", ["blocks", "flex", "flash"])
def test_what_goes_on_is_the_same(backend: str) -> None:
    for length in (10, 300):
        parts, ids = inputs(length, torch.bfloat16), some_documents(length)
        for documents in (None, ids):
            _, past = window_attention(*parts, window=64, documents=documents, backend=backend)
            _, judge = window_attention(*parts, window=64, documents=documents, backend="blocks")
            assert torch.equal(past.valid, judge.valid)
            seen = judge.valid[:, :, None, None]
            assert torch.equal(past.keys * seen, judge.keys * seen)
            assert torch.equal(past.values * seen, judge.values * seen)


@pytest.mark.parametrize("backend", ["auto", "blocks", "flex", "flash"])
def test_memory_grows_with_the_text_and_not_with_its_square(backend: str) -> None:
    """At 65,536 tokens one dense mask of bytes is 4 GiB; strips of a window of 64 and its gradients are below 2."""
    parts = [x.requires_grad_() for x in inputs(65536, torch.bfloat16, rows=1)]
    documents = None if backend == "flash" else some_documents(65536, 1)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out, _ = window_attention(*parts, window=64, documents=documents, backend=backend)
    torch.autograd.grad(out.sum(), parts)
    assert torch.cuda.max_memory_allocated() - before < 2 * 2**30


@pytest.mark.parametrize("backend", ["blocks", "flex", "flash"])
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")  # said once, at first use
def test_the_host_is_not_asked(backend: str) -> None:
    parts, ids = inputs(300, torch.bfloat16), some_documents(300)
    window_attention(*parts, window=64, documents=ids, backend=backend)  # compiles and fills the caches
    window_attention(*parts, window=64, backend=backend)
    torch.cuda.set_sync_debug_mode("error")
    try:
        window_attention(*parts, window=64, documents=ids, backend=backend)
        window_attention(*parts, window=64, backend=backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")
