"""Training: phases from a recipe, exact resumption, evidence on disk."""

from groundthink.training.checkpoint import Checkpoint, latest_checkpoint, list_checkpoints, load_checkpoint
from groundthink.training.config import (
    DataConfig,
    MixItem,
    OptimizerConfig,
    Phase,
    Threshold,
    TrainConfig,
    config_from_dict,
    load_recipe,
    recipe_names,
    to_yaml,
)
from groundthink.training.events import Event, EventLog, read_events
from groundthink.training.language import TextScores, score_text
from groundthink.training.loop import TrainResult, load, model_folder, resume, train
from groundthink.training.losses import LOSSES
from groundthink.training.mixture import Measurement, Rows, Source
from groundthink.training.run import Hook, SourceFactory
from groundthink.training.smoke import smoke_form

__all__ = [
    "LOSSES",
    "Checkpoint",
    "DataConfig",
    "Event",
    "EventLog",
    "Hook",
    "Measurement",
    "MixItem",
    "OptimizerConfig",
    "Phase",
    "Rows",
    "Source",
    "SourceFactory",
    "TextScores",
    "Threshold",
    "TrainConfig",
    "TrainResult",
    "config_from_dict",
    "latest_checkpoint",
    "list_checkpoints",
    "load",
    "load_checkpoint",
    "load_recipe",
    "model_folder",
    "read_events",
    "recipe_names",
    "resume",
    "score_text",
    "smoke_form",
    "to_yaml",
    "train",
]
