"""`groundthink config`: what recipes there are, and what one of them means in full."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Flags:
    """List the shipped recipes; with --recipe, check one and print it with every field resolved."""

    recipe: str = ""
    """Name of a shipped recipe, or a YAML file."""
    set: tuple[str, ...] = ()
    """Fields to change, such as phases[0].steps=50 model.d_model=64."""
    check: bool = False
    """Only check it."""


def run(flags: Flags) -> int:
    """List, check or print; 0 when it is in order."""
    from groundthink.training import load_recipe, recipe_names, to_yaml

    if not flags.recipe:
        print("\n".join(recipe_names()))
        return 0
    config = load_recipe(flags.recipe, flags.set)
    from groundthink.training.sources import Recipe

    Recipe(config).check()
    print(f"{flags.recipe} is in order." if flags.check else to_yaml(config).rstrip())
    return 0
