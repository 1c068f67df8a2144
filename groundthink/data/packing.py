"""Rows of fixed length from sequences of any length, without one document seeing another.

tokens     a a a a b b b c c 0 0        three sequences and padding in one row
labels     x a a a x b b x c x x        x = -100: nothing before a first token predicts it
documents  0 0 0 0 1 1 1 2 2 3 3        non-decreasing; padding is a document of its own
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from groundthink.errors import DataError

IGNORE = -100
Sequences = Iterable[tuple[NDArray[np.integer], NDArray[np.integer]]]


@dataclass(frozen=True, eq=False)
class Batch:
    """What a model is trained on.

    Attributes:
        tokens: int64 [B, T].
        labels: int64 [B, T], on the index of the token they name (the model shifts); -100: nothing is asked.
        documents: int32 [B, T], non-decreasing in a row.
        fresh: bool [B] where state is carried between batches, else None: rows whose carried state must be
            dropped before this batch, because their first token begins a document (or the run).

    Raises:
        DataError: shapes, dtypes or the order of the documents are not those.
    """

    tokens: Tensor
    labels: Tensor
    documents: Tensor
    fresh: Tensor | None = None

    def __post_init__(self) -> None:
        shapes = {tuple(t.shape) for t in (self.tokens, self.labels, self.documents)}
        if len(shapes) != 1 or self.tokens.dim() != 2:
            raise DataError(f"tokens, labels and documents must share one shape [B, T], not {sorted(shapes)}")
        dtypes = (self.tokens.dtype, self.labels.dtype, self.documents.dtype)
        if dtypes != (torch.int64, torch.int64, torch.int32):
            raise DataError(f"dtypes must be int64, int64, int32, not {dtypes}")
        if self.fresh is not None and (self.fresh.shape != self.tokens.shape[:1] or self.fresh.dtype != torch.bool):
            raise DataError("fresh must be bool [B]")

    @property
    def n_valid(self) -> int:
        """Predictions that count: labels that are not -100, the first of each row left out."""
        return int((self.labels[:, 1:] != IGNORE).sum())

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device."""
        fresh = None if self.fresh is None else self.fresh.to(device)
        return Batch(self.tokens.to(device), self.labels.to(device), self.documents.to(device), fresh)

    def rows(self, start: int, stop: int) -> Batch:
        """Rows start .. stop - 1: the slice of one rank, or of one accumulation step."""
        fresh = None if self.fresh is None else self.fresh[start:stop]
        return Batch(self.tokens[start:stop], self.labels[start:stop], self.documents[start:stop], fresh)


def pack(sequences: Sequences, length: int, *, rows: int | None = None, pad: int = 0) -> Batch:
    """Put each sequence, whole, into the first row that has room for it.

    Args:
        sequences: pairs of tokens [n] and labels [n], labels on the index of their token.
        length: T of the batch.
        rows: B; rows that stay empty are padding. None: as many as it takes.
        pad: token of the padding; its label is -100 and its document is its own.

    Raises:
        DataError: a sequence is empty, longer than `length` or unlike its labels, or `rows` are too few.
    """
    plan: list[list[tuple[NDArray[np.integer], NDArray[np.integer]]]] = []
    room: list[int] = []
    for index, (tokens, labels) in enumerate(sequences):
        n = len(tokens)
        if n != len(labels) or n == 0:
            raise DataError(f"{n} tokens with {len(labels)} labels", where=f"sequence {index}")
        if n > length:
            raise DataError(
                f"{n} tokens do not fit into rows of {length}",
                where=f"sequence {index}",
                fix="raise the length; nothing is cut.",
            )
        row = next((i for i, free in enumerate(room) if free >= n), len(plan))
        if row == len(plan):
            plan.append([])
            room.append(length)
        plan[row].append((tokens, labels))
        room[row] -= n
    if rows is not None and len(plan) > rows:
        raise DataError(f"{len(plan)} rows of {length} are needed, not {rows}", fix="ask for more rows.")
    return fill(plan + [[] for _ in range((rows or 0) - len(plan))], length, pad=pad)


def fill(
    plan: Sequence[Sequence[tuple[NDArray[np.integer], NDArray[np.integer]]]], length: int, *, pad: int = 0
) -> Batch:
    """A batch of the rows as planned: row i holds the sequences of `plan[i]` in that order.

    Raises:
        DataError: a row is longer than `length`.
    """
    tokens = np.full((len(plan), length), pad, dtype=np.int64)
    labels = np.full((len(plan), length), IGNORE, dtype=np.int64)
    documents = np.zeros((len(plan), length), dtype=np.int32)
    for i, row in enumerate(plan):
        start = 0
        for document, (sequence, wanted) in enumerate(row):
            stop = start + len(sequence)
            if stop > length:
                raise DataError(f"{stop} tokens do not fit into a row of {length}", where=f"row {i}")
            tokens[i, start:stop] = sequence
            labels[i, start:stop] = wanted
            labels[i, start] = IGNORE
            documents[i, start:stop] = document
            start = stop
        documents[i, start:] = len(row)
    return Batch(torch.from_numpy(tokens), torch.from_numpy(labels), torch.from_numpy(documents))


def check_batch(batch: Batch) -> None:
    """What every batch must satisfy, slow enough to live in tests.

    Raises:
        DataError: documents decrease within a row, a document's first token is asked for, or a label names
            another token than the one it stands on.
    """
    tokens, labels, documents = (t.numpy() for t in (batch.tokens, batch.labels, batch.documents))
    if (np.diff(documents, axis=1) < 0).any():
        raise DataError("documents decrease within a row")
    first = np.ones_like(tokens, dtype=bool)
    first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    asked = labels != IGNORE
    if (first & asked).any():
        raise DataError("the first token of a document carries a label")
    if (labels[asked] != tokens[asked]).any():
        row, column = np.argwhere(asked & (labels != tokens))[0]
        raise DataError(f"label {labels[row, column]} stands on token {tokens[row, column]}: shifted?")
