"""`memory-profile`: what training and generation keep, by length and batch, beside a model with full attention."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from groundthink.model import TWINS, HybridForCausalLM, ModelConfig
from groundthink.records import ProbeResult
from groundthink.studies.study import Curve, Line, Measure, Size, Study, Wanted, Work, number
from groundthink.training.run import choose_device

MIB, KIB = 2**20, 2**10
GROWTHS, BATCHES = (1, 2, 4, 8), (2, 4, 8)
REPORTED = {  # MB of the device in use, by growth of T 512 and batch
    (1, 2): "513.3", (1, 4): "800.5", (1, 8): "1,509.8", (2, 2): "800.2", (2, 4): "1,509.2", (2, 8): "2,912.6",
    (4, 2): "1,507.6", (4, 4): "2,912.1", (4, 8): "5,723.5", (8, 2): "2,910.3", (8, 4): "5,723.0", (8, 8): "11,352.4",
}  # fmt: skip
TRAINED = {(growth, batch) for growth, batch in REPORTED if growth * batch <= 16}  # the largest say nothing new


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes: `length` that grows, `vocabulary`, and the model."""

    length: int
    vocabulary: int
    model: Mapping[str, Any]


def _arm(twin: str) -> Measure:
    def measure(work: Work) -> Iterator[ProbeResult]:
        s, device = work.settings, choose_device(work.device)
        sizes = ModelConfig(vocab_size=s.vocabulary, **s.model)
        model = HybridForCausalLM(TWINS[twin](sizes) if twin else sizes)
        model.to(device)  # type: ignore[arg-type]
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        yield number("weights, MiB", weights / MIB, n=1)
        for growth, batch in sorted(TRAINED):
            ids = torch.randint(s.vocabulary, (batch, growth * s.length), device=device)
            yield number(f"training, {growth} T, batch {batch}", training_bytes(model, ids) / MIB, n=ids.numel())
        for growth in GROWTHS:
            ids = torch.randint(s.vocabulary, (1, growth * s.length), device=device)
            with torch.no_grad():
                _, snapshot = model.eval().hidden(ids)
            assert snapshot is not None
            size = sum(x.numel() * x.element_size() for x in snapshot.tensors().values())
            yield number(f"state after {growth} T", size / KIB, n=ids.numel())

    return measure


def training_bytes(model: HybridForCausalLM, ids: Tensor) -> int:
    """Bytes of a training step beyond the weights.

    On a GPU the peak of a forward and a backward pass; elsewhere what the forward pass keeps for the backward one,
    every storage once and the weights not at all.
    """
    model.train()
    if ids.is_cuda:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        _step(model, ids)
        return torch.cuda.max_memory_allocated() - before
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    held: list[Tensor] = []  # a freed storage's address would be given to the next

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        _step(model, ids)
    return sum(kept.values())


def _step(model: HybridForCausalLM, ids: Tensor) -> None:
    total, count, _ = model.loss(ids, ids)
    (total / count).backward()
    model.zero_grad(set_to_none=True)


def _points(arm: str, name: Callable[[int], str]) -> tuple[tuple[str, str, float], ...]:
    return tuple((arm, name(growth), float(growth)) for growth in GROWTHS)


SMALL = {"pattern": "GS", "d_model": 64, "n_heads": 2, "head_dim": 32, "value_dim": 32, "window_size": 16}
STUDY = Study(
    name="memory-profile",
    question="What do training and generation keep, as text and batch grow?",
    origin="Source 001: 33M GS model in bfloat16 on a 6 GB card, all memory in use at the peak, one run each.",
    sizes={
        "full": Size(
            seeds=3,
            settings=Settings(
                length=512, vocabulary=50_304,
                model={"pattern": "GS", "d_model": 512, "n_heads": 8, "head_dim": 64, "value_dim": 128,
                       "window_size": 64},
            ),
            cost="a minute on a GPU: T 512 to 4,096",
        ),
        "quick": Size(
            seeds=1,
            settings=Settings(length=128, vocabulary=512, model=SMALL),
            cost="seconds: T 128 to 1,024",
        ),
        "smoke": Size(
            seeds=1,
            settings=Settings(length=16, vocabulary=512, model={**SMALL, "window_size": 4}),
            cost="seconds",
        ),
    },
    arms={"GS": _arm(""), "full attention": _arm("full")},
    lines=(
        *(
            Line(label=f"training, T {512 * growth:,} ({growth} T), batch {batch}: MiB beyond the weights", arm="GS",
                 measure=f"training, {growth} T, batch {batch}", source=f"{REPORTED[growth, batch]} MB in all")
            for growth, batch in sorted(TRAINED)
        ),
        Line(label="weights, MiB", arm="GS", measure="weights, MiB"),
        Line(label="state after T 512 (1 T), KiB", arm="GS", measure="state after 1 T"),
        Line(label="the same after eight times as much, less the former: KiB", arm="GS", measure="state after 8 T",
             less=("GS", "state after 1 T"), wanted=dict.fromkeys(("full", "quick", "smoke"), Wanted(at_most=0.0))),
        Line(label="full attention, state after T 512, KiB", arm="full attention", measure="state after 1 T"),
        Line(label="full attention, state after eight times as much, KiB", arm="full attention",
             measure="state after 8 T"),
    ),
    curves=(
        Curve(
            title="What generation carries on", x_label="length, in T", y_label="KiB", share=False,
            points={arm: _points(arm, "state after {} T".format) for arm in ("GS", "full attention")},
        ),
    ),
)  # fmt: skip
