"""Questions with known answers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groundthink.tasks.ar_hits import ar_hit_buckets, ar_hit_positions, mean_losses
    from groundthink.tasks.check import check_episode, check_splits
    from groundthink.tasks.kv_capacity import N50, n50, points
    from groundthink.tasks.needle import depth_length_grid
    from groundthink.tasks.registry import TASKS, make_task
    from groundthink.tasks.scoring import TaskResult, answers_to, collate, evaluate
    from groundthink.tasks.successor import Gap, gap_to_entropy
    from groundthink.tasks.task import Chance, Episode, Query, Task, Vocabulary

__all__ = [
    "N50",
    "TASKS",
    "Chance",
    "Episode",
    "Gap",
    "Query",
    "Task",
    "TaskResult",
    "Vocabulary",
    "answers_to",
    "ar_hit_buckets",
    "ar_hit_positions",
    "check_episode",
    "check_splits",
    "collate",
    "depth_length_grid",
    "evaluate",
    "gap_to_entropy",
    "make_task",
    "mean_losses",
    "n50",
    "points",
]

_HOME = {
    "ar_hits": ("ar_hit_buckets", "ar_hit_positions", "mean_losses"),
    "kv_capacity": ("N50", "n50", "points"),
    "check": ("check_episode", "check_splits"),
    "scoring": ("TaskResult", "answers_to", "collate", "evaluate"),
    "needle": ("depth_length_grid",),
    "successor": ("Gap", "gap_to_entropy"),
    "registry": ("TASKS", "make_task"),
    "task": ("Chance", "Episode", "Query", "Task", "Vocabulary"),
}


# Looked up when first used: `python -m groundthink.tasks.kv_recall` must not find its file imported already.
def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f"groundthink.tasks.{module}"), name)
    raise AttributeError(f"module 'groundthink.tasks' has no attribute {name!r}")
