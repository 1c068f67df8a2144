"""A GPT-2 folder that is always there: the real one where it lies beside the repository, else a tiny one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "gpt2_bpe"


def write_tiny_gpt2(folder: Path) -> Path:
    """256 bytes and three merges in GPT-2's own two files. A space is spelt with a G with a dot above."""
    merges = [("t", "h"), ("th", "e"), ("\u0120", "the")]
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in merges)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "encoder.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges), ""]
    (folder / "vocab.bpe").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def tiny_gpt2_folder(tmp_path: Path) -> Path:
    return write_tiny_gpt2(tmp_path / "tiny")


@pytest.fixture
def gpt2_folder(tmp_path: Path) -> Path:
    return REAL if REAL.exists() else write_tiny_gpt2(tmp_path / "gpt2")
