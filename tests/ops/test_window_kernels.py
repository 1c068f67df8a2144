"""Window attention by PyTorch's kernels, as far as a CPU can tell: what is seen, which blocks, what goes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from groundthink.errors import BackendError
from groundthink.ops import _window_kernels as kernels
from groundthink.ops import window as window_module
from groundthink.ops import window_attention
from groundthink.ops.window import Past, limits

FEW = settings(deadline=None, max_examples=25, derandomize=True, database=None)
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # float32, softmax over at most 60 terms of order 1


def numbers(length: int, size: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(2, length, 3, size, generator=g) for _ in range(3))
    return q, k, v


def dense_seen(window: int, length: int, total: int) -> Tensor:
    distance = torch.arange(length)[:, None] + (total - length) - torch.arange(total)[None, :]
    return (distance >= 0) & (distance < window)


@FEW
@given(window=st.integers(1, 700), length=st.integers(1, 700), before=st.integers(0, 699))
def test_the_band_holds_what_the_window_sees_and_little_more(window: int, length: int, before: int) -> None:
    total = length + before
    mask = kernels.band(window, length, total, "cpu")
    size = kernels.BLOCK
    covered = mask.to_dense()[0, 0].bool().repeat_interleave(size, 0).repeat_interleave(size, 1)
    seen = dense_seen(window, length, total)
    assert not (seen & ~covered[:length, :total]).any()
    rows, columns = torch.arange(length)[:, None], torch.arange(total)[None, :]
    assert torch.equal(mask.mask_mod(None, None, rows, columns), seen)
    # and back: no block without a key that someone in it sees
    padded = torch.zeros_like(covered)
    padded[:length, :total] = seen
    blocks = padded.unflatten(0, (-1, size)).unflatten(2, (-1, size)).any(3).any(1)
    assert torch.equal(blocks, mask.to_dense()[0, 0].bool())


def test_a_band_one_block_short_is_caught() -> None:
    mask = kernels.band(200, 300, 300, "cpu")
    low = mask.kv_indices[0, 0, 2, 0]
    assert int(low) == 0  # query 256 sees key 57: without block 0 it would be lost
    assert int(mask.kv_num_blocks[0, 0, 2]) == 3


@pytest.fixture
def flex_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flexible attention uncompiled, with its own dense mask: the judge of masks, past and documents."""
    monkeypatch.setattr(window_module, "_choose", lambda name, device: "flex" if name == "auto" else name)
    monkeypatch.setattr(kernels, "compiled", lambda key: flex_attention)


def same(one: tuple[Tensor, Past], other: tuple[Tensor, Past]) -> None:
    torch.testing.assert_close(one[0], other[0], **CLOSE)
    assert torch.equal(one[1].valid, other[1].valid)
    for x, y in zip(one[1][:2], other[1][:2], strict=True):
        assert x.shape == y.shape
        seen = one[1].valid[:, :, None, None]
        assert torch.equal(x * seen, y * seen)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.usefixtures("flex_on_cpu")
@pytest.mark.parametrize("window", [1, 5, 16, 100])
@pytest.mark.parametrize("length", [2, 17, 40])
def test_flexible_attention_is_the_blocks(window: int, length: int) -> None:
    q, k, v = numbers(length + 20)
    ids = torch.tensor([[0] * 9 + [1] * 4 + [2] * (length + 7), [0] * (length + 19) + [5]])
    parts = [x[:, 20:] for x in (q, k, v)]
    for documents in (None, ids[:, 20:]):
        given: dict[str, Any] = {"window": window, "documents": documents}
        same(window_attention(*parts, **given), window_attention(*parts, **given, backend="blocks"))
    _, past = window_attention(q[:, :20], k[:, :20], v[:, :20], window=window, documents=ids[:, :20], backend="blocks")
    assert window == 1 or not bool(past.valid.all()) or window < 8
    for documents in (None, ids[:, 20:]):
        given = {"window": window, "documents": documents, "past": past}
        same(window_attention(*parts, **given), window_attention(*parts, **given, backend="blocks"))


def test_what_the_kernels_leave_to_the_blocks() -> None:
    q, _, v = numbers(8)
    half = q.bfloat16(), v.bfloat16()
    none: dict[str, Any] = {"past": None, "documents": None}
    assert limits("flex", q, v, **none) == limits("flash", *half, **none) == ""
    assert "decode" in limits("flex", q[:, :1], v, **none)
    assert "float64" in limits("flex", q.double(), v, **none)
    assert "smaller than 16" in limits("flex", q[..., :8], v, **none)
    assert "half precision" in limits("flash", q, v, **none)
    assert "documents" in limits("flash", *half, past=None, documents=torch.zeros(2, 8))
    assert "multiple of 8" in limits("flash", *(x[..., :17] for x in (torch.cat([h, h], -1) for h in half)), **none)


@pytest.mark.parametrize(("name", "said"), [("flx", "no window backend 'flx'"), ("flex", "needs a CUDA device")])
def test_a_backend_that_cannot_run_is_one_line(name: str, said: str) -> None:
    with pytest.raises(BackendError, match=said) as caught:
        window_attention(*numbers(3), window=2, backend=name)
    assert "\n" not in str(caught.value)


def test_each_kind_of_call_is_a_function_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the ninth kind in a process would run uncompiled, with every score in memory."""
    made: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function, fullgraph: made.append((function, fullgraph)) or function)
    kernels._compiled.cache_clear()
    for key in ((64, 0), (64, 63), (64, 0)):
        kernels.compiled(key)
    kernels._compiled.cache_clear()
    assert [fullgraph for _, fullgraph in made] == [True, True]
    codes = [function.__code__ for function, _ in made]
    assert codes[0] is not codes[1]
    assert codes[0].co_name == "window_64_0"


@torch.no_grad()
def test_traced_once_it_follows_lengths_and_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler's tracing without its code generation: masks are inputs of what it makes, never baked in."""
    made: list[Any] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        made.append(graph)
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, fullgraph: real(function, fullgraph=fullgraph, backend=backend)
    )
    kernels._compiled.cache_clear()
    for seed, length in enumerate((200, 300, 300, 250)):
        q, k, v = numbers(length)
        g = torch.Generator().manual_seed(seed)
        ids = (torch.rand(2, length, generator=g) < 0.05).cumsum(1).int()
        found = kernels.flex_window(q, k, v, None, ids, 40)
        torch.testing.assert_close(found, window_attention(q, k, v, window=40, documents=ids)[0], **CLOSE)
    kernels._compiled.cache_clear()
    torch.compiler.reset()
    assert len(made) == 2  # a first length, then any
