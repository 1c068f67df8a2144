"""Whole language models: config, model, snapshots, files."""

from groundthink.model.config import TWINS, ModelConfig, parameter_count
from groundthink.model.files import load_model, save_model
from groundthink.model.hf import GroundThinkConfig, SnapshotCache
from groundthink.model.hybrid import HybridForCausalLM, count_parameters
from groundthink.model.presets import PRESETS
from groundthink.model.snapshot import Snapshot

__all__ = [
    "PRESETS",
    "TWINS",
    "GroundThinkConfig",
    "HybridForCausalLM",
    "ModelConfig",
    "Snapshot",
    "SnapshotCache",
    "count_parameters",
    "load_model",
    "parameter_count",
    "save_model",
]
