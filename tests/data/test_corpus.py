from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundthink.data.corpus import SPLITS, Corpus, cut, load_corpus, python_stdlib
from groundthink.errors import DataError

BOOK = "\n".join(f"line {i} of a long book, which nobody has read to the end" for i in range(4000))


def test_python_stdlib_is_there_fast_and_the_same() -> None:
    python_stdlib.cache_clear()
    began = time.perf_counter()
    corpus = load_corpus("python-stdlib")
    # Two seconds is what a user waits without asking; it takes 0.15 s on an idle core.
    assert time.perf_counter() - began < 2.0
    assert sum(map(len, corpus.documents)) > 500_000
    digest = corpus.digest
    python_stdlib.cache_clear()
    assert load_corpus("python-stdlib").digest == digest
    assert not any("def test_" in d and "unittest.main" in d for d in corpus.split("test"))


@pytest.mark.parametrize("n", [3, 40, 150, 1000])
def test_splits_are_apart_whole_and_blind_to_order(n: int) -> None:
    documents = tuple(f"document {i}\n" * 30 for i in range(n))
    forward = Corpus("c", documents)
    backward = Corpus("c", documents[::-1])
    parts = [set(forward.split(name)) for name in SPLITS]
    assert all(parts)
    assert sum(map(len, parts)) == len(forward.units) == len(set().union(*parts))
    if n >= 100:  # documents are held out whole
        assert forward.units == documents
    assert all(set(backward.split(name)) == set(forward.split(name)) for name in SPLITS)
    assert forward.digest != backward.digest


def test_large_corpora_keep_their_splits_when_they_grow() -> None:
    documents = tuple(f"document {i}" for i in range(400))
    small, large = Corpus("c", documents[:300]), Corpus("c", documents)
    for name in SPLITS:
        assert set(small.split(name)) <= set(large.split(name))
    assert 0.85 < len(large.split("train")) / 400 < 0.95


def test_copies_stay_in_one_split() -> None:
    documents = tuple(f"document {i % 150}" for i in range(300))
    corpus = Corpus("c", documents)
    parts = [set(corpus.split(name)) for name in SPLITS]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 150


def test_one_long_file_gives_three_splits(tmp_path: Path) -> None:
    (tmp_path / "book").write_text(BOOK)
    corpus = load_corpus(tmp_path / "book")
    assert "".join(corpus.units) == BOOK
    assert all(corpus.split(name) for name in SPLITS)
    assert all(piece.endswith("\n") for piece in corpus.units[:-1])


@settings(deadline=None, max_examples=60, derandomize=True, database=None)
@given(text=st.text("ab\n", max_size=200), size=st.integers(1, 50))
def test_cutting_loses_nothing(text: str, size: int) -> None:
    pieces = list(cut(text, size))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= size for piece in pieces)


def test_folders_files_lists_and_separators(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.md").write_text("alpha")
    (tmp_path / "b.txt").write_text("beta<|endoftext|>gamma<|endoftext|>\n")
    (tmp_path / "c.bin").write_bytes(b"\xff\xfe")
    assert load_corpus(tmp_path).documents == ("beta<|endoftext|>gamma<|endoftext|>\n", "alpha")
    assert load_corpus(str(tmp_path / "b.txt"), separator="<|endoftext|>").documents == ("beta", "gamma")
    both = load_corpus([tmp_path / "deep", tmp_path / "b.txt"])
    assert both.documents[0] == "alpha"
    assert both.name == "deep b.txt"


def test_bad_input_is_named(tmp_path: Path) -> None:
    broken, empty = tmp_path / "broken.txt", tmp_path / "empty.txt"
    broken.write_bytes(b"good \xff bad")
    empty.write_text(" \n")
    with pytest.raises(DataError, match=r"broken\.txt: not UTF-8 at byte 5 \(0xff\)"):
        load_corpus(tmp_path)
    with pytest.raises(DataError, match="no text"):
        load_corpus(empty)
    with pytest.raises(DataError, match="no such file"):
        load_corpus(tmp_path / "nowhere")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no text file"):
        load_corpus(tmp_path / "none")
    with pytest.raises(DataError, match="no path"):
        load_corpus([])
    with pytest.raises(DataError, match="separator"):
        load_corpus(empty, separator="")
    corpus = Corpus("tiny", ("one", "two"))
    with pytest.raises(DataError, match="cannot fill"):
        corpus.split("train")
    with pytest.raises(DataError, match="no split 'dev'"):
        Corpus("c", tuple(f"d{i}" for i in range(9))).split("dev")
