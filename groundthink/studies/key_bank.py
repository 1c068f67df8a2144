"""`key-bank`: with as many orthonormal keys as the memory has dimensions, nothing is lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from groundthink.probes.mechanics import orthonormal_keys, random_keys
from groundthink.records import ProbeResult
from groundthink.studies.study import Line, Size, Study, Wanted, Work, number
from groundthink.studies.writes import read_back, relative, values_of
from groundthink.training.run import choose_device

EXACT = Wanted(at_most=1e-5)


@dataclasses.dataclass(frozen=True)
class Settings:
    """K, V: sizes of keys and values; `writes` to the memory; `trials` of them for each seed."""

    key_dim: int = 64
    value_dim: int = 128
    writes: int = 64
    trials: int = 64


def _errors(work: Work, keys: torch.Tensor, values: torch.Tensor) -> Iterator[ProbeResult]:
    read = read_back(keys, values, device=choose_device(work.device))
    yield number("largest error", float((read - values).abs().max()), n=values.numel())
    yield number("mean relative error", float(relative(read, values).mean()), n=values.shape[0] * values.shape[1])


def bank(work: Work) -> Iterator[ProbeResult]:
    """Rows of an orthonormal basis as keys."""
    s, generator = work.settings, torch.Generator().manual_seed(work.seed)
    keys = orthonormal_keys(s.trials, s.writes, s.key_dim, generator=generator)
    yield from _errors(work, keys, values_of(s.trials, s.writes, s.value_dim, generator))


def rewritten(work: Work) -> Iterator[ProbeResult]:
    """Every key of the basis written twice: the later value must replace the earlier one without a trace."""
    s, generator = work.settings, torch.Generator().manual_seed(work.seed)
    keys = orthonormal_keys(s.trials, s.writes, s.key_dim, generator=generator).repeat(1, 2, 1)
    values = values_of(s.trials, 2 * s.writes, s.value_dim, generator)
    read = read_back(keys, values, device=choose_device(work.device))[:, : s.writes]
    later = values[:, s.writes :]
    yield number("largest error", float((read - later).abs().max()), n=later.numel())


def chance(work: Work) -> Iterator[ProbeResult]:
    """As many random unit keys: what the bank is for."""
    s, generator = work.settings, torch.Generator().manual_seed(work.seed)
    keys = random_keys(s.trials, s.writes, s.key_dim, generator=generator)
    yield from _errors(work, keys, values_of(s.trials, s.writes, s.value_dim, generator))


STUDY = Study(
    name="key-bank",
    question="Do 64 writes under orthonormal keys of 64 dimensions come back exactly?",
    origin="Source 001, the orthogonal key bank: mathematics alone, one seed.",
    sizes={size: Size(seeds=3, settings=Settings(), cost="a second") for size in ("full", "quick", "smoke")},
    arms={"orthonormal keys": bank, "orthonormal keys, twice": rewritten, "random keys": chance},
    lines=(
        Line(
            label="64 orthonormal writes at K 64: largest error of any entry (values have variance 1)",
            arm="orthonormal keys",
            measure="largest error",
            source="0",
            wanted=dict.fromkeys(("full", "quick", "smoke"), EXACT),
        ),
        Line(
            label="the same, relative to the value's length",
            arm="orthonormal keys",
            measure="mean relative error",
            source="0",
        ),
        Line(
            label="64 keys written twice: largest error against the later value",
            arm="orthonormal keys, twice",
            measure="largest error",
            wanted=dict.fromkeys(("full", "quick", "smoke"), EXACT),
        ),
        Line(
            label="64 random unit keys instead: mean relative error",
            arm="random keys",
            measure="mean relative error",
        ),
    ),
)
