"""Tasks in small sizes, and models that are functions: an oracle, a window, a guess, a leak."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from groundthink.tasks.task import Task, Vocabulary

VOCABULARY = Vocabulary()


def text(seed: int = 0, size: int = 3000) -> dict[str, np.ndarray]:
    """Random bytes for each split."""
    generator = np.random.default_rng(seed)
    return {split: generator.integers(97, 123, size=size) for split in ("train", "valid", "test")}


def one_hot(tokens: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(tokens, VOCABULARY.size).float()


def lookup(tokens: Tensor, *, window: int | None = None) -> Tensor:
    """Causal: say what followed this token last, at most `window` tokens ago, else ABSENT."""
    said = torch.full_like(tokens, VOCABULARY.absent)
    for row, out in zip(tokens.tolist(), said, strict=True):
        seen: dict[int, int] = {}
        for t, token in enumerate(row):
            at = seen.get(token)
            if at is not None and (window is None or t - at <= window):
                out[t] = row[at]
            if t + 1 < len(row):
                seen[token] = t + 1
    return one_hot(said)


def leak(tokens: Tensor) -> Tensor:
    """Not causal: says the next token."""
    return one_hot(torch.roll(tokens, -1, 1))


def guess(seed: int = 0) -> object:
    """Any token of the vocabulary, uniformly."""
    generator = torch.Generator().manual_seed(seed)
    return lambda tokens: torch.rand(*tokens.shape, VOCABULARY.size, generator=generator)


def salient(task: Task, seed: int = 0) -> object:
    """Some value that stands in the context, whatever was asked."""
    generator = np.random.default_rng(seed)

    def predict(tokens: Tensor) -> Tensor:
        said = torch.zeros_like(tokens)
        for row, out in zip(tokens.tolist(), said, strict=True):
            stored = [t for t in row[: row.index(VOCABULARY.query)] if t in task.vocabulary.values]
            out[:] = int(generator.choice(stored))
        return one_hot(said)

    return predict


def last_value(tokens: Tensor) -> Tensor:
    """The value that was written last before the first question, whatever was asked."""
    said = torch.zeros_like(tokens)
    for row, out in zip(tokens.tolist(), said, strict=True):
        out[:] = [t for t in row[: row.index(VOCABULARY.query)] if t in VOCABULARY.values][-1]
    return one_hot(said)
