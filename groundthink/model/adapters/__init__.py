"""Models of other families with the face of ours: one adapter each, so that probes never see transformers."""

from groundthink.model.adapters.base import Adapter
from groundthink.model.adapters.load import is_foreign, model_from
from groundthink.model.adapters.registry import FAMILIES, adapt
from groundthink.model.adapters.sight import Sight

__all__ = ["FAMILIES", "Adapter", "Sight", "adapt", "is_foreign", "model_from"]
