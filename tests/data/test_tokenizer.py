from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundthink.data.tokenizer import BPETokenizer, ByteTokenizer, Tokenizer, load_tokenizer
from groundthink.errors import DataError

TEXTS = ["the cat sat on the mat, the cat saw the hat\n" * 20, "naïve café — 東京 🙂\n" * 20]
TRAINED = BPETokenizer.train(TEXTS, 280)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
many = settings(deadline=None, max_examples=60, derandomize=True, database=None)


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), TRAINED], ids=lambda t: t.name)
@many
@given(text=text)
def test_lossless_and_bytes_add_up(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.byte_length(ids) == len(text.encode())
    assert tokenizer.encode_array(text).tolist() == ids


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), TRAINED], ids=lambda t: t.name)
def test_foreign_ids_show_when_decoded_and_are_refused_when_counted(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("ab"), tokenizer.vocab_size, *tokenizer.encode("cd"), -1]
    assert tokenizer.decode(ids) == "ab\ufffdcd\ufffd"
    with pytest.raises(DataError, match="outside"):
        tokenizer.byte_length(ids)
    with pytest.raises(DataError, match="surrogate"):
        tokenizer.encode("a\ud800")


def test_broken_utf8_becomes_a_replacement() -> None:
    assert ByteTokenizer().decode([0x41, 0xE6]) == "A\ufffd"


def test_training_is_deterministic_merges_and_survives_a_round_trip(tmp_path: Path) -> None:
    again = BPETokenizer.train(TEXTS, 280)
    assert again.digest == TRAINED.digest
    assert BPETokenizer.train(TEXTS, 279).digest != TRAINED.digest
    assert len(TRAINED.encode(TEXTS[0])) < len(TEXTS[0]) / 2
    TRAINED.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.digest == TRAINED.digest
    assert loaded.name == TRAINED.name == "bpe-280"
    assert loaded.encode(TEXTS[1]) == TRAINED.encode(TEXTS[1])
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]


def test_gpt2_from_its_own_files(gpt2_folder: Path) -> None:
    tokenizer = load_tokenizer(gpt2_folder)
    sample = "In the beginning the café wasn't 🙂.\n\n  Two  spaces."
    assert tokenizer.name == "gpt2"
    assert tokenizer.decode(tokenizer.encode(sample)) == sample
    assert tokenizer.byte_length(tokenizer.encode(sample)) == len(sample.encode())
    assert len(tokenizer.encode(" the")) == 1
    if tokenizer.vocab_size == 50257:  # the published ids of GPT-2
        assert tokenizer.encode("Hello world") == [15496, 995]


def test_tiny_gpt2_files_are_read_alike(tiny_gpt2_folder: Path) -> None:
    tokenizer = load_tokenizer(tiny_gpt2_folder)
    assert tokenizer.vocab_size == 259
    assert len(tokenizer.encode("the the")) == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", json.dumps({"version": "1.0"})),
        ("encoder.json", "{}"),
        ("vocab.bpe", "a b"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=r"not a tokenizer|no such file"):
        load_tokenizer(tmp_path)


def test_broken_gpt2_files_are_refused(tiny_gpt2_folder: Path) -> None:
    (tiny_gpt2_folder / "vocab.bpe").write_text("q zzz\n")
    with pytest.raises(DataError, match="GPT-2"):
        load_tokenizer(tiny_gpt2_folder)


def test_lossy_tokenizers_are_refused() -> None:
    from tokenizers import Tokenizer, models

    with pytest.raises(DataError, match="lossless"):
        BPETokenizer(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), "words")


def test_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="257"):
        BPETokenizer.train(TEXTS, 256)
    with pytest.raises(DataError, match="only"):
        BPETokenizer.train(["ab"], 5000)
    with pytest.raises(DataError, match="has no tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match="is no folder"):
        load_tokenizer(tmp_path / "nowhere")
