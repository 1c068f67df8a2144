"""One token a step: the buffers a step reads and writes, its CUDA graph, how a token is chosen and how it travels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from groundthink.model.hybrid import HybridForCausalLM
from groundthink.model.snapshot import Snapshot

WARM_UP = 3  # steps before a capture: kernels are compiled and libraries have made their workspaces


class Mode:
    """The caller's autocast at the start of a stream, for each of its steps, on one CUDA stream; no gradients."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.autocast = (torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type))
        self.stream: Any = torch.cuda.current_stream(device) if device.type == "cuda" else None

    @contextlib.contextmanager
    def on(self, stream: Any = None) -> Iterator[None]:
        """Run in this mode; `stream` replaces the CUDA stream."""
        enabled, dtype = self.autocast
        # without a cache: a weight that an earlier step cast would be missing from the graph
        with (
            torch.no_grad(),
            torch.cuda.stream(self.stream if stream is None else stream),
            torch.autocast(self.device.type, enabled=enabled, dtype=dtype, cache_enabled=False),
        ):
            yield

    def key(self) -> tuple[Any, ...]:
        """What a graph captured in this mode cannot change."""
        return self.device, self.autocast, None if self.stream is None else self.stream.cuda_stream


class Decoder:
    """One token a step. Every tensor of a step is one of these buffers, read and then overwritten where it lies.

    Attributes:
        token: [B,1] int64, the last token of each row.
        state: the snapshot before `token` was read. Only a layer that grows (F) gets new tensors.
        logits: [B,V] float32, from which `token` was chosen.
        temperature, top_p: [1] float32.
        uniform: [B,1] float64 in [0, 1), drawn before each step.
    """

    def __init__(self, snapshot: Snapshot, rule: str, vocab_size: int, mode: Mode, fixed: bool = True) -> None:
        device, rows = snapshot.position.device, snapshot.batch_size
        self.rule, self.mode, self.fixed = rule, mode, fixed
        self.state = snapshot.map(lambda x: x.clone(memory_format=torch.contiguous_format))
        self.token = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self.logits = torch.zeros(rows, vocab_size, device=device)
        self.temperature, self.top_p = torch.ones(1, device=device), torch.ones(1, device=device)
        self.uniform = torch.zeros(rows, 1, dtype=torch.float64, device=device)
        self.generator = torch.Generator(device)
        self.replay: Callable[[], None] | None = None
        self.key: tuple[Any, ...] = ()

    def load(
        self, snapshot: Snapshot, logits: Tensor, *, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0
    ) -> None:
        """Start from a prompt: its snapshot and the logits [B, vocabulary] after it; the first token is chosen."""
        with self.mode.on():
            self._keep(snapshot)
            self.temperature.fill_(temperature)
            self.top_p.fill_(top_p)
            self.generator.manual_seed(seed)
            self._draw()
            self._choose(logits)

    def step(self, model: HybridForCausalLM) -> None:
        """Read `token` and choose the next."""
        if self.replay is None:
            with self.mode.on():
                self._draw()
                self.advance(model)
        else:
            with torch.cuda.stream(self.mode.stream):
                self._draw()
                self.replay()

    def advance(self, model: HybridForCausalLM) -> None:
        """The step itself: kernels that read buffers and write buffers, and nothing the host must know."""
        hidden, after = model.through(
            self.token, self.state.position, snapshot=self.state, documents=None, keep_state=True
        )
        assert after is not None
        logits = model.lm_head(hidden)[:, 0]
        self._keep(after)
        self._choose(logits)

    def capture(self, model: HybridForCausalLM) -> None:
        """Make `step` replay `advance` from a CUDA graph. What the buffers held is lost: `load` comes after."""
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream(self.mode.device)
        side.wait_stream(self.mode.stream)
        with self.mode.on(side):
            for _ in range(WARM_UP):
                self.advance(model)
            # only this thread is held to the rules of a capture: others may pin memory meanwhile
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                self.advance(model)
        self.mode.stream.wait_stream(side)
        self.replay = graph.replay

    def _draw(self) -> None:
        if self.rule != "greedy":
            self.uniform.uniform_(generator=self.generator)

    def _keep(self, snapshot: Snapshot) -> None:
        if not self.fixed:
            self.state = snapshot
            return
        for held, new in zip(self.state.layers, snapshot.layers, strict=True):
            for name, tensor in held.items():
                tensor.copy_(new[name])
        self.state.position.copy_(snapshot.position)

    def _choose(self, logits: Tensor) -> None:
        self.logits.copy_(logits[:, : self.logits.shape[1]])
        chosen = choose(self.logits, self.rule, self.temperature, self.top_p, self.uniform)
        self.token.copy_(chosen[:, None])


def decoder_key(
    model: HybridForCausalLM, snapshot: Snapshot, rule: str, vocab_size: int, mode: Mode
) -> tuple[Any, ...]:
    """Everything that a captured graph has fixed: addresses of weights, shapes, dtypes, the rule, autocast."""
    weights = tuple((x.data_ptr(), x.dtype) for x in (*model.parameters(), *model.buffers()))
    state = tuple((x.shape, x.dtype) for layer in snapshot.layers for x in layer.values())
    return weights, state, snapshot.batch_size, rule, vocab_size, mode.key()


def choose(logits: Tensor, rule: str, temperature: Tensor, top_p: Tensor, uniform: Tensor) -> Tensor:
    """A token [B] of each row of logits [B,V], by `rule`; `uniform` [B,1] in [0, 1) decides where chance does."""
    if rule == "greedy":
        return logits.argmax(-1)
    weights = torch.softmax((logits - logits.amax(-1, keepdim=True)) / temperature, -1)
    if rule == "sample":
        return _inverse(weights, uniform)
    weights, ids = weights.sort(-1, descending=True)
    before = weights.cumsum(-1) - weights
    index = _inverse(weights.where(before < top_p, 0.0), uniform)
    return ids.gather(-1, index[:, None])[:, 0]


def _inverse(weights: Tensor, uniform: Tensor) -> Tensor:
    """Index [B] at which the running sum of weights [B,V] passes the share `uniform` of their total."""
    # float64: a parallel sum in float32 may step back by its rounding, and then a weight of 0 could be drawn
    total = weights.cumsum(-1, dtype=torch.float64)
    return (total <= uniform * total[:, -1:]).sum(-1).clamp_max(weights.shape[1] - 1)


class Mailbox:
    """Tokens on their way to the host: on a GPU through pinned memory, read one token behind the one being made."""

    def __init__(self, token: Tensor) -> None:
        self.behind = int(token.is_cuda)
        slots = self.behind + 1
        self._slots = [torch.zeros(len(token), dtype=torch.int64, pin_memory=token.is_cuda) for _ in range(slots)]
        self._events = [torch.cuda.Event() if token.is_cuda else None for _ in range(slots)]
        self._stream = torch.cuda.current_stream(token.device) if token.is_cuda else None
        self._posted = self._taken = 0

    def post(self, token: Tensor) -> None:
        """Send [B,1] tokens off without waiting."""
        slot = self._posted % len(self._slots)
        with torch.cuda.stream(self._stream):
            self._slots[slot].copy_(token[:, 0], non_blocking=True)
        event = self._events[slot]
        if event is not None:
            event.record(self._stream)
        self._posted += 1

    def take(self) -> Tensor:
        """The oldest tokens not yet taken, [B], once they have arrived."""
        slot = self._taken % len(self._slots)
        event = self._events[slot]
        if event is not None:
            event.synchronize()
        self._taken += 1
        return self._slots[slot].clone()
