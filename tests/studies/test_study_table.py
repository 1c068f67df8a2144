"""From cells to a table: what is pooled, what is averaged, and when a line is missed."""

from __future__ import annotations

import math

import pytest

from groundthink.records import ProbeResult, Proportion
from groundthink.studies.study import Curve, Line, Size, Study, Wanted, number, share
from groundthink.studies.table import table

SEEDS = (0, 1, 2)


def study(*lines: Line, curves: tuple[Curve, ...] = ()) -> Study:
    """A study of these lines."""
    arms = {arm for line in lines for arm in (line.arm, *([line.less[0]] if line.less else []))}
    sizes = {name: Size(seeds=3, settings=None, cost="nothing") for name in ("full", "quick", "smoke")}
    return Study(
        name="made-up",
        question="?",
        origin="nobody",
        sizes=sizes,
        arms=dict.fromkeys(arms, lambda work: []),
        lines=lines,
        curves=curves,
    )


def cells(**found: tuple[float | Proportion, ...]) -> dict[tuple[str, int], dict[str, ProbeResult]]:
    """Cells of arms `a` and `b` whose number `x` is given by seed."""
    made = {}
    for arm, values in found.items():
        for seed, value in zip(SEEDS, values, strict=True):
            result = share("x", value, chance=0.5) if isinstance(value, Proportion) else number("x", value, n=10)
            made[arm, seed] = {"x": result}
    return made


def only_line(line: Line, **found: tuple[float | Proportion, ...]) -> dict[str, object]:
    return table(study(line), "full", SEEDS, cells(**found))["lines"][0]


def test_shares_are_pooled_and_every_seed_has_to_meet_the_bound() -> None:
    line = Line(label="x", arm="a", measure="x", wanted={"full": Wanted(at_least=0.95)})
    good = only_line(line, a=(Proportion(100, 100), Proportion(96, 100), Proportion(95, 100)))
    pooled = Proportion(291, 300)
    assert (good["value"], good["low"], good["high"], good["n"]) == (pooled.rate, pooled.low, pooled.high, 300)
    assert (good["verdict"], good["chance"], good["by_seed"]) == ("pass", 0.5, {"0": 1.0, "1": 0.96, "2": 0.95})
    # The mean is still above the bound, one seed is not.
    missed = only_line(line, a=(Proportion(100, 100), Proportion(100, 100), Proportion(94, 100)))
    assert missed["value"] > 0.95  # type: ignore[operator]
    assert missed["verdict"] == "fail"


def test_numbers_are_averaged_with_students_t() -> None:
    line = only_line(Line(label="x", arm="a", measure="x"), a=(1.0, 2.0, 3.0))
    half = 4.303 / math.sqrt(3)  # t of two degrees of freedom, standard deviation 1
    assert line["value"] == 2.0
    assert line["low"] == pytest.approx(2 - half)
    assert line["high"] == pytest.approx(2 + half)
    assert (line["n"], line["verdict"], line["wanted"]) == (30, "info", "")


def test_one_number_less_another_is_paired_by_seed() -> None:
    line = Line(label="x", arm="a", measure="x", less=("b", "x"), wanted={"full": Wanted(at_most=0.0, errors=2)})
    found = only_line(line, a=(1.0, 11.0, 21.0), b=(2.0, 12.1, 21.9))
    assert found["by_seed"] == pytest.approx({"0": -1.0, "1": -1.1, "2": -0.9})
    assert found["verdict"] == "pass"
    assert only_line(line, a=(1.0, 1.0, 1.0), b=(4.0, 1.5, 0.5))["verdict"] == "fail"  # -1 with an error of 1.04


def test_what_was_not_measured_meets_no_bound() -> None:
    for wanted in (Wanted(at_least=-1e9), Wanted(at_most=1e9)):
        line = Line(label="x", arm="a", measure="x", wanted={"full": wanted})
        found = only_line(line, a=(1.0, math.nan, 1.0))
        assert (found["verdict"], found["low"]) == ("fail", None)


def test_a_size_without_a_bound_judges_nothing() -> None:
    line = Line(label="x", arm="a", measure="x", wanted={"full": Wanted(at_least=2.0)})
    made = cells(a=(1.0, 1.0, 1.0))
    assert table(study(line), "quick", SEEDS, made)["verdict"] == "info"
    assert table(study(line), "full", SEEDS, made)["verdict"] == "fail"


def test_curves_have_an_interval_at_every_point() -> None:
    points = {"a": (("a", "x", 1.0), ("b", "x", 2.0))}
    curve = Curve(title="t", x_label="x", y_label="y", points=points)
    line = Line(label="x", arm="a", measure="x", less=("b", "x"))
    made = cells(a=(1.0, 2.0, 3.0), b=(5.0, 5.0, 5.0))
    (drawn,) = table(study(line, curves=(curve,)), "full", SEEDS, made)["curves"]
    assert drawn["series"][0]["y"] == [2.0, 5.0]
    assert drawn["series"][0]["low"][1] == drawn["series"][0]["high"][1] == 5.0


def test_a_study_that_does_not_hold_together_is_refused() -> None:
    with pytest.raises(ValueError, match="bound is missing"):
        Wanted()
    with pytest.raises(ValueError, match="errors belong to at_most"):
        Wanted(at_least=1.0, errors=2)
    whole = study(Line(label="x", arm="a", measure="x"))
    with pytest.raises(ValueError, match="arms are"):
        Study(**{**vars(whole), "arms": {"c": lambda work: []}})
    with pytest.raises(ValueError, match="has sizes"):
        Study(**{**vars(whole), "sizes": {"full": whole.sizes["full"]}})
