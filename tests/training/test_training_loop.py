"""Phases, decisions, events, faults, stops and refusals of a whole run."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_stand_ins import TinyModel, TinySource, config, sources

from groundthink.errors import CheckpointError, ConfigError, DataError, GroundThinkError
from groundthink.training import EventLog, MixItem, load_checkpoint, load_recipe, read_events, resume, train
from groundthink.training import events as events_module
from groundthink.training import loop as loop_module

TEXT_UP = {"metric": "text.exact", "at_least": 0.9}


def run(folder: Path, *phases: dict[str, Any], source: TinySource | None = None, **fields: Any) -> Any:
    """Train the stand-in; `source` serves every item."""
    factory: Callable[[MixItem], TinySource] = sources if source is None else (lambda item: source)
    return train(config(*phases, **fields), folder, model=TinyModel(), sources=factory)


def of_kind(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(folder) if event["event"] == kind]


def ends(folder: Path) -> list[tuple[str, int]]:
    return [(e["reason"], e["steps"]) for e in of_kind(folder, "phase") if e["action"] == "end"]


def test_a_run_learns_and_leaves_evidence(tmp_path: Path) -> None:
    seen: list[str] = []
    hooked: list[nn.Module] = []
    result = train(
        config({"steps": 150}, optimizer={"learning_rate": 0.05}, log_every=50, evaluate_every=75),
        tmp_path / "r",
        [lambda event, model: hooked.append(model)],
        on_event=lambda event: seen.append(event["event"]),
        model=TinyModel(dropout=0.0),
        sources=sources,
    )
    assert result.finished
    assert (result.step, result.tokens, result.reason) == (150, 150 * 72, "done")
    steps = of_kind(tmp_path / "r", "step")
    assert [e["step"] for e in steps] == [50, 100, 150]
    assert steps[-1]["loss"] < 0.8 * steps[0]["loss"]
    assert result.metrics["text.accuracy"] > 0.5
    evaluations = of_kind(tmp_path / "r", "evaluation")
    assert [e["step"] for e in evaluations] == [75, 150]
    assert evaluations[0]["intervals"]["text.exact"] == [-0.1, 0.1, 200]
    assert seen == [json.loads(line)["event"] for line in (tmp_path / "r/events.jsonl").read_text().splitlines()]
    assert seen[0] == "start"
    assert seen[-1] == "done"
    assert len(hooked) == len(seen)
    assert hooked[0] is result.model
    assert not result.model.training
    assert load_recipe(tmp_path / "r/config.yaml").digest == of_kind(tmp_path / "r", "start")[0]["config_digest"]


def test_a_threshold_ends_a_phase_after_patience(tmp_path: Path) -> None:
    source = TinySource(values=(0.95, 0.2, 0.95, 0.95, 0.0))
    phases = {"advance": [{**TEXT_UP, "patience": 2, "n": 33}], "steps": 20}, {"steps": 3}
    run(tmp_path / "r", *phases, source=source, evaluate_every=2)
    assert ends(tmp_path / "r") == [("threshold", 8), ("cap", 3)]
    assert {n for n, _ in source.asked[:4]} == {33}
    assert len({seed for _, seed in source.asked}) == 1  # always the same validation episodes
    assert [e["phase"] for e in of_kind(tmp_path / "r", "step")] == ["p0"] * 8 + ["p1"] * 3


def test_a_threshold_that_is_not_met_is_said(tmp_path: Path) -> None:
    run(tmp_path / "r", {"advance": [TEXT_UP], "steps": 5}, evaluate_every=2)
    assert ends(tmp_path / "r") == [("cap", 5)]
    assert of_kind(tmp_path / "r", "phase")[-1]["unmet"] == ["text.exact"]


def test_all_thresholds_must_hold_and_an_upper_bound_works(tmp_path: Path) -> None:
    bounds = [{"metric": "text.exact", "at_most": 0.5}, {"metric": "kv_recall.exact", "at_most": -1.0}]
    run(
        tmp_path / "r",
        {"advance": bounds, "steps": 6, "mix": [{}, {"source": "kv_recall"}]},
        {"advance": bounds[:1], "steps": 6},
        evaluate_every=2,
    )
    assert ends(tmp_path / "r") == [("cap", 6), ("threshold", 2)]


def test_a_threshold_on_a_metric_that_nobody_measures(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'text\.exakt' was not measured.*text\.exact"):
        run(tmp_path / "r", {"advance": [{"metric": "text.exakt", "at_least": 1}]}, evaluate_every=2)


def test_a_phase_ends_in_time(tmp_path: Path) -> None:
    run(tmp_path / "r", {"steps": 10**6, "max_seconds": 0.2}, log_every=1)
    [(reason, steps)] = ends(tmp_path / "r")
    assert reason == "time"
    assert steps < 10**5
    rates = [e["learning_rate"] for e in of_kind(tmp_path / "r", "step")]
    assert rates[-1] < 0.3 * rates[0]  # the cosine followed the clock


def test_knobs_belong_to_their_phase(tmp_path: Path) -> None:
    seen = []
    knob = {"model_options": {"drop_prob": 0.7}}
    result = train(
        config({"steps": 2, **knob}, {"steps": 2}, {"steps": 1, **knob}),
        tmp_path / "r",
        [lambda event, model: seen.append((event["event"], model.drop_prob))],
        model=TinyModel(dropout=0.3),
        sources=sources,
    )
    assert [p for name, p in seen if name == "step"] == [0.7, 0.7, 0.3, 0.3, 0.7]
    assert result.model.drop_prob == 0.3


def test_a_full_disk_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(loop_module, "write_whole", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        run(tmp_path / "r", {})
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("bad", ["knob", "role", "source", "file"])
def test_what_is_refused_writes_nothing(tmp_path: Path, bad: str) -> None:
    model = TinyModel()
    options = {"model_options": {"ghost_prob": 0.1}} if bad == "knob" else {}
    if bad == "role":
        model.extra = nn.Parameter(torch.zeros(1))

    def refuse(item: MixItem) -> TinySource:
        raise DataError("nothing there")

    if bad == "file":
        (tmp_path / "r").write_text("mine")
    with pytest.raises(GroundThinkError):
        train(config(options), tmp_path / "r", model=model, sources=refuse if bad == "source" else sources)
    assert [p.name for p in tmp_path.iterdir()] == (["r"] if bad == "file" else [])


@pytest.mark.parametrize("name", ["config.yaml", "events.jsonl", "checkpoints"])
def test_a_run_is_never_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=r"holds a run already.*resume it, or choose another name"):
        run(tmp_path, {})
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(name, "mine")]


def test_cuda_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="set device to cpu or auto"):
        run(tmp_path / "r", {}, device="cuda")


class Faulty(TinyModel):
    """Its loss is infinite in some of the steps."""

    def __init__(self, steps: set[int]) -> None:
        super().__init__()
        self.bad, self.step = steps, 0

    def loss(self, *arguments: Any, **options: Any) -> Any:
        total, valid, snapshot = super().loss(*arguments, **options)
        self.step += 1
        return (total / 0 if self.step in self.bad else total), valid, snapshot


def test_faulty_steps_are_skipped_and_logged(tmp_path: Path) -> None:
    run_config = config({"steps": 8, "state_passing": True}, max_skips=3)
    result = train(run_config, tmp_path / "r", model=Faulty({2, 5, 6}), sources=sources)
    faults = of_kind(tmp_path / "r", "fault")
    assert [(e["step"], e["in_a_row"], e["action"]) for e in faults] == [
        (2, 1, "skip"),
        (5, 1, "skip"),
        (6, 2, "skip"),
    ]
    assert "loss of text is not finite" in faults[0]["what"]
    assert all(torch.isfinite(p).all() for p in result.model.parameters())
    assert of_kind(tmp_path / "r", "done")[0]["skips"] == 3
    found = load_checkpoint(tmp_path / "r/checkpoints/step_00000008")
    assert found.optimizer["step/mix.bias"].item() == 5  # three steps were not taken


def test_a_run_that_cannot_go_on_says_so(tmp_path: Path) -> None:
    run_config = config({"steps": 30}, max_skips=3, checkpoint_every=4)
    with pytest.raises(GroundThinkError, match=r"step 8, phase p0: 3 steps in a row.*Fix: lower the learning rate"):
        train(run_config, tmp_path / "r", model=Faulty(set(range(6, 40))), sources=sources)
    assert of_kind(tmp_path / "r", "fault")[-1]["action"] == "stop"
    assert [p.name for p in (tmp_path / "r/checkpoints").iterdir()] == ["step_00000004"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def send(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 3:
            os.kill(os.getpid(), number)

    result = train(config({}), tmp_path / "r", on_event=send, model=TinyModel(), sources=sources)
    assert (result.finished, result.reason, result.step) == (False, number.name, 3)
    assert [p.name for p in (tmp_path / "r/checkpoints").iterdir()] == ["step_00000003"]
    assert of_kind(tmp_path / "r", "stop")[0]["reason"] == number.name
    assert signal.getsignal(number) is before
    assert resume(tmp_path / "r", model=TinyModel(), sources=sources).finished


def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    def send(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(config({}), tmp_path / "r", on_event=send, model=TinyModel(), sources=sources)


# --- events ------------------------------------------------------------------------------------------------


def test_events_are_json_even_when_a_number_is_not(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.write("x", step=1, value=float("nan"), deep={"a": [float("inf"), 2.5]})
    assert read_events(tmp_path) == [{"event": "x", "step": 1, "value": None, "deep": {"a": [None, 2.5]}}]


def test_a_cut_line_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"event": "a", "step": 1}\n[3]\n{"event": "b", "st')
    EventLog(tmp_path).write("c", step=2)
    assert [event["event"] for event in read_events(tmp_path)] == ["a", "c"]


def test_what_a_resume_repeats_counts_once(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    for step in (1, 2, 3):
        log.write("step", step=step, loss=float(step))
    log.write("resume", step=1)
    log.write("step", step=2, loss=9.0)
    kept = [(e["event"], e["step"], e.get("loss")) for e in read_events(tmp_path)]
    assert kept == [("step", 1, 1.0), ("resume", 1, None), ("step", 2, 9.0)]


def test_no_events(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no events\.jsonl"):
        read_events(tmp_path)


def test_a_full_disk_under_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(tmp_path)
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"No space left on device.*free space, then resume"):
        log.write("x", step=1)
    assert events_module.EVENTS == "events.jsonl"
