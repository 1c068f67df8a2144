"""Bits per byte by document."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from training_stand_ins import Batch

from groundthink.errors import DataError
from groundthink.training import TextScores, score_text


@dataclasses.dataclass(frozen=True)
class Windows:
    batch: Batch
    document: Tensor
    n_bytes: Tensor


def windows(rows: list[tuple[int, list[int], int]], length: int) -> Windows:
    """Rows of (document, tokens, bytes), padded with zeros that are not labelled."""
    tokens = torch.zeros(len(rows), length, dtype=torch.int64)
    labels = torch.full_like(tokens, -100)
    for i, (_, ids, _) in enumerate(rows):
        tokens[i, : len(ids)] = torch.tensor(ids)
        labels[i, 1 : len(ids)] = torch.tensor(ids[1:])
    return Windows(Batch(tokens, labels), torch.tensor([r[0] for r in rows]), torch.tensor([r[2] for r in rows]))


def test_a_uniform_guess_costs_log2_of_the_vocabulary() -> None:
    given = [windows([(7, [1, 2, 3, 4], 3), (2, [5, 6], 1)], 5), windows([(7, [4, 1, 1], 2)], 5)]
    found = score_text(lambda tokens: torch.zeros(*tokens.shape, 16), given)
    assert found.documents.tolist() == [2, 7]
    assert found.n_bytes.tolist() == [1, 5]
    assert found.bits_per_byte == pytest.approx(4.0)
    assert found.per_document == pytest.approx([4.0, 4.0])


def test_logits_are_held_against_the_next_token() -> None:
    """Knowing the next token scores 0; echoing the present one, the planted fault, does not."""
    given = windows([(0, [1, 2, 3, 4], 3)], 5)

    def ahead(tokens: Tensor) -> Tensor:
        return 100.0 * torch.nn.functional.one_hot(torch.roll(tokens, -1, 1), 8).float()

    def echo(tokens: Tensor) -> Tensor:
        return 100.0 * torch.nn.functional.one_hot(tokens, 8).float()

    assert score_text(ahead, [given]).bits_per_byte == pytest.approx(0.0, abs=1e-12)
    assert score_text(echo, [given]).bits_per_byte > 100


def test_cutting_windows_another_way_changes_nothing() -> None:
    """Each token is predicted once, whatever window it stands in; here the model looks at one token only."""
    table = torch.randn(9, 9, generator=torch.Generator().manual_seed(0))
    whole = [windows([(0, [1, 2, 3, 4, 5], 4), (1, [6, 7, 8], 2)], 5)]
    cut = [windows([(0, [1, 2, 3], 2), (0, [3, 4, 5], 2)], 3), windows([(1, [6, 7], 1), (1, [7, 8], 1)], 3)]
    a, b = (score_text(lambda tokens: table[tokens], given) for given in (whole, cut))
    assert a.n_bytes.tolist() == b.n_bytes.tolist()
    assert a.nats == pytest.approx(b.nats, rel=1e-6)  # float32 losses, summed in another order


def test_long_documents_count_for_more_in_the_total_only() -> None:
    found = TextScores(np.array([0, 1]), np.array([1.0, 9.0]) * math.log(2), np.array([1, 3]))
    assert found.bits_per_byte == pytest.approx(2.5)
    assert found.per_document == pytest.approx([1.0, 3.0])


def test_nothing_to_score() -> None:
    for given in ([], [windows([(0, [1], 0)], 3)]):
        with pytest.raises(DataError, match="no held-out document"):
            score_text(lambda tokens: torch.zeros(*tokens.shape, 4), given)
