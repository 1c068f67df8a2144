"""The demo: its twins are fair, its records are all there, and it does learn what it claims."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from groundthink import report
from groundthink.errors import ConfigError
from groundthink.model import ModelConfig, parameter_count
from groundthink.records import Certificate
from groundthink.studies.demo import NO_READ, WINDOW_ONLY, plan, run_demo
from groundthink.training import load, load_recipe

TINY = [
    *("model.d_model=16", "model.d_ff=16", "model.n_heads=1", "model.head_dim=8", "model.value_dim=8"),
    *("phases[0].steps=1", "phases[0].rows=4", "phases[1].steps=1", "phases[1].rows=7", "evaluation_n=1"),
]


@contextlib.contextmanager
def hidden(place: str, config: Any) -> Iterator[Any]:
    """A display that shows nothing."""
    del place, config
    yield type("Nothing", (), {"on_event": staticmethod(lambda event: None)})


def demo(folder: Path, n: int, overrides: list[str]) -> Certificate:
    found = run_demo(folder, n=n, overrides=overrides, display=hidden, on_stage=lambda text: None)
    assert isinstance(found, Certificate)
    return found


def test_the_twins_are_fair() -> None:
    """Same phases and rows for the no-read twin, half the language, parameters within 2 %, G reading its own memory."""
    found = plan()
    model, no_read, window_only = (found[key] for key in (".", f"twins/{NO_READ}", f"twins/{WINDOW_ONLY}"))
    sizes = [ModelConfig.from_dict({"vocab_size": 512, **c.model}) for c in (model, no_read, window_only)]
    assert [s.layers for s in sizes] == ["GS", "GA", "AA"]
    assert len({s.horizon for s in sizes}) == 1
    for twin in sizes[1:]:
        assert abs(parameter_count(twin) / parameter_count(sizes[0]) - 1) < 0.02
    plain = [dataclasses.replace(phase, model_options={}, steps=0) for phase in model.phases]
    assert [dataclasses.replace(phase, model_options={}, steps=0) for phase in no_read.phases] == plain
    (bootcamp, language), (same, half) = ([phase.steps for phase in c.phases] for c in (model, no_read))
    assert (same, 2 * half) == (bootcamp, language)  # said on every page; equal tokens are in docs/log.md
    assert all(phase.model_options == {"own_read_drop_prob": 0.0} for phase in no_read.phases)
    assert no_read.optimizer == model.optimizer


def test_every_record_is_left_and_the_page_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    certificate = demo(folder, 100, TINY)
    assert certificate.verdict == "TASK-FAIL"  # one step teaches nothing
    names = ["certificate", "gates", "language", "needle", "recall_curves", "sample", "summary"]
    assert sorted(path.stem for path in (folder / "records").glob("*.json")) == names
    page = report.build(folder).read_text(encoding="utf8")
    assert 'class="missing"' not in page
    for twin in (NO_READ, WINDOW_ONLY):
        assert load(folder / "twins" / twin).sizes.vocab_size == 512
    before = (folder / "records" / "certificate.json").read_bytes()
    with pytest.raises(ConfigError, match="finished demo"):
        demo(folder, 100, TINY)
    assert (folder / "records" / "certificate.json").read_bytes() == before


@pytest.mark.slow
def test_the_recipe_reads_its_memory_by_another_layer_than_the_writer(tmp_path: Path) -> None:
    """On a tenth of the language: recall falls to chance without S reads and holds without G's own reads."""
    certificate = demo(tmp_path / "demo", 200, ["phases[1].steps=55"])
    rows = {row.name: row for row in certificate.results}
    chance = 1 / 16
    assert certificate.verdict == "CERTIFIED", certificate.sentence
    for point in ("R+1", "2R", "8R"):
        assert (rows[f"recall@{point}"].low or 0) >= 0.90
        assert (rows[f"recall@{point}/own-reads-cut"].low or 0) >= 0.90
        assert (rows[f"recall@{point}/S-reads-cut"].high or 1) <= chance + 0.03
    written = json.loads((tmp_path / "demo" / "records" / "certificate.json").read_text())
    assert written["verdict"] == "CERTIFIED"


def test_the_recipe_of_the_demo_is_the_one_shipped() -> None:
    assert plan(seed=3)["."] == load_recipe("demo", ["seed=3"])
