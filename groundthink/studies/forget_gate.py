"""`forget-gate`: what a write is worth so many tokens later, by the decay of the gate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch

from groundthink import ops
from groundthink.layers import LayerConfig
from groundthink.layers.gates import DeltaGates
from groundthink.probes.mechanics import random_keys
from groundthink.records import ProbeResult
from groundthink.studies.study import Curve, Line, Measure, Size, Study, Wanted, Work, number
from groundthink.studies.writes import values_of
from groundthink.training.run import choose_device

DECAYS = (1.0, 0.9, 0.5, 0.1)  # of source 003
BIASES = (2.0, 4.0, 5.0)  # sources 001 and 002, source 003, ours
LATER = (1, 10, 100, 1000)
EXACT = dict.fromkeys(("full", "quick", "smoke"), Wanted(at_most=1e-5))


@dataclasses.dataclass(frozen=True)
class Settings:
    """K, V: sizes of keys and values; `trials` under each seed; d_model of the gate's layer."""

    key_dim: int = 64
    value_dim: int = 64
    trials: int = 64
    d_model: int = 128


def _kept(work: Work, decay: float, *, noise: bool) -> Iterator[tuple[int, torch.Tensor]]:
    """What is left of the first value after each of LATER tokens, [trials]: its projection on the value.

    The later tokens write nothing, or zeros under one other key (`noise`, as source 003 does).
    """
    s, generator = work.settings, torch.Generator().manual_seed(work.seed)
    device, length = choose_device(work.device), 1 + max(LATER)
    key = random_keys(s.trials, 2, s.key_dim, generator=generator)
    value = values_of(s.trials, 1, s.value_dim, generator)
    keys = torch.cat([key[:, :1], key[:, 1:].expand(-1, length - 1, -1)], 1)
    values = torch.cat([value, torch.zeros(s.trials, length - 1, s.value_dim)], 1)
    beta = torch.full((s.trials, length, 1), float(noise))
    beta[:, 0] = 1.0
    gates = torch.full_like(beta, math.log(decay))
    memory = ops.write(
        keys[:, :, None].to(device), values[:, :, None].to(device), log_decay=gates.to(device), beta=beta.to(device)
    )
    read = memory.read(key[:, :1, None].expand(-1, length, -1, -1).to(device), scale=1.0)[:, :, 0].cpu()
    kept = (read * value).sum(-1) / value.square().sum(-1)
    for t in LATER:
        yield t, kept[:, t]


def _fixed(decay: float) -> Measure:
    def measure(work: Work) -> Iterator[ProbeResult]:
        worst = 0.0
        for t, kept in _kept(work, decay, noise=False):
            worst = max(worst, float((kept - decay**t).abs().max()))
            yield number(f"kept after {t}", float(kept.mean()), n=len(kept))
        yield number("largest distance from decay^t", worst, n=work.settings.trials * len(LATER))
        for t, kept in _kept(work, decay, noise=True):
            yield number(f"kept after {t} writes of zero", float(kept.mean()), n=len(kept))

    return measure


def _gate(bias: float) -> Measure:
    """The gate of an untrained layer with this bias, on inputs of unit variance."""

    def measure(work: Work) -> Iterator[ProbeResult]:
        s = work.settings
        torch.manual_seed(work.seed)
        config = LayerConfig(d_model=s.d_model, n_heads=4, decay="sigmoid", decay_bias=bias)
        log_decay, _ = DeltaGates(config)(torch.randn(s.trials, max(LATER), s.d_model))
        total = log_decay.detach().double().cumsum(1)
        for t in LATER:
            yield number(f"kept after {t}", float(total[:, t - 1].exp().mean()), n=total[:, 0].numel())
        half = math.log(0.5) / float(log_decay.detach().double().mean())
        yield number("half-life", half, n=log_decay.numel())

    return measure


ARMS: dict[str, Measure] = {
    **{f"decay {decay:g}": _fixed(decay) for decay in DECAYS},
    **{f"bias {bias:g}": _gate(bias) for bias in BIASES},
}
REPORTED_BIAS = {2.0: "(sources 001, 002 start here)", 4.0: "(source 003 starts here)", 5.0: "–"}

STUDY = Study(
    name="forget-gate",
    question="What is a write worth so many tokens later?",
    origin="Source 003 asks it at 10 steps for four decays and prints no outcome; sources 001 and 002 start at bias 2.",
    sizes={
        "full": Size(seeds=3, settings=Settings(), cost="seconds"),
        "quick": Size(seeds=3, settings=Settings(trials=16), cost="seconds"),
        "smoke": Size(seeds=1, settings=Settings(trials=2), cost="a second"),
    },
    arms=ARMS,
    lines=(
        *(
            Line(label=f"decay {decay:g}, 10 tokens later: share of the value", arm=f"decay {decay:g}",
                 measure="kept after 10")
            for decay in DECAYS
        ),
        *(
            Line(label=f"decay {decay:g}: largest distance from decay^t", arm=f"decay {decay:g}",
                 measure="largest distance from decay^t", wanted=EXACT)
            for decay in DECAYS
        ),
        Line(
            label="decay 0.9, after 10 writes of zero under another key",
            arm="decay 0.9",
            measure="kept after 10 writes of zero",
        ),
        *(
            Line(label=f"gate of an untrained layer, bias {bias:g}: half-life in tokens", arm=f"bias {bias:g}",
                 measure="half-life", source=REPORTED_BIAS[bias])
            for bias in BIASES
        ),
        *(
            Line(label=f"the same, share of the value 100 tokens later, bias {bias:g}", arm=f"bias {bias:g}",
                 measure="kept after 100")
            for bias in BIASES
        ),
    ),
    curves=(
        Curve(
            title="Share of a write that is left",
            x_label="tokens later",
            y_label="share of the value",
            points={
                name: tuple((name, f"kept after {t}", float(t)) for t in LATER)
                for name in ("decay 0.9", *(f"bias {bias:g}" for bias in BIASES))
            },
        ),
    ),
)  # fmt: skip
