"""Bits per byte by document, and the paired bootstrap between two models."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from training_stand_ins import Batch

from groundthink.errors import DataError
from groundthink.training import TextScores, paired_bootstrap, score_text


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


def scores(values: NDArray[np.float64] | list[float]) -> TextScores:
    """Documents of 1,000 bytes with these bits per byte."""
    bits = np.asarray(values, dtype=np.float64)
    size = np.full(len(bits), 1000)
    return TextScores(np.arange(len(bits)), bits * 1000 * math.log(2), size)


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


def test_a_model_against_itself_is_exactly_zero() -> None:
    a = scores(np.random.default_rng(0).normal(2, 0.5, 40))
    found = paired_bootstrap(a, a, seed=0)
    assert (found.mean, found.low, found.high, found.n) == (0.0, 0.0, 0.0, 40)


def test_pairing_sees_a_small_difference_between_very_different_documents() -> None:
    generator = np.random.default_rng(1)
    base = generator.normal(2, 0.5, 60)
    found = paired_bootstrap(scores(base + 0.02 + generator.normal(0, 0.01, 60)), scores(base), seed=0)
    assert 0.01 < found.low < 0.02 < found.high < 0.03
    again = paired_bootstrap(scores(base + 0.02), scores(base), seed=0)
    assert again.low == pytest.approx(0.02)
    swapped = paired_bootstrap(scores(base), scores(base + 0.02), seed=0)
    assert swapped.mean == pytest.approx(-again.mean)


def test_the_interval_is_the_normal_one_and_covers() -> None:
    """Mean +- 1.96 standard errors; over 200 worlds it covers the truth about 95 times in 100."""
    generator, hits = np.random.default_rng(2), 0
    for seed in range(200):
        drawn = generator.normal(0.1, 1.0, 100)
        found = paired_bootstrap(scores(drawn), scores(np.zeros(100)), seed=seed, n=500)
        hits += found.low <= 0.1 <= found.high
    assert 0.89 <= hits / 200 <= 0.99  # 0.95 +- 4 binomial standard errors of 0.015, rounded
    exact = paired_bootstrap(scores(drawn), scores(np.zeros(100)), seed=0, n=20_000)
    half = 1.96 * drawn.std() / 10
    assert exact.high - exact.low == pytest.approx(2 * half, rel=0.05)  # Monte Carlo error of the quantiles


def test_the_seed_decides() -> None:
    a, b = scores(np.random.default_rng(3).normal(2, 0.5, 30)), scores([2.0] * 30)
    one, same, other = (paired_bootstrap(a, b, seed=s, n=300) for s in (0, 0, 1))
    assert one == same
    assert one.low != other.low


def test_scores_of_other_documents_are_refused() -> None:
    a = scores([1.0, 2.0])
    for b in (scores([1.0, 2.0, 3.0]), dataclasses.replace(a, n_bytes=np.array([1000, 999]))):
        with pytest.raises(DataError, match="not of the same documents"):
            paired_bootstrap(a, b, seed=0)
