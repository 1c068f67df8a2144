"""Who is on trial and what it is asked: from a run folder, or from one saved model and flags."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from groundthink.cli.common import find_recipe, is_run, tasks_of
from groundthink.errors import ConfigError

DEFAULT_MULTIPLES, DEFAULT_TEXT_MULTIPLES = (2, 8), (2,)
DOCUMENT_TOKENS = 4096  # that are read of each document


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model with everything that `probes.certify` takes.

    Attributes:
        model: on trial, in evaluation mode.
        twins: by name.
        options: keyword arguments of `certify`.
        records: folder for what is found.
    """

    model: Any
    twins: dict[str, Any]
    options: dict[str, Any]
    records: Path


def subject_of(path: Path, *, task: str, documents: int, trained_length: int | None, device: str) -> Subject:
    """Load a run with its twins, vocabulary, needles and held-out text; or a saved model, with default ranges of ids.

    Raises:
        CheckpointError: there is nothing to load, or the run has no such task.
        ConfigError: a task that has no pairs, a vocabulary without room, or no such device.
    """
    from groundthink.probes.face import on_device
    from groundthink.training import load

    model = load(path)
    if device:
        model = on_device(model, device)
    if not is_run(path):
        options = {"vocabulary": default_vocabulary(model.sizes.vocab_size), "trained_length": trained_length}
        return Subject(model, {}, options, path / "records")
    recipe = find_recipe(path)
    tasks = tasks_of(recipe, task)
    # A source may be in the mix under several names, easier ones to start with: the hardest is what was learned.
    chosen = tasks.get(task) or max(tasks.values(), key=lambda one: getattr(one, "n_pairs", 0))
    if not hasattr(chosen, "n_pairs") or not hasattr(chosen, "donor"):
        raise ConfigError(f"{task} has no donors", where="--task", fix="name a kv_recall task of the recipe.")
    twins = {folder.name: load(folder) for folder in sorted((path / "twins").glob("*")) if folder.is_dir()}
    if device:
        twins = {name: on_device(twin, device) for name, twin in twins.items()}
    longest = max(phase.length for phase in recipe.config.phases)
    sources = {item.source for phase in recipe.config.phases for item in phase.mix}
    options = {
        "vocabulary": chosen.vocabulary,
        "n_pairs": chosen.n_pairs,
        "trained_length": trained_length or longest,
        "needle": next(iter(tasks_of(recipe, "needle").values())) if "needle" in sources else None,
        "text": held_out(recipe, documents) if documents and "text" in sources else (),
    }
    return Subject(model, twins, options, path / "records")


def held_out(recipe: Any, documents: int) -> list[Any]:
    """The first test documents as token ids."""
    import torch

    found = []
    for document in list(recipe.corpus.split("test"))[:documents]:
        ids = recipe.tokenizer.encode(document[: 4 * DOCUMENT_TOKENS])[:DOCUMENT_TOKENS]
        found.append(torch.tensor(ids, dtype=torch.int64))
    return found


def default_vocabulary(size: int) -> Any:
    """The last ids of a model for keys, values, filler and specials, the rest for text.

    Raises:
        ConfigError: there are too few.
    """
    from groundthink.tasks import Vocabulary

    plain = Vocabulary(text=0)
    if size < plain.size:
        raise ConfigError(
            f"{size} ids are too few: keys, values, filler and specials take {plain.size}",
            where="vocabulary",
            fix="certify a model with a larger vocabulary.",
        )
    return dataclasses.replace(plain, text=size - plain.size)


def lengths(subject: Subject, wanted: tuple[int, ...] | None, text_wanted: tuple[int, ...] | None) -> dict[str, Any]:
    """Multiples for `certify`: those named, else the default ones that leave room beyond the horizon."""
    trained, needle = subject.options.get("trained_length"), subject.options.get("needle")
    models = [subject.model, *subject.twins.values()]
    reach = max((int(m.horizon) for m in models if math.isfinite(m.horizon)), default=subject.model.sizes.window_size)
    least = 1 + 2 * subject.options.get("n_pairs", 16) + 2 * reach + 3

    def fitting(multiples: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(m for m in multiples if trained and m * trained >= least)

    return {
        "multiples": fitting(DEFAULT_MULTIPLES) if wanted is None else wanted,
        "text_multiples": (fitting(DEFAULT_TEXT_MULTIPLES) if needle is not None else ())
        if text_wanted is None
        else text_wanted,
    }
