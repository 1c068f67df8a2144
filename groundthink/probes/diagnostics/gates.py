"""D1 and D2: how far do the gates tell facts from filler, and how much do they keep over the distance that is asked?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from groundthink.probes import drawn
from groundthink.probes.bench import Bench, Point
from groundthink.probes.curves import token_kinds
from groundthink.probes.face import Model
from groundthink.probes.heard import BETA, LOG_DECAY, heard
from groundthink.probes.row import Row, not_run
from groundthink.probes.statistics import mean_interval
from groundthink.records import ProbeResult

ROWS = 64  # episodes that are listened to
KEPT = 0.5  # share of a write that some head has to keep over the distance asked
SHOWN = 48  # tokens of one episode that are drawn


def run_gates(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """One result a layer: write strength at facts less that at filler."""
    prompts = bench.asked(bench.points[1]).prompts[:ROWS]
    found = heard(bench.model, prompts, (BETA, LOG_DECAY))
    if not found:
        yield not_run("gate_spread", "the model shows no gates")
        return
    kinds = token_kinds(prompts, bench.task.vocabulary)
    stored = torch.arange(prompts.shape[1]) < 1 + 2 * bench.task.n_pairs  # the question's key is no fact
    facts, plain = (kinds["key"] | kinds["value"]) & stored, kinds["filler"]
    for layer, gates in found.items():
        beta, decay = gates[BETA].double(), gates[LOG_DECAY].double().exp()
        contrast = _mean_at(beta, facts) - _mean_at(beta, plain)
        mean, low, high = mean_interval(contrast.tolist())
        told = {"beta": described(beta, kinds, stored), "decay": described(decay, kinds, stored)}
        drift = bias_drift(bench.model, layer)
        yield ProbeResult(
            f"gate_spread/layer{layer}", mean, "pass" if low > 0 else "fail",
            f"It writes facts {mean:+.3f} stronger than filler; beta is {told['beta']['mean']:.3f} on average"
            f" (standard deviation {told['beta']['spread']:.3f}, {told['beta']['least']:.3f} to"
            f" {told['beta']['most']:.3f}), and a token keeps {told['decay']['mean']:.4f} of the memory"
            + "".join(f"; the bias of {name} moved by {by:+.3f}" for name, by in drift.items()) + ".",
            low=low, high=high, n=len(prompts), chance=0.0, threshold=0.0,
            details={**told, "bias_drift": drift, "pictures": _pictures(layer, beta, decay, told)},
        )  # fmt: skip


def described(gate: Tensor, kinds: dict[str, Tensor], stored: Tensor) -> dict[str, Any]:
    """Mean, spread and range of a gate [B,T,H], and its mean by kind of token; questions are no facts."""
    means = {}
    for kind, mask in kinds.items():
        chosen = mask & stored if kind in ("key", "value") else mask
        if chosen.any():
            means[kind] = float(gate[chosen].mean())
    return {
        "mean": float(gate.mean()), "spread": float(gate.std()), "least": float(gate.min()), "most": float(gate.max()),
        "kinds": means,
    }  # fmt: skip


def bias_drift(model: Model, layer: int) -> dict[str, float]:
    """How far the mean of each gate's bias is from where its configuration started it; empty if it says nothing."""
    mixer = model.blocks[layer].mixer  # type: ignore[attr-defined]
    gates, config = getattr(mixer, "gates", None), getattr(mixer, "config", None)
    found = {}
    for name in ("beta_bias", "decay_bias"):
        now, start = getattr(gates, name, None), getattr(config, name, None)
        drawn_at_start = name == "decay_bias" and getattr(gates, "mamba", False)
        if isinstance(now, Tensor) and start is not None and not drawn_at_start:
            found[name.removesuffix("_bias")] = float(now.detach().float().mean()) - float(start)
    return found


def _mean_at(gate: Tensor, mask: Tensor) -> Tensor:
    """Mean over heads and the chosen tokens of each row, [B]."""
    weight = mask.double()
    return (gate.mean(-1) * weight).sum(1) / weight.sum(1).clamp_min(1)


def _pictures(layer: int, beta: Tensor, decay: Tensor, told: dict[str, Any]) -> list[dict[str, Any]]:
    first = {"write strength": beta[0].mean(-1), "decay": decay[0].mean(-1)}
    per_token = [drawn.series(name, dict(enumerate(x[:SHOWN].tolist()))) for name, x in first.items()]
    row = f"layer {layer}"
    panels = {"write strength beta": {row: told["beta"]["kinds"]}, "decay": {row: told["decay"]["kinds"]}}
    return [
        drawn.lines(per_token, title=f"Gates of layer {layer}, token by token, one episode", x_label="token",
                    y_label="gate (mean over heads)", y_limits=(-0.03, 1.05)),
        drawn.dots(panels, title=f"Gates of layer {layer} by kind of token"),
    ]  # fmt: skip


def run_retention(bench: Bench, point: Point | None) -> Iterator[ProbeResult]:
    """How much of a write the decay leaves over the distance of the nearest verdict, in the head that keeps most."""
    questions = bench.asked(bench.shortest)
    prompts = questions.prompts[:ROWS]
    found = heard(bench.model, prompts, (LOG_DECAY,))
    if not found:
        yield not_run("retention", "the model shows no decay")
        return
    end, half = 1 + 2 * bench.task.n_pairs, max(1, len(prompts) // 2)
    for layer, gates in found.items():
        log_decay = gates[LOG_DECAY].double()
        kept = log_decay[:, end:].sum(1).exp()  # [B,H] since the last pair
        head = int(kept[:half].mean(0).argmax())  # chosen on one half of the episodes, measured on the other
        mean, low, high = mean_interval(kept[half:, head].tolist() or kept[:, head].tolist())
        rate = -log_decay[:, end:].mean((0, 1))
        lives = [math.log(2) / r if r > 0 else math.inf for r in rate.tolist()]
        yield ProbeResult(
            f"retention/layer{layer}", mean, "pass" if low >= KEPT else "fail",
            f"Over {prompts.shape[1] - end} tokens head {head} keeps {mean:.3g} of what was written before;"
            f" half-lives of the heads are {', '.join(f'{x:.4g}' for x in lives)} tokens.",
            low=low, high=high, n=max(1, len(prompts) - half), threshold=KEPT,
            details={"half_life": lives, "head": head, "kept": kept.mean(0).tolist(),
                     "pictures": [_kept_picture(layer, log_decay[:, end:])]},
        )  # fmt: skip


def _kept_picture(layer: int, log_decay: Tensor) -> dict[str, Any]:
    kept, length = log_decay.cumsum(1).exp().mean(0), log_decay.shape[1]
    shown = sorted({min(length, 1 << i) for i in range(length.bit_length() + 1)})
    found = [
        drawn.series(f"head {head}", {at: float(kept[at - 1, head]) for at in shown}) for head in range(kept.shape[1])
    ]
    return drawn.lines(
        found, title=f"What decay leaves of a write, layer {layer}", x_label="tokens since the write (doubling scale)",
        y_label="share kept", log_x=True, y_limits=(-0.03, 1.05),
    )  # fmt: skip


GATES = Row("D1", "Gates per token", "Are facts written more strongly than filler?", "diagnostic", run_gates)
RETENTION = Row("D2", "Retention", "Does some head keep half of a write over the distance asked?", "diagnostic",
                run_retention)  # fmt: skip
