"""A tiny model and sources with the faces that training relies on, so that the loop can be tested alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from groundthink.training import Measurement, MixItem, Phase, TrainConfig, config_from_dict, read_events
from groundthink.training.mixture import derive

VOCABULARY = 23


@dataclasses.dataclass(frozen=True)
class Batch:
    tokens: Tensor
    labels: Tensor
    documents: Tensor | None = None
    fresh: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class TinySnapshot:
    state: Tensor
    position: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> TinySnapshot:
        return TinySnapshot(function(self.state), function(self.position))

    def detach(self) -> TinySnapshot:
        return self.map(Tensor.detach)

    def to(self, device: torch.device) -> TinySnapshot:
        return self.map(lambda x: x.to(device))

    def tensors(self) -> dict[str, Tensor]:
        return {"state": self.state, "position": self.position}

    @classmethod
    def from_tensors(cls, named: Mapping[str, Tensor]) -> TinySnapshot:
        return cls(named["state"], named["position"])


class TinyModel(nn.Module):
    """Embedding, a leaky sum over time that a snapshot carries on, dropout, a tied head."""

    snapshot_class = TinySnapshot

    def __init__(self, seed: int = 0, width: int = 8, dropout: float = 0.3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(VOCABULARY, width)
        self.mix = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight
        self.drop_prob = dropout

    def parameter_roles(self) -> dict[str, str]:
        return {
            "embed.weight": "embedding",
            "mix.weight": "matrix",
            "mix.bias": "bias",
            "norm.weight": "norm",
            "norm.bias": "norm",
        }

    def hidden(self, tokens: Tensor, snapshot: TinySnapshot | None) -> tuple[Tensor, TinySnapshot]:
        x = self.embed(tokens)
        state = torch.zeros_like(x[:, 0]) if snapshot is None else snapshot.state
        position = torch.zeros(len(tokens), dtype=torch.int64) if snapshot is None else snapshot.position
        states = []
        for t in range(tokens.shape[1]):
            state = 0.8 * state + x[:, t]
            states.append(state)
        h = nn.functional.dropout(torch.stack(states, 1), self.drop_prob, self.training)
        return self.norm(x + self.mix(h)), TinySnapshot(state, position + tokens.shape[1])

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.hidden(tokens, None)[0])

    def loss(
        self,
        tokens: Tensor,
        labels: Tensor,
        *,
        documents: Tensor | None = None,
        snapshot: TinySnapshot | None = None,
        keep_state: bool = False,
    ) -> tuple[Tensor, Tensor, TinySnapshot | None]:
        del documents
        hidden, after = self.hidden(tokens, snapshot)
        targets = labels[:, 1:].flatten()
        logits = self.head(hidden[:, :-1]).flatten(0, 1)
        total = nn.functional.cross_entropy(logits.float(), targets, ignore_index=-100, reduction="sum")
        return total, (targets != -100).sum(), after if keep_state else None


class Head(nn.Module):
    """A model of nothing but its head."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def get_output_embeddings(self) -> Head:
        return self


@dataclasses.dataclass
class TinySource:
    """Rows in which each token is the one before plus `stride`, with noise; every `every`th is labelled."""

    stride: int = 3
    every: int = 1
    fingerprint: str = "tiny"
    values: tuple[float, ...] = (0.0,)
    asked: list[tuple[int, int]] = dataclasses.field(default_factory=list)

    def batch(self, *, seed: int, step: int, rows: int, length: int) -> Batch:
        generator = torch.Generator().manual_seed(derive(seed, step))
        first = torch.randint(VOCABULARY, (rows, 1), generator=generator)
        noise = torch.rand(rows, length, generator=generator) < 0.1
        tokens = (first + self.stride * torch.arange(length) + noise) % VOCABULARY
        labels = torch.full_like(tokens, -100)
        labels[:, 1 :: self.every] = tokens[:, 1 :: self.every]
        return Batch(tokens, labels)

    def stream(self, *, seed: int, step: int, rows: int, length: int) -> Batch:
        batch = self.batch(seed=seed, step=step, rows=rows, length=length)
        fresh = torch.arange(rows) % 3 == step % 3  # some rows begin anew in every step
        return dataclasses.replace(batch, fresh=fresh if step else torch.ones(rows, dtype=torch.bool))

    def measure(self, predict: Any, *, n: int, seed: int, length: int) -> dict[str, Measurement]:
        """Replays `values`, the last one for ever; also the real accuracy."""
        self.asked.append((n, seed))
        batch = self.batch(seed=seed, step=0, rows=4, length=length)
        hits = (predict(batch.tokens)[:, :-1].argmax(-1) == batch.tokens[:, 1:]).float().mean().item()
        value = self.values[min(len(self.asked), len(self.values)) - 1]
        return {"exact": Measurement(value, value - 0.1, value + 0.1, n), "accuracy": Measurement(hits)}


def sources(item: MixItem) -> TinySource:
    """Stride 3 for text, another for tasks."""
    return TinySource() if item.source == "text" else TinySource(stride=5, every=4)


def config(*phases: dict[str, Any], **fields: Any) -> TrainConfig:
    """A small run; phases of 12 tokens by 6 rows unless they say otherwise."""
    small = [{"name": f"p{i}", "rows": 6, "length": 12, "steps": 20, **p} for i, p in enumerate(phases)]
    defaults = {"device": "cpu", "log_every": 1, "evaluate_every": 0, "checkpoint_every": 0, "keep_last": 0}
    optimizer = {"learning_rate": 0.01}
    return config_from_dict({**defaults, "optimizer": optimizer, "phases": small, **fields})


def phase(**fields: Any) -> Phase:
    """One phase of `config`."""
    return config(fields).phases[0]


TIMES = {"elapsed", "tokens_per_second", "seconds", "provenance"}


def evidence(folder: Path) -> list[dict[str, Any]]:
    """What a run logged about steps and evaluations, without clock readings."""
    kept = [e for e in read_events(folder) if e["event"] in ("step", "evaluation", "phase", "fault", "done")]
    return [{k: v for k, v in event.items() if k not in TIMES} for event in kept]
