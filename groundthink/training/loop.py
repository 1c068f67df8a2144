"""`train` begins a run, `resume` goes on exactly where the newest checkpoint stands."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from groundthink.errors import CheckpointError, ConfigError
from groundthink.model import HybridForCausalLM, load_model
from groundthink.records import write_whole
from groundthink.training.checkpoint import FOLDER, latest_checkpoint, load_checkpoint
from groundthink.training.config import TrainConfig, load_recipe, to_yaml
from groundthink.training.events import EVENTS, Event
from groundthink.training.run import Hook, Run, SourceFactory

CONFIG = "config.yaml"


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What is left of a run in memory.

    Attributes:
        model: after the last step, in evaluation mode.
        folder: of the run.
        step, tokens: as in `Progress`.
        finished: all phases are done; False after a stop.
        reason: "done", "stop_at", or the name of the signal that stopped it.
        metrics: of the last evaluation.
    """

    model: nn.Module
    folder: Path
    step: int
    tokens: int
    finished: bool
    reason: str
    metrics: dict[str, float]


def train(
    config: TrainConfig,
    folder: Path | str,
    hooks: Sequence[Hook] = (),
    *,
    on_event: Callable[[Event], None] | None = None,
    sources: SourceFactory | None = None,
    model: nn.Module | None = None,
    stop_at: int | None = None,
) -> TrainResult:
    """Train from the beginning. With the same config and thread count, a CPU run is the same to the bit.

    SIGINT and SIGTERM finish the step, write a checkpoint and return; a second SIGINT interrupts at once.

    Args:
        config: see `load_recipe`.
        folder: of the run; must not hold one yet.
        hooks: called as hook(event, model) after every event; they must leave the parameters alone.
        on_event: called with every event, for showing progress.
        sources: builds the source of a mix item; default: text and tasks as the config names them.
        model: what to train, in place of the model that `config.model` describes; the loss `anchor` holds on to
            what it says now.
        stop_at: stop with a checkpoint after this many steps in all.

    Raises:
        ConfigError: the folder holds a run, or the config does not fit; nothing is written then.
        CheckpointError: a checkpoint or event cannot be written.
        GroundThinkError: `max_skips` faulty steps in a row.
    """
    folder = Path(folder)
    _refuse_existing(folder)
    run = Run(config, folder, sources=sources, model=model)
    try:
        write_whole(folder / CONFIG, to_yaml(config))
    except OSError as error:
        raise ConfigError(
            f"cannot be written: {error.strerror}",
            where=str(folder),
            fix="name a folder on a disk with space",
        ) from error
    run.open(hooks, on_event)
    run.announce("start")
    return _finish(run, stop_at)


def resume(
    folder: Path | str,
    hooks: Sequence[Hook] = (),
    *,
    on_event: Callable[[Event], None] | None = None,
    sources: SourceFactory | None = None,
    model: nn.Module | None = None,
    stop_at: int | None = None,
) -> TrainResult:
    """Go on from the newest checkpoint of a run; on the CPU to the bit as if it had never stopped.

    Arguments as for `train`; `model` is an untrained one of the same sizes, or the one to hold on to.

    Raises:
        CheckpointError: no run, no checkpoint, a damaged one, or one of another config, model or data.
        ConfigError: config.yaml cannot be read.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise CheckpointError("there is no run", where=str(folder), fix="name a folder with a config.yaml in it")
    checkpoint = load_checkpoint(latest_checkpoint(folder))
    config = load_recipe(folder / CONFIG)
    if checkpoint.state["config_digest"] != config.digest:
        raise CheckpointError(
            "config.yaml is not the one that this checkpoint was trained with",
            where=str(checkpoint.path),
            fix="undo the change, or train under a new name",
        )
    run = Run(config, folder, sources=sources, model=model)
    run.restore(checkpoint)
    run.open(hooks, on_event)
    if not run.finished:
        run.announce("resume")
    return _finish(run, stop_at)


def model_folder(path: Path | str) -> Path:
    """The saved model that a path means: itself, or the newest checkpoint of a run.

    Raises:
        CheckpointError: there is neither.
    """
    path = Path(path)
    if (path / "config.json").is_file():
        return path
    if not (path / CONFIG).is_file():
        raise CheckpointError(
            "there is neither a run (config.yaml) nor a model (config.json)",
            where=str(path),
            fix="name the folder of a run or of a saved model",
        )
    return latest_checkpoint(path)


def load(path: Path | str) -> HybridForCausalLM:
    """The model of a run's newest checkpoint, or of a saved model's folder, in evaluation mode on the CPU.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    return load_model(model_folder(path))


def _finish(run: Run, stop_at: int | None) -> TrainResult:
    reason = run.go(stop_at)
    run.knobs.apply({}, "")  # the model is handed over as its config describes it
    run.model.eval()
    here = run.progress
    return TrainResult(run.model, run.folder, here.step, here.tokens, run.finished, reason, run.metrics)


def _refuse_existing(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError("is a file", where=str(folder), fix="name a folder for the run")
    for name in (CONFIG, EVENTS, FOLDER):
        if (folder / name).exists():
            raise ConfigError(
                f"holds a run already ({name})", where=str(folder), fix="resume it, or choose another name"
            )
