"""The negative control: parity needs negative eigenvalues, and the harness must see both sides of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from groundthink.records import Proportion
from groundthink.tasks import evaluate
from groundthink.training import load_recipe, train
from groundthink.training.sources import Recipe

TRAINED, ASKED, EPISODES = 32, 64, 200
LAST = f"{ASKED}-{2 * ASKED - 1}"  # the slice that holds the last question of a word: one independent trial each


def last_answers(folder: Path, seed: int, *, negative: bool) -> tuple[Proportion, float]:
    """Right answers to the last question of words twice as long as those trained on, and chance."""
    flag = f"model.allow_negative_eigenvalues={str(negative).lower()}"
    config = load_recipe("parity", [f"seed={seed}", "phases[0].steps=200", "evaluate_every=0", "device=cpu", flag])
    item = config.phases[0].mix[0]
    assert item.options["length"] == TRAINED
    model = train(config, folder).model

    @torch.no_grad()
    def predict(tokens: Tensor) -> Tensor:
        logits: Tensor = model(tokens).logits
        return logits

    task = Recipe(config).task(item).with_options(length=ASKED)
    result = evaluate(task, predict, n=EPISODES, seed=seed, split="test")
    assert result.by_kind[LAST].n == EPISODES
    return result.by_kind[LAST], result.chance.best


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_parity_is_learned_with_negative_eigenvalues_and_fails_without(seed: int, tmp_path: Path) -> None:
    can, chance = last_answers(tmp_path / "negative", seed, negative=True)
    cannot, _ = last_answers(tmp_path / "positive", seed, negative=False)
    assert chance == 0.5
    # Wilson 95 %: 200 of 200 is [0.981, 1], 100 of 200 is [0.431, 0.569]. One seed in 20 of a model that guesses has
    # an interval without 0.5 in it, so the bounds of the failing arm leave room for that.
    assert can.low > 0.95, f"with negative eigenvalues {can}, chance {chance}"
    assert cannot.high < 0.7, f"without negative eigenvalues {cannot}, chance {chance}"
    assert cannot.low <= chance + 0.1, f"without negative eigenvalues {cannot}, chance {chance}"
    print(f"parity at {ASKED}, trained at {TRAINED}, seed {seed}: {can} against {cannot}, chance {chance}")
