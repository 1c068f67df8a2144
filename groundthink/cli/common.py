"""What several verbs need: finding a model in a folder, naming the place of a full disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from groundthink.errors import CheckpointError


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """An OSError that names no file, or only the temporary one of a whole write, gets `place`."""
    try:
        yield
    except OSError as error:
        temporary = str(error.filename or "").rpartition("/")[2].startswith(f".{place.name}.")
        if error.errno is not None and (error.filename is None or temporary):
            raise OSError(error.errno, error.strerror, str(place)) from error
        raise


def is_run(folder: Path) -> bool:
    """A folder that `train` wrote, as against one saved model."""
    return (folder / "config.yaml").is_file()


def find_recipe(folder: Path) -> Any:
    """The `training.Recipe` of a run folder: its tokenizer, corpus, vocabulary and tasks.

    Raises:
        CheckpointError: the folder holds no run, so nothing says what the model was trained on.
    """
    if not is_run(folder):
        raise CheckpointError(
            "there is no config.yaml, so the model's tasks and tokenizer are not known.",
            where=str(folder),
            fix="name the folder of a run.",
        )
    from groundthink.training import load_recipe
    from groundthink.training.sources import Recipe

    return Recipe(load_recipe(folder / "config.yaml"))


def end(result: Any, folder: Path) -> int:
    """Say how a training run ended; the exit code of its reason, as shells have it for signals."""
    if result.finished:
        print(f"done at step {result.step}: {folder}")
        return 0
    print(f"stopped ({result.reason}) at step {result.step}; go on with: groundthink resume {folder}")
    return {"SIGINT": 130, "SIGTERM": 143}.get(result.reason, 0)


def tasks_of(recipe: Any, wanted: str) -> dict[str, Any]:
    """Tasks of a recipe by item name, as the last phase with them sets them; only `wanted` if it is named.

    Raises:
        CheckpointError: the recipe has no such task.
    """
    items = {item.label: item for phase in recipe.config.phases for item in phase.mix if item.source != "text"}
    chosen = {name: item for name, item in items.items() if wanted in ("", name, item.source)}
    if not chosen:
        known = ", ".join(items) or "none at all"
        raise CheckpointError(
            f"the recipe has no task {wanted!r}." if wanted else "the recipe has no task.",
            where="--task",
            fix=f"its tasks: {known}.",
        )
    return {name: recipe.task(item) for name, item in chosen.items()}
