"""Checkpoints are whole or absent, and nothing unverified is loaded."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_stand_ins import TinyModel, config, sources

from groundthink.errors import CheckpointError
from groundthink.training import checkpoint as module
from groundthink.training import latest_checkpoint, list_checkpoints, load_checkpoint, resume, train
from groundthink.training.checkpoint import restore, save_checkpoint
from groundthink.training.config import OptimizerConfig
from groundthink.training.optimizer import build_optimizer


def names(run: Path) -> list[str]:
    return sorted(p.name for p in (run / "checkpoints").iterdir())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints at 2 and 4."""
    train(
        config({"steps": 9}, checkpoint_every=2),
        tmp_path / "r",
        model=TinyModel(),
        sources=sources,
        stop_at=4,
    )
    return tmp_path / "r"


def save(run: Path, step: int, model: torch.nn.Module | None = None, keep_last: int = 0) -> Path:
    model = TinyModel() if model is None else model
    optimizer = build_optimizer(model, OptimizerConfig())
    return save_checkpoint(run, step=step, state={}, model=model, optimizer=optimizer, carried={}, keep_last=keep_last)


def test_what_a_checkpoint_holds(run: Path) -> None:
    assert names(run) == ["step_00000002", "step_00000004"]
    assert latest_checkpoint(run).name == "step_00000004"
    found = load_checkpoint(latest_checkpoint(run))
    assert sorted(p.name for p in found.path.iterdir()) == [
        "carried.safetensors",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    assert "head.weight" not in found.model  # tied to embed.weight, stored once
    assert found.optimizer["step/mix.bias"].item() == 4
    assert found.state["progress"]["step_in_phase"] == 4
    assert found.state["versions"]["torch"] == torch.__version__.partition("+")[0] or found.state["versions"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


DAMAGE: list[Callable[[Path], None]] = [truncate, flip, Path.unlink, lambda path: path.write_bytes(b"")]


@pytest.mark.parametrize("damage", DAMAGE, ids=["truncated", "flipped", "missing", "empty"])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "carried.safetensors"])
def test_damaged_tensors_are_refused(run: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(latest_checkpoint(run) / name)
    with pytest.raises(CheckpointError) as caught:
        resume(run, model=TinyModel(), sources=sources)
    text = str(caught.value)
    assert name in text
    assert "step_00000002" in text  # the way out
    assert "\n" not in text


@pytest.mark.parametrize("damage", [truncate, flip, lambda path: path.write_text("[]")], ids=["cut", "bit", "list"])
def test_a_damaged_state_is_refused(run: Path, damage: Callable[[Path], None]) -> None:
    damage(latest_checkpoint(run) / "state.json")
    with pytest.raises(CheckpointError, match=r"state\.json"):
        resume(run, model=TinyModel(), sources=sources)


def test_a_state_that_was_edited_is_refused(run: Path) -> None:
    path = latest_checkpoint(run) / "state.json"
    state = json.loads(path.read_text())
    state["progress"]["step"] = 1
    path.write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="changed"):
        load_checkpoint(path.parent)


def test_a_file_name_that_leaves_the_folder_is_refused(run: Path) -> None:
    path = latest_checkpoint(run) / "state.json"
    body = json.loads(path.read_text())
    del body["digest"]
    body["files"]["../../config.yaml"] = "0"
    path.write_text(json.dumps({**body, "digest": module._digest(body)}))
    with pytest.raises(CheckpointError, match="no file name"):
        load_checkpoint(path.parent)


def test_a_checkpoint_without_state_is_not_complete(run: Path) -> None:
    (latest_checkpoint(run) / "state.json").unlink()
    assert [p.name for p in list_checkpoints(run)] == ["step_00000002"]
    resume(run, model=TinyModel(), sources=sources)
    assert "step_00000004" in [p.name for p in list_checkpoints(run)]  # written anew in its place


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run"):
        resume(tmp_path)
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        resume(tmp_path)


def test_a_changed_config_is_refused(run: Path) -> None:
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("seed: 0", "seed: 1"))
    with pytest.raises(CheckpointError, match=r"config\.yaml is not the one"):
        resume(run, model=TinyModel(), sources=sources)


def test_another_model_is_refused_and_left_alone(run: Path) -> None:
    other = TinyModel(width=6)
    before = {name: x.clone() for name, x in other.state_dict().items()}
    with pytest.raises(CheckpointError, match="another model"):
        resume(run, model=other, sources=sources)
    assert all(torch.equal(x, before[name]) for name, x in other.state_dict().items())


@pytest.mark.parametrize("change", ["lacks", "adds", "dtype"])
def test_foreign_tensors_are_named(run: Path, change: str) -> None:
    found = load_checkpoint(latest_checkpoint(run))
    if change == "lacks":
        del found.model["embed.weight"]
    if change == "adds":
        found.model["extra"] = torch.zeros(2)
    if change == "dtype":
        found.model["mix.weight"] = found.model["mix.weight"].half()
    model = TinyModel()
    with pytest.raises(CheckpointError, match={"lacks": "embed", "adds": "extra", "dtype": "float16"}[change]):
        restore(found, model, build_optimizer(model, OptimizerConfig()))


@pytest.mark.parametrize("where", ["save_file", "write_whole", "_sync"])
def test_a_full_disk_leaves_the_earlier_one(run: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    before = {p: p.read_bytes() for p in (run / "checkpoints").rglob("*") if p.is_file()}

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, where, full)
    with pytest.raises(CheckpointError, match="No space left on device") as caught:
        resume(run, model=TinyModel(), sources=sources)
    assert "\n" not in str(caught.value)
    assert {p: p.read_bytes() for p in (run / "checkpoints").rglob("*") if p.is_file()} == before
    assert names(run) == ["step_00000002", "step_00000004"]
    monkeypatch.undo()
    assert resume(run, model=TinyModel(), sources=sources).finished


def test_a_real_write_error_leaves_the_earlier_one(run: Path) -> None:
    """The kernel refuses to let files grow past 4 KB, in the middle of a tensor file."""
    big = TinyModel(width=64)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        with pytest.raises(CheckpointError, match="could not be written"):
            save(run, 6, big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert names(run) == ["step_00000002", "step_00000004"]


def test_leftovers_of_a_crash_are_ignored_and_swept(run: Path) -> None:
    left = run / "checkpoints" / ".step_00000006.abc"
    left.mkdir()
    save_file({"x": torch.zeros(1)}, left / "model.safetensors")
    assert latest_checkpoint(run).name == "step_00000004"
    save(run, 8)
    assert names(run) == ["step_00000002", "step_00000004", "step_00000008"]


def test_keep_last(run: Path) -> None:
    save(run, 6, keep_last=2)
    assert names(run) == ["step_00000004", "step_00000006"]
    save(run, 100_000_000, keep_last=2)  # more digits than eight still sort as numbers
    assert latest_checkpoint(run).name == "step_100000000"


def test_saving_the_same_step_again_replaces_it(run: Path) -> None:
    other = TinyModel(seed=7)
    path = save(run, 4, other)
    assert torch.equal(load_file(path / "model.safetensors")["embed.weight"], other.embed.weight)
    assert names(run) == ["step_00000002", "step_00000004"]
