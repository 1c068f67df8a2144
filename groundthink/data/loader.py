"""Batches of text as pure functions of a seed and a step.

No iterator, no worker state, nothing to save: step 1,000 can be produced without the 999 before, so a resumed
run and one on another number of machines see the same data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from groundthink.data.corpus import SPLITS, Corpus
from groundthink.data.packing import IGNORE, Batch, fill
from groundthink.data.tokenizer import Tokenizer
from groundthink.errors import DataError

_WINDOWS, _STREAMS = 1, 2  # first words of the seeds, so that the two forms draw apart


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Windows for scoring by document.

    Attributes:
        batch: rows of one window each; every token of a document but its first is labelled in one window.
        document: int64 [B], which document the row belongs to.
        n_bytes: int64 [B], UTF-8 bytes of the labelled tokens; nats / n_bytes / ln 2 is bits per byte.
    """

    batch: Batch
    document: Tensor
    n_bytes: Tensor


class TextSource:
    """Tokens of some documents, one after another.

    Args:
        documents: texts.
        tokenizer: turns them into ids, once.
        name: used in messages.

    Raises:
        DataError: fewer than two tokens.
    """

    def __init__(self, documents: Sequence[str], tokenizer: Tokenizer, name: str = "text") -> None:
        arrays = [array for array in map(tokenizer.encode_array, documents) if array.size]
        self.name = name
        self.tokenizer = tokenizer
        self.tokens: NDArray[np.int32] = np.concatenate(arrays) if arrays else np.zeros(0, np.int32)
        lengths = np.array([len(array) for array in arrays], dtype=np.int64)
        self.starts: NDArray[np.int64] = np.cumsum(lengths) - lengths
        if len(self.tokens) < 2:
            raise DataError(f"{len(self.tokens)} tokens are not enough", where=name, fix="use more text.")
        self._is_start = np.zeros(len(self.tokens), dtype=bool)
        self._is_start[self.starts] = True

    @classmethod
    def of(cls, corpus: Corpus, split: str, tokenizer: Tokenizer) -> TextSource:
        """One split of a corpus."""
        return cls(corpus.split(split), tokenizer, f"{corpus.name}/{split}")

    @property
    def n_documents(self) -> int:
        """How many documents there are."""
        return len(self.starts)

    def document(self, index: int) -> NDArray[np.int32]:
        """Tokens of one document."""
        stop = self.starts[index + 1] if index + 1 < len(self.starts) else len(self.tokens)
        return self.tokens[self.starts[index] : stop]

    def batch(self, seed: int, step: int, rows: int, length: int) -> Batch:
        """Windows that start anywhere: a pure function of (seed, step).

        Raises:
            DataError: a window is longer than all the text, or an argument is out of range.
        """
        _check(seed=seed, step=step, rows=rows, length=length)
        if length > len(self.tokens):
            raise DataError(
                f"windows of {length} tokens from a text of {len(self.tokens)}",
                where=self.name,
                fix="shorten the window or use more text.",
            )
        generator = np.random.default_rng(np.random.SeedSequence([_WINDOWS, seed, step]))
        offsets = generator.integers(0, len(self.tokens) - length + 1, size=rows)
        return self._windows(offsets[:, None] + np.arange(length))

    def stream_batch(self, seed: int, step: int, rows: int, length: int) -> Batch:
        """Segment `step` of `rows` streams, for carrying state: row i goes on where row i of step - 1 ended.

        The rows start evenly spread, turned by the seed, and go round the text without end. The first
        document of a row continues the carried state, unless `fresh` says that its first token begins a
        document. The first token of a segment has no logits within it, so it is not labelled.

        Raises:
            DataError: an argument is out of range.
        """
        _check(seed=seed, step=step, rows=rows, length=length)
        total = len(self.tokens)
        turn = int(np.random.default_rng(np.random.SeedSequence([_STREAMS, seed])).integers(total))
        offsets = turn + np.arange(rows, dtype=np.int64) * total // rows + step * length
        positions = (offsets[:, None] + np.arange(length)) % total
        fresh = np.ones(rows, dtype=bool) if step == 0 else self._is_start[positions[:, 0]]
        return self._windows(positions, torch.from_numpy(fresh.copy()))

    def _windows(self, positions: NDArray[np.int64], fresh: Tensor | None = None) -> Batch:
        tokens = self.tokens[positions].astype(np.int64)
        starts = self._is_start[positions]
        documents = (np.cumsum(starts, axis=1) - starts[:, :1]).astype(np.int32)
        labels = np.where(starts, IGNORE, tokens)
        labels[:, 0] = IGNORE
        return Batch(
            torch.from_numpy(tokens),
            torch.from_numpy(labels),
            torch.from_numpy(documents),
            fresh,
        )

    def held_out_batches(
        self, rows: int, length: int, n_documents: int | None = None, *, max_tokens: int | None = None
    ) -> Iterator[HeldOut]:
        """Windows of documents spread evenly over the source, for paired scores by document.

        Windows of one document overlap by one token, so that each token after the first is predicted once.

        Args:
            rows: most rows in a batch; the last has fewer.
            length: tokens in a window.
            n_documents: how many documents; None for all.
            max_tokens: score only the first tokens of each document; None for all of them.

        Raises:
            DataError: more documents than there are, or windows of fewer than two tokens.
        """
        wanted = self.n_documents if n_documents is None else n_documents
        _check(seed=0, step=0, rows=rows, length=length - 1)
        if not 0 < wanted <= self.n_documents:
            raise DataError(
                f"{wanted} documents of {self.n_documents}", where=self.name, fix="ask for fewer documents."
            )
        waiting: list[tuple[int, NDArray[np.int32]]] = []
        for i in range(wanted):
            index = i * self.n_documents // wanted
            ids = self.document(index)[:max_tokens]
            for start in range(0, len(ids) - 1, length - 1):
                waiting.append((index, ids[start : start + length]))
                if len(waiting) == rows:
                    yield self._held_out(waiting, length)
                    waiting = []
        if waiting:
            yield self._held_out(waiting, length)

    def _held_out(self, windows: list[tuple[int, NDArray[np.int32]]], length: int) -> HeldOut:
        n_bytes = [self.tokenizer.byte_length(ids[1:]) for _, ids in windows]  # type: ignore[arg-type]
        return HeldOut(
            fill([[(ids, ids)] for _, ids in windows], length),
            torch.tensor([index for index, _ in windows]),
            torch.tensor(n_bytes),
        )


def split_tokens(corpus: Corpus, tokenizer: Tokenizer) -> dict[str, NDArray[np.int32]]:
    """Tokens of each split, int32 [n]: what tasks in text take their haystacks from."""
    return {split: TextSource.of(corpus, split, tokenizer).tokens for split in SPLITS}


def _check(*, seed: int, step: int, rows: int, length: int) -> None:
    if seed < 0 or step < 0 or rows < 1 or length < 1:
        raise DataError(
            f"seed {seed}, step {step}, rows {rows}, length {length}: seed and step start at 0, the others at 1"
        )
