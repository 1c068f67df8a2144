"""Documents from local files, and three splits that no document can cross.

`python-stdlib` is the text that every machine has: the sources of the running Python, docstrings included.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from groundthink.errors import DataError

SPLITS = ("train", "valid", "test")
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".tex")
STDLIB_BYTES = 5_000_000
HELD_OUT = 0.05  # share of valid, and of test
WHOLE_DOCUMENTS = 100  # from this many documents on, none is cut
# From this many units on, hash thresholds alone leave a split empty less than once in 10,000 corpora.
ENOUGH_UNITS = 200
_NO_TEXT_IN = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class Corpus:
    """Named documents.

    With 100 documents and more, whole documents are held out. With fewer, long ones are cut into contiguous
    pieces at line ends first, so that one long book gives three splits too.

    Args:
        name: what records call it.
        documents: texts, none of them empty.

    Raises:
        DataError: there is nothing in it.
    """

    name: str
    documents: tuple[str, ...]

    def __post_init__(self) -> None:
        if not any(document.strip() for document in self.documents):
            raise DataError("holds no text", where=self.name, fix="name files with text in them.")

    @functools.cached_property
    def digest(self) -> str:
        """16 hex digits over name-free content and order."""
        whole = hashlib.sha256()
        for document in self.documents:
            whole.update(hashlib.sha256(document.encode()).digest())
        return whole.hexdigest()[:16]

    @functools.cached_property
    def units(self) -> tuple[str, ...]:
        """What is held out as a whole: documents, or pieces of them."""
        if len(self.documents) >= WHOLE_DOCUMENTS:
            return self.documents
        total = sum(len(document) for document in self.documents)
        size = min(max(total // 256, 1024), 65536)
        return tuple(piece for document in self.documents for piece in cut(document, size))

    @functools.cached_property
    def _splits(self) -> dict[str, tuple[str, ...]]:
        keys = [hashlib.sha256(unit.encode()).digest() for unit in self.units]
        distinct = sorted(set(keys))
        if len(distinct) < 3:
            raise DataError(
                f"{len(distinct)} different pieces cannot fill train, valid and test",
                where=self.name,
                fix="use more text: some 4 KB at least.",
            )
        if len(distinct) >= ENOUGH_UNITS:
            place = {key: int.from_bytes(key[:8], "big") / 2**64 for key in distinct}
            edge = HELD_OUT
        else:  # too few for thresholds: the rank of the hash decides, still blind to order
            place = {key: float(rank) for rank, key in enumerate(distinct)}
            edge = float(max(1, round(HELD_OUT * len(distinct))))
        found: dict[str, list[str]] = {name: [] for name in SPLITS}
        for key, unit in zip(keys, self.units, strict=True):
            found["test" if place[key] < edge else "valid" if place[key] < 2 * edge else "train"].append(unit)
        return {name: tuple(units) for name, units in found.items()}

    def split(self, name: str) -> tuple[str, ...]:
        """Documents of `train`, `valid` or `test`, in corpus order; the sha256 of the content decides.

        Raises:
            DataError: another name, or nothing fell into that split.
        """
        if name not in SPLITS:
            raise DataError(f"no split {name!r}", where=self.name, fix=f"one of {', '.join(SPLITS)}.")
        documents = self._splits[name]
        if not documents:
            raise DataError(f"split {name!r} is empty", where=self.name, fix="use more text.")
        return documents


def cut(document: str, size: int) -> Iterator[str]:
    """Contiguous pieces of at most `size` characters, cut after a line end where there is one."""
    start = 0
    while len(document) - start > size:
        line_end = document.rfind("\n", start, start + size)
        end = line_end + 1 if line_end >= start + size // 2 else start + size
        yield document[start:end]
        start = end
    if start < len(document):
        yield document[start:]


def load_corpus(source: str | Path | Sequence[str | Path], *, separator: str | None = None) -> Corpus:
    """Read a corpus.

    Args:
        source: `python-stdlib`, or one path or several: a file of any suffix, or a folder, of which every
            text file (.txt .md .rst .py .tex) at any depth is read. Files are UTF-8.
        separator: where a file holds many documents, the string between them, as `<|endoftext|>`.

    Raises:
        DataError: a path that is missing, a file that is not UTF-8, nothing to read.
    """
    if source == "python-stdlib":
        return python_stdlib()
    paths = [Path(source)] if isinstance(source, (str, Path)) else [Path(item) for item in source]
    if not paths:
        raise DataError("no path given", where="corpus", fix="name files, folders, or 'python-stdlib'.")
    if separator == "":
        raise DataError("the separator is empty", where="corpus", fix="leave it out, or name a string.")
    documents: list[str] = []
    for path in paths:
        for file in _files(path):
            text = _read(file)
            parts = text.split(separator) if separator else [text]
            documents += [part for part in parts if part.strip()]
    return Corpus(" ".join(path.name for path in paths), tuple(documents))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError("no such file or folder", where=str(path), fix="check the path.")
    found = sorted(p for p in path.rglob("*") if p.suffix in TEXT_SUFFIXES and p.is_file())
    if not found:
        raise DataError(
            "no text file in this folder",
            where=str(path),
            fix=f"name files one by one; in folders only {' '.join(TEXT_SUFFIXES)} are read.",
        )
    return found


def _read(path: Path) -> str:
    try:
        raw = path.read_bytes()
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8 at byte {error.start} (0x{raw[error.start]:02x})",
            where=str(path),
            fix="convert it to UTF-8, or leave it out.",
        ) from error
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path)) from error


@functools.cache
def python_stdlib() -> Corpus:
    """Sources of the running Python without its tests, 5 MB at most, the same on every run.

    Where the library is larger, the files with the smallest hash of their path are taken: no part of the
    alphabet is preferred. Files in other encodings than UTF-8 are left out.

    Raises:
        DataError: this Python came without sources.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files: list[Path] = []
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if name not in _NO_TEXT_IN)
        files += [Path(folder) / name for name in names if name.endswith(".py")]
    files.sort(key=lambda file: hashlib.sha256(file.relative_to(root).as_posix().encode()).digest())
    chosen: dict[Path, str] = {}
    total = 0
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if text.strip() and total + len(text) <= STDLIB_BYTES:
            chosen[file] = text
            total += len(text)
    if not chosen:
        raise DataError("this Python has no sources", where=str(root), fix="name text files of your own.")
    return Corpus("python-stdlib", tuple(chosen[file] for file in sorted(chosen)))
