"""The tests are held to published values, to exact enumeration, and to what must be true of any such test."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundthink.errors import DataError
from groundthink.probes.statistics import Paired, cluster_bootstrap, detectable, holm


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [(6, 0, 0.03125), (10, 2, 0.0385742), (0, 0, 1.0), (1, 1, 1.0), (5, 0, 0.0625), (3, 15, 0.00753784)],
)
def test_mcnemar_is_the_exact_binomial(first: int, second: int, p: float) -> None:
    assert Paired(first, second, 400).mcnemar() == pytest.approx(p, rel=1e-5)  # digits given
    assert Paired(second, first, 20).mcnemar() == pytest.approx(p, rel=1e-5)


@pytest.mark.parametrize(("n", "points"), [(100, 19.8), (200, 14.0), (500, 8.9), (1000, 6.3)])
def test_what_can_be_detected(n: int, points: float) -> None:
    assert round(100 * detectable(n), 1) == points


def test_pairs_are_counted() -> None:
    found = Paired.of([True, True, False, False, True], [True, False, True, False, False])
    assert found == Paired(2, 1, 5)
    assert found.difference == pytest.approx(0.2)


@pytest.mark.parametrize("discordant", [0.05, 0.10, 0.30])
def test_equivalence_is_claimed_wrongly_in_one_of_twenty(discordant: float) -> None:
    """Exactly, over all outcomes of 400 pairs whose true difference is the margin."""
    n, first = 400, (discordant + 0.05) / 2
    second = discordant - first
    logs = np.cumsum(np.log(np.maximum(np.arange(n + 1), 1)))
    total = 0.0
    for b in range(n + 1):
        for c in range(min(n - b, round(n * second + 60)) + 1):
            if (second == 0 and c) or abs(b - c) > 20 or b > n * first + 60:  # beyond 6 sigma, or outside the margin
                continue
            if Paired(b, c, n).tost() <= 0.05:
                rest = 1 - first - second
                tail = c * math.log(second) if c else 0.0
                total += math.exp(
                    logs[n] - logs[b] - logs[c] - logs[n - b - c]
                    + b * math.log(first) + tail + (n - b - c) * math.log(rest)
                )  # fmt: skip
    # The normal approximation is off by a hundredth where the arms differ in one direction only.
    assert 0.01 < total < 0.065


def test_equivalence_is_not_a_difference_that_was_missed() -> None:
    assert Paired(0, 0, 400).tost() < 1e-6
    assert Paired(3, 3, 400).tost() < 1e-6
    few = Paired(2, 1, 10)
    assert few.mcnemar() == 1, "no difference was found"
    assert few.tost() > 0.2, "nor was it excluded"
    assert Paired(30, 2, 400).tost() > 0.5


@given(st.integers(0, 60), st.integers(0, 60), st.sampled_from([0.01, 0.05, 0.1]))
@settings(deadline=None, max_examples=60, derandomize=True, database=None)
def test_test_and_interval_agree(first: int, second: int, alpha: float) -> None:
    pairs, mirrored = Paired(first, second, 200), Paired(second, first, 200)
    low, high = pairs.interval(1 - 2 * alpha)
    assert (pairs.tost() <= alpha) == (low >= -0.05 and high <= 0.05)
    assert mirrored.tost() == pytest.approx(pairs.tost())
    assert mirrored.interval(1 - 2 * alpha) == pytest.approx((-high, -low))
    assert pairs.upper(1 - alpha) == pytest.approx(high)
    assert low < high


def test_holm() -> None:
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    assert holm(p) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(holm(p)) == list(p)
    assert holm({"one": 0.3}) == {"one": 0.3}
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=12))
@settings(deadline=None, max_examples=60, derandomize=True, database=None)
def test_holm_keeps_the_order(p: dict[str, float]) -> None:
    adjusted = holm(p)
    for name in p:
        assert p[name] <= adjusted[name] <= min(1, len(p) * p[name]) + 1e-15  # rounding of one product
        assert all(adjusted[name] <= adjusted[other] for other in p if p[name] < p[other])


def test_clusters_widen_the_interval() -> None:
    """Eight equal answers of an episode are one answer; taken for eight, the interval is too short by sqrt 8."""
    answers = [float(i % 2) for i in range(50) for _ in range(8)]
    episodes = [i for i in range(50) for _ in range(8)]
    mean, low, high = cluster_bootstrap(answers, episodes, seed=1)
    _, naive_low, naive_high = cluster_bootstrap(answers, list(range(400)), seed=1)
    once = cluster_bootstrap(answers[::8], list(range(50)), seed=1)
    assert mean == 0.5
    assert (mean, low, high) == once
    assert (high - low) / (naive_high - naive_low) == pytest.approx(math.sqrt(8), rel=0.1)  # 10,000 resamples
    assert cluster_bootstrap([1.0, 0.0, 0.0, 0.0], ["a", "b", "b", "b"])[0] == 0.25, "values weigh the same"


def test_bad_input_is_one_line() -> None:
    for broken in (lambda: Paired(3, 3, 5), lambda: Paired(-1, 0, 5), lambda: Paired(0, 0, 0)):
        with pytest.raises(DataError, match="do not add up"):
            broken()
    with pytest.raises(DataError, match="cannot pair"):
        Paired.of([True], [True, False])
    with pytest.raises(DataError, match="not between"):
        holm({"a": float("nan")})
    with pytest.raises(DataError, match="2 values of 1"):
        cluster_bootstrap([1, 0], [1])
    with pytest.raises(DataError, match="margin"):
        Paired(0, 0, 5).tost(0)
    with pytest.raises(DataError, match="nothing can be detected"):
        detectable(0)
