"""A resumed run is the run that never stopped, to the bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_stand_ins import TinyModel, TinySource, config, evidence, sources

from groundthink.training import load_checkpoint, resume, train
from groundthink.training.run import Run

RECALL = {"source": "kv_recall", "weight": 0.4}
RUNS: dict[str, list[dict[str, Any]]] = {
    "plain": [{}],
    "phases": [{"steps": 10, "warmup_steps": 3}, {"steps": 10, "mix": [{"weight": 1.0}, RECALL]}],
    "inside a phase": [{"steps": 13, "model_options": {"drop_prob": 0.6}}, {"steps": 7}],
    "accumulation": [{"accumulate": 4, "mix": [{}, RECALL]}],
    "state passing": [{"state_passing": True, "accumulate": 2, "mix": [{}, RECALL]}],
}


def tensors(run: Path, step: int) -> dict[str, Tensor]:
    found = load_checkpoint(run / "checkpoints" / f"step_{step:08d}")
    return {**found.model, **found.optimizer, **{f"carried {k}": v for k, v in found.carried.items()}}


def same(a: Path, b: Path, step: int = 20) -> bool:
    mine, theirs = tensors(a, step), tensors(b, step)
    equal = mine.keys() == theirs.keys() and all(torch.equal(x, theirs[name]) for name, x in mine.items())
    return equal and evidence(a) == evidence(b)


@pytest.mark.parametrize("name", RUNS)
def test_resuming_changes_no_bit(tmp_path: Path, name: str) -> None:
    run = config(*RUNS[name], evaluate_every=4)
    train(run, tmp_path / "whole", model=TinyModel(), sources=sources)
    train(run, tmp_path / "parts", model=TinyModel(), sources=sources, stop_at=10)
    for stop in (14, None):  # resumed twice
        torch.manual_seed(99)  # whatever the process did before
        result = resume(tmp_path / "parts", model=TinyModel(seed=5), sources=sources, stop_at=stop)
    assert result.finished
    assert same(tmp_path / "whole", tmp_path / "parts")
    assert len([e for e in evidence(tmp_path / "parts") if e["event"] == "step"]) == 20
    if name == "state passing":
        # At the end the streams are done; while they run they are part of the checkpoint.
        assert not [key for key in tensors(tmp_path / "parts", 20) if key.startswith("carried")]
        assert [key for key in tensors(tmp_path / "parts", 14) if key.startswith("carried")]


def test_resuming_after_a_kill_repeats_the_lost_steps(tmp_path: Path) -> None:
    """The events of steps after the checkpoint are in the file twice, and count once."""
    run = config({}, checkpoint_every=8)
    train(run, tmp_path / "whole", model=TinyModel(), sources=sources)

    def die(event: dict[str, Any], model: Any) -> None:
        if event["event"] == "step" and event["step"] == 13:
            raise MemoryError

    with pytest.raises(MemoryError):
        train(run, tmp_path / "parts", [die], model=TinyModel(), sources=sources)
    with (tmp_path / "parts" / "events.jsonl").open("a") as stream:
        stream.write('{"event": "step", "ste')  # the kill cut a line
    resume(tmp_path / "parts", model=TinyModel(), sources=sources)
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_resuming_a_finished_run_does_nothing(tmp_path: Path) -> None:
    train(config({"steps": 3}), tmp_path / "run", model=TinyModel(), sources=sources)
    before = (tmp_path / "run" / "events.jsonl").read_bytes()
    result = resume(tmp_path / "run", model=TinyModel(seed=1), sources=sources)
    assert (result.finished, result.step, result.reason) == (True, 3, "done")
    assert (tmp_path / "run" / "events.jsonl").read_bytes() == before


class OwnDice(TinyModel):
    """Draws its dropout from a generator that nobody saves."""

    def __init__(self) -> None:
        super().__init__()
        self.dice = torch.Generator().manual_seed(3)

    def hidden(self, tokens: Tensor, snapshot: Any) -> Any:
        x, after = super().hidden(tokens, snapshot)
        keep = torch.rand(x.shape, generator=self.dice) > 0.3
        return (x * keep if self.training else x), after


def test_a_model_with_hidden_randomness_is_caught(tmp_path: Path) -> None:
    """Planted fault: the comparison above sees a random state that the checkpoint does not hold."""
    train(config({}), tmp_path / "whole", model=OwnDice(), sources=sources)
    train(config({}), tmp_path / "parts", model=OwnDice(), sources=sources, stop_at=10)
    resume(tmp_path / "parts", model=OwnDice(), sources=sources)
    assert not same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("lost", ["carry", "moments", "phase"])
def test_anything_forgotten_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    """Planted faults: what a careless restore would leave out."""
    run = config({"state_passing": True, "steps": 12}, {"steps": 8})
    train(run, tmp_path / "whole", model=TinyModel(), sources=sources)
    train(run, tmp_path / "parts", model=TinyModel(), sources=sources, stop_at=10)
    real = Run.restore

    def forgetful(self: Run, checkpoint: Any) -> None:
        real(self, checkpoint)
        if lost == "carry":
            self.carry = {}
        if lost == "moments":
            self.optimizer.state.clear()
        if lost == "phase":
            self.progress = dataclasses.replace(self.progress, step_in_phase=9)

    monkeypatch.setattr(Run, "restore", forgetful)
    resume(tmp_path / "parts", model=TinyModel(), sources=sources)
    final = 21 if lost == "phase" else 20
    assert (tmp_path / "parts" / "checkpoints" / f"step_{final:08d}").exists()
    assert lost == "phase" or not same(tmp_path / "whole", tmp_path / "parts")


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    for seed in (0, 1):
        train(config({"steps": 4}, seed=seed), tmp_path / str(seed), model=TinyModel(), sources=sources)
    assert not same(tmp_path / "0", tmp_path / "1", step=4)


def test_data_that_changed_are_refused(tmp_path: Path) -> None:
    from groundthink.errors import CheckpointError

    train(config({}), tmp_path / "run", model=TinyModel(), sources=sources, stop_at=2)
    with pytest.raises(CheckpointError, match="p0/text"):
        resume(tmp_path / "run", model=TinyModel(), sources=lambda item: TinySource(fingerprint="other"))
