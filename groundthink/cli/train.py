"""`groundthink train`: a recipe in, a run folder out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from groundthink.cli.common import end, writing
from groundthink.cli.progress import Display


@dataclasses.dataclass(frozen=True)
class Flags:
    """Train from a shipped recipe or a YAML file. The folder must not hold a run yet."""

    recipe: str
    """Name of a shipped recipe (see `groundthink config`), or a YAML file."""
    folder: Path | None = None
    """Where the run goes; runs/<recipe> if not given."""
    seed: int | None = None
    """Seed of parameters and data, instead of the recipe's."""
    set: tuple[str, ...] = ()
    """Fields to change, such as phases[0].steps=50 model.d_model=64."""
    stop_at: int | None = None
    """Stop with a checkpoint after this many steps."""
    quiet: bool = False
    """Show no progress."""


def run(flags: Flags) -> int:
    """Train; 0 when done or at --stop-at, 130 or 143 when a signal stopped it."""
    from groundthink.training import load_recipe, train

    changes = list(flags.set) + ([f"seed={flags.seed}"] if flags.seed is not None else [])
    config = load_recipe(flags.recipe, changes)
    folder = flags.folder if flags.folder is not None else Path("runs") / Path(flags.recipe).stem
    phases = {phase.name: phase.steps for phase in config.phases}
    with writing(folder), Display(phases, quiet=flags.quiet) as display:
        result = train(config, folder, on_event=display.on_event, stop_at=flags.stop_at)
    return end(result, folder)
