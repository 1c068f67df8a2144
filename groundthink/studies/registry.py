"""Studies by name. A study is one file with a `STUDY` and one entry here."""

from __future__ import annotations

import difflib
import importlib

from groundthink.errors import ConfigError
from groundthink.studies.study import Study

STUDIES: dict[str, str] = {
    "leak": "leak",
    "single-needle": "single_needle",
    "multi-needle": "multi_needle",
    "key-bank": "key_bank",
    "capacity": "capacity",
    "interference": "interference",
    "forget-gate": "forget_gate",
    "memory-profile": "memory_profile",
    "successor-language": "successor_language",
    "blind-window": "blind_window",
    "text-needle": "text_needle",
    "progressive-curriculum": "progressive_curriculum",
    "key-collapse": "key_collapse",
    "shifted-value": "shifted_value",
    "context-keys": "context_keys",
    "mixed-training": "mixed_training",
}


def find(name: str) -> Study:
    """The study of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in STUDIES:
        near = difflib.get_close_matches(name, STUDIES, n=1)
        guess = f"did you mean {near[0]}?" if near else f"one of {', '.join(STUDIES)}"
        raise ConfigError(f"there is no study {name!r}", where="study", fix=guess)
    found: Study = importlib.import_module(f"groundthink.studies.{STUDIES[name]}").STUDY
    return found


def every() -> list[Study]:
    """All of them, in the order of the table."""
    return [find(name) for name in STUDIES]
