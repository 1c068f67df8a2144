"""`groundthink generate`: continue a text, one memory update a token."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from groundthink.cli.common import find_recipe
from groundthink.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Flags:
    """Continue a text with a trained model."""

    folder: Path
    """Folder of the run."""
    prompt: str = "def "
    """Text to continue."""
    tokens: int = 200
    """Tokens to write."""
    temperature: float = 0.8
    """Of the softmax; 0 takes the most likely token."""
    seed: int = 0
    """Seed of the draws."""


def run(flags: Flags) -> int:
    """Generate; 0 when done."""
    if flags.tokens < 1 or not 0 <= flags.temperature < float("inf"):
        raise ConfigError(
            f"tokens {flags.tokens} must be at least 1 and temperature {flags.temperature} at least 0.",
            where="groundthink generate",
            fix="give other values.",
        )
    from groundthink.training import load

    model = load(flags.folder)
    tokenizer = find_recipe(flags.folder).tokenizer
    ids = tokenizer.encode(flags.prompt)
    if not ids:
        raise ConfigError("the prompt is empty.", where="--prompt", fix="give at least one letter.")
    print(flags.prompt + tokenizer.decode(draw(model, ids, tokenizer.vocab_size, flags)))
    return 0


def draw(model: Any, ids: list[int], vocab_size: int, flags: Flags) -> list[int]:
    """Token ids that follow `ids`; ids that the tokenizer does not have are never drawn."""
    import torch

    generator = torch.Generator().manual_seed(flags.seed)
    found: list[int] = []
    with torch.no_grad():
        logits, snapshot = model.prefill(torch.tensor([ids]))
        while True:
            last = logits[0, -1, :vocab_size].float()
            if flags.temperature == 0:
                token = int(last.argmax())
            else:
                weights = torch.softmax(last / flags.temperature, dim=-1)
                token = int(torch.multinomial(weights, 1, generator=generator))
            found.append(token)
            if len(found) == flags.tokens:
                return found
            logits, snapshot = model.resume(snapshot, torch.tensor([[token]]))
