"""How well held-out text is predicted: bits per byte by document."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from groundthink.errors import DataError
from groundthink.training.mixture import Predict, Rows


class ScoredWindows(Protocol):
    """`groundthink.data.HeldOut`: rows of one window each, their documents [B] and labelled bytes [B]."""

    @property
    def batch(self) -> Rows: ...
    @property
    def document(self) -> Tensor: ...
    @property
    def n_bytes(self) -> Tensor: ...


@dataclasses.dataclass(frozen=True, eq=False)
class TextScores:
    """Scores of documents, in the order of their numbers.

    Attributes:
        documents: int64 [N], the documents' numbers.
        nats: float64 [N], summed losses.
        n_bytes: int64 [N], UTF-8 bytes that were predicted.
    """

    documents: NDArray[np.int64]
    nats: NDArray[np.float64]
    n_bytes: NDArray[np.int64]

    @property
    def per_document(self) -> NDArray[np.float64]:
        """Bits per byte of each document, [N]."""
        return self.nats / math.log(2) / self.n_bytes

    @property
    def bits_per_byte(self) -> float:
        """Of all the text together: long documents count for more."""
        return float(self.nats.sum() / math.log(2) / self.n_bytes.sum())


def score_text(predict: Predict, windows: Iterable[ScoredWindows]) -> TextScores:
    """Score held-out windows.

    Args:
        predict: tokens [B,T] -> logits [B,T,V].
        windows: as `TextSource.held_out_batches` gives them.

    Raises:
        DataError: there is nothing to score.
    """
    nats: dict[int, float] = {}
    n_bytes: dict[int, int] = {}
    for window in windows:
        rows = _nats_per_row(predict(window.batch.tokens), window.batch.labels).tolist()
        for document, loss, size in zip(window.document.tolist(), rows, window.n_bytes.tolist(), strict=True):
            nats[document] = nats.get(document, 0.0) + loss
            n_bytes[document] = n_bytes.get(document, 0) + size
    scored = sorted(document for document, size in n_bytes.items() if size)
    if not scored:
        raise DataError("no held-out document with anything to predict", fix="use more text")
    return TextScores(
        np.array(scored, dtype=np.int64),
        np.array([nats[d] for d in scored], dtype=np.float64),
        np.array([n_bytes[d] for d in scored], dtype=np.int64),
    )


def _nats_per_row(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed losses [B] in float64; logits at t are held against the label at t + 1."""
    rows = zip(logits, labels.to(logits.device), strict=True)  # one at a time: all in float32 would be gigabytes
    losses = [
        torch.nn.functional.cross_entropy(row[:-1].float(), wanted[1:], ignore_index=-100, reduction="none")
        for row, wanted in rows
    ]
    return torch.stack(losses).double().sum(1)
