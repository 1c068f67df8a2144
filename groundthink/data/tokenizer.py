"""Text to ids and back: bytes, a byte-level BPE trained here, or GPT-2's from local files.

All of them are lossless (`decode(encode(text)) == text`) and know how many bytes an id stands for, so that a
loss per token can always be told as bits per byte, and models with different tokenizers can be compared.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers

from groundthink.errors import DataError

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
FILE = "tokenizer.json"


class Tokenizer(Protocol):
    """What every tokenizer offers. Ids are 0 .. vocab_size - 1."""

    @property
    def name(self) -> str:
        """`bytes`, `bpe-4096`, `gpt2`."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""

    @property
    def digest(self) -> str:
        """16 hex digits that change when any id changes its meaning."""

    def encode(self, text: str) -> list[int]:
        """Ids of the text, as Python integers."""

    def encode_array(self, text: str) -> NDArray[np.int32]:
        """The same as an int32 array [n]; the fast form for whole documents."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; broken UTF-8 and ids outside the vocabulary become U+FFFD."""

    def byte_length(self, ids: Sequence[int]) -> int:
        """UTF-8 bytes that the ids stand for; DataError for an id outside the vocabulary."""


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"character {error.start} is half of a surrogate pair and has no UTF-8 form",
            fix="read the text with encoding='utf-8' and without surrogateescape.",
        ) from error


class ByteTokenizer:
    """256 ids, one per byte of UTF-8."""

    name = "bytes"
    vocab_size = 256
    digest = hashlib.sha256(b"bytes").hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return list(_utf8(text))

    def encode_array(self, text: str) -> NDArray[np.int32]:
        """See `Tokenizer`."""
        return np.frombuffer(_utf8(text), dtype=np.uint8).astype(np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer`. An id outside 0..255 (a task's special token) becomes U+FFFD."""
        # 0xFF never occurs in UTF-8, so it is replaced like any other broken byte.
        return bytes(int(i) if 0 <= i < 256 else 0xFF for i in ids).decode("utf-8", errors="replace")

    def byte_length(self, ids: Sequence[int]) -> int:
        """See `Tokenizer`."""
        array = np.asarray(ids)
        _check_ids(array, self.vocab_size)
        return int(array.size)


def _check_ids(ids: NDArray[Any], vocab_size: int) -> None:
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        bad = int(ids[(ids < 0) | (ids >= vocab_size)][0])
        raise DataError(f"id {bad} is outside the tokenizer's 0..{vocab_size - 1}")


class BPETokenizer:
    """Byte-level BPE. Make one with `train`, `load` or `from_gpt2`.

    Args:
        core: a `tokenizers.Tokenizer` with a BPE model behind a byte-level pre-tokenizer and no normalizer.
        name: what records call it.

    Raises:
        DataError: `core` is of another kind, so that bytes could not be counted.
    """

    def __init__(self, core: tokenizers.Tokenizer, name: str) -> None:
        state = json.loads(core.to_str())
        before = state.get("pre_tokenizer") or {}
        if state["model"].get("type") != "BPE" or before.get("type") != "ByteLevel" or state.get("normalizer"):
            raise DataError(
                "only byte-level BPE without a normalizer is lossless",
                where=name,
                fix="train one with BPETokenizer.train, or use 'bytes'.",
            )
        self._core = core
        self.name = name
        self.vocab_size: int = core.get_vocab_size(with_added_tokens=True)
        canonical = json.dumps(state, sort_keys=True).encode()
        self.digest = hashlib.sha256(canonical).hexdigest()[:16]

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> BPETokenizer:
        """Learn `vocab_size` ids from texts; the first 256 are the single bytes.

        Raises:
            DataError: fewer than 257 ids asked for, or the texts do not give that many.
        """
        if vocab_size < 257:
            raise DataError(f"vocab_size {vocab_size} is below 257", fix="ask for more, or use 'bytes'.")
        core = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        core.train_from_iterator(texts, trainer)
        if core.get_vocab_size() < vocab_size:
            raise DataError(
                f"the texts give only {core.get_vocab_size()} of {vocab_size} ids",
                fix="hand in more text or ask for fewer ids.",
            )
        return cls(core, f"bpe-{vocab_size}")

    @classmethod
    def load(cls, folder: str | Path) -> BPETokenizer:
        """Read what `save` wrote.

        Raises:
            DataError: there is no such file, or it is no byte-level BPE.
        """
        path = Path(folder) / FILE
        try:
            text = path.read_text(encoding="utf-8")
            core = tokenizers.Tokenizer.from_str(text)
        except FileNotFoundError as error:
            raise DataError("no such file", where=str(path), fix="name a folder that holds it.") from error
        except Exception as error:  # the library raises bare Exception on a broken file
            raise DataError(f"not a tokenizer ({error})", where=str(path), fix="write it again.") from error
        return cls(core, f"bpe-{core.get_vocab_size(with_added_tokens=True)}")

    @classmethod
    def from_gpt2(cls, folder: str | Path) -> BPETokenizer:
        """Read GPT-2's own format: `encoder.json` (token to id) and `vocab.bpe` (merges, one per line).

        Raises:
            DataError: a file is missing or not in that format.
        """
        folder = Path(folder)
        vocab_path, merges_path = folder / "encoder.json", folder / "vocab.bpe"
        try:
            vocab = json.loads(vocab_path.read_text(encoding="utf-8"))
            lines = merges_path.read_text(encoding="utf-8").split("\n")
            pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
            merges = [(left, right) for left, right in pairs]
            core = _byte_level(models.BPE(vocab=vocab, merges=merges))
        except FileNotFoundError as error:
            raise DataError("no such file", where=str(error.filename), fix="both files are needed.") from error
        except Exception as error:  # the library raises bare Exception on merges outside the vocabulary
            raise DataError(f"not in GPT-2's format ({error})", where=str(folder)) from error
        return cls(core, "gpt2")

    def save(self, folder: str | Path) -> Path:
        """Write `tokenizer.json` into `folder`, whole or not at all."""
        path = Path(folder) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not records.write_whole: data stands below records in the import table.
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{FILE}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(self._core.to_str(pretty=True))
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        return path

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        _utf8(text)
        return list(self._core.encode(text).ids)

    def encode_array(self, text: str) -> NDArray[np.int32]:
        """See `Tokenizer`."""
        return np.asarray(self.encode(text), dtype=np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer`."""
        parts: list[str] = []
        run: list[int] = []
        for i in [*(int(i) for i in ids), -1]:
            if 0 <= i < self.vocab_size:
                run.append(i)
                continue
            parts.append(self._core.decode(run, skip_special_tokens=False) if run else "")
            parts.append(REPLACEMENT)
            run = []
        return "".join(parts[:-1])

    @functools.cached_property
    def _bytes_per_id(self) -> NDArray[np.int64]:
        # A byte-level token is spelt with one printable character per byte.
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, i in self._core.get_vocab(with_added_tokens=True).items():
            lengths[i] = len(token)
        return lengths

    def byte_length(self, ids: Sequence[int]) -> int:
        """See `Tokenizer`."""
        array = np.asarray(ids, dtype=np.int64)
        _check_ids(array, self.vocab_size)
        return int(self._bytes_per_id[array].sum())


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    core = tokenizers.Tokenizer(model)
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return core


def load_tokenizer(source: str | Path) -> Tokenizer:
    """`bytes`, a folder with `tokenizer.json`, or one with GPT-2's `encoder.json` and `vocab.bpe`.

    Raises:
        DataError: no such folder, or nothing in it that is known.
    """
    if source == "bytes":
        return ByteTokenizer()
    folder = Path(source)
    if (folder / FILE).exists():
        return BPETokenizer.load(folder)
    if (folder / "encoder.json").exists() or (folder / "vocab.bpe").exists():
        return BPETokenizer.from_gpt2(folder)
    state = "has no tokenizer in it" if folder.is_dir() else "is no folder"
    raise DataError(
        f"{state}: {str(source)!r}",
        where="tokenizer",
        fix=f"name 'bytes', a folder with {FILE}, or one with encoder.json and vocab.bpe.",
    )
