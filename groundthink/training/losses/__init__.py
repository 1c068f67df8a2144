"""Losses beside the token losses: one file and one entry in LOSSES each, heard through forward hooks."""

from groundthink.training.losses.listen import Auxiliary
from groundthink.training.losses.loss import Heard, Loss
from groundthink.training.losses.registry import LOSSES, weight_problems

__all__ = ["LOSSES", "Auxiliary", "Heard", "Loss", "weight_problems"]
