"""From the cells of a study to its table: every number with its interval, n, seeds, chance and verdict."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from groundthink.records import ProbeResult, Proportion
from groundthink.studies.study import Curve, Line, Study, Wanted

# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom: seeds are few.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

Cells = Mapping[tuple[str, int], Mapping[str, ProbeResult]]  # (arm, seed) -> results by name


def t95(degrees: int) -> float:
    """Two-sided 95 % quantile of Student's t."""
    return _T95[degrees - 1] if degrees <= len(_T95) else 2.262


def table(study: Study, size: str, seeds: Sequence[int], cells: Cells) -> dict[str, Any]:
    """The record of a study: its lines and curves over all seeds."""
    lines = [_line(line, size, seeds, cells) for line in study.lines]
    return {
        "study": study.name,
        "question": study.question,
        "origin": study.origin,
        "size": size,
        "seeds": list(seeds),
        "lines": lines,
        "curves": [_curve(curve, seeds, cells) for curve in study.curves],
        "verdict": verdict(lines),
    }


def verdict(lines: Sequence[Mapping[str, Any]]) -> str:
    """`pass` if every judged line passes, `fail` if one does not, `info` if nothing was judged."""
    judged = {line["verdict"] for line in lines} - {"info"}
    return "fail" if "fail" in judged else "pass" if judged else "info"


def _line(line: Line, size: str, seeds: Sequence[int], cells: Cells) -> dict[str, Any]:
    found = [cells[line.arm, seed][line.measure] for seed in seeds]
    values = [result.value for result in found]
    mean, low, high, n = _together(found)
    if line.less is not None:
        arm, measure = line.less
        values = [value - cells[arm, seed][measure].value for value, seed in zip(values, seeds, strict=True)]
        mean, low, high = _mean(values, None)
    wanted = line.wanted.get(size)
    return {
        "label": line.label,
        "arm": line.arm,
        "measure": line.measure,
        "less": None if line.less is None else list(line.less),
        "source": line.source,
        "value": mean,
        "low": low,
        "high": high,
        "n": n,
        "by_seed": dict(zip(map(str, seeds), values, strict=True)),
        "chance": found[0].chance if line.less is None else None,
        "wanted": "" if wanted is None else str(wanted),
        "verdict": "info" if wanted is None else "pass" if _holds(wanted, values) else "fail",
    }


def _holds(wanted: Wanted, values: Sequence[float]) -> bool:
    if wanted.errors is None:
        return all(map(wanted.met, values))
    if len(values) < 2:
        return False
    error = statistics.stdev(values) / math.sqrt(len(values))
    assert wanted.at_most is not None
    return statistics.fmean(values) + wanted.errors * error < wanted.at_most


def _together(found: Sequence[ProbeResult]) -> tuple[float, float | None, float | None, int]:
    """Value, interval and n over the seeds: trials pooled where they are counted, else the mean with Student's t."""
    if all("hits" in result.details for result in found):
        pooled = Proportion(sum(r.details["hits"] for r in found), sum(r.n or 0 for r in found))
        return pooled.rate, pooled.low, pooled.high, pooled.n
    return *_mean([result.value for result in found], found[0]), sum(result.n or 0 for result in found)


def _mean(values: Sequence[float], single: ProbeResult | None) -> tuple[float, float | None, float | None]:
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        low, high = (single.low, single.high) if single is not None else (None, None)
        return mean, low, high
    if not all(map(math.isfinite, values)):
        return mean, None, None
    half = t95(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def _curve(curve: Curve, seeds: Sequence[int], cells: Cells) -> dict[str, Any]:
    series = []
    for name, points in curve.points.items():
        found = [_together([cells[arm, seed][measure] for seed in seeds]) for arm, measure, _ in points]
        series.append(
            {
                "name": name,
                "x": [x for _, _, x in points],
                "y": [value for value, *_ in found],
                "low": [value if low is None else low for value, low, _, _ in found],
                "high": [value if high is None else high for value, _, high, _ in found],
            }
        )
    return {
        "title": curve.title, "x_label": curve.x_label, "y_label": curve.y_label, "log_x": curve.log_x,
        "share": curve.share, "series": series,
    }  # fmt: skip
