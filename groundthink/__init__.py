"""GroundThink: build, train and prove hybrid language models whose memory can be read twice.

Names load when they are first used, so `import groundthink` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "DeltaMemory": "ops",
    "write": "ops",
    "write_and_read": "ops",
    "HybridForCausalLM": "model",
    "ModelConfig": "model",
    "Snapshot": "model",
    "TWINS": "model",
    "load_model": "model",
    "save_model": "model",
    "stream": "model.stream",
    "load_recipe": "training",
    "load": "training",
    "resume": "training",
    "train": "training",
    "certify": "studies.certify",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'groundthink' has no attribute {name!r}")
    return getattr(importlib.import_module(f"groundthink.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
