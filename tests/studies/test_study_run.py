"""Running a study: cells are kept, folders are not mixed up, and how it comes out decides the exit code."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from groundthink import report
from groundthink.cli import main
from groundthink.cli.study import MISSED
from groundthink.errors import ConfigError, GroundThinkError
from groundthink.records import ProbeResult, Proportion
from groundthink.studies import registry
from groundthink.studies import run as study_run
from groundthink.studies.run import plan_of, run_study
from groundthink.studies.study import Curve, Interrupted, Line, Size, Study, Wanted, Work, number, share
from groundthink.training.config import DataConfig


@dataclasses.dataclass(frozen=True)
class Settings:
    hits: int = 9


class Bench:
    """A study without training that counts how often each cell was done."""

    def __init__(self) -> None:
        self.done: list[tuple[str, int]] = []
        self.stop_at: tuple[str, int] | None = None

    def arm(self, name: str) -> Any:
        def measure(work: Work) -> Iterator[ProbeResult]:
            if (name, work.seed) == self.stop_at:
                raise Interrupted("SIGTERM")
            self.done.append((name, work.seed))
            yield share("right", Proportion(work.settings.hits, 10), chance=0.1)
            yield number("drawn", float(torch.rand(())), n=1)

        return measure

    def study(self, hits: int = 9) -> Study:
        size = Size(seeds=2, settings=Settings(hits), cost="nothing")
        wanted = dict.fromkeys(("full", "quick"), Wanted(at_least=0.9))
        curve = Curve(
            title="<b>right</b>", x_label="x", y_label="share", points={"a": (("a", "right", 1.0), ("b", "right", 2.0))}
        )
        return Study(
            name="made-up",
            question="Is <i>it</i> right?",
            origin="nobody",
            sizes=dict.fromkeys(("full", "quick", "smoke"), size),
            arms={"a": self.arm("a"), "b": self.arm("b")},
            lines=(
                Line(label="right", arm="a", measure="right", source="0 %", wanted=wanted),
                Line(label="drawn", arm="b", measure="drawn"),
            ),
            curves=(curve,),
        )


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench()
    put(monkeypatch, made.study())
    return made


def put(monkeypatch: pytest.MonkeyPatch, study: Study) -> None:
    """Register a study."""
    module = ModuleType("groundthink.studies.made_up")
    module.STUDY = study  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(registry.STUDIES, "made-up", "made_up")


def run(folder: Path, **options: Any) -> Any:
    return run_study(plan_of("made-up", "full", folder, **options), on_stage=lambda text: None)


def test_finished_cells_are_not_done_again(bench: Bench, tmp_path: Path) -> None:
    first = run(tmp_path / "s")
    assert bench.done == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert run(tmp_path / "s")["lines"] == first["lines"]
    assert len(bench.done) == 4
    (tmp_path / "s" / "cells" / "b.seed1.json").unlink()
    assert run(tmp_path / "s", seeds=3)["lines"][0]["n"] == 30
    assert bench.done[4:] == [("b", 1), ("a", 2), ("b", 2)]
    assert {"hardware", "commits", "provenance", "seconds", "settings"} <= set(first)


def test_a_stopped_study_goes_on(bench: Bench, tmp_path: Path) -> None:
    bench.stop_at = ("a", 1)
    assert run(tmp_path / "s") is None
    assert not (tmp_path / "s" / "records").exists()
    bench.stop_at = None
    assert run(tmp_path / "s")["verdict"] == "pass"
    assert sorted(bench.done) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


def test_cells_of_other_settings_are_never_mixed_in(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run(tmp_path / "s")
    put(monkeypatch, bench.study(hits=5))
    with pytest.raises(ConfigError, match="another study or other settings"):
        run(tmp_path / "s")
    (tmp_path / "s" / "plan.json").unlink()
    with pytest.raises(ConfigError, match="is not empty and holds no study"):
        run(tmp_path / "s")


def test_a_damaged_cell_is_named(bench: Bench, tmp_path: Path) -> None:
    run(tmp_path / "s")
    path = tmp_path / "s" / "cells" / "a.seed0.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ConfigError, match=r"a\.seed0\.json.*delete it"):
        run(tmp_path / "s")


def test_bad_plans_are_refused(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        plan_of("made-up", "full", tmp_path, jobs=0)
    with pytest.raises(ConfigError, match="reads no text"):
        plan_of("made-up", "full", tmp_path, data=DataConfig(corpus=("x",)))
    with pytest.raises(ConfigError, match=r"no study 'key-bonk'.*did you mean key-bank"):
        plan_of("key-bonk", "full", tmp_path)


def test_the_command_line_prints_records_and_judges(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    assert main.main(["study", "made-up", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "0 %" in out
    assert "0.699" in out  # the lower end of 18 of 20
    page = (tmp_path / "runs" / "study-made-up" / "report.html").read_text(encoding="utf8")
    assert "Is &lt;i&gt;it&lt;/i&gt; right?" in page
    assert "<svg" in page
    assert 'class="missing"' not in page
    put(monkeypatch, bench.study(hits=5))
    assert main.main(["study", "made-up", "--quick", "--device", "cpu"]) == MISSED
    assert main.main(["study", "made-up", "--smoke", "--device", "cpu"]) == 0  # nothing is judged there
    record = json.loads((tmp_path / "runs" / "study-made-up-quick" / "records" / "study.json").read_text())
    assert (record["verdict"], record["seeds"]) == ("fail", [0, 1])


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["made-op"], "did you mean made-up"),
        (["made-up", "--quick", "--smoke"], "exclude each other"),
        (["made-up", "--corpus", "x"], "reads no text"),
        (["made-up", "--jobs", "0"], "at least 1"),
    ],
)
def test_bad_flags_are_one_line(
    bench: Bench,
    words: list[str],
    part: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.main(["study", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert part in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_without_a_name_all_studies_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["study"]) == 0
    out = capsys.readouterr().out
    for name in registry.STUDIES:
        assert f"{name}\n" in out
        assert registry.find(name).question in out


def test_a_damaged_table_is_named_by_the_page(bench: Bench, tmp_path: Path) -> None:
    run(tmp_path / "s")
    path = tmp_path / "s" / "records" / "study.json"
    raw = json.loads(path.read_text())
    raw["lines"][0]["value"] = "all of it"
    path.write_text(json.dumps(raw))
    with pytest.raises(GroundThinkError, match=r"study\.json, field lines\[0\], field value"):
        report.build(tmp_path / "s")


def test_processes_side_by_side_find_the_same(tmp_path: Path) -> None:
    """Three cells in processes of their own, two at a time; one that cannot write is named, the others are kept."""
    folder = tmp_path / "s"
    plan = plan_of("key-bank", "smoke", folder, seeds=1, jobs=2)
    blocked = folder / "cells" / "random-keys.seed0.json"
    blocked.mkdir(parents=True)
    digest = registry.find("key-bank").digest("smoke", plan.data)
    (folder / "plan.json").write_text(json.dumps({"study": "key-bank", "size": "smoke", "digest": digest}))
    with pytest.raises(GroundThinkError, match=r"1 of 3 cells could not be done: random keys, seed 0"):
        run_study(plan, on_stage=lambda text: None)
    blocked.rmdir()
    said: list[str] = []
    found = run_study(plan, on_stage=said.append)
    assert said[0] == "2 of 3 cells are done already"
    alone = run_study(plan_of("key-bank", "smoke", tmp_path / "t", seeds=1), on_stage=lambda text: None)
    assert [line["value"] for line in found["lines"]] == [line["value"] for line in alone["lines"]]


def test_cells_are_spread_over_all_cards(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cards, three at a time: the fourth cell goes where the first of them has ended."""
    asked: list[int | None] = []

    class Ended:
        exitcode = 0

        def join(self) -> None: ...

    def start(_plan: Any, _cell: Any, _digest: str, card: int | None) -> tuple[Any, Any]:
        asked.append(card)
        mine, theirs = multiprocessing.Pipe(duplex=False)
        open_ends.append(theirs)
        if len(asked) == 3:
            open_ends[1].send(("done", 1.0))  # the one on the second card
        if len(asked) == 4:
            for end in (open_ends[0], *open_ends[2:]):
                end.send(("done", 1.0))
        return mine, Ended()

    open_ends: list[Any] = []
    monkeypatch.setattr(study_run, "_start", start)
    monkeypatch.setattr(study_run, "choose_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    plan = plan_of("made-up", "full", tmp_path / "s", device="cuda", jobs=3)
    cells = [study_run.Cell(arm, seed) for seed in (0, 1) for arm in ("a", "b")]
    assert study_run._side_by_side(plan, cells, "digest", lambda text: None, None)
    assert asked == [0, 1, 0, 1]
    assert study_run.idlest(0, []) is None  # a CPU has none


def test_some_arms_can_be_done_first(bench: Bench, tmp_path: Path) -> None:
    """The table says what can be said of them; the others follow in the same folder and nothing is done twice."""
    record = run_study(plan_of("made-up", "full", tmp_path / "s", arms=["a"]), on_stage=lambda text: None)
    assert bench.done == [("a", 0), ("a", 1)]
    assert record["arms"] == ["a"]
    assert [line["label"] for line in record["lines"]] == ["right"]
    assert record["curves"] == []  # it needs both
    whole = run_study(plan_of("made-up", "full", tmp_path / "s"), on_stage=lambda text: None)
    assert sorted(bench.done) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert [line["label"] for line in whole["lines"]] == ["right", "drawn"]


def test_arms_that_there_are_not_and_arms_that_say_nothing_alone_are_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"no arm 'c'.*the arms are: a; b"):
        plan_of("made-up", "full", tmp_path / "s", arms=["a", "c"])
    lines = (Line(label="less", arm="a", measure="right", less=("b", "right")),)
    put(monkeypatch, dataclasses.replace(bench.study(), lines=lines, curves=()))
    with pytest.raises(ConfigError, match="every line of 'a' needs another arm"):
        plan_of("made-up", "full", tmp_path / "s", arms=["a"])
    assert not (tmp_path / "s").exists()
