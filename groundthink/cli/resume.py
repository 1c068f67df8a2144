"""`groundthink resume`: go on from the newest checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from groundthink.cli.common import end, writing
from groundthink.cli.progress import Display


@dataclasses.dataclass(frozen=True)
class Flags:
    """Go on from the newest checkpoint of a run; on the CPU to the bit as if it had never stopped."""

    folder: Path
    """Folder of the run."""
    stop_at: int | None = None
    """Stop with a checkpoint after this many steps in all."""
    quiet: bool = False
    """Show no progress."""


def run(flags: Flags) -> int:
    """Resume; 0 when done or at --stop-at, 130 or 143 when a signal stopped it."""
    from groundthink.errors import CheckpointError
    from groundthink.training import load_recipe, resume

    recipe = flags.folder / "config.yaml"
    if not recipe.is_file():
        raise CheckpointError("there is no run.", where=str(flags.folder), fix="name a folder with a config.yaml.")
    phases = {phase.name: phase.steps for phase in load_recipe(recipe).phases}
    with writing(flags.folder), Display(phases, quiet=flags.quiet) as display:
        result = resume(flags.folder, on_event=display.on_event, stop_at=flags.stop_at)
    return end(result, flags.folder)
