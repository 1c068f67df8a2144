"""`gt.stream` on a CUDA device: graph = no graph = generate, memory that stays, a host that is not asked."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import groundthink as gt
from groundthink.model import stream as streaming
from groundthink.model.decoder import Decoder, Mode

pytestmark = pytest.mark.gpu

SIZES = {
    "vocab_size": 256, "d_model": 128, "n_heads": 2, "head_dim": 64, "value_dim": 64, "d_ff": 256, "window_size": 16,
}  # fmt: skip


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    yield
    streaming._IDLE.clear()


def make(pattern: str = "GSA", backend: str = "triton", **fields: Any) -> gt.HybridForCausalLM:
    torch.manual_seed(1)
    config = gt.ModelConfig(**{"pattern": pattern, "backend": backend, "init_std": 0.2, **SIZES, **fields})
    return gt.HybridForCausalLM(config).cuda().eval()


def some_ids(length: int, rows: int = 1) -> Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(length)).cuda()


def written(model: gt.HybridForCausalLM, ids: Tensor, new: int = 64, **given: Any) -> Tensor:
    return torch.stack(list(gt.stream(model, ids, max_new_tokens=new, **given)), 1)


@pytest.mark.parametrize("pattern", ["G", "A", "GSA", "GGS"])
@pytest.mark.parametrize("backend", ["chunked", "triton"])
@pytest.mark.parametrize("rows", [1, 3])
def test_graph_is_no_graph_is_generate(pattern: str, backend: str, rows: int) -> None:
    """float32, prompt in one piece: the same kernels on the same numbers, so the same tokens."""
    model = make(pattern, backend)
    ids = some_ids(40, rows)
    graph = written(model, ids, graph=True)
    assert torch.equal(graph, written(model, ids, graph=False))
    out = model.generate(ids, max_new_tokens=64, do_sample=False, pad_token_id=0)
    assert torch.equal(graph, out[:, 40:].cpu())
    assert len(set(graph.flatten().tolist())) > 5, "the test says something only if the text varies"


@pytest.mark.parametrize("cast", ["weights", "autocast"])
def test_graph_logits_are_eager_logits_in_bfloat16(cast: str) -> None:
    """After 50 tokens of the same text: the same kernels, so the same logits to the bit."""
    model = make("GGS")
    model = model.bfloat16() if cast == "weights" else model
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=cast == "autocast"), torch.no_grad():
        logits, snapshot = model.prefill(some_ids(40, 2))
        decoders = [Decoder(snapshot, "greedy", 256, Mode(torch.device("cuda"))) for _ in range(2)]
        decoders[1].capture(model)
        for decoder in decoders:
            decoder.load(snapshot, logits[:, -1])
            for _ in range(50):
                decoder.step(model)
    assert torch.equal(decoders[0].token, decoders[1].token)
    assert torch.equal(decoders[0].logits, decoders[1].logits)
    assert decoders[1].state.layers[0]["memory"].dtype == torch.float32
    for one, other in zip(*(d.state.tensors().values() for d in decoders), strict=True):
        assert torch.equal(one, other)


def test_a_long_prompt_in_segments() -> None:
    """Segments sum in another order, 1e-5 of the logits; greedy tokens of a text this varied are the same."""
    model = make()
    ids = some_ids(1000)
    assert torch.equal(written(model, ids, 16, segment=300), written(model, ids, 16))


def test_left_padding() -> None:
    model = make()
    short, long = some_ids(20), some_ids(50)
    ids = torch.cat([torch.nn.functional.pad(short, (30, 0)), long])
    mask = torch.cat([torch.nn.functional.pad(torch.ones_like(short), (30, 0)), torch.ones_like(long)])
    out = written(model, ids, 24, attention_mask=mask, segment=30)
    assert torch.equal(out, torch.cat([written(model, short, 24), written(model, long, 24)]))


def test_memory_is_constant_over_ten_thousand_tokens() -> None:
    model = make()
    tokens = gt.stream(model, some_ids(100), max_new_tokens=10_000)
    list(itertools.islice(tokens, 100))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    assert sum(1 for _ in tokens) == 9_900
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before[0]
    assert torch.cuda.memory_reserved() == before[1]
    assert torch.cuda.max_memory_allocated() == before[0]


@pytest.mark.parametrize("given", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.9}])
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")  # said once, at first use
def test_the_host_is_asked_only_for_the_token(given: dict[str, Any]) -> None:
    """Every call that waits for the GPU raises; the event that brings a token is none of them."""
    model = make()
    tokens = gt.stream(model, some_ids(100), max_new_tokens=50, **given)
    list(itertools.islice(tokens, 5))
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(itertools.islice(tokens, 40))) == 40
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_one_capture_serves_every_stream_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = []
    real = Decoder.capture
    monkeypatch.setattr(Decoder, "capture", lambda self, model: (captured.append(1), real(self, model)))
    model = make()
    first = written(model, some_ids(30), 20)
    written(model, some_ids(31), 20)
    assert torch.equal(first, written(model, some_ids(30), 20))
    assert len(captured) == 1
    with torch.no_grad():
        model.embed.weight.mul_(-1)  # in place: the graph reads the same address
    assert torch.equal(written(model, some_ids(30), 20), written(model, some_ids(30), 20, graph=False))
    assert len(captured) == 1
    streams = [gt.stream(model, some_ids(n), max_new_tokens=20) for n in (30, 31)]
    pairs = list(zip(*streams, strict=True))
    assert len(captured) == 2
    for i, n in enumerate((30, 31)):
        assert torch.equal(torch.stack([pair[i] for pair in pairs], 1), written(model, some_ids(n), 20))


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_draws_in_a_graph_depend_on_the_seed_alone(top_p: float) -> None:
    model = make()
    given: dict[str, Any] = {"temperature": 1.0, "top_p": top_p}
    first = written(model, some_ids(30), seed=1, **given)
    assert torch.equal(first, written(model, some_ids(30), seed=1, **given))
    assert torch.equal(first, written(model, some_ids(30), seed=1, graph=False, **given))
    assert not torch.equal(first, written(model, some_ids(30), seed=2, **given))


def test_listeners_are_heard() -> None:
    """A hook is Python: with one, every step is called."""
    model = make()
    ids = some_ids(30)
    whole = written(model, ids, 20)
    handle = model.blocks[1].mixer.reader.hook_read.register_forward_hook(lambda _m, _i, out: torch.zeros_like(out))
    cut = written(model, ids, 20)
    handle.remove()
    assert not torch.equal(whole, cut)
    assert torch.equal(written(model, ids, 20), whole)


def test_another_stream_and_gradients() -> None:
    """A consumer on its own CUDA stream, with gradients on, changes nothing."""
    model = make()
    want = written(model, some_ids(30), 20)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens = gt.stream(model, some_ids(30), max_new_tokens=20)
        for _ in range(20):
            with torch.cuda.stream(torch.cuda.Stream()):
                found.append(next(tokens))
                torch.randn(64, 64, device="cuda") @ torch.randn(64, 64, device="cuda")
        assert torch.is_grad_enabled()
    assert torch.equal(torch.stack(found, 1), want)
