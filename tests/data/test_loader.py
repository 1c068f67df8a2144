from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundthink.data.corpus import Corpus
from groundthink.data.loader import TextSource, split_tokens
from groundthink.data.packing import IGNORE, check_batch
from groundthink.data.tokenizer import BPETokenizer, ByteTokenizer
from groundthink.errors import DataError

DOCUMENTS = [f"document {i}: " + "abc def ghi. " * (1 + i % 5) + "\n" for i in range(23)]
SOURCE = TextSource(DOCUMENTS, ByteTokenizer())
many = settings(deadline=None, max_examples=60, derandomize=True, database=None)
seeds = st.integers(0, 2**40)


@many
@given(seed=seeds, step=st.integers(0, 10**6))
def test_a_batch_is_a_function_of_seed_and_step(seed: int, step: int) -> None:
    one = SOURCE.batch(seed, step, 4, 50)
    again = TextSource(DOCUMENTS, ByteTokenizer()).batch(seed, step, 4, 50)
    assert (one.tokens == again.tokens).all()
    assert (one.documents == again.documents).all()
    check_batch(one)
    assert not (one.tokens == SOURCE.batch(seed, step + 1, 4, 50).tokens).all()
    assert not (one.tokens == SOURCE.batch(seed + 1, step, 4, 50).tokens).all()


def test_documents_and_labels_of_a_window() -> None:
    batch = SOURCE.batch(0, 0, 64, 60)
    whole = "".join(DOCUMENTS)
    starts = set(SOURCE.starts.tolist())
    for tokens, labels, documents in zip(batch.tokens, batch.labels, batch.documents, strict=True):
        at = whole.find(bytes(tokens.tolist()).decode())
        assert at >= 0
        begins = np.array([at + t in starts for t in range(60)])
        expected = begins.cumsum() - begins[0]
        assert documents.tolist() == expected.tolist()
        unlabelled = {0, *np.flatnonzero(begins).tolist()}
        assert {t for t in range(60) if labels[t] == IGNORE} == unlabelled


@many
@given(seed=seeds, step=st.integers(0, 200), rows=st.integers(1, 5), length=st.integers(1, 70))
def test_streams_go_on_where_they_ended(seed: int, step: int, rows: int, length: int) -> None:
    first = SOURCE.stream_batch(seed, step, rows, length)
    second = SOURCE.stream_batch(seed, step + 1, rows, length)
    double = SOURCE.stream_batch(seed, step // 2, rows, 2 * length) if step % 2 == 0 else None
    check_batch(first)
    assert first.fresh is not None
    assert second.fresh is not None
    if double is not None:
        assert (torch.cat([first.tokens, second.tokens], 1) == double.tokens).all()
        # A row is fresh exactly where the double-length row changes its document at the seam.
        changes = double.documents[:, length] != double.documents[:, length - 1]
        assert (second.fresh == changes).all()
        shift = double.documents[:, length : length + 1]
        assert (second.documents == double.documents[:, length:] - shift).all()
    if step == 0:
        assert first.fresh.all()


def test_streams_read_every_token_once_per_round() -> None:
    n = len(SOURCE.tokens)
    rows = 1
    seen = torch.cat([SOURCE.stream_batch(5, s, rows, 7).tokens.flatten() for s in range(n // 7 + 1)])[:n]
    assert torch.bincount(seen, minlength=256).tolist() == np.bincount(SOURCE.tokens, minlength=256).tolist()


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), BPETokenizer.train(DOCUMENTS, 270)])
@pytest.mark.parametrize("length", [2, 9, 1000])
def test_held_out_windows_score_every_token_of_a_document_once(tokenizer: object, length: int) -> None:
    source = TextSource(DOCUMENTS, tokenizer)  # type: ignore[arg-type]
    labelled: dict[int, list[int]] = {}
    n_bytes: dict[int, int] = {}
    for held in source.held_out_batches(3, length):
        check_batch(held.batch)
        assert len(held.batch.tokens) <= 3
        for labels, index, count in zip(held.batch.labels, held.document, held.n_bytes, strict=True):
            labelled.setdefault(int(index), []).extend(labels[labels != IGNORE].tolist())
            n_bytes[int(index)] = n_bytes.get(int(index), 0) + int(count)
    for index in range(source.n_documents):
        ids = source.document(index).tolist()
        assert labelled[index] == ids[1:]
        assert n_bytes[index] == source.tokenizer.byte_length(ids[1:])


def test_held_out_can_be_bounded() -> None:
    held = list(SOURCE.held_out_batches(4, 16, 5, max_tokens=20))
    assert sorted({int(i) for h in held for i in h.document}) == [0, 4, 9, 13, 18]
    assert sum(int(h.n_bytes.sum()) for h in held) == 5 * 19


def test_splits_of_a_corpus() -> None:
    corpus = Corpus("c", tuple(f"document {i}" for i in range(300)))
    tokens = split_tokens(corpus, ByteTokenizer())
    assert bytes(tokens["test"].tolist()).decode() == "".join(corpus.split("test"))
    assert TextSource.of(corpus, "valid", ByteTokenizer()).name == "c/valid"


def test_bad_requests() -> None:
    with pytest.raises(DataError, match="windows of 100000 tokens"):
        SOURCE.batch(0, 0, 1, 100_000)
    with pytest.raises(DataError, match="rows 0"):
        SOURCE.batch(0, 0, 0, 8)
    with pytest.raises(DataError, match="seed -1"):
        SOURCE.stream_batch(-1, 0, 1, 8)
    with pytest.raises(DataError, match="24 documents of 23"):
        next(SOURCE.held_out_batches(1, 8, 24))
    with pytest.raises(DataError, match="not enough"):
        TextSource(["a", ""], ByteTokenizer())
