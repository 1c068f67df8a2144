from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundthink.data.packing import IGNORE, Batch, check_batch, fill, pack
from groundthink.errors import DataError

lengths = st.lists(st.integers(1, 12), min_size=1, max_size=20)
many = settings(deadline=None, max_examples=80, derandomize=True, database=None)


def sequences(sizes: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every token different from 0 and from all others, every third one unlabelled."""
    found, start = [], 1
    for n in sizes:
        tokens = np.arange(start, start + n)
        found.append((tokens, np.where(tokens % 3 == 0, IGNORE, tokens)))
        start += n
    return found


@many
@given(sizes=lengths, length=st.integers(12, 30))
def test_nothing_is_lost_moved_or_leaked(sizes: list[int], length: int) -> None:
    wanted = sequences(sizes)
    batch = pack(wanted, length)
    check_batch(batch)
    tokens, labels, documents = batch.tokens.numpy(), batch.labels.numpy(), batch.documents.numpy()
    found = []
    for i in range(len(tokens)):
        for document in np.unique(documents[i]):
            here = documents[i] == document
            if (tokens[i][here] == 0).all():  # padding: last, alone, unlabelled
                assert document == documents[i].max()
                assert (labels[i][here] == IGNORE).all()
            else:
                found.append((tokens[i][here], labels[i][here]))
    found.sort(key=lambda pair: pair[0][0])
    assert len(found) == len(wanted)
    for (tokens_in, labels_in), (tokens_out, labels_out) in zip(wanted, found, strict=True):
        assert (tokens_in == tokens_out).all()
        assert labels_out[0] == IGNORE
        assert (labels_in[1:] == labels_out[1:]).all()


@many
@given(sizes=lengths)
def test_rows_are_as_asked(sizes: list[int]) -> None:
    needed = len(pack(sequences(sizes), 12).tokens)
    batch = pack(sequences(sizes), 12, rows=needed + 2, pad=7)
    assert batch.tokens.shape == (needed + 2, 12)
    assert (batch.tokens[-1] == 7).all()
    assert batch.labels[-1].eq(IGNORE).all()
    with pytest.raises(DataError, match="are needed"):
        pack([*sequences(sizes), *sequences([12] * needed)], 12, rows=needed)


def test_nothing_is_cut() -> None:
    with pytest.raises(DataError, match="sequence 1: 9 tokens do not fit into rows of 8"):
        pack(sequences([3, 9]), 8)
    with pytest.raises(DataError, match="do not fit"):
        fill([sequences([5, 5])], 8)
    with pytest.raises(DataError, match="0 tokens"):
        pack(sequences([3, 0]), 8)
    with pytest.raises(DataError, match="with 2 labels"):
        pack([(np.arange(3), np.arange(2))], 8)


def test_batch_counts_slices_and_refuses() -> None:
    batch = pack(sequences([5, 5, 5]), 5)
    assert batch.n_valid == int((batch.labels[:, 1:] != IGNORE).sum()) > 0
    assert (batch.rows(1, 3).tokens == batch.tokens[1:3]).all()
    assert (batch.to("cpu").labels == batch.labels).all()
    with pytest.raises(DataError, match="shape"):
        Batch(batch.tokens, batch.labels[:, 1:], batch.documents)
    with pytest.raises(DataError, match="dtypes"):
        Batch(batch.tokens, batch.labels, batch.documents.long())
    with pytest.raises(DataError, match="fresh"):
        dataclasses.replace(batch, fresh=torch.ones(1))


def test_the_checker_sees_planted_faults() -> None:
    batch = pack(sequences([6, 6]), 12)
    check_batch(batch)
    with pytest.raises(DataError, match="shifted"):
        check_batch(
            dataclasses.replace(
                batch, labels=torch.roll(batch.labels, 1, 1).index_fill(1, torch.tensor([0, 6]), IGNORE)
            )
        )
    with pytest.raises(DataError, match="decrease"):
        check_batch(dataclasses.replace(batch, documents=batch.documents.flip(1)))
    with pytest.raises(DataError, match="first token"):
        check_batch(dataclasses.replace(batch, labels=batch.tokens.clone()))
