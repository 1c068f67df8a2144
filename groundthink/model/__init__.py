"""Whole language models: config, model, snapshots, files."""

from groundthink.model.config import ModelConfig, no_read_twin, parameter_count, window_only_twin
from groundthink.model.files import load_model, save_model
from groundthink.model.hf import GroundThinkConfig, SnapshotCache
from groundthink.model.hybrid import HybridForCausalLM, count_parameters
from groundthink.model.snapshot import Snapshot

__all__ = [
    "GroundThinkConfig",
    "HybridForCausalLM",
    "ModelConfig",
    "Snapshot",
    "SnapshotCache",
    "count_parameters",
    "load_model",
    "no_read_twin",
    "parameter_count",
    "save_model",
    "window_only_twin",
]
