from __future__ import annotations

import math

import pytest

from groundthink.errors import TaskError
from groundthink.records import Proportion
from groundthink.tasks.kv_capacity import KvCapacity, n50, points
from groundthink.tasks.scoring import evaluate
from tasks.worlds import VOCABULARY, last_value, lookup, salient

TASK = KvCapacity(VOCABULARY, n_min=2, n_max=32, distance="fixed:10")


def logistic(n50_of: float, slope: float, n: int = 400) -> dict[int, Proportion]:
    sizes = (2, 4, 8, 16, 32, 64)
    rates = [1 / (1 + math.exp(slope * (math.log2(size) - math.log2(n50_of)))) for size in sizes]
    return {size: Proportion(round(rate * n), n) for size, rate in zip(sizes, rates, strict=True)}


@pytest.mark.parametrize("true", [3.0, 8.0, 11.0, 40.0])
@pytest.mark.parametrize("slope", [0.8, 2.0, 5.0])
def test_a_planted_capacity_is_found(true: float, slope: float) -> None:
    fit = n50(logistic(true, slope))
    assert fit is not None
    assert fit.low <= fit.n50 <= fit.high
    # The grid steps by 2 % of N, hits are rounded to 1 in 400 (of a slope of 0.8: 1.3 % of an octave).
    assert fit.n50 == pytest.approx(true, rel=0.1 if slope < 5 else 0.25)
    assert fit.low * 0.95 <= true <= fit.high * 1.05
    assert fit == n50(logistic(true, slope))


def test_more_trials_narrow_the_interval() -> None:
    few, many = n50(logistic(10, 2, 50)), n50(logistic(10, 2, 2000))
    assert few is not None
    assert many is not None
    assert math.log(many.high / many.low) < 0.5 * math.log(few.high / few.low)


def test_half_that_is_not_bracketed_has_no_fit() -> None:
    assert n50({n: Proportion(100, 100) for n in (2, 4, 8)}) is None
    assert n50({n: Proportion(3, 100) for n in (2, 4, 8)}) is None
    assert n50({2: Proportion(3, 100), 8: Proportion(97, 100)}) is None  # rising
    assert n50({4: Proportion(50, 100)}) is None
    assert n50({}) is None
    with pytest.raises(TaskError, match="without trials"):
        n50({4: Proportion(0, 0)})


def test_a_memory_of_ten_pairs_is_half_right_at_about_twenty() -> None:
    # A window of 10 pairs, the filler and the cue: right with probability min(1, 10 / N).
    result = evaluate(TASK, lambda tokens: lookup(tokens, window=10 + 2 * 9), n=600)
    found = points(result.by_kind)
    assert tuple(found) == TASK.sweep == (2, 4, 8, 16, 32)
    assert found[2].rate == found[4].rate == found[8].rate == 1
    assert found[16].low <= 10 / 16 <= found[16].high
    assert found[32].low <= 10 / 32 <= found[32].high
    fit = n50(found)
    assert fit is not None
    # 10 / N is no logistic, so the fit is near 20 only; between the N that bracket it for certain.
    assert 16 < fit.low < fit.n50 < fit.high < 32
    with pytest.raises(TaskError, match="slices none"):
        points({})
    with pytest.raises(TaskError, match="slices new"):
        points({"new": Proportion(1, 2)})


def test_chance_is_the_mean_over_the_sweep() -> None:
    chance = TASK.chance()
    assert chance.best == chance.in_context == (1 / 2 + 1 / 4 + 1 / 8 + 1 / 16 + 1 / 32) / 5
    for guess in (salient(TASK), last_value):
        blind = evaluate(TASK, guess, n=600)
        assert blind.exact.low <= chance.in_context <= blind.exact.high


def test_the_sweep_keeps_the_filler() -> None:
    for episode in TASK.episodes(0, "train", 30):
        (query,) = episode.queries
        n = int(query.kind[2:])
        assert len(query.in_context_values) == n
        assert len(episode) == 1 + 2 * n + 8 + 3
        assert query.query_position - 2 * n == 10
