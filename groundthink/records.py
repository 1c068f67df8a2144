"""What everything measures and writes: plain values, JSON, files that are whole or absent. No torch."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


@dataclasses.dataclass(frozen=True)
class Proportion:
    """`hits` of `n`, with its Wilson 95 % interval.

    >>> Proportion(95, 100).low > 0.88
    True
    """

    hits: int
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.hits <= self.n:
            raise ValueError(f"{self.hits} hits of {self.n} do not add up")

    @property
    def rate(self) -> float:
        """Share of hits; NaN without trials."""
        return self.hits / self.n if self.n else math.nan

    @property
    def low(self) -> float:
        """Lower Wilson 95 % bound; 0 without trials."""
        return self._wilson()[0]

    @property
    def high(self) -> float:
        """Upper Wilson 95 % bound; 1 without trials."""
        return self._wilson()[1]

    def _wilson(self) -> tuple[float, float]:
        if not self.n:
            return 0.0, 1.0
        p, z2 = self.rate, Z95 * Z95 / self.n
        centre = (p + z2 / 2) / (1 + z2)
        half = Z95 / (1 + z2) * math.sqrt(p * (1 - p) / self.n + z2 / (4 * self.n))
        # At 0 and n hits the bounds are exactly 0 and 1; rounding would leave 1e-17.
        low = 0.0 if self.hits == 0 else max(0.0, centre - half)
        high = 1.0 if self.hits == self.n else min(1.0, centre + half)
        return low, high

    def as_dict(self) -> dict[str, float]:
        """All five numbers, for a record."""
        return {"hits": self.hits, "n": self.n, "rate": self.rate, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        return f"{self.rate:.3f} [{self.low:.3f}, {self.high:.3f}] n={self.n}"


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """The answer of one probe: a number, what it was held against, and what that means.

    Attributes:
        name: the probe, with its setting (`recall@2R`).
        value: the headline number.
        verdict: `pass`, `fail` or `info` (nothing was asked of it).
        meaning: one sentence a reader may quote.
        low, high: 95 % interval of `value`, where it has one.
        n: trials behind `value`.
        chance: what guessing would score, where guessing is possible.
        threshold: what `value` (or the bound named in `meaning`) was held against.
        details: further numbers, JSON only.
    """

    name: str
    value: float
    verdict: str
    meaning: str
    low: float | None = None
    high: float | None = None
    n: int | None = None
    chance: float | None = None
    threshold: float | None = None
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.verdict not in ("pass", "fail", "info"):
            raise ValueError(f"verdict {self.verdict!r} is not pass, fail or info")


@dataclasses.dataclass(frozen=True)
class Certificate:
    """Probe results, one verdict, one sentence. `result` part only depends on model and seed.

    Attributes:
        verdict: INVALID, TASK-FAIL, REFUTED, NOT-PROVEN, PARTIAL or CERTIFIED.
        sentence: what a reader may quote.
        horizon: receptive horizon R in tokens; None if infinite.
        results: the probes, in the order they were run.
        seed: seed of every episode.
        provenance: see `provenance()`; not part of the result.
        lengths: for each certified length its `point`, `length`, `verdict` and `reason`; empty in old records.
        statements: what else may be said, by name (`CERTIFIED-BY-HORIZON`, `CAUSALLY-SUPPORTED`): `holds`, `because`.
        setting: what was asked and what was not: rows, n, chance levels, p after Holm's correction, notes.
    """

    verdict: str
    sentence: str
    horizon: int | None
    results: tuple[ProbeResult, ...]
    seed: int
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    lengths: tuple[dict[str, Any], ...] = ()
    statements: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    setting: dict[str, Any] = dataclasses.field(default_factory=dict)

    def result(self, name: str) -> ProbeResult:
        """The probe result called `name`; KeyError if it was not run."""
        for item in self.results:
            if item.name == name:
                return item
        raise KeyError(name)


def to_json(value: Any) -> str:
    """JSON text of a record: sorted keys, NaN and infinity as null, dataclasses as objects."""
    return json.dumps(_plain(value), indent=1, sort_keys=True, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Proportion):
        return value.as_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def certificate_from_dict(raw: dict[str, Any]) -> Certificate:
    """The inverse of `to_json` for certificates.

    Raises:
        ValueError: a field is missing or unknown.
    """
    try:
        results = tuple(ProbeResult(**item) for item in raw["results"])
        return Certificate(**{**raw, "results": results, "lengths": tuple(raw.get("lengths", ()))})
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a certificate: {error}") from error


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write a file so that it is there whole or not at all, even when the disk fills up or power fails.

    Raises:
        OSError: nothing could be written; an earlier file of that name is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def command_line() -> str:
    """How this process was called; absolute paths, which mean nothing elsewhere, by their last part alone."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return " ".join(Path(word).name if word.startswith(("/", "~")) else word for word in words)


@functools.cache
def provenance() -> dict[str, Any]:
    """Where a number comes from: commit, versions, machine, command. The same within one process."""
    versions = {}
    for name in ("groundthink", "torch", "transformers", "triton", "flash-linear-attention", "numpy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **versions},
        "hardware": f"{_processor()}, {os.cpu_count()} cores",
        "command": command_line(),
    }


def _commit() -> str:
    """Commit of this source tree, `+changes` if it was edited, `unknown` outside git."""
    root = Path(__file__).resolve().parent.parent
    try:
        # Without this check a package installed into somebody else's repository would report their commit.
        if not (root / ".git").exists():
            return "unknown"
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()
        edited = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}+changes" if edited else head


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
