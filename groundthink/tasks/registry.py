"""Tasks by name, as recipes write them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundthink.data.tokenizer import Tokenizer
from groundthink.errors import ConfigError
from groundthink.tasks.copy import Copy
from groundthink.tasks.echo import Echo
from groundthink.tasks.facts import Facts
from groundthink.tasks.kv_capacity import KvCapacity
from groundthink.tasks.kv_compositional import KvCompositional
from groundthink.tasks.kv_fuzzy import KvFuzzy
from groundthink.tasks.kv_noise import KvNoise
from groundthink.tasks.kv_overwrite import KvOverwrite
from groundthink.tasks.kv_recall import KvRecall
from groundthink.tasks.marker_needle import MarkerNeedle
from groundthink.tasks.needle import Needle
from groundthink.tasks.ngram_lookup import NgramLookup
from groundthink.tasks.selective_copy import SelectiveCopy
from groundthink.tasks.successor import Successor
from groundthink.tasks.task import Task, Vocabulary, refuse_unknown
from groundthink.tasks.text_strings import TextStrings
from groundthink.tasks.track import Track

TASKS: dict[str, type[Task]] = {
    kind.name: kind
    for kind in (
        KvRecall,
        KvOverwrite,
        KvCapacity,
        KvCompositional,
        KvFuzzy,
        KvNoise,
        SelectiveCopy,
        Copy,
        NgramLookup,
        Track,
        Needle,
        MarkerNeedle,
        Echo,
        Successor,
        Facts,
        TextStrings,
    )
}


def make_task(
    name: str,
    options: Mapping[str, Any] | None,
    vocabulary: Vocabulary,
    *,
    text: Mapping[str, NDArray[np.integer]] | None = None,
    tokenizer: Tokenizer | None = None,
) -> Task:
    """A task from a recipe's name and options.

    Args:
        name: one of `TASKS`.
        options: of that task; None for its defaults.
        vocabulary: ranges of ids.
        text: tokens of each split (see `data.split_tokens`); a task that needs none does not look at it.
        tokenizer: likewise.

    Raises:
        ConfigError: an unknown name, or options that are unknown or cannot be honoured, all of them at once.
    """
    if name not in TASKS:
        raise ConfigError(f"no task {name!r}", where="task", fix=f"one of {', '.join(TASKS)}.")
    kind, chosen = TASKS[name], dict(options or {})
    handed = {key: value for key, value in (("text", text), ("tokenizer", tokenizer)) if value is not None}
    fields = {field.name for field in dataclasses.fields(kind) if field.metadata.get("resource")}
    resources = {key: value for key, value in handed.items() if key in fields}
    known = {key: value for key, value in chosen.items() if key in kind.option_names()}
    problems = []
    task: Task | None = None
    try:
        refuse_unknown(kind, chosen)
    except ConfigError as error:
        problems.append(error)
    try:
        task = kind(vocabulary, **resources, **known)
    except ConfigError as error:
        problems.append(error)
    if problems or task is None:
        what = "; ".join(error.what for error in problems)
        fix = " ".join(error.fix for error in problems)
        raise ConfigError(what, where=problems[0].where, fix=fix)
    return task
