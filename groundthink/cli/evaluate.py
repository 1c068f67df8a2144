"""`groundthink evaluate`: exact answers of a trained model, with intervals and chance."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from groundthink.cli.common import find_recipe, tasks_of, writing
from groundthink.records import provenance, to_json, write_whole


@dataclasses.dataclass(frozen=True)
class Flags:
    """Score a trained model on the tasks of its recipe."""

    folder: Path
    """Folder of the run."""
    task: str = ""
    """One task of the recipe; all of them if not given."""
    n: int = 400
    """Episodes of each task."""
    seed: int = 0
    """Seed of the episodes."""
    split: Literal["valid", "test"] = "test"
    """Which episodes."""
    out: Path | None = None
    """Where the record goes; records/evaluation.json of the run if not given."""


def run(flags: Flags) -> int:
    """Evaluate; 0 when done."""
    from groundthink.tasks.scoring import evaluate
    from groundthink.training import load, model_folder

    path = model_folder(flags.folder)
    model = load(path)
    tasks = tasks_of(find_recipe(flags.folder), flags.task)
    results = {}
    for name, task in tasks.items():
        found = evaluate(task, lambda tokens: model(tokens).logits, n=flags.n, seed=flags.seed, split=flags.split)
        print(f"{name}: {found.exact} chance {found.chance.best:.4g}")
        for distance, share in found.by_distance.items():
            print(f"  distance {distance}: {share}")
        results[name] = found
    out = flags.out if flags.out is not None else flags.folder / "records" / "evaluation.json"
    with writing(out):
        write_whole(out, to_json({"checkpoint": path.name, "results": results, "provenance": provenance()}))
    print(f"record: {out}")
    return 0
